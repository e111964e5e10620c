//! Server CPU per handshake with token and device signature, beside the same with nothing behind it: upgrade, challenge,
//! `connect` read, signature checked, a hello of the same size.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench waits for its child processes"
)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_core::device::{Claim, verify};
use serde_json::{Value, json};
use support::device::Device;
use support::{Running, State, dial, line, median, socket_config, start_self};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

const AT_ONCE: usize = 8;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(1);
const BARE: &str = "--bare-server";
/// Bytes of the limit's hello; the gateway's own must not be longer.
const HELLO: usize = 4096;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()?;
    if std::env::args().any(|word| word == BARE) {
        return runtime.block_on(bare());
    }
    let state = State::new()?;
    let (gateway, _) = state.start()?;
    let limit = start_self(BARE)?;
    runtime.block_on(async {
        compare("Ed25519", Device::ed25519()?, &gateway, &limit).await?;
        compare("P-256", Device::p256()?, &gateway, &limit).await
    })
}

async fn compare(kind: &str, device: Device, gateway: &Running, limit: &Running) -> Result<()> {
    let device = Arc::new(device);
    let (socket, hello) = device.join(dial(gateway.address).await?).await?;
    drop(socket);
    println!(
        "{kind}: the gateway's hello has {} bytes",
        hello.to_string().len()
    );
    let (mut ratios, mut ours, mut bares, mut rates) = (vec![], vec![], vec![], vec![]);
    for round in 0..=ROUNDS {
        let (cost, rate) = measure(gateway, &device).await?;
        let (bare, _) = measure(limit, &device).await?;
        // The first round pairs and warms up.
        if round > 0 {
            ratios.push(cost / bare);
            ours.push(cost);
            bares.push(bare);
            rates.push(rate);
        }
    }
    println!(
        "{kind}: {:.0} us CPU a handshake ({:.0}/s), with nothing behind it {:.0} us",
        median(ours),
        median(rates),
        median(bares)
    );
    line(
        &format!("handshake with token and {kind} device, CPU / bare"),
        median(ratios),
        "x",
        1.9,
    );
    Ok(())
}

/// Microseconds of the server's CPU per handshake, and handshakes a second.
async fn measure(server: &Running, device: &Arc<Device>) -> Result<(f64, f64)> {
    let before = server.cpu()?;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (device, address) = (device.clone(), server.address);
        clients.spawn(async move {
            let mut count = 0_u32;
            while began.elapsed() < ROUND {
                let (mut socket, _) = device.join(dial(address).await?).await?;
                // The other end may be quicker.
                let _ = socket.close(None).await;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(ended) = clients.join_next().await {
        count += ended??;
    }
    let took = began.elapsed();
    let cpu = server.cpu()?.saturating_sub(before);
    ensure!(count > 0, "no handshake succeeded");
    Ok((
        cpu.as_secs_f64() * 1e6 / f64::from(count),
        f64::from(count) / took.as_secs_f64(),
    ))
}

async fn bare() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(bare_handshake(stream));
    }
}

async fn bare_handshake(stream: TcpStream) -> Result<()> {
    let mut socket =
        tokio_tungstenite::accept_async_with_config(stream, Some(socket_config())).await?;
    let nonce = uuid::Uuid::new_v4().to_string();
    let now = u64::try_from(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_millis(),
    )?;
    let challenge = json!({ "type": "event", "event": "connect.challenge", "payload": { "nonce": nonce, "ts": now } });
    socket.send(Message::text(challenge.to_string())).await?;
    let message = socket.next().await.context("closed")??;
    let request: Value = serde_json::from_str(message.to_text()?)?;
    let params = &request["params"];
    let text = |at: &str| {
        params
            .pointer(at)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let claim = Claim {
        device_id: text("/device/id"),
        public_key: text("/device/publicKey"),
        signature: text("/device/signature"),
        signed_at_ms: now,
        nonce: text("/device/nonce"),
        client_id: text("/client/id"),
        client_mode: text("/client/mode"),
        role: text("/role"),
        scopes: &["operator.read".to_owned()],
        token: text("/auth/token"),
        platform: text("/client/platform"),
        device_family: text("/client/deviceFamily"),
    };
    verify(&claim, &nonce, now)?;
    let hello = json!({ "type": "res", "id": "connect", "ok": true, "payload": "x".repeat(HELLO) });
    socket.send(Message::text(hello.to_string())).await?;
    // Until the other end has closed.
    while socket.next().await.is_some_and(|next| next.is_ok()) {}
    Ok(())
}
