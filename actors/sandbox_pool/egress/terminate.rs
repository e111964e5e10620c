//! A host whose TLS the gateway opens: one request of HTTP/1.1, with a secret put in where the operator says so, and its answer without it.
//!
//! The order: the box's hello (to that very name, as for any tunnel), TLS with a leaf of our own, the head of one request, the decision, its
//! record, the secret out of the vault, TLS to the address that was dialled (verified by what this system trusts), the request. What follows
//! that request goes nowhere. Refusals are answered inside TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use portcullis_core::audit::Seq;
use portcullis_core::egress::hello::{Hello, HelloError};
use portcullis_core::egress::inner::{InnerError, Request};
use portcullis_core::egress::{AnswerError, Host, Name, Refusal, Scrubber, Termination};
use portcullis_core::seal::Secret;
use portcullis_core::vault::{Asked, RecordMeta, Use};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep_until, timeout};
use tokio_rustls::client::TlsStream as ToHost;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::server::TlsStream as ToClient;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::authority::{AuthorityError, Opener};
use super::connection::{Place, answer, say};
use super::opened::Opened;
use super::pump::{Broken, Kind, Over, Sieve, Way, pump};
use super::record::{self, End};
use super::tunnel::{ESTABLISHED, Shut, hello};
use super::wiring::EgressWiring;
use crate::vault::VaultRefusal;

/// Read at once.
const READ: usize = 4096;

/// What a host's TLS is opened with.
pub struct Terminated {
    opener: Opener,
    leaf: Arc<ServerConfig>,
    entries: Vec<Termination>,
}

impl Terminated {
    /// Whether, and how: none where nobody has named this host and port.
    pub async fn of(
        wiring: &EgressWiring,
        host: &Host,
        port: u16,
    ) -> Result<Option<Self>, Refusal> {
        let entries = wiring.terminate.of(host, port);
        let (Some(name), false) = (host.name(), entries.is_empty()) else {
            return Ok(None);
        };
        let closed = |error: &AuthorityError| Refusal::Closed(error.code(), error.to_string());
        let Some(opener) = wiring.ways.opener.clone() else {
            return Err(Refusal::Closed("ROOM_DOWN", "there is no vault".to_owned()));
        };
        let leaf = match opener.authority(&wiring.terminate.hosts()).await {
            Ok(authority) => authority.leaf(name),
            Err(error) => Err(error),
        };
        let leaf = leaf.map_err(|error| closed(&error))?;
        Ok(Some(Self {
            opener,
            leaf,
            entries,
        }))
    }
}

/// A secret that goes in, or would come out.
struct Held {
    entry: Termination,
    is_put: bool,
    meta: RecordMeta,
}

/// What has been said to the client already.
pub enum Told {
    /// It was not told why.
    Not(Refusal),
    /// It was, inside TLS.
    Already(Refusal),
}

/// From the answer to CONNECT to the end of the one request. `came`: what followed the CONNECT.
pub async fn pass(
    client: &mut UnixStream,
    server: TcpStream,
    came: &[u8],
    (host, port): (&Host, u16),
    terminated: Terminated,
    place: &mut Place,
    end: &mut End,
) -> Result<(), Told> {
    let mut closing = place.closing.clone();
    let over = place.began + place.wiring.ways.limits.total;
    let whole = whole(client, server, came, (host, port), terminated, place, end);
    let passed = tokio::select! {
        passed = whole => Some(passed),
        _ = closing.until(|closing| *closing) => None,
        () = sleep_until(over) => None,
    };
    passed.unwrap_or_else(|| {
        end.result = "reset";
        Ok(())
    })
}

async fn whole(
    client: &mut UnixStream,
    server: TcpStream,
    came: &[u8],
    (host, port): (&Host, u16),
    terminated: Terminated,
    place: &Place,
    end: &mut End,
) -> Result<(), Told> {
    let limits = place.wiring.ways.limits;
    let within = limits.head;
    let opened = async {
        client.write_all(ESTABLISHED).await?;
        hello(client, Hello::first(), came, host).await
    };
    let opened = timeout(within, opened).await;
    let (first, behind) = match opened.unwrap_or(Err(Shut::Hello(HelloError::Late))) {
        Ok(parts) => parts,
        Err(Shut::Gone) => {
            end.result = "reset";
            return Ok(());
        }
        Err(Shut::Hello(error)) => {
            say(client, &error.alert()).await;
            return Err(Told::Not(Refusal::Hello(error)));
        }
    };
    let again = [first, behind].concat();
    let accepting = TlsAcceptor::from(terminated.leaf.clone()).accept(Again {
        bytes: again,
        read: 0,
        io: client,
    });
    let Ok(Ok(mut tls)) = timeout(within, accepting).await else {
        // It does not trust the authority, or speaks something else than HTTP/1.1: it has said so itself.
        end.result = "reset";
        return Ok(());
    };
    match exchange(&mut tls, server, (host, port), &terminated, place, end).await {
        Ok(()) => Ok(()),
        Err(why) => {
            if let Some(words) = answer(&place.wiring, &why) {
                say(&mut tls, &words).await;
            }
            Err(Told::Already(why))
        }
    }
}

