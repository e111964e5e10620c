//! Records in the forms that other systems read: JSON lines, OCSF, CEF. Each row carries the record's number and leaf hash,
//! and the size of a checkpoint that covers it, so that a row elsewhere can be proven later.

use super::entry::{Entry, OutcomeResult};
use super::record::{Body, Record};
use serde_json::{Map, Value, json};

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line.
    Jsonl,
    /// The same, as an event of the Open Cybersecurity Schema Framework 1.3.
    Ocsf,
    /// ArcSight's Common Event Format, version 0.
    Cef,
}

const VENDOR: &str = "Portcullis";
const PRODUCT: &str = "portcullis";
const OCSF_VERSION: &str = "1.3.0";

impl Format {
    /// By its name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "jsonl" => Some(Self::Jsonl),
            "ocsf" => Some(Self::Ocsf),
            "cef" => Some(Self::Cef),
            _ => None,
        }
    }

    /// One record, one line, without its end. `size`: records that the checkpoint is over; `version`: of the program.
    pub fn line(self, record: &Record, size: u64, version: &str) -> String {
        match self {
            Self::Jsonl => jsonl(record, size).to_string(),
            Self::Ocsf => ocsf(record, size, version).to_string(),
            Self::Cef => cef(record, size, version),
        }
    }
}

fn jsonl(record: &Record, size: u64) -> Value {
    json!({
        "seq": record.seq,
        "leafHash": record.hash,
        "checkpointSize": size,
        "record": record,
    })
}

fn entry(record: &Record) -> Option<&Entry> {
    match &record.body {
        Body::Intent(entry) | Body::Event(entry) => Some(entry),
        _ => None,
    }
}

/// What is done, in one word: the action, or the mark.
fn action(record: &Record) -> String {
    match &record.body {
        Body::Intent(entry) | Body::Event(entry) => entry.action.clone(),
        body => format!("audit.{}", body.kind()),
    }
}

/// How it ended: word and code.
fn result(record: &Record) -> Option<(&'static str, Option<&str>)> {
    let Body::Outcome { outcome, .. } = &record.body else {
        return None;
    };
    Some(match &outcome.result {
        OutcomeResult::Ok => ("ok", None),
        OutcomeResult::Refused { code } => ("refused", Some(code)),
        OutcomeResult::Failed { code } => ("failed", Some(code)),
        OutcomeResult::Unknown { .. } => ("unknown", None),
    })
}

/// Class and activity (OCSF 1.3); 99 is "other".
fn class(record: &Record) -> (u32, u32) {
    let action = action(record);
    match action.split('.').next().unwrap_or_default() {
        "exec" => (1_007, 1),
        "auth" => (3_002, 99),
        "pairing" | "device" | "agent" | "password" => (3_001, 99),
        "vault" | "approval" | "config" | "tls" => (3_004, 99),
        "audit" => match record.body {
            Body::Start { .. } => (6_002, 3),
            Body::Stop => (6_002, 4),
            _ => (6_003, 99),
        },
        _ => (6_003, 99),
    }
}

fn ocsf(record: &Record, size: u64, version: &str) -> Value {
    let (class, activity) = class(record);
    let (status, code) = match result(record) {
        Some(("ok", _)) => (1, None),
        Some(("refused" | "failed", code)) => (2, code),
        _ => (0, None),
    };
    let entry = entry(record);
    let text = |value: Option<&String>| value.map_or(Value::Null, |text| text.as_str().into());
    let mut event = json!({
        "class_uid": class,
        "category_uid": class / 1_000,
        "activity_id": activity,
        "type_uid": class * 100 + activity,
        "time": record.stamp.wall_ms,
        "severity_id": if status == 2 { 3 } else { 1 },
        "status_id": status,
        "message": action(record),
        "metadata": {
            "version": OCSF_VERSION,
            "product": { "name": PRODUCT, "vendor_name": VENDOR, "version": version },
            "uid": record.seq.to_string(),
            "sequence": record.seq,
            "log_name": "audit",
        },
        "unmapped": {
            "leaf_hash": record.hash,
            "checkpoint_size": size,
            "record": record,
        },
    });
    let mut put = |key: &str, value: Value| {
        if let Value::Object(event) = &mut event {
            event.insert(key.to_owned(), value);
        }
    };
    if let Some(code) = code {
        put("status_code", code.into());
    }
    if let Some(entry) = entry {
        if entry.principal.is_some() {
            put(
                "actor",
                json!({ "user": { "name": text(entry.principal.as_ref()) } }),
            );
        }
        if entry.object.is_some() {
            put("resource", json!({ "name": text(entry.object.as_ref()) }));
        }
    }
    event
}

