//! The room: who runs what, within which limits; the runs themselves are its children.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::{Duration, Instant};

use portcullis_core::audit::{Entry, Outcome, OutcomeFilter, Query, Seq};
use portcullis_core::auth::{Principal, Proof, Role, Scope, Whose};
use portcullis_core::codes;
use portcullis_core::ids::{AgentId, DeviceId, Hash32, RunId};
use portcullis_core::plan::Target;
use portcullis_core::time::Millis;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::judge::judge;
use super::keep::{Attach, Keeper};
use super::messages::{
    Accepted, Attached, Begin, ExecEvent, ExecMsg, ExecRefusal, ExecWiring, Note, RunResult, Spared,
};
use super::run::{RunHandle, RunRoom, RunWiring};
use crate::audit::{AuditError, AuditHandle};
use crate::sandbox_pool::RunInputs;
use crate::supervision::{ChildEnd, Crash, Ctx, Reply, Room, Snapshot, TaskEnd};

/// Messages of one run's mailbox: its beginning, and cancellations.
const RUN_GATE: usize = 16;
/// Notes of one run: each kind comes once.
const NOTES: usize = 6;
/// The action of a run's intent.
pub(super) const RUN: &str = "exec.run";
/// Most intents of dead runs that are closed at a start: more than the limits of runs let be under way.
const MOST_OPEN: usize = 1_000;
/// Refusals of one agent are recorded no oftener than this.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// Agents whose refusals are told apart.
const MOST_REFUSED: usize = 256;
/// Detached runs of one agent that are over and whose end is kept; of more the oldest goes.
const MOST_KEPT: usize = 16;
/// Those of all agents together; of more the oldest of whoever has most goes.
const MOST_KEPT_IN_ALL: usize = 128;
/// Readers of one detached run that wait to be its reader.
const READERS: usize = 8;
/// Events between a detached run and what keeps them.
const PIECES: usize = 4;
/// The task in which policy is asked about a command.
const JUDGE: &str = "judging";
/// The task of a [`Keeper`].
const KEEP: &str = "keep";
/// For the caller of a crashed run to take its last event.
const TELL_WITHIN: Duration = Duration::from_secs(5);

/// How far a run has come, for who wants to give it something.
enum Begun {
    /// It waits, or is looked at.
    Not,
    /// Where nothing goes in.
    Closed,
    /// This is the way.
    Open(RunInputs),
}

struct Live {
    run: RunId,
    since: Millis,
    agent: AgentId,
    connection: String,
    principal: String,
    who: Principal,
    /// For these endings to come.
    spared: BTreeSet<Spared>,
    /// An ending has spared it: no connection's end is its own any more.
    outlives: bool,
    /// Its credential has ended: whoever comes under that name later is no reader of it.
    nobodys: bool,
    key: String,
    only_asks: bool,
    handle: RunHandle,
    notes: mpsc::Receiver<Note>,
    events: mpsc::Sender<ExecEvent>,
    intent: Option<Seq>,
    begun: Begun,
    recorded: bool,
    told: bool,
    accepted: bool,
    refused: Option<Box<Entry>>,
    /// Of a detached one: the way to what keeps it.
    keeper: Option<mpsc::Sender<Attach>>,
}

/// A detached run that is over.
struct Kept {
    key: u64,
    run: RunId,
    agent: AgentId,
    who: Principal,
    keeper: mpsc::Sender<Attach>,
}

impl Live {
    /// Takes what the run has said of itself.
    fn listen(&mut self) {
        while let Ok(note) = self.notes.try_recv() {
            match note {
                Note::Refused(entry) => self.refused = Some(entry),
                Note::Intent(seq) => self.intent = Some(seq),
                Note::Begun(inputs) => self.begun = inputs.map_or(Begun::Closed, Begun::Open),
                Note::Outcome => self.recorded = true,
                Note::Accepted => self.accepted = true,
                Note::Told => self.told = true,
            }
        }
    }
}

