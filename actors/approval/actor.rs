//! The room around core's machine: decide, make durable, settle, tell.

use super::ends::listen;
use super::messages::{
    ApprovalEvent, ApprovalMsg, ApprovalRefusal, ApprovalWiring, Ask, Consumed, Decision, Found,
    Ground, Ledger, Narrowed,
};
use super::rows::{self, Revisions, drops, key, ops};
use crate::act::{ActError, act, entry_of, store_with};
use crate::store::Revision;
use crate::supervision::{Crash, Ctx, Reply, Room, Snapshot, TaskHandle};
use portcullis_core::approval::{
    Asked, Machine, Put, Record, Refusal, Requester, Status, Step, Subject,
};
use portcullis_core::audit::{Entry, Proof, Seq};
use portcullis_core::codes;
use portcullis_core::ids::{AgentId, ApprovalId, Hash32};
use portcullis_core::plan::ExecPlan;
use portcullis_core::policy::Verdict;
use portcullis_core::time::Millis;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The wall clock may jump, so what is due is looked at no less often.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How often rules were used is written no oftener: a run waits for no disk because of it.
pub(super) const COUNTED_EVERY: Duration = Duration::from_mins(1);
/// Rows of one commit: their ids fit into one audit record.
const CHUNK: usize = 24;

/// The approval actor.
pub struct Approval {
    pub(super) wiring: ApprovalWiring,
    pub(super) ctx: Ctx<Self>,
    pub(super) machine: Machine,
    pub(super) revisions: Revisions,
    left_out: usize,
    pub(super) timer: Option<TaskHandle>,
    /// When counts were written last.
    pub(super) counted: Instant,
}

impl Room for Approval {
    const NAME: &'static str = "approval";
    type Msg = ApprovalMsg;
    type Wiring = ApprovalWiring;

    async fn start(wiring: &ApprovalWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        // Before the rows: what ends from now on is heard.
        listen(wiring, &ctx);
        let kept = rows::read(wiring).await?;
        let mut room = Self {
            wiring: wiring.clone(),
            ctx,
            machine: kept.machine,
            revisions: kept.revisions,
            left_out: kept.left_out,
            timer: None,
            counted: Instant::now(),
        };
        room.machine.tick(room.wiring.clock.boot());
        let last = room.wiring.audit.newest_before().await?;
        let step = room.machine.recover(room.now(), last);
        if !step.puts.is_empty() {
            // Before anything is served: what is over must not be answered.
            room.make(Entry::new("approval.expire"), step)
                .await
                .map_err(Crash::new)?;
        }
        room.machine.adopt(room.now());
        // What ended with a credential while nobody was here, a crash in between among it.
        room.void(None).await.map_err(Crash::new)?;
        room.tell_hosts();
        room.arm();
        Ok(room)
    }

