//! Node hosts at a connection: the line to one, what it answers, and what operators ask of it. Runs are in `invokes`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream;
use portcullis_core::audit::Entry;
use portcullis_core::auth::{Principal, Scope};
use portcullis_core::codes;
use portcullis_core::ids::DeviceId;
use portcullis_core::nodes::{self, Call, Connected, NodeResult, Stats, node_json};
use portcullis_core::pairing::News;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::protocol::strict;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::Params;
use super::methods::{About, Methods, refused};
use crate::act::entry_of;
use crate::nodes::{Line, NodesError, NodesHandle, Question, ToNode};
use crate::supervision::{FeedItem, FeedReader};

/// Between two tries to attach to a room that is down.
const AGAIN: Duration = Duration::from_millis(500);
/// Longest command, key and session of a question, bytes.
const TEXT_MAX: usize = 256;

/// What the nodes room sends to this node. A room that was started anew knows nothing of it: it attaches again.
pub(super) fn line(
    nodes: NodesHandle,
    by: Arc<Principal>,
    node: Connected,
) -> impl Stream<Item = ToNode> + Send + 'static {
    stream::unfold(None::<Line>, move |mut line| {
        let (nodes, by, node) = (nodes.clone(), by.clone(), node.clone());
        async move {
            loop {
                if line.is_none() {
                    match attach(&nodes, &by, &node).await {
                        Ok(fresh) => line = Some(fresh),
                        Err(error) => {
                            tracing::warn!(target: "portcullis", node = %node.node, %error, "a node is not attached yet");
                            tokio::time::sleep(AGAIN).await;
                            continue;
                        }
                    }
                }
                match line.as_mut()?.recv().await {
                    Some(said) => return Some((said, line)),
                    None => line = None,
                }
            }
        }
    })
}

async fn attach(nodes: &NodesHandle, by: &Principal, node: &Connected) -> Result<Line, NodesError> {
    let line = nodes.attach(node.clone()).await?;
    match nodes.declare(by, node).await {
        // What cannot be read is not offered: the node is there, and is asked nothing.
        Err(error @ NodesError::Refused(_)) => {
            tracing::warn!(target: "portcullis", node = %node.node, %error, "a node's commands were not taken");
        }
        other => other?,
    }
    Ok(line)
}

/// A node hears what became of its own surface, and of no other's.
pub(super) fn decisions(
    news: FeedReader<News>,
    node: DeviceId,
) -> impl Stream<Item = ToNode> + Send + 'static {
    stream::unfold((news, node), |(mut news, node)| async move {
        loop {
            match news.next().await {
                FeedItem::Event(told) => match &told.event {
                    News::SurfaceResolved { device_id, .. } if *device_id == node => {
                        let (event, payload) = told.event.to_wire()?;
                        return Some((ToNode::Event(event, payload), (news, node)));
                    }
                    _ => {}
                },
                // It asks again by its own clock.
                FeedItem::Lagged => {}
                FeedItem::Closed => return None,
            }
        }
    })
}

type Answer = Result<Value, ErrorBody>;

