//! From a request to its answer.

use std::sync::Arc;

use portcullis_core::codes;
use portcullis_core::protocol::frame::{ErrorBody, read_params, unsound_params};
use portcullis_core::protocol::{Encoding, Request, Wire, method, strict};
use portcullis_core::time::Millis;
use serde::Serialize;
use serde_json::Value;
use tracing::Instrument as _;

use super::serve::{Conn, Pending};
use super::{asks, inputs, invokes, runs};

/// `health`, answered without a room: it says that this process answers (wire.md 14, item 9). Only the id and the time
/// differ between two answers, so nothing else is serialised.
pub(super) fn health(encoding: Encoding, id: &str, now: Millis) -> Option<Wire> {
    if encoding == Encoding::MsgPack {
        return encoding.ok(id, &Health::at(now)).ok();
    }
    let id = serde_json::to_string(id).unwrap_or_default();
    let ts = now.0;
    Some(Wire::Text(format!(
        concat!(
            r#"{{"type":"res","id":{id},"ok":true,"payload":{{"ok":true,"ts":{ts},"durationMs":0,"channels":{{}},"#,
            r#""channelOrder":[],"channelLabels":{{}},"heartbeatSeconds":0,"defaultAgentId":"main","agents":[],"#,
            r#""sessions":{{"path":"","count":0,"recent":[]}}}}}}"#
        ),
        id = id,
        ts = ts
    )))
}

/// The same, where it is not written by hand.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    ok: bool,
    ts: u64,
    duration_ms: u8,
    channels: Nothing,
    channel_order: [u8; 0],
    channel_labels: Nothing,
    heartbeat_seconds: u8,
    default_agent_id: &'static str,
    agents: [u8; 0],
    sessions: Sessions,
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct Sessions {
    path: &'static str,
    count: u8,
    recent: [u8; 0],
}

impl Health {
    const fn at(now: Millis) -> Self {
        Self {
            ok: true,
            ts: now.0,
            duration_ms: 0,
            channels: Nothing {},
            channel_order: [],
            channel_labels: Nothing {},
            heartbeat_seconds: 0,
            default_agent_id: "main",
            agents: [],
            sessions: Sessions {
                path: "",
                count: 0,
                recent: [],
            },
        }
    }
}

/// Role and scope are looked at before the params are read; then the request is under way.
pub(super) fn begin(conn: &Arc<Conn>, request: Request<'_>) -> Result<Pending, ErrorBody> {
    method::admit(&conn.principal, &request.method)?;
    let params = Held(params_of(&request.method, request.params)?);
    let span = tracing::info_span!(
        // A trace for each request: a connection may last for weeks.
        target: "portcullis", parent: None, "request",
        otel.name = %request.method, otel.kind = "server", room = "connection",
        rpc.method = %request.method, portcullis.role = conn.principal.role.as_str(),
        portcullis.door = conn.principal.door.as_str(), session.id = %conn.conn_id,
    );
    let id = request.id.into_owned();
    let name = request.method.into_owned();
    let conn = conn.clone();
    let run = async move {
        let params = Params(&params.0);
        let result = match name.as_str() {
            "exec.run" => match params.read(&name) {
                Ok(params) => runs::run(&conn, &id, params).await,
                Err(error) => Err(error),
            },
            "exec.approval.request" => match params.read(&name) {
                Ok(params) => asks::request(&conn, &id, params).await,
                Err(error) => Err(error),
            },
            "node.invoke" => match params.read(&name) {
                Ok(params) => invokes::invoke(&conn, params).await,
                Err(error) => Err(error),
            },
            "exec.attach" => match params.read(&name) {
                Ok(params) => runs::attach(&conn, &id, params).await,
                Err(error) => Err(error),
            },
            "exec.cancel" => match params.read(&name) {
                Ok(params) => runs::cancel(&conn, params).await,
                Err(error) => Err(error),
            },
            "exec.stdin" => match params.read(&name) {
                Ok(params) => inputs::stdin(&conn, params).await,
                Err(error) => Err(error),
            },
            "exec.resize" => match params.read(&name) {
                Ok(params) => inputs::resize(&conn, params).await,
                Err(error) => Err(error),
            },
            "exec.signal" => match params.read(&name) {
                Ok(params) => inputs::signal(&conn, params).await,
                Err(error) => Err(error),
            },
            _ => {
                let about = super::methods::About {
                    principal: &conn.principal,
                    connection: &conn.conn_id,
                    proven: Some(&conn.proven),
                };
                conn.wiring.shared.methods.call(about, &name, &params).await
            }
        };
        let frame = frame_of(conn.encoding, &id, &result);
        (id, frame)
    };
    Ok(Box::pin(run.instrument(span)))
}