/// The room.
pub struct Exec {
    wiring: ExecWiring,
    ctx: Ctx<Self>,
    /// By the child's key.
    live: BTreeMap<u64, Live>,
    /// Oldest end first.
    kept: VecDeque<Kept>,
    endings: Vec<Ending>,
    next: u64,
    /// Endings to come that were given a name.
    endings_spared: u64,
    /// Agents whose refusals were recorded a moment ago, and how many were not since.
    refusals: BTreeMap<AgentId, (Instant, u64)>,
}

/// Somebody waits for these runs to be over.
struct Ending {
    left: BTreeSet<u64>,
    count: usize,
    reply: Reply<usize, Infallible>,
}

impl Room for Exec {
    const NAME: &'static str = "exec";
    type Msg = ExecMsg;
    type Wiring = ExecWiring;

    async fn start(wiring: &ExecWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        match wiring.since.get() {
            // A log that does not answer refuses each run by itself.
            None => wiring
                .since
                .set(wiring.audit.head().await.ok().map(|head| head.seq)),
            Some(since) => close_earlier(&wiring.audit, since).await?,
        }
        Ok(Self {
            wiring: wiring.clone(),
            ctx,
            live: BTreeMap::new(),
            kept: VecDeque::new(),
            endings: Vec::new(),
            next: 0,
            endings_spared: 0,
            refusals: BTreeMap::new(),
        })
    }

    async fn handle(&mut self, msg: ExecMsg) -> Result<(), Crash> {
        match msg {
            ExecMsg::Run(begin, reply) => self.run(begin, reply).await,
            ExecMsg::Judge(ask, reply) => {
                let judged = judge(self.wiring.clone(), self.ctx.clone(), ask);
                let task = self.ctx.task(JUDGE, 0, async move {
                    reply.send(judged.await);
                });
                task.keep();
                Ok(())
            }
            ExecMsg::Cancel {
                run,
                by,
                connection,
                reply,
            } => {
                self.cancel(&run, &by, &connection, reply).await;
                Ok(())
            }
            ExecMsg::Inputs {
                run,
                by,
                connection,
                reply,
            } => {
                reply.send(self.inputs(&run, &by, &connection));
                Ok(())
            }
            ExecMsg::Attach {
                run,
                by,
                connection,
                offset,
                events,
                reply,
            } => {
                let attach = Attach { offset, events };
                reply.send(self.attach(&run, &by, connection, attach));
                Ok(())
            }
            ExecMsg::EndOf(whose, spared, reply) => {
                self.end_of(&whose, spared, reply).await;
                Ok(())
            }
            ExecMsg::Spare(device, reply) => {
                reply.ok(self.spare(&device).await);
                Ok(())
            }
            ExecMsg::SpareNot(spared) => {
                self.spare_not(spared).await;
                Ok(())
            }
            #[cfg(test)]
            ExecMsg::Break(run) => {
                for live in self.live.values().filter(|live| live.run == run) {
                    live.handle.break_it().await;
                }
                Ok(())
            }
            ExecMsg::Live(reply) => {
                self.listen();
                reply.ok(self.under_way().count());
                Ok(())
            }
        }
    }

    async fn task_ended(
        &mut self,
        name: &'static str,
        key: u64,
        end: TaskEnd,
    ) -> Result<(), Crash> {
        match end {
            TaskEnd::Panicked(why) => Err(Crash::new(format!("{name} panicked: {why}"))),
            TaskEnd::Done => {
                if name == KEEP {
                    self.kept.retain(|kept| kept.key != key);
                }
                Ok(())
            }
        }
    }

    async fn child_ended(
        &mut self,
        _name: &'static str,
        key: u64,
        end: ChildEnd,
    ) -> Result<(), Crash> {
        self.run_ended(key, &end);
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let oldest = self.under_way().map(|live| live.since.0).min();
        Snapshot::default()
            .with("runs", self.live.len())
            .with("oldest_since_ms", oldest.unwrap_or_default())
    }
}

