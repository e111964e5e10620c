//! The root supervisor: starts rooms bottom-up, restarts what fails, kills what is stuck, stops in reverse order.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::ctx::panic_text;
use super::room::{Crash, Room};
use super::shell::drop_caught;
use super::slot::Handle;
use super::spec::{Child, Intensity, OVER_INTENSITY_WAIT, Permanent, Policy, backoff, place};
use super::view::{RoomState, RoomView, TreeView};
use super::watchdog::{Pulse, watch};

/// A killed actor that has not ended by then never awaits: only ending the process helps.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// What [`RoomView::recent_restarts`] looks back on, and how many it counts at most.
const RECENT: Duration = Duration::from_mins(5);
const RECENT_MAX: usize = 999;
/// The exit code of a process whose tree gave up (`EX_SOFTWARE` of sysexits.h).
pub const EXIT_TREE: i32 = 70;

/// Told when the process must end: the room's name and why. The binary logs it and exits with [`EXIT_TREE`].
pub type OnFatal = Arc<dyn Fn(&'static str, &str) + Send + Sync>;

/// Collects the rooms bottom-up; each is wired with handles of rooms collected before it, so that an upward call
/// has no handle to be made with.
pub struct TreeBuilder {
    children: Vec<Arc<dyn Child>>,
    intensity: Intensity,
    on_fatal: OnFatal,
}

impl TreeBuilder {
    /// An empty tree.
    pub fn new(intensity: Intensity, on_fatal: OnFatal) -> Self {
        Self {
            children: Vec::new(),
            intensity,
            on_fatal,
        }
    }

    /// Adds the next room upward and returns its handle.
    pub fn room<R: Room>(&mut self, policy: Policy, wiring: R::Wiring) -> Handle<R::Msg> {
        let (gate, slot, handle) = place::<R>(policy);
        self.children
            .push(Arc::new(Permanent::<R>::new(policy, gate, slot, wiring)));
        handle
    }

    /// The rooms in start order.
    pub fn order(&self) -> Vec<&'static str> {
        self.children.iter().map(|c| c.name()).collect()
    }

    /// Starts every room, each after the one below it serves.
    ///
    /// # Errors
    /// The first critical room that did not start, and why. Any other room that fails goes the restart path.
    pub async fn start(self) -> Result<Tree, BootError> {
        let view = Arc::new(watch::Sender::new(TreeView::default()));
        let (root, _join) = Actor::spawn(
            None,
            Root,
            RootArgs {
                children: self.children.clone(),
                intensity: self.intensity,
                on_fatal: self.on_fatal,
                view: view.clone(),
            },
        )
        .await
        .map_err(|e| BootError {
            room: "root",
            why: e.to_string(),
        })?;
        let tree = Tree {
            root,
            view: view.subscribe(),
            children: self.children,
        };
        for index in 0..tree.children.len() {
            let (reply, up) = oneshot::channel();
            tree.root
                .send_message(RootMsg::Boot { index, reply })
                .map_err(|_| tree.gone())?;
            match up.await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => {
                    let child = &tree.children[index];
                    if child.policy().critical {
                        let room = child.name();
                        tree.stop().await;
                        return Err(BootError { room, why });
                    }
                }
                Err(_) => return Err(tree.gone()),
            }
        }
        Ok(tree)
    }
}

/// A critical room did not start.
#[derive(Debug, thiserror::Error)]
#[error("{room} did not start: {why}")]
pub struct BootError {
    /// Its noun.
    pub room: &'static str,
    /// Its own words.
    pub why: String,
}

/// The running tree.
pub struct Tree {
    root: ActorRef<RootMsg>,
    view: watch::Receiver<TreeView>,
    children: Vec<Arc<dyn Child>>,
}

impl Tree {
    fn gone(&self) -> BootError {
        BootError {
            room: "root",
            why: format!("the root supervisor is gone ({:?})", self.root.get_status()),
        }
    }

    /// A window on the tree for the page and `status`: reads gauges, never asks a room.
    pub fn window(&self) -> TreeWindow {
        TreeWindow {
            view: self.view.clone(),
            children: self.children.clone(),
        }
    }

    /// Stops every room from the top down, each with its own time, then killed.
    pub async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        if self.root.send_message(RootMsg::Stop { reply }).is_ok() {
            // An error means the root is gone, and its children with it.
            let _ = done.await;
        }
    }
}

/// See [`Tree::window`]. Cheap to clone.
#[derive(Clone)]
pub struct TreeWindow {
    view: watch::Receiver<TreeView>,
    pub(super) children: Vec<Arc<dyn Child>>,
}

impl std::fmt::Debug for TreeWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeWindow").finish_non_exhaustive()
    }
}

