use super::decide_tests::{by_other_key, decide, demanding, device_key, with_key};
use super::tests::{NOW, asked, consume, deciding, id, machine, operator, say};
use super::*;
use crate::plan::tests::host_plan;
use crate::plan::{ExecPlan, Nonce};
use crate::policy::Document;
use serde_json::json;
use std::collections::BTreeSet;

#[test]
fn a_lasting_word_reaches_as_far_as_it_says_and_counts_its_uses() {
    let lasting = |scope, expires| Said {
        scope: Some(scope),
        expires,
        ..Word::AllowAlways.into()
    };
    let again = |session: &str| ExecPlan {
        session: session.to_owned(),
        nonce: Nonce::new(&[9; 16]).unwrap(),
        ..host_plan(&["uname"])
    };
    let own = host_plan(&["uname"]).session;
    let runs = |m: &Machine, session: &str, now| {
        matches!(
            m.ask(
                again(session),
                Requester::new(&operator(), "c-1"),
                None,
                id(9),
                now
            ),
            Ok(Asked::Allow { .. })
        )
    };
    let hour = NOW.plus(3_600_000);
    for (said, in_other, at_end) in [
        (lasting(Extent::Session, None), false, true),
        (lasting(Extent::Until, Some(hour)), true, false),
        (lasting(Extent::Always, None), true, true),
    ] {
        let mut m = machine();
        asked(&mut m, 1, host_plan(&["uname"])).unwrap();
        assert_eq!(decide(&mut m, "a0001", &said, &operator()), Ok(true));
        assert!(runs(&m, &own, NOW.plus(1)), "{said:?}");
        assert_eq!(runs(&m, "another", NOW.plus(1)), in_other, "{said:?}");
        assert_eq!(runs(&m, &own, hour), at_end, "{said:?}");
        let Ok(Asked::Allow {
            used: Some(used), ..
        }) = m.ask(
            again(&own),
            Requester::new(&operator(), "c-1"),
            None,
            id(9),
            NOW.plus(5),
        )
        else {
            panic!()
        };
        m.settle(Step {
            puts: vec![Put::Grant(used)],
        });
        let shown = m.grants()[0].to_json();
        assert_eq!(
            (&shown["useCount"], &shown["lastUsedAtMs"]),
            (&json!(1), &json!(NOW.plus(5)))
        );
        assert_eq!(shown["scope"], json!(said.scope.unwrap()));
    }
    let mut m = machine();
    asked(&mut m, 1, host_plan(&["uname"])).unwrap();
    for said in [
        // Until when?
        lasting(Extent::Until, None),
        lasting(Extent::Once, None),
        Said {
            scope: Some(Extent::Always),
            ..Word::AllowOnce.into()
        },
        Said {
            scope: Some(Extent::Session),
            ..Word::Deny.into()
        },
    ] {
        assert_eq!(
            decide(&mut m, "a0001", &said, &operator()),
            Err(Refusal::Extent),
            "{said:?}"
        );
    }
}

