//! `exec.approval.request`: asked first, run later, by the same rules and once.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::host_runs::{open, write};
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, admin};

const WITHIN: Duration = Duration::from_secs(30);

fn ask(id: &str, argv: &[&str]) -> Value {
    json!({
        "id": id, "command": "not what is shown", "commandArgv": argv, "agentId": "demo",
        "host": "gateway", "security": "allowlist", "ask": "on-miss", "twoPhase": true,
    })
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

/// Asks; the first answer is there.
async fn pending(client: &mut Client, params: Value) -> String {
    let frame = client.ask("exec.approval.request", params).await;
    let first = client.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "accepted", "{first}");
    frame
}

async fn run(client: &mut Client, key: &str, argv: &[&str]) -> (String, Value) {
    let params = json!({
        "agent": "demo", "argv": argv, "target": "host", "idempotencyKey": key,
    });
    let frame = client.ask("exec.run", params).await;
    let mut out = String::new();
    loop {
        let came = client.frame().await;
        if came["event"] == "exec.output" {
            use base64::Engine as _;
            let data = came["payload"]["data"].as_str().unwrap();
            let data = base64::engine::general_purpose::STANDARD.decode(data);
            out.push_str(&String::from_utf8(data.unwrap()).unwrap());
        } else if came["id"] == frame.as_str() {
            let status = &came["payload"]["status"];
            if status == "approval-pending" || status == "accepted" {
                assert_eq!(came["payload"]["approvalId"], key);
                continue;
            }
            return (out, came);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_asked_first_is_answered_and_its_command_runs_later_once() {
    let (gateway, folder) = (Gateway::start(), open());
    let script = write(folder.path(), "x.sh", "echo old");
    let argv = ["sh", script.to_str().unwrap()];
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let frame = asks.ask("exec.approval.request", ask("a1", &argv)).await;
    let first = asks.answer(&frame).await;
    assert_eq!(
        keys(&first["payload"]),
        [
            "createdAtMs",
            "deliveryRoute",
            "expiresAtMs",
            "id",
            "planHash",
            "status"
        ]
    );
    let list = decides.get("exec.approval.list", json!({})).await;
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["id"], "a1");
    assert_eq!(list[0]["request"]["commandArgv"], json!(argv));
    assert!(!list.to_string().contains("not what is shown"));
    assert_eq!(list[0]["request"]["operands"][0]["held"], "copied");
    let one = decides.get("exec.approval.get", json!({"id": "a1"})).await;
    assert_eq!(
        (&one["id"], &one["host"]),
        (&json!("a1"), &json!("gateway"))
    );

    let answer = |decision: &str| json!({"id": "a1", "decision": decision});
    let waits = decides
        .ask("exec.approval.waitDecision", json!({"id": "a1"}))
        .await;
    let mut third = admin(&gateway).await;
    for _ in 0..2 {
        let said = third
            .get("exec.approval.resolve", answer("allow-once"))
            .await;
        assert_eq!(said, json!({"ok": true}));
    }
    let late = third.refused("exec.approval.resolve", answer("deny")).await;
    assert_eq!(late["message"], "approval already resolved");
    assert_eq!(late["details"]["reason"], "APPROVAL_ALREADY_RESOLVED");
    let said = decides.answer(&waits).await["payload"].clone();
    assert_eq!(
        (&said["decision"], &said["terminalReason"]),
        (&json!("allow-once"), &json!("user"))
    );
    let last = asks.answer(&frame).await["payload"].clone();
    assert_eq!(
        keys(&last),
        ["createdAtMs", "decision", "expiresAtMs", "id"]
    );
    assert_eq!(last["decision"], "allow-once");

    // Another command, another text: not what was answered.
    let (_, other) = run(&mut third, "a1", &["id"]).await;
    assert_eq!(other["error"]["details"]["code"], "INVALID_PARAMS");
    // The asker's connection is not needed any more.
    drop(asks);
    let (out, end) = run(&mut third, "a1", &argv).await;
    assert_eq!(
        (out.as_str(), &end["payload"]["exitCode"]),
        ("old\n", &json!(0)),
        "{end}"
    );
    let (out, again) = run(&mut third, "a1", &argv).await;
    assert_eq!(again["error"]["details"]["code"], "KEY_USED", "{again}");
    let text = again["error"]["message"].as_str().unwrap();
    assert!(text.contains("ended with exit code 0"), "{text}");
    assert!(out.is_empty());
    // Asked again under its id: the answer stands.
    let again = third.get("exec.approval.request", ask("a1", &argv)).await;
    assert_eq!(again["decision"], "allow-once");

    // The text changes before the run: it is not run.
    let mut asks = admin(&gateway).await;
    let frame = pending(&mut asks, ask("b1", &argv)).await;
    third
        .get(
            "exec.approval.resolve",
            json!({"id": "b1", "decision": "allow-once"}),
        )
        .await;
    assert_eq!(
        asks.answer(&frame).await["payload"]["decision"],
        "allow-once"
    );
    write(folder.path(), "x.sh", "echo new");
    let (out, end) = run(&mut asks, "b1", &argv).await;
    assert_eq!(end["error"]["details"]["code"], "PLAN_CHANGED", "{end}");
    assert!(out.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_asked_first_keeps_every_rule_of_a_run() {
    let gateway = Gateway::start();
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let refused = |change: Value| {
        let mut params = ask("c1", &["id"]);
        for (key, value) in change.as_object().unwrap() {
            params[key] = value.clone();
        }
        params
    };
    for (change, code) in [
        (json!({"agentId": "other"}), "ELEVATED_DISABLED"),
        (json!({"agentId": null}), "AGENT_REQUIRED"),
        (json!({"host": "node"}), "INVALID_PARAMS"),
        (json!({"nodeId": "n1"}), "INVALID_PARAMS"),
        (json!({"commandArgv": null}), "INVALID_PARAMS"),
        (
            json!({"commandArgv": ["no-such-command"]}),
            "COMMAND_NOT_FOUND",
        ),
        (json!({"env": {"LD_PRELOAD": "/x"}}), "INVALID_PARAMS"),
        (json!({"id": "plugin:1"}), "INVALID_PARAMS"),
        (json!({"id": "a b"}), "INVALID_PARAMS"),
        (
            json!({"approvalReviewerDeviceIds": ["d"]}),
            "INVALID_PARAMS",
        ),
        (json!({"approved": true}), "INVALID_PARAMS"),
    ] {
        let error = asks
            .refused("exec.approval.request", refused(change.clone()))
            .await;
        assert_eq!(error["details"]["code"], code, "{change} {error}");
    }
    for (method, text) in [
        ("exec.approval.resolve", "unknown or expired approval id"),
        (
            "exec.approval.waitDecision",
            "approval expired or not found",
        ),
    ] {
        let mut params = json!({"id": "nobody"});
        if method == "exec.approval.resolve" {
            params["decision"] = "deny".into();
        }
        let error = decides.refused(method, params).await;
        assert_eq!(
            (&error["code"], &error["message"]),
            (&json!("INVALID_REQUEST"), &json!(text))
        );
        assert_eq!(error["details"]["reason"], "APPROVAL_NOT_FOUND");
        assert!(error["details"]["remediation"].is_string(), "{error}");
    }
    // What policy allows needs nobody.
    let mut params = ask("s1", &["id"]);
    params["host"] = "sandbox".into();
    let said = asks.get("exec.approval.request", params).await;
    assert_eq!(
        (&said["id"], &said["decision"]),
        (&json!("s1"), &json!("allow-once"))
    );

    // One id, one question; none begins with another.
    let frame = pending(&mut asks, ask("c1", &["id"])).await;
    for id in ["c1", "c", "c11"] {
        let error = decides
            .refused("exec.approval.request", ask(id, &["id"]))
            .await;
        let text = error["message"].as_str().unwrap();
        assert!(
            text.starts_with("approval id already pending"),
            "{id} {error}"
        );
    }
    decides
        .get(
            "exec.approval.resolve",
            json!({"id": "c1", "decision": "deny"}),
        )
        .await;
    assert_eq!(asks.answer(&frame).await["payload"]["decision"], "deny");
    let (_, end) = run(&mut asks, "c1", &["id"]).await;
    assert_eq!(end["error"]["details"]["code"], "APPROVAL_DENIED");

    // Silence is no decision, by its own time.
    let mut params = ask("d1", &["id"]);
    params["timeoutMs"] = 300.into();
    let frame = pending(&mut asks, params).await;
    assert_eq!(
        asks.answer(&frame).await["payload"]["decision"],
        Value::Null
    );
    let (_, end) = run(&mut asks, "d1", &["id"]).await;
    assert_eq!(end["error"]["details"]["code"], "APPROVAL_EXPIRED");

    // Who asked goes away while nobody has answered: the question goes too, as with a run.
    pending(&mut asks, ask("e1", &["id"])).await;
    drop(asks);
    let end = Instant::now() + WITHIN;
    while decides.get("exec.approval.list", json!({})).await != json!([]) {
        assert!(Instant::now() < end, "the question stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The bug: with each beginning of a UUID taken by a requester, the room looked for a free id for ever.
#[tokio::test(flavor = "multi_thread")]
async fn requesters_who_take_every_beginning_of_an_id_keep_nobody_from_asking() {
    let gateway = Gateway::start();
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    for id in "0123456789abcdef".chars().map(String::from) {
        pending(&mut asks, ask(&id, &["true"])).await;
        let deny = json!({"id": id, "decision": "deny"});
        decides.get("exec.approval.resolve", deny).await;
    }
    for id in ["p", "pc-", "pc-1"] {
        let refused = asks
            .refused("exec.approval.request", ask(id, &["true"]))
            .await;
        assert_eq!(refused["details"]["code"], "INVALID_PARAMS", "{refused}");
    }
    let run = json!({
        "agent": "demo", "argv": ["true"], "target": "host", "idempotencyKey": "of its own",
    });
    let frame = asks.ask("exec.run", run).await;
    let first = asks.answer(&frame).await;
    let id = first["payload"]["approvalId"].as_str().unwrap();
    assert!(id.starts_with("pc-"), "{first}");
    let deny = json!({"id": id, "decision": "deny"});
    decides.get("exec.approval.resolve", deny).await;
}
