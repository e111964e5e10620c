//! `portcullis sandbox explain` beside what a run really gets.

use serde_json::{Value, json};

use crate::support::gateway::Gateway;

fn line<'a>(explained: &'a Value, key: &str) -> &'a Value {
    let lines = explained["lines"].as_array().unwrap();
    lines.iter().find(|line| line["key"] == key).unwrap()
}

#[test]
fn explain_names_each_limit_and_its_layer_and_is_what_a_run_gets() {
    let gateway = Gateway::with(&[
        ("sandbox.profile", "baseline"),
        ("sandbox.pids", "200"),
        ("agents.demo.sandbox.open_files", "77"),
        ("agents.demo.sandbox.workspace", "none"),
        ("agents.demo.sandbox.env", "[\"GREETING\"]"),
        ("agents.careful.sandbox.min_isolation", "docker"),
        ("agents.tools.sandbox.image", "tools:1"),
    ]);
    let explained = gateway.json(&["sandbox", "explain", "--agent", "demo"]);
    for (key, value, from) in [
        ("open_files", json!(77), "[agents.demo.sandbox]"),
        ("workspace", json!("none"), "[agents.demo.sandbox]"),
        ("env", json!(["GREETING"]), "[agents.demo.sandbox]"),
        ("pids", json!(200), "[sandbox]"),
        ("memory_bytes", json!(2_147_483_648_u64), "profile baseline"),
    ] {
        let line = line(&explained, key);
        assert_eq!((&line["value"], &line["from"]), (&value, &json!(from)));
    }
    assert_eq!(explained["profile"], "baseline");
    assert_eq!(explained["driver"], "native");
    assert_eq!(
        (&explained["weaker"], &explained["refused"]),
        (&json!(false), &Value::Null)
    );
    let text = gateway.cli(&["sandbox", "explain", "--agent", "demo"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("DECIDED BY"), "{text}");
    let row = |key: &str| {
        let found = text.lines().find(|line| line.starts_with(key));
        found
            .unwrap_or_else(|| panic!("{key} in {text}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(row("open_files "), "open_files 77 [agents.demo.sandbox]");
    assert_eq!(row("cpu_millis "), "cpu_millis 2000 profile baseline");

    let run = |agent: &str, words: &[&str]| {
        let args = [&["exec", "--json", "--agent", agent], words].concat();
        let output = gateway.cli(&args);
        let text = String::from_utf8(output.stdout).unwrap();
        let last = text.lines().last().unwrap_or_default().to_owned();
        (
            output.status.code().unwrap(),
            serde_json::from_str::<Value>(&last).unwrap_or_else(|_| panic!("{text}")),
        )
    };
    let script = "test $(ulimit -n) = 77 && test \"$GREETING\" = hi && test -z \"$(ls -A /workspace)\" && echo x > /workspace/x";
    let (code, said) = run("demo", &["--env", "GREETING=hi", "--", "sh", "-c", script]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        said["provenance"]["profileHash"], explained["profileHash"],
        "{said}"
    );
    // Nothing of it was kept, and no folder was made for it.
    assert!(!gateway.state().join("workspaces/demo").exists());
    for (agent, words, refusal) in [
        (
            "demo",
            &["--env", "OTHER=x", "--", "true"][..],
            "ENV_NOT_ALLOWED",
        ),
        ("careful", &["--", "true"], "ISOLATION_TOO_WEAK"),
        ("tools", &["--", "true"], "IMAGE_UNUSABLE"),
    ] {
        let (code, said) = run(agent, words);
        assert_eq!(code, 125, "{said}");
        assert_eq!(said["error"]["code"], refusal, "{said}");
        let hint = said["error"]["hint"].as_str().unwrap_or_default();
        assert!(!hint.is_empty(), "{said}");
        if agent != "demo" {
            let explained = gateway.json(&["sandbox", "explain", "--agent", agent]);
            assert_eq!(explained["refused"]["code"], refusal);
            assert_eq!(explained["weaker"], agent == "careful");
            let text = gateway.cli(&["sandbox", "explain", "--agent", agent]);
            let text = String::from_utf8(text.stdout).unwrap();
            assert!(text.contains(&format!("REFUSED    {refusal}")), "{text}");
        }
    }
    // Without a name: what every other agent has.
    let every = gateway.json(&["sandbox", "explain"]);
    assert_eq!(every["agent"], Value::Null);
    assert_eq!(line(&every, "open_files")["from"], "profile baseline");
    assert_ne!(every["profileHash"], explained["profileHash"]);
    let bad = gateway.cli(&["sandbox", "explain", "--agent", "No Agent"]);
    assert_eq!(bad.status.code(), Some(2), "{bad:?}");
}
