//! The peer's own node host, `openclaw node run` from npm, unmodified, at the real gateway.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::npm::{Host, Npm};
use crate::support::ws::{Client, admin};

/// For a program that takes seconds to load, on a machine that builds something else.
const PATIENCE: Duration = Duration::from_mins(4);

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

/// This, once it is there.
async fn until<T>(mut is: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = is() {
            return found;
        }
        assert!(Instant::now() < end, "never");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The process of a `sleep` that was started in this folder.
fn sleeper(folder: &Path) -> Option<PathBuf> {
    let all = std::fs::read_dir("/proc").unwrap();
    all.map(|entry| entry.unwrap().path()).find(|process| {
        let words = std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        words
            .split_once('\0')
            .is_some_and(|(program, rest)| program.ends_with("sleep") && rest == "600\0")
            && std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder)
    })
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
    let mut host = Host::start(&npm, &gateway);
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

    // One that is called back ends there too, long before its time is over.
    let params = json!({
        "agent": "demo", "argv": ["/bin/sleep", "600"], "cwd": cwd, "target": format!("node:{}", id.as_str().unwrap()),
        "idempotencyKey": "k8", "timeoutMs": 900_000,
    });
    let frame = asks.ask("exec.run", params).await;
    let first = asks.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "approval-pending", "{first}");
    let word = json!({ "id": first["payload"]["approvalId"], "decision": "allow-once" });
    decides.get("exec.approval.resolve", word).await;
    let process = until(|| sleeper(&cwd)).await;
    let which = json!({ "runId": first["payload"]["runId"] });
    let cancel = asks.ask("exec.cancel", which).await;
    let told = asks.answer(&cancel).await;
    assert_eq!(told["ok"], true, "{told}");
    let last = asks.answer(&frame).await;
    // The wire has no word by which a node says what had been done by then.
    assert_eq!(last["payload"]["status"], "unknown", "{last}");
    until(|| (!process.exists()).then_some(())).await;
    // Whatever it was told so far, it knew what to do with.
    let said = host.said();
    assert!(host.runs() && !said.contains("failed"), "{said}");
}

/// It has nothing but the code: no token, and nobody is trusted for being on this machine.
#[tokio::test(flavor = "multi_thread")]
async fn our_setup_code_pairs_the_unmodified_node_host_which_comes_back_by_a_token_of_its_own() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::with(&[("gateway.local.local_trust", "false")]);
    let made = gateway.json(&["devices", "setup-code", "--role", "node"]);
    let code = made["setupCode"].as_str().unwrap();
    let mut operator = admin(&gateway).await;
    let host = Host::spawn(&gateway, npm.node_run(&gateway, &["--pair", code], None));
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
    let _host = Host::spawn(&gateway, npm.node_run(&gateway, &at, None));
    listed(&mut operator, |node| node["connected"] == true).await;
    let found = operator.get("node.invoke", which("k2")).await;
    assert!(found["payload"]["bins"]["sh"].is_string(), "{found}");
}

/// Nobody is trusted for being on this machine: it asks, goes on asking, and comes in once a person said so.
#[tokio::test(flavor = "multi_thread")]
async fn the_unmodified_node_host_goes_on_asking_until_a_person_approves_it() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::with(&[("gateway.local.local_trust", "false")]);
    let mut operator = admin(&gateway).await;
    let mut host = Host::start(&npm, &gateway);
    let mut asked = vec![];
    let end = Instant::now() + PATIENCE;
    // It is told twice, under one id, before anybody decides.
    while host
        .said()
        .matches("(1008): pairing required: device is not approved yet (requestId: ")
        .count()
        < 2
    {
        assert!(host.runs() && Instant::now() < end, "{}", host.said());
        let list = operator.get("device.pair.list", json!({})).await;
        asked = list["pending"].as_array().unwrap().clone();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(asked.len(), 1, "{asked:?}");
    let (id, request) = (&asked[0]["deviceId"], &asked[0]["requestId"]);
    assert_eq!(
        (&asked[0]["role"], &asked[0]["displayName"]),
        (&json!("node"), &json!("peer"))
    );
    assert!(host.said().contains(request.as_str().unwrap()));
    let nodes = operator.get("node.list", json!({})).await;
    assert_eq!(nodes["nodes"], json!([]), "a stranger is no node");
    operator
        .get("device.pair.approve", json!({ "requestId": request }))
        .await;
    // By itself: nobody starts it again.
    let node = listed(&mut operator, |node| node["connected"] == true).await;
    assert_eq!((&node["nodeId"], host.runs()), (id, true));
    assert_eq!(node["approvalState"], "pending-approval", "{node}");
    let pending = operator.get("node.pair.list", json!({})).await;
    let request = json!({ "requestId": pending["pending"][0]["requestId"] });
    operator.get("node.pair.approve", request).await;
    let bins = json!({ "bins": ["sh"] });
    let found = operator
        .get("node.invoke", invoke(id, "system.which", &bins, "k1"))
        .await;
    assert!(found["payload"]["bins"]["sh"].is_string(), "{found}");
}

