//! Requests that came through a proxy: whose word on a client counts, and what it says. Pure.
//!
//! A header can be written by anybody. It counts where the kernel says that the socket comes from a configured address,
//! and from anywhere else a header that only a proxy adds refuses the request: who it is from cannot be told then.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;

use super::assertion::{Assertion, AssertionError};
use super::{Scope, ScopeSet};
use crate::display::has_hidden;

/// Proxies in a row that one request may name.
const HOPS: usize = 32;
/// Longest name of a user, bytes.
const USER_MAX: usize = 256;
/// In `allow_users`: whomever the proxy names.
pub const EVERYBODY: &str = "*";

/// Is that user on the list? Word for word.
pub fn lets_in(allow_users: &[String], user: &str) -> bool {
    allow_users
        .iter()
        .any(|known| known == EVERYBODY || known == user)
}

/// An address or a network, `10.1.0.0/16`. A v4-mapped one is the IPv4 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    ip: IpAddr,
    prefix: u32,
}

/// Not an address or a network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no address (\"10.1.2.3\") and no network whose host bits are 0 (\"10.1.0.0/16\")"
)]
pub struct NetworkError(String);

fn bits(ip: IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn mask(prefix: u32) -> u128 {
    u128::MAX.checked_shl(128 - prefix).unwrap_or(0)
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = || NetworkError(text.to_owned());
        let (ip, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((ip, prefix)) => {
                let is_number = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
                let prefix: Option<u32> = prefix.parse().ok().filter(|_| is_number);
                (ip, Some(prefix.ok_or_else(bad)?))
            }
        };
        let written: IpAddr = ip.parse().map_err(|_| bad())?;
        let ip = written.to_canonical();
        let (_, width) = bits(ip);
        // `::ffff:10.0.0.0/104` is 10.0.0.0/8.
        let folded = bits(written).1 - width;
        let prefix = match prefix {
            None => width,
            Some(prefix) => prefix.checked_sub(folded).ok_or_else(bad)?,
        };
        // A network of everybody is no list.
        if prefix == 0 || prefix > width || bits(ip).0 & !mask(prefix) != 0 {
            return Err(bad());
        }
        Ok(Self { ip, prefix })
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl Network {
    /// Its first address.
    pub const fn first(&self) -> IpAddr {
        self.ip
    }

    /// Is that address in it?
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (own, width) = bits(self.ip);
        let (other, theirs) = bits(ip.to_canonical());
        width == theirs && (own ^ other) & mask(self.prefix) == 0
    }
}

/// The settings of `[gateway.auth.trusted_proxy]`.
#[derive(Debug, Clone, Default)]
pub struct ProxyRules {
    /// Where proxies come from.
    pub addresses: Vec<Network>,
    /// Users of this machine that a proxy may run as: by a socket of this machine none but theirs is one.
    pub local_uids: Vec<u32>,
    /// SHA-256 of the public keys of proxies' client certificates; empty: none is asked for.
    pub certificates: Vec<[u8; 32]>,
    /// Names a user is taken from headers; else they are passed over.
    pub names_users: bool,
    /// The header with the user; empty where an assertion names it.
    pub user_header: String,
    /// Headers that must be there besides.
    pub required_headers: Vec<String>,
    /// Who is let in.
    pub allow_users: Vec<String>,
    /// The header that may narrow.
    pub scopes_header: String,
    /// The most that a user gets.
    pub scopes: ScopeSet,
    /// A signed word of the proxy, in this header.
    pub assertion: Option<(String, Assertion)>,
}

/// What the kernel and TLS say of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketFacts {
    /// Its other end; none of a Unix socket.
    pub source: Option<IpAddr>,
    /// That end is an address of this very machine, or nobody could find out.
    pub is_this_machine: bool,
    /// The user whose process holds it, where it is on this machine, and the process is none of our runs.
    pub uid: Option<u32>,
    /// SHA-256 of the public key of its client certificate.
    pub certificate: Option<[u8; 32]>,
}

/// A request's headers, as they came.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a>(pub &'a [(&'a str, &'a [u8])]);

