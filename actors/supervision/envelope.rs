//! What travels in a mailbox, and the reply that goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::gate::Permit;
use super::room::{ChildEnd, TaskEnd};

/// The one message type of every [`super::shell::Shell`].
pub enum Envelope<M> {
    /// From another room.
    Ask(Ask<M>),
    /// From the room's own task or timer: takes no permit, so that news of its own work cannot be refused.
    Own {
        /// What it says.
        body: M,
        /// Of a repeating timer: the next tick comes only after this one was handled.
        tick: Option<Tick>,
    },
    /// A task ended by itself.
    TaskEnded {
        /// Its name.
        name: &'static str,
        /// Its key.
        key: u64,
        /// How.
        end: TaskEnd,
    },
    /// A child ended before its owner had entered it.
    ChildEnded {
        /// Its noun.
        name: &'static str,
        /// Its key.
        key: u64,
        /// How.
        end: ChildEnd,
    },
    /// From the supervisor: answered by the loop turning at all.
    Ping,
    /// From a test.
    #[cfg(feature = "crash-for-tests")]
    Panic(super::fault::PanicAt),
}

/// A message with what must stay with it until it is answered.
pub struct Ask<M> {
    pub(super) body: M,
    /// `None` for a call: there the permit is in the [`Reply`], which may outlive the handler.
    pub(super) permit: Option<Permit>,
    pub(super) ticket: Option<Arc<Ticket>>,
    pub(super) queued_at: Instant,
    pub(super) span: tracing::Span,
}

/// A repeating timer's one tick in the mailbox: a stuck loop does not pile them up.
pub struct Tick(Arc<AtomicBool>);

impl Tick {
    /// `None`: the last tick was not handled yet.
    pub(super) fn new(pending: &Arc<AtomicBool>) -> Option<Self> {
        (!pending.swap(true, Ordering::AcqRel)).then(|| Self(pending.clone()))
    }
}

impl Drop for Tick {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

const WAITING: u8 = 0;
const STARTED: u8 = 1;
const ABANDONED: u8 = 2;

/// Decides between caller and room, once and for all, whether a message runs: a caller that was told "did not run"
/// can rely on it.
#[derive(Debug, Default)]
pub(super) struct Ticket(AtomicU8);

impl Ticket {
    /// The room takes the message. `false`: the caller gave up before.
    pub(super) fn start(&self) -> bool {
        self.0
            .compare_exchange(WAITING, STARTED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// The caller gives up. `true`: the message will never run.
    pub(super) fn abandon(&self) -> bool {
        self.0
            .compare_exchange(WAITING, ABANDONED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// The caller's end of a call that is dropped early (its own caller went away) withdraws a message not yet started.
pub(super) struct AbandonOnDrop(pub(super) Arc<Ticket>);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Where the answer of a call goes. Dropped unanswered, the caller gets `Unavailable { may_have_run: true }`.
/// Holds the message's permit, so work handed to a task or thread still counts against the room's gate.
#[derive(Debug)]
pub struct Reply<T, E> {
    // Before the sender, in every drop: a caller that has its answer must find its place in the gate free again.
    permit: Option<Permit>,
    tx: oneshot::Sender<Result<T, E>>,
}

impl<T, E> Reply<T, E> {
    pub(super) fn new(permit: Option<Permit>) -> (Self, oneshot::Receiver<Result<T, E>>) {
        let (tx, rx) = oneshot::channel();
        (Self { permit, tx }, rx)
    }

    /// Is the caller still there? To be tested before any effect.
    pub fn is_wanted(&self) -> bool {
        !self.tx.is_closed()
    }

    /// Answers with a value.
    pub fn ok(self, value: T) {
        self.send(Ok(value));
    }

    /// Answers with a refusal.
    pub fn refuse(self, error: E) {
        self.send(Err(error));
    }

    /// Answers.
    pub fn send(self, answer: Result<T, E>) {
        drop(self.permit);
        // A caller that gave up meanwhile is told nothing: its own deadline said so already.
        let _ = self.tx.send(answer);
    }
}

/// Why a call brought no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E> {
    /// The room is down, or went down with the message.
    #[error("the room is down")]
    Unavailable {
        /// The handler had begun.
        may_have_run: bool,
    },
    /// The room's gate is full. Nothing ran.
    #[error("the room is overloaded")]
    Overloaded,
    /// No answer in time.
    #[error("no answer in time")]
    Deadline {
        /// The handler had begun. `false`: it never will.
        may_have_run: bool,
    },
    /// The room decided: no.
    #[error("{0}")]
    Refused(E),
}

impl<E> CallError<E> {
    /// Carries a call's failure over to another refusal type.
    pub fn map<F>(self, f: impl FnOnce(E) -> F) -> CallError<F> {
        match self {
            Self::Unavailable { may_have_run } => CallError::Unavailable { may_have_run },
            Self::Overloaded => CallError::Overloaded,
            Self::Deadline { may_have_run } => CallError::Deadline { may_have_run },
            Self::Refused(e) => CallError::Refused(f(e)),
        }
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// The room is down.
    #[error("the room is down")]
    Unavailable,
    /// The room's gate is full.
    #[error("the room is overloaded")]
    Overloaded,
}
