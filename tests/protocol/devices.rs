//! A client with a key of its own: its signature, its pairing, its token, its end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, Connect, Device, join};

const READ: &[&str] = &["operator.read"];

/// Nobody is trusted for being here: every device waits for a person.
fn strict() -> Gateway {
    Gateway::with(&[("gateway.local.local_trust", "false")])
}

/// Connects a new device, which must wait; returns its request.
async fn request(gateway: &Gateway, device: &Device) -> String {
    let connect = Connect::token().scopes(READ).device(device);
    let (error, _) = Client::dial(gateway).await.denied(&connect).await;
    error["details"]["requestId"].as_str().unwrap().to_owned()
}

/// A device that a person has let in, and its token.
async fn paired(gateway: &Gateway, device: &Device) -> String {
    let id = request(gateway, device).await;
    gateway.json(&["devices", "approve", &id]);
    let (_, hello) = join(gateway, &Connect::token().scopes(READ).device(device)).await;
    hello["auth"]["deviceToken"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_keys_and_both_signed_texts_are_taken() {
    let gateway = Gateway::start();
    for device in [Device::new(), Device::p256()] {
        let v3 = Connect::token().scopes(READ).device(&device);
        let v2 = Connect::token().scopes(READ).device_v2(&device);
        for connect in [v3, v2] {
            let (mut client, hello) = join(&gateway, &connect).await;
            assert_eq!(hello["auth"]["scopes"], json!(READ));
            client.get("status", json!({})).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_flaw_of_a_device_proof_has_its_code_and_its_text() {
    let gateway = Gateway::start();
    let (device, other) = (Device::new(), Device::p256());
    let good = Connect::token().scopes(READ).device(&device);
    let late = Connect {
        late_ms: 121_000,
        ..good.clone()
    };
    for (connect, code, text) in [
        (
            good.clone().lie("signature", other.sign("x")),
            "DEVICE_AUTH_SIGNATURE_INVALID",
            "device signature invalid",
        ),
        (
            good.clone().lie("signature", ""),
            "DEVICE_AUTH_SIGNATURE_INVALID",
            "device signature invalid",
        ),
        (
            good.clone().lie("signedAt", 1_795_469_178_000_u64),
            "DEVICE_AUTH_SIGNATURE_EXPIRED",
            "device signature expired",
        ),
        (
            late,
            "DEVICE_AUTH_SIGNATURE_EXPIRED",
            "device signature expired",
        ),
        (
            good.clone().lie("nonce", "478c9e6a"),
            "DEVICE_AUTH_NONCE_MISMATCH",
            "device nonce mismatch",
        ),
        (
            good.clone().lie("nonce", " "),
            "DEVICE_AUTH_NONCE_REQUIRED",
            "device nonce required",
        ),
        (
            good.clone().lie("id", other.id()),
            "DEVICE_AUTH_DEVICE_ID_MISMATCH",
            "device identity mismatch",
        ),
        (
            good.clone().lie("publicKey", other.public_key()),
            "DEVICE_AUTH_DEVICE_ID_MISMATCH",
            "device identity mismatch",
        ),
        (
            good.clone().lie("publicKey", "?"),
            "DEVICE_AUTH_DEVICE_ID_MISMATCH",
            "device identity mismatch",
        ),
    ] {
        let (error, close) = Client::dial(&gateway).await.denied(&connect).await;
        assert_eq!(error["code"], "INVALID_REQUEST");
        assert_eq!(
            (&error["details"]["code"], &error["message"]),
            (&json!(code), &json!(text))
        );
        assert!(
            error["details"]["next"]
                .as_str()
                .is_some_and(|next| next.len() > 20),
            "{error}"
        );
        assert_eq!(close, (1008, text.to_owned()));
    }
    assert_eq!(
        gateway.json(&["devices", "list"]),
        json!({"pending": [], "paired": []}),
        "no flaw left a trace"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_connect_is_worth_nothing_on_another_socket() {
    let gateway = Gateway::start();
    let device = Device::new();
    let mut first = Client::dial(&gateway).await;
    let params = Connect::token()
        .scopes(READ)
        .device(&device)
        .params(&first.nonce, first.ts);
    first.get("connect", params.clone()).await;
    let mut second = Client::dial(&gateway).await;
    let error = second.refused("connect", params).await;
    assert_eq!(error["details"]["code"], "DEVICE_AUTH_NONCE_MISMATCH");
    assert_eq!(second.closed().await.0, 1008);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_or_role_that_was_not_signed_is_refused() {
    let gateway = Gateway::start();
    let device = Device::new();
    for (key, value) in [
        ("scopes", json!(["operator.admin"])),
        ("role", json!("node")),
    ] {
        let mut client = Client::dial(&gateway).await;
        let mut params = Connect::token()
            .scopes(READ)
            .device(&device)
            .params(&client.nonce, client.ts);
        params[key] = value;
        let error = client.refused("connect", params).await;
        assert_eq!(error["details"]["code"], "DEVICE_AUTH_SIGNATURE_INVALID");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_operators_device_is_paired_at_once_and_gets_its_token_once() {
    let gateway = Gateway::start();
    let device = Device::new();
    let connect = Connect::token()
        .scopes(&["operator.admin", "operator.read"])
        .device(&device);
    let (mut client, hello) = join(&gateway, &connect).await;
    let token = hello["auth"]["deviceToken"].as_str().unwrap();
    assert!(token.starts_with("pc_dev_") && hello["auth"]["issuedAtMs"].is_u64());
    client.get("vault.list", json!({})).await;
    let (_again, hello) = join(&gateway, &connect).await;
    assert!(
        hello["auth"].get("deviceToken").is_none(),
        "shown once: only its hash is kept"
    );
    let paired = gateway.json(&["devices", "list"])["paired"].clone();
    assert_eq!(paired[0]["deviceId"], device.id());
    assert_eq!(paired[0]["approvedVia"], "silent");
    assert_eq!(paired[0]["connected"], true);
    assert!(!paired.to_string().contains("pc_dev_"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxied_or_strange_named_connection_is_not_local() {
    let gateway = Gateway::with(&[("gateway.hosts", r#"["gate.example"]"#)]);
    for header in [
        ("X-Forwarded-For", "203.0.113.9"),
        ("Forwarded", "for=203.0.113.9"),
        ("X-Real-IP", "203.0.113.9"),
    ] {
        let refused = Client::dial_with(&gateway, &[header]).await;
        let Err(tokio_tungstenite::tungstenite::Error::Http(answer)) = refused.map(|_| ()) else {
            panic!("{header:?} was taken");
        };
        assert_eq!(answer.status(), 403, "{header:?}");
    }
    // A tunnel that ends here brings the name that its clients use.
    let strange = [("Host", "gate.example")];
    let device = Device::new();
    let mut client = Client::dial_with(&gateway, &strange).await.unwrap();
    let asks = Connect::token().scopes(READ).device(&device);
    let (error, _) = client.denied(&asks).await;
    assert_eq!(error["code"], "NOT_PAIRED");
    // Without a device the token opens the door and no more.
    let mut client = Client::dial_with(&gateway, &strange).await.unwrap();
    let hello = client.hello(&Connect::token().scopes(READ)).await;
    assert_eq!(hello["auth"]["scopes"], json!([]));
}

/// The bug: with the switch off the far end of a tunnel still had `shared_token_scopes` without a device, the right to
/// answer its own request to pair among them.
#[tokio::test(flavor = "multi_thread")]
async fn without_local_trust_a_loopback_socket_is_worth_no_more_than_any_other() {
    let gateway = strict();
    let asks = Connect::token().scopes(&["operator.read", "operator.pairing"]);
    let (mut client, hello) = join(&gateway, &asks).await;
    assert_eq!(hello["auth"]["scopes"], json!([]), "{hello}");
    client.get("health", json!({})).await;
    for method in ["status", "device.pair.list", "exec.approval.list"] {
        let error = client.refused(method, json!({})).await;
        let said = error["message"].as_str().unwrap();
        assert!(said.starts_with("missing scope: "), "{method}: {error}");
    }
    // Who knocks cannot open for himself.
    let device = Device::new();
    let (error, _) = Client::dial(&gateway)
        .await
        .denied(&asks.clone().device(&device))
        .await;
    let request = json!({ "requestId": error["details"]["requestId"] });
    let error = client.refused("device.pair.approve", request).await;
    assert_eq!(error["message"], "missing scope: operator.pairing");
    // The socket of the machine's own people is no loopback socket.
    let mut operator = Client::control(&gateway.state()).await;
    let by_uid = Connect::bare().scopes(&["operator.pairing"]);
    let hello = operator.hello(&by_uid).await;
    assert_eq!(hello["auth"]["scopes"], json!(["operator.pairing"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_local_trust_a_device_waits_and_hears_its_request_in_details_and_close_reason() {
    let gateway = strict();
    let device = Device::new();
    let connect = Connect::token().scopes(READ).device(&device);
    let (error, (code, reason)) = Client::dial(&gateway).await.denied(&connect).await;
    assert_eq!(error["code"], "NOT_PAIRED");
    assert_eq!(
        error["message"],
        "pairing required: device is not approved yet"
    );
    let details = &error["details"];
    let id = details["requestId"].as_str().unwrap();
    assert_eq!(details["code"], "PAIRING_REQUIRED");
    assert_eq!(details["reason"], "not-paired");
    assert_eq!(details["deviceId"], device.id());
    assert_eq!(details["requestedRole"], "operator");
    assert_eq!(details["requestedScopes"], json!(READ));
    assert_eq!(details["recommendedNextStep"], "wait_then_retry");
    assert_eq!(code, 1008);
    assert_eq!(
        reason,
        format!("pairing required: device is not approved yet (requestId: {id})")
    );
    // It asks again: the same request, no second one.
    assert_eq!(request(&gateway, &device).await, id);
    let list = gateway.json(&["devices", "list"]);
    assert_eq!(list["pending"].as_array().unwrap().len(), 1);
    assert_eq!(list["pending"][0]["requestId"], id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_device_comes_in_with_its_own_token_in_either_field() {
    let gateway = strict();
    let device = Device::new();
    let token = paired(&gateway, &device).await;
    for auth in [json!({"deviceToken": token}), json!({"token": token})] {
        let connect = Connect::bare().auth(auth).scopes(READ);
        for connect in [connect.clone().device(&device), connect.device_v2(&device)] {
            let (mut client, hello) = join(&gateway, &connect).await;
            assert_eq!(hello["auth"]["method"], "device-token");
            assert_eq!(hello["auth"]["scopes"], json!(READ));
            client.get("status", json!({})).await;
        }
    }
    // The token is its device's: another device's, or none, gets nothing for it.
    let thief = Device::new();
    let stolen = Connect::bare()
        .auth(json!({"deviceToken": token}))
        .scopes(READ);
    let (error, close) = Client::dial(&gateway)
        .await
        .denied(&stolen.clone().device(&thief))
        .await;
    assert_eq!(error["details"]["code"], "AUTH_DEVICE_TOKEN_MISMATCH");
    assert_eq!(close.0, 1008);
    Client::dial(&gateway).await.denied(&stolen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_told_once_and_another_only_after_a_person_made_the_old_one_void() {
    let gateway = strict();
    for role in ["operator", "node"] {
        let device = Device::new();
        let scopes = if role == "node" { &[][..] } else { READ };
        let shared = Connect::token().role(role).scopes(scopes).device(&device);
        let (error, _) = Client::dial(&gateway).await.denied(&shared).await;
        let id = error["details"]["requestId"].as_str().unwrap();
        gateway.json(&["devices", "approve", id]);
        let (_, first) = join(&gateway, &shared).await;
        let token = first["auth"]["deviceToken"].as_str().unwrap();
        let own = |token: &str| {
            let auth = json!({ "deviceToken": token });
            Connect::bare().role(role).scopes(scopes).auth(auth)
        };
        // It comes again with the shared token: it is let in, and its token stays what it was.
        for _ in 0..2 {
            let (_, again) = join(&gateway, &shared).await;
            assert_eq!(again["auth"]["method"], "token");
            assert!(again["auth"].get("deviceToken").is_none(), "{again}");
            join(&gateway, &own(token).device(&device)).await;
        }
        // It lost it: a person makes it void, and the next hello has another.
        gateway.json(&["devices", "rotate", &device.id()]);
        Client::dial(&gateway)
            .await
            .denied(&own(token).device(&device))
            .await;
        let (_, hello) = join(&gateway, &shared).await;
        let new = hello["auth"]["deviceToken"].as_str().unwrap();
        assert_ne!(new, token);
        join(&gateway, &own(new).device(&device)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_the_shared_token_beside_it_manages_itself_and_no_other() {
    let gateway = strict();
    let (device, other) = (Device::new(), Device::new());
    let scopes = &["operator.pairing", "operator.write"];
    for device in [&device, &other] {
        let connect = Connect::token().scopes(scopes).device(device);
        let (error, _) = Client::dial(&gateway).await.denied(&connect).await;
        let id = error["details"]["requestId"].as_str().unwrap();
        gateway.json(&["devices", "approve", id]);
    }
    let stranger = Device::new();
    let request = request(&gateway, &stranger).await;
    let (mut client, hello) =
        join(&gateway, &Connect::token().scopes(scopes).device(&device)).await;
    assert_eq!(hello["auth"]["method"], "token");
    let list = client.get("device.pair.list", json!({})).await;
    assert_eq!(list["pending"], json!([]));
    assert_eq!(list["paired"].as_array().unwrap().len(), 1, "{list}");
    let id = other.id();
    for (method, params) in [
        ("device.pair.approve", json!({"requestId": request})),
        ("device.pair.reject", json!({"requestId": request})),
        ("device.pair.remove", json!({"deviceId": id})),
        ("device.pair.rename", json!({"deviceId": id, "label": "x"})),
        (
            "device.token.rotate",
            json!({"deviceId": id, "role": "operator"}),
        ),
        (
            "device.token.revoke",
            json!({"deviceId": id, "role": "operator"}),
        ),
    ] {
        let error = client.refused(method, params).await;
        // Of another device it is not even told that there is one.
        let code = error["details"]["code"].as_str().unwrap();
        assert!(
            ["PAIRING_DENIED", "DEVICE_NOT_FOUND", "REQUEST_NOT_FOUND"].contains(&code),
            "{method}: {error}"
        );
    }
    let own = json!({"deviceId": device.id(), "label": "mine"});
    client.get("device.pair.rename", own).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_asks_for_more_than_it_was_given_waits_again() {
    let gateway = strict();
    let device = Device::new();
    let token = paired(&gateway, &device).await;
    let more = Connect::bare()
        .auth(json!({"deviceToken": token}))
        .scopes(&["operator.admin"])
        .device(&device);
    let (error, (_, reason)) = Client::dial(&gateway).await.denied(&more).await;
    assert_eq!(error["code"], "NOT_PAIRED");
    assert_eq!(error["details"]["reason"], "scope-upgrade");
    assert_eq!(error["details"]["approvedScopes"], json!(READ));
    assert!(
        reason.starts_with("pairing required: device is asking for more scopes"),
        "{reason}"
    );
    let node = Connect::token().role("node").device(&device);
    let (error, _) = Client::dial(&gateway).await.denied(&node).await;
    assert_eq!(error["details"]["reason"], "role-upgrade");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_request_is_gone_and_cannot_be_approved() {
    let gateway = strict();
    let device = Device::new();
    let id = request(&gateway, &device).await;
    gateway.json(&["devices", "reject", &id]);
    let output = gateway.cli(&["devices", "approve", &id]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(
        gateway.json(&["devices", "list"]),
        json!({"pending": [], "paired": []})
    );
    assert_ne!(
        request(&gateway, &device).await,
        id,
        "a new question has a new name"
    );
}

/// The record that the log must have of it.
fn recorded(gateway: &Gateway, action: &str) -> Value {
    gateway.json(&["audit", "query", "--action", action])
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_closes_the_live_socket_within_a_second_and_the_token_stays_dead_after_kill_9() {
    let mut gateway = strict();
    let device = Device::new();
    let token = paired(&gateway, &device).await;
    let by_token = Connect::bare()
        .auth(json!({"deviceToken": token}))
        .scopes(READ)
        .device(&device);
    let (mut live, _) = join(&gateway, &by_token).await;
    let watch = tokio::spawn(async move { (live.closed().await, Instant::now()) });
    gateway.json(&["devices", "revoke", &device.id()]);
    let revoked = Instant::now();
    let (close, at) = watch.await.unwrap();
    assert_eq!(
        close,
        (4001, "client invalidated: device-token-revoked".to_owned())
    );
    assert!(at.saturating_duration_since(revoked) < Duration::from_secs(1));
    assert!(
        recorded(&gateway, "pairing.token_revoke")
            .to_string()
            .contains(&device.id())
    );

    for _ in 0..2 {
        let (error, close) = Client::dial(&gateway).await.denied(&by_token).await;
        assert_eq!(error["details"]["code"], "AUTH_DEVICE_TOKEN_MISMATCH");
        assert_eq!(close.0, 1008);
        let in_token = Connect::bare()
            .auth(json!({"token": token}))
            .scopes(READ)
            .device(&device);
        let (error, _) = Client::dial(&gateway).await.denied(&in_token).await;
        assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH");
        gateway.crash_and_start();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_frame_is_answered_after_a_revocation_was_answered() {
    let gateway = strict();
    let device = Device::new();
    let token = paired(&gateway, &device).await;
    let by_token = Connect::bare()
        .auth(json!({"deviceToken": token}))
        .scopes(READ)
        .device(&device);
    let (mut live, _) = join(&gateway, &by_token).await;
    gateway.json(&["devices", "revoke", &device.id()]);
    live.ask("status", json!({})).await;
    assert_eq!(
        live.next().await,
        crate::support::ws::Came::Closed(
            4001,
            "client invalidated: device-token-revoked".to_owned()
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_device_ends_it_and_it_is_a_stranger_again() {
    let gateway = strict();
    let device = Device::new();
    let token = paired(&gateway, &device).await;
    let by_token = Connect::bare()
        .auth(json!({"deviceToken": token}))
        .scopes(READ)
        .device(&device);
    let (mut live, _) = join(&gateway, &by_token).await;
    gateway.json(&["devices", "remove", &device.id()]);
    assert_eq!(
        live.closed().await,
        (4001, "client invalidated: device-pair-removed".to_owned())
    );
    let (error, _) = Client::dial(&gateway)
        .await
        .denied(&Connect::token().scopes(READ).device(&device))
        .await;
    assert_eq!(error["details"]["reason"], "not-paired");
}

#[tokio::test(flavor = "multi_thread")]
async fn pairing_and_pending_requests_outlive_kill_9() {
    let mut gateway = strict();
    let (one, two) = (Device::new(), Device::p256());
    let token = paired(&gateway, &one).await;
    let id = request(&gateway, &two).await;
    gateway.crash_and_start();
    let by_token = Connect::bare()
        .auth(json!({"deviceToken": token}))
        .scopes(READ)
        .device(&one);
    join(&gateway, &by_token).await;
    gateway.json(&["devices", "approve", &id]);
    join(&gateway, &Connect::token().scopes(READ).device(&two)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_needs_a_device() {
    let gateway = Gateway::start();
    let (error, close) = Client::dial(&gateway)
        .await
        .denied(&Connect::token().role("node"))
        .await;
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("NOT_PAIRED"), &json!("device identity required"))
    );
    assert_eq!(error["details"]["code"], "DEVICE_IDENTITY_REQUIRED");
    assert_eq!(close.0, 1008);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_with_a_device_leaves_no_request() {
    let gateway = strict();
    let device = Device::new();
    let wrong = Connect::bare()
        .auth(json!({"token": TOKEN.replace('4', "5")}))
        .scopes(READ)
        .device(&device);
    let (error, _) = Client::dial(&gateway).await.denied(&wrong).await;
    assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH");
    assert_eq!(error["details"]["canRetryWithDeviceToken"], true);
    assert_eq!(gateway.json(&["devices", "list"])["pending"], json!([]));
}

/// The bug: a device that changed its platform each time wrote a record, and showed a person a new card, with each connect.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_changes_each_time_is_told_to_wait() {
    let gateway = strict();
    let device = Device::new();
    let mut told = vec![];
    for n in 0..20 {
        let platform = format!("p{n}");
        let connect = Connect::token().scopes(READ).device(&device).on(&platform);
        let (error, _) = Client::dial(&gateway).await.denied(&connect).await;
        told.push(error["details"]["code"].as_str().unwrap().to_owned());
    }
    assert!(
        told[..8].iter().all(|code| code == "PAIRING_REQUIRED"),
        "{told:?}"
    );
    assert!(
        told[8..].iter().all(|code| code == "ASKS_TOO_OFTEN"),
        "{told:?}"
    );
    // Another one is asked for as before.
    request(&gateway, &Device::new()).await;
}