impl<'a> Headers<'a> {
    fn all(self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let same = move |(known, _): &&(&str, &[u8])| known.eq_ignore_ascii_case(name);
        self.0.iter().filter(same).map(|(_, value)| *value)
    }

    /// Stands once, is text, and is not blank. Nothing is taken off but the blanks and tabs around it that are HTTP's own
    /// (RFC 9110 5.5).
    fn one(self, name: &'a str) -> Option<&'a str> {
        let mut all = self.all(name);
        let text = std::str::from_utf8(all.next()?).ok()?;
        let text = text.trim_matches([' ', '\t']);
        (all.next().is_none() && !text.trim().is_empty()).then_some(text)
    }

    /// Is there one that only a proxy adds?
    pub fn is_forwarded(self) -> bool {
        self.0.iter().any(|(name, _)| is_forwarding(name))
    }
}

/// `Forwarded`, `X-Forwarded…` and `X-Real-IP`.
pub fn is_forwarding(name: &str) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    let begins = name.as_bytes().get(..11);
    is("forwarded")
        || is("x-real-ip")
        || begins.is_some_and(|start| start.eq_ignore_ascii_case(b"x-forwarded"))
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From its client itself.
    Direct,
    /// Through a proxy whose word counts, from this client.
    Proxied(IpAddr),
}

/// Who a request is from cannot be told: it is refused (`PROXY_ATTRIBUTION_REQUIRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unattributable {
    /// A header that only a proxy adds, and no proxy of ours.
    #[error(
        "a header that a proxy adds, from an address that is no proxy's: see [gateway.auth.trusted_proxy] addresses"
    )]
    Stranger,
    /// A proxy of ours, and no client in what it says.
    #[error("the proxy does not say, once and clearly, which address its client has")]
    NoClient,
}

/// Somebody whom a proxy names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The user.
    pub user: String,
    /// The most that this request may get.
    pub scopes: ScopeSet,
}

/// A proxy of ours names nobody who is let in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotNamed {
    /// A header is missing, blank or there twice.
    #[error("the proxy must send {0}, once")]
    Header(String),
    /// Its signed word does not hold.
    #[error("the proxy's assertion does not hold: {0}")]
    Assertion(AssertionError),
    /// Header and assertion differ.
    #[error("the proxy's header and its assertion name two different users")]
    TwoUsers,
    /// Not on the list.
    #[error("this user is not in [gateway.auth.trusted_proxy] allow_users")]
    NotAllowed,
}

impl NotNamed {
    /// The word on the wire (wire.md section 3).
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Header(_) => "AUTH_IDENTITY_HEADER_REQUIRED",
            Self::Assertion(_) | Self::TwoUsers => "AUTH_VERIFIED_USER_REQUIRED",
            Self::NotAllowed => "AUTH_UNAUTHORIZED",
        }
    }
}

