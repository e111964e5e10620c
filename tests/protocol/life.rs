//! A connection over time: ticks and pings, a client that does not read, the gateway's stop, a credential that ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
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
    // The other one has read nothing until now, so it has answered nothing: its socket is ended, and by name.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        silent.closed().await,
        (1008, "heartbeat timeout".to_owned())
    );
    assert!(silent.ws.send(Message::text("x")).await.is_err());
    // Who answers is served on.
    answers.get("health", json!({})).await;
}

/// More answers than the kernel holds for a Unix socket.
const MANY: usize = 1_000;

fn asks(id: usize) -> Message {
    let frame = json!({"type": "req", "id": id.to_string(), "method": "config.get"});
    Message::text(frame.to_string())
}

/// Asks and reads nothing until the gateway has stopped reading too, and its time for a write is over; then all that is
/// there: how many answers, and the close frame.
async fn unread(gateway: &Gateway) -> (usize, Option<(u16, String)>) {
    let (mut to, mut from) = admin(gateway).await.ws.split();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let asking = tokio::spawn(async move {
        for id in 0..MANY {
            if to.send(asks(id)).await.is_err() {
                break;
            }
            count.fetch_add(1, Relaxed);
        }
    });
    let (mut before, mut still) = (0, Instant::now());
    while still.elapsed() < Duration::from_millis(500) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = sent.load(Relaxed);
        if now != before {
            (before, still) = (now, Instant::now());
        }
    }
    // In the middle of the second for which its close frame waits to be taken.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let mut answered = 0;
    loop {
        let next = timeout(Duration::from_secs(20), from.next()).await;
        match next
            .unwrap_or_else(|_| panic!("{answered} answers, then nothing:\n{}", gateway.log()))
        {
            Some(Ok(Message::Text(_))) => answered += 1,
            Some(Ok(Message::Close(told))) => {
                let told = told.map(|told| (told.code.into(), told.reason.as_str().to_owned()));
                asking.abort();
                return (answered, told);
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => {
                asking.abort();
                return (answered, None);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_its_answers_unread_is_closed_and_the_others_are_served() {
    let gateway = Gateway::with(&[("connection.write_timeout_ms", "1000")]);
    let mut other = by_token(&gateway, &[]).await;
    // Who reads is answered, however much it asks.
    let (mut to, mut from) = admin(&gateway).await.ws.split();
    let asking = tokio::spawn(async move {
        for id in 0..MANY {
            if to.send(asks(id)).await.is_err() {
                return false;
            }
        }
        true
    });
    for _ in 0..MANY {
        let answer = timeout(Duration::from_secs(20), from.next()).await;
        assert!(answer.unwrap().unwrap().unwrap().is_text());
    }
    assert!(asking.await.unwrap());
    other.get("health", json!({})).await;

    // The close frame stands behind answers that the kernel has no room for: who takes them in time hears it.
    let mut heard = None;
    for _ in 0..5 {
        let (answered, told) = unread(&gateway).await;
        assert!(answered < MANY, "all was answered to who reads nothing");
        other.get("health", json!({})).await;
        heard = told;
        if heard.is_some() {
            break;
        }
    }
    assert_eq!(heard, Some((1008, "slow consumer".to_owned())));
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
