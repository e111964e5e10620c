//! `portcullis policy`: what is said of a command is what a run of it meets.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use super::host_runs::{open, write};
use portcullis_core::ids::Hash32;

use crate::support::gateway::Gateway;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

const LISTS: &str = r#"version = 1
[agents.demo]
allowlist = [
    { id = "uname", pattern = "/usr/bin/uname" },
    { id = "wc", pattern = "/usr/bin/wc" },
    { id = "echo", pattern = "/usr/bin/echo" },
]
denylist = [{ id = "no-rm", pattern = "/usr/bin/rm" }]
"#;

/// Sets the document, and answers what that asks.
fn set(gateway: &Gateway, file: &Path) {
    let asked = gateway.cli(&["policy", "set", path(file), "--json"]);
    assert_eq!(asked.status.code(), Some(5), "{asked:?}");
    assert!(text(&asked.stdout).contains("CHANGE_WAITS"), "{asked:?}");
    let list = gateway.json(&["approvals", "list"]);
    let id = list.pointer("/0/id").and_then(Value::as_str).unwrap();
    assert!(gateway.cli(&["approvals", "allow", id]).status.success());
}

fn judged(gateway: &Gateway, words: &[&str]) -> Value {
    // What stands behind `--` is the command's.
    let output = gateway.cli(&[&["--json", "policy", "test"], words].concat());
    assert!(
        output.status.success(),
        "{words:?}: {output:?}\n{}",
        gateway.log()
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn tested(gateway: &Gateway, words: &[&str]) -> Value {
    judged(gateway, &[&["--agent", "demo"], words].concat())
}

fn ids(answer: &Value) -> Vec<&str> {
    let reasons = answer["reasons"].as_array().unwrap();
    reasons
        .iter()
        .map(|reason| reason["id"].as_str().unwrap())
        .collect()
}

/// A run that nobody answers: it is allowed, refused, or its question ends by its time.
fn run(gateway: &Gateway, argv: &[&str]) -> Output {
    gateway.cli(&[&["exec", "--agent", "demo", "--host", "--json", "--"], argv].concat())
}

fn verdict_of_run(output: &Output) -> &'static str {
    let said = text(&output.stdout);
    match () {
        () if said.contains("POLICY_DENIED") || said.contains("ELEVATED_DISABLED") => "deny",
        () if said.contains("APPROVAL_EXPIRED") => "ask",
        () => "allow",
    }
}

#[test]
fn what_policy_test_says_of_a_command_is_what_its_run_meets() {
    let gateway = Gateway::with(&[
        ("agents.demo.elevated", "ask"),
        ("approval.timeout_seconds", "3"),
    ]);
    let folder = open();
    let nothing = tested(&gateway, &["--", "uname"]);
    assert_eq!(nothing["verdict"], "ask", "{nothing}");
    set(&gateway, &write(folder.path(), "lists.toml", LISTS));
    for (argv, verdict, rule, reason) in [
        (&["uname", "-s"][..], "allow", "list:uname", ""),
        (
            &["id"],
            "ask",
            "config:agents.demo.elevated=ask",
            "not-listed",
        ),
        (&["rm", "/nothing"], "deny", "deny:no-rm", "denied-by-name"),
        (&["nice", "uname"], "allow", "list:uname", ""),
        (
            &["xargs", "rm", "x"],
            "deny",
            "deny:no-rm",
            "denied-by-name",
        ),
        (
            &["sh", "-c", "uname -s; echo 'a b' | wc -c"],
            "allow",
            "list:uname+echo+wc",
            "",
        ),
        (
            &["sh", "-c", "uname && id"],
            "ask",
            "config:agents.demo.elevated=ask",
            "not-listed",
        ),
        (
            &["sh", "-c", "echo $(uname)"],
            "ask",
            "config:agents.demo.elevated=ask",
            "command-substitution",
        ),
        (
            &["sh", "-c", "uname > /tmp/x"],
            "ask",
            "config:agents.demo.elevated=ask",
            "redirection",
        ),
        (
            &["sh", "-c", "uname; 'r'm x"],
            "deny",
            "deny:no-rm",
            "denied-by-name",
        ),
    ] {
        let said = tested(&gateway, &[&["--"], argv].concat());
        assert_eq!(
            (&said["verdict"], &said["rule"]),
            (&json!(verdict), &json!(rule)),
            "{said}"
        );
        assert!(
            reason.is_empty() || ids(&said).contains(&reason),
            "{argv:?} {said}"
        );
        if let ["sh", "-c", line] = argv {
            assert_eq!(said, tested(&gateway, &["--shell", line]), "{line}");
        }
        let output = run(&gateway, argv);
        assert_eq!(
            verdict_of_run(&output),
            verdict,
            "{argv:?} {output:?}\n{}",
            gateway.log()
        );
    }
    let chain = ["sh", "-c", "uname -s; echo 'a b' | wc -c"];
    let output = gateway.cli(&[&["exec", "--agent", "demo", "--host", "--"], &chain[..]].concat());
    assert_eq!(text(&output.stdout), "Linux\n4\n", "{output:?}");
    // In the box the agent's own word holds.
    assert_eq!(
        tested(&gateway, &["--sandbox", "--", "id"])["verdict"],
        "allow"
    );
    let unknown = gateway.cli(&["policy", "test", "--node", "n", "--", "uname"]);
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    // An agent that may not leave it learns nothing of what is outside.
    let other = judged(&gateway, &["--", "uname"]);
    assert_eq!(
        (&other["verdict"], &other["agent"]),
        (&json!("deny"), &json!("main"))
    );
    assert_eq!(other["rule"], "config:agents.main.elevated=off");
    let missing = judged(&gateway, &["--", "no-such-program"]);
    assert_eq!(ids(&missing), ids(&other));
    assert_eq!(
        tested(&gateway, &["--", "no-such-program"])["verdict"],
        "ask"
    );
    assert!(ids(&tested(&gateway, &["--", "no-such-program"])).contains(&"not-found"));
    // Nothing of all this was asked of a person, and nothing is in the log but what ran or was asked to.
    assert_eq!(gateway.json(&["approvals", "list"]), json!([]));
}

/// What a name stands for must be root's to change: otherwise a chain is a question.
#[test]
fn a_chain_with_a_program_that_others_can_change_asks() {
    let gateway = Gateway::with(&[
        ("agents.demo.elevated", "ask"),
        ("approval.timeout_seconds", "3"),
    ]);
    let folder = open();
    let own = write(folder.path(), "own", "#!/bin/sh\necho own\n");
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).unwrap();
    let of = |entry: Value| json!({"version": 1, "agents": {"demo": {"allowlist": [entry, {"pattern": "/usr/bin/uname"}]}}});
    let named = write(
        folder.path(),
        "named.json",
        &of(json!({"pattern": path(&own)})).to_string(),
    );
    set(&gateway, &named);
    // Its owner can make it anything under the same path.
    assert_eq!(tested(&gateway, &["--", path(&own)])["verdict"], "ask");
    assert_eq!(verdict_of_run(&run(&gateway, &[path(&own)])), "ask");
    let digest = Hash32::of(&std::fs::read(&own).unwrap()).to_string();
    let lists = of(json!({"pattern": path(&own), "sha256": digest}));
    let file = write(folder.path(), "lists.json", &lists.to_string());
    // It frees nothing.
    gateway.json(&["policy", "set", path(&file)]);
    assert_eq!(tested(&gateway, &["--", path(&own)])["verdict"], "allow");
    let line = format!("uname; {}", path(&own));
    let said = tested(&gateway, &["--shell", &line]);
    assert_eq!(said["verdict"], "ask", "{said}");
    assert!(ids(&said).contains(&"not-pinned"), "{said}");
    assert_eq!(verdict_of_run(&run(&gateway, &["sh", "-c", &line])), "ask");
}

