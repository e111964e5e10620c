//! The promise of entry, all of it at once and at the budgets that a gateway comes with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use portcullis_core::token::{Token, TokenKind};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin, random};

const SILENT: usize = 500;
const GUESSERS: usize = 64;
/// `unauthenticated_per_address` and `unauthenticated_unix` as they come.
const BUDGET: u64 = 32 + 64;
const ROUNDS: usize = 10;
/// Unless the processors are taken by others: then three times what the same needs at a gateway that nobody attacks.
const PROMISE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Orders {
    over: AtomicBool,
    guesses: AtomicU64,
    let_in: AtomicU64,
}

/// Dials, says nothing, and comes back a while after it had to make room.
async fn silent<S: AsyncRead + Unpin>(
    dial: impl AsyncFn() -> std::io::Result<S>,
    orders: Arc<Orders>,
) {
    while !orders.over.load(Relaxed) {
        let began = Instant::now();
        if let Ok(mut socket) = dial().await {
            let mut heard = [0; 256];
            // Its word to whom makes room, then the end.
            while socket.read(&mut heard).await.is_ok_and(|read| read > 0) {}
        }
        // Its time was over: its place is taken again at once.
        if began.elapsed() < Duration::from_secs(5) {
            sleep(Duration::from_secs(5)).await;
        }
    }
}

/// Wrong in its own way, again and again.
async fn guess(port: u16, n: usize, setup: Arc<str>, orders: Arc<Orders>) {
    let (device, other) = (Device::new(), Device::new());
    for round in 0_u64.. {
        if orders.over.load(Relaxed) {
            return;
        }
        let word = format!("{n:08x}-0000-4000-8000-{round:012x}");
        let connect = match n % 5 {
            0 => Connect::bare().auth(json!({ "token": word })),
            1 => Connect::bare().auth(json!({ "password": word, "user": "ann" })),
            2 => {
                let code = Token::from_random(TokenKind::Setup, &random::<32>());
                let code = format!("{setup}.{}", code.expose());
                Connect::bare()
                    .auth(json!({ "bootstrapToken": code }))
                    .device(&device)
            }
            3 => {
                let token = Token::from_random(TokenKind::Device, &random::<32>());
                Connect::bare()
                    .auth(json!({ "deviceToken": token.expose() }))
                    .device(&device)
            }
            _ => Connect::token()
                .device(&device)
                .lie("signature", other.sign("another text")),
        };
        if let Ok(mut client) = Client::dial_port(port).await {
            let is_in = client.try_hello(&connect).await.is_some();
            orders.let_in.fetch_add(u64::from(is_in), Relaxed);
        }
        orders.guesses.fetch_add(1, Relaxed);
        sleep(Duration::from_millis(500)).await;
    }
}

/// From the first dial until it is in. One that had to make room meanwhile dials again, as clients do.
async fn enters(dial: impl AsyncFn() -> Option<Client>, connect: &Connect<'_>) -> Duration {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(30), "it stays out");
        if let Some(mut client) = dial().await
            && client.try_hello(connect).await.is_some()
        {
            return began.elapsed();
        }
    }
}

fn fact(status: &Value, name: &str) -> u64 {
    let rooms = status["portcullis"]["rooms"].as_array().unwrap();
    let edge = rooms.iter().find(|room| room["name"] == "edge").unwrap();
    let facts = edge["facts"].as_array().unwrap();
    let fact = facts.iter().find(|fact| fact[0] == name).unwrap();
    fact[1].as_str().unwrap().parse().unwrap()
}

/// Until the silent hold all that strangers may hold.
async fn hold_all(operator: &mut Client) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let status = operator.get("status", json!({})).await;
        // What the room says of itself is a moment old, and places change hands.
        if fact(&status, "not yet authenticated") + 8 >= BUDGET
            && fact(&status, "made room") >= SILENT as u64 - 32
        {
            return;
        }
        assert!(Instant::now() < end, "{status}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_device_and_unix_socket_come_in_within_a_second_beside_500_silent_sockets_and_64_guessers()
 {
    let gateway = Gateway::with(&[("gateway.auth.mode", "token+password")]);
    gateway.vault_is_open();
    let secret = b"a password of several words";
    assert_eq!(gateway.feed(&["password", "set", "ann"], secret), 0);
    let mut operator = admin(&gateway).await;
    let gives = json!({ "role": "operator", "scopes": ["operator.read"] });
    let made = operator.get("device.pair.setupCode", gives).await;
    let setup: Arc<str> = made["setupId"].as_str().unwrap().into();
    let known = Device::new();
    let mut first = Client::dial(&gateway).await;
    let hello = first.hello(&Connect::token().device(&known)).await;
    let own = json!({ "deviceToken": hello["auth"]["deviceToken"] });

    let (port, control) = (gateway.port(), gateway.state().join("run/control.sock"));
    let orders = Arc::new(Orders::default());
    for _ in 0..SILENT {
        let dial = async move || TcpStream::connect(("127.0.0.1", port)).await;
        tokio::spawn(silent(dial, orders.clone()));
    }
    for _ in 0..64 {
        let control = control.clone();
        let dial = async move || UnixStream::connect(&control).await;
        tokio::spawn(silent(dial, orders.clone()));
    }
    for n in 0..GUESSERS {
        tokio::spawn(guess(port, n, setup.clone(), orders.clone()));
    }
    hold_all(&mut operator).await;

    // Beside it one that nobody attacks tells what else runs on this machine.
    let calm = Gateway::start();
    calm.vault_is_open();
    let (calm_port, doors) = (calm.port(), [gateway.state(), calm.state()]);
    // On a thread and a runtime of its own, so that its figures do not wait for the others' tasks.
    let honest = tokio::task::spawn_blocking(move || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(async {
            let tcp = async || Client::dial_port(port).await.ok();
            let unix = async || Client::try_control(&doors[0]).await.ok();
            let calm_tcp = async || Client::dial_port(calm_port).await.ok();
            let calm_unix = async || Client::try_control(&doors[1]).await.ok();
            let by_token = Connect::token();
            let by_device = Connect::bare().auth(own).device(&known);
            let (mut took, mut beside) = ([vec![], vec![], vec![]], vec![]);
            for _ in 0..ROUNDS {
                took[0].push(enters(tcp, &by_token).await);
                took[1].push(enters(tcp, &by_device).await);
                took[2].push(enters(unix, &Connect::bare()).await);
                beside.push(enters(calm_tcp, &by_token).await);
                beside.push(enters(calm_unix, &Connect::bare()).await);
                sleep(Duration::from_millis(100)).await;
            }
            (took, beside)
        })
    });
    let (took, beside) = honest.await.unwrap();
    println!(
        "FIGURE: beset: token, device, Unix socket: {took:.0?}; at a gateway beside: {beside:.0?}; {} guesses",
        orders.guesses.load(Relaxed)
    );
    let slowest = beside.iter().max().copied().unwrap_or_default();
    let limit = PROMISE.max(3 * slowest);
    assert!(
        took.iter().flatten().all(|one| *one < limit),
        "{limit:?}: {took:?}"
    );
    // They are at it to the end.
    hold_all(&mut operator).await;
    orders.over.store(true, Relaxed);
    assert!(orders.guesses.load(Relaxed) >= GUESSERS as u64);
    assert_eq!(orders.let_in.load(Relaxed), 0, "a guess was let in");
}
