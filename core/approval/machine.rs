//! The questions that are open: asking, finding, expiring, using.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::chosen::Chosen;
use super::ledger::Counts;
use super::{
    Basis, Deciding, EXPIRED_CLOCK, Grant, Limits, Narrowing, Put, Record, Refusal, Requester,
    Resolution, Row, Status, Step, Subject,
};
use crate::codes::Code;
use crate::ids::{AgentId, ApprovalId, Hash32};
use crate::plan::{ExecPlan, Target};
use crate::policy::{
    AgentPolicy, Document, ExecMode, Judgement, Rules, Standing, Verdict, decide, denied_outright,
    judge,
};
use crate::time::{BootMoment, Millis};

/// What the configuration says of agents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agents {
    /// Of those without a section of their own.
    pub every: AgentPolicy,
    /// Of those with one.
    pub named: BTreeMap<AgentId, AgentPolicy>,
    /// `[nodes.exec]`: of single nodes, by their ids.
    pub nodes: BTreeMap<String, ExecMode>,
}

impl Agents {
    /// Of this one.
    pub fn of(&self, agent: &AgentId) -> AgentPolicy {
        self.named.get(agent).copied().unwrap_or(self.every)
    }

    /// Of this one there.
    pub fn at(&self, agent: &AgentId, target: &Target) -> AgentPolicy {
        let node = match target {
            Target::Node(node) => self.nodes.get(node).copied(),
            Target::Sandbox | Target::Host => None,
        };
        let policy = self.of(agent);
        AgentPolicy {
            node: node.unwrap_or(policy.node),
            ..policy
        }
    }
}

/// The approvals document, owned.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Held {
    Absent,
    Valid(Box<Document>),
    Malformed,
}

impl Held {
    pub(super) fn standing(&self) -> Standing<'_> {
        match self {
            Self::Absent => Standing::Absent,
            Self::Valid(document) => Standing::Valid(document),
            Self::Malformed => Standing::Malformed,
        }
    }
}

/// Everything pending, granted and set. Changes only by [`Machine::settle`], after the change is durable.
#[derive(Debug)]
pub struct Machine {
    pub(super) limits: Limits,
    pub(super) agents: Agents,
    pub(super) deciding: Deciding,
    pub(super) records: BTreeMap<String, Record>,
    pub(super) grants: BTreeMap<String, Grant>,
    pub(super) document: Held,
    /// The machine's own clock, as last told.
    pub(super) boot: Option<BootMoment>,
    pub(super) counts: Counts,
    chosen: Chosen,
}

/// What became of a plan that was asked about.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// It may run at once.
    Allow {
        /// By which rule.
        rule: String,
        /// The grant by which it runs, used once more: to be written.
        used: Option<Box<Grant>>,
    },
    /// It may not run.
    Deny {
        /// The code.
        code: &'static Code,
        /// Why.
        message: String,
        /// What to change.
        fix: Option<String>,
    },
    /// The same request asked before; its plan is the kept one.
    Known(ApprovalId),
    /// A new question, to be written.
    New(Step),
}

/// What becomes of a changed document.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicySet {
    /// It holds at once.
    Apply(Step),
    /// It frees something: a person decides.
    Ask(ApprovalId, Step),
}

impl Machine {
    /// With what was read. A document that could not be read is `Some(Err(()))`: nothing runs on the host then.
    pub fn new(
        limits: Limits,
        agents: Agents,
        deciding: Deciding,
        records: Vec<Record>,
        grants: Vec<Grant>,
        document: Option<Result<Value, ()>>,
    ) -> Self {
        let document = match document {
            None => Held::Absent,
            Some(value) => value
                .ok()
                .and_then(|v| Document::parse(v).ok())
                .map_or(Held::Malformed, |d| Held::Valid(Box::new(d))),
        };
        let mut chosen = Chosen::default();
        let mut by_age: Vec<&Record> = records.iter().collect();
        by_age.sort_by_key(|record| record.created);
        for record in by_age {
            if !record.id.as_str().starts_with(Self::RESERVED) {
                chosen.add(record.id.as_str(), &record.requester.name, record.created);
            }
        }
        Self {
            limits,
            agents,
            deciding,
            boot: None,
            counts: Counts::default(),
            chosen,
            records: records
                .into_iter()
                .map(|r| (r.id.as_str().to_owned(), r))
                .collect(),
            grants: grants.into_iter().map(|g| (g.id.clone(), g)).collect(),
            document,
        }
    }

