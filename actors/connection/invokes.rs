//! `node.invoke`: an operator asks a node. What it may ask is cut to a list; a run goes through the gate of approvals.

use std::collections::BTreeMap;

use portcullis_cell::Stream;
use portcullis_core::auth::Scope;
use portcullis_core::codes::{self, Code};
use portcullis_core::display::visible;
use portcullis_core::ids::{AgentId, DeviceId};
use portcullis_core::nodes::{
    Asked, Call, Claim, GateRefusal, NOTIFY, PREPARE, RUN, WHICH, admit_run,
};
use portcullis_core::plan::{Stdin, Target};
use portcullis_core::protocol::frame::ErrorBody;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::nodes::{check_text, node_id, payload, question, recorded};
use super::runs::refusal;
use super::serve::{Conn, Out};
use crate::exec::{ExecEvent, RunRequest};
use crate::nodes::Question;

/// Pieces of output that wait to be put together.
const PIECES: usize = 8;

/// Pieces of a node's progress that wait for the caller's socket.
const PROGRESS: usize = 16;

/// `node.invoke`'s params.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Invoke {
    node_id: String,
    command: String,
    #[serde(default)]
    params: Option<Value>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    idempotency_key: String,
    #[serde(default)]
    session_key: Option<String>,
    #[serde(default, rename = "turnSourceChannel")]
    _turn_source_channel: Option<Value>,
    #[serde(default, rename = "turnSourceTo")]
    _turn_source_to: Option<Value>,
    #[serde(default, rename = "turnSourceAccountId")]
    _turn_source_account_id: Option<Value>,
    #[serde(default, rename = "turnSourceThreadId")]
    _turn_source_thread_id: Option<Value>,
}

pub(super) async fn invoke(conn: &Conn, p: Invoke) -> Result<Value, ErrorBody> {
    check_text("idempotencyKey", &p.idempotency_key)?;
    check_text("command", &p.command)?;
    if let Some(session) = &p.session_key {
        check_text("sessionKey", session)?;
    }
    let node = node_id(&p.node_id)?;
    if p.command == RUN {
        return run(conn, &node, p.params.unwrap_or_default()).await;
    }
    if p.command == PREPARE && !conn.principal.scopes.allows(Scope::ActAs) {
        // What a command would run is told to who may run it.
        return Err(missing(Scope::ActAs));
    }
    let params = p.params.map(|params| cut(&p.command, params));
    let call = Call {
        node: node.clone(),
        command: p.command.clone(),
        timeout_ms: p.timeout_ms,
        run_id: None,
        by_gateway: false,
    };
    let (tx, mut pieces) = mpsc::channel(PROGRESS);
    let key = p.idempotency_key.clone();
    let question = Question {
        idempotency_key: Some(p.idempotency_key),
        session_key: p.session_key,
        progress: Some(tx),
        ..question(call, params.map(|params| params.to_string()))
    };
    let methods = &conn.wiring.shared.methods;
    // Ends with the question: the room drops its end when it is answered or over.
    let forward = async {
        while let Some((seq, chunk)) = pieces.recv().await {
            let said = json!({
                "idempotencyKey": key, "nodeId": node, "command": p.command, "seq": seq, "chunk": chunk,
            });
            // The receiver lives as long as the connection, and so does this future.
            let _ = conn
                .out
                .send(Out::Event("node.invoke.progress", said))
                .await;
        }
    };
    let asked = recorded(methods, &conn.principal, question);
    let (text, ()) = tokio::join!(asked, forward);
    let text = text?;
    Ok(json!({
        "ok": true, "nodeId": node, "command": p.command,
        "payload": payload(text.as_deref()), "payloadJSON": text,
    }))
}

/// `system.run`'s params. Nothing else of what the caller sends is looked at, and nothing of it is sent to the node: what
/// goes there is made from the plan that was approved.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::struct_field_names,
    reason = "the wire's own name: systemRunPlan"
)]
struct SystemRun {
    command: Vec<String>,
    #[serde(default)]
    raw_command: Option<String>,
    #[serde(default)]
    system_run_plan: Option<ClaimedPlan>,
    #[serde(default)]
    cwd: Option<String>,
    #[serde(default)]
    env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    agent_id: Option<String>,
    #[serde(default)]
    run_id: Option<String>,
    #[serde(default)]
    approved: Option<Value>,
    #[serde(default)]
    approval_decision: Option<Value>,
}

