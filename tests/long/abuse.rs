//! Honest clients at work while others do their worst, one kind after the other, and guessers all the time: nobody honest
//! is lost or kept waiting, the daemon does not grow, and the abusers are gone soon after.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::load::percentile;
use super::soak::{Sample, raise_descriptors};
use super::{figure, is_long, times};
use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, Connect, by_token};

/// What an abuser does with each of its sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing.
    Silent,
    /// A header, letter by letter, without an end.
    HalfHeader,
    /// An upgrade, and nothing more.
    Upgraded,
    /// A first frame of 60 KiB, of which little comes.
    Announced,
    /// A first message in fragments without an end.
    Fragments,
    /// Frames that are none, and again.
    Garbage,
    /// Let in with the token: asks, and reads no answer.
    Unread,
    /// Let in with the token: pings as fast as it can, and reads no pong.
    Pings,
}

const KINDS: [Kind; 8] = [
    Kind::Silent,
    Kind::HalfHeader,
    Kind::Upgraded,
    Kind::Announced,
    Kind::Fragments,
    Kind::Garbage,
    Kind::Unread,
    Kind::Pings,
];

/// What the daemon may grow by while they are at it.
const GROWTH_MAX: u64 = 64 * 1024 * 1024;
/// They are gone by then.
const GONE: Duration = Duration::from_mins(1);

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// A masked frame, its mask zero.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u8::try_from(payload.len()) {
        Ok(short) if short < 126 => frame.push(0x80 | short),
        _ => {
            frame.push(0x80 | 0x7e);
            let length = u16::try_from(payload.len()).expect("short");
            frame.extend(length.to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

fn connect(token: &str) -> Vec<u8> {
    let mut params = Connect::bare()
        .auth(json!({ "token": token }))
        .params("", 0);
    params["scopes"] = json!(["operator.read"]);
    let request = json!({ "type": "req", "id": "1", "method": "connect", "params": params });
    frame(0x81, request.to_string().as_bytes())
}

/// Whether abusers dial again, and whether they keep what they have.
#[derive(Default)]
struct Orders {
    over: AtomicBool,
    dials: AtomicU64,
}

/// One abuser until it is over; its last socket, if the gateway has left it one.
async fn abuse(kind: Kind, port: u16, orders: Arc<Orders>) -> Option<TcpStream> {
    let mut last = None;
    while !orders.over.load(Relaxed) {
        let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        orders.dials.fetch_add(1, Relaxed);
        // An end of the socket is what it is out for: then it dials again.
        let _ = once(kind, &mut socket, &orders).await;
        last = Some(socket);
        sleep(Duration::from_millis(20)).await;
    }
    last
}

async fn once(kind: Kind, socket: &mut TcpStream, orders: &Orders) -> std::io::Result<()> {
    let (first, again, pause): (Vec<u8>, Vec<u8>, u64) = match kind {
        Kind::Silent => (vec![], vec![], 100),
        Kind::HalfHeader => (UPGRADE.as_bytes()[..40].to_vec(), b"x".to_vec(), 200),
        Kind::Upgraded => (UPGRADE.into(), vec![], 100),
        Kind::Announced => {
            let announced = [&[0x81, 0x80 | 0x7e][..], &60_000_u16.to_be_bytes(), &[0; 4]].concat();
            (
                [UPGRADE.as_bytes(), &announced].concat(),
                b"x".to_vec(),
                200,
            )
        }
        Kind::Fragments => {
            let begun = frame(0x01, b"{");
            ([UPGRADE.as_bytes(), &begun].concat(), frame(0x00, b" "), 20)
        }
        Kind::Garbage => {
            let none = frame(0x81, b"no frame at all");
            ([UPGRADE.as_bytes(), &none].concat(), vec![], 100)
        }
        Kind::Unread | Kind::Pings => {
            let entered = [UPGRADE.as_bytes(), &connect(TOKEN)].concat();
            let again = if kind == Kind::Pings {
                frame(0x89, &[b'p'; 125]).repeat(64)
            } else {
                let ask = br#"{"type":"req","id":"2","method":"health"}"#;
                frame(0x81, ask).repeat(64)
            };
            (entered, again, 20)
        }
    };
    socket.write_all(&first).await?;
    let reads = !matches!(kind, Kind::Unread | Kind::Pings);
    let mut heard = [0; 1024];
    loop {
        if orders.over.load(Relaxed) {
            return Ok(());
        }
        let pause = sleep(Duration::from_millis(pause));
        if reads {
            tokio::select! {
                read = socket.read(&mut heard) => if read? == 0 { return Ok(()) },
                () = pause => {}
            }
        } else {
            pause.await;
        }
        if !again.is_empty() {
            // What does not go out is what it wants: its answers fill both ends.
            let sent = tokio::time::timeout(Duration::from_secs(1), socket.write_all(&again)).await;
            if let Ok(sent) = sent {
                sent?;
            }
        }
    }
}

/// Wrong tokens, one socket after the other.
async fn guess(port: u16, orders: Arc<Orders>, n: usize) -> u64 {
    let mut let_in = 0;
    for round in 0_u64.. {
        if orders.over.load(Relaxed) {
            break;
        }
        let guess = json!({ "token": format!("{n:08x}-0000-4000-8000-{round:012x}") });
        if let Ok(mut client) = Client::dial_port(port).await
            && client
                .try_hello(&Connect::bare().auth(guess))
                .await
                .is_some()
        {
            let_in += 1;
        }
        sleep(Duration::from_millis(20)).await;
    }
    let_in
}

/// What honest clients saw.
#[derive(Default)]
struct Seen {
    calls: Vec<Duration>,
    entries: Vec<Duration>,
    errors: usize,
}

impl Seen {
    fn line(&mut self) -> String {
        self.calls.sort();
        self.entries.sort();
        format!(
            "{} calls p50 {:.1?} p99 {:.1?}, {} entries p50 {:.1?} p99 {:.1?}, {} errors",
            self.calls.len(),
            percentile(&self.calls, 50),
            percentile(&self.calls, 99),
            self.entries.len(),
            percentile(&self.entries, 50),
            percentile(&self.entries, 99),
            self.errors,
        )
    }
}

/// Sockets that are there already ask; one in ten of their turns a newcomer comes in with the token.
async fn honest(port: u16, clients: &mut [Client], lasts: Duration) -> Seen {
    let until = Instant::now() + lasts;
    let each = clients
        .iter_mut()
        .enumerate()
        .map(|(n, client)| async move {
            let mut seen = Seen::default();
            for turn in n.. {
                if Instant::now() > until && !seen.calls.is_empty() && !seen.entries.is_empty() {
                    break;
                }
                let began = Instant::now();
                match client.try_call("status", json!({})).await {
                    Some(answer) if answer["ok"] == true => seen.calls.push(began.elapsed()),
                    _ => seen.errors += 1,
                }
                if turn % 10 == 0 || seen.entries.is_empty() {
                    let began = Instant::now();
                    let end = began + Duration::from_secs(20);
                    loop {
                        if let Ok(mut client) = Client::dial_port(port).await
                            && client.try_hello(&Connect::token()).await.is_some()
                        {
                            seen.entries.push(began.elapsed());
                            break;
                        }
                        if Instant::now() > end {
                            seen.errors += 1;
                            break;
                        }
                    }
                }
                sleep(Duration::from_millis(50)).await;
            }
            seen
        });
    let mut all = Seen::default();
    for seen in futures_util::future::join_all(each).await {
        all.calls.extend(seen.calls);
        all.entries.extend(seen.entries);
        all.errors += seen.errors;
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_clients_are_served_while_abusers_of_every_kind_and_guessers_try() {
    let (count, abusers, guessers) = (times(8, 100), times(60, 2_000), times(4, 64));
    let lasts = Duration::from_secs(if is_long() { 20 } else { 1 });
    if !raise_descriptors(2 * abusers as u64 + 1_000) {
        println!("NOT RUN: {abusers} abusers need as many descriptors (ulimit -n)");
        return;
    }
    let quick: &[(&str, &str)] = &[
        ("gateway.limits.handshake_ms", "3000"),
        ("gateway.limits.header_ms", "2000"),
        ("connection.write_timeout_ms", "3000"),
    ];
    let gateway = Gateway::with(if is_long() { &[] } else { quick });
    gateway.vault_is_open();
    let port = gateway.port();
    let mut clients = vec![];
    for _ in 0..count {
        clients.push(by_token(&gateway, &["operator.read"]).await);
    }
    let mut alone = honest(port, &mut clients, lasts).await;
    figure(&format!(
        "abuse: {count} honest clients alone: {}",
        alone.line()
    ));
    assert_eq!(alone.errors, 0);
    let slow = percentile(&alone.calls, 99).max(Duration::from_millis(50));
    for kind in KINDS {
        let before = Sample::take(gateway.pid(), Instant::now());
        let orders = Arc::new(Orders::default());
        let at_it: Vec<_> = (0..abusers)
            .map(|_| tokio::spawn(abuse(kind, port, orders.clone())))
            .collect();
        let guess: Vec<_> = (0..guessers)
            .map(|n| tokio::spawn(guess(port, orders.clone(), n)))
            .collect();
        let mut seen = honest(port, &mut clients, lasts).await;
        let during = Sample::take(gateway.pid(), Instant::now());
        orders.over.store(true, Relaxed);
        let began = Instant::now();
        let mut kept = vec![];
        for one in at_it {
            kept.extend(one.await.unwrap());
        }
        for one in guess {
            assert_eq!(one.await.unwrap(), 0, "a guess was let in");
        }
        if !is_long() {
            // An unread ping's end is 50 seconds away.
            kept.clear();
        }
        let gone = loop {
            let now = Sample::take(gateway.pid(), Instant::now());
            if now.descriptors <= before.descriptors + 16 {
                break began.elapsed();
            }
            assert!(
                began.elapsed() < GONE + Duration::from_secs(20),
                "{kind:?}: {} descriptors, {} before",
                now.descriptors,
                before.descriptors
            );
            sleep(Duration::from_millis(100)).await;
        };
        drop(kept);
        let grown = during.resident.saturating_sub(before.resident);
        figure(&format!(
            "abuse: {abusers} x {kind:?} ({} dials) and {guessers} guessers: {}; grown {} KiB; gone after {gone:.1?}",
            orders.dials.load(Relaxed),
            seen.line(),
            grown / 1024,
        ));
        assert_eq!(seen.errors, 0, "{kind:?}");
        assert!(grown < GROWTH_MAX, "{kind:?}: {grown} bytes");
        let worst = percentile(&seen.calls, 99);
        assert!(
            worst < slow * 60,
            "{kind:?}: {worst:?} beside {slow:?} alone"
        );
    }
}
