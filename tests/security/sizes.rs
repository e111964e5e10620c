//! What is too much: bodies, values, trees; before and after somebody is known.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::json;

use crate::protocol::signed_http::Signer;
use crate::support::gateway::Gateway;
use crate::support::ws::{Came, Client, Connect, admin};

#[test]
fn a_body_is_not_read_from_who_has_no_session_and_a_login_no_further_than_a_form() {
    let gateway = Gateway::start();
    let own = format!("http://localhost:{}", gateway.port());
    for (path, length) in [
        ("/approvals", 1 << 30),
        ("/devices", 1 << 30),
        ("/login", 1 << 30),
    ] {
        let mut socket = gateway.socket();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost:{}\r\nOrigin: {own}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n",
            gateway.port()
        );
        socket.write_all(head.as_bytes()).unwrap();
        let chunk = vec![b'a'; 64 * 1024];
        let mut sent = 0_usize;
        // It answers, or closes, long before a gigabyte.
        while sent < 64 << 20 && socket.write_all(&chunk).is_ok() {
            sent += chunk.len();
        }
        assert!(sent < 64 << 20, "{path}: {sent} bytes were taken");
        let mut answer = vec![];
        // Closed under our writing: there may be nothing to read.
        let _ = socket.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let alive =
        gateway.http("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
}

/// The first word of an answer to this, within a time.
fn answered(gateway: &Gateway, sent: &str, within: Duration) -> Option<String> {
    let mut socket = gateway.socket();
    socket.set_read_timeout(Some(within)).unwrap();
    socket.write_all(sent.as_bytes()).unwrap();
    let mut word = [0; 12];
    socket.read_exact(&mut word).ok()?;
    Some(String::from_utf8_lossy(&word).into_owned())
}

/// Of the body nothing is ever sent: whoever is answered was judged without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_signature_is_refused_before_a_byte_of_the_body_has_come() {
    let gateway = Gateway::start();
    let signer = Signer::new(&gateway, &["operator.pairing"]).await;
    let body = format!("{{}}{}", " ".repeat(1024 * 1024 - 2));
    let moment = Duration::from_secs(3);
    let head = || {
        let text = signer.now(&gateway, "device.pair.list", &body).text();
        text[..text.len() - body.len()].to_owned()
    };
    let right = head();
    assert!(right.ends_with("\r\n\r\n") && right.contains("Content-Length: 1048576\r\n"));
    let refused = Some("HTTP/1.1 401".to_owned());
    let other = uuid::Uuid::new_v4().simple().to_string();
    for wrong in [
        right.replace("Signature: sig=:", "Signature: sig=:AAAA"),
        right.replace("device.pair.list", "device.pair.remove"),
        right.replace("nonce=\"", &format!("nonce=\"{}", &other[..4])),
        right.replace("keyid=\"", "keyid=\"x"),
        right.replace("Content-Digest: sha-256=:", "Content-Digest: sha-256=:AAAA"),
        right.replace("Signature: ", "X-Signature: "),
    ] {
        assert_ne!(wrong, right);
        assert_eq!(answered(&gateway, &wrong, moment), refused, "{wrong}");
    }
    // The right one is not: its body is waited for.
    assert_eq!(answered(&gateway, &right, moment), None);
    // Nor did it use its nonce up: the very same, with its body, is done.
    let whole = signer.now(&gateway, "device.pair.list", &body);
    let text = whole.text();
    let (head, _) = text.split_at(text.len() - body.len());
    assert_eq!(answered(&gateway, head, Duration::from_millis(200)), None);
    assert_eq!(whole.go(&gateway).0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_decodes_to_too_much_is_refused_and_not_kept() {
    let gateway = Gateway::start();
    gateway.vault_is_open();
    let mut client = admin(&gateway).await;
    // 12 MiB of base64 for a value of 64 KiB.
    let value = "QUFB".repeat(3 << 20);
    let error = client
        .refused("vault.set", json!({ "name": "BIG", "valueBase64": value }))
        .await;
    assert_eq!(error["details"]["code"], "VAULT_VALUE_INVALID", "{error}");
    for wrong in ["QQ=", "QQ==\n", "Q Q=", "-_8=", "QR=="] {
        let params = json!({ "name": "ODD", "valueBase64": wrong });
        let error = client.refused("vault.set", params).await;
        assert_eq!(error["code"], "INVALID_REQUEST", "{wrong:?}: {error}");
    }
    let list = client.get("vault.list", json!({})).await;
    assert_eq!(list["entries"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn params_that_are_deep_or_endless_cost_their_sender_only() {
    let gateway = Gateway::start();
    let (mut attacker, mut other) = (admin(&gateway).await, admin(&gateway).await);
    for params in [
        format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("{}1{}", r#"{"a":"#.repeat(50_000), "}".repeat(50_000)),
        format!("[{}0]", "0,".repeat(2_000_000)),
        format!(r#"{{"limit":1{}}}"#, "0".repeat(100_000)),
        r#"{"limit":1,"limit":2}"#.to_owned(),
        r#"{"limit":1e400}"#.to_owned(),
    ] {
        let frame = format!(r#"{{"type":"req","id":"x","method":"audit.tail","params":{params}}}"#);
        attacker.text(frame).await;
        // Answered with an error, or passed over as no JSON; never with a record.
        let health = attacker.call("health", json!({})).await;
        assert_eq!(health["ok"], true, "{health}");
        assert_eq!(
            other.get("audit.tail", json!({ "limit": 1 })).await["records"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_of_many_words_is_refused_before_anything_is_kept() {
    let gateway = Gateway::start();
    for (key, value) in [
        ("scopes", json!(vec!["operator.read"; 2_000])),
        ("caps", json!(vec!["x"; 20_000])),
        ("commands", json!(vec!["system.run"; 5_000])),
        ("locale", json!("x".repeat(40_000))),
        ("userAgent", json!("x".repeat(40_000))),
    ] {
        let mut client = Client::dial(&gateway).await;
        let connect = crate::support::ws::Connect::bare();
        let mut params = connect.params(&client.nonce, client.ts);
        params[key] = value;
        // Refused, or over the 64 KiB of a stranger and closed unread.
        let answer = client.try_call("connect", params).await;
        assert!(answer.is_none_or(|answer| answer["ok"] == false), "{key}");
        client.closed().await;
    }
    assert_eq!(
        gateway.json(&["devices", "list"]),
        json!({ "pending": [], "paired": [] })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_ask_for_health_alone_holds_no_more_room_than_before_he_was_known() {
    let gateway = Gateway::with(&[("gateway.local.local_trust", "false")]);
    let mut client = Client::dial(&gateway).await;
    let hello = client.hello(&Connect::token()).await;
    assert_eq!(hello["auth"]["scopes"], json!([]), "{hello}");
    assert_eq!(hello["policy"]["maxPayload"], 64 * 1024);
    assert_eq!(client.call("health", json!({})).await["ok"], true);
    let large = json!({ "x": "a".repeat(64 * 1024) });
    let id = client.ask("health", large).await;
    loop {
        match client.next().await {
            Came::Frame(frame) => assert_ne!(frame["id"], id.as_str(), "{frame}"),
            Came::Closed(code, _) => {
                assert_eq!(code, 1009);
                break;
            }
            Came::Gone => break,
        }
    }
    // Who has a scope may say more.
    let mut operator = admin(&gateway).await;
    let large = json!({ "name": "LARGE", "valueBase64": "YWFh".repeat(20 * 1024) });
    let answer = operator.call("vault.set", large).await;
    assert_ne!(answer["error"]["code"], "INVALID_FRAME", "{answer}");
}
