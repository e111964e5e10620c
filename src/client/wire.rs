//! The gateway's own protocol, over `control.sock` or to a gateway elsewhere: the same frames and the same checks as at every
//! other door.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_actors::connection::IdleBudget;
use portcullis_core::auth::{Role, Scope};
use portcullis_core::codes;
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::protocol::limits::FRAME;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::address::{Address, Stream};
use super::device::{Credential, Device, Who};
use super::idle::{Counted, FLOOD};
use super::remote::{Remote, Session};
use super::seen;
use super::server;
use crate::cli::Failure;
use crate::show::text::clean;

/// To a hello-ok.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// To the answer of a plain request; `exec.run` and `approvals watch` wait without end.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);
/// What a gateway says under a name that is none of its own.
const MISDIRECTED: StatusCode = StatusCode::MISDIRECTED_REQUEST;
const FORBIDDEN: StatusCode = StatusCode::FORBIDDEN;
/// `sun_path` less its NUL (unix(7)).
const SUN_PATH: usize = 107;

/// The way to a gateway.
#[derive(Debug, Clone)]
pub enum Door {
    /// Of this machine: the kernel says who we are.
    Socket(PathBuf),
    /// Elsewhere: we are a device there.
    Remote(Box<Remote>),
}

/// One authenticated connection.
pub struct Client {
    socket: WebSocketStream<Counted>,
    /// For messages that say nothing to us.
    idle: IdleBudget,
    /// Why nothing comes any more: it is said once by the socket, and may have been said to who looked for something else.
    over: Option<Failure>,
    next_id: u64,
    /// Of the last event.
    seq: u64,
    /// `hello-ok`'s payload.
    pub hello: Value,
    /// Another machine's gateway, or another user's: what it says is not ours.
    elsewhere: bool,
}

/// What comes in after the hello.
#[derive(Debug)]
pub enum Incoming {
    /// An answer to the request with this id.
    Answer {
        /// Of the request.
        id: String,
        /// What it brings.
        result: Result<Value, ErrorBody>,
    },
    /// News.
    Event {
        /// Its name.
        event: String,
        /// Its content.
        payload: Value,
        /// Events before it were lost: what they told is to be asked for again.
        after_gap: bool,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Frame {
    Res {
        id: String,
        ok: bool,
        #[serde(default)]
        payload: Value,
        error: Option<ErrorBody>,
    },
    Event {
        event: String,
        #[serde(default)]
        payload: Value,
        seq: Option<u64>,
    },
}

impl Client {
    /// Connects as an operator with these scopes.
    ///
    /// # Errors
    /// `DAEMON_UNREACHABLE`, `PAIRING_REQUIRED`, or the gateway's own refusal.
    pub async fn connect(door: &Door, scopes: &[Scope], caps: &[&str]) -> Result<Self, Failure> {
        let who = operator(scopes, caps);
        match door {
            Door::Socket(path) => Self::here(path, |_, _| who.params()).await,
            Door::Remote(remote) => {
                let session = remote.as_ref().clone().open(Role::Operator).await?;
                let mut client = session.connect(&who).await?;
                seen::hold(&mut client, door).await?;
                Ok(client)
            }
        }
    }

    /// Connects to the gateway here with a device's key beside the uid that the kernel names.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn beside_uid(
        path: &Path,
        device: &Device,
        scopes: &[Scope],
    ) -> Result<Self, Failure> {
        let who = operator(scopes, &[]);
        let params = |nonce: &str, ts| device.connect(&who, &Credential::Kernel, nonce, ts);
        Self::here(path, params).await
    }

    /// Connects to a gateway elsewhere with keys that are open already.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn of_session(
        door: &Door,
        session: &Session,
        scopes: &[Scope],
    ) -> Result<Self, Failure> {
        let mut client = session.connect(&operator(scopes, &[])).await?;
        seen::hold(&mut client, door).await?;
        Ok(client)
    }

