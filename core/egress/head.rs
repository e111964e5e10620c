//! The head of a request to the proxy: read strictly, written anew.
//!
//! Two forms are taken (RFC 9112, sections 3.2.2 and 3.2.3): `CONNECT host:port`, and `METHOD http://host/path`. Nothing is guessed: a line
//! ends with CR LF, a header is on one line, a body has one length. What goes on to the server is written from what was understood, so
//! that it cannot read something else.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::body::Body;
use super::host::{Host, HostError, host_and_port};

/// Longest head, in bytes, its empty line included.
pub const MOST: usize = 8 * 1024;
/// Most headers.
const HEADERS: usize = 100;
/// Longest method.
pub(super) const METHOD: usize = 32;
/// Port of plain HTTP.
const HTTP: u16 = 80;

/// Why this is no request for the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It is longer than [`MOST`] bytes or has more than 100 headers.
    #[error("its head is longer than {MOST} bytes, or has more than {HEADERS} headers")]
    TooLong,
    /// It is no HTTP, or not strictly.
    #[error("it is not HTTP as RFC 9112 has it: {0}")]
    Syntax(&'static str),
    /// Neither 1.1 nor 1.0.
    #[error("it is neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    /// It asks this proxy for a page of its own.
    #[error("it must name a host: CONNECT host:port, or METHOD http://host/path")]
    NoHost,
    /// An absolute URL that is not plain http.
    #[error("a URL that is not http:// is asked for through CONNECT host:port")]
    Scheme,
    /// Its host is none.
    #[error("{0}")]
    Host(HostError),
    /// Its `Host` is not the host that it is for.
    #[error("its Host header names another host than its target does")]
    Misdirected,
    /// How long its body is cannot be told, or can be told in two ways.
    #[error("its body's length is not said once and clearly")]
    Length,
}

impl HeadError {
    /// The word in records.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::TooLong => "head-too-long",
            Self::Syntax(_) | Self::Version => "head-malformed",
            Self::NoHost => "no-host",
            Self::Scheme => "scheme",
            Self::Host(HostError::Spelling) => "address-spelling",
            Self::Host(HostError::NotAscii) => "host-not-ascii",
            Self::Host(_) => "host-malformed",
            Self::Misdirected => "host-mismatch",
            Self::Length => "body-length",
        }
    }

    /// Status line of the answer.
    pub const fn status(&self) -> &'static str {
        match self {
            Self::TooLong => "431 Request Header Fields Too Large",
            Self::Version => "505 HTTP Version Not Supported",
            Self::Misdirected => "421 Misdirected Request",
            Self::Host(HostError::Spelling) => "403 Forbidden",
            _ => "400 Bad Request",
        }
    }
}

/// A request that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Whom it is for.
    pub host: Host,
    /// On which port.
    pub port: u16,
    /// What is to be done.
    pub form: Form,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A tunnel.
    Connect,
    /// One request of plain HTTP.
    Plain {
        /// Its head as the server gets it: origin form, no hop-by-hop headers, `Connection: close`.
        forward: Vec<u8>,
        /// What of the following bytes belongs to it.
        body: Body,
    },
}

/// Reads a head from the beginning of what came: with how many bytes it has, or `None` where more must come.
///
/// # Errors
/// [`HeadError`], as soon as it is certain.
pub fn read(bytes: &[u8]) -> Result<Option<(Head, usize)>, HeadError> {
    let Some((lines, end)) = lines(bytes)? else {
        return Ok(None);
    };
    Ok(Some((Head::of(&lines)?, end)))
}

/// A head's parts, each of them checked.
pub(super) struct Lines<'a> {
    pub method: &'a str,
    pub target: &'a str,
    pub is_1_1: bool,
    /// Its `Host`.
    pub said: Option<&'a str>,
    pub headers: Vec<Header<'a>>,
}