impl Exec {
    async fn run(
        &mut self,
        mut begin: Box<Begin>,
        reply: Reply<Accepted, ExecRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        self.listen();
        if let Err(refusal) = self.admit(&begin) {
            reply.refuse(refusal);
            return Ok(());
        }
        let request = &mut begin.request;
        if request.detach && request.session_key.is_none() && request.target == Target::Sandbox {
            // A session of its own: where it is its connection, its box would end with that.
            let key = Hash32::of(request.idempotency_key.as_bytes());
            request.session_key = Some(format!("detached-{key}"));
        }
        self.next += 1;
        let since = self.wiring.clock.now();
        let run = RunId::new(&format!("run-{}", uuid::Uuid::new_v4()))?;
        let (noting, notes) = mpsc::channel(NOTES);
        let wiring = RunWiring {
            exec: self.wiring.clone(),
            run: run.clone(),
            notes: noting,
        };
        let handle = RunHandle::new(
            self.ctx
                .child::<RunRoom>(self.next, wiring, RUN_GATE)
                .await?,
        );
        let keeper = begin.request.detach.then(|| {
            let (to_keeper, from) = mpsc::channel(PIECES);
            let (attach, orders) = mpsc::channel(READERS);
            let events = std::mem::replace(&mut begin.events, to_keeper);
            let keeper = Keeper::new(run.clone(), events);
            self.ctx
                .task(KEEP, self.next, keeper.keep(from, orders))
                .keep();
            attach
        });
        let request = &begin.request;
        self.live.insert(
            self.next,
            Live {
                run,
                since,
                agent: request.agent.clone(),
                connection: request.connection.clone(),
                principal: request.principal.name(),
                who: request.principal.clone(),
                spared: BTreeSet::new(),
                outlives: false,
                nobodys: false,
                key: request.idempotency_key.clone(),
                only_asks: begin.only_ask.is_some(),
                handle: handle.clone(),
                notes,
                events: begin.events.clone(),
                intent: None,
                begun: Begun::Not,
                recorded: false,
                told: false,
                accepted: false,
                refused: None,
                keeper,
            },
        );
        handle.begin(begin, reply).await;
        Ok(())
    }

    fn listen(&mut self) {
        for live in self.live.values_mut() {
            live.listen();
        }
    }

    /// Without those whose callers have heard the end already.
    fn under_way(&self) -> impl Iterator<Item = &Live> {
        self.live.values().filter(|live| !live.told)
    }

    /// Limits, counted before anything is awaited, and the key against running twice at once.
    fn admit(&self, begin: &Begin) -> Result<(), ExecRefusal> {
        let request = &begin.request;
        let config = &self.wiring.config;
        let count = |test: &dyn Fn(&Live) -> bool| self.under_way().filter(|l| test(l)).count();
        if count(&|live| live.agent == request.agent) >= config.runs_per_agent {
            return Err(ExecRefusal::new(
                codes::TOO_MANY_RUNS,
                format!(
                    "agent {} has {} runs under way already",
                    request.agent, config.runs_per_agent
                ),
            ));
        }
        if count(&|live| live.connection == request.connection) >= config.runs_per_connection {
            return Err(ExecRefusal::new(
                codes::TOO_MANY_RUNS,
                format!(
                    "this connection has {} runs under way already",
                    config.runs_per_connection
                ),
            ));
        }
        if request.detach && !comes_again(&request.principal) {
            return Err(ExecRefusal::new(
                codes::INVALID_PARAMS,
                "who has only the shared token cannot detach: nobody could tell him from another later",
            ));
        }
        // From here on it outlives its connection: one that came late, behind the end of its credential, is not begun.
        if let Some(reason) = request.session.get().filter(|_| request.detach) {
            return Err(ExecRefusal::new(codes::SESSION_ENDED, reason));
        }
        if !(1..=256).contains(&request.idempotency_key.len()) {
            return Err(ExecRefusal::new(
                codes::INVALID_PARAMS,
                "idempotencyKey must be 1 to 256 bytes",
            ));
        }
        let principal = request.principal.name();
        let twin = self
            .under_way()
            .find(|live| live.principal == principal && live.key == request.idempotency_key);
        match twin {
            None => Ok(()),
            Some(live) if live.only_asks => Err(ExecRefusal::new(
                codes::INVALID_PARAMS,
                "approval id already pending: wait for its answer, then run it under this id",
            )
            .with("runId", live.run.as_str())),
            Some(live) => Err(ExecRefusal::new(
                codes::RUN_UNKNOWN,
                format!(
                    "a run with this idempotencyKey is under way already: {}",
                    live.run
                ),
            )
            .with("runId", live.run.as_str())),
        }
    }