impl ProxyRules {
    /// Is that one of the addresses?
    pub fn lists(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|network| network.contains(ip))
    }

    /// Is this socket a proxy's whose word counts?
    pub fn trusts(&self, socket: &SocketFacts) -> bool {
        let certified = self.certificates.is_empty()
            || socket
                .certificate
                .is_some_and(|key| self.certificates.contains(&key));
        self.may_be_one(socket) && certified
    }

    /// Does it come from where a proxy is, as far as the socket alone tells? A certificate comes later.
    pub fn may_be_one(&self, socket: &SocketFacts) -> bool {
        let is_local_proxy = || socket.uid.is_some_and(|uid| self.local_uids.contains(&uid));
        socket.source.is_some_and(|ip| self.lists(ip))
            && (!socket.is_this_machine || is_local_proxy())
    }

    /// Whom a request is from.
    ///
    /// # Errors
    /// [`Unattributable`]: it is refused, whatever it asks for.
    pub fn attribute(
        &self,
        socket: &SocketFacts,
        headers: Headers<'_>,
    ) -> Result<Way, Unattributable> {
        match (headers.is_forwarded(), self.trusts(socket)) {
            (false, _) => Ok(Way::Direct),
            (true, false) => Err(Unattributable::Stranger),
            (true, true) => self.client(headers).map(Way::Proxied),
        }
    }

    /// The nearest address that is no proxy of ours: what stands before it anybody may have written.
    fn client(&self, headers: Headers<'_>) -> Result<IpAddr, Unattributable> {
        let mut found = None;
        for (name, read) in [
            ("x-forwarded-for", hops as fn(&str) -> Option<Vec<IpAddr>>),
            ("forwarded", forwarded),
        ] {
            let mut chain = vec![];
            for value in headers.all(name) {
                let text = std::str::from_utf8(value).map_err(|_| Unattributable::NoClient)?;
                chain.extend(read(text).ok_or(Unattributable::NoClient)?);
            }
            if chain.len() > HOPS {
                return Err(Unattributable::NoClient);
            }
            let Some(nearest) = chain
                .iter()
                .rev()
                .find(|ip| !self.lists(**ip))
                .or(chain.first())
            else {
                continue;
            };
            if found.is_some_and(|other| other != *nearest) {
                return Err(Unattributable::NoClient);
            }
            found = Some(*nearest);
        }
        let is_somebody =
            |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast();
        found.filter(is_somebody).ok_or(Unattributable::NoClient)
    }

    /// The user of a request that was [attributed](Self::attribute) to a client behind a proxy.
    ///
    /// # Errors
    /// [`NotNamed`].
    pub fn name(&self, headers: Headers<'_>, now_s: u64) -> Result<Named, NotNamed> {
        let header = |name: &str| NotNamed::Header(name.to_owned());
        for name in &self.required_headers {
            headers.one(name).ok_or_else(|| header(name))?;
        }
        let by_header = if self.user_header.is_empty() {
            None
        } else {
            let name = &self.user_header;
            Some(headers.one(name).ok_or_else(|| header(name))?.to_owned())
        };
        let asserted = match &self.assertion {
            None => None,
            Some((name, assertion)) => {
                let token = headers.one(name).ok_or_else(|| header(name))?;
                Some(assertion.user(token, now_s).map_err(NotNamed::Assertion)?)
            }
        };
        let user = match (by_header, asserted) {
            (Some(said), Some(proven)) if said != proven => return Err(NotNamed::TwoUsers),
            (said, proven) => proven.or(said).ok_or_else(|| header("a user"))?,
        };
        // Names are compared as they are: `ada` with a blank of another kind before it looks like ada and is not.
        let is_name = user.len() <= USER_MAX && user.trim() == user && !has_hidden(&user);
        if !is_name || !lets_in(&self.allow_users, &user) {
            return Err(NotNamed::NotAllowed);
        }
        Ok(Named {
            scopes: self.narrowed(headers),
            user,
        })
    }

    /// The header can take away, never give. Absent it takes nothing; unreadable it leaves nothing.
    fn narrowed(&self, headers: Headers<'_>) -> ScopeSet {
        if self.scopes_header.is_empty() || headers.all(&self.scopes_header).next().is_none() {
            return self.scopes.clone();
        }
        let text = headers.one(&self.scopes_header).unwrap_or_default();
        let words = text.split([',', ' ']).filter_map(Scope::parse);
        self.scopes.meet(&words.collect())
    }
}

/// One hop as proxies write it: an address, with a port or without.
fn hop(text: &str) -> Option<IpAddr> {
    let bare = |text: &str| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let ip: Option<IpAddr> = text.parse().ok().or_else(|| bare(text).map(IpAddr::V6));
    ip.or_else(|| text.parse::<SocketAddr>().ok().map(|at| at.ip()))
        .map(|ip| ip.to_canonical())
}

/// `X-Forwarded-For`.
fn hops(value: &str) -> Option<Vec<IpAddr>> {
    value.split(',').map(|text| hop(text.trim())).collect()
}

/// `Forwarded` (RFC 7239). A hop that hides its address (`unknown`, `_name`), or has none, hides the client too.
fn forwarded(value: &str) -> Option<Vec<IpAddr>> {
    let mut chain = vec![];
    for element in split(value, ',')? {
        let mut found = None;
        for pair in split(element, ';')? {
            let (name, value) = pair.trim().split_once('=')?;
            if name.eq_ignore_ascii_case("for") && found.replace(hop(&unquoted(value)?)?).is_some()
            {
                return None;
            }
        }
        chain.push(found?);
    }
    Some(chain)
}

