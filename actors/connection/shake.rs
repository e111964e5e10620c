//! The handshake: challenge, `connect`, `hello-ok` (wire.md section 4).

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_core::auth::Principal;
use portcullis_core::protocol::connect::Hello;
use portcullis_core::protocol::{ConnectParams, ConnectRefusal, Encoding, FrameError};
use portcullis_core::signing::frame::Keys;
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::actor::ConnectionWiring;
use super::io::{Io, TOO_LARGE};
use super::messages::ConnectionNews;
use super::serve::{WRONG_KIND, close, message};
use crate::auth::{Arrival, Peer};
use portcullis_core::auth::Door;

/// Who came in, and what it can take.
pub(super) struct Shaken {
    pub principal: Principal,
    pub caps: Vec<String>,
    pub conn_id: String,
    /// Of every frame after the hello, where that was asked for.
    pub signing: Option<Keys>,
}

/// Brings a socket to `hello-ok`; a socket that does not get there is closed, with a word where the wire has one.
pub(super) async fn shake(
    wiring: &ConnectionWiring,
    ws: &mut WebSocketStream<Io>,
    encoding: Encoding,
    door: Door,
    peer: &Peer,
) -> Option<Shaken> {
    let within = Duration::from_millis(wiring.handshake_ms);
    match timeout(within, try_shake(wiring, ws, encoding, door, peer)).await {
        Ok(Ok(shaken)) => Some(shaken),
        Ok(Err(end)) => {
            end.tell(ws, encoding).await;
            None
        }
        Err(_late) => {
            close(ws, 1000, "").await;
            None
        }
    }
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
    peer: &Peer,
) -> Result<Shaken, End> {
    let nonce = uuid::Uuid::new_v4().to_string();
    let challenge = json!({ "nonce": nonce, "ts": wiring.clock.now() });
    let frame = encoding.event("connect.challenge", &challenge, None);
    let frame = frame.map_err(|_| End::Gone)?;
    ws.send(message(frame)).await.map_err(|_| End::Gone)?;
    let frame = first_message(ws, encoding).await?;
    // Its bytes have all arrived: this socket is not silent, and is not closed to make room.
    let _ = wiring.news.try_send(ConnectionNews::Speaks(wiring.key));
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
    let caps = checked.params.caps.clone();
    // Keyed by the token as it came: what is kept of it is a hash, which signs nothing.
    let signing = checked
        .params
        .frame_signing
        .as_ref()
        .map(|asked| Keys::derive(checked.params.signed_token(), &nonce, &asked.nonce));
    let arrival = Arrival {
        checked,
        nonce,
        door,
        peer: peer.clone(),
    };
    let admitted = wiring
        .auth
        .connect(arrival)
        .await
        .map_err(|refusal| End::Refused(id.clone(), Box::new(refusal)))?;
    let conn_id = uuid::Uuid::new_v4().to_string();
    let hello = Hello {
        conn_id: &conn_id,
        boot_id: &wiring.boot_id,
        version: wiring.version,
        uptime_ms: u64::try_from(wiring.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        method: admitted.principal.proof.method(),
        role: admitted.principal.role,
        scopes: &admitted.principal.scopes,
        device_token: admitted
            .device_token
            .as_ref()
            .map(|(token, issued)| (token.expose(), *issued)),
        frame_signing: signing.is_some(),
    };
    let frame = encoding.ok(&id, &hello.payload());
    let frame = frame.map_err(|_| End::Gone)?;
    // Told before the hello goes out: a revocation from now on finds this socket.
    let principal = admitted.principal;
    let news = ConnectionNews::Admitted(wiring.key, Box::new(principal.clone()));
    wiring.news.send(news).await.map_err(|_| End::Gone)?;
    ws.send(message(frame)).await.map_err(|_| End::Gone)?;
    ws.get_mut().trust();
    Ok(Shaken {
        principal,
        caps,
        conn_id,
        signing,
    })
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
            Some(Err(WsError::Io(error))) if error.to_string() == TOO_LARGE => {
                return Err(End::Close(1009, TOO_LARGE));
            }
            Some(Err(WsError::Capacity(_))) => return Err(End::Close(1009, TOO_LARGE)),
            Some(Err(WsError::Protocol(_) | WsError::Utf8(_))) => {
                return Err(End::Close(1002, "protocol error"));
            }
            Some(Ok(Message::Close(_) | Message::Frame(_)) | Err(_)) | None => {
                return Err(End::Gone);
            }
        }
    }
}
