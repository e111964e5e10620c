//! What a room may do beside answering: tasks, timers, blocking work, children. All of it dies with the actor.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use ractor::{ActorCell, ActorId, ActorRef};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use super::envelope::Envelope;
use super::gate::Gate;
use super::room::{Crash, Room, TaskEnd};
use super::shell::spawn_shell;
use super::slot::{Handle, Place, Slot};

/// Blocking jobs (scrypt, file work) that one room may have at once; the process has 8 blocking threads.
const BLOCKING_PER_ROOM: usize = 2;

/// The room's own view of its actor. Cheap to clone; a clone in a task does not keep the actor alive.
pub struct Ctx<R: Room> {
    inner: Arc<Inner<R>>,
}

impl<R: Room> Clone for Ctx<R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

struct Inner<R: Room> {
    myself: ActorRef<Envelope<R::Msg>>,
    handle: Handle<R::Msg>,
    gate: Arc<Gate>,
    blocking: Arc<Semaphore>,
    own: Arc<Owned>,
}

/// What ends with the actor: its tasks, and the places of its children.
#[derive(Default)]
pub(super) struct Owned {
    next: AtomicU64,
    tasks: Mutex<HashMap<u64, AbortHandle>>,
    children: Mutex<Children>,
}

#[derive(Default)]
struct Children {
    live: HashMap<ActorId, Child>,
    /// Ends that were seen before their child was entered (a child started from a task can be that quick).
    early: HashMap<ActorId, ()>,
}

