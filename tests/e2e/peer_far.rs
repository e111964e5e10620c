//! The peer's own programs from another machine, over TLS, as the device of a person who has been approved.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::net::{FAR, Far, NEAR, far};
use crate::support::npm::{Host, Npm, ended};

/// For programs that take seconds to load, on a machine that builds something else.
const PATIENCE: Duration = Duration::from_mins(4);

fn serving() -> Gateway {
    Gateway::with(&[("gateway.bind", "0.0.0.0"), ("gateway.tls.enabled", "true")])
}

/// The settings of the far machine: this address, this certificate, and the shared token if there is one.
fn knows(gateway: &Gateway, certificate: &str, token: Option<&str>) {
    let mut remote = json!({
        "url": format!("wss://{NEAR}:{}", gateway.port()), "tlsFingerprint": certificate,
    });
    if let Some(token) = token {
        remote["token"] = token.into();
    }
    let settings = json!({ "gateway": { "mode": "remote", "remote": remote } });
    Npm::settings(gateway, &settings);
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// Its answer as JSON; it must end with 0.
fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The one request that waits, once it does.
fn waits(gateway: &Gateway) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut list = gateway.json(&["devices", "list"]);
        let pending = list["pending"].as_array_mut().unwrap();
        assert!(pending.len() < 2, "{pending:?}");
        if let Some(request) = pending.pop() {
            return request;
        }
        assert!(Instant::now() < end, "nobody asks");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The one node, once it is so.
fn node(gateway: &Gateway, host: &Host, is: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let list = gateway.json(&["nodes", "list"]);
        if is(&list["nodes"][0]) {
            return list["nodes"][0].clone();
        }
        assert!(Instant::now() < end, "never: {list}\n{}", host.said());
        std::thread::sleep(Duration::from_millis(200));
    }
}

struct Machine<'a> {
    npm: &'a Npm,
    gateway: &'a Gateway,
    far: &'a Far,
}

impl Machine<'_> {
    fn openclaw(&self, words: &[&str]) -> Output {
        ended(self.far.moved(&self.npm.openclaw(self.gateway, words)))
    }

    fn json(&self, words: &[&str]) -> Value {
        answer(&self.openclaw(&[words, &["--json"]].concat()))
    }

    fn fails(&self, words: &[&str], says: &str) {
        let output = self.openclaw(words);
        let said = said(&output);
        assert!(
            !output.status.success() && said.contains(says),
            "{words:?}: {said}"
        );
    }
}

#[test]
fn the_unmodified_programs_come_from_another_machine_over_tls_as_a_device_that_a_person_approves() {
    let whole = "e2e::peer_far::the_unmodified_programs_come_from_another_machine_over_tls_as_a_device_that_a_person_approves";
    let Some(npm) = Npm::find() else { return };
    let Some(far) = far(whole) else { return };
    let mut gateway = serving();
    let leaf = gateway.json(&["tls", "show"])["sha256"].clone();
    let leaf = leaf.as_str().unwrap();
    // What was written down there is known after a restart.
    gateway.keep_port();
    assert_eq!(gateway.stop(), 0);
    gateway.launch();
    let machine = Machine {
        npm: &npm,
        gateway: &gateway,
        far: &far,
    };
    // Another certificate than the one it was told of gets nothing.
    knows(&gateway, &"0".repeat(64), Some(TOKEN));
    machine.fails(&["gateway", "call", "health"], "tls fingerprint mismatch");

    // The token alone is worth `health`, and a request that waits.
    knows(&gateway, leaf, Some(TOKEN));
    assert_eq!(machine.json(&["gateway", "call", "health"])["ok"], true);
    let status = ["gateway", "call", "status"];
    machine.fails(&status, "missing scope: operator.read");
    // It makes its key for what is more than a look.
    let pending = ["approvals", "pending"];
    machine.fails(&pending, "device pairing required (requestId: ");
    let request = waits(&gateway);
    let id = request["deviceId"].as_str().unwrap();
    assert_eq!(
        (
            &request["remoteIp"],
            &request["scopes"],
            &request["clientId"]
        ),
        (&json!(FAR[0]), &json!(["operator.admin"]), &json!("cli")),
        "{request}"
    );
    let requested = request["requestId"].as_str().unwrap();
    machine.fails(&status, requested);
    gateway.json(&["devices", "approve", requested]);
    assert_eq!(machine.json(&pending)["approvals"], json!([]));
    assert!(!machine.json(&status)["portcullis"].is_null());

    // It kept its own token, and comes back without the shared one.
    knows(&gateway, leaf, None);
    assert!(!machine.json(&status)["portcullis"].is_null());
    assert_eq!(
        machine.json(&["devices", "list"])["paired"][0]["deviceId"],
        id
    );

    // The same machine as a node: one device, and the other role is a person's word again.
    let port = gateway.port().to_string();
    let at = [
        "--host",
        NEAR,
        "--port",
        &port,
        "--tls",
        "--tls-fingerprint",
        leaf,
    ];
    let command = npm.node_run(&gateway, &at, Some(TOKEN));
    let mut host = Host::spawn(&gateway, far.moved(&command));
    let request = waits(&gateway);
    assert_eq!(
        (&request["deviceId"], &request["role"]),
        (&json!(id), &json!("node")),
        "{request}"
    );
    assert_eq!(gateway.json(&["nodes", "list"])["nodes"], json!([]));
    gateway.json(&["devices", "approve", request["requestId"].as_str().unwrap()]);
    let found = node(&gateway, &host, |node| node["connected"] == true);
    assert!(host.runs());
    assert_eq!(
        (&found["approvalState"], &found["commands"]),
        (&json!("pending-approval"), &json!([])),
        "{found}"
    );
    let surface = found["pendingRequestId"].as_str().unwrap();
    // Who asks cannot answer, also in its other role.
    let approve = ["nodes", "approve", surface];
    machine.fails(&approve, "device pairing approval denied");
    gateway.json(&approve);
    let params = r#"{"bins":["sh"]}"#;
    let ask = [
        "nodes",
        "invoke",
        "--node",
        "peer",
        "--command",
        "system.which",
    ];
    let told = machine.json(&[&ask[..], &["--params", params]].concat());
    assert!(told["payload"]["bins"]["sh"].is_string(), "{told}");
    let document = machine.json(&["approvals", "get", "--node", "peer"]);
    assert_eq!(document["file"]["version"], 1, "{document}");

    // Removed, it is a stranger in both roles.
    gateway.json(&["devices", "remove", id]);
    machine.fails(&status, "device token mismatch");
    node(&gateway, &host, Value::is_null);
}
