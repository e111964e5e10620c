//! The pool: a box for each agent, session or share, made at its first run; for sessions, boxes that are ready before.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use portcullis_core::ids::{AgentId, Hash32, RunId};
use portcullis_core::sandbox::Profiles;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::boxes::{Live, Place, Waiter, answer_when_accepted, end_box};
use super::cell_file;
use super::config::SandboxPoolConfig;
use super::disk::{Admitted, Gauge};
use super::driver::{Driver, ProbeContext};
use super::drivers::{self, Drivers, Waiting};
use super::egress::Ways;
use super::folders;
use super::holder::Holder;
use super::messages::{PoolError, PoolStatus, RunTicket, SandboxPoolMsg, Start};
use super::probe;
use super::request::spawn;
use super::runner::{self, RunnerHandle, RunnerProgram, RunnerShown};
use super::runs::{Accepted, Order};
use super::spec::{BoxLimits, BoxSpec};
use super::users::{Accounts, User, UserBook};
use super::wanted::{Images, Wanted, neutral};
use super::warm::Warm;
use crate::supervision::{
    Allowance, ChildEnd, Crash, Ctx, Flag, Room, Snapshot, TaskHandle, TellError,
};

/// Requests on their way to the runner.
const RUNNER_CALLS: usize = 256;

/// What the pool is started with.
#[derive(Clone)]
pub struct SandboxPoolWiring {
    /// `[sandbox]`.
    pub config: SandboxPoolConfig,
    /// What each agent's boxes must be.
    pub profiles: Profiles,
    /// `STATE`: `run/` and `workspaces/` lie in it.
    pub state: PathBuf,
    /// What no box may be given besides: the identity key's folder, files of keys.
    pub private: Vec<PathBuf>,
    /// The embedded cell.
    pub cell: &'static [u8],
    /// This gateway, the same after a restart: boxes that carry it are ours.
    pub owner: String,
    /// This start of it.
    pub boot: String,
    /// Which users of the host agents have.
    pub users: UserBook,
    /// What the ways out of boxes share; without it no box has one, and who should have one is not made.
    pub ways: Option<Ways>,
    /// How the process is started that speaks to the engine; without it, as in tests, this one does.
    pub runner: Option<Arc<RunnerProgram>>,
}

/// The room.
pub struct SandboxPool {
    pub(super) ctx: Ctx<Self>,
    pub(super) wiring: SandboxPoolWiring,
    pub(super) context: ProbeContext,
    pub(super) cell_digest: Hash32,
    /// A box that is no box's, for what boxes have in common.
    pub(super) neutral: BoxSpec,
    /// The images that agents name, as far as somebody asked.
    pub(super) images: Images,
    pub(super) drivers: Drivers,
    /// The process that speaks to it.
    pub(super) runner: Option<Kept>,
    /// By the child's key.
    pub(super) boxes: BTreeMap<u64, Live>,
    /// Runs that wait for the end of a box, or of what runs in one.
    pub(super) waiting: VecDeque<Waiter>,
    /// Boxes that are kept ready.
    pub(super) warm: Warm,
    /// Names that boxes look up, by whose they are.
    pub(super) lookups: BTreeMap<String, Arc<Allowance>>,
    /// What counts the folders, by their names below `workspaces/`.
    pub(super) gauges: BTreeMap<String, Gauge>,
    /// Looks for boxes that are nobody's, and when.
    pub(super) sweeping: Option<(Instant, TaskHandle)>,
    /// Who has which user of the host; none: all have this gateway's.
    pub(super) accounts: Option<Accounts>,
    /// The key of the last box.
    pub(super) next: u64,
}

impl Room for SandboxPool {
    const NAME: &'static str = "sandbox_pool";
    type Msg = SandboxPoolMsg;
    type Wiring = SandboxPoolWiring;

    async fn start(wiring: &SandboxPoolWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let accounts = Accounts::restore(wiring).await?;
        let (context, cell_digest) = prepare(wiring, accounts.as_ref())?;
        // Once, before any trial of this life: later it could take from one that is under way.
        probe::sweep(&context);
        let left = drivers::left(&context.run_root);
        let mut pool = Self {
            ctx,
            wiring: wiring.clone(),
            neutral: neutral(&context)?,
            images: Images::new(),
            context,
            cell_digest,
            drivers: Drivers::new(wiring.profiles.drivers(), left),
            runner: None,
            boxes: BTreeMap::new(),
            waiting: VecDeque::new(),
            warm: Warm::new(),
            lookups: BTreeMap::new(),
            gauges: BTreeMap::new(),
            sweeping: None,
            accounts,
            next: 0,
        };
        pool.runner = pool.keep_runner();
        pool.try_drivers();
        pool.sweep_later();
        Ok(pool)
    }