async fn exchange(
    tls: &mut ToClient<Again<'_>>,
    server: TcpStream,
    (host, port): (&Host, u16),
    terminated: &Terminated,
    place: &Place,
    end: &mut End,
) -> Result<(), Refusal> {
    let limits = place.wiring.ways.limits;
    let mut came = Vec::new();
    let reading = timeout(limits.head, read_head(tls, &mut came, host, port)).await;
    let request = match reading {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) if came.is_empty() => {
            end.result = "reset";
            return Ok(());
        }
        Ok(Ok(None)) | Err(_) => return Err(Refusal::Slow),
        Ok(Err(error)) => return Err(error),
    };
    let held = held(terminated, &request, host, place).await?;
    // A secret is for its methods: without one the server may read the query as it likes.
    if request.names_method() && held.iter().any(|held| held.is_put) {
        return Err(Refusal::Inner(InnerError::Override));
    }
    let shown: Vec<String> = held
        .iter()
        .filter(|held| held.is_put)
        .map(|held| format!("{}@{}", held.entry.secret(), held.meta.version))
        .collect();
    let what = (request.method.as_str(), request.path.as_str());
    let target = format!("{host}:{port}");
    let seq = record::request(&place.wiring, &place.runs, &target, what, &shown).await;
    let seq = seq.map_err(|error| {
        tracing::warn!(id = %place.wiring.id, %error, "a request could not be recorded, so it is refused");
        Refusal::Unrecorded
    })?;
    let (put, secrets) = reveal(terminated, held, host, place, seq).await?;
    let put: Vec<(&str, Secret)> = put
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    let mut server = to_host(terminated, server, host, place).await?;
    let forward = request.forward(host, port, &terminated.entries, &put);
    drop(put);
    let sent = async {
        server.write_all(forward.expose()).await?;
        server.flush().await
    };
    if !matches!(timeout(limits.idle, sent).await, Ok(Ok(()))) {
        return Err(Refusal::Unreachable(host.clone(), port));
    }
    let sent = forward.len() as u64;
    drop(forward);
    let malformed = Refusal::Head(portcullis_core::egress::head::HeadError::Length);
    let Ok(mut up) = Way::new(Sieve::Body(request.body.clone())).with(&came) else {
        return Err(malformed);
    };
    let answer = Opened::new(&request, Scrubber::new(&secrets));
    drop(secrets);
    let mut down = Way::searched(answer, &place.pace);
    let mut closing = place.closing.clone();
    let over = pump(
        tls,
        &mut server,
        (&mut up, &mut down),
        Kind::Exchange,
        place.began,
        &limits,
        &mut closing,
    )
    .await;
    end.sent = sent + up.count;
    end.received = down.count;
    end.replaced = down.replaced;
    end.result = over.word();
    match over {
        // Nothing was answered yet, so this can be.
        Over::Broken(broken) if down.count == 0 => Err(match broken {
            Broken::Body => malformed,
            Broken::Answer(error) => Refusal::Answer(error),
            Broken::Search => Refusal::Answer(AnswerError::Search),
        }),
        _ => Ok(()),
    }
}

