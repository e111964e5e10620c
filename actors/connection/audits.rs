//! The audit log's methods. Who reads the log is on record: when the log is opened for him, and when he is done.

use portcullis_core::audit::note::parse_first_key;
use portcullis_core::audit::verify::Outside;
use portcullis_core::audit::{
    Body, Entry, Outcome, OutcomeFilter, Query, Record, Seq, SignedCheckpoint,
};
use portcullis_core::auth::{Principal, Scope};
use portcullis_core::codes;
use portcullis_core::ids::Hash32;
use portcullis_core::plan::ExecPlan;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::protocol::method::unknown;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

use super::answer::Params;
use super::methods::{About, Answer, Methods, Nothing, internal, refused};
use crate::act::entry_of;
use crate::audit::AuditError;
use crate::exec::PLAN_PARTS;

/// What reading the log is called in the log.
const READ: &str = "audit.read";
/// The most records of one answer.
const MOST: usize = 1_000;
/// Records that memory holds: a short tail is found among them, though some are of reading itself.
const NEAR: usize = 256;

/// Answers one of them.
pub(super) async fn call(
    methods: &Methods,
    about: About<'_>,
    method: &str,
    params: &Params<'_>,
) -> Answer {
    match method {
        "audit.checkpoint" => {
            params.read::<Nothing>(method)?;
            let signed = methods.audit.sign().await;
            value(&signed.map_err(|e| refused(e.code(), &e))?.told())
        }
        "audit.consistency" => {
            let p: Sizes = params.read(method)?;
            let proof = methods.audit.consistency(p.old, p.new).await;
            value(&proof.map_err(|e| refused(e.code(), &e))?)
        }
        "audit.tail" => {
            let p: Tail = params.read(method)?;
            let opened = match (about.connection, p.again) {
                // The same page of ours, drawn anew.
                ("page", true) => None,
                _ => Some(open(methods, about.principal, method, None).await?),
            };
            let found = tail(methods, p.limit.unwrap_or(20).min(MOST)).await;
            let found = close(methods, opened, found, Vec::len).await?;
            let head = methods.audit.head().await;
            let head = head.map_err(|e| refused(e.code(), &e))?;
            let records: Vec<&Record> = found.iter().map(AsRef::as_ref).collect();
            Ok(json!({ "records": records, "head": head }))
        }
        "audit.query" => {
            let query = params.read::<AuditQuery>(method)?.into_query();
            let what = serde_json::to_string(&query).ok();
            let opened = open(methods, about.principal, method, what).await?;
            let found = methods.audit.query(query).await;
            let found = close(methods, Some(opened), found, Vec::len).await?;
            Ok(json!({ "records": found }))
        }
        "audit.export" => {
            let p: Page = params.read(method)?;
            let what = Some(format!("from {}", p.from));
            let opened = open(methods, about.principal, method, what).await?;
            let limit = p.limit.unwrap_or(MOST).clamp(1, MOST);
            let found = export(methods, Seq(p.from), limit).await;
            close(methods, Some(opened), found, |(_, count)| *count)
                .await
                .map(|(page, _)| page)
        }
        "audit.show" => {
            let p: One = params.read(method)?;
            let what = Some(p.seq.to_string());
            let opened = open(methods, about.principal, method, what).await?;
            let found = show(methods, about.principal, Seq(p.seq)).await;
            close(methods, Some(opened), found, |_| 1).await
        }
        "audit.prove" => {
            let p: One = params.read(method)?;
            let what = Some(p.seq.to_string());
            let opened = open(methods, about.principal, method, what).await?;
            let found = methods.audit.prove(Seq(p.seq)).await;
            value(&close(methods, Some(opened), found, |_| 1).await?)
        }
        "audit.verify" => {
            let outside = params.read::<Against>(method)?.outside()?;
            let opened = open(methods, about.principal, method, None).await?;
            let found = methods.audit.verify_against(outside).await;
            let count = |report: &crate::audit::VerifyReport| {
                usize::try_from(report.records).unwrap_or(usize::MAX)
            };
            value(&close(methods, Some(opened), found, count).await?)
        }
        _ => Err(unknown(method)),
    }
}

