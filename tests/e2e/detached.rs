//! `portcullis exec --detach` and `portcullis attach`.

use std::io::{BufRead as _, BufReader};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;

const SOON: Duration = Duration::from_mins(1);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn detached(gateway: &Gateway, script: &str) -> String {
    let words = [
        "exec", "--agent", "demo", "--detach", "--", "sh", "-c", script,
    ];
    let output = gateway.cli(&words);
    assert!(output.status.success(), "{output:?}");
    let run = text(&output.stdout).trim().to_owned();
    assert!(run.starts_with("run-"), "{run}");
    run
}

fn attach(gateway: &Gateway, words: &[&str]) -> Output {
    gateway.cli(&[&["attach"], words].concat())
}

#[track_caller]
fn refused(output: &Output, code: &str) {
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains(&format!("error[{code}]: ")), "{said}");
}

fn a_run_goes_on(gateway: &Gateway) {
    let run = detached(
        gateway,
        "echo out; echo err >&2; until [ -e go ]; do sleep 0.05; done; echo last; exit 7",
    );
    // One that reads along, and leaves.
    let mut child = gateway
        .command(&["attach", &run])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "out");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // Longer than a lost connection lets others run.
    std::thread::sleep(Duration::from_secs(3));
    let go = gateway.cli(&["exec", "--agent", "demo", "--", "touch", "go"]);
    assert!(go.status.success(), "{go:?}");
    for _ in 0..2 {
        let end = attach(gateway, &[&run]);
        assert_eq!(
            (
                text(&end.stdout).as_str(),
                text(&end.stderr).as_str(),
                end.status.code()
            ),
            ("out\nlast\n", "err\n", Some(7))
        );
    }
    let json = attach(gateway, &["--json", &run]);
    let last: Value = serde_json::from_str(text(&json.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["status"], &last["exit"]),
        (&"exited".into(), &7.into()),
        "{last}"
    );
    let seq = last["provenance"]["auditSeq"].to_string();
    let record = gateway.json(&["audit", "show", &seq]).to_string();
    assert!(record.contains("detach"), "{record}");

    let long = detached(gateway, "echo on; sleep 600");
    let end = attach(gateway, &["--cancel", &long]);
    assert_eq!(
        (text(&end.stdout).as_str(), end.status.code()),
        ("on\n", Some(130)),
        "{end:?}"
    );
    refused(
        &attach(gateway, &["run-00000000-0000-4000-8000-000000000000"]),
        "RUN_NOT_FOUND",
    );

    // Another takes the reader's place.
    let run = detached(gateway, "echo on; sleep 600");
    let first = gateway
        .command(&["attach", &run])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let end = attach(gateway, &["--cancel", &run]);
    assert_eq!(end.status.code(), Some(130), "{end:?}");
    refused(&first.wait_with_output().unwrap(), "RUN_READ_ELSEWHERE");
}

#[test]
fn a_detached_run_of_a_native_box_goes_on_and_is_read_later() {
    a_run_goes_on(&Gateway::start());
}

#[test]
fn a_detached_run_of_a_docker_box_goes_on_and_is_read_later() {
    let engine = Engine::shared();
    let host = engine.host();
    a_run_goes_on(&Gateway::with(&[
        ("sandbox.driver", "docker"),
        ("sandbox.engine", &host),
    ]));
}

#[test]
fn a_detached_run_waits_for_a_person_without_its_caller_and_runs_once_allowed() {
    let gateway = Gateway::with(&[("agents.demo.exec", "ask")]);
    let run = detached(&gateway, "echo ran");
    std::thread::sleep(Duration::from_secs(3));
    let id = gateway.json(&["approvals", "list"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(gateway.cli(&["approvals", "allow", &id]).status.success());
    let end = Instant::now() + SOON;
    let output = loop {
        let output = attach(&gateway, &[&run]);
        if output.status.code() == Some(0) {
            break output;
        }
        assert!(Instant::now() < end, "{output:?}");
    };
    assert_eq!(text(&output.stdout), "ran\n");
    // A detached run that policy refuses says so at once.
    let words = [
        "exec", "--agent", "demo", "-d", "--cwd", "relative", "--", "true",
    ];
    assert_eq!(gateway.cli(&words).status.code(), Some(125));
}

/// Where each session has a box of its own, a detached run is none of its connection's.
#[test]
fn a_detached_run_of_a_session_keeps_its_box_when_the_connection_ends() {
    let gateway = Gateway::with(&[("agents.demo.sandbox.scope", "session")]);
    let run = detached(&gateway, "echo on; sleep 5; echo over");
    std::thread::sleep(Duration::from_secs(3));
    let end = attach(&gateway, &[&run]);
    assert_eq!(
        (text(&end.stdout).as_str(), end.status.code()),
        ("on\nover\n", Some(0)),
        "{end:?}"
    );
}
