//! Signed frames, spoken to the real program.

use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_core::protocol::{Encoding, Request, strict};
use portcullis_core::signing::frame::Keys;
use portcullis_core::time::Millis;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, Connect, Device, PATIENCE, join};

const NONCE: &str = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA";

/// A connection whose frames are signed.
struct Signed {
    client: Client,
    keys: Keys,
    encoding: Encoding,
}

fn now() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Millis(u64::try_from(since.unwrap().as_millis()).unwrap())
}

impl Signed {
    async fn open(gateway: &Gateway, encoding: Encoding) -> Self {
        let mut client = match encoding {
            Encoding::Json => Client::dial(gateway).await,
            Encoding::MsgPack => Client::dial_packed(gateway).await,
        };
        let connect = Connect::token().scopes(&["operator.read", "operator.pairing"]);
        let mut params = connect.params(&client.nonce, client.ts);
        params["frameSigning"] = json!({ "nonce": NONCE });
        let hello = client.get("connect", params).await;
        assert_eq!(hello["frameSigning"], json!({ "v": 1 }), "{hello}");
        let keys = Keys::derive(TOKEN, &client.nonce, NONCE);
        Self {
            client,
            keys,
            encoding,
        }
    }

    fn frame(&self, id: &str) -> Vec<u8> {
        let frame = json!({"type": "req", "id": id, "method": "config.get", "params": {}});
        self.encoding.write(&frame).unwrap().as_bytes().to_vec()
    }

    fn signed(&mut self, at: Millis, id: &str) -> Message {
        let frame = self.frame(id);
        Message::binary(self.keys.to_server.sign(at, &frame))
    }

    async fn send(&mut self, message: Message) {
        // The other end may have closed already: the next read tells.
        let _ = self.client.ws.send(message).await;
    }

