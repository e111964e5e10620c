//! What a gateway sends that says nothing: pings, empty messages, fragments of a few bytes. Each costs little; without a
//! budget a hostile one would keep a command busy past every deadline, because what is there to be read is read before a
//! clock is looked at. And one that reads nothing ends the connection: what is owed to it would pile up.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use portcullis_actors::connection::IdleBudget;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::address::Stream;

/// What the error of a socket says that sends too much of it.
pub const FLOOD: &str = "it sends frame after frame that says nothing";
/// What the error of a socket says that takes nothing any more.
pub const STUCK: &str = "it reads nothing any more";
/// A data frame of fewer bytes is no whole message of a gateway: the shortest is an object with a type.
const SHORT: u64 = 16;
/// For so long a write may stand still.
const STANDS: Duration = Duration::from_secs(30);
/// What ends the answer to the upgrade.
const END: &[u8] = b"\r\n\r\n";

/// Headers of what comes (RFC 6455 5.2), behind the answer to the upgrade.
#[derive(Debug)]
struct Frames {
    /// Of [`END`].
    matched: usize,
    header: [u8; 10],
    have: usize,
    payload_left: u64,
    budget: IdleBudget,
}

impl Frames {
    fn new() -> Self {
        Self {
            matched: 0,
            header: [0; 10],
            have: 0,
            payload_left: 0,
            budget: IdleBudget::default(),
        }
    }

    fn pass(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.matched < END.len() {
                self.matched = match *first {
                    byte if byte == END[self.matched] => self.matched + 1,
                    b'\r' => 1,
                    _ => 0,
                };
                bytes = rest;
            } else if self.payload_left > 0 {
                let left = usize::try_from(self.payload_left).unwrap_or(usize::MAX);
                let part = left.min(bytes.len());
                self.payload_left -= part as u64;
                bytes = &bytes[part..];
            } else {
                self.header[self.have] = *first;
                self.have += 1;
                bytes = rest;
                if let Some(length) = self.announced() {
                    self.begin(length)?;
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, length: u64) -> io::Result<()> {
        self.have = 0;
        self.payload_left = length;
        let is_control = self.header[0] & 0x0f >= 8;
        if (is_control || length < SHORT) && !self.budget.may() {
            return Err(io::Error::other(FLOOD));
        }
        Ok(())
    }

    /// The payload's length, once the header is there. A gateway masks nothing: the library refuses it when it does.
    fn announced(&self) -> Option<u64> {
        let [_, second, rest @ ..] = &self.header;
        if self.have < 2 {
            return None;
        }
        let wide = match second & 0x7f {
            126 => 2,
            127 => 8,
            short => return Some(u64::from(short)),
        };
        let length = rest.get(..wide)?;
        (self.have == 2 + wide).then(|| {
            length
                .iter()
                .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
        })
    }
}

/// A gateway's stream, looked at before the protocol library.
pub struct Counted {
    stream: Box<dyn Stream>,
    frames: Frames,
    /// Since when nothing of what waits was taken.
    stands: Option<Instant>,
}

impl Counted {
    /// Before the upgrade.
    pub fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            frames: Frames::new(),
            stands: None,
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let passed = self.frames.pass(&buffer.filled()[before..]);
        Poll::Ready(passed)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.stands = None;
        } else if self.stands.get_or_insert_with(Instant::now).elapsed() > STANDS {
            return Poll::Ready(Err(io::Error::other(STUCK)));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use portcullis_core::protocol::limits::IDLE_FRAMES;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n";

    fn upgraded() -> Frames {
        let mut frames = Frames::new();
        frames.pass(ANSWER).unwrap();
        frames
    }

    #[tokio::test]
    async fn what_says_something_is_not_counted_however_it_is_cut() {
        let mut wire = Vec::new();
        for length in [16_usize, 125, 126, 65_535, 65_536] {
            wire.push(0x81);
            match length {
                0..126 => wire.push(u8::try_from(length).unwrap()),
                126..65_536 => {
                    wire.push(126);
                    wire.extend(u16::try_from(length).unwrap().to_be_bytes());
                }
                _ => {
                    wire.push(127);
                    wire.extend(u64::try_from(length).unwrap().to_be_bytes());
                }
            }
            wire.extend(vec![0x89; length]);
        }
        for piece in [1, 7, 4_096, usize::MAX] {
            let mut frames = Frames::new();
            for _ in 0..100 {
                for part in [ANSWER, &wire].concat()
                    [if frames.matched == 4 { ANSWER.len() } else { 0 }..]
                    .chunks(piece)
                {
                    frames.pass(part).unwrap();
                }
            }
            assert_eq!(frames.budget.left(), IDLE_FRAMES, "{piece}");
        }
    }

    /// The bug: pings, empty fragments and those of one byte cost a client its time and its memory without end.
    #[tokio::test(start_paused = true)]
    async fn a_flood_of_frames_that_say_nothing_is_over_at_once() {
        let ping = [&[0x89, 125][..], &[b'p'; 125]].concat();
        for frame in [
            &ping[..],
            &[0x8a, 0],
            &[0x00, 0],
            &[0x00, 1, b' '],
            &[0x81, 0],
        ] {
            let mut frames = upgraded();
            let passed = (0..10_000).take_while(|_| frames.pass(frame).is_ok());
            assert_eq!(passed.count(), IDLE_FRAMES as usize, "{frame:?}");
        }
        // Who pings now and then stays.
        let mut frames = upgraded();
        for _ in 0..10_000 {
            frames.pass(&ping).unwrap();
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }

    /// The bug: pongs to a gateway that reads nothing were kept without end.
    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_reads_nothing_is_left() {
        use tokio::io::AsyncWriteExt as _;
        let (near, _far) = tokio::io::duplex(64);
        let mut counted = Counted::new(Box::new(near));
        counted.write_all(&[0; 64]).await.unwrap();
        let mut write = async || {
            let write = counted.write(&[0]);
            tokio::time::timeout(Duration::from_millis(1), write).await
        };
        assert!(write().await.is_err(), "it waits");
        tokio::time::advance(STANDS).await;
        let error = write().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), STUCK);
    }
}