    async fn handle(&mut self, msg: ApprovalMsg) -> Result<(), Crash> {
        self.machine.tick(self.wiring.clock.boot());
        self.expire().await?;
        match msg {
            ApprovalMsg::Decide(ask, reply) => self.decide(*ask, reply).await?,
            ApprovalMsg::Outright(agent, target, reply) => {
                let denied = self.machine.denied_outright(&agent, &target, self.now());
                reply.ok(denied.and_then(|verdict| match verdict {
                    Verdict::Deny { code, message, fix } => {
                        Some(Decision::Deny { code, message, fix })
                    }
                    Verdict::Allow { .. } | Verdict::Ask { .. } => None,
                }));
            }
            ApprovalMsg::Judge(plan, reply) => reply.ok(self.machine.judge(&plan, self.now())),
            ApprovalMsg::Explain(agent, target, reply) => {
                reply.ok(self.machine.explain(&agent, &target, self.now()));
            }
            ApprovalMsg::Find(principal, key, reply) => reply.ok(self.find(&principal, &key)),
            ApprovalMsg::Get(id, reply) => {
                reply.send(self.machine.get(&id).cloned().map_err(Into::into));
            }
            ApprovalMsg::Ground(agent, id, reply) => {
                reply.send(self.ground(&agent, id.as_ref()));
            }
            ApprovalMsg::List(all, reply) => reply.ok(self.list(all)),
            ApprovalMsg::Consume(id, hash, intent, reply) => {
                self.consume(&id, hash, intent, reply).await?;
            }
            ApprovalMsg::Cancel(id, why, reply) => self.cancel(&id, &why, reply).await?,
            ApprovalMsg::Resolve(by, id, told, reply) => {
                self.resolve(*by, &id, *told, reply).await?;
            }
            ApprovalMsg::Grants(reply) => {
                reply.ok(self.machine.grants().into_iter().cloned().collect());
            }
            ApprovalMsg::Ledger(reply) => {
                let (entries, modes) = self.machine.ledger();
                reply.ok(Ledger {
                    grants: self.machine.grants().into_iter().cloned().collect(),
                    entries,
                    modes,
                });
            }
            ApprovalMsg::GoesOn(plan, by, reply) => {
                let goes = self.machine.may_go_on(&plan, &by, self.now());
                reply.ok(goes);
            }
            ApprovalMsg::Revoke(by, id, reply) => self.revoke(*by, &id, reply).await?,
            ApprovalMsg::Policy(reply) => reply.ok(self.machine.policy()),
            ApprovalMsg::SetPolicy(by, document, base, reply) => {
                self.set_policy(*by, document, base.as_deref(), reply)
                    .await?;
            }
            ApprovalMsg::Void(holder, reply) => {
                let ended = self.void(Some(&holder)).await;
                answer(reply, ended)?;
            }
            ApprovalMsg::LookAgain(holder) => self.look_again(holder.as_ref()).await?,
            ApprovalMsg::Host(asked) => self.host_asked(&asked).await?,
            ApprovalMsg::Expire => {}
        }
        self.save_counts(COUNTED_EVERY).await?;
        self.tell_hosts();
        self.arm();
        Ok(())
    }

    async fn stop(mut self) {
        if self.save_counts(Duration::ZERO).await.is_err() {
            tracing::warn!("how often rules were used was not kept");
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
            .with("pending", self.machine.pending().len())
            .with("grants", self.machine.grants().len())
            .with("left_out", self.left_out)
    }
}

impl Approval {
    pub(super) fn now(&self) -> Millis {
        self.wiring.clock.now()
    }

    async fn decide(
        &mut self,
        ask: Ask,
        reply: Reply<Decision, ApprovalRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let requester = Requester::new(&ask.requester, &ask.connection);
        if let Err(error) = self.check_grants(&ask.plan).await {
            return answer(reply, Err(error));
        }
        let now = self.now();
        let asked_before = ask
            .idempotency_key
            .as_deref()
            .is_some_and(|key| self.machine.find(&requester.name, key).is_some());
        let id = match ask.id {
            Some(id) => {
                let may = self.machine.may_choose(&id, &requester.name, now);
                if let Err(refusal) = may
                    && !asked_before
                {
                    return answer(reply, Err(refusal.into()));
                }
                id
            }
            None => self.free_id()?,
        };
        let is_start = ask.idempotency_key.is_none();
        let entry = Entry {
            action: "approval.requested".to_owned(),
            act_as: Some(ask.plan.agent.to_string()),
            policy_hash: Some(self.policy_hash(&ask.plan.agent)),
            idempotency_key: ask.idempotency_key.clone(),
            ..entry_of(&ask.requester)
        };
        let (key, at) = (ask.idempotency_key, id.clone());
        let agent = ask.plan.agent.clone();
        let asked = self
            .machine
            .ask_of_node(ask.plan, requester, key, at, now, ask.own);
        let result = match asked {
            Ok(Asked::Allow {
                rule,
                used: Some(grant),
            }) if is_start => {
                let entry = Entry {
                    action: "approval.grant.use".to_owned(),
                    object: Some(format!("grant:{}", grant.id)),
                    ..entry
                };
                let step = Step {
                    puts: vec![Put::Grant(grant)],
                };
                let counted = self.make_event(entry, step).await;
                counted.map(|()| Decision::Allow { rule })
            }
            Ok(Asked::Allow { rule, .. }) => {
                if is_start {
                    self.machine.count(&agent, &rule, now);
                }
                Ok(Decision::Allow { rule })
            }
            Ok(Asked::Deny { code, message, fix }) => Ok(Decision::Deny { code, message, fix }),
            Ok(Asked::Known(id)) => self.machine.get(id.as_str()).map(known).map_err(Into::into),
            Ok(Asked::New(mut step)) => {
                ask.narrowing.apply(&mut step, now);
                let entry = about(entry, &step);
                let expires_at = expiry(&step);
                self.make_event(entry, step)
                    .await
                    .map(|()| Decision::Pending { id, expires_at })
            }
            Err(refusal) => Err(refusal.into()),
        };
        answer(reply, result)
    }

