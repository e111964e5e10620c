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

/// Exit code, and the last word on it.
fn ran(gateway: &Gateway, words: &[&str], script: &str) -> (i32, Value, String) {
    let args = [&["exec", "--json"], words, &["--", "sh", "-c", script]].concat();
    let output = gateway.cli(&args);
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().last().unwrap_or_default();
    let last = serde_json::from_str(last).unwrap_or_else(|_| panic!("{text} {said}"));
    (output.status.code().unwrap(), last, text)
}

#[test]
fn a_session_is_what_a_request_calls_one_else_its_connection_and_its_box_goes_with_it() {
    let gateway = Gateway::with(&[
        ("agents.demo.sandbox.scope", "session"),
        ("agents.team.sandbox.scope", "shared"),
    ]);
    let run = |words: &[&str]| {
        let words = [&["--agent", "demo"], words].concat();
        let script = "test ! -e /tmp/x && echo new; echo x > /tmp/x; echo x >> kept";
        let (code, said, text) = ran(&gateway, &words, script);
        assert_eq!(code, 0, "{said}");
        assert_eq!(said["provenance"]["scope"], "session", "{said}");
        let id = said["provenance"]["box"].as_str().unwrap().to_owned();
        // "new", in what is passed on.
        (id, text.contains("bmV3Cg"))
    };
    let (first, new) = run(&[]);
    assert!(new);
    let (second, new) = run(&[]);
    assert!(new && second != first, "each command is a session");
    let (named, new) = run(&["--session", "work"]);
    assert!(new);
    let (again, new) = run(&["--session", "work"]);
    assert!(!new && again == named, "one session over two connections");
    let (other, new) = run(&["--session", "play"]);
    assert!(new && other != named);
    let kept = std::fs::read_to_string(gateway.state().join("workspaces/demo/kept")).unwrap();
    assert_eq!(kept.lines().count(), 5, "one folder");
    // The connections are gone, and so are their sessions' boxes; those of named sessions are not.
    let lies = |id: &str| gateway.state().join(format!("run/b/{id}.json")).exists();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while lies(&first) || lies(&second) {
        assert!(std::time::Instant::now() < until, "a session's box is left");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(lies(&named) && lies(&other));
    let status = gateway.json(&["status"]);
    let rooms = status["portcullis"]["rooms"].as_array().cloned();
    let rooms = rooms.unwrap_or_else(|| panic!("{status}"));
    let room = rooms.iter().find(|room| room["name"] == "sandbox_pool");
    assert!(
        room.unwrap()["facts"]
            .to_string()
            .contains("sessions with a warm box"),
        "{room:?}"
    );
    for words in [
        &["--session", ""][..],
        &["--session", "a\tb"],
        &["--session", "x", "--host"],
    ] {
        let args = [&["exec", "--agent", "demo"], words, &["--", "true"]].concat();
        let output = gateway.cli(&args);
        assert_eq!(output.status.code(), Some(125), "{words:?} {output:?}");
    }
    let text = gateway.cli(&["sandbox", "explain", "--agent", "team"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("SHARED     \"default\" IS ONE BOX OF team\n"),
        "{text}"
    );
}

#[test]
fn a_secret_goes_into_a_shared_box_only_where_it_may_be_each_agents() {
    let gateway = Gateway::with(&[
        ("agents.a.sandbox.scope", "shared"),
        ("agents.b.sandbox.scope", "shared"),
        ("agents.own.sandbox.scope", "agent"),
    ]);
    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"planted-1"), 0);
    let run = |agent: &str| {
        let words = ["--agent", agent, "--secret", "TOKEN=KEY"];
        ran(&gateway, &words, "test \"$TOKEN\" = planted-1")
    };
    gateway.json(&["vault", "bind", "KEY", "--agent", "a", "--agent", "own"]);
    assert_eq!(run("own").0, 0);
    let (code, said, _) = run("a");
    assert_eq!(code, 125, "{said}");
    assert_eq!(said["error"]["code"], "VAULT_NOT_BOUND", "{said}");
    assert!(
        said.to_string().contains("agent b shares the box"),
        "{said}"
    );
    gateway.json(&["vault", "bind", "KEY", "--agent", "a", "--agent", "b"]);
    assert_eq!((run("a").0, run("b").0), (0, 0));
}

