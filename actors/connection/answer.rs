//! From a request to its answer.

use portcullis_core::protocol::Request;
use portcullis_core::protocol::frame::{ErrorBody, error_frame, ok_frame};
use portcullis_core::protocol::method;
use portcullis_core::time::Millis;
use serde_json::value::RawValue;
use tracing::Instrument as _;

use super::serve::{Conn, Pending};
use super::{asks, runs};

/// `health`, answered without a room: it says that this process answers (wire.md 14, item 9). Only the id and the time
/// differ between two answers, so nothing else is serialised.
pub(super) fn health(id: &str, now: Millis) -> String {
    let id = serde_json::to_string(id).unwrap_or_default();
    let ts = now.0;
    format!(
        concat!(
            r#"{{"type":"res","id":{id},"ok":true,"payload":{{"ok":true,"ts":{ts},"durationMs":0,"channels":{{}},"#,
            r#""channelOrder":[],"channelLabels":{{}},"heartbeatSeconds":0,"defaultAgentId":"main","agents":[],"#,
            r#""sessions":{{"path":"","count":0,"recent":[]}}}}}}"#
        ),
        id = id,
        ts = ts
    )
}

/// Role and scope are looked at before the params are read; then the request is under way.
pub(super) fn begin(conn: &Conn, request: &Request<'_>) -> Result<Pending, ErrorBody> {
    method::admit(&conn.principal, &request.method)?;
    let span = tracing::info_span!(
        // A trace for each request: a connection may last for weeks.
        target: "portcullis", parent: None, "request",
        otel.name = %request.method, otel.kind = "server", room = "connection",
        rpc.method = %request.method, portcullis.role = conn.principal.role.as_str(),
        portcullis.door = conn.principal.door.as_str(), session.id = %conn.conn_id,
    );
    let id = request.id.to_string();
    let name = request.method.to_string();
    let params = request.params.map(|raw| raw.get().to_owned());
    let conn = conn.clone();
    let run = async move {
        let params = Params(params.as_deref());
        let result = match name.as_str() {
            "exec.run" => match params.read(&name) {
                Ok(params) => runs::run(&conn, &id, params).await,
                Err(error) => Err(error),
            },
            "exec.approval.request" => match params.read(&name) {
                Ok(params) => asks::request(&conn, &id, params).await,
                Err(error) => Err(error),
            },
            "exec.cancel" => match params.read(&name) {
                Ok(params) => runs::cancel(&conn, params).await,
                Err(error) => Err(error),
            },
            _ => {
                let about = super::methods::About {
                    principal: &conn.principal,
                    connection: &conn.conn_id,
                };
                conn.wiring.methods.call(about, &name, &params).await
            }
        };
        match result {
            Ok(payload) => ok_frame(&id, &payload).ok(),
            Err(error) => error_frame(&id, &error).ok(),
        }
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

/// Params as they came, read into a method's own type.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a>(pub Option<&'a str>);

impl<'a> Params<'a> {
    /// Reads them.
    ///
    /// # Errors
    /// `INVALID_PARAMS` with the text that the wire has for it.
    pub fn read<T: serde::Deserialize<'a>>(&self, method: &str) -> Result<T, ErrorBody> {
        let raw: Option<&RawValue> = match self.0 {
            None => None,
            Some(text) => serde_json::from_str(text).ok(),
        };
        portcullis_core::protocol::frame::read_params(raw, method)
            .map_err(|why| ErrorBody::of(portcullis_core::codes::INVALID_PARAMS, why))
    }
}

/// The id in an answer of ours, which stands at a fixed place.
pub(super) fn id_of(frame: &str) -> Option<String> {
    let rest = frame.strip_prefix(r#"{"type":"res","id":"#)?;
    let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    stream.next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_the_answer_frame_of_its_payload_whatever_the_id() {
        for id in ["1", "a\"b\\c\n", "\u{1f980}"] {
            let payload = serde_json::json!({
                "ok": true, "ts": 1_795_481_326_000_u64, "durationMs": 0, "channels": {}, "channelOrder": [],
                "channelLabels": {}, "heartbeatSeconds": 0, "defaultAgentId": "main", "agents": [],
                "sessions": { "path": "", "count": 0, "recent": [] },
            });
            let read = |frame: &str| serde_json::from_str::<serde_json::Value>(frame).unwrap();
            let frame = health(id, Millis(1_795_481_326_000));
            assert_eq!(read(&frame), read(&ok_frame(id, &payload).unwrap()));
            assert_eq!(id_of(&frame).as_deref(), Some(id));
        }
    }
}
