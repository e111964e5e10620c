//! Bytes in both directions, with clocks.

use std::io;
use std::time::Duration;

use portcullis_core::egress::{Answer, AnswerError, Body};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until};
use zeroize::Zeroizing;

use super::opened::Opened;
use super::wiring::EgressLimits;
use crate::supervision::FlagReader;

/// Bytes under way in each direction.
const BUFFER: usize = 16 * 1024;

/// What is searched for secrets goes on no earlier than this for each of its bytes: how long the search takes tells how far a guess is right, and
/// a box that has its guesses sent to it could see that. The costliest text takes less (`core/egress/scrub.rs`), so that it sees the clock.
const PACE: Duration = Duration::from_micros(1);

/// What of a direction's bytes goes on.
pub enum Sieve {
    /// All.
    All,
    /// The body of one request, and nothing behind it.
    Body(Body),
    /// The heads of an answer, cleaned, then all.
    Answer(Vec<u8>),
    /// An answer without the secrets in it.
    Opened(Box<Opened>),
}

/// One direction.
pub struct Way {
    sieve: Sieve,
    waiting: Vec<u8>,
    sent: usize,
    /// Its source gives no more, or is not asked for more.
    dry: bool,
    /// Its target has been told so, where it is.
    ended: bool,
    /// What waits goes on then.
    due: Instant,
    /// Bytes that went through.
    pub count: u64,
}

/// Why bytes do not go on.
#[derive(Debug)]
pub enum Broken {
    /// The body is not in plain chunks.
    Body,
    /// The server's answer is none.
    Answer(AnswerError),
}

impl Way {
    pub fn new(sieve: Sieve) -> Self {
        Self {
            sieve,
            waiting: Vec::new(),
            sent: 0,
            dry: false,
            ended: false,
            due: Instant::now(),
            count: 0,
        }
    }

    /// These came already.
    pub fn with(mut self, bytes: &[u8]) -> Result<Self, Broken> {
        if !bytes.is_empty() {
            self.sift(bytes)?;
        }
        if matches!(&self.sieve, Sieve::Body(body) if body.is_over()) {
            self.dry = true;
        }
        Ok(self)
    }

    /// Secrets that were taken out of it.
    pub const fn replaced(&self) -> u64 {
        match &self.sieve {
            Sieve::Opened(answer) => answer.replaced(),
            _ => 0,
        }
    }

    const fn takes(&self) -> bool {
        !self.dry && self.waiting.is_empty()
    }

    const fn gives(&self) -> bool {
        self.sent < self.waiting.len()
    }