#[test]
fn sandboxes_are_listed_ended_by_an_operator_and_reached_by_the_name_of_their_session() {
    let gateway = Gateway::with(&[
        ("agents.demo.sandbox.scope", "session"),
        ("sandbox.warm_max", "0"),
    ]);
    let boxes = || gateway.json(&["sandbox", "list"])["boxes"].clone();
    assert_eq!(boxes(), json!([]));
    let words = ["--agent", "demo", "--session", "work"];
    let (code, said, _) = ran(&gateway, &words, "echo kept > /tmp/x; echo 61 > sleep");
    assert_eq!(code, 0, "{said}");
    let id = said["provenance"]["box"].as_str().unwrap().to_owned();
    let there = boxes();
    assert_eq!(there.as_array().unwrap().len(), 1, "{there}");
    let one = &there[0];
    assert_eq!(
        (
            &one["id"],
            &one["scope"],
            &one["agent"],
            &one["session"],
            &one["state"],
            &one["runs"]
        ),
        (
            &json!(id),
            &json!("session"),
            &json!("demo"),
            &json!("work"),
            &json!("serves"),
            &json!(0)
        )
    );
    let text = gateway.cli(&["sandbox", "list"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("WHOSE") && text.contains("work of "),
        "{text}"
    );
    // A copy goes to the session that it names.
    let got = gateway.cli(&["sandbox", "cp", "--session", "work", "demo:/tmp/x", "-"]);
    assert_eq!(String::from_utf8(got.stdout).unwrap(), "kept\n");
    let other = gateway.cli(&["sandbox", "cp", "demo:/tmp/x", "-"]);
    assert!(!other.status.success());

    let run = [
        "exec",
        "--detach",
        "--agent",
        "demo",
        "--session",
        "work",
        "--",
        "sleep",
        "600",
    ];
    let run = gateway.cli(&run);
    let run = String::from_utf8(run.stdout).unwrap().trim().to_owned();
    let runs = || {
        boxes()
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["runs"].as_u64().unwrap())
            .sum::<u64>()
    };
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while runs() == 0 {
        assert!(std::time::Instant::now() < end);
    }
    let none = gateway.cli(&["sandbox", "end", "ffffffffffff"]);
    let said = String::from_utf8(none.stderr).unwrap();
    assert_eq!(none.status.code(), Some(3), "{said}");
    assert!(said.starts_with("error[BOX_NOT_FOUND]"), "{said}");
    let ended = gateway.cli(&["sandbox", "end", &id]);
    assert!(ended.status.success(), "{ended:?}");
    let attached = gateway.cli(&["attach", &run]);
    let said = String::from_utf8(attached.stderr).unwrap();
    assert!(said.contains("an operator ended the sandbox"), "{said}");
    // The next one is another, and nothing of the first is in it.
    let (code, said, _) = ran(&gateway, &words, "test ! -e /tmp/x && test -e sleep");
    assert_eq!(code, 0, "{said}");
    assert_ne!(said["provenance"]["box"], json!(id));
    let records = gateway.json(&["audit", "query", "--action", "sandbox.end"]);
    let outcomes: Vec<_> = records["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["outcome"]["result"].clone())
        .collect();
    assert_eq!(outcomes.len(), 2, "{records}");
    // Where it makes no difference, that is said.
    let said = gateway
        .cli(&["exec", "--agent", "plain", "--session", "x", "--", "true"])
        .stderr;
    assert!(
        String::from_utf8(said)
            .unwrap()
            .contains("--session made no difference")
    );
}

/// Which user each agent has is in the log and in the state, and nobody else ever gets it; a range that is somebody's is no start.
#[test]
fn each_agents_user_is_in_the_log_and_outlives_the_gateway() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut gateway = Gateway::prepared(&[]);
    let lent = gateway.home().join("subuid");
    std::fs::write(&lent, "bob:65500:100\n").unwrap();
    gateway.set("gateway.local.subuid_file", lent.to_str().unwrap());
    let (code, text) = gateway.refused();
    assert_eq!(code, 2, "{text}");
    for part in [
        "CONFIG_INVALID",
        "65500-65599 are bob's",
        "uids = \"131072-196607\"",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    std::fs::write(&lent, "bob:100000:65536\n").unwrap();
    gateway.launch();
    let user = |gateway: &Gateway, agent: &str| {
        let output = gateway.cli(&[
            "exec",
            "--agent",
            agent,
            "--",
            "sh",
            "-c",
            "id -u; id -un; cat kept; echo x > kept",
        ]);
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(user(&gateway, "one"), "65536\nbox\n");
    assert_eq!(user(&gateway, "two"), "65537\nbox\n");
    let given = gateway.json(&["audit", "query", "--action", "sandbox.user"]);
    let given: Vec<String> = given["records"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|record| record["record"]["kind"] == "intent")
        .map(|record| record["record"]["object"].to_string())
        .collect();
    assert_eq!(given, ["\"agent:one\"", "\"agent:two\""]);
    gateway.crash_and_start();
    assert_eq!(user(&gateway, "new"), "65538\nbox\n");
    assert_eq!(user(&gateway, "two"), "65537\nbox\nx\n");
    let explained = gateway.json(&["sandbox", "explain", "--agent", "two"]);
    assert_eq!(line(&explained, "uid")["value"], 65_537);
    // As a state was left when every agent had one user.
    for name in ["kept", ""] {
        let path = gateway.state().join("workspaces/two").join(name);
        std::os::unix::fs::chown(path, Some(65_533), Some(65_533)).unwrap();
    }
    gateway.crash_and_start();
    assert_eq!(user(&gateway, "two"), "65537\nbox\nx\n");
    let moved = gateway.json(&["audit", "query", "--action", "sandbox.reown"]);
    let moved = moved["records"].to_string();
    assert!(
        moved.contains("65533") && moved.contains("\"entries\":\"2\""),
        "{moved}"
    );
}

/// By the words of a person at a shell: what ends the command, what is left to do, and that the log says so.
#[test]
fn who_fills_a_workspace_is_told_why_and_can_delete_until_there_is_room() {
    let gateway = Gateway::with(&[
        ("agents.demo.sandbox.workspace_bytes", "8388608"),
        ("agents.demo.sandbox.workspace_files", "100"),
    ]);
    let exec = |script: &str| {
        let output = gateway.cli(&["exec", "--agent", "demo", "--", "sh", "-c", script]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let bomb = "while :; do i=$((i+1)); head -c 1048576 /dev/zero > f$i; sleep 0.02; done";
    let (code, _, said) = exec(bomb);
    assert_eq!(code, Some(125), "{said}\n{}", gateway.log());
    assert!(
        said.contains("error[WORKSPACE_FULL]: the workspace holds ")
            && said.contains("may hold 8.0 MiB in 100: the run was ended")
            && said.contains("\nnext: make room"),
        "{said}"
    );
    let asked = ["audit", "query", "--action", "exec.run"];
    let found = gateway.json(&asked).to_string();
    assert!(found.contains("WORKSPACE_FULL"), "{found}");
    let held = gateway.cli(&["sandbox", "explain", "--agent", "demo"]);
    let held = String::from_utf8(held.stdout).unwrap();
    assert!(
        held.contains("over: runs can only delete"),
        "{held}\n{}",
        gateway.log()
    );
    let (code, out, said) = exec("rm f*; (echo x > more) || echo no");
    assert_eq!((code, out.as_str()), (Some(0), "no\n"), "{said}");
    assert!(
        said.contains("this run can delete, and write no file"),
        "{said}"
    );
    assert_eq!(
        exec("echo x > more; cat more"),
        (Some(0), "x\n".to_owned(), String::new())
    );
}
