//! The pool's boxes: one an agent, a session or a share, made when there is room, made room for, waited for while an old one goes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use portcullis_core::ids::{AgentId, BoxId};
use portcullis_core::sandbox::{Access, Effective, Owner};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::actor::SandboxPool;
use super::driver::{Driver, ProbeContext};
use super::drivers::{MOST_WAITING, Waiting};
use super::egress::{EgressWiring, Ways};
use super::folders;
use super::holder::{Holder, PoolKey};
use super::kept;
use super::messages::{PoolError, RunTicket, SandboxPoolMsg, Start};
use super::probe::random_hex;
use super::runs::{Accepted, NotAccepted, Order};
use super::sandbox::{Sandbox, SandboxHandle, SandboxWiring, WayOut};
use super::spec::{BoxSpec, Own};
use super::standing::Standing;
use super::wanted::Wanted;
use super::warm::Fresh;
use crate::supervision::{ChildEnd, Crash, Ctx, Flag, FlagReader};

/// Messages of one box's mailbox.
const BOX_GATE: usize = 256;
/// From the request to the box's word that it took the run, or to the end of an old box that is in its way. The caller waits a little
/// longer, so that it is told that nothing ran.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(40);
/// Boxes that may end under one request before it is refused.
const MOST_TRIES: u8 = 3;

/// A box that has been asked for and has not ended.
pub struct Live {
    pub id: BoxId,
    pub holder: Holder,
    pub handle: SandboxHandle,
    pub standing: FlagReader<Standing>,
    /// What makes and ends it.
    pub driver: Driver,
    /// Digest of what it was made from.
    pub hash: String,
    /// When it takes no more runs.
    pub old_at: Instant,
    /// Orders to start that were sent to it.
    pub sent: u64,
    /// It was told to end, or is about to: it gets no more runs.
    pub leaving: bool,
    /// It ends when what runs in it has, which may take as long as a run may.
    pub draining: bool,
}

impl Live {
    /// It is ending now: whoever waits for that does not wait for a run.
    fn is_ending(&self) -> bool {
        let standing = self.standing.get();
        standing.over || self.leaving && (!self.draining || standing.is_idle(self.sent))
    }

    /// It does not serve yet.
    pub fn is_starting(&self) -> bool {
        let standing = self.standing.get();
        standing.init.is_none() && !standing.over
    }

    /// Nothing more is started in it, and it ends: when nothing runs in it, or at once where nothing does.
    pub async fn retire(&mut self, draining: bool) {
        (self.leaving, self.draining) = (true, draining);
        // A box that is down has ended already.
        let _ = self.handle.order(Order::Retire).await;
    }

    /// Its first process, and when that started, while it serves.
    pub fn init(&self) -> Option<(u32, u64)> {
        let standing = self.standing.get();
        let pid = standing.init.filter(|_| !standing.over)?;
        kept::started_at(pid).map(|at| (pid, at))
    }
}

/// Where a run goes.
pub enum Place {
    /// To this box; where it is a session's first, how that came by it.
    In(u64, Option<Fresh>),
    /// It waits.
    Later(Awaited),
    /// Nowhere.
    Nowhere(PoolError),
}

/// What a run waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// The end of a box.
    End,
    /// A session of its agent in whose box nothing runs: there are as many as there may be.
    Session,
}

/// A run that waits.
pub struct Waiter {
    pub start: Box<Start>,
    holder: Holder,
    awaited: Awaited,
}

