//! The same commands where the engine is Podman without root, as the gateway's own ordinary user is. Where it is
//! (`cargo xtask long cgroup2`); elsewhere nothing is tried.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::gateway::Gateway;
use crate::support::rootless::{Kind, Rootless, is_wanted};

#[test]
fn the_same_commands_run_behind_podman_without_root_and_nothing_gets_out() {
    if !is_wanted() {
        return;
    }
    let uid = rustix::process::getuid().as_raw();
    assert_ne!(uid, 0);
    let engine = Rootless::shared(Kind::Podman);
    let gateway = Gateway::with(&[
        ("sandbox.driver", "docker"),
        ("sandbox.engine", &engine.host()),
    ]);
    let script = "echo x > f && cat f && ! (echo x > /etc/x) 2>/dev/null && id -u";
    // On an emulated machine an engine that has just begun may answer late; it is tried again by itself.
    let end = Instant::now() + Duration::from_mins(3);
    let output = loop {
        let output = gateway.cli(&["exec", "--agent", "demo", "--", "sh", "-c", script]);
        if output.status.success() || Instant::now() > end {
            break output;
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    assert!(output.status.success(), "{output:?}\n{}", gateway.log());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("x\n{uid}\n"));
    // What it wrote is the gateway's user's.
    let written = gateway.state().join("workspaces/demo/f");
    let owner = std::os::unix::fs::MetadataExt::uid(&written.metadata().unwrap());
    assert_eq!(owner, uid);

    let status = gateway.json(&["status"]).to_string();
    assert!(status.contains(" without root at "), "{status}");
    let explained = gateway.json(&["sandbox", "explain", "--agent", "demo"]);
    let lines = explained["lines"].as_array().unwrap();
    let user = lines.iter().find(|line| line["key"] == "uid").unwrap();
    assert_eq!(user["value"], uid);

    let tried = gateway.cli(&["sandbox", "selftest", "--json"]);
    let document: Value = serde_json::from_slice(&tried.stdout).unwrap();
    let attempts = document["attempts"].as_array().unwrap();
    let not = |attempt: &&Value| attempt["result"] != "contained";
    let not: Vec<String> = attempts.iter().filter(not).map(Value::to_string).collect();
    let most = if std::env::var_os("PORTCULLIS_TEST_SLACK").is_some() {
        // An attempt has so many seconds, and what fills something may not have filled it by then on an emulated machine.
        3
    } else {
        0
    };
    for attempt in &not {
        let is_slow = attempt.contains("\"unknown\"") && attempt.contains("it hung and was ended");
        // A machine without a network has no address of its own to be tried at.
        let is_away = attempt.contains("no address was given");
        assert!(is_slow || is_away, "{attempt}");
        println!("NOT RUN: {attempt}");
    }
    assert!(not.len() <= most, "{not:?}");
    let contained = attempts.len() - not.len();
    println!(
        "FIGURE: {contained} of {} attempts contained",
        attempts.len()
    );
    assert!(contained > 130, "{document}");
}

#[test]
fn docker_without_root_makes_no_box_and_who_asks_is_told_why() {
    if !is_wanted() {
        return;
    }
    let engine = Rootless::shared(Kind::Docker);
    let gateway = Gateway::with(&[
        ("sandbox.driver", "docker"),
        ("sandbox.engine", &engine.host()),
    ]);
    let output = gateway.cli(&["exec", "--agent", "demo", "--", "true"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("error[NO_DRIVER]") && said.contains("the engine is Docker without root"),
        "{said}"
    );
}
