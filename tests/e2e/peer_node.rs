//! The peer's own node host, `openclaw node run` from npm, unmodified, at the real gateway.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::npm::Npm;
use crate::support::ws::{Client, admin};

/// For a program that takes seconds to load, on a machine that builds something else.
const PATIENCE: Duration = Duration::from_mins(4);

/// It, until it is dropped.
struct Host(Child);

impl Host {
    fn start(npm: &Npm, gateway: &Gateway) -> Self {
        let port = gateway.port().to_string();
        let at = ["--host", "127.0.0.1", "--port", &port];
        Self::with(npm, gateway, &at, Some(TOKEN))
    }

    fn with(npm: &Npm, gateway: &Gateway, words: &[&str], token: Option<&str>) -> Self {
        let words = [&["node", "run", "--display-name", "peer"], words].concat();
        let mut command = npm.openclaw(gateway, &words);
        command
            .envs(token.map(|token| ("OPENCLAW_GATEWAY_TOKEN", token)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The one node in this state.
async fn listed(operator: &mut Client, is: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut list = operator.get("node.list", json!({})).await;
        if let Some(node) = list["nodes"].as_array().unwrap().first()
            && is(node)
        {
            return list["nodes"][0].take();
        }
        assert!(Instant::now() < end, "never: {list}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn invoke(node: &Value, command: &str, params: &Value, key: &str) -> Value {
    json!({
        "nodeId": node, "command": command, "params": params, "idempotencyKey": key, "timeoutMs": 60_000,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unmodified_node_host_connects_is_approved_and_runs_what_a_person_allowed() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::start();
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let _host = Host::start(&npm, &gateway);
    let node = listed(&mut asks, |node| {
        node["approvalState"] == "pending-approval"
    })
    .await;
    assert_eq!(node["displayName"], "peer", "{node}");
    assert_eq!(node["clientId"], "node-host");
    assert_eq!(
        node["commands"],
        json!([]),
        "nothing before a person approved"
    );
    let id = node["nodeId"].clone();
    let devices = asks.get("device.pair.list", json!({})).await;
    assert_eq!(devices["paired"][0]["deviceId"], id, "{devices}");
    let pending = decides.get("node.pair.list", json!({})).await;
    let request = &pending["pending"][0];
    assert_eq!(
        request["requiredApproveScopes"],
        json!(["operator.pairing", "operator.admin"])
    );
    decides
        .get(
            "node.pair.approve",
            json!({ "requestId": request["requestId"] }),
        )
        .await;
    // Its machine's numbers come by themselves.
    let node = listed(&mut asks, |node| {
        node["approvalState"] == "approved" && node["hostStats"]["cpuCount"].is_u64()
    })
    .await;
    assert_eq!(
        node["commands"],
        json!([
            "system.execApprovals.get",
            "system.execApprovals.set",
            "system.run",
            "system.run.prepare",
            "system.which"
        ]),
        "files, browser and the like were left out"
    );

    let bins = json!({ "bins": ["sh", "no-such-program"] });
    let found = asks
        .get("node.invoke", invoke(&id, "system.which", &bins, "k1"))
        .await;
    assert!(
        found["payload"]["bins"]["sh"]
            .as_str()
            .unwrap()
            .ends_with("/sh"),
        "{found}"
    );
    assert!(found["payload"]["bins"].get("no-such-program").is_none());

    // Its own approvals document, read and made strict through the gateway.
    let document = asks
        .get("exec.approvals.node.get", json!({ "nodeId": id }))
        .await;
    let hash = &document["hash"];
    assert_eq!(hash.as_str().unwrap().len(), 64, "{document}");
    let strict = json!({ "security": "allowlist", "ask": "on-miss", "askFallback": "deny" });
    let set =
        json!({ "nodeId": id, "file": { "version": 1, "defaults": strict }, "baseHash": hash });
    let after = asks.get("exec.approvals.node.set", set.clone()).await;
    assert_eq!(
        after["file"]["defaults"]["security"], "allowlist",
        "{after}"
    );
    let stale = asks.refused("exec.approvals.node.set", set).await;
    assert_eq!(stale["details"]["code"], "NODE_ERROR", "{stale}");

    // What it would run, asked about, decided by another, and run.
    let home = gateway.home().join("peer");
    let cwd = home.canonicalize().unwrap();
    let params = json!({ "command": ["/bin/echo", "hi"], "cwd": cwd, "agentId": "demo" });
    let prepared = asks
        .get(
            "node.invoke",
            invoke(&id, "system.run.prepare", &params, "k2"),
        )
        .await;
    let plan = &prepared["payload"]["plan"];
    assert!(
        plan["argv"][0].as_str().unwrap().ends_with("/echo"),
        "{prepared}"
    );
    let question = json!({
        "id": "a1", "commandArgv": plan["argv"], "systemRunPlan": plan, "cwd": plan["cwd"], "nodeId": id, "host": "node",
        "agentId": "demo", "twoPhase": true,
    });
    let frame = asks.ask("exec.approval.request", question).await;
    let first = asks.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "accepted", "{first}");
    let mut run = json!({
        "command": plan["argv"], "rawCommand": plan["commandText"], "cwd": plan["cwd"], "agentId": "demo",
        "runId": "a1", "approved": true, "approvalDecision": "allow-once",
    });
    let early = asks
        .refused("node.invoke", invoke(&id, "system.run", &run, "k3"))
        .await;
    assert_eq!(early["details"]["code"], "UNKNOWN_APPROVAL_ID");
    decides
        .get(
            "exec.approval.resolve",
            json!({ "id": "a1", "decision": "allow-once" }),
        )
        .await;
    asks.answer(&frame).await;
    let right = run["command"].clone();
    run["command"] = json!([right[0], "ho"]);
    run["rawCommand"].take();
    let other = asks
        .refused("node.invoke", invoke(&id, "system.run", &run, "k4"))
        .await;
    assert_eq!(
        other["details"]["code"], "APPROVAL_REQUEST_MISMATCH",
        "{other}"
    );
    run["command"] = right;
    let ran = asks
        .get("node.invoke", invoke(&id, "system.run", &run, "k5"))
        .await;
    assert_eq!(ran["payload"]["stdout"], "hi\n", "{ran}");
    assert_eq!(ran["payload"]["exitCode"], 0);
    let again = asks
        .refused("node.invoke", invoke(&id, "system.run", &run, "k6"))
        .await;
    assert_eq!(again["details"]["code"], "APPROVAL_REQUIRED");

    // The same by `exec.run`, asked and run in one.
    let params = json!({
        "agent": "demo", "argv": ["/bin/sh", "-c", "exit 3"], "cwd": cwd, "target": format!("node:{}", id.as_str().unwrap()),
        "idempotencyKey": "k7",
    });
    let frame = asks.ask("exec.run", params).await;
    let first = asks.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "approval-pending", "{first}");
    let approval = &first["payload"]["approvalId"];
    decides
        .get(
            "exec.approval.resolve",
            json!({ "id": approval, "decision": "allow-once" }),
        )
        .await;
    let last = asks.answer(&frame).await;
    assert_eq!(last["payload"]["status"], "exited", "{last}");
    assert_eq!(last["payload"]["exitCode"], 3, "{last}");
}

/// It has nothing but the code: no token, and nobody is trusted for being on this machine.
#[tokio::test(flavor = "multi_thread")]
async fn our_setup_code_pairs_the_unmodified_node_host_which_comes_back_by_a_token_of_its_own() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::with(&[("gateway.local.local_trust", "false")]);
    let made = gateway.json(&["devices", "setup-code", "--role", "node"]);
    let code = made["setupCode"].as_str().unwrap();
    let mut operator = admin(&gateway).await;
    let host = Host::with(&npm, &gateway, &["--pair", code], None);
    let waits = |node: &Value| node["approvalState"] == "pending-approval";
    let id = listed(&mut operator, waits).await["nodeId"].clone();
    let setup = json!({ "setupId": made["setupId"] });
    let status = operator.get("device.pair.setupStatus", setup).await;
    assert_eq!(status["completion"]["deviceId"], id, "{status}");
    let devices = operator.get("device.pair.list", json!({})).await;
    assert_eq!(devices["pending"], json!([]), "nobody was asked: {devices}");
    let paired = &devices["paired"][0];
    assert_eq!(
        (&paired["deviceId"], &paired["approvedVia"]),
        (&id, &json!("bootstrap")),
        "{paired}"
    );
    // What it may be asked is a person's word all the same.
    let pending = operator.get("node.pair.list", json!({})).await;
    let request = json!({ "requestId": pending["pending"][0]["requestId"] });
    operator.get("node.pair.approve", request).await;
    let bins = json!({ "bins": ["sh"] });
    let which = |key| invoke(&id, "system.which", &bins, key);
    let found = operator.get("node.invoke", which("k1")).await;
    assert!(found["payload"]["bins"]["sh"].is_string(), "{found}");

    drop(host);
    listed(&mut operator, |node| node["connected"] == false).await;
    let port = gateway.port().to_string();
    let at = ["--host", "127.0.0.1", "--port", &port];
    let _host = Host::with(&npm, &gateway, &at, None);
    listed(&mut operator, |node| node["connected"] == true).await;
    let found = operator.get("node.invoke", which("k2")).await;
    assert!(found["payload"]["bins"]["sh"].is_string(), "{found}");
}
