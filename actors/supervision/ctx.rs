//! What a room may do beside answering: tasks, timers, blocking work, children. All of it dies with the actor.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use ractor::{ActorId, ActorRef};
use tokio::task::{AbortHandle, JoinHandle};
use tracing::Instrument as _;

use super::envelope::{Envelope, Tick};
use super::gate::Gate;
use super::room::{ChildEnd, Crash, Room, TaskEnd};
use super::shell::{Kind, spawn_shell};
use super::slot::{Handle, Place, Slot};

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
    waiting: Arc<AtomicUsize>,
    own: Arc<Owned>,
    /// What a child of this actor gets for its stop.
    children_stop: Duration,
}

/// What ends with the actor: its tasks, and the places of its children.
#[derive(Default)]
pub(super) struct Owned {
    next: AtomicU64,
    tasks: Mutex<Tasks>,
    children: Mutex<Children>,
}

#[derive(Default)]
struct Tasks {
    /// The actor has ended: whoever still has its context starts nothing any more.
    closed: bool,
    /// `None` while being spawned.
    live: HashMap<u64, Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Children {
    closed: bool,
    live: HashMap<ActorId, Child>,
    /// Ends that were seen before their child was entered (a child started from a task can be that quick).
    early: HashMap<ActorId, ChildEnd>,
}

struct Child {
    name: &'static str,
    key: u64,
    down: Box<dyn Fn() + Send>,
    #[cfg(feature = "crash-for-tests")]
    panic: Box<dyn Fn() + Send>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Owned {
    /// Marks the child's place as down and names it. `None`: not known (yet).
    pub(super) fn child_gone(&self, id: ActorId, end: &ChildEnd) -> Option<(&'static str, u64)> {
        let mut children = lock(&self.children);
        if let Some(child) = children.live.remove(&id) {
            (child.down)();
            Some((child.name, child.key))
        } else {
            children.early.insert(id, end.clone());
            None
        }
    }

    /// Lets the youngest child of this noun panic.
    #[cfg(feature = "crash-for-tests")]
    pub(super) fn panic_youngest(&self, name: &str) {
        let children = lock(&self.children);
        let youngest = children.live.values().filter(|child| child.name == name);
        if let Some(child) = youngest.max_by_key(|child| child.key) {
            (child.panic)();
        }
    }

    /// No child is reached any more, and none is started.
    pub(super) fn close_children(&self) {
        let live = {
            let mut children = lock(&self.children);
            children.closed = true;
            std::mem::take(&mut children.live)
        };
        for child in live.into_values() {
            (child.down)();
        }
    }

    /// Aborts all tasks and lets none be started; returns them, for who wants to see their end.
    pub(super) fn close_tasks(&self) -> Vec<JoinHandle<()>> {
        let live = {
            let mut tasks = lock(&self.tasks);
            tasks.closed = true;
            std::mem::take(&mut tasks.live)
        };
        let tasks: Vec<_> = live.into_values().flatten().collect();
        for task in &tasks {
            task.abort();
        }
        tasks
    }
}

/// A task's entry in the map: leaves with the task's body, also when that is aborted before its first poll.
struct Entry {
    id: u64,
    own: std::sync::Weak<Owned>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(own) = self.own.upgrade() {
            let gone = lock(&own.tasks).live.remove(&self.id);
            drop(gone);
        }
    }
}

/// The actor's hold on what it owns: dropped with the actor's state, however the actor ends.
pub(super) struct OwnerGuard(pub(super) Arc<Owned>);

impl Drop for OwnerGuard {
    fn drop(&mut self) {
        drop(self.0.close_tasks());
        self.0.close_children();
    }
}

impl<R: Room> Ctx<R> {
    pub(super) fn new(
        myself: ActorRef<Envelope<R::Msg>>,
        handle: Handle<R::Msg>,
        gate: Arc<Gate>,
        own: Arc<Owned>,
        children_stop: Duration,
    ) -> Self {
        let waiting = gate.vitals.new_life();
        Self {
            inner: Arc::new(Inner {
                myself,
                handle,
                gate,
                waiting,
                own,
                children_stop,
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
        let _ = self.inner.myself.send_message(own(msg));
    }

    /// Runs a future beside the loop. The handle aborts it when dropped; its own end comes back as
    /// [`Room::task_ended`]. The only spawn in `actors/`. On an actor that has ended it does nothing.
    pub fn task(
        &self,
        name: &'static str,
        key: u64,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> TaskHandle {
        let id = self.inner.own.next.fetch_add(1, Relaxed);
        let entry = Entry {
            id,
            own: Arc::downgrade(&self.inner.own),
        };
        let actor = self.inner.myself.clone();
        let body = async move {
            let end = match AssertUnwindSafe(future).catch_unwind().await {
                Ok(()) => TaskEnd::Done,
                Err(panic) => TaskEnd::Panicked(panic_text(panic.as_ref())),
            };
            drop(entry);
            let _ = actor.send_message(Envelope::TaskEnded { name, key, end });
        };
        let closed = {
            let mut tasks = lock(&self.inner.own.tasks);
            if !tasks.closed {
                tasks.live.insert(id, None);
            }
            tasks.closed
        };
        if closed {
            // Outside the lock: the body's drop takes it.
            drop(body);
            return TaskHandle { abort: None };
        }
        // Not under the lock: a runtime that ends drops the body, and with it the entry, right here.
        let join = tokio::spawn(body.instrument(tracing::Span::current()));
        let abort = join.abort_handle();
        {
            let mut tasks = lock(&self.inner.own.tasks);
            if tasks.closed {
                abort.abort();
            } else if let Some(entered) = tasks.live.get_mut(&id) {
                *entered = Some(join);
            }
        }
        TaskHandle { abort: Some(abort) }
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
            .gate
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
            let _ = actor.send_message(own(msg));
        })
    }

    /// Sends the room a message again and again, the first after one interval. Late ticks are skipped, not piled up;
    /// so are those that fall due while the last one still waits in the mailbox.
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
            let pending = Arc::new(AtomicBool::new(false));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(tick) = Tick::new(&pending) else {
                    continue;
                };
                let envelope = Envelope::Own {
                    body: msg(),
                    tick: Some(tick),
                };
                if actor.send_message(envelope).is_err() {
                    return;
                }
            }
        })
    }

    /// Starts a temporary child under this actor: never restarted; its end comes back once, as
    /// [`Room::child_ended`]. It dies with this actor.
    ///
    /// # Errors
    /// The child's own [`Room::start`] failed, or this actor has ended.
    pub async fn child<C: Room>(
        &self,
        key: u64,
        wiring: C::Wiring,
        capacity: usize,
    ) -> Result<Handle<C::Msg>, Crash> {
        let gate = Gate::new(C::NAME, capacity);
        let slot = Slot::new();
        let supervisor = self.inner.myself.get_cell();
        let kind = Kind::Temporary;
        let within = self.inner.children_stop;
        let spawned =
            spawn_shell::<C>(wiring, gate.clone(), slot.clone(), supervisor, kind, within).await;
        // The shell itself said `Up`, and may have said `Down` again: only what is worse is set here.
        let child = spawned.inspect_err(|_| slot.set(Place::Down))?;
        let handle = slot.handle(gate);
        let id = child.get_id();
        let mut children = lock(&self.inner.own.children);
        if children.closed {
            drop(children);
            slot.set(Place::Down);
            child.kill();
            return Err(Crash::new(format!("the owner of {} has ended", C::NAME)));
        }
        if let Some(end) = children.early.remove(&id) {
            drop(children);
            slot.set(Place::Down);
            let name = C::NAME;
            let early = Envelope::ChildEnded { name, key, end };
            let _ = self.inner.myself.send_message(early);
            return Ok(handle);
        }
        children.live.insert(
            id,
            Child {
                name: C::NAME,
                key,
                #[cfg(feature = "crash-for-tests")]
                panic: {
                    let slot = slot.clone();
                    Box::new(move || {
                        slot.send(Envelope::Panic(super::fault::PanicAt::Now));
                    })
                },
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
        self.inner.waiting.fetch_add(1, Relaxed);
        WaitGuard(self.inner.waiting.clone())
    }
}

fn own<M>(body: M) -> Envelope<M> {
    Envelope::Own { body, tick: None }
}

/// A panic's words.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
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
    abort: Option<AbortHandle>,
}

impl TaskHandle {
    /// Lets the task run to its end, or to the actor's.
    pub fn keep(mut self) {
        self.abort = None;
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        if let Some(abort) = self.abort.take() {
            abort.abort();
        }
    }
}

/// See [`Ctx::waiting`].
#[derive(Debug)]
pub struct WaitGuard(Arc<AtomicUsize>);

impl Drop for WaitGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
