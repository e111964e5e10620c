//! Bytes in both directions, with clocks.

use std::io;
use std::sync::Arc;

use portcullis_core::egress::{Answer, AnswerError, Body, MOST_INTERIM};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until};
use zeroize::Zeroizing;

use super::opened::Opened;
use super::search::{Search, Searched, search_in};
use super::wiring::EgressLimits;
use crate::supervision::{FlagReader, Paced};

/// Bytes under way in each direction.
const BUFFER: usize = 16 * 1024;

/// What of a direction's bytes goes on.
pub enum Sieve {
    /// All.
    All,
    /// The body of one request, and nothing behind it.
    Body(Body),
    /// The heads of an answer, cleaned, then all.
    Answer(Vec<u8>, u32),
    /// An answer without the secrets in it; none while it is searched.
    Opened(Option<Box<Opened>>),
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
    /// What is under way of it, and on which clock.
    search: Option<(Arc<Paced>, Option<Search>)>,
    /// Bytes that went through.
    pub count: u64,
    /// Secrets that were taken out of it.
    pub replaced: u64,
}

/// Why bytes do not go on.
#[derive(Debug)]
pub enum Broken {
    /// The body is not in plain chunks.
    Body,
    /// The server's answer is none.
    Answer(AnswerError),
    /// The search for secrets in it broke off.
    Search,
}

impl Way {
    pub fn new(sieve: Sieve) -> Self {
        Self {
            sieve,
            waiting: Vec::new(),
            sent: 0,
            dry: false,
            ended: false,
            search: None,
            count: 0,
            replaced: 0,
        }
    }

