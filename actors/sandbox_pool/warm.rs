//! Boxes that are ready for sessions that have not begun: made ahead, unused, given out once.
//!
//! How many is told by how many sessions began at once lately ([`Demand`]), between `warm_min` of each agent that the configuration gives
//! the scope and `warm_max` of all. They are made one after another, never while a run waits for a box, and make room for any other.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use portcullis_core::ids::AgentId;
use portcullis_core::sandbox::{Demand, Scope};
use serde::Serialize;
use tokio::time::Instant;

use super::actor::SandboxPool;
use super::boxes::Live;
use super::holder::{Holder, PoolKey, SessionKey};
use super::messages::SandboxPoolMsg;
use super::wanted::{Unmet, Wanted};
use crate::supervision::{Crash, TaskHandle};

/// From a session's beginning to the next box that is made ahead: its first command has the machine.
const FIRST: Duration = Duration::from_millis(100);
/// Between two looks at what is not wanted any more.
const LOOK: Duration = Duration::from_secs(10);
/// After a box that could not be made, then twice that, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How a session came by its box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    /// It served before it was asked for.
    Warm,
    /// It was made, or finished, for this session.
    Cold,
}

/// How many sessions came by their box so, and what that cost them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// Sessions.
    pub count: u64,
    /// From the request of the first run to the box that took it, microseconds of all together.
    pub total_us: u64,
    /// The longest, microseconds.
    pub worst_us: u64,
}

impl Price {
    fn add(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.count += 1;
        self.total_us = self.total_us.saturating_add(us);
        self.worst_us = self.worst_us.max(us);
    }

    /// For people.
    pub fn shown(self) -> String {
        match self.count {
            0 => "0".to_owned(),
            count => {
                let ms = |us: u64| us as f64 / 1e3;
                format!(
                    "{count}, {:.1} ms each, {:.1} ms at most",
                    ms(self.total_us / count),
                    ms(self.worst_us)
                )
            }
        }
    }
}

/// What is kept ready, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WarmStatus {
    /// Boxes that serve and that nobody has.
    pub ready: usize,
    /// Those that are being made.
    pub starting: usize,
    /// Sessions whose box was ready.
    pub hits: Price,
    /// Sessions that waited for theirs to be made.
    pub misses: Price,
}

/// Boxes of one kind.
struct Kind {
    /// By whose profile it was found; none: of agents that nothing is said of.
    agent: Option<AgentId>,
    /// The configuration gives the agent the scope.
    is_known: bool,
    wanted: Wanted,
    demand: Demand,
    /// Boxes in a row that could not be made.
    failed: u32,
    not_before: Instant,
}

/// The pool's own part in it.
pub struct Warm {
    kinds: BTreeMap<PoolKey, Kind>,
    began: Instant,
    hits: Price,
    misses: Price,
    /// Fills soon.
    soon: Option<TaskHandle>,
    /// Looks again.
    look: Option<TaskHandle>,
    /// Boxes that may be made ahead at once.
    at_once: usize,
}

impl Warm {
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            kinds: BTreeMap::new(),
            began: Instant::now(),
            hits: Price::default(),
            misses: Price::default(),
            soon: None,
            look: None,
            at_once: (cores / 4).max(1),
        }
    }
}

impl SandboxPool {
    /// A box that serves and that nobody has had, for this session; else one that is being made.
    pub(super) fn claim(&mut self, pool: &PoolKey, holder: &Holder) -> Option<(u64, Fresh)> {
        let now = Instant::now();
        let ready = self.boxes.iter_mut().filter_map(|(&key, live)| {
            let standing = live.standing.get();
            let is_ours = matches!(&live.holder, Holder::Nobody(own) if own == pool);
            let is_unused = live.sent == 0 && standing.taken == 0;
            let may_serve = !live.leaving && !standing.over && now < live.old_at;
            // One that was killed just now has not said so yet.
            let is_there = || live.is_starting() || live.init().is_some();
            (is_ours && is_unused && may_serve && is_there())
                .then_some(((live.is_starting(), key), live))
        });
        let ((is_starting, key), live) = ready.min_by_key(|(order, _)| *order)?;
        tracing::debug!(id = %live.id, whose = %holder, "a box that was ready is a session's now");
        live.holder = holder.clone();
        let fresh = if is_starting {
            Fresh::Cold
        } else {
            Fresh::Warm
        };
        Some((key, fresh))
    }