    /// What must end at a start: what is over by the clock, what a changed policy forbids; everything, when the clock
    /// lies before the newest thing known. `last` is the newest record of the audit log before this start.
    pub fn recover(&self, now: Millis, last: Millis) -> Step {
        let newest = self
            .records
            .values()
            .map(Record::newest)
            .max()
            .unwrap_or_default()
            .max(last);
        if now < newest {
            let open = self.records.values().filter(|r| !r.status.is_final());
            return Step {
                puts: open
                    .map(|r| ended(r, Status::Expired, EXPIRED_CLOCK, now))
                    .collect(),
            };
        }
        let mut step = self.expire(now);
        let expired: Vec<ApprovalId> = step
            .puts
            .iter()
            .filter_map(|p| match p {
                Put::Record(r) => Some(r.id.clone()),
                _ => None,
            })
            .collect();
        let forbidden = self.forbidden(self.document.standing(), now);
        step.puts.extend(forbidden.into_iter().filter(|p| match p {
            Put::Record(r) => !expired.contains(&r.id),
            _ => true,
        }));
        step
    }

    /// On what that rests which is not over: on who asked, who answered, who granted.
    pub fn rests_on(&self) -> BTreeSet<Basis> {
        let open = self.records.values().filter(|r| r.is_in_force());
        let of_grants = self.grants.values().flat_map(Grant::rests_on);
        open.flat_map(Record::rests_on).chain(of_grants).collect()
    }

    /// Ends what rests on what has ended: questions, answers that nobody used, grants.
    pub fn void(&self, dead: &BTreeSet<Basis>, now: Millis) -> Step {
        let ends = |record: &Record| {
            if !record.is_in_force() || !record.rests_on().any(|basis| dead.contains(&basis)) {
                return None;
            }
            let asked = Basis::of(
                record.requester.credential.as_ref(),
                record.requester.secret.as_ref(),
            );
            if record.status == Status::Pending && !asked.into_iter().any(|b| dead.contains(&b)) {
                // Its question stands, without the word of who is no more.
                let mut without = record.clone();
                without
                    .votes
                    .retain(|vote| !vote.rests_on().any(|basis| dead.contains(&basis)));
                return Some(Put::Record(Box::new(without)));
            }
            Some(ended(record, Status::Cancelled, "revoked", now))
        };
        let records = self.records.values().filter_map(ends);
        let grants = self
            .grants
            .values()
            .filter(|g| g.rests_on().any(|basis| dead.contains(&basis)))
            .map(|g| Put::DropGrant(g.id.clone()));
        Step {
            puts: records.chain(grants).collect(),
        }
    }

    /// On whose word this plan would run without a question: to be looked at before [`Self::ask`].
    pub fn granted_under(&self, plan: &ExecPlan) -> BTreeSet<Basis> {
        let subject_hash = plan.subject_hash();
        self.grants
            .values()
            .filter(|g| g.is_about(plan, subject_hash))
            .flat_map(Grant::rests_on)
            .collect()
    }

    /// What of the undecided and unused a policy now forbids.
    pub(super) fn forbidden(&self, document: Standing<'_>, now: Millis) -> Vec<Put> {
        self.records
            .values()
            .filter(|r| !r.status.is_final())
            .filter(|r| {
                r.plan().is_some_and(|plan| {
                    matches!(self.verdict(document, plan, now), Verdict::Deny { .. })
                })
            })
            .map(|r| ended(r, Status::Cancelled, "policy", now))
            .collect()
    }

    fn verdict(&self, document: Standing<'_>, plan: &ExecPlan, now: Millis) -> Verdict {
        let agent = self.agents.at(&plan.agent, &plan.target);
        decide(
            &Rules {
                agent,
                document,
                now,
            },
            plan,
            None,
        )
    }

