//! What costs its sender little and would cost us for ever: pings, fragments, messages that never end.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, by_token, join};

static PART: [u8; 300_000] = [b' '; 300_000];

fn fragment(kind: Data, bytes: &'static [u8]) -> Message {
    let bytes = Bytes::from_static(bytes);
    Message::Frame(Frame::message(bytes, OpCode::Data(kind), false))
}

/// Sends these without reading, then reads to the close.
async fn sent(client: &mut Client, messages: impl IntoIterator<Item = Message>) -> (u16, String) {
    for message in messages {
        // It may be closed already: the reading tells.
        if client.ws.send(message).await.is_err() {
            break;
        }
    }
    client.closed().await
}

fn told(code: u16, reason: &str) -> (u16, String) {
    (code, reason.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_what_asks_nothing_and_fragments_without_end_are_closed_by_name() {
    let gateway = Gateway::start();
    let mut honest = by_token(&gateway, &[]).await;
    let ping = || Message::Ping(Bytes::from_static(b"?"));
    let pong = || Message::Pong(Bytes::new());
    let passed_over = || Message::binary(vec![1]);
    let no_json = || Message::text("{");
    for flood in [&ping as &dyn Fn() -> Message, &pong, &passed_over, &no_json] {
        let mut client = by_token(&gateway, &[]).await;
        let closed = sent(&mut client, (0..600).map(|_| flood())).await;
        assert_eq!(closed, told(1008, "too many frames that ask nothing"));
        honest.get("health", json!({})).await;
    }
    let mut client = by_token(&gateway, &[]).await;
    let begins = std::iter::once(fragment(Data::Text, b"{"));
    let goes_on = (0..200).map(|_| fragment(Data::Continue, b""));
    let closed = sent(&mut client, begins.chain(goes_on)).await;
    assert_eq!(closed, told(1008, "too many empty fragments"));
    honest.get("health", json!({})).await;
}

/// The bug: one agent's forty sockets, each with 24 MiB of a message that never ended, held a gigabyte and a half.
#[tokio::test(flavor = "multi_thread")]
async fn an_agents_message_is_stopped_where_an_operators_goes_on() {
    let gateway = Gateway::start();
    let token = gateway.json(&["agents", "token", "demo"]);
    let auth = json!({ "token": token["token"] });
    let mut agent = Client::agent(&gateway.state()).await;
    let hello = agent.hello(&Connect::bare().role("agent").auth(auth)).await;
    assert_eq!(hello["policy"]["maxPayload"], 1024 * 1024);
    let most = json!({ "x": "x".repeat(1024 * 1024 - 200) });
    agent.get("health", most).await;
    let parts = (0..20).map(|_| fragment(Data::Continue, &PART));
    let message = std::iter::once(fragment(Data::Text, b"{")).chain(parts);
    assert_eq!(
        sent(&mut agent, message).await,
        told(1009, "frame too large")
    );

    let mut operator = by_token(&gateway, &["operator.read"]).await;
    let more = json!({ "x": "x".repeat(4 * 1024 * 1024) });
    operator.get("health", more).await;
}

/// A message of so many bytes begins, and no more of it comes.
async fn begin(client: &mut Client, length: u64) {
    let mut header = vec![0x81, 0x80 | 127];
    header.extend(length.to_be_bytes());
    header.extend([0; 4]);
    client.ws.get_mut().write_all(&header).await.unwrap();
}

/// The bug: whoever was let in, to read only, began a message of 25 MiB on each of as many connections as he liked.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_one_has_begun_are_bounded_over_all_its_connections() {
    const LONG: u64 = 25 * 1024 * 1024;
    let gateway = Gateway::start();
    let read = &["operator.read"];
    let mut held = vec![];
    for _ in 0..2 {
        let mut client = by_token(&gateway, read).await;
        begin(&mut client, LONG).await;
        held.push(client);
    }
    let crowded = (1013, "too many large messages at once".to_owned());
    let mut third = by_token(&gateway, read).await;
    begin(&mut third, LONG).await;
    assert_eq!(third.closed().await, crowded);
    // What is short goes on, and so does whoever else is there.
    let mut small = by_token(&gateway, read).await;
    let short = json!({ "x": "x".repeat(4096) });
    small.get("health", short).await;
    let device = Device::new();
    let (mut other, _) = join(&gateway, &Connect::token().scopes(read).device(&device)).await;
    let long = json!({ "x": "x".repeat(24 * 1024 * 1024) });
    other.get("health", long.clone()).await;
    // What is over, or has arrived, is room again.
    held.pop();
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let mut next = by_token(&gateway, read).await;
        begin(&mut next, LONG).await;
        let heard = tokio::time::timeout(std::time::Duration::from_millis(300), next.closed());
        if heard.await.is_err() {
            break;
        }
        assert!(tokio::time::Instant::now() < end);
    }
    for _ in 0..4 {
        other.get("health", long.clone()).await;
    }
}

/// In real time: it is a ping's interval, twice, in another process.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_stands_still_is_closed_though_its_sender_answers_pings() {
    let gateway = Gateway::start();
    let mut client = by_token(&gateway, &[]).await;
    client.ws.send(fragment(Data::Text, b"{")).await.unwrap();
    let began = tokio::time::Instant::now();
    let closed = loop {
        // A ping is answered with the next write.
        match client.ws.next().await {
            Some(Ok(Message::Close(Some(frame)))) => {
                break told(frame.code.into(), frame.reason.as_str());
            }
            Some(Ok(_)) => client.ws.flush().await.unwrap(),
            other => panic!("{other:?} after {:?}", began.elapsed()),
        }
        assert!(began.elapsed().as_secs() < 120);
    };
    assert_eq!(closed, told(1008, "a message takes too long"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_agent_has_so_many_connections_and_another_is_not_held_up_by_them() {
    let gateway = Gateway::start();
    let auth = |name: &str| {
        let token = gateway.json(&["agents", "token", name]);
        json!({ "token": token["token"] })
    };
    let (demo, other) = (auth("demo"), auth("other"));
    let mut open = vec![];
    for _ in 0..64 {
        let mut agent = Client::agent(&gateway.state()).await;
        let connect = Connect::bare().role("agent").auth(demo.clone());
        agent.hello(&connect).await;
        open.push(agent);
    }
    let mut one_more = Client::agent(&gateway.state()).await;
    let connect = Connect::bare().role("agent").auth(demo);
    let params = connect.params(&one_more.nonce, one_more.ts);
    one_more.ask("connect", params).await;
    assert_eq!(
        one_more.closed().await,
        told(1008, "too many connections of this agent")
    );
    let mut honest = Client::agent(&gateway.state()).await;
    honest
        .hello(&Connect::bare().role("agent").auth(other))
        .await;
    honest.get("health", json!({})).await;
    for agent in &mut open {
        agent.get("health", json!({})).await;
    }
}
