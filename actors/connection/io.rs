//! The socket as the connection owns it, and the guard over what a stranger may send.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use portcullis_core::protocol::limits::PREAUTH_FRAME;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A byte stream of either kind.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TLS on TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// Over a Unix socket.
    Unix(UnixStream),
}

/// A stream with what was read past the upgrade, and, before authentication, the [`Guard`].
#[derive(Debug)]
pub struct Io {
    stream: Stream,
    early: Bytes,
    guard: Option<Guard>,
}

impl Io {
    /// After the upgrade; `early` came with it.
    pub fn new(stream: Stream, early: Bytes) -> Self {
        Self {
            stream,
            early,
            guard: Some(Guard::default()),
        }
    }

    /// From here on frames may be as large as the protocol allows.
    pub fn trust(&mut self) {
        self.guard = None;
    }
}

/// Reads WebSocket frame headers (RFC 6455 5.2) as they pass, and stops before a payload that is too large is
/// delivered: the protocol library would make room for it at its header.
#[derive(Debug, Default)]
struct Guard {
    header: [u8; 14],
    have: usize,
    payload_left: u64,
    /// Of the message whose frames pass.
    message: u64,
    /// Of all frames.
    seen: u64,
}

/// What the guard says; the connection answers it with close code 1009.
pub const TOO_LARGE: &str = "preauth payload too large";

impl Guard {
    fn pass(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skip = usize::try_from(self.payload_left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                self.payload_left -= skip as u64;
                bytes = &bytes[skip..];
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            let Some((length, size)) = self.announced() else {
                continue;
            };
            if self.have == size {
                self.have = 0;
                self.payload_left = length;
                match self.header[0] & 0x0f {
                    0 => self.message = self.message.saturating_add(length),
                    1 | 2 => self.message = length,
                    _ => {}
                }
                // Empty frames count too: endless ones are no way to stay.
                self.seen = self.seen.saturating_add(length).saturating_add(8);
                if self.message > PREAUTH_FRAME as u64 || self.seen > PREAUTH_FRAME as u64 + 1024 {
                    return Err(io::Error::other(TOO_LARGE));
                }
            }
        }
        Ok(())
    }

    /// Payload length and header size, once the length's bytes are there.
    fn announced(&self) -> Option<(u64, usize)> {
        let [_, second, rest @ ..] = &self.header;
        if self.have < 2 {
            return None;
        }
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let wide = match second & 0x7f {
            126 => 2,
            127 => 8,
            short => return Some((u64::from(short), 2 + mask)),
        };
        if self.have < 2 + wide {
            return None;
        }
        let length = rest[..wide]
            .iter()
            .fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
        Some((length, 2 + wide + mask))
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.early.is_empty() {
            let read = match &mut this.stream {
                Stream::Tcp(s) => Pin::new(s).poll_read(cx, buf),
                Stream::Tls(s) => Pin::new(s).poll_read(cx, buf),
                Stream::Unix(s) => Pin::new(s).poll_read(cx, buf),
            };
            match read {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        } else {
            let take = this.early.len().min(buf.remaining());
            buf.put_slice(&this.early[..take]);
            this.early.advance(take);
        }
        if let Some(guard) = &mut this.guard
            && let Err(error) = guard.pass(&buf.filled()[before..])
        {
            buf.set_filled(before);
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(s) => Pin::new(s).poll_flush(cx),
            Stream::Tls(s) => Pin::new(s).poll_flush(cx),
            Stream::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Tls(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: u64) -> Vec<u8> {
        let mut bytes = vec![0x81];
        match len {
            0..126 => bytes.push(0x80 | u8::try_from(len).unwrap()),
            126..65_536 => {
                bytes.push(0x80 | 0x7e);
                bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 0x7f);
                bytes.extend(len.to_be_bytes());
            }
        }
        bytes.extend([1, 2, 3, 4]);
        bytes
    }

    #[test]
    fn a_frame_that_is_too_large_is_stopped_at_its_header_however_it_is_cut() {
        for len in [65_537, 1 << 20, u64::MAX / 2] {
            let bytes = frame(len);
            for cut in 0..bytes.len() {
                let mut guard = Guard::default();
                let result = guard
                    .pass(&bytes[..cut])
                    .and_then(|()| guard.pass(&bytes[cut..]));
                assert!(result.is_err(), "{len} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_fits_passes_and_many_small_ones_do_not() {
        Guard::default().pass(&frame(65_536)).unwrap();
        let mut guard = Guard::default();
        let mut bytes = frame(60_000);
        bytes.resize(bytes.len() + 60_000, b'x');
        for chunk in bytes.chunks(7) {
            guard.pass(chunk).unwrap();
        }
        assert!(guard.pass(&frame(7_000)).is_err());
        let mut guard = Guard::default();
        let empty = frame(0);
        let passed = (0..100_000)
            .take_while(|_| guard.pass(&empty).is_ok())
            .count();
        assert!(passed < 10_000);
    }
}