impl TreeWindow {
    /// The tree now.
    pub fn look(&self) -> TreeView {
        let gone = self.view.has_changed().is_err();
        let mut view = self.view.borrow().clone();
        for (room, child) in view.rooms.iter_mut().zip(&self.children) {
            room.gate = Some(child.gate());
            room.facts = child.snapshot().facts;
            if room.state == RoomState::Up && child.is_waiting() {
                room.state = RoomState::Waiting;
            }
            // The root is gone, and nothing serves without it, whatever it said last.
            if gone {
                room.state = RoomState::Down;
                room.up_since = None;
            }
        }
        view
    }
}

struct Root;

struct RootArgs {
    children: Vec<Arc<dyn Child>>,
    intensity: Intensity,
    on_fatal: OnFatal,
    view: Arc<watch::Sender<TreeView>>,
}

enum RootMsg {
    Boot {
        index: usize,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Spawned {
        index: usize,
        life: u64,
        result: Result<ActorCell, Crash>,
    },
    /// A room's end, its remains gone.
    Ended {
        id: ActorId,
        why: String,
    },
    Restart {
        index: usize,
        life: u64,
    },
    Tick,
    /// From the watchdog.
    Beat,
    KillDeadline {
        index: usize,
        life: u64,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
}

struct RootState {
    kids: Vec<Kid>,
    intensity: Intensity,
    on_fatal: OnFatal,
    view: Arc<watch::Sender<TreeView>>,
    stopping: bool,
    /// Ends heard before their room's `Spawned`.
    early: HashMap<ActorId, String>,
    pulse: Arc<Pulse>,
    ticks: tokio::task::AbortHandle,
}

/// One room's record with the root.
struct Kid {
    child: Arc<dyn Child>,
    cell: Option<ActorCell>,
    /// The start under way, and since when.
    spawning: Option<(tokio::task::JoinHandle<Option<ActorCell>>, Instant)>,
    /// Counts spawns: a late timer or result of an earlier life is told apart.
    life: u64,
    boot: Option<oneshot::Sender<Result<(), String>>>,
    up_since: Option<Instant>,
    crashes: VecDeque<Instant>,
    recent: VecDeque<Instant>,
    in_a_row: u32,
    restarts: u64,
    last_crash: Option<String>,
    over: bool,
    pinged: bool,
    turns_at_ping: u64,
    missed: u32,
}

impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = RootArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<RootMsg>,
        args: RootArgs,
    ) -> Result<RootState, ActorProcessingErr> {
        let interval = Duration::from_secs(args.intensity.ping_secs.max(1));
        let ticker = myself.clone();
        let ticks = tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                if ticker.send_message(RootMsg::Tick).is_err() {
                    return;
                }
            }
        });
        let pulse = Arc::new(Pulse::default());
        let (asked, fatal) = (myself, args.on_fatal.clone());
        watch(
            pulse.clone(),
            2 * interval.as_secs() + KILL_GRACE.as_secs(),
            move || asked.send_message(RootMsg::Beat).is_ok(),
            move |why| fatal("root", why),
        );
        let kids = args
            .children
            .into_iter()
            .map(|child| Kid {
                child,
                cell: None,
                spawning: None,
                life: 0,
                boot: None,
                up_since: None,
                crashes: VecDeque::new(),
                recent: VecDeque::new(),
                in_a_row: 0,
                restarts: 0,
                last_crash: None,
                over: false,
                pinged: false,
                turns_at_ping: 0,
                missed: 0,
            })
            .collect();
        Ok(RootState {
            kids,
            intensity: args.intensity,
            on_fatal: args.on_fatal,
            view: args.view,
            stopping: false,
            early: HashMap::new(),
            pulse,
            ticks: ticks.abort_handle(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<RootMsg>,
        msg: RootMsg,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            RootMsg::Boot { index, reply } => {
                state.kids[index].boot = Some(reply);
                state.spawn(index, &myself);
            }
            RootMsg::Spawned {
                index,
                life,
                result,
            } => state.spawned(index, life, result, &myself),
            RootMsg::Ended { id, why } => state.ended(id, why, &myself),
            RootMsg::Beat => {
                state.pulse.beat();
                return Ok(());
            }
            RootMsg::Restart { index, life } => {
                if state.kids[index].life == life && !state.stopping {
                    state.spawn(index, &myself);
                }
            }
            RootMsg::Tick => state.tick(&myself),
            RootMsg::KillDeadline { index, life } => state.kill_deadline(index, life),
            RootMsg::Stop { reply } => {
                state.stop().await;
                let _ = reply.send(());
                myself.stop(None);
            }
        }
        state.publish();
        Ok(())
    }

    // An `Err` here would end every room: failures of children are data, never `?`.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<RootMsg>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, why) = match event {
            SupervisionEvent::ActorTerminated(cell, remains, reason) => {
                let why = reason.unwrap_or_else(|| "stopped by itself".to_owned());
                let id = cell.get_id();
                // A killed room comes with its state, whose drop is the room's code: not on this loop.
                tokio::spawn(async move {
                    drop_caught(remains);
                    let _ = myself.send_message(RootMsg::Ended { id, why });
                });
                return Ok(());
            }
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            _ => return Ok(()),
        };
        state.ended(cell.get_id(), why, &myself);
        state.publish();
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<RootMsg>,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        state.ticks.abort();
        Ok(())
    }
}

