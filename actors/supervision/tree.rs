//! The root supervisor: starts rooms bottom-up, restarts what fails, kills what is stuck, stops in reverse order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::room::{Crash, Room};
use super::slot::Handle;
use super::spec::{Child, Intensity, OVER_INTENSITY_WAIT, Permanent, Policy, backoff, place};
use super::view::{RoomState, RoomView, TreeView};

/// A killed actor that has not ended by then never awaits: only ending the process helps.
const KILL_GRACE: Duration = Duration::from_secs(2);
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
    children: Vec<Arc<dyn Child>>,
}

impl std::fmt::Debug for TreeWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeWindow").finish_non_exhaustive()
    }
}

impl TreeWindow {
    /// The tree now.
    pub fn look(&self) -> TreeView {
        let mut view = self.view.borrow().clone();
        for (room, child) in view.rooms.iter_mut().zip(&self.children) {
            room.gate = Some(child.gate());
            room.facts = child.snapshot().facts;
            if room.state == RoomState::Up && child.is_waiting() {
                room.state = RoomState::Waiting;
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
    Restart {
        index: usize,
        life: u64,
    },
    Tick,
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
    ticks: tokio::task::AbortHandle,
}

/// One room's record with the root.
struct Kid {
    child: Arc<dyn Child>,
    cell: Option<ActorCell>,
    /// Counts spawns: a late timer or result of an earlier life is told apart.
    life: u64,
    boot: Option<oneshot::Sender<Result<(), String>>>,
    up_since: Option<Instant>,
    crashes: VecDeque<Instant>,
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
        let kids = args
            .children
            .into_iter()
            .map(|child| Kid {
                child,
                cell: None,
                life: 0,
                boot: None,
                up_since: None,
                crashes: VecDeque::new(),
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
            SupervisionEvent::ActorTerminated(cell, _, reason) => (
                cell,
                reason.unwrap_or_else(|| "stopped by itself".to_owned()),
            ),
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
        let spawning = kid.child.spawn(root.get_cell());
        let root = root.clone();
        tokio::spawn(async move {
            let result = spawning.await;
            let _ = root.send_message(RootMsg::Spawned {
                index,
                life,
                result,
            });
        });
    }

    fn spawned(
        &mut self,
        index: usize,
        life: u64,
        result: Result<ActorCell, Crash>,
        root: &ActorRef<RootMsg>,
    ) {
        let kid = &mut self.kids[index];
        match result {
            Ok(cell) if self.stopping || kid.life != life => cell.stop(None),
            Ok(cell) => {
                if kid.life > 1 {
                    tracing::info!(target: "portcullis", room = kid.child.name(), restarts = kid.restarts, "room restarted");
                }
                kid.up_since = Some(Instant::now());
                kid.over = false;
                kid.missed = 0;
                kid.pinged = false;
                let ended_already = matches!(cell.get_status(), ractor::ActorStatus::Stopped);
                let id = cell.get_id();
                kid.cell = Some(cell);
                if let Some(boot) = kid.boot.take() {
                    let _ = boot.send(Ok(()));
                }
                // Its end came before this message: the event found no cell and was passed over.
                if ended_already {
                    self.ended(id, "ended at its start".to_owned(), root);
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
        kid.in_a_row = kid.in_a_row.saturating_add(1);
        kid.restarts += 1;
        let name = kid.child.name();
        tracing::error!(target: "portcullis", room = name, why, restarts = kid.restarts, "room crashed");
        kid.last_crash = Some(why.clone());
        let over = kid.crashes.len() > self.intensity.max_restarts as usize;
        let wait = if over || kid.over {
            kid.child.down();
            if kid.child.policy().critical {
                (self.on_fatal)(name, &format!("over its restart intensity: {why}"));
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
            let Some(cell) = &kid.cell else { continue };
            let turns = kid.child.turns();
            if kid.pinged && turns == kid.turns_at_ping && !kid.child.is_waiting() {
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
            } else {
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
        for kid in self.kids.iter_mut().rev() {
            let Some(cell) = kid.cell.take() else {
                kid.child.down();
                continue;
            };
            let name = kid.child.name();
            cell.stop(None);
            let within = kid.child.policy().stop_within;
            if tokio::time::timeout(within, cell.wait(None)).await.is_err() {
                tracing::warn!(target: "portcullis", room = name, ?within, "room did not stop in time; killed");
                cell.kill();
                let _ = tokio::time::timeout(KILL_GRACE, cell.wait(None)).await;
            }
            kid.child.down();
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
                    recent_restarts: kid
                        .crashes
                        .iter()
                        .filter(|at| now - **at <= Duration::from_secs(300))
                        .count(),
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