    async fn cancel(
        &mut self,
        run: &RunId,
        by: &Principal,
        connection: &str,
        reply: Reply<(), ExecRefusal>,
    ) {
        // One that has told its end is over, though its actor is not gone yet.
        self.listen();
        let found = self.under_way().find(|live| live.run == *run);
        match found.filter(|live| may_cancel(live, by, connection)) {
            Some(live) => {
                // One that is not reached any more has just ended.
                live.handle.cancel().await;
                reply.ok(());
            }
            None => reply.refuse(not_there()),
        }
    }

    /// The way into a run that has begun.
    fn inputs(
        &mut self,
        run: &RunId,
        by: &Principal,
        connection: &str,
    ) -> Result<RunInputs, ExecRefusal> {
        self.listen();
        let mut found = self.under_way().filter(|live| live.run == *run);
        let found = found.find(|live| is_own(live, by, connection));
        let live = found.ok_or_else(not_there)?;
        match &live.begun {
            Begun::Open(inputs) => Ok(inputs.clone()),
            Begun::Closed => Err(ExecRefusal::new(
                codes::INPUT_UNAVAILABLE,
                "this command runs outside the sandbox",
            )),
            Begun::Not => Err(ExecRefusal::new(
                codes::RUN_NOT_BEGUN,
                "the command has not begun",
            )),
        }
    }

    /// A detached run has one reader: the last who came.
    fn attach(
        &mut self,
        run: &RunId,
        by: &Principal,
        connection: String,
        attach: Attach,
    ) -> Result<Attached, ExecRefusal> {
        let own = |who: &Principal| may_attach(who, by);
        let mut live = self.live.values_mut();
        let live = live.find(|live| live.run == *run && !live.nobodys && own(&live.who));
        let mut kept = self.kept.iter();
        let keeper = match &live {
            Some(live) => live.keeper.as_ref(),
            None => kept
                .find(|kept| kept.run == *run && own(&kept.who))
                .map(|kept| &kept.keeper),
        };
        let sent = keeper.ok_or_else(not_there)?.try_send(attach);
        sent.map_err(|error| match error {
            TrySendError::Full(_) => {
                ExecRefusal::new(codes::OVERLOADED, "too many readers of this run at once")
            }
            TrySendError::Closed(_) => not_there(),
        })?;
        let over = live.is_none();
        if let Some(live) = live {
            // What goes into it comes from there now; not from one that was refused.
            live.connection = connection;
        }
        Ok(Attached {
            run_id: run.clone(),
            over,
        })
    }

    async fn end_of(
        &mut self,
        whose: &Whose,
        spared: Option<Spared>,
        reply: Reply<usize, Infallible>,
    ) {
        let mut left = BTreeSet::new();
        // Whoever comes under that name later is no reader of what was before.
        if spared.is_none() {
            self.kept.retain(|kept| !whose.is(&kept.who));
        }
        for (key, live) in &mut self.live {
            if !whose.is(&live.who) {
                continue;
            }
            // For this ending alone: the next one finds it, of whatever it is.
            if spared.is_some_and(|spared| live.spared.remove(&spared)) {
                live.outlives = true;
                if let Some(lives) = whose.lives {
                    live.who.generation = lives;
                }
            } else {
                live.nobodys = true;
                // One that is not reached any more has just ended.
                live.handle.cancel().await;
                left.insert(*key);
            }
        }
        let count = left.len();
        if count == 0 {
            reply.ok(0);
        } else {
            self.endings.push(Ending { left, count, reply });
        }
    }