    /// Why nothing of this agent runs there, if so.
    pub fn denied_outright(
        &self,
        agent: &AgentId,
        target: &Target,
        now: Millis,
    ) -> Option<Verdict> {
        let rules = Rules {
            agent: self.agents.at(agent, target),
            document: self.document.standing(),
            now,
        };
        denied_outright(&rules, agent.as_str(), target)
    }

    /// What would be decided on this plan: nothing is asked.
    pub fn judge(&self, plan: &ExecPlan, now: Millis) -> Judgement {
        let rules = Rules {
            agent: self.agents.at(&plan.agent, &plan.target),
            document: self.document.standing(),
            now,
        };
        let grant = self.standing_grant(plan, now);
        judge(&rules, plan, grant.map(|g| g.id.as_str()))
    }

    fn standing_grant(&self, plan: &ExecPlan, now: Millis) -> Option<&Grant> {
        let subject_hash = plan.subject_hash();
        self.grants
            .values()
            .filter(|g| g.covers(plan, subject_hash, now) && !self.is_over(g.boot_end.as_ref()))
            .find(|g| self.deciding.demands.still_make(g, Some(&plan.target)))
    }

    /// Decides on a plan: runs, does not run, or a question under `id`.
    ///
    /// # Errors
    /// [`Refusal`]: the plan is none, not the asker's, or too much is undecided already.
    pub fn ask(
        &self,
        plan: ExecPlan,
        requester: Requester,
        idempotency_key: Option<String>,
        id: ApprovalId,
        now: Millis,
    ) -> Result<Asked, Refusal> {
        self.ask_of_node(plan, requester, idempotency_key, id, now, ExecMode::Full)
    }

