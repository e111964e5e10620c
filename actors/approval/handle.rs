//! The way to approvals for other rooms.

use super::actor::Approval;
use super::messages::{
    ApprovalEvent, ApprovalMsg, ApprovalRefusal, ApprovalWiring, Ask, By, Consumed, Decision,
    Found, Ground, Ledger, PolicyChange, Resolved, Told,
};
use crate::supervision::{
    CallError, Feed, FeedItem, FeedReader, Handle, Policy as Rules, Reply, TreeBuilder,
};
use portcullis_core::approval::{
    Act, Deciding, Grant, Limits, NOTE_MAX, Policy, Record, RunsBy, Status, Word, record_json,
};
use portcullis_core::audit::Seq;
use portcullis_core::auth::{Holder, Principal};
use portcullis_core::encoding::base64url;
use portcullis_core::ids::{AgentId, ApprovalId, Hash32};
use portcullis_core::plan::{ExecPlan, Target};
use portcullis_core::policy::Judgement;
use portcullis_core::time::Millis;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(5);
/// Requests the room takes at once.
const CAPACITY: usize = 1_024;
/// How long [`ApprovalHandle::wait`] trusts the feed before it looks itself.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Handle to approvals. Clone it freely; it survives restarts of the room. Every change is durable when it returns.
#[derive(Clone, Debug)]
pub struct ApprovalHandle {
    room: Handle<ApprovalMsg>,
    feed: Feed<ApprovalEvent>,
    terms: Arc<Terms>,
}

/// What does not change while the gateway runs.
#[derive(Debug)]
struct Terms {
    deciding: Deciding,
    limits: Limits,
}

