//! A gateway that is killed under its runs: the next one finds out how they ended.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;

const SOON: Duration = Duration::from_mins(1);

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn runs_are_found(mut gateway: Gateway) {
    let workspace = gateway.state().join("workspaces/demo");
    let mut children = Vec::new();
    for script in ["touch one; sleep 1; exit 3", "touch two; sleep 600"] {
        let child = gateway
            .command(&["exec", "--agent", "demo", "--", "sh", "-c", script])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        children.push(child);
    }
    for mark in ["one", "two"] {
        until("it does not begin", || {
            workspace.join(mark).exists().then_some(())
        });
    }
    gateway.kill();
    for mut child in children {
        assert_eq!(child.wait().unwrap().code(), Some(125));
    }
    // Nobody is there when the first one ends.
    std::thread::sleep(Duration::from_millis(1500));
    gateway.launch();
    let found: Vec<Value> = until("they are not found", || {
        let all = gateway.json(&["audit", "query", "--action", "exec.found"]);
        let all = all["records"].as_array().cloned().unwrap_or_default();
        (all.len() >= 2).then_some(all)
    });
    assert_eq!(found.len(), 2, "{found:?}");
    let runs = gateway.json(&["audit", "query", "--action", "exec.run"]);
    let text = format!("{found:?}");
    let mut ends = Vec::new();
    for record in &found {
        // Each is one of those that the log has as unknown.
        let object = record["record"]["object"]
            .as_str()
            .unwrap_or_else(|| panic!("{record}"));
        let of = runs["records"].as_array().unwrap().iter();
        let mut of = of.filter(|run| run["record"]["object"] == object);
        let run = of.next().unwrap_or_else(|| panic!("{object} in {runs}"));
        assert!(run.to_string().contains("unknown"), "{run}");
        let detail = &record["record"]["detail"];
        ends.push(format!(
            "{} {} {}",
            detail["status"], detail["exit_code"], detail["signal"]
        ));
    }
    ends.sort();
    assert_eq!(
        ends,
        ["\"ended\" null \"15\"", "\"exited\" \"3\" null"],
        "{text}"
    );
    // And nothing of them is left.
    let left = until("it is not ended", || {
        let output = std::process::Command::new("pgrep")
            .args(["-f", "touch two; sleep 600"])
            .output()
            .unwrap();
        output.stdout.is_empty().then_some(output)
    });
    drop(left);
    let again = gateway.cli(&["exec", "--agent", "demo", "--", "true"]);
    assert!(again.status.success(), "{again:?}");
}

#[test]
fn what_ran_in_a_native_box_when_the_gateway_was_killed_is_found_and_ended() {
    runs_are_found(Gateway::start());
}

#[test]
fn what_ran_in_a_docker_box_when_the_gateway_was_killed_is_found_and_ended() {
    let engine = Engine::shared();
    let host = engine.host();
    runs_are_found(Gateway::with(&[
        ("sandbox.driver", "docker"),
        ("sandbox.engine", &host),
    ]));
}

#[test]
fn runs_of_a_gateway_that_does_not_come_back_end_after_half_a_minute() {
    let mut gateway = Gateway::start();
    let mut child = gateway
        .command(&[
            "exec",
            "--agent",
            "demo",
            "--",
            "sh",
            "-c",
            "touch on; sleep 601",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let workspace = gateway.state().join("workspaces/demo");
    until("it does not begin", || {
        workspace.join("on").exists().then_some(())
    });
    gateway.kill();
    child.wait().unwrap();
    let begun = Instant::now();
    let runs = || {
        let found = std::process::Command::new("pgrep")
            .args(["-f", "touch on; sleep 601"])
            .output();
        !found.unwrap().stdout.is_empty()
    };
    std::thread::sleep(Duration::from_secs(5));
    assert!(runs(), "kept for the next gateway");
    until("it goes on", || (!runs()).then_some(()));
    let took = begun.elapsed();
    // Its box would end after a minute, whatever runs in it.
    assert!((25..50).contains(&took.as_secs()), "{took:?}");
}
