//! Connections: each dies alone, however it dies; the rooms and the other sockets do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_actors::auth::Peer;
use portcullis_actors::clock::Clock;
use portcullis_actors::connection::{
    Accepted, CAPACITY, Connection, ConnectionConfig, ConnectionHandle, ConnectionNews,
    ConnectionShared, ConnectionWiring, Io, Stream,
};
use portcullis_actors::signing::{SigningConfig, SigningHandle, SigningWiring};
use portcullis_actors::supervision::{Allowance, Policy};
use portcullis_core::auth::Door;
use portcullis_core::protocol::Encoding;
use portcullis_core::time::Millis;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::real::{Ground, Trip};
use crate::long::house::House;
use crate::support::gateway::Gateway;
use crate::support::ws::{self, Came, Client, Connect};

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_live_sockets_one_that_dies_takes_no_other_with_it() {
    let gateway = Gateway::start();
    let mut clients: Vec<Client> = vec![];
    for _ in 0..20 {
        clients.push(ws::admin(&gateway).await);
    }
    // One goes without a word, with requests under way and answers unread.
    let mut killed = clients.swap_remove(7);
    for _ in 0..30 {
        killed.ask("audit.tail", json!({ "limit": 100 })).await;
    }
    drop(killed);
    // One talks nonsense.
    let mut rude = clients.swap_remove(3);
    let control = Message::Ping(Bytes::from(vec![0; 4_000]));
    let _ = rude.ws.send(control).await;
    assert!(!matches!(rude.next().await, Came::Frame(_)));

    for client in &mut clients {
        client.get("health", json!({})).await;
        client.get("audit.tail", json!({ "limit": 1 })).await;
    }
    let client = &mut clients[0];
    let unknown = client.refused("no.such.method", json!({})).await;
    assert_eq!(unknown["details"]["code"], "UNKNOWN_METHOD", "{unknown}");
    let run = json!({ "argv": ["true"], "target": "sandbox", "idempotencyKey": "k" });
    let nobodys = client.refused("exec.run", run).await;
    assert_eq!(nobodys["details"]["code"], "AGENT_REQUIRED", "{nobodys}");
    let status = gateway.json(&["status"]);
    for room in status["portcullis"]["rooms"].as_array().unwrap() {
        assert_eq!(room["restarts"], 0, "{room}");
    }
}

/// A clock that holds whoever reads it next, thread and all: so a busy machine holds a task in the middle of a frame.
#[derive(Clone, Default)]
struct Hold {
    armed: Arc<AtomicBool>,
    holds: Arc<AtomicBool>,
}

impl Hold {
    fn clock(&self) -> Clock {
        let hold = self.clone();
        Clock::of(move || {
            if hold.armed.swap(false, SeqCst) {
                hold.holds.store(true, SeqCst);
                std::thread::sleep(Duration::from_millis(400));
            }
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            Millis(since.as_millis().try_into().unwrap())
        })
    }
}

/// One connection room on its own, of the real rooms below it; its handle, and the other end of its socket.
async fn one(house: &House, clock: Clock) -> (ConnectionHandle, WebSocketStream<UnixStream>) {
    let (handle, socket, hears) = one_unheard(house, clock).await;
    hears.notify_one();
    (handle, socket)
}

/// As [`one`]; what the room has to tell the edge is heard from the notice on, so its `connect` is not decided before.
async fn one_unheard(
    house: &House,
    clock: Clock,
) -> (ConnectionHandle, WebSocketStream<UnixStream>, Arc<Notify>) {
    let (mut ground, calm) = (Ground::new(), Trip::default());
    let signing = SigningWiring {
        config: SigningConfig::default(),
        store: ground.store.clone(),
        audit: ground.audit.clone(),
        vault: ground.vault(&calm),
        pairing: ground.pairing(&calm),
        clock: calm.clock(),
    };
    let signing = SigningHandle::add(&mut ground.tree, signing);
    let (news, mut told) = mpsc::channel(1);
    news.try_send(ConnectionNews::Refused(0)).unwrap();
    let shared = ConnectionShared {
        config: ConnectionConfig::default(),
        auth: house.methods.auth.clone(),
        signing,
        exec: house.methods.exec.clone(),
        methods: house.methods.clone(),
        news,
        clock,
        boot_id: "boot".into(),
        version: "test",
        began: Instant::now(),
    };
    let wiring = ConnectionWiring {
        key: 1,
        shared: Arc::new(shared),
    };
    let room = ground
        .tree
        .room::<Connection>(Policy::new(CAPACITY), wiring);
    let handle = ConnectionHandle::new(room);
    let standing = ground.start().await;
    // As the edge does it: whoever is in is put on the list.
    let hears = Arc::new(Notify::new());
    let heard = hears.clone();
    tokio::spawn(async move {
        let _kept = standing;
        heard.notified().await;
        while let Some(news) = told.recv().await {
            if let ConnectionNews::Admitted(_, _, _, listed) = news {
                let all = Allowance::of_all(1 << 30);
                listed.send(all).unwrap();
            }
        }
    });
    let (ours, theirs) = UnixStream::pair().unwrap();
    let accepted = Accepted {
        io: Io::new(Stream::Unix(ours), &[]),
        door: Door::Control,
        peer: Peer {
            ip: None,
            uid: Some(0),
            account: Some(0),
            is_operator: true,
            is_of_a_run: false,
            is_local: true,
            has_origin: false,
            named: None,
        },
        bearer: None,
        encoding: Encoding::Json,
        until: Instant::now() + Duration::from_secs(30),
    };
    handle.adopt(accepted).await.unwrap();
    let socket = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
    (handle, socket, hears)
}