/// Every `node.*` and `exec.approvals.node.*`, after the role and scope were looked at.
pub(super) async fn call(
    methods: &Methods,
    about: About<'_>,
    method: &str,
    params: &Params<'_>,
) -> Answer {
    match method {
        "node.list" => {
            params.read::<Nothing>(method)?;
            list(methods, about.principal).await
        }
        "node.describe" => {
            let p: Node = params.read(method)?;
            describe(methods, about.principal, &p.node_id).await
        }
        "exec.approvals.node.get" => {
            let p: Node = params.read(method)?;
            let call = policy(&p.node_id, nodes::APPROVALS_GET)?;
            let answer = methods.nodes.ask(question(call, Some("{}".into()))).await;
            let answer = answer.map_err(|error| node_error(&error))?;
            Ok(payload(answer.as_deref()))
        }
        "exec.approvals.node.set" => policy_set(methods, about.principal, params).await,
        "node.invoke.result" => result(methods, about, params.read(method)?).await,
        "node.invoke.progress" => {
            let p: Progress = params.read(method)?;
            let (node, conn) = (own(about)?, about.connection);
            let piece = (p.node_id, p.invoke_id, p.seq, p.chunk);
            let taken = methods.nodes.progress(node, conn, piece).await;
            let taken = taken.map_err(|error| node_error(&error))?;
            Ok(if taken {
                json!({ "ok": true })
            } else {
                json!({ "ok": true, "ignored": true })
            })
        }
        "node.event" => event(methods, about, params.read(method)?).await,
        // None of them is kept: the answer lists what was taken.
        "node.pluginTools.update" => {
            let _: Tools = params.read(method)?;
            Ok(json!({ "nodeId": own(about)?, "tools": [] }))
        }
        "node.skills.update" => {
            let _: Skills = params.read(method)?;
            Ok(json!({ "nodeId": own(about)?, "skills": [] }))
        }
        "node.runnerInventory.update" => {
            let p: Inventory = params.read(method)?;
            let node = own(about)?;
            let enabled = p.worker_host.enabled;
            let kept = methods.nodes.worker_host(node, about.connection, enabled);
            kept.await.map_err(|error| node_error(&error))?;
            Ok(json!({ "nodeId": node }))
        }
        "skills.bins" => {
            params.read::<Nothing>(method)?;
            Ok(json!({ "bins": [] }))
        }
        _ => Err(ErrorBody::of(
            codes::UNKNOWN_METHOD,
            format!("unknown method: {method}"),
        )),
    }
}

/// The node that asks. Only a connection with a device has this role.
fn own(about: About<'_>) -> Result<&DeviceId, ErrorBody> {
    about
        .principal
        .device()
        .ok_or_else(|| ErrorBody::of(codes::NODE_ID_MISMATCH, "nodeId mismatch"))
}

async fn list(methods: &Methods, by: &Principal) -> Answer {
    let nodes = all(methods, by).await?;
    Ok(json!({ "ts": methods.clock.now(), "nodes": nodes }))
}

async fn describe(methods: &Methods, by: &Principal, node: &str) -> Answer {
    let all = all(methods, by).await?;
    let found = all.into_iter().find(|known| known["nodeId"] == node);
    let mut value = found.ok_or_else(unknown)?;
    value["ts"] = json!(methods.clock.now());
    Ok(value)
}

/// The connected ones, then those that were approved and are not there.
async fn all(methods: &Methods, by: &Principal) -> Result<Vec<Value>, ErrorBody> {
    let mut all = Vec::new();
    for node in methods.nodes.list().await.map_err(|e| node_error(&e))? {
        all.push(shown(methods, by, &node).await?);
    }
    let known = methods.pairing.nodes(by).await;
    let mut known = known.map_err(|error| refused(error.code(), &error))?;
    let known = known["paired"].as_array_mut().map(std::mem::take);
    for mut node in known.unwrap_or_default() {
        if let Some(here) = all.iter_mut().find(|n| n["nodeId"] == node["nodeId"]) {
            // The operator's own name for it stands.
            if node["displayName"].is_string() {
                here["displayName"] = node["displayName"].take();
            }
            continue;
        }
        node["approvalState"] = "approved".into();
        node["paired"] = true.into();
        node["connected"] = false.into();
        // Nothing that it could be asked now.
        node["commands"] = json!([]);
        all.push(node);
    }
    Ok(all)
}

async fn shown(methods: &Methods, by: &Principal, node: &Connected) -> Answer {
    let standing = methods.nodes.standing(&node.node).await;
    let mut standing = standing.map_err(|error| node_error(&error))?;
    // Who may not decide is not told what waits.
    if !by.scopes.allows(Scope::Pairing) {
        standing.request_id = None;
    }
    Ok(node_json(node, &standing))
}

fn unknown() -> ErrorBody {
    ErrorBody::of(codes::NODE_NOT_FOUND, "unknown nodeId")
}

/// The id of a node, as text that may be none.
pub(super) fn node_id(text: &str) -> Result<DeviceId, ErrorBody> {
    DeviceId::new(text).map_err(|_| unknown())
}

fn policy(node: &str, command: &str) -> Result<Call, ErrorBody> {
    Ok(Call {
        node: node_id(node)?,
        command: command.to_owned(),
        timeout_ms: None,
        run_id: None,
        by_gateway: true,
    })
}

pub(super) fn question(call: Call, params: Option<String>) -> Question {
    Question {
        call,
        params,
        idempotency_key: None,
        session_key: None,
        progress: None,
    }
}

