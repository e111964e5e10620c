//! A head's lines end with CR LF and nothing less.
//!
//! The HTTP library takes a bare LF for the end of a line (RFC 9112 2.2 allows either); what stands before us may take it
//! for a part of the value, and pass on as one header what would be two here. So each bare LF in a head becomes a NUL,
//! which no head may hold: the library answers 400 and closes. So does a `#` in the first line, and what follows in a head
//! with both a length and a transfer coding, of which the library would leave the length out.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A line longer than any that the HTTP library takes.
const LINE_MAX: usize = super::http::HEADER_MAX;

/// What the next byte belongs to.
#[derive(Debug)]
enum At {
    /// A head; the line so far, without its end.
    Head(Vec<u8>),
    /// A body of so many bytes more.
    Body(u64),
    /// A body of another kind, or another protocol: no request is answered after it.
    Rest,
}

/// Follows one connection's requests from byte to byte.
#[derive(Debug)]
struct Lines {
    at: At,
    /// The last byte of a head was a CR.
    after_cr: bool,
    /// Some line of this head has come: an empty one ends it.
    has_line: bool,
    /// Of the body that follows; `None`: not of a stated length.
    length: Option<u64>,
    /// A length was stated, and a transfer coding: the head is two requests' (RFC 9112 6.1, 11.2).
    ways: (bool, bool),
}

impl Lines {
    const fn new() -> Self {
        Self {
            at: At::Head(Vec::new()),
            after_cr: false,
            has_line: false,
            length: Some(0),
            ways: (false, false),
        }
    }

    /// Takes the next bytes, and spoils what no head may hold.
    fn take(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let taken = match &mut self.at {
                At::Rest => return,
                At::Body(left) => {
                    let here = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    *left -= here as u64;
                    if *left == 0 {
                        *self = Self::new();
                    }
                    here
                }
                At::Head(_) => {
                    self.head(&mut bytes[0]);
                    1
                }
            };
            bytes = &mut bytes[taken..];
        }
    }

    fn head(&mut self, byte: &mut u8) {
        let At::Head(line) = &mut self.at else { return };
        if self.ways == (true, true) {
            *byte = 0;
            return;
        }
        let was_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
        match *byte {
            b'\n' if was_cr => {
                let line = std::mem::take(line);
                if !line.is_empty() {
                    self.heard(&line);
                } else if self.has_line {
                    self.at = self.length.map_or(At::Rest, At::Body);
                    if matches!(self.at, At::Body(0)) {
                        *self = Self::new();
                    }
                }
            }
            b'\n' => *byte = 0,
            // What asks for a fragment is no request (RFC 9112 3.2, RFC 9110 4.2.5). The library would leave it out, where
            // who stands before us, or who signed the request, takes it for a part of the path.
            b'#' if !self.has_line => *byte = 0,
            // A CR within a line is refused by the library.
            b'\r' => {}
            // The library would refuse it in the end: here it is not to be passed over.
            _ if line.len() >= LINE_MAX => *byte = 0,
            other => line.push(other),
        }
    }

    /// What the library reads the body's length from. Where it and this do not agree it refuses the request.
    fn heard(&mut self, line: &[u8]) {
        self.has_line = true;
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            return;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        if is("content-length") {
            let digits = std::str::from_utf8(value).ok();
            let digits = digits.filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
            let said = digits.and_then(|v| v.parse().ok());
            self.length = self.length.and(said);
            self.ways.0 = true;
        } else if is("transfer-encoding") || is("upgrade") {
            self.length = None;
            self.ways.1 |= is("transfer-encoding");
        }
    }
}

/// A socket whose heads are followed.
#[derive(Debug)]
pub struct Strict<S> {
    socket: S,
    lines: Lines,
}

impl<S> Strict<S> {
    /// From its first byte.
    pub const fn new(socket: S) -> Self {
        let lines = Lines::new();
        Self { socket, lines }
    }