/// May its effect be the end of the session that asks for it?
pub(super) fn may_end_itself(method: &str) -> bool {
    matches!(
        method,
        "device.token.rotate" | "device.token.revoke" | "device.pair.remove" | "node.pair.remove"
    )
}

/// Every request is answered: one whose answer cannot be written is told so.
fn frame_of(
    encoding: Encoding,
    id: &str,
    result: &Result<impl Serialize, ErrorBody>,
) -> Option<Wire> {
    let frame = match result {
        Ok(payload) => encoding.ok(id, payload),
        Err(error) => encoding.error(id, error),
    };
    let frame = frame.or_else(|error| {
        tracing::error!(target: "portcullis", %error, "an answer could not be written");
        let broken = ErrorBody::of(codes::INTERNAL, "the answer could not be written");
        encoding.error(id, &broken)
    });
    frame.ok()
}

/// The params, or the error that says why there are none.
pub(super) fn params_of(
    method: &str,
    params: Result<Value, strict::Unsound>,
) -> Result<Value, ErrorBody> {
    params.map_err(|why| ErrorBody::of(codes::INVALID_PARAMS, unsound_params(method, &why)))
}

/// A request's params while it runs. Overwritten when it is done: they may hold a secret.
struct Held(Value);

impl Drop for Held {
    fn drop(&mut self) {
        strict::wipe(&mut self.0);
    }
}

/// Params, read once out of the frame: what is checked, recorded and run is this very value.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a>(pub &'a Value);

impl<'a> Params<'a> {
    /// Gives them a method's own shape.
    ///
    /// # Errors
    /// `INVALID_PARAMS` with the text that the wire has for it.
    pub fn read<T: serde::Deserialize<'a>>(&self, method: &str) -> Result<T, ErrorBody> {
        read_params(self.0, method).map_err(|why| ErrorBody::of(codes::INVALID_PARAMS, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bug: its request was never answered.
    #[test]
    fn an_answer_that_cannot_be_written_is_an_error_under_its_id() {
        struct Bad;
        impl Serialize for Bad {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("planned"))
            }
        }
        for encoding in [Encoding::Json, Encoding::MsgPack] {
            let frame = frame_of(encoding, "7", &Ok(Bad)).unwrap();
            let frame = match &frame {
                Wire::Text(text) => strict::json(text.as_bytes()).unwrap(),
                Wire::Binary(bytes) => strict::msgpack(bytes).unwrap(),
            };
            assert_eq!(frame["id"], "7");
            assert_eq!(frame["error"]["details"]["code"], "INTERNAL", "{frame}");
        }
    }

    #[test]
    fn health_is_the_answer_frame_of_its_payload_whatever_the_id() {
        for id in ["1", "a\"b\\c\n", "\u{1f980}"] {
            let payload = serde_json::json!({
                "ok": true, "ts": 1_795_481_326_000_u64, "durationMs": 0, "channels": {}, "channelOrder": [],
                "channelLabels": {}, "heartbeatSeconds": 0, "defaultAgentId": "main", "agents": [],
                "sessions": { "path": "", "count": 0, "recent": [] },
            });
            for encoding in [Encoding::Json, Encoding::MsgPack] {
                let read = |frame: &Wire| match frame {
                    Wire::Text(text) => strict::json(text.as_bytes()).unwrap(),
                    Wire::Binary(bytes) => strict::msgpack(bytes).unwrap(),
                };
                let frame = health(encoding, id, Millis(1_795_481_326_000)).unwrap();
                assert_eq!(read(&frame), read(&encoding.ok(id, &payload).unwrap()));
            }
        }
    }
}