    /// Only what acts already: what waits for a person is a plan, and ends with who planned it.
    async fn spare(&mut self, device: &DeviceId) -> Spared {
        self.listen();
        self.endings_spared += 1;
        let spared = Spared(self.endings_spared);
        for live in self.live.values_mut() {
            if live.who.device() == Some(device) && live.intent.is_some() {
                live.spared.insert(spared);
                live.handle.keep(true).await;
            }
        }
        spared
    }

    async fn spare_not(&mut self, spared: Spared) {
        for live in self.live.values_mut() {
            if live.spared.remove(&spared) && live.spared.is_empty() && !live.outlives {
                live.handle.keep(false).await;
            }
        }
    }

    fn run_ended(&mut self, key: u64, end: &ChildEnd) {
        for mut ending in std::mem::take(&mut self.endings) {
            ending.left.remove(&key);
            if ending.left.is_empty() {
                ending.reply.ok(ending.count);
            } else if ending.reply.is_wanted() {
                self.endings.push(ending);
            }
        }
        let Some(mut live) = self.live.remove(&key) else {
            return;
        };
        live.listen();
        // Of one that was refused nobody knows.
        let is_kept = live.accepted && !live.nobodys;
        if let Some(keeper) = live.keeper.take().filter(|_| is_kept) {
            self.keep(Kept {
                key,
                run: live.run.clone(),
                agent: live.agent.clone(),
                who: live.who.clone(),
                keeper,
            });
        }
        if let Some(entry) = live.refused.take() {
            self.record(key, &live.agent, *entry);
        }
        if let ChildEnd::Crashed(why) = end {
            tracing::error!(run = %live.run, %why, "a run's actor crashed");
        }
        if live.told {
            return;
        }
        // Nobody said how it ended: the log and the caller are told that here, beside the loop.
        let audit = self.wiring.audit.clone();
        let last = async move {
            if let Some(seq) = live.intent.filter(|_| !live.recorded) {
                let outcome = Outcome::failed(codes::RUN_UNKNOWN.name).with("status", "unknown");
                if let Err(error) = audit.outcome(seq, outcome).await {
                    tracing::error!(intent = seq.0, %error, "an outcome could not be recorded");
                }
            }
            let ended = ExecEvent::Ended(unknown(live.run, live.intent));
            // A caller that is gone needs no word.
            let _ = live.events.send_timeout(ended, TELL_WITHIN).await;
        };
        self.ctx.task("last_word", key, last).keep();
    }

    fn keep(&mut self, kept: Kept) {
        let count = |kept: &VecDeque<Kept>, agent: &AgentId| {
            kept.iter().filter(|one| one.agent == *agent).count()
        };
        let full = if count(&self.kept, &kept.agent) >= MOST_KEPT {
            Some(kept.agent.clone())
        } else if self.kept.len() >= MOST_KEPT_IN_ALL {
            let most = self
                .kept
                .iter()
                .max_by_key(|one| count(&self.kept, &one.agent));
            most.map(|one| one.agent.clone())
        } else {
            None
        };
        if let Some(at) = full.and_then(|agent| self.kept.iter().position(|one| one.agent == agent))
        {
            self.kept.remove(at);
        }
        self.kept.push_back(kept);
    }

