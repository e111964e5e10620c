//! What the peer's own clients ask beside the rooms' methods: the one way to every kind of question (`approval.*`), who is
//! present, and `status` with its keys. What this gateway has not (tasks, sessions, channels) is told as none.

use portcullis_core::approval::{Extent, PRESENTED_KIND, Record, Status, snapshot_json};
use portcullis_core::codes;
use portcullis_core::protocol::frame::ErrorBody;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Params;
use super::decisions::{Given, Reach, told};
use super::methods::{About, Answer, Methods, approval};
use crate::approval::{ApprovalRefusal, Resolved};

/// The kinds of question that the wire has; only the first is ever asked here.
const KINDS: [&str; 3] = [PRESENTED_KIND, "plugin", "system-agent"];
/// The most and, unasked, the usual number of questions in one answer of `approval.history`.
const HISTORY_MAX: usize = 100;

impl Methods {
    /// `approval.get`: by its whole id, as with the peer.
    pub(super) async fn approval_get(&self, params: &Params<'_>) -> Answer {
        let p: Id = params.read("approval.get")?;
        let record = self.whole(&p.id).await?;
        Ok(json!({ "approval": snapshot_json(&record) }))
    }

    /// `approval.resolve`: the first answer wins, and a later one is told which it was.
    pub(super) async fn approval_resolve(&self, about: About<'_>, params: &Params<'_>) -> Answer {
        let p: Resolve = params.read("approval.resolve")?;
        let invalid = |why: &str| {
            ErrorBody::of(
                codes::INVALID_PARAMS,
                format!("invalid approval.resolve params: {why}"),
            )
        };
        if !KINDS.contains(&p.kind.as_str()) {
            return Err(invalid("kind is exec, plugin or system-agent"));
        }
        let reach = Reach {
            scope: p.scope,
            expires_at_ms: p.expires_at_ms,
            proof: p.proof,
            similar: None,
        };
        let days = (p.decision.as_str(), p.grant_expires_in_days);
        let reach = reach.for_days("approval.resolve", days, self.clock.now())?;
        let told = told("approval.resolve", &p.decision, reach)?;
        let id = self.whole(&p.id).await?.id;
        if p.kind != PRESENTED_KIND {
            return Err(not_found());
        }
        let by = about.principal;
        let resolved = self
            .approval
            .tell(id.as_str(), told, by, about.connection)
            .await;
        let Resolved { record, applied } = match resolved {
            Ok(resolved) => resolved,
            Err(refusal) if is_over(&refusal) => Resolved {
                record: self.whole(id.as_str()).await?,
                applied: false,
            },
            Err(refusal) => return Err(approval(refusal)),
        };
        Ok(json!({ "applied": applied, "approval": snapshot_json(&record) }))
    }

    /// `approval.history`: what is decided or over, newest first.
    pub(super) async fn approval_history(&self, params: &Params<'_>) -> Answer {
        let p: History = params.read("approval.history")?;
        let invalid = |why: &str| {
            ErrorBody::of(
                codes::INVALID_PARAMS,
                format!("invalid approval.history params: {why}"),
            )
        };
        let limit = p.limit.unwrap_or(HISTORY_MAX);
        if !(1..=HISTORY_MAX).contains(&limit) {
            return Err(invalid("limit is 1 to 100"));
        }
        let kind = p.kind.as_deref().unwrap_or(PRESENTED_KIND);
        if !KINDS.contains(&kind) {
            return Err(invalid("kind is exec, plugin or system-agent"));
        }
        let mut over: Vec<Record> = if kind == PRESENTED_KIND {
            self.approval.history().await.map_err(approval)?
        } else {
            vec![]
        };
        over.retain(|record| record.status != Status::Pending);
        let from = match &p.cursor {
            None => 0,
            Some(cursor) => {
                let at = over.iter().position(|r| r.id.as_str() == cursor);
                at.ok_or_else(|| invalid("cursor: not one of ours, or its question is forgotten"))?
                    + 1
            }
        };
        let items: Vec<&Record> = over.iter().skip(from).take(limit).collect();
        let mut answer = json!({
            "items": items.iter().map(|record| snapshot_json(record)).collect::<Vec<_>>(),
        });
        if let Some(last) = items.last().filter(|_| over.len() > from + limit) {
            answer["nextCursor"] = json!(last.id);
        }
        Ok(answer)
    }

