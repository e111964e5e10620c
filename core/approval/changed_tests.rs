//! What a plan says is what its card shows, what is kept and all that its answer lets run: each leaf of it is changed here,
//! and a field that is new is among them without being named.

use super::tests::{NOW, asked, consume, id, machine, operator, say};
use super::*;
use crate::plan::tests::host_plan;
use crate::plan::{EnvValue, ExecPlan, Executable, Held, HostFile, Limits, Operand};
use crate::seal::Key;
use proptest::prelude::*;
use serde_json::{Value, json};

/// With something in each of its fields.
fn full_plan() -> ExecPlan {
    let file = |path: &str, n: u64| HostFile {
        path: path.to_owned(),
        dev: n,
        ino: n,
        sha256: Hash32::of(path.as_bytes()),
    };
    let mut plan = host_plan(&["report", "/srv/a", "/srv/b"]);
    plan.executable = Executable::HostScript {
        script: file("/opt/report", 1),
        interpreter: file("/usr/bin/perl", 2),
        argument: Some("-w".into()),
    };
    plan.operands = vec![
        Operand {
            index: 1,
            from: 0,
            held: Held::Copied(file("/srv/a", 3)),
        },
        Operand {
            index: 2,
            from: 0,
            held: Held::Checked(file("/srv/b", 4)),
        },
    ];
    plan.cwd = "/srv".into();
    plan.groups = vec![5, 6];
    let secret = EnvValue::Secret {
        name: "DEPLOY".into(),
        version: 3,
    };
    plan.env.insert("TOKEN".into(), secret);
    plan.limits = Limits {
        memory_bytes: Some(1 << 30),
        cpu_millis: Some(500),
        pids: Some(64),
        ..plan.limits
    };
    plan
}

/// Where each leaf of it lies, lists and maps too: what is added to them changes the plan as well.
fn leaves(value: &Value, at: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(key, value)| leaves(value, &format!("{at}/{key}"), into)),
        Value::Array(items) => {
            into.push(at.to_owned());
            for (n, value) in items.iter().enumerate() {
                leaves(value, &format!("{at}/{n}"), into);
            }
        }
        _ => into.push(at.to_owned()),
    }
}

/// What may stand there in its place.
fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Number(number) => {
            let number = number.as_u64().unwrap();
            vec![json!(number + 1), json!(number.saturating_sub(1))]
        }
        Value::String(text) => {
            let mut digit = text.clone();
            let last = digit.pop().unwrap_or('0');
            digit.push(if last == '0' { '1' } else { '0' });
            let words = ["sandbox", "host", "open", "none"].map(|word| json!(word));
            let more = [
                json!(format!("{text}x")),
                json!(digit),
                json!({ "node": "n" }),
            ];
            words.into_iter().chain(more).collect()
        }
        Value::Bool(_) => vec![json!({ "rows": 24, "cols": 80 })],
        Value::Array(items) => {
            let mut less = items.clone();
            less.pop();
            let mut turned = items.clone();
            turned.reverse();
            let twice = [items.clone(), items.clone()].concat();
            vec![json!(less), json!(turned), json!(twice)]
        }
        Value::Null | Value::Object(_) => vec![json!("x"), json!(1)],
    }
}

/// Each change that leaves it a plan, and where it was made.
fn changed(plan: &ExecPlan) -> Vec<(String, ExecPlan)> {
    let whole = serde_json::to_value(plan).unwrap();
    let mut places = vec![];
    leaves(&whole, "", &mut places);
    let mut all = vec![];
    for place in places {
        let before = all.len();
        for other in others(whole.pointer(&place).unwrap()) {
            let mut value = whole.clone();
            *value.pointer_mut(&place).unwrap() = other;
            if let Ok(other) = serde_json::from_value::<ExecPlan>(value)
                && other != *plan
            {
                all.push((place.clone(), other));
            }
        }
        assert!(all.len() > before, "nothing else stands at {place}");
    }
    for (name, value) in [("LANG", Some("C")), ("TOKEN", None)] {
        let mut other = plan.clone();
        match value {
            Some(value) => other.env.insert(name.into(), EnvValue::Plain(value.into())),
            None => other.env.remove(name),
        };
        all.push(("/env".into(), other));
    }
    all
}

/// Of these a new question is made each time; everything else is another command.
const ONLY_THIS_ONE: &[&str] = &["/session", "/nonce"];
/// Of these the card shows something else: who asks beside the plan, what was opened by its digest and path.
const NOT_ON_THE_CARD: &[&str] = &["/v", "/principal", "/nonce"];

#[test]
fn a_plan_that_is_changed_in_any_field_is_refused_where_its_answer_is_used() {
    let plan = full_plan();
    assert_eq!(plan.validate_shape(), Ok(()));
    let all = changed(&plan);
    assert!(all.len() > 60, "{}", all.len());
    for word in [Word::AllowOnce, Word::AllowAlways] {
        let mut m = machine();
        let id = asked(&mut m, 1, plan.clone()).unwrap();
        assert_eq!(say(&mut m, "a0001", word, &operator(), "c-2"), Ok(true));
        for (place, other) in &all {
            assert_eq!(
                consume(&mut m, &id, other.plan_hash()),
                Err(Refusal::PlanChanged),
                "{place} {other:?}"
            );
        }
        assert_eq!(consume(&mut m, &id, plan.plan_hash()), Ok(()));
    }
}

