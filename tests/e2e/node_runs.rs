//! Commands on nodes: what a person approved runs there, once, word for word, and nothing else does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::nodes::{approve, node};
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Device, admin, by_token};

const COMMANDS: &[&str] = &["system.run", "system.run.prepare", "system.which"];

/// A node host that says what it would run, and "runs" what it is sent. `file`: which program it claims to have.
struct Host {
    device: Device,
    file: Arc<AtomicU8>,
    /// Params of each `system.run`.
    ran: mpsc::UnboundedReceiver<Value>,
}

impl Host {
    async fn start(gateway: &Gateway, operator: &mut Client, commands: &[&str]) -> Self {
        let device = Device::new();
        let mut client = node(gateway, &device, commands).await;
        approve(operator, &mut client, &device).await;
        let file = Arc::new(AtomicU8::new(1));
        let (tx, ran) = mpsc::unbounded_channel();
        let (id, claims) = (device.id(), file.clone());
        tokio::spawn(async move {
            loop {
                let frame = client.frame().await;
                if frame["event"] != "node.invoke.request" {
                    continue;
                }
                let asked = &frame["payload"];
                let params: Value =
                    serde_json::from_str(asked["paramsJSON"].as_str().unwrap()).unwrap();
                let payload = match asked["command"].as_str().unwrap() {
                    "system.run.prepare" => plan(&params, claims.load(Ordering::SeqCst)),
                    "system.run" => {
                        let _ = tx.send(params);
                        json!({
                            "exitCode": 0, "timedOut": false, "success": true, "stdout": "hi\n", "stderr": "",
                            "error": null,
                        })
                    }
                    other => panic!("{other}"),
                };
                let result = json!({
                    "id": asked["id"], "nodeId": id, "ok": true, "payloadJSON": payload.to_string(),
                });
                client.ask("node.invoke.result", result).await;
            }
        });
        Self { device, file, ran }
    }

    fn target(&self) -> String {
        format!("node:{}", self.device.id())
    }
}

/// What the node would run: the name as a path, and what it says its file is.
fn plan(params: &Value, file: u8) -> Value {
    let mut argv = params["command"].clone();
    let name = argv[0].as_str().unwrap();
    let path = format!("/usr/bin/{}", name.rsplit('/').next().unwrap());
    argv[0] = path.as_str().into();
    let text: Vec<&str> = argv
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a.as_str().unwrap())
        .collect();
    json!({
        "plan": {
            "argv": argv, "cwd": params["cwd"].as_str().unwrap_or("/home/user"), "commandText": text.join(" "),
            "commandPreview": null, "agentId": params["agentId"], "sessionKey": null,
            "mutableFileOperand": { "argvIndex": 0, "path": path, "sha256": format!("{file:02x}").repeat(32) },
            "policySnapshot": { "security": "allowlist", "ask": "on-miss" },
        },
        "execPolicy": { "security": "allowlist", "ask": "on-miss" },
        "allowAlwaysCoverage": { "complete": true, "patterns": [] },
    })
}

fn question(host: &Host, id: &str) -> Value {
    let plan = plan(
        &json!({ "command": ["/usr/bin/echo", "hi"], "agentId": "demo" }),
        1,
    );
    json!({
        "id": id, "command": "something else", "commandArgv": ["/usr/bin/echo", "hi"], "systemRunPlan": plan["plan"],
        "cwd": "/home/user", "nodeId": host.device.id(), "host": "node", "agentId": "demo", "twoPhase": true,
    })
}

fn run(host: &Host, id: &str) -> Value {
    json!({
        "nodeId": host.device.id(), "command": "system.run", "idempotencyKey": format!("k-{id}"),
        "params": {
            "command": ["/usr/bin/echo", "hi"], "rawCommand": "/usr/bin/echo hi", "cwd": "/home/user", "agentId": "demo",
            "runId": id, "approved": true, "approvalDecision": "allow-once",
        },
    })
}