    fn sift(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        match &mut self.sieve {
            Sieve::All => self.waiting.extend_from_slice(bytes),
            Sieve::Opened(answer) => {
                let taken = answer.take(bytes, &mut self.waiting);
                taken.map_err(Broken::Answer)?;
                self.dry |= answer.is_over();
            }
            Sieve::Body(body) => {
                let its = body.take(bytes).map_err(|_| Broken::Body)?;
                self.waiting.extend_from_slice(&bytes[..its]);
                self.dry |= body.is_over();
            }
            Sieve::Answer(came) => {
                came.extend_from_slice(bytes);
                while let Some((answer, used)) = Answer::read(came).map_err(Broken::Answer)? {
                    self.waiting.extend_from_slice(&answer.forward);
                    came.drain(..used);
                    if !answer.is_interim() {
                        self.waiting.append(came);
                        self.sieve = Sieve::All;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// They have come: what goes on of them is due after a time that their number alone says.
    fn came(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let (now, before) = (Instant::now(), self.looked());
        let done = self.sifted(bytes);
        let looked = u32::try_from(self.looked() - before).unwrap_or(u32::MAX);
        self.due = self.due.max(now) + PACE * looked;
        done
    }

    const fn looked(&self) -> u64 {
        match &self.sieve {
            Sieve::Opened(answer) => answer.looked(),
            _ => 0,
        }
    }

    fn sifted(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if bytes.is_empty() {
            self.dry = true;
            return match &mut self.sieve {
                Sieve::Opened(answer) => answer.end(&mut self.waiting).map_err(Broken::Answer),
                Sieve::Answer(_) => Err(Broken::Answer(AnswerError::Syntax)),
                _ => Ok(()),
            };
        }
        self.sift(bytes)
    }

    fn went(&mut self, count: usize) {
        self.sent += count;
        self.count += count as u64;
        if !self.gives() {
            self.waiting.clear();
            self.sent = 0;
        }
    }

    /// Nothing more will come through, and its target does not know it yet.
    const fn is_over(&self) -> bool {
        self.dry && !self.gives()
    }
}

/// How it ended.
#[derive(Debug)]
pub enum Over {
    /// Both ends are done.
    Done,
    /// One of them broke off.
    Reset,
    /// Nothing went through for too long.
    Idle,
    /// It lasted too long.
    Total,
    /// The box ended.
    Closing,
    /// What came is nothing to pass on.
    Broken(Broken),
}

impl Over {
    /// The word in records.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Reset => "reset",
            Self::Idle => "idle",
            Self::Total => "too-long",
            Self::Closing => "box-ended",
            Self::Broken(Broken::Body) => "body-malformed",
            Self::Broken(Broken::Answer(_)) => "bad-answer",
        }
    }
}

/// Whether the end of what the client sends is told to the host, and when it is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// When both directions have ended, each told to the other side.
    Tunnel,
    /// When the answer has ended.
    Exchange,
}

/// Does it then.
async fn at<T>(due: Instant, work: impl Future<Output = T>) -> T {
    if due > Instant::now() {
        sleep_until(due).await;
    }
    work.await
}

/// Passes on until it is over.
pub async fn pump<C, H>(
    client: &mut C,
    host: &mut H,
    (up, down): (&mut Way, &mut Way),
    kind: Kind,
    began: Instant,
    limits: &EgressLimits,
    closing: &mut FlagReader<bool>,
) -> Over
where
    C: AsyncRead + AsyncWrite + Unpin,
    H: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_host, mut to_host) = tokio::io::split(host);
    let fresh = || Zeroizing::new(vec![0; BUFFER]);
    let mut buffers = (fresh(), fresh());
    let mut last = Instant::now();
    let until = began + limits.total;
    loop {
        if down.is_over() && !down.ended {
            down.ended = true;
            let _ = to_client.shutdown().await;
        }
        if up.is_over() && !up.ended {
            up.ended = true;
            if kind == Kind::Tunnel {
                let _ = to_host.shutdown().await;
            }
        }
        if down.ended && (up.ended || kind == Kind::Exchange) {
            return Over::Done;
        }
        let idle = last + limits.idle;
        let step = tokio::select! {
            read = from_client.read(&mut buffers.0), if up.takes() => read.map(|n| up.came(&buffers.0[..n])),
            read = from_host.read(&mut buffers.1), if down.takes() => read.map(|n| down.came(&buffers.1[..n])),
            wrote = to_host.write(&up.waiting[up.sent..]), if up.gives() => wrote.map(|n| { up.went(n); Ok(()) }),
            wrote = at(down.due, to_client.write(&down.waiting[down.sent..])), if down.gives() => wrote.map(|n| { down.went(n); Ok(()) }),
            // Also where the flag is gone: then its room is.
            _ = closing.until(|closing| *closing) => return Over::Closing,
            () = sleep_until(idle.min(until)) => {
                return if Instant::now() >= until { Over::Total } else { Over::Idle };
            }
        };
        match step {
            Ok(Ok(())) => last = Instant::now(),
            Ok(Err(broken)) => return Over::Broken(broken),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if kind == Kind::Exchange && !up.ended => {
                // A server may answer before it has read all of a body, and close that direction.
                up.waiting.clear();
                up.sent = 0;
                up.dry = true;
                up.ended = true;
            }
            Err(_) => return Over::Reset,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use portcullis_core::egress::Scrubber;
    use portcullis_core::egress::inner::Request;
    use portcullis_core::egress::{Host, Name};
    use portcullis_core::seal::Secret;

    use super::*;
    use crate::supervision::Flag;

    /// The bug: a box saw by the time that its guesses took to come back how far each was right.
    #[tokio::test(start_paused = true)]
    async fn what_was_searched_goes_on_by_a_clock_that_its_length_sets() {
        let host = Host::Name(Name::new("api.example.com").unwrap());
        let text = b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
        let (request, _) = Request::read(text, &host, 443).unwrap().unwrap();
        let secret = Secret::new(b"ghp_C4naryVa1ueOfThe".to_vec());
        let mut times = Vec::new();
        for body in ["ghp_C4naryVa1ueOfThX", "xxxxxxxxxxxxxxxxxxxx"] {
            let body = body.repeat(20_000);
            let (mut client, mut of_client) = tokio::io::duplex(1 << 20);
            let (mut host, mut of_host) = tokio::io::duplex(1 << 20);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            of_host.write_all(head.as_bytes()).await.unwrap();
            of_host.write_all(body.as_bytes()).await.unwrap();
            let answer = Opened::new(&request, Scrubber::new([&secret]));
            let mut down = Way::new(Sieve::Opened(Box::new(answer)));
            let mut up = Way::new(Sieve::Body(request.body.clone()))
                .with(b"")
                .unwrap();
            let closing = Arc::new(Flag::new(false));
            let (began, limits) = (Instant::now(), EgressLimits::default());
            let mut closing = closing.reader();
            let over = pump(
                &mut client,
                &mut host,
                (&mut up, &mut down),
                Kind::Exchange,
                began,
                &limits,
                &mut closing,
            );
            assert!(matches!(over.await, Over::Done));
            times.push(began.elapsed());
            drop(client);
            let mut came = Vec::new();
            of_client.read_to_end(&mut came).await.unwrap();
            assert!(came.len() > body.len());
            // In the clock's own time nothing but the clock passes.
            assert!(began.elapsed() >= PACE * u32::try_from(body.len()).unwrap());
        }
        assert_eq!(times[0], times[1]);
    }
}
