//! Names become addresses on the host, once for each connection: what was looked at is what is dialled.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::actor::Egress;
use super::wiring::EgressLimits;
use crate::supervision::{Allowance, Ctx, Taken};

/// Most addresses of one name that are looked at and dialled; a name with more is not resolved.
const MOST: usize = 32;
/// Between two looks for a free place.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

/// What a resolver answers.
pub type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Finds the addresses of a name. A value, so that tests can bring answers that change.
#[derive(Clone)]
pub struct Resolver(Arc<dyn Fn(String) -> Answer + Send + Sync>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    /// Any function from a name to its addresses.
    pub fn new(find: impl Fn(String) -> Answer + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    /// This system's.
    pub fn system() -> Self {
        Self::new(|name| {
            Box::pin(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            })
        })
    }
}

/// The addresses of a name, each once; none where it was not found, or not in time.
///
/// A lookup cannot be called back: it keeps its place until the system has answered, so that there are never more of them.
pub async fn find(
    ctx: &Ctx<Egress>,
    key: u64,
    resolver: &Resolver,
    share: &Arc<Allowance>,
    limits: &EgressLimits,
    name: String,
) -> Vec<IpAddr> {
    let until = Instant::now() + limits.lookup;
    let mut place = Taken::none(share.clone());
    while !place.grow(1) {
        if Instant::now() >= until {
            return Vec::new();
        }
        sleep(AGAIN).await;
    }
    let (told, answer) = oneshot::channel();
    let lookup = (resolver.0)(name);
    ctx.task("lookup", key, async move {
        let _place = place;
        let _ = told.send(lookup.await);
    })
    .keep();
    let Ok(Ok(Ok(mut found))) = timeout_at(until, answer).await else {
        return Vec::new();
    };
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|address| seen.insert(*address));
    if found.len() > MOST {
        Vec::new()
    } else {
        found
    }
}

/// Is this an address of the very machine that we are on? The kernel is asked by which address it would go there: no packet is sent.
pub fn is_own(address: IpAddr) -> bool {
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let from = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
}