    async fn here(path: &Path, params: impl FnOnce(&str, u64) -> Value) -> Result<Self, Failure> {
        let whole = async {
            let stream = control(path).await?;
            let lost = |why: &str| unreachable(path, why);
            Self::shake((false, "ws://localhost/"), stream, &lost, params).await
        };
        match timeout(CONNECT_WITHIN, whole).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(path, "it does not answer")),
        }
    }

    /// Connects to a gateway elsewhere; `params` of `connect` are made from its challenge's nonce and time.
    ///
    /// # Errors
    /// `DAEMON_UNREACHABLE`, `SERVER_NOT_VERIFIED`, or the gateway's own refusal.
    pub async fn over(
        address: &Address,
        params: impl FnOnce(&str, u64) -> Value,
    ) -> Result<Self, Failure> {
        let url = address.url();
        let lost = |why: &str| {
            Failure::of(codes::DAEMON_UNREACHABLE, format!("{}: {why}", clean(&url)))
                .hint("look at the address, and whether that gateway runs and lets this machine in")
        };
        let whole = async {
            let stream = address.dial().await?;
            Self::shake((true, &url), stream, &lost, params).await
        };
        match timeout(CONNECT_WITHIN, whole).await {
            Ok(result) => result,
            Err(_) => Err(lost("it does not answer")),
        }
    }

    /// Goes as far as a gateway's greeting under the name in `url`, and hangs up: no credential is sent.
    ///
    /// # Errors
    /// As [`Self::over`], and `NAME_NOT_OURS`.
    pub async fn greeted(address: &Address, url: &str) -> Result<(), Failure> {
        let lost = |why: &str| Failure::of(codes::DAEMON_UNREACHABLE, why);
        let whole = async {
            let stream = address.unasked().dial().await?;
            let (client, _) = Self::greet((true, url), stream, &lost).await?;
            client.close().await;
            Ok(())
        };
        match timeout(CONNECT_WITHIN, whole).await {
            Ok(result) => result,
            Err(_) => Err(lost("nothing answers there")),
        }
    }

    /// Upgrades, and waits for the challenge: its nonce and time.
    async fn greet(
        (elsewhere, url): (bool, &str),
        stream: Box<dyn Stream>,
        lost: &(dyn Fn(&str) -> Failure + Sync),
    ) -> Result<(Self, (String, u64)), Failure> {
        let mut config = WebSocketConfig::default();
        config.max_frame_size = Some(2 * FRAME);
        config.max_message_size = Some(2 * FRAME);
        // Of what waits to be read by the gateway, its pongs among it.
        config.max_write_buffer_size = 2 * FRAME;
        let (socket, _) = client_async_with_config(url, Counted::new(stream), Some(config))
            .await
            .map_err(|e| match e {
                WsError::Http(answer) if answer.status() == MISDIRECTED => Failure::of(
                    codes::NAME_NOT_OURS,
                    format!("the gateway is asked for as {}", clean(url)),
                ),
                // The control socket that every user may dial says no more to who is no operator.
                WsError::Http(answer) if !elsewhere && answer.status() == FORBIDDEN => {
                    let mut failure = Failure::from_wire(&ConnectRefusal::not_operator().error);
                    failure.exit = 4;
                    failure
                }
                WsError::Io(e) if e.to_string() == FLOOD => flood(),
                e => lost(&clean(&format!("it does not speak our protocol ({e})"))),
            })?;
        let mut client = Self {
            socket,
            idle: IdleBudget::default(),
            over: None,
            next_id: 0,
            seq: 0,
            hello: Value::Null,
            elsewhere,
        };
        loop {
            match client.next().await? {
                Incoming::Event { event, payload, .. } if event == "connect.challenge" => {
                    let nonce = payload["nonce"].as_str().unwrap_or_default().to_owned();
                    let ts = payload["ts"].as_u64().unwrap_or_default();
                    return Ok((client, (nonce, ts)));
                }
                _ => {}
            }
        }
    }

    async fn shake(
        place: (bool, &str),
        stream: Box<dyn Stream>,
        lost: &(dyn Fn(&str) -> Failure + Sync),
        params: impl FnOnce(&str, u64) -> Value,
    ) -> Result<Self, Failure> {
        let (mut client, (nonce, ts)) = Self::greet(place, stream, lost).await?;
        client.hello =
            client
                .call("connect", params(&nonce, ts))
                .await
                .map_err(|mut failure| {
                    // A door that does not open is a matter of permission, whatever it says.
                    if failure.exit == 1 && !failure.retryable {
                        failure.exit = 4;
                    }
                    failure
                })?;
        Ok(client)
    }

    /// Sends a request and returns its id.
    ///
    /// # Errors
    /// `DAEMON_UNREACHABLE`: the connection is lost.
    pub async fn send(&mut self, method: &str, params: Value) -> Result<String, Failure> {
        self.next_id += 1;
        let id = self.next_id.to_string();
        let frame = json!({ "type": "req", "id": id, "method": method, "params": params });
        let sent = self.socket.send(Message::text(frame.to_string()));
        let sent = timeout(ANSWER_WITHIN, sent).await;
        match sent {
            Ok(Ok(())) => Ok(id),
            Ok(Err(e)) => Err(self.over.clone().unwrap_or_else(|| broken(&e))),
            Err(_) => Err(lost("the gateway takes nothing any more")),
        }
    }

    fn ends(&mut self, why: Failure) -> Failure {
        self.over.get_or_insert(why).clone()
    }

    /// The next answer or event. May be dropped and called again.
    ///
    /// # Errors
    /// `DAEMON_UNREACHABLE` with the close reason.
    pub async fn next(&mut self) -> Result<Incoming, Failure> {
        loop {
            let text = match self.socket.next().await {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(frame))) => {
                    return Err(lost(&frame.map_or_else(
                        || "the gateway closed the connection".to_owned(),
                        // Whoever is there chose these words: they stand as theirs.
                        |f| {
                            let (code, reason) = (u16::from(f.code), f.reason.replace('"', "'"));
                            format!("the gateway closed the connection with {code} and said \"{reason}\"")
                        },
                    )));
                }
                // Pings are counted below us; others of no use here.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(_)) if self.idle.may() => continue,
                Some(Ok(_)) => return Err(self.ends(flood())),
                Some(Err(e)) => return Err(self.ends(broken(&e))),
                None => {
                    let over = self.over.clone();
                    return Err(over.unwrap_or_else(|| lost("the gateway closed the connection")));
                }
            };
            match serde_json::from_str::<Frame>(&text) {
                Ok(Frame::Event {
                    event,
                    payload,
                    seq,
                }) => {
                    let expected = self.seq + 1;
                    let after_gap = seq.is_some_and(|seq| seq != expected);
                    self.seq = seq.unwrap_or(self.seq);
                    return Ok(Incoming::Event {
                        event,
                        payload,
                        after_gap,
                    });
                }
                Ok(Frame::Res {
                    id,
                    ok,
                    payload,
                    error,
                }) => {
                    let result = if ok {
                        Ok(payload)
                    } else {
                        Err(error.unwrap_or_else(|| {
                            ErrorBody::bare("UNAVAILABLE", "an error without a body")
                        }))
                    };
                    return Ok(Incoming::Answer { id, result });
                }
                // Newer gateways may send frames of kinds that we do not know.
                Err(_) if self.idle.may() => {}
                Err(_) => return Err(flood()),
            }
        }
    }

    /// Sends a request and waits for its answer; events in between are passed over.
    ///
    /// # Errors
    /// The gateway's refusal, `DEADLINE`, or a lost connection.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value, Failure> {
        let answer = async {
            let id = self.send(method, params).await?;
            loop {
                if let Incoming::Answer { id: of, result } = self.next().await?
                    && of == id
                {
                    return result.map_err(|e| self.refusal(&e));
                }
            }
        };
        timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(|_| {
            Err(Failure::of(
                codes::DEADLINE,
                format!(
                    "the gateway has not answered {method} in {} s; it may have done it",
                    ANSWER_WITHIN.as_secs()
                ),
            )
            .hint("`portcullis status` and `portcullis audit tail` show what happened"))
        })
    }

    /// A refusal of this gateway: its own words, or, of one elsewhere, what it says.
    pub fn refusal(&self, error: &ErrorBody) -> Failure {
        if self.elsewhere {
            Failure::from_elsewhere(error)
        } else {
            Failure::from_wire(error)
        }
    }

    /// Marks a message of this gateway as its own, where it is one elsewhere.
    pub fn said(&self, failure: Failure) -> Failure {
        if self.elsewhere {
            failure.said_elsewhere(vec![])
        } else {
            failure
        }
    }

    /// Ends the connection in order.
    pub async fn close(mut self) {
        // What was to be done is done: how the goodbye goes changes nothing.
        let _ = timeout(Duration::from_millis(500), self.socket.close(None)).await;
    }
}

