//! `exec.stdin`, `exec.resize` and `exec.signal`: what goes into a run of this connection.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::codes;
use portcullis_core::ids::RunId;
use portcullis_core::plan::{Stdin, TtySize};
use portcullis_core::protocol::frame::ErrorBody;
use serde::Deserialize;
use serde_json::{Value, json};

use super::runs::refusal;
use super::serve::Conn;
use crate::sandbox_pool::{Input, MAX_INPUT, SIGNALS, Size};

/// `stdin` of a request to run: `none` or `open`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Opened(pub Stdin);

impl TryFrom<String> for Opened {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "none" => Ok(Self(Stdin::None)),
            "open" => Ok(Self(Stdin::Open)),
            _ => Err("stdin is none or open"),
        }
    }
}

/// A terminal's size, if it is one.
pub(super) fn size(size: TtySize) -> Result<TtySize, ErrorBody> {
    if size.is_valid() {
        Ok(size)
    } else {
        Err(invalid("exec", "a terminal has 1 to 4096 rows and cols"))
    }
}

fn invalid(method: &str, why: &str) -> ErrorBody {
    ErrorBody::of(
        codes::INVALID_PARAMS,
        format!("invalid {method} params: {why}"),
    )
}

/// `exec.stdin`'s params.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Piece<'a> {
    run_id: RunId,
    offset: u64,
    /// Base64. Not a copy: it may be a password, and what it lies in is overwritten.
    #[serde(default)]
    data: &'a str,
    #[serde(default)]
    eof: bool,
}

/// `exec.resize`'s params.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Resize {
    run_id: RunId,
    rows: u16,
    cols: u16,
}

/// `exec.signal`'s params.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Signal {
    run_id: RunId,
    signal: String,
}

pub(super) async fn stdin(conn: &Conn, params: Piece<'_>) -> Result<Value, ErrorBody> {
    if params.data.len() > MAX_INPUT.div_ceil(3) * 4 {
        return Err(invalid("exec.stdin", "data is at most 32 KiB"));
    }
    let data = STANDARD.decode(params.data);
    let data = Input::new(data.map_err(|_| invalid("exec.stdin", "data is not base64"))?);
    if data.expose().len() > MAX_INPUT {
        return Err(invalid("exec.stdin", "data is at most 32 KiB"));
    }
    let by = (conn.principal.as_ref(), &*conn.conn_id);
    let piece = (params.offset, data, params.eof);
    let exec = &conn.wiring.shared.exec;
    let taken = exec.stdin(params.run_id.clone(), by, piece).await;
    let taken = taken.map_err(refusal)?;
    Ok(json!({ "runId": params.run_id, "offset": taken.offset, "credit": taken.credit }))
}

pub(super) async fn resize(conn: &Conn, params: Resize) -> Result<Value, ErrorBody> {
    let TtySize { rows, cols } = size(TtySize {
        rows: params.rows,
        cols: params.cols,
    })?;
    let by = (conn.principal.as_ref(), &*conn.conn_id);
    let exec = &conn.wiring.shared.exec;
    let run = params.run_id.clone();
    exec.resize(run, by, Size { rows, cols })
        .await
        .map_err(refusal)?;
    Ok(json!({ "runId": params.run_id }))
}

pub(super) async fn signal(conn: &Conn, params: Signal) -> Result<Value, ErrorBody> {
    let name = params.signal.as_str();
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) else {
        let names = SIGNALS.map(|(name, _)| name).join(", ");
        return Err(invalid("exec.signal", &format!("signal is one of {names}")));
    };
    let by = (conn.principal.as_ref(), &*conn.conn_id);
    let exec = &conn.wiring.shared.exec;
    exec.signal(params.run_id.clone(), by, *number)
        .await
        .map_err(refusal)?;
    Ok(json!({ "runId": params.run_id }))
}
