//! A request inside TLS that the gateway has opened: read as strictly as one to the proxy itself, and written anew.
//!
//! One request for each connection, in origin form (RFC 9112, section 3.2.1). What could make a server read another method, path or end of
//! the body than was read here is refused, and so is what changes the protocol.

use super::body::Body;
use super::head::{self, HOP, HeadError, Header};
use super::host::{Host, host_and_port};
use super::terminate::Termination;
use crate::seal::Secret;

/// Why a request is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InnerError {
    /// Its head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// It names another target than a path.
    #[error("its target is not a path of this host, as GET /path")]
    Form,
    /// No request of a client's to a server.
    #[error("CONNECT and TRACE are not passed on here")]
    Method,
    /// It would speak something else from here on.
    #[error("it asks for another protocol (Upgrade), which could not be read here")]
    Upgrade,
    /// Servers read it in several ways.
    #[error("its path can be read in more than one way: {0}")]
    Path(&'static str),
    /// It says by a header, or in its query, that it means another method or path.
    #[error("it has a header, or a parameter, that some servers take another method or path from")]
    Override,
}

impl InnerError {
    /// The word in records.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Head(error) => error.word(),
            Self::Form => "target-form",
            Self::Method => "method",
            Self::Upgrade => "upgrade",
            Self::Path(_) => "path",
            Self::Override => "override",
        }
    }

    /// Status line of the answer.
    pub const fn status(&self) -> &'static str {
        match self {
            Self::Head(error) => error.status(),
            Self::Method => "405 Method Not Allowed",
            Self::Form | Self::Path(_) => "400 Bad Request",
            Self::Upgrade | Self::Override => "403 Forbidden",
        }
    }
}

/// Headers by which a client says that it means another method or path than the request line has.
const OVERRIDES: [&str; 13] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-method",
    "x-http-path-override",
    "x-override-url",
    "x-rewrite-url",
    "x-envoy-original-path",
    "x-waws-unencoded-url",
    "x-matched-path",
    "x-host",
    "x-http-host-override",
    "x-http-destinationurl",
];
/// And those of proxies: what the first of them was asked for.
const ORIGINAL: &str = "x-original-";
/// What only proxies say: the path, the host or the address that they were asked for or from. This one was asked by nobody else.
const FORWARDED: &str = "x-forwarded-";
/// Parameters of a query that frameworks take the method from.
const METHODS: [&str; 5] = [
    "-method",
    "http-method",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];
/// Written anew, or asked of no server: what is coded, in characters of another kind, or only a part, could not be searched.
const OURS: [&str; 7] = [
    "host",
    "via",
    "accept-encoding",
    "accept-charset",
    "range",
    "if-range",
    "forwarded",
];

/// A request that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// As it stands.
    pub method: String,
    /// Without its query.
    pub path: String,
    /// With it, from `?` on.
    query: String,
    headers: Vec<(String, Vec<u8>)>,
    /// What of the following bytes belongs to it.
    pub body: Body,
    /// Its client reads an answer in chunks.
    pub is_1_1: bool,
}

/// What of a path servers read in several ways, if anything. A `%` for a plain letter is none.
pub fn odd(path: &str) -> Option<&'static str> {
    if path.contains('\\') {
        return Some("a backslash");
    }
    if path.contains("//") {
        return Some("an empty segment");
    }
    if path.contains(';') {
        return Some("a parameter of a segment (;)");
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, behind)) = rest.split_once('%') {
        let digits = behind
            .get(..2)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return Some("a % that is no encoded byte");
        };
        // Dots, slashes, what begins another encoding, what ends a path, and controls.
        if matches!(
            byte,
            b'.' | b'/' | b'\\' | b'%' | b'?' | b'#' | b';' | 0..=31 | 127
        ) {
            return Some("an encoded ., /, \\, %, ?, #, ; or control");
        }
        bytes.extend_from_slice(before.as_bytes());
        bytes.push(byte);
        rest = &behind[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    // Bytes that are no UTF-8 (%c0%ae is a dot in two) are read by some servers as what they resemble.
    let Ok(text) = std::str::from_utf8(&bytes) else {
        return Some("encoded bytes that are no UTF-8");
    };
    if text
        .chars()
        .any(|one| one.is_control() || RESEMBLING.iter().any(|some| some.contains(&one)))
    {
        return Some(
            "an encoded control, or a character that some servers take for ., /, \\, %, ?, #, ; or :",
        );
    }
    // Windows' file systems take dots and spaces from the ends of names, and so make .. of what is none.
    let is_dots = |segment: &str| {
        segment.contains('.') && segment.chars().all(|one| one == '.' || one.is_whitespace())
    };
    if text.split('/').any(is_dots) {
        return Some("a segment of dots");
    }
    None
}