/// A node's approvals document is replaced: intent, act, outcome. Its hash is compared by the node.
async fn policy_set(methods: &Methods, by: &Principal, params: &Params<'_>) -> Answer {
    let p: PolicySet = params.read("exec.approvals.node.set")?;
    let mut sent = Map::new();
    match (p.file, p.native) {
        (Some(file), None) => sent.insert("file".into(), file),
        (None, Some(native)) => sent.insert("native".into(), native),
        _ => {
            return Err(ErrorBody::of(
                codes::INVALID_PARAMS,
                "invalid exec.approvals.node.set params: either file or native",
            ));
        }
    };
    if let Some(hash) = p.base_hash {
        sent.insert("baseHash".into(), hash.into());
    }
    let call = policy(&p.node_id, nodes::APPROVALS_SET)?;
    let text = Value::Object(sent).to_string();
    let answer = recorded(methods, by, question(call, Some(text))).await?;
    Ok(payload(answer.as_deref()))
}

/// Asks a node for what changes something there: the intent is durable before, the outcome after.
pub(super) async fn recorded(
    methods: &Methods,
    by: &Principal,
    question: Question,
) -> Result<Option<String>, ErrorBody> {
    let entry = Entry {
        action: "nodes.invoke".to_owned(),
        object: Some(format!("node:{}", question.call.node)),
        idempotency_key: question.idempotency_key.clone(),
        ..entry_of(by)
    }
    .with("command", question.call.command.clone());
    let answer = methods.nodes.ask_recorded(entry, question).await;
    let answer = answer.map_err(|e| refused(e.code(), &e))?;
    answer.map_err(|error| node_error(&error))
}

/// A node's answer as a value; what is no JSON is told as the text that it is.
pub(super) fn payload(text: Option<&str>) -> Value {
    text.map_or(Value::Null, |text| {
        serde_json::from_str(text).unwrap_or_else(|_| text.into())
    })
}

/// wire.md 9: the node's own word stands in `details.nodeError`.
pub(super) fn node_error(error: &NodesError) -> ErrorBody {
    let mut details = Map::new();
    if let NodesError::Refused(refusal) = error {
        if let nodes::Refusal::NotAllowed {
            reason, command, ..
        } = refusal
        {
            details.insert("reason".into(), (*reason).into());
            details.insert("command".into(), command.as_str().into());
        }
        if let Some(code) = refusal.node_code() {
            let text = match refusal {
                nodes::Refusal::Node { message, .. } => message.clone(),
                other => other.to_string(),
            };
            details.insert("nodeError".into(), json!({ "code": code, "message": text }));
            details.insert("nodeCommandDispatched".into(), refusal.dispatched().into());
        }
    }
    if let NodesError::Down { may_have_run } = error {
        details.insert("nodeCommandDispatched".into(), (*may_have_run).into());
    }
    ErrorBody::with(error.code(), error.to_string(), details)
}

/// The most that a node's answer may take in an answer of ours, bytes; it stands there twice, and 32 may be under way.
const NODE_ANSWER_MAX: usize = 4 * 1024 * 1024;

/// How many bytes a text takes as JSON: a control character takes six.
fn told_in(text: &str) -> usize {
    let more = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 1,
        0..=31 => 5,
        _ => 0,
    });
    text.len() + more.sum::<usize>()
}

async fn result(methods: &Methods, about: About<'_>, p: InvokeResult) -> Answer {
    let outcome = if p.ok {
        // Either form. As text it goes on as it is: it must mean the same to whoever reads it, as what stands in a frame does.
        let (text, sound) = match (p.payload_json, p.payload) {
            (Some(text), _) => {
                let sound = strict::json(text.as_bytes()).map(drop);
                (Some(text), sound)
            }
            (None, Some(value)) => (Some(value.to_string()), Ok(())),
            (None, None) => (None, Ok(())),
        };
        let told = text.as_deref().map_or(0, told_in);
        if let Err(unsound) = sound {
            let message = format!("the node's answer cannot be passed on: {unsound}");
            Err(("ANSWER_INVALID".to_owned(), message))
        } else if told > NODE_ANSWER_MAX {
            let code = "ANSWER_TOO_LARGE".to_owned();
            let message = format!(
                "the node's answer takes {told} bytes on the wire, {NODE_ANSWER_MAX} are the most: ask for less of it"
            );
            Err((code, message))
        } else {
            Ok(text)
        }
    } else {
        let error = p.error.unwrap_or_default();
        let code = error.code.unwrap_or_else(|| "UNAVAILABLE".to_owned());
        let message = error
            .message
            .unwrap_or_else(|| "node invoke failed".to_owned());
        Err((code, message))
    };
    let said = NodeResult {
        id: p.id,
        node_id: p.node_id,
        outcome,
    };
    let taken = methods.nodes.result(own(about)?, about.connection, said);
    Ok(if taken.await.map_err(|error| node_error(&error))? {
        json!({ "ok": true })
    } else {
        json!({ "ok": true, "ignored": true })
    })
}

