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
/// Of a stranger all together, four times what its frame may have: whoever is turned away and goes on sending is read no
/// longer than a client needs to hear why.
const OF_A_STRANGER: u64 = 256 * 1024;

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
    /// So many bytes more are thrown away; then this end is at its end.
    left: u64,
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
            left: OF_A_STRANGER,
        }
    }

    /// From here on messages may have so many bytes, and hold room of this until they are there.
    pub fn trust(&mut self, most: usize, of: Option<Arc<Allowance>>) {
        self.scan.trust(most, of.map(Taken::none));
        self.left = u64::MAX;
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
    /// To the other end's last byte, or the last that is thrown away; then this end is at its end too.
    fn poll_thrown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.early.clear();
        let mut scratch = [0; THROWN];
        while self.left > 0 {
            let mut thrown = ReadBuf::new(&mut scratch);
            let read = match &mut self.stream {
                Stream::Tcp(s) => Pin::new(s).poll_read(cx, &mut thrown),
                Stream::Tls(s) => Pin::new(s).poll_read(cx, &mut thrown),
                Stream::Unix(s) => Pin::new(s).poll_read(cx, &mut thrown),
            };
            match read {
                Poll::Ready(Ok(())) if !thrown.filled().is_empty() => {
                    self.left = self.left.saturating_sub(thrown.filled().len() as u64);
                }
                other => return other,
            }
        }
        Poll::Ready(Ok(()))
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// The bug: a stranger that was turned away for its first frame's size was read for a second more, as fast as it sent.
    #[tokio::test]
    async fn a_stranger_that_is_turned_away_and_goes_on_sending_is_read_no_further() {
        const MORE: u64 = 4 * OF_A_STRANGER;
        for is_trusted in [false, true] {
            let (own, mut other) = UnixStream::pair().unwrap();
            let mut io = Io::new(Stream::Unix(own), &[]);
            if is_trusted {
                io.trust(1 << 20, None);
            }
            io.deafen();
            let sends = async {
                let piece = vec![b' '; THROWN];
                let mut sent = 0;
                while sent < MORE && other.write_all(&piece).await.is_ok() {
                    sent += piece.len() as u64;
                }
                let _ = other.shutdown().await;
                sent
            };
            let reads = async move { io.read(&mut [0]).await.unwrap() };
            let (sent, read) = tokio::join!(sends, reads);
            assert_eq!(read, 0);
            // What lay in the kernel's buffers on the way is less than what it would have sent.
            assert_eq!(sent >= MORE, is_trusted, "{sent}");
            assert!(sent >= OF_A_STRANGER);
        }
    }
}
