use super::*;
use crate::auth::{Door, Proof, Scope};
use crate::ids::DeviceId;
use crate::plan::tests::host_plan;
use crate::policy::Document;
use crate::policy::{AgentPolicy, Elevated, ExecMode};
use crate::seal::Key;
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

pub(super) const NOW: Millis = Millis(1_000_000_000);

pub(super) fn principal(proof: Proof, role: Role, agent: Option<&str>) -> Principal {
    Principal {
        proof,
        door: Door::Control,
        role,
        scopes: [Scope::Admin].into_iter().collect(),
        agent: agent.map(|a| AgentId::new(a).unwrap()),
        generation: 1,
        secret: None,
    }
}

pub(super) fn operator() -> Principal {
    principal(Proof::PeerUid(1000), Role::Operator, None)
}

pub(super) fn device(digit: &str) -> DeviceId {
    DeviceId::new(&digit.repeat(64)).unwrap()
}

pub(super) fn deciding() -> Deciding {
    Deciding::plain(DecisionKey::from_seed(&[9; 32]))
}

pub(super) fn machine() -> Machine {
    machine_with(Limits::default())
}

pub(super) fn machine_with(limits: Limits) -> Machine {
    let agent = AgentPolicy {
        exec: ExecMode::Full,
        elevated: Elevated::Ask,
        ..AgentPolicy::default()
    };
    let named = [
        (AgentId::new("demo").unwrap(), agent),
        (AgentId::new("b").unwrap(), agent),
    ]
    .into();
    let agents = Agents {
        named,
        ..Agents::default()
    };
    Machine::new(
        limits,
        agents,
        deciding(),
        vec![],
        vec![],
        Some(Ok(Document::first())),
    )
}

pub(super) fn id(n: usize) -> ApprovalId {
    ApprovalId::new(&format!("a{n:04}")).unwrap()
}

pub(super) fn asked(
    machine: &mut Machine,
    n: usize,
    plan: ExecPlan,
) -> Result<ApprovalId, Refusal> {
    let requester = Requester::new(&operator(), "c-1");
    match machine.ask(plan, requester, None, id(n), NOW)? {
        Asked::New(step) => {
            machine.settle(step);
            Ok(id(n))
        }
        other => panic!("{other:?}"),
    }
}

pub(super) fn say(
    machine: &mut Machine,
    id: &str,
    word: Word,
    by: &Principal,
    connection: &str,
) -> Result<bool, Refusal> {
    let step = machine.resolve(id, word, by, connection, NOW)?;
    let news = step.is_some();
    if let Some(step) = step {
        machine.settle(step);
    }
    Ok(news)
}

pub(super) fn consume(machine: &mut Machine, id: &ApprovalId, hash: Hash32) -> Result<(), Refusal> {
    let step = machine.consume(id, hash, 7, NOW)?;
    machine.settle(step);
    Ok(())
}

#[test]
fn asked_once_answered_once_used_once() {
    let mut m = machine();
    let plan = host_plan(&["uname", "-a"]);
    let hash = plan.plan_hash();
    let id = asked(&mut m, 1, plan).unwrap();
    assert_eq!(consume(&mut m, &id, hash), Err(Refusal::StillPending));
    assert_eq!(
        say(&mut m, id.as_str(), Word::AllowOnce, &operator(), "c-2"),
        Ok(true)
    );
    assert_eq!(
        say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-3"),
        Ok(false)
    );
    assert_eq!(
        say(&mut m, "a0001", Word::Deny, &operator(), "c-3"),
        Err(Refusal::AlreadyResolved)
    );
    assert_eq!(
        consume(&mut m, &id, Hash32::of(b"x")),
        Err(Refusal::PlanChanged)
    );
    assert_eq!(consume(&mut m, &id, hash), Ok(()));
    assert_eq!(consume(&mut m, &id, hash), Err(Refusal::Used));
    assert_eq!(m.get("a0001").unwrap().used_by, Some(7));
}

