//! What approval says of a plan: the one place that knows its handle.

use portcullis_core::approval::{Record, Requester, Status};
use portcullis_core::audit::Seq;
use portcullis_core::codes::{self, Code};
use portcullis_core::ids::{ApprovalId, Hash32};
use portcullis_core::plan::ExecPlan;
use portcullis_core::policy::Verdict;

use crate::approval::{ApprovalHandle, Decision};
use crate::exec::messages::{ExecRefusal, RunRequest};

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

impl Gate {
    /// The question that the same principal asked under the same key.
    pub async fn find(&self, request: &RunRequest) -> Result<Option<Record>, ExecRefusal> {
        let found = self
            .0
            .find(&request.principal.name(), &request.idempotency_key)
            .await;
        found.map_err(|error| refusal(&error))
    }

    /// Decides on a new plan, or asks a person.
    pub async fn decide(
        &self,
        plan: &ExecPlan,
        request: &RunRequest,
    ) -> Result<Said, ExecRefusal> {
        let requester = Requester::new(&request.principal, &request.connection);
        let key = Some(request.idempotency_key.clone());
        match self.0.decide(plan.clone(), requester, key).await {
            Ok(Decision::Allowed { rule }) => Ok(Said::Allowed(rule)),
            Ok(Decision::Pending {
                approval_id,
                expires,
            }) => Ok(Said::Asked(approval_id, expires.0)),
            Ok(Decision::Denied { code, message, fix }) => {
                let refusal = ExecRefusal::new(code, message);
                Err(match fix {
                    Some(fix) => refusal.with("fix", fix),
                    None => refusal,
                })
            }
            Err(error) => Err(refusal(&error)),
        }
    }

    /// What policy says now, at the moment of the start. `asked`: a person's word is there.
    pub async fn still(&self, plan: &ExecPlan, asked: bool) -> Result<(), ExecRefusal> {
        match self.0.evaluate(plan.clone()).await {
            Ok(Verdict::Allow { .. }) => Ok(()),
            Ok(Verdict::Ask { .. }) if asked => Ok(()),
            Ok(Verdict::Ask { .. }) => Err(ExecRefusal::new(
                codes::POLICY_DENIED,
                "policy changed meanwhile and asks a person now: ask again",
            )),
            Ok(Verdict::Deny { code, message, fix }) => {
                let refusal = ExecRefusal::new(code, message);
                Err(match fix {
                    Some(fix) => refusal.with("fix", fix),
                    None => refusal,
                })
            }
            Err(error) => Err(refusal(&error)),
        }
    }

    /// Where the question stands.
    pub async fn stand(&self, id: &ApprovalId) -> Result<Stand, ExecRefusal> {
        match self.0.get(id.as_str()).await {
            Ok(record) => Ok(stand(&record)),
            Err(error) => Err(refusal(&error)),
        }
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

/// What a kept question allows.
pub fn stand(record: &Record) -> Stand {
    let why = || {
        record
            .resolution
            .as_ref()
            .map_or_else(String::new, |resolution| resolution.why.clone())
    };
    match record.status {
        Status::Pending => Stand::Open,
        Status::Allowed => Stand::Allowed,
        Status::Denied => Stand::Over(
            codes::APPROVAL_DENIED,
            "a person refused this command".to_owned(),
        ),
        Status::Expired => Stand::Over(
            codes::APPROVAL_EXPIRED,
            "nobody decided in time, which means no".to_owned(),
        ),
        Status::Cancelled => Stand::Over(
            codes::APPROVAL_DENIED,
            format!("the question was withdrawn: {}", why()),
        ),
        Status::Used => Stand::Over(
            codes::RUN_UNKNOWN,
            "this approval was used already: the run is not begun again".to_owned(),
        ),
    }
}

fn refusal(error: &crate::approval::ApprovalRefusal) -> ExecRefusal {
    ExecRefusal::new(error.code(), error)
}