/// Reads the parts of a head, whatever it asks for.
pub(super) fn lines(bytes: &[u8]) -> Result<Option<(Lines<'_>, usize)>, HeadError> {
    let Some(end) = end_of(bytes)? else {
        return if bytes.len() >= MOST {
            Err(HeadError::TooLong)
        } else {
            Ok(None)
        };
    };
    if end > MOST {
        return Err(HeadError::TooLong);
    }
    // Without the two line ends behind the last line.
    let mut lines = bytes[..end - 4].split(|byte| *byte == b'\n');
    let first = line(lines.next().unwrap_or_default())?;
    let mut headers = Vec::new();
    for one in lines {
        if headers.len() == HEADERS {
            return Err(HeadError::TooLong);
        }
        headers.push(Header::read(one.strip_suffix(b"\r").unwrap_or(one))?);
    }
    let words: Vec<&str> = first.split(' ').collect();
    let [method, target, version] = words[..] else {
        return Err(HeadError::Syntax("the request line is not three words"));
    };
    if !is_token(method) || method.len() > METHOD {
        return Err(HeadError::Syntax("the method is no token"));
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(HeadError::Syntax("the target is not ASCII"));
    }
    let is_1_1 = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ => return Err(HeadError::Version),
    };
    let twice = HeadError::Syntax("Host is said twice");
    let said = only(&headers, "host", twice)?;
    let said = said.map(Header::text).transpose()?;
    if is_1_1 && said.is_none() {
        return Err(HeadError::Syntax("Host is missing"));
    }
    let lines = Lines {
        method,
        target,
        is_1_1,
        said,
        headers,
    };
    Ok(Some((lines, end)))
}

/// Where the head ends, if it does. A line that does not end with CR LF is refused at once: it might never end.
pub(super) fn end_of(bytes: &[u8]) -> Result<Option<usize>, HeadError> {
    let mut before = [0_u8; 3];
    for (at, &byte) in bytes.iter().enumerate() {
        match (before, byte) {
            ([b'\r', b'\n', b'\r'], b'\n') => return Ok(Some(at + 1)),
            ([.., b'\r'], b'\n') => {}
            (_, b'\n') => return Err(HeadError::Syntax("a line ends without CR")),
            ([.., b'\r'], _) => return Err(HeadError::Syntax("a CR stands alone")),
            (_, 0) => return Err(HeadError::Syntax("a NUL")),
            _ => {}
        }
        before = [before[1], before[2], byte];
    }
    Ok(None)
}

fn line(bytes: &[u8]) -> Result<&str, HeadError> {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|_| HeadError::Syntax("the request line is not ASCII"))
}

/// One header, checked: its name is a token, its value has no control but the tab.
pub(super) struct Header<'a> {
    pub name: &'a str,
    pub value: &'a [u8],
}

impl<'a> Header<'a> {
    pub fn read(line: &'a [u8]) -> Result<Self, HeadError> {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.ok_or(HeadError::Syntax("a header has no colon"))?);
        // Also what folds a line (a space in front) and what has a space before its colon.
        let name = std::str::from_utf8(name)
            .ok()
            .filter(|name| is_token(name))
            .ok_or(HeadError::Syntax("a header's name is no token"))?;
        let value = value[1..].trim_ascii();
        if value
            .iter()
            .any(|byte| matches!(byte, 0..=8 | 10..=31 | 127))
        {
            return Err(HeadError::Syntax("a control in a header"));
        }
        Ok(Self { name, value })
    }

    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    fn text(&self) -> Result<&'a str, HeadError> {
        std::str::from_utf8(self.value)
            .ok()
            .filter(|text| text.is_ascii())
            .ok_or(HeadError::Syntax("a header that must be ASCII is not"))
    }
}

pub(super) fn is_token(text: &str) -> bool {
    let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_char)
}

/// Headers between two neighbours (RFC 9110, section 7.6.1), and those that are written anew.
pub(super) const HOP: [&str; 12] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "transfer-encoding",
    "content-length",
];

/// What `Connection` headers name: no more than a neighbour's. Read once: a head may hold thousands of such words.
pub(super) struct Neighbours(BTreeSet<Vec<u8>>);

impl Neighbours {
    pub(super) fn of(headers: &[Header<'_>]) -> Self {
        let lists = headers.iter().filter(|header| header.is("connection"));
        let words = lists.flat_map(|header| header.value.split(|byte| *byte == b','));
        Self(
            words
                .map(|word| word.trim_ascii().to_ascii_lowercase())
                .collect(),
        )
    }

    pub(super) fn names(&self, name: &str) -> bool {
        !self.0.is_empty() && self.0.contains(name.to_ascii_lowercase().as_bytes())
    }
}

/// The only header of this name.
fn only<'a, 'h>(
    headers: &'h [Header<'a>],
    name: &str,
    twice: HeadError,
) -> Result<Option<&'h Header<'a>>, HeadError> {
    let mut found = headers.iter().filter(|header| header.is(name));
    let first = found.next();
    if found.next().is_some() {
        return Err(twice);
    }
    Ok(first)
}