#[test]
fn a_kept_plan_that_is_not_the_one_that_was_answered_is_not_used() {
    let plan = full_plan();
    let mut m = machine();
    let id = asked(&mut m, 1, plan.clone()).unwrap();
    say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-2").unwrap();
    let answered = m.get("a0001").unwrap().clone();
    for (place, other) in changed(&plan) {
        let hash = other.plan_hash();
        for plan_hash in [answered.plan_hash, hash] {
            let record = Record {
                subject: Subject::Exec(Box::new(other.clone())),
                plan_hash,
                ..answered.clone()
            };
            m.settle(Step {
                puts: vec![Put::Record(Box::new(record))],
            });
            // What was asked for, with the answer to it.
            assert!(consume(&mut m, &id, plan.plan_hash()).is_err(), "{place}");
        }
    }
    let put = Put::Record(Box::new(answered));
    m.settle(Step { puts: vec![put] });
    assert_eq!(consume(&mut m, &id, plan.plan_hash()), Ok(()));
}

#[test]
fn what_is_granted_or_asked_under_a_key_is_nothing_for_a_changed_plan() {
    let plan = full_plan();
    let key = || Some("k".to_owned());
    let ask = |m: &Machine, plan: ExecPlan, key| {
        m.ask(plan, Requester::new(&operator(), "c-1"), key, id(9), NOW)
    };
    let mut m = machine();
    let Ok(Asked::New(step)) = ask(&m, plan.clone(), key()) else {
        panic!()
    };
    m.settle(step);
    say(&mut m, "a0009", Word::AllowAlways, &operator(), "c-2").unwrap();
    assert!(matches!(
        ask(&m, plan.clone(), None),
        Ok(Asked::Allow { .. })
    ));
    for (place, other) in changed(&plan) {
        let same = ONLY_THIS_ONE.contains(&place.as_str());
        let known = ask(&m, other.clone(), key());
        assert_eq!(
            matches!(known, Ok(Asked::Known(_))),
            same,
            "{place} {known:?}"
        );
        let granted = ask(&m, other, None);
        assert_eq!(
            matches!(granted, Ok(Asked::Allow { .. })),
            same,
            "{place} {granted:?}"
        );
    }
}

/// What the card shows beside the hashes, which nobody can compare by eye.
fn card(record: &Record) -> Value {
    let mut shown = request_json(record);
    for hash in ["planHash", "subjectHash"] {
        assert!(shown.as_object_mut().unwrap().remove(hash).is_some());
    }
    shown
}

#[test]
fn whatever_is_changed_in_a_plan_is_seen_on_its_card() {
    let mut m = machine();
    asked(&mut m, 1, full_plan()).unwrap();
    let record = m.get("a0001").unwrap();
    for (place, other) in changed(&full_plan()) {
        let by_digest =
            place.ends_with("/dev") || place.ends_with("/ino") || place.ends_with("/from");
        if NOT_ON_THE_CARD.contains(&place.as_str()) || by_digest {
            continue;
        }
        let other = Record {
            subject: Subject::Exec(Box::new(other)),
            ..record.clone()
        };
        assert_ne!(card(&other), card(record), "{place}");
    }
}

proptest! {
    /// The card is of the plan that is kept, and the plan that is kept is the only one that its answer lets run.
    #[test]
    fn what_is_shown_is_what_is_kept_and_what_runs(plan in crate::plan::tests::any_plan(), other in crate::plan::tests::any_plan()) {
        let mut m = machine();
        let id = asked(&mut m, 1, host_plan(&["uname"])).unwrap();
        say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-2").unwrap();
        // Of any target and agent, as if it had been asked for.
        let record = Record {
            plan_hash: plan.plan_hash(),
            subject_hash: plan.subject_hash(),
            subject: Subject::Exec(Box::new(plan.clone())),
            ..m.get("a0001").unwrap().clone()
        };
        let shown = record_json(&record);
        let (sealer, place) = (PlanSealer::new(Key::new([3; 32])), Place { kind: "k", id: "a0001", intent: 5 });
        let row = sealer.seal(place, &[1; 12], &serde_json::to_vec(&record).unwrap());
        let kept: Record = serde_json::from_slice(sealer.open(place, &row).unwrap().expose()).unwrap();
        prop_assert_eq!(kept.plan(), Some(&plan));
        prop_assert_eq!(&record_json(&kept), &shown);
        let hash = plan.plan_hash();
        prop_assert_eq!(&shown["request"]["planHash"], &json!(hash));
        let argv: Vec<_> = plan.argv.iter().map(|word| crate::display::visible(word)).collect();
        prop_assert_eq!(&shown["request"]["argv"], &json!(argv));
        prop_assert_eq!(&shown["request"]["command"], &json!(plan.command_line()));
        m.settle(Step { puts: vec![Put::Record(Box::new(kept))] });
        if other != plan {
            prop_assert_eq!(consume(&mut m, &id, other.plan_hash()), Err(Refusal::PlanChanged));
        }
    }
}
