//! A person lets an agent's box reach a host that is not on its list, as he does it: with the command line.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::egress::host;
use crate::support::gateway::Gateway;

/// The one question that waits.
fn waiting(gateway: &Gateway) -> Value {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let list = gateway.json(&["approvals", "list"]);
        if let Some(one) = list.as_array().and_then(|list| list.first()) {
            assert_eq!(list.as_array().map(Vec::len), Some(1), "{list:#}");
            return one.clone();
        }
        assert!(Instant::now() < end, "nobody was asked:\n{}", gateway.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_person_lets_an_agent_reach_a_host_once_always_and_no_more() {
    let (port, _serving) = host();
    let mut gateway = Gateway::prepared(&[]);
    let config = "[sandbox]\negress_to_networks = [\"127.0.0.0/8\", \"::1\"]\n\
         [agents.demo.sandbox]\negress_unlisted = \"ask\"\n[agents.shut.sandbox]\negress_unlisted = \"refuse\"\n\
         [agents.one.sandbox]\nscope = \"shared\"\nshare = \"team\"\negress_unlisted = \"ask\"\n\
         [agents.two.sandbox]\nscope = \"shared\"\nshare = \"team\"\negress_unlisted = \"ask\"\n";
    let path = gateway.state().join("config.toml");
    std::fs::write(&path, config).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    gateway.launch();
    let target = format!("localhost:{port}");
    let ask = |agent: &str| {
        let script = format!(
            "printf 'GET http://{target}/ HTTP/1.0\\r\\n\\r\\n' | busybox nc 127.0.0.1 3128"
        );
        let done = gateway.cli(&["exec", "--agent", agent, "--", "sh", "-c", &script]);
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    // While two of its runs wait a person is asked once, and lets them through.
    let (id, answers) = std::thread::scope(|scope| {
        let runs = [scope.spawn(|| ask("demo")), scope.spawn(|| ask("demo"))];
        let question = waiting(&gateway);
        assert_eq!(question["approvalKind"], "egress", "{question:#}");
        assert_eq!(
            question["request"]["egress"]["hosts"],
            serde_json::json!([target])
        );
        assert_eq!(question["request"]["agentId"], "demo");
        let id = question["id"].as_str().unwrap().to_owned();
        let shown = gateway.cli(&["approvals", "show", &id]);
        assert!(
            String::from_utf8_lossy(&shown.stdout).contains(&target),
            "{shown:?}"
        );
        let allowed = gateway.cli(&["approvals", "allow", &id]);
        assert!(allowed.status.success(), "{allowed:?}");
        (id, runs.map(|run| run.join().unwrap()))
    });
    for answer in answers {
        assert!(answer.ends_with("hello"), "{answer}");
    }
    let records = gateway
        .json(&["audit", "query", "--action", "egress.allow"])
        .to_string();
    assert!(
        records.contains(&format!("egress approval {id}")),
        "{records}"
    );
    // Nobody is asked for who may not ask, nor for boxes that several share.
    assert_eq!(ask("shut"), "");
    let shared = ask("one");
    assert!(shared.contains("not-listed"), "{shared}");
    assert_eq!(
        gateway
            .json(&["approvals", "list"])
            .as_array()
            .map(Vec::len),
        Some(0)
    );

    // Another box of the agent after a restart: its once has gone with the box; always is kept, shown and taken back.
    assert_eq!(gateway.stop(), 0);
    gateway.launch();
    let ask = |agent: &str| {
        let script = format!(
            "printf 'GET http://{target}/ HTTP/1.0\\r\\n\\r\\n' | busybox nc 127.0.0.1 3128"
        );
        let done = gateway.cli(&["exec", "--agent", agent, "--", "sh", "-c", &script]);
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let answer = std::thread::scope(|scope| {
        let run = scope.spawn(|| ask("demo"));
        let id = waiting(&gateway)["id"].as_str().unwrap().to_owned();
        assert!(
            gateway
                .cli(&["approvals", "allow", &id, "--always"])
                .status
                .success()
        );
        run.join().unwrap()
    });
    assert!(answer.ends_with("hello"), "{answer}");
    assert!(ask("demo").ends_with("hello"));
    let grants = gateway.json(&["approvals", "grants"]);
    let text = grants.to_string();
    assert!(text.contains(&format!("reach {target}")), "{text}");
    let grant = grants
        .pointer("/0/grantId")
        .or_else(|| grants.pointer("/grants/0/grantId"));
    let grant = grant
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("{text}"))
        .to_owned();
    assert!(
        gateway
            .cli(&["approvals", "revoke", &grant])
            .status
            .success()
    );
    let answer = std::thread::scope(|scope| {
        let run = scope.spawn(|| ask("demo"));
        let id = waiting(&gateway)["id"].as_str().unwrap().to_owned();
        assert!(gateway.cli(&["approvals", "deny", &id]).status.success());
        run.join().unwrap()
    });
    assert!(answer.contains("said-no"), "{answer}");
    // And not asked about again at once.
    assert!(ask("demo").contains("said-no"));
    assert_eq!(
        gateway
            .json(&["approvals", "list"])
            .as_array()
            .map(Vec::len),
        Some(0)
    );
}