/// The bug: of a script in a line the script was pinned, and not what reads it; nor was the folder looked at whose configuration
/// git runs.
#[test]
fn a_script_in_a_line_is_pinned_with_what_reads_it_and_git_with_its_folder() {
    let gateway = Gateway::with(&[("agents.demo.elevated", "ask")]);
    let (others, roots) = (open(), tempfile::tempdir_in("/opt").unwrap());
    let run_by_all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(roots.path(), run_by_all.clone()).unwrap();
    let reader = write(others.path(), "reader", "");
    std::fs::copy("/bin/sh", &reader).unwrap();
    std::fs::set_permissions(&reader, run_by_all.clone()).unwrap();
    let tool = |name: &str, line: &str| {
        let file = write(roots.path(), name, &format!("#!{line}\necho said\n"));
        std::fs::set_permissions(&file, run_by_all.clone()).unwrap();
        path(&file).to_owned()
    };
    let (own, shell, found) = (
        tool("own", path(&reader)),
        tool("shell", "/bin/sh"),
        tool("found", "/usr/bin/env sh"),
    );
    let digest = |tool: &str| Hash32::of(&std::fs::read(tool).unwrap()).to_string();
    let mut entries: Vec<Value> = [&own, &shell, &found]
        .map(|tool| json!({ "pattern": tool }))
        .into();
    // The script's own bytes say nothing of what reads it.
    entries.push(json!({ "pattern": own, "sha256": digest(&own) }));
    let git = tool("git", "/bin/sh");
    entries.push(json!({ "pattern": git, "args": ["status"] }));
    let lists = json!({"version": 1, "agents": {"demo": {"allowlist": entries}}});
    let file = write(others.path(), "lists.json", &lists.to_string());
    set(&gateway, &file);
    for (tool, verdict) in [(&own, "ask"), (&shell, "allow"), (&found, "allow")] {
        for words in [&["--", tool][..], &["--shell", tool]] {
            let said = tested(&gateway, words);
            assert_eq!(said["verdict"], verdict, "{words:?}: {said}");
        }
    }
    for (folder, verdict) in [(roots.path(), "allow"), (others.path(), "ask")] {
        let line = format!("{git} status");
        for words in [&["--", &git, "status"][..], &["--shell", &line]] {
            let words = [&["--cwd", path(folder)], words].concat();
            let said = tested(&gateway, &words);
            assert_eq!(said["verdict"], verdict, "{words:?}: {said}");
            let is_named = ids(&said).contains(&"reads-its-folder");
            assert_eq!(is_named, verdict == "ask", "{words:?}: {said}");
        }
    }
}

