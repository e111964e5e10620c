//! The client of another maker, unmodified from its registry, pairs and calls.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::npm::Npm;

struct Node {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Node {
    fn start(clients: &Npm, gateway: &Gateway, patience_ms: u32) -> Self {
        let mut child = clients
            .node()
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/support/openclaw_node.mjs"
            ))
            .arg(clients.folder())
            .arg(format!("ws://127.0.0.1:{}", gateway.port()))
            .args([
                TOKEN,
                gateway.home().join("device.json").to_str().unwrap(),
                &patience_ms.to_string(),
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it says next, of this kind; what else it says before is passed over.
    fn says(&mut self, what: &str) -> Value {
        let mut before = vec![];
        for line in self.lines.by_ref() {
            let said: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if said["what"] == what {
                return said;
            }
            before.push(said);
        }
        panic!("the client never said {what:?}, but {before:?}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn device_token(gateway: &Gateway) -> Option<String> {
    let text = std::fs::read_to_string(gateway.home().join("device.json")).unwrap();
    let identity: Value = serde_json::from_str(&text).unwrap();
    identity["deviceToken"].as_str().map(str::to_owned)
}

#[test]
fn the_unmodified_npm_client_connects_pairs_and_calls_health() {
    let Some(clients) = Npm::find() else { return };
    let gateway = Gateway::start();
    let mut node = Node::start(&clients, &gateway, 0);
    let connected = node.says("connected");
    assert!(
        connected["methods"].as_u64().unwrap() > 10 && connected["knowsHealth"] == true,
        "{connected}"
    );
    assert_eq!(node.says("health")["answer"]["ok"], true);
    // It asks for methods that we do not have, and lives with the answer.
    for (what, method) in [
        ("sessions", "sessions.list"),
        ("agents", "agents.list"),
        ("channels", "channels.status"),
        ("chat", "agent"),
        ("wait", "agent.wait"),
    ] {
        let refused = node.says(what)["refused"].clone();
        assert_eq!(refused, format!("unknown method: {method}"));
    }
    let config = node.says("config");
    assert_eq!(config["answer"]["valid"], true, "{config}");
    assert_eq!(node.says("end")["here"], true);
    let token = device_token(&gateway).expect("it keeps the device token");

    // The next time it comes with its own token, in the field of the shared one.
    let mut node = Node::start(&clients, &gateway, 0);
    assert_eq!(node.says("health")["answer"]["ok"], true);
    assert_eq!(device_token(&gateway).as_deref(), Some(token.as_str()));
    let paired = gateway.json(&["devices", "list"])["paired"].clone();
    assert_eq!(paired.as_array().unwrap().len(), 1, "{paired}");
    assert_eq!(paired[0]["clientId"], "gateway-client");
}

#[test]
fn the_unmodified_npm_client_waits_for_a_person_and_then_connects() {
    let Some(clients) = Npm::find() else { return };
    let gateway = Gateway::with(&[("gateway.local.local_trust", "false")]);
    let mut node = Node::start(&clients, &gateway, 30_000);
    let waits = node.says("pairingRequired");
    assert_eq!(waits["reason"], "device is not approved yet");
    let id = waits["requestId"].as_str().expect("the request's id");
    gateway.json(&["devices", "approve", id]);
    node.says("connected");
    assert_eq!(node.says("health")["answer"]["ok"], true);
    drop(node);

    // Revoked, its own token is worth nothing.
    let paired = gateway.json(&["devices", "list"])["paired"][0].clone();
    gateway.json(&["devices", "revoke", paired["deviceId"].as_str().unwrap()]);
    let mut node = Node::start(&clients, &gateway, 0);
    assert_eq!(node.says("end")["here"], false);
}