    /// An answer that is searched for secrets, on this clock.
    pub fn searched(answer: Opened, pace: &Arc<Paced>) -> Self {
        let mut way = Self::new(Sieve::Opened(Some(Box::new(answer))));
        way.search = Some((pace.clone(), None));
        way
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

    const fn takes(&self) -> bool {
        !self.dry && self.waiting.is_empty() && !self.is_searched()
    }

    const fn is_searched(&self) -> bool {
        matches!(self.search, Some((_, Some(_))))
    }

    const fn gives(&self) -> bool {
        self.sent < self.waiting.len()
    }

    fn sift(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        match &mut self.sieve {
            Sieve::All => self.waiting.extend_from_slice(bytes),
            Sieve::Opened(answer) => {
                if let (Some(answer), Some((pace, search))) = (answer.take(), &mut self.search) {
                    *search = Some(search_in(pace.clone(), answer, bytes));
                }
            }
            Sieve::Body(body) => {
                let its = body.take(bytes).map_err(|_| Broken::Body)?;
                self.waiting.extend_from_slice(&bytes[..its]);
                self.dry |= body.is_over();
            }
            Sieve::Answer(came, interim) => {
                came.extend_from_slice(bytes);
                while let Some((answer, used)) = Answer::read(came).map_err(Broken::Answer)? {
                    self.waiting.extend_from_slice(&answer.forward);
                    came.drain(..used);
                    if !answer.is_interim() {
                        self.waiting.append(came);
                        self.sieve = Sieve::All;
                        break;
                    }
                    *interim += 1;
                    if *interim > MOST_INTERIM {
                        return Err(Broken::Answer(AnswerError::TooMany));
                    }
                }
            }
        }
        Ok(())
    }

    /// They have come.
    fn came(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if bytes.is_empty() {
            self.dry = true;
            return match &self.sieve {
                Sieve::Opened(_) => self.sift(&[]),
                Sieve::Answer(..) => Err(Broken::Answer(AnswerError::Syntax)),
                _ => Ok(()),
            };
        }
        self.sift(bytes)
    }

    /// It has been searched.
    fn sifted(&mut self, searched: Option<Searched>) -> Result<(), Broken> {
        if let Some((_, search)) = &mut self.search {
            *search = None;
        }
        // A search that broke off has lost what came.
        let Some(Searched { answer, out, taken }) = searched else {
            return Err(Broken::Search);
        };
        self.waiting.extend_from_slice(&out);
        self.dry |= answer.is_over();
        self.replaced = answer.replaced();
        self.sieve = Sieve::Opened(Some(answer));
        taken.map_err(Broken::Answer)
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
        self.dry && !self.gives() && !self.is_searched()
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
            Self::Broken(Broken::Search) => "not-searched",
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

/// Until what came has been searched, and what goes on of it may; for ever where nothing is searched.
async fn found(search: &mut Option<(Arc<Paced>, Option<Search>)>) -> Option<Searched> {
    match search {
        Some((_, Some(search))) => search.as_mut().await,
        _ => std::future::pending().await,
    }
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
            wrote = to_client.write(&down.waiting[down.sent..]), if down.gives() => wrote.map(|n| { down.went(n); Ok(()) }),
            searched = found(&mut down.search), if down.is_searched() => Ok(down.sifted(searched)),
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
    use std::time::Duration;

    use futures_util::future::join_all;
    use portcullis_core::egress::Scrubber;
    use portcullis_core::egress::inner::Request;
    use portcullis_core::egress::{Host, Name};
    use portcullis_core::seal::Secret;
    use tokio::time::sleep;

    use super::super::search::PACE;
    use super::*;
    use crate::supervision::Flag;

    /// How long an answer with this body took to come through, on this clock.
    async fn passed(body: &str, pace: &Arc<Paced>) -> Duration {
        let host = Host::Name(Name::new("api.example.com").unwrap());
        let text = b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
        let (request, _) = Request::read(text, &host, 443).unwrap().unwrap();
        let secret = Secret::new(b"ghp_C4naryVa1ueOfThe".to_vec());
        let (mut client, mut of_client) = tokio::io::duplex(1 << 20);
        let (mut host, mut of_host) = tokio::io::duplex(1 << 20);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        of_host.write_all(head.as_bytes()).await.unwrap();
        of_host.write_all(body.as_bytes()).await.unwrap();
        let answer = Opened::new(&request, Scrubber::new([&secret]));
        let mut down = Way::searched(answer, pace);
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
        let took = began.elapsed();
        drop(client);
        let mut came = Vec::new();
        of_client.read_to_end(&mut came).await.unwrap();
        assert!(came.len() > body.len());
        took
    }

    fn clock(bytes: usize) -> Duration {
        PACE * u32::try_from(bytes).unwrap()
    }

    /// The bug: a box saw by the time that its guesses took to come back how far each was right.
    #[tokio::test(start_paused = true)]
    async fn what_was_searched_goes_on_by_a_clock_that_its_length_sets() {
        let pace = Paced::of_one(&Paced::of_all());
        let mut times = Vec::new();
        for body in ["ghp_C4naryVa1ueOfThX", "xxxxxxxxxxxxxxxxxxxx"] {
            let body = body.repeat(5_000);
            let took = passed(&body, &pace).await;
            // In the clock's own time nothing but the clock passes.
            assert!(took >= clock(body.len()), "{took:?}");
            times.push(took);
        }
        assert_eq!(times[0], times[1]);
    }

    /// The bug: each connection had a clock of its own, and what many of a box cost together was not hidden by any.
    #[tokio::test(start_paused = true)]
    async fn all_answers_of_a_box_go_on_by_one_clock_and_another_boxs_by_its_own() {
        let all = Paced::of_all();
        let (one, other) = (Paced::of_one(&all), Paced::of_one(&all));
        let body = "&".repeat(20_000);
        let many = join_all((0..6).map(|_| passed(&body, &one)));
        let (many, alone) = tokio::join!(many, passed(&body, &other));
        let longest = many.into_iter().max().unwrap();
        assert!(longest >= clock(6 * body.len()), "{longest:?}");
        assert!(alone < clock(2 * body.len()), "{alone:?}");
    }

    /// The bug: a host sent heads before its answer's own without end, and each was read on the runtime.
    #[test]
    fn an_answer_has_a_bounded_number_of_heads_before_its_own() {
        let early = "HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n";
        for (count, is) in [(MOST_INTERIM, true), (MOST_INTERIM + 1, false)] {
            let text = early.repeat(count as usize) + "HTTP/1.1 200 OK\r\n\r\n";
            let mut way = Way::new(Sieve::Answer(Vec::new(), 0));
            assert_eq!(way.came(text.as_bytes()).is_ok(), is, "{count}");
            let host = Host::Name(Name::new("api.example.com").unwrap());
            let asked = b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
            let (request, _) = Request::read(asked, &host, 443).unwrap().unwrap();
            let mut opened = Opened::new(&request, Scrubber::new([]));
            let mut out = Vec::new();
            assert_eq!(
                opened.take(text.as_bytes(), &mut out).is_ok(),
                is,
                "{count}"
            );
        }
    }

    /// The bug: one box opened twelve streams of an answer that is dear to search, and another agent's command could not be recorded in time.
    #[tokio::test]
    async fn a_box_that_has_much_searched_holds_up_nobody_else() {
        let pace = Paced::of_one(&Paced::of_all());
        let body = "&".repeat(16 * 1024);
        let many = join_all((0..12).map(|_| passed(&body, &pace)));
        // On this very thread: a runtime has no more than two.
        let mut longest = Duration::ZERO;
        let others = async {
            loop {
                let began = Instant::now();
                sleep(Duration::from_millis(2)).await;
                longest = longest.max(began.elapsed());
            }
        };
        tokio::select! {
            _ = many => {}
            () = others => {}
        }
        assert!(longest < Duration::from_millis(250), "{longest:?}");
    }
}
