//! What a tunnel must begin with: a TLS ClientHello that names the host of its CONNECT, and names it in the clear.
//!
//! A parser of our own, and a small one: it reads the records (RFC 8446, section 5.1), puts the one handshake message together
//! (section 4.1.2) and looks at its extensions. It keeps no more than [`MOST`] bytes, and whatever it does not take ends the tunnel.
//!
//! A server may ask for a second hello (HelloRetryRequest), and servers differ in whether they hold its name against the first one's; so
//! the first bytes of the server are looked at too ([`asks_again`]), and a second hello passes the same gate.

use super::host::{Host, Name};

/// Most bytes of a hello with its records: several times what clients send, with post-quantum keys too.
pub const MOST: usize = 32 * 1024;
/// Longest fragment of a record.
const FRAGMENT: usize = 1 << 14;
/// Most records that one hello may come in.
const RECORDS: usize = 256;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
/// Of an alert.
const WARNING: u8 = 1;
const CHANGE_CIPHER_SPEC: u8 = 20;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const SERVER_NAME: u16 = 0;
/// Encrypted ClientHello: RFC 9849, its drafts, and the encrypted names before it.
const ENCRYPTED: [u16; 5] = [0xfe0d, 0xfd00, 0xff02, 0xff03, 0xffce];
/// The drafts of ECH between.
const DRAFTS: std::ops::RangeInclusive<u16> = 0xfe08..=0xfe0c;
/// The random of a ServerHello that asks for another hello (RFC 8446, section 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// Why a tunnel is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// It is something else than TLS.
    #[error("only TLS passes a tunnel, and it must begin with a ClientHello")]
    NotTls,
    /// It is a ClientHello that is not as RFC 8446 has it.
    #[error("the TLS ClientHello is malformed: {0}")]
    Malformed(&'static str),
    /// It is longer than [`MOST`].
    #[error("the TLS ClientHello is longer than {MOST} bytes")]
    TooLong,
    /// It did not come whole in its time.
    #[error("the TLS ClientHello did not come in time")]
    Late,
    /// It names no host.
    #[error(
        "the TLS ClientHello names no host (SNI), and without it nobody knows which one is meant"
    )]
    NoName,
    /// It names another host.
    #[error("the TLS ClientHello names another host (SNI) than CONNECT did")]
    OtherName,
    /// The name is encrypted.
    #[error(
        "Encrypted ClientHello hides which host is meant: switch ECH (and its GREASE) off in the client"
    )]
    Encrypted,
}

impl HelloError {
    /// The word in records.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotTls => "not-tls",
            Self::Malformed(_) => "hello-malformed",
            Self::TooLong => "hello-too-long",
            Self::Late => "hello-late",
            Self::NoName => "sni-missing",
            Self::OtherName => "sni-mismatch",
            Self::Encrypted => "ech",
        }
    }

    /// What the client is told in TLS' own words: a fatal alert (RFC 8446, section 6), the whole record.
    pub const fn alert(&self) -> [u8; 7] {
        let description = match self {
            Self::NotTls => 10,
            Self::Late => 40,
            Self::Malformed(_) | Self::TooLong => 50,
            Self::NoName => 109,
            Self::OtherName => 112,
            Self::Encrypted => 49,
        };
        [ALERT, 3, 3, 0, 2, 2, description]
    }
}

/// Puts a hello together and holds it against the host that it must name.
#[derive(Debug, Clone)]
pub struct Hello {
    /// Everything that came, to be passed on whole.
    bytes: Vec<u8>,
    /// How much of it has been read: whole records.
    read: usize,
    records: usize,
    message: Vec<u8>,
    /// A second hello may stand behind a ChangeCipherSpec (RFC 8446, appendix D.4).
    is_second: bool,
}

impl Hello {
    /// The first of a tunnel.
    pub const fn first() -> Self {
        Self {
            bytes: Vec::new(),
            read: 0,
            records: 0,
            message: Vec::new(),
            is_second: false,
        }
    }

    /// One that the server asked for.
    pub const fn second() -> Self {
        let mut second = Self::first();
        second.is_second = true;
        second
    }