/// In a field of the header `\` and `|` are escaped; a line it stays in any case.
fn of_header(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '|' => out.extend(['\\', c]),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// In a value of the extension `\`, `=` and ends of lines are escaped.
fn of_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '=' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn cef(record: &Record, size: u64, version: &str) -> String {
    let action = action(record);
    let ended = result(record);
    let severity = match ended {
        Some(("refused" | "failed" | "unknown", _)) => 6,
        _ => 3,
    };
    let header = [
        VENDOR,
        PRODUCT,
        version,
        record.body.kind(),
        action.as_str(),
    ]
    .map(of_header)
    .join("|");
    let mut fields: Vec<(&str, String)> = vec![
        ("externalId", record.seq.to_string()),
        ("rt", record.stamp.wall_ms.to_string()),
        ("cs1Label", "leafHash".to_owned()),
        ("cs1", record.hash.to_string()),
        ("cn1Label", "checkpointSize".to_owned()),
        ("cn1", size.to_string()),
    ];
    if let Some((word, code)) = ended {
        fields.push(("outcome", word.to_owned()));
        fields.extend(code.map(|code| ("reason", code.to_owned())));
    }
    if let Body::Outcome { intent, .. } = &record.body {
        fields.extend([
            ("cn2Label", "intent".to_owned()),
            ("cn2", intent.to_string()),
        ]);
    }
    if let Some(entry) = entry(record) {
        fields.push(("act", entry.action.clone()));
        for (key, value) in [
            ("suser", &entry.principal),
            ("duser", &entry.act_as),
            ("app", &entry.door),
            ("request", &entry.object),
        ] {
            fields.extend(value.clone().map(|value| (key, value)));
        }
        let plan_hash = entry.plan_hash.map(|hash| hash.to_string());
        let labelled = [
            ("cs2Label", "decision", "cs2", entry.decision.clone()),
            ("cs3Label", "rule", "cs3", entry.rule.clone()),
            ("cs4Label", "planHash", "cs4", plan_hash),
            ("cs5Label", "approvalId", "cs5", entry.approval_id.clone()),
            ("cs6Label", "detail", "cs6", detail(entry)),
        ];
        for (label, name, key, value) in labelled {
            if let Some(value) = value {
                fields.extend([(label, name.to_owned()), (key, value)]);
            }
        }
        if let Some(hash) = entry.policy_hash {
            let (name, hash) = ("policyHash".to_owned(), hash.to_string());
            fields.extend([("flexString1Label", name), ("flexString1", hash)]);
        }
        if let Some(proof) = &entry.proof {
            let said = format!(
                "{} {} ({}), record {}",
                proof.decision, proof.by, proof.how, proof.recorded
            );
            let name = "allowedBy".to_owned();
            fields.extend([("flexString2Label", name), ("flexString2", said)]);
        }
    }
    let fields: Vec<String> = fields
        .iter()
        .map(|(key, value)| format!("{key}={}", of_value(value)))
        .collect();
    format!("CEF:0|{header}|{severity}|{}", fields.join(" "))
}

fn detail(entry: &Entry) -> Option<String> {
    if entry.detail.is_empty() {
        return None;
    }
    let map: Map<String, Value> = entry
        .detail
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    Some(Value::Object(map).to_string())
}

#[cfg(test)]
mod tests {
    use super::super::{BootId, Hash32, Outcome, Seq, Stamp};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn record(body: Body) -> Record {
        Record {
            seq: Seq(7),
            prev: Hash32([1; 32]),
            hash: Hash32([2; 32]),
            stamp: Stamp {
                wall_ms: 1_700_000_000_000,
                mono_ms: 5,
            },
            boot: BootId([3; 16]),
            body,
        }
    }

    /// As a reader of CEF does it: a separator is one that no backslash escapes.
    fn read_cef(line: &str) -> (Vec<String>, BTreeMap<String, String>) {
        let mut head = vec![String::new()];
        let mut chars = line.chars();
        while head.len() < 8 {
            match chars.next().unwrap() {
                '\\' => head.last_mut().unwrap().push(chars.next().unwrap()),
                '|' => head.push(String::new()),
                c => head.last_mut().unwrap().push(c),
            }
        }
        head.pop();
        let rest: Vec<char> = chars.collect();
        // Keys end at an unescaped `=`, and begin behind the last blank before it.
        let mut marks = Vec::new();
        let mut at = 0;
        while at < rest.len() {
            match rest[at] {
                '\\' => at += 1,
                '=' => marks.push(at),
                _ => {}
            }
            at += 1;
        }
        let start = |mark: usize| {
            let before = rest[..mark].iter().rposition(|c| *c == ' ');
            before.map_or(0, |blank| blank + 1)
        };
        let mut fields = BTreeMap::new();
        for (index, mark) in marks.iter().enumerate() {
            let end = marks
                .get(index + 1)
                .map_or(rest.len(), |next| start(*next) - 1);
            let key: String = rest[start(*mark)..*mark].iter().collect();
            let (mut value, mut at) = (String::new(), mark + 1);
            while at < end {
                if rest[at] == '\\' {
                    at += 1;
                    value.push(match rest[at] {
                        'n' => '\n',
                        'r' => '\r',
                        c => c,
                    });
                } else {
                    value.push(rest[at]);
                }
                at += 1;
            }
            assert!(fields.insert(key, value).is_none());
        }
        (head, fields)
    }

    #[test]
    fn each_kind_has_a_line_in_each_form() {
        let refused = Body::outcome(Seq(3), Outcome::refused("PLAN_CHANGED")).unwrap();
        for (body, class, status) in [
            (Body::Intent(Entry::new("exec.run")), 1_007, 0),
            (Body::Event(Entry::new("auth.failed")), 3_002, 0),
            (Body::Intent(Entry::new("pairing.approve")), 3_001, 0),
            (Body::Intent(Entry::new("vault.set")), 3_004, 0),
            (Body::Stop, 6_002, 0),
            (refused, 6_003, 2),
        ] {
            let record = record(body);
            for format in ["jsonl", "ocsf", "cef"] {
                let line = Format::parse(format).unwrap().line(&record, 9, "0.1.0");
                assert_eq!(line.lines().count(), 1);
                assert!(line.contains(&record.hash.to_string()), "{line}");
            }
            let event = ocsf(&record, 9, "0.1.0");
            assert_eq!(event["class_uid"], class);
            assert_eq!(event["status_id"], status);
            assert_eq!(event["category_uid"], class / 1_000);
        }
        assert_eq!(Format::parse("xml"), None);
    }

    #[test]
    fn a_line_of_cef_as_it_is() {
        let entry = Entry {
            principal: Some("uid:0".into()),
            object: Some("a=b|c".into()),
            ..Entry::new("exec.run")
        };
        assert_eq!(
            cef(&record(Body::Intent(entry)), 9, "0.1|x"),
            format!(
                "CEF:0|Portcullis|portcullis|0.1\\|x|intent|exec.run|3|externalId=7 rt=1700000000000 \
                 cs1Label=leafHash cs1={} cn1Label=checkpointSize cn1=9 act=exec.run suser=uid:0 request=a\\=b|c",
                Hash32([2; 32])
            )
        );
    }

    proptest! {
        #[test]
        fn nothing_that_was_recorded_forges_a_field_or_a_line(
            texts in prop::collection::vec("[ -~\\\\|=\n\r\t\u{85}\u{2028}é]{0,40}", 7), key in "[a-z=| ]{1,8}",
        ) {
            let entry = Entry {
                principal: Some(texts[0].clone()),
                act_as: Some(texts[1].clone()),
                object: Some(texts[2].clone()),
                rule: Some(texts[3].clone()),
                approval_id: Some(texts[4].clone()),
                ..Entry::new("exec.run").with(key, texts[5].clone())
            };
            let raw = record(Body::Intent(entry.clone()));
            for format in [Format::Jsonl, Format::Ocsf, Format::Cef] {
                let line = format.line(&raw, 9, &texts[6]);
                prop_assert!(!line.contains(['\n', '\r']), "{line:?}");
            }
            let line = cef(&raw, 9, &texts[6]);
            let (head, fields) = read_cef(&line);
            // What a line cannot hold is a blank.
            let held = |text: &str| -> String {
                let blank = |c: char| c.is_control() && c != '\n' && c != '\r' || matches!(c, '\u{2028}' | '\u{2029}');
                text.chars().map(|c| if blank(c) { ' ' } else { c }).collect()
            };
            prop_assert_eq!(head.len(), 7);
            prop_assert_eq!(&head[4..], ["intent", "exec.run", "3"]);
            for (key, text) in [("suser", &texts[0]), ("duser", &texts[1]), ("request", &texts[2]), ("cs3", &texts[3]), ("cs5", &texts[4])] {
                prop_assert_eq!(&fields[key], &held(text));
            }
            prop_assert_eq!(fields.len(), 6 + 4 + 2 + 2 + 2);
            let json: Value = serde_json::from_str(&Format::Jsonl.line(&raw, 9, "")).unwrap();
            let back: Record = serde_json::from_value(json["record"].clone()).unwrap();
            prop_assert_eq!(back, raw);
        }
    }
}