/// A question under this id, answered so by somebody else.
async fn answered(host: &Host, asks: &mut Client, decides: &mut Client, id: &str, word: &str) {
    let frame = asks.ask("exec.approval.request", question(host, id)).await;
    let first = asks.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "accepted", "{first}");
    decides
        .get(
            "exec.approval.resolve",
            json!({ "id": id, "decision": word }),
        )
        .await;
    let last = asks.answer(&frame).await;
    assert_eq!(last["payload"]["decision"], word, "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_command_runs_on_its_node_once_and_its_approval_is_the_gateways_word() {
    let gateway = Gateway::start();
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let mut host = Host::start(&gateway, &mut decides, COMMANDS).await;
    // Nobody asked for it: the caller's own word is nothing.
    let error = asks.refused("node.invoke", run(&host, "a1")).await;
    assert_eq!(
        (
            &error["code"],
            &error["message"],
            &error["details"]["code"],
            &error["details"]["runId"]
        ),
        (
            &json!("INVALID_REQUEST"),
            &json!("unknown or expired approval id"),
            &json!("UNKNOWN_APPROVAL_ID"),
            &json!("a1")
        )
    );
    let frame = asks
        .ask("exec.approval.request", question(&host, "a1"))
        .await;
    asks.answer(&frame).await;
    let list = decides.get("exec.approval.list", json!({})).await;
    let request = &list[0]["request"];
    assert_eq!(request["host"], "node", "{list}");
    assert_eq!(request["nodeId"], host.device.id());
    assert_eq!(request["commandArgv"], json!(["/usr/bin/echo", "hi"]));
    assert_eq!(request["executable"]["claimedSha256"], "01".repeat(32));
    assert_eq!(request["allowedDecisions"], json!(["allow-once", "deny"]));
    assert!(!list.to_string().contains("something else"), "{list}");
    // Before the answer.
    let error = asks.refused("node.invoke", run(&host, "a1")).await;
    assert_eq!(error["details"]["code"], "UNKNOWN_APPROVAL_ID");
    decides
        .get(
            "exec.approval.resolve",
            json!({ "id": "a1", "decision": "allow-once" }),
        )
        .await;
    asks.answer(&frame).await;
    // By the beginning of its id, and by who did not ask.
    let error = asks.refused("node.invoke", run(&host, "a")).await;
    assert_eq!(error["details"]["code"], "UNKNOWN_APPROVAL_ID");
    let error = decides.refused("node.invoke", run(&host, "a1")).await;
    assert_eq!(error["details"]["code"], "APPROVAL_CLIENT_MISMATCH");
    let answer = asks.get("node.invoke", run(&host, "a1")).await;
    assert_eq!(answer["payload"]["stdout"], "hi\n", "{answer}");
    assert_eq!(answer["payload"]["exitCode"], 0);
    assert_eq!(answer["payload"]["success"], true);
    let sent = host.ran.recv().await.unwrap();
    assert_eq!(sent["approved"], true);
    assert_eq!(sent["approvalDecision"], "allow-once");
    assert_eq!(sent["runId"], "a1");
    assert_eq!(sent["command"], json!(["/usr/bin/echo", "hi"]));
    assert_eq!(sent["systemRunPlan"]["argv"], sent["command"]);
    assert_eq!(
        sent["systemRunPlan"]["policySnapshot"]["security"],
        "allowlist"
    );
    let error = asks.refused("node.invoke", run(&host, "a1")).await;
    assert_eq!(
        (&error["message"], &error["details"]["code"]),
        (&json!("approval required"), &json!("APPROVAL_REQUIRED"))
    );
    assert!(host.ran.try_recv().is_err(), "nothing ran twice");
    // Intent before, outcome after, both under the plan's hash.
    let records = asks
        .get("audit.query", json!({ "action": "exec.run" }))
        .await;
    let text = records.to_string();
    assert!(
        text.contains(&host.target()) && text.contains("exit_code"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_from_the_approved_plan_is_refused_and_nothing_runs_in_its_place() {
    let gateway = Gateway::start();
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let mut host = Host::start(&gateway, &mut decides, COMMANDS).await;
    answered(&host, &mut asks, &mut decides, "a1", "allow-once").await;
    for (key, value) in [
        ("command", json!(["/usr/bin/echo", "ho"])),
        ("command", json!(["/usr/bin/echo", "hi", "x"])),
        ("rawCommand", json!("/usr/bin/rm hi")),
        ("cwd", json!("/tmp")),
        ("agentId", json!("other")),
        ("env", json!({ "A": "b" })),
        ("timeoutMs", json!(5)),
        ("systemRunPlan", json!({ "argv": ["/usr/bin/echo", "ho"] })),
    ] {
        let mut params = run(&host, "a1");
        params["params"][key] = value;
        let error = asks.refused("node.invoke", params).await;
        assert_eq!(
            (&error["code"], &error["details"]["code"]),
            (
                &json!("INVALID_REQUEST"),
                &json!("APPROVAL_REQUEST_MISMATCH")
            ),
            "{key}: {error}"
        );
    }
    let mut params = run(&host, "a1");
    params["params"]["runId"].take();
    let error = asks.refused("node.invoke", params).await;
    assert_eq!(error["details"]["code"], "MISSING_RUN_ID");
    for key in ["approved", "approvalDecision"] {
        let mut params = run(&host, "a1");
        for key in ["approved", "approvalDecision"] {
            params["params"][key].take();
        }
        params["params"][key] = json!(false);
        let error = asks.refused("node.invoke", params).await;
        assert_eq!(error["details"]["code"], "APPROVAL_REQUIRED");
    }
    let other = Host::start(&gateway, &mut decides, COMMANDS).await;
    let error = asks.refused("node.invoke", run(&other, "a1")).await;
    assert_eq!(error["details"]["code"], "APPROVAL_NODE_MISMATCH");
    // A person's no.
    answered(&host, &mut asks, &mut decides, "b1", "deny").await;
    let error = asks.refused("node.invoke", run(&host, "b1")).await;
    assert_eq!(error["details"]["code"], "APPROVAL_REQUIRED");
    // The node's program is another one by now.
    host.file.store(2, Ordering::SeqCst);
    let error = asks.refused("node.invoke", run(&host, "a1")).await;
    assert_eq!(error["details"]["code"], "PLAN_CHANGED", "{error}");
    assert!(host.ran.try_recv().is_err(), "nothing ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_on_a_node_needs_the_scopes_of_a_run_and_its_agents_word_for_nodes() {
    let gateway = Gateway::start();
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let host = Host::start(&gateway, &mut decides, COMMANDS).await;
    let mut writer = by_token(&gateway, &["operator.write"]).await;
    let error = writer.refused("node.invoke", run(&host, "a1")).await;
    assert_eq!(
        error["details"]["missingScope"], "operator.act_as",
        "{error}"
    );
    // Of this agent nobody has said that it may go to nodes.
    let mut params = question(&host, "a1");
    params["agentId"] = "other".into();
    let error = asks.refused("exec.approval.request", params).await;
    assert_eq!(error["details"]["code"], "NODES_DISABLED", "{error}");
    let params = json!({
        "agent": "other", "argv": ["echo", "hi"], "target": host.target(), "idempotencyKey": "k",
    });
    let error = asks.refused("exec.run", params).await;
    assert_eq!(error["details"]["code"], "NODES_DISABLED", "{error}");
    let fix = &error["details"]["fix"];
    assert_eq!(fix, "[agents.other]\nnodes = \"ask\"", "{error}");
}

/// One node is closed, whoever asks; the other is not. And elevated mode is not about either.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_closed_by_the_gateways_configuration_whoever_asks_and_elevated_mode_opens_none()
{
    let mut gateway = Gateway::with(&[
        ("agents.elevated.elevated", "ask"),
        ("agents.only.nodes", "ask"),
    ]);
    let mut decides = admin(&gateway).await;
    let closed = Host::start(&gateway, &mut decides, COMMANDS).await;
    let mut asks = admin(&gateway).await;
    let ask = |agent: &str, target: String, key: &str| json!({ "agent": agent, "argv": ["echo", "hi"], "target": target, "idempotencyKey": key });
    let error = asks
        .refused("exec.run", ask("elevated", closed.target(), "k1"))
        .await;
    assert_eq!(error["details"]["code"], "NODES_DISABLED", "{error}");
    let frame = asks
        .ask("exec.run", ask("only", closed.target(), "k2"))
        .await;
    let first = asks.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "approval-pending", "{first}");
    let error = asks
        .refused("exec.run", ask("only", "host".to_owned(), "k3"))
        .await;
    assert_eq!(error["details"]["code"], "ELEVATED_DISABLED", "{error}");
    let key = format!("nodes.exec.{}", closed.device.id());
    drop((asks, decides, closed));
    assert_eq!(gateway.stop(), 0);
    gateway.set(&key, "deny");
    gateway.launch();
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let open = Host::start(&gateway, &mut decides, COMMANDS).await;
    let at = format!("node:{}", key.trim_start_matches("nodes.exec."));
    let error = asks.refused("exec.run", ask("only", at, "k4")).await;
    assert_eq!(error["details"]["code"], "POLICY_DENIED", "{error}");
    let frame = asks.ask("exec.run", ask("only", open.target(), "k5")).await;
    let first = asks.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "approval-pending", "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_a_node_as_its_target_is_asked_about_and_streams_what_the_node_gives_back() {
    let gateway = Gateway::start();
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let mut host = Host::start(&gateway, &mut decides, COMMANDS).await;
    let params = json!({
        "agent": "demo", "argv": ["echo", "hi"], "target": host.target(), "idempotencyKey": "k1",
    });
    let frame = asks.ask("exec.run", params).await;
    let first = asks.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "approval-pending", "{first}");
    let id = first["payload"]["approvalId"].clone();
    decides
        .get(
            "exec.approval.resolve",
            json!({ "id": id, "decision": "allow-once" }),
        )
        .await;
    let output = super::nodes::event(&mut asks, "exec.output").await;
    assert_eq!(output["payload"]["data"], "aGkK");
    let last = asks.answer(&frame).await;
    assert_eq!(last["payload"]["status"], "exited", "{last}");
    assert_eq!(last["payload"]["exitCode"], 0);
    assert_eq!(last["payload"]["provenance"]["node"], host.device.id());
    assert_eq!(
        host.ran.recv().await.unwrap()["command"][0],
        "/usr/bin/echo"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_say_what_it_would_run_runs_nothing() {
    let gateway = Gateway::start();
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let mut host = Host::start(&gateway, &mut decides, &["system.run"]).await;
    let error = asks
        .refused("exec.approval.request", question(&host, "a1"))
        .await;
    assert_eq!(
        error["details"]["code"], "APPROVAL_PLAN_REQUIRED",
        "{error}"
    );
    let mut params = question(&host, "a1");
    params["systemRunPlan"].take();
    let error = asks.refused("exec.approval.request", params).await;
    assert_eq!(
        error["details"]["code"], "APPROVAL_PLAN_REQUIRED",
        "{error}"
    );
    let mut params = question(&host, "a1");
    params["commandArgv"] = json!(["/usr/bin/echo", "ho"]);
    let error = asks.refused("exec.approval.request", params).await;
    assert_eq!(
        error["details"]["code"], "APPROVAL_REQUEST_MISMATCH",
        "{error}"
    );
    assert!(host.ran.try_recv().is_err(), "nothing ran");
}
