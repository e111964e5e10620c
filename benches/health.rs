//! Server CPU per reply to `health` and to a light call, in both encodings, against a bare echo with the same flushing:
//! 8 sockets, 1 and 16 requests under way each.
//!
//! Both servers run at once and are asked in turn, so that both see the same machine. CPU per reply holds within a tenth
//! on a loaded machine where rates a second do not; what counts is the ratio.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench waits for its child processes"
)]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use portcullis_core::protocol::{Encoding, Wire};
use serde_json::json;
use support::{Running, Socket, State, connect_as, dial, line, median, socket_config, start_self};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

const SOCKETS: usize = 8;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
/// Depth, and the target of design.md's table.
const DEPTHS: [(usize, f64); 2] = [(1, 1.35), (16, 4.0)];
const ECHO: &str = "--echo-server";

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    if std::env::args().any(|word| word == ECHO) {
        return runtime.block_on(echo());
    }
    let state = State::new()?;
    let (gateway, _) = state.start()?;
    let bare = start_self(ECHO)?;
    runtime.block_on(async {
        for (depth, target) in DEPTHS {
            for method in [HEALTH, LIGHT] {
                for packed in [false, true] {
                    compare(&gateway, &bare, Call { method, packed }, depth, target).await?;
                }
            }
        }
        Ok(())
    })
}

/// Answered by the connection itself.
const HEALTH: &str = "health";
/// Through the table of methods and one room.
const LIGHT: &str = "device.pair.list";

/// What is asked, and how it is written.
#[derive(Clone, Copy)]
struct Call {
    method: &'static str,
    packed: bool,
}

impl Call {
    fn encoding(self) -> Encoding {
        if self.packed {
            Encoding::MsgPack
        } else {
            Encoding::Json
        }
    }

    fn request(self, id: u64) -> Result<Message> {
        let id = id.to_string();
        let frame = json!({ "type": "req", "id": id, "method": self.method, "params": {} });
        Ok(match self.encoding().write(&frame)? {
            Wire::Text(text) => Message::text(text),
            Wire::Binary(bytes) => Message::binary(bytes),
        })
    }
}

async fn compare(
    gateway: &Running,
    bare: &Running,
    call: Call,
    depth: usize,
    target: f64,
) -> Result<()> {
    let mut ours = open(gateway.address, Some(call)).await?;
    let mut theirs = open(bare.address, None).await?;
    let (mut ratios, mut health, mut echo) = (vec![], vec![], vec![]);
    let mut rate = 0.0;
    for round in 0..=ROUNDS {
        let (cost, replies) = measure(gateway, &mut ours, call, depth).await?;
        let (limit, _) = measure(bare, &mut theirs, call, depth).await?;
        // The first round warms caches and pools.
        if round > 0 {
            ratios.push(cost / limit);
            health.push(cost);
            echo.push(limit);
            rate = replies;
        }
    }
    let (health, echo) = (median(health), median(echo));
    let method = call.method;
    let encoding = if call.packed { "MessagePack" } else { "JSON" };
    println!(
        "depth {depth:2}, {encoding}: {method} {health:.2} us CPU a reply ({rate:.0}/s), bare echo {echo:.2} us"
    );
    line(
        &format!("{method}, {encoding}, depth {depth}: CPU a reply / echo"),
        median(ratios),
        "x",
        target,
    );
    Ok(())
}

async fn open(address: SocketAddr, call: Option<Call>) -> Result<Vec<Socket>> {
    let mut sockets = vec![];
    for _ in 0..SOCKETS {
        sockets.push(match call {
            Some(call) => connect_as(address, call.packed, &["operator.pairing"]).await?,
            None => dial(address).await?,
        });
    }
    Ok(sockets)
}

/// One round: microseconds of the server's CPU per reply, and replies a second.
async fn measure(
    server: &Running,
    sockets: &mut Vec<Socket>,
    call: Call,
    depth: usize,
) -> Result<(f64, f64)> {
    let before = server.cpu()?;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for socket in sockets.drain(..) {
        clients.spawn(ask(socket, call, depth, began + ROUND));
    }
    let mut replies = 0_u32;
    while let Some(ended) = clients.join_next().await {
        let (socket, count) = ended??;
        sockets.push(socket);
        replies += count;
    }
    let took = began.elapsed();
    let cpu = server.cpu()?.saturating_sub(before);
    if replies == 0 {
        bail!("no reply came");
    }
    Ok((
        cpu.as_secs_f64() * 1e6 / f64::from(replies),
        f64::from(replies) / took.as_secs_f64(),
    ))
}

/// Sends `depth` requests at once and reads as many replies, until the time is up. Events in between do not count.
async fn ask(
    mut socket: Socket,
    call: Call,
    depth: usize,
    until: Instant,
) -> Result<(Socket, u32)> {
    let mut replies = 0;
    let mut number = 0_u64;
    while Instant::now() < until {
        for _ in 0..depth {
            number += 1;
            socket.feed(call.request(number)?).await?;
        }
        socket.flush().await?;
        let mut left = depth;
        while left > 0 {
            let message = socket
                .next()
                .await
                .context("the server closed the socket")??;
            let frame = match &message {
                Message::Text(text) => text.as_bytes(),
                Message::Binary(bytes) => &bytes[..],
                _ => continue,
            };
            if !holds(frame, b"event") {
                if holds(frame, b"UNAVAILABLE") || holds(frame, b"FORBIDDEN") {
                    bail!("it was refused: {message:?}");
                }
                left -= 1;
                replies += 1;
            }
        }
    }
    Ok((socket, replies))
}

/// In its first bytes, where type and error stand; both encodings write texts as they are.
fn holds(frame: &[u8], word: &[u8]) -> bool {
    let start = &frame[..frame.len().min(96)];
    start.windows(word.len()).any(|part| part == word)
}

/// The limit: what comes in goes out, flushed when the input runs dry.
async fn echo() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(echo_socket(stream));
    }
}

async fn echo_socket(stream: TcpStream) -> Result<()> {
    let mut socket =
        tokio_tungstenite::accept_async_with_config(stream, Some(socket_config())).await?;
    loop {
        let next = if let Some(next) = socket.next().now_or_never() {
            next
        } else {
            socket.flush().await?;
            socket.next().await
        };
        match next.transpose()? {
            Some(message) if message.is_text() || message.is_binary() => {
                socket.feed(message).await?;
            }
            Some(_) => {}
            None => return Ok(()),
        }
    }
}
