//! Setup codes: a person's word given ahead, for one new device, once.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use portcullis_core::token::{Token, TokenKind};
use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin, join, random};

/// Nobody is trusted for being here.
fn strict() -> Gateway {
    Gateway::with(&[("gateway.local.local_trust", "false")])
}

/// What the code holds: the address and the secret.
pub fn read(answer: &Value) -> (String, String) {
    let code = answer["setupCode"].as_str().unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(code).unwrap();
    let held: Value = serde_json::from_slice(&bytes).unwrap();
    let text = |key: &str| held[key].as_str().unwrap().to_owned();
    (text("url"), text("bootstrapToken"))
}

async fn code(by: &mut Client, role: &str, scopes: &[&str]) -> (String, String) {
    let gives = if role == "node" {
        json!({"bootstrapProfile": "node"})
    } else {
        json!({"role": role, "scopes": scopes})
    };
    let made = by.get("device.pair.setupCode", gives).await;
    let id = made["setupId"].as_str().unwrap().to_owned();
    (id, read(&made).1)
}

fn with<'a>(code: &str, device: &'a Device) -> Connect<'a> {
    Connect::bare()
        .auth(json!({ "bootstrapToken": code }))
        .device(device)
}

/// Of the right shape, and of nobody's making.
fn wrong(id: &str) -> String {
    let token = Token::from_random(TokenKind::Setup, &random::<32>());
    format!("{id}.{}", token.expose())
}

async fn denied(gateway: &Gateway, connect: &Connect<'_>) -> String {
    let (error, _) = Client::dial(gateway).await.denied(connect).await;
    error["details"]["code"].as_str().unwrap().to_owned()
}

/// Pixels of a module.
const SCALE: usize = 4;
const INVALID: &str = "AUTH_BOOTSTRAP_TOKEN_INVALID";

