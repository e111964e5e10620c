//! One command outside the sandbox, from the socket to the record, as one trace at a collector.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::collector::Collector;
use crate::support::gateway::Gateway;
use crate::support::protobuf::Span;

#[test]
fn a_run_with_its_approval_is_one_trace_from_the_socket_to_the_record() {
    let collector = Collector::start();
    let mut gateway = Gateway::with(&[
        ("telemetry.otlp.enabled", "true"),
        ("telemetry.otlp.endpoint", collector.endpoint()),
    ]);
    let argv = ["exec", "--agent", "demo", "--host", "--", "echo", "hunter2"];
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
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(gateway.stop(), 0);
    let all = collector.spans();
    let run = all
        .iter()
        .find(|s| s.attributes.contains(&("rpc.method".into(), "exec.run".into())))
        .unwrap();
    for span in &all {
        if span.trace == run.trace {
            println!("{:?} {:?} {} {:?}", span.id, span.parent, span.name, span.attributes);
        }
    }
    let _: Option<Span> = None;
    panic!("{}", collector.requests());
}
