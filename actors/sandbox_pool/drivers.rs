//! Which driver the pool has: tried beside the loop, watched where it can be lost, tried again until there is one.

use std::collections::BTreeSet;
use std::time::Duration;

use portcullis_core::ids::{AgentId, BoxId};
use tokio::time::Instant;

use super::actor::SandboxPool;
use super::choose::{Chosen, choose};
use super::config::Choice;
use super::driver::{Driver, DriverError, ProbeContext};
use super::engine::no_driver;
use super::messages::{BoxProfile, Explained, PoolError, SandboxPoolMsg, Start};
use super::probe;
use super::runs::Order;
use super::standing::GivenUp;
use super::{folders, found};
use crate::audit::AuditHandle;
use crate::supervision::{Crash, Reply, TaskHandle};

/// A run that finds no driver has them tried again, but not sooner after the last time.
const ASKED_AGAIN: Duration = Duration::from_secs(1);
/// Without being asked they are tried again after this, then after twice the time, up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// See [`FIRST_WAIT`].
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Requests that wait while the drivers are tried.
pub const MOST_WAITING: usize = 1024;

/// What the pool has.
pub enum Drivers {
    /// Being tried; these wait.
    Trying(Vec<Waiting>),
    /// One that has proven itself.
    Proven(Chosen),
    /// What each said, and when.
    None { said: String, at: Instant },
}

/// Waits for a driver.
pub enum Waiting {
    Run(Box<Start>),
    Profile(AgentId, Option<Duration>, Reply<BoxProfile, PoolError>),
    Explain(Option<AgentId>, Reply<Explained, std::convert::Infallible>),
}

/// Between two trials.
pub struct Retry {
    wait: Duration,
    /// Set: tries again. Dropped: does not.
    timer: Option<TaskHandle>,
}

impl Retry {
    pub const fn new() -> Self {
        Self {
            wait: FIRST_WAIT,
            timer: None,
        }
    }
}

impl SandboxPool {
    /// Tries the drivers beside the loop, and ends whatever boxes an earlier life of this room or daemon left.
    pub(super) fn try_drivers(&mut self, waiting: Vec<Waiting>) {
        self.drivers = Drivers::Trying(waiting);
        self.retry.timer = None;
        let (mut config, context, ctx) = (
            self.wiring.config.clone(),
            self.context.clone(),
            self.ctx.clone(),
        );
        if let Some(kept) = self.kept {
            config.driver = kept;
        }
        let runner = self.runner.as_ref().map(|runner| runner.handle.clone());
        let audit = self.wiring.ways.as_ref().map(|ways| ways.audit.clone());
        let ours: BTreeSet<BoxId> = self.boxes.values().map(|live| live.id.clone()).collect();
        let trial = async move {
            probe::sweep(&context);
            let chosen = match choose(&config, &context, runner.as_ref()).await {
                Ok(chosen) => reconcile(&chosen.driver, &context, &ours, audit.as_ref())
                    .await
                    .map(|()| chosen)
                    .map_err(|error| vec![error.to_string()]),
                Err(said) => Err(said),
            };
            ctx.notify(SandboxPoolMsg::Tried(chosen));
        };
        self.ctx.task("drivers", 0, trial).keep();
    }

    /// Nobody asked, but nobody should have to.
    pub(super) fn try_again(&mut self) {
        if matches!(self.drivers, Drivers::None { .. }) {
            self.try_drivers(Vec::new());
        }
    }

    pub(super) async fn tried(&mut self, result: Result<Chosen, Vec<String>>) -> Result<(), Crash> {
        let new = match result {
            Ok(chosen) => {
                tracing::info!(driver = chosen.driver.name(), why = %chosen.why, "sandbox driver");
                self.chosen(&chosen);
                Drivers::Proven(chosen)
            }
            Err(said) => self.none(said.join("; ")),
        };
        if let Drivers::Trying(waiting) = std::mem::replace(&mut self.drivers, new) {
            for waiting in waiting {
                self.request(waiting).await?;
            }
        }
        self.review().await
    }

    fn chosen(&mut self, chosen: &Chosen) {
        self.retry = Retry::new();
        self.engine = None;
        self.forget_images();
        // A plan names what contains it, and people have decided on that: what is lost later is waited for, not exchanged.
        self.kept = Some(match &chosen.driver {
            Driver::Native(_) => {
                self.runner = None;
                Choice::Native
            }
            Driver::Docker(docker) => {
                let (docker, ctx) = (docker.clone(), self.ctx.clone());
                self.engine = Some(self.ctx.task("engine", 0, async move {
                    let reason = docker.lost().await;
                    ctx.notify(SandboxPoolMsg::EngineLost(reason));
                }));
                Choice::Docker
            }
        });
    }

