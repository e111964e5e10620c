//! Node hosts at the gateway: they connect with a device, say what they offer, and are asked only what was approved.

use serde_json::{Value, json};

use crate::protocol::signed_http::{Sent, Signer};
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin, hex, random};

/// What the peer's own node host declares, and more.
const DECLARED: &[&str] = &[
    "browser.proxy",
    "fs.listDir",
    "system.execApprovals.get",
    "system.execApprovals.set",
    "system.run",
    "system.run.prepare",
    "system.which",
    "terminal.upload",
];

/// A node host of the test's own: connects and declares.
pub async fn node(gateway: &Gateway, device: &Device, commands: &[&str]) -> Client {
    let mut client = Client::dial(gateway).await;
    let connect = Connect::token().role("node").device(device);
    let mut params = connect.params(&client.nonce, client.ts);
    params["caps"] = json!(["system"]);
    params["commands"] = json!(commands);
    params["pathEnv"] = "/usr/bin:/bin".into();
    let hello = client.get("connect", params).await;
    assert_eq!(hello["auth"]["role"], "node", "{hello}");
    client
}

/// Asks until the node is there, or is gone.
async fn connected(operator: &mut Client, device: &Device, is_there: bool) {
    for _ in 0..400 {
        let nodes = operator.get("node.list", json!({})).await;
        let all = nodes["nodes"].as_array().unwrap();
        let own = all.iter().find(|one| one["nodeId"] == device.id());
        if own.unwrap()["connected"] == is_there {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("never so: {is_there}");
}

/// Asks until the list has so many nodes.
async fn listed(operator: &mut Client, count: usize) -> Value {
    for _ in 0..400 {
        let list = operator.get("node.list", json!({})).await;
        if list["nodes"].as_array().unwrap().len() == count {
            return list;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("never {count} nodes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_listed_with_what_it_says_and_may_be_asked_nothing_before_a_person_approved() {
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    assert_eq!(
        operator.get("node.list", json!({})).await["nodes"],
        json!([])
    );
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    let list = listed(&mut operator, 1).await;
    let shown = &list["nodes"][0];
    assert_eq!(shown["nodeId"], device.id());
    assert_eq!(shown["commands"], json!([]), "{shown}");
    assert_eq!(shown["caps"], json!([]), "{shown}");
    assert_eq!(shown["connected"], true);
    assert_ne!(shown["approvalState"], "approved", "{shown}");
    // Its own reports are taken.
    let stats = json!({
        "cpuCount": 2, "loadAverage": [1, 1, 1], "memoryTotalBytes": 1, "memoryFreeBytes": 1, "diskTotalBytes": 1,
        "diskAvailableBytes": 1,
    });
    let said = host
        .get(
            "node.event",
            json!({ "event": "node.host.stats", "payloadJSON": stats.to_string() }),
        )
        .await;
    assert_eq!(
        said,
        json!({ "ok": true, "event": "node.host.stats", "handled": true, "reason": "updated" })
    );
    let inventory = json!({ "protocolFeatures": ["x"], "workerHost": { "enabled": false } });
    let kept = host.get("node.runnerInventory.update", inventory).await;
    assert_eq!(kept, json!({ "nodeId": device.id() }));
    let tools = host
        .get(
            "node.pluginTools.update",
            json!({ "tools": [{"name": "t"}] }),
        )
        .await;
    assert_eq!(tools, json!({ "nodeId": device.id(), "tools": [] }));
    let skills = host
        .get("node.skills.update", json!({ "skills": [] }))
        .await;
    assert_eq!(skills, json!({ "nodeId": device.id(), "skills": [] }));
    assert_eq!(
        host.get("skills.bins", json!({})).await,
        json!({ "bins": [] })
    );
    let one = operator
        .get("node.describe", json!({ "nodeId": device.id() }))
        .await;
    assert_eq!(one["hostStats"]["cpuCount"], 2, "{one}");
    assert_eq!(one["workerHost"]["enabled"], false, "{one}");
    let ask = |command: &str| json!({ "nodeId": device.id(), "command": command, "params": {}, "idempotencyKey": key() });
    let error = operator.refused("node.invoke", ask("system.which")).await;
    assert_eq!(
        error["details"]["code"], "NODE_COMMAND_NOT_ALLOWED",
        "{error}"
    );
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("pending approval"),
        "{error}"
    );
    for command in [
        "browser.proxy",
        "fs.listDir",
        "terminal.upload",
        "system.nonsense",
    ] {
        let error = operator.refused("node.invoke", ask(command)).await;
        assert_eq!(error["code"], "INVALID_REQUEST", "{error}");
        assert_eq!(
            error["details"]["reason"], "command not allowlisted",
            "{error}"
        );
    }
    host.ws.close(None).await.unwrap();
    listed(&mut operator, 0).await;
    let error = operator.refused("node.invoke", ask("system.which")).await;
    assert_eq!(
        (&error["code"], &error["message"], &error["details"]["code"]),
        (
            &json!("UNAVAILABLE"),
            &json!("node not connected"),
            &json!("NOT_CONNECTED")
        )
    );
    assert_eq!(error["details"]["nodeCommandDispatched"], false);
    let error = operator
        .refused("node.describe", json!({ "nodeId": "nobody" }))
        .await;
    assert_eq!(error["details"]["code"], "NODE_NOT_FOUND", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_calls_only_what_is_a_nodes_and_an_operator_only_what_is_an_operators() {
    let gateway = Gateway::start();
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    for method in [
        "node.list",
        "node.invoke",
        "exec.run",
        "exec.approvals.node.get",
        "config.get",
    ] {
        let error = host.refused(method, json!({})).await;
        assert_eq!(error["message"], "unauthorized role: node", "{method}");
    }
    let error = host.refused("node.pending.drain", json!({})).await;
    assert_eq!(error["message"], "unknown method: node.pending.drain");
    assert_eq!(error["code"], "INVALID_REQUEST");
    let mut operator = admin(&gateway).await;
    for method in ["node.invoke.result", "node.event", "skills.bins"] {
        let error = operator.refused(method, json!({})).await;
        assert_eq!(error["message"], "unauthorized role: operator", "{method}");
    }
    // A node without a device is none.
    let mut bare = Client::dial(&gateway).await;
    let (error, closed) = bare.denied(&Connect::token().role("node")).await;
    assert_eq!(error["details"]["code"], "DEVICE_IDENTITY_REQUIRED");
    assert_eq!(closed.0, 1008);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_answers_for_itself_only_and_cannot_speak_of_runs_it_never_had() {
    let gateway = Gateway::start();
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    let result = |node: &str| json!({ "id": "never-asked", "nodeId": node, "ok": true, "payloadJSON": "{}" });
    let other = Device::new().id();
    let error = host.refused("node.invoke.result", result(&other)).await;
    assert_eq!(error["message"], "nodeId mismatch");
    assert_eq!(error["details"]["code"], "NODE_ID_MISMATCH");
    assert_eq!(
        host.get("node.invoke.result", result(&device.id())).await,
        json!({ "ok": true, "ignored": true })
    );
    let progress = json!({ "invokeId": "x", "nodeId": other, "seq": 0, "chunk": "" });
    let error = host.refused("node.invoke.progress", progress).await;
    assert_eq!(error["message"], "nodeId mismatch");
    let forged = json!({ "runId": "r1", "sessionKey": "node", "host": "node", "command": "x", "exitCode": 0 });
    for event in ["exec.finished", "exec.denied", "exec.started"] {
        let params = json!({ "event": event, "payloadJSON": forged.to_string() });
        assert_eq!(
            host.get("node.event", params).await,
            json!({ "ok": true, "event": event, "handled": false, "reason": "unmatched_exec_event" })
        );
    }
    let params = json!({ "event": "agent.request", "payload": { "message": "run this" } });
    assert_eq!(
        host.get("node.event", params).await,
        json!({ "ok": true, "event": "agent.request", "handled": false, "reason": "unsupported" })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_of_a_node_takes_the_place_of_the_older() {
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut first = node(&gateway, &device, DECLARED).await;
    listed(&mut operator, 1).await;
    let _second = node(&gateway, &device, &["system.which"]).await;
    assert_eq!(
        first.closed().await,
        (1008, "replaced by a newer connection".to_owned())
    );
    let list = listed(&mut operator, 1).await;
    assert_eq!(list["nodes"][0]["nodeId"], device.id());
}

/// A person says yes to what the node declares; the node hears of it.
pub async fn approve(operator: &mut Client, host: &mut Client, device: &Device) {
    let request = loop {
        let list = operator.get("node.pair.list", json!({})).await;
        let found = list["pending"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["nodeId"] == device.id());
        if let Some(found) = found {
            break found["requestId"].clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    };
    operator
        .get("node.pair.approve", json!({ "requestId": request }))
        .await;
    let told = event(host, "node.pair.resolved").await;
    assert_eq!(told["payload"]["requestId"], request);
    assert_eq!(told["payload"]["decision"], "approved");
    assert!(told.get("seq").is_none(), "{told}");
}

/// The next event of this name.
pub async fn event(client: &mut Client, name: &str) -> Value {
    loop {
        let frame = client.frame().await;
        if frame["event"] == name {
            return frame;
        }
    }
}

/// Of one question.
fn key() -> String {
    hex(&random::<8>())
}

fn which(device: &Device, timeout_ms: u64) -> Value {
    json!({
        "nodeId": device.id(), "command": "system.which", "params": { "bins": ["sh"], "approved": true },
        "idempotencyKey": key(), "timeoutMs": timeout_ms,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_node_is_asked_and_its_answer_reaches_who_asked() {
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    approve(&mut operator, &mut host, &device).await;
    let list = listed(&mut operator, 1).await;
    assert_eq!(
        list["nodes"][0]["commands"],
        json!([
            "system.execApprovals.get",
            "system.execApprovals.set",
            "system.run",
            "system.run.prepare",
            "system.which"
        ]),
        "what is on no list was dropped: {list}"
    );
    assert_eq!(list["nodes"][0]["approvalState"], "approved");
    let question = which(&device, 15_000);
    let id = operator.ask("node.invoke", question.clone()).await;
    let asked = event(&mut host, "node.invoke.request").await;
    assert!(asked.get("seq").is_none(), "{asked}");
    let asked = &asked["payload"];
    assert_eq!(asked["nodeId"], device.id());
    assert_eq!(asked["command"], "system.which");
    assert_eq!(
        asked["paramsJSON"], r#"{"bins":["sh"]}"#,
        "only what is on the list"
    );
    assert_eq!(asked["idempotencyKey"], question["idempotencyKey"]);
    assert_eq!(asked["timeoutMs"], 15_000);
    let text = r#"{"bins":{"sh":"/bin/sh"}}"#;
    let result =
        json!({ "id": asked["id"], "nodeId": device.id(), "ok": true, "payloadJSON": text });
    assert_eq!(
        host.get("node.invoke.result", result.clone()).await,
        json!({ "ok": true })
    );
    let answer = operator.answer(&id).await;
    assert_eq!(
        answer["payload"],
        json!({
            "ok": true, "nodeId": device.id(), "command": "system.which",
            "payload": { "bins": { "sh": "/bin/sh" } }, "payloadJSON": text,
        })
    );
    // The same again is late.
    assert_eq!(
        host.get("node.invoke.result", result).await,
        json!({ "ok": true, "ignored": true })
    );
    // An error of the node is told as its own.
    let id = operator.ask("node.invoke", which(&device, 15_000)).await;
    let asked = event(&mut host, "node.invoke.request").await;
    let error = json!({ "code": "UNAVAILABLE", "message": "command not supported" });
    let result =
        json!({ "id": asked["payload"]["id"], "nodeId": device.id(), "ok": false, "error": error });
    host.get("node.invoke.result", result).await;
    let answer = operator.answer(&id).await;
    assert_eq!(
        answer["error"]["message"],
        "UNAVAILABLE: command not supported"
    );
    assert_eq!(answer["error"]["details"]["code"], "NODE_ERROR");
    assert_eq!(answer["error"]["details"]["nodeError"], error);
    assert_eq!(answer["error"]["details"]["nodeCommandDispatched"], true);
    // Both stand in the log, with how they ended.
    let records = operator
        .get("audit.query", json!({ "action": "nodes.invoke" }))
        .await;
    let text = records.to_string();
    assert!(
        text.contains("NODE_ERROR") && text.contains("system.which"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_silent_or_goes_away_is_told_and_a_late_answer_changes_nothing() {
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    approve(&mut operator, &mut host, &device).await;
    let error = operator.refused("node.invoke", which(&device, 50)).await;
    assert_eq!(error["details"]["nodeError"]["code"], "TIMEOUT", "{error}");
    let asked = event(&mut host, "node.invoke.request").await["payload"]["id"].clone();
    let cancel = event(&mut host, "node.invoke.cancel").await;
    assert_eq!(
        cancel["payload"],
        json!({ "invokeId": asked, "nodeId": device.id() })
    );
    let late = json!({ "id": asked, "nodeId": device.id(), "ok": true });
    assert_eq!(
        host.get("node.invoke.result", late).await,
        json!({ "ok": true, "ignored": true })
    );
    // Who asked goes away: the node is told.
    let mut other = admin(&gateway).await;
    other.ask("node.invoke", which(&device, 600_000)).await;
    event(&mut host, "node.invoke.request").await;
    other.ws.close(None).await.unwrap();
    event(&mut host, "node.invoke.cancel").await;
    // The node goes away: who asked is told.
    let id = operator.ask("node.invoke", which(&device, 600_000)).await;
    event(&mut host, "node.invoke.request").await;
    host.ws.close(None).await.unwrap();
    let answer = operator.answer(&id).await;
    assert_eq!(
        answer["error"]["details"]["nodeError"]["code"], "DISCONNECTED",
        "{answer}"
    );
    assert_eq!(answer["error"]["details"]["nodeCommandDispatched"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wider_declaration_gives_nothing_new_and_a_removed_node_is_asked_nothing() {
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut host = node(&gateway, &device, &["system.which"]).await;
    approve(&mut operator, &mut host, &device).await;
    host.ws.close(None).await.unwrap();
    let mut host = node(&gateway, &device, DECLARED).await;
    // The older approval holds for what it named, and for nothing else.
    loop {
        let list = operator.get("node.list", json!({})).await;
        if list["nodes"][0]["approvalState"] == "pending-reapproval" {
            assert_eq!(
                list["nodes"][0]["commands"],
                json!(["system.which"]),
                "{list}"
            );
            assert!(list["nodes"][0]["pendingRequestId"].is_string(), "{list}");
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    let get = json!({ "nodeId": device.id() });
    let error = operator.refused("exec.approvals.node.get", get).await;
    assert_eq!(
        error["details"]["code"], "NODE_COMMAND_NOT_ALLOWED",
        "{error}"
    );
    // A reader is not told what waits.
    let mut reader = crate::support::ws::by_token(&gateway, &["operator.read"]).await;
    let list = reader.get("node.list", json!({})).await;
    assert!(list["nodes"][0].get("pendingRequestId").is_none(), "{list}");
    let error = reader.refused("node.invoke", which(&device, 1)).await;
    assert_eq!(
        error["details"]["missingScope"], "operator.write",
        "{error}"
    );
    operator
        .get("node.pair.remove", json!({ "nodeId": device.id() }))
        .await;
    assert_eq!(host.closed().await.0, 4001);
    let error = operator.refused("node.invoke", which(&device, 1_000)).await;
    assert_eq!(error["details"]["code"], "NOT_CONNECTED", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_approvals_document_of_a_node_is_relayed_by_its_own_methods_only() {
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    approve(&mut operator, &mut host, &device).await;
    let document = json!({ "path": "x", "exists": true, "file": { "version": 1 }, "hash": "h" });
    let id = operator
        .ask("exec.approvals.node.get", json!({ "nodeId": device.id() }))
        .await;
    let asked = event(&mut host, "node.invoke.request").await;
    assert_eq!(asked["payload"]["command"], "system.execApprovals.get");
    assert_eq!(asked["payload"]["paramsJSON"], "{}");
    assert!(asked["payload"].get("idempotencyKey").is_none(), "{asked}");
    let answer = |asked: &Value| {
        json!({
            "id": asked["payload"]["id"], "nodeId": device.id(), "ok": true, "payloadJSON": document.to_string(),
        })
    };
    host.get("node.invoke.result", answer(&asked)).await;
    assert_eq!(operator.answer(&id).await["payload"], document);
    let params = json!({ "nodeId": device.id(), "file": { "version": 1 }, "baseHash": "h" });
    let id = operator.ask("exec.approvals.node.set", params).await;
    let asked = event(&mut host, "node.invoke.request").await;
    assert_eq!(asked["payload"]["command"], "system.execApprovals.set");
    let sent: Value =
        serde_json::from_str(asked["payload"]["paramsJSON"].as_str().unwrap()).unwrap();
    assert_eq!(sent, json!({ "file": { "version": 1 }, "baseHash": "h" }));
    host.get("node.invoke.result", answer(&asked)).await;
    assert_eq!(operator.answer(&id).await["payload"], document);
    for command in ["system.execApprovals.get", "system.execApprovals.set"] {
        let params = json!({
            "nodeId": device.id(), "command": command, "params": {}, "idempotencyKey": key(),
        });
        let error = operator.refused("node.invoke", params).await;
        assert_eq!(
            error["details"]["code"], "NODE_COMMAND_NOT_ALLOWED",
            "{error}"
        );
    }
}

/// The bug: intent, question and outcome were the connection's, and who hung up left an act without its outcome.
#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_leaves_the_outcome_of_what_the_node_did_in_the_log() {
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    approve(&mut operator, &mut host, &device).await;
    let mut leaves = admin(&gateway).await;
    leaves.ask("node.invoke", which(&device, 15_000)).await;
    let asked = event(&mut host, "node.invoke.request").await["payload"].clone();
    drop(leaves);
    let cancel = event(&mut host, "node.invoke.cancel").await;
    assert_eq!(cancel["payload"]["invokeId"], asked["id"]);
    let query = json!({ "action": "nodes.invoke", "limit": 1 });
    for _ in 0..400 {
        let found = operator.get("audit.query", query.clone()).await;
        if found.to_string().contains("RUN_CANCELLED") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("{}", operator.get("audit.query", query).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_says_before_its_answer_reaches_who_asked_in_order_and_nobody_else() {
    let gateway = Gateway::start();
    let (mut operator, mut other) = (admin(&gateway).await, admin(&gateway).await);
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    approve(&mut operator, &mut host, &device).await;
    let question = which(&device, 30_000);
    let frame = operator.ask("node.invoke", question.clone()).await;
    let asked = event(&mut host, "node.invoke.request").await["payload"]["id"].clone();
    let piece = |id: &Value, seq: u64, chunk: &str| json!({ "invokeId": id, "nodeId": device.id(), "seq": seq, "chunk": chunk });
    let (taken, late) = (
        json!({ "ok": true }),
        json!({ "ok": true, "ignored": true }),
    );
    for (seq, chunk, answer) in [
        (0, "one\n", &taken),
        (0, "again", &late),
        (1, "two", &taken),
    ] {
        let said = host
            .get("node.invoke.progress", piece(&asked, seq, chunk))
            .await;
        assert_eq!(&said, answer);
    }
    let long = "x".repeat(16_385);
    host.refused("node.invoke.progress", piece(&asked, 2, &long))
        .await;
    let never = json!("never-asked");
    assert_eq!(
        host.get("node.invoke.progress", piece(&never, 0, "x"))
            .await,
        late
    );
    for (seq, chunk) in [(0, "one\n"), (1, "two")] {
        let told = event(&mut operator, "node.invoke.progress").await;
        assert_eq!(
            told["payload"],
            json!({ "idempotencyKey": question["idempotencyKey"], "nodeId": device.id(), "command": "system.which", "seq": seq, "chunk": chunk })
        );
    }
    // A caller that reads nothing costs the others nothing: what does not fit is dropped.
    for seq in 2..60 {
        host.get(
            "node.invoke.progress",
            piece(&asked, seq, &"y".repeat(16_000)),
        )
        .await;
    }
    let result = json!({ "id": asked, "nodeId": device.id(), "ok": true, "payloadJSON": "{}" });
    host.get("node.invoke.result", result).await;
    let answer = operator.answer(&frame).await;
    assert_eq!(answer["payload"]["ok"], true, "{answer}");
    assert_eq!(
        host.get("node.invoke.progress", piece(&asked, 99, "late"))
            .await,
        late
    );
    // Nobody else heard of it: the next frame of the other is its own answer.
    let frame = other.ask("health", json!({})).await;
    loop {
        let came = other.frame().await;
        assert_ne!(came["event"], "node.invoke.progress", "{came}");
        if came["id"] == frame.as_str() {
            break;
        }
    }
}

/// However early somebody hangs up, the node was asked where the log says so and nowhere else, and no act stays open.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_of_each_question_whether_the_node_was_asked() {
    const ROUNDS: usize = 40;
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    approve(&mut operator, &mut host, &device).await;
    for _ in 0..ROUNDS {
        let mut leaves = admin(&gateway).await;
        leaves.ask("node.invoke", which(&device, 15_000)).await;
        let wait = u64::from(crate::support::ws::random::<1>()[0]) * 20;
        tokio::time::sleep(std::time::Duration::from_micros(wait)).await;
        drop(leaves);
    }
    let query = json!({ "action": "nodes.invoke", "limit": 1_000 });
    let mut outcomes = vec![];
    for _ in 0..400 {
        let found = operator.get("audit.query", query.clone()).await;
        let records = found["records"].as_array().unwrap();
        outcomes = records.iter().map(|r| r["outcome"].clone()).collect();
        if !outcomes.iter().any(Value::is_null) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    assert!(!outcomes.iter().any(Value::is_null), "{outcomes:?}");
    let asked_by_log = outcomes
        .iter()
        .filter(|outcome| !outcome.to_string().contains("refused"))
        .count();
    // Its own request comes after all that it was asked.
    let stats = json!({ "event": "node.host.stats", "payloadJSON": "{}" });
    let id = host.ask("node.event", stats).await;
    let mut asked = 0;
    loop {
        let frame = host.frame().await;
        asked += usize::from(frame["event"] == "node.invoke.request");
        if frame["id"] == id.as_str() {
            break;
        }
    }
    assert_eq!(asked, asked_by_log, "{outcomes:?}");
}

/// The bug: a signed request counted as silent until it was answered, and newcomers closed its socket in the middle of its
/// act.
#[tokio::test(flavor = "multi_thread")]
async fn a_signed_request_makes_room_for_nobody_while_it_is_done() {
    use std::io::{Read as _, Write as _};
    let limit = ("gateway.limits.unauthenticated_per_address", "2");
    let gateway = Gateway::with(&[limit]);
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    approve(&mut operator, &mut host, &device).await;
    let signer = Signer::new(&gateway, &["operator.admin"]).await;
    let body = json!({ "nodeId": device.id() }).to_string();
    let sent = signer.now(&gateway, "exec.approvals.node.get", &body);
    let mut socket = gateway.socket();
    socket.write_all(sent.text().as_bytes()).unwrap();
    // Its act waits for the node.
    let asked = event(&mut host, "node.invoke.request").await;
    let _newcomers: Vec<_> = (0..8).map(|_| gateway.socket()).collect();
    // Answered, so all before it are in.
    let probe = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert!(gateway.http(probe).starts_with("HTTP/1.1 200"));
    let answer = json!({
        "id": asked["payload"]["id"], "nodeId": device.id(), "ok": true, "payloadJSON": "{}",
    });
    host.get("node.invoke.result", answer).await;
    let mut answer = String::new();
    let read = socket.read_to_string(&mut answer);
    let (status, answer) = Sent::read(&answer);
    assert_eq!(status, 200, "{read:?} {answer}");
}

/// The bug: a text of JSON that a node answered was passed on unread: of any depth, with a key twice, with numbers that no two
/// readers read alike.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_answers_as_text_obeys_the_rules_of_a_frame() {
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut host = node(&gateway, &device, DECLARED).await;
    approve(&mut operator, &mut host, &device).await;
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for (text, why) in [
        (r#"{"a":1,"a":2}"#.to_owned(), "stands twice"),
        (r#"{"a":[{"b":1,"b":1}]}"#.to_owned(), "stands twice"),
        (r#"{"a":1e999}"#.to_owned(), "finite"),
        ("9007199254740993".to_owned(), "finite"),
        ("no JSON".to_owned(), "passed on"),
        (deep(33), "too deeply"),
        (deep(100_000), "passed on"),
        (deep(32), ""),
    ] {
        let id = operator.ask("node.invoke", which(&device, 15_000)).await;
        let asked = event(&mut host, "node.invoke.request").await;
        let result = json!({
            "id": asked["payload"]["id"], "nodeId": device.id(), "ok": true, "payloadJSON": text,
        });
        host.get("node.invoke.result", result).await;
        let answer = operator.answer(&id).await;
        if why.is_empty() {
            assert_eq!(answer["payload"]["payloadJSON"], text, "{answer}");
            continue;
        }
        let details = &answer["error"]["details"];
        assert_eq!(details["code"], "NODE_ERROR", "{answer}");
        assert_eq!(details["nodeError"]["code"], "ANSWER_INVALID", "{answer}");
        let said = details["nodeError"]["message"].as_str().unwrap();
        assert!(said.contains(why) && said.len() < 300, "{said}");
    }
}

/// A refusal before the node was asked uses the key up no more: the retry that the answer asks for is a new try.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_question_never_reached_the_node_is_free_again() {
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut host = node(&gateway, &device, &["system.notify"]).await;
    approve(&mut operator, &mut host, &device).await;
    drop(host);
    let ask = json!({
        "nodeId": device.id(), "command": "system.notify", "idempotencyKey": "k", "params": { "title": "t" },
    });
    // Before the gateway has seen its end, a question would count as one that may have reached it.
    connected(&mut operator, &device, false).await;
    let refused = operator.call("node.invoke", ask.clone()).await;
    assert_eq!(
        refused["error"]["details"]["code"], "NOT_CONNECTED",
        "{refused}"
    );
    assert_eq!(refused["error"]["code"], "UNAVAILABLE", "{refused}");
    let mut host = node(&gateway, &device, &["system.notify"]).await;
    connected(&mut operator, &device, true).await;
    let question = operator.ask("node.invoke", ask.clone()).await;
    let asked = event(&mut host, "node.invoke.request").await;
    let answer = json!({ "id": asked["payload"]["id"], "nodeId": device.id(), "ok": true });
    host.get("node.invoke.result", answer).await;
    assert_eq!(operator.answer(&question).await["ok"], true);
    // What was asked is not asked again.
    let again = operator.call("node.invoke", ask).await;
    assert_eq!(again["ok"], true, "{again}");
    let acts = operator
        .get(
            "audit.query",
            json!({ "action": "nodes.invoke", "outcome": "ok" }),
        )
        .await;
    assert_eq!(acts["records"].as_array().unwrap().len(), 1, "{acts}");
}

/// wire.md 3: a request with the same key is done once; who lost the answer gets it again, for five minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_asked_once_under_one_key_and_who_asks_again_hears_the_same_answer() {
    let gateway = Gateway::start();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut host = node(&gateway, &device, &["system.notify"]).await;
    approve(&mut operator, &mut host, &device).await;
    let ask = |key: &str, title: &str| {
        json!({
            "nodeId": device.id(), "command": "system.notify", "idempotencyKey": key,
            "params": { "title": title },
        })
    };
    let first = operator.ask("node.invoke", ask("once", "a")).await;
    let asked = event(&mut host, "node.invoke.request").await;
    // Under way still: it is not asked twice.
    let mut other = admin(&gateway).await;
    let again = other.call("node.invoke", ask("once", "a")).await;
    assert_eq!(
        again["error"]["details"]["code"], "NODE_REPEATED",
        "{again}"
    );
    let answer = json!({
        "id": asked["payload"]["id"], "nodeId": device.id(), "ok": true, "payloadJSON": "{\"shown\":1}",
    });
    host.get("node.invoke.result", answer).await;
    let said = operator.answer(&first).await;
    assert_eq!(said["payload"]["payload"]["shown"], 1, "{said}");
    // Its answer was lost on the way: the same one comes again, on another connection too.
    let again = other.call("node.invoke", ask("once", "a")).await;
    assert_eq!(again["payload"], said["payload"], "{again}");
    // Another question is not answered by it.
    let again = other.call("node.invoke", ask("once", "b")).await;
    assert_eq!(
        again["error"]["details"]["code"], "NODE_REPEATED",
        "{again}"
    );
    // In all, the node was asked once; a new key asks it again.
    let second = operator.ask("node.invoke", ask("twice", "c")).await;
    let asked = event(&mut host, "node.invoke.request").await;
    assert!(
        asked["payload"]["paramsJSON"]
            .as_str()
            .unwrap()
            .contains('c'),
        "{asked}"
    );
    let answer = json!({ "id": asked["payload"]["id"], "nodeId": device.id(), "ok": true });
    host.get("node.invoke.result", answer).await;
    assert_eq!(operator.answer(&second).await["ok"], true);
    let acts = operator
        .get("audit.query", json!({ "action": "nodes.invoke" }))
        .await;
    assert_eq!(acts["records"].as_array().unwrap().len(), 2, "{acts}");
}
