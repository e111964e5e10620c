//! Both clocks, and that nothing but a new answer gives a question more time.

use super::tests::{NOW, id, machine, operator, principal};
use super::*;
use crate::auth::Proof;
use crate::plan::tests::host_plan;
use crate::time::BootMoment;

const HALF_HOUR: u64 = 30 * 60 * 1000;

fn boot(ms: u64) -> BootMoment {
    BootMoment {
        boot: "one".to_owned(),
        ms,
    }
}

fn settle(m: &mut Machine, mut step: Step, now: Millis) {
    m.stamp(&mut step, now);
    m.settle(step);
}

fn asked(m: &mut Machine, n: usize) {
    let requester = Requester::new(&operator(), "c-1");
    let asked = m.ask(host_plan(&["uname"]), requester, None, id(n), NOW);
    let Ok(Asked::New(step)) = asked else {
        panic!("{asked:?}")
    };
    settle(m, step, NOW);
}

#[test]
fn a_vote_gives_a_question_no_more_time() {
    let mut m = machine();
    m.deciding.demands.quorum.elevation = 2;
    m.deciding.demands.proof.clear();
    m.tick(Some(boot(1_000)));
    asked(&mut m, 1);
    m.tick(Some(boot(1_000 + HALF_HOUR - 1)));
    // The wall clock was set back meanwhile.
    let now = NOW.plus(10);
    let device = principal(
        Proof::DeviceToken(super::tests::device("b")),
        Role::Operator,
        None,
    );
    let step = m.resolve("a0001", Word::AllowOnce, &device, "c-2", now);
    settle(&mut m, step.unwrap().unwrap(), now);
    assert_eq!(m.get("a0001").unwrap().votes.len(), 1);
    assert_eq!(m.next_due(now), Some(now.plus(1)));
    assert!(m.expire(now).puts.is_empty());
    m.tick(Some(boot(1_000 + HALF_HOUR)));
    assert_eq!(m.expire(now).puts.len(), 1);
    // Also asked by itself, before anything has ended it.
    let other = principal(
        Proof::DeviceToken(super::tests::device("c")),
        Role::Operator,
        None,
    );
    assert_eq!(
        m.resolve("a0001", Word::AllowOnce, &other, "c-3", now),
        Err(Refusal::Expired)
    );
}

#[test]
fn an_answer_is_not_used_after_its_time_by_either_clock() {
    let mut m = machine();
    m.tick(Some(boot(0)));
    asked(&mut m, 1);
    let step = m.resolve("a0001", Word::AllowAlways, &operator(), "c-2", NOW);
    settle(&mut m, step.unwrap().unwrap(), NOW);
    let plan = host_plan(&["uname"]);
    let used = |m: &Machine| m.consume(&id(1), plan.plan_hash(), 7, NOW).map(drop);
    assert_eq!(used(&m), Ok(()));
    m.tick(Some(boot(HALF_HOUR)));
    assert_eq!(used(&m), Err(Refusal::Expired));
    // The grant that came with it lives on, to its own end.
    let ask = |m: &Machine| {
        let requester = Requester::new(&operator(), "c-1");
        m.ask(host_plan(&["uname"]), requester, None, id(2), NOW)
    };
    assert!(matches!(ask(&m), Ok(Asked::Allow { .. })));
    let month = Limits::default().grant_ms;
    m.tick(Some(boot(month)));
    assert!(matches!(ask(&m), Ok(Asked::New(_))));
    assert!(
        m.expire(NOW)
            .puts
            .contains(&Put::DropGrant("g-a0001".into()))
    );
    // Using it gave it no more time.
    let used = Step {
        puts: vec![Put::Grant(Box::new(m.grants()[0].used(NOW)))],
    };
    settle(&mut m, used, NOW);
    assert!(matches!(ask(&m), Ok(Asked::New(_))));
}