    /// There is none; it is tried again after a while.
    fn none(&mut self, said: String) -> Drivers {
        if self.said != said {
            tracing::warn!(%said, "no sandbox driver: commands in sandboxes are refused, everything else works; it is tried again");
            self.said.clone_from(&said);
        }
        let wait = self.retry.wait;
        self.retry = Retry {
            wait: (wait * 2).min(LONGEST_WAIT),
            timer: Some(
                self.ctx
                    .after("drivers_again", 0, wait, SandboxPoolMsg::TryAgain),
            ),
        };
        Drivers::None {
            said,
            at: Instant::now(),
        }
    }

    /// New boxes have to wait. Those that serve go on: the engine is not on the way between a box and the gateway, and what ends
    /// a run (its cell, and the kernel) needs no engine. One that comes back may end them itself; then their links say so.
    pub(super) async fn engine_lost(&mut self, reason: String) {
        let Drivers::Proven(Chosen {
            driver: Driver::Docker(docker),
            ..
        }) = &self.drivers
        else {
            return;
        };
        let said = no_driver(
            format!("{} was lost: {reason}", docker.describe()),
            "run `systemctl restart docker`; the gateway uses it again by itself",
        )
        .to_string();
        tracing::error!(%said, boxes = self.boxes.len(), "the engine is lost: boxes that serve go on, new ones wait for it");
        let why = GivenUp::Engine(reason);
        for live in self.boxes.values_mut() {
            // What is being made cannot be finished.
            if live.standing.get().init.is_none() {
                live.leaving = true;
                // A box that is down has nothing to end.
                let _ = live.handle.order(Order::End(why.clone())).await;
            }
        }
        self.engine = None;
        self.said.clone_from(&said);
        self.drivers = self.none(said);
    }

    /// A driver, or the request kept or refused.
    pub(super) fn driver_for(&mut self, request: Waiting) -> Option<(Driver, Waiting)> {
        match &mut self.drivers {
            Drivers::Trying(waiting) if waiting.len() < MOST_WAITING => {
                waiting.push(request);
                None
            }
            Drivers::Trying(_) => {
                self.refuse(request, PoolError::Full(self.wiring.config.max_boxes));
                None
            }
            // Who only wants to know is told what was said.
            Drivers::None { said, at }
                if at.elapsed() < ASKED_AGAIN || matches!(request, Waiting::Explain(..)) =>
            {
                let why = PoolError::NoDriver(said.clone());
                self.refuse(request, why);
                None
            }
            Drivers::None { .. } => {
                // Somebody may have installed or started one since.
                self.try_drivers(vec![request]);
                None
            }
            Drivers::Proven(chosen) => Some((chosen.driver.clone(), request)),
        }
    }
}

impl Waiting {
    /// Whose box.
    pub const fn agent(&self) -> Option<&AgentId> {
        match self {
            Self::Run(start) => Some(&start.agent),
            Self::Profile(agent, ..) => Some(agent),
            Self::Explain(agent, _) => agent.as_ref(),
        }
    }

    /// Somebody still waits for the answer.
    pub fn is_wanted(&self) -> bool {
        match self {
            Self::Run(start) => start.reply.is_wanted(),
            Self::Profile(_, _, reply) => reply.is_wanted(),
            Self::Explain(_, reply) => reply.is_wanted(),
        }
    }
}

/// Ends every box that carries this gateway's label and is none of this room's: nobody serves it any more.
async fn reconcile(
    driver: &Driver,
    context: &ProbeContext,
    ours: &BTreeSet<BoxId>,
    audit: Option<&AuditHandle>,
) -> Result<(), DriverError> {
    let folders = context.run_root.join("b");
    let mut found = driver.list(&context.owner).await?;
    found.retain(|found| !ours.contains(&found.id));
    // All at once: one that does not answer is waited for.
    let all = &folders;
    let asked = found.iter().map(|found| async move {
        if let Some(audit) = audit
            && found.running
            && found.boot != context.boot
            && let Some(init) = driver.init(&found.id).await
        {
            let run_dir = all.join(found.id.as_str());
            let runs = found::ask(&run_dir, init).await;
            found::record(audit, &found.id, &found.boot, runs).await;
        }
    });
    futures_util::future::join_all(asked).await;
    for found in found {
        tracing::warn!(id = %found.id, boot = %found.boot, running = found.running, "a box of an earlier start is ended");
        driver.stop(&found.id).await?;
        folders::remove_run_dir(&folders.join(found.id.as_str()));
    }
    folders::sweep_run_dirs(&folders, |name| ours.iter().any(|id| id.as_str() == name));
    Ok(())
}
