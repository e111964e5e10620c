//! Back-pressure over ractor's unbounded mailboxes: a permit per message, and the gauges of one room.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::room::Snapshot;

/// Blocking jobs (scrypt, file work) that one room may have at once; the process has 8 blocking threads.
const BLOCKING_PER_ROOM: usize = 2;

/// The declared capacity of a room. A permit is held from the send until the reply is sent (or the message is
/// dropped, also by a crash that flushes the mailbox), so memory is bounded by the sum of gates.
#[derive(Debug)]
pub(super) struct Gate {
    room: &'static str,
    capacity: usize,
    permits: Arc<Semaphore>,
    /// Blocking jobs. Here and not with the actor: a job outlives a crash, and the next life must count it.
    pub(super) blocking: Arc<Semaphore>,
    high: AtomicUsize,
    refused: AtomicU64,
    pub(super) vitals: Vitals,
}

pub(super) type Permit = OwnedSemaphorePermit;

/// What the loop of one room reports about itself; read by the supervisor and by the page, never waited for.
#[derive(Debug)]
pub(super) struct Vitals {
    /// Messages and pings handled: stands still when the loop does not turn.
    pub(super) turns: AtomicU64,
    pub(super) handled: AtomicU64,
    wait_us: AtomicU64,
    handle_us: AtomicU64,
    max_handle_us: AtomicU64,
    /// How many [`super::ctx::WaitGuard`]s of this life live: the loop may wait on disk or engine.
    waiting: Mutex<Arc<AtomicUsize>>,
    pub(super) snapshot: watch::Sender<Snapshot>,
}

impl Gate {
    pub(super) fn new(room: &'static str, capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            room,
            capacity,
            permits: Arc::new(Semaphore::new(capacity)),
            blocking: Arc::new(Semaphore::new(BLOCKING_PER_ROOM)),
            high: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            vitals: Vitals {
                turns: AtomicU64::new(0),
                handled: AtomicU64::new(0),
                wait_us: AtomicU64::new(0),
                handle_us: AtomicU64::new(0),
                max_handle_us: AtomicU64::new(0),
                waiting: Mutex::default(),
                snapshot: watch::Sender::new(Snapshot::default()),
            },
        })
    }

    /// A permit, or `None` when the room is full.
    pub(super) fn enter(&self) -> Option<Permit> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            let depth = self.capacity - self.permits.available_permits();
            self.high.fetch_max(depth, Relaxed);
            Some(permit)
        } else {
            self.refused.fetch_add(1, Relaxed);
            None
        }
    }

    pub(super) fn view(&self) -> GateView {
        let handled = self.vitals.handled.load(Relaxed);
        let per = |total: &AtomicU64| total.load(Relaxed).checked_div(handled).unwrap_or(0);
        GateView {
            room: self.room,
            capacity: self.capacity,
            depth: self.capacity - self.permits.available_permits(),
            high_water: self.high.load(Relaxed),
            refused: self.refused.load(Relaxed),
            handled,
            mean_wait_us: per(&self.vitals.wait_us),
            mean_handle_us: per(&self.vitals.handle_us),
            max_handle_us: self.vitals.max_handle_us.load(Relaxed),
        }
    }
}

impl Vitals {
    /// A fresh count of wait guards: one that an earlier life left with a thread must not shield this life.
    pub(super) fn new_life(&self) -> Arc<AtomicUsize> {
        let fresh = Arc::new(AtomicUsize::new(0));
        fresh.clone_into(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        fresh
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .load(Relaxed)
            > 0
    }

    pub(super) fn handled_one(&self, waited: Duration, started: Instant) {
        let took = micros(started.elapsed());
        self.turns.fetch_add(1, Relaxed);
        self.handled.fetch_add(1, Relaxed);
        self.wait_us.fetch_add(micros(waited), Relaxed);
        self.handle_us.fetch_add(took, Relaxed);
        self.max_handle_us.fetch_max(took, Relaxed);
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

/// One room's gate as the page shows it. Times in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct GateView {
    /// The room's noun.
    pub room: &'static str,
    /// Messages it accepts at once, queued and in work together.
    pub capacity: usize,
    /// Held now.
    pub depth: usize,
    /// Most ever held.
    pub high_water: usize,
    /// Answered `Overloaded`.
    pub refused: u64,
    /// Messages handled.
    pub handled: u64,
    /// Mean time in the mailbox.
    pub mean_wait_us: u64,
    /// Mean time in the handler.
    pub mean_handle_us: u64,
    /// Longest time in the handler.
    pub max_handle_us: u64,
}
