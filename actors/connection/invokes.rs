//! `node.invoke`: an operator asks a node. What it may ask is cut to a list; a run goes through the gate of approvals.

use portcullis_core::auth::Scope;
use portcullis_core::codes;
use portcullis_core::nodes::{Call, NOTIFY, PREPARE, RUN, WHICH};
use portcullis_core::protocol::frame::ErrorBody;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::nodes::{check_text, node_id, payload, question, recorded};
use super::serve::Conn;
use crate::nodes::Question;

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
        return Err(ErrorBody::of(
            codes::POLICY_DENIED,
            "commands on nodes are not enabled",
        ));
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
    let question = Question {
        idempotency_key: Some(p.idempotency_key),
        session_key: p.session_key,
        ..question(call, params.map(|params| params.to_string()))
    };
    let methods = &conn.wiring.methods;
    let text = recorded(methods, &conn.principal, question).await?;
    Ok(json!({
        "ok": true, "nodeId": node, "command": p.command,
        "payload": payload(text.as_deref()), "payloadJSON": text,
    }))
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
