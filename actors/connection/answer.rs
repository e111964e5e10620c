//! From a request to its answer.

use portcullis_core::protocol::Request;
use portcullis_core::protocol::frame::{ErrorBody, error_frame, ok_frame};
use portcullis_core::protocol::method;
use portcullis_core::time::Millis;
use serde::Serialize;
use serde_json::value::RawValue;
use tracing::Instrument as _;

use super::runs;
use super::serve::{Conn, Pending};

/// `health`, answered without a room: it says that this process answers (wire.md 14, item 9).
pub(super) fn health(id: &str, now: Millis) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Health {
        ok: bool,
        ts: Millis,
        duration_ms: u64,
        channels: Empty,
        channel_order: [u8; 0],
        channel_labels: Empty,
        heartbeat_seconds: u64,
        default_agent_id: &'static str,
        agents: [u8; 0],
        sessions: Sessions,
    }
    #[derive(Serialize)]
    struct Empty {}
    #[derive(Serialize)]
    struct Sessions {
        path: &'static str,
        count: u64,
        recent: [u8; 0],
    }
    let health = Health {
        ok: true,
        ts: now,
        duration_ms: 0,
        channels: Empty {},
        channel_order: [],
        channel_labels: Empty {},
        heartbeat_seconds: 0,
        default_agent_id: "main",
        agents: [],
        sessions: Sessions {
            path: "",
            count: 0,
            recent: [],
        },
    };
    ok_frame(id, &health).unwrap_or_default()
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
