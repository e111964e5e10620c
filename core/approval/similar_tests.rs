//! Allowing what is similar: the rule that is granted is the one that was proposed, shown and signed.

use super::decide_tests::{by_other_key, decide, demanding, device_key, over, statement};
use super::tests::{NOW, asked, id, machine, operator};
use super::*;
use crate::plan::Executable;
use crate::plan::tests::host_plan;

fn tail(count: &str, file: &str) -> ExecPlan {
    let mut plan = host_plan(&["tail", "-n", count, file]);
    if let Executable::Host(program) = &mut plan.executable {
        program.path = "/usr/bin/tail".to_owned();
    }
    plan
}

fn said(rule: &Similar, word: Word) -> Said {
    Said {
        similar: Some(rule.clone()),
        ..word.into()
    }
}

fn ask(m: &Machine, n: usize, plan: ExecPlan, now: Millis) -> Asked {
    let requester = Requester::new(&operator(), "c-1");
    m.ask(plan, requester, None, id(n), now).unwrap()
}

#[test]
fn a_similar_rule_lets_run_what_it_shows_until_it_ends_or_is_revoked() {
    let mut m = machine();
    let plan = tail("50", "/srv/app/one");
    let rule = Similar::of(&plan).unwrap();
    asked(&mut m, 1, plan.clone()).unwrap();
    // Only as a lasting word, and only as it was proposed.
    assert_eq!(
        decide(&mut m, "a0001", &said(&rule, Word::AllowOnce), &operator()),
        Err(Refusal::Extent)
    );
    let wider = Similar::of(&tail("50", "/srv/other/one")).unwrap();
    assert!(matches!(
        decide(
            &mut m,
            "a0001",
            &said(&wider, Word::AllowAlways),
            &operator()
        ),
        Err(Refusal::NotSimilar(_))
    ));
    let always = said(&rule, Word::AllowAlways);
    assert_eq!(decide(&mut m, "a0001", &always, &operator()), Ok(true));
    // The answer itself is for the plan that asked.
    assert!(m.consume(&id(1), plan.plan_hash(), 7, NOW).is_ok());
    let runs = |m: &Machine, plan: ExecPlan, now| matches!(ask(m, 2, plan, now), Asked::Allow { rule, .. } if rule == "grant:g-a0001");
    assert!(runs(&m, tail("9", "/srv/app/two"), NOW));
    assert!(!runs(&m, tail("9", "/srv/other/two"), NOW));
    assert!(
        !m.granted_under(&tail("9", "/srv/app/two"))
            .contains(&Basis::Device(device_key(1).signer.credential))
    );
    let grant = m.grants()[0].clone();
    assert_eq!(grant.command, "tail -n (any number) (any name in /srv/app)");
    let kept: Grant = serde_json::from_str(&serde_json::to_string(&grant).unwrap()).unwrap();
    assert_eq!(kept, grant);
    assert!(!runs(&m, tail("9", "/srv/app/two"), grant.expires));
    let step = m.revoke("g-a0001", &operator(), NOW).unwrap();
    m.settle(step);
    assert!(!runs(&m, tail("9", "/srv/app/two"), NOW));
}

#[test]
fn policy_is_never_widened_by_a_similar_rule() {
    let mut m = machine();
    let plan = tail("50", "/srv/app/one");
    let rule = Similar::of(&plan).unwrap();
    asked(&mut m, 1, plan).unwrap();
    decide(
        &mut m,
        "a0001",
        &said(&rule, Word::AllowAlways),
        &operator(),
    )
    .unwrap();
    for (document, asks) in [
        (
            serde_json::json!({ "version": 1, "defaults": { "ask": "always" } }),
            true,
        ),
        (
            serde_json::json!({ "version": 1, "defaults": { "security": "deny" } }),
            false,
        ),
    ] {
        m.settle(Step {
            puts: vec![Put::Document(document)],
        });
        let said = ask(&m, 3, tail("9", "/srv/app/two"), NOW);
        assert_eq!(matches!(said, Asked::New(_)), asks, "{said:?}");
        assert_eq!(matches!(said, Asked::Deny { .. }), !asks, "{said:?}");
        // Where every command is asked about, no lasting word is offered, and so no rule.
        if let Asked::New(step) = said {
            m.settle(step);
            assert_eq!(
                decide(
                    &mut m,
                    "a0003",
                    &self::said(&rule, Word::AllowAlways),
                    &operator()
                ),
                Err(Refusal::AlwaysUnavailable)
            );
        }
    }
}

#[test]
fn who_signs_a_similar_rule_signs_the_rule() {
    let mut m = machine();
    let plan = tail("50", "/srv/app/one");
    let (hash, rule) = (plan.plan_hash(), Similar::of(&plan).unwrap());
    asked(&mut m, 1, plan).unwrap();
    let key = device_key(3);
    let record = m.get("a0001").unwrap().clone();
    let of_plan = statement(&m, &record, Word::AllowAlways);
    let mut of_rule = statement(&m, &record, Word::AllowAlways);
    of_rule.plan = rule.hash(hash);
    // A signature for the very same command is none for a rule, nor the other way round.
    let mut posing = over(&key, &of_plan);
    posing.similar = Some(rule.clone());
    let exact = over(&key, &of_rule);
    for false_one in [&posing, &exact] {
        assert!(matches!(
            decide(&mut m, "a0001", false_one, &operator()),
            Err(Refusal::ProofInvalid(_))
        ));
    }
    let mut true_one = over(&key, &of_rule);
    true_one.similar = Some(rule.clone());
    assert_eq!(decide(&mut m, "a0001", &true_one, &operator()), Ok(true));
    let kept = m.get("a0001").unwrap().votes[0].clone();
    assert_eq!(kept.similar, Some(rule));
    // It is shown by its proof, also when it is used.
    assert!(m.consume(&id(1), hash, 7, NOW).is_ok());
}

#[test]
fn of_two_words_the_narrower_holds() {
    for both in [false, true] {
        let mut m = demanding(&[Act::Quorum], 2);
        let plan = tail("50", "/srv/app/one");
        let (hash, rule) = (plan.plan_hash(), Similar::of(&plan).unwrap());
        asked(&mut m, 1, plan).unwrap();
        for (seed, similar) in [(3, true), (4, both)] {
            let key = device_key(seed);
            let record = m.get("a0001").unwrap().clone();
            let mut statement = statement(&m, &record, Word::AllowAlways);
            if similar {
                statement.plan = rule.hash(hash);
            }
            let mut said = over(&key, &statement);
            said.similar = similar.then(|| rule.clone());
            decide(&mut m, "a0001", &said, &by_other_key(&key)).unwrap();
        }
        assert_eq!(m.grants()[0].similar.is_some(), both);
        let other = ask(&m, 2, tail("9", "/srv/app/two"), NOW);
        assert_eq!(matches!(other, Asked::Allow { .. }), both);
    }
}