/// What Unicode's canonical and compatible forms (NFC, NFKC, NFKD; version 14) make one of those characters of, or several with one of them, and
/// what code pages have in the place of one, or are given as what fits best (yen and won are the backslash of Japan's and Korea's).
const RESEMBLING: [std::ops::RangeInclusive<char>; 40] = [
    '\u{A5}'..='\u{A5}',
    '\u{20A9}'..='\u{20A9}',
    '\u{20E5}'..='\u{20E5}',
    '\u{338}'..='\u{338}',
    '\u{589}'..='\u{589}',
    '\u{5C3}'..='\u{5C3}',
    '\u{61B}'..='\u{61F}',
    '\u{66A}'..='\u{66C}',
    '\u{6D4}'..='\u{6D4}',
    '\u{2571}'..='\u{2572}',
    '\u{29F5}'..='\u{29F9}',
    '\u{37E}'..='\u{37E}',
    '\u{2024}'..='\u{2026}',
    '\u{2044}'..='\u{2044}',
    '\u{2047}'..='\u{2049}',
    '\u{2100}'..='\u{2101}',
    '\u{2105}'..='\u{2106}',
    '\u{2215}'..='\u{2216}',
    '\u{2236}'..='\u{2236}',
    '\u{2488}'..='\u{249B}',
    '\u{2A74}'..='\u{2A74}',
    '\u{33C2}'..='\u{33C2}',
    '\u{33C7}'..='\u{33C7}',
    '\u{33D8}'..='\u{33D8}',
    '\u{FE13}'..='\u{FE14}',
    '\u{FE16}'..='\u{FE16}',
    '\u{FE19}'..='\u{FE19}',
    '\u{FE30}'..='\u{FE30}',
    '\u{FE52}'..='\u{FE52}',
    '\u{FE54}'..='\u{FE56}',
    '\u{FE5F}'..='\u{FE5F}',
    '\u{FE68}'..='\u{FE68}',
    '\u{FE6A}'..='\u{FE6A}',
    '\u{FF03}'..='\u{FF03}',
    '\u{FF05}'..='\u{FF05}',
    '\u{FF0E}'..='\u{FF0F}',
    '\u{FF1A}'..='\u{FF1B}',
    '\u{FF1F}'..='\u{FF1F}',
    '\u{FF3C}'..='\u{FF3C}',
    '\u{1F100}'..='\u{1F100}',
];

