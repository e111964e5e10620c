//! What every request's head says of where it came from: the name it was asked under, and the proxies on its way.
//! The decision is core's (core/auth/proxy.rs); here are the facts for it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use portcullis_core::auth::assertion::AssertionError;
use portcullis_core::auth::proxy::{
    Headers, Named, NotNamed, ProxyRules, SocketFacts, Unattributable, Way, is_forwarding,
};
use portcullis_core::codes;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::peer;

/// For a small file.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// Whom a request came from, behind a proxy whose word counts.
#[derive(Debug, Clone)]
pub struct Proxied {
    /// The client's address.
    pub client: IpAddr,
    /// The user, where users come by proxies.
    pub named: Option<Result<Named, NotNamed>>,
}

/// The way to who keeps the proxy's key set.
#[derive(Debug, Clone)]
pub struct Again(pub mpsc::Sender<oneshot::Sender<()>>);

impl Again {
    /// There is no key set.
    pub fn never() -> Self {
        Self(mpsc::channel(1).0)
    }

    /// A key is named that nobody knows: is there a newer set? Returns when it was looked for, or there is no time for it.
    pub async fn look(&self) {
        let (asker, looked) = oneshot::channel();
        if self.0.try_send(asker).is_ok() {
            // The set that is there counts, whatever came of it.
            let _ = timeout(LOOK_WITHIN, looked).await;
        }
    }
}

impl Proxied {
    /// Is its assertion signed by a key that is not in the set?
    pub fn names_no_key(&self) -> bool {
        let unknown = NotNamed::Assertion(AssertionError::Key);
        matches!(&self.named, Some(Err(why)) if *why == unknown)
    }
}

/// `Ok(None)`: no proxy had a part in it. `ends` are the socket's other end and whose it is; none of a Unix socket.
pub fn look(
    rules: &ProxyRules,
    (ends, certificate): (Option<(SocketAddr, peer::Owner)>, Option<[u8; 32]>),
    is_of_a_run: impl Fn() -> bool,
    headers: &HeaderMap,
    now_s: u64,
) -> Result<Option<Proxied>, Unattributable> {
    // Most have none: then nothing is asked of the kernel.
    if !headers.keys().any(|name| is_forwarding(name.as_str())) {
        return Ok(None);
    }
    let raw: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let headers = Headers(&raw);
    let source = ends.map(|(peer, _)| peer.ip().to_canonical());
    let mut socket = SocketFacts {
        source,
        is_this_machine: true,
        uid: None,
        certificate,
    };
    // What we let run is no proxy, whatever address it dials from.
    if let Some((peer, owner)) = ends
        && rules.lists(peer.ip())
        && !is_of_a_run()
    {
        socket.is_this_machine = peer::is_of_this_machine(peer.ip());
        if socket.is_this_machine {
            socket.uid = owner.map(|(uid, _)| uid);
        }
    }
    match rules.attribute(&socket, headers)? {
        Way::Direct => Ok(None),
        // Any process here can send from any address here, and a proxy passes its word on.
        Way::Proxied(client) if peer::is_of_this_machine(client) => Err(Unattributable::NoClient),
        Way::Proxied(client) => Ok(Some(Proxied {
            client,
            named: rules.names_users.then(|| rules.name(headers, now_s)),
        })),
    }
}