    async fn handle(&mut self, msg: SandboxPoolMsg) -> Result<(), Crash> {
        match msg {
            SandboxPoolMsg::Start(start) => self.request(Waiting::Run(start)).await?,
            SandboxPoolMsg::Cancel { agent, run } => self.cancel(&agent, run).await,
            SandboxPoolMsg::Profile(agent, timeout, reply) => {
                self.request(Waiting::Profile(agent, timeout, reply))
                    .await?;
            }
            SandboxPoolMsg::Explain(agent, reply) => {
                self.request(Waiting::Explain(agent, reply)).await?;
            }
            SandboxPoolMsg::Image(name, found) => self.image_found(name, found).await?,
            SandboxPoolMsg::List(reply) => reply.ok(self.list()),
            SandboxPoolMsg::End(id, reply) => reply.ok(self.end(&id).await),
            SandboxPoolMsg::User(owner, job, said) => self.settled(owner, job, said).await?,
            SandboxPoolMsg::Status(reply) => reply.ok(self.status()),
            SandboxPoolMsg::Tried(kind, result) => self.tried(kind, *result).await?,
            SandboxPoolMsg::TryAgain(kind) => self.try_again(kind),
            SandboxPoolMsg::EngineLost(reason) => self.engine_lost(reason).await,
            SandboxPoolMsg::Sweep => self.sweep(),
            SandboxPoolMsg::Swept(driver, found) => self.swept(driver, found),
            SandboxPoolMsg::Waited => self.waited(),
            SandboxPoolMsg::Stuck(key) => self.stuck(key),
            SandboxPoolMsg::SessionOver(session) => self.session_over(&session).await,
            SandboxPoolMsg::Again => self.again().await?,
            SandboxPoolMsg::Fill => self.fill().await?,
            SandboxPoolMsg::Began(fresh, took) => self.began(fresh, took),
            #[cfg(test)]
            SandboxPoolMsg::HangBoxes => self.hang_boxes().await,
            #[cfg(test)]
            SandboxPoolMsg::Profiles(profiles) => {
                self.wiring.profiles = *profiles;
                self.choices_are(self.wiring.profiles.drivers());
                self.review().await?;
            }
        }
        Ok(())
    }

    async fn child_ended(
        &mut self,
        _name: &'static str,
        key: u64,
        end: ChildEnd,
    ) -> Result<(), Crash> {
        self.box_ended(key, &end).await
    }

    fn snapshot(&self) -> Snapshot {
        let status = self.status();
        let shown = Snapshot::default()
            .with("driver", status.driver.unwrap_or("none"))
            .with("why", status.why);
        let others = status.others.into_iter();
        others
            .fold(shown, |shown, other| match other.driver {
                "docker" => shown.with("docker, for some agents", other.why),
                _ => shown.with("native, for some agents", other.why),
            })
            .with(
                "runner",
                status
                    .runner
                    .map_or_else(|| "none".to_owned(), |runner| runner.to_string()),
            )
            .with("boxes", status.boxes.len())
            .with("warm", status.warm.ready)
            .with("sessions with a warm box", status.warm.hits.shown())
            .with("sessions that waited", status.warm.misses.shown())
    }

    async fn stop(self) {
        let ends: FuturesUnordered<_> = self
            .boxes
            .values()
            .map(|live| {
                // An engine that is lost is not asked: the box is ended without it.
                let driver = self.drivers.has(&live.driver).then_some(&live.driver);
                end_box(driver, &self.context, &live.id, live.init())
            })
            .collect();
        ends.collect::<Vec<()>>().await;
        self.sweep_last().await;
    }
}

/// Folders and the cell's file; read again at every start, so that a damaged one is mended.
fn prepare(
    wiring: &SandboxPoolWiring,
    accounts: Option<&Accounts>,
) -> Result<(ProbeContext, Hash32), Crash> {
    let state = folders::open(&wiring.state)?;
    drop(folders::make(&state, "run", None, 0o750)?);
    drop(folders::make(&state, "workspaces", None, 0o700)?);
    let run_root = wiring.state.join("run");
    drop(folders::make(folders::open(&run_root)?, "b", None, 0o711)?);
    let (cell, digest) = cell_file::place(&run_root, wiring.cell)?;
    let user = match accounts {
        Some(accounts) => accounts.of_trials()?,
        None => User::own(),
    };
    let context = context(
        &wiring.config,
        &wiring.profiles,
        &wiring.state,
        cell,
        wiring.owner.clone(),
        wiring.boot.clone(),
        user,
    );
    Ok((context, digest))
}

/// What boxes have in common, in this process and in the runner.
pub fn context(
    config: &SandboxPoolConfig,
    profiles: &Profiles,
    state: &Path,
    cell: PathBuf,
    owner: String,
    boot: String,
    user: User,
) -> ProbeContext {
    let User { uid, gid } = user;
    ProbeContext {
        run_root: state.join("run"),
        workspaces: state.join("workspaces"),
        cell,
        uid,
        gid,
        owner,
        boot,
        limits: BoxLimits::of(&profiles.of(None).profile),
        require_cgroup: config.require_cgroup,
    }
}

