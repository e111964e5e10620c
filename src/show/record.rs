//! One audit record as a line.

use serde_json::Value;

use super::text::{clean, utc};
use super::value::{field, number};

/// Its columns, cleaned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its number.
    pub seq: String,
    /// When.
    pub at: String,
    /// Intent, outcome, event …
    pub kind: String,
    /// What was done.
    pub action: String,
    /// Who did it.
    pub who: String,
    /// To what.
    pub on: String,
    /// How it ended, or what policy said.
    pub outcome: String,
}

impl Shown {
    /// Of one entry of `audit.tail` or `audit.query`: the record itself, or the record with its outcome beside it.
    pub fn of(entry: &Value) -> Self {
        let record = entry.get("record").unwrap_or(entry);
        let intent = number(record, "intent").map_or_else(String::new, |seq| format!("of {seq}"));
        let text = |key: &str| clean(field(record, key));
        Self {
            seq: number(record, "seq").map_or_else(String::new, |n| n.to_string()),
            at: number(record, "wall_ms").map_or_else(String::new, utc),
            kind: text("kind"),
            action: if intent.is_empty() {
                text("action")
            } else {
                intent
            },
            who: text("principal"),
            on: text("object"),
            outcome: outcome(entry, record),
        }
    }
}

/// How it ended, with the code of a refusal; before that, what policy said.
fn outcome(entry: &Value, record: &Value) -> String {
    let ended = [
        entry.pointer("/outcome/outcome"),
        entry.get("outcome"),
        Some(record),
    ]
    .into_iter()
    .flatten()
    .find(|v| v.get("result").is_some());
    let word = match ended {
        Some(ended) => format!("{} {}", field(ended, "result"), field(ended, "code")),
        None => field(record, "decision").to_owned(),
    };
    clean(word.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::audit::{Body, BootId, Entry, Hash32, Outcome, Record, Seq, Stamp};
    use serde_json::json;

    #[test]
    fn what_the_log_writes_is_what_is_shown() {
        let record = |body: Body| Record {
            seq: Seq(7),
            prev: Hash32([0; 32]),
            hash: Hash32([1; 32]),
            stamp: Stamp {
                wall_ms: 0,
                mono_ms: 0,
            },
            boot: BootId([2; 16]),
            body,
        };
        let entry = Entry {
            action: "exec.run".into(),
            principal: Some("uid:0".into()),
            object: Some("run-1".into()),
            decision: Some("ask".into()),
            ..Entry::default()
        };
        let intent = serde_json::to_value(record(Body::Intent(entry))).unwrap();
        let shown = Shown::of(&intent);
        assert_eq!(
            (shown.seq.as_str(), shown.at.as_str(), shown.kind.as_str()),
            ("7", "1970-01-01T00:00:00Z", "intent")
        );
        assert_eq!(
            (
                shown.action.as_str(),
                shown.who.as_str(),
                shown.on.as_str(),
                shown.outcome.as_str()
            ),
            ("exec.run", "uid:0", "run-1", "ask")
        );
        let refused = serde_json::to_value(Outcome::refused("POLICY_DENIED")).unwrap();
        let found = json!({"record": intent, "outcome": {"seq": 8, "outcome": refused}});
        assert_eq!(Shown::of(&found).outcome, "refused POLICY_DENIED");
        let alone = record(Body::Outcome {
            intent: Seq(7),
            outcome: Outcome::ok(),
        });
        let shown = Shown::of(&serde_json::to_value(alone).unwrap());
        assert_eq!(
            (shown.action.as_str(), shown.outcome.as_str()),
            ("of 7", "ok")
        );
    }
}
