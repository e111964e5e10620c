//! `exec.run`, `exec.attach` and `exec.cancel`: two answers and the output between them, to this connection only. What goes in: `inputs`.

use std::collections::BTreeMap;

use base64::Engine as _;
use portcullis_cell::Stream;
use portcullis_core::auth::Role;
use portcullis_core::codes::{self, Code};
use portcullis_core::ids::{AgentId, DeviceId, RunId};
use portcullis_core::plan::{Stdin, Target, TtySize};
use portcullis_core::protocol::frame::ErrorBody;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::inputs::{Opened, size};
use super::serve::{Conn, Out};
use crate::exec::{ExecEvent, ExecRefusal, RunRequest, RunResult};

/// Pieces of output (at most 32 KiB each) that wait for the socket: 256 KiB a run.
const PIECES: usize = 8;

/// `exec.run`'s params.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Run {
    argv: Vec<String>,
    #[serde(default)]
    cwd: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Variables that get secrets of the vault, by the secrets' names.
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    target: Where,
    #[serde(default)]
    agent: Option<String>,
    /// Whose box it is, where the agent's scope is a session.
    #[serde(default)]
    session_key: Option<String>,
    #[serde(default)]
    stdin: Option<Opened>,
    #[serde(default)]
    tty: Option<TtySize>,
    /// It outlives this connection.
    #[serde(default)]
    detach: bool,
    idempotency_key: String,
}

/// `sandbox`, `host` or `node:<id>`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Where(Target);

impl Default for Where {
    fn default() -> Self {
        Self(Target::Sandbox)
    }
}

impl TryFrom<String> for Where {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let node = text.strip_prefix("node:").map(DeviceId::new);
        match (text.as_str(), node) {
            ("sandbox", _) => Ok(Self(Target::Sandbox)),
            ("host", _) => Ok(Self(Target::Host)),
            (_, Some(Ok(node))) => Ok(Self(Target::Node(node.to_string()))),
            _ => Err("target is sandbox, host or node:<id>".to_owned()),
        }
    }
}

/// `exec.attach`'s params.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Attach {
    run_id: RunId,
    /// Bytes of output, both streams together, that the caller has.
    #[serde(default)]
    offset: u64,
}

/// `exec.cancel`'s params.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Cancel {
    run_id: RunId,
}

pub(super) async fn run(conn: &Conn, id: &str, params: Run) -> Result<Value, ErrorBody> {
    let agent = agent(conn, params.agent.as_deref())?;
    let request = RunRequest {
        secrets: params.secrets,
        principal: conn.principal.as_ref().clone(),
        connection: conn.conn_id.to_string(),
        session_key: params.session_key,
        agent,
        argv: params.argv,
        cwd: params.cwd,
        env: params.env,
        timeout_ms: params.timeout_ms,
        target: params.target.0,
        stdin: params.stdin.map_or(Stdin::None, |stdin| stdin.0),
        tty: params.tty.map(size).transpose()?,
        detach: params.detach,
        idempotency_key: params.idempotency_key,
        session: conn.session.clone(),
    };
    let (tx, events) = mpsc::channel(PIECES);
    let accepted = conn
        .wiring
        .shared
        .exec
        .run(request, tx)
        .await
        .map_err(refusal)?;
    let run_id = accepted.run_id.clone();
    let mut first = json!({
        "runId": accepted.run_id, "planHash": accepted.plan_hash, "status": accepted.status,
    });
    if let Some(approval) = accepted.approval_id {
        first["approvalId"] = approval.as_str().into();
    }
    if let Some(at) = accepted.expires_at_ms {
        first["expiresAtMs"] = at.into();
    }
    first_answer(conn, id, &first).await?;
    follow(conn, run_id, events).await
}

pub(super) async fn attach(conn: &Conn, id: &str, params: Attach) -> Result<Value, ErrorBody> {
    let (tx, events) = mpsc::channel(PIECES);
    let by = (conn.principal.as_ref(), &*conn.conn_id);
    let exec = &conn.wiring.shared.exec;
    let attached = exec
        .attach(params.run_id.clone(), by, params.offset, tx)
        .await
        .map_err(refusal)?;
    let first = json!({
        "runId": attached.run_id, "status": "attached", "over": attached.over,
    });
    first_answer(conn, id, &first).await?;
    follow(conn, attached.run_id, events).await
}