    /// A standing word lets a plan run only while who gave it is who it was.
    async fn check_grants(&mut self, plan: &ExecPlan) -> Result<(), ApprovalRefusal> {
        let under = self.machine.granted_under(plan);
        for basis in self.dead(under).await? {
            self.void(Some(&basis.holder())).await?;
        }
        Ok(())
    }

    /// An id of ours: no requester can choose its beginning.
    pub(super) fn free_id(&self) -> Result<ApprovalId, Crash> {
        let id = ApprovalId::new(&format!("{}{}", Machine::RESERVED, uuid::Uuid::new_v4()))?;
        self.machine
            .is_free(&id)
            .map_err(|_| Crash::new("two new UUIDs are the same"))?;
        Ok(id)
    }

    fn find(&self, principal: &str, key: &str) -> Option<Found> {
        let record = self.machine.find(principal, key)?;
        Some(Found {
            id: record.id.clone(),
            status: record.status,
            plan: record.plan()?.clone(),
            subject_hash: record.subject_hash,
            expires_at: record.expires,
        })
    }

    pub(super) fn policy_hash(&self, agent: &AgentId) -> portcullis_core::audit::Hash32 {
        portcullis_core::audit::Hash32(self.machine.policy_hash(agent).0)
    }

    /// What an act rests on, for its record.
    fn ground(&self, agent: &AgentId, id: Option<&ApprovalId>) -> Result<Ground, ApprovalRefusal> {
        let mut ground = Ground {
            policy_hash: self.policy_hash(agent),
            proof: None,
            waited_ms: None,
        };
        let Some(id) = id else { return Ok(ground) };
        let record = self.machine.get(id.as_str())?;
        if let Some(said) = &record.resolution
            && let Some(word) = said.word
        {
            let row = (rows::RECORD, id.as_str().to_owned());
            ground.waited_ms = Some(said.at.since(record.created));
            ground.proof = Some(Proof {
                by: record.deciders(),
                how: record.proven(),
                decision: word.as_str().to_owned(),
                recorded: Seq(self.revisions.get(&row).map_or(0, |(_, intent)| *intent)),
            });
        }
        Ok(ground)
    }

    fn list(&self, all: bool) -> Vec<Record> {
        let records = if all {
            self.machine.all()
        } else {
            self.machine.pending()
        };
        records.into_iter().cloned().collect()
    }

    async fn consume(
        &mut self,
        id: &ApprovalId,
        hash: Hash32,
        intent: Seq,
        reply: Reply<Consumed, ApprovalRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let result = self.use_answer(id, hash, intent).await;
        answer(reply, result)
    }

