//! The only ractor actor for rooms: ping, ticket, permit, gauges and spans exist here, once.

use std::future::Future;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::ctx::{Ctx, Owned, OwnerGuard, panic_text};
use super::envelope::Envelope;
use super::gate::Gate;
use super::room::{ChildEnd, Crash, Room};
use super::slot::{Place, Slot};

/// How long a crashed or stopped actor waits to see its aborted tasks and killed children gone, so that the next
/// life does not start beside them. One that never awaits is not waited for longer.
const REMAINS: Duration = Duration::from_millis(500);
/// A room's snapshot is published no oftener than this: the page does not need more.
const SNAPSHOT_EVERY: Duration = Duration::from_millis(250);

/// A [`Room`] as a ractor actor: `pub type PairingActor = Shell<Pairing>`.
pub struct Shell<R>(PhantomData<fn() -> R>);

/// A room with what ends with it.
pub struct ShellState<R: Room> {
    /// `None` only between `post_stop` and the drop.
    room: Option<R>,
    gate: Arc<Gate>,
    // Dropped after the room: its tasks and children end with the state, also after a crash.
    owned: OwnerGuard,
    published: Instant,
    slot: Slot<R::Msg>,
    kind: Kind,
    children_stop: Duration,
    /// The next message's handler panics, having waited so often.
    #[cfg(feature = "crash-for-tests")]
    fault: Option<u32>,
}

/// What a room starts from.
pub struct ShellArgs<R: Room> {
    wiring: R::Wiring,
    gate: Arc<Gate>,
    slot: Slot<R::Msg>,
    kind: Kind,
    stop_within: Duration,
}

/// Who looks after the actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The root: restarted, pinged.
    Permanent,
    /// Another room.
    Temporary,
}

/// Starts a room under a supervisor.
pub(super) async fn spawn_shell<R: Room>(
    wiring: R::Wiring,
    gate: Arc<Gate>,
    slot: Slot<R::Msg>,
    supervisor: ActorCell,
    kind: Kind,
    stop_within: Duration,
) -> Result<ActorRef<Envelope<R::Msg>>, Crash> {
    let args = ShellArgs {
        wiring,
        gate,
        slot,
        kind,
        stop_within,
    };
    // Unnamed: ractor's registry is process-global and two trees in one test process would collide.
    let (actor, _join) = Actor::spawn_linked(None, Shell::<R>(PhantomData), args, supervisor)
        .await
        .map_err(|e| match e {
            ractor::SpawnErr::StartupFailed(why) => Crash::new(why),
            other => Crash::new(other),
        })?;
    Ok(actor)
}

impl<R: Room> Actor for Shell<R> {
    type Msg = Envelope<R::Msg>;
    type State = ShellState<R>;
    type Arguments = ShellArgs<R>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let owned = Arc::new(Owned::default());
        let guard = OwnerGuard(owned.clone());
        let handle = args.slot.handle(args.gate.clone());
        // Half: a child that does not stop must leave its owner time for its own stop.
        let children_stop = args.stop_within / 2;
        let cell = myself.get_cell();
        let ctx = Ctx::new(myself, handle, args.gate.clone(), owned, children_stop);
        let room = match caught(R::start(&args.wiring, ctx)).await {
            Ok(room) => room,
            Err(crash) => {
                clear(&guard.0, &cell).await;
                return Err(boxed(&crash));
            }
        };
        args.gate.vitals.snapshot.send_replace(room.snapshot());
        // A temporary actor says itself that it serves: it may end before its owner hears of its start.
        if args.kind == Kind::Temporary {
            args.slot.set(Place::Up(cell.into()));
        }
        Ok(ShellState {
            room: Some(room),
            gate: args.gate,
            owned: guard,
            published: Instant::now(),
            slot: args.slot,
            kind: args.kind,
            children_stop,
            #[cfg(feature = "crash-for-tests")]
            fault: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let result = caught(state.turn(message)).await;
        state.settle(result, &myself).await
    }

    async fn post_stop(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.leave(&myself);
        // ractor kills the children of a stopped parent without their post_stop (reference: its pitfall 1), and its
        // own wait passes over a child that is stopping already (pitfall 9).
        state.owned.0.close_children();
        let children = myself.get_children();
        for child in &children {
            child.stop(None);
        }
        let ended = join_all(children.iter().map(|child| child.wait(None)));
        if tokio::time::timeout(state.children_stop, ended)
            .await
            .is_err()
        {
            tracing::warn!(target: "portcullis", room = R::NAME, "a child did not stop in time; killed");
        }
        if let Some(room) = state.room.take() {
            room.stop().await;
        }
        // Here and not by the state's drop: the state of a stopped actor travels to its supervisor.
        clear(&state.owned.0, &myself).await;
        Ok(())
    }

    // Never ractor's default: that one stops the parent when any child ends.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (child, end) = match event {
            SupervisionEvent::ActorTerminated(child, remains, reason) => {
                let end = match reason {
                    // Kill of an idle child looks like a normal end with state: the reason tells.
                    Some(reason) if reason == "killed" => ChildEnd::Crashed(reason),
                    _ if remains.is_none() => {
                        ChildEnd::Crashed("ended without its state".to_owned())
                    }
                    _ => ChildEnd::Stopped,
                };
                drop_caught(remains);
                (child, end)
            }
            SupervisionEvent::ActorFailed(child, error) => {
                (child, ChildEnd::Crashed(error.to_string()))
            }
            _ => return Ok(()),
        };
        let Some((name, key)) = state.owned.0.child_gone(child.get_id(), &end) else {
            return Ok(());
        };
        let result = caught(state.child_ended(name, key, end)).await;
        state.settle(result, &myself).await
    }
}

