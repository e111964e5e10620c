//! `portcullis audit`: read the record, and check that nobody changed it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use portcullis_actors::audit::verify_dir_against;
use portcullis_actors::plain;
use portcullis_core::audit::export::Format;
use portcullis_core::audit::note::{parse_first_key, proof_text};
use portcullis_core::audit::tree::{check_consistency, check_inclusion};
use portcullis_core::audit::verify::Outside;
use portcullis_core::audit::{Hash32, Record, SignedCheckpoint};
use portcullis_core::auth::Scope;
use portcullis_core::codes;
use serde_json::{Map, Value, json};

use super::args::{Audit, Query, Verify};
use super::failure::Failure;
use super::out::{self, Out};
use crate::client::{Client, Door, seen};
use crate::files;
use crate::show::record::{Shown, decision_proof};
use crate::show::text::{clean, cleaned_table, document};
use crate::show::value::{field, list, number};

/// Larger than any checkpoint.
const MAX_NOTE: u64 = 16 * 1024;

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(
    door: impl FnOnce() -> Result<Door, Failure>,
    state: impl FnOnce() -> Result<PathBuf, Failure>,
    what: &Audit,
    out: Out,
) -> Result<u8, Failure> {
    if let Audit::Verify(verify) = what
        && verify.offline
    {
        return offline(&state()?, verify, out);
    }
    let door = door()?;
    let scope = match what {
        Audit::Head | Audit::Consistency { .. } => Scope::Read,
        _ => Scope::Auditor,
    };
    // Whoever may read the log may see its checkpoints.
    let mut scopes = vec![scope, Scope::Read];
    // Here it is given to who may have it. Elsewhere a device that is asked for more than it has waits for a person.
    if let Audit::Show { plan, .. } = what
        && (*plan || matches!(door, Door::Socket(_)))
    {
        scopes.push(Scope::Approvals);
    }
    let mut client = Client::connect(&door, &scopes, &[]).await?;
    let done = ask(&mut client, &door, what, out).await;
    client.close().await;
    done
}

async fn ask(client: &mut Client, door: &Door, what: &Audit, out: Out) -> Result<u8, Failure> {
    match what {
        Audit::Tail { n } => {
            let answer = client.call("audit.tail", json!({ "limit": n })).await?;
            out.both(&answer, || listing(&answer))?;
        }
        Audit::Query(query) => {
            let answer = client.call("audit.query", params(query)).await?;
            out.both(&answer, || listing(&answer))?;
        }
        Audit::Show { seq, .. } => {
            let mut answer = client.call("audit.show", json!({ "seq": seq })).await?;
            let checked = decision_proof(answer.get("record").unwrap_or(&answer));
            let Some(checked) = checked else {
                return shown(&answer, out);
            };
            let said = match &checked {
                Ok(by) => json!({ "holds": true, "by": by }),
                Err(why) => json!({ "holds": false, "why": why }),
            };
            answer["proof"] = said;
            shown(&answer, out)?;
            return checked.map(|_| 0).map_err(|why| {
                Failure::of(
                    codes::APPROVAL_PROOF_INVALID,
                    format!("the proof in record {seq} does not hold: {why}"),
                )
            });
        }
        Audit::Verify(verify) => {
            seen::compare(client, door).await?;
            let mut params = Map::new();
            if let Some(key) = &verify.key {
                params.insert("key".into(), key.as_str().into());
            }
            let against = match &verify.against {
                Some(file) => Some(read_note(file)?),
                None => seen::kept(door),
            };
            if let Some(note) = against {
                params.insert("against".into(), note.to_text().into());
            }
            let answer = client.call("audit.verify", params.into()).await?;
            return verdict(&answer, out);
        }
        Audit::Head => {
            seen::compare(client, door).await?;
            let answer = client.call("audit.checkpoint", json!({})).await?;
            out.both(&answer, || {
                format!(
                    "{}\nfirst key {}\n",
                    lines(field(&answer, "note")),
                    clean(field(&answer, "firstKey"))
                )
            })?;
        }
        Audit::Prove { seq, out: file } => {
            let answer = client.call("audit.prove", json!({ "seq": seq })).await?;
            return prove(&answer, file.as_deref(), out);
        }
        Audit::Consistency { old, new } => {
            let params = json!({ "old": old, "new": new });
            let answer = client.call("audit.consistency", params).await?;
            return consistency(&answer, out);
        }
        Audit::Export { format, from } => {
            let format = Format::parse(format).unwrap_or(Format::Jsonl);
            let mut next = Some(*from);
            while let Some(from) = next {
                let page = client.call("audit.export", json!({ "from": from })).await?;
                let size = number(&page["checkpoint"], "size").unwrap_or_default();
                let mut text = String::new();
                for record in list(&page, "records") {
                    let record: Record = serde_json::from_value(record.clone())
                        .map_err(|_| not_ours("a record that cannot be read"))?;
                    text.push_str(&format.line(&record, size, env!("CARGO_PKG_VERSION")));
                    text.push('\n');
                }
                out::write(&text)?;
                next = number(&page, "next").filter(|next| *next > from);
            }
        }
    }
    Ok(0)
}