impl SandboxPool {
    /// The box of who asks, or a new one; never another's, never one that is not what is wanted now, never one past its age.
    pub(super) async fn place(
        &mut self,
        driver: &Driver,
        agent: &AgentId,
        holder: &Holder,
        wanted: &Wanted,
    ) -> Result<Place, Crash> {
        let mut later = false;
        for (&key, live) in self
            .boxes
            .iter_mut()
            .filter(|(_, live)| live.holder == *holder)
        {
            if !live.leaving && !live.standing.get().over {
                let why = if live.hash != wanted.hash {
                    "it is not what is wanted now"
                } else if Instant::now() >= live.old_at {
                    "it is past its age"
                } else {
                    return Ok(Place::In(key, None));
                };
                tracing::info!(id = %live.id, %agent, why, "a box takes no more runs");
                live.retire(true).await;
            }
            later |= live.is_ending();
        }
        // Beside one that drains there is one more, and no third: each has all that an agent may have.
        let count = self
            .boxes
            .values()
            .filter(|live| live.holder == *holder)
            .count();
        if later || count > 1 {
            return Ok(Place::Later(Awaited::End));
        }
        let mut fresh = None;
        if matches!(holder, Holder::Session(..)) {
            if let Some(awaited) = self.session_awaits(agent).await {
                return Ok(Place::Later(awaited));
            }
            let pool = PoolKey::new(&wanted.effective.profile, &wanted.hash, agent);
            if let Some((key, fresh)) = self.claim(&pool, holder) {
                self.wants_fresh(pool, agent, wanted);
                return Ok(Place::In(key, Some(fresh)));
            }
            fresh = Some((Fresh::Cold, pool));
        }
        if self.boxes.len() < self.wiring.config.max_boxes {
            return Ok(match self.make(driver, holder, wanted).await? {
                Ok(key) => {
                    let fresh = fresh.map(|(fresh, pool)| {
                        self.wants_fresh(pool, agent, wanted);
                        fresh
                    });
                    Place::In(key, fresh)
                }
                Err(refusal) => Place::Nowhere(refusal),
            });
        }
        let ending = self.boxes.values().filter(|live| live.is_ending()).count();
        let waiting = self.waiting.iter();
        let waiting = waiting.filter(|waiter| waiter.awaited == Awaited::End);
        if ending > waiting.count() || self.evict(|_| true).await {
            return Ok(Place::Later(Awaited::End));
        }
        Ok(Place::Nowhere(PoolError::Full(
            self.wiring.config.max_boxes,
        )))
    }

    /// What one more session of this agent has to wait for, if anything: the one that has been idle longest is ended for it.
    async fn session_awaits(&mut self, agent: &AgentId) -> Option<Awaited> {
        let own = self.boxes.values();
        let own: Vec<&Live> = own
            .filter(|live| live.holder.is_session_of(agent))
            .collect();
        if own.len() < self.wiring.config.sessions_per_agent {
            return None;
        }
        let is_ending = own.iter().any(|live| live.is_ending());
        if is_ending || self.evict(|holder| holder.is_session_of(agent)).await {
            Some(Awaited::End)
        } else {
            Some(Awaited::Session)
        }
    }

    /// Sends one of these boxes away: one that nobody has, else the one that has been idle longest; false where something runs in every
    /// one.
    async fn evict(&mut self, may_go: impl Fn(&Holder) -> bool) -> bool {
        let idle = self.boxes.values_mut().filter_map(|live| {
            let standing = live.standing.get();
            let is_nobodys = live.holder.is_nobody() && !standing.over;
            let may_go = !live.leaving && may_go(&live.holder);
            (may_go && (is_nobodys || standing.is_idle(live.sent)))
                .then_some(((!is_nobodys, standing.idle_since), live))
        });
        let Some((_, live)) = idle.min_by_key(|(order, _)| *order) else {
            return false;
        };
        tracing::info!(id = %live.id, whose = %live.holder, "an idle box makes room for another");
        live.retire(false).await;
        true
    }

