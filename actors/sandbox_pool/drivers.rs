//! Which drivers the pool has: each that some agent's boxes may be made by is tried beside the loop, watched where it can be lost, and
//! tried again until it is there. One that is not there refuses its own agents and nobody else's, and is never exchanged for the other.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use portcullis_core::ids::{AgentId, BoxId};
use portcullis_core::sandbox::DriverChoice;
use tokio::time::Instant;

use super::actor::SandboxPool;
use super::choose::{Chosen, Kind, attempt};
use super::driver::{Driver, DriverError, ProbeContext};
use super::engine::no_driver;
use super::hardening::HOSTS_FILE;
use super::messages::{BoxProfile, Explained, OtherDriver, PoolError, SandboxPoolMsg, Start};
use super::runs::Order;
use super::standing::GivenUp;
use super::{folders, found};
use crate::audit::AuditHandle;
use crate::supervision::{Crash, Reply, TaskHandle};

/// A run that finds no driver has it tried again, but not sooner after the last time.
const ASKED_AGAIN: Duration = Duration::from_secs(1);
/// Without being asked it is tried again after this, then after twice the time, up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// See [`FIRST_WAIT`].
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Requests that wait while a driver is tried.
pub const MOST_WAITING: usize = 1024;

/// What the pool has.
pub struct Drivers {
    docker: Trial,
    native: Trial,
    /// What agents name.
    choices: BTreeSet<DriverChoice>,
    /// What `auto` stands for in this room's life, once one has proven itself. A plan names what contains it, and people have decided on
    /// that: what is lost later is waited for, not exchanged.
    auto: Option<Kind>,
    /// Those that made boxes in an earlier life, until they have said which, and these are ended.
    left: BTreeSet<Kind>,
    /// Sees the loss of the engine.
    engine: Option<TaskHandle>,
}

/// One of the two.
struct Trial {
    state: State,
    /// Until it is tried again.
    wait: Duration,
    /// Set: tries again. Dropped: does not.
    timer: Option<TaskHandle>,
    /// What was said last, so that it is logged once.
    said: String,
}

enum State {
    /// Nobody's boxes are made by it so far.
    Untried,
    /// Being tried; these wait.
    Trying(Vec<Waiting>),
    /// It has proven itself.
    Proven(Chosen),
    /// What it said, and when.
    None { said: String, at: Instant },
}

/// Waits for a driver.
pub enum Waiting {
    Run(Box<Start>),
    Profile(AgentId, Option<Duration>, Reply<BoxProfile, PoolError>),
    Explain(Option<AgentId>, Reply<Explained, std::convert::Infallible>),
}

impl Trial {
    const fn new() -> Self {
        Self {
            state: State::Untried,
            wait: FIRST_WAIT,
            timer: None,
            said: String::new(),
        }
    }

    const fn proven(&self) -> Option<&Chosen> {
        match &self.state {
            State::Proven(chosen) => Some(chosen),
            _ => None,
        }
    }

    const fn is_trying(&self) -> bool {
        matches!(self.state, State::Trying(_))
    }

    fn why(&self) -> String {
        match &self.state {
            State::Untried => "it has not been tried".to_owned(),
            State::Trying(_) => "the drivers are being tried".to_owned(),
            State::Proven(chosen) => chosen.why.clone(),
            State::None { said, .. } => said.clone(),
        }
    }
}

impl Drivers {
    /// None is tried yet.
    pub const fn new(choices: BTreeSet<DriverChoice>, left: BTreeSet<Kind>) -> Self {
        Self {
            docker: Trial::new(),
            native: Trial::new(),
            choices,
            auto: None,
            left,
            engine: None,
        }
    }

    const fn of(&self, kind: Kind) -> &Trial {
        match kind {
            Kind::Docker => &self.docker,
            Kind::Native => &self.native,
        }
    }