fn value(answer: &impl Serialize) -> Answer {
    serde_json::to_value(answer).map_err(|e| internal(&e))
}

/// The log is opened for somebody: without a record it is not.
async fn open(
    methods: &Methods,
    by: &Principal,
    method: &str,
    what: Option<String>,
) -> Result<Seq, ErrorBody> {
    let mut entry = Entry {
        action: READ.to_owned(),
        object: Some(method.to_owned()),
        ..entry_of(by)
    };
    if let Some(what) = what {
        entry = entry.with("what", what);
    }
    let opened = methods.audit.intent(entry).await;
    opened.map_err(|e| refused(e.code(), &e))
}

/// He is done. That this cannot be recorded takes nothing back: the log says at its next start that it does not know.
async fn close<T>(
    methods: &Methods,
    opened: Option<Seq>,
    found: Result<T, AuditError>,
    count: impl FnOnce(&T) -> usize,
) -> Result<T, ErrorBody> {
    let outcome = match &found {
        Ok(found) => Outcome::ok().with("records", count(found).to_string()),
        Err(error) => Outcome::failed(error.code()),
    };
    if let Some(opened) = opened
        && let Err(error) = methods.audit.outcome(opened, outcome).await
    {
        tracing::error!(target: "portcullis", %error, "the end of a reading could not be recorded");
    }
    found.map_err(|e| refused(e.code(), &e))
}

/// The last records but those of reading: who looks at the log does not see himself looking.
async fn tail(methods: &Methods, n: usize) -> Result<Vec<Arc<Record>>, AuditError> {
    for window in [NEAR.max(n), MOST] {
        let records = methods.audit.tail(window).await?;
        let whole = records.len() < window;
        let reads: BTreeSet<Seq> = records
            .iter()
            .filter(|record| matches!(&record.body, Body::Intent(entry) if entry.action == READ))
            .map(|record| record.seq)
            .collect();
        let is_read = |record: &Record| match &record.body {
            Body::Outcome { intent, .. } => reads.contains(intent),
            _ => reads.contains(&record.seq),
        };
        let mut found: Vec<_> = records
            .into_iter()
            .filter(|record| !is_read(record))
            .collect();
        if found.len() >= n || whole || window == MOST {
            return Ok(found.split_off(found.len().saturating_sub(n)));
        }
    }
    Ok(Vec::new())
}

/// The records from one on, and a checkpoint that covers them.
async fn export(methods: &Methods, from: Seq, limit: usize) -> Result<(Value, usize), AuditError> {
    let signed = methods.audit.sign().await?.told();
    let mut records = methods.audit.records(from, limit).await?;
    records.retain(|record| record.seq.0 <= signed.size);
    let count = records.len();
    let next = records
        .last()
        .map(|last| last.seq.0 + 1)
        .filter(|next| *next <= signed.size);
    let page = json!({ "records": records, "checkpoint": signed, "next": next });
    Ok((page, count))
}

/// A record, its outcome, and the plan that a person was asked about, for who may see such plans.
async fn show(methods: &Methods, by: &Principal, seq: Seq) -> Result<Value, AuditError> {
    let record = methods.audit.records(seq, 1).await?.into_iter().next();
    let Some(record) = record.filter(|record| record.seq == seq) else {
        let size = methods.audit.head().await?.seq.0;
        return Err(AuditError::NoRecord { seq, size });
    };
    let query = Query {
        since_seq: Some(seq),
        until_seq: Some(seq),
        ..Query::default()
    };
    let found = methods.audit.query(query).await?.into_iter().next();
    let outcome = found.and_then(|found| found.outcome);
    let asked = match &record.body {
        Body::Intent(entry) | Body::Event(entry) => entry.approval_id.as_deref(),
        _ => None,
    };
    let plan = match asked {
        None => Value::Null,
        Some(_) if !by.scopes.allows(Scope::Approvals) => {
            json!({ "withheld": format!("the plan needs the scope {}", Scope::Approvals) })
        }
        Some(id) => match methods.approval.get(id).await {
            Ok(asked) => asked.detail_json(),
            Err(refusal) => json!({ "withheld": refusal.to_string() }),
        },
    };
    let mut answer = json!({ "record": record, "outcome": outcome, "approval": plan });
    if let Body::Intent(entry) = &record.body
        && !entry.sealed.is_empty()
    {
        answer["plan"] = if by.scopes.allows(Scope::Approvals) {
            ran(methods, entry).await?
        } else {
            json!({ "withheld": format!("the plan needs the scope {}", Scope::Approvals) })
        };
        // It stands there opened, or is not for him.
        if let Some(record) = answer["record"].as_object_mut() {
            record.remove("sealed");
        }
    }
    Ok(answer)
}

