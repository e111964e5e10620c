//! What a stranger gets: before `connect` has let it in.

use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, SinkExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::support::gateway::Gateway;
use crate::support::ws::{Came, Client, Connect};

const TOO_LARGE: &str = "preauth payload too large";

#[tokio::test(flavor = "multi_thread")]
async fn a_first_frame_that_is_not_connect_is_answered_with_the_exact_text() {
    let gateway = Gateway::start();
    let mut client = Client::dial(&gateway).await;
    let error = client.refused("health", json!({})).await;
    let text = "invalid handshake: first request must be connect";
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("INVALID_REQUEST"), &json!(text))
    );
    assert_eq!(error["details"]["code"], "CONNECT_INVALID");
    assert!(error["details"]["next"].is_string(), "{error}");
    assert_eq!(client.closed().await, (1008, text.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_no_json_closes_a_stranger_without_a_word() {
    let gateway = Gateway::start();
    for garbage in [
        "hello",
        "",
        "{",
        "\u{0}",
        "{\"type\":\"req\",\"id\":\"1\",\"method\":\"connect\"} x",
    ] {
        let mut client = Client::dial(&gateway).await;
        client.text(garbage).await;
        assert_eq!(
            client.next().await,
            Came::Closed(1000, String::new()),
            "{garbage:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binary_frame_closes_a_stranger_without_a_word() {
    let gateway = Gateway::start();
    let mut client = Client::dial(&gateway).await;
    client
        .ws
        .send(Message::binary(vec![1, 2, 3]))
        .await
        .unwrap();
    assert_eq!(client.next().await, Came::Closed(1000, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_no_request_frame_closes_a_stranger_with_1008() {
    let gateway = Gateway::start();
    for bad in [
        json!([]),
        json!({"type": "req", "id": 1, "method": "connect"}),
        json!({"type": "req", "id": "1", "method": "connect", "extra": true}),
        json!({"type": "event", "event": "connect"}),
    ] {
        let mut client = Client::dial(&gateway).await;
        client.text(bad.to_string()).await;
        assert_eq!(
            client.next().await,
            Came::Closed(1008, "invalid request frame".to_owned()),
            "{bad}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_params_that_are_wrong_are_named_and_closed_with_1008() {
    let gateway = Gateway::start();
    let change = |pointer: &str, value: Value| {
        let mut params = Connect::token().params("", 0);
        *params.pointer_mut(pointer).unwrap() = value;
        params
    };
    for (params, text) in [
        (
            change("/client/id", json!("evil")),
            "invalid connect params: at /client/id",
        ),
        (
            change("/client/mode", json!("operator")),
            "invalid connect params: at /client/mode",
        ),
        (change("/role", json!("root")), "invalid role"),
        (
            change("/role", json!("agent")),
            "unauthorized: agent token mismatch",
        ),
        (change("/scopes", json!(7)), "invalid connect params: "),
        (
            change("/client/version", json!("v".repeat(300))),
            "invalid connect params: at /client/version",
        ),
        (json!({}), "invalid connect params: "),
    ] {
        let mut client = Client::dial(&gateway).await;
        let error = client.refused("connect", params).await;
        let message = error["message"].as_str().unwrap().to_owned();
        assert!(
            error["code"] == "INVALID_REQUEST" && message.starts_with(text),
            "{error}"
        );
        let (code, reason) = client.closed().await;
        assert!(
            code == 1008 && message.starts_with(&reason) && !reason.is_empty(),
            "{code} {reason}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_is_closed_with_1002() {
    let gateway = Gateway::start();
    let mut client = Client::dial(&gateway).await;
    let mut params = Connect::token().params("", 0);
    (params["minProtocol"], params["maxProtocol"]) = (json!(5), json!(6));
    let error = client.refused("connect", params).await;
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("INVALID_REQUEST"), &json!("protocol mismatch"))
    );
    assert_eq!(
        error["details"],
        json!({"code": "PROTOCOL_MISMATCH", "clientMinProtocol": 5, "clientMaxProtocol": 6,
            "expectedProtocol": 4, "minimumProbeProtocol": 3,
            "next": "use a client that speaks the protocol in expectedProtocol"})
    );
    assert_eq!(
        client.closed().await,
        (1002, "protocol mismatch".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_64_kib_passes_and_one_byte_more_is_closed_with_1009() {
    let gateway = Gateway::start();
    let frame = |len: usize| {
        let mut params = Connect::token().params("", 0);
        params["locale"] = json!("");
        let empty =
            json!({"type": "req", "id": "1", "method": "connect", "params": params}).to_string();
        params["locale"] = json!("l".repeat(len - empty.len()));
        let text =
            json!({"type": "req", "id": "1", "method": "connect", "params": params}).to_string();
        assert_eq!(text.len(), len);
        text
    };
    let mut client = Client::dial(&gateway).await;
    client.text(frame(65_536)).await;
    assert_eq!(client.answer("1").await["ok"], true);

    let mut client = Client::dial(&gateway).await;
    client.text(frame(65_537)).await;
    assert_eq!(
        client.next().await,
        Came::Closed(1009, TOO_LARGE.to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_first_message_in_fragments_is_closed_with_1009() {
    let gateway = Gateway::start();
    let mut client = Client::dial(&gateway).await;
    let piece = |opcode| {
        Message::Frame(Frame::message(
            vec![b' '; 8192],
            OpCode::Data(opcode),
            false,
        ))
    };
    // The other end may close before all have been sent.
    let _ = client.ws.send(piece(Data::Text)).await;
    for _ in 0..8 {
        let _ = client.ws.send(piece(Data::Continue)).await;
    }
    assert_eq!(
        client.next().await,
        Came::Closed(1009, TOO_LARGE.to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_only_announces_its_size_is_closed_at_its_header() {
    let gateway = Gateway::start();
    let mut client = Client::dial(&gateway).await;
    for announced in [65_537_u64, 1 << 40, u64::MAX >> 1] {
        let mut header = vec![0x81, 0x80 | 127];
        header.extend(announced.to_be_bytes());
        header.extend([0; 4]);
        let mut other = Client::dial(&gateway).await;
        let stream = other.ws.get_mut();
        stream.write_all(&header).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(
            other.next().await,
            Came::Closed(1009, TOO_LARGE.to_owned()),
            "{announced}"
        );
    }
    // Nobody else noticed.
    client.hello(&Connect::token()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stranger_is_closed_with_1000_when_its_time_is_over() {
    let gateway = Gateway::with(&[("gateway.limits.handshake_ms", "1000")]);
    let late = Came::Closed(1000, "handshake timeout".to_owned());
    let began = Instant::now();
    let mut client = Client::dial(&gateway).await;
    assert_eq!(client.next().await, late);
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(990) && took < Duration::from_secs(10),
        "{took:?}"
    );
    // One that talks without saying who it is has no more time.
    let mut client = Client::dial(&gateway).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        if client.ws.send(Message::Ping(vec![].into())).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        began.elapsed() < Duration::from_secs(9),
        "pings keep a stranger alive"
    );
    // Nor has one whose first message never ends: it is told the same.
    let mut client = Client::dial(&gateway).await;
    let piece = |kind| Message::Frame(Frame::message(vec![b' '], OpCode::Data(kind), false));
    client.ws.send(piece(Data::Text)).await.unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        // The close frame is read below.
        if client.ws.send(piece(Data::Continue)).await.is_err() {
            break;
        }
        if let Some(came) = client.next().now_or_never() {
            assert_eq!(came, late);
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("fragments keep a stranger alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmasked_frame_is_closed_with_1002() {
    let gateway = Gateway::start();
    let mut client = Client::dial(&gateway).await;
    let stream = client.ws.get_mut();
    stream.write_all(b"\x81\x02{}").await.unwrap();
    stream.flush().await.unwrap();
    let mut rest = vec![];
    let _ = client.ws.get_mut().read_to_end(&mut rest).await;
    assert_eq!(rest.get(..4), Some(&[0x88, 16, 0x03, 0xea][..]), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifteen_frames_may_wait_behind_connect_and_more_are_closed_with_1008() {
    let gateway = Gateway::start();
    for (behind, comes_in) in [(15, true), (60, false)] {
        let mut client = Client::dial(&gateway).await;
        // In one piece: all is there before the connect is decided.
        let mut feed = |id: usize, method: &str, params: Value| {
            let frame =
                json!({"type": "req", "id": id.to_string(), "method": method, "params": params});
            client
                .ws
                .feed(Message::text(frame.to_string()))
                .now_or_never()
                .unwrap()
                .unwrap();
        };
        let params = Connect::token().params("", 0);
        feed(0, "connect", params);
        for id in 1..=behind {
            feed(id, "health", json!({}));
        }
        client.ws.flush().await.unwrap();
        if comes_in {
            for id in 0..=behind {
                let answer = client.frame().await;
                assert_eq!(
                    (&answer["id"], &answer["ok"]),
                    (&json!(id.to_string()), &json!(true)),
                    "{answer}"
                );
            }
        } else {
            let told = Came::Closed(1008, "too many pending handshake frames".to_owned());
            assert_eq!(client.next().await, told);
        }
    }
}

/// The bug: the time to authenticate began with the upgrade, and plain HTTP had more than a minute before it.
#[tokio::test(flavor = "multi_thread")]
async fn plain_http_before_the_upgrade_gives_a_stranger_no_more_time() {
    let gateway = Gateway::with(&[("gateway.limits.handshake_ms", "1500")]);
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", gateway.port()))
        .await
        .unwrap();
    let began = Instant::now();
    let asking = async {
        loop {
            socket
                .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await?;
            if socket.read(&mut [0; 4096]).await? == 0 {
                return std::io::Result::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // Closed, or reset.
    let _ = tokio::time::timeout(Duration::from_secs(20), asking)
        .await
        .expect("it ends");
    assert!(
        began.elapsed() >= Duration::from_millis(1400),
        "{:?}",
        began.elapsed()
    );
}

/// The bug: what did not fit was told back, and a secret in the wrong place with it, in the answer and the close reason.
#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_a_connect_comes_back() {
    const SECRET: &str = "hunter2, expected nowhere";
    let gateway = Gateway::start();
    for pointer in [
        "",
        "/auth",
        "/auth/token",
        "/client",
        "/client/id",
        "/client/mode",
        "/device",
        "/role",
        "/scopes",
        "/caps",
        "/minProtocol",
        "/permissions",
        "/frameSigning",
    ] {
        for value in [
            json!(SECRET),
            json!([SECRET]),
            json!({ "value": SECRET }),
            json!([{ SECRET: SECRET }]),
        ] {
            let mut params = Connect::token().params("", 0);
            for name in ["device", "permissions", "frameSigning", "caps"] {
                params[name] = json!({});
            }
            *params.pointer_mut(pointer).unwrap() = value;
            let mut client = Client::dial(&gateway).await;
            let answer = client.call("connect", params.clone()).await;
            assert_eq!(answer["ok"], false, "{params}");
            let (_, reason) = client.closed().await;
            let told = format!("{answer}{reason}");
            assert!(!told.contains("hunter2"), "{pointer}: {told}");
        }
    }
    assert!(!gateway.log().contains("expected nowhere"));
}