#[tokio::test(flavor = "multi_thread")]
async fn a_setup_code_pairs_one_new_device_once_with_its_scopes_and_each_use_is_on_record() {
    let gateway = strict();
    let made = gateway.json(&["devices", "setup-code", "--scopes", "read,write"]);
    let (url, secret) = read(&made);
    assert_eq!(url, format!("ws://127.0.0.1:{}", gateway.port()));
    let id = made["setupId"].as_str().unwrap();
    let mut operator = admin(&gateway).await;
    let status = operator
        .get("device.pair.setupStatus", json!({"setupId": id}))
        .await;
    assert_eq!(status["expiresAtMs"], made["expiresAtMs"]);
    let device = Device::new();
    let all = ["operator.admin", "operator.approvals"];
    let (_socket, hello) = join(&gateway, &with(&secret, &device).scopes(&all)).await;
    let auth = &hello["auth"];
    assert_eq!(auth["method"], "bootstrap-token");
    assert_eq!(auth["scopes"], json!(["operator.read", "operator.write"]));
    // Its own token is its way from here on, and gives no more than the code did.
    let token = auth["deviceToken"].as_str().unwrap();
    let own = Connect::bare()
        .auth(json!({ "deviceToken": token }))
        .device(&device);
    let (_, hello) = join(&gateway, &own.clone().scopes(&["operator.write"])).await;
    assert_eq!(hello["auth"]["method"], "device-token");
    let more = own.scopes(&["operator.approvals"]);
    assert_eq!(denied(&gateway, &more).await, "PAIRING_REQUIRED");
    // Once: neither for another device nor for the same.
    for device in [&Device::new(), &device] {
        assert_eq!(denied(&gateway, &with(&secret, device)).await, INVALID);
    }
    let status = operator
        .get("device.pair.setupStatus", json!({"setupId": id}))
        .await;
    assert_eq!(status["completion"]["deviceId"], device.id().as_str());
    let unknown = json!({"setupId": "set-x"});
    let error = operator.refused("device.pair.setupStatus", unknown).await;
    assert_eq!(error["message"], "unknown setupId");
    let made = gateway.json(&["audit", "query", "--action", "pairing.setup_code"]);
    assert_eq!(made["records"][0]["record"]["object"], id);
    let used = gateway.json(&["audit", "query", "--action", "pairing.setup"]);
    let used = used["records"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["record"]["action"] == "pairing.setup")
        .unwrap();
    assert_eq!(used["record"]["detail"]["setup"], id);
    assert_eq!(
        used["record"]["principal"],
        format!("device:{}", device.id())
    );
    assert!(used["record"]["detail"]["maker"].is_string(), "{used}");
    let kept = std::process::Command::new("grep")
        .args(["-rlF", &secret[secret.len() - 40..]])
        .arg(gateway.state())
        .output()
        .unwrap();
    assert!(kept.stdout.is_empty(), "kept in the clear: {kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_of_a_node_opens_a_node_and_gives_it_no_command_and_no_operator() {
    let gateway = strict();
    let mut operator = admin(&gateway).await;
    let (_, secret) = code(&mut operator, "node", &[]).await;
    let device = Device::new();
    // Not as an operator, and not without the device's signature; neither uses it up.
    let as_operator = with(&secret, &device).scopes(&["operator.read"]);
    assert_eq!(denied(&gateway, &as_operator).await, INVALID);
    let bare = Connect::bare()
        .role("node")
        .auth(json!({ "bootstrapToken": secret }));
    assert_eq!(denied(&gateway, &bare).await, "AUTH_TOKEN_MISSING");
    let forged = with(&secret, &device)
        .role("node")
        .lie("signature", Device::new().sign("another text"));
    let (error, _) = Client::dial(&gateway).await.denied(&forged).await;
    let text = error["details"]["code"].as_str().unwrap();
    assert!(text.starts_with("DEVICE_AUTH_"), "{error}");
    let (_socket, hello) = join(&gateway, &with(&secret, &device).role("node")).await;
    assert_eq!(hello["auth"]["method"], "bootstrap-token");
    assert_eq!(hello["auth"]["scopes"], json!([]));
    assert!(hello["auth"]["deviceToken"].is_string());
    let nodes = operator.get("node.pair.list", json!({})).await;
    let paired = nodes["paired"].to_string();
    assert!(!paired.contains("system.run"), "{nodes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_gives_no_more_than_its_maker_holds_and_widens_no_device_that_is_known() {
    let all = r#"["operator.admin", "operator.pairing", "operator.read"]"#;
    let gateway = Gateway::with(&[
        ("gateway.local.local_trust", "false"),
        ("gateway.auth.shared_token_scopes", all),
    ]);
    let mut operator = admin(&gateway).await;
    let exec = json!({"role": "operator", "scopes": ["operator.read", "exec"]});
    let error = operator.refused("device.pair.setupCode", exec).await;
    assert_eq!(error["details"]["missingScope"], "exec");
    let agent = json!({"role": "agent", "scopes": ["exec"]});
    operator.refused("device.pair.setupCode", agent).await;
    for url in ["http://x", "ws://", "wss://a b", "ws://user@host"] {
        let params = json!({"role": "node", "publicUrl": url});
        operator.refused("device.pair.setupCode", params).await;
    }
    let mut lesser = Client::control(&gateway.state()).await;
    lesser
        .hello(&Connect::bare().scopes(&["operator.pairing"]))
        .await;
    let node = json!({"bootstrapProfile": "node"});
    let error = lesser.refused("device.pair.setupCode", node).await;
    assert_eq!(error["message"], "missing scope: operator.admin");
    // A device that a person has judged gets nothing from a code.
    let device = Device::new();
    let reads = Connect::token().scopes(&["operator.read"]).device(&device);
    let (error, _) = Client::dial(&gateway).await.denied(&reads).await;
    let request = json!({ "requestId": error["details"]["requestId"] });
    operator.get("device.pair.approve", request).await;
    let (id, secret) = code(&mut operator, "operator", &["operator.admin"]).await;
    let wide = with(&secret, &device).scopes(&["operator.admin"]);
    assert_eq!(denied(&gateway, &wide).await, INVALID);
    // Beside another credential its failure does not matter, and it gives nothing either.
    let token = json!({"bootstrapToken": secret, "token": crate::support::gateway::TOKEN});
    let (_, hello) = join(&gateway, &reads.clone().auth(token)).await;
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
    operator
        .get(
            "device.token.revoke",
            json!({"deviceId": device.id(), "role": "operator"}),
        )
        .await;
    assert_eq!(
        denied(&gateway, &wide).await,
        INVALID,
        "revoked stays revoked"
    );
    let refused = gateway.json(&["audit", "query", "--action", "pairing.setup_refused"]);
    assert_eq!(refused["records"][0]["record"]["object"], id.as_str());
}

/// CVE-2026-53862: a code that had been used widened the request of another device, which then was approved as it stood.
#[tokio::test(flavor = "multi_thread")]
async fn a_used_code_widens_no_request_that_waits() {
    let gateway = strict();
    let mut operator = admin(&gateway).await;
    let (_, secret) = code(&mut operator, "operator", &["operator.admin"]).await;
    let first = Device::new();
    join(&gateway, &with(&secret, &first).scopes(&["operator.admin"])).await;
    let waits = Device::new();
    let reads = Connect::token().scopes(&["operator.read"]).device(&waits);
    assert_eq!(denied(&gateway, &reads).await, "PAIRING_REQUIRED");
    let pending = |list: &Value| list["pending"].clone();
    let before = pending(&gateway.json(&["devices", "list"]));
    let wide = with(&secret, &waits).scopes(&["operator.admin", "operator.read"]);
    for again in [wide.clone(), wide.role("node")] {
        assert_eq!(denied(&gateway, &again).await, INVALID);
        assert_eq!(pending(&gateway.json(&["devices", "list"])), before);
    }
    let request = json!({ "requestId": before[0]["requestId"] });
    operator.get("device.pair.approve", request).await;
    let (_, hello) = join(&gateway, &reads).await;
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
    let more = Connect::token().scopes(&["operator.admin"]).device(&waits);
    assert_eq!(denied(&gateway, &more).await, "PAIRING_REQUIRED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_dies_of_five_wrong_tries_and_guessers_are_held_up_for_themselves_alone() {
    let gateway = strict();
    let mut operator = admin(&gateway).await;
    let (id, secret) = code(&mut operator, "node", &[]).await;
    for _ in 0..4 {
        let device = Device::new();
        let connect = with(&wrong(&id), &device).role("node");
        assert_eq!(denied(&gateway, &connect).await, INVALID);
    }
    // Four are not five.
    let device = Device::new();
    join(&gateway, &with(&secret, &device).role("node")).await;
    let (id, secret) = code(&mut operator, "node", &[]).await;
    for _ in 0..5 {
        let device = Device::new();
        let connect = with(&wrong(&id), &device).role("node");
        assert_eq!(denied(&gateway, &connect).await, INVALID);
    }
    let device = Device::new();
    let right = with(&secret, &device).role("node");
    assert_eq!(denied(&gateway, &right).await, INVALID);
    let told = gateway.json(&["audit", "query", "--action", "pairing.setup_refused"]);
    assert!(told.to_string().contains("dead now"), "{told}");
    // That was the tenth wrong one: the next is not looked at, however right it is.
    let (_, secret) = code(&mut operator, "node", &[]).await;
    let right = with(&secret, &device).role("node");
    let (error, _) = Client::dial(&gateway).await.denied(&right).await;
    assert_eq!(error["details"]["code"], "AUTH_RATE_LIMITED");
    assert!(error["retryAfterMs"].as_u64().unwrap() > 0, "{error}");
    // Who brings what cannot be guessed is not held up.
    Client::dial(&gateway).await.hello(&Connect::token()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_bring_one_code_at_once_one_is_paired() {
    let gateway = strict();
    let mut operator = admin(&gateway).await;
    for _ in 0..10 {
        let (_, secret) = code(&mut operator, "node", &[]).await;
        let tries = (0..2).map(|_| async {
            let device = Device::new();
            let connect = with(&secret, &device).role("node");
            let mut client = Client::dial(&gateway).await;
            let params = connect.params(&client.nonce, client.ts);
            client.call("connect", params).await["ok"] == true
        });
        let right = join_all(tries).await.into_iter().filter(|ok| *ok).count();
        assert_eq!(right, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_ends_with_its_makers_device_or_secret_and_with_a_restart() {
    let all = r#"["operator.admin"]"#;
    let mut gateway = Gateway::prepared(&[
        ("gateway.hosts", r#"["gate.example"]"#),
        ("gateway.auth.shared_token_scopes", all),
    ]);
    gateway.unset("PORTCULLIS_GATEWAY_TOKEN");
    gateway.launch();
    let mut operator = admin(&gateway).await;
    let token = operator.get("auth.token.rotate", json!({})).await["token"].clone();
    let by_token = Connect::bare()
        .auth(json!({ "token": token }))
        .scopes(&["operator.admin"]);
    // A device that may make codes, and one who came with the shared token alone.
    let maker = Device::new();
    // Under this name nobody is local.
    let (error, _) = Client::dial_with(&gateway, &[("host", "gate.example")])
        .await
        .unwrap()
        .denied(&by_token.clone().device(&maker))
        .await;
    let request = json!({ "requestId": error["details"]["requestId"] });
    operator.get("device.pair.approve", request).await;
    let (mut theirs, hello) = join(&gateway, &by_token.clone().device(&maker)).await;
    let own = Connect::bare()
        .auth(json!({ "deviceToken": hello["auth"]["deviceToken"] }))
        .scopes(&["operator.admin"])
        .device(&maker);
    let (mut by_own, _) = join(&gateway, &own).await;
    let (mut shared, _) = join(&gateway, &by_token).await;
    let (_, by_both) = code(&mut theirs, "node", &[]).await;
    let (_, by_device) = code(&mut by_own, "node", &[]).await;
    let (_, by_secret) = code(&mut shared, "node", &[]).await;
    let (_, by_person) = code(&mut operator, "node", &[]).await;
    operator.get("auth.token.rotate", json!({})).await;
    let device = Device::new();
    for ended in [&by_secret, &by_both] {
        let connect = with(ended, &device).role("node");
        assert_eq!(denied(&gateway, &connect).await, INVALID);
    }
    operator
        .get(
            "device.token.revoke",
            json!({"deviceId": maker.id(), "role": "operator"}),
        )
        .await;
    let connect = with(&by_device, &device).role("node");
    assert_eq!(denied(&gateway, &connect).await, INVALID);
    join(&gateway, &with(&by_person, &device).role("node")).await;
    let (_, lasts) = code(&mut operator, "node", &[]).await;
    gateway.crash_and_start();
    let device = Device::new();
    let connect = with(&lasts, &device).role("node");
    assert_eq!(denied(&gateway, &connect).await, INVALID);
}

#[test]
fn the_code_in_the_terminal_is_read_back_by_another_hand() {
    let gateway = Gateway::start();
    let output = gateway.cli(&[
        "devices",
        "setup-code",
        "--role",
        "node",
        "--address",
        "wss://gate.example:443",
    ]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let code = text.lines().nth(2).unwrap();
    let rows: Vec<Vec<char>> = text
        .lines()
        .filter(|line| line.starts_with('\u{2588}'))
        .map(|line| line.chars().collect())
        .collect();
    let (width, height) = (rows[0].len(), rows.len() * 2);
    let mut image =
        rqrr::PreparedImage::prepare_from_greyscale(width * SCALE, height * SCALE, |x, y| {
            let (x, y) = (x / SCALE, y / SCALE);
            let light = match rows[y / 2].get(x) {
                Some('\u{2588}') => true,
                Some('\u{2580}') => y % 2 == 0,
                Some('\u{2584}') => y % 2 == 1,
                _ => false,
            };
            if light { 255 } else { 0 }
        });
    let grids = image.detect_grids();
    let (_, read) = grids[0].decode().unwrap();
    assert_eq!(read, code);
    let held = URL_SAFE_NO_PAD.decode(code).unwrap();
    let held: Value = serde_json::from_slice(&held).unwrap();
    assert_eq!(held["url"], "wss://gate.example:443");
}
