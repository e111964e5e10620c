//! One run, in order: freeze, decide, wait, record, use, look again, act, record.

use std::time::Duration;

use portcullis_core::approval::RunsBy;
use portcullis_core::audit::{Entry, Once, Outcome, Query, Sealed, Seq};
use portcullis_core::codes::{self, Code};
use portcullis_core::ids::{ApprovalId, Hash32, RunId};
use portcullis_core::plan::{EnvValue, ExecPlan, Operand, Stdin, Target};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{Instrument as _, Span, info_span};

use super::act::Acting;
use super::actor::RunRoom;
use super::ends::{Carried, Interrupt, Over, Stop, interrupted, provenance, same_request, used};
use super::freeze::{Frozen, Means, Seal, freeze, profile};
use super::gate::{Gate, Said, Stand};
use super::messages::RunWiring;
use super::node::prepare;
use crate::act::entry_of;
use crate::audit::{Found, Refused};
use crate::exec::actor::RUN;
use crate::exec::messages::{
    Accepted, Begin, ExecEvent, ExecRefusal, ExecWiring, Note, OnlyAsk, PLAN_PARTS, RunRequest,
    RunResult,
};
use crate::sandbox_pool::INPUT_WINDOW;
use crate::supervision::{Ctx, FeedItem, FlagReader, Reply};

/// How often a question is looked at without news of it.
const LOOK: Duration = Duration::from_secs(5);
/// A part of a plan that is too long for one record.
const PLAN: &str = "exec.plan";
/// For the caller to take its last event.
const TELL_WITHIN: Duration = Duration::from_secs(30);

/// Everything that one run needs.
pub struct Flow {
    pub(super) wiring: ExecWiring,
    pub(super) run: RunId,
    pub(super) ctx: Ctx<RunRoom>,
    pub(super) request: RunRequest,
    pub(super) events: mpsc::Sender<ExecEvent>,
    pub(super) stop: FlagReader<Option<Stop>>,
    pub(super) kept: FlagReader<bool>,
    notes: mpsc::Sender<Note>,
    pub(super) gate: Gate,
    only_ask: Option<OnlyAsk>,
}

/// A plan that may run, or waits for a person.
pub(super) struct Decided {
    pub frozen: Frozen,
    pub plan_hash: Hash32,
    pub rule: Option<String>,
    pub approval: Option<ApprovalId>,
}

impl Decided {
    /// By what it runs.
    pub fn runs_by(&self) -> RunsBy {
        match &self.approval {
            Some(id) => RunsBy::Answer(id.clone()),
            None => RunsBy::Rule(self.rule.clone().unwrap_or_default()),
        }
    }
}

impl Flow {
    pub fn new(
        wiring: RunWiring,
        ctx: Ctx<RunRoom>,
        begin: Begin,
        stop: FlagReader<Option<Stop>>,
        kept: FlagReader<bool>,
    ) -> Self {
        Self {
            gate: Gate(wiring.exec.approval.clone()),
            wiring: wiring.exec,
            run: wiring.run,
            ctx,
            request: begin.request,
            events: begin.events,
            stop,
            kept,
            notes: wiring.notes,
            only_ask: begin.only_ask,
        }
    }

    /// The whole run.
    pub async fn run(mut self, reply: Reply<Accepted, ExecRefusal>) {
        let decided = match self.decide().await {
            Ok((decided, accepted)) => {
                self.note(Note::Accepted);
                reply.ok(accepted);
                decided
            }
            Err(refusal) => {
                self.record_refusal(&refusal).await;
                self.note(Note::Told);
                reply.refuse(refusal);
                return;
            }
        };
        let result = if self.only_ask.is_some() {
            self.word(decided).await
        } else {
            self.carry_out(decided).await
        };
        // Before the word itself: who has it may ask again at once.
        self.note(Note::Told);
        if self.request.detach {
            // What keeps it takes it, as soon as its reader has read so far.
            let _ = self.events.send(ExecEvent::Ended(result)).await;
            return;
        }
        // A caller that is gone, or does not listen any more, needs no word.
        let _ = self
            .events
            .send_timeout(ExecEvent::Ended(result), TELL_WITHIN)
            .await;
    }

    fn note(&self, note: Note) {
        // Each kind comes once, so there is room; an owner that is gone has no use for it.
        let _ = self.notes.try_send(note);
    }

