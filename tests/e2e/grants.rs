//! What runs without asking, and what several ask for, on the command line.

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::host_runs::{open, write};
use crate::support::gateway::Gateway;

const WITHIN: Duration = Duration::from_secs(30);

fn exec(gateway: &Gateway, argv: &[&str]) -> Child {
    gateway
        .command(&[&["exec", "--agent", "demo", "--host", "--"], argv].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The ids of the questions that wait, oldest first, once there are so many.
fn questions(gateway: &Gateway, count: usize) -> Vec<String> {
    let end = Instant::now() + WITHIN;
    loop {
        let list = gateway.json(&["approvals", "list"]);
        let ids = list.as_array().unwrap().iter();
        let ids: Vec<String> = ids
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect();
        if ids.len() == count {
            return ids;
        }
        assert!(
            Instant::now() < end,
            "{} wait\n{}",
            ids.len(),
            gateway.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What `grants test` says of a command of the agent's.
fn tested(gateway: &Gateway, argv: &[&str]) -> Value {
    let words = ["--json", "grants", "test", "--agent", "demo", "--"];
    let output = gateway.cli(&[&words[..], argv].concat());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn questions_about_the_very_same_share_a_card_and_a_decision_is_for_those_it_names() {
    let gateway = Gateway::start();
    let first = exec(&gateway, &["uname", "-s"]);
    questions(&gateway, 1);
    let second = exec(&gateway, &["uname", "-s"]);
    let shown = questions(&gateway, 2);
    let list = said(&gateway.cli(&["approvals", "list"]));
    let line = list.lines().find(|line| line.contains("uname -s")).unwrap();
    assert!(line.starts_with(&format!("{} +1", shown[0])), "{list}");
    assert!(!list.contains(&shown[1]), "{list}");
    // The card of either lists both who ask, with the words that let both run.
    for id in &shown {
        let card = said(&gateway.cli(&["approvals", "show", id]));
        for part in [
            format!("asked by   {}  uid:0 over control", shown[0]),
            format!("{}  uid:0 over control", shown[1]),
            format!("approvals allow {} {}", shown[0], shown[1]),
        ] {
            assert!(card.contains(&part), "{part}: {card}");
        }
        let json = gateway.json(&["approvals", "show", id]);
        assert_eq!(json["sharedBy"], json!(shown));
    }
    // One that comes after the look stays, and another command is decided on by itself.
    let third = exec(&gateway, &["uname", "-s"]);
    let later = questions(&gateway, 3).remove(2);
    let other = exec(&gateway, &["id", "-u"]);
    let different = questions(&gateway, 4).remove(3);
    let mixed = gateway.cli(&["approvals", "allow", &shown[0], &different]);
    assert!(!mixed.status.success(), "{mixed:?}");
    assert!(said(&mixed).contains("different commands"), "{mixed:?}");
    questions(&gateway, 4);
    let both = gateway.cli(&["approvals", "allow", &shown[0], &shown[1]]);
    assert!(both.status.success(), "{both:?}");
    for child in [first, second] {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"Linux\n", "{output:?}");
    }
    assert_eq!(questions(&gateway, 2), [later.clone(), different.clone()]);
    // One that is over already is no reason against the others, and is told.
    let denied = gateway.cli(&["approvals", "deny", &later, &shown[0]]);
    assert!(!denied.status.success(), "{denied:?}");
    assert!(said(&denied).contains("already resolved"), "{denied:?}");
    assert_eq!(third.wait_with_output().unwrap().status.code(), Some(125));
    gateway.json(&["approvals", "deny", &different]);
    assert_eq!(other.wait_with_output().unwrap().status.code(), Some(125));
}

#[test]
fn everything_that_runs_without_asking_is_in_one_list_and_is_taken_back_from_there() {
    let (mut gateway, folder) = (Gateway::start(), open());
    let child = exec(&gateway, &["uname", "-s"]);
    let id = questions(&gateway, 1).remove(0);
    gateway.json(&["approvals", "allow", &id, "--always"]);
    child.wait_with_output().unwrap();
    let run = |gateway: &Gateway, argv: &[&str]| {
        let output = exec(gateway, argv).wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run(&gateway, &["uname", "-s"]);
    let document = json!({ "version": 1, "agents": { "demo": { "allowlist": [
        { "id": "dates", "pattern": "/usr/bin/date" },
    ] } } });
    let file = write(folder.path(), "policy.json", &document.to_string());
    let waits = gateway.cli(&["policy", "set", file.to_str().unwrap()]);
    assert!(said(&waits).contains("CHANGE_WAITS"), "{waits:?}");
    gateway.json(&["approvals", "allow", &questions(&gateway, 1)[0]]);
    run(&gateway, &["date", "+%s"]);
    run(&gateway, &["date", "+%s"]);
    let counts = |gateway: &Gateway| {
        let list = gateway.json(&["grants", "list"]);
        let of = |at: &str| list.pointer(at).cloned().unwrap_or_default();
        assert!(of("/grants/0/lastUsedAtMs").is_u64(), "{list}");
        assert!(of("/entries/0/lastUsedAtMs").is_u64(), "{list}");
        [
            of("/grants/0/useCount"),
            of("/entries/0/id"),
            of("/entries/0/useCount"),
        ]
    };
    let expected = [json!(1), json!("list:demo:dates"), json!(2)];
    assert_eq!(counts(&gateway), expected);
    let grant = format!("g-{id}");
    let text = said(&gateway.cli(&["grants", "list"]));
    for part in [
        grant.as_str(),
        "list:demo:dates",
        "/usr/bin/date (any arguments)",
        "config:agents.demo.exec=full",
        "every command",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Kept over a restart.
    assert_eq!(gateway.stop(), 0);
    gateway.launch();
    assert_eq!(counts(&gateway), expected);
    let test = |argv: &[&str]| tested(&gateway, argv);
    let by_grant = test(&["uname", "-s"]);
    assert_eq!(
        (&by_grant["covered"], &by_grant["grants"][0]["grantId"]),
        (&json!(true), &json!(grant))
    );
    let by_entry = test(&["date", "-u"]);
    assert_eq!(
        (&by_entry["covered"], &by_entry["entries"][0]["id"]),
        (&json!(true), &json!("list:demo:dates"))
    );
    assert_eq!(test(&["uname", "-r"])["covered"], false);
    let of_sandbox = ["grants", "test", "--sandbox", "--agent", "demo", "--", "x"];
    let by_mode = said(&gateway.cli(&of_sandbox));
    assert!(
        by_mode.contains("config:agents.demo.exec=full lets it run"),
        "{by_mode}"
    );
    gateway.json(&["grants", "revoke", "list:demo:dates"]);
    gateway.json(&["grants", "revoke", &grant]);
    let list = gateway.json(&["grants", "list"]);
    assert_eq!(
        (&list["grants"], &list["entries"]),
        (&json!([]), &json!([]))
    );
    let fixed = gateway.cli(&["grants", "revoke", "config:agents.demo.exec=full"]);
    assert!(!fixed.status.success());
    assert!(said(&fixed).contains("[agents.demo]"), "{fixed:?}");
    let child = exec(&gateway, &["date", "+%s"]);
    gateway.json(&["approvals", "deny", &questions(&gateway, 1)[0]]);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(125));
}

#[test]
fn what_is_similar_is_shown_with_what_it_would_have_matched_before_it_is_granted() {
    let (gateway, folder) = (Gateway::start(), open());
    let at = |name: &str| {
        let path = write(folder.path(), name, name);
        path.to_str().unwrap().to_owned()
    };
    let (zero, one, two) = (at("zero"), at("one"), at("two"));
    let before = exec(&gateway, &["cat", &zero]);
    gateway.json(&["approvals", "allow", &questions(&gateway, 1)[0]]);
    assert_eq!(before.wait_with_output().unwrap().stdout, b"zero");
    let child = exec(&gateway, &["cat", &one]);
    let id = questions(&gateway, 1).remove(0);
    // Without a yes it is only shown.
    let looked = gateway.cli(&["approvals", "allow", &id, "--similar"]);
    let text = said(&looked);
    assert!(!looked.status.success(), "{text}");
    let rule = format!("cat (any name in {})", folder.path().display());
    for part in [&rule, "would have matched 1\n", &zero, "nothing is granted"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    questions(&gateway, 1);
    assert_eq!(gateway.json(&["grants", "list"])["grants"], json!([]));
    let granted = gateway.json(&[
        "approvals",
        "allow",
        &id,
        "--similar",
        "--yes",
        "--for",
        "1h",
    ]);
    assert_eq!(granted["decision"], "allow-always");
    assert_eq!(child.wait_with_output().unwrap().stdout, b"one");
    let output = exec(&gateway, &["cat", &two]).wait_with_output().unwrap();
    assert_eq!(output.stdout, b"two", "{output:?}");
    let list = gateway.json(&["grants", "list"]);
    let grant = &list["grants"][0];
    assert_eq!(
        (&grant["command"], &grant["useCount"]),
        (&json!(rule), &json!(1))
    );
    let test = tested(&gateway, &["cat", &two]);
    assert_eq!(test["covered"], true, "{test}");
    // The record of the decision is checked by itself, rule and all, and who looked is on record.
    let log = gateway.json(&["audit", "tail"]);
    let records: &Vec<Value> = log["records"].as_array().unwrap();
    let of = |action: &str| records.iter().find(|one| one["action"] == action);
    assert!(of("approval.proposed").is_some(), "{log}");
    let decided = records
        .iter()
        .find(|one| one["action"] == "approval.resolve" && one["detail"]["similar"].is_string());
    let seq = decided.unwrap()["seq"].to_string();
    let shown = said(&gateway.cli(&["audit", "show", &seq]));
    assert!(shown.contains("the key of device"), "{shown}");
    // Of what starts others nothing is similar.
    let child = exec(&gateway, &["sh", &one]);
    let id = questions(&gateway, 1).remove(0);
    let refused = gateway.cli(&["approvals", "allow", &id, "--similar", "--yes"]);
    assert!(
        said(&refused).contains("nothing similar can be allowed"),
        "{refused:?}"
    );
    gateway.json(&["approvals", "deny", &id]);
    child.wait_with_output().unwrap();
}
