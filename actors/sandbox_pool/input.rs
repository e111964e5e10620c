//! What goes into a run that is under way: standard input, the size of its terminal, signals.
//!
//! The way is one channel of the run's own, so that what is typed passes no other room's mailbox. Bytes that the cell has no room for are
//! never kept here, but for one piece whose sender waits for its answer.

use std::fmt;

use portcullis_cell::{INPUT_WINDOW, Input, Size};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Orders on their way to a run.
const WAITING: usize = 4;

/// What is wanted of a run.
#[derive(Debug)]
pub enum RunInput {
    /// Standard input.
    Stdin(Piece),
    /// Its terminal has another size.
    Resize(Size, Told),
    /// One of [`portcullis_cell::SIGNALS`], for everything of it, or for the foreground of its terminal.
    Signal(u8, Told),
}

/// Where it is said whether it was passed on; dropped unanswered, the run is over.
pub type Told = oneshot::Sender<Result<(), NotTaken>>;

/// A piece of standard input.
#[derive(Debug)]
pub struct Piece {
    /// Its place in the whole of it, in bytes.
    pub offset: u64,
    /// The bytes, at most [`portcullis_cell::MAX_INPUT`].
    pub data: Input,
    /// They are the last.
    pub eof: bool,
    /// How long it may wait for room.
    pub until: Instant,
    /// How far it was taken; dropped unanswered, the run is over.
    pub reply: oneshot::Sender<Result<Taken, NotTaken>>,
}

/// How far standard input was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Where the next piece begins.
    pub offset: u64,
    /// Bytes for which there is room now.
    pub credit: u32,
}

/// Why it was not passed on. Nothing of it has reached the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The command has not read what it was sent.
    #[error("the command has not read its input yet, and no more of it is held for it")]
    Full(Taken),
    /// Bytes before it are missing.
    #[error("the input goes on at byte {0}: something before this piece is missing")]
    Gap(u64),
    /// It has no open standard input, or the end of it was said.
    #[error("the command's standard input is not open, or its end was said")]
    Closed,
    /// It has no terminal.
    #[error("the command has no terminal")]
    NoTerminal,
}

/// The way into a run. It ends with the run.
#[derive(Clone)]
pub struct RunInputs(mpsc::Sender<RunInput>);

impl RunInputs {
    /// A new one, and the run's end of it.
    pub fn new() -> (Self, mpsc::Receiver<RunInput>) {
        let (inputs, orders) = mpsc::channel(WAITING);
        (Self(inputs), orders)
    }

    /// Passes one on. Waits while others are on their way; where the run is over it is dropped, and with it its answer.
    pub async fn put(&self, input: RunInput) {
        let _ = self.0.send(input).await;
    }
}

impl fmt::Debug for RunInputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunInputs")
    }
}

impl PartialEq for RunInputs {
    fn eq(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }
}

impl Eq for RunInputs {}

/// The host's side of one run's standard input: what was sent, what may be, and the piece that waits.
#[derive(Debug)]
pub struct Stdin {
    sent: u64,
    credit: u32,
    waiting: Option<Piece>,
    /// The cell was told of the end.
    ended: bool,
}

/// What the cell is to be sent.
pub enum ToCell {
    /// Bytes.
    Bytes(Input),
    /// That was all.
    End,
}

impl Stdin {
    /// Nothing sent.
    pub const fn new() -> Self {
        Self {
            sent: 0,
            credit: INPUT_WINDOW,
            waiting: None,
            ended: false,
        }
    }

    /// Takes a piece, or refuses it.
    pub fn offer(&mut self, piece: Piece) {
        if self.ended {
            let end = piece.offset.checked_add(piece.data.expose().len() as u64);
            let again = piece.eof && end == Some(self.sent);
            let answer = if again {
                Ok(self.taken())
            } else {
                Err(NotTaken::Closed)
            };
            let _ = piece.reply.send(answer);
        } else if piece.offset > self.sent {
            let _ = piece.reply.send(Err(NotTaken::Gap(self.sent)));
        } else if self.waiting.is_some() {
            let _ = piece.reply.send(Err(NotTaken::Full(self.taken())));
        } else {
            self.waiting = Some(piece);
        }
    }

    /// More room; false where there cannot be so much.
    pub fn grant(&mut self, bytes: u32) -> bool {
        let credit = self.credit.checked_add(bytes);
        credit
            .filter(|credit| *credit <= INPUT_WINDOW)
            .is_some_and(|credit| {
                self.credit = credit;
                true
            })
    }

    /// What of the waiting piece may go now.
    pub fn next(&mut self) -> Option<ToCell> {
        let piece = self.waiting.as_mut()?;
        if piece.reply.is_closed() {
            // Its sender has given up: a repeat begins where this came to.
            self.waiting = None;
            return None;
        }
        // What of it was sent before stands: a repeat is no second time.
        let before = usize::try_from(self.sent - piece.offset).unwrap_or(usize::MAX);
        let left = piece.data.expose().get(before..).unwrap_or_default();
        let most = left
            .len()
            .min(usize::try_from(self.credit).unwrap_or(usize::MAX));
        let bytes = (most > 0).then(|| Input::new(left[..most].to_vec()));
        let whole = most == left.len();
        let size = u32::try_from(most).unwrap_or(u32::MAX);
        self.credit -= size;
        self.sent += u64::from(size);
        if let Some(bytes) = bytes {
            return Some(ToCell::Bytes(bytes));
        }
        if !whole {
            return None;
        }
        let piece = self.waiting.take()?;
        let _ = piece.reply.send(Ok(self.taken()));
        self.ended = piece.eof;
        piece.eof.then_some(ToCell::End)
    }