    /// Freezes the plan and asks for it.
    async fn decide(&self) -> Result<(Decided, Accepted), ExecRefusal> {
        let known = self.gate.find(&self.request).await?;
        let seal = if let Some(found) = &known {
            same_request(&found.plan, &self.request)?;
            if let Stand::Over(code, message) = self.gate.stand(&found.id).await? {
                let used = self.gate.used_by(&found.id).await;
                let (code, message) = match used {
                    Some(seq) => self.used(seq).await.unwrap_or((code, message)),
                    None => (code, message),
                };
                let refusal = ExecRefusal::new(code, message);
                return Err(refusal.with("approvalId", found.id.as_str()));
            }
            Seal::of(&found.plan)
        } else {
            // What is outside the sandbox is looked at only for who may leave it.
            if self.request.target != Target::Sandbox {
                self.gate.may_ask(&self.request).await?;
            }
            Seal::fresh(&self.request)?
        };
        let frozen = freeze(&self.wiring, &self.ctx, &self.request, seal).await?;
        let plan_hash = frozen.plan.plan_hash();
        let (rule, approval, expires) = match known {
            Some(found) => {
                if found.plan.plan_hash() != plan_hash {
                    self.gate.withdraw(&found.id, "changed").await;
                    return Err(ExecRefusal::new(
                        codes::PLAN_CHANGED,
                        "what this key asked for before is not what would run now: ask again under a new key",
                    ));
                }
                (None, Some(found.id), Some(found.expires_at.0))
            }
            None => match self
                .gate
                .decide(
                    (&frozen.plan, frozen.own()),
                    &self.request,
                    self.only_ask.clone(),
                )
                .await?
            {
                Said::Allowed(rule) => (Some(rule), None, None),
                Said::Asked(id, expires) => (None, Some(id), Some(expires)),
            },
        };
        let accepted = Accepted {
            run_id: self.run.clone(),
            plan_hash,
            status: if approval.is_some() {
                "approval-pending"
            } else {
                "accepted"
            },
            approval_id: approval.clone(),
            expires_at_ms: expires,
        };
        let decided = Decided {
            frozen,
            plan_hash,
            rule,
            approval,
        };
        Ok((decided, accepted))
    }

    /// What policy refused stands in the log too, and what was tried outside the sandbox; the refusal itself does not wait
    /// for it to be there.
    async fn record_refusal(&self, refusal: &ExecRefusal) {
        // A secret that was asked for and not given is told too, whatever the target.
        let by_policy = [
            codes::ELEVATED_DISABLED,
            codes::NODES_DISABLED,
            codes::POLICY_DENIED,
            codes::VAULT_NOT_BOUND,
            codes::VAULT_NOT_FOUND,
            codes::SECRET_NOT_FOR_NODES,
            codes::INPUT_UNAVAILABLE,
        ]
        .contains(&refusal.code);
        if !by_policy && (self.request.target == Target::Sandbox || refusal.code.retryable) {
            return;
        }
        let ground = self.gate.ground(&self.request.agent, None).await;
        let entry = Entry {
            decision: Some("deny".to_owned()),
            policy_hash: ground.ok().map(|ground| ground.policy_hash),
            ..self.entry("exec.refused")
        }
        .with("code", refusal.code.name)
        .with(
            "command",
            portcullis_core::display::redacted_line(&self.request.argv),
        );
        let wiring = &self.wiring;
        let own = wiring.agents.get(&self.request.agent);
        let mut asked = own.unwrap_or(&wiring.every).secrets.clone();
        asked.extend(self.request.secrets.clone());
        let asked: Vec<String> = asked
            .iter()
            .map(|(variable, name)| format!("{variable}={name}"))
            .collect();
        let entry = if asked.is_empty() {
            entry
        } else {
            entry.with_list("secrets", asked.iter().map(String::as_str))
        };
        self.note(Note::Refused(Box::new(entry)));
    }

    fn entry(&self, action: &str) -> Entry {
        let by = &self.request.principal;
        Entry {
            action: action.to_owned(),
            act_as: (by.agent.as_ref() != Some(&self.request.agent))
                .then(|| self.request.agent.to_string()),
            object: Some(self.run.to_string()),
            ..entry_of(by)
        }
        .with("agent", self.request.agent.as_str())
        .with("target", self.request.target.word())
    }

    /// Of what is only asked for: what is said of it.
    async fn word(&mut self, decided: Decided) -> RunResult {
        let said = match &decided.approval {
            Some(id) => self.wait_for_word(id).await,
            None => Ok(()),
        };
        let over = said.err().unwrap_or(Over {
            status: "allowed",
            error: None,
            seq: None,
        });
        self.nothing_ran(&decided, None, over)
    }