impl RootState {
    /// Starts a room beside the loop: a slow or failing start must not hold the others.
    fn spawn(&mut self, index: usize, root: &ActorRef<RootMsg>) {
        let kid = &mut self.kids[index];
        kid.life += 1;
        let life = kid.life;
        if !kid.over {
            kid.child.starting();
        }
        let starting = kid.child.clone().spawn(root.get_cell());
        let root = root.clone();
        let spawning = tokio::spawn(async move {
            let result = AssertUnwindSafe(starting)
                .catch_unwind()
                .await
                .unwrap_or_else(|panic| Err(Crash::new(panic_text(panic.as_ref()))));
            let cell = result.as_ref().ok().cloned();
            let _ = root.send_message(RootMsg::Spawned {
                index,
                life,
                result,
            });
            cell
        });
        kid.spawning = Some((spawning, Instant::now()));
    }

    fn spawned(
        &mut self,
        index: usize,
        life: u64,
        result: Result<ActorCell, Crash>,
        root: &ActorRef<RootMsg>,
    ) {
        let kid = &mut self.kids[index];
        kid.spawning = None;
        match result {
            // Neither can be: a stop takes the start with it, and a life is begun when the last is over.
            Ok(cell) if self.stopping || kid.life != life => cell.stop(None),
            Ok(cell) => {
                if kid.life > 1 {
                    tracing::info!(target: "portcullis", room = kid.child.name(), restarts = kid.restarts, "room restarted");
                }
                kid.up_since = Some(Instant::now());
                kid.over = false;
                kid.missed = 0;
                kid.pinged = false;
                let id = cell.get_id();
                let end = self.early.remove(&id);
                if end.is_none() {
                    kid.child.up(&cell);
                }
                kid.cell = Some(cell);
                if let Some(boot) = kid.boot.take() {
                    let _ = boot.send(Ok(()));
                }
                if let Some(why) = end {
                    self.ended(id, why, root);
                }
            }
            Err(crash) => {
                let why = format!("did not start: {}", crash.why());
                if let Some(boot) = kid.boot.take() {
                    let critical = kid.child.policy().critical;
                    let _ = boot.send(Err(crash.why().to_owned()));
                    if critical {
                        kid.child.down();
                        kid.last_crash = Some(why);
                        return;
                    }
                }
                self.crashed(index, why, root);
            }
        }
    }

    fn ended(&mut self, id: ActorId, why: String, root: &ActorRef<RootMsg>) {
        let Some(index) = self
            .kids
            .iter()
            .position(|k| k.cell.as_ref().is_some_and(|c| c.get_id() == id))
        else {
            // Quicker than its own `Spawned`, which is on its way.
            self.early.insert(id, why);
            return;
        };
        self.kids[index].cell = None;
        if self.stopping {
            self.kids[index].child.down();
        } else {
            self.crashed(index, why, root);
        }
    }