    async fn answer(&mut self) -> Value {
        let next = tokio::time::timeout(PATIENCE, self.client.ws.next()).await;
        match next.unwrap().unwrap().unwrap() {
            Message::Binary(bytes) => {
                let frame = self.keys.to_client.open(now(), &bytes).unwrap();
                match self.encoding {
                    Encoding::Json => strict::json(frame).unwrap(),
                    Encoding::MsgPack => strict::msgpack(frame).unwrap(),
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_frames_pass_both_ways_in_both_encodings() {
    let gateway = Gateway::start();
    for encoding in [Encoding::Json, Encoding::MsgPack] {
        let mut signed = Signed::open(&gateway, encoding).await;
        for id in ["1", "2", "3"] {
            let message = signed.signed(now(), id);
            signed.send(message).await;
            let answer = signed.answer().await;
            assert_eq!((&answer["id"], &answer["ok"]), (&json!(id), &json!(true)));
        }
        // One that is no request is answered as on any connection, and signed too.
        let wrong = encoding.write(&json!({"type": "req", "id": "4"})).unwrap();
        let wrong = signed.keys.to_server.sign(now(), wrong.as_bytes());
        signed.send(Message::binary(wrong)).await;
        assert_eq!(
            signed.answer().await["error"]["details"]["code"],
            "INVALID_FRAME"
        );
    }
}

/// What goes wrong.
type Wrong = fn(&mut Signed) -> Vec<Message>;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_next_signed_frame_closes_the_connection_by_name() {
    let gateway = Gateway::start();
    let far = |ms: i64| Millis(now().0.saturating_add_signed(ms));
    let cases: [(&str, Wrong); 6] = [
        ("frame signing: this frame is not signed", |s| {
            vec![Message::text(String::from_utf8(s.frame("x")).unwrap())]
        }),
        ("frame signing: this frame is not signed", |_| {
            vec![Message::binary(vec![0; 40])]
        }),
        ("frame signing: wrong signature", |s| {
            let Message::Binary(bytes) = s.signed(now(), "x") else {
                panic!("binary")
            };
            let mut bytes = bytes.to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            vec![Message::binary(bytes)]
        }),
        ("frame signing: counter repeated", |s| {
            let one = s.signed(now(), "x");
            vec![one.clone(), one]
        }),
        ("frame signing: counter gap", |s| {
            s.signed(now(), "dropped");
            vec![s.signed(now(), "x")]
        }),
        // What the gateway itself sent, sent back.
        ("frame signing: wrong signature", |s| {
            let frame = s.frame("x");
            vec![Message::binary(s.keys.to_client.sign(now(), &frame))]
        }),
    ];
    for (reason, wrong) in cases {
        let mut signed = Signed::open(&gateway, Encoding::Json).await;
        for message in wrong(&mut signed) {
            signed.send(message).await;
        }
        assert_eq!(closed(&mut signed).await, (1008, reason.to_owned()));
    }
    for skew in [-61_500, 65_000] {
        let mut signed = Signed::open(&gateway, Encoding::Json).await;
        let late = signed.signed(far(skew), "x");
        signed.send(late).await;
        let (code, reason) = closed(&mut signed).await;
        assert_eq!(code, 1008);
        assert!(reason.contains("off by more than 60 s"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_frame_that_changes_something_is_not_done_twice() {
    let gateway = Gateway::start();
    let device = Device::new();
    join(&gateway, &Connect::token().device(&device)).await;
    let label = || gateway.json(&["devices", "list"])["paired"][0]["operatorLabel"].clone();
    let rename = |id: &str, label: &str| {
        let params = json!({ "deviceId": device.id(), "label": label });
        let frame =
            json!({"type": "req", "id": id, "method": "device.pair.rename", "params": params});
        frame.to_string().into_bytes()
    };
    let mut signed = Signed::open(&gateway, Encoding::Json).await;
    let mut recorded = None;
    for (id, name) in [("1", "first"), ("2", "second")] {
        let message = signed.keys.to_server.sign(now(), &rename(id, name));
        let message = Message::binary(message);
        recorded.get_or_insert_with(|| message.clone());
        signed.send(message).await;
        assert_eq!(signed.answer().await["ok"], true);
        assert_eq!(label(), name);
    }
    let recorded = recorded.unwrap();
    signed.send(recorded.clone()).await;
    let (code, reason) = closed(&mut signed).await;
    assert_eq!(
        (code, reason.as_str()),
        (1008, "frame signing: counter repeated")
    );
    assert_eq!(label(), "second");
    // Nor on another connection of the same client with the same token and the same nonce of its own.
    let mut other = Signed::open(&gateway, Encoding::Json).await;
    other.send(recorded).await;
    let (code, reason) = closed(&mut other).await;
    assert_eq!(
        (code, reason.as_str()),
        (1008, "frame signing: wrong signature")
    );
    assert_eq!(label(), "second");
    let renamed = gateway.json(&["audit", "query", "--action", "pairing.rename"]);
    let records = renamed["records"].as_array().unwrap();
    let intents = records
        .iter()
        .filter(|one| one["record"]["kind"] == "intent");
    assert_eq!(intents.count(), 2, "{renamed}");
}

/// Answers before it are passed over, unread.
async fn closed(signed: &mut Signed) -> (u16, String) {
    loop {
        let next = tokio::time::timeout(PATIENCE, signed.client.ws.next()).await;
        match next.unwrap() {
            Some(Ok(Message::Close(Some(frame)))) => {
                return (frame.code.into(), frame.reason.as_str().to_owned());
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_needs_a_token_and_a_nonce() {
    let gateway = Gateway::start();
    for (connect, nonce, why) in [
        (Connect::token(), "AAAA", "/frameSigning/nonce"),
        (Connect::bare(), NONCE, "/frameSigning needs a token"),
    ] {
        let mut client = Client::dial(&gateway).await;
        let mut params = connect.params(&client.nonce, client.ts);
        params["frameSigning"] = json!({ "nonce": nonce });
        let error = client.refused("connect", params).await;
        let said = error["message"].as_str().unwrap();
        assert!(said.contains(why), "{said}");
    }
    // The frames are keyed by what let the client in, or it is not let in.
    let bearer = format!("Bearer {TOKEN}");
    let bogus = [
        json!({ "bootstrapToken": "bogus-bogus-bogus-bogus" }),
        json!({ "deviceToken": "bogus-bogus-bogus-bogus" }),
        json!({ "token": TOKEN }),
    ];
    for auth in &bogus {
        let headers = [("Authorization", bearer.as_str())];
        let mut by_bearer = Client::dial_with(&gateway, &headers).await.unwrap();
        let mut by_uid = Client::control(&gateway.state()).await;
        for client in [&mut by_bearer, &mut by_uid] {
            let connect = Connect::bare().auth(auth.clone());
            let mut params = connect.params(&client.nonce, client.ts);
            params["frameSigning"] = json!({ "nonce": NONCE });
            let error = client.refused("connect", params).await;
            let said = error["message"].as_str().unwrap();
            assert!(said.contains("keyed by what is checked"), "{said}");
        }
    }
    // Not asked for, nothing is signed: clients connect unmodified.
    let mut client = Client::dial(&gateway).await;
    let hello = client.hello(&Connect::token()).await;
    assert!(hello.get("frameSigning").is_none(), "{hello}");
    let id = client.ask("health", json!({})).await;
    let next = client.ws.next().await.unwrap().unwrap();
    let Message::Text(text) = next else {
        panic!("{next:?}")
    };
    assert!(Request::parse(&text).is_err() && text.contains(&id));
}
