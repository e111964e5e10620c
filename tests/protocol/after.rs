//! What an authenticated connection may get wrong without harm, and what ends it.

use futures_util::SinkExt as _;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::Message;

use crate::support::gateway::Gateway;
use crate::support::ws::{admin, by_token};

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_no_json_and_binary_frames_are_passed_over() {
    let gateway = Gateway::start();
    let mut client = by_token(&gateway, &[]).await;
    client.text("not json").await;
    client.text("").await;
    client
        .ws
        .send(Message::binary(vec![0; 4000]))
        .await
        .unwrap();
    let id = client.ask("health", json!({})).await;
    let answer = client.frame().await;
    assert_eq!(
        (&answer["id"], &answer["ok"]),
        (&json!(id), &json!(true)),
        "the first answer is health's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_request_frame_is_answered_under_its_id() {
    let gateway = Gateway::start();
    let mut client = by_token(&gateway, &[]).await;
    for (bad, id) in [
        (
            json!({"type": "req", "id": "7", "method": "health", "extra": 1}),
            "7",
        ),
        (json!({"type": "res", "id": "8", "ok": true}), "8"),
        (
            json!({"type": "req", "id": 9, "method": "health"}),
            "invalid",
        ),
        (json!([1, 2]), "invalid"),
    ] {
        client.text(bad.to_string()).await;
        let answer = client.frame().await;
        assert_eq!(answer["id"], id, "{answer}");
        assert_eq!(answer["error"]["code"], "INVALID_REQUEST");
        assert_eq!(answer["error"]["message"], "invalid request frame");
        assert_eq!(answer["error"]["details"]["code"], "INVALID_FRAME");
    }
    client.get("health", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_frame_passes_after_connect_and_26_mib_are_closed_with_1009() {
    let gateway = Gateway::start();
    let mut client = by_token(&gateway, &["operator.read"]).await;
    // Over the stranger's 64 KiB: answered.
    let id = client
        .ask("health", json!({"pad": "x".repeat(1 << 20)}))
        .await;
    assert_eq!(client.answer(&id).await["ok"], true);
    client.text("x".repeat(26 << 20)).await;
    assert_eq!(client.closed().await.0, 1009);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_announced_after_connect_is_refused_before_it_arrives() {
    let gateway = Gateway::start();
    let mut client = by_token(&gateway, &["operator.read"]).await;
    let mut header = vec![0x81, 0x80 | 127];
    header.extend((1_u64 << 33).to_be_bytes());
    header.extend([0; 4]);
    let stream = client.ws.get_mut();
    stream.write_all(&header).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(client.closed().await.0, 1009);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_forty_requests_at_once_all_are_answered_and_those_over_32_may_be_sent_again() {
    let gateway = Gateway::start();
    let mut client = admin(&gateway).await;
    for n in 0..40 {
        let frame = json!({"type": "req", "id": format!("n{n}"), "method": "device.pair.list"});
        client
            .ws
            .feed(Message::text(frame.to_string()))
            .await
            .unwrap();
    }
    client.ws.flush().await.unwrap();
    let (mut good, mut refused) = (0, 0);
    for _ in 0..40 {
        let answer = client.frame().await;
        if answer["ok"] == true {
            good += 1;
        } else {
            assert_eq!(answer["error"]["code"], "UNAVAILABLE", "{answer}");
            assert_eq!(answer["error"]["retryable"], true);
            assert_eq!(answer["error"]["details"]["code"], "TOO_MANY_IN_FLIGHT");
            refused += 1;
        }
    }
    assert!(
        good >= 32 && refused >= 1,
        "{good} answered, {refused} refused"
    );
    client.get("device.pair.list", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_requests_under_way_never_share_an_id() {
    let gateway = Gateway::start();
    let mut client = admin(&gateway).await;
    let frame = json!({"type": "req", "id": "same", "method": "device.pair.list"}).to_string();
    client.ws.feed(Message::text(frame.clone())).await.unwrap();
    client.ws.feed(Message::text(frame.clone())).await.unwrap();
    client.ws.flush().await.unwrap();
    let answers = [client.frame().await, client.frame().await];
    let codes: Vec<_> = answers
        .iter()
        .map(|a| a["error"]["details"]["code"].clone())
        .collect();
    assert!(
        codes.contains(&json!("DUPLICATE_ID")) && codes.contains(&json!(null)),
        "{answers:?}"
    );
    // Answered, an id is free again.
    client.text(frame).await;
    assert_eq!(client.frame().await["ok"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_counted_from_one_and_only_by_those_who_may_hear_them() {
    let gateway = Gateway::with(&[("gateway.hosts", r#"["gate.example"]"#)]);
    let mut hears = by_token(&gateway, &["operator.pairing"]).await;
    let mut deaf = by_token(&gateway, &["operator.read"]).await;
    let device = crate::support::ws::Device::new();
    for asked in [["operator.read"], ["operator.write"]] {
        let connect = crate::support::ws::Connect::token()
            .scopes(&asked)
            .device(&device);
        // Under this name nobody is local.
        let strange = [("host", "gate.example")];
        let client = crate::support::ws::Client::dial_with(&gateway, &strange).await;
        client.unwrap().denied(&connect).await;
    }
    let mut seen = vec![];
    while seen.len() < 3 {
        let event = hears.frame().await;
        seen.push((
            event["event"].as_str().unwrap().to_owned(),
            event["seq"].as_u64().unwrap(),
        ));
    }
    let names = [
        "device.pair.requested",
        "device.pair.resolved",
        "device.pair.requested",
    ];
    assert_eq!(
        seen.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert!(
        seen.iter().all(|(name, _)| names.contains(&name.as_str())),
        "{seen:?}"
    );
    let id = deaf.ask("health", json!({})).await;
    assert_eq!(deaf.frame().await["id"], id, "nothing came before it");
}

/// The bug: three methods took whatever came as their params, so that a wrong call passed for a right one.
#[tokio::test(flavor = "multi_thread")]
async fn a_method_without_params_takes_none() {
    let gateway = Gateway::start();
    let mut client = admin(&gateway).await;
    for method in ["status", "config.get", "vault.status"] {
        for params in [json!({ "x": 1 }), json!([]), json!("x")] {
            let error = client.refused(method, params).await;
            assert_eq!(error["details"]["code"], "INVALID_PARAMS", "{method}");
        }
        client.get(method, json!({})).await;
    }
    // What the peer's clients send.
    let known = json!({ "includeChannelSummary": false, "includeCliProjection": true });
    client.get("status", known).await;
}
