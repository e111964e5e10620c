//! Those who do not say who they are never keep out those who do.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UnixStream};

use crate::support::gateway::Gateway;
use crate::support::ws::{Came, Client, Connect, Device, by_token, join};

#[tokio::test(flavor = "multi_thread")]
async fn the_257th_websocket_that_says_nothing_closes_the_oldest_and_is_served_itself() {
    let gateway = Gateway::start();
    let mut sockets = vec![];
    for _ in 0..256 {
        sockets.push(Client::dial(&gateway).await);
    }
    let mut newcomer = Client::dial(&gateway).await;
    assert_eq!(
        sockets[0].next().await,
        Came::Closed(1008, "made room for a newcomer".to_owned())
    );
    newcomer.hello(&Connect::token()).await;
    // The others are where they were.
    for socket in &mut sockets[1..] {
        socket.hello(&Connect::token()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_has_not_even_sent_a_header_makes_room_too() {
    let gateway = Gateway::start();
    let mut sockets = vec![];
    for _ in 0..33 {
        sockets.push(
            TcpStream::connect(("127.0.0.1", gateway.port()))
                .await
                .unwrap(),
        );
    }
    let read = tokio::time::timeout(Duration::from_secs(5), sockets[0].read(&mut [0; 16])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    let read =
        tokio::time::timeout(Duration::from_millis(200), sockets[1].read(&mut [0; 16])).await;
    assert!(read.is_err(), "only one made room: {read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_token_comes_in_within_a_second_while_500_silent_sockets_sit() {
    let gateway = Gateway::start();
    let mut silent = vec![];
    for _ in 0..500 {
        silent.push(
            TcpStream::connect(("127.0.0.1", gateway.port()))
                .await
                .unwrap(),
        );
    }
    let began = Instant::now();
    let mut client = by_token(&gateway, &["operator.read"]).await;
    client.get("status", json!({})).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_token_comes_in_while_others_keep_dialling() {
    let gateway = Gateway::start();
    let port = gateway.port();
    let dialling = tokio::spawn(async move {
        let mut held = std::collections::VecDeque::new();
        loop {
            if let Ok(socket) = TcpStream::connect(("127.0.0.1", port)).await {
                held.push_back(socket);
            }
            if held.len() > 200 {
                held.pop_front();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    for _ in 0..10 {
        let began = Instant::now();
        by_token(&gateway, &[]).await;
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
    }
    dialling.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_on_tcp_and_on_the_unix_socket_do_not_take_each_others_room() {
    let gateway = Gateway::start();
    let mut over_tcp = vec![];
    for _ in 0..32 {
        over_tcp.push(Client::dial(&gateway).await);
    }
    let socket = gateway.state().join("run/control.sock");
    let mut over_unix = vec![];
    for _ in 0..64 {
        over_unix.push(UnixStream::connect(&socket).await.unwrap());
    }
    let moment = Duration::from_millis(500);
    let early = tokio::time::timeout(moment, over_unix[0].read(&mut [0; 16])).await;
    assert!(early.is_err(), "64 of its own beside 32 on TCP: {early:?}");
    over_unix.push(UnixStream::connect(&socket).await.unwrap());
    let read = tokio::time::timeout(Duration::from_secs(5), over_unix[0].read(&mut [0; 16])).await;
    assert!(
        matches!(read, Ok(Ok(0) | Err(_))),
        "the 65th closed the first: {read:?}"
    );
    // The command line comes in, and nobody on TCP has noticed.
    gateway.json(&["status"]);
    for socket in &mut over_tcp {
        socket.hello(&Connect::token()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authenticated_sockets_are_not_counted_as_strangers() {
    let gateway = Gateway::start();
    let mut known = vec![];
    for _ in 0..40 {
        known.push(by_token(&gateway, &[]).await);
    }
    for client in &mut known {
        client.get("health", json!({})).await;
    }
}

/// Sends this text as a stranger's first frame, and stays without reading the answer. `None`: it had to make room.
async fn say(gateway: &Gateway, text: &str) -> Option<Client> {
    let mut client = Client::dial_port(gateway.port()).await.ok()?;
    client.text(text).await;
    Some(client)
}

/// The bug: any first frame made its socket one that is not closed to make room, and a refused socket kept its place
/// until it had taken its close frame.
#[tokio::test(flavor = "multi_thread")]
async fn the_right_token_comes_in_while_others_send_garbage_and_wrong_tokens_and_stay() {
    let gateway = Gateway::start();
    let wrong = Connect::bare()
        .auth(json!({"token": "0c5b4ad5-74e8-4a35-8a3e-7f0f2a6b6d0b"}))
        .params("", 0);
    let wrong = json!({"type": "req", "id": "1", "method": "connect", "params": wrong}).to_string();
    let other = json!({"type": "req", "id": "1", "method": "status"}).to_string();
    for text in ["no JSON", "{}", &other, &wrong] {
        for _ in 0..3 {
            let bad = join_all((0..40).map(|_| say(&gateway, text))).await;
            assert!(bad.iter().flatten().count() >= 20, "they are there");
            let honest = join_all((0..8).map(|_| async {
                let mut client = Client::dial(&gateway).await;
                client.try_hello(&Connect::token()).await.is_some()
            }));
            assert_eq!(honest.await, [true; 8], "beside {text}");
            drop(bad);
        }
    }
}

/// The bug: over the limit of all sockets whoever came next was dropped, a person at `control.sock` too.
#[tokio::test(flavor = "multi_thread")]
async fn with_all_sockets_taken_a_newcomer_is_told_and_a_person_comes_in() {
    let gateway = Gateway::with(&[("gateway.limits.sockets", "5")]);
    let mut known = vec![];
    for _ in 0..4 {
        known.push(by_token(&gateway, &[]).await);
    }
    let _silent = Client::dial(&gateway).await;
    let mut sixth = gateway.socket();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut sixth, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer:?}");
    gateway.json(&["status"]);
    for client in &mut known {
        client.get("health", json!({})).await;
    }
    drop(known.pop());
    let end = Instant::now() + Duration::from_secs(20);
    while Client::dial_port(gateway.port()).await.is_err() {
        assert!(Instant::now() < end, "its place was free again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The bug: one user with nothing but the shared token held every socket, and paired devices got 503.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_most_connections_gives_them_up_to_a_device() {
    let gateway = Gateway::with(&[("gateway.limits.sockets", "8")]);
    let ended = (1013, "too many connections".to_owned());
    let mut known = vec![];
    for _ in 0..6 {
        known.push(by_token(&gateway, &[]).await);
    }
    for _ in 0..4 {
        let mut more = Client::dial(&gateway).await;
        // Its hello may still come.
        more.ask("connect", Connect::token().params("", 0)).await;
        assert_eq!(more.closed().await, ended);
    }
    let device = Device::new();
    let connect = Connect::token().scopes(&["operator.read"]).device(&device);
    let (mut client, _) = join(&gateway, &connect).await;
    assert_eq!(known.pop().unwrap().closed().await, ended, "the newest");
    client.get("status", json!({})).await;
    for client in &mut known {
        client.get("health", json!({})).await;
    }
}