impl Head {
    fn of(lines: &Lines<'_>) -> Result<Self, HeadError> {
        let Lines {
            method,
            target,
            is_1_1,
            said,
            headers,
        } = lines;
        if *method == "CONNECT" {
            Self::connect(target, *said, headers)
        } else {
            Self::plain(method, target, *said, *is_1_1, headers)
        }
    }

    fn connect(
        target: &str,
        said: Option<&str>,
        headers: &[Header<'_>],
    ) -> Result<Self, HeadError> {
        let (host, port) = host_and_port(target).map_err(HeadError::Host)?;
        let port = port.ok_or(HeadError::Syntax("CONNECT needs host:port"))?;
        if let Some(said) = said {
            let (other, its) = host_and_port(said).map_err(HeadError::Host)?;
            if other != host || its.is_some_and(|its| its != port) {
                return Err(HeadError::Misdirected);
            }
        }
        // RFC 9110, section 9.3.6: a CONNECT has no content.
        if headers
            .iter()
            .any(|header| header.is("content-length") || header.is("transfer-encoding"))
        {
            return Err(HeadError::Length);
        }
        Ok(Self {
            host,
            port,
            form: Form::Connect,
        })
    }

    fn plain(
        method: &str,
        target: &str,
        said: Option<&str>,
        is_1_1: bool,
        headers: &[Header<'_>],
    ) -> Result<Self, HeadError> {
        let Some((scheme, rest)) = target.split_once("://") else {
            return Err(HeadError::NoHost);
        };
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(HeadError::Scheme);
        }
        if target.contains('#') {
            return Err(HeadError::Syntax("a fragment is never sent"));
        }
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let (host, port) = host_and_port(authority).map_err(HeadError::Host)?;
        let port = port.unwrap_or(HTTP);
        if let Some(said) = said {
            let (other, its) = host_and_port(said).map_err(HeadError::Host)?;
            if other != host || its.unwrap_or(HTTP) != port {
                return Err(HeadError::Misdirected);
            }
        }
        let body = body(headers, is_1_1)?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        let shown = if port == HTTP {
            host.to_string()
        } else {
            format!("{host}:{port}")
        };
        let mut forward =
            format!("{method} {slash}{path} HTTP/1.1\r\nHost: {shown}\r\n").into_bytes();
        let neighbours = Neighbours::of(headers);
        for header in headers {
            let is_ours = header.is("host") || header.is("via");
            let is_hop = HOP.iter().any(|hop| header.is(hop));
            if !is_ours && !is_hop && !neighbours.names(header.name) {
                forward.extend_from_slice(header.name.as_bytes());
                forward.extend_from_slice(b": ");
                forward.extend_from_slice(header.value);
                forward.extend_from_slice(b"\r\n");
            }
        }
        forward.extend_from_slice(framing(&body).as_bytes());
        // One request for each connection: what follows belongs to nobody. Via: RFC 9110, section 7.6.3.
        forward.extend_from_slice(b"Via: 1.1 portcullis\r\nConnection: close\r\n\r\n");
        Ok(Self {
            host,
            port,
            form: Form::Plain { forward, body },
        })
    }
}

/// The headers that say how long a body is.
pub(super) fn framing(body: &Body) -> String {
    let mut text = String::new();
    if let Some(length) = body.length() {
        // Writing to a String cannot fail.
        let _ = write!(text, "Content-Length: {length}\r\n");
    } else if !body.is_over() {
        text.push_str("Transfer-Encoding: chunked\r\n");
    }
    text
}

/// One of `Content-Length`, `Transfer-Encoding: chunked` and neither (RFC 9112, section 6.3).
pub(super) fn body(headers: &[Header<'_>], is_1_1: bool) -> Result<Body, HeadError> {
    let length = only(headers, "content-length", HeadError::Length)?;
    let coding = only(headers, "transfer-encoding", HeadError::Length)?;
    match (length, coding) {
        (None, None) => Ok(Body::none()),
        (Some(length), None) => {
            let digits = length.text()?;
            let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let bytes = digits.parse().ok().filter(|_| is_number);
            bytes.map(Body::of_length).ok_or(HeadError::Length)
        }
        (None, Some(coding)) if is_1_1 && coding.value.eq_ignore_ascii_case(b"chunked") => {
            Ok(Body::chunked())
        }
        _ => Err(HeadError::Length),
    }
}
