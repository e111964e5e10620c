//! One form for each host, made once.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name, in bytes (RFC 1035, section 2.3.4).
const NAME: usize = 253;
/// Longest label.
const LABEL: usize = 63;

/// A name of the DNS in its one form: ASCII, lower case, without a dot at its end.
///
/// A label is letters, digits, `-` (not first or last) and `_`. International names are what their owner registered: `xn--…`. They are
/// compared as they stand; no Unicode is mapped to them here, because each mapping (IDNA 2003, 2008, UTS 46) makes other names equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Whom a client names: by name, or by address in its one spelling.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// By name.
    Name(Name),
    /// By address; never a v4-mapped one.
    Address(IpAddr),
}

/// Why a text names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing is there.
    #[error("the host is empty")]
    Empty,
    /// A letter that is not ASCII.
    #[error("the host is not ASCII: write an international name as xn--…")]
    NotAscii,
    /// No name of the DNS, and no address.
    #[error(
        "the host is no name: labels of a-z, 0-9, - and _, each 1 to 63 characters, 253 in all"
    )]
    NotAName,
    /// An address in a spelling that programs read differently.
    #[error(
        "the host is an address in another spelling than its own: 127.0.0.1, or [::1] in brackets"
    )]
    Spelling,
}

impl Name {
    /// The one form of a name; one dot at its end is left out.
    ///
    /// # Errors
    /// [`HostError`]; an address is none.
    pub fn new(text: &str) -> Result<Self, HostError> {
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if !text.is_ascii() {
            return Err(HostError::NotAscii);
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.len() > NAME || !text.split('.').all(is_label) {
            return Err(HostError::NotAName);
        }
        let name = text.to_ascii_lowercase();
        // What C libraries and browsers read as an address (0x7f.1, 2130706433, 017700000001): its last label is a number.
        if name.rsplit('.').next().is_some_and(is_number) {
            return Err(HostError::Spelling);
        }
        Ok(Self(name))
    }

    /// The form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=LABEL).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Decimal, octal or hexadecimal, as `inet_aton` and the URL standard read a number: `0x` alone is one.
fn is_number(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => label.bytes().all(|b| b.is_ascii_digit()),
    }
}

impl Host {
    /// As it stands in a request or a rule: a name, an IPv4 address, or an IPv6 address in brackets. An address has one spelling, that
    /// of RFC 5952 (for IPv4: four decimal numbers); a zone, or IPv4 inside of IPv6, is another.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn new(text: &str) -> Result<Self, HostError> {
        if let Some(rest) = text.strip_prefix('[') {
            let inner = rest.strip_suffix(']').ok_or(HostError::Spelling)?;
            let address: Ipv6Addr = inner.parse().map_err(|_| HostError::Spelling)?;
            let is_own = address.to_string() == inner && address.to_ipv4_mapped().is_none();
            return if is_own {
                Ok(Self::Address(address.into()))
            } else {
                Err(HostError::Spelling)
            };
        }
        // The library's parser takes no octal and no short form; an address is written back as it was, or is none.
        match text.parse::<Ipv4Addr>() {
            Ok(address) if address.to_string() == text => Ok(Self::Address(address.into())),
            _ => Name::new(text).map(Self::Name),
        }
    }

    /// The name, where it is one.
    pub const fn name(&self) -> Option<&Name> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// `host`, or `host:port`; digits only, no leading zero, 1 to 65535.
///
/// # Errors
/// The host's; [`HostError::NotAName`] for a port that is none.
pub(super) fn host_and_port(text: &str) -> Result<(Host, Option<u16>), HostError> {
    // In brackets there are colons.
    let behind = text.rfind(']').map_or(0, |at| at + 1);
    match text[behind..].split_once(':') {
        None => Ok((Host::new(text)?, None)),
        Some((host, port)) => {
            let host = Host::new(&text[..behind + host.len()])?;
            Ok((host, Some(self::port(port).ok_or(HostError::NotAName)?)))
        }
    }
}

/// One spelling for each port too.
pub(super) fn port(text: &str) -> Option<u16> {
    let port: u16 = text.parse().ok()?;
    (port != 0 && port.to_string() == text).then_some(port)
}
