//! A connection over time: ticks and pings, a client that does not read, the gateway's stop, a credential that ends.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::support::gateway::Gateway;
use crate::support::ws::{Came, Connect, Device, admin, by_token, join};

/// wire.md section 1: a tick every 30 s, a ping every 25 s, and 25 s for its pong. In real time: the client's end is
/// another process' kernel, and the figures are what is tested.
#[tokio::test(flavor = "multi_thread")]
async fn ticks_and_pings_come_and_only_who_leaves_a_ping_unanswered_is_ended() {
    let gateway = Gateway::start();
    let mut answers = by_token(&gateway, &[]).await;
    let mut silent = by_token(&gateway, &[]).await;
    let began = Instant::now();
    let (mut pings, mut ticks) = (vec![], vec![]);
    while pings.len() < 2 || ticks.is_empty() {
        let came = timeout(Duration::from_mins(1), answers.ws.next()).await;
        match came.unwrap().unwrap().unwrap() {
            Message::Ping(_) => {
                pings.push(began.elapsed());
                // The library answers it with the next write.
                answers.ws.flush().await.unwrap();
            }
            Message::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(
                    (&frame["event"], &frame["seq"]),
                    (&json!("tick"), &json!(1))
                );
                assert!(frame["payload"]["ts"].as_u64().unwrap() > 1_700_000_000_000);
                ticks.push(began.elapsed());
            }
            other => panic!("{other:?}"),
        }
    }
    let near = |at: Duration, seconds: u64| {
        let late = at.saturating_sub(Duration::from_secs(seconds));
        at >= Duration::from_secs(seconds - 1) && late < Duration::from_secs(8)
    };
    assert!(near(pings[0], 25) && near(pings[1], 50), "{pings:?}");
    assert!(near(ticks[0], 30), "{ticks:?}");
    // The other one has read nothing until now, so it has answered nothing: its socket is ended, without a word.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut seen = vec![];
    while let Ok(Some(Ok(message))) = timeout(Duration::from_secs(10), silent.ws.next()).await {
        seen.push(message);
    }
    assert!(!seen.iter().any(Message::is_close), "{seen:?}");
    assert!(silent.ws.send(Message::text("x")).await.is_err());
    // Who answers is served on.
    answers.get("health", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_its_answers_unread_is_closed_and_the_others_are_served() {
    const MANY: usize = 1_000;
    let gateway = Gateway::with(&[("connection.write_timeout_ms", "1000")]);
    let mut other = by_token(&gateway, &[]).await;
    // Its answers are more than the kernel holds for a Unix socket.
    let frame = |id: usize| {
        json!({"type": "req", "id": id.to_string(), "method": "config.get"}).to_string()
    };
    for reads in [true, false] {
        let (mut to, mut from) = admin(&gateway).await.ws.split();
        let asks = tokio::spawn(async move {
            for id in 0..MANY {
                if to.send(Message::text(frame(id))).await.is_err() {
                    return false;
                }
            }
            true
        });
        if reads {
            for _ in 0..MANY {
                let answer = timeout(Duration::from_secs(20), from.next()).await;
                assert!(answer.unwrap().unwrap().unwrap().is_text());
            }
            assert!(asks.await.unwrap());
        } else {
            // Nothing is read while it asks, and for a while more; then what the kernel held, and the end.
            let _ = timeout(Duration::from_secs(3), asks).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let mut answered = 0;
            loop {
                match timeout(Duration::from_secs(20), from.next())
                    .await
                    .unwrap_or_else(|_| {
                        panic!("{answered} answers, then nothing:\n{}", gateway.log())
                    }) {
                    Some(Ok(Message::Text(_))) => answered += 1,
                    Some(Ok(Message::Close(told))) => {
                        let told = told.unwrap();
                        assert_eq!(
                            (u16::from(told.code), told.reason.as_str()),
                            (1008, "slow consumer")
                        );
                        break;
                    }
                    Some(Ok(_)) => {}
                    // The close frame stands behind answers that the kernel had no room for.
                    Some(Err(_)) | None => break,
                }
            }
            assert!(answered < MANY, "all was answered to who reads nothing");
        }
        other.get("health", json!({})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_told_as_an_event_and_closes_with_1012() {
    let mut gateway = Gateway::start();
    let mut client = by_token(&gateway, &[]).await;
    client.get("health", json!({})).await;
    let stop = tokio::task::spawn_blocking(move || gateway.stop());
    let event = client.frame().await;
    assert_eq!(event["event"], "shutdown", "{event}");
    assert_eq!(event["payload"], json!({"reason": "service restart"}));
    assert_eq!(event["seq"], 1);
    assert_eq!(
        client.next().await,
        Came::Closed(1012, "service restart".to_owned())
    );
    assert_eq!(stop.await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_and_a_new_approval_end_the_sessions_of_the_old_ones() {
    let gateway = Gateway::with(&[("gateway.local.local_trust", "false")]);
    let mut admin = admin(&gateway).await;
    let device = Device::new();
    let asks = |scopes: &[&str]| Connect::token().scopes(scopes).device(&device);
    let knock = async |scopes: &[&str]| {
        let client = crate::support::ws::Client::dial(&gateway).await;
        let (error, _) = { client }.denied(&asks(scopes)).await;
        error["details"]["requestId"].clone()
    };
    let id = knock(&["operator.read"]).await;
    admin
        .get("device.pair.approve", json!({"requestId": id}))
        .await;

    // Another's rotation does not get the token; the device itself does, on the socket that is then closed.
    let (mut live, _) = join(&gateway, &asks(&["operator.read"])).await;
    let who = json!({"deviceId": device.id(), "role": "operator"});
    let rotated = admin.get("device.token.rotate", who.clone()).await;
    assert_eq!(rotated["tokenDelivery"], "withheld-cross-device");
    assert!(
        rotated.get("token").is_none() && rotated["rotatedAtMs"].is_u64(),
        "{rotated}"
    );
    let ended = |reason: &str| (4001, format!("client invalidated: {reason}"));
    assert_eq!(live.closed().await, ended("device-token-rotated"));

    // A wider approval ends what lives under the narrower one.
    let (mut live, _) = join(&gateway, &asks(&["operator.read"])).await;
    let id = knock(&["operator.read", "operator.write"]).await;
    admin
        .get("device.pair.approve", json!({"requestId": id}))
        .await;
    assert_eq!(live.closed().await, ended("device-pairing-reapproved"));

    let (mut live, _) = join(&gateway, &asks(&["operator.write"])).await;
    let revoked = admin.get("device.token.revoke", who.clone()).await;
    assert_eq!(
        (&revoked["deviceId"], &revoked["role"]),
        (&who["deviceId"], &who["role"])
    );
    assert!(revoked["revokedAtMs"].is_u64());
    assert_eq!(live.closed().await, ended("device-token-revoked"));
    for (method, text) in [
        ("device.token.rotate", "device token rotation denied"),
        ("device.token.revoke", "device token revocation denied"),
    ] {
        let nobody = json!({"deviceId": Device::new().id(), "role": "operator"});
        let error = admin.refused(method, nobody).await;
        assert_eq!(
            (&error["code"], &error["message"]),
            (&json!("INVALID_REQUEST"), &json!(text))
        );
    }
    let error = admin
        .refused("device.pair.approve", json!({"requestId": "x"}))
        .await;
    assert_eq!(error["message"], "unknown requestId");
}