    /// Makes a box, and says when it serves.
    pub(super) async fn make(
        &mut self,
        driver: &Driver,
        holder: &Holder,
        wanted: &Wanted,
    ) -> Result<Result<u64, PoolError>, Crash> {
        let profile = &wanted.effective.profile;
        let user = wanted.user;
        let owner = holder.owner();
        let folder = owner.as_ref().map(Owner::folder).unwrap_or_default();
        if profile.workspace != Access::None
            && let Err(error) =
                folders::workspace(&self.context.workspaces, &folder, user.uid, user.gid)
        {
            if let Some(owner) = &owner {
                self.look_again(owner);
            }
            return Ok(Err(PoolError::NoBox(format!(
                "workspace of {holder}: {error}"
            ))));
        }
        let context = &self.context;
        let id = BoxId::new(&random_hex(6)?)?;
        let own = Own {
            id: id.clone(),
            whose: holder.whose(),
            folder,
            mounts: wanted.mounts.clone(),
            user,
            image: wanted.image.clone(),
            profile_hash: wanted.hash.clone(),
            nonce: random_hex(16)?,
        };
        let spec = BoxSpec::of(context, profile, own);
        let egress = match self.way_out(&spec, holder, &wanted.effective) {
            Ok(egress) => egress,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let age = Duration::from_secs(profile.max_age_secs);
        self.next += 1;
        let shown = Arc::new(Flag::new(Standing::new()));
        let standing = shown.reader();
        let wiring = SandboxWiring {
            driver: driver.clone(),
            spec,
            idle: Duration::from_secs(profile.idle_secs),
            age,
            is_ready_made: holder.is_nobody(),
            shown,
            egress,
        };
        let child = self.ctx.child::<Sandbox>(self.next, wiring, BOX_GATE);
        let live = Live {
            id,
            holder: holder.clone(),
            handle: SandboxHandle::new(child.await?),
            standing,
            driver: driver.clone(),
            hash: wanted.hash.clone(),
            old_at: Instant::now() + age,
            sent: 0,
            leaving: false,
            draining: false,
        };
        let (mut served, ctx) = (live.standing.clone(), self.ctx.clone());
        self.ctx
            .task("box_served", self.next, async move {
                served.until(|now| now.init.is_some() || now.over).await;
                ctx.notify(SandboxPoolMsg::Fill);
            })
            .keep();
        self.boxes.insert(self.next, live);
        Ok(Ok(self.next))
    }

    /// The way out of a box that may reach hosts.
    fn way_out(
        &mut self,
        spec: &BoxSpec,
        holder: &Holder,
        effective: &Effective,
    ) -> Result<Option<WayOut>, PoolError> {
        if !spec.egress {
            return Ok(None);
        }
        let Some(ways) = &self.wiring.ways else {
            return Err(PoolError::NoBox(
                "it may reach hosts, and there is no log to record that in".to_owned(),
            ));
        };
        // Those that nobody has any more went with their boxes.
        self.lookups
            .retain(|_, lookups| Arc::strong_count(lookups) > 1);
        let lookups = self.lookups.entry(holder.principal());
        let lookups = lookups.or_insert_with(Ways::lookups).clone();
        let runs = Arc::new(Flag::new(Arc::from([])));
        Ok(Some(WayOut {
            wiring: EgressWiring {
                ways: ways.clone(),
                rules: effective.profile.egress.clone(),
                addresses: self.wiring.config.egress_to_networks.clone(),
                terminate: effective.profile.terminate.clone(),
                agents: holder.agents(effective),
                asks_for: holder.asks_for(effective),
                section: effective.from("egress").to_owned(),
                lookups,
                whose: holder.recorded(),
                principal: holder.principal(),
                id: spec.id.clone(),
                run_dir: spec.run_dir.clone(),
                gid: spec.gid,
                runs: runs.reader(),
            },
            runs,
        }))
    }

    /// Keeps a request until what it waits for has come.
    pub(super) fn wait_for_room(&mut self, start: Box<Start>, holder: Holder, awaited: Awaited) {
        if self.waiting.len() >= MOST_WAITING {
            start
                .reply
                .refuse(PoolError::Full(self.wiring.config.max_boxes));
            return;
        }
        let left = (start.asked + ANSWER_WITHIN).saturating_duration_since(Instant::now());
        self.ctx
            .after("waited", 0, left, SandboxPoolMsg::Waited)
            .keep();
        if awaited == Awaited::Session {
            self.watch_sessions(&start.agent);
        }
        self.waiting.push_back(Waiter {
            start,
            holder,
            awaited,
        });
    }

    /// Looks again when nothing runs any more in one of the agent's sessions.
    fn watch_sessions(&self, agent: &AgentId) {
        let own = self.boxes.values();
        let own = own.filter(|live| live.holder.is_session_of(agent));
        let mut idle: FuturesUnordered<_> = own
            .map(|live| {
                let (mut standing, sent) = (live.standing.clone(), live.sent);
                async move {
                    // What is sent to it meanwhile counts, too. Its end is told besides.
                    let is_done = |now: &Standing| now.running == 0 && now.taken >= sent;
                    let seen = standing.until(|now| is_done(now) || now.over).await;
                    if seen.is_none_or(|now| now.over) {
                        std::future::pending::<()>().await;
                    }
                }
            })
            .collect();
        let ctx = self.ctx.clone();
        self.ctx
            .task("session_idle", 0, async move {
                idle.next().await;
                ctx.notify(SandboxPoolMsg::Again);
            })
            .keep();
    }

    /// Places everybody who waits anew.
    pub(super) async fn again(&mut self) -> Result<(), Crash> {
        for waiter in std::mem::take(&mut self.waiting) {
            self.request(Waiting::Run(waiter.start)).await?;
        }
        Ok(())
    }

    /// Some have waited too long: an old box does not end.
    pub(super) fn waited(&mut self) {
        let (over, left) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiter: &Waiter| waiter.start.asked.elapsed() >= ANSWER_WITHIN);
        self.waiting = left;
        for Waiter {
            start,
            holder,
            awaited,
        } in over
        {
            if awaited == Awaited::Session {
                let most = self.wiring.config.sessions_per_agent;
                start.reply.refuse(PoolError::Sessions(most));
                continue;
            }
            start.reply.refuse(PoolError::NoBox(
                "an old sandbox that is in its place does not end".to_owned(),
            ));
            let is_in_its_place = |other: &Holder| match &holder {
                Holder::Session(agent, _) => other.is_session_of(agent),
                own => other == own,
            };
            let mut own = self.boxes.iter();
            let stuck = own.find(|(_, live)| is_in_its_place(&live.holder) && live.is_ending());
            if let Some(key) = stuck.map(|(&key, _)| key) {
                self.stuck(key);
            }
        }
    }

