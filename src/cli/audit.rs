//! `portcullis audit`: read the record, and check that nobody changed it.

use std::path::Path;

use portcullis_core::auth::Scope;
use portcullis_core::codes;
use serde_json::{Map, Value, json};

use super::args::{Audit, Query};
use super::client::Client;
use super::failure::Failure;
use super::out::{Out, field, list, number};
use super::text::{clean, table, utc};

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(state: &Path, what: &Audit, out: Out) -> Result<u8, Failure> {
    if let Audit::Verify { offline: true } = what {
        return offline(state, out);
    }
    let mut client = Client::connect(state, &[Scope::Admin], &[]).await?;
    let answer = match what {
        Audit::Tail { n } => client.call("audit.tail", json!({ "limit": n })).await?,
        Audit::Query(query) => client.call("audit.query", params(query)).await?,
        Audit::Verify { .. } => client.call("audit.verify", json!({})).await?,
    };
    client.close().await;
    if let Audit::Verify { .. } = what {
        return verdict(&answer, out);
    }
    out.both(&answer, || listing(&answer))?;
    Ok(0)
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

/// A field that may stand in the record or in its entry.
fn part<'a>(record: &'a Value, key: &str) -> &'a str {
    match field(record, key) {
        "" => record.get("entry").map_or("", |entry| field(entry, key)),
        text => text,
    }
}

fn outcome(record: &Value) -> String {
    match record.get("outcome") {
        Some(Value::String(word)) => word.clone(),
        Some(Value::Object(map)) => map.keys().next().cloned().unwrap_or_default(),
        _ => part(record, "decision").to_owned(),
    }
}

fn listing(answer: &Value) -> String {
    let rows: Vec<_> = list(answer, "records")
        .iter()
        .map(|r| {
            vec![
                number(r, "seq").unwrap_or_default().to_string(),
                number(r, "atMs")
                    .or_else(|| number(r, "at"))
                    .map_or_else(String::new, utc),
                field(r, "kind").to_owned(),
                part(r, "action").to_owned(),
                part(r, "principal").to_owned(),
                part(r, "object").to_owned(),
                outcome(r),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no record fits\n".to_owned();
    }
    table(
        &["SEQ", "TIME", "KIND", "ACTION", "WHO", "ON", "OUTCOME"],
        &rows,
    )
}

fn verdict(answer: &Value, out: Out) -> Result<u8, Failure> {
    if answer.get("ok").and_then(Value::as_bool) == Some(true) {
        out.both(answer, || {
            let head = answer.get("head").unwrap_or(&Value::Null);
            format!(
                "{} records, all intact; head {} {}\n",
                number(answer, "records").unwrap_or_default(),
                number(head, "seq").unwrap_or_default(),
                clean(field(head, "hash")),
            )
        })?;
        return Ok(0);
    }
    let bad = answer.get("firstBad").map_or_else(
        || "a record".to_owned(),
        |bad| match bad {
            Value::Object(_) => format!(
                "record {}: {}",
                number(bad, "seq").unwrap_or_default(),
                field(bad, "why"),
            ),
            other => format!("record {other}"),
        },
    );
    Err(Failure::of(
        codes::AUDIT_ALTERED,
        format!("the audit log was altered, first at {bad}"),
    ))
}

fn offline(_state: &Path, _out: Out) -> Result<u8, Failure> {
    Err(Failure::of(codes::INTERNAL, "pending the audit room"))
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
}