/// What the caller says that the plan is.
#[derive(Deserialize)]
pub(super) struct ClaimedPlan {
    pub argv: Vec<String>,
    #[serde(default)]
    pub cwd: Option<String>,
}

/// The agent of a caller who names none.
const AGENT: &str = "main";

/// A run: only under a person's answer for exactly this, used once.
async fn run(conn: &Conn, node: &DeviceId, params: Value) -> Result<Value, ErrorBody> {
    if !conn.principal.scopes.allows(Scope::ActAs) {
        return Err(missing(Scope::ActAs));
    }
    let p: SystemRun = serde_json::from_value(params).map_err(|error| {
        let text = format!("invalid system.run params: {}", visible(&error.to_string()));
        ErrorBody::of(codes::INVALID_PARAMS, text)
    })?;
    let agent = p.agent_id.as_deref().unwrap_or(AGENT);
    let agent = AgentId::new(agent)
        .map_err(|error| ErrorBody::of(codes::INVALID_PARAMS, error.to_string()))?;
    let set = |value: &Option<Value>| {
        value
            .as_ref()
            .is_some_and(|v| !v.is_null() && *v != Value::Bool(false))
    };
    let asked = Asked {
        run_id: p.run_id.as_deref(),
        claims_approval: set(&p.approved) || set(&p.approval_decision),
    };
    let name = conn.principal.name();
    let device = conn.principal.device().map(ToString::to_string);
    let env = p.env.unwrap_or_default();
    let vars: Vec<(String, String)> = env.clone().into_iter().collect();
    let claim = Claim {
        node,
        agent: &agent,
        argv: &p.command,
        cwd: p.cwd.as_deref(),
        env: &vars,
        principal: &name,
        device: device.as_deref(),
        connection: &conn.conn_id,
        timeout_ms: p.timeout_ms,
    };
    let record = match asked.run_id {
        Some(id) => conn.wiring.shared.methods.approval.get(id).await.ok(),
        None => None,
    };
    // By its whole id: a beginning is for people.
    let record = record.filter(|record| Some(record.id.as_str()) == asked.run_id);
    admit_run(asked, record.as_ref(), &claim)
        .and_then(|()| {
            told_twice(
                &p.command,
                p.cwd.as_deref(),
                p.raw_command.as_deref(),
                p.system_run_plan.as_ref(),
            )
        })
        .map_err(|refusal| gate(refusal.code, refusal.text, asked.run_id))?;
    let plan = record.as_ref().and_then(|record| record.plan());
    let request = RunRequest {
        secrets: std::collections::BTreeMap::new(),
        principal: conn.principal.as_ref().clone(),
        connection: conn.conn_id.to_string(),
        session_key: None,
        agent,
        argv: p.command,
        cwd: plan.map(|plan| plan.cwd.clone()),
        env,
        timeout_ms: plan.map(|plan| plan.limits.timeout_ms),
        target: Target::Node(node.to_string()),
        stdin: Stdin::None,
        tty: None,
        detach: false,
        idempotency_key: asked.run_id.unwrap_or_default().to_owned(),
        session: conn.session.clone(),
    };
    let run_id = asked.run_id.map(str::to_owned);
    let (tx, mut events) = mpsc::channel(PIECES);
    if let Err(refused) = conn.wiring.shared.exec.run(request, tx).await {
        // Used meanwhile by another call under the same answer.
        if refused.code == codes::KEY_USED {
            return Err(gate(
                codes::APPROVAL_REQUIRED,
                "approval required",
                run_id.as_deref(),
            ));
        }
        return Err(refusal(refused));
    }
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ended = loop {
        match events.recv().await {
            // Not of a run on a node, nor of one that is not detached.
            Some(ExecEvent::Begun { .. } | ExecEvent::Detached) => {}
            Some(ExecEvent::Output { stream, data, .. }) => match stream {
                Stream::Out => out.extend_from_slice(&data),
                Stream::Err => err.extend_from_slice(&data),
            },
            Some(ExecEvent::Ended(result)) => break result,
            None => {
                return Err(ErrorBody::of(
                    codes::RUN_UNKNOWN,
                    "what ran this command broke under it: whether it finished is unknown",
                ));
            }
        }
    };
    if !matches!(ended.status, "exited" | "timed-out") {
        let (code, message) = ended
            .error
            .unwrap_or((codes::RUN_UNKNOWN, format!("the run was {}", ended.status)));
        let mut details = Map::new();
        details.insert("status".into(), ended.status.into());
        details.insert("runId".into(), json!(run_id));
        // The node's own word, as with every other command.
        if code == codes::NODE_ERROR
            && let Some((code, text)) = message.split_once(": ")
        {
            details.insert("nodeError".into(), json!({ "code": code, "message": text }));
            details.insert("nodeCommandDispatched".into(), true.into());
        }
        return Err(ErrorBody::with(code, message, details));
    }
    let timed_out = ended.status == "timed-out";
    let payload = json!({
        "exitCode": ended.exit_code, "timedOut": timed_out, "success": ended.exit_code == Some(0) && !timed_out,
        "stdout": String::from_utf8_lossy(&out), "stderr": String::from_utf8_lossy(&err), "error": null,
    });
    Ok(json!({
        "ok": true, "nodeId": node, "command": RUN, "payloadJSON": payload.to_string(), "payload": payload,
    }))
}

