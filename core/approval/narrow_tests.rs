//! Who asks may narrow who lets it run, and with which word: it never gets more by that.

use super::decide_tests::{decide, device_key, over, statement};
use super::tests::{NOW, asked, device, id, machine, operator, principal, say};
use super::*;
use crate::auth::Proof;
use crate::plan::tests::host_plan;

fn narrowed(narrowing: Narrowing) -> Machine {
    let mut m = machine();
    let requester = Requester::new(&operator(), "c-1");
    let asked = m.ask(host_plan(&["uname"]), requester, None, id(1), NOW);
    let Ok(Asked::New(mut step)) = asked else {
        panic!("{asked:?}")
    };
    narrowing.apply(&mut step, NOW);
    m.settle(step);
    m
}

#[test]
fn only_a_named_device_lets_it_run_and_anybody_refuses_it() {
    let key = device_key(3);
    let named = |reviewers| {
        narrowed(Narrowing {
            reviewers,
            ..Narrowing::default()
        })
    };
    let start = || named(vec![device("b"), key.signer.credential.device.clone()]);
    let by = |digit: &str| principal(Proof::DeviceToken(device(digit)), Role::Operator, None);
    for (who, expected) in [
        (operator(), Err(Refusal::NotReviewer)),
        (by("c"), Err(Refusal::NotReviewer)),
        (by("b"), Ok(true)),
    ] {
        let mut m = start();
        assert_eq!(say(&mut m, "a0001", Word::AllowOnce, &who, "c-2"), expected);
        let mut m = start();
        assert_eq!(say(&mut m, "a0001", Word::Deny, &who, "c-2"), Ok(true));
    }
    // Also by its signature, on a connection that has none.
    let mut m = start();
    let record = m.get("a0001").unwrap().clone();
    let said = over(&key, &statement(&m, &record, Word::AllowOnce));
    assert_eq!(decide(&mut m, "a0001", &said, &operator()), Ok(true));
    // As it is kept.
    let kept = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&kept).unwrap(), record);
    let shown = request_json(&record);
    assert_eq!(shown["approvalReviewerDeviceIds"][0], device("b").as_str());
    // Nobody is named: anybody who may.
    let mut m = named(vec![]);
    assert_eq!(
        say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-2"),
        Ok(true)
    );
}

#[test]
fn a_word_that_is_not_offered_is_not_taken_and_no_always_is() {
    let without = |word| {
        narrowed(Narrowing {
            unavailable: vec![word],
            ..Narrowing::default()
        })
    };
    let offered = |m: &Machine| request_json(m.get("a0001").unwrap())["allowedDecisions"].clone();
    let mut m = without(Word::AllowAlways);
    assert_eq!(offered(&m), serde_json::json!(["allow-once", "deny"]));
    assert_eq!(
        say(&mut m, "a0001", Word::AllowAlways, &operator(), "c-2"),
        Err(Refusal::AlwaysUnavailable)
    );
    assert_eq!(
        say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-2"),
        Ok(true)
    );
    let mut m = without(Word::AllowOnce);
    assert_eq!(offered(&m), serde_json::json!(["allow-always", "deny"]));
    assert_eq!(
        say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-2"),
        Err(Refusal::WordUnavailable)
    );
    let mut m = without(Word::Deny);
    assert_eq!(
        say(&mut m, "a0001", Word::Deny, &operator(), "c-2"),
        Ok(true)
    );
    // What is not narrowed is as before.
    let mut m = machine();
    asked(&mut m, 1, host_plan(&["uname"])).unwrap();
    assert!(
        !serde_json::to_string(m.get("a0001").unwrap())
            .unwrap()
            .contains("narrowing")
    );
}
