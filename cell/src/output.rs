//! What a run wrote and the host has not been sent: two pipes, one queue, a credit and a cap for each stream.

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use portcullis_cell::{Frame, INITIAL_WINDOW, MAX_OUTPUT, Stream};

use crate::channel::Channel;

/// While the command runs no more than this is taken from its pipes ahead of the credit: beyond it the command waits.
const AHEAD: usize = 64 * 1024;
/// After its end its pipes are emptied without waiting for credit, up to this; more is counted as dropped.
const TAIL: usize = 512 * 1024;
/// Frames waiting for pid 1 to take them.
const UNSENT: usize = 64 * 1024;

struct Pipe {
    from: Option<std::fs::File>,
    stream: Stream,
    left: u64,
    dropped: u64,
}

/// Both streams of one run.
pub struct Output {
    pipes: [Pipe; 2],
    queue: VecDeque<(Stream, Vec<u8>)>,
    queued: usize,
    credit: u64,
    scratch: Vec<u8>,
}

impl Output {
    /// Takes the read ends over (a terminal has one); `cap` bytes of each stream are passed on.
    pub fn new(out: OwnedFd, err: Option<OwnedFd>, cap: u64) -> std::io::Result<Self> {
        for from in [Some(&out), err.as_ref()].into_iter().flatten() {
            rustix::io::ioctl_fionbio(from, true)?;
        }
        let pipe = |from: Option<OwnedFd>, stream| Pipe {
            from: from.map(std::fs::File::from),
            stream,
            left: cap,
            dropped: 0,
        };
        Ok(Self {
            pipes: [pipe(Some(out), Stream::Out), pipe(err, Stream::Err)],
            queue: VecDeque::new(),
            queued: 0,
            credit: INITIAL_WINDOW.into(),
            scratch: vec![0; MAX_OUTPUT],
        })
    }

    /// More credit from the host.
    pub fn grant(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes.into());
    }

    /// The pipes worth waiting for now.
    pub fn readable(&self, tail: bool) -> impl Iterator<Item = BorrowedFd<'_>> {
        let room = tail || self.queued < AHEAD;
        self.pipes
            .iter()
            .filter(move |pipe| room || pipe.left == 0)
            .filter_map(|pipe| pipe.from.as_ref().map(AsFd::as_fd))
    }

    /// Both pipes have ended: nobody holds their other ends.
    pub fn ended(&self) -> bool {
        self.pipes.iter().all(|pipe| pipe.from.is_none())
    }

    /// Everything read has been sent.
    pub fn sent(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes not passed on: of standard output, of standard error.
    pub const fn dropped(&self) -> (u64, u64) {
        (self.pipes[0].dropped, self.pipes[1].dropped)
    }

    /// Reads what is there; true where it read something.
    pub fn read(&mut self, tail: bool) -> bool {
        let mut any = false;
        for at in 0..self.pipes.len() {
            // A bounded number of turns, so that a writer that never stops cannot hold the clock up.
            for _ in 0..16 {
                if !self.read_once(at, tail) {
                    break;
                }
                any = true;
            }
        }
        any
    }

    fn read_once(&mut self, at: usize, tail: bool) -> bool {
        let pipe = &mut self.pipes[at];
        let limit = if tail { TAIL } else { AHEAD };
        if pipe.left > 0 && self.queued >= limit && !tail {
            return false;
        }
        let Some(from) = pipe.from.as_mut() else {
            return false;
        };
        match from.read(&mut self.scratch) {
            Ok(0) => {
                pipe.from = None;
                false
            }
            Ok(count) => {
                let room = if self.queued >= limit { 0 } else { pipe.left };
                let keep = usize::try_from(room).unwrap_or(usize::MAX).min(count);
                pipe.left -= keep as u64;
                pipe.dropped += (count - keep) as u64;
                if keep > 0 {
                    self.queued += keep;
                    self.queue
                        .push_back((pipe.stream, self.scratch[..keep].to_vec()));
                }
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => true,
            Err(_) => {
                pipe.from = None;
                false
            }
        }
    }

    /// Moves what the credit allows onto the channel.
    pub fn send(&mut self, run: u32, channel: &mut Channel) {
        while self.credit > 0 && channel.pending() < UNSENT {
            let Some((stream, mut data)) = self.queue.pop_front() else {
                return;
            };
            let most = usize::try_from(self.credit)
                .unwrap_or(usize::MAX)
                .min(data.len());
            if most < data.len() {
                let rest = data.split_off(most);
                self.queue.push_front((stream, rest));
            }
            self.queued -= data.len();
            self.credit -= data.len() as u64;
            channel.queue(&Frame::Output { run, stream, data });
        }
    }

    /// Gives up what has not been sent, and counts it.
    pub fn abandon(&mut self) {
        for (stream, data) in self.queue.drain(..) {
            let at = usize::from(stream == Stream::Err);
            self.pipes[at].dropped += data.len() as u64;
        }
        self.queued = 0;
    }
}
