//! The shared token: where it may stand, how it is changed, and one that somebody chose.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, Connect};

#[tokio::test(flavor = "multi_thread")]
async fn the_token_may_stand_in_the_upgrades_header_and_never_in_the_url() {
    let gateway = Gateway::start();
    let header = format!("Bearer {TOKEN}");
    let with = [("Authorization", header.as_str())];
    let mut client = Client::dial_with(&gateway, &with).await.unwrap();
    let hello = client.hello(&Connect::bare()).await;
    assert_eq!(hello["auth"]["method"], "token");
    // What stands in connect goes before it.
    let mut client = Client::dial_with(&gateway, &with).await.unwrap();
    let wrong = json!({"token": TOKEN.replace('4', "5")});
    let (error, _) = client.denied(&Connect::bare().auth(wrong)).await;
    assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH");
    let wrong = [(
        "Authorization",
        "Bearer 578c9e6a-b11b-422b-8bf4-6ef024b4d6c3",
    )];
    let mut client = Client::dial_with(&gateway, &wrong).await.unwrap();
    let (error, _) = client.denied(&Connect::bare()).await;
    assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH");

    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", gateway.port()))
        .await
        .unwrap();
    let request = |path: &str, more: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
        )
    };
    let path = format!("/?token={TOKEN}&access_token={TOKEN}&auth={TOKEN}");
    socket
        .write_all(request(&path, "").as_bytes())
        .await
        .unwrap();
    let connect = json!({"type": "req", "id": "1", "method": "connect", "params": Connect::bare().params("", 0)});
    socket
        .write_all(&masked(&connect.to_string()))
        .await
        .unwrap();
    let mut heard = vec![];
    let read = socket.read_to_end(&mut heard);
    tokio::time::timeout(std::time::Duration::from_secs(20), read)
        .await
        .unwrap()
        .unwrap();
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.contains("AUTH_TOKEN_MISSING"), "{heard}");
    assert!(!gateway.log().contains(TOKEN));
    // Two of them may be two people's.
    let two = format!("Authorization: {header}\r\nAuthorization: {header}\r\n");
    let answer = gateway.http(&request("/", &two));
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

/// One text frame under a mask of zeros (RFC 6455 5.2).
fn masked(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    let mut frame = vec![0x81, 0x80 | 0x7e];
    frame.extend(length.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    frame
}

fn rotated(gateway: &Gateway) -> String {
    let answer = gateway.json(&["auth", "token", "rotate"]);
    answer["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_ends_the_sessions_of_the_old_one_and_stays_dead_after_kill_9() {
    let mut gateway = Gateway::prepared(&[]);
    gateway.unset("PORTCULLIS_GATEWAY_TOKEN");
    gateway.launch();
    let first = rotated(&gateway);
    assert!(first.starts_with("pc_gw_"), "{first}");
    let by = |token: &str| Connect::bare().auth(json!({ "token": token }));
    let mut old = Client::dial(&gateway).await;
    old.hello(&by(&first)).await;
    let mut device_session = Client::dial(&gateway).await;
    let device = crate::support::ws::Device::new();
    device_session.hello(&by(&first).device(&device)).await;
    let mut local = Client::control(&gateway.state()).await;
    local.hello(&Connect::bare()).await;

    let second = rotated(&gateway);
    assert_ne!(first, second);
    let end = (4001, "gateway auth changed".to_owned());
    assert_eq!(old.closed().await, end);
    assert_eq!(device_session.closed().await, end);
    local.get("health", json!({})).await;
    for _ in 0..2 {
        let (error, _) = Client::dial(&gateway).await.denied(&by(&first)).await;
        assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH");
        Client::dial(&gateway).await.hello(&by(&second)).await;
        gateway.crash_and_start();
    }
    let found = std::process::Command::new("grep")
        .args(["-rl", &second])
        .arg(gateway.state())
        .output()
        .unwrap();
    assert!(found.stdout.is_empty(), "kept in the clear: {found:?}");
    let records = gateway.json(&["audit", "query", "--action", "auth.token.rotate"]);
    assert!(records.to_string().contains("auth.token.rotate"));
}

#[test]
fn a_token_that_is_given_is_changed_where_it_is_given() {
    let gateway = Gateway::start();
    let output = gateway.cli(&["auth", "token", "rotate"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("error[CREDENTIAL_GIVEN]: "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_made_on_control_sock_only() {
    let gateway = Gateway::with(&[("gateway.auth.shared_token_scopes", r#"["operator.admin"]"#)]);
    let mut client = crate::support::ws::by_token(&gateway, &["operator.admin"]).await;
    client.get("agent.token.list", json!({})).await;
    for (method, params) in [
        ("auth.token.rotate", json!({})),
        ("agent.token.mint", json!({"agentId": "demo"})),
        ("agent.token.revoke", json!({"agentId": "demo"})),
        ("auth.password.set", json!({"name": "a", "hash": "x"})),
        ("auth.password.remove", json!({"name": "a"})),
    ] {
        let error = client.refused(method, params).await;
        assert_eq!(error["details"]["code"], "MISSING_SCOPE", "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_somebodys_own_choice_opens_and_guesses_at_it_are_counted() {
    const CHOSEN: &str = "correct-horse-battery-staple";
    let gateway = Gateway::with(&[
        ("PORTCULLIS_GATEWAY_TOKEN", CHOSEN),
        ("gateway.auth.bcrypt_cost", "10"),
    ]);
    let by = |token: &str| Connect::bare().auth(json!({ "token": token }));
    // Right ones are not counted.
    for _ in 0..12 {
        Client::dial(&gateway).await.hello(&by(CHOSEN)).await;
    }
    let device = crate::support::ws::Device::new();
    Client::dial(&gateway)
        .await
        .hello(&by(CHOSEN).device(&device))
        .await;
    for _ in 0..10 {
        let wrong = by("correct-horse-battery-stapler");
        let (error, close) = Client::dial(&gateway).await.denied(&wrong).await;
        assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH");
        assert_eq!(close.0, 1008);
    }
    let (error, close) = Client::dial(&gateway).await.denied(&by(CHOSEN)).await;
    assert_eq!(error["details"]["code"], "AUTH_RATE_LIMITED");
    assert_eq!(error["retryable"], true);
    let wait = error["retryAfterMs"].as_u64().unwrap();
    assert!((200_000..=300_000).contains(&wait), "{wait}");
    assert_eq!(
        close,
        (
            1008,
            "unauthorized: too many failed authentication attempts (retry later)".to_owned()
        )
    );
    // A device that is paired and signs counts alone: others' guesses are not its own.
    Client::dial(&gateway)
        .await
        .hello(&by(CHOSEN).device(&device))
        .await;
}
