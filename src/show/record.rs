//! One audit record as a line.

use portcullis_core::approval::{DecisionProof, Similar, Word, verify_proof};
use portcullis_core::ids::Hash32;
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

/// Of the record of a person's decision: who the proof in it says made it, checked here with nothing but the record; or why
/// it does not hold. `None`: it is of another act, or of one before there were proofs.
pub fn decision_proof(record: &Value) -> Option<Result<String, String>> {
    let text = record.pointer("/detail/proof")?.as_str()?;
    if field(record, "action") != "approval.resolve" {
        return None;
    }
    Some(checked(record, text))
}

fn checked(record: &Value, text: &str) -> Result<String, String> {
    let proof: DecisionProof = serde_json::from_str(text).map_err(|_| "it is none".to_owned())?;
    let plan = Hash32::try_from(field(record, "plan_hash").to_owned());
    let plan = plan.map_err(|_| "the record names no plan".to_owned())?;
    let similar = record.pointer("/detail/similar").and_then(Value::as_str);
    let plan = match similar.map(serde_json::from_str::<Similar>) {
        None => plan,
        Some(Ok(similar)) => similar.hash(plan),
        Some(Err(_)) => return Err("its rule is none".to_owned()),
    };
    let word = Word::parse(field(record, "decision"));
    let word = word.ok_or_else(|| "the record has no decision".to_owned())?;
    verify_proof(&proof, field(record, "approval_id"), plan, word)
        .map_err(|error| error.to_string())?;
    let gateway = proof.gateway();
    Ok(match (&proof, proof.device()) {
        (_, Some(device)) => format!("the key of device {device}, told to gateway {gateway}"),
        _ => format!(
            "gateway {gateway}, of a session of {}",
            clean(field(record, "principal"))
        ),
    })
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
    fn a_decisions_proof_is_checked_with_its_record_alone() {
        use portcullis_core::approval::{DecisionKey, Extent, Statement};
        use portcullis_core::time::Millis;
        let key = DecisionKey::from_seed(&[9; 32]);
        let plan = Hash32([3; 32]);
        let said = Statement {
            gateway: key.gateway(),
            approval: "pc-1",
            plan: portcullis_core::ids::Hash32(plan.0),
            word: Word::AllowOnce,
            scope: Extent::Once,
            expires: Millis(5),
        };
        let proof = key.session(&said, "uid:0", "c-1");
        let entry = Entry {
            action: "approval.resolve".into(),
            principal: Some("uid:0".into()),
            decision: Some("allow-once".into()),
            approval_id: Some("pc-1".into()),
            plan_hash: Some(plan),
            ..Entry::default()
        };
        let entry = entry.with("proof", json!(proof).to_string());
        let written = entry.clean().unwrap();
        assert!(!written.detail["proof"].contains("cut"), "{written:?}");
        let record = serde_json::to_value(written).unwrap();
        let by = decision_proof(&record).unwrap().unwrap();
        assert!(by.contains("session of uid:0"), "{by}");
        for (field, value) in [
            ("decision", "deny"),
            ("approval_id", "pc-2"),
            ("plan_hash", &Hash32([4; 32]).to_string()),
        ] {
            let mut altered = record.clone();
            altered[field] = value.into();
            assert!(decision_proof(&altered).unwrap().is_err(), "{field}");
        }
        let mut other = record.clone();
        other["action"] = "exec.run".into();
        assert_eq!(decision_proof(&other), None);
    }

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
