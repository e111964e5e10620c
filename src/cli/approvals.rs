//! `portcullis approvals`: what waits for a person, and the decision.

use std::io::Read as _;
use std::path::Path;

use portcullis_core::auth::Scope;
use portcullis_core::codes;
use serde_json::{Value, json};

use super::args::Approvals;
use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::show::card::{agent, card, line, target};
use crate::show::text::{clean, left, table, utc};
use crate::show::value::{field, list, number};

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(door: &Door, what: &Approvals, out: Out) -> Result<u8, Failure> {
    let scope = match what {
        Approvals::Policy { .. } => Scope::Admin,
        _ => Scope::Approvals,
    };
    let mut client = Client::connect(door, &[scope], &[]).await?;
    match what {
        Approvals::List => {
            let pending = client.call("exec.approval.list", json!({})).await?;
            out.both(&pending, || listing(&pending))?;
        }
        Approvals::Show { id } => {
            let approval = find(&mut client, id).await?;
            out.both(&approval, || card(&approval))?;
        }
        Approvals::Allow { id, always } => {
            let decision = if *always {
                "allow-always"
            } else {
                "allow-once"
            };
            decide(door, &mut client, id, decision, None, out).await?;
        }
        Approvals::Deny { id, reason } => {
            decide(door, &mut client, id, "deny", reason.as_deref(), out).await?;
        }
        Approvals::Policy { set: None } => {
            let document = client.call("exec.approvals.get", json!({})).await?;
            out.both(&document, || pretty(&document))?;
        }
        Approvals::Policy { set: Some(file) } => {
            let now = client.call("exec.approvals.get", json!({})).await?;
            let params = json!({ "file": read(file)?, "baseHash": field(&now, "hash") });
            // One that frees something is refused with CHANGE_WAITS, which says who answers it and how.
            let document = client.call("exec.approvals.set", params).await?;
            out.both(&document, || pretty(&document))?;
        }
        Approvals::Grants => {
            let grants = client.call("exec.approval.grants.list", json!({})).await?;
            out.both(&grants, || pretty(&grants))?;
        }
        Approvals::Revoke { grant } => {
            let answer = client
                .call("exec.approval.grants.revoke", json!({ "grantId": grant }))
                .await?;
            out.both(&answer, || {
                format!("grant {} is taken back\n", clean(grant))
            })?;
        }
        Approvals::Watch => {}
    }
    client.close().await;
    Ok(0)
}

/// The one approval that is called so: the gateway says which, because what is over counts too. A beginning that
/// only one of the pending has may be that of another which was looked at a moment ago.
///
/// # Errors
/// `APPROVAL_NOT_FOUND`.
async fn find(client: &mut Client, id: &str) -> Result<Value, Failure> {
    client.call("exec.approval.get", json!({ "id": id })).await
}

/// Whether it is a change of the policy: only who may change that answers it.
pub(super) fn is_change(approval: &Value) -> bool {
    field(approval, "approvalKind") == "policy"
}

/// Answers a change of the policy: on a connection of its own, so that who may only answer commands asks for no more.
///
/// # Errors
/// The gateway's refusal, `MISSING_SCOPE` among them.
pub(super) async fn answer_change(door: &Door, params: Value) -> Result<Value, Failure> {
    let scopes = [Scope::Admin, Scope::Approvals];
    let mut client = Client::connect(door, &scopes, &[]).await?;
    let answer = client.call("exec.approval.resolve", params).await;
    client.close().await;
    answer
}

async fn decide(
    door: &Door,
    client: &mut Client,
    id: &str,
    decision: &str,
    reason: Option<&str>,
    out: Out,
) -> Result<(), Failure> {
    let approval = find(client, id).await?;
    let id = field(&approval, "id").to_owned();
    let mut params = json!({ "id": id, "decision": decision });
    if let Some(reason) = reason {
        params["reason"] = reason.into();
    }
    let answer = if is_change(&approval) {
        answer_change(door, params).await?
    } else {
        client.call("exec.approval.resolve", params).await?
    };
    out.both(
        &json!({ "id": id, "decision": decision, "answer": answer }),
        || {
            let word = match decision {
                "deny" => "denied",
                "allow-always" => "allowed, now and from now on",
                _ => "allowed once",
            };
            let request = approval.get("request").unwrap_or(&Value::Null);
            format!("{}: {word}: {}\n", clean(&id), line(request))
        },
    )
}

fn listing(pending: &Value) -> String {
    let all = pending.as_array().map_or(&[][..], Vec::as_slice);
    if all.is_empty() {
        return "nothing waits for a decision\n".to_owned();
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|a| {
            let request = a.get("request").unwrap_or(&Value::Null);
            vec![
                field(a, "id").to_owned(),
                agent(request).to_owned(),
                target(request),
                number(a, "expiresAtMs").map_or_else(String::new, left),
                line(request),
            ]
        })
        .collect();
    let mut out = table(&["ID", "AGENT", "TARGET", "LEFT", "COMMAND"], &rows);
    out.push_str("\nportcullis approvals show ID, then allow ID or deny ID\n");
    out
}

/// JSON for reading, one cleaned line at a time.
pub fn pretty(value: &Value) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    let mut out: String = text.lines().map(|l| clean(l) + "\n").collect();
    if let Some(since) = number(value, "updatedAtMs") {
        out.push_str("changed ");
        out.push_str(&utc(since));
        out.push('\n');
    }
    if list(value, "pending").is_empty() {
        return out;
    }
    out.push_str("part of the change waits for a person: portcullis approvals list\n");
    out
}

/// A document: of JSON, and where it is none, of TOML; `-` is stdin.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(file: &Path) -> Result<Value, Failure> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut f| f.read_to_string(&mut text))
    };
    read.map_err(|e| Failure::of(codes::INVALID_PARAMS, format!("{}: {e}", file.display())))?;
    let failed = |e: &dyn std::fmt::Display| {
        Failure::of(codes::INVALID_PARAMS, format!("{}: {e}", file.display()))
    };
    let is_toml =
        file.extension().is_some_and(|end| end == "toml") || !text.trim_start().starts_with('{');
    if is_toml {
        return toml::from_str(&text).map_err(|e| failed(&e));
    }
    serde_json::from_str(&text).map_err(|e| failed(&e))
}
