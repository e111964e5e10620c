//! Names become addresses on the host, once for each connection: what was looked at is what is dialled.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::actor::Egress;
use super::wiring::EgressLimits;
use crate::supervision::{Allowance, Ctx, Taken, aside};

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

    /// This system's: the hosts file, then whom the system asks, for the whole name and nothing else. (A name that does not end
    /// with a dot is also looked for below the domains of `search`: that would be another host.)
    pub fn system() -> Self {
        Self::new(|name| {
            Box::pin(async move {
                // A short file of the machine's own.
                let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
                let listed = of_hosts(&hosts, &name);
                if !listed.is_empty() {
                    return Ok(listed);
                }
                // On a thread of its own: who waits for a name server that does not answer holds nobody else up.
                let found = aside("lookup", move || {
                    let found = (format!("{name}.").as_str(), 0).to_socket_addrs()?;
                    io::Result::Ok(found.map(|address| address.ip()).collect())
                })?;
                found.await.map_err(io::Error::other)?
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

/// Is this an address of the very machine that we are on? Only such a one can be bound to; no packet is sent. What cannot be told is
/// taken for one. (By which address the kernel would go there says less: to a second one of a subnet it goes by the first.)
pub fn is_own(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => !binds_anything(address) || goes_by_itself(address),
        // None of its kind is there: a machine without IPv6 is reached by none of its addresses.
        Err(error) if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => false,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

/// `ip_nonlocal_bind`: then any address can be bound to, and only the way there tells.
fn binds_anything(address: IpAddr) -> bool {
    let version = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    std::fs::read_to_string(format!("/proc/sys/net/{version}/ip_nonlocal_bind"))
        .is_ok_and(|text| text.trim() == "1")
}

fn goes_by_itself(address: IpAddr) -> bool {
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let from = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    from.map_or(true, |from| from.ip() == address)
}

/// The addresses that a hosts file has for a name: there it is written without the dot that ends it.
fn of_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|word| word.eq_ignore_ascii_case(name))
                .then_some(address)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_is_read_as_the_system_reads_it() {
        let text = "127.0.0.1 localhost # one.test\n\n# 9.9.9.9 two.test\n192.0.2.7\ta.test A2.test\n::1 localhost\nno two.test\n192.0.2.8 a.test\n";
        let of = |name| {
            of_hosts(text, name)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(of("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(of("a.test"), ["192.0.2.7", "192.0.2.8"]);
        assert_eq!(of("a2.test"), ["192.0.2.7"]);
        for none in ["one.test", "two.test", "test", "a.test."] {
            assert_eq!(of(none), [""; 0], "{none}");
        }
    }

    /// The bug: of two addresses in one subnet, and of a range on the loopback, the machine knew only the first for its own.
    #[test]
    fn every_address_of_the_loopback_is_the_machines_own() {
        for own in ["127.0.0.1", "127.0.0.2", "127.99.9.9", "::1"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        for other in ["192.0.2.7", "8.8.8.8"] {
            assert!(!is_own(other.parse().unwrap()), "{other}");
        }
    }
}