/// The bug: an "always" of one person without a key held on when two people with keys had to decide by now.
#[test]
fn a_lasting_word_that_would_not_be_enough_today_lets_nothing_run() {
    let runs = |m: &Machine| {
        let plan = ExecPlan {
            nonce: Nonce::new(&[9; 16]).unwrap(),
            ..host_plan(&["uname"])
        };
        let judged = m.judge(&plan, NOW);
        let asked = m.ask(
            plan,
            Requester::new(&operator(), "c-1"),
            None,
            id(9),
            NOW.plus(1),
        );
        let runs = matches!(asked, Ok(Asked::Allow { .. }));
        // What is said of it is what its run meets.
        let says = json!(judged).to_string().contains("grant:");
        assert_eq!(says, runs, "{judged:?}");
        runs
    };
    let granted = |m: &mut Machine, keys: &[u8]| {
        asked(m, 1, host_plan(&["uname"])).unwrap();
        if keys.is_empty() {
            say(m, "a0001", Word::AllowAlways, &operator(), "c-2").unwrap();
        }
        for seed in keys {
            let key = device_key(*seed);
            let said = with_key(m, "a0001", Word::AllowAlways, &key);
            decide(m, "a0001", &said, &by_other_key(&key)).unwrap();
        }
        assert!(runs(m));
    };
    let of_demo = || {
        let mut m = machine();
        m.deciding.demands.of_agents = [(AgentId::new("demo").unwrap(), 2)].into();
        m.deciding
    };
    let (signed, two, both) = (
        demanding(&[Act::Elevation], 1).deciding,
        demanding(&[], 2).deciding,
        demanding(&[Act::Quorum], 2).deciding,
    );
    for (before, keys, holds) in [
        (deciding(), &[][..], [false, false, false, false]),
        (deciding(), &[3], [true, false, false, false]),
        (
            demanding(&[], 2).deciding,
            &[3, 4],
            [true, true, true, true],
        ),
    ] {
        let mut m = machine();
        m.deciding = before.clone();
        granted(&mut m, keys);
        for (today, holds) in [&signed, &two, &both, &of_demo()].into_iter().zip(holds) {
            m.deciding = today.clone();
            assert_eq!(runs(&m), holds, "{keys:?} {:?}", today.demands);
        }
        // It is passed over and not gone: less is demanded again.
        m.deciding = before;
        assert!(runs(&m));
    }
    // A row of before says neither: one word, and nobody's key.
    let mut m = machine();
    m.deciding = two.clone();
    granted(&mut m, &[3, 4]);
    let mut row = json!(m.grants()[0]);
    let fields = row.as_object_mut().unwrap();
    assert!(fields.remove("voters").is_some() && fields.remove("signed").is_some());
    let old: Grant = serde_json::from_value(row).unwrap();
    assert_eq!((old.voters, old.signed), (1, false));
    m.settle(Step {
        puts: vec![Put::Grant(Box::new(old))],
    });
    assert!(!runs(&m));
}

/// Rows of before: they had no votes, and a grant neither scope nor uses.
#[test]
fn rows_of_the_first_form_are_read_and_an_answer_in_one_is_used() {
    let mut m = machine();
    let plan = host_plan(&["uname"]);
    let hash = plan.plan_hash();
    asked(&mut m, 1, plan).unwrap();
    say(&mut m, "a0001", Word::AllowAlways, &operator(), "c-2").unwrap();
    let mut record = json!(m.get("a0001").unwrap());
    let mut grant = json!(m.grants()[0]);
    assert_eq!((&record["v"], &grant["v"]), (&json!(2), &json!(2)));
    for (row, newer) in [
        (&mut record, &["votes", "quorum"][..]),
        (
            &mut grant,
            &[
                "scope", "uses", "signers", "secrets", "session", "lastUsed", "voters", "signed",
            ][..],
        ),
    ] {
        row["v"] = 1.into();
        let fields = row.as_object_mut().unwrap();
        for name in newer {
            fields.remove(*name);
        }
    }
    let record: Record = serde_json::from_value(record).unwrap();
    let grant: Grant = serde_json::from_value(grant).unwrap();
    assert_eq!(
        (record.quorum, grant.scope, grant.uses),
        (1, Extent::Always, 0)
    );
    let mut m = Machine::new(
        m.limits,
        m.agents.clone(),
        deciding(),
        vec![record.clone()],
        vec![grant],
        Some(Ok(Document::first())),
    );
    assert_eq!(consume(&mut m, &id(1), hash), Ok(()));
    // Not where a proof is required by now.
    let mut m = demanding(&[Act::Elevation], 1);
    m.settle(Step {
        puts: vec![Put::Record(Box::new(record.clone()))],
    });
    assert_eq!(
        consume(&mut m, &id(1), hash),
        Err(Refusal::ProofNeeded("elevation"))
    );
    let mut newer = json!(record);
    newer["v"] = 3.into();
    assert!(serde_json::from_value::<Record>(newer).is_err());
    let acts = [
        Act::Elevation,
        Act::Quorum,
        Act::Loosening,
        Act::VaultExport,
    ];
    let names: BTreeSet<&str> = acts.iter().map(|act| act.as_str()).collect();
    for act in acts {
        assert_eq!(json!(act), json!(act.as_str()));
    }
    assert_eq!(names.len(), 4);
}