/// Both programs of the peer: its command line rejects what its node host may do, then approves it and reads and writes
/// the document that the node host keeps.
#[tokio::test(flavor = "multi_thread")]
async fn the_unmodified_command_line_rejects_a_node_and_reads_and_sets_the_document_that_it_keeps()
{
    let Some(npm) = Npm::find() else { return };
    let scopes = ("gateway.auth.shared_token_scopes", r#"["operator.admin"]"#);
    let gateway = Gateway::with(&[scopes]);
    let run = |words: &[&str]| npm.json(&gateway, words);
    let fails = |words: &[&str], says: &str| {
        let output = npm.run(&gateway, words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(says),
            "{words:?}: {output:?}"
        );
    };
    let waits = |node: &Value| node["approvalState"] == "pending-approval";

    let host = Host::start(&npm, &gateway);
    let node = listed(&mut admin(&gateway).await, waits).await;
    let (id, request) = (&node["nodeId"], node["pendingRequestId"].as_str().unwrap());
    let get = ["approvals", "get", "--node", "peer"];
    fails(&get, "node command not allowed");
    let rejected = run(&["nodes", "reject", request]);
    assert_eq!(
        rejected,
        json!({ "nodeId": id, "requestId": request }),
        "{rejected}"
    );
    fails(
        &["nodes", "reject", request],
        &format!("Unknown node pairing requestId: {request}"),
    );
    assert_eq!(run(&["nodes", "pending"]), json!([]));
    // It stays, as a node that may be asked nothing.
    let node = listed(&mut admin(&gateway).await, |node| {
        node["approvalState"] == "unapproved"
    })
    .await;
    assert_eq!(
        (&node["connected"], &node["commands"]),
        (&json!(true), &json!([]))
    );
    fails(&get, "node command not allowed");
    drop(host);

    // The next time it asks anew.
    let _host = Host::start(&npm, &gateway);
    let node = listed(&mut admin(&gateway).await, waits).await;
    let anew = node["pendingRequestId"].as_str().unwrap();
    assert_ne!(anew, request);
    run(&["nodes", "approve", anew]);

    let before = run(&get);
    assert_eq!(before["file"]["version"], 1, "{before}");
    assert_eq!(before["hash"].as_str().unwrap().len(), 64);
    let add = ["approvals", "allowlist", "add", "--node", "peer"];
    let entry = ["--agent", "demo", "/usr/bin/uptime"];
    let added = run(&[&add[..], &entry].concat());
    assert_ne!(added["hash"], before["hash"]);
    let list = |document: &Value| document["file"]["agents"]["demo"]["allowlist"].clone();
    assert_eq!(list(&added)[0]["pattern"], "/usr/bin/uptime", "{added}");
    // What the node host itself has now, by another way. (Its own answer to a change has another hash than its next.)
    // A client that waits for that program meanwhile answers no ping: each is a new one.
    let kept = admin(&gateway)
        .await
        .get("exec.approvals.node.get", json!({ "nodeId": id }))
        .await;
    assert_eq!(list(&kept), list(&added), "{kept}");
    let output = npm.run(&gateway, &[&add[..], &entry].concat());
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("Already allowlisted"),
        "{output:?}"
    );
    let mut remove = add;
    remove[2] = "remove";
    let removed = run(&[&remove[..], &entry].concat());
    assert_eq!(list(&removed), Value::Null, "{removed}");

    let strict = json!({ "version": 1, "defaults": { "security": "deny", "ask": "off" } });
    let file = gateway.home().join("strict.json");
    std::fs::write(&file, strict.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let set = run(&["approvals", "set", "--node", "peer", "--file", file]);
    assert_eq!(set["file"]["defaults"], strict["defaults"], "{set}");
    assert_eq!(run(&get)["hash"], set["hash"]);
    let output = npm.run(&gateway, &get);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("security=deny, ask=off"),
        "{output:?}"
    );
    // What it would run by from now on.
    let echo = json!({ "command": ["/bin/echo", "hi"], "agentId": "demo" });
    let prepare = invoke(id, "system.run.prepare", &echo, "k1");
    let prepared = admin(&gateway).await.get("node.invoke", prepare).await;
    assert_eq!(
        prepared["payload"]["execPolicy"]["security"], "deny",
        "{prepared}"
    );
}