/// All refusals of the gate are `INVALID_REQUEST` on the wire, whatever else has their code.
fn gate(code: &'static Code, text: &str, run_id: Option<&str>) -> ErrorBody {
    let mut details = Map::new();
    if let Some(run) = run_id {
        details.insert("runId".into(), run.into());
    }
    let mut error = ErrorBody::with(code, text, details);
    "INVALID_REQUEST".clone_into(&mut error.code);
    error
}

/// One command, one meaning: what else the caller says that it is must say the same.
fn told_twice(
    argv: &[String],
    cwd: Option<&str>,
    raw: Option<&str>,
    plan: Option<&ClaimedPlan>,
) -> Result<(), GateRefusal> {
    // How a shell's words are quoted differs; their letters do not.
    let letters = |text: &str| -> String {
        text.chars()
            .filter(|c| !c.is_whitespace() && !matches!(c, '\'' | '"' | '\\'))
            .collect()
    };
    let other_text = raw.is_some_and(|raw| letters(raw) != letters(&argv.concat()));
    let other_plan = plan.is_some_and(|plan| {
        plan.argv != argv || (cwd.is_some() && plan.cwd.is_some() && plan.cwd.as_deref() != cwd)
    });
    if other_text || other_plan {
        return Err(GateRefusal {
            code: codes::APPROVAL_REQUEST_MISMATCH,
            text: "approval id does not match request",
        });
    }
    Ok(())
}

fn missing(scope: Scope) -> ErrorBody {
    let mut details = Map::new();
    details.insert("missingScope".into(), scope.as_str().into());
    details.insert("requiredScopes".into(), json!([scope.as_str()]));
    ErrorBody::with(
        codes::MISSING_SCOPE,
        format!("missing scope: {scope}"),
        details,
    )
}

/// Keys of a command's params that are passed on; the others are dropped. A command that is not here gets none: it is
/// refused by the room anyway.
fn cut(command: &str, params: Value) -> Value {
    let keys: &[&str] = match command {
        WHICH => &["bins"],
        PREPARE => &[
            "command",
            "rawCommand",
            "cwd",
            "env",
            "agentId",
            "sessionKey",
        ],
        NOTIFY => &["title", "body", "sound", "priority", "delivery"],
        _ => &[],
    };
    match params {
        Value::Object(all) => Value::Object(
            all.into_iter()
                .filter(|(key, _)| keys.contains(&key.as_str()))
                .collect(),
        ),
        _ => json!({}),
    }
}