    /// From the decision to the end.
    async fn carry_out(&mut self, decided: Decided) -> RunResult {
        if let Some(id) = &decided.approval
            && let Err(over) = self
                .wait_for_word(id)
                .instrument(info_span!(target: "portcullis", "approval.wait", approval = %id))
                .await
        {
            return self.nothing_ran(&decided, None, over);
        }
        // Before the key and the answer are used up: for whom would it run?
        if let Err(over) = self.is_wanted() {
            if let Some(id) = &decided.approval
                && self.stop.get() != Some(Stop::Shutdown)
            {
                self.gate.withdraw(id, "cancelled").await;
            }
            return self.nothing_ran(&decided, None, over);
        }
        match self.intent(&decided).await {
            Ok(intent) => self.act(decided, intent).await,
            Err(over) => self.nothing_ran(&decided, None, over),
        }
    }

    /// Until a person has allowed it.
    async fn wait_for_word(&mut self, id: &ApprovalId) -> Result<(), Over> {
        let mut news = self.wiring.approval.feed();
        let lost_after = Duration::from_millis(self.wiring.config.lost_after_ms);
        let session = &mut self.request.session;
        let interrupt = interrupted(
            &mut self.stop,
            session,
            &self.kept,
            &self.events,
            lost_after,
        );
        tokio::pin!(interrupt);
        loop {
            match self.gate.stand(id).await {
                Ok(Stand::Allowed) => return Ok(()),
                Ok(Stand::Over(code, message)) => return Err(Over::denied(code, message)),
                Ok(Stand::Open) => {}
                // It is down or busy: the question is durable, so it is asked again.
                Err(refusal) if refusal.code.retryable => {}
                Err(refusal) => return Err(Over::refused(refusal)),
            }
            let look = async {
                // Any news of approval makes it look; a feed that ended leaves the clock.
                if matches!(news.next().await, FeedItem::Closed) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = look => {}
                () = tokio::time::sleep(LOOK) => {}
                why = &mut interrupt => {
                    // A stop of the gateway is no word of who asked: the question is taken up after the start.
                    if !matches!(why, Interrupt::Shutdown) {
                        self.gate.withdraw(id, "cancelled").await;
                    }
                    return Err(Over::interrupted(why));
                }
            }
        }
    }

    /// The last looks, and the durable word that it is about to run.
    async fn intent(&mut self, decided: &Decided) -> Result<Seq, Over> {
        let plan = &decided.frozen.plan;
        let ground = self
            .gate
            .ground(&plan.agent, decided.approval.as_ref())
            .await
            .map_err(Over::refused)?;
        let entry = Entry {
            decision: Some("allow".to_owned()),
            rule: decided.rule.clone(),
            policy_hash: Some(ground.policy_hash),
            proof: ground.proof,
            plan_hash: Some(portcullis_core::audit::Hash32(decided.plan_hash.0)),
            approval_id: decided.approval.as_ref().map(ToString::to_string),
            idempotency_key: Some(self.request.idempotency_key.clone()),
            ..self.entry(RUN)
        }
        .with("command", plan.redacted_line())
        .with("cwd", plan.cwd.clone())
        .with("executable", plan.executable.path().unwrap_or_default());
        let entry = match ground.waited_ms {
            Some(ms) => entry.with("waited_ms", ms.to_string()),
            None => entry,
        };
        let entry = if plan.operands.is_empty() {
            entry
        } else {
            entry.with("operands", operands(plan))
        };
        let entry = match secrets(plan) {
            Some(secrets) => entry.with("secrets", secrets),
            None => entry,
        };
        let mut entry = entry;
        if plan.stdin == Stdin::Open {
            entry = entry.with("stdin", "open");
        }
        if let Some(size) = plan.tty {
            entry = entry.with("tty", size.to_string());
        }
        if self.request.detach {
            entry = entry.with("detach", "true");
        }
        let entry = self.with_plan(entry, plan).await?;
        match self.wiring.audit.intent_once(entry, Refused::Stands).await {
            Ok(Once::New { seq }) => {
                self.note(Note::Intent(seq));
                Ok(seq)
            }
            Ok(Once::Seen { seq, outcome }) => {
                let earlier = self.earlier(seq).await;
                Err(Over::seen(seq, outcome.as_ref(), earlier.as_ref()))
            }
            Err(error) => Err(Over::refused(ExecRefusal::of_audit(&error))),
        }
    }