    const fn of_mut(&mut self, kind: Kind) -> &mut Trial {
        match kind {
            Kind::Docker => &mut self.docker,
            Kind::Native => &mut self.native,
        }
    }

    /// None where that is not known yet.
    const fn kind(&self, choice: DriverChoice) -> Option<Kind> {
        match choice {
            DriverChoice::Docker => Some(Kind::Docker),
            DriverChoice::Native => Some(Kind::Native),
            DriverChoice::Auto => self.auto,
        }
    }

    /// Some agent waits for what `auto` is to be.
    fn is_open(&self) -> bool {
        self.auto.is_none() && self.choices.contains(&DriverChoice::Auto)
    }

    /// Some agent's boxes are, may come to be, or may have been made by it.
    fn is_needed(&self, kind: Kind) -> bool {
        self.is_used(kind) || self.left.contains(&kind)
    }

    /// Some agent's boxes are, or may come to be, made by it.
    fn is_used(&self, kind: Kind) -> bool {
        self.choices.contains(&kind.choice())
            || self.is_open()
            || self.choices.contains(&DriverChoice::Auto) && self.auto == Some(kind)
    }

    /// The engine may be needed at all.
    pub fn may_use_engine(&self) -> bool {
        self.is_needed(Kind::Docker)
    }

    /// The driver that is meant, and why it is or is not there.
    pub fn standing(&self, choice: DriverChoice) -> (Option<&Driver>, String) {
        let Some(kind) = self.kind(choice) else {
            return (None, self.both());
        };
        let trial = self.of(kind);
        let mut why = trial.why();
        if choice == DriverChoice::Auto
            && let (Kind::Native, State::None { said, .. }) = (kind, &self.docker.state)
        {
            why = format!("{why}; not Docker: {said}");
        }
        (trial.proven().map(|chosen| &chosen.driver), why)
    }

    /// It is being found out.
    pub fn is_trying(&self, choice: DriverChoice) -> bool {
        let is_tried = |kind| matches!(self.of(kind).state, State::Trying(_) | State::Untried);
        match self.kind(choice) {
            Some(kind) => is_tried(kind),
            None => self.docker.is_trying() || self.native.is_trying(),
        }
    }

    /// Those that agents have and `choice` does not mean.
    pub fn others(&self, choice: DriverChoice) -> Vec<OtherDriver> {
        let other = |kind: &Kind| self.kind(choice) != Some(*kind) && self.is_used(*kind);
        let named = |kind: &Kind| !self.is_open() || self.choices.contains(&kind.choice());
        let kinds = [Kind::Docker, Kind::Native].into_iter();
        kinds
            .filter(|kind| other(kind) && named(kind))
            .map(|kind| OtherDriver {
                driver: kind.as_str(),
                is_proven: self.of(kind).proven().is_some(),
                is_trying: self.of(kind).is_trying(),
                why: self.of(kind).why(),
            })
            .collect()
    }

    /// Those that can make boxes now.
    pub fn proven(&self) -> Vec<Driver> {
        let both = [&self.docker, &self.native].into_iter();
        both.filter_map(|trial| trial.proven().map(|chosen| chosen.driver.clone()))
            .collect()
    }

    /// It can make boxes now.
    pub const fn has(&self, driver: &Driver) -> bool {
        self.of(driver.kind()).proven().is_some()
    }

    /// What both said, where `auto` has none.
    fn both(&self) -> String {
        let said = [&self.docker, &self.native].map(|trial| match &trial.state {
            State::None { said, .. } => Some(said.as_str()),
            _ => None,
        });
        let said: Vec<&str> = said.into_iter().flatten().collect();
        if said.len() < 2 && self.is_trying(DriverChoice::Auto) {
            "the drivers are being tried".to_owned()
        } else {
            said.join("; ")
        }
    }
}

