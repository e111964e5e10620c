//! The handshake: challenge, `connect`, `hello-ok` (wire.md section 4).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_core::auth::{Principal, Proof, Role, Scope};
use portcullis_core::codes;
use portcullis_core::nodes::{Connected, Declared};
use portcullis_core::protocol::connect::Hello;
use portcullis_core::protocol::limits::{EARLY_FRAMES, frame_max};
use portcullis_core::protocol::{ConnectParams, ConnectRefusal, Encoding, FrameError};
use portcullis_core::signing::frame::Keys;
use portcullis_core::signing::http::CAPABILITY;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::actor::ConnectionWiring;
use super::io::Io;
use super::messages::ConnectionNews;
use super::scan::TOO_LARGE;
use super::serve::{WRONG_KIND, close, fault, message};
use crate::auth::{Arrival, Bearer, Peer};
use crate::supervision::Flag;
use portcullis_core::auth::Door;

/// Characters of a node's `PATH` that are kept to be shown.
const PATH_SHOWN: usize = 1_024;
/// For a refusal to be taken.
const GOODBYE: Duration = Duration::from_secs(5);

/// Of a `connect` whose frames would be keyed by something else than what let it in.
const ONE_TOKEN: &str = "frameSigning needs one token in auth and no other secret: the frames are keyed by what is checked";
/// The close reason of a stranger whose time is over (with 1000, as the peer has it: wire.md section 1).
const LATE: &str = "handshake timeout";

/// The close reason of a session whose secret is no more (wire.md section 5).
pub(super) const SECRET_CHANGED: &str = "gateway auth changed";

/// Who came in, and what it can take.
pub(super) struct Shaken {
    pub principal: Arc<Principal>,
    pub caps: Vec<String>,
    pub conn_id: Arc<str>,
    /// Of every frame after the hello, where that was asked for.
    pub signing: Option<Keys>,
    /// Frames that came behind `connect`, to be answered first.
    pub early: Vec<Message>,
    /// Of a node host: what it declares.
    pub node: Option<Connected>,
}

/// Brings a socket to `hello-ok`; a socket that does not get there is closed, with a word where the wire has one.
pub(super) async fn shake(
    wiring: &ConnectionWiring,
    ws: &mut WebSocketStream<Io>,
    encoding: Encoding,
    door: Door,
    (peer, bearer): (&Peer, Option<Bearer>),
    (until, has_come): (Instant, &Flag<bool>),
) -> Option<Shaken> {
    let shaking = try_shake(wiring, ws, encoding, door, (peer, bearer), has_come);
    let end = match timeout_at(until, shaking).await {
        Ok(Ok(shaken)) => return Some(shaken),
        Ok(Err(end)) => end,
        Err(_late) => End::Close(1000, LATE),
    };
    // Before the goodbye, which takes as long as the other end likes: it keeps nobody's place meanwhile.
    let refused = ConnectionNews::Refused(wiring.key);
    wiring.shared.news.send(refused).await.ok()?;
    // Nor its own for ever: who does not read it is dropped.
    let _ = tokio::time::timeout(GOODBYE, end.tell(ws, encoding)).await;
    None
}