#[test]
fn policy_explains_itself_and_finds_entries_that_do_nothing() {
    let gateway = Gateway::with(&[("agents.demo.elevated", "ask")]);
    let folder = open();
    let file = write(folder.path(), "lists.toml", LISTS);
    set(&gateway, &file);
    let explained = gateway.json(&["policy", "explain", "--agent", "demo"]);
    assert_eq!(
        (&explained["listed"], &explained["other"]),
        (&json!("allow"), &json!("ask"))
    );
    let rules: Vec<&str> = explained["sources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["rule"].as_str().unwrap())
        .collect();
    assert_eq!(
        rules,
        [
            "config:agents.demo.exec=full",
            "config:agents.demo.elevated=ask",
            "document:demo.security=allowlist,ask=on-miss",
        ]
    );
    assert_eq!(explained["allow"][0]["id"], "uname");
    assert_eq!(explained["deny"][0]["pattern"], "/usr/bin/rm");
    let shown = text(
        &gateway
            .cli(&["policy", "explain", "--agent", "demo"])
            .stdout,
    );
    assert!(
        shown.contains("no-rm") && shown.contains("elevated=ask"),
        "{shown}"
    );
    assert_eq!(
        gateway.json(&["policy", "show"])["file"]["agents"]["demo"]["allowlist"][0]["id"],
        "uname"
    );
    assert_eq!(gateway.json(&["policy", "lint"])["findings"], json!([]));
    // Of a file, and a command by it: without a gateway.
    let bad = write(
        folder.path(),
        "bad.toml",
        "version = 1\n[agents.demo]\nallowlist = [{ id = \"a\", pattern = \"/usr/bin/git\" }]\n",
    );
    let away = Gateway::prepared(&[]);
    let config = "[agents.demo]\nelevated = \"ask\"\n";
    let config = write(&away.state(), "config.toml", config);
    std::fs::set_permissions(config, std::fs::Permissions::from_mode(0o600)).unwrap();
    let found = away.json(&["policy", "lint", path(&bad)]);
    assert_eq!(
        (&found["findings"][0]["entry"], &found["findings"][0]["id"]),
        (&json!("a"), &json!("matches-nothing"))
    );
    let here = |line: &str| {
        away.json(&[
            "policy",
            "test",
            "--agent",
            "demo",
            "--document",
            path(&file),
            "--shell",
            line,
        ])
    };
    assert_eq!(here("uname; echo a")["verdict"], "allow");
    assert_eq!(here("uname; id")["verdict"], "ask");
    assert_eq!(here("rm x")["verdict"], "deny");
}

/// The bug: of a list that stood twice in a document the last one held, and the refusals that a person had read were gone.
#[test]
fn a_document_in_which_a_key_stands_twice_is_not_set() {
    let gateway = Gateway::start();
    let folder = open();
    let before = gateway.json(&["policy", "show"]);
    for (name, document) in [
        (
            "list.json",
            r#"{"version":1,"agents":{"demo":{"denylist":[{"pattern":"/usr/bin/rm"}],"denylist":[]}}}"#,
        ),
        ("version.json", r#"{"version":1,"version":1}"#),
        ("lists.toml", "version = 1\nversion = 1\n"),
    ] {
        let file = write(folder.path(), name, document);
        for words in [
            &["policy", "set", path(&file), "--json"][..],
            &["policy", "lint", path(&file), "--json"],
            &["approvals", "policy", "--set", path(&file), "--json"],
        ] {
            let output = gateway.cli(words);
            assert!(!output.status.success(), "{words:?}: {output:?}");
            let said = text(&output.stdout) + &text(&output.stderr);
            let twice = said.contains("stands twice") || said.contains("duplicate key");
            assert!(
                twice && said.contains("INVALID_PARAMS"),
                "{words:?}: {said}"
            );
        }
    }
    assert_eq!(gateway.json(&["policy", "show"]), before);
}