/// The bug: the edge heard of a `connect` by a message of its own, and might choose that socket before it had read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_socket_whose_connect_has_come_makes_no_room_and_a_silent_one_does() {
    let house = House::stand(&[("sandbox.driver", "native")]).await;
    let (handle, mut socket, hears) = one_unheard(&house, Clock::system()).await;
    let challenge = frame(&mut socket).await["payload"].take();
    let nonce = challenge["nonce"].as_str().unwrap();
    let params = Connect::bare().params(nonce, challenge["ts"].as_u64().unwrap());
    let connect = json!({ "type": "req", "id": "1", "method": "connect", "params": params });
    let sent = socket.send(Message::text(connect.to_string()));
    sent.await.unwrap();
    // Read, and held where it tells the edge so.
    tokio::time::sleep(Duration::from_millis(300)).await;
    handle.make_room().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    hears.notify_one();
    let hello = frame(&mut socket).await;
    assert_eq!(hello["ok"], true, "{hello}");
    // Nor later.
    let health = json!({ "type": "req", "id": "2", "method": "health" });
    let sent = socket.send(Message::text(health.to_string()));
    sent.await.unwrap();
    assert_eq!(frame(&mut socket).await["ok"], true);

    let (handle, mut silent) = one(&house, Clock::system()).await;
    assert_eq!(frame(&mut silent).await["event"], "connect.challenge");
    handle.make_room().await.unwrap();
    let next = tokio::time::timeout(ws::PATIENCE, silent.next()).await;
    let Some(Ok(Message::Close(Some(close)))) = next.unwrap() else {
        panic!("it is not closed");
    };
    assert_eq!(
        (u16::from(close.code), close.reason.as_str()),
        (1008, "made room for a newcomer")
    );
    house.end().await;
}

async fn frame(socket: &mut WebSocketStream<UnixStream>) -> Value {
    loop {
        let next = tokio::time::timeout(ws::PATIENCE, socket.next()).await;
        if let Message::Text(text) = next.unwrap().unwrap().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

/// The room gives up on its task after a grace, and ends itself: what it says then must not be what a stop says.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_socket_whose_task_is_held_past_the_grace_still_hears_why_it_ends_and_no_restart() {
    let house = House::stand(&[("sandbox.driver", "native")]).await;
    let hold = Hold::default();
    let (handle, mut socket) = one(&house, hold.clock()).await;
    let challenge = frame(&mut socket).await["payload"].take();
    let nonce = challenge["nonce"].as_str().unwrap();
    let params = Connect::bare().params(nonce, challenge["ts"].as_u64().unwrap());
    let connect = json!({ "type": "req", "id": "1", "method": "connect", "params": params });
    socket
        .send(Message::text(connect.to_string()))
        .await
        .unwrap();
    let hello = frame(&mut socket).await;
    assert_eq!(hello["ok"], true, "{hello}");

    hold.armed.store(true, SeqCst);
    let health = json!({ "type": "req", "id": "2", "method": "health" });
    socket
        .send(Message::text(health.to_string()))
        .await
        .unwrap();
    // Not by a timer: the thread that is held may be the one that minds them.
    while !hold.holds.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
    handle.close(4001, "gateway auth changed").await.unwrap();
    let closed = loop {
        let next = tokio::time::timeout(ws::PATIENCE, socket.next()).await;
        match next.unwrap() {
            Some(Ok(Message::Close(Some(close)))) => {
                break Some((u16::from(close.code), close.reason.to_string()));
            }
            Some(Ok(Message::Text(text))) => assert!(!text.contains("shutdown"), "{text}"),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => break None,
        }
    };
    assert_eq!(closed, Some((4001, "gateway auth changed".to_owned())));
    house.end().await;
}