async fn first_answer(conn: &Conn, id: &str, first: &Value) -> Result<(), ErrorBody> {
    let frame = conn.encoding.ok(id, first);
    let frame = frame.map_err(|e| ErrorBody::of(codes::INTERNAL, e.to_string()))?;
    // The receiver lives as long as the connection, and so does this future.
    let _ = conn.out.send(Out::Frame(frame)).await;
    Ok(())
}

/// Tells what a run writes, and in the end how it ended.
async fn follow(
    conn: &Conn,
    run_id: RunId,
    mut events: mpsc::Receiver<ExecEvent>,
) -> Result<Value, ErrorBody> {
    while let Some(event) = events.recv().await {
        match event {
            ExecEvent::Begun { credit } => {
                let payload = json!({ "runId": run_id, "credit": credit });
                let _ = conn.out.send(Out::Event("exec.begun", payload)).await;
            }
            ExecEvent::Output {
                seq,
                stream,
                data,
                dropped,
            } => {
                let mut payload = json!({
                    "runId": run_id, "seq": seq,
                    "stream": match stream { Stream::Out => "stdout", Stream::Err => "stderr" },
                    "data": base64::engine::general_purpose::STANDARD.encode(&data),
                });
                if dropped > 0 {
                    payload["dropped"] = dropped.into();
                }
                let _ = conn.out.send(Out::Event("exec.output", payload)).await;
            }
            ExecEvent::Detached => {
                return Ok(json!({ "runId": run_id, "status": "detached" }));
            }
            ExecEvent::Ended(result) => return Ok(ended(result)),
        }
    }
    // What ran it broke under it.
    Ok(json!({
        "runId": run_id, "status": "unknown", "durationMs": 0,
        "error": said(codes::RUN_UNKNOWN, "what ran this command broke under it: whether it finished is unknown"),
    }))
}

pub(super) async fn cancel(conn: &Conn, params: Cancel) -> Result<Value, ErrorBody> {
    let cancelled = conn
        .wiring
        .shared
        .exec
        .cancel(params.run_id.clone(), &conn.principal, &conn.conn_id)
        .await;
    cancelled.map_err(refusal)?;
    Ok(json!({ "runId": params.run_id, "status": "cancelling" }))
}

/// An agent is who it is; an operator names the agent it acts for.
pub(super) fn agent(conn: &Conn, named: Option<&str>) -> Result<AgentId, ErrorBody> {
    if conn.principal.role == Role::Agent {
        let own = conn.principal.agent.clone();
        let own =
            own.ok_or_else(|| ErrorBody::of(codes::AGENT_REQUIRED, "this agent has no name"))?;
        return match named {
            Some(other) if other != own.as_str() => Err(ErrorBody::of(
                codes::AGENT_NOT_ALLOWED,
                "an agent runs commands for itself only",
            )),
            _ => Ok(own),
        };
    }
    let named =
        named.ok_or_else(|| ErrorBody::of(codes::AGENT_REQUIRED, "name the agent to act for"))?;
    AgentId::new(named).map_err(|e| invalid(&e.to_string()))
}

fn invalid(why: &str) -> ErrorBody {
    ErrorBody::of(
        codes::INVALID_PARAMS,
        format!("invalid exec.run params: {why}"),
    )
}

pub(super) fn refusal(refusal: ExecRefusal) -> ErrorBody {
    ErrorBody::with(refusal.code, refusal.message, refusal.details)
}

fn ended(result: RunResult) -> Value {
    let mut payload = json!({
        "runId": result.run_id,
        "status": result.status,
        "durationMs": result.duration_ms,
        "dropped": { "stdout": result.dropped_stdout, "stderr": result.dropped_stderr },
        "provenance": result.provenance,
    });
    if let Some(code) = result.exit_code {
        payload["exitCode"] = code.into();
    }
    if let Some(signal) = result.signal {
        payload["signal"] = signal.into();
    }
    if let Some(usage) = result.usage {
        payload["usage"] = json!({
            "cpuMs": usage.cpu_ms,
            "swept": usage.swept,
            "outOfMemory": usage.out_of_memory,
        });
    }
    if let Some((code, message)) = result.error {
        payload["error"] = said(code, &message);
    }
    payload
}

fn said(code: &Code, message: &str) -> Value {
    json!({ "code": code.name, "message": message, "next": code.next })
}
