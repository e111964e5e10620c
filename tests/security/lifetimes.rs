//! Credentials that end, are rotated, are asked for again: none comes back, none grows.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis_core::token::TokenHash;
use serde_json::{Value, json};

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, Connect, Device, admin, by_token, join};

const ANOTHER: &str = "0b5b8d5c-7a70-4d11-9d0b-3f0d3c6d8f9e";

/// Nothing is paired without a person.
fn gateway() -> Gateway {
    Gateway::with(&[("gateway.local.local_trust", "false")])
}

/// Asks with this connect, is approved by an admin, and comes in.
async fn paired(gateway: &Gateway, connect: &Connect<'_>) -> (Client, Value) {
    let mut client = Client::dial(gateway).await;
    let (error, _) = client.denied(connect).await;
    let id = error["details"]["requestId"].as_str().unwrap().to_owned();
    gateway.json(&["devices", "approve", &id]);
    join(gateway, connect).await
}

fn only(gateway: &Gateway) -> Value {
    gateway.json(&["devices", "list"])["paired"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_token_at_a_restart_is_the_end_of_the_old_one() {
    let mut gateway = Gateway::start();
    by_token(&gateway, &["operator.read"]).await;
    assert_eq!(gateway.stop(), 0);
    gateway.set("PORTCULLIS_GATEWAY_TOKEN", ANOTHER);
    gateway.launch();
    let mut client = Client::dial(&gateway).await;
    let (error, _) = client.denied(&Connect::token()).await;
    assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH", "{error}");
    join(&gateway, &Connect::bare().auth(json!({ "token": ANOTHER }))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_gets_nothing_back_by_asking_again() {
    let gateway = gateway();
    let device = Device::new();
    let asks = Connect::token().device(&device).scopes(&["operator.read"]);
    let (mut live, hello) = paired(&gateway, &asks).await;
    let token = hello["auth"]["deviceToken"].clone();
    gateway.json(&["devices", "revoke", &device.id()]);
    assert_eq!(live.closed().await.0, 4001);
    let with_token = Connect::bare().device(&device).scopes(&["operator.read"]);
    for connect in [
        with_token.clone().auth(json!({ "deviceToken": token })),
        with_token.auth(json!({ "token": token })),
        asks.clone(),
        asks.scopes(&[]),
    ] {
        let mut client = Client::dial(&gateway).await;
        let (error, _) = client.denied(&connect).await;
        assert!(
            !error.to_string().contains("deviceToken\":"),
            "it is given one: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_again_with_less_or_more_keeps_what_was_approved() {
    let gateway = gateway();
    let device = Device::new();
    let asks = |scopes: &[&str]| Connect::token().scopes(scopes);
    paired(&gateway, &asks(&["operator.read"]).device(&device)).await;
    let approved = only(&gateway)["scopes"].clone();
    // Less is given less, and changes nothing.
    let (mut client, hello) = join(&gateway, &asks(&[]).device(&device)).await;
    assert_eq!(hello["auth"]["scopes"], json!([]));
    client.refused("status", json!({})).await;
    assert_eq!(only(&gateway)["scopes"], approved);
    // More waits, however often it asks, and the old approval stands as it was.
    for scopes in [
        &["operator.admin"][..],
        &["operator.read", "operator.write"],
    ] {
        let mut client = Client::dial(&gateway).await;
        let (error, _) = client.denied(&asks(scopes).device(&device)).await;
        assert_eq!(error["code"], "NOT_PAIRED", "{error}");
    }
    // So does another role.
    let mut client = Client::dial(&gateway).await;
    let node = Connect::token().role("node").device(&device);
    client.denied(&node).await;
    assert_eq!(only(&gateway)["scopes"], approved);
    assert_eq!(only(&gateway)["roles"], json!(["operator"]));
    let (_, hello) = join(&gateway, &asks(&["operator.read"]).device(&device)).await;
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approver_gives_nothing_that_it_does_not_hold() {
    let gateway = Gateway::with(&[
        ("gateway.hosts", r#"["gate.example"]"#),
        (
            "gateway.auth.shared_token_scopes",
            r#"["operator.pairing"]"#,
        ),
    ]);
    // Under this name nobody is local.
    let strange = [("host", "gate.example")];
    let device = Device::new();
    let mut client = Client::dial_with(&gateway, &strange).await.unwrap();
    let asks = Connect::token().device(&device).scopes(&["operator.admin"]);
    let (error, _) = client.denied(&asks).await;
    let id = &error["details"]["requestId"];
    let mut approver = by_token(&gateway, &["operator.pairing", "operator.admin"]).await;
    let params = json!({ "requestId": id });
    let error = approver.refused("device.pair.approve", params).await;
    assert_eq!(error["message"], "missing scope: operator.admin", "{error}");
    assert_eq!(
        gateway.json(&["devices", "list"])["paired"],
        json!([]),
        "{error}"
    );
    let mut client = Client::dial_with(&gateway, &strange).await.unwrap();
    client.denied(&asks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_mints_nothing_for_another_device_or_for_a_role_never_approved() {
    let gateway = gateway();
    let (one, two) = (Device::new(), Device::new());
    let pairing = ["operator.pairing"];
    let asks = |device| Connect::token().device(device).scopes(&pairing);
    let (_, hello) = paired(&gateway, &asks(&one)).await;
    paired(&gateway, &asks(&two)).await;
    let own = json!({ "deviceToken": hello["auth"]["deviceToken"] });
    let (mut client, _) = join(&gateway, &asks(&one).auth(own)).await;
    // A device without admin manages itself only, and is told the same whether the other exists.
    let nobody = "0".repeat(64);
    for other in [two.id(), nobody] {
        for (method, params) in [
            (
                "device.token.rotate",
                json!({ "deviceId": other, "role": "operator" }),
            ),
            (
                "device.token.revoke",
                json!({ "deviceId": other, "role": "operator" }),
            ),
        ] {
            let error = client.refused(method, params).await;
            assert!(
                error["message"].as_str().unwrap().ends_with(" denied"),
                "{method}: {error}"
            );
        }
        client
            .refused("device.pair.remove", json!({ "deviceId": other.as_str() }))
            .await;
        let label = json!({ "deviceId": other, "label": "mine" });
        client.refused("device.pair.rename", label).await;
    }
    let seen = client.get("device.pair.list", json!({})).await;
    assert!(!seen.to_string().contains(&two.id()), "{seen}");
    let more = json!({ "deviceId": one.id(), "role": "operator", "scopes": ["operator.admin"] });
    client.refused("device.token.rotate", more.clone()).await;
    for (role, scopes) in [("node", json!([])), ("agent", json!(["exec"]))] {
        let params = json!({ "deviceId": one.id(), "role": role, "scopes": scopes });
        let error = client.refused("device.token.rotate", params.clone()).await;
        assert_eq!(error["code"], "INVALID_REQUEST", "{role}: {error}");
        // Nor for an admin: approval is another act.
        let error = admin(&gateway)
            .await
            .refused("device.token.rotate", params)
            .await;
        assert_eq!(error["code"], "INVALID_REQUEST", "{role}: {error}");
    }
    // Nor does an admin's rotation give more than was approved.
    let error = admin(&gateway)
        .await
        .refused("device.token.rotate", more)
        .await;
    assert_eq!(error["message"], "device token rotation denied");
    for device in [&one, &two] {
        join(&gateway, &asks(device)).await;
    }
}

/// CVE-2026-41402: a key was good for more than it was made for. Every secret that a gateway gives, in every field, in
/// every role, with nobody's device and with a stranger's.
#[tokio::test(flavor = "multi_thread")]
async fn each_secret_opens_only_what_it_was_made_for() {
    let gateway = gateway();
    gateway.vault_is_open();
    let own = Device::new();
    let reads = Connect::token().device(&own).scopes(&["operator.read"]);
    paired(&gateway, &reads).await;
    gateway.json(&["devices", "revoke", &own.id()]);
    gateway.json(&["devices", "remove", &own.id()]);
    // As `paired`, but with a key to sign requests, which comes with the first hello.
    let (error, _) = Client::dial(&gateway).await.denied(&reads).await;
    let id = error["details"]["requestId"].as_str().unwrap();
    gateway.json(&["devices", "approve", id]);
    let mut client = Client::dial(&gateway).await;
    let mut params = reads.params(&client.nonce, client.ts);
    params["caps"] = json!(["request-signing-v1"]);
    let auth = client.get("connect", params).await["auth"].take();
    let agent = gateway.json(&["agents", "token", "demo"])["token"].take();
    let mut operator = admin(&gateway).await;
    let code = async |operator: &mut Client| {
        let node = json!({ "bootstrapProfile": "node" });
        let made = operator.get("device.pair.setupCode", node).await;
        let code = made["setupCode"].as_str().unwrap();
        let code = URL_SAFE_NO_PAD.decode(code).unwrap();
        let mut code: Value = serde_json::from_slice(&code).unwrap();
        code["bootstrapToken"].take()
    };
    // The code of a node makes no operator, and then still makes a node.
    let new = Device::new();
    let by = Connect::bare()
        .auth(json!({ "bootstrapToken": code(&mut operator).await }))
        .device(&new);
    for role in ["operator", "agent"] {
        let mut client = Client::dial(&gateway).await;
        client.denied(&by.clone().role(role)).await;
    }
    join(&gateway, &by.role("node")).await;
    let secrets = [
        ("shared token", json!(TOKEN)),
        ("agent token", agent.clone()),
        ("device token", auth["deviceToken"].clone()),
        ("signing key", auth["signingKey"]["key"].clone()),
        ("its id", auth["signingKey"]["keyId"].clone()),
        ("setup code", code(&mut operator).await),
    ];
    for (name, secret) in &secrets {
        assert!(secret.is_string(), "{name}");
        for field in ["token", "password", "deviceToken", "bootstrapToken"] {
            for role in ["operator", "node", "agent"] {
                let is_its_own = match *name {
                    "shared token" => role == "operator" && ["token", "password"].contains(&field),
                    "agent token" => role == "agent" && field == "token",
                    // Above.
                    "setup code" => field == "bootstrapToken",
                    _ => false,
                };
                let stranger = Device::new();
                let auth = json!({ (field): secret });
                let connect = Connect::bare().auth(auth).role(role);
                for connect in [connect.clone(), connect.device(&stranger)] {
                    if is_its_own && (connect.device.is_none() || *name != "shared token") {
                        continue;
                    }
                    let mut client = Client::dial(&gateway).await;
                    let (error, _) = client.denied(&connect).await;
                    assert!(
                        !error.to_string().contains(secret.as_str().unwrap()),
                        "{name} in {field} as {role}: {error}"
                    );
                }
            }
        }
    }
    // The device's own token: of this device, in this role, and no further.
    let token = json!({ "deviceToken": auth["deviceToken"] });
    let by = Connect::bare().auth(token).device(&own);
    for more in [
        by.clone().role("node"),
        by.clone().role("agent"),
        by.clone().scopes(&["operator.admin"]),
    ] {
        Client::dial(&gateway).await.denied(&more).await;
    }
    join(&gateway, &by.scopes(&["operator.read"])).await;
    let by = Connect::bare().auth(json!({ "token": agent }));
    let (_, hello) = join(&gateway, &by.role("agent")).await;
    assert_eq!(hello["auth"]["scopes"], json!(["exec"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_wrong_guesses_opens_nothing_and_keeps_nobody_out() {
    let gateway = Gateway::start();
    let guessers: Vec<_> = (0..64)
        .map(|n| {
            let port = gateway.port();
            tokio::spawn(async move {
                let device = Device::new();
                let mut let_in = 0;
                for round in 0..4 {
                    let guess = format!("{:036x}", n * 1000 + round);
                    let Ok(mut client) = Client::dial_port(port).await else {
                        continue;
                    };
                    // A made-up device token does not turn the comparison off.
                    let auth = json!({ "token": guess, "deviceToken": format!("{guess}x") });
                    let connect = Connect::bare().auth(auth).scopes(&["operator.admin"]);
                    let connect = if round % 2 == 0 {
                        connect
                    } else {
                        connect.device(&device)
                    };
                    let_in += usize::from(client.try_hello(&connect).await.is_some());
                }
                let_in
            })
        })
        .collect();
    for _ in 0..8 {
        // One that was displaced by a newcomer dials again, as clients do.
        let right = Connect::token().scopes(&["operator.read"]);
        let mut client = loop {
            if let Ok(mut client) = Client::dial_port(gateway.port()).await
                && client.try_hello(&right).await.is_some()
            {
                break client;
            }
        };
        client.get("health", json!({})).await;
    }
    for guesser in guessers {
        assert_eq!(guesser.await.unwrap(), 0);
    }
    let error = {
        let mut client = Client::dial(&gateway).await;
        let wrong = Connect::bare().auth(json!({ "token": format!("{TOKEN}\n") }));
        client.denied(&wrong).await.0
    };
    assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH", "{error}");
}

#[test]
fn a_token_is_compared_by_its_hash_whatever_its_length() {
    let hash = TokenHash::of(TOKEN);
    assert!(hash.matches(TOKEN));
    for length in 0..TOKEN.len() {
        assert!(!hash.matches(&TOKEN[..length]), "{length}");
    }
    for tail in ["\0", " ", "\n", "0", &"0".repeat(1 << 20)] {
        assert!(!hash.matches(&format!("{TOKEN}{tail}")));
    }
    assert!(!hash.matches(&TOKEN.to_uppercase()));
    // The hash itself opens nothing: who reads it has no token.
    let kept: String = serde_json::from_value(serde_json::to_value(&hash).unwrap()).unwrap();
    assert!(!hash.matches(&kept));
}
