//! One command outside the sandbox, from the socket to the record, as one trace at a collector.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::collector::Collector;
use crate::support::gateway::Gateway;
use crate::support::protobuf::Span;

const SECRET: &str = "hunter2-in-an-argument";

/// A host command that a person allows; then the gateway stops, and sends what it still has.
fn run_and_stop(gateway: &mut Gateway) -> String {
    let argv = [
        "exec", "--agent", "demo", "--host", "--", "sh", "-c", "exit 5", SECRET,
    ];
    let mut command = gateway.command(&argv);
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    let id = loop {
        let list = gateway.json(&["approvals", "list"]);
        if let Some(id) = list[0]["id"].as_str() {
            break id.to_owned();
        }
        assert!(Instant::now() < end, "no question");
    };
    gateway.json(&["approvals", "allow", &id]);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(5));
    assert_eq!(gateway.stop(), 0);
    id
}

fn value<'a>(span: &'a Span, key: &str) -> &'a str {
    let found = span.attributes.iter().find(|(k, _)| k == key);
    found.map_or("", |(_, value)| value)
}

#[test]
fn a_run_with_its_approval_is_one_trace_from_the_socket_to_the_record() {
    let collector = Collector::start();
    let mut gateway = Gateway::with(&[
        ("telemetry.otlp.enabled", "true"),
        ("telemetry.otlp.endpoint", collector.endpoint()),
    ]);
    let boxed = gateway.cli(&["exec", "--agent", "demo", "--", "true"]);
    assert!(boxed.status.success(), "{boxed:?}");
    let approval = run_and_stop(&mut gateway);
    let all = collector.spans();
    let acts = |name: &str| {
        let mut acts = all.iter().filter(|s| s.name == name);
        let act = acts.next().unwrap_or_else(|| panic!("{name}: {all:?}"));
        assert!(acts.next().is_none(), "two of {name}");
        act
    };
    let root = |of: &Span| {
        let mut roots = all
            .iter()
            .filter(|s| s.trace == of.trace && s.parent.is_empty());
        let root = roots.next().unwrap();
        assert!(
            root.name == "exec.run" && roots.next().is_none(),
            "{root:?}"
        );
        root
    };
    let boxed = acts("sandbox.run");
    let inside = all.iter().filter(|s| s.parent == boxed.id);
    let inside: Vec<_> = inside.map(|s| s.name.as_str()).collect();
    assert_eq!(inside, ["sandbox_pool"]);
    assert_ne!(root(boxed).trace, root(acts("host.run")).trace);
    let request = root(acts("host.run"));
    let trace: Vec<_> = all.iter().filter(|s| s.trace == request.trace).collect();
    // Nobody without a parent.
    let parent = |span: &Span| trace.iter().find(|s| s.id == span.parent).copied();
    for span in &trace {
        assert!(span.id == request.id || parent(span).is_some(), "{span:?}");
        assert!(
            span.start <= span.end && span.start >= request.start,
            "{span:?}"
        );
    }
    for (key, expected) in [
        ("portcullis.actor.type", "connection"),
        ("rpc.method", "exec.run"),
        ("portcullis.role", "operator"),
        ("portcullis.door", "control.sock"),
    ] {
        assert_eq!(value(request, key), expected, "{request:?}");
    }
    assert_eq!(value(request, "session.id").len(), 36);
    // Each span's way to the root, from it: so are the rooms entered, and the host's process is the run's.
    let way = |span: &Span| {
        let mut names = vec![span.name.clone()];
        let mut at = span;
        while let Some(up) = parent(at) {
            names.push(up.name.clone());
            at = up;
        }
        names.reverse();
        names.join(" > ")
    };
    let ways: Vec<_> = trace.iter().map(|span| way(span)).collect();
    for expected in [
        "exec.run",
        "exec.run > exec",
        "exec.run > exec > run",
        "exec.run > exec > run > approval",
        "exec.run > exec > run > approval > audit",
        "exec.run > exec > run > approval.wait",
        "exec.run > exec > run > approval.wait > approval",
        "exec.run > exec > run > host.run",
        "exec.run > exec > run > audit",
    ] {
        assert!(
            ways.iter().any(|way| way == expected),
            "{expected}: {ways:#?}"
        );
    }
    let named = |name: &str| trace.iter().find(|s| s.name == name).unwrap();
    assert_eq!(
        value(named("approval.wait"), "portcullis.approval.id"),
        approval
    );
    let (wait, act) = (named("approval.wait"), named("host.run"));
    assert!(
        wait.end <= act.start,
        "it waits, then it acts: {wait:?} {act:?}"
    );
    assert_eq!(value(act, "process.exit.code"), "5");
    assert_eq!(value(act, "gen_ai.agent.id"), "demo");
    // The record, by its number, under the hash of the plan.
    let seq = value(act, "portcullis.audit.seq");
    gateway.launch();
    let found = gateway.json(&["audit", "query", "--since-seq", seq, "--until-seq", seq]);
    let record = &found["records"][0]["record"];
    assert_eq!(record["action"], "exec.run", "{found}");
    assert_eq!(record["object"], value(act, "portcullis.run.id"));
    assert_eq!(record["plan_hash"], value(act, "portcullis.plan.hash"));
    // Who came in, and by which door, has a trace of its own.
    let connect = all.iter().find(|s| s.name == "connect").unwrap();
    assert!(connect.parent.is_empty() && connect.trace != request.trace);
    assert_eq!(value(connect, "portcullis.door"), "control.sock");
    // No argument leaves, and no event, whose text is free.
    assert!(!collector.has(SECRET) && all.iter().all(|s| s.events == 0));
}

#[test]
fn without_the_setting_nothing_is_sent() {
    let collector = Collector::start();
    let mut gateway = Gateway::with(&[("telemetry.otlp.endpoint", collector.endpoint())]);
    run_and_stop(&mut gateway);
    assert_eq!(collector.requests(), 0);
}