    /// The plan itself, sealed: one that is too long for a record begins in others before it, which are named.
    async fn with_plan(&self, mut entry: Entry, plan: &ExecPlan) -> Result<Entry, Over> {
        let whole = self.wiring.plans.seal(plan);
        let mut parts: Vec<Sealed> = whole
            .chunks(Sealed::MOST)
            .map(|part| Sealed::new(part.to_vec()))
            .collect();
        let last = parts.pop().unwrap_or_default();
        // A repeat under a used key is refused, and leaves nothing.
        if !parts.is_empty()
            && let Some(Once::Seen { seq, outcome }) = self
                .wiring
                .audit
                .seen(&entry)
                .await
                .map_err(|error| Over::refused(ExecRefusal::of_audit(&error)))?
        {
            let earlier = self.earlier(seq).await;
            return Err(Over::seen(seq, outcome.as_ref(), earlier.as_ref()));
        }
        let mut before = Vec::new();
        for sealed in parts {
            let part = Entry {
                plan_hash: entry.plan_hash,
                sealed,
                ..self.entry(PLAN)
            };
            let recorded = self.wiring.audit.event(part).await;
            let seq = recorded.map_err(|e| Over::refused(ExecRefusal::of_audit(&e)))?;
            before.push(seq.to_string());
        }
        if !before.is_empty() {
            entry = entry.with_list(PLAN_PARTS, before.iter().map(String::as_str));
        }
        entry.sealed = last;
        Ok(entry)
    }

    /// The record of an earlier run's intent, and of its end.
    async fn earlier(&self, seq: Seq) -> Option<Found> {
        let one = Query {
            since_seq: Some(seq),
            until_seq: Some(seq),
            ..Query::default()
        };
        self.wiring.audit.query(one).await.ok()?.pop()
    }

    /// What became of the run that used an answer.
    async fn used(&self, seq: Seq) -> Option<(&'static Code, String)> {
        let earlier = self.earlier(seq).await?;
        let outcome = earlier.outcome.as_ref().map(|ended| &ended.outcome.result);
        Some(used(seq, outcome, Some(&earlier)))
    }

    /// Uses the approval, looks again, acts, and records how it ended.
    async fn act(&mut self, decided: Decided, intent: Seq) -> RunResult {
        let span = self.act_span(&decided, intent);
        // Before the last look: what is changed behind that is heard of.
        let news = self.gate.news();
        let started = match self.last_look(&decided, intent).await {
            Ok(()) => {
                let start = Acting::start(self, &decided, intent);
                start.instrument(span.clone()).await
            }
            Err(over) => Err(over),
        };
        let (result, outcome) = match started {
            Err(over) => {
                let outcome = match over.status {
                    "unknown" => Outcome::failed(over.code()),
                    _ => Outcome::refused(over.code()),
                };
                (self.nothing_ran(&decided, Some(intent), over), outcome)
            }
            Ok(acting) => {
                let begun = Instant::now();
                self.begun(&acting, &decided.frozen.plan);
                let carried = acting
                    .carry(self, &decided, news)
                    .instrument(span.clone())
                    .await;
                if let Some(code) = carried.exit_code {
                    span.record("exit", code);
                }
                let duration = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                let outcome = carried.outcome();
                (self.ended(&decided, intent, carried, duration), outcome)
            }
        };
        drop(span);
        let outcome = outcome
            .with("status", result.status)
            .with("duration_ms", result.duration_ms.to_string());
        match self.wiring.audit.outcome(intent, outcome).await {
            Ok(_) => self.note(Note::Outcome),
            // What ran cannot be undone; the intent stays open, and the log says `unknown` at the next start.
            Err(error) => {
                tracing::error!(intent = intent.0, %error, "an outcome could not be recorded");
                self.note(Note::Outcome);
            }
        }
        result
    }

    /// Who began it may now give it what it takes.
    fn begun(&self, acting: &Acting, plan: &ExecPlan) {
        self.note(Note::Begun(acting.inputs()));
        if plan.takes_input() {
            let credit = (plan.stdin == Stdin::Open).then_some(INPUT_WINDOW);
            // The first of all, so that there is room.
            let _ = self.events.try_send(ExecEvent::Begun { credit });
        }
    }

    /// The act itself: `host.run` or `sandbox.run`.
    fn act_span(&self, decided: &Decided, intent: Seq) -> Span {
        let name = match &decided.frozen.means {
            Means::Host(_) => "host.run",
            Means::Box(_) => "sandbox.run",
            Means::Node(_) => "node.run",
        };
        info_span!(
            target: "portcullis", "act", otel.name = name,
            run = %self.run, agent = %self.request.agent, plan = %decided.plan_hash, seq = intent.0,
            exit = tracing::field::Empty,
        )
    }