    /// Who is present: this gateway.
    pub(super) fn presence(&self) -> Value {
        let (host, version) = (&self.host, self.version);
        json!([{
            "host": host,
            "version": version,
            "platform": std::env::consts::OS,
            "deviceFamily": "Linux",
            "mode": "gateway",
            "reason": "self",
            "instanceId": &*self.boot_id,
            "text": format!("Gateway: {host} · app {version} · mode gateway · reason self"),
            "ts": self.clock.now(),
        }])
    }

    async fn whole(&self, id: &str) -> Result<Record, ErrorBody> {
        let found = self.approval.get(id).await;
        match found {
            Ok(record) if record.id.as_str() == id => Ok(record),
            Ok(_) => Err(not_found()),
            Err(refusal) => {
                let error = approval(refusal);
                Err(if error.stable_code() == codes::APPROVAL_NOT_FOUND.name {
                    not_found()
                } else {
                    error
                })
            }
        }
    }
}

/// The keys that the peer's clients read in `status`, beside ours: none of these things is here.
pub(super) fn status_keys() -> Value {
    let zeros = |names: &[&str]| -> Value {
        let zero = |name: &&str| ((*name).to_owned(), Value::from(0));
        Value::Object(names.iter().map(zero).collect())
    };
    let states = [
        "queued",
        "running",
        "succeeded",
        "failed",
        "timed_out",
        "cancelled",
        "lost",
    ];
    let mut tasks = zeros(&["total", "active", "terminal", "failures"]);
    tasks["byStatus"] = zeros(&states);
    tasks["byRuntime"] = zeros(&["subagent", "acp", "cli", "cron"]);
    let faults = [
        "stale_queued",
        "stale_running",
        "lost",
        "delivery_failed",
        "missing_cleanup",
        "inconsistent_timestamps",
    ];
    let mut audit = zeros(&["total", "warnings", "errors"]);
    audit["byCode"] = zeros(&faults);
    json!({
        "hostDesktop": { "enabled": false, "state": "disabled" },
        "heartbeat": { "defaultAgentId": "main", "agents": [] },
        "channelSummary": [],
        "queuedSystemEvents": [],
        "degradedSecretOwners": [],
        "degradedPlugins": [],
        "tasks": tasks,
        "taskAudit": audit,
        "sessions": {
            "paths": [],
            "count": 0,
            "defaults": { "model": null, "contextTokens": null },
            "recent": [],
            "byAgent": [],
        },
    })
}

/// The peer's client looks for these words.
fn not_found() -> ErrorBody {
    let mut error = ErrorBody::of(codes::APPROVAL_NOT_FOUND, "approval not found");
    if let Some(details) = error.details.as_mut() {
        details["reason"] = codes::APPROVAL_NOT_FOUND.name.into();
    }
    error
}

/// Answered or over before this answer came.
fn is_over(refusal: &ApprovalRefusal) -> bool {
    [
        codes::APPROVAL_ALREADY_RESOLVED.name,
        codes::APPROVAL_EXPIRED.name,
        // It is there, so it was withdrawn.
        codes::APPROVAL_NOT_FOUND.name,
    ]
    .contains(&refusal.code())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Id {
    id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Resolve {
    id: String,
    kind: String,
    decision: String,
    #[serde(default)]
    grant_expires_in_days: Option<u64>,
    #[serde(default)]
    scope: Option<Extent>,
    #[serde(default)]
    expires_at_ms: Option<u64>,
    #[serde(default)]
    proof: Option<Given>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct History {
    #[serde(default)]
    cursor: Option<String>,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    kind: Option<String>,
}