    async fn use_answer(
        &mut self,
        id: &ApprovalId,
        hash: Hash32,
        intent: Seq,
    ) -> Result<Consumed, ApprovalRefusal> {
        let step = self.machine.consume(id, hash, intent.0, self.now())?;
        // Who asked and who answered must both still be who they were: revoked since is no.
        let under = self.machine.get(id.as_str())?.rests_on().collect();
        if !self.dead(under).await?.is_empty() {
            return Err(Refusal::Cancelled("revoked".to_owned()).into());
        }
        let resolution = self.machine.get(id.as_str())?.resolution.clone();
        // A row under an intent that the log does not hold would stop the next start.
        let head = self
            .wiring
            .audit
            .head()
            .await
            .map_err(ActError::CannotRecord)?;
        if intent.0 == 0 || intent > head.seq {
            return Err(Refusal::Plan("its intent is not in the audit log".to_owned()).into());
        }
        let revisions = {
            let _waiting = self.ctx.waiting();
            let (revisions, sealer) = (&self.revisions, &self.wiring.sealer);
            store_with(&self.wiring.store, intent.0, |intent| {
                ops(&step.puts, revisions, sealer, intent)
            })
            .await?
        };
        self.settle(step, revisions, intent.0)?;
        let resolution = resolution.ok_or(Refusal::StillPending)?;
        Ok(Consumed {
            by: resolution.by,
            decision: resolution.word.ok_or(Refusal::StillPending)?,
        })
    }

    async fn cancel(
        &mut self,
        id: &ApprovalId,
        why: &str,
        reply: Reply<(), ApprovalRefusal>,
    ) -> Result<(), Crash> {
        let result = match self.machine.cancel(id, why, self.now()) {
            Ok(step) if step.puts.is_empty() => Ok(()),
            Ok(step) => {
                let entry = about(Entry::new("approval.cancel").with("why", why), &step);
                self.make(entry, step).await
            }
            Err(refusal) => Err(refusal.into()),
        };
        answer(reply, result)
    }

    /// Intent, commit, outcome, settle, tell: in this order, in pieces that the store takes.
    pub(super) async fn make(
        &mut self,
        entry: Entry,
        mut step: Step,
    ) -> Result<(), ApprovalRefusal> {
        self.machine.stamp(&mut step, self.now());
        for puts in pieces(step) {
            let done = {
                let _waiting = self.ctx.waiting();
                let ApprovalWiring {
                    audit,
                    store,
                    sealer,
                    ..
                } = &self.wiring;
                let (revisions, puts) = (&self.revisions, &puts);
                let entry = listed(entry.clone(), puts);
                act(audit, store, entry, |intent| {
                    ops(puts, revisions, sealer, intent)
                })
                .await?
            };
            self.settle(Step { puts }, done.revisions, done.intent)?;
        }
        Ok(())
    }

    /// The same under a single record: a question by itself changes nothing.
    pub(super) async fn make_event(
        &mut self,
        entry: Entry,
        mut step: Step,
    ) -> Result<(), ApprovalRefusal> {
        self.machine.stamp(&mut step, self.now());
        let (revisions, intent) = {
            let _waiting = self.ctx.waiting();
            let ApprovalWiring {
                audit,
                store,
                sealer,
                ..
            } = &self.wiring;
            let seq = audit.event(entry).await.map_err(ActError::CannotRecord)?;
            let revisions = &self.revisions;
            let revisions = store_with(store, seq.0, |intent| {
                ops(&step.puts, revisions, sealer, intent)
            });
            (revisions.await?, seq.0)
        };
        self.settle(step, revisions, intent)
    }