#[test]
fn who_asked_cannot_answer_and_agents_never_can() {
    let ours = Proof::DeviceToken(device("a"));
    for (by, connection, expected) in [
        (operator(), "", Err(Refusal::SelfApproval)),
        (
            principal(Proof::PeerUid(1), Role::Agent, Some("demo")),
            "c-2",
            Err(Refusal::SelfApproval),
        ),
        (
            principal(Proof::PeerUid(1), Role::Agent, None),
            "c-2",
            Err(Refusal::SelfApproval),
        ),
        (
            principal(Proof::PeerUid(1), Role::Operator, Some("demo")),
            "c-2",
            Err(Refusal::SelfApproval),
        ),
        (
            principal(Proof::PeerUid(1), Role::Node, None),
            "c-2",
            Err(Refusal::WrongRole),
        ),
        (
            principal(ours.clone(), Role::Operator, None),
            "c-2",
            Ok(true),
        ),
        (operator(), "c-2", Ok(true)),
    ] {
        let mut m = machine();
        asked(&mut m, 1, host_plan(&["uname"])).unwrap();
        assert_eq!(
            say(&mut m, "a0001", Word::AllowOnce, &by, connection),
            expected
        );
    }
    let mut m = machine();
    asked(&mut m, 1, host_plan(&["uname"])).unwrap();
    let mut weak = operator();
    weak.scopes = [Scope::Write].into_iter().collect();
    assert!(matches!(
        say(&mut m, "a0001", Word::AllowOnce, &weak, "c-2"),
        Err(Refusal::MissingScope(_))
    ));
}

#[test]
fn nobody_asks_for_another() {
    let m = machine();
    let ask = |plan, by: &Principal| m.ask(plan, Requester::new(by, "c-1"), None, id(1), NOW);
    let mut foreign = host_plan(&["uname"]);
    foreign.principal = "uid:0".into();
    assert_eq!(
        ask(foreign, &operator()),
        Err(Refusal::NotYours("principal"))
    );
    let agent = principal(Proof::PeerUid(1000), Role::Agent, Some("b"));
    assert_eq!(
        ask(host_plan(&["uname"]), &agent),
        Err(Refusal::NotYours("agent"))
    );
    let mut closed = host_plan(&["uname"]);
    closed.agent = AgentId::new("other").unwrap();
    assert!(
        matches!(ask(closed, &operator()), Ok(Asked::Deny { code, .. }) if code.name == "ELEVATED_DISABLED")
    );
}

#[test]
fn a_retry_finds_its_first_try() {
    let mut m = machine();
    let requester = || Requester::new(&operator(), "c-1");
    let key = || Some("k".to_owned());
    let Asked::New(step) = m
        .ask(host_plan(&["uname"]), requester(), key(), id(1), NOW)
        .unwrap()
    else {
        panic!()
    };
    m.settle(step);
    let mut again = host_plan(&["uname"]);
    again.session = "c-9".into();
    again.nonce = crate::plan::Nonce::new(&[9; 16]).unwrap();
    assert_eq!(
        m.ask(again, requester(), key(), id(2), NOW),
        Ok(Asked::Known(id(1)))
    );
    assert_eq!(
        m.ask(host_plan(&["id"]), requester(), key(), id(2), NOW),
        Err(Refusal::KeyReused)
    );
    assert!(m.find("uid:1000", "k").is_some());
    assert!(m.find("uid:1001", "k").is_none());
}