/// The head of the request, and in `came` what followed it; `None` where the client went away before.
async fn read_head(
    tls: &mut ToClient<Again<'_>>,
    came: &mut Vec<u8>,
    host: &Host,
    port: u16,
) -> Result<Option<Request>, Refusal> {
    loop {
        if let Some((request, used)) = Request::read(came, host, port).map_err(Refusal::Inner)? {
            came.drain(..used);
            return Ok(Some(request));
        }
        came.reserve(READ);
        match tls.read_buf(came).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

/// Which secrets go into it, and which of this host's could come back. One that not every agent of the box may use, or that cannot be had
/// now, ends it: what cannot be looked for could come back unseen.
async fn held(
    terminated: &Terminated,
    request: &Request,
    host: &Host,
    place: &Place,
) -> Result<Vec<Held>, Refusal> {
    let mut all = Vec::new();
    for entry in &terminated.entries {
        let is_put = entry.is_for(&request.method, &request.path);
        match usable(terminated, entry, host, place).await {
            Ok(meta) => all.push(Held {
                entry: entry.clone(),
                is_put,
                meta,
            }),
            // Also of one that is not put in: the host may know it, and what cannot be looked for would come back unseen.
            Err((code, words)) => {
                return Err(Refusal::Secret(entry.secret().to_owned(), code, words));
            }
        }
    }
    Ok(all)
}

async fn usable(
    terminated: &Terminated,
    entry: &Termination,
    host: &Host,
    place: &Place,
) -> Result<RecordMeta, (&'static str, String)> {
    let told = |refusal: VaultRefusal| (refusal.code(), refusal.to_string());
    let agents = place.wiring.agents.as_deref().unwrap_or_default();
    let mut found = None;
    for agent in agents {
        let asked = asked(place, agent, host, None);
        let usable = terminated.opener.vault.usable(entry.secret(), asked).await;
        found = Some(usable.map_err(told)?);
    }
    found.ok_or_else(|| {
        let why = "the box is shared with agents that the configuration does not name";
        ("VAULT_NOT_BOUND", why.to_owned())
    })
}

fn asked(place: &Place, agent: &str, host: &Host, record: Option<Seq>) -> Asked {
    // Which of several runs asked nobody can tell.
    let run = match &place.runs[..] {
        [one] => Some(one.as_str().to_owned()),
        _ => None,
    };
    Asked {
        agent: Some(agent.to_owned()),
        host: Some(host.to_string()),
        way: Use::Egress,
        by: place.wiring.principal.clone(),
        run,
        record: record.map(|seq| seq.0),
    }
}

/// The headers with their secrets, and all secrets that answers are searched for.
async fn reveal(
    terminated: &Terminated,
    held: Vec<Held>,
    host: &Host,
    place: &Place,
    seq: Seq,
) -> Result<(Vec<(String, Secret)>, Vec<Secret>), Refusal> {
    let (mut put, mut secrets) = (Vec::new(), Vec::new());
    let agent = place.wiring.agents.iter().flat_map(|agents| agents.iter());
    let agent = agent.last().cloned().unwrap_or_default();
    for Held {
        entry,
        is_put,
        meta,
    } in held
    {
        let name = entry.secret().to_owned();
        let asked = asked(place, &agent, host, Some(seq));
        let vault = &terminated.opener.vault;
        let secret = match vault.reveal(&name, Some(meta.version), asked).await {
            Ok((_, secret)) => secret,
            Err(refusal) => {
                return Err(Refusal::Secret(name, refusal.code(), refusal.to_string()));
            }
        };
        if is_put {
            let Some(value) = entry.value(&secret) else {
                let why = "it has less than 8 characters, or one that cannot stand in a header";
                return Err(Refusal::Secret(name, "VAULT_VALUE_INVALID", why.to_owned()));
            };
            put.push((entry.header().to_owned(), value));
        }
        secrets.extend(entry.encoded(&secret));
        secrets.push(secret);
    }
    Ok((put, secrets))
}

/// TLS to the host itself, which must be who it is called.
async fn to_host(
    terminated: &Terminated,
    server: TcpStream,
    host: &Host,
    place: &Place,
) -> Result<ToHost<TcpStream>, Refusal> {
    let unverified = |words: String| Refusal::Unverified(host.clone(), words);
    let name = host.name().map(Name::to_string).unwrap_or_default();
    let Ok(name) = ServerName::try_from(name) else {
        return Err(unverified("no certificate can have this name".to_owned()));
    };
    let Some(client) = terminated.opener.client.clone() else {
        let why = "this system trusts no certificate authority (ca-certificates is not installed)";
        return Err(unverified(why.to_owned()));
    };
    let connecting = TlsConnector::from(client).connect(name, server);
    match timeout(place.wiring.ways.limits.dial, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(unverified(error.to_string())),
        Err(_) => Err(unverified("its TLS did not come in time".to_owned())),
    }
}

/// A stream whose first bytes have been read once already.
struct Again<'a> {
    bytes: Vec<u8>,
    read: usize,
    io: &'a mut UnixStream,
}

impl AsyncRead for Again<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let left = &this.bytes[this.read..];
        if left.is_empty() {
            return Pin::new(&mut *this.io).poll_read(cx, to);
        }
        let part = left.len().min(to.remaining());
        to.put_slice(&left[..part]);
        this.read += part;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Again<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}
