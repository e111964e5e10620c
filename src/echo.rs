//! A WebSocket echo made of the gateway's own code: its upgrade, its socket, its limits (examples/ws_echo.rs).

use std::sync::Arc;
use std::time::Duration;

use portcullis_actors::clock::Clock;
use portcullis_actors::connection::{Stream, echo};
use portcullis_actors::supervision::Flag;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::edge::{Again, Http, Looks, Runs, serve_http};

/// For the upgrade.
const UPGRADE_WITHIN: Duration = Duration::from_secs(15);

/// Serves until it is dropped.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: TcpListener, frame_max: usize) -> std::io::Result<()> {
    let (tree, site, tls) = (Flag::new(None), Flag::new(None), Flag::new(None));
    let proxies = Flag::new(Arc::default());
    let http = Http {
        header_ms: 10_000,
        hosts: Arc::new(vec![]),
        // Whatever it is: it opens no door here.
        runs: Arc::new(Runs {
            boxes: portcullis_core::sandbox::UserRange::default(),
            host_user: String::new(),
        }),
        proxies: proxies.reader(),
        again: Again::never(),
        clock: Clock::system(),
        by_groups: false,
        looks: Looks::default(),
        tree: tree.reader(),
        site: site.reader(),
        tls: tls.reader(),
        rpc: None,
    };
    let mut sockets = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let http = http.clone();
        sockets.spawn(async move {
            let until = Instant::now() + UPGRADE_WITHIN;
            // It has no budget.
            let nobody = Arc::new(|_| {});
            if let Some((io, _)) = serve_http(http, Stream::Tcp(stream), None, until, nobody).await
            {
                echo(io, frame_max).await;
            }
        });
        while sockets.try_join_next().is_some() {}
    }
}
