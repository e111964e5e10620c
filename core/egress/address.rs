//! What an address is, after a name was resolved: most that are not the world's are never dialled.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::auth::proxy::{Network, NetworkError};

/// What an address is for (RFC 6890 and its registries, as of 2026).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Of the world.
    Public,
    /// 0.0.0.0/8, `::`.
    Unspecified,
    /// 127.0.0.0/8, `::1`.
    Loopback,
    /// RFC 1918; fc00::/7, fec0::/10.
    Private,
    /// 169.254.0.0/16, fe80::/10.
    LinkLocal,
    /// Where clouds tell a machine its credentials, wherever that lies.
    Metadata,
    /// 100.64.0.0/10: shared by a provider's customers (RFC 6598).
    Shared,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 255.255.255.255.
    Broadcast,
    /// Of books: 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 2001:db8::/32, 3fff::/20.
    Documentation,
    /// 198.18.0.0/15, 2001:2::/48.
    Benchmark,
    /// 6to4, Teredo, NAT64, mapped, translated, compatible: IPv4 in IPv6's clothes.
    Embedded,
    /// Anything else that is not global unicast.
    Reserved,
}

impl Class {
    /// The word in records and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata",
            Self::Shared => "shared",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Documentation => "documentation",
            Self::Benchmark => "benchmark",
            Self::Embedded => "embedded-ipv4",
            Self::Reserved => "reserved",
        }
    }

    /// No setting allows it.
    pub const fn is_never(self) -> bool {
        matches!(
            self,
            Self::Unspecified
                | Self::LinkLocal
                | Self::Metadata
                | Self::Multicast
                | Self::Broadcast
        )
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Services that give a machine's credentials to whoever reaches them, beside 169.254.0.0/16: Alibaba, Azure's wire server (a public
/// address), Oracle.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// EC2's, EKS' and Google's.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// What this address is for. A v4-mapped one is what the IPv4 address in it is.
pub fn class_of(address: IpAddr) -> Class {
    match address.to_canonical() {
        IpAddr::V4(v4) => class_v4(v4),
        IpAddr::V6(v6) => class_v6(v6),
    }
}

fn class_v4(address: Ipv4Addr) -> Class {
    if METADATA_V4.contains(&address) {
        return Class::Metadata;
    }
    match address.octets() {
        [0, ..] => Class::Unspecified,
        [127, ..] => Class::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Class::Private,
        [169, 254, 169, 254] => Class::Metadata,
        [169, 254, ..] => Class::LinkLocal,
        [100, 64..=127, ..] => Class::Shared,
        [224..=239, ..] => Class::Multicast,
        [255, 255, 255, 255] => Class::Broadcast,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Class::Documentation,
        [198, 18..=19, ..] => Class::Benchmark,
        // IETF protocol assignments, the 6to4 relays, AS112, AMT, and what is kept for later.
        [192, 0, 0, _] | [192, 88, 99, _] | [192, 31, 196, _] | [192, 52, 193, _] => {
            Class::Reserved
        }
        [192, 175, 48, _] | [240..=255, ..] => Class::Reserved,
        _ => Class::Public,
    }
}

fn class_v6(address: Ipv6Addr) -> Class {
    if METADATA_V6.contains(&address) {
        return Class::Metadata;
    }
    if address == Ipv6Addr::UNSPECIFIED {
        return Class::Unspecified;
    }
    if address == Ipv6Addr::LOCALHOST {
        return Class::Loopback;
    }
    // What is never allowed is not allowed in another address either.
    if let Some(never) = embedded(address).find(|class| class.is_never()) {
        return never;
    }
    if embedded(address).any(|class| class != Class::Public) {
        return Class::Embedded;
    }
    match address.segments() {
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Class::Private,
        [0xff00..=0xffff, ..] => Class::Multicast,
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Class::Documentation,
        [0x2001, 2, 0, ..] => Class::Benchmark,
        [0x2002, ..] | [0x2001, 0, ..] | [0x64, 0xff9b, ..] | [0, 0, 0, 0, ..] => Class::Embedded,
        // The rest of what the IETF keeps for protocols (2001::/23), and whatever is not global unicast.
        [0x2001, 0..=0x1ff, ..] => Class::Reserved,
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Reserved,
    }
}

/// The classes of the IPv4 addresses that lie in this one.
fn embedded(address: Ipv6Addr) -> impl Iterator<Item = Class> {
    let words = address.segments();
    let of =
        |high: u16, low: u16| class_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    let last = of(words[6], words[7]);
    let found = match words {
        // 6to4.
        [0x2002, ..] => [Some(of(words[1], words[2])), None],
        // Teredo: its server, and the client with its bits turned.
        [0x2001, 0, ..] => [Some(of(words[2], words[3])), Some(of(!words[6], !words[7]))],
        // NAT64, both prefixes, where the address is the last 32 bits; compatible, translated and mapped ones; ISATAP, in any
        // prefix.
        [0x64, 0xff9b, ..] | [0, 0, 0, 0, ..] | [.., 0x0 | 0x200, 0x5efe, _, _] => {
            [Some(last), None]
        }
        _ => [None, None],
    };
    found.into_iter().flatten()
}

/// Which addresses may be dialled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Addresses {
    networks: Vec<Network>,
}

impl TryFrom<Vec<String>> for Addresses {
    type Error = NetworkError;

    fn try_from(texts: Vec<String>) -> Result<Self, NetworkError> {
        let networks: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
        networks.map(Self::new)
    }
}

impl From<Addresses> for Vec<String> {
    fn from(addresses: Addresses) -> Self {
        addresses.texts()
    }
}

impl Addresses {
    /// Public ones, and those of `networks` nevertheless; [`Class::is_never`] stays.
    pub const fn new(networks: Vec<Network>) -> Self {
        Self { networks }
    }

    /// The networks that are allowed beside what is public, in their one form.
    pub fn texts(&self) -> Vec<String> {
        self.networks.iter().map(Network::to_string).collect()
    }

    /// A network that is named in vain: no setting allows its addresses.
    pub fn in_vain(&self) -> Option<&Network> {
        let is_never = |network: &&Network| class_of(network.first()).is_never();
        self.networks.iter().find(is_never)
    }

    /// Whether an operator has named a network with this address.
    pub fn is_named(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(address))
    }

    /// The address to dial: a v4-mapped one as the IPv4 address that it is.
    ///
    /// # Errors
    /// Its class, where it may not be dialled.
    pub fn check(&self, address: IpAddr) -> Result<IpAddr, Class> {
        let address = address.to_canonical();
        match class_of(address) {
            Class::Public => Ok(address),
            class if class.is_never() || !self.is_named(address) => Err(class),
            _ => Ok(address),
        }
    }
}
