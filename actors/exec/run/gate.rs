//! What approval says of a plan: the one place that knows its handle.

use std::time::Duration;

use portcullis_core::approval::{Narrowing, Record, RunsBy, Status, Vote};
use portcullis_core::audit::Seq;
use portcullis_core::codes::{self, Code};
use portcullis_core::display::visible;
use portcullis_core::ids::{AgentId, ApprovalId, Hash32};
use portcullis_core::nodes::Shown;
use portcullis_core::plan::ExecPlan;
use portcullis_core::policy::ExecMode;

use crate::approval::{
    ApprovalEvent, ApprovalHandle, ApprovalRefusal, Ask, Decision, Found, Ground, Narrowed,
};
use crate::exec::messages::{ExecRefusal, OnlyAsk, RunRequest};
use crate::supervision::{FeedItem, FeedReader};

/// When approval is down, a run that is under way asks again after this.
const AGAIN: Duration = Duration::from_millis(250);

/// Approval, for one run.
pub struct Gate(pub ApprovalHandle);

/// What it said of a new plan.
pub enum Said {
    /// It runs, by this rule.
    Allowed(String),
    /// A person is asked.
    Asked(ApprovalId, u64),
}

/// Where a question stands.
pub enum Stand {
    /// Nobody has answered.
    Open,
    /// Allowed, not used.
    Allowed,
    /// Over, without a way to run.
    Over(&'static Code, String),
}

fn said(decision: Decision) -> Result<Said, ExecRefusal> {
    match decision {
        Decision::Allow { rule } => Ok(Said::Allowed(rule)),
        Decision::Pending { id, expires_at } => Ok(Said::Asked(id, expires_at.0)),
        Decision::Deny { code, message, fix } => {
            let refusal = ExecRefusal::new(code, message);
            Err(match fix {
                Some(fix) => refusal.with("fix", fix),
                None => refusal,
            })
        }
    }
}

impl Gate {
    /// The question that the same principal asked under the same key.
    pub async fn find(&self, request: &RunRequest) -> Result<Option<Found>, ExecRefusal> {
        let found = self
            .0
            .find(&request.principal.name(), &request.idempotency_key)
            .await;
        found.map_err(|error| refusal(&error))
    }

    /// Decides on a new plan, or asks a person.
    pub async fn decide(
        &self,
        (plan, own): (&ExecPlan, ExecMode),
        request: &RunRequest,
        only_ask: Option<OnlyAsk>,
    ) -> Result<Said, ExecRefusal> {
        let key = request.idempotency_key.clone();
        // A question asked ahead is called by its key.
        let id = only_ask.as_ref().map(|_| ApprovalId::new(&key)).transpose();
        let id = id.map_err(|error| ExecRefusal::new(codes::INVALID_PARAMS, error))?;
        let ask = Ask {
            id,
            narrowing: only_ask.map(|how| how.narrowing).unwrap_or_default(),
            ..question((plan, own), request, Some(key))
        };
        self.ask(ask).await
    }

    async fn ask(&self, ask: Ask) -> Result<Said, ExecRefusal> {
        said(self.0.decide(ask).await.map_err(|error| refusal(&error))?)
    }

    /// May anything of it run there at all? Asked before anything is looked at for it.
    pub async fn may_ask(&self, request: &RunRequest) -> Result<(), ExecRefusal> {
        let (agent, target) = (&request.agent, &request.target);
        match self.0.denied_outright(agent, target).await {
            Ok(Some(denied)) => said(denied).map(drop),
            Ok(None) => Ok(()),
            Err(error) => Err(refusal(&error)),
        }
    }

    /// Does policy still let it run without a person, at the moment of its start?
    pub async fn still(
        &self,
        plan: (&ExecPlan, ExecMode),
        request: &RunRequest,
    ) -> Result<(), ExecRefusal> {
        match self.ask(question(plan, request, None)).await? {
            Said::Allowed(_) => Ok(()),
            Said::Asked(id, _) => {
                self.withdraw(&id, "policy").await;
                Err(ExecRefusal::new(
                    codes::POLICY_DENIED,
                    "policy changed meanwhile and asks a person now: ask again",
                ))
            }
        }
    }

    /// What is told from now on of changes of what may run.
    pub fn news(&self) -> FeedReader<ApprovalEvent> {
        self.0.feed()
    }

