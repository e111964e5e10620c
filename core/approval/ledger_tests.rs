//! The one list of what runs without asking, and what a change of policy does to what waits.

use super::tests::{NOW, asked, id, machine, operator, principal, say};
use super::*;
use crate::auth::{Proof, Scope};
use crate::plan::tests::host_plan;
use serde_json::json;

fn listing(more: &Value) -> Value {
    let mut demo = json!({ "allowlist": [
        { "id": "one", "pattern": "/usr/bin/uname" },
        { "id": "two", "pattern": "/usr/bin/id", "argPattern": "[\"-u\"]" },
    ] });
    for (key, value) in more.as_object().unwrap() {
        demo[key] = value.clone();
    }
    json!({ "version": 1, "agents": { "demo": demo } })
}

fn set(m: &mut Machine, document: Value) {
    m.settle(Step {
        puts: vec![Put::Document(document)],
    });
}

/// As an operator sets it: what is stricter holds at once.
fn tighten(m: &mut Machine, document: Value) {
    let base = m.policy().exists.then(|| m.policy().hash.to_string());
    let set = m.set_policy(document, base.as_deref(), &operator(), "c-1", id(900), NOW);
    let Ok(PolicySet::Apply(step)) = set else {
        panic!("{set:?}")
    };
    m.settle(step);
}

fn ids(values: &[Value]) -> Vec<(&str, u64)> {
    let one = |value: &'_ Value| value["useCount"].as_u64().unwrap();
    values
        .iter()
        .map(|value| (value["id"].as_str().unwrap(), one(value)))
        .collect()
}

#[test]
fn the_ledger_has_what_runs_without_asking_and_nothing_else() {
    let mut m = machine();
    let demo = AgentId::new("demo").unwrap();
    let (entries, modes) = m.ledger();
    assert!(entries.is_empty());
    // By the configuration every command of both agents, and of any other, runs in the sandbox.
    assert_eq!(
        ids(&modes),
        [
            ("config:agents.b.exec=full", 0),
            ("config:agents.demo.exec=full", 0),
            ("config:agents.*.exec=full", 0)
        ]
    );
    assert_eq!(modes[1]["targets"], json!(["sandbox"]));
    set(&mut m, listing(&json!({})));
    m.count(&demo, "list:one", NOW);
    m.count(&demo, "list:one+two", NOW.plus(1));
    m.count(&demo, "list:unknown", NOW.plus(1));
    m.count(&demo, "config:agents.demo.exec=full", NOW.plus(2));
    let (entries, modes) = m.ledger();
    assert_eq!(ids(&entries), [("list:demo:one", 2), ("list:demo:two", 1)]);
    assert_eq!(entries[0]["lastUsedAtMs"], json!(NOW.plus(1)));
    assert_eq!(entries[0]["targets"], json!(["host"]));
    assert_eq!(ids(&modes)[1].1, 1);
    // Entries that let nothing run by themselves are none of it.
    for closed in [json!({ "ask": "always" }), json!({ "security": "deny" })] {
        set(&mut m, listing(&closed));
        assert!(m.ledger().0.is_empty(), "{closed}");
    }
    // Kept, and read again; what is no rule any more is not.
    set(&mut m, listing(&json!({})));
    let step = m.revoke("list:demo:two", &operator(), NOW).unwrap();
    m.settle(step);
    let step = m.unsaved();
    let Put::Uses(kept) = &step.puts[0] else {
        panic!("{step:?}")
    };
    let names: Vec<&String> = kept.rules.keys().collect();
    assert_eq!(names, ["config:agents.demo.exec=full", "list:one"]);
    let document = m.policy().document.to_json();
    let again = machine().with_uses(vec![(**kept).clone()]);
    m.settle(step);
    assert!(!m.has_unsaved());
    let mut again = again;
    set(&mut again, document);
    assert_eq!(ids(&again.ledger().0), [("list:demo:one", 2)]);
}