    pub(super) fn settle(
        &mut self,
        step: Step,
        revisions: Vec<Revision>,
        intent: u64,
    ) -> Result<(), ApprovalRefusal> {
        if revisions.len() != step.puts.len() {
            return Err(ActError::Stale.into());
        }
        let mut news = Vec::new();
        for (put, rev) in step.puts.iter().zip(revisions) {
            if drops(put) {
                self.revisions.remove(&key(put));
            } else {
                self.revisions.insert(key(put), (rev.0, intent));
            }
            if matches!(put, Put::Document(_)) {
                news.push(ApprovalEvent::Narrowed(Narrowed::Policy));
            }
            if let Put::Record(record) = put {
                let before = self
                    .machine
                    .get(record.id.as_str())
                    .ok()
                    .and_then(|r| r.resolution.clone());
                let is_known = self.machine.get(record.id.as_str()).is_ok();
                if record.status == Status::Pending && is_known {
                    // One word of several: who waits hears of the last.
                } else if record.status == Status::Pending {
                    news.push(ApprovalEvent::Requested(Arc::new((**record).clone())));
                } else if before != record.resolution {
                    news.push(ApprovalEvent::Resolved(Arc::new((**record).clone())));
                }
            }
        }
        self.machine.settle(step);
        for event in news {
            self.wiring.feed.publish(event);
        }
        Ok(())
    }
}

/// What an earlier try with the same key became.
fn known(record: &Record) -> Decision {
    let deny = |code: &'static codes::Code, message: &str| Decision::Deny {
        code,
        message: message.to_owned(),
        fix: None,
    };
    match record.status {
        Status::Pending | Status::Allowed => Decision::Pending {
            id: record.id.clone(),
            expires_at: record.expires,
        },
        Status::Denied => deny(codes::APPROVAL_DENIED, "a person refused this command"),
        Status::Expired => deny(codes::APPROVAL_EXPIRED, "nobody decided in time"),
        Status::Cancelled => deny(
            codes::APPROVAL_DENIED,
            "this request was cancelled: send it again under another key",
        ),
        Status::Used => deny(
            codes::RUN_UNKNOWN,
            "this request ran before and is not run again",
        ),
    }
}

/// What the record of an act says about its question.
pub(super) fn about(entry: Entry, step: &Step) -> Entry {
    let Some(record) = step.puts.iter().find_map(|put| match put {
        Put::Record(record) => Some(record),
        _ => None,
    }) else {
        return entry;
    };
    let entry = match &record.subject {
        Subject::Exec(plan) => entry
            .with("command", record.redacted_line())
            .with("target", plan.target.word()),
        Subject::Policy { base, .. } => entry.with("base", base.to_string()),
        Subject::Egress { sandbox, host, .. } => entry
            .with("host", host.clone())
            .with("box", sandbox.as_str()),
    };
    let reasons: Vec<&str> = record.reasons.iter().map(|r| r.id.as_str()).collect();
    let mut entry = entry
        .with("kind", record.subject.kind())
        .with("requester", record.requester.name.clone())
        .with("reasons", reasons.join(" "));
    entry.approval_id = Some(record.id.to_string());
    entry.plan_hash = Some(portcullis_core::audit::Hash32(record.plan_hash.0));
    entry
}

/// The record of an act on many says which.
fn listed(entry: Entry, puts: &[Put]) -> Entry {
    let ids: Vec<String> = puts.iter().map(|put| key(put).1).collect();
    entry
        .with("rows", puts.len().to_string())
        .with("ids", ids.join(" "))
}

pub(super) fn expiry(step: &Step) -> Millis {
    let records = step.puts.iter().filter_map(|put| match put {
        Put::Record(record) => Some(record.expires),
        _ => None,
    });
    records.max().unwrap_or_default()
}

fn pieces(mut step: Step) -> Vec<Vec<Put>> {
    let mut pieces = Vec::new();
    while !step.puts.is_empty() {
        let rest = step.puts.split_off(step.puts.len().min(CHUNK));
        pieces.push(std::mem::replace(&mut step.puts, rest));
    }
    pieces
}

/// Answers, and crashes the room where only re-reading helps.
pub(super) fn answer<T>(
    reply: Reply<T, ApprovalRefusal>,
    result: Result<T, ApprovalRefusal>,
) -> Result<(), Crash> {
    let broken = match &result {
        Err(ApprovalRefusal::Act(error)) if error.must_reread() => Some(Crash::new(error)),
        _ => None,
    };
    reply.send(result);
    broken.map_or(Ok(()), Err)
}
