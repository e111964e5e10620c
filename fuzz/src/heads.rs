//! Heads of HTTP requests, as the gateway's doors read them.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use portcullis::edge::{HEADER_MAX, Strict, is_last};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Name and function of each.
pub const ALL: &[super::parsers::Target] = &[("heads", heads)];

/// A head: method, target and headers, those of one name in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    method: Vec<u8>,
    target: Vec<u8>,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Whatever is taken for a request is one for whoever ends lines with CR LF and nothing less, and the same one; and it does
/// not matter in which pieces it came. The first byte is the length of the pieces.
pub fn heads(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else {
        return;
    };
    let expected = strictly(bytes);
    let whole = taken(bytes, bytes.len());
    assert!(expected.starts_with(&whole), "{whole:?} of {expected:?}");
    if *piece != 0 {
        assert_eq!(taken(bytes, usize::from(*piece)), whole);
    }
}

/// Which requests the doors take out of these bytes.
pub fn taken(bytes: &[u8], piece: usize) -> Vec<Head> {
    let heads: Arc<Mutex<Vec<Head>>> = Arc::default();
    let seen = Arc::clone(&heads);
    let service = service_fn(move |request: Request<Incoming>| {
        seen.lock().unwrap().push(Head::of(&request));
        let mut answer = Response::new(Empty::<Bytes>::new());
        *answer.status_mut() = StatusCode::NOT_FOUND;
        if is_last(request.headers()) {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(CONNECTION, close);
        }
        async move {
            // As a page does that has read its form.
            let _ = http_body_util::BodyExt::collect(request.into_body()).await;
            Ok::<_, Infallible>(answer)
        }
    });
    let pieces = bytes.chunks(piece.max(1)).map(Vec::from).rev().collect();
    let connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(HEADER_MAX)
        .serve_connection(TokioIo::new(Strict::new(Fed(pieces))), service);
    let runtime = tokio::runtime::Builder::new_current_thread();
    // How it ends is told by what was taken.
    let _ = { runtime }.build().unwrap().block_on(connection);
    heads.lock().unwrap().clone()
}

impl Head {
    fn of(request: &Request<Incoming>) -> Self {
        let headers = request.headers().iter();
        let owned = |(name, value): (&hyper::header::HeaderName, &HeaderValue)| {
            (name.as_str().into(), value.as_bytes().into())
        };
        Self::new(
            request.method().as_str().as_bytes(),
            request.uri().to_string().as_bytes(),
            headers.map(owned).collect(),
        )
    }

    fn new(method: &[u8], target: &[u8], mut headers: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        headers.sort_by(|(a, _), (b, _)| a.cmp(b));
        // The library keeps the first of those lengths that are the same number.
        headers.dedup_by(|(a, one), (b, other)| {
            a == b
                && a == b"content-length"
                && number(one).is_some()
                && number(one) == number(other)
        });
        Self {
            method: method.into(),
            // The library's spelling of what has no path, and of a scheme's and a host's letters.
            target: plainly(target),
            headers,
        }
    }
}

/// Digits and nothing else.
fn number(text: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(text).ok()?;
    let is_one = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| is_one)
}

fn plainly(target: &[u8]) -> Vec<u8> {
    let target = target.to_ascii_lowercase();
    target.into_iter().filter(|b| *b != b'/').collect()
}

/// The requests, by RFC 9112 read as strictly as it may be: a line ends with CR LF, and no other CR or LF is in a head. It
/// stops at the first that is none, and behind one whose body has no stated length.
fn strictly(mut bytes: &[u8]) -> Vec<Head> {
    let mut heads = vec![];
    loop {
        while let Some(rest) = bytes.strip_prefix(b"\r\n") {
            bytes = rest;
        }
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
            return heads;
        };
        let (head, rest) = (&bytes[..end], &bytes[end + 4..]);
        let Some(head) = read(head) else {
            return heads;
        };
        let of = |wanted: &[u8]| {
            let all = head.headers.iter();
            all.filter(|(name, _)| name == wanted)
                .map(|(_, value)| value.clone())
                .collect::<Vec<_>>()
        };
        let (lengths, ends) = (
            of(b"content-length"),
            !of(b"transfer-encoding").is_empty() || !of(b"upgrade").is_empty(),
        );
        heads.push(head);
        let length = match &lengths[..] {
            [] => Some(0),
            [one] => number(one),
            _ => None,
        };
        let body = length.and_then(|length| rest.get(length..));
        match body {
            Some(next) if !ends => bytes = next,
            _ => return heads,
        }
    }
}

fn read(head: &[u8]) -> Option<Head> {
    let text: Vec<&[u8]> = lines(head)?;
    let (first, rest) = text.split_first()?;
    let mut words = first.split(|b| *b == b' ');
    let (method, target, _version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let header = |line: &&[u8]| {
        let colon = line.iter().position(|b| *b == b':')?;
        let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
        let value = &line[colon + 1..];
        let from = value.iter().position(|b| !is_blank(b));
        let to = value.iter().rposition(|b| !is_blank(b));
        let value = from.zip(to).map_or(&[][..], |(from, to)| &value[from..=to]);
        Some((line[..colon].to_ascii_lowercase(), value.to_vec()))
    };
    let headers: Option<Vec<_>> = rest.iter().map(header).collect();
    Some(Head::new(method, target, headers?))
}

/// `None`: a CR or an LF stands alone.
fn lines(head: &[u8]) -> Option<Vec<&[u8]>> {
    let mut lines = vec![];
    let mut rest = head;
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n");
        let line = &rest[..end.unwrap_or(rest.len())];
        if line.iter().any(|b| matches!(b, b'\r' | b'\n')) {
            return None;
        }
        lines.push(line);
        match end {
            Some(end) => rest = &rest[end + 2..],
            None => return Some(lines),
        }
    }
}

/// A client that sends these pieces, the last first, and reads whatever it is answered.
struct Fed(Vec<Vec<u8>>);

impl AsyncRead for Fed {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pieces = &mut self.get_mut().0;
        if let Some(mut piece) = pieces.pop() {
            let here = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..here]);
            if here < piece.len() {
                pieces.push(piece.split_off(here));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Fed {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
