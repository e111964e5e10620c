//! One command outside the sandbox, from the socket to the record, as one trace at a collector.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;

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

/// An authority, its certificate's file, and a server's settings under it.
fn authority(gateway: &Gateway) -> (std::path::PathBuf, Arc<rustls::ServerConfig>) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let file = gateway.home().join("ca.pem");
    std::fs::write(&file, ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.into())
        .unwrap();
    (file, Arc::new(config))
}

#[test]
fn spans_go_over_tls_to_a_collector_that_is_verified_and_to_no_other() {
    for is_trusted in [true, false] {
        let mut gateway = Gateway::prepared(&[("telemetry.otlp.enabled", "true")]);
        let (file, config) = authority(&gateway);
        let collector = Collector::start_tls(config);
        gateway.set("telemetry.otlp.endpoint", collector.endpoint());
        if is_trusted {
            gateway.set("SSL_CERT_FILE", file.to_str().unwrap());
        }
        gateway.launch();
        let ran = gateway.cli(&["exec", "--agent", "demo", "--", "true"]);
        assert!(ran.status.success(), "{ran:?}");
        assert_eq!(gateway.stop(), 0);
        let names: Vec<_> = collector.spans().into_iter().map(|s| s.name).collect();
        assert_eq!(
            names.iter().any(|n| n == "exec.run"),
            is_trusted,
            "{names:?}"
        );
        assert_eq!(collector.requests() > 0, is_trusted);
        if !is_trusted {
            assert!(
                gateway.log().contains("spans were not exported"),
                "{}",
                gateway.log()
            );
        }
    }
}

#[test]
fn a_plain_collector_on_another_machine_starts_nothing() {
    let mut gateway = Gateway::prepared(&[("telemetry.otlp.enabled", "true")]);
    for endpoint in [
        "http://192.0.2.1:4318/v1/traces",
        "https://me:secret@collector.example/v1/traces",
    ] {
        gateway.set("telemetry.otlp.endpoint", endpoint);
        let (code, log) = gateway.refused();
        assert_eq!(code, 2, "{log}");
        assert!(
            log.contains("telemetry.otlp.endpoint") && !log.contains("secret"),
            "{log}"
        );
    }
}
