//! What people and clients see of a question (wire.md 10 and 15). Every string that somebody else wrote goes through
//! the one sanitiser; nothing is cut.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Grant, Record, Status, Subject, Word};
use crate::display::{command_line, visible};
use crate::plan::{EnvValue, ExecPlan, Executable, Held, HostFile, Operand, Target};

/// One element of `exec.approval.list`, and the event `exec.approval.requested`: the recorded shape, then our fields.
pub fn record_json(record: &Record) -> Value {
    let mut value = json!({
        "id": record.id,
        "request": request_json(record),
        "createdAtMs": record.created,
        "expiresAtMs": record.expires,
        "approvalKind": record.subject.kind(),
        "status": record.status,
        "quorum": record.quorum,
        "votes": votes(record),
    });
    if record.votes.iter().any(|vote| vote.self_opened) {
        value["selfOpened"] = true.into();
    }
    let told = record.notice_id();
    if told != record.id {
        value["noticeId"] = json!(told);
    }
    if let Some(resolution) = &record.resolution {
        value["decision"] = json!(resolution.word);
        value["resolvedBy"] = json!(visible(&resolution.by));
        value["resolvedAtMs"] = json!(resolution.at);
        value["terminalReason"] = json!(visible(&resolution.why));
    }
    value
}

/// Who has said what, and what shows it.
fn votes(record: &Record) -> Value {
    let one = |vote: &super::Vote| {
        let mut proof = json!(vote.proof);
        // By its principal, who may be a user of somebody's.
        if let Some(principal) = proof.get_mut("principal") {
            *principal = json!(visible(&vote.by));
        }
        json!({
            "decision": vote.word,
            "by": visible(&vote.by),
            "deviceId": vote.device(),
            "atMs": vote.at,
            "selfOpened": vote.self_opened,
            "similar": vote.similar,
            "proof": proof,
        })
    };
    record.votes.iter().map(one).collect()
}

/// The `request` of a question: the recorded keys, then ours.
pub fn request_json(record: &Record) -> Value {
    let allowed = allowed_decisions(record);
    let reasons: Vec<Value> = record
        .reasons
        .iter()
        .map(|r| json!({"id": r.id, "text": visible(&r.text)}))
        .collect();
    let warning: Vec<_> = record.reasons.iter().map(|r| visible(&r.text)).collect();
    let mut value = match &record.subject {
        Subject::Exec(plan) => exec(record, plan),
        Subject::Egress {
            agent,
            sandbox,
            host,
        } => json!({
            "command": format!("reach {}", visible(host)),
            "systemRunPlan": null,
            "cwd": null,
            "host": "sandbox",
            "agentId": agent,
            "resolvedPath": null,
            "target": "egress",
            "egress": { "hosts": [visible(host)] },
            "box": sandbox,
        }),
        Subject::Policy { base, old, new } => json!({
            "command": change_line(old, new),
            "systemRunPlan": null,
            "cwd": null,
            "host": null,
            "agentId": null,
            "resolvedPath": null,
            "change": { "baseHash": base, "old": clean(old), "new": clean(new) },
        }),
    };
    let requester = &record.requester;
    let common = json!({
        "nodeId": null,
        "warningText": if warning.is_empty() { Value::Null } else { json!(warning.join(" ")) },
        "scope": null,
        "allowedDecisions": allowed,
        "approvalReviewerDeviceIds": record.narrowing.reviewers,
        "sessionId": null,
        "runId": null,
        "toolCallId": null,
        "turnSourceChannel": null,
        "turnSourceTo": null,
        "turnSourceAccountId": null,
        "turnSourceThreadId": null,
        "planHash": record.plan_hash,
        "subjectHash": record.subject_hash,
        "reasons": reasons,
        "requestedBy": {
            "principal": visible(&requester.name),
            "role": requester.role,
            "connection": visible(&requester.connection),
            "door": visible(&requester.door),
        },
    });
    if let (Value::Object(value), Value::Object(common)) = (&mut value, common) {
        for (key, field) in common {
            value.entry(key).or_insert(field);
        }
    }
    value
}

fn allowed_decisions(record: &Record) -> Vec<Word> {
    let mut all = vec![Word::AllowOnce, Word::AllowAlways, Word::Deny];
    all.retain(|word| match word {
        Word::Deny => true,
        word if record.narrowing.unavailable.contains(word) => false,
        Word::AllowAlways => record.may_always,
        Word::AllowOnce => true,
    });
    all
}

fn exec(record: &Record, plan: &ExecPlan) -> Value {
    let risks: Vec<&str> = record.reasons.iter().map(|r| r.id.as_str()).collect();
    let mut value = plan_json(plan);
    value["commandAnalysis"] = json!({
        "commandCount": 1, "nestedCommandCount": 0, "riskKinds": risks, "warningLines": [],
    });
    value
}

