//! Where a room is now. A restart makes a new mailbox and a new ref, so nobody stores an `ActorRef`.

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorId, ActorRef, MessagingErr};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::envelope::{AbandonOnDrop, Ask, CallError, Envelope, Reply, TellError, Ticket};
use super::gate::Gate;

/// What an absurdly long deadline is cut to (thirty years): the clock cannot hold more.
const FOR_EVER: Duration = Duration::from_hours(30 * 365 * 24);

/// The state of a room's place in the tree.
pub(super) enum Place<M> {
    /// Being started or restarted: callers wait, no longer than their own deadline.
    Starting,
    /// Serving.
    Up(ActorRef<Envelope<M>>),
    /// Stopped, or over its intensity: callers are refused at once.
    Down,
}

pub(super) struct Slot<M> {
    tx: Arc<watch::Sender<Place<M>>>,
}

// Derived `Clone` would ask for `M: Clone`.
impl<M> Clone for Slot<M> {
    fn clone(&self) -> Self {
        Self {
            tx: self.tx.clone(),
        }
    }
}

impl<M: Send + 'static> Slot<M> {
    pub(super) fn new() -> Self {
        Self {
            tx: Arc::new(watch::Sender::new(Place::Starting)),
        }
    }

    pub(super) fn set(&self, place: Place<M>) {
        self.tx.send_replace(place);
    }

    /// The actor itself says that it ends: only if it is still the one reached here, and nobody said `Down` before.
    pub(super) fn left(&self, actor: ActorId, place: Place<M>) {
        let mut place = Some(place);
        self.tx.send_if_modified(|now| match (&*now, place.take()) {
            (Place::Up(up), Some(next)) if up.get_id() == actor => {
                *now = next;
                true
            }
            _ => false,
        });
    }

    /// Past the gate. `false`: nobody is there.
    #[cfg(feature = "crash-for-tests")]
    pub(super) fn send(&self, envelope: Envelope<M>) -> bool {
        matches!(&*self.tx.borrow(), Place::Up(actor) if actor.send_message(envelope).is_ok())
    }

    pub(super) fn handle(&self, gate: Arc<Gate>) -> Handle<M> {
        Handle {
            place: self.tx.subscribe(),
            gate,
        }
    }
}

/// The only way to a room. Survives the room's restarts.
pub struct Handle<M> {
    place: watch::Receiver<Place<M>>,
    gate: Arc<Gate>,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self {
            place: self.place.clone(),
            gate: self.gate.clone(),
        }
    }
}

impl<M> std::fmt::Debug for Handle<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl<M: Send + 'static> Handle<M> {
    /// Asks and waits for the answer, `within` at most. A message whose caller got `may_have_run: false` never runs.
    ///
    /// # Errors
    /// [`CallError`]; `Refused` holds the room's own refusal.
    pub async fn call<T, E>(
        &self,
        within: Duration,
        make: impl FnOnce(Reply<T, E>) -> M,
    ) -> Result<T, CallError<E>> {
        let permit = self.gate.enter().ok_or(CallError::Overloaded)?;
        let now = Instant::now();
        let deadline = now.checked_add(within).unwrap_or(now + FOR_EVER);
        let ticket = Arc::new(Ticket::default());
        let (reply, answer) = Reply::new(Some(permit));
        let envelope = Envelope::Ask(Ask {
            body: make(reply),
            permit: None,
            ticket: Some(ticket.clone()),
            queued_at: Instant::now(),
            span: tracing::Span::current(),
        });
        let _withdraw = AbandonOnDrop(ticket.clone());
        match self.deliver(envelope, Some(deadline)).await {
            Delivery::Sent => {}
            Delivery::Down => {
                return Err(CallError::Unavailable {
                    may_have_run: false,
                });
            }
            Delivery::Late => {
                return Err(CallError::Deadline {
                    may_have_run: false,
                });
            }
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(refusal))) => Err(CallError::Refused(refusal)),
            Ok(Err(_dropped)) => Err(CallError::Unavailable {
                may_have_run: !ticket.abandon(),
            }),
            Err(_late) => Err(CallError::Deadline {
                may_have_run: !ticket.abandon(),
            }),
        }
    }

    /// Tells without an answer. Does not wait for a room that is being restarted.
    ///
    /// # Errors
    /// [`TellError`]: nothing was sent.
    pub async fn tell(&self, msg: M) -> Result<(), TellError> {
        let permit = self.gate.enter().ok_or(TellError::Overloaded)?;
        let envelope = Envelope::Ask(Ask {
            body: msg,
            permit: Some(permit),
            ticket: None,
            queued_at: Instant::now(),
            span: tracing::Span::current(),
        });
        match self.deliver(envelope, None).await {
            Delivery::Sent => Ok(()),
            Delivery::Down | Delivery::Late => Err(TellError::Unavailable),
        }
    }

    /// Is the room serving now? For `readyz` and the page; a caller just calls.
    pub fn is_up(&self) -> bool {
        matches!(*self.place.borrow(), Place::Up(_))
    }

    async fn deliver(&self, envelope: Envelope<M>, deadline: Option<Instant>) -> Delivery {
        let mut envelope = match self.try_send(envelope) {
            Ok(()) => return Delivery::Sent,
            Err((_, Place::Down)) => return Delivery::Down,
            Err((envelope, _)) => envelope,
        };
        let Some(deadline) = deadline else {
            return Delivery::Down;
        };
        let mut place = self.place.clone();
        loop {
            // A dead ref still in `Up` is the moment between a crash and its event: the next change follows.
            place.mark_unchanged();
            envelope = match self.try_send(envelope) {
                Ok(()) => return Delivery::Sent,
                Err((_, Place::Down)) => return Delivery::Down,
                Err((envelope, _)) => envelope,
            };
            match timeout_at(deadline, place.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_tree_gone)) => return Delivery::Down,
                Err(_late) => return Delivery::Late,
            }
        }
    }

    fn try_send(&self, envelope: Envelope<M>) -> Result<(), (Envelope<M>, Place<M>)> {
        match &*self.place.borrow() {
            Place::Starting => Err((envelope, Place::Starting)),
            Place::Down => Err((envelope, Place::Down)),
            Place::Up(actor) => match actor.send_message(envelope) {
                Err(MessagingErr::SendErr(back)) => Err((back, Place::Starting)),
                // The type is fixed by the slot, so ractor's other two errors cannot occur; the message is lost
                // with them, and the caller sees a dropped reply.
                Ok(()) | Err(_) => Ok(()),
            },
        }
    }
}

enum Delivery {
    Sent,
    Down,
    Late,
}