fn shown(answer: &Value, out: Out) -> Result<u8, Failure> {
    out.both(answer, || format!("{}\n", clean_document(answer)))?;
    Ok(0)
}

fn not_ours(what: &str) -> Failure {
    Failure::of(codes::INTERNAL, format!("the gateway sent {what}"))
}

/// Shown as it is but for what steers a terminal.
fn clean_document(value: &Value) -> String {
    lines(&document(value))
}

fn lines(text: &str) -> String {
    let cleaned: Vec<String> = text.lines().map(clean).collect();
    cleaned.join("\n")
}

fn params(query: &Query) -> Value {
    let mut params = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            params.insert(key.to_owned(), value);
        }
    };
    put("action", query.action.clone().map(Into::into));
    put("principal", query.principal.clone().map(Into::into));
    put("object", query.object.clone().map(Into::into));
    put("outcome", query.outcome.clone().map(Into::into));
    put("sinceSeq", query.since_seq.map(Into::into));
    put("untilSeq", query.until_seq.map(Into::into));
    put("sinceMs", query.since.map(Into::into));
    put("untilMs", query.until.map(Into::into));
    put("limit", Some(query.limit.into()));
    params.into()
}

fn listing(answer: &Value) -> String {
    let rows: Vec<_> = list(answer, "records")
        .iter()
        .map(Shown::of)
        .map(|r| vec![r.seq, r.at, r.kind, r.action, r.who, r.on, r.outcome])
        .collect();
    if rows.is_empty() {
        return "no record fits\n".to_owned();
    }
    cleaned_table(
        &["SEQ", "TIME", "KIND", "ACTION", "WHO", "ON", "OUTCOME"],
        &rows,
    )
}

fn hash(value: &Value, key: &str) -> Result<Hash32, Failure> {
    let hash = field(value, key).parse();
    hash.map_err(|_| not_ours("a proof without its hashes"))
}

fn path_of(answer: &Value) -> Result<Vec<Hash32>, Failure> {
    let path = answer.get("path").cloned().unwrap_or_default();
    serde_json::from_value(path).map_err(|_| not_ours("a proof without its hashes"))
}

fn note_of(answer: &Value) -> Result<SignedCheckpoint, Failure> {
    SignedCheckpoint::parse(field(&answer["checkpoint"], "note"))
        .map_err(|error| not_ours(&error.to_string()))
}

/// A proof is checked here before it is handed on.
fn prove(answer: &Value, file: Option<&Path>, out: Out) -> Result<u8, Failure> {
    let (seq, leaf, path, note) = (
        number(answer, "seq").unwrap_or_default(),
        hash(answer, "leafHash")?,
        path_of(answer)?,
        note_of(answer)?,
    );
    let index = seq.wrapping_sub(1);
    let (size, root) = (note.checkpoint.size, note.checkpoint.root);
    if !check_inclusion(&leaf, index, size, &path, &root) {
        return Err(Failure::of(
            codes::AUDIT_ALTERED,
            format!("the proof of record {seq} does not hold"),
        ));
    }
    let text = proof_text(index, &path, &note);
    if let Some(file) = file {
        files::replace(file, text.as_bytes())
            .map_err(|e| Failure::io(codes::OUTPUT_UNWRITABLE, file.display(), &e))?;
    }
    let mut answer = answer.clone();
    answer["proof"] = text.as_str().into();
    out.both(&answer, || match file {
        Some(_) => format!("record {seq} is in the log of {size} records; leaf hash {leaf}\n"),
        None => lines(&text) + "\n",
    })?;
    Ok(0)
}

fn consistency(answer: &Value, out: Out) -> Result<u8, Failure> {
    let (old, new) = (
        number(answer, "old").unwrap_or_default(),
        number(answer, "new").unwrap_or_default(),
    );
    let (before, after) = (hash(answer, "oldRoot")?, hash(answer, "newRoot")?);
    if !check_consistency(old, &before, new, &after, &path_of(answer)?) {
        return Err(Failure::of(
            codes::AUDIT_ALTERED,
            format!("the log of {new} records does not go on from that of {old}"),
        ));
    }
    out.both(answer, || {
        format!(
            "the log of {new} records goes on from that of {old}\n{old} {before}\n{new} {after}\n"
        )
    })?;
    Ok(0)
}

