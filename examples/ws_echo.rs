//! `cargo run --example ws_echo -- ADDRESS [--frame-max BYTES]`: sends back every WebSocket message, from the very code
//! of the gateway's connections, so that a conformance suite can be pointed at it.
#![forbid(unsafe_code)]

use std::io::Write as _;

use anyhow::{Context as _, Result};
use clap::Parser;

/// A WebSocket echo made of the gateway's own connection code.
#[derive(Parser)]
struct Args {
    /// Where to listen, such as 127.0.0.1:9001.
    address: std::net::SocketAddr,
    /// The largest message, bytes.
    #[arg(long, default_value_t = 16 * 1024 * 1024)]
    frame_max: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(args.address)
            .await
            .with_context(|| format!("{} cannot be listened on", args.address))?;
        println!("ws://{}/", listener.local_addr()?);
        std::io::stdout().flush()?;
        portcullis::echo::serve(listener, args.frame_max).await?;
        Ok(())
    })
}
