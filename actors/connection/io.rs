//! The socket as the connection owns it, and the look at what comes in ([`super::scan`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::scan::{Scan, Unfinished};
use crate::supervision::{Allowance, Taken};

/// Read and thrown away in one go after a fault, bytes.
const THROWN: usize = 4096;

/// A Pong of its own, as a client would send it: masked with nothing, and of nothing.
const FILL: usize = 131;
const FILL_HEAD: [u8; 6] = [0x8a, 0xfd, 0, 0, 0, 0];

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

/// A stream with what was read past the upgrade, and the look at what passes.
#[derive(Debug)]
pub struct Io {
    stream: Stream,
    early: Bytes,
    scan: Scan,
    /// Nothing more is delivered: what comes is thrown away, so that the last words are not lost to a reset.
    deaf: bool,
    /// Bytes of fill that are to be delivered yet.
    fill: usize,
}

impl Io {
    /// After the upgrade; `early` came with it. Copied: even an empty one is a slice of the HTTP reader's buffer and
    /// would keep its 8 KiB for as long as the socket lives.
    pub fn new(stream: Stream, early: &[u8]) -> Self {
        Self {
            stream,
            early: Bytes::copy_from_slice(early),
            scan: Scan::new(),
            deaf: false,
            fill: 0,
        }
    }

    /// From here on messages may have so many bytes, and hold room of this until they are there.
    pub fn trust(&mut self, most: usize, of: Option<Arc<Allowance>>) {
        self.scan.trust(most, of.map(Taken::none));
    }

    /// A message that has begun and is not there yet.
    pub(super) fn unfinished(&self) -> Option<Unfinished> {
        self.scan.unfinished()
    }

    /// The protocol library hands a message out of its reading buffer and goes on behind it: what has passed lies there until the
    /// buffer is full. So it is filled, with Pongs that nobody sent, and the library takes another: then who holds the message
    /// holds all of the old one, and can overwrite it. How many Pongs will come.
    pub(super) fn fill(&mut self, buffer: usize) -> usize {
        let pongs = buffer.div_ceil(FILL) + 1;
        self.fill += pongs * FILL;
        pongs
    }

    /// Between two frames only, and what has begun is finished first.
    fn give_fill(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let within = !self.fill.is_multiple_of(FILL);
        if self.fill == 0 || !(within || self.scan.is_between()) {
            return false;
        }
        while self.fill > 0 && buf.remaining() > 0 {
            let at = (FILL - self.fill % FILL) % FILL;
            buf.put_slice(&[FILL_HEAD.get(at).copied().unwrap_or(0)]);
            self.fill -= 1;
        }
        true
    }

    /// From here on what comes is thrown away.
    pub(super) fn deafen(&mut self) {
        self.deaf = true;
    }
}

impl Io {
    /// To the other end's last byte; then this end is at its end too.
    fn poll_thrown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.early.clear();
        let mut scratch = [0; THROWN];
        loop {
            let mut thrown = ReadBuf::new(&mut scratch);
            let read = match &mut self.stream {
                Stream::Tcp(s) => Pin::new(s).poll_read(cx, &mut thrown),
                Stream::Tls(s) => Pin::new(s).poll_read(cx, &mut thrown),
                Stream::Unix(s) => Pin::new(s).poll_read(cx, &mut thrown),
            };
            match read {
                Poll::Ready(Ok(())) if !thrown.filled().is_empty() => {}
                other => return other,
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.deaf {
            return this.poll_thrown(cx);
        }
        if this.give_fill(buf) {
            return Poll::Ready(Ok(()));
        }
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
        if let Err(error) = this.scan.pass(&buf.filled()[before..]) {
            buf.set_filled(before);
            this.deaf = true;
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
