//! Secrets of the vault in runs: configured for an agent, asked for on the host, and never on a node.

use serde_json::{Value, json};

use super::walk::Background;
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, admin};

const CONFIG: &str = r#"
[agents.demo]
elevated = "ask"
nodes = "ask"
[agents.demo.secrets]
TOKEN = { vault = "KEY" }
[exec.host]
env = ["TOKEN"]
"#;

fn configured(text: &str) -> Gateway {
    use std::os::unix::fs::PermissionsExt as _;
    let gateway = Gateway::prepared(&[]);
    let file = gateway.state().join("config.toml");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    gateway
}

fn gateway() -> Gateway {
    let mut gateway = configured(CONFIG);
    gateway.launch();
    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"planted-1"), 0);
    gateway
}

/// Exit code, output, what was said.
fn run(gateway: &Gateway, words: &[&str]) -> (i32, String, String) {
    let script = ["--", "sh", "-c", "echo \"${TOKEN-none}\""];
    let output = gateway.cli(&[&["exec"], words, &script].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

fn secrets(gateway: &Gateway) -> Vec<Value> {
    let runs = gateway.json(&["audit", "query", "--action", "exec.run", "--outcome", "ok"]);
    let runs = runs["records"].as_array().unwrap();
    runs.iter()
        .map(|run| run["record"]["detail"]["secrets"].clone())
        .collect()
}

#[test]
fn an_agents_runs_have_the_secrets_that_are_configured_for_it_and_bound_to_it() {
    let gateway = gateway();
    let demo = ["--agent", "demo"];
    let (code, out, err) = run(&gateway, &demo);
    assert_eq!((code, out.as_str()), (125, ""));
    assert!(err.contains("VAULT_NOT_BOUND"), "{err}");
    gateway.json(&["vault", "bind", "KEY", "--agent", "demo"]);
    assert_eq!(run(&gateway, &demo).1, "planted-1\n");
    // What the request says is stronger, and nobody else has it.
    let own = ["--agent", "demo", "--env", "TOKEN=own"];
    assert_eq!(run(&gateway, &own).1, "own\n");
    assert_eq!(run(&gateway, &["--agent", "other"]).1, "none\n");
    assert_eq!(
        secrets(&gateway),
        [json!("TOKEN=KEY@1"), Value::Null, Value::Null]
    );
    let shown = gateway.json(&["config", "show"])["config"]["agents"]["demo"].clone();
    assert_eq!(shown["secrets"], json!({ "TOKEN": { "vault": "KEY" } }));
    assert_eq!(
        gateway.json(&["vault", "show", "KEY"])["lastUse"]["agent"],
        "demo"
    );
}

#[test]
fn a_literal_where_a_secret_is_expected_starts_nothing_and_is_not_repeated() {
    for (text, line) in [
        ("[agents.demo.secrets]\nCRED = \"planted-1\"\n", 2),
        ("[agents.demo]\nsecrets = { CRED = \"planted-1\" }\n", 2),
        ("[agents.demo]\nsecrets.CRED = 'planted-1'\n", 2),
        ("[gateway.auth]\ntoken = \"planted-1\"\n", 2),
    ] {
        let gateway = configured(text);
        let (code, said) = gateway.refused();
        assert_eq!(code, 2, "{said}");
        assert!(said.starts_with("error[SECRET_IN_CONFIG]"), "{said}");
        assert!(said.contains(&format!("config.toml:{line}:")), "{said}");
        assert!(said.contains("{ vault = \"NAME\" }"), "{said}");
        assert!(!said.contains("planted"), "{said}");
        let check = gateway.cli(&["config", "check"]);
        let said = String::from_utf8([check.stdout, check.stderr].concat()).unwrap();
        assert!(
            said.contains("SECRET_IN_CONFIG") && !said.contains("planted"),
            "{said}"
        );
    }
    // A name that is none may be the secret itself.
    let gateway = configured("[agents.demo.secrets]\nCRED = { vault = \"planted-1\" }\n");
    let (code, said) = gateway.refused();
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("CONFIG_INVALID") && !said.contains("planted"),
        "{said}"
    );
}

/// The question that waits.
fn asked(gateway: &Gateway) -> String {
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    loop {
        let list = gateway.json(&["approvals", "list"]);
        if let Some(id) = list[0]["id"].as_str() {
            return id.to_owned();
        }
        assert!(std::time::Instant::now() < end, "no question");
    }
}

#[test]
fn a_host_command_gets_the_secret_whose_name_the_person_saw_in_the_version_that_was_shown() {
    let gateway = gateway();
    gateway.json(&["vault", "bind", "KEY", "--agent", "demo"]);
    let words = [
        "exec",
        "--agent",
        "demo",
        "--host",
        "--secret",
        "TOKEN=KEY",
        "--",
        "sh",
        "-c",
        "echo \"$TOKEN\"",
    ];
    let exec = Background::start(&gateway, &words);
    let id = asked(&gateway);
    let card = gateway.cli(&["approvals", "show", &id]).stdout;
    let card = String::from_utf8(card).unwrap();
    assert!(card.contains("TOKEN=secret KEY version 1"), "{card}");
    assert!(!card.contains("planted"), "{card}");
    gateway.json(&["approvals", "allow", &id]);
    let (code, out, err) = exec.end();
    assert_eq!((code, out.as_str()), (0, "planted-1\n"), "{err}");
    assert_eq!(secrets(&gateway), [json!("TOKEN=KEY@1")]);
    let last = gateway.json(&["vault", "show", "KEY"])["lastUse"].clone();
    assert_eq!(last["agent"], "demo", "{last}");

    // Another value than the one whose version was allowed is not given.
    let exec = Background::start(&gateway, &words);
    let id = asked(&gateway);
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"planted-2"), 0);
    gateway.json(&["approvals", "allow", &id]);
    let (code, out, err) = exec.end();
    assert_eq!((code, out.as_str()), (125, ""));
    assert!(err.contains("PLAN_CHANGED"), "{err}");
    assert_eq!(gateway.json(&["vault", "show", "KEY"])["lastUse"], last);

    // What the agent configures is of its box, and a variable that the host does not take stays out.
    let (code, _, err) = run(
        &gateway,
        &["--agent", "demo", "--host", "--secret", "LD_PRELOAD=KEY"],
    );
    assert_eq!(code, 125);
    assert!(err.contains("INVALID_PARAMS"), "{err}");
    let all = gateway.json(&["audit", "tail", "-n", "1000"]).to_string();
    assert!(!all.contains("planted") && !gateway.log().contains("planted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_asked_ahead_names_the_secret_and_no_node_gets_one() {
    let gateway = gateway();
    gateway.json(&["vault", "bind", "KEY", "--agent", "demo"]);
    let mut by: Client = admin(&gateway).await;
    let node = format!("node:{}", "0".repeat(64));
    let run = json!({
        "agent": "demo", "target": node, "argv": ["true"], "secrets": { "TOKEN": "KEY" },
        "idempotencyKey": "k1",
    });
    let error = by.refused("exec.run", run).await;
    assert_eq!(error["details"]["code"], "SECRET_NOT_FOR_NODES", "{error}");

    let id = "11111111-2222-3333-4444-555555555555";
    let argv = json!(["sh", "-c", "echo \"$TOKEN\""]);
    let asks = json!({
        "id": id, "host": "gateway", "commandArgv": argv, "agentId": "demo",
        "secrets": { "TOKEN": "KEY" }, "twoPhase": true,
    });
    let first = by.get("exec.approval.request", asks).await;
    assert_eq!(first["status"], "accepted", "{first}");
    let mut person = admin(&gateway).await;
    let card = person.get("exec.approval.get", json!({ "id": id })).await;
    let text = card.to_string();
    assert!(
        text.contains("\"KEY\"") && !text.contains("planted"),
        "{card}"
    );
    let allows = json!({ "id": id, "decision": "allow-once" });
    person.get("exec.approval.resolve", allows).await;
    let mut runs = admin(&gateway).await;
    let mut run = json!({
        "agent": "demo", "target": "host", "argv": argv, "idempotencyKey": id,
    });
    run["secrets"] = json!({ "TOKEN": "KEY" });
    let asked = runs.ask("exec.run", run).await;
    let mut out = String::new();
    let end = loop {
        let frame = runs.frame().await;
        if frame["event"] == "exec.output" {
            use base64::Engine as _;
            let data = frame["payload"]["data"].as_str().unwrap();
            let data = base64::engine::general_purpose::STANDARD
                .decode(data)
                .unwrap();
            out.push_str(&String::from_utf8(data).unwrap());
        } else if frame["id"] == asked.as_str() {
            assert_eq!(frame["ok"], true, "{frame}");
            if !frame["payload"]["exitCode"].is_null() {
                break frame;
            }
        }
    };
    assert_eq!(end["payload"]["exitCode"], 0, "{end}");
    assert_eq!(out, "planted-1\n");
}

/// The bug: an agent tried one secret after the other in its sandbox, and no record said so.
#[test]
fn a_secret_that_is_refused_is_on_record_with_who_asked_for_which() {
    let gateway = gateway();
    let (code, _, err) = run(&gateway, &["--agent", "other", "--secret", "WANTED=KEY"]);
    assert_eq!(code, 125);
    assert!(err.contains("VAULT_NOT_BOUND"), "{err}");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let record = loop {
        let found = gateway.json(&["audit", "query", "--action", "exec.refused"]);
        if let Some(one) = found["records"].as_array().and_then(|all| all.first()) {
            break one["record"].clone();
        }
        assert!(std::time::Instant::now() < end, "{found}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let detail = &record["detail"];
    assert_eq!(
        (&detail["code"], &detail["agent"], &detail["secrets"]),
        (
            &json!("VAULT_NOT_BOUND"),
            &json!("other"),
            &json!(r#"["WANTED=KEY"]"#)
        ),
        "{record}"
    );
}