impl Request {
    /// Reads one from the beginning of what came, for this host: with how many bytes its head has, or `None` where more must come.
    ///
    /// # Errors
    /// [`InnerError`], as soon as it is certain.
    pub fn read(bytes: &[u8], host: &Host, port: u16) -> Result<Option<(Self, usize)>, InnerError> {
        let Some((lines, end)) = head::lines(bytes)? else {
            return Ok(None);
        };
        let head::Lines {
            method,
            target,
            is_1_1,
            said,
            headers,
        } = lines;
        if matches!(method, "CONNECT" | "TRACE" | "TRACK") {
            return Err(InnerError::Method);
        }
        if !target.starts_with('/') {
            return Err(InnerError::Form);
        }
        if target.contains('#') {
            return Err(HeadError::Syntax("a fragment is never sent").into());
        }
        let said = said.ok_or(HeadError::Syntax("Host is missing"))?;
        let (other, its) = host_and_port(said).map_err(HeadError::Host)?;
        if other != *host || its.unwrap_or(super::rules::DEFAULT_PORT) != port {
            return Err(HeadError::Misdirected.into());
        }
        if headers
            .iter()
            .any(|header| header.is("upgrade") || header.is("http2-settings"))
        {
            return Err(InnerError::Upgrade);
        }
        if headers.iter().any(|header| {
            OVERRIDES.iter().any(|name| is_spelled(header.name, name))
                || is_begun(header.name, ORIGINAL)
        }) {
            return Err(InnerError::Override);
        }
        let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
        if let Some(what) = odd(path) {
            return Err(InnerError::Path(what));
        }
        let body = head::body(&headers, is_1_1)?;
        let neighbours = head::Neighbours::of(&headers);
        let is_kept = |header: &&Header<'_>| {
            let is_ours = OURS
                .iter()
                .chain(&HOP)
                .any(|name| is_spelled(header.name, name));
            !is_ours && !is_begun(header.name, FORWARDED) && !neighbours.names(header.name)
        };
        let kept = headers.iter().filter(is_kept);
        let request = Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: kept
                .map(|header| (header.name.to_owned(), header.value.to_vec()))
                .collect(),
            body,
            is_1_1,
        };
        Ok(Some((request, end)))
    }

    /// Does its query name a method, as some servers take it in place of its own?
    pub fn names_method(&self) -> bool {
        let parameters = self.query.trim_start_matches('?').split(['&', ';']);
        let mut names = parameters.map(|one| one.split('=').next().unwrap_or_default());
        names.any(|name| {
            let name = decoded(name);
            // Where it is read by C, it ends there.
            let name = name.split('\0').next().unwrap_or_default();
            // `_method[]` and `_method[x]` are lists of it, and PHP takes a single [, a dot and a space for a _.
            let list = name.split('[').next().unwrap_or_default();
            let mut read = [name, name.trim(), list, list.trim()].into_iter();
            read.any(|name| METHODS.iter().any(|known| is_spelled(name, known)))
        })
    }

    /// Its head as the server gets it: without the headers of `entries`, whoever wrote them, and with those of `put`.
    pub fn forward(
        &self,
        host: &Host,
        port: u16,
        entries: &[Termination],
        put: &[(&str, Secret)],
    ) -> Secret {
        let shown = if port == super::rules::DEFAULT_PORT {
            host.to_string()
        } else {
            format!("{host}:{port}")
        };
        let first = format!(
            "{} {}{} HTTP/1.1\r\nHost: {shown}\r\n",
            self.method, self.path, self.query
        );
        let last = format!(
            "{}Accept-Encoding: identity\r\nVia: 1.1 portcullis\r\nConnection: close\r\n\r\n",
            head::framing(&self.body)
        );
        let is_kept = |name: &str| !entries.iter().any(|entry| entry.is_header(name));
        let own = self.headers.iter().filter(|(name, _)| is_kept(name));
        let own = own.map(|(name, value)| (name.as_str(), value.as_slice()));
        let lines: Vec<(&str, &[u8])> = own
            .chain(put.iter().map(|(name, value)| (*name, value.expose())))
            .collect();
        let len = lines
            .iter()
            .map(|(name, value)| name.len() + value.len() + 4)
            .sum::<usize>();
        // At once as long as it will be: no copy of the secret is left behind by growing.
        let mut bytes = Vec::with_capacity(first.len() + len + last.len());
        bytes.extend_from_slice(first.as_bytes());
        for (name, value) in lines {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(last.as_bytes());
        Secret::new(bytes)
    }
}

/// Some servers read whatever is no letter and no digit in the name of a header or a parameter as one and the same (`X.HTTP_Method!Override`).
fn is_spelled(name: &str, known: &str) -> bool {
    let one = |byte: u8| match byte.to_ascii_lowercase() {
        byte @ (b'a'..=b'z' | b'0'..=b'9' | 0x80..) => byte,
        _ => b'-',
    };
    name.len() == known.len() && name.bytes().map(one).eq(known.bytes())
}

/// Does the name of a header begin so? `known` has nothing but letters, digits and `-`.
fn is_begun(name: &str, known: &str) -> bool {
    name.get(..known.len())
        .is_some_and(|first| is_spelled(first, known))
}

/// A parameter's name, as a server reads it.
fn decoded(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, behind @ ..] = rest {
        let digits = behind
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let encoded = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (byte, taken) = match (first, encoded) {
            (b'%', Some(byte)) => (byte, 3),
            (b'+', _) => (b' ', 1),
            _ => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[taken..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