    pub(super) async fn box_ended(&mut self, key: u64, end: &ChildEnd) -> Result<(), Crash> {
        let Some(live) = self.boxes.remove(&key) else {
            return Ok(());
        };
        if live.standing.get().init.is_none() {
            self.forget_images();
            self.not_made(&live);
            self.sweep_soon();
        }
        if let ChildEnd::Crashed(why) = end {
            tracing::error!(id = %live.id, whose = %live.holder, %why, "a box's actor crashed: its box is ended");
            self.end_beside(key, live);
        }
        self.again().await?;
        self.fill().await
    }

    /// The actor of a box answers nothing: the box is ended without it, and the agent gets another.
    pub(super) fn stuck(&mut self, key: u64) {
        if let Some(live) = self.boxes.remove(&key) {
            tracing::error!(id = %live.id, whose = %live.holder, "a box's actor does not answer: its box is ended");
            self.end_beside(key, live);
        }
    }

    fn end_beside(&self, key: u64, live: Live) {
        let driver = self.drivers.has(&live.driver).then(|| live.driver.clone());
        let context = self.context.clone();
        let init = live.init();
        self.ctx
            .task("end_box", key, async move {
                end_box(driver.as_ref(), &context, &live.id, init).await;
            })
            .keep();
    }
}

/// Answers the caller once the box's link has taken the run, or has not.
pub async fn answer_when_accepted(
    ctx: Ctx<SandboxPool>,
    key: u64,
    start: Box<Start>,
    answer: oneshot::Receiver<Result<Accepted, NotAccepted>>,
    fresh: Option<Fresh>,
    ticket: impl FnOnce(Accepted) -> RunTicket,
) {
    let Ok(answer) = tokio::time::timeout_at(start.asked + ANSWER_WITHIN, answer).await else {
        // Its place with the box goes with this answer's: what is not taken by now never is.
        start.reply.refuse(PoolError::NoBox(
            "it took no orders in 40 s, and is ended".to_owned(),
        ));
        ctx.notify(SandboxPoolMsg::Stuck(key));
        return;
    };
    match answer {
        Ok(Ok(accepted)) => {
            let took = start.asked.elapsed();
            start.reply.ok(ticket(accepted));
            if let Some(fresh) = fresh {
                ctx.notify(SandboxPoolMsg::Began(fresh, took));
            }
        }
        Ok(Err(NotAccepted::TooLong)) => {
            start.reply.refuse(PoolError::Invalid(
                "argv and env together are longer than 60 KiB".to_owned(),
            ));
        }
        Ok(Err(NotAccepted::NoBox(text))) => start.reply.refuse(PoolError::NoBox(text)),
        Ok(Err(NotAccepted::GivenUp(why))) => start.reply.refuse(PoolError::NoBox(why.to_string())),
        // Its box ended (idle, say) before it took the order: nothing ran, and a new box may.
        Err(_) if start.tries < MOST_TRIES => {
            ctx.notify(SandboxPoolMsg::Start(Box::new(Start {
                tries: start.tries + 1,
                ..*start
            })));
        }
        Err(_) => start.reply.refuse(PoolError::NoBox(
            "it ended before it took the run".to_owned(),
        )),
    }
}

/// Ends a box and removes its folder. Without its engine the kernel is asked, where this process may.
pub async fn end_box(
    driver: Option<&Driver>,
    context: &ProbeContext,
    id: &BoxId,
    init: Option<(u32, u64)>,
) {
    let ended = match driver {
        Some(driver) => driver.stop(id).await.map_err(|error| error.to_string()),
        None => Err("its engine is lost".to_owned()),
    };
    if let Err(error) = ended {
        tracing::error!(%id, %error, "a box could not be ended; the next start ends it");
        if let Some((pid, started)) = init
            && let Err(error) = kept::kill_and_wait(pid, started).await
        {
            tracing::error!(%id, %error, "its first process neither: it ends by its dead-man time");
        }
    }
    folders::remove_run_dir(&context.run_root.join("b").join(id.as_str()));
}