    /// A permanent room ended or failed to start: count, decide, set the timer.
    fn crashed(&mut self, index: usize, why: String, root: &ActorRef<RootMsg>) {
        let now = Instant::now();
        let window = Duration::from_secs(self.intensity.window_secs);
        let healthy = Duration::from_secs(self.intensity.healthy_after_secs);
        let kid = &mut self.kids[index];
        if kid
            .up_since
            .take()
            .is_some_and(|since| now - since >= healthy)
        {
            kid.crashes.clear();
            kid.in_a_row = 0;
        }
        while kid.crashes.front().is_some_and(|at| now - *at > window) {
            kid.crashes.pop_front();
        }
        kid.crashes.push_back(now);
        kid.recent.push_back(now);
        while kid.recent.len() > RECENT_MAX
            || kid.recent.front().is_some_and(|at| now - *at > RECENT)
        {
            kid.recent.pop_front();
        }
        kid.in_a_row = kid.in_a_row.saturating_add(1);
        kid.restarts += 1;
        let name = kid.child.name();
        tracing::error!(target: "portcullis", room = name, why, restarts = kid.restarts, "room crashed");
        let fatal = format!("over its restart intensity: {why}");
        kid.last_crash = Some(why);
        let over = kid.crashes.len() > self.intensity.max_restarts as usize;
        let wait = if over || kid.over {
            kid.child.down();
            if kid.child.policy().critical {
                (self.on_fatal)(name, &fatal);
                return;
            }
            if !kid.over {
                tracing::error!(target: "portcullis", room = name, "room is over its restart intensity and stays down");
            }
            kid.over = true;
            OVER_INTENSITY_WAIT
        } else {
            kid.child.starting();
            backoff(kid.in_a_row, jitter())
        };
        let life = kid.life;
        if wait.is_zero() {
            self.spawn(index, root);
            return;
        }
        let root = root.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = root.send_message(RootMsg::Restart { index, life });
        });
    }

    /// Health: a room whose loop did not turn since the last two pings is stuck, unless it says what it waits on.
    fn tick(&mut self, root: &ActorRef<RootMsg>) {
        for (index, kid) in self.kids.iter_mut().enumerate() {
            let Some(cell) = &kid.cell else {
                // The time limit of a start lands only at an await, like a kill.
                let limit = kid.child.policy().start_within + KILL_GRACE;
                if let Some((_, since)) = &kid.spawning
                    && since.elapsed() > limit
                {
                    (self.on_fatal)(kid.child.name(), "its start never awaits");
                }
                continue;
            };
            let turns = kid.child.turns();
            let unanswered = kid.pinged && turns == kid.turns_at_ping;
            if unanswered && !kid.child.is_waiting() {
                kid.missed += 1;
            } else {
                kid.missed = 0;
            }
            kid.turns_at_ping = turns;
            kid.pinged = kid.missed < 2;
            if kid.missed >= 2 {
                kid.missed = 0;
                tracing::error!(target: "portcullis", room = kid.child.name(), "room is stuck: its loop does not turn; killed");
                cell.kill();
                let (root, life) = (root.clone(), kid.life);
                tokio::spawn(async move {
                    tokio::time::sleep(KILL_GRACE).await;
                    let _ = root.send_message(RootMsg::KillDeadline { index, life });
                });
            } else if !unanswered {
                // One ping in the mailbox is enough: a room that waits for hours must not collect them.
                kid.child.ping(cell);
            }
        }
    }

    fn kill_deadline(&mut self, index: usize, life: u64) {
        let kid = &self.kids[index];
        if kid.life == life && kid.cell.is_some() && !self.stopping {
            (self.on_fatal)(
                kid.child.name(),
                "killed but not ended: its handler never awaits",
            );
        }
    }

    async fn stop(&mut self) {
        self.stopping = true;
        let each = |kid: &Kid| kid.child.policy().stop_within + 2 * KILL_GRACE;
        self.pulse.allow(self.kids.iter().map(each).sum());
        for index in (0..self.kids.len()).rev() {
            let kid = &mut self.kids[index];
            // Before its end: who calls now is refused at once and does not wait for a next life.
            kid.child.down();
            let mut cell = kid.cell.take();
            if let Some((spawning, _)) = kid.spawning.take() {
                spawning.abort();
                // Its `Spawned` may be in the mailbox already: then this is how its cell is known.
                let started = tokio::time::timeout(KILL_GRACE, spawning).await;
                cell = started.ok().and_then(Result::ok).flatten();
            }
            let Some(cell) = cell else { continue };
            let name = kid.child.name();
            cell.stop(None);
            let within = kid.child.policy().stop_within;
            if tokio::time::timeout(within, cell.wait(None)).await.is_err() {
                tracing::warn!(target: "portcullis", room = name, ?within, "room did not stop in time; killed");
                cell.kill();
                let _ = tokio::time::timeout(KILL_GRACE, cell.wait(None)).await;
            }
            kid.up_since = None;
            self.publish();
        }
    }

    fn publish(&self) {
        let now = Instant::now();
        self.view.send_replace(TreeView {
            rooms: self
                .kids
                .iter()
                .map(|kid| RoomView {
                    name: kid.child.name(),
                    state: match (&kid.cell, kid.over, self.stopping) {
                        (Some(_), _, _) => RoomState::Up,
                        (None, _, true) | (None, true, _) => RoomState::Down,
                        (None, false, false) => RoomState::Starting,
                    },
                    up_since: kid.up_since,
                    restarts: kid.restarts,
                    recent_restarts: kid.recent.iter().filter(|at| now - **at <= RECENT).count(),
                    last_crash: kid.last_crash.clone(),
                    gate: None,
                    facts: Vec::new(),
                })
                .collect(),
        });
    }
}

fn jitter() -> u8 {
    let mut byte = [0u8];
    // Without randomness there is no jitter, and that is all.
    let _ = getrandom::fill(&mut byte);
    byte[0]
}