struct Child {
    name: &'static str,
    key: u64,
    down: Box<dyn Fn() + Send>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Owned {
    /// Marks the child's place as down and names it. `None`: not known (yet).
    pub(super) fn child_gone(&self, id: ActorId) -> Option<(&'static str, u64)> {
        let mut children = lock(&self.children);
        if let Some(child) = children.live.remove(&id) {
            (child.down)();
            Some((child.name, child.key))
        } else {
            children.early.insert(id, ());
            None
        }
    }
}

/// The actor's hold on what it owns: dropped with the actor's state, however the actor ends.
pub(super) struct OwnerGuard(pub(super) Arc<Owned>);

impl Drop for OwnerGuard {
    fn drop(&mut self) {
        for (_, task) in lock(&self.0.tasks).drain() {
            task.abort();
        }
        for (_, child) in lock(&self.0.children).live.drain() {
            (child.down)();
        }
    }
}

impl<R: Room> Ctx<R> {
    pub(super) fn new(
        myself: ActorRef<Envelope<R::Msg>>,
        handle: Handle<R::Msg>,
        gate: Arc<Gate>,
        own: Arc<Owned>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                myself,
                handle,
                gate,
                blocking: Arc::new(Semaphore::new(BLOCKING_PER_ROOM)),
                own,
            }),
        }
    }

    /// The room's own handle, to hand to others.
    pub fn myself(&self) -> Handle<R::Msg> {
        self.inner.handle.clone()
    }

    /// Sends the room a message from its own task or timer. Takes no permit. Lost when the actor is gone.
    pub fn notify(&self, msg: R::Msg) {
        // Nobody is left to care when the send fails: the task dies with the actor.
        let _ = self.inner.myself.send_message(Envelope::Own(msg));
    }

    /// Runs a future beside the loop. The handle aborts it when dropped; its own end comes back as
    /// [`Room::task_ended`]. The only spawn in `actors/`.
    pub fn task(
        &self,
        name: &'static str,
        key: u64,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> TaskHandle {
        let id = self.inner.own.next.fetch_add(1, Relaxed);
        let own = Arc::downgrade(&self.inner.own);
        let actor = self.inner.myself.clone();
        let body = async move {
            let end = match AssertUnwindSafe(future).catch_unwind().await {
                Ok(()) => TaskEnd::Done,
                Err(panic) => TaskEnd::Panicked(panic_text(panic.as_ref())),
            };
            if let Some(own) = own.upgrade() {
                lock(&own.tasks).remove(&id);
            }
            let _ = actor.send_message(Envelope::TaskEnded { name, key, end });
        };
        // The lock is held over the spawn: the task cannot remove itself before it is entered.
        let mut tasks = lock(&self.inner.own.tasks);
        let join = tokio::spawn(body.instrument(tracing::Span::current()));
        let abort = join.abort_handle();
        tasks.insert(id, abort.clone());
        TaskHandle {
            abort: Some((abort, id, Arc::downgrade(&self.inner.own))),
        }
    }

    /// Runs a closure on a blocking thread (hashing, file work). Cannot be aborted; its end comes back as
    /// [`Room::task_ended`].
    ///
    /// # Errors
    /// [`BlockingFull`]: the room has its share of threads in use.
    pub fn blocking(
        &self,
        name: &'static str,
        key: u64,
        job: impl FnOnce() + Send + 'static,
    ) -> Result<(), BlockingFull> {
        let permit = self
            .inner
            .blocking
            .clone()
            .try_acquire_owned()
            .map_err(|_| BlockingFull)?;
        let actor = self.inner.myself.clone();
        tokio::task::spawn_blocking(move || {
            let end = match std::panic::catch_unwind(AssertUnwindSafe(job)) {
                Ok(()) => TaskEnd::Done,
                Err(panic) => TaskEnd::Panicked(panic_text(panic.as_ref())),
            };
            drop(permit);
            let _ = actor.send_message(Envelope::TaskEnded { name, key, end });
        });
        Ok(())
    }

    /// Sends the room a message after a time. Dropping the handle cancels it.
    pub fn after(&self, name: &'static str, key: u64, wait: Duration, msg: R::Msg) -> TaskHandle {
        let actor = self.inner.myself.clone();
        self.task(name, key, async move {
            tokio::time::sleep(wait).await;
            let _ = actor.send_message(Envelope::Own(msg));
        })
    }

    /// Sends the room a message again and again, the first after one interval. Late ticks are skipped, not piled up.
    pub fn every(
        &self,
        name: &'static str,
        interval: Duration,
        msg: impl Fn() -> R::Msg + Send + 'static,
    ) -> TaskHandle {
        let actor = self.inner.myself.clone();
        self.task(name, 0, async move {
            let mut ticks =
                tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if actor.send_message(Envelope::Own(msg())).is_err() {
                    return;
                }
            }
        })
    }

    /// Starts a temporary child under this actor: never restarted; its end comes back as [`Room::child_ended`].
    /// It dies with this actor.
    ///
    /// # Errors
    /// The child's own [`Room::start`] failed.
    pub async fn child<C: Room>(
        &self,
        key: u64,
        wiring: C::Wiring,
        capacity: usize,
    ) -> Result<Handle<C::Msg>, Crash> {
        let gate = Gate::new(C::NAME, capacity);
        let slot = Slot::new();
        let supervisor = self.inner.myself.get_cell();
        let child = spawn_shell::<C>(wiring, gate.clone(), slot.clone(), supervisor).await?;
        slot.set(Place::Up(child.clone()));
        let handle = slot.handle(gate);
        let mut children = lock(&self.inner.own.children);
        if children.early.remove(&child.get_id()).is_some() {
            slot.set(Place::Down);
            let actor: ActorCell = child.get_cell();
            return Err(Crash::new(format!(
                "{} {} ended at its start",
                C::NAME,
                actor.get_id()
            )));
        }
        children.live.insert(
            child.get_id(),
            Child {
                name: C::NAME,
                key,
                down: Box::new(move || slot.set(Place::Down)),
            },
        );
        Ok(handle)
    }

    /// Ends this actor in order, after the message in work; a temporary child ends itself so.
    pub fn stop_myself(&self) {
        self.inner.myself.stop(None);
    }

    /// While it lives, a missed ping means "waits on disk or engine" (degraded), not "stuck".
    pub fn waiting(&self) -> WaitGuard {
        self.inner.gate.vitals.waiting.fetch_add(1, Relaxed);
        WaitGuard(self.inner.gate.clone())
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_owned())
}

/// The room's share of blocking threads is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the room's blocking threads are all in use")]
pub struct BlockingFull;

/// Aborts its task when dropped.
#[must_use = "dropping the handle aborts the task"]
#[derive(Debug)]
pub struct TaskHandle {
    abort: Option<(AbortHandle, u64, std::sync::Weak<Owned>)>,
}

impl std::fmt::Debug for Owned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owned").finish_non_exhaustive()
    }
}

impl TaskHandle {
    /// Lets the task run to its end, or to the actor's.
    pub fn keep(mut self) {
        self.abort = None;
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        if let Some((abort, id, own)) = self.abort.take() {
            abort.abort();
            if let Some(own) = own.upgrade() {
                lock(&own.tasks).remove(&id);
            }
        }
    }
}

/// See [`Ctx::waiting`].
#[derive(Debug)]
pub struct WaitGuard(Arc<Gate>);

impl Drop for WaitGuard {
    fn drop(&mut self) {
        self.0.vitals.waiting.fetch_sub(1, Relaxed);
    }
}
