//! By what a question is called, and who is meant by the beginning of it.

use super::chosen::PER_REQUESTER;
use super::tests::{NOW, id, machine, machine_with, operator};
use super::*;
use crate::plan::tests::host_plan;

/// The bug: who asked took its question back, and called another command so while a person looked at the first one.
#[test]
fn an_id_that_a_person_may_be_looking_at_is_no_other_questions_for_hours() {
    let mut m = machine_with(Limits {
        finished: 3,
        ..Limits::default()
    });
    let looked_at = ApprovalId::new("620a2239-3501-4a00-8000-0000000086b8").unwrap();
    let ask = |m: &mut Machine, id: &ApprovalId, at: Millis| {
        let requester = Requester::new(&operator(), "c-1");
        m.may_choose(id, &requester.name, at)?;
        match m.ask(host_plan(&["uname"]), requester, None, id.clone(), at)? {
            Asked::New(step) => m.settle(step),
            other => panic!("{other:?}"),
        }
        let step = m.cancel(id, "withdrawn", at)?;
        m.settle(step);
        Ok(())
    };
    ask(&mut m, &looked_at, NOW).unwrap();
    for n in 0..20 {
        ask(&mut m, &id(n), NOW).unwrap();
    }
    assert!(m.get(looked_at.as_str()).is_err(), "it is not forgotten");
    // It, or one that looks like it where a person types the beginning.
    let like = ApprovalId::new("620a2239-3501-4a00-8000-0000000086b0").unwrap();
    let hours = |n: u64| NOW.plus(n * 60 * 60 * 1000);
    for one in [&looked_at, &like] {
        for at in [NOW, hours(5)] {
            assert_eq!(ask(&mut m, one, at), Err(Refusal::IdTaken), "{one} {at:?}");
        }
    }
    // Another of the same minute, as UUIDs of version 7 are.
    let other = ApprovalId::new("620a2239-3502-7a00-8000-0000000086b0").unwrap();
    assert_eq!(ask(&mut m, &other, hours(5)), Ok(()));
    assert_eq!(ask(&mut m, &like, hours(7)), Ok(()));
    // As many as all are remembered of.
    let many = (0..).map(|n| ask(&mut m, &id(1_000 + n), hours(7)));
    let taken = many.take_while(Result::is_ok).count();
    assert_eq!(taken, PER_REQUESTER - 2);
    let over = ask(&mut m, &id(9_999), hours(7));
    assert_eq!(over, Err(Refusal::TooManyIds));
}

#[test]
fn a_beginning_names_a_question_only_where_it_cannot_be_anothers() {
    let mut m = machine();
    for whole in [
        "620a2239-3501-4a00-8000-0000000086b8",
        "pc-620a2239-3501-4a00-8000-0000000086b8",
    ] {
        let requester = Requester::new(&operator(), "c-1");
        let id = ApprovalId::new(whole).unwrap();
        let Ok(Asked::New(step)) = m.ask(host_plan(&["uname"]), requester, None, id, NOW) else {
            panic!()
        };
        m.settle(step);
    }
    for (typed, found) in [
        ("620a2239-350", Err(Refusal::Ambiguous)),
        (
            "620a2239-3501-4a00-8000-0000000086b",
            Err(Refusal::Ambiguous),
        ),
        ("620a2239-3501-4a00-8000-0000000086b8", Ok(())),
        ("pc-620a223", Err(Refusal::Ambiguous)),
        ("pc-620a2239", Ok(())),
        ("pc-620a2230", Err(Refusal::NotFound)),
        ("", Err(Refusal::NotFound)),
    ] {
        assert_eq!(m.get(typed).map(drop), found, "{typed}");
    }
}