impl ApprovalHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: ApprovalWiring) -> Self {
        let feed = wiring.feed.clone();
        let terms = Arc::new(Terms {
            deciding: wiring.deciding.clone(),
            limits: wiring.config.limits(),
        });
        let room = tree.room::<Approval>(Rules::new(CAPACITY), wiring);
        Self { room, feed, terms }
    }

    /// Decides on a frozen plan. A question is durable when it returns.
    ///
    /// # Errors
    /// [`ApprovalRefusal`]: the plan must not run.
    pub async fn decide(&self, ask: Ask) -> Result<Decision, ApprovalRefusal> {
        let ask = Box::new(ask);
        self.ask(|reply| ApprovalMsg::Decide(ask, reply)).await
    }

    /// Why nothing of this agent runs there, whatever the command is. Before a plan is made of one.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn denied_outright(
        &self,
        agent: &AgentId,
        target: &Target,
    ) -> Result<Option<Decision>, ApprovalRefusal> {
        let (agent, target) = (agent.clone(), target.clone());
        self.ask(|reply| ApprovalMsg::Outright(agent, target, reply))
            .await
    }

    /// What would be said of this plan: nothing is asked or kept.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn judge(&self, plan: ExecPlan) -> Result<Judgement, ApprovalRefusal> {
        let plan = Box::new(plan);
        self.ask(|reply| ApprovalMsg::Judge(plan, reply)).await
    }

    /// What holds for this agent there, which source says so, and which of its entries do not do what they look like.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn explain(
        &self,
        agent: &AgentId,
        target: &Target,
    ) -> Result<Value, ApprovalRefusal> {
        let (agent, target) = (agent.clone(), target.clone());
        self.ask(|reply| ApprovalMsg::Explain(agent, target, reply))
            .await
    }

    /// What this principal asked under this key before, also before a restart.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn find(&self, principal: &str, key: &str) -> Result<Option<Found>, ApprovalRefusal> {
        let (principal, key) = (principal.to_owned(), key.to_owned());
        self.ask(|reply| ApprovalMsg::Find(principal, key, reply))
            .await
    }

    /// Where a question stands.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn status(&self, id: &ApprovalId) -> Result<Status, ApprovalRefusal> {
        self.get(id.as_str()).await.map(|record| record.status)
    }

    /// One question by its id or a beginning of it that only one has.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn get(&self, id: &str) -> Result<Record, ApprovalRefusal> {
        let id = id.to_owned();
        self.ask(|reply| ApprovalMsg::Get(id, reply)).await
    }

    /// What an act of this agent rests on, for its record: the policy, and this answer.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn ground(
        &self,
        agent: &AgentId,
        id: Option<&ApprovalId>,
    ) -> Result<Ground, ApprovalRefusal> {
        let (agent, id) = (agent.clone(), id.cloned());
        self.ask(|reply| ApprovalMsg::Ground(agent, id, reply))
            .await
    }

    /// Ends what rests on this device or secret, where that counts no more: questions, answers that nobody used,
    /// grants. Answers how many.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn end_of(&self, holder: &Holder) -> Result<usize, ApprovalRefusal> {
        let holder = holder.clone();
        self.ask(|reply| ApprovalMsg::Void(holder, reply)).await
    }

    /// Waits until a question is no longer undecided, `within` at most; then gives it as it stands.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn wait(&self, id: &ApprovalId, within: Duration) -> Result<Record, ApprovalRefusal> {
        let deadline = tokio::time::Instant::now() + within;
        let mut news = self.feed();
        loop {
            let record = self.get(id.as_str()).await?;
            if record.status != Status::Pending || tokio::time::Instant::now() >= deadline {
                return Ok(record);
            }
            let look = deadline.min(tokio::time::Instant::now() + LOOK_EVERY);
            loop {
                match tokio::time::timeout_at(look, news.next()).await {
                    Ok(FeedItem::Event(news))
                        if news.event.record().is_none_or(|record| record.id != *id) => {}
                    Ok(FeedItem::Closed) => {
                        tokio::time::sleep_until(look).await;
                        break;
                    }
                    _ => break,
                }
            }
        }
    }

    /// What nobody has decided, oldest first.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn list(&self) -> Result<Vec<Record>, ApprovalRefusal> {
        self.ask(|reply| ApprovalMsg::List(false, reply)).await
    }

    /// Everything known, finished ones too, newest first.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn history(&self) -> Result<Vec<Record>, ApprovalRefusal> {
        self.ask(|reply| ApprovalMsg::List(true, reply)).await
    }

    /// Uses an answer, exactly once, for the act whose durable intent is `intent`.
    ///
    /// # Errors
    /// [`ApprovalRefusal`], `PLAN_CHANGED` among them: then nothing may run.
    pub async fn consume(
        &self,
        id: &ApprovalId,
        plan_hash: Hash32,
        intent: Seq,
    ) -> Result<Consumed, ApprovalRefusal> {
        let id = id.clone();
        self.ask(|reply| ApprovalMsg::Consume(id, plan_hash, intent, reply))
            .await
    }

    /// Withdraws a question, or an answer nobody has used.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn cancel(&self, id: &ApprovalId, why: &str) -> Result<(), ApprovalRefusal> {
        let (id, why) = (id.clone(), why.to_owned());
        self.ask(|reply| ApprovalMsg::Cancel(id, why, reply)).await
    }

    /// A person's answer; the first wins, the same again is fine. Gives the question as it stands then.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn resolve(
        &self,
        id: &str,
        word: Word,
        by: &Principal,
        connection: &str,
    ) -> Result<Record, ApprovalRefusal> {
        let resolved = self.tell(id, word.into(), by, connection).await?;
        Ok(resolved.record)
    }

    /// As [`Self::resolve`], with all that a decision can have; tells whether it was the first answer.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn tell(
        &self,
        id: &str,
        mut told: Told,
        by: &Principal,
        connection: &str,
    ) -> Result<Resolved, ApprovalRefusal> {
        let (by, id) = (boxed(by, connection), id.to_owned());
        let note = told.note.map(|n| n.chars().take(NOTE_MAX).collect());
        told.note = note.filter(|note: &String| !note.trim().is_empty());
        self.ask(|reply| ApprovalMsg::Resolve(by, id, Box::new(told), reply))
            .await
    }

    /// What a device signs a decision on this question with, and whether one must.
    pub fn terms(&self, record: &Record, now: Millis) -> Value {
        let Terms { deciding, limits } = &*self.terms;
        json!({
            "gateway": deciding.key.gateway(),
            "planHash": record.plan_hash,
            // Whoever signs its hash makes it himself of this, and looks whether it is what he was shown.
            "plan": record.plan().map(|plan| base64url(&plan.to_json())),
            "nowMs": now,
            "onceUntilMs": now.plus(limits.timeout_ms),
            "grantUntilMs": now.plus(limits.grant_ms),
            "requiredFor": deciding.demands.signature_for(record).map(Act::as_str),
        })
    }

    /// This gateway's id in what devices sign.
    pub fn gateway(&self) -> Hash32 {
        self.terms.deciding.key.gateway()
    }

    /// Must a device sign this act, which is no question?
    pub fn needs_proof(&self, act: Act) -> bool {
        self.terms.deciding.demands.proof.contains(&act)
    }

    /// Standing grants, newest first.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn grants(&self) -> Result<Vec<Grant>, ApprovalRefusal> {
        self.ask(ApprovalMsg::Grants).await
    }

    /// Everything that runs without asking.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn ledger(&self) -> Result<Ledger, ApprovalRefusal> {
        self.ask(ApprovalMsg::Ledger).await
    }

    /// May a run that is under way go on, after the policy was changed?
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn goes_on(&self, plan: &ExecPlan, by: &RunsBy) -> Result<bool, ApprovalRefusal> {
        let (plan, by) = (Box::new(plan.clone()), by.clone());
        self.ask(|reply| ApprovalMsg::GoesOn(plan, by, reply)).await
    }

    /// Takes back what the ledger calls so: a grant, or an entry of the document.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn revoke_grant(&self, id: &str, by: &Principal) -> Result<(), ApprovalRefusal> {
        let (by, id) = (boxed(by, ""), id.to_owned());
        self.ask(|reply| ApprovalMsg::Revoke(by, id, reply)).await
    }

    /// The approvals document.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn policy_get(&self) -> Result<Policy, ApprovalRefusal> {
        self.ask(ApprovalMsg::Policy).await
    }

    /// Replaces the document whose hash is `base_hash`. What frees anything waits for an operator on another
    /// connection.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn policy_set(
        &self,
        document: Value,
        base_hash: Option<&str>,
        by: &Principal,
        connection: &str,
    ) -> Result<PolicyChange, ApprovalRefusal> {
        let (by, base) = (boxed(by, connection), base_hash.map(str::to_owned));
        self.ask(|reply| ApprovalMsg::SetPolicy(by, document, base, reply))
            .await
    }

    /// The result of `exec.approval.list`: a bare array.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn list_json(&self) -> Result<Value, ApprovalRefusal> {
        Ok(self.list().await?.iter().map(record_json).collect())
    }

    /// The result of `exec.approval.grants.list`.
    ///
    /// # Errors
    /// [`ApprovalRefusal`].
    pub async fn grants_json(&self, limit: usize) -> Result<Value, ApprovalRefusal> {
        let Ledger {
            grants,
            entries,
            modes,
        } = self.ledger().await?;
        let grants: Vec<Value> = grants.iter().take(limit).map(Grant::to_json).collect();
        Ok(json!({ "grants": grants, "entries": entries, "modes": modes }))
    }

    /// News from now on.
    pub fn feed(&self) -> FeedReader<ApprovalEvent> {
        self.feed.subscribe()
    }

    /// Whether the room serves.
    pub fn is_up(&self) -> bool {
        self.room.is_up()
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(Reply<T, ApprovalRefusal>) -> ApprovalMsg,
    ) -> Result<T, ApprovalRefusal> {
        self.room
            .call(WITHIN, make)
            .await
            .map_err(|error| match error {
                CallError::Refused(refusal) => refusal,
                CallError::Overloaded => ApprovalRefusal::Overloaded,
                CallError::Unavailable { may_have_run } | CallError::Deadline { may_have_run } => {
                    ApprovalRefusal::Down { may_have_run }
                }
            })
    }
}

fn boxed(principal: &Principal, connection: &str) -> Box<By> {
    Box::new(By {
        principal: principal.clone(),
        connection: connection.to_owned(),
    })
}
