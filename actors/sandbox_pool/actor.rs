//! The pool: one warm box per agent, made at its first run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use portcullis_cell::Spawn;
use portcullis_core::ids::{AgentId, BoxId, Hash32, RunId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::choose::{Chosen, choose};
use super::config::SandboxPoolConfig;
use super::driver::{Driver, DriverError, ProbeContext};
use super::folders;
use super::messages::{BoxProfile, PoolError, PoolStatus, RunTicket, SandboxPoolMsg, Start};
use super::probe::random_hex;
use super::runs::{NotAccepted, Order};
use super::sandbox::{Sandbox, SandboxHandle, SandboxWiring};
use super::spec::{BoxSpec, WORKSPACE_INSIDE};
use super::{cell_file, native};
use crate::supervision::{ChildEnd, Crash, Ctx, Reply, Room, Snapshot};

/// Between TERM and KILL of a cancelled run.
const GRACE_MS: u32 = 200;
/// How long a cell outlives a daemon that is gone.
const DEAD_MAN: Duration = Duration::from_mins(1);
/// No driver is tried again before this, and then only when a run asks.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// Messages of one box's mailbox.
const BOX_GATE: usize = 256;
/// Requests that wait while the drivers are tried.
const MOST_WAITING: usize = 1024;

/// What the pool is started with.
#[derive(Clone)]
pub struct SandboxPoolWiring {
    /// `[sandbox]`.
    pub config: SandboxPoolConfig,
    /// `STATE`: `run/` and `workspaces/` lie in it.
    pub state: PathBuf,
    /// The embedded cell.
    pub cell: &'static [u8],
    /// This gateway, the same after a restart: boxes that carry it are ours.
    pub owner: String,
    /// This start of it.
    pub boot: String,
}

enum Drivers {
    /// Being tried; these wait.
    Trying(Vec<Waiting>),
    Proven(Chosen),
    None {
        said: String,
        at: Instant,
    },
}

/// Waits for a driver.
enum Waiting {
    Run(Start),
    Profile(Option<Duration>, Reply<BoxProfile, PoolError>),
}

struct Live {
    id: BoxId,
    agent: AgentId,
    handle: SandboxHandle,
}

/// The room.
pub struct SandboxPool {
    ctx: Ctx<Self>,
    wiring: SandboxPoolWiring,
    context: ProbeContext,
    cell_digest: Hash32,
    drivers: Drivers,
    /// By the child's key.
    boxes: BTreeMap<u64, Live>,
    next: u64,
}

impl Room for SandboxPool {
    const NAME: &'static str = "sandbox_pool";
    type Msg = SandboxPoolMsg;
    type Wiring = SandboxPoolWiring;

    async fn start(wiring: &SandboxPoolWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let (context, cell_digest) = prepare(wiring)?;
        let mut pool = Self {
            ctx,
            wiring: wiring.clone(),
            context,
            cell_digest,
            drivers: Drivers::Trying(Vec::new()),
            boxes: BTreeMap::new(),
            next: 0,
        };
        pool.try_drivers();
        Ok(pool)
    }

    async fn handle(&mut self, msg: SandboxPoolMsg) -> Result<(), Crash> {
        match msg {
            SandboxPoolMsg::Start(start) => self.start_run(start).await?,
            SandboxPoolMsg::Cancel { agent, run } => self.cancel(&agent, run).await,
            SandboxPoolMsg::Profile(timeout, reply) => self.profile(timeout, reply),
            SandboxPoolMsg::Status(reply) => reply.ok(self.status()),
            SandboxPoolMsg::Tried(result) => self.tried(result).await?,
        }
        Ok(())
    }

    async fn child_ended(
        &mut self,
        _name: &'static str,
        key: u64,
        end: ChildEnd,
    ) -> Result<(), Crash> {
        self.box_ended(key, &end);
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let status = self.status();
        Snapshot::default()
            .with("driver", status.driver.unwrap_or("none"))
            .with("why", status.why)
            .with("boxes", status.boxes.len())
    }

    async fn stop(self) {
        if let Drivers::Proven(chosen) = &self.drivers {
            let ends: FuturesUnordered<_> = self
                .boxes
                .values()
                .map(|live| end_box(&chosen.driver, &self.context, &live.id))
                .collect();
            ends.collect::<Vec<()>>().await;
        }
    }
}

/// Folders and the cell's file; read again at every start, so that a damaged one is mended.
fn prepare(wiring: &SandboxPoolWiring) -> Result<(ProbeContext, Hash32), Crash> {
    let state = folders::open(&wiring.state)?;
    drop(folders::make(&state, "run", None, 0o750)?);
    drop(folders::make(&state, "workspaces", None, 0o700)?);
    let run_root = wiring.state.join("run");
    drop(folders::make(folders::open(&run_root)?, "b", None, 0o711)?);
    let (cell, digest) = cell_file::place(&run_root, wiring.cell)?;
    let (uid, gid) = native::box_owner(wiring.config.uid);
    let context = ProbeContext {
        run_root,
        workspaces: wiring.state.join("workspaces"),
        cell,
        uid,
        gid,
        owner: wiring.owner.clone(),
        boot: wiring.boot.clone(),
        limits: wiring.config.limits(),
        require_cgroup: wiring.config.require_cgroup,
    };
    Ok((context, digest))
}

impl SandboxPool {
    /// Tries the drivers beside the loop, and ends whatever boxes an earlier life of this room or daemon left.
    fn try_drivers(&mut self) {
        let (config, context, ctx) = (
            self.wiring.config.clone(),
            self.context.clone(),
            self.ctx.clone(),
        );
        let trial = async move {
            let chosen = match choose(&config, &context).await {
                Ok(chosen) => reconcile(&chosen.driver, &context)
                    .await
                    .map(|()| chosen)
                    .map_err(|error| vec![error.to_string()]),
                Err(said) => Err(said),
            };
            ctx.notify(SandboxPoolMsg::Tried(chosen));
        };
        self.ctx.task("drivers", 0, trial).keep();
    }

    async fn tried(&mut self, result: Result<Chosen, Vec<String>>) -> Result<(), Crash> {
        let new = match result {
            Ok(chosen) => {
                tracing::info!(driver = chosen.driver.name(), why = %chosen.why, "sandbox driver");
                Drivers::Proven(chosen)
            }
            Err(said) => {
                let said = said.join("; ");
                tracing::warn!(%said, "no sandbox driver: commands in sandboxes are refused, everything else works");
                Drivers::None {
                    said,
                    at: Instant::now(),
                }
            }
        };
        if let Drivers::Trying(waiting) = std::mem::replace(&mut self.drivers, new) {
            for waiting in waiting {
                match waiting {
                    Waiting::Run(start) => self.start_run(Box::new(start)).await?,
                    Waiting::Profile(timeout, reply) => self.profile(timeout, reply),
                }
            }
        }
        Ok(())
    }

    async fn start_run(&mut self, start: Box<Start>) -> Result<(), Crash> {
        if !start.reply.is_wanted() {
            return Ok(());
        }
        match &mut self.drivers {
            Drivers::Trying(waiting) if waiting.len() < MOST_WAITING => {
                waiting.push(Waiting::Run(*start));
            }
            Drivers::Trying(_) => start
                .reply
                .refuse(PoolError::Full(self.wiring.config.max_boxes)),
            Drivers::None { said, at } if at.elapsed() < TRY_AGAIN => {
                start.reply.refuse(PoolError::NoDriver(said.clone()));
            }
            Drivers::None { .. } => {
                // Somebody may have installed one since.
                self.drivers = Drivers::Trying(vec![Waiting::Run(*start)]);
                self.try_drivers();
            }
            Drivers::Proven(chosen) => {
                let driver = chosen.driver.clone();
                self.start_in_box(&driver, start).await?;
            }
        }
        Ok(())
    }

    fn profile(&mut self, timeout: Option<Duration>, reply: Reply<BoxProfile, PoolError>) {
        let config = &self.wiring.config;
        match &mut self.drivers {
            Drivers::Trying(waiting) if waiting.len() < MOST_WAITING => {
                waiting.push(Waiting::Profile(timeout, reply));
            }
            Drivers::Trying(_) => reply.refuse(PoolError::Full(config.max_boxes)),
            Drivers::None { said, at } if at.elapsed() < TRY_AGAIN => {
                reply.refuse(PoolError::NoDriver(said.clone()));
            }
            Drivers::None { .. } => {
                self.drivers = Drivers::Trying(vec![Waiting::Profile(timeout, reply)]);
                self.try_drivers();
            }
            Drivers::Proven(chosen) => {
                let driver = chosen.driver.clone();
                let image_digest = match &driver {
                    Driver::Docker(docker) => Some(docker.image().id.clone()),
                    Driver::Native(_) => None,
                };
                reply.ok(BoxProfile {
                    driver: driver.name(),
                    image_digest,
                    profile_hash: self.profile_hash(&driver),
                    uid: self.context.uid,
                    gid: self.context.gid,
                    limits: self.context.limits,
                    timeout_ms: self.wiring.config.timeout(timeout),
                    output_bytes: self.wiring.config.output_cap_bytes,
                });
            }
        }
    }

    async fn start_in_box(&mut self, driver: &Driver, start: Box<Start>) -> Result<(), Crash> {
        let spawn = match self.spawn(&start) {
            Ok(spawn) => spawn,
            Err(text) => {
                start.reply.refuse(PoolError::Invalid(text));
                return Ok(());
            }
        };
        let profile = self.profile_hash(driver);
        let (id, handle) = match self.box_of(driver, &start.agent, &profile).await? {
            Ok(found) => found,
            Err(refusal) => {
                start.reply.refuse(refusal);
                return Ok(());
            }
        };
        let timeout_ms = spawn.timeout_ms;
        let (accepted, answer) = oneshot::channel();
        let order = Order::Start {
            name: start.spec.run.clone(),
            spawn: Box::new(spawn),
            events: start.events.clone(),
            accepted,
        };
        // A box that cannot take it drops the order, and with it the answer.
        let _ = handle.order(order).await;
        let driver = driver.name();
        let ticket = move |image_digest| RunTicket {
            box_id: id,
            driver,
            image_digest,
            profile_hash: profile,
            timeout_ms,
        };
        let ctx = self.ctx.clone();
        let answering = answer_when_accepted(ctx, start, answer, ticket);
        self.ctx.task("start_run", 0, answering).keep();
        Ok(())
    }

    fn spawn(&self, start: &Start) -> Result<Spawn, String> {
        let spec = &start.spec;
        let config = &self.wiring.config;
        if spec.argv.first().is_none_or(String::is_empty) {
            return Err("argv must name a command".to_owned());
        }
        let mut env: Vec<(String, String)> = BoxSpec::cell_env()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        for (name, value) in &spec.env {
            if name.is_empty() || name.contains('=') {
                return Err(format!("env: {name:?} is no name of a variable"));
            }
            env.retain(|(known, _)| known != name);
            env.push((name.clone(), value.clone()));
        }
        let cwd = spec
            .cwd
            .clone()
            .unwrap_or_else(|| WORKSPACE_INSIDE.to_owned());
        let texts = spec
            .argv
            .iter()
            .chain(env.iter().flat_map(|(name, value)| [name, value]))
            .chain([&cwd]);
        if texts.into_iter().any(|text| text.contains('\0')) {
            return Err("argv, env and cwd must not hold NUL".to_owned());
        }
        if !cwd.starts_with('/') {
            return Err(
                "cwd must be an absolute path inside the sandbox, such as /workspace".to_owned(),
            );
        }
        Ok(Spawn {
            argv: spec.argv.clone(),
            env,
            cwd,
            timeout_ms: config.timeout(spec.timeout),
            grace_ms: GRACE_MS,
            output_cap: config.output_cap_bytes,
            open_files: config.open_files,
            file_bytes: config.file_bytes,
        })
    }

    /// The agent's box, or a new one; never another agent's.
    async fn box_of(
        &mut self,
        driver: &Driver,
        agent: &AgentId,
        profile: &str,
    ) -> Result<Result<(BoxId, SandboxHandle), PoolError>, Crash> {
        if let Some(live) = self.boxes.values().find(|live| live.agent == *agent) {
            return Ok(Ok((live.id.clone(), live.handle.clone())));
        }
        if self.boxes.len() >= self.wiring.config.max_boxes {
            return Ok(Err(PoolError::Full(self.wiring.config.max_boxes)));
        }
        let context = &self.context;
        if let Err(error) = folders::workspace(
            &context.workspaces,
            agent.as_str(),
            context.uid,
            context.gid,
        ) {
            return Ok(Err(PoolError::NoBox(format!(
                "workspace of agent {agent}: {error}"
            ))));
        }
        let id = BoxId::new(&random_hex(6)?)?;
        let spec = BoxSpec {
            run_dir: context.run_root.join("b").join(id.as_str()),
            id: id.clone(),
            agent: agent.clone(),
            workspace: context.workspaces.join(agent.as_str()),
            cell: context.cell.clone(),
            limits: context.limits,
            uid: context.uid,
            gid: context.gid,
            owner: context.owner.clone(),
            boot: context.boot.clone(),
            profile_hash: profile.to_owned(),
            nonce: random_hex(16)?,
            dead_man: DEAD_MAN,
        };
        self.next += 1;
        let wiring = SandboxWiring {
            driver: driver.clone(),
            spec,
            idle: self.wiring.config.idle(),
        };
        let handle = SandboxHandle::new(
            self.ctx
                .child::<Sandbox>(self.next, wiring, BOX_GATE)
                .await?,
        );
        self.boxes.insert(
            self.next,
            Live {
                id: id.clone(),
                agent: agent.clone(),
                handle: handle.clone(),
            },
        );
        Ok(Ok((id, handle)))
    }

    /// Digest of everything that shapes a box: two runs with the same hash were contained alike.
    fn profile_hash(&self, driver: &Driver) -> String {
        let (config, context) = (&self.wiring.config, &self.context);
        let text = format!(
            "portcullis-profile-v1\n{}\ncell {}\nuid {} gid {}\nmemory {} cpu {} pids {}\nfiles {} bytes {}\noutput {}\nnetwork none\n",
            driver.name(),
            self.cell_digest,
            context.uid,
            context.gid,
            config.memory_bytes,
            config.cpu_millis,
            config.pids,
            config.open_files,
            config.file_bytes,
            config.output_cap_bytes,
        );
        Hash32::of(text.as_bytes()).to_string()
    }

    async fn cancel(&self, agent: &AgentId, run: RunId) {
        if let Some(live) = self.boxes.values().find(|live| live.agent == *agent) {
            // A box that is down has no runs.
            let _ = live.handle.order(Order::Cancel { name: run }).await;
        }
    }

    fn box_ended(&mut self, key: u64, end: &ChildEnd) {
        let Some(live) = self.boxes.remove(&key) else {
            return;
        };
        if let (ChildEnd::Crashed(why), Drivers::Proven(chosen)) = (end, &self.drivers) {
            tracing::error!(id = %live.id, agent = %live.agent, %why, "a box's actor crashed: its box is ended");
            let (driver, context) = (chosen.driver.clone(), self.context.clone());
            self.ctx
                .task("end_box", key, async move {
                    end_box(&driver, &context, &live.id).await;
                })
                .keep();
        }
    }

    fn status(&self) -> PoolStatus {
        let (driver, why) = match &self.drivers {
            Drivers::Trying(_) => (None, "the drivers are being tried".to_owned()),
            Drivers::Proven(chosen) => (Some(chosen.driver.name()), chosen.why.clone()),
            Drivers::None { said, .. } => (None, said.clone()),
        };
        PoolStatus {
            driver,
            why,
            boxes: self
                .boxes
                .values()
                .map(|live| (live.id.clone(), live.agent.clone()))
                .collect(),
        }
    }
}

/// Answers the caller once the box's link has taken the run, or has not.
async fn answer_when_accepted(
    ctx: Ctx<SandboxPool>,
    start: Box<Start>,
    answer: oneshot::Receiver<Result<super::runs::Accepted, NotAccepted>>,
    ticket: impl FnOnce(Option<String>) -> RunTicket,
) {
    match answer.await {
        Ok(Ok(accepted)) => start.reply.ok(ticket(accepted.image_digest)),
        Ok(Err(NotAccepted::TooLong)) => {
            start.reply.refuse(PoolError::Invalid(
                "argv and env together are longer than 60 KiB".to_owned(),
            ));
        }
        Ok(Err(NotAccepted::NoBox(text))) => start.reply.refuse(PoolError::NoBox(text)),
        // Its box ended (idle, say) before it took the order: nothing ran, and a new box may.
        Err(_) if !start.again => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            ctx.notify(SandboxPoolMsg::Start(Box::new(Start {
                again: true,
                ..*start
            })));
        }
        Err(_) => start.reply.refuse(PoolError::NoBox(
            "it ended before it took the run".to_owned(),
        )),
    }
}

/// Ends every box that carries this gateway's label: none of them is this room's, which has only just begun.
async fn reconcile(driver: &Driver, context: &ProbeContext) -> Result<(), DriverError> {
    for found in driver.list(&context.owner).await? {
        tracing::warn!(id = %found.id, boot = %found.boot, running = found.running, "a box of an earlier start is ended");
        driver.stop(&found.id).await?;
        folders::remove_run_dir(&context.run_root.join("b").join(found.id.as_str()));
    }
    Ok(())
}

async fn end_box(driver: &Driver, context: &ProbeContext, id: &BoxId) {
    if let Err(error) = driver.stop(id).await {
        tracing::error!(%id, %error, "a box could not be ended; the next start ends it");
    }
    folders::remove_run_dir(&context.run_root.join("b").join(id.as_str()));
}
