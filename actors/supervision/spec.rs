//! What the tree knows of a permanent room: how to start, restart and stop it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ractor::{ActorCell, ActorRef};

use super::envelope::Envelope;
use super::gate::{Gate, GateView};
use super::room::{Crash, Room, Snapshot};
use super::shell::{Kind, spawn_shell};
use super::slot::{Handle, Place, Slot};

/// How one room is kept alive.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Messages it accepts at once (its gate).
    pub capacity: usize,
    /// Time for [`Room::start`].
    pub start_within: Duration,
    /// Time for [`Room::stop`] at shutdown, then it is killed.
    pub stop_within: Duration,
    /// Over its intensity it ends the process (exit 70): without it nothing may act.
    pub critical: bool,
}

impl Policy {
    /// A room that may stay down while the rest serves.
    pub const fn new(capacity: usize) -> Self {
        Self {
            capacity,
            start_within: Duration::from_secs(30),
            stop_within: Duration::from_secs(5),
            critical: false,
        }
    }

    /// A room without which the process must not live.
    #[must_use]
    pub const fn critical(mut self) -> Self {
        self.critical = true;
        self
    }

    /// Its own time to start.
    #[must_use]
    pub const fn start_within(mut self, limit: Duration) -> Self {
        self.start_within = limit;
        self
    }

    /// Its own time to stop.
    #[must_use]
    pub const fn stop_within(mut self, limit: Duration) -> Self {
        self.stop_within = limit;
        self
    }
}

/// How often a room may crash, and how long the tree waits between restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Intensity {
    /// Restarts allowed within the window.
    pub max_restarts: u32,
    /// The window, seconds.
    pub window_secs: u64,
    /// A room this long up, in seconds, starts from a clean record.
    pub healthy_after_secs: u64,
    /// Between two pings of a room, seconds. Two missed ones and it is killed.
    pub ping_secs: u64,
}

impl Default for Intensity {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            window_secs: 30,
            healthy_after_secs: 60,
            ping_secs: 10,
        }
    }
}

/// First wait after an immediate restart; doubles up to [`BACKOFF_MAX`].
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Between attempts of a room that is over its intensity.
pub(super) const OVER_INTENSITY_WAIT: Duration = Duration::from_secs(30);

/// The wait before the n-th restart in a row (n from 1), with `jitter` in 0..=255 taking off up to a quarter, so
/// that rooms that fell together do not come back together.
pub(super) fn backoff(nth: u32, jitter: u8) -> Duration {
    if nth <= 1 {
        return Duration::ZERO;
    }
    let full = BACKOFF_FIRST
        .saturating_mul(1u32.checked_shl(nth - 2).unwrap_or(u32::MAX))
        .min(BACKOFF_MAX);
    full.saturating_sub(full.mul_f64(f64::from(jitter) / 1024.0))
}

pub(super) type Spawning = Pin<Box<dyn Future<Output = Result<ActorCell, Crash>> + Send>>;

/// A room with its types erased, for the tree.
pub(super) trait Child: Send + Sync {
    fn name(&self) -> &'static str;
    fn policy(&self) -> Policy;
    /// Lazy: nothing of the room runs before the first poll.
    fn spawn(self: Arc<Self>, supervisor: ActorCell) -> Spawning;
    fn starting(&self);
    fn up(&self, cell: &ActorCell);
    fn down(&self);
    fn ping(&self, cell: &ActorCell);
    fn turns(&self) -> u64;
    fn is_waiting(&self) -> bool;
    fn gate(&self) -> GateView;
    fn snapshot(&self) -> Snapshot;
    #[cfg(feature = "crash-for-tests")]
    fn panic(&self, at: super::fault::PanicAt) -> bool;
}

pub(super) struct Permanent<R: Room> {
    wiring: R::Wiring,
    gate: Arc<Gate>,
    slot: Slot<R::Msg>,
    policy: Policy,
}

impl<R: Room> Permanent<R> {
    pub(super) fn new(
        policy: Policy,
        gate: Arc<Gate>,
        slot: Slot<R::Msg>,
        wiring: R::Wiring,
    ) -> Self {
        Self {
            wiring,
            gate,
            slot,
            policy,
        }
    }
}

/// A place in the tree that has its handle already but not yet its wiring: for feeds and handles that must exist
/// before the room does.
pub(super) fn place<R: Room>(policy: Policy) -> (Arc<Gate>, Slot<R::Msg>, Handle<R::Msg>) {
    let gate = Gate::new(R::NAME, policy.capacity);
    let slot = Slot::new();
    let handle = slot.handle(gate.clone());
    (gate, slot, handle)
}

impl<R: Room> Child for Permanent<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn policy(&self) -> Policy {
        self.policy
    }

    fn spawn(self: Arc<Self>, supervisor: ActorCell) -> Spawning {
        Box::pin(async move {
            let (wiring, gate, slot) = (self.wiring.clone(), self.gate.clone(), self.slot.clone());
            let (within, stop) = (self.policy.start_within, self.policy.stop_within);
            let start = spawn_shell::<R>(wiring, gate, slot, supervisor, Kind::Permanent, stop);
            let actor = tokio::time::timeout(within, start)
                .await
                .map_err(|_| Crash::new(format!("did not start within {within:?}")))??;
            Ok(actor.get_cell())
        })
    }

    fn starting(&self) {
        self.slot.set(Place::Starting);
    }

    fn up(&self, cell: &ActorCell) {
        self.slot.set(Place::Up(cell.clone().into()));
    }

    fn down(&self) {
        self.slot.set(Place::Down);
    }

    fn ping(&self, cell: &ActorCell) {
        let actor: ActorRef<Envelope<R::Msg>> = cell.clone().into();
        // A dead actor's event is on its way.
        let _ = actor.send_message(Envelope::Ping);
    }

    fn turns(&self) -> u64 {
        self.gate.vitals.turns.load(Relaxed)
    }

    fn is_waiting(&self) -> bool {
        self.gate.vitals.is_waiting()
    }

    fn gate(&self) -> GateView {
        self.gate.view()
    }

    fn snapshot(&self) -> Snapshot {
        self.gate.vitals.snapshot.borrow().clone()
    }

    #[cfg(feature = "crash-for-tests")]
    fn panic(&self, at: super::fault::PanicAt) -> bool {
        self.slot.send(Envelope::Panic(at))
    }
}
