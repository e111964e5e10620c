//! The gateway's own protocol over `control.sock`: the same frames and the same checks as every other door.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_core::auth::Scope;
use portcullis_core::codes;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::protocol::limits::{FRAME, PROTOCOL};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::failure::Failure;
use crate::show::text::clean;

/// To a hello-ok.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// To the answer of a plain request; `exec.run` and `approvals watch` wait without end.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);
/// `sun_path` less its NUL (unix(7)).
const SUN_PATH: usize = 107;

/// One authenticated connection.
pub struct Client {
    socket: WebSocketStream<UnixStream>,
    next_id: u64,
    /// Of the last event.
    seq: u64,
    /// `hello-ok`'s payload.
    pub hello: Value,
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
    /// Dials a control socket and connects as an operator with these scopes.
    ///
    /// # Errors
    /// `DAEMON_UNREACHABLE`, or the gateway's own refusal.
    pub async fn connect(door: &Path, scopes: &[Scope], caps: &[&str]) -> Result<Self, Failure> {
        match timeout(CONNECT_WITHIN, Self::shake(door, scopes, caps)).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(door, "it does not answer")),
        }
    }

    async fn shake(path: &Path, scopes: &[Scope], caps: &[&str]) -> Result<Self, Failure> {
        let stream = dial(path).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::PermissionDenied => unreachable(path, "your user may not open it").hint(
                "run this as the gateway's user, or let yours in with [gateway.local] operators and socket in config.toml",
            ),
            std::io::ErrorKind::NotFound => unreachable(path, "no gateway runs there"),
            std::io::ErrorKind::ConnectionRefused => unreachable(path, "its gateway has ended"),
            _ => unreachable(path, &e.to_string()),
        })?;
        let mut config = WebSocketConfig::default();
        config.max_frame_size = Some(2 * FRAME);
        let (socket, _) = client_async_with_config("ws://localhost/", stream, Some(config))
            .await
            .map_err(|e| unreachable(path, &format!("it does not speak our protocol ({e})")))?;
        let mut client = Self {
            socket,
            next_id: 0,
            seq: 0,
            hello: Value::Null,
        };
        loop {
            match client.next().await? {
                Incoming::Event { event, .. } if event == "connect.challenge" => break,
                _ => {}
            }
        }
        let scopes: Vec<&str> = scopes.iter().map(|s| s.as_str()).collect();
        let params = json!({
            "minProtocol": PROTOCOL, "maxProtocol": PROTOCOL,
            "client": {
                "id": "cli", "mode": "cli", "version": env!("CARGO_PKG_VERSION"), "platform": std::env::consts::OS,
            },
            "role": "operator", "scopes": scopes, "caps": caps,
        });
        client.hello = client
            .call("connect", params)
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
        self.socket
            .send(Message::text(frame.to_string()))
            .await
            .map_err(|e| lost(&e.to_string()))?;
        Ok(id)
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
                        |f| {
                            format!(
                                "the gateway closed the connection: {} {}",
                                u16::from(f.code),
                                f.reason
                            )
                        },
                    )));
                }
                Some(Ok(_)) => continue,
                Some(Err(WsError::Io(e))) => return Err(lost(&e.to_string())),
                Some(Err(e)) => return Err(lost(&e.to_string())),
                None => return Err(lost("the gateway closed the connection")),
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
                Err(_) => {}
            }
        }
    }

    /// Sends a request and waits for its answer; events in between are passed over.
    ///
    /// # Errors
    /// The gateway's refusal, `DEADLINE`, or a lost connection.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value, Failure> {
        let id = self.send(method, params).await?;
        let answer = async {
            loop {
                if let Incoming::Answer { id: of, result } = self.next().await?
                    && of == id
                {
                    return result.map_err(|e| Failure::from_wire(&e));
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

    /// Ends the connection in order.
    pub async fn close(mut self) {
        // What was to be done is done: how the goodbye goes changes nothing.
        let _ = timeout(Duration::from_millis(500), self.socket.close(None)).await;
    }
}

/// Connects; a path too long for a socket address goes through the descriptor of its folder.
async fn dial(path: &Path) -> std::io::Result<UnixStream> {
    if path.as_os_str().len() <= SUN_PATH {
        return UnixStream::connect(path).await;
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let folder = rustix::fs::open(
        folder,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    UnixStream::connect(
        Path::new("/proc/self/fd")
            .join(folder.as_raw_fd().to_string())
            .join(name),
    )
    .await
}

fn unreachable(path: &Path, why: &str) -> Failure {
    Failure::of(
        codes::DAEMON_UNREACHABLE,
        format!("{}: {why}", clean(&path.display().to_string())),
    )
}

fn lost(why: &str) -> Failure {
    Failure::of(
        codes::DAEMON_UNREACHABLE,
        format!("the connection is lost: {}", clean(why)),
    )
    .hint("`portcullis status` shows whether the gateway runs")
}