/// What a question shows of its plan: whoever has the plan itself can make it again, and see that he was shown nothing else.
pub fn plan_json(plan: &ExecPlan) -> Value {
    let argv: Vec<_> = plan.argv.iter().map(|a| visible(a)).collect();
    let env: Vec<Value> = plan
        .env
        .iter()
        .map(|(name, value)| match value {
            EnvValue::Plain(text) => json!({"name": visible(name), "value": visible(text)}),
            EnvValue::Secret {
                name: secret,
                version,
            } => {
                json!({"name": visible(name), "secret": visible(secret), "version": version})
            }
        })
        .collect();
    let names: Vec<_> = plan.env.keys().map(|n| visible(n)).collect();
    let host = match &plan.target {
        Target::Sandbox => "sandbox",
        Target::Host => "gateway",
        Target::Node(_) => "node",
    };
    let node = match &plan.target {
        Target::Node(id) => json!(visible(id)),
        _ => Value::Null,
    };
    json!({
        "command": command_line(&plan.argv),
        "commandArgv": argv,
        "systemRunBinding": {
            "argv": argv,
            "cwd": visible(&plan.cwd),
            "agentId": plan.agent,
            "sessionKey": visible(&plan.session),
            "envHash": null,
        },
        "systemRunPlan": null,
        "cwd": visible(&plan.cwd),
        "nodeId": node,
        "host": host,
        "security": "allowlist",
        "ask": "on-miss",
        "agentId": plan.agent,
        "resolvedPath": plan.executable.path().map(visible),
        "sessionKey": visible(&plan.session),
        "argv": argv,
        "executable": executable(&plan.executable),
        "operands": operands(plan),
        "envNames": names,
        "env": env,
        "user": { "uid": plan.uid, "gid": plan.gid, "groups": plan.groups },
        "target": visible(&plan.target.word()),
        "stdin": plan.stdin,
        "tty": plan.tty,
        "limits": plan.limits,
        "egress": plan.egress,
        "profileDigest": plan.profile_digest,
    })
}

/// The words of argv that name files, and how each is kept.
fn operands(plan: &ExecPlan) -> Value {
    let one = |operand: &Operand| {
        let held = &operand.held;
        let mut value = json!({
            "argvIndex": operand.index,
            "path": visible(held.path()),
            "held": held.word(),
        });
        if let Some(sha256) = held.sha256() {
            value["sha256"] = json!(sha256);
        }
        if let Held::Open { why, .. } = held {
            value["why"] = why.text().into();
        }
        value
    };
    plan.operands.iter().map(one).collect()
}

fn executable(executable: &Executable) -> Value {
    let file = |file: &HostFile| json!({"path": visible(&file.path), "sha256": file.sha256});
    match executable {
        Executable::Host(program) => json!({"kind": "host", "file": file(program)}),
        Executable::HostScript {
            script,
            interpreter,
            argument,
        } => json!({
            "kind": "host-script",
            "file": file(script),
            "interpreter": file(interpreter),
            "argument": argument.as_deref().map(visible),
        }),
        Executable::Image { digest, path } => {
            json!({"kind": "image", "digest": visible(digest), "path": visible(path)})
        }
        Executable::Workspace { path } => json!({"kind": "workspace", "path": visible(path)}),
        Executable::Node { claimed_sha256 } => {
            // Whoever the node is: its word is all there is here.
            json!({"kind": "node", "claimedSha256": claimed_sha256, "verified": false})
        }
    }
}

/// What a change of the document changes, leaf by leaf: for lists that show one line.
fn change_line(old: &Value, new: &Value) -> String {
    let mut parts = vec![];
    changes(old, new, &mut String::new(), &mut parts);
    format!("exec.approvals.set {}", parts.join("; "))
}

fn changes(old: &Value, new: &Value, path: &mut String, parts: &mut Vec<String>) {
    if old == new {
        return;
    }
    let here = path.len();
    let mut down = |name: &str, old: Option<&Value>, new: Option<&Value>| {
        path.push_str(name);
        let none = Value::Null;
        changes(old.unwrap_or(&none), new.unwrap_or(&none), path, parts);
        path.truncate(here);
    };
    match (old, new) {
        (Value::Object(was), Value::Object(is)) => {
            let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            for name in names {
                let name_here = if here == 0 {
                    name.clone()
                } else {
                    format!(".{name}")
                };
                down(&name_here, was.get(name), is.get(name));
            }
        }
        (Value::Array(was), Value::Array(is)) => {
            for at in 0..was.len().max(is.len()) {
                down(&format!("[{at}]"), was.get(at), is.get(at));
            }
        }
        _ => {
            let line = format!("{path}: {old} -> {new}");
            parts.push(visible(&line).into_owned());
        }
    }
}