/// 403, before anything is looked at (wire.md 1).
pub fn refused(why: Unattributable) -> Response<Full<Bytes>> {
    let code = codes::PROXY_ATTRIBUTION_REQUIRED;
    let body = json!({ "error": {
        "type": "proxy_attribution_required", "code": code.name, "message": why.to_string(), "next": code.next,
    }});
    let mut answer = Response::new(Full::new(Bytes::from(body.to_string())));
    *answer.status_mut() = StatusCode::FORBIDDEN;
    for (name, value) in [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Under which kind of name somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// `localhost` or a loopback address, from a loopback socket.
    Local,
    /// The address that was dialled, or one of `[gateway] hosts`.
    Ours,
    /// Anything else: somebody's DNS may point it at us (DNS rebinding).
    Foreign,
}

/// What the `Host` header says; `hosts` is `[gateway] hosts`.
pub fn name_of(
    headers: &HeaderMap,
    (peer, own): (SocketAddr, SocketAddr),
    hosts: &[String],
) -> Name {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let Some(name) = host.and_then(without_port) else {
        return Name::Foreign;
    };
    // With both brackets or none: `without_port` has seen to it.
    let inner = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    let bare = inner.unwrap_or(name);
    let ip = bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    let is_loopback_name =
        name.eq_ignore_ascii_case("localhost") || ip.is_some_and(|ip| ip.is_loopback());
    if is_loopback_name && peer.ip().to_canonical().is_loopback() {
        return Name::Local;
    }
    let is_ours = |ours: &String| ours.eq_ignore_ascii_case(name);
    // A loopback name from elsewhere is no name of ours, whatever the list says.
    if !is_loopback_name && (ip == Some(own.ip().to_canonical()) || hosts.iter().any(is_ours)) {
        return Name::Ours;
    }
    Name::Foreign
}

/// `None`: not `NAME`, `NAME:PORT`, `[V6]` or `[V6]:PORT`.
fn without_port(host: &str) -> Option<&str> {
    // Digits alone: a number may have a sign where it is parsed.
    let is_port = |port: &str| {
        let has_digits = port.bytes().all(|b| b.is_ascii_digit());
        port.is_empty() || has_digits && port.parse::<u16>().is_ok()
    };
    let is_name = |name: &&str| !name.is_empty() && !name.contains(['[', ']']);
    if host.starts_with('[') {
        let end = host.find(']')?;
        let (name, rest) = host.split_at(end + 1);
        name[1..end].parse::<Ipv6Addr>().ok()?;
        return (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)).then_some(name);
    }
    match host.split_once(':') {
        None => Some(host),
        Some((name, port)) => is_port(port).then_some(name),
    }
    .filter(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_peers_may_call_us_by_a_loopback_name() {
        let hosts = ["gate.example".to_owned(), "[2001:db8::1]".to_owned()];
        let ask = |host: &str, peer: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 18789);
            name_of(&headers, (at(peer), at("198.51.100.7")), &hosts)
        };
        for local in [
            "localhost",
            "LOCALHOST:18789",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:18789",
            "[::ffff:127.0.0.1]",
        ] {
            assert_eq!(ask(local, "127.0.0.1"), Name::Local, "{local}");
            assert_eq!(ask(local, "::ffff:127.0.0.1"), Name::Local, "{local}");
            assert_eq!(ask(local, "203.0.113.1"), Name::Foreign, "{local}");
        }
        for ours in [
            "gate.example",
            "Gate.Example:443",
            "[2001:db8::1]:443",
            "198.51.100.7:18789",
        ] {
            assert_eq!(ask(ours, "203.0.113.1"), Name::Ours, "{ours}");
            assert_eq!(ask(ours, "127.0.0.1"), Name::Ours, "{ours}");
        }
        for foreign in [
            "evil.example",
            "gate.example.evil.example",
            "localhost.evil.example",
            "198.51.100.8",
            "[::1",
            "[x]",
            "",
            ":80",
            "gate.example:x",
            "gate.example:99999",
            "localhost.",
            "127.1",
            "[::1]x",
            "127.0.0.1]",
            "127.0.0.1]:18789",
            "localhost]",
            "[127.0.0.1]",
            "[[::1]]",
            "[::1]]",
            "::1",
            "::1]",
            "localhost:+80",
            "127.0.0.1:-1",
            "[::1]:+80",
        ] {
            assert_eq!(ask(foreign, "127.0.0.1"), Name::Foreign, "{foreign}");
        }
    }

    #[test]
    fn own_addresses_are_of_this_machine() {
        assert!(peer::is_of_this_machine("127.0.0.1".parse().unwrap()));
        assert!(peer::is_of_this_machine(
            "::ffff:127.0.0.9".parse().unwrap()
        ));
        assert!(!peer::is_of_this_machine("203.0.113.1".parse().unwrap()));
    }
}