#[test]
fn anything_in_the_ledger_is_taken_back_by_its_id() {
    let mut m = machine();
    set(&mut m, listing(&json!({})));
    let mut approver = operator();
    approver.scopes = [Scope::Approvals].into_iter().collect();
    let agent = principal(Proof::PeerUid(1), Role::Agent, Some("demo"));
    for by in [&approver, &agent] {
        let refused = m.revoke("list:demo:one", by, NOW).unwrap_err();
        let expected = [Refusal::MissingScope("operator.admin"), Refusal::WrongRole];
        assert!(expected.contains(&refused), "{refused:?}");
    }
    for none in [
        "list:demo:three",
        "list:b:one",
        "list:one",
        "list:",
        "g-a0001",
    ] {
        let refused = m.revoke(none, &operator(), NOW);
        assert_eq!(refused, Err(Refusal::GrantNotFound), "{none}");
    }
    let refused = m.revoke("config:agents.demo.exec=full", &approver, NOW);
    let Err(Refusal::OfConfiguration(fix)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(fix, "[agents.demo]\nexec = \"ask\"");
    let step = m.revoke("list:demo:one", &operator(), NOW).unwrap();
    m.settle(step);
    assert_eq!(ids(&m.ledger().0), [("list:demo:two", 0)]);
    // The rest of the document stands.
    let kept = m.policy().document.to_json();
    assert_eq!(
        kept["agents"]["demo"]["allowlist"][0]["argPattern"],
        "[\"-u\"]"
    );
}

#[test]
fn a_question_keeps_its_card_and_hash_where_policy_still_asks_or_would_allow() {
    let mut m = machine();
    let plan = host_plan(&["uname", "-a"]);
    let hash = plan.plan_hash();
    let pending = asked(&mut m, 1, plan.clone()).unwrap();
    let before = m.get("a0001").unwrap().clone();
    // It would run by itself now: who was asked still decides, and nothing is used before that.
    set(&mut m, listing(&json!({})));
    let step = m.set_policy(
        listing(&json!({ "ask": "always" })),
        Some(&m.policy().hash.to_string()),
        &operator(),
        "c-1",
        id(901),
        NOW,
    );
    assert_eq!(*m.get("a0001").unwrap(), before);
    assert_eq!(
        m.consume(&pending, hash, 7, NOW),
        Err(Refusal::StillPending)
    );
    // It asks for every command now: the same.
    let Ok(PolicySet::Apply(step)) = step else {
        panic!("{step:?}")
    };
    m.settle(step);
    assert_eq!(*m.get("a0001").unwrap(), before);
    say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-2").unwrap();
    assert_eq!(m.get("a0001").unwrap().plan_hash, hash);
    assert!(m.consume(&pending, hash, 7, NOW).is_ok());
    // A policy that forbids it ends an answer that was not used.
    tighten(&mut m, listing(&json!({ "security": "deny" })));
    assert_eq!(m.get("a0001").unwrap().status, Status::Cancelled);
    assert_eq!(
        m.consume(&pending, hash, 7, NOW),
        Err(Refusal::Cancelled("policy".to_owned()))
    );
}

#[test]
fn what_runs_goes_on_only_by_what_still_holds() {
    let mut m = machine();
    let (listed, other) = (host_plan(&["uname", "-a"]), host_plan(&["date"]));
    let by = |rule: &str| RunsBy::Rule(rule.to_owned());
    let answer = RunsBy::Answer(id(1));
    set(&mut m, listing(&json!({})));
    assert!(m.may_go_on(&listed, &by("list:one"), NOW));
    assert!(m.may_go_on(&other, &by("grant:g-a0001"), NOW));
    assert!(m.may_go_on(&other, &answer, NOW));
    set(&mut m, json!({ "version": 1 }));
    assert!(!m.may_go_on(&listed, &by("list:one"), NOW));
    assert!(m.may_go_on(&other, &by("grant:g-a0001"), NOW));
    assert!(m.may_go_on(&other, &answer, NOW));
    set(
        &mut m,
        json!({ "version": 1, "defaults": { "ask": "always" } }),
    );
    assert!(!m.may_go_on(&other, &by("grant:g-a0001"), NOW));
    assert!(m.may_go_on(&other, &answer, NOW));
    set(
        &mut m,
        json!({ "version": 1, "defaults": { "security": "deny" } }),
    );
    assert!(!m.may_go_on(&other, &answer, NOW));
    assert!(answer.is_of_grant("g-a0001") && by("grant:g-a0001").is_of_grant("g-a0001"));
    assert!(!answer.is_of_grant("g-a0002") && !by("list:g-a0001").is_of_grant("g-a0001"));
}