impl<R: Room> ShellState<R> {
    /// One message.
    async fn turn(&mut self, message: Envelope<R::Msg>) -> Result<(), Crash> {
        let Some(room) = self.room.as_mut() else {
            return Ok(());
        };
        let started = Instant::now();
        let result = match message {
            Envelope::Ask(ask) => {
                if ask.ticket.is_some_and(|ticket| !ticket.start()) {
                    self.gate.vitals.turns.fetch_add(1, Relaxed);
                    return Ok(());
                }
                let waited = started.duration_since(ask.queued_at);
                let span = tracing::info_span!(target: "portcullis", parent: &ask.span, "room", otel.name = R::NAME, room = R::NAME);
                let work = room.handle(ask.body).instrument(span);
                #[cfg(feature = "crash-for-tests")]
                let work = super::fault::broken(work, self.fault.take());
                let result = work.await;
                self.gate.vitals.handled_one(waited, started);
                drop(ask.permit);
                result
            }
            Envelope::Own { body, tick } => {
                let result = room.handle(body).await;
                self.gate.vitals.handled_one(Duration::ZERO, started);
                drop(tick);
                result
            }
            Envelope::TaskEnded { name, key, end } => room.task_ended(name, key, end).await,
            Envelope::ChildEnded { name, key, end } => self.child_ended(name, key, end).await,
            Envelope::Ping => Ok(()),
            #[cfg(feature = "crash-for-tests")]
            Envelope::Panic(at) => {
                self.break_at(at);
                Ok(())
            }
        };
        self.gate.vitals.turns.fetch_add(1, Relaxed);
        if let Some(room) = &self.room
            && self.published.elapsed() >= SNAPSHOT_EVERY
        {
            self.published = Instant::now();
            self.gate.vitals.snapshot.send_replace(room.snapshot());
        }
        result
    }

    #[cfg(feature = "crash-for-tests")]
    fn break_at(&mut self, at: super::fault::PanicAt) {
        use super::fault::PanicAt;
        match at {
            PanicAt::Now => panic!("planned"),
            PanicAt::Await(nth) => self.fault = Some(nth),
            PanicAt::YoungestChild(name) => self.owned.0.panic_youngest(name),
        }
    }

    async fn child_ended(
        &mut self,
        name: &'static str,
        key: u64,
        end: ChildEnd,
    ) -> Result<(), Crash> {
        if let ChildEnd::Crashed(why) = &end {
            tracing::warn!(target: "portcullis", room = R::NAME, child = name, key, why, "child crashed");
        }
        // Ends of children overtake every message: a storm of them is a loop that turns.
        self.gate.vitals.turns.fetch_add(1, Relaxed);
        match self.room.as_mut() {
            Some(room) => room.child_ended(name, key, end).await,
            None => Ok(()),
        }
    }

    /// After a crash everything of this life goes before the supervisor hears of it: ractor would drop the state
    /// only after the event, and the next life would find files locked and tasks at work.
    async fn settle(
        &mut self,
        result: Result<(), Crash>,
        myself: &ActorCell,
    ) -> Result<(), ActorProcessingErr> {
        let Err(crash) = result else { return Ok(()) };
        self.leave(myself);
        drop_caught(self.room.take());
        clear(&self.owned.0, myself).await;
        Err(boxed(&crash))
    }

    /// From here on nobody sends into a mailbox that is thrown away: callers of a permanent room wait for its next
    /// life, a temporary one is gone for good, however busy its owner is.
    fn leave(&self, myself: &ActorCell) {
        let place = match self.kind {
            Kind::Permanent => Place::Starting,
            Kind::Temporary => Place::Down,
        };
        self.slot.left(myself.get_id(), place);
    }
}

/// Ends tasks and children, and sees them gone.
async fn clear(owned: &Owned, actor: &ActorCell) {
    let tasks = owned.close_tasks();
    owned.close_children();
    let children = actor.get_children();
    for child in &children {
        child.kill();
    }
    let gone = async {
        join_all(tasks).await;
        join_all(children.iter().map(|child| child.wait(None))).await;
    };
    // One that never awaits is left behind; the pings of the next life or the watchdog see what it does.
    let _ = tokio::time::timeout(REMAINS, gone).await;
}

/// A panic is a crash like another.
async fn caught<T>(work: impl Future<Output = Result<T, Crash>>) -> Result<T, Crash> {
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(Crash::new(panic_text(panic.as_ref()))))
}

/// Drops what may be a room: a panic in its drop must not end who only cleans up.
pub(super) fn drop_caught<T>(remains: T) {
    if std::panic::catch_unwind(AssertUnwindSafe(|| drop(remains))).is_err() {
        tracing::error!(target: "portcullis", "a room panicked in its drop");
    }
}

fn boxed(crash: &Crash) -> ActorProcessingErr {
    ActorProcessingErr::from(crash.why().to_owned())
}
