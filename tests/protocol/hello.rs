//! Challenge, `connect`, `hello-ok`, and what a connection may then ask.

use serde_json::json;

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin, by_token, join};

#[tokio::test(flavor = "multi_thread")]
async fn the_challenge_comes_first_and_each_socket_has_its_own() {
    let gateway = Gateway::start();
    // `dial` holds the first frame to be the challenge, without a sequence number.
    let (one, other) = (Client::dial(&gateway).await, Client::dial(&gateway).await);
    assert_ne!(one.nonce, other.nonce);
    assert!(one.nonce.len() >= 32);
    assert!(one.ts > 1_700_000_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn hello_ok_has_what_clients_read() {
    let gateway = Gateway::start();
    let (_client, hello) = join(&gateway, &Connect::token().scopes(&["operator.read"])).await;
    assert_eq!(hello["type"], "hello-ok");
    assert_eq!(hello["protocol"], 4);
    assert!(hello["server"]["version"].is_string() && hello["server"]["connId"].is_string());
    let methods = hello["features"]["methods"].as_array().unwrap();
    assert!(methods.contains(&json!("health")) && methods.contains(&json!("exec.run")));
    assert!(
        hello["features"]["events"]
            .as_array()
            .unwrap()
            .contains(&json!("tick"))
    );
    assert_eq!(
        hello["features"]["capabilities"],
        json!(["frame-signing-v1", "request-signing-v1"])
    );
    assert_eq!(
        hello["auth"],
        json!({"method": "token", "role": "operator", "scopes": ["operator.read"]})
    );
    assert_eq!(
        hello["policy"],
        json!({"maxPayload": 26_214_400, "maxBufferedBytes": 52_428_800, "tickIntervalMs": 30_000})
    );
    // Who is present is for who may read it.
    assert_eq!(hello["snapshot"]["presence"][0]["mode"], "gateway");
    let (_client, strange) = join(&gateway, &Connect::token().scopes(&["operator.pairing"])).await;
    assert_eq!(strange["snapshot"]["presence"], json!([]));
    assert_eq!(
        hello["snapshot"]["stateVersion"],
        json!({"presence": 0, "health": 0})
    );
    assert!(hello["snapshot"]["health"].is_object() && hello["snapshot"]["uptimeMs"].is_u64());
    // The peer tells host paths to everyone; we tell them to nobody.
    assert!(!hello.to_string().contains(gateway.home().to_str().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_answered_to_a_connection_without_any_scope() {
    let gateway = Gateway::start();
    let mut client = by_token(&gateway, &[]).await;
    let health = client.get("health", json!({"probe": true})).await;
    assert_eq!(health["ok"], true);
    for key in [
        "ts",
        "durationMs",
        "channels",
        "channelOrder",
        "channelLabels",
        "heartbeatSeconds",
        "agents",
        "sessions",
    ] {
        assert!(health.get(key).is_some(), "{key}: {health}");
    }
    assert_eq!(health["defaultAgentId"], "main");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_method_is_named_so_to_whoever_got_in() {
    let gateway = Gateway::start();
    let device = Device::new();
    let (node, _) = join(&gateway, &Connect::token().role("node").device(&device)).await;
    for mut client in [
        by_token(&gateway, &[]).await,
        by_token(&gateway, &["operator.read"]).await,
        admin(&gateway).await,
        node,
    ] {
        let error = client.refused("no.such", json!({})).await;
        assert_eq!(
            (&error["code"], &error["message"]),
            (&json!("INVALID_REQUEST"), &json!("unknown method: no.such"))
        );
    }
    // What exists but is not for this client is told by its scope only, whether its object exists or not.
    let mut reader = by_token(&gateway, &["operator.read"]).await;
    let id = json!({ "id": "none" });
    let error = reader.refused("approval.get", id).await;
    assert_eq!(error["message"], "missing scope: operator.approvals");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_scope_is_named_in_the_details() {
    let gateway = Gateway::start();
    let mut client = by_token(&gateway, &["operator.read"]).await;
    let error = client.refused("device.pair.list", json!({})).await;
    assert_eq!(error["code"], "FORBIDDEN");
    assert_eq!(error["message"], "missing scope: operator.pairing");
    assert_eq!(error["details"]["code"], "MISSING_SCOPE");
    assert_eq!(error["details"]["missingScope"], "operator.pairing");
    assert_eq!(
        error["details"]["requiredScopes"],
        json!(["operator.pairing"])
    );
    assert!(error.get("retryable").is_none() && error.get("retryAfterMs").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_alone_never_gives_more_than_the_configured_scopes() {
    let gateway = Gateway::start();
    let asked = [
        "operator.admin",
        "operator.read",
        "operator.act_as",
        "operator.pairing",
    ];
    let (mut client, hello) = join(&gateway, &Connect::token().scopes(&asked)).await;
    // What the configuration gives; admin is not among it, nor acting for an agent.
    let given = ["read", "write", "approvals", "pairing"].map(|s| format!("operator.{s}"));
    assert_eq!(hello["auth"]["scopes"], json!(given));
    let error = client.refused("vault.list", json!({})).await;
    assert_eq!(error["message"], "missing scope: operator.admin");
    assert!(hello["auth"].get("deviceToken").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn params_of_the_wrong_shape_are_refused_by_field() {
    let gateway = Gateway::start();
    let mut client = by_token(&gateway, &["operator.pairing"]).await;
    let error = client
        .refused("device.pair.approve", json!({"requestId": 5}))
        .await;
    assert_eq!(error["code"], "INVALID_REQUEST");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .starts_with("invalid device.pair.approve params: "),
        "{error}"
    );
    assert_eq!(error["details"]["code"], "INVALID_PARAMS");
    // A list is no object, though its items stand in the order of the fields.
    for (method, params) in [
        ("device.pair.approve", json!(["no-such-request"])),
        ("device.pair.list", json!([])),
    ] {
        let answer = client.call(method, params).await;
        assert_eq!(
            answer["error"]["details"]["code"], "INVALID_PARAMS",
            "{method}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_calls_no_operators_method_and_is_closed_after_ten_tries() {
    let gateway = Gateway::start();
    let device = Device::new();
    let (mut node, hello) = join(&gateway, &Connect::token().role("node").device(&device)).await;
    assert_eq!(hello["auth"]["role"], "node");
    assert_eq!(hello["auth"]["scopes"], json!([]));
    assert!(hello["auth"]["deviceToken"].is_string());
    for _ in 0..10 {
        let error = node.refused("status", json!({})).await;
        assert_eq!(
            (&error["code"], &error["message"]),
            (&json!("INVALID_REQUEST"), &json!("unauthorized role: node"))
        );
        assert_eq!(error["details"]["code"], "WRONG_ROLE");
    }
    // Any other answer begins the count anew.
    node.get("health", json!({})).await;
    for _ in 0..11 {
        node.refused("status", json!({})).await;
    }
    assert_eq!(
        node.closed().await,
        (1008, "repeated unauthorized calls".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_on_the_control_socket_comes_in_by_its_uid() {
    let gateway = Gateway::start();
    gateway.vault_is_open();
    let mut client = Client::control(&gateway.state()).await;
    let hello = client
        .hello(&Connect::bare().scopes(&["operator.admin"]))
        .await;
    assert_eq!(hello["auth"]["method"], "peer-uid");
    client.get("vault.list", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_and_status_hold_no_path_and_no_token() {
    let gateway = Gateway::start();
    let mut client = by_token(&gateway, &["operator.read"]).await;
    for method in ["health", "status", "config.get"] {
        let text = client.get(method, json!({})).await.to_string();
        assert!(!text.contains(crate::support::gateway::TOKEN), "{method}");
        assert!(!text.contains(gateway.home().to_str().unwrap()), "{method}");
    }
}

/// CVE-2026-41335: the greeting told strangers, and clients without the scope, paths and settings of the host.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_scope_is_told_nothing_of_the_host() {
    let gateway = Gateway::start();
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let home = gateway.home().to_str().unwrap().to_owned();
    let is_quiet = |what: &str, text: &str| {
        for told in [
            &*home,
            crate::support::gateway::TOKEN,
            "gateway.auth",
            "state_dir",
        ] {
            assert!(!text.contains(told), "{what} tells {told}: {text}");
        }
        assert!(
            host.len() < 4 || !text.contains(&host),
            "{what} tells {host}: {text}"
        );
    };
    let (mut client, hello) = join(&gateway, &Connect::token()).await;
    assert_eq!(hello["auth"]["scopes"], json!([]));
    is_quiet("hello", &hello.to_string());
    is_quiet("health", &client.get("health", json!({})).await.to_string());
    for method in ["status", "config.get", "logs.tail", "vault.list", "no.such"] {
        is_quiet(method, &client.call(method, json!({})).await.to_string());
    }
    let mut stranger = Client::dial(&gateway).await;
    let (error, close) = stranger.denied(&Connect::bare()).await;
    is_quiet("a refusal", &format!("{error} {close:?}"));
    for path in [
        "/",
        "/healthz",
        "/readyz",
        "/login",
        "/rpc/status",
        "/nothing",
    ] {
        let asked = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\r\n",
            gateway.port()
        );
        is_quiet(path, &gateway.http(&asked));
    }
}
