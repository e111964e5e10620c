//! The only ractor actor for rooms: ping, ticket, permit, gauges and spans exist here, once.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::ctx::{Ctx, Owned, OwnerGuard};
use super::envelope::Envelope;
use super::gate::Gate;
use super::room::{ChildEnd, Crash, Room};
use super::slot::Slot;

/// How long the children of a stopping actor may take for their own stop.
const CHILDREN_STOP: Duration = Duration::from_secs(5);
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
}

/// What a room starts from.
pub struct ShellArgs<R: Room> {
    wiring: R::Wiring,
    gate: Arc<Gate>,
    slot: Slot<R::Msg>,
}

/// Starts a room under a supervisor.
pub(super) async fn spawn_shell<R: Room>(
    wiring: R::Wiring,
    gate: Arc<Gate>,
    slot: Slot<R::Msg>,
    supervisor: ActorCell,
) -> Result<ActorRef<Envelope<R::Msg>>, Crash> {
    let args = ShellArgs { wiring, gate, slot };
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
        let ctx = Ctx::new(myself, handle, args.gate.clone(), owned);
        let room = R::start(&args.wiring, ctx).await.map_err(boxed)?;
        args.gate.vitals.snapshot.send_replace(room.snapshot());
        Ok(ShellState {
            room: Some(room),
            gate: args.gate,
            owned: guard,
            published: Instant::now(),
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let Some(room) = state.room.as_mut() else {
            return Ok(());
        };
        let started = Instant::now();
        let result = match message {
            Envelope::Ask(ask) => {
                if ask.ticket.is_some_and(|ticket| !ticket.start()) {
                    state.gate.vitals.turns.fetch_add(1, Relaxed);
                    return Ok(());
                }
                let waited = started.duration_since(ask.queued_at);
                let span = tracing::info_span!(target: "portcullis", parent: &ask.span, "room", room = R::NAME);
                let result = room.handle(ask.body).instrument(span).await;
                state.gate.vitals.handled_one(waited, started);
                drop(ask.permit);
                result
            }
            Envelope::Own(body) => {
                let result = room.handle(body).await;
                state.gate.vitals.handled_one(Duration::ZERO, started);
                result
            }
            Envelope::TaskEnded { name, key, end } => room.task_ended(name, key, end).await,
            Envelope::Ping => Ok(()),
        };
        state.gate.vitals.turns.fetch_add(1, Relaxed);
        if state.published.elapsed() >= SNAPSHOT_EVERY {
            state.published = Instant::now();
            state.gate.vitals.snapshot.send_replace(room.snapshot());
        }
        result.map_err(boxed)
    }

    async fn post_stop(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // ractor kills the children of a stopped parent without their post_stop (reference: its pitfall 1).
        myself
            .stop_children_and_wait(None, Some(CHILDREN_STOP))
            .await;
        if let Some(room) = state.room.take() {
            room.stop().await;
        }
        Ok(())
    }

    // Never ractor's default: that one stops the parent when any child ends.
    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (child, end) = match event {
            SupervisionEvent::ActorTerminated(child, state, reason) => {
                let end = match reason {
                    // Kill of an idle child looks like a normal end with state: the reason tells.
                    Some(reason) if reason == "killed" => ChildEnd::Crashed(reason),
                    _ if state.is_none() => ChildEnd::Crashed("ended without its state".to_owned()),
                    _ => ChildEnd::Stopped,
                };
                (child, end)
            }
            SupervisionEvent::ActorFailed(child, error) => {
                (child, ChildEnd::Crashed(error.to_string()))
            }
            _ => return Ok(()),
        };
        let Some((name, key)) = state.owned.0.child_gone(child.get_id()) else {
            return Ok(());
        };
        if let ChildEnd::Crashed(why) = &end {
            tracing::warn!(target: "portcullis", room = R::NAME, child = name, key, why, "child crashed");
        }
        match state.room.as_mut() {
            Some(room) => room.child_ended(name, key, end).await.map_err(boxed),
            None => Ok(()),
        }
    }
}

fn boxed(crash: Crash) -> ActorProcessingErr {
    ActorProcessingErr::from(crash.why().to_owned())
}