    /// Between the intent and the act.
    async fn last_look(&self, decided: &Decided, intent: Seq) -> Result<(), Over> {
        let plan = &decided.frozen.plan;
        let own = decided.frozen.own();
        let let_run = if let Some(id) = &decided.approval {
            // Policy is asked again by this very step.
            self.gate.consume(id, decided.plan_hash, intent).await
        } else {
            self.gate.still((plan, own), &self.request).await
        };
        let_run.map_err(Over::refused)?;
        self.unchanged(&decided.frozen)
            .await
            .map_err(Over::refused)?;
        self.is_wanted()
    }

    /// Does who asked still wait for it, with a credential that is good?
    fn is_wanted(&self) -> Result<(), Over> {
        if let Some(reason) = self.request.session.get().filter(|_| !self.request.detach) {
            return Err(Over::denied(codes::SESSION_ENDED, reason));
        }
        match self.stop.get() {
            Some(Stop::Shutdown) => Err(Over::interrupted(Interrupt::Shutdown)),
            Some(Stop::Cancel) => Err(Over::cancelled(None)),
            // A caller that goes away later has a moment to come back; what has not begun is not begun for nobody.
            None if self.events.is_closed() => Err(Over::interrupted(Interrupt::CallerGone)),
            None => Ok(()),
        }
    }

    /// Is what would run still what was decided on?
    async fn unchanged(&self, frozen: &Frozen) -> Result<(), ExecRefusal> {
        let changed = match &frozen.means {
            Means::Box(before) => {
                let asked = Some(frozen.plan.limits.timeout_ms);
                (profile(&self.wiring, &self.request.agent, asked).await? != **before)
                    .then(|| "the sandbox".to_owned())
            }
            // The node says again what it would run.
            Means::Node(means) => {
                let again = prepare(&self.wiring.nodes, &self.request, means.node.as_str()).await?;
                (again != **means).then(|| "what the node would run".to_owned())
            }
            Means::Host(means) => {
                let (reply, answer) = oneshot::channel();
                let (opened, plan) = (means.opened.clone(), frozen.plan.clone());
                self.ctx
                    .blocking("unchanged", 0, move || {
                        let _ = reply.send(opened.changed(&plan));
                    })
                    .map_err(|error| ExecRefusal::new(codes::OVERLOADED, error))?;
                // Nobody says: it counts as changed.
                answer
                    .await
                    .unwrap_or_else(|_| Some("the program".to_owned()))
            }
        };
        match changed {
            None => Ok(()),
            Some(what) => Err(ExecRefusal::new(
                codes::PLAN_CHANGED,
                format!("{what} is not what was decided on any more: ask again"),
            )),
        }
    }

    fn nothing_ran(&self, decided: &Decided, intent: Option<Seq>, over: Over) -> RunResult {
        RunResult {
            run_id: self.run.clone(),
            status: over.status,
            exit_code: None,
            signal: None,
            duration_ms: 0,
            dropped_stdout: 0,
            dropped_stderr: 0,
            usage: None,
            provenance: provenance(decided, intent.or(over.seq), json!({})),
            error: over.error,
        }
    }

    fn ended(&self, decided: &Decided, intent: Seq, carried: Carried, duration: u64) -> RunResult {
        RunResult {
            run_id: self.run.clone(),
            status: carried.status,
            exit_code: carried.exit_code,
            signal: carried.signal,
            duration_ms: carried.duration_ms.unwrap_or(duration),
            dropped_stdout: carried.dropped.0,
            dropped_stderr: carried.dropped.1,
            usage: carried.usage,
            provenance: provenance(decided, Some(intent), carried.place),
            error: carried.error,
        }
    }
}

/// Which secrets it gets, by name and version.
fn secrets(plan: &ExecPlan) -> Option<String> {
    let named = plan.env.iter().filter_map(|(variable, value)| match value {
        EnvValue::Secret { name, version } => Some(format!("{variable}={name}@{version}")),
        EnvValue::Plain(_) => None,
    });
    let all: Vec<String> = named.collect();
    (!all.is_empty()).then(|| all.join(" "))
}

/// `1 copied <digest> /tmp/x.sh; 2 not-kept /srv`: what was kept of the files that the words name.
fn operands(plan: &ExecPlan) -> String {
    let one = |operand: &Operand| {
        let held = &operand.held;
        let digest = held.sha256().map_or_else(String::new, |d| format!(" {d}"));
        format!("{} {}{digest} {}", operand.index, held.word(), held.path())
    };
    let all: Vec<String> = plan.operands.iter().map(one).collect();
    all.join("; ")
}