    /// When the waiting piece has waited long enough.
    pub fn until(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|piece| piece.until)
    }

    /// The waiting piece waits no more: as much of it as was sent is.
    pub fn expire(&mut self) {
        if let Some(piece) = self.waiting.take() {
            let taken = self.taken();
            let some = self.sent > piece.offset;
            let answer = if some {
                Ok(taken)
            } else {
                Err(NotTaken::Full(taken))
            };
            let _ = piece.reply.send(answer);
        }
    }

    const fn taken(&self) -> Taken {
        Taken {
            offset: self.sent,
            credit: self.credit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answer = oneshot::Receiver<Result<Taken, NotTaken>>;

    fn piece(offset: u64, data: &[u8], eof: bool) -> (Piece, Answer) {
        let (reply, answer) = oneshot::channel();
        let piece = Piece {
            offset,
            data: Input::new(data.to_vec()),
            eof,
            until: Instant::now(),
            reply,
        };
        (piece, answer)
    }

    fn sent(stdin: &mut Stdin) -> (Vec<u8>, bool) {
        let (mut bytes, mut end) = (Vec::new(), false);
        while let Some(next) = stdin.next() {
            match next {
                ToCell::Bytes(data) => bytes.extend(data.expose()),
                ToCell::End => end = true,
            }
        }
        (bytes, end)
    }

    #[tokio::test]
    async fn a_repeat_is_harmless_a_gap_an_error_and_the_end_comes_once() {
        let mut stdin = Stdin::new();
        let mut give = |offset, data: &[u8], eof| {
            let (piece, mut answer) = piece(offset, data, eof);
            stdin.offer(piece);
            let seen = sent(&mut stdin);
            (seen, answer.try_recv().unwrap())
        };
        let taken = |offset| {
            Ok(Taken {
                offset,
                credit: INPUT_WINDOW - u32::try_from(offset).unwrap(),
            })
        };
        assert_eq!(give(0, b"abc", false), ((b"abc".to_vec(), false), taken(3)));
        assert_eq!(give(0, b"abc", false), ((vec![], false), taken(3)));
        assert_eq!(give(1, b"bcde", false), ((b"de".to_vec(), false), taken(5)));
        assert_eq!(
            give(6, b"g", false),
            ((vec![], false), Err(NotTaken::Gap(5)))
        );
        assert_eq!(give(5, b"f", true), ((b"f".to_vec(), true), taken(6)));
        assert_eq!(give(5, b"f", true), ((vec![], false), taken(6)));
        for (offset, data, eof) in [(6, &b"g"[..], true), (6, b"", false), (5, b"f", false)] {
            assert_eq!(
                give(offset, data, eof),
                ((vec![], false), Err(NotTaken::Closed))
            );
        }
    }

    #[tokio::test]
    async fn no_more_than_the_credit_is_sent_and_one_piece_waits() {
        let mut stdin = Stdin::new();
        let window = usize::try_from(INPUT_WINDOW).unwrap();
        let half = vec![7; window / 2];
        let mut offset = 0;
        for _ in 0..2 {
            let (piece, _answer) = piece(offset, &half, false);
            stdin.offer(piece);
            assert_eq!(sent(&mut stdin).0.len(), half.len());
            offset += half.len() as u64;
        }
        let (third, mut answer) = piece(offset, &half, false);
        stdin.offer(third);
        assert_eq!(sent(&mut stdin).0, b"");
        let (fourth, mut refused) = piece(offset, &half, false);
        stdin.offer(fourth);
        let full = Taken { offset, credit: 0 };
        assert_eq!(refused.try_recv().unwrap(), Err(NotTaken::Full(full)));
        assert!(
            !stdin.grant(INPUT_WINDOW + 1),
            "more than it was ever given"
        );
        assert!(stdin.grant(100));
        assert_eq!(sent(&mut stdin).0.len(), 100);
        assert!(answer.try_recv().is_err(), "the rest still waits");
        stdin.expire();
        let offset = offset + 100;
        assert_eq!(answer.try_recv().unwrap(), Ok(Taken { offset, credit: 0 }));
        let (fifth, mut answer) = piece(offset, b"x", false);
        stdin.offer(fifth);
        stdin.expire();
        let full = Taken { offset, credit: 0 };
        assert_eq!(answer.try_recv().unwrap(), Err(NotTaken::Full(full)));
    }

    #[tokio::test]
    async fn a_piece_whose_sender_gave_up_is_not_sent() {
        let mut stdin = Stdin::new();
        let (one, answer) = piece(0, b"abc", true);
        drop(answer);
        stdin.offer(one);
        assert_eq!(sent(&mut stdin), (vec![], false));
    }
}
