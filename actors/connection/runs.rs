//! `exec.run` and `exec.cancel`.
use super::serve::Conn;
use portcullis_core::protocol::frame::ErrorBody;
use serde_json::Value;
pub(super) async fn run(_conn: &Conn, _id: &str, _params: Value) -> Result<Value, ErrorBody> {
    Err(ErrorBody::of(portcullis_core::codes::ROOM_DOWN, "soon"))
}
pub(super) async fn cancel(_conn: &Conn, _params: Value) -> Result<Value, ErrorBody> {
    Err(ErrorBody::of(portcullis_core::codes::ROOM_DOWN, "soon"))
}
