//! Server CPU per `health` reply against a bare echo with the same flushing: 8 sockets, 1 and 16 requests under way each.
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
use support::{Running, Socket, State, connect, dial, line, median, socket_config, start_self};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

const SOCKETS: usize = 8;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
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
            compare(&gateway, &bare, depth, target).await?;
        }
        Ok(())
    })
}

async fn compare(gateway: &Running, bare: &Running, depth: usize, target: f64) -> Result<()> {
    let mut ours = open(gateway.address, true).await?;
    let mut theirs = open(bare.address, false).await?;
    let (mut ratios, mut health, mut echo) = (vec![], vec![], vec![]);
    let mut rate = 0.0;
    for round in 0..=ROUNDS {
        let (cost, replies) = measure(gateway, &mut ours, depth).await?;
        let (limit, _) = measure(bare, &mut theirs, depth).await?;
        // The first round warms caches and pools.
        if round > 0 {
            ratios.push(cost / limit);
            health.push(cost);
            echo.push(limit);
            rate = replies;
        }
    }
    let (health, echo) = (median(health), median(echo));
    println!(
        "depth {depth:2}: health {health:.2} us CPU a reply ({rate:.0}/s), bare echo {echo:.2} us"
    );
    line(
        &format!("health at depth {depth}, CPU per reply / bare echo"),
        median(ratios),
        "x",
        target,
    );
    Ok(())
}

async fn open(address: SocketAddr, authenticate: bool) -> Result<Vec<Socket>> {
    let mut sockets = vec![];
    for _ in 0..SOCKETS {
        sockets.push(if authenticate {
            connect(address).await?
        } else {
            dial(address).await?
        });
    }
    Ok(sockets)
}

/// One round: microseconds of the server's CPU per reply, and replies a second.
async fn measure(server: &Running, sockets: &mut Vec<Socket>, depth: usize) -> Result<(f64, f64)> {
    let before = server.cpu()?;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for socket in sockets.drain(..) {
        clients.spawn(ask(socket, depth, began + ROUND));
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
async fn ask(mut socket: Socket, depth: usize, until: Instant) -> Result<(Socket, u32)> {
    let mut replies = 0;
    let mut number = 0_u64;
    while Instant::now() < until {
        for _ in 0..depth {
            number += 1;
            let request =
                format!(r#"{{"type":"req","id":"{number}","method":"health","params":{{}}}}"#);
            socket.feed(Message::text(request)).await?;
        }
        socket.flush().await?;
        let mut left = depth;
        while left > 0 {
            let message = socket
                .next()
                .await
                .context("the server closed the socket")??;
            if let Message::Text(text) = &message
                && !text.as_str().contains(r#""type":"event""#)
            {
                if text.as_str().contains(r#""ok":false"#) {
                    bail!("health was refused: {text}");
                }
                left -= 1;
                replies += 1;
            }
        }
    }
    Ok((socket, replies))
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
            Some(message) if message.is_text() => socket.feed(message).await?,
            Some(_) => {}
            None => return Ok(()),
        }
    }
}