fn verdict(answer: &Value, out: Out) -> Result<u8, Failure> {
    let flag = |key: &str| answer.get(key).and_then(Value::as_bool);
    if flag("ok").or(flag("intact")) == Some(true) {
        out.both(answer, || {
            let head = answer.get("head").unwrap_or(&Value::Null);
            let mut text = format!(
                "{} records, all intact; head {} {}\n",
                number(answer, "records").unwrap_or_default(),
                number(head, "seq").unwrap_or_default(),
                clean(field(head, "hash")),
            );
            if let Some(count) = number(answer, "checkpoints") {
                let epochs = number(answer, "epochs").unwrap_or_default();
                let key = clean(field(answer, "first_key"));
                let line = format!(
                    "{count} checkpoints by the keys of {epochs} epochs; first key {key}\n"
                );
                text.push_str(&line);
            }
            if let Some(torn) = answer.get("torn").filter(|t| t.is_object()) {
                text.push_str(
                    "The end is torn, as a crash leaves it; the next start cuts it off: ",
                );
                text.push_str(&fault(torn));
                text.push('\n');
            }
            if let Some(count) = number(answer, "unsigned").filter(|count| *count > 0) {
                let line = format!(
                    "under no checkpoint yet: the last {count}, which whoever can write the files can have made\n"
                );
                text.push_str(&line);
            }
            if let Some(epoch) = number(answer, "cut_checkpoints") {
                let line = format!(
                    "the checkpoints of epoch {epoch} end in parts that never arrived: a power cut leaves that, and so does whoever wipes them\n"
                );
                text.push_str(&line);
            }
            let notice = clean(field(answer, "notice"));
            if !notice.is_empty() {
                text.push_str(&notice);
                text.push('\n');
            }
            text
        })?;
        return Ok(0);
    }
    let bad = ["firstBad", "first_break"]
        .into_iter()
        .find_map(|key| answer.get(key).filter(|v| !v.is_null()))
        .map_or_else(|| "an unknown place".to_owned(), fault);
    Err(Failure::of(
        codes::AUDIT_ALTERED,
        format!("the audit log was altered, first at {bad}"),
    ))
}

fn fault(fault: &Value) -> String {
    match fault {
        Value::Object(_) => format!(
            "record {}: {}",
            number(fault, "seq").unwrap_or_default(),
            clean(field(fault, "why")),
        ),
        other => format!("record {other}"),
    }
}

/// A checkpoint that somebody kept.
fn read_note(file: &Path) -> Result<SignedCheckpoint, Failure> {
    let wrong = |why: &str| {
        Failure::of(
            codes::INVALID_PARAMS,
            format!("--against {}: {why}", file.display()),
        )
        .hint("`portcullis audit head` prints a checkpoint")
    };
    let unread = |error: std::io::Error| wrong(&error.to_string());
    let opened = plain::open_linked(file).map_err(unread)?;
    let mut text = String::new();
    let read = opened.take(MAX_NOTE + 1).read_to_string(&mut text);
    if read.map_err(unread)? as u64 > MAX_NOTE {
        return Err(wrong("it is too long"));
    }
    SignedCheckpoint::parse(without_key(&text)).map_err(|e| wrong(&e.to_string()))
}

/// Without the line that `portcullis audit head` writes behind a note: the first public key.
fn without_key(text: &str) -> &str {
    let end = text.find("\nfirst key ").map_or(text.len(), |at| at + 1);
    text.get(..end).unwrap_or(text)
}

/// Reads the files themselves: no gateway is asked, none is needed.
fn offline(state: &Path, verify: &Verify, out: Out) -> Result<u8, Failure> {
    let first_key = match &verify.key {
        None => None,
        Some(text) => Some(parse_first_key(text).ok_or_else(|| {
            Failure::of(codes::INVALID_PARAMS, "--key: no first public key of a log")
                .hint("the gateway tells it at its first start; `portcullis audit head` shows it")
        })?),
    };
    let checkpoint = match &verify.against {
        Some(file) => Some(read_note(file)?),
        None => seen::kept(&Door::Socket(state.join("run/control.sock"))),
    };
    let dir = state.join("audit");
    let outside = Outside {
        first_key,
        checkpoint,
    };
    let report = verify_dir_against(&dir, outside).map_err(|error| {
        let failure = match codes::find(error.code()) {
            Some(code) => Failure::of(code, error.to_string()),
            None => Failure::of(codes::INVALID_PARAMS, error.to_string()),
        };
        failure.hint("`--state DIR` names the state directory; its folder audit/ holds the log")
    })?;
    let answer = serde_json::to_value(&report)
        .map_err(|e| Failure::of(codes::INTERNAL, format!("cannot show the report: {e}")))?;
    verdict(&answer, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_log_exits_with_10() {
        let failure = verdict(
            &json!({"ok": false, "firstBad": {"seq": 7, "why": "hash"}}),
            Out { json: false },
        );
        let failure = failure.unwrap_err();
        assert_eq!((failure.exit, failure.code.as_str()), (10, "AUDIT_ALTERED"));
        assert!(failure.message.contains("record 7: hash"));
    }

    #[test]
    fn a_proof_that_does_not_hold_is_not_handed_on() {
        let zero = "0".repeat(64);
        let note = format!(
            "log\n2\n{}\n\n\u{2014} log AAAAAAAA\n",
            "A".repeat(43) + "="
        );
        let answer = json!({
            "seq": 1, "leafHash": zero, "path": [zero], "checkpoint": { "note": note },
        });
        let failure = prove(&answer, None, Out { json: true }).unwrap_err();
        assert_eq!(failure.exit, 10);
        let answer = json!({
            "old": 1, "new": 2, "oldRoot": zero, "newRoot": zero, "path": [zero],
        });
        let failure = consistency(&answer, Out { json: true }).unwrap_err();
        assert_eq!(failure.exit, 10);
    }
}