    /// The socket itself.
    pub fn into_inner(self) -> S {
        self.socket
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        this.lines.take(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In pieces of every length the same comes out.
    fn through(text: &str) -> String {
        let whole = {
            let mut bytes = text.as_bytes().to_vec();
            Lines::new().take(&mut bytes);
            bytes
        };
        for cut in 1..text.len() {
            let (mut lines, mut bytes) = (Lines::new(), text.as_bytes().to_vec());
            for piece in bytes.chunks_mut(cut) {
                lines.take(piece);
            }
            assert_eq!(bytes, whole, "{cut}");
        }
        String::from_utf8(whole).unwrap()
    }

    #[test]
    fn no_line_is_too_long_to_be_looked_at() {
        let mut bytes = b"GET / HTTP/1.1\r\nA:".to_vec();
        bytes.resize(bytes.len() + LINE_MAX - 2, b' ');
        let fits = bytes.len();
        bytes.extend(b"b\nB: b\r\n\r\n");
        Lines::new().take(&mut bytes);
        assert!(!bytes[..fits].contains(&0));
        assert_eq!(&bytes[fits..fits + 2], [0, 0]);
    }

    /// The bug, which fuzzing found: of a head with a length and a coding the library handed on the coding alone.
    #[test]
    fn a_head_with_a_length_and_a_coding_is_spoilt() {
        for (one, other) in [
            ("Content-Length: 2", "transfer-encoding: chunked"),
            ("Transfer-Encoding: gzip, chunked", "Content-Length:2"),
        ] {
            let sent = format!("POST / HTTP/1.1\r\n{one}\r\nA: b\r\n{other}\r\n\r\nab");
            let read = format!("POST / HTTP/1.1\r\n{one}\r\nA: b\r\n{other}\r\n\0\0\0\0");
            assert_eq!(through(&sent), read);
        }
    }

    /// The bug, which fuzzing found: `GET /a#b` was read as `GET /a`.
    #[test]
    fn a_fragment_in_the_first_line_is_spoilt_and_nowhere_else() {
        for (sent, read) in [
            (
                "GET /a#b HTTP/1.1\r\nA: #\r\n\r\nGET /# HTTP/1.1\r\n\r\n",
                "GET /a\0b HTTP/1.1\r\nA: #\r\n\r\nGET /\0 HTTP/1.1\r\n\r\n",
            ),
            (
                "\r\nPOST #? HTTP/1.1\r\nContent-Length: 1\r\n\r\n#",
                "\r\nPOST \0? HTTP/1.1\r\nContent-Length: 1\r\n\r\n#",
            ),
        ] {
            assert_eq!(through(sent), read);
        }
    }

    #[test]
    fn a_bare_lf_in_a_head_is_spoilt_and_nowhere_else() {
        for whole in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-LENGTH:  4 \r\n\r\na\nb\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n\n\nGET /\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\n\n\r\n0\r\n\r\nGET /\n",
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n\n\n\n",
        ] {
            assert_eq!(through(whole), whole);
        }
        for (sent, read) in [
            (
                "GET / HTTP/1.1\nHost: a\r\n\r\n",
                "GET / HTTP/1.1\0Host: a\r\n\r\n",
            ),
            (
                "GET / HTTP/1.1\r\nA: b\nX-User: ann\r\n\r\n",
                "GET / HTTP/1.1\r\nA: b\0X-User: ann\r\n\r\n",
            ),
            ("\nGET / HTTP/1.1\r\n\r\n", "\0GET / HTTP/1.1\r\n\r\n"),
            ("GET / HTTP/1.1\r\n\n", "GET / HTTP/1.1\r\n\0"),
            (
                "GET / HTTP/1.1\r\n\r\nGET /\n\n",
                "GET / HTTP/1.1\r\n\r\nGET /\0\0",
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n\nGET /\n",
                "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n\nGET /\0",
            ),
        ] {
            assert_eq!(through(sent), read);
        }
    }
}