    /// Takes what came; true once a whole hello is there and names `host`.
    ///
    /// # Errors
    /// [`HelloError`], as soon as it is certain. Nothing of what came may be passed on.
    pub fn push(&mut self, bytes: &[u8], host: &Host) -> Result<bool, HelloError> {
        self.bytes.extend_from_slice(bytes);
        loop {
            let rest = &self.bytes[self.read..];
            let Some((&kind, after)) = rest.split_first() else {
                return self.more();
            };
            let is_spacer = kind == CHANGE_CIPHER_SPEC && self.is_second && self.records == 0;
            if kind != HANDSHAKE && !is_spacer {
                return Err(HelloError::NotTls);
            }
            // Each byte as it comes: what is no TLS is not waited for.
            if after.first().is_some_and(|major| *major != 3) {
                return Err(HelloError::NotTls);
            }
            let &[_, _, high, low, ref fragment @ ..] = after else {
                return self.more();
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length == 0 || length > FRAGMENT || (is_spacer && length != 1) {
                return Err(HelloError::Malformed("a record of no such length"));
            }
            // The first byte of the message is looked at before the rest of its record is there.
            let begins = self.message.first().or(fragment.first());
            if !is_spacer && begins.is_some_and(|kind| *kind != CLIENT_HELLO) {
                return Err(HelloError::NotTls);
            }
            let Some(fragment) = fragment.get(..length) else {
                return self.more();
            };
            self.read += 5 + length;
            if is_spacer {
                // It may come once.
                self.is_second = false;
                continue;
            }
            self.message.extend_from_slice(fragment);
            self.records += 1;
            if self.message.len() > MOST || self.records > RECORDS {
                return Err(HelloError::TooLong);
            }
            if let Some(whole) = whole(&self.message)? {
                check(whole, host)?;
                return Ok(true);
            }
        }
    }

    fn more(&self) -> Result<bool, HelloError> {
        if self.bytes.len() > MOST {
            Err(HelloError::TooLong)
        } else {
            Ok(false)
        }
    }

    /// The hello in its records, for the server, once [`Self::push`] said true; and what came behind it, which may be another hello and
    /// waits for the server's word.
    pub fn into_parts(mut self) -> (Vec<u8>, Vec<u8>) {
        let behind = self.bytes.split_off(self.read);
        (self.bytes, behind)
    }
}

/// The body of the one message, once all of it is there.
fn whole(message: &[u8]) -> Result<Option<&[u8]>, HelloError> {
    let &[_, a, b, c, ref body @ ..] = message else {
        return Ok(None);
    };
    let length = usize::from(a) << 16 | usize::from(u16::from_be_bytes([b, c]));
    if length > MOST {
        return Err(HelloError::TooLong);
    }
    match body.len().cmp(&length) {
        std::cmp::Ordering::Less => Ok(None),
        std::cmp::Ordering::Equal => Ok(Some(body)),
        std::cmp::Ordering::Greater => Err(HelloError::Malformed("more in its records")),
    }
}

/// Reads vectors off a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self
            .0
            .split_at_checked(bytes)
            .ok_or(HelloError::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn short(&mut self) -> Result<u16, HelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector behind a length of one byte.
    fn small(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    /// A vector behind a length of two bytes.
    fn large(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.short()?;
        self.take(length.into())
    }
}

fn check(body: &[u8], host: &Host) -> Result<(), HelloError> {
    let mut reader = Reader(body);
    if reader.short()? >> 8 != 3 {
        return Err(HelloError::Malformed("its version"));
    }
    let _random = reader.take(32)?;
    if reader.small()?.len() > 32 {
        return Err(HelloError::Malformed("its session id"));
    }
    let suites = reader.large()?.len();
    if suites < 2 || suites % 2 != 0 {
        return Err(HelloError::Malformed("its cipher suites"));
    }
    if reader.small()?.is_empty() {
        return Err(HelloError::Malformed("its compression methods"));
    }
    let mut name = None;
    if !reader.0.is_empty() {
        let mut extensions = Reader(reader.large()?);
        let mut seen = std::collections::BTreeSet::new();
        while !extensions.0.is_empty() {
            let kind = extensions.short()?;
            let data = extensions.large()?;
            if !seen.insert(kind) {
                return Err(HelloError::Malformed("an extension twice"));
            }
            if ENCRYPTED.contains(&kind) || DRAFTS.contains(&kind) {
                return Err(HelloError::Encrypted);
            }
            if kind == SERVER_NAME {
                name = Some(server_name(data)?);
            }
        }
        if !reader.0.is_empty() {
            return Err(HelloError::Malformed("something behind its extensions"));
        }
    }
    match (host, name) {
        (Host::Name(wanted), Some(name)) if *wanted == name => Ok(()),
        // RFC 6066, section 3: an address is not said.
        (Host::Address(_), None) => Ok(()),
        (_, Some(_)) => Err(HelloError::OtherName),
        (Host::Name(_), None) => Err(HelloError::NoName),
    }
}

/// The one name of the extension (RFC 6066, section 3): of the one kind there is, and only one.
fn server_name(data: &[u8]) -> Result<Name, HelloError> {
    let bad = HelloError::Malformed("its server name");
    let mut outer = Reader(data);
    let mut list = Reader(outer.large().map_err(|_| bad)?);
    let kind = list.take(1).map_err(|_| bad)?[0];
    let text = list.large().map_err(|_| bad)?;
    if kind != 0 || !list.0.is_empty() || !outer.0.is_empty() || text.ends_with(b".") {
        return Err(bad);
    }
    let text = std::str::from_utf8(text).map_err(|_| bad)?;
    Name::new(text).map_err(|_| bad)
}

/// Does the server ask for another hello? `None`: more of its first bytes must come. Whatever is no ServerHello asks for none; one may
/// lie in several records (RFC 8446, section 5.1), and behind warnings.
pub fn asks_again(bytes: &[u8]) -> Option<bool> {
    // Kind and length of the message, version, random.
    const RANDOM: std::ops::Range<usize> = 6..38;
    let (mut rest, mut message) = (bytes, Vec::new());
    loop {
        let header = rest.get(..5)?;
        let behind = &rest[5..];
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        match header[0] {
            HANDSHAKE => message.extend_from_slice(behind.get(..length).unwrap_or(behind)),
            // Its first byte is its level: what is fatal ends the handshake.
            ALERT if *behind.first()? != WARNING => return Some(false),
            ALERT | CHANGE_CIPHER_SPEC => {}
            _ => return Some(false),
        }
        if message.first().is_some_and(|kind| *kind != SERVER_HELLO) {
            return Some(false);
        }
        if let Some(random) = message.get(RANDOM) {
            return Some(random == RETRY);
        }
        rest = behind.get(length..)?;
    }
}
