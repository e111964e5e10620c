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

/// Connects and goes away again, for ever: every second time in order, else with a reset.
const COMES_AND_GOES: &str = "
import random, socket, struct, sys
for n in range(10 ** 9):
    s = socket.socket()
    try:
        # The ports of one address would run out.
        s.bind((f'127.{random.randrange(1, 99)}.{random.randrange(99)}.{random.randrange(1, 99)}', 0))
        if n % 2:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        s.connect(('127.0.0.1', int(sys.argv[1])))
    except OSError:
        pass
    s.close()
    if n == int(sys.argv[2]):
        print('full', flush=True)
";

struct Flood(Vec<std::process::Child>);

impl Flood {
    /// It runs, and so many have come and gone already for each of its processes.
    fn of(port: u16, already: u32) -> Self {
        use std::os::unix::process::CommandExt as _;
        let mut flood = Self(vec![]);
        for _ in 0..2 {
            let mut one = std::process::Command::new("python3");
            one.args([
                "-c",
                COMES_AND_GOES,
                &port.to_string(),
                &already.to_string(),
            ])
            .stdout(std::process::Stdio::piped())
            .current_dir("/");
            // Of another user where the tests may choose.
            if rustix::process::geteuid().is_root() {
                one.uid(65_528).gid(65_528);
            }
            flood.0.push(one.spawn().unwrap());
        }
        for one in &mut flood.0 {
            let mut told = [0; 5];
            std::io::Read::read_exact(one.stdout.as_mut().unwrap(), &mut told).unwrap();
        }
        flood
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        for one in &mut self.0 {
            one.kill().unwrap();
            one.wait().unwrap();
        }
    }
}

fn edge_fact(status: &serde_json::Value, name: &str) -> u64 {
    let rooms = status["portcullis"]["rooms"].as_array().unwrap();
    let edge = rooms.iter().find(|room| room["name"] == "edge").unwrap();
    let facts = edge["facts"].as_array().unwrap();
    let fact = facts.iter().find(|fact| fact[0] == name).unwrap();
    fact[1].as_str().unwrap().parse().unwrap()
}

/// The bug: for each socket that was closed again the kernel's whole list was read, and one user shut the door for all.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_and_goes_shuts_the_door_for_nobody() {
    let gateway = Gateway::start();
    // A new one each time: who does not read is no client of long.
    let accepted = async || {
        let mut client = crate::support::ws::admin(&gateway).await;
        edge_fact(&client.get("status", json!({})).await, "accepted")
    };
    let flood = Flood::of(gateway.port(), 10_000);
    let before = accepted().await;
    let mut slowest = std::time::Duration::ZERO;
    for _ in 0..20 {
        let began = std::time::Instant::now();
        // In, and nobody made him dial again: the flood takes no place of his.
        let mut honest = by_token(&gateway, &[]).await;
        honest.get("health", json!({})).await;
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let entered = accepted().await - before;
    drop(flood);
    // Without the flood: a few milliseconds. With the list read for each: minutes.
    assert!(slowest.as_secs() < 8, "{slowest:?}");
    // Who closes while he is entered is there for a moment; by far most have gone before.
    assert!(entered < 15_000, "{entered}");
}

/// As under a service manager's list of address families without AF_NETLINK.
fn without_sock_diag() {
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };
    let netlink = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 16).unwrap();
    let socket = if cfg!(target_arch = "x86_64") {
        41
    } else {
        198
    };
    let rules = [(socket, vec![SeccompRule::new(vec![netlink]).unwrap()])];
    let filter = SeccompFilter::new(
        rules.into(),
        SeccompAction::Allow,
        // EAFNOSUPPORT
        SeccompAction::Errno(97),
        TargetArch::try_from(std::env::consts::ARCH).unwrap(),
    );
    let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_sock_diag_cannot_be_asked_one_reading_of_the_list_is_for_many() {
    // What this thread starts has the filter too; no other thread of the tests.
    let start = std::thread::spawn(|| {
        without_sock_diag();
        Gateway::start()
    });
    let gateway = start.join().unwrap();
    // Whose it is is still known: only an operator's process gets these scopes for the token alone.
    let mut client = Client::dial(&gateway).await;
    let hello = client
        .hello(&Connect::token().scopes(&["operator.read"]))
        .await;
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]), "{hello}");
    let _flood = Flood::of(gateway.port(), 500);
    for _ in 0..5 {
        let began = std::time::Instant::now();
        let mut honest = by_token(&gateway, &[]).await;
        honest.get("health", json!({})).await;
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    }
}
