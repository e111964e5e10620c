//! Runs and questions as frames on a socket: two answers under one id, output to the one who asked, a decision from
//! another connection.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, admin};

/// As an operator who says that it can answer questions.
async fn approver(gateway: &Gateway) -> Client {
    let mut client = Client::control(&gateway.state()).await;
    let scopes = ["operator.admin", "operator.approvals"];
    let mut params = Connect::bare()
        .scopes(&scopes)
        .params(&client.nonce, client.ts);
    params["caps"] = json!(["exec-approvals"]);
    client.get("connect", params).await;
    client
}

fn run(target: &str, argv: &[&str]) -> Value {
    let key: String = crate::support::ws::hex(&crate::support::ws::random::<8>());
    json!({"agent": "demo", "target": target, "argv": argv, "idempotencyKey": key})
}

/// The next frame that is no tick.
async fn next(client: &mut Client) -> Value {
    loop {
        let frame = client.frame().await;
        if frame["event"] != "tick" {
            return frame;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_answered_twice_under_its_id_and_its_output_goes_to_its_own_socket_only() {
    let gateway = Gateway::start();
    let (mut client, mut other) = (admin(&gateway).await, admin(&gateway).await);
    let id = client
        .ask(
            "exec.run",
            run(
                "sandbox",
                &["sh", "-c", "printf out; printf err >&2; exit 9"],
            ),
        )
        .await;
    let first = next(&mut client).await;
    assert_eq!(
        (&first["id"], &first["ok"]),
        (&json!(id), &json!(true)),
        "{first}"
    );
    let accepted = &first["payload"];
    assert_eq!(accepted["status"], "accepted");
    assert_eq!(accepted["planHash"].as_str().unwrap().len(), 64);
    let mut output = vec![];
    let last = loop {
        let frame = next(&mut client).await;
        if frame["type"] == "res" {
            break frame;
        }
        assert_eq!(frame["event"], "exec.output");
        let piece = &frame["payload"];
        assert_eq!(piece["runId"], accepted["runId"]);
        assert_eq!(piece["seq"].as_u64().unwrap(), output.len() as u64);
        let data = base64::engine::general_purpose::STANDARD
            .decode(piece["data"].as_str().unwrap())
            .unwrap();
        let stream = piece["stream"].as_str().unwrap().to_owned();
        output.push((stream, String::from_utf8(data).unwrap()));
    };
    output.sort();
    let expected =
        [("stderr", "err"), ("stdout", "out")].map(|(s, d)| (s.to_owned(), d.to_owned()));
    assert_eq!(output, expected);
    assert_eq!(last["id"], id.as_str());
    let end = &last["payload"];
    assert_eq!(
        (&end["status"], &end["exitCode"]),
        (&json!("exited"), &json!(9)),
        "{end}"
    );
    assert_eq!(end["runId"], accepted["runId"]);
    assert_eq!(end["dropped"], json!({"stdout": 0, "stderr": 0}));
    assert_eq!(end["provenance"]["driver"], "native");
    for key in ["box", "profileHash", "auditSeq"] {
        assert!(!end["provenance"][key].is_null(), "{key}: {end}");
    }
    assert!(end["durationMs"].is_u64());
    // Of all that the other one has heard nothing.
    let id = other.ask("health", json!({})).await;
    assert_eq!(next(&mut other).await["id"], id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_cancelled_by_its_own_principal_and_an_unknown_one_is_named() {
    let gateway = Gateway::start();
    let mut client = admin(&gateway).await;
    let id = client
        .ask(
            "exec.run",
            run("sandbox", &["sh", "-c", "echo; exec sleep 600"]),
        )
        .await;
    let first = client.answer(&id).await;
    while next(&mut client).await["event"] != "exec.output" {}
    let which = json!({"runId": first["payload"]["runId"]});
    let cancel = client.ask("exec.cancel", which.clone()).await;
    let (mut told, mut ended) = (None, None);
    while told.is_none() || ended.is_none() {
        let frame = next(&mut client).await;
        match frame["id"].as_str() {
            Some(of) if of == cancel => told = Some(frame["payload"].clone()),
            Some(of) if of == id => ended = Some(frame["payload"].clone()),
            _ => {}
        }
    }
    assert_eq!(told.unwrap()["runId"], which["runId"]);
    assert_eq!(ended.unwrap()["status"], "cancelled");
    let error = client.refused("exec.cancel", which).await;
    assert_eq!(error["details"]["code"], "RUN_NOT_FOUND", "{error}");
}

/// The bug: until its actor was gone, a run whose end was told already was "cancelling".
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_has_told_its_end_is_not_there_to_be_cancelled() {
    let gateway = Gateway::start();
    let mut client = admin(&gateway).await;
    for _ in 0..100 {
        let id = client.ask("exec.run", run("sandbox", &["true"])).await;
        let which = json!({"runId": client.answer(&id).await["payload"]["runId"]});
        let ended = client.answer(&id).await;
        assert_eq!(ended["payload"]["status"], "exited", "{ended}");
        let error = client.refused("exec.cancel", which).await;
        assert_eq!(error["details"]["code"], "RUN_NOT_FOUND", "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_told_to_approvers_waited_for_and_answered_from_another_connection() {
    let gateway = Gateway::start();
    let (mut asks, mut answers) = (admin(&gateway).await, approver(&gateway).await);
    let mut deaf = admin(&gateway).await;
    let id = asks.ask("exec.run", run("host", &["uname", "-r"])).await;
    let first = asks.answer(&id).await["payload"].clone();
    assert_eq!(first["status"], "approval-pending");
    assert!(first["expiresAtMs"].is_u64());
    let told = next(&mut answers).await;
    assert_eq!(
        (&told["event"], &told["seq"]),
        (&json!("exec.approval.requested"), &json!(1))
    );
    let question = told["payload"]["id"].clone();
    assert_eq!(question, first["approvalId"]);
    assert_eq!(told["payload"]["request"]["argv"], json!(["uname", "-r"]));
    let which = json!({"id": question});
    let shown = answers.get("exec.approval.get", which.clone()).await;
    assert_eq!(shown["commandText"], "uname -r");
    assert_eq!(shown["request"]["planHash"], first["planHash"]);
    let list = answers.get("exec.approval.list", json!({})).await;
    assert_eq!(list.as_array().unwrap().len(), 1);

    let waits = deaf.ask("exec.approval.waitDecision", which.clone()).await;
    let deny = json!({"id": question, "decision": "deny", "reason": "no"});
    let error = answers
        .refused(
            "exec.approval.resolve",
            json!({"id": question, "decision": "perhaps"}),
        )
        .await;
    assert_eq!(error["details"]["code"], "INVALID_PARAMS");
    // Its answer and the event of it come in either order.
    let asked = answers.ask("exec.approval.resolve", deny).await;
    let (mut answer, mut told) = (None, None);
    while answer.is_none() || told.is_none() {
        let frame = next(&mut answers).await;
        let place = if frame["id"] == asked.as_str() {
            &mut answer
        } else {
            &mut told
        };
        assert_eq!(place.replace(frame), None);
    }
    assert_eq!(answer.unwrap()["payload"], json!({"ok": true}));
    let told = told.unwrap();
    let decided = deaf.answer(&waits).await["payload"].clone();
    assert_eq!(
        (&decided["id"], &decided["decision"]),
        (&question, &json!("deny"))
    );
    assert_eq!(told["event"], "exec.approval.resolved", "{told}");
    assert_eq!(told["payload"]["decision"], "deny");
    let end = asks.answer(&id).await["payload"].clone();
    assert_eq!(end["status"], "denied", "{end}");
    let error = &end["error"];
    assert_eq!(error["code"], "APPROVAL_DENIED");
    assert_eq!(error["message"], "uid:0 refused this command: no");
    let error = answers
        .refused("exec.approval.get", json!({"id": "none"}))
        .await;
    assert_eq!(
        error["message"], "unknown or expired approval id",
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_frees_something_waits_for_another_connection_and_a_stale_one_is_refused() {
    let gateway = Gateway::start();
    let (mut sets, mut answers) = (admin(&gateway).await, approver(&gateway).await);
    let before = sets.get("exec.approvals.get", json!({})).await;
    assert_eq!(before["exists"], true);
    for key in ["path", "hash", "file", "resolvedDefaults"] {
        assert!(!before[key].is_null(), "{key}: {before}");
    }
    let free = json!({
        "version": 1, "defaults": before["file"]["defaults"],
        "agents": {"demo": {"security": "full", "ask": "off"}},
    });
    let set = json!({"file": free, "baseHash": before["hash"]});
    let waits = sets.refused("exec.approvals.set", set.clone()).await;
    assert_eq!(
        (&waits["code"], &waits["details"]["code"]),
        (&json!("FORBIDDEN"), &json!("CHANGE_WAITS"))
    );
    let pending = waits["details"].clone();
    assert_eq!(
        sets.get("exec.approvals.get", json!({})).await["hash"],
        before["hash"]
    );
    let told = next(&mut answers).await;
    assert_eq!(told["payload"]["approvalKind"], "policy");
    assert_eq!(
        told["payload"]["request"]["command"],
        r#"exec.approvals.set agents.demo: null -> {"allowlist":[],"ask":"off","security":"full"}"#
    );
    let new = &told["payload"]["request"]["change"]["new"]["agents"]["demo"];
    assert_eq!(
        (&new["security"], &new["ask"]),
        (&json!("full"), &json!("off"))
    );
    let (_, card, _) = {
        let output = gateway.cli(&["approvals", "show", pending["approvalId"].as_str().unwrap()]);
        (
            output.status,
            String::from_utf8(output.stdout).unwrap(),
            output.stderr,
        )
    };
    assert!(
        card.contains("what may run without asking") && card.contains("\"security\": \"full\""),
        "{card}"
    );
    let allow = json!({"id": pending["approvalId"], "decision": "allow-once"});
    let error = sets.refused("exec.approval.resolve", allow.clone()).await;
    assert_eq!(error["details"]["code"], "APPROVAL_SELF");
    answers.get("exec.approval.resolve", allow).await;
    let after = sets.get("exec.approvals.get", json!({})).await;
    assert_ne!(after["hash"], before["hash"]);
    // Made against a document that is gone.
    let error = sets.refused("exec.approvals.set", set).await;
    assert_eq!(error["code"], "INVALID_REQUEST", "{error}");
    // A stricter one holds at once.
    let strict = json!({"file": {"version": 1, "defaults": {"security": "deny"}}, "baseHash": after["hash"]});
    let applied = sets.get("exec.approvals.set", strict).await;
    assert_eq!(applied["resolvedDefaults"]["security"], "deny", "{applied}");
    let error = sets.refused("exec.run", run("host", &["true"])).await;
    assert_eq!(error["code"], "FORBIDDEN", "{error}");
    // Grants: none were given, and none is taken back by a made-up name.
    sets.get("exec.approval.grants.list", json!({})).await;
    sets.refused("exec.approval.grants.revoke", json!({"grantId": "none"}))
        .await;
    let present = sets.get("system-presence", json!({})).await;
    assert_eq!(
        (&present[0]["mode"], &present[0]["reason"]),
        (&json!("gateway"), &json!("self"))
    );
}

/// The bug: the command that the refusal names asked for too little, and was refused.
#[test]
fn a_change_of_the_policy_is_allowed_by_the_command_that_is_named() {
    use std::io::Write as _;
    let gateway = Gateway::start();
    let file = gateway.home().join("policy.json");
    let free = json!({"version": 1, "agents": {"demo": {"security": "full", "ask": "off"}}});
    let mut written = std::fs::File::create(&file).unwrap();
    written.write_all(free.to_string().as_bytes()).unwrap();
    let set = [
        "approvals",
        "policy",
        "--set",
        file.to_str().unwrap(),
        "--json",
    ];
    let output = gateway.cli(&set);
    let refused: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(refused["error"]["code"], "CHANGE_WAITS", "{refused}");
    let id = gateway.json(&["approvals", "list"])[0]["id"].clone();
    let allowed = gateway.json(&["approvals", "allow", id.as_str().unwrap()]);
    assert_eq!(allowed["decision"], "allow-once", "{allowed}");
    let policy = gateway.json(&["approvals", "policy"]);
    assert_eq!(
        policy["file"]["agents"]["demo"]["security"], "full",
        "{policy}"
    );
    // And denied likewise.
    let free = json!({"version": 1, "agents": {"demo": {"security": "full", "ask": "off"}, "other": {"security": "full", "ask": "off"}}});
    std::fs::write(&file, free.to_string()).unwrap();
    gateway.cli(&set);
    let id = gateway.json(&["approvals", "list"])[0]["id"].clone();
    gateway.json(&["approvals", "deny", id.as_str().unwrap()]);
    assert_eq!(
        gateway.json(&["approvals", "policy"])["hash"],
        policy["hash"]
    );
}