    /// A session has begun: what it came by is made anew, a moment later.
    pub(super) fn wants_fresh(&mut self, pool: PoolKey, agent: &AgentId, wanted: &Wanted) {
        let warm = &mut self.warm;
        // What was wanted for this agent before is not wanted now.
        warm.kinds
            .retain(|key, kind| *key == pool || kind.agent.as_ref() != Some(agent));
        let now = warm.began.elapsed();
        let kind = warm.kinds.entry(pool).or_insert_with(|| Kind {
            agent: Some(agent.clone()),
            is_known: false,
            wanted: wanted.clone(),
            demand: Demand::default(),
            failed: 0,
            not_before: Instant::now(),
        });
        kind.demand.ask(now);
        if warm.soon.is_none() {
            let fill = SandboxPoolMsg::Fill;
            warm.soon = Some(self.ctx.after("warm", 0, FIRST, fill));
        }
    }

    /// How a session came by its box.
    pub(super) fn began(&mut self, fresh: Fresh, took: Duration) {
        match fresh {
            Fresh::Warm => self.warm.hits.add(took),
            Fresh::Cold => self.warm.misses.add(took),
        }
    }

    /// What is wanted may be another now: each kind is looked up anew, and those of the agents that the configuration gives the scope
    /// are kept from the first on, as many as there may be boxes.
    pub(super) async fn review(&mut self) -> Result<(), Crash> {
        // What cannot be made now is kept for when it can.
        let mut old = BTreeMap::new();
        for (pool, kind) in std::mem::take(&mut self.warm.kinds) {
            let is_there = self.drivers.has(&kind.wanted.driver);
            let kinds = if is_there {
                &mut old
            } else {
                &mut self.warm.kinds
            };
            kinds.insert(pool, kind);
        }
        let most = self.most_warm();
        let named: Vec<_> = self.wiring.profiles.agents.keys().cloned().collect();
        let known = named.into_iter().map(Some).chain([None]);
        let known = known.filter(|agent| self.is_for_sessions(agent.as_ref()));
        let known: Vec<_> = known.take(most).map(|agent| (agent, true)).collect();
        let seen: Vec<_> = old
            .values()
            .map(|kind| (kind.agent.clone(), false))
            .collect();
        for (agent, is_known) in known.into_iter().chain(seen) {
            if !self.is_for_sessions(agent.as_ref()) {
                continue;
            }
            let Some(driver) = self.driver_of(agent.as_ref()).cloned() else {
                continue;
            };
            let wanted = match self.wanted(&driver, agent.as_ref()) {
                Ok(wanted) => wanted,
                Err(Unmet::NoUser(owner, access)) => {
                    // It is looked at again when it has one.
                    self.settle(owner, access, None);
                    continue;
                }
                // An image that nobody has asked for yet is no reason to ask.
                Err(Unmet::Unknown(_) | Unmet::Refused(_) | Unmet::Nobody) => continue,
            };
            let profile = &wanted.effective.profile;
            let pool = match &agent {
                Some(agent) => PoolKey::new(profile, &wanted.hash, agent),
                None => match PoolKey::of_any(profile, &wanted.hash) {
                    Some(pool) => pool,
                    None => continue,
                },
            };
            let before = old.remove(&pool);
            let kind = self.warm.kinds.entry(pool).or_insert_with(|| {
                let fresh = || (Demand::default(), 0, Instant::now());
                let (demand, failed, not_before) =
                    before.map_or_else(fresh, |kind| (kind.demand, kind.failed, kind.not_before));
                Kind {
                    agent,
                    is_known: false,
                    wanted,
                    demand,
                    failed,
                    not_before,
                }
            });
            kind.is_known |= is_known;
        }
        self.fill().await
    }

    fn is_for_sessions(&self, agent: Option<&AgentId>) -> bool {
        self.wiring.profiles.of(agent).profile.scope == Scope::Session
    }

    /// More than half of the places are never kept for nobody.
    fn most_warm(&self) -> usize {
        let config = &self.wiring.config;
        config.warm_max.min(config.max_boxes / 2)
    }

    /// Ends what is kept and not wanted, and makes what is wanted and not kept.
    pub(super) async fn fill(&mut self) -> Result<(), Crash> {
        self.warm.soon = None;
        let now = Instant::now();
        let had = self.discard(now).await;
        let starting = self.boxes.values().filter(|live| live.is_starting());
        let (ahead, for_runs): (Vec<&Live>, Vec<&Live>) =
            starting.partition(|live| live.holder.is_nobody());
        // Who waits for a box has the machine; this is asked again when that serves.
        let may_make = for_runs.is_empty() && ahead.len() < self.warm.at_once;
        if may_make && self.boxes.len() < self.wiring.config.max_boxes {
            self.make_one(now, &had).await?;
        }
        self.warm.look = (!self.warm.kinds.is_empty())
            .then(|| self.ctx.after("warm_look", 0, LOOK, SandboxPoolMsg::Fill));
        Ok(())
    }