/// The plans of the commands that ran last, newest last, with when; without those that retention took a part of.
pub(super) async fn last_plans(
    methods: &Methods,
    limit: usize,
) -> Result<Vec<(u64, ExecPlan)>, AuditError> {
    let ran = Query {
        action: Some("exec.run".to_owned()),
        limit,
        ..Query::default()
    };
    let mut plans = Vec::new();
    for found in methods.audit.query(ran).await? {
        if let Body::Intent(entry) = &found.record.body
            && let Some(plan) = opened(methods, entry).await?
        {
            plans.push((found.record.stamp.wall_ms, plan));
        }
    }
    Ok(plans)
}

/// The plan that ran: what is sealed in its record, behind what of it did not fit there.
async fn ran(methods: &Methods, entry: &Entry) -> Result<Value, AuditError> {
    let plan = opened(methods, entry).await?;
    let shown = plan.and_then(|plan| serde_json::to_value(plan).ok());
    Ok(shown.unwrap_or_else(|| {
        json!({ "withheld": "what is sealed with this record is not the plan with its hash: it was recorded under another identity key, or retention took a part" })
    }))
}

async fn opened(methods: &Methods, entry: &Entry) -> Result<Option<ExecPlan>, AuditError> {
    let parts = entry.detail.get(PLAN_PARTS);
    let parts: Vec<String> = parts
        .and_then(|parts| serde_json::from_str(parts).ok())
        .unwrap_or_default();
    let mut sealed = Vec::new();
    for seq in parts.iter().filter_map(|seq| seq.parse().ok()) {
        for record in methods.audit.records(Seq(seq), 1).await? {
            if let Body::Event(part) = &record.body {
                sealed.extend_from_slice(part.sealed.bytes());
            }
        }
    }
    sealed.extend_from_slice(entry.sealed.bytes());
    let hash = entry.plan_hash.map(|hash| Hash32(hash.0));
    Ok(hash.and_then(|hash| methods.plans.open(&hash, &sealed)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tail {
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    again: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    from: u64,
    #[serde(default)]
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    seq: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    old: u64,
    #[serde(default)]
    new: u64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Against {
    key: Option<String>,
    against: Option<String>,
}

impl Against {
    fn outside(self) -> Result<Outside, ErrorBody> {
        let bad = |why: String| {
            let text = format!("invalid audit.verify params: {why}");
            ErrorBody::of(codes::INVALID_PARAMS, text)
        };
        let first_key = match &self.key {
            Some(text) => Some(
                parse_first_key(text)
                    .ok_or_else(|| bad("key is no first public key of a log".to_owned()))?,
            ),
            None => None,
        };
        let checkpoint = match &self.against {
            Some(text) => Some(
                SignedCheckpoint::parse(text)
                    .map_err(|error| bad(format!("against is {error}")))?,
            ),
            None => None,
        };
        Ok(Outside {
            first_key,
            checkpoint,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[derive(Default)]
struct AuditQuery {
    action: Option<String>,
    principal: Option<String>,
    object: Option<String>,
    outcome: Option<OutcomeFilter>,
    since_seq: Option<u64>,
    until_seq: Option<u64>,
    since_ms: Option<u64>,
    until_ms: Option<u64>,
    limit: Option<usize>,
}

impl AuditQuery {
    fn into_query(self) -> Query {
        Query {
            action: self.action,
            principal: self.principal,
            object: self.object,
            outcome: self.outcome,
            since_seq: self.since_seq.map(Seq),
            until_seq: self.until_seq.map(Seq),
            since_ms: self.since_ms,
            until_ms: self.until_ms,
            limit: self.limit.unwrap_or(0),
        }
    }
}