/// How a handshake ends without a hello.
enum End {
    /// The socket is gone.
    Gone,
    /// Closed without an answer.
    Close(u16, &'static str),
    /// Answered, then closed.
    Refused(String, Box<ConnectRefusal>),
}

impl End {
    async fn tell(self, ws: &mut WebSocketStream<Io>, encoding: Encoding) {
        match self {
            Self::Gone => {}
            Self::Close(code, reason) => close(ws, code, reason).await,
            Self::Refused(id, refusal) => {
                if let Ok(frame) = encoding.error(&id, &refusal.error) {
                    // The close says the same: a client that is gone misses nothing.
                    let _ = ws.send(message(frame)).await;
                }
                close(ws, refusal.close, &refusal.reason).await;
            }
        }
    }
}

async fn try_shake(
    wiring: &ConnectionWiring,
    ws: &mut WebSocketStream<Io>,
    encoding: Encoding,
    door: Door,
    (peer, bearer): (&Peer, Option<Bearer>),
    has_come: &Flag<bool>,
) -> Result<Shaken, End> {
    let nonce = uuid::Uuid::new_v4().to_string();
    let challenge = json!({ "nonce": nonce, "ts": wiring.shared.clock.now() });
    let frame = encoding.event("connect.challenge", &challenge, None);
    let frame = frame.map_err(|_| End::Gone)?;
    ws.send(message(frame)).await.map_err(|_| End::Gone)?;
    let frame = first_message(ws, encoding).await?;
    let (id, params) = match encoding.read(&frame) {
        Ok(request) if request.method == "connect" => {
            let params = request.params::<ConnectParams>().map_err(|why| {
                End::Refused(
                    request.id.to_string(),
                    Box::new(ConnectRefusal::invalid(why)),
                )
            })?;
            (request.id.into_owned(), params)
        }
        Ok(request) => {
            let refusal =
                ConnectRefusal::invalid("invalid handshake: first request must be connect");
            return Err(End::Refused(request.id.into_owned(), Box::new(refusal)));
        }
        Err(FrameError::NotJson) => return Err(End::Close(1000, "")),
        Err(FrameError::NotRequest { .. }) => {
            return Err(End::Close(1008, "invalid request frame"));
        }
    };
    let refused = |refusal| End::Refused(id.clone(), Box::new(refusal));
    let checked = params.check().map_err(refused)?;
    // It is a `connect` and has arrived whole: this socket is not closed to make room while it is decided.
    has_come.set(true);
    let speaks = ConnectionNews::Speaks(wiring.key);
    wiring
        .shared
        .news
        .send(speaks)
        .await
        .map_err(|_| End::Gone)?;
    let caps = checked.params.caps.clone();
    // Keyed by the token as it came: what is kept of it is a hash, which signs nothing.
    let signing = match &checked.params.frame_signing {
        None => None,
        Some(asked) => {
            let key = checked.params.frame_key().filter(|_| bearer.is_none());
            let key = key.ok_or_else(|| refused(ConnectRefusal::invalid(ONE_TOKEN)))?;
            Some(Keys::derive(key, &nonce, &asked.nonce))
        }
    };
    let declared = (checked.role == Role::Node).then(|| declared(&checked.params));
    let arrival = Arrival {
        checked,
        nonce,
        door,
        peer: peer.clone(),
        bearer,
    };
    let mut early = Vec::new();
    let decision = {
        let mut decision = pin!(wiring.shared.auth.connect(arrival));
        loop {
            tokio::select! {
                biased;
                frame = ws.next() => keep(frame, &mut early)?,
                decision = &mut decision => break decision,
            }
        }
    };
    let admitted = decision.map_err(|refusal| End::Refused(id.clone(), Box::new(refusal)))?;
    // Let in by something else, the token that would key the frames has been looked at by nobody.
    let by_token = matches!(
        admitted.principal.proof,
        Proof::SharedToken
            | Proof::SharedTokenAndDevice(_)
            | Proof::DeviceToken(_)
            | Proof::AgentToken(_)
            | Proof::SetupCode(_)
    );
    if signing.is_some() && !by_token {
        return Err(End::Refused(
            id.clone(),
            Box::new(ConnectRefusal::invalid(ONE_TOKEN)),
        ));
    }
    let conn_id: Arc<str> = uuid::Uuid::new_v4().to_string().into();
    // On the list before the hello goes out: a revocation from now on finds this socket. One from before is found here.
    let principal = Arc::new(admitted.principal);
    let (listed, is_listed) = oneshot::channel();
    let news = ConnectionNews::Admitted(wiring.key, principal.clone(), conn_id.clone(), listed);
    wiring.shared.news.send(news).await.map_err(|_| End::Gone)?;
    let allowance = is_listed.await.map_err(|_| End::Gone)?;
    still_stands(wiring, &principal)
        .await
        .map_err(|refusal| End::Refused(id.clone(), Box::new(refusal)))?;
    // Its secret may have changed while it was let in: then it was not yet on the list of those to be closed.
    if !matches!(wiring.shared.auth.holds(&principal).await, Ok(true)) {
        return Err(End::Close(4001, SECRET_CHANGED));
    }
    let log_at = log_at(wiring, principal.role)
        .await
        .map_err(|refusal| End::Refused(id.clone(), Box::new(refusal)))?;
    // Last of all: it is told once, and a handshake that is lost before would take it along.
    let holds = Principal {
        scopes: admitted
            .own_scopes
            .clone()
            .unwrap_or_else(|| principal.scopes.clone()),
        ..(*principal).clone()
    };
    let minted = key_for(wiring, &holds, &caps).await;
    let hello = Hello {
        conn_id: &conn_id,
        boot_id: &wiring.shared.boot_id,
        version: wiring.shared.version,
        uptime_ms: u64::try_from(wiring.shared.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        method: principal.proof.method(),
        role: principal.role,
        scopes: &principal.scopes,
        presence: match principal.role {
            Role::Operator if principal.scopes.allows(Scope::Read) => {
                wiring.shared.methods.presence()
            }
            _ => json!([]),
        },
        device_token: admitted
            .device_token
            .as_ref()
            .map(|(token, issued)| (token.expose(), *issued)),
        frame_signing: signing.is_some(),
        log_at,
        signing_key: minted.as_ref().map(|(id, key)| (id.as_str(), key.as_str())),
    };
    let frame = encoding.ok(&id, &hello.payload());
    let frame = frame.map_err(|_| End::Gone)?;
    ws.send(message(frame)).await.map_err(|_| End::Gone)?;
    ws.get_mut().trust(
        frame_max(principal.role, &principal.scopes),
        Some(allowance),
    );
    let node = declared.and_then(|declared| {
        Some(Connected {
            node: principal.device()?.clone(),
            conn: conn_id.to_string(),
            generation: principal.generation,
            declared,
            since: wiring.shared.clock.now(),
            stats: None,
            worker_host: None,
        })
    });
    Ok(Shaken {
        principal,
        caps,
        conn_id,
        signing,
        early,
        node,
    })
}

/// Was its credential changed between the decision and now?
async fn still_stands(
    wiring: &ConnectionWiring,
    principal: &Principal,
) -> Result<(), ConnectRefusal> {
    let Some(device) = principal.device() else {
        return Ok(());
    };
    let pairing = &wiring.shared.methods.pairing;
    let now = pairing.current_generation(device, principal.role).await;
    match now {
        Ok(now) if now == Some(principal.generation) => Ok(()),
        Ok(_) => Err(ConnectRefusal::unauthorized(
            "AUTH_DEVICE_TOKEN_MISMATCH",
            "device_token_mismatch",
            "device token mismatch (rotate/reissue device token)",
            false,
        )),
        Err(refusal) => Err(ConnectRefusal::unavailable(
            codes::find(refusal.code()).unwrap_or(codes::ROOM_DOWN),
            &refusal.to_string(),
        )),
    }
}

/// A frame that does not wait for the hello: kept to be answered after it, up to the wire's limit.
fn keep(frame: Option<Result<Message, WsError>>, early: &mut Vec<Message>) -> Result<(), End> {
    match frame {
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
        Some(Ok(frame @ (Message::Text(_) | Message::Binary(_)))) if early.len() < EARLY_FRAMES => {
            early.push(frame);
            Ok(())
        }
        Some(Ok(Message::Text(_) | Message::Binary(_))) => {
            Err(End::Close(1008, "too many pending handshake frames"))
        }
        other => Err(broken(other)),
    }
}

/// How a handshake ends with a frame that is none.
fn broken(frame: Option<Result<Message, WsError>>) -> End {
    let Some(Err(error)) = frame else {
        return End::Gone;
    };
    match fault(&error) {
        // Whatever the size was: it is told as that of a stranger's frame.
        Some((1009, _)) => End::Close(1009, TOO_LARGE),
        Some((code, reason)) => End::Close(code, reason),
        None => End::Gone,
    }
}

/// What a node says of itself. Its lists were bounded by the handshake.
fn declared(params: &ConnectParams) -> Declared {
    let client = &params.client;
    let path: Option<String> = params
        .path_env
        .as_ref()
        .map(|path| path.chars().take(PATH_SHOWN).collect());
    let mut declared = Declared {
        display_name: client.display_name.clone(),
        version: client.version.clone(),
        client_id: client.id.clone(),
        client_mode: client.mode.clone(),
        platform: Some(client.platform.clone()),
        device_family: client.device_family.clone(),
        caps: params.caps.iter().cloned().collect(),
        commands: params.commands.iter().cloned().collect(),
        permissions: params
            .permissions
            .iter()
            .filter_map(|(name, held)| Some((name.clone(), held.as_bool()?)))
            .collect(),
        path_env: path,
    };
    declared.cut();
    declared
}

/// For a node: how far the log is. A node that was not told would go by the names of runs alone, so without it there is no
/// hello.
async fn log_at(wiring: &ConnectionWiring, role: Role) -> Result<Option<u64>, ConnectRefusal> {
    if role != Role::Node {
        return Ok(None);
    }
    match wiring.shared.methods.audit.head().await {
        Ok(head) => Ok(Some(head.seq.0)),
        Err(error) => Err(ConnectRefusal::unavailable(
            codes::find(error.code()).unwrap_or(codes::ROOM_DOWN),
            &error.to_string(),
        )),
    }
}

/// A device that asks has its key with this hello, if it has none yet. Without one it is let in all the same: it asks
/// again when it connects again.
async fn key_for(
    wiring: &ConnectionWiring,
    principal: &Principal,
    caps: &[String],
) -> Option<(String, zeroize::Zeroizing<String>)> {
    if !caps.iter().any(|cap| cap == CAPABILITY) {
        return None;
    }
    match wiring.shared.signing.mint(principal).await {
        Ok(minted) => minted.map(|minted| (minted.key_id, minted.key.to_text())),
        Err(error) => {
            tracing::warn!(target: "portcullis", code = error.code(), %error, "no signing key was given");
            None
        }
    }
}

async fn first_message(
    ws: &mut WebSocketStream<Io>,
    encoding: Encoding,
) -> Result<bytes::Bytes, End> {
    loop {
        match ws.next().await {
            Some(Ok(Message::Text(text))) => {
                return match encoding {
                    Encoding::Json => Ok(text.into()),
                    Encoding::MsgPack => Err(End::Close(1003, WRONG_KIND)),
                };
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(bytes))) => {
                return match encoding {
                    Encoding::Json => Err(End::Close(1000, "")),
                    Encoding::MsgPack => Ok(bytes),
                };
            }
            other => return Err(broken(other)),
        }
    }
}