impl SandboxPool {
    /// Tries every driver that agents name; what `auto` falls back to only when the first is not there.
    pub(super) fn try_drivers(&mut self) {
        let choices = &self.drivers.choices;
        let docker =
            choices.contains(&DriverChoice::Docker) || choices.contains(&DriverChoice::Auto);
        let native = choices.contains(&DriverChoice::Native);
        for (kind, is_named) in [(Kind::Docker, docker), (Kind::Native, native)] {
            let is_meant = is_named || self.drivers.left.contains(&kind);
            if is_meant && matches!(self.drivers.of(kind).state, State::Untried) {
                self.try_driver(kind, Vec::new());
            }
        }
    }

    /// Other profiles hold.
    #[cfg(test)]
    pub(super) fn choices_are(&mut self, choices: BTreeSet<DriverChoice>) {
        self.drivers.choices = choices;
        self.try_drivers();
    }

    /// Begins a trial, beside the other driver's where that is under way: an engine that hangs holds nobody up but its own agents.
    /// Ends whatever boxes of that driver an earlier life of this room or daemon left.
    fn try_driver(&mut self, kind: Kind, waiting: Vec<Waiting>) {
        let trial = self.drivers.of_mut(kind);
        trial.state = State::Trying(waiting);
        trial.timer = None;
        let (config, context, ctx) = (
            self.wiring.config.clone(),
            self.context.clone(),
            self.ctx.clone(),
        );
        let runner = self.runner.as_ref().map(|runner| runner.handle.clone());
        let audit = self.wiring.ways.as_ref().map(|ways| ways.audit.clone());
        let ours: BTreeSet<BoxId> = self.boxes.values().map(|live| live.id.clone()).collect();
        let trial = async move {
            let chosen = match attempt(kind, &config, &context, runner.as_ref()).await {
                Ok(chosen) => reconcile(&chosen.driver, &context, &ours, audit.as_ref())
                    .await
                    .map(|()| chosen),
                Err(said) => Err(said),
            };
            let result = chosen.map_err(|error| error.to_string());
            ctx.notify(SandboxPoolMsg::Tried(kind, Box::new(result)));
        };
        self.ctx.task("drivers", 0, trial).keep();
    }

    /// Nobody asked, but nobody should have to.
    pub(super) fn try_again(&mut self, kind: Kind) {
        if matches!(self.drivers.of(kind).state, State::None { .. }) {
            self.try_driver(kind, Vec::new());
        }
    }