/// At this character where it does not stand in quotes. `None`: a quote is left open.
fn split(text: &str, at: char) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut quoted, mut escaped) = (vec![], 0, false, false);
    for (place, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if quoted && c == '\\' {
            escaped = true;
        } else if c == '"' {
            quoted = !quoted;
        } else if c == at && !quoted {
            parts.push(&text[start..place]);
            start = place + c.len_utf8();
        }
    }
    parts.push(&text[start..]);
    (!quoted).then_some(parts)
}

fn unquoted(text: &str) -> Option<String> {
    let Some(inner) = text.strip_prefix('"') else {
        return (!text.contains('"')).then(|| text.to_owned());
    };
    let inner = inner.strip_suffix('"')?;
    // An address has nothing to escape.
    (!inner.contains(['"', '\\'])).then(|| inner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn networks(all: &[&str]) -> Vec<Network> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn rules() -> ProxyRules {
        ProxyRules {
            addresses: networks(&["10.1.0.0/16", "2001:db8::/32", "127.0.0.0/8"]),
            local_uids: vec![33],
            names_users: true,
            user_header: "x-user".into(),
            required_headers: vec!["x-authenticated".into()],
            allow_users: vec!["ada".into(), "bo".into()],
            scopes_header: "x-openclaw-scopes".into(),
            scopes: [Scope::Write, Scope::Approvals].into_iter().collect(),
            ..ProxyRules::default()
        }
    }

    fn from(ip: &str) -> SocketFacts {
        SocketFacts {
            source: Some(ip.parse().unwrap()),
            is_this_machine: false,
            uid: None,
            certificate: None,
        }
    }

    fn way(socket: SocketFacts, headers: &[(&str, &str)]) -> Result<Way, Unattributable> {
        let raw: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_bytes())).collect();
        rules().attribute(&socket, Headers(&raw))
    }

    fn named(headers: &[(&str, &str)]) -> Result<Named, NotNamed> {
        let raw: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_bytes())).collect();
        rules().name(Headers(&raw), 0)
    }

    #[test]
    fn a_network_is_read_in_one_way_and_a_mapped_address_is_its_ipv4_one() {
        let is_in = |network: &str, ip: &str| {
            let network: Network = network.parse().unwrap();
            network.contains(ip.parse().unwrap())
        };
        assert!(is_in("10.1.2.3", "::ffff:10.1.2.3"));
        assert!(is_in("::ffff:10.1.2.3", "10.1.2.3"));
        assert!(is_in("::ffff:10.0.0.0/104", "10.9.9.9"));
        assert!(is_in("10.1.0.0/16", "10.1.255.255") && !is_in("10.1.0.0/16", "10.2.0.0"));
        assert!(
            is_in("2001:db8::/32", "2001:db8:ffff::1") && !is_in("2001:db8::/32", "2001:db9::")
        );
        assert!(!is_in("0.0.0.0/1", "::1") && !is_in("::/1", "10.0.0.1"));
        for bad in [
            "",
            "10.1",
            "10.1.0.0/33",
            "10.1.2.3/16",
            "10.0.0.0/0",
            "::/0",
            "::ffff:0.0.0.0/96",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "localhost",
            "10.0.0.1:80",
            "::ffff:10.0.0.0/8",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxys_header_from_elsewhere_refuses_and_from_a_proxy_names_the_nearest_stranger() {
        let ok = |ip: &str| Ok(Way::Proxied(ip.parse().unwrap()));
        for (name, value) in [
            ("X-Forwarded-For", "203.0.113.9"),
            ("forwarded", "for=203.0.113.9"),
            ("x-real-ip", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("X-FORWARDED-USER", "root"),
        ] {
            let header = [(name, value)];
            assert_eq!(
                way(from("198.51.100.1"), &header),
                Err(Unattributable::Stranger),
                "{name}"
            );
            let unix = SocketFacts {
                source: None,
                ..from("10.1.0.1")
            };
            assert_eq!(way(unix, &header), Err(Unattributable::Stranger), "{name}");
            let local = SocketFacts {
                is_this_machine: true,
                ..from("127.0.0.1")
            };
            assert_eq!(way(local, &header), Err(Unattributable::Stranger), "{name}");
            let other = SocketFacts {
                uid: Some(1000),
                ..local
            };
            assert_eq!(way(other, &header), Err(Unattributable::Stranger), "{name}");
        }
        let proxy = from("::ffff:10.1.0.1");
        assert_eq!(way(proxy, &[]), Ok(Way::Direct));
        let xff = |value: &str| way(proxy, &[("x-forwarded-for", value)]);
        assert_eq!(xff("203.0.113.9"), ok("203.0.113.9"));
        assert_eq!(
            xff("127.0.0.1, 203.0.113.9:4711, 10.1.7.7"),
            ok("203.0.113.9")
        );
        assert_eq!(xff("[2001:db9::1]:80"), ok("2001:db9::1"));
        assert_eq!(
            xff("10.1.3.3, 10.1.4.4"),
            ok("10.1.3.3"),
            "a proxy that asks for itself"
        );
        let both = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "203.0.113.9"),
        ];
        assert_eq!(way(proxy, &both), ok("203.0.113.9"));
        let fwd = |value: &str| way(proxy, &[("forwarded", value)]);
        assert_eq!(
            fwd("for=192.0.2.1;proto=http, For=\"[2001:db9::7]:80\";by=x"),
            ok("2001:db9::7")
        );
        for bad in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "unknown",
            "",
            "203.0.113.9,",
            "10.1.2.3 203.0.113.9",
            "127.1",
            "0x7f000001",
        ] {
            assert_eq!(xff(bad), Err(Unattributable::NoClient), "{bad}");
        }
        for bad in [
            "for=_hidden",
            "for=unknown",
            "proto=http",
            "for=\"203.0.113.9",
            "for=203.0.113.9;for=192.0.2.1",
            "x",
        ] {
            assert_eq!(fwd(bad), Err(Unattributable::NoClient), "{bad}");
        }
        let differ = [
            ("x-forwarded-for", "192.0.2.1"),
            ("forwarded", "for=203.0.113.9"),
        ];
        assert_eq!(way(proxy, &differ), Err(Unattributable::NoClient));
        assert_eq!(
            way(proxy, &[("x-real-ip", "203.0.113.9")]),
            Err(Unattributable::NoClient)
        );
        let local = SocketFacts {
            is_this_machine: true,
            uid: Some(33),
            ..from("127.0.0.1")
        };
        assert_eq!(
            way(local, &[("x-forwarded-for", "203.0.113.9")]),
            ok("203.0.113.9")
        );
        let long = vec!["203.0.113.9"; HOPS + 1].join(",");
        assert_eq!(xff(&long), Err(Unattributable::NoClient));
    }

    #[test]
    fn with_certificates_named_an_address_alone_is_no_proxy() {
        let rules = ProxyRules {
            certificates: vec![[7; 32]],
            ..rules()
        };
        let with = |certificate| SocketFacts {
            certificate,
            ..from("10.1.0.1")
        };
        assert!(rules.trusts(&with(Some([7; 32]))));
        assert!(!rules.trusts(&with(Some([8; 32]))) && !rules.trusts(&with(None)));
        assert!(!rules.trusts(&SocketFacts {
            certificate: Some([7; 32]),
            ..from("10.2.0.1")
        }));
    }

    #[test]
    fn a_user_is_named_once_allowed_and_with_all_that_is_required() {
        let ok = [("x-user", "ada"), ("x-authenticated", "yes")];
        let whole = named(&ok).unwrap();
        assert_eq!(
            (whole.user.as_str(), &whole.scopes),
            ("ada", &rules().scopes)
        );
        for (headers, code) in [
            (&ok[..1], "AUTH_IDENTITY_HEADER_REQUIRED"),
            (&ok[1..], "AUTH_IDENTITY_HEADER_REQUIRED"),
            (&[ok[0], ok[0], ok[1]], "AUTH_IDENTITY_HEADER_REQUIRED"),
            (&[("x-user", " "), ok[1]], "AUTH_IDENTITY_HEADER_REQUIRED"),
            (
                &[ok[0], ("x-authenticated", "")],
                "AUTH_IDENTITY_HEADER_REQUIRED",
            ),
            (&[("x-user", "Ada"), ok[1]], "AUTH_UNAUTHORIZED"),
            (&[("x-user", "*"), ok[1]], "AUTH_UNAUTHORIZED"),
            (&[("x-user", "ada,bo"), ok[1]], "AUTH_UNAUTHORIZED"),
        ] {
            assert_eq!(named(headers).unwrap_err().word(), code, "{headers:?}");
        }
        // Blanks and tabs around a value are HTTP's; the others are part of the name.
        assert_eq!(named(&[("x-user", " \tada "), ok[1]]).unwrap().user, "ada");
        let everybody = ProxyRules {
            allow_users: vec![EVERYBODY.into()],
            ..rules()
        };
        for blank in ["\u{a0}", "\u{3000}", "\u{2003}", "\u{85}", "\u{200b}"] {
            for user in [format!("{blank}ada"), format!("ada{blank}")] {
                let headers = [
                    ("x-user", user.as_bytes()),
                    ("x-authenticated", &b"yes"[..]),
                ];
                for rules in [&rules(), &everybody] {
                    let got = rules.name(Headers(&headers), 0);
                    assert_eq!(got, Err(NotNamed::NotAllowed), "{user:?}");
                }
            }
        }
        let scopes = |value: &str| {
            named(&[ok[0], ok[1], ("X-OpenClaw-Scopes", value)])
                .unwrap()
                .scopes
        };
        assert_eq!(scopes("operator.read"), [Scope::Read].into_iter().collect());
        assert_eq!(scopes("operator.admin"), rules().scopes);
        assert_eq!(scopes(""), ScopeSet::empty());
        assert_eq!(scopes("everything"), ScopeSet::empty());
        let twice = [
            ok[0],
            ok[1],
            ("x-openclaw-scopes", "operator.read"),
            ("x-openclaw-scopes", "operator.write"),
        ];
        assert_eq!(named(&twice).unwrap().scopes, ScopeSet::empty());
    }

    proptest! {
        /// Whatever the header says, nobody has more than the configuration gives.
        #[test]
        fn no_header_gives_a_scope(text in ".{0,80}", words in proptest::collection::vec(0_usize..12, 0..5)) {
            let words: Vec<_> = words.into_iter().map(|n| Scope::ALL[n].as_str()).collect();
            for value in [text, words.join(","), words.join(" ")] {
                let headers = [("x-user", "ada"), ("x-authenticated", "1"), ("x-openclaw-scopes", value.as_str())];
                let got = named(&headers).unwrap().scopes;
                for scope in Scope::ALL {
                    prop_assert!(!got.allows(scope) || rules().scopes.allows(scope));
                }
            }
        }

        /// A stranger with any header of a proxy is refused; without one it is direct.
        #[test]
        fn a_stranger_is_never_proxied(a in any::<u32>(), tail in "[a-z-]{0,8}", value in ".{0,40}", uid in any::<u32>()) {
            let ip = IpAddr::from(a.to_be_bytes());
            prop_assume!(!rules().lists(ip));
            let socket = SocketFacts { source: Some(ip), is_this_machine: false, uid: Some(uid), certificate: Some([1; 32]) };
            let name = format!("x-forwarded-{tail}");
            prop_assert_eq!(way(socket, &[(&name, &value)]), Err(Unattributable::Stranger));
            prop_assert_eq!(way(socket, &[("x-user", &value), ("x-openclaw-scopes", &value)]), Ok(Way::Direct));
        }

        /// What a client writes before its proxy does changes nothing.
        #[test]
        fn what_stands_left_of_the_client_counts_for_nothing(left in "[0-9a-f.:]{1,15}") {
            let value = format!("{left}, 203.0.113.9");
            let way = way(from("10.1.0.1"), &[("x-forwarded-for", &value)]);
            prop_assert!(matches!(way, Err(_) | Ok(Way::Proxied(_))));
            if let Ok(Way::Proxied(ip)) = way {
                prop_assert_eq!(ip.to_string(), "203.0.113.9");
            }
        }
    }
}
