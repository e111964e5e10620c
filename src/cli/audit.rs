//! `portcullis audit`: read the record, and check that nobody changed it.

use std::path::{Path, PathBuf};

use portcullis_actors::audit::verify_dir;
use portcullis_core::auth::Scope;
use portcullis_core::codes;
use serde_json::{Map, Value, json};

use super::args::{Audit, Query};
use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::show::record::Shown;
use crate::show::text::{clean, cleaned_table};
use crate::show::value::{field, list, number};

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
    if let Audit::Verify { offline: true } = what {
        return offline(&state()?, out);
    }
    let mut client = Client::connect(&door()?, &[Scope::Admin], &[]).await?;
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
            if let Some(torn) = answer.get("torn").filter(|t| t.is_object()) {
                text.push_str(
                    "The end is torn, as a crash leaves it; the next start cuts it off: ",
                );
                text.push_str(&fault(torn));
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

/// Reads the files themselves: no gateway is asked, none is needed.
fn offline(state: &Path, out: Out) -> Result<u8, Failure> {
    let dir = state.join("audit");
    let report = verify_dir(&dir).map_err(|error| {
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
}