    pub(super) async fn tried(
        &mut self,
        kind: Kind,
        result: Result<Chosen, String>,
    ) -> Result<(), Crash> {
        let new = match result {
            Ok(chosen) => {
                tracing::info!(driver = chosen.driver.name(), why = %chosen.why, "sandbox driver");
                // What it had made is ended: who has no other use for it goes on without it.
                self.drivers.left.remove(&kind);
                if self.drivers.is_needed(kind) {
                    self.chosen(&chosen);
                    State::Proven(chosen)
                } else {
                    State::Untried
                }
            }
            Err(said) => self.none(kind, said),
        };
        let old = std::mem::replace(&mut self.drivers.of_mut(kind).state, new);
        let State::Trying(waiting) = old else {
            return Err(Crash::new("a driver was tried that nobody tries"));
        };
        self.settle_auto();
        if !self.drivers.may_use_engine() {
            self.runner = None;
        }
        // Who takes either one goes on to the other.
        let goes_on = kind == Kind::Docker && self.drivers.is_open();
        let is_auto = |waiting: &Waiting| {
            self.effective(waiting.agent()).profile.driver == DriverChoice::Auto
        };
        let (open, known): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|waiting| self.drivers.is_open() && is_auto(waiting));
        if goes_on {
            match &mut self.drivers.native.state {
                State::Trying(others) => others.extend(open),
                _ => self.try_driver(Kind::Native, open),
            }
        } else if let State::Trying(others) = &mut self.drivers.docker.state {
            // It was tried for what it had left alone, and the first is still under way.
            others.extend(open);
        } else {
            let why = PoolError::NoDriver(self.drivers.both());
            for request in open {
                self.refuse(request, why.clone());
            }
        }
        for request in known {
            self.request(request).await?;
        }
        self.sweep_folders();
        self.review().await
    }

    /// What `auto` is, where that can be said now.
    fn settle_auto(&mut self) {
        let drivers = &mut self.drivers;
        if !drivers.is_open() {
            return;
        }
        drivers.auto = match (&drivers.docker.state, &drivers.native.state) {
            (State::Proven(_), _) => Some(Kind::Docker),
            (State::None { .. }, State::Proven(_)) => Some(Kind::Native),
            _ => None,
        };
        if drivers.auto == Some(Kind::Native) && !drivers.may_use_engine() {
            drivers.docker.timer = None;
        }
    }

    fn chosen(&mut self, chosen: &Chosen) {
        let trial = self.drivers.of_mut(chosen.driver.kind());
        (trial.wait, trial.timer) = (FIRST_WAIT, None);
        trial.said.clear();
        if let Driver::Docker(docker) = &chosen.driver {
            self.forget_images();
            let (docker, ctx) = (docker.clone(), self.ctx.clone());
            self.drivers.engine = Some(self.ctx.task("engine", 0, async move {
                let reason = docker.lost().await;
                ctx.notify(SandboxPoolMsg::EngineLost(reason));
            }));
        }
    }

    /// It is not there; it is tried again after a while.
    fn none(&mut self, kind: Kind, said: String) -> State {
        let is_open = self.drivers.is_open();
        // What `auto` falls back to is tried when the first was.
        let drivers = &self.drivers;
        let is_led = kind == Kind::Native
            && !drivers.choices.contains(&DriverChoice::Native)
            && !drivers.left.contains(&Kind::Native);
        let is_used = drivers.is_used(kind);
        let both = match (&self.drivers.docker.state, kind) {
            (State::None { said: docker, .. }, Kind::Native) if is_open => {
                format!("{docker}; {said}")
            }
            _ => said.clone(),
        };
        let is_last = kind == Kind::Native || !is_open;
        if !is_used {
            tracing::warn!(driver = kind.as_str(), %said, "an earlier start made boxes by this driver, and what is left of them cannot be ended; it is tried again");
        }
        let trial = self.drivers.of_mut(kind);
        if is_used && is_last && trial.said != both {
            tracing::warn!(driver = kind.as_str(), said = %both, "no sandbox driver: commands in its sandboxes are refused, everything else works; it is tried again");
            trial.said = both;
        }
        let wait = trial.wait;
        trial.wait = (wait * 2).min(LONGEST_WAIT);
        let timer = (!is_led).then(|| {
            self.ctx
                .after("drivers_again", 0, wait, SandboxPoolMsg::TryAgain(kind))
        });
        self.drivers.of_mut(kind).timer = timer;
        State::None {
            said,
            at: Instant::now(),
        }
    }

    /// Control folders that a kill left: when every driver has said which boxes there are, and none has one of a trial.
    fn sweep_folders(&self) {
        let mut kinds = [Kind::Docker, Kind::Native].into_iter();
        let is_known = |kind| {
            let trial = self.drivers.of(kind);
            trial.proven().is_some() || !trial.is_trying() && !self.drivers.is_needed(kind)
        };
        if kinds.all(is_known) {
            let folders = self.context.run_root.join("b");
            folders::sweep_run_dirs(&folders, |name| {
                self.boxes.values().any(|live| live.id.as_str() == name)
            });
        }
    }

    /// New boxes of it have to wait. Those that serve go on: the engine is not on the way between a box and the gateway, and what ends
    /// a run (its cell, and the kernel) needs no engine. One that comes back may end them itself; then their links say so.
    pub(super) async fn engine_lost(&mut self, reason: String) {
        let Some(Chosen {
            driver: Driver::Docker(docker),
            ..
        }) = self.drivers.docker.proven()
        else {
            return;
        };
        let said = no_driver(
            format!("{} was lost: {reason}", docker.describe()),
            "run `systemctl restart docker`; the gateway uses it again by itself",
        )
        .to_string();
        let boxes = self.boxes.values();
        let boxes = boxes.filter(|live| live.driver.kind() == Kind::Docker);
        tracing::error!(%said, boxes = boxes.count(), "the engine is lost: boxes that serve go on, new ones wait for it");
        let why = GivenUp::Engine(reason);
        for live in self.boxes.values_mut() {
            // What is being made cannot be finished.
            if live.driver.kind() == Kind::Docker && live.standing.get().init.is_none() {
                live.leaving = true;
                // A box that is down has nothing to end.
                let _ = live.handle.order(Order::End(why.clone())).await;
            }
        }
        self.drivers.engine = None;
        self.drivers.docker.said.clone_from(&said);
        self.drivers.docker.state = self.none(Kind::Docker, said);
    }

    /// A driver, or the request kept or refused.
    pub(super) fn driver_for(&mut self, request: Waiting) -> Option<(Driver, Waiting)> {
        // Nothing begins beside what an earlier life left, as long as that can be found and ended.
        let mut left = self.drivers.left.iter().copied();
        if let Some(kind) = left.find(|kind| self.drivers.of(*kind).is_trying())
            && let State::Trying(waiting) = &mut self.drivers.of_mut(kind).state
            && waiting.len() < MOST_WAITING
        {
            waiting.push(request);
            return None;
        }
        let effective = self.effective(request.agent());
        let choice = effective.profile.driver;
        let kind = match self.drivers.kind(choice) {
            Some(kind) => kind,
            // The second is tried because the first is not there.
            None if self.drivers.native.is_trying() && !self.drivers.docker.is_trying() => {
                Kind::Native
            }
            None => Kind::Docker,
        };
        let both = self.drivers.both();
        let is_open = self.drivers.kind(choice).is_none();
        match &mut self.drivers.of_mut(kind).state {
            State::Trying(waiting) if waiting.len() < MOST_WAITING => {
                waiting.push(request);
                None
            }
            State::Trying(_) => {
                self.refuse(request, PoolError::Full(self.wiring.config.max_boxes));
                None
            }
            // Who only wants to know is told what was said.
            State::None { said, at }
                if at.elapsed() < ASKED_AGAIN || matches!(request, Waiting::Explain(..)) =>
            {
                let why = match choice {
                    DriverChoice::Auto => {
                        PoolError::NoDriver(if is_open { both } else { said.clone() })
                    }
                    named => PoolError::NotThisDriver {
                        driver: named.as_str(),
                        from: effective.from("driver").to_owned(),
                        said: said.clone(),
                    },
                };
                self.refuse(request, why);
                None
            }
            State::None { .. } | State::Untried => {
                // Somebody may have installed or started one since.
                self.try_driver(kind, vec![request]);
                None
            }
            State::Proven(chosen) => Some((chosen.driver.clone(), request)),
        }
    }

    /// What makes an agent's boxes, unless it is lost.
    pub(super) fn driver_of(&self, agent: Option<&AgentId>) -> Option<&Driver> {
        self.drivers
            .standing(self.effective(agent).profile.driver)
            .0
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

/// Which drivers made what an earlier life left: a native box has a file beside its folder, one of an engine a file of hosts in it.
pub fn left(run_root: &Path) -> BTreeSet<Kind> {
    let mut left = BTreeSet::new();
    let entries = std::fs::read_dir(run_root.join("b"));
    for entry in entries.into_iter().flatten().flatten() {
        let path = entry.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            left.insert(Kind::Native);
        } else if path.join(HOSTS_FILE).exists() && !path.with_extension("json").exists() {
            left.insert(Kind::Docker);
        }
    }
    left
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
    Ok(())
}