#[test]
fn silence_means_no_also_after_a_restart_and_under_a_wrong_clock() {
    let mut m = machine();
    let plan = host_plan(&["uname"]);
    let hash = plan.plan_hash();
    let pending = asked(&mut m, 1, plan.clone()).unwrap();
    let allowed = asked(&mut m, 2, plan).unwrap();
    say(&mut m, "a0002", Word::AllowOnce, &operator(), "c-2").unwrap();
    let late = NOW.plus(30 * 60 * 1000);
    assert_eq!(m.expire(Millis(late.0 - 1)), Step::default());
    assert_eq!(m.next_due(NOW), Some(late));
    assert_eq!(
        m.resolve("a0001", Word::AllowOnce, &operator(), "c-2", late),
        Err(Refusal::Expired)
    );
    assert_eq!(m.consume(&allowed, hash, 1, late), Err(Refusal::Expired));
    for step in [
        m.expire(late),
        m.recover(late, Millis(0)),
        m.recover(Millis(NOW.0 - 1), Millis(0)),
    ] {
        let ids: Vec<_> = step
            .puts
            .iter()
            .map(|p| match p {
                Put::Record(r) if r.status == Status::Expired => r.id.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ids, [pending.clone(), allowed.clone()]);
    }
    let step = m.expire(late);
    m.settle(step);
    assert_eq!(
        say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-2"),
        Err(Refusal::Expired)
    );
    assert_eq!(consume(&mut m, &allowed, hash), Err(Refusal::Expired));
}

#[test]
fn a_clock_before_the_newest_thing_known_ends_all_that_is_open() {
    let mut m = machine();
    asked(&mut m, 1, host_plan(&["uname"])).unwrap();
    let step = m
        .ask(
            host_plan(&["id"]),
            Requester::new(&operator(), "c-1"),
            None,
            id(2),
            NOW.plus(1000),
        )
        .unwrap();
    let Asked::New(step) = step else { panic!() };
    m.settle(step);
    // After the first's birth, before the second's.
    assert_eq!(m.recover(NOW.plus(500), Millis(0)).puts.len(), 2);
    assert_eq!(m.recover(NOW.plus(1000), Millis(0)).puts.len(), 0);
    // Nor before the newest record of the log.
    let log = NOW.plus(2000);
    assert_eq!(m.recover(log, log).puts.len(), 0);
    for put in m.recover(Millis(log.0 - 1), log).puts {
        let Put::Record(record) = put else { panic!() };
        assert_eq!(record.resolution.unwrap().why, EXPIRED_CLOCK);
    }
}

#[test]
fn always_grants_the_very_same_command_until_revoked() {
    let mut m = machine();
    let plan = host_plan(&["uname", "-a"]);
    asked(&mut m, 1, plan.clone()).unwrap();
    say(&mut m, "a0001", Word::AllowAlways, &operator(), "c-2").unwrap();
    let ask = |m: &Machine, plan, now| {
        m.ask(plan, Requester::new(&operator(), "c-1"), None, id(2), now)
            .unwrap()
    };
    let mut again = plan.clone();
    again.nonce = crate::plan::Nonce::new(&[9; 16]).unwrap();
    assert!(
        matches!(ask(&m, again.clone(), NOW), Asked::Allow { rule, .. } if rule == "grant:g-a0001")
    );
    assert!(matches!(ask(&m, host_plan(&["uname"]), NOW), Asked::New(_)));
    let mut elsewhere = again.clone();
    elsewhere.cwd = "/tmp".into();
    assert!(matches!(ask(&m, elsewhere, NOW), Asked::New(_)));
    let after = NOW.plus(Limits::default().grant_ms);
    assert!(matches!(ask(&m, again.clone(), after), Asked::New(_)));
    assert!(
        m.expire(after)
            .puts
            .contains(&Put::DropGrant("g-a0001".into()))
    );
    let agent = principal(Proof::PeerUid(1), Role::Agent, Some("demo"));
    assert_eq!(
        m.revoke_grant("g-a0001", &agent, NOW),
        Err(Refusal::WrongRole)
    );
    let step = m.revoke_grant("g-a0001", &operator(), NOW).unwrap();
    m.settle(step);
    assert!(matches!(ask(&m, again, NOW), Asked::New(_)));
    // What was allowed and not used went with it.
    assert_eq!(
        consume(&mut m, &id(1), plan.plan_hash()),
        Err(Refusal::Cancelled("revoked".into()))
    );
}

#[test]
fn always_is_not_offered_for_what_runs_other_code() {
    let mut m = machine();
    asked(&mut m, 1, host_plan(&["sh", "-c", "id"])).unwrap();
    assert_eq!(
        say(&mut m, "a0001", Word::AllowAlways, &operator(), "c-2"),
        Err(Refusal::AlwaysUnavailable)
    );
    assert_eq!(
        record_json(m.get("a0001").unwrap())["request"]["allowedDecisions"],
        json!(["allow-once", "deny"])
    );
}

#[test]
fn caps_hold_per_agent_and_in_all() {
    let mut m = machine_with(Limits {
        total: 20,
        ..Limits::default()
    });
    for n in 0..16 {
        asked(&mut m, n, host_plan(&["uname"])).unwrap();
    }
    assert_eq!(
        asked(&mut m, 99, host_plan(&["uname"])),
        Err(Refusal::TooManyPending("of this agent"))
    );
    let other = || {
        let mut plan = host_plan(&["uname"]);
        plan.agent = AgentId::new("b").unwrap();
        plan
    };
    for n in 16..20 {
        asked(&mut m, n, other()).unwrap();
    }
    assert_eq!(
        asked(&mut m, 99, other()),
        Err(Refusal::TooManyPending("in all"))
    );
    say(&mut m, "a0001", Word::Deny, &operator(), "c-2").unwrap();
    assert!(asked(&mut m, 99, other()).is_ok());
}

#[test]
fn finished_questions_are_bounded() {
    let mut m = machine_with(Limits {
        finished: 3,
        ..Limits::default()
    });
    for n in 0..10 {
        asked(&mut m, n, host_plan(&["uname"])).unwrap();
        say(&mut m, id(n).as_str(), Word::Deny, &operator(), "c-2").unwrap();
    }
    assert!(m.all().len() <= 4);
    assert!(m.get("a0009").is_ok());
}

#[test]
fn finished_questions_are_kept_for_thirty_days_and_then_make_place() {
    let mut m = machine();
    for n in 0..3 {
        asked(&mut m, n, host_plan(&["uname"])).unwrap();
        say(&mut m, id(n).as_str(), Word::Deny, &operator(), "c-2").unwrap();
    }
    let mut left_at = |n: usize, days: u64| {
        let now = NOW.plus(days * 24 * 60 * 60 * 1000 + u64::from(days == 30));
        let requester = Requester::new(&operator(), "c-1");
        let asked = m.ask(host_plan(&["id"]), requester, None, id(n), now);
        let Ok(Asked::New(step)) = asked else {
            panic!("{asked:?}")
        };
        m.settle(step);
        m.all().iter().filter(|r| r.status.is_final()).count()
    };
    assert_eq!(left_at(10, 29), 3);
    assert_eq!(left_at(11, 30), 0);
}

fn set(m: &Machine, document: Value, n: usize, connection: &str) -> Result<PolicySet, Refusal> {
    let base = m.policy().hash.to_string();
    m.set_policy(document, Some(&base), &operator(), connection, id(n), NOW)
}

#[test]
fn a_stricter_document_holds_at_once_and_ends_what_it_forbids() {
    let mut m = machine();
    let plan = host_plan(&["uname"]);
    asked(&mut m, 1, plan.clone()).unwrap();
    asked(&mut m, 2, plan.clone()).unwrap();
    say(&mut m, "a0002", Word::AllowOnce, &operator(), "c-2").unwrap();
    let PolicySet::Apply(step) = set(
        &m,
        json!({"version": 1, "defaults": {"security": "deny"}}),
        3,
        "c-2",
    )
    .unwrap() else {
        panic!()
    };
    m.settle(step);
    assert_eq!(m.get("a0001").unwrap().status, Status::Cancelled);
    assert_eq!(
        consume(&mut m, &id(2), plan.plan_hash()),
        Err(Refusal::Cancelled("policy".into()))
    );
    assert!(m.policy().exists);
}

#[test]
fn a_freer_document_waits_for_another_connection() {
    let mut m = machine();
    let free = json!({"version": 1, "defaults": {"security": "full", "ask": "off"}});
    let PolicySet::Ask(_, step) = set(&m, free.clone(), 1, "c-1").unwrap() else {
        panic!()
    };
    m.settle(step);
    let PolicySet::Ask(_, step) = set(&m, free, 2, "c-1").unwrap() else {
        panic!()
    };
    m.settle(step);
    assert_eq!(m.policy().document.to_json(), Document::first());
    assert_eq!(
        say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-1"),
        Err(Refusal::SelfApproval)
    );
    assert_eq!(
        say(&mut m, "a0001", Word::AllowAlways, &operator(), "c-2"),
        Err(Refusal::AlwaysUnavailable)
    );
    let mut approver = operator();
    approver.scopes = [Scope::Approvals].into_iter().collect();
    assert!(matches!(
        say(&mut m, "a0001", Word::AllowOnce, &approver, "c-2"),
        Err(Refusal::MissingScope(_))
    ));
    assert_eq!(
        say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-2"),
        Ok(true)
    );
    assert_eq!(m.policy().document.resolved_defaults()["security"], "full");
    assert_eq!(m.get("a0001").unwrap().status, Status::Used);
    // The other proposal was made against a document that is gone.
    assert_eq!(m.get("a0002").unwrap().status, Status::Cancelled);
    let stale = m.set_policy(json!({"version": 1}), None, &operator(), "c-1", id(3), NOW);
    assert_eq!(stale, Err(Refusal::Conflict));
    assert!(matches!(
        set(&m, json!({"version": 1, "x": 1}), 3, "c-1"),
        Err(Refusal::Document(_))
    ));
    assert!(matches!(
        set(
            &m,
            json!({"version": 1, "defaults": {"security": "deny"}}),
            3,
            "c-1"
        ),
        Ok(PolicySet::Apply(_))
    ));
}

#[test]
fn a_document_that_cannot_be_read_closes_the_host() {
    let agent = AgentPolicy {
        exec: ExecMode::Full,
        elevated: Elevated::Ask,
        ..AgentPolicy::default()
    };
    let agents = Agents {
        named: [(AgentId::new("demo").unwrap(), agent)].into(),
        ..Agents::default()
    };
    for bad in [Err(()), Ok(json!({"version": 3}))] {
        let m = Machine::new(
            Limits::default(),
            agents.clone(),
            deciding(),
            vec![],
            vec![],
            Some(bad),
        );
        let asked = m.ask(
            host_plan(&["uname"]),
            Requester::new(&operator(), "c"),
            None,
            id(1),
            NOW,
        );
        assert!(matches!(asked, Ok(Asked::Deny { .. })));
        assert!(matches!(
            set(&m, json!({"version": 1}), 1, "c-1"),
            Ok(PolicySet::Ask(..))
        ));
    }
}

#[test]
fn a_record_reads_back_and_shows_everything_cleaned() {
    let mut m = machine();
    let evil = format!("{}\u{202e}\u{1b}[2K\n; rm -rf /", "a".repeat(64 << 10));
    let mut plan = host_plan(&["uname", &evil]);
    plan.session = "s\u{200b}".into();
    plan.env.insert(
        "LANG".into(),
        crate::plan::EnvValue::Plain("\u{2066}x".into()),
    );
    asked(&mut m, 1, plan).unwrap();
    let record = m.get("a0001").unwrap();
    let bytes = serde_json::to_vec(record).unwrap();
    assert_eq!(serde_json::from_slice::<Record>(&bytes).unwrap(), *record);
    for value in [
        record_json(record),
        record.detail_json(),
        record.resolved_json(),
    ] {
        let mut stack = vec![&value];
        while let Some(value) = stack.pop() {
            match value {
                Value::String(text) => assert!(!crate::display::has_hidden(text)),
                Value::Array(items) => stack.extend(items),
                Value::Object(fields) => stack.extend(fields.values()),
                _ => {}
            }
        }
    }
    let shown = record_json(record);
    let arg = shown["request"]["argv"][1].as_str().unwrap();
    assert!(arg.ends_with("\\u{202e}\\u{1b}[2K\\n; rm -rf /") && arg.len() > 64 << 10);
    assert!(
        shown["request"]["reasons"]
            .to_string()
            .contains("hidden-characters")
    );
    for key in [
        "planHash",
        "executable",
        "envNames",
        "user",
        "target",
        "cwd",
        "reasons",
    ] {
        assert!(!shown["request"][key].is_null(), "{key}");
    }
}

#[test]
fn a_row_opens_only_in_its_place_and_unchanged() {
    let sealer = PlanSealer::new(Key::new([1; 32]));
    let place = Place {
        kind: "approval",
        id: "a",
        intent: 7,
    };
    let row = sealer.seal(place, &[2; 12], b"plain");
    assert_eq!(sealer.open(place, &row).unwrap().expose(), b"plain");
    for other in [
        Place {
            kind: "approval.grant",
            ..place
        },
        Place { id: "b", ..place },
        Place { intent: 8, ..place },
    ] {
        assert!(sealer.open(other, &row).is_none());
    }
    for at in 0..row.len() {
        let mut bad = row.clone();
        bad[at] ^= 1;
        assert!(sealer.open(place, &bad).is_none(), "{at}");
        assert!(sealer.open(place, &row[..at]).is_none());
    }
    assert!(
        PlanSealer::new(Key::new([3; 32]))
            .open(place, &row)
            .is_none()
    );
}

#[derive(Debug, Clone)]
enum Act {
    Ask(u8),
    Say(u8, Word, bool),
    Use(u8),
    Cancel(u8),
    Wait(u64),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let word = prop_oneof![
        Just(Word::AllowOnce),
        Just(Word::AllowAlways),
        Just(Word::Deny)
    ];
    prop_oneof![
        (0..3u8).prop_map(Act::Ask),
        (0..12u8, word, any::<bool>()).prop_map(|(n, w, own)| Act::Say(n, w, own)),
        (0..12u8).prop_map(Act::Use),
        (0..12u8).prop_map(Act::Cancel),
        (0..1_000_000u64).prop_map(Act::Wait),
        Just(Act::Restart),
    ]
}

proptest! {
    /// Whatever happens in whatever order: a plan is used at most once, only after somebody's yes, never late.
    #[test]
    fn nothing_is_used_without_a_word(acts in proptest::collection::vec(act(), 0..60)) {
        let mut m = machine();
        let mut now = NOW;
        let mut count = 0;
        let mut said = BTreeMap::new();
        let mut used = BTreeSet::new();
        for act in acts {
            match act {
                Act::Ask(n) => {
                    let plan = host_plan(&["uname", &n.to_string()]);
                    if let Ok(Asked::New(step)) = m.ask(plan, Requester::new(&operator(), "c-1"), None, id(count), now) {
                        m.settle(step);
                        count += 1;
                    }
                }
                Act::Say(n, word, own) => {
                    let connection = if own { "c-1" } else { "c-2" };
                    let before = m.get(id(n.into()).as_str()).map(|r| r.status).ok();
                    if let Ok(Some(step)) = m.resolve(id(n.into()).as_str(), word, &operator(), connection, now) {
                        prop_assert_eq!(before, Some(Status::Pending));
                        prop_assert!(said.insert(n, (word, now)).is_none());
                        m.settle(step);
                    }
                }
                Act::Use(n) => {
                    let hash = m.get(id(n.into()).as_str()).map(|r| r.plan_hash);
                    if let Ok(hash) = hash && let Ok(step) = m.consume(&id(n.into()), hash, 1, now) {
                        m.settle(step);
                        let (word, at) = said[&n];
                        prop_assert!(word != Word::Deny);
                        prop_assert!(now.since(at) < 30 * 60 * 1000);
                        prop_assert!(used.insert(n));
                    }
                }
                Act::Cancel(n) => {
                    if let Ok(step) = m.cancel(&id(n.into()), "test", now) {
                        m.settle(step);
                    }
                }
                Act::Wait(ms) => {
                    now = now.plus(ms);
                    let step = m.expire(now);
                    m.settle(step);
                }
                Act::Restart => {
                    let records = m.records.values().cloned().collect();
                    let grants = m.grants.values().cloned().collect();
                    m = Machine::new(m.limits, m.agents.clone(), deciding(), records, grants, Some(Ok(Document::first())));
                    let step = m.recover(now, Millis(0));
                    m.settle(step);
                }
            }
            prop_assert!(m.next_due(now).is_none_or(|due| due > now));
        }
    }
}

#[test]
fn no_id_begins_with_another() {
    let mut m = machine();
    asked(&mut m, 1, host_plan(&["uname"])).unwrap();
    let free = |id: &str| m.may_choose(&ApprovalId::new(id).unwrap(), "p", NOW);
    for taken in [
        "a0001", "a", "a00", "a00012", "p", "pc", "pc-", "pc-x", "pc-1",
    ] {
        assert_eq!(free(taken), Err(Refusal::IdTaken), "{taken}");
    }
    assert_eq!(free("a0002"), Ok(()));
    assert_eq!(free("b"), Ok(()));
}
