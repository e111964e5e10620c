//! How runs end.

use std::time::Duration;

use portcullis_core::audit::{Body, Outcome, OutcomeResult, Seq};
use portcullis_core::codes::{self, Code};
use portcullis_core::plan::{EnvValue, ExecPlan, Target, named_session};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::flow::Decided;
use crate::audit::Found;
use crate::exec::messages::{ExecEvent, ExecRefusal, RunRequest, RunUsage};
use crate::supervision::FlagReader;

/// Why a run ends early.
pub enum Interrupt {
    /// Somebody who may wants it.
    Cancelled,
    /// The gateway stops.
    Shutdown,
    /// The caller has been gone for the configured time.
    CallerGone,
    /// The credential ended.
    SessionEnded(String),
    /// What let it run was taken back.
    Forbidden(&'static str),
}

/// What the run's room was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// By who may.
    Cancel,
    /// With the gateway.
    Shutdown,
}

/// Waits for the first of them.
pub async fn interrupted(
    stop: &mut FlagReader<Option<Stop>>,
    session: &mut FlagReader<Option<String>>,
    kept: &FlagReader<bool>,
    events: &mpsc::Sender<ExecEvent>,
    lost_after: Duration,
) -> Interrupt {
    let stopped = async {
        // A flag that is gone says nothing: what it belonged to ends this another way.
        match stop.until(Option::is_some).await.flatten() {
            Some(Stop::Cancel) => Interrupt::Cancelled,
            Some(Stop::Shutdown) => Interrupt::Shutdown,
            None => std::future::pending().await,
        }
    };
    let is_kept_no_more = async || {
        // What keeps it goes with the run's own room.
        let _ = kept.clone().until(|kept| !kept).await;
    };
    let ended = async {
        match session.until(Option::is_some).await.flatten() {
            Some(reason) => {
                is_kept_no_more().await;
                reason
            }
            None => std::future::pending().await,
        }
    };
    let gone = async {
        events.closed().await;
        tokio::time::sleep(lost_after).await;
        is_kept_no_more().await;
    };
    tokio::select! {
        biased;
        reason = ended => Interrupt::SessionEnded(reason),
        why = stopped => why,
        () = gone => Interrupt::CallerGone,
    }
}

/// The end of a run that did not act.
pub struct Over {
    /// `denied`, `cancelled` or `unknown`; `allowed` of what was only asked for.
    pub status: &'static str,
    /// Why.
    pub error: Option<(&'static Code, String)>,
    /// The intent of an earlier run under the same key.
    pub seq: Option<Seq>,
}

impl Over {
    pub const fn denied(code: &'static Code, message: String) -> Self {
        Self {
            status: "denied",
            error: Some((code, message)),
            seq: None,
        }
    }

    /// Nothing ran, unless the refusal says that it may have.
    pub fn refused(refusal: ExecRefusal) -> Self {
        let may_have = refusal.details.get("execution") == Some(&json!("may_have_executed"));
        Self {
            status: if may_have || refusal.code == codes::RUN_UNKNOWN {
                "unknown"
            } else {
                "denied"
            },
            error: Some((refusal.code, refusal.message)),
            seq: None,
        }
    }