    /// As [`Self::ask`], with what the plan's node itself says of it.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_of_node(
        &self,
        plan: ExecPlan,
        requester: Requester,
        idempotency_key: Option<String>,
        id: ApprovalId,
        now: Millis,
        own: ExecMode,
    ) -> Result<Asked, Refusal> {
        plan.validate_shape()
            .map_err(|e| Refusal::Plan(e.to_string()))?;
        if plan.principal != requester.name {
            return Err(Refusal::NotYours("principal"));
        }
        if requester
            .agent
            .as_ref()
            .is_some_and(|agent| *agent != plan.agent)
        {
            return Err(Refusal::NotYours("agent"));
        }
        let subject_hash = plan.subject_hash();
        if let Some(known) = idempotency_key
            .as_deref()
            .and_then(|key| self.find(&requester.name, key))
        {
            if known.subject_hash != subject_hash {
                return Err(Refusal::KeyReused);
            }
            return Ok(Asked::Known(known.id.clone()));
        }
        let agent = AgentPolicy {
            own,
            ..self.agents.at(&plan.agent, &plan.target)
        };
        let rules = Rules {
            agent,
            document: self.document.standing(),
            now,
        };
        let grant = self.standing_grant(&plan, now);
        let (reasons, may_always) = match decide(&rules, &plan, grant.map(|g| g.id.as_str())) {
            Verdict::Allow { rule } => {
                let used = grant.filter(|g| rule == format!("grant:{}", g.id));
                let used = used.map(|g| Box::new(g.used(now)));
                return Ok(Asked::Allow { rule, used });
            }
            Verdict::Deny { code, message, fix } => return Ok(Asked::Deny { code, message, fix }),
            Verdict::Ask {
                reasons,
                may_always,
            } => (reasons, may_always),
        };
        self.check_room(Some(&plan.agent))?;
        let plan_hash = plan.plan_hash();
        let subject = Subject::Exec(Box::new(plan));
        let record = Record {
            v: Row,
            id,
            status: Status::Pending,
            requester,
            idempotency_key,
            plan_hash,
            subject_hash,
            quorum: self.deciding.demands.quorum(&subject),
            narrowing: Narrowing::default(),
            votes: vec![],
            subject,
            reasons,
            may_always,
            created: now,
            expires: now.plus(self.limits.timeout_ms),
            boot_end: None,
            resolution: None,
            used_by: None,
        };
        Ok(Asked::New(self.with_new(record)))
    }

    /// Is there room for one more question?
    pub(super) fn check_room(&self, agent: Option<&AgentId>) -> Result<(), Refusal> {
        let open = || self.records.values().filter(|r| !r.status.is_final());
        if open().count() >= self.limits.total {
            return Err(Refusal::TooManyPending("in all"));
        }
        let of_agent = open().filter(|r| r.agent() == agent).count();
        if of_agent >= self.limits.per_agent {
            return Err(Refusal::TooManyPending("of this agent"));
        }
        Ok(())
    }

    /// A new question; the oldest finished ones make place for it.
    pub(super) fn with_new(&self, record: Record) -> Step {
        let mut finished: Vec<&Record> = self
            .records
            .values()
            .filter(|r| r.status.is_final())
            .collect();
        let over = (finished.len() + 1).saturating_sub(self.limits.finished);
        let is_old = |r: &&&Record| record.created.since(r.newest()) > self.limits.finished_ms;
        finished.sort_by_key(|r| r.newest());
        let old = finished.iter().take_while(is_old).count();
        // A few with each new one, so that the store takes them in one piece.
        let over = over.max(old).min(16);
        let mut puts: Vec<Put> = finished
            .iter()
            .take(over)
            .map(|r| Put::DropRecord(r.id.clone()))
            .collect();
        puts.push(Put::Record(Box::new(record)));
        Step { puts }
    }

    /// The request that this principal sent under this key, if it is still known.
    pub fn find(&self, principal: &str, key: &str) -> Option<&Record> {
        self.records
            .values()
            .filter(|r| r.requester.name == principal && r.idempotency_key.as_deref() == Some(key))
            .max_by_key(|r| r.created)
    }

    /// How ids of ours begin, and none that a requester chose: random, so that none comes twice.
    pub const RESERVED: &str = "pc-";
    /// Of an id of ours, a person types so much at least: eight digits after [`Self::RESERVED`].
    const OWN_BEGINNING: usize = 11;

    /// May this requester call a new question so?
    ///
    /// # Errors
    /// [`Refusal::IdTaken`], [`Refusal::TooManyIds`].
    pub fn may_choose(&self, id: &ApprovalId, requester: &str, now: Millis) -> Result<(), Refusal> {
        let text = id.as_str();
        if text.starts_with(Self::RESERVED) || Self::RESERVED.starts_with(text) {
            return Err(Refusal::IdTaken);
        }
        self.is_free(id)?;
        self.chosen.may(text, requester, now)
    }

    /// May a new question be called so? A person types the beginning of an id: no id may begin with another.
    ///
    /// # Errors
    /// [`Refusal::IdTaken`].
    pub fn is_free(&self, id: &ApprovalId) -> Result<(), Refusal> {
        let id = id.as_str();
        let clash = |known: &String| known.starts_with(id) || id.starts_with(known.as_str());
        if self.records.keys().any(clash) {
            return Err(Refusal::IdTaken);
        }
        Ok(())
    }

    /// By id; one of ours also by so much of its beginning that it is not, and cannot become, another's. What a requester
    /// chose is meant by the whole of it only.
    ///
    /// # Errors
    /// None or several, or too little of it.
    pub fn get(&self, id: &str) -> Result<&Record, Refusal> {
        if let Some(record) = self.records.get(id) {
            return Ok(record);
        }
        if id.is_empty() {
            return Err(Refusal::NotFound);
        }
        let mut found = self
            .records
            .range(id.to_owned()..)
            .take_while(|(key, _)| key.starts_with(id));
        match (found.next(), found.next()) {
            (Some((_, record)), None) => {
                let is_enough =
                    id.starts_with(Self::RESERVED) && id.chars().count() >= Self::OWN_BEGINNING;
                is_enough.then_some(record).ok_or(Refusal::Ambiguous)
            }
            (Some(_), Some(_)) => Err(Refusal::Ambiguous),
            (None, _) => self.by_notice(id),
        }
    }

    /// By the whole of what notices call it.
    fn by_notice(&self, id: &str) -> Result<&Record, Refusal> {
        let is_it = |record: &&Record| record.notice_id().as_str() == id;
        let may_be = id.starts_with(Self::RESERVED);
        let found = self.records.values().find(|record| may_be && is_it(record));
        found.ok_or(Refusal::NotFound)
    }

    /// By its whole id.
    fn exact(&self, id: &ApprovalId) -> Result<&Record, Refusal> {
        self.records.get(id.as_str()).ok_or(Refusal::NotFound)
    }

    /// What nobody has answered, oldest first.
    pub fn pending(&self) -> Vec<&Record> {
        let mut pending: Vec<&Record> = self
            .records
            .values()
            .filter(|r| r.status == Status::Pending)
            .collect();
        pending.sort_by_key(|r| (r.created, r.id.clone()));
        pending
    }

    /// Everything known, newest first.
    pub fn all(&self) -> Vec<&Record> {
        let mut all: Vec<&Record> = self.records.values().collect();
        all.sort_by_key(|r| std::cmp::Reverse(r.newest()));
        all
    }

    /// Uses an answer, once. `intent` is the durable record of what it is used for.
    ///
    /// # Errors
    /// Not allowed, used before, too late, changed, or forbidden by now.
    pub fn consume(
        &self,
        id: &ApprovalId,
        plan_hash: Hash32,
        intent: u64,
        now: Millis,
    ) -> Result<Step, Refusal> {
        let record = self.exact(id)?;
        usable(record)?;
        if record.is_due(now) || self.is_over(record.boot_end.as_ref()) {
            return Err(Refusal::Expired);
        }
        let Some(plan) = record
            .plan()
            .filter(|p| p.plan_hash() == plan_hash && record.plan_hash == plan_hash)
        else {
            return Err(Refusal::PlanChanged);
        };
        if matches!(
            self.verdict(self.document.standing(), plan, now),
            Verdict::Deny { .. }
        ) {
            return Err(Refusal::Cancelled("policy".to_owned()));
        }
        self.is_shown(record)?;
        let mut used = record.clone();
        used.status = Status::Used;
        used.used_by = Some(intent);
        Ok(Step {
            puts: vec![Put::Record(Box::new(used))],
        })
    }

    /// Withdraws a question, or an answer nobody has used. A finished one stays as it is: an empty step.
    ///
    /// # Errors
    /// No such question.
    pub fn cancel(&self, id: &ApprovalId, why: &str, now: Millis) -> Result<Step, Refusal> {
        let record = self.exact(id)?;
        if record.status.is_final() {
            return Ok(Step::default());
        }
        Ok(Step {
            puts: vec![ended(record, Status::Cancelled, why, now)],
        })
    }

    /// Takes over what is durable now.
    pub fn settle(&mut self, step: Step) {
        for put in step.puts {
            match put {
                Put::Record(record) => {
                    let id = record.id.as_str().to_owned();
                    if !self.records.contains_key(&id) && !id.starts_with(Self::RESERVED) {
                        self.chosen.add(&id, &record.requester.name, record.created);
                    }
                    self.records.insert(id, *record);
                }
                Put::Grant(grant) => {
                    self.grants.insert(grant.id.clone(), *grant);
                }
                Put::DropRecord(id) => {
                    self.records.remove(id.as_str());
                }
                Put::DropGrant(id) => {
                    self.grants.remove(&id);
                }
                Put::Uses(uses) => self.saved(*uses),
                Put::Document(value) => {
                    self.document = Document::parse(value)
                        .map_or(Held::Malformed, |d| Held::Valid(Box::new(d)));
                }
            }
        }
    }
}

/// May an answer be used?
fn usable(record: &Record) -> Result<(), Refusal> {
    match record.status {
        Status::Allowed => Ok(()),
        Status::Pending => Err(Refusal::StillPending),
        Status::Denied => Err(Refusal::Denied),
        Status::Expired => Err(Refusal::Expired),
        Status::Cancelled => Err(Refusal::Cancelled(
            record
                .resolution
                .as_ref()
                .map_or_else(String::new, |r| r.why.clone()),
        )),
        Status::Used => Err(Refusal::Used),
    }
}

/// The end of a question without a person's word; the word of one that was allowed stays.
pub(super) fn ended(record: &Record, status: Status, why: &str, now: Millis) -> Put {
    let mut record = record.clone();
    record.status = status;
    record.resolution = Some(Resolution {
        word: None,
        by: "system".to_owned(),
        why: why.to_owned(),
        note: None,
        credential: None,
        secret: None,
        at: now.max(record.newest()),
    });
    Put::Record(Box::new(record))
}