    /// One refusal of an agent in a second, with the number of those before it that were not recorded: who is refused
    /// hundreds of times a second must not fill the log.
    fn record(&mut self, key: u64, agent: &AgentId, entry: Entry) {
        self.refusals
            .retain(|_, (at, more)| at.elapsed() < RECORD_EVERY || *more > 0);
        if let Some((at, more)) = self.refusals.get_mut(agent) {
            if at.elapsed() < RECORD_EVERY {
                *more += 1;
                return;
            }
        } else if self.refusals.len() >= MOST_REFUSED {
            let oldest = self.refusals.iter().min_by_key(|(_, (at, _))| *at);
            if let Some(oldest) = oldest.map(|(agent, _)| agent.clone())
                && let Some((_, more)) = self.refusals.remove(&oldest)
                && more > 0
            {
                self.wiring.audit.passed_over(more);
            }
        }
        let more = self.refusals.insert(agent.clone(), (Instant::now(), 0));
        let entry = match more {
            Some((_, more)) if more > 0 => entry.with("more", more.to_string()),
            _ => entry,
        };
        let audit = self.wiring.audit.clone();
        let record = async move {
            if let Err(error) = audit.note(entry).await {
                tracing::warn!(%error, "a refusal could not be recorded");
            }
        };
        self.ctx.task("refused", key, record).keep();
    }
}

/// The runs of an earlier life of the room died with it, and their processes too: nobody else says how they ended. Before a run begins,
/// every open intent of a run is such a one.
async fn close_earlier(audit: &AuditHandle, since: Seq) -> Result<(), Crash> {
    let open = Query {
        action: Some(RUN.to_owned()),
        outcome: Some(OutcomeFilter::Open),
        since_seq: Some(since),
        limit: MOST_OPEN,
        ..Query::default()
    };
    for found in audit.query(open).await? {
        let (seq, boot) = (found.record.seq, found.record.boot);
        let outcome = Outcome::unknown(boot).with("status", "unknown");
        match audit.outcome(seq, outcome).await {
            // A flow that was recording its own end had the last word.
            Ok(_) | Err(AuditError::NotOpen(_)) => {}
            // It stays open, and the log says `unknown` at the next start.
            Err(error) => {
                tracing::error!(intent = seq.0, %error, "an outcome could not be recorded");
            }
        }
    }
    Ok(())
}

pub(super) fn unknown(run: RunId, intent: Option<Seq>) -> RunResult {
    RunResult {
        run_id: run,
        status: "unknown",
        exit_code: None,
        signal: None,
        duration_ms: 0,
        dropped_stdout: 0,
        dropped_stderr: 0,
        usage: None,
        provenance: serde_json::json!({ "auditSeq": intent.map(|seq| seq.0) }),
        error: Some((
            codes::RUN_UNKNOWN,
            "what supervised this run ended under it: whether it finished is unknown".to_owned(),
        )),
    }
}

/// Of another's run no more is said than of none.
pub(super) fn not_there() -> ExecRefusal {
    ExecRefusal::new(
        codes::RUN_NOT_FOUND,
        "no such run is under way, or it is not yours",
    )
}

/// Can one who comes back later be told from others?
const fn comes_again(by: &Principal) -> bool {
    !matches!(by.proof, Proof::SharedToken | Proof::PageSession(_))
}

/// Who began it, on whatever connection: the same device, user or agent, in the same role.
fn may_attach(who: &Principal, by: &Principal) -> bool {
    comes_again(by) && who.name() == by.name() && (who.role, &who.agent) == (by.role, &by.agent)
}

/// Who began it, or an administrator.
fn may_cancel(live: &Live, by: &Principal, connection: &str) -> bool {
    is_own(live, by, connection) || (by.role == Role::Operator && by.scopes.allows(Scope::Admin))
}

/// Who began it: the same device for the same agent, or the same connection. A shared token alone is nobody. What goes into a run is this
/// one's alone: an administrator who typed into it would act under another's name.
fn is_own(live: &Live, by: &Principal, connection: &str) -> bool {
    let same = live.principal == by.name() && live.who.agent == by.agent;
    let place = live.connection == connection
        || (live.who.device().is_some() && live.who.device() == by.device());
    same && place
}