    pub const fn cancelled(error: Option<(&'static Code, String)>) -> Self {
        Self {
            status: "cancelled",
            error,
            seq: None,
        }
    }

    pub fn interrupted(why: Interrupt) -> Self {
        match why {
            Interrupt::SessionEnded(reason) => {
                Self::cancelled(Some((codes::SESSION_ENDED, reason)))
            }
            Interrupt::Shutdown => Self::cancelled(Some((
                codes::ROOM_DOWN,
                "the gateway stops; a question to a person stays, and the same request with the same key takes it up again".to_owned(),
            ))),
            Interrupt::Forbidden(why) => {
                Self::cancelled(Some((codes::POLICY_DENIED, why.to_owned())))
            }
            Interrupt::Cancelled | Interrupt::CallerGone => Self::cancelled(None),
        }
    }

    /// The key was used before: what the log says of that is the answer.
    pub fn seen(seq: Seq, outcome: Option<&OutcomeResult>, earlier: Option<&Found>) -> Self {
        let (code, text) = used(seq, outcome, earlier);
        Self {
            status: if code == codes::KEY_USED {
                "denied"
            } else {
                "unknown"
            },
            error: Some((code, text)),
            seq: Some(seq),
        }
    }

    /// For the record.
    pub fn code(&self) -> &'static str {
        self.error
            .as_ref()
            .map_or("CANCELLED", |(code, _)| code.name)
    }
}

/// What became of the run that has this key, as the log has it.
pub fn used(
    seq: Seq,
    outcome: Option<&OutcomeResult>,
    earlier: Option<&Found>,
) -> (&'static Code, String) {
    let detail = |name: &str| earlier?.outcome.as_ref()?.outcome.detail.get(name);
    let (code, said) = match outcome {
        None => (codes::RUN_UNKNOWN, "is under way".to_owned()),
        Some(OutcomeResult::Unknown { .. }) => (
            codes::RUN_UNKNOWN,
            "was under way when what ran it ended".to_owned(),
        ),
        Some(OutcomeResult::Failed { code }) if code == codes::RUN_UNKNOWN.name => {
            (codes::RUN_UNKNOWN, "has an unknown end".to_owned())
        }
        Some(OutcomeResult::Ok) => (
            codes::KEY_USED,
            match (detail("exit_code"), detail("signal")) {
                (Some(code), _) => format!("ended with exit code {code}"),
                (None, Some(signal)) => format!("was ended by signal {signal}"),
                (None, None) => "ended".to_owned(),
            },
        ),
        Some(OutcomeResult::Refused { code }) => {
            (codes::KEY_USED, format!("was refused with {code}"))
        }
        Some(OutcomeResult::Failed { code }) => (codes::KEY_USED, format!("ended with {code}")),
    };
    let run = earlier.and_then(|found| match &found.record.body {
        Body::Intent(entry) => entry.object.clone(),
        _ => None,
    });
    let run = run.unwrap_or_else(|| "a run".to_owned());
    let text = format!(
        "this idempotencyKey was used by {run}, which {said} (audit record {})",
        seq.0
    );
    (code, text)
}

/// The end of a run that acted.
pub struct Carried {
    /// `exited`, `timed-out`, `cancelled`, `denied`, `box-lost` or `unknown`.
    pub status: &'static str,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    /// None: nobody said.
    pub duration_ms: Option<u64>,
    /// Of standard output, of standard error.
    pub dropped: (u64, u64),
    /// Of one that ran, and whose end is known.
    pub usage: Option<RunUsage>,
    /// Where it ran, for the provenance.
    pub place: Value,
    pub error: Option<(&'static Code, String)>,
}

impl Carried {
    /// For the record.
    pub fn outcome(&self) -> Outcome {
        let outcome = match (self.status, &self.error) {
            ("exited", _) => Outcome::ok(),
            ("denied", Some((code, _))) => Outcome::refused(code.name),
            (_, Some((code, _))) => Outcome::failed(code.name),
            ("timed-out", None) => Outcome::failed("TIMED_OUT"),
            (_, None) => Outcome::failed("CANCELLED"),
        };
        let outcome = match (self.exit_code, self.signal) {
            (Some(code), _) => outcome.with("exit_code", code.to_string()),
            (None, Some(signal)) => outcome.with("signal", signal.to_string()),
            (None, None) => outcome,
        };
        match self.usage.map_or(0, |usage| usage.out_of_memory) {
            0 => outcome,
            killed => outcome.with("out_of_memory", killed.to_string()),
        }
    }
}

/// contracts.md section 5.
pub fn provenance(decided: &Decided, intent: Option<Seq>, place: Value) -> Value {
    let mut all = json!({
        "driver": null,
        "box": null,
        "imageDigest": null,
        "profileHash": decided.frozen.plan.profile_digest.to_string(),
        "ruleId": decided.rule,
        "approvalId": decided.approval,
        "auditSeq": intent.map(|seq| seq.0),
    });
    if let (Some(all), Value::Object(place)) = (all.as_object_mut(), place) {
        all.extend(place);
    }
    all
}

/// A key stands for one request: another one under it is a mistake of the caller's.
pub fn same_request(plan: &ExecPlan, request: &RunRequest) -> Result<(), ExecRefusal> {
    let set = |(name, value): (&String, &String)| {
        plan.env.get(name) == Some(&EnvValue::Plain(value.clone()))
    };
    let named = |(name, secret): (&String, &String)| matches!(plan.env.get(name), Some(EnvValue::Secret { name, .. }) if name == secret);
    let same = plan.target == request.target
        && plan.agent == request.agent
        // On a node the name became a path; the hash of the whole plan is compared besides.
        && (matches!(plan.target, Target::Node(_)) || plan.argv == request.argv)
        && (plan.stdin, plan.tty) == (request.stdin, request.tty)
        // Who names none goes on in that of the plan.
        && (request.session_key.as_deref()).is_none_or(|key| plan.session == named_session(key))
        && request.cwd.as_ref().is_none_or(|cwd| *cwd == plan.cwd)
        && request.env.iter().all(set)
        && request.secrets.iter().all(named);
    if same {
        Ok(())
    } else {
        Err(ExecRefusal::new(
            codes::INVALID_PARAMS,
            "this idempotencyKey stands for another command: use a new one",
        ))
    }
}
