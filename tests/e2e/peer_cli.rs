//! The peer's own command line, `openclaw` from npm, unmodified, against the real gateway.

use std::io::Write as _;
use std::process::Output;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::npm::{Npm, ended};
use crate::support::ws::{Client, Connect, Device, admin, by_token, join};

/// What a person sets who wants that command line to do everything.
const ALL_SCOPES: (&str, &str) = ("gateway.auth.shared_token_scopes", r#"["operator.admin"]"#);

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Its own settings: where the gateway is, for the commands that take no `--url`.
fn configured(npm: &Npm, gateway: &Gateway, words: &[&str]) -> Output {
    let settings = json!({ "gateway": {
        "mode": "local", "port": gateway.port(), "auth": { "mode": "token", "token": TOKEN },
    }});
    Npm::settings(gateway, &settings);
    ended(npm.openclaw(gateway, words))
}

fn asks(device: &Device) -> Connect<'_> {
    Connect::token().scopes(&["operator.read"]).device(device)
}

/// It must fail, and say this.
fn fails(npm: &Npm, gateway: &Gateway, words: &[&str], says: &str) {
    let output = npm.run(gateway, words);
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(
        !output.status.success() && said.contains(says),
        "{words:?}: {said}"
    );
}

#[test]
fn the_unmodified_command_line_calls_methods_and_hears_exact_texts() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::start();
    let call = |method: &str| npm.json(&gateway, &["gateway", "call", method]);
    let health = call("health");
    assert_eq!(health["ok"], true, "{health}");
    let status = call("status");
    for key in [
        "runtimeVersion",
        "tasks",
        "sessions",
        "heartbeat",
        "portcullis",
    ] {
        assert!(!status[key].is_null(), "{key}: {status}");
    }
    let present = call("system-presence");
    assert_eq!(present[0]["mode"], "gateway", "{present}");
    let config = call("config.get");
    assert_eq!(
        (&config["valid"], &config["exists"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(
        call("device.pair.list"),
        json!({ "pending": [], "paired": [] })
    );
    for method in ["chat.send", "config.patch", "no.such"] {
        let words = ["gateway", "call", method];
        fails(&npm, &gateway, &words, &format!("unknown method: {method}"));
    }
    // Known, but not for this scope.
    let words = ["gateway", "call", "vault.list"];
    fails(&npm, &gateway, &words, "missing scope: operator.admin");
    // A wrong token is told so.
    let url = format!("ws://127.0.0.1:{}", gateway.port());
    let wrong = [
        "gateway", "call", "health", "--url", &url, "--token", "wrong",
    ];
    let output = ended(npm.openclaw(&gateway, &wrong));
    assert!(!output.status.success(), "{output:?}");
}

#[test]
fn the_unmodified_command_line_finds_and_probes_the_gateway() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::start();
    let json = |words: &[&str]| -> Value {
        let output = configured(&npm, &gateway, &[words, &["--json"]].concat());
        assert!(output.status.success(), "{words:?}: {output:?}");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{words:?}: {error}: {output:?}"))
    };
    assert_eq!(json(&["health"])["ok"], true);
    assert_eq!(json(&["gateway", "health"])["ok"], true);
    assert_eq!(json(&["nodes", "status"])["nodes"], json!([]));
    assert_eq!(json(&["nodes", "pending"]), json!([]));
    let status = json(&["status"]);
    assert_eq!(status["gateway"]["reachable"], true, "{status}");
    let version = env!("CARGO_PKG_VERSION");
    let status = json(&["gateway", "status"]);
    assert_eq!(status["rpc"]["ok"], true, "{status}");
    assert_eq!(status["gateway"]["version"], version, "{status}");
    let probe = json(&["gateway", "probe"]);
    assert_eq!(
        (&probe["ok"], &probe["degraded"]),
        (&true.into(), &false.into())
    );
    let target = &probe["targets"][0];
    assert_eq!(target["connect"]["rpcOk"], true, "{target}");
    assert_eq!(target["server"]["version"], version, "{target}");
    assert_eq!(target["self"]["version"], version, "{target}");
    assert_eq!(target["config"]["valid"], true, "{target}");
    let output = configured(&npm, &gateway, &["gateway", "status"]);
    let said = text(&output.stdout);
    assert!(
        output.status.success() && said.contains("Connectivity probe: ok"),
        "{output:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unmodified_command_line_manages_devices() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::with(&[("gateway.hosts", r#"["gate.example"]"#), ALL_SCOPES]);
    let (one, other) = (Device::new(), Device::new());
    for device in [&one, &other] {
        // Under this name nobody is local.
        let strange = [("host", "gate.example")];
        let mut client = Client::dial_with(&gateway, &strange).await.unwrap();
        client.denied(&asks(device)).await;
    }
    let devices = |words: &[&str]| npm.json(&gateway, &[&["devices"], words].concat());
    let list = devices(&["list"]);
    let pending = list["pending"].as_array().unwrap();
    assert_eq!(pending.len(), 2, "{list}");
    let request = |device: &Device| {
        let found = pending.iter().find(|p| p["deviceId"] == device.id());
        found.unwrap()["requestId"].as_str().unwrap().to_owned()
    };
    let approved = devices(&["approve", &request(&one)]);
    assert_eq!(approved["device"]["deviceId"], one.id(), "{approved}");
    devices(&["reject", &request(&other)]);
    fails(
        &npm,
        &gateway,
        &["devices", "approve", "no-such"],
        "No pending device request matches no-such",
    );
    let params = r#"{"requestId":"no-such"}"#;
    let call = ["gateway", "call", "device.pair.approve", "--params", params];
    fails(&npm, &gateway, &call, "unknown requestId");

    let (live, hello) = join(&gateway, &asks(&one)).await;
    let live = stays(live);
    let token = hello["auth"]["deviceToken"].as_str().unwrap().to_owned();
    let named = ["--device", &one.id(), "--name", "The laptop"];
    devices(&[&["rename"], &named[..]].concat());
    let list = devices(&["list"]);
    let paired = &list["paired"][0];
    assert_eq!(
        (&paired["operatorLabel"], &list["pending"]),
        (&json!("The laptop"), &json!([])),
        "{list}"
    );
    // Another client's rotation is not told the new token.
    let role = ["--device", &one.id(), "--role", "operator"];
    let rotated = devices(&[&["rotate"], &role[..]].concat());
    assert_eq!(
        rotated["tokenDelivery"], "withheld-cross-device",
        "{rotated}"
    );
    assert!(rotated.get("token").is_none(), "{rotated}");
    assert_eq!(live.await.unwrap(), 4001);
    let mut old = Client::dial(&gateway).await;
    let with_old = asks(&one).auth(json!({ "deviceToken": token }));
    old.denied(&with_old).await;

    let live = stays(join(&gateway, &asks(&one)).await.0);
    devices(&[&["revoke"], &role[..]].concat());
    assert_eq!(live.await.unwrap(), 4001);
    devices(&["remove", &one.id()]);
    assert_eq!(devices(&["list"])["paired"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unmodified_command_line_clears_all_devices_and_what_waits() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::with(&[("gateway.hosts", r#"["gate.example"]"#), ALL_SCOPES]);
    let devices = [Device::new(), Device::new(), Device::new(), Device::new()];
    for device in &devices {
        // Under this name nobody is local.
        let strange = [("host", "gate.example")];
        let mut client = Client::dial_with(&gateway, &strange).await.unwrap();
        client.denied(&asks(device)).await;
    }
    let list = || gateway.json(&["devices", "list"]);
    let request = |device: &Device| {
        let list = list();
        let pending = list["pending"].as_array().unwrap();
        let found = pending.iter().find(|p| p["deviceId"] == device.id());
        found.unwrap()["requestId"].clone()
    };
    let waiting = [request(&devices[2]), request(&devices[3])];
    let mut sockets = vec![];
    for device in &devices[..2] {
        gateway.json(&["devices", "approve", request(device).as_str().unwrap()]);
        sockets.push(stays(join(&gateway, &asks(device)).await.0));
    }
    // Not without the word.
    fails(&npm, &gateway, &["devices", "clear"], "without --yes");
    assert_eq!(list()["paired"].as_array().unwrap().len(), 2);
    let cleared = npm.json(&gateway, &["devices", "clear", "--yes"]);
    let set = |of: &Value| {
        let of = of.as_array().unwrap().iter();
        of.map(|id| id.as_str().unwrap().to_owned())
            .collect::<std::collections::BTreeSet<_>>()
    };
    let gone = set(&json!([devices[0].id(), devices[1].id()]));
    assert_eq!(set(&cleared["removedDevices"]), gone, "{cleared}");
    assert_eq!(cleared["rejectedPending"], json!([]));
    for socket in sockets {
        assert_eq!(socket.await.unwrap(), 4001);
    }
    // What waits is left, until that is asked for too.
    let left = list();
    assert_eq!(left["paired"], json!([]), "{left}");
    assert_eq!(left["pending"].as_array().unwrap().len(), 2, "{left}");
    let cleared = npm.json(&gateway, &["devices", "clear", "--yes", "--pending"]);
    assert_eq!(
        set(&cleared["rejectedPending"]),
        set(&json!(waiting)),
        "{cleared}"
    );
    assert_eq!(list()["pending"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unmodified_command_line_reads_and_decides_what_waits() {
    let Some(npm) = Npm::find() else { return };
    // With the settings as they come: what asks for admin here needs approvals only.
    let gateway = Gateway::start();
    let approvals = |words: &[&str]| npm.json(&gateway, &[&["approvals"], words].concat());
    let list = approvals(&["pending"]);
    assert!(!list.to_string().contains("a-1"), "{list}");
    let mut asker = Client::control(&gateway.state()).await;
    asker
        .hello(&Connect::bare().scopes(&["operator.admin"]))
        .await;
    for id in ["a-1", "b-2"] {
        let ask = json!({ "id": id, "commandArgv": ["/bin/echo", id], "host": "gateway", "agentId": "demo", "twoPhase": true });
        asker.ask("exec.approval.request", ask).await;
    }
    let mut told = answers(asker);
    for _ in 0..2 {
        assert_eq!(told.recv().await.unwrap()["payload"]["status"], "accepted");
    }
    let list = approvals(&["pending"]).to_string();
    assert!(list.contains("a-1") && list.contains("echo b-2"), "{list}");
    let output = npm.run(&gateway, &["approvals", "pending"]);
    assert!(
        text(&output.stdout).contains("Pending approvals (2)"),
        "{output:?}"
    );

    let resolved = approvals(&["resolve", "a-1", "allow-once"]);
    assert_eq!(resolved["applied"], true, "{resolved}");
    assert_eq!(resolved["approval"]["status"], "allowed");
    assert_eq!(
        told.recv().await.unwrap()["payload"]["decision"],
        "allow-once"
    );
    // The first answer stands.
    let again = approvals(&["resolve", "a-1", "allow-once"]);
    assert_eq!(again["alreadyResolved"], true, "{again}");
    let words = ["approvals", "resolve", "a-1", "deny"];
    fails(&npm, &gateway, &words, "already resolved with allow-once");
    approvals(&["resolve", "b-2", "deny"]);
    assert_eq!(told.recv().await.unwrap()["payload"]["decision"], "deny");
    let words = ["approvals", "resolve", "c-3", "deny"];
    fails(&npm, &gateway, &words, "approval not found");
    // By its whole id only.
    fails(
        &npm,
        &gateway,
        &["approvals", "resolve", "a-", "deny"],
        "approval not found",
    );

    let history = npm.json(&gateway, &["gateway", "call", "approval.history"]);
    let items = history["items"].as_array().unwrap();
    assert_eq!(items.len(), 2, "{history}");
    assert_eq!(
        (&items[0]["id"], &items[0]["decision"]),
        (&json!("b-2"), &json!("deny"))
    );
    let mut client = by_token(&gateway, &["operator.approvals"]).await;
    let page = client.get("approval.history", json!({ "limit": 1 })).await;
    assert_eq!(page["nextCursor"], "b-2", "{page}");
    let next = json!({ "limit": 1, "cursor": page["nextCursor"] });
    let page = client.get("approval.history", next).await;
    assert_eq!(
        (&page["items"][0]["id"], page.get("nextCursor")),
        (&json!("a-1"), None)
    );
    for method in ["plugin.approval.list", "openclaw.approval.list"] {
        assert_eq!(client.get(method, json!({})).await, json!([]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unmodified_command_line_lists_and_revokes_standing_grants() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::start();
    let grants = |words: &[&str]| {
        let output = npm.run(&gateway, &[&["approvals", "grants"], words].concat());
        assert!(output.status.success(), "{words:?}: {output:?}");
        text(&output.stdout)
    };
    assert!(grants(&["list"]).contains("No standing grants"));
    let mut asker = admin(&gateway).await;
    for id in ["a-1", "b-2"] {
        let ask = json!({ "id": id, "commandArgv": ["/bin/echo", id], "host": "gateway", "agentId": "demo", "twoPhase": true });
        let asked = asker.ask("exec.approval.request", ask).await;
        assert_eq!(asker.answer(&asked).await["payload"]["status"], "accepted");
        npm.json(&gateway, &["approvals", "resolve", id, "allow-always"]);
        let told = asker.answer(&asked).await;
        assert_eq!(told["payload"]["decision"], "allow-always", "{told}");
    }
    let list = npm.json(&gateway, &["approvals", "grants", "list"]);
    let newest = &list["grants"][0];
    assert_eq!(
        (&newest["mintedByApprovalId"], &newest["revokedAtMs"]),
        (&json!("b-2"), &Value::Null),
        "{list}"
    );
    let table = grants(&["list"]);
    for says in ["Standing grants (2)", "demo", "echo a-1", "expires in"] {
        assert!(table.contains(says), "{says}: {table}");
    }
    let id = newest["grantId"].as_str().unwrap();
    assert!(!table.contains("revoked") && table.contains(id));
    let table = grants(&["list", "--limit", "1"]);
    assert!(
        table.contains("echo b-2") && !table.contains("echo a-1"),
        "{table}"
    );
    assert!(grants(&["revoke", id]).contains("revoked. The next occurrence prompts again"));
    let table = grants(&["list"]);
    assert!(
        table.contains("echo a-1") && !table.contains("echo b-2"),
        "{table}"
    );
    let words = ["approvals", "grants", "revoke", id];
    fails(&npm, &gateway, &words, "no such grant");
}

#[test]
fn the_unmodified_command_line_reads_and_sets_the_document_and_is_told_that_a_freer_one_waits() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::with(&[ALL_SCOPES]);
    let approvals = |words: &[&str]| npm.json(&gateway, &[&["approvals"], words].concat());
    let get = || approvals(&["get", "--gateway"]);
    let before = get();
    assert_eq!(before["exists"], true, "{before}");
    assert_eq!(before["file"]["version"], 1);
    let output = npm.run(&gateway, &["approvals", "get", "--gateway"]);
    assert!(output.status.success(), "{output:?}");

    let file = gateway.home().join("strict.json");
    let strict = json!({ "version": 1, "defaults": { "security": "deny", "ask": "off" } });
    std::fs::File::create(&file)
        .unwrap()
        .write_all(strict.to_string().as_bytes())
        .unwrap();
    let set = approvals(&["set", "--gateway", "--file", file.to_str().unwrap()]);
    assert_eq!(set["file"]["defaults"]["security"], "deny", "{set}");
    assert_eq!(get()["hash"], set["hash"]);

    // A list that lets more run is another operator's word: not done, said so, and done once that word is given.
    let add = [
        "approvals",
        "allowlist",
        "add",
        "--gateway",
        "--agent",
        "demo",
        "/usr/bin/uptime",
    ];
    fails(&npm, &gateway, &add, "nothing is changed yet");
    assert_eq!(get()["hash"], set["hash"]);
    let waits = gateway.json(&["approvals", "list"]);
    let id = waits[0]["id"].as_str().unwrap();
    let line = waits[0]["request"]["command"].as_str().unwrap();
    assert!(line.contains("/usr/bin/uptime"), "{line}");
    // Nor its own on another connection with the same token.
    let own = ["approvals", "resolve", id, "allow-once"];
    fails(&npm, &gateway, &own, "who asked cannot approve");
    gateway.json(&["approvals", "allow", id]);
    let after = get();
    assert_eq!(
        after["file"]["agents"]["demo"]["allowlist"][0]["pattern"], "/usr/bin/uptime",
        "{after}"
    );
    let mut remove = add;
    remove[2] = "remove";
    npm.json(&gateway, &remove);
    assert!(!get().to_string().contains("uptime"));
}

/// A node host that answers `system.which` with one path, until its socket ends.
async fn node(gateway: &Gateway, device: &Device) -> tokio::task::JoinHandle<()> {
    let mut host = Client::dial(gateway).await;
    let connect = Connect::token()
        .role("node")
        .device(device)
        .named("workshop");
    let mut params = connect.params(&host.nonce, host.ts);
    params["caps"] = json!(["system"]);
    params["commands"] = json!(["system.run", "system.run.prepare", "system.which"]);
    host.get("connect", params).await;
    tokio::spawn(async move {
        // Without a time-out: that command line takes its time between two questions.
        while let Some(Ok(message)) = host.ws.next().await {
            let frame: Value = match message {
                Message::Text(text) => serde_json::from_str(&text).unwrap(),
                _ => continue,
            };
            if frame["event"] == "node.invoke.request" {
                let asked = &frame["payload"];
                let answer = json!({
                    "id": asked["id"], "nodeId": asked["nodeId"], "ok": true,
                    "payloadJSON": r#"{"bins":{"uname":"/usr/bin/uname"}}"#,
                });
                host.ask("node.invoke.result", answer).await;
            }
        }
    })
}

/// Stays and answers pings; the answers that come.
fn answers(mut client: Client) -> tokio::sync::mpsc::UnboundedReceiver<Value> {
    let (tx, rx) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = client.ws.next().await {
            let Message::Text(text) = message else {
                continue;
            };
            let frame: Value = serde_json::from_str(&text).unwrap();
            if frame["type"] == "res" && tx.send(frame).is_err() {
                return;
            }
        }
    });
    rx
}

/// Stays and answers pings; the code that it is closed with.
fn stays(mut client: Client) -> tokio::task::JoinHandle<u16> {
    tokio::spawn(async move {
        while let Some(Ok(message)) = client.ws.next().await {
            if let Message::Close(Some(frame)) = message {
                return frame.code.into();
            }
        }
        1006
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unmodified_command_line_lists_approves_and_asks_nodes() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::with(&[ALL_SCOPES]);
    let nodes = |words: &[&str]| npm.json(&gateway, &[&["nodes"], words].concat());
    assert_eq!(nodes(&["status"])["nodes"], json!([]));
    let device = Device::new();
    let id = device.id();
    let host = node(&gateway, &device).await;
    let status = nodes(&["status"]);
    assert_eq!(status["nodes"][0]["nodeId"], id, "{status}");
    let ask = [
        "nodes",
        "invoke",
        "--node",
        &id,
        "--command",
        "system.which",
        "--params",
        r#"{"bins":["uname"]}"#,
    ];
    // Nothing is asked of it before a person said so.
    assert!(!npm.run(&gateway, &ask).status.success());
    let pending = nodes(&["pending"]);
    let request = pending
        .as_array()
        .map_or(&pending["pending"][0], |list| &list[0]);
    let request = request["requestId"]
        .as_str()
        .unwrap_or_else(|| panic!("{pending}"));
    nodes(&["approve", request]);
    let described = nodes(&["describe", "--node", &id]);
    assert_eq!(described["approvalState"], "approved", "{described}");
    let list = nodes(&["list"]).to_string();
    assert!(list.contains(&id), "{list}");
    let answer = npm.json(&gateway, &ask);
    assert_eq!(
        answer["payload"]["bins"]["uname"], "/usr/bin/uname",
        "{answer}"
    );
    nodes(&["rename", "--node", &id, "--name", "The bench"]);
    assert!(nodes(&["status"]).to_string().contains("The bench"));
    nodes(&["remove", "--node", &id]);
    host.await.unwrap();
}