/// A person at our command line.
fn operator(scopes: &[Scope], caps: &[&str]) -> Who {
    Who {
        id: "cli",
        mode: "cli",
        role: Role::Operator,
        scopes: scopes.iter().map(|s| s.as_str().to_owned()).collect(),
        caps: caps.iter().map(|&c| c.to_owned()).collect(),
        name: None,
        more: Map::new(),
    }
}

/// The control socket, with a gateway at it that may hear secrets; or why it does not open.
async fn control(path: &Path) -> Result<Box<dyn Stream>, Failure> {
    let stream = dial(path).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => unreachable(path, "your user may not open it").hint(
            "run this as the gateway's user, or let yours in with [gateway.local] operators and socket in config.toml",
        ),
        std::io::ErrorKind::NotFound => unreachable(path, "no gateway runs there"),
        std::io::ErrorKind::ConnectionRefused => unreachable(path, "its gateway has ended"),
        _ => unreachable(path, &e.to_string()),
    })?;
    server::check(&stream, path)?;
    Ok(Box::new(stream))
}

/// Connects; a path too long for a socket address goes through the descriptor of its folder.
async fn dial(path: &Path) -> std::io::Result<UnixStream> {
    if path.as_os_str().len() <= SUN_PATH {
        return connect(path).await;
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let folder = rustix::fs::open(
        folder,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let short = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name);
    connect(&short).await
}

/// Where others have filled the line of those who wait to be taken (unix(7): EAGAIN), it is tried again until the caller's
/// time is over.
async fn connect(path: &Path) -> std::io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            other => return other,
        }
    }
}

fn unreachable(path: &Path, why: &str) -> Failure {
    Failure::of(
        codes::DAEMON_UNREACHABLE,
        format!("{}: {why}", clean(&path.display().to_string())),
    )
}

fn flood() -> Failure {
    Failure::of(
        codes::SERVER_FLOODS,
        format!("the gateway is left: {FLOOD}"),
    )
}

fn broken(error: &WsError) -> Failure {
    match error {
        WsError::Io(e) if e.to_string() == FLOOD => flood(),
        WsError::Io(e) => lost(&e.to_string()),
        e => lost(&e.to_string()),
    }
}

fn lost(why: &str) -> Failure {
    Failure::of(
        codes::DAEMON_UNREACHABLE,
        format!("the connection is lost: {}", clean(why)),
    )
    .hint("`portcullis status` shows whether the gateway runs")
}