    /// How many there should be of a kind.
    fn target(&self, kind: &Kind) -> usize {
        let least = if kind.is_known {
            self.wiring.config.warm_min
        } else {
            0
        };
        let most = kind.demand.most(self.warm.began.elapsed());
        most.max(least).min(self.most_warm())
    }

    /// Ends what is kept and not wanted; how many are left of each kind.
    async fn discard(&mut self, now: Instant) -> BTreeMap<PoolKey, usize> {
        let at = self.warm.began.elapsed();
        let warm = &mut self.warm.kinds;
        warm.retain(|_, kind| kind.is_known || kind.demand.last(at).is_some());
        let kinds = self.warm.kinds.iter();
        let targets: BTreeMap<PoolKey, usize> = kinds
            .map(|(key, kind)| (key.clone(), self.target(kind)))
            .collect();
        let mut had: BTreeMap<PoolKey, usize> = BTreeMap::new();
        // From the newest on, so that what is too much is what has been there longest.
        for live in self.boxes.values_mut().rev() {
            let Holder::Nobody(pool) = &live.holder else {
                continue;
            };
            if live.leaving || live.standing.get().over {
                continue;
            }
            let count = had.entry(pool.clone()).or_default();
            let is_wanted = *count < targets.get(pool).copied().unwrap_or_default();
            if is_wanted && now < live.old_at {
                *count += 1;
                if let Some(kind) = self.warm.kinds.get_mut(pool)
                    && !live.is_starting()
                {
                    kind.failed = 0;
                }
            } else {
                tracing::debug!(id = %live.id, "a box that nobody has had is not wanted any more");
                live.retire(false).await;
            }
        }
        had
    }

    /// Makes one of the kind of which there are fewest.
    async fn make_one(
        &mut self,
        now: Instant,
        had: &BTreeMap<PoolKey, usize>,
    ) -> Result<(), Crash> {
        let count = |pool: &PoolKey| had.get(pool).copied().unwrap_or_default();
        let at = self.warm.began.elapsed();
        let kinds = self.warm.kinds.iter();
        let short =
            kinds.filter(|(pool, kind)| now >= kind.not_before && count(pool) < self.target(kind));
        let short = short.filter(|(_, kind)| self.drivers.has(&kind.wanted.driver));
        let neediest =
            short.min_by_key(|(pool, kind)| (count(pool), Reverse(kind.demand.last(at))));
        let Some((pool, kind)) = neediest else {
            return Ok(());
        };
        let (pool, wanted) = (pool.clone(), kind.wanted.clone());
        if had.values().sum::<usize>() >= self.most_warm() {
            // Who has none gets one from who has several.
            let richest = had.iter().max_by_key(|(_, count)| **count);
            if count(&pool) == 0
                && let Some((rich, _)) = richest.filter(|(_, count)| **count > 1)
            {
                let holder = Holder::Nobody(rich.clone());
                let mut all = self.boxes.values_mut();
                if let Some(live) = all.find(|live| live.holder == holder && !live.leaving) {
                    live.retire(false).await;
                }
            }
            return Ok(());
        }
        if let Err(error) = self
            .make(&wanted.driver, &Holder::Nobody(pool.clone()), &wanted)
            .await?
        {
            tracing::warn!(%error, "no box could be made ahead");
            self.pause(&pool);
        }
        Ok(())
    }

    /// A box that never served.
    pub(super) fn not_made(&mut self, live: &Live) {
        if let Holder::Nobody(pool) = &live.holder
            && !live.leaving
        {
            let pool = pool.clone();
            self.pause(&pool);
        }
    }

    fn pause(&mut self, pool: &PoolKey) {
        if let Some(kind) = self.warm.kinds.get_mut(pool) {
            let wait = PAUSE * 2_u32.saturating_pow(kind.failed.min(10));
            kind.failed += 1;
            kind.not_before = Instant::now() + wait.min(LONGEST_PAUSE);
        }
    }

    /// A session is over: its boxes end when what runs in them has.
    pub(super) async fn session_over(&mut self, session: &SessionKey) {
        for live in self.boxes.values_mut() {
            let is_its = matches!(&live.holder, Holder::Session(_, own) if own == session);
            if is_its && !live.leaving {
                live.retire(true).await;
            }
        }
    }

    pub(super) fn warm_status(&self) -> WarmStatus {
        let nobodys = self
            .boxes
            .values()
            .filter(|live| live.holder.is_nobody() && !live.leaving && !live.standing.get().over);
        let (starting, ready): (Vec<&Live>, Vec<&Live>) =
            nobodys.partition(|live| live.is_starting());
        WarmStatus {
            ready: ready.len(),
            starting: starting.len(),
            hits: self.warm.hits,
            misses: self.warm.misses,
        }
    }
}