/// News of a node. What is of no use here is said to be unhandled; news of runs are taken only of runs it was given.
async fn event(methods: &Methods, about: About<'_>, p: Event) -> Answer {
    let node = own(about)?;
    let payload = match (p.payload_json, p.payload) {
        (Some(text), _) => strict::json(text.as_bytes()).unwrap_or(Value::Null),
        (None, value) => value.unwrap_or(Value::Null),
    };
    let unhandled =
        |reason: &str| json!({ "ok": true, "event": p.name, "handled": false, "reason": reason });
    match p.name.as_str() {
        "node.host.stats" => {
            let Some(stats) = Stats::parse(&payload, methods.clock.now()) else {
                return Ok(unhandled("invalid_payload"));
            };
            let kept = methods.nodes.stats(node, about.connection, stats).await;
            kept.map_err(|error| node_error(&error))?;
            Ok(json!({ "ok": true, "event": p.name, "handled": true, "reason": "updated" }))
        }
        "exec.started" | "exec.finished" | "exec.denied" => {
            let run = payload["runId"].as_str().unwrap_or_default();
            let known = methods.nodes.knows_run(node, about.connection, run).await;
            if known.map_err(|error| node_error(&error))? {
                Ok(json!({ "ok": true }))
            } else {
                Ok(unhandled("unmatched_exec_event"))
            }
        }
        _ => Ok(unhandled("unsupported")),
    }
}

/// May this command be asked by `node.invoke`? A short text, and no question of its own method.
pub(super) fn check_text(what: &str, text: &str) -> Result<(), ErrorBody> {
    if (1..=TEXT_MAX).contains(&text.len()) {
        return Ok(());
    }
    Err(ErrorBody::of(
        codes::INVALID_PARAMS,
        format!("invalid node.invoke params: {what} is 1 to {TEXT_MAX} bytes"),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Node {
    node_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PolicySet {
    node_id: String,
    #[serde(default)]
    file: Option<Value>,
    #[serde(default)]
    native: Option<Value>,
    #[serde(default)]
    base_hash: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct InvokeResult {
    id: String,
    node_id: String,
    ok: bool,
    #[serde(default)]
    payload: Option<Value>,
    #[serde(default, rename = "payloadJSON")]
    payload_json: Option<String>,
    #[serde(default)]
    error: Option<ResultError>,
}

#[derive(Default, Deserialize)]
struct ResultError {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Progress {
    invoke_id: String,
    node_id: String,
    seq: u64,
    chunk: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Event {
    #[serde(rename = "event")]
    name: String,
    #[serde(default)]
    payload: Option<Value>,
    #[serde(default, rename = "payloadJSON")]
    payload_json: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tools {
    #[serde(rename = "tools")]
    _tools: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skills {
    #[serde(rename = "skills")]
    _skills: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Inventory {
    #[serde(rename = "protocolFeatures")]
    _protocol_features: Vec<String>,
    worker_host: WorkerHost,
}

#[derive(Deserialize)]
struct WorkerHost {
    #[serde(default)]
    enabled: bool,
}

#[cfg(test)]
mod tests {
    use super::told_in;

    #[test]
    fn a_text_is_counted_as_it_stands_in_an_answer() {
        let all: String = (0..=0x2ff).filter_map(char::from_u32).collect();
        let written = serde_json::to_string(&all).unwrap();
        assert_eq!(told_in(&all) + 2, written.len());
    }
}