/// A document with every key and text made visible.
fn clean(value: &Value) -> Value {
    match value {
        Value::String(text) => json!(visible(text)),
        Value::Array(items) => items.iter().map(clean).collect(),
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(k, v)| (visible(k).into_owned(), clean(v)))
                .collect(),
        ),
        other => other.clone(),
    }
}

/// The snapshot in the answers of `approval.get`, `approval.resolve` and `approval.history` (wire.md 10 and 15). A change of the
/// document is shown as a command, for a client that knows no such question.
pub fn snapshot_json(record: &Record) -> Value {
    let request = request_json(record);
    let mut value = json!({
        "id": record.id,
        "status": match record.status {
            Status::Used => Status::Allowed.as_str(),
            status => status.as_str(),
        },
        "presentation": {
            "kind": PRESENTED_KIND,
            "commandText": request["command"],
            "commandPreview": null,
            "warningText": request["warningText"],
            "host": request["host"],
            "nodeId": request["nodeId"],
            "agentId": request["agentId"],
            "allowedDecisions": request["allowedDecisions"],
        },
        "urlPath": "/",
        "createdAtMs": record.created,
        "expiresAtMs": record.expires,
        "source": { "agentId": request["agentId"] },
    });
    if let Some(resolution) = &record.resolution {
        value["resolvedAtMs"] = json!(resolution.at);
        // The peer knows no other reason of what ran out.
        value["terminalReason"] = json!(visible(&resolution.why));
        value["reason"] = match record.status {
            Status::Expired => "timeout".into(),
            _ => json!(visible(&resolution.why)),
        };
        if let Some(word) = resolution.word {
            let kind = if resolution.by.starts_with("device:") {
                "device"
            } else {
                "runtime"
            };
            value["decision"] = json!(word);
            value["resolver"] = json!({ "kind": kind, "id": visible(&resolution.by) });
        }
    }
    value
}

/// Every question of ours is one about a command, or shown as one.
pub const PRESENTED_KIND: &str = "exec";

impl Record {
    /// The result of `exec.approval.get`: the recorded shape, then everything of [`record_json`].
    pub fn detail_json(&self) -> Value {
        let mut value = record_json(self);
        let request = &value["request"];
        let more = [
            ("commandText", request["command"].clone()),
            ("commandPreview", Value::Null),
            ("allowedDecisions", request["allowedDecisions"].clone()),
            ("host", request["host"].clone()),
            ("nodeId", request["nodeId"].clone()),
            ("agentId", request["agentId"].clone()),
        ];
        for (key, field) in more {
            value[key] = field;
        }
        value
    }

    /// The event `exec.approval.resolved`.
    pub fn resolved_json(&self) -> Value {
        let resolution = self.resolution.as_ref();
        json!({
            "id": self.id,
            "decision": resolution.and_then(|r| r.word),
            "resolvedBy": resolution.map(|r| visible(&r.by)),
            "ts": resolution.map(|r| r.at),
            "request": request_json(self),
            "status": self.status,
            "reason": resolution.map(|r| visible(&r.why)),
        })
    }

    /// The result of `exec.approval.waitDecision` once it is answered or over.
    pub fn decision_json(&self) -> Value {
        let mut value = self.answer_json();
        if let Some(resolution) = &self.resolution {
            value["terminalReason"] = json!(visible(&resolution.why));
        }
        value
    }

    /// The last result of `exec.approval.request`: no decision where nobody decided.
    pub fn answer_json(&self) -> Value {
        json!({
            "id": self.id,
            "decision": self.resolution.as_ref().and_then(|r| r.word),
            "createdAtMs": self.created,
            "expiresAtMs": self.expires,
        })
    }
}

impl Grant {
    /// One element of `exec.approval.grants.list`. The peer's command line writes its table from keys that may be null
    /// and not absent: without `revokedAtMs` it calls a grant revoked, without a job's name it ends. What has a name
    /// there is an automation; here it is the agent.
    pub fn to_json(&self) -> Value {
        json!({
            "grantId": self.id,
            "agentId": self.agent,
            "target": visible(&self.target),
            "subjectHash": self.subject_hash,
            // Made visible when it was granted.
            "command": self.command,
            "similar": self.similar,
            "cwd": visible(&self.cwd),
            "approvalId": self.approval_id,
            "grantedBy": visible(&self.by),
            "createdAtMs": self.created,
            "expiresAtMs": self.expires,
            "mintedByApprovalId": self.approval_id,
            "cronJobId": null,
            "cronJobName": self.agent,
            "scope": self.scope,
            "sessionKey": self.session.as_deref().map(visible),
            "voters": self.voters,
            "signed": self.signed,
            "useCount": self.uses,
            "lastUsedAtMs": self.last_used,
            "revokedAtMs": null,
            "revokedBy": null,
        })
    }
}
