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

fn outcome(entry: &Value, record: &Value) -> String {
    let word = [entry, record].into_iter().find_map(|v| {
        let outcome = v.get("outcome").or_else(|| v.get("result"))?;
        Some(match outcome {
            Value::String(word) => word.clone(),
            Value::Object(map) => match (map.get("result"), map.iter().next()) {
                (Some(Value::String(word)), _) => word.clone(),
                (_, Some((name, Value::Object(inside)))) => {
                    let code = inside
                        .get("code")
                        .and_then(Value::as_str)
                        .unwrap_or_default();
                    format!("{name} {code}")
                }
                (_, Some((name, _))) => name.clone(),
                _ => return None,
            },
            _ => return None,
        })
    });
    let code = field(record, "code");
    let word = word.unwrap_or_else(|| field(record, "decision").to_owned());
    clean(format!("{word} {code}").trim())
}