/// The runner's keeper: a task of the pool, so that it is there until the pool has ended its boxes.
pub struct Kept {
    pub handle: RunnerHandle,
    _keeping: TaskHandle,
}

impl SandboxPool {
    /// Where the engine may be used at all.
    fn keep_runner(&self) -> Option<Kept> {
        let program = self.wiring.runner.clone()?;
        if !self.drivers.may_use_engine() {
            return None;
        }
        let (calls, called) = mpsc::channel(RUNNER_CALLS);
        let shown = Arc::new(Flag::new(RunnerShown::default()));
        let handle = RunnerHandle::new(calls, shown.reader());
        let keeping = async move { match runner::keep(program, called, shown).await {} };
        Some(Kept {
            handle,
            _keeping: self.ctx.task("runner", 0, keeping),
        })
    }

    pub(super) async fn start_in_box(
        &mut self,
        driver: &Driver,
        start: Box<Start>,
        wanted: Wanted,
    ) -> Result<(), Crash> {
        let profile = &wanted.effective.profile;
        let mut spawn = match spawn(profile, profile.may_leave(), &start.spec) {
            Ok(spawn) => spawn,
            Err(text) => {
                start.reply.refuse(PoolError::Invalid(text));
                return Ok(());
            }
        };
        let holder = Holder::of(profile, &start.agent, &start.spec.session);
        let folder = holder.folder();
        let Some((start, admitted)) = self.admit(start, folder.as_deref(), profile) else {
            return Ok(());
        };
        if let Admitted::ToDelete(_) = admitted {
            spawn.file_bytes = 0;
        }
        let placed = self.place(driver, &start.agent, &holder, &wanted).await?;
        let (key, fresh) = match placed {
            Place::In(key, fresh) => (key, fresh),
            Place::Later(awaited) => {
                self.wait_for_room(start, holder, awaited);
                return Ok(());
            }
            Place::Nowhere(refusal) => {
                start.reply.refuse(refusal);
                return Ok(());
            }
        };
        let pass = self.pass(key, profile, &admitted);
        let Some(live) = self.boxes.get_mut(&key) else {
            return Err(Crash::new("a box that was found is not there"));
        };
        if let (Some(_), Holder::Session(_, session)) = (fresh, &holder)
            && let Some(mut over) = start.spec.session_over.clone()
        {
            let (mut standing, session) = (live.standing.clone(), session.clone());
            let ctx = self.ctx.clone();
            let ends = async move {
                tokio::select! {
                    _ = over.until(Option::is_some) => ctx.notify(SandboxPoolMsg::SessionOver(session)),
                    _ = standing.until(|now| now.over) => {}
                }
            };
            self.ctx.task("session", key, ends).keep();
        }
        let timeout_ms = spawn.timeout_ms;
        let (accepted, answer) = oneshot::channel();
        let order = Order::Start {
            name: start.spec.run.clone(),
            spawn: Box::new(spawn),
            events: start.events.clone(),
            pass,
            accepted,
        };
        // A box that cannot take it drops the order, and with it the answer: the run is then started again.
        match live.handle.order(order).await {
            Ok(()) => live.sent += 1,
            Err(TellError::Unavailable) => live.leaving = true,
            Err(TellError::Overloaded) => {}
        }
        let (id, driver) = (live.id.clone(), driver.name());
        let ticket = move |accepted: Accepted| RunTicket {
            box_id: id,
            driver,
            image_digest: accepted.image_digest,
            profile_hash: wanted.hash,
            scope: wanted.effective.profile.scope,
            timeout_ms,
            inputs: accepted.inputs,
        };
        let answering = answer_when_accepted(self.ctx.clone(), key, start, answer, fresh, ticket);
        self.ctx.task("start_run", 0, answering).keep();
        Ok(())
    }

    async fn cancel(&self, agent: &AgentId, run: RunId) {
        // An agent has two for as long as an old one, which takes no more runs, has some; and one for each of its sessions.
        let its = self.boxes.values();
        for live in its.filter(|live| live.holder.may_hold(agent)) {
            // A box that is down has no runs, and one that does not know the run does nothing.
            let _ = live.handle.order(Order::Cancel { name: run.clone() }).await;
        }
    }

    pub(super) fn status(&self) -> PoolStatus {
        let choice = self.effective(None).profile.driver;
        let (driver, why) = self.drivers.standing(choice);
        PoolStatus {
            driver: driver.map(Driver::name),
            why,
            trying: self.drivers.is_trying(choice),
            others: self.drivers.others(choice),
            boxes: self
                .boxes
                .values()
                .map(|live| (live.id.clone(), live.holder.clone()))
                .collect(),
            warm: self.warm_status(),
            runner: self.runner.as_ref().map(|runner| runner.handle.shown()),
        }
    }

    #[cfg(test)]
    async fn hang_boxes(&self) {
        for live in self.boxes.values() {
            live.handle.hang().await.unwrap();
        }
    }
}