    /// Waits until what lets this run go on is taken back: its grant, or what policy says of it. Says why it must end.
    pub async fn forbidden(
        &self,
        news: &mut FeedReader<ApprovalEvent>,
        plan: &ExecPlan,
        by: &RunsBy,
    ) -> &'static str {
        loop {
            let told = match news.next().await {
                FeedItem::Event(told) => Some(told),
                FeedItem::Lagged => None,
                FeedItem::Closed => std::future::pending().await,
            };
            let narrowed = match told.as_ref().map(|told| &told.event) {
                Some(ApprovalEvent::Narrowed(narrowed)) => Some(narrowed),
                Some(_) => continue,
                None => None,
            };
            if let Some(Narrowed::Grant(grant)) = narrowed {
                if by.is_of_grant(grant) {
                    return "the grant that it ran by was taken back: it was ended";
                }
                continue;
            }
            // Some news were missed: its grant is looked for, too.
            if narrowed.is_none() && !self.has_grant(by).await {
                return "the grant that it ran by is gone: it was ended";
            }
            loop {
                match self.0.goes_on(plan, by).await {
                    Ok(true) => break,
                    Ok(false) => return "policy changed, and forbids it now: it was ended",
                    // Down or busy: it is asked again.
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        }
    }

    /// Is the grant by which something runs still there? What runs by none has one.
    async fn has_grant(&self, by: &RunsBy) -> bool {
        let RunsBy::Rule(rule) = by else {
            return true;
        };
        let Some(grant) = rule.strip_prefix("grant:") else {
            return true;
        };
        let grants = self.0.grants().await;
        grants.is_ok_and(|grants| grants.iter().any(|one| one.id == grant))
    }

    /// Where the question stands.
    pub async fn stand(&self, id: &ApprovalId) -> Result<Stand, ExecRefusal> {
        match self.0.get(id.as_str()).await {
            Ok(record) => Ok(stand(&record)),
            Err(error) => Err(refusal(&error)),
        }
    }

    /// What people said, and what shows it.
    pub async fn shown(&self, id: &ApprovalId) -> Result<Vec<Shown>, ExecRefusal> {
        let record = self.0.get(id.as_str()).await;
        let votes = record.map_err(|error| refusal(&error))?.votes;
        let shown = |vote: Vote| Shown {
            decision: vote.word,
            proof: vote.proof,
        };
        Ok(votes.into_iter().map(shown).collect())
    }

    /// The intent that used the answer.
    pub async fn used_by(&self, id: &ApprovalId) -> Option<Seq> {
        let record = self.0.get(id.as_str()).await.ok()?;
        record.used_by.map(Seq)
    }

    /// What the act rests on, for its record.
    pub async fn ground(
        &self,
        agent: &AgentId,
        id: Option<&ApprovalId>,
    ) -> Result<Ground, ExecRefusal> {
        let ground = self.0.ground(agent, id).await;
        ground.map_err(|error| refusal(&error))
    }

    /// Uses the answer, once.
    pub async fn consume(
        &self,
        id: &ApprovalId,
        plan_hash: Hash32,
        intent: Seq,
    ) -> Result<(), ExecRefusal> {
        let used = self.0.consume(id, plan_hash, intent).await;
        used.map(drop).map_err(|error| refusal(&error))
    }

    /// Withdraws the question. One that is over already, or an approval that is down, is no matter: nothing runs without this run.
    pub async fn withdraw(&self, id: &ApprovalId, why: &str) {
        if let Err(error) = self.0.cancel(id, why).await {
            tracing::warn!(approval = %id, %error, "a question was not withdrawn; it ends by its time");
        }
    }
}

/// `own`: what the plan's node itself says of it.
fn question((plan, own): (&ExecPlan, ExecMode), request: &RunRequest, key: Option<String>) -> Ask {
    Ask {
        own,
        plan: plan.clone(),
        requester: request.principal.clone(),
        connection: request.connection.clone(),
        idempotency_key: key,
        id: None,
        narrowing: Narrowing::default(),
    }
}

/// What a kept question allows.
fn stand(record: &Record) -> Stand {
    let said = record.resolution.as_ref();
    match record.status {
        Status::Pending => Stand::Open,
        Status::Allowed => Stand::Allowed,
        Status::Denied => {
            let by = said.map_or_else(|| "a person".into(), |said| visible(&said.by));
            let note = said.and_then(|said| said.note.as_deref());
            let note = note.map_or_else(String::new, |note| format!(": {}", visible(note)));
            Stand::Over(
                codes::APPROVAL_DENIED,
                format!("{by} refused this command{note}"),
            )
        }
        Status::Expired => Stand::Over(
            codes::APPROVAL_EXPIRED,
            "nobody decided in time, which means no".to_owned(),
        ),
        Status::Cancelled => {
            let why = said.map_or("", |said| said.why.as_str());
            Stand::Over(
                codes::APPROVAL_DENIED,
                format!("the question was withdrawn ({})", visible(why)),
            )
        }
        Status::Used => Stand::Over(
            codes::RUN_UNKNOWN,
            "this approval was used already: the run is not begun again".to_owned(),
        ),
    }
}

fn refusal(error: &ApprovalRefusal) -> ExecRefusal {
    let code = codes::find(error.code()).unwrap_or(codes::INTERNAL);
    ExecRefusal::new(code, error)
}
