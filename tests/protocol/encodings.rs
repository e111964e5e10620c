//! One wire in two encodings: what one refuses the other refuses, and a method sees the same.

use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, join};

fn all() -> Connect<'static> {
    Connect::token().scopes(&["operator.admin", "operator.pairing", "operator.read"])
}

/// The two, side by side.
async fn pair(gateway: &Gateway) -> [Client; 2] {
    let (text, _) = join(gateway, &all()).await;
    let mut packed = Client::dial_packed(gateway).await;
    packed.hello(&all()).await;
    [text, packed]
}

#[tokio::test(flavor = "multi_thread")]
async fn messagepack_is_the_same_wire_as_json() {
    let gateway = Gateway::start();
    let device = Device::new();
    let connect = all().device(&device);
    let mut packed = Client::dial_packed(&gateway).await;
    let hello = packed.hello(&connect).await;
    assert_eq!(hello["type"], "hello-ok");
    assert!(hello["auth"]["deviceToken"].is_string(), "{hello}");
    let (mut text, _) = join(&gateway, &connect).await;
    for (method, params) in [
        ("config.get", json!({})),
        ("exec.approvals.get", json!({})),
        (
            "audit.query",
            json!({"action": "pairing.auto_approve", "limit": 1}),
        ),
        ("device.pair.list", json!({"nothing": 1})),
        ("device.pair.rename", json!({"deviceId": 7, "label": "x"})),
        ("device.pair.approve", json!({"requestId": "no such"})),
        ("no.such.method", json!([1, null, -2.5, {"a": "\u{1f980}"}])),
    ] {
        let answers = [
            text.call(method, params.clone()).await,
            packed.call(method, params.clone()).await,
        ];
        let [a, b] = answers.map(|mut answer| {
            answer["id"] = Value::Null;
            answer
        });
        assert_eq!(a, b, "{method}");
    }
    let mut health = [
        text.get("health", json!({})).await,
        packed.get("health", json!({})).await,
    ];
    for answer in &mut health {
        assert!(answer["ts"].take().as_u64().is_some());
    }
    assert_eq!(health[0], health[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_round_trip_is_refused_at_every_depth_in_both_encodings() {
    let gateway = Gateway::start();
    let [mut text, mut packed] = pair(&gateway).await;
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let long = deep(33);
    // The params as text, and as MessagePack.
    let wrong: [(&str, Vec<u8>, &str); 5] = [
        (
            r#"{"a":1,"a":1}"#,
            b"\x82\xa1a\x01\xa1a\x01".to_vec(),
            "twice",
        ),
        (
            r#"{"x":[{"a":{"b":1,"b":2}}]}"#,
            b"\x81\xa1x\x91\x81\xa1a\x82\xa1b\x01\xa1b\x02".to_vec(),
            "twice",
        ),
        (
            r#"{"n":9007199254740993}"#,
            b"\x81\xa1n\xcf\x00\x20\x00\x00\x00\x00\x00\x01".to_vec(),
            "2^53",
        ),
        (
            r#"{"n":1e300}"#,
            b"\x81\xa1n\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00".to_vec(),
            "2^53",
        ),
        (&long, [vec![0x91; 32], vec![0x90]].concat(), "deep"),
    ];
    for (params, bytes, why) in &wrong {
        // health reads no params, and refuses these all the same.
        for method in ["config.get", "device.pair.list", "health"] {
            text.text(format!(
                r#"{{"type":"req","id":"t","method":"{method}","params":{params}}}"#
            ))
            .await;
            let mut frame = b"\x84\xa4type\xa3req\xa2id\xa1p\xa6method".to_vec();
            frame.push(0xa0 | u8::try_from(method.len()).unwrap());
            frame.extend(method.as_bytes());
            frame.extend(b"\xa6params");
            frame.extend(bytes);
            packed.binary(frame).await;
            let refused = [text.answer("t").await, packed.answer("p").await];
            for answer in &refused {
                assert_eq!(
                    answer["error"]["details"]["code"], "INVALID_PARAMS",
                    "{answer}"
                );
                let said = answer["error"]["message"].as_str().unwrap();
                let start = format!("invalid {method} params: ");
                assert!(said.starts_with(&start) && said.contains(why), "{said}");
            }
            assert_eq!(refused[0]["error"], refused[1]["error"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messagepack_that_is_no_request_is_answered_and_text_on_it_closes() {
    let gateway = Gateway::start();
    let [_, mut packed] = pair(&gateway).await;
    let good = rmp_serde::to_vec_named(&json!({"type": "req", "id": "1", "method": "health"}));
    let good = good.unwrap();
    for (bytes, id) in [
        // More follows; nothing; bytes, an extension, a number as key; the frame's own key twice.
        ([&good[..], b"\xc0"].concat(), "1"),
        (vec![], "invalid"),
        (b"\xc4\x01a".to_vec(), "invalid"),
        (b"\xd4\x01a".to_vec(), "invalid"),
        (b"\x81\x01\x02".to_vec(), "invalid"),
        (b"\x82\xa2id\xa11\xa2id\xa11".to_vec(), "invalid"),
        (good[..good.len() - 1].to_vec(), "1"),
    ] {
        packed.binary(bytes).await;
        let answer = packed.frame().await;
        assert_eq!(answer["id"], id, "{answer}");
        assert_eq!(
            answer["error"]["details"]["code"], "INVALID_FRAME",
            "{answer}"
        );
    }
    packed.get("health", json!({})).await;
    packed.text("{}").await;
    let (code, reason) = packed.closed().await;
    assert_eq!(code, 1003, "{reason}");
    assert!(reason.contains("MessagePack"), "{reason}");

    let mut stranger = Client::dial_packed(&gateway).await;
    stranger
        .text(r#"{"type":"req","id":"1","method":"connect"}"#)
        .await;
    assert_eq!(stranger.closed().await.0, 1003);
    let mut stranger = Client::dial_packed(&gateway).await;
    stranger.binary(vec![0xc1]).await;
    assert_eq!(
        stranger.closed().await,
        (1008, "invalid request frame".to_owned())
    );
}
