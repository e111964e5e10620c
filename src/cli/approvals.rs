//! `portcullis approvals`: what waits for a person, and the decision.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use portcullis_core::approval::{Similar, Word};
use portcullis_core::auth::Scope;
use portcullis_core::codes;
use portcullis_core::protocol::strict;
use serde_json::{Value, json};

use super::args::Approvals;
use super::failure::Failure;
use super::out::{Out, note};
use crate::client::{Client, Decider, Door, Reach};
use crate::show::card::{agent, card, cards, line, subject, target};
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
    match what {
        Approvals::Allow {
            ids,
            always,
            session,
            r#for,
            similar,
            yes,
        } => {
            let lasts = *always || *session || r#for.is_some();
            let word = if lasts {
                Word::AllowAlways
            } else {
                Word::AllowOnce
            };
            let reach = match r#for {
                Some(time) => Reach::For(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
                None if *session => Reach::Session,
                None => Reach::Usual,
            };
            if *similar {
                let [id] = &ids[..] else {
                    let why = "one rule is made of one question: name one";
                    return Err(Failure::of(codes::INVALID_PARAMS, why));
                };
                return allow_similar(door, id, reach, *yes, out).await;
            }
            return decide(door, ids, word, reach, None, out).await;
        }
        Approvals::Deny { ids, reason } => {
            return decide(door, ids, Word::Deny, Reach::Usual, reason.as_deref(), out).await;
        }
        _ => {}
    }
    let mut client = Client::connect(door, &[scope], &[]).await?;
    match what {
        Approvals::List => {
            let pending = client.call("exec.approval.list", json!({})).await?;
            out.both(&pending, || listing(&pending))?;
        }
        Approvals::Show { id } => {
            let approval = find(&mut client, id).await?;
            let pending = client.call("exec.approval.list", json!({})).await?;
            let shared = cards(&pending);
            let shared = shared.iter().find(|card| card.has(field(&approval, "id")));
            let shared = shared.map_or_else(Vec::new, |card| card.ids());
            let mut answer = approval.clone();
            answer["sharedBy"] = json!(shared);
            out.both(&answer, || {
                let mut text = card(&approval);
                let all = cards(&pending);
                if let Some(one) = all.iter().find(|card| card.has(field(&approval, "id"))) {
                    text.push_str(&one.others(field(&approval, "id")));
                }
                text
            })?;
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
        Approvals::Watch | Approvals::Allow { .. } | Approvals::Deny { .. } => {}
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

/// Decides on one card: on those of its questions that are named, and on none that came later. A lasting word is given once:
/// with it the others of the card would run by themselves.
async fn decide(
    door: &Door,
    ids: &[String],
    word: Word,
    reach: Reach,
    reason: Option<&str>,
    out: Out,
) -> Result<u8, Failure> {
    if ids.len() > 1 {
        one_card(door, ids).await?;
    }
    let mut decider = Decider::new(door.clone());
    let (mut all, mut failed) = (vec![], None);
    for (at, id) in ids.iter().enumerate() {
        let (word, reach) = match word {
            Word::AllowAlways if at > 0 => (Word::AllowOnce, Reach::Usual),
            word => (word, reach),
        };
        match decider.decide(id, word, reach, reason, None).await {
            Ok((approval, answer)) => all.push((word, reach, approval, answer)),
            Err(failure) if ids.len() == 1 => return Err(failure),
            // One that was answered or withdrawn meanwhile is no reason against the others.
            Err(failure) => {
                note(&format!("{}: {}", clean(id), failure.lines().trim_end()));
                failed.get_or_insert(failure.exit);
            }
        }
    }
    let said: Vec<Value> = all
        .iter()
        .map(|(word, _, approval, answer)| {
            json!({ "id": field(approval, "id"), "decision": word.as_str(), "answer": answer })
        })
        .collect();
    let document = match &said[..] {
        [one] if ids.len() == 1 => one.clone(),
        several => json!({ "decisions": several }),
    };
    out.both(&document, || {
        let lines = all.iter();
        lines
            .map(|(word, reach, approval, answer)| said_line(*word, *reach, approval, answer))
            .collect()
    })?;
    Ok(failed.unwrap_or(0))
}

/// Shows the narrowest rule that covers more than the very same command, and grants it where that is said.
async fn allow_similar(
    door: &Door,
    id: &str,
    reach: Reach,
    yes: bool,
    out: Out,
) -> Result<u8, Failure> {
    let mut decider = Decider::new(door.clone());
    let (client, approval) = decider.look(id, true).await?;
    let proposal = approval.get("similar").unwrap_or(&Value::Null);
    if proposal.get("available").and_then(Value::as_bool) != Some(true) {
        client.close().await;
        let why = clean(field(proposal, "why"));
        return Err(Failure::of(
            codes::INVALID_PARAMS,
            format!("nothing similar can be allowed: {why}"),
        ));
    }
    // What is signed is what was understood here, and not a hash that the gateway names.
    let rule: Similar = serde_json::from_value(proposal["rule"].clone())
        .map_err(|_| Failure::of(codes::INTERNAL, "the gateway's rule cannot be read"))?;
    note(shown_rule(&rule, proposal).trim_end());
    if !yes && !agreed()? {
        client.close().await;
        return Err(Failure::of(
            codes::INVALID_PARAMS,
            "nothing is granted: say yes, or --yes once you have read the rule",
        ));
    }
    let word = Word::AllowAlways;
    let answer = decider.say(client, &approval, word, reach, None, Some(&rule));
    let answer = answer.await?;
    let id = field(&approval, "id").to_owned();
    let document =
        json!({ "id": id, "decision": word.as_str(), "similar": rule, "answer": answer });
    out.both(&document, || {
        let waits = waits_for_others(&answer);
        let waits = waits.map(|text| format!("; {text}")).unwrap_or_default();
        format!(
            "{}: allowed with all that is similar{waits}: {}\n",
            clean(&id),
            rule.text()
        )
    })?;
    Ok(0)
}

fn shown_rule(rule: &Similar, proposal: &Value) -> String {
    let matched = list(proposal, "matched");
    let looked = number(proposal, "lookedAt").unwrap_or_default();
    let mut text = format!(
        "from now on, until it ends or is revoked, this runs without asking:\n  {}\nin the same folder, with the same program, user, limits and variables\n",
        rule.text()
    );
    let _ = writeln!(
        text,
        "of the last {looked} commands it would have matched {}",
        matched.len()
    );
    for one in matched {
        let at = number(one, "atMs").map_or_else(String::new, utc);
        let _ = writeln!(text, "  {at}  {}", clean(field(one, "command")));
    }
    text
}

/// Asks at the terminal; nobody there is no.
fn agreed() -> Result<bool, Failure> {
    use std::io::IsTerminal as _;
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    note("grant this? [yes/no]");
    let mut said = String::new();
    let read = std::io::stdin().read_line(&mut said);
    read.map_err(|e| Failure::of(codes::INTERNAL, format!("stdin: {e}")))?;
    Ok(said.trim() == "yes")
}

/// Different commands are looked at and decided on one by one.
async fn one_card(door: &Door, ids: &[String]) -> Result<(), Failure> {
    let mut client = Client::connect(door, &[Scope::Approvals], &[]).await?;
    let mut subjects = vec![];
    for id in ids {
        let approval = find(&mut client, id).await?;
        subjects.push(subject(&approval).to_owned());
    }
    client.close().await;
    subjects.dedup();
    if subjects.len() > 1 {
        return Err(Failure::of(
            codes::INVALID_PARAMS,
            "these are different commands: decide on each by itself",
        ));
    }
    Ok(())
}

fn said_line(word: Word, reach: Reach, approval: &Value, answer: &Value) -> String {
    let said = match (word, reach) {
        (Word::Deny, _) => "denied".to_owned(),
        (Word::AllowOnce, _) => "allowed once".to_owned(),
        (Word::AllowAlways, Reach::Usual) => "allowed, now and from now on".to_owned(),
        (Word::AllowAlways, Reach::Session) => "allowed in its session".to_owned(),
        (Word::AllowAlways, Reach::For(ms)) => {
            format!("allowed for {} minutes", ms.div_ceil(60_000))
        }
    };
    let request = approval.get("request").unwrap_or(&Value::Null);
    let waits = waits_for_others(answer);
    let waits = waits.map(|text| format!("; {text}")).unwrap_or_default();
    let id = clean(field(approval, "id"));
    format!("{id}: {said}{waits}: {}\n", line(request))
}

/// Of one word of several: how many have said it, and how many must.
pub(super) fn waits_for_others(answer: &Value) -> Option<String> {
    let (votes, quorum) = (number(answer, "votes")?, number(answer, "quorum")?);
    Some(format!(
        "{votes} of {quorum} have said so, and it waits for another person's word"
    ))
}

fn listing(pending: &Value) -> String {
    let all = cards(pending);
    if all.is_empty() {
        return "nothing waits for a decision\n".to_owned();
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|shared| {
            let a = shared.first;
            let request = a.get("request").unwrap_or(&Value::Null);
            let more = match shared.others.len() {
                0 => String::new(),
                n => format!(" +{n}"),
            };
            vec![
                format!("{}{more}", field(a, "id")),
                agent(request).to_owned(),
                target(request),
                number(a, "expiresAtMs").map_or_else(String::new, left),
                line(request),
            ]
        })
        .collect();
    let mut out = table(&["ID", "AGENT", "TARGET", "LEFT", "COMMAND"], &rows);
    if all.iter().any(|card| !card.others.is_empty()) {
        out.push_str("\n+1: one more asks for the very same; show ID lists each of them\n");
    }
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
/// A time that TOML knows as one is the text that it was written as.
fn times_as_text(value: &mut Value) {
    const TIME: &str = "$__toml_private_datetime";
    match value {
        Value::Object(map) => {
            if let (1, Some(Value::String(text))) = (map.len(), map.get(TIME)) {
                *value = Value::String(text.clone());
                return;
            }
            map.values_mut().for_each(times_as_text);
        }
        Value::Array(all) => all.iter_mut().for_each(times_as_text),
        _ => {}
    }
}

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
        let mut value = toml::from_str(&text).map_err(|e| failed(&e))?;
        times_as_text(&mut value);
        return Ok(value);
    }
    // A key that stands twice would say one thing to who reads it and another here.
    strict::json(text.as_bytes()).map_err(|e| failed(&e))
}
