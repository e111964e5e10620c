use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::approval::{Record, Requester, Row, Status, Subject};
use crate::auth::Role;
use crate::ids::{AgentId, ApprovalId};
use crate::plan::tests::host_plan;
use crate::plan::{EnvValue, ExecPlan, Executable, Target};

fn id(n: u8) -> DeviceId {
    DeviceId::new(&format!("{n:02x}").repeat(32)).unwrap()
}

fn names(list: &[&str]) -> Approved {
    Approved {
        commands: list.iter().map(|n| (*n).to_owned()).collect(),
        generation: Some(7),
    }
}

fn connected(node: u8, conn: &str, commands: &[&str]) -> Connected {
    Connected {
        node: id(node),
        conn: conn.to_owned(),
        declared: Declared {
            display_name: None,
            version: "1".into(),
            client_id: "node-host".into(),
            client_mode: "node".into(),
            platform: Some("linux".into()),
            device_family: None,
            caps: BTreeSet::new(),
            commands: names(commands).commands,
            permissions: BTreeMap::new(),
            path_env: None,
        },
        generation: 7,
        since: Millis(0),
        stats: None,
        worker_host: None,
    }
}

fn call(node: u8, command: &str, by_gateway: bool) -> Call {
    Call {
        node: id(node),
        command: command.to_owned(),
        timeout_ms: Some(100),
        run_id: (command == RUN).then(|| "r1".to_owned()),
        by_gateway,
    }
}

fn good(id: &str, node: u8) -> NodeResult {
    NodeResult {
        id: id.to_owned(),
        node_id: super::tests::id(node).to_string(),
        outcome: Ok(Some("{}".to_owned())),
    }
}

const ALL: &[&str] = &[
    RUN,
    PREPARE,
    WHICH,
    APPROVALS_GET,
    APPROVALS_SET,
    NOTIFY,
    "fs.listDir",
    "browser.proxy",
    "terminal.upload",
];

#[test]
fn what_is_not_declared_allowed_and_approved_is_not_asked() {
    let mut machine = Machine::new(Limits::default());
    machine.attach(connected(1, "c1", ALL)).unwrap();
    let all = names(ALL);
    // Never on the list, whatever was declared and approved.
    for command in [
        "fs.listDir",
        "browser.proxy",
        "terminal.upload",
        "",
        "system.Run",
    ] {
        let refusal = machine.ask("q", &call(1, command, true), &all, Millis(0));
        assert_eq!(
            refusal.unwrap_err().code(),
            codes::NODE_COMMAND_NOT_ALLOWED,
            "{command}"
        );
    }
    // Not by `node.invoke`: a run needs the gate, the approvals document its own methods.
    for command in [RUN, APPROVALS_GET, APPROVALS_SET] {
        assert!(
            machine
                .ask("q", &call(1, command, false), &all, Millis(0))
                .is_err()
        );
        assert!(
            machine
                .ask(command, &call(1, command, true), &all, Millis(0))
                .is_ok()
        );
    }
    // Before anybody approved it.
    let refusal = machine
        .ask("q", &call(1, WHICH, false), &names(&[]), Millis(0))
        .unwrap_err();
    assert!(
        refusal.to_string().contains("pending approval"),
        "{refusal}"
    );
    assert_eq!(
        machine.ask("q", &call(2, WHICH, false), &all, Millis(0)),
        Err(Refusal::NotConnected)
    );
    // Its credential was changed, or it is no node any more.
    for generation in [None, Some(6), Some(8)] {
        let now = Approved {
            generation,
            ..all.clone()
        };
        let refusal = machine.ask("q", &call(1, WHICH, false), &now, Millis(0));
        assert_eq!(refusal, Err(Refusal::NotConnected));
    }
    // Approved once, not declared any more.
    machine.attach(connected(1, "c2", &[WHICH])).unwrap();
    assert!(
        machine
            .ask("q", &call(1, PREPARE, false), &all, Millis(0))
            .is_err()
    );
    assert!(
        machine
            .ask("q", &call(1, WHICH, false), &all, Millis(0))
            .is_ok()
    );
}

#[test]
fn an_unknown_platform_gets_the_short_list() {
    assert_eq!(allow_list(Some("linux 6.18")), allow_list(Some("macOS")));
    for platform in [None, Some(""), Some("iOS"), Some("linuxish"), Some("plan9")] {
        assert_eq!(allow_list(platform), OTHER, "{platform:?}");
    }
}

#[test]
fn the_first_answer_from_the_connection_that_was_asked_counts_and_no_other() {
    let mut machine = Machine::new(Limits::default());
    machine.attach(connected(1, "c1", ALL)).unwrap();
    machine.attach(connected(2, "c2", ALL)).unwrap();
    let all = names(ALL);
    machine
        .ask("q", &call(1, WHICH, false), &all, Millis(0))
        .unwrap();
    assert_eq!(
        machine.result(&id(2), "c2", good("q", 1)),
        Err(Refusal::NodeMismatch)
    );
    assert_eq!(
        machine.result(&id(2), "c2", good("q", 2)),
        Ok(Taken::Ignored)
    );
    assert_eq!(
        machine.result(&id(1), "old", good("q", 1)),
        Ok(Taken::Ignored)
    );
    assert_eq!(
        machine.result(&id(1), "c1", good("q", 1)),
        Ok(Taken::Answer(Ok(Some("{}".into()))))
    );
    assert_eq!(
        machine.result(&id(1), "c1", good("q", 1)),
        Ok(Taken::Ignored)
    );
}

#[test]
fn an_answer_after_its_time_is_late_whatever_it_says() {
    let mut machine = Machine::new(Limits::default());
    machine.attach(connected(1, "c1", ALL)).unwrap();
    machine
        .ask("q", &call(1, WHICH, false), &names(ALL), Millis(0))
        .unwrap();
    assert!(machine.due(Millis(99)).is_empty());
    assert_eq!(machine.due(Millis(100)).len(), 1);
    assert_eq!(
        machine.result(&id(1), "c1", good("q", 1)),
        Ok(Taken::Ignored)
    );
}

#[test]
fn a_newer_connection_of_a_node_takes_over_and_the_older_ends_only_its_own_questions() {
    let mut machine = Machine::new(Limits::default());
    assert_eq!(machine.attach(connected(1, "c1", ALL)), Ok(None));
    let all = names(ALL);
    machine
        .ask("old", &call(1, WHICH, false), &all, Millis(0))
        .unwrap();
    assert_eq!(
        machine.attach(connected(1, "c2", ALL)),
        Ok(Some("c1".into()))
    );
    machine
        .ask("new", &call(1, WHICH, false), &all, Millis(0))
        .unwrap();
    assert_eq!(machine.detach(&id(1), "c1"), ["old"]);
    assert!(machine.node(&id(1)).is_some());
    assert_eq!(machine.detach(&id(1), "c2"), ["new"]);
    assert!(machine.node(&id(1)).is_none());
}

#[test]
fn a_node_speaks_only_of_runs_that_it_was_given() {
    let mut machine = Machine::new(Limits::default());
    machine.attach(connected(1, "c1", ALL)).unwrap();
    machine.attach(connected(2, "c2", ALL)).unwrap();
    machine
        .ask("q", &call(1, RUN, true), &names(ALL), Millis(0))
        .unwrap();
    assert!(machine.knows_run(&id(1), "c1", "r1"));
    assert!(!machine.knows_run(&id(1), "c9", "r1"));
    assert!(!machine.knows_run(&id(2), "c2", "r1"));
    assert!(!machine.knows_run(&id(1), "c1", "r2"));
}

#[test]
fn a_nodes_error_is_made_visible_and_bounded() {
    let mut machine = Machine::new(Limits::default());
    machine.attach(connected(1, "c1", ALL)).unwrap();
    machine
        .ask("q", &call(1, WHICH, false), &names(ALL), Millis(0))
        .unwrap();
    let told = NodeResult {
        outcome: Err(("X".repeat(900), format!("\u{202e}{}", "y".repeat(9_000)))),
        ..good("q", 1)
    };
    let Ok(Taken::Answer(Err(Refusal::Node { code, message }))) =
        machine.result(&id(1), "c1", told)
    else {
        panic!("no answer");
    };
    assert_eq!(code.len(), 64);
    assert_eq!(message.chars().count(), 2_000);
    assert!(!message.contains('\u{202e}'));
}

#[test]
fn progress_is_of_an_open_question_in_order_and_bounded() {
    let mut machine = Machine::new(Limits::default());
    machine.attach(connected(1, "c1", ALL)).unwrap();
    machine
        .ask("q", &call(1, WHICH, false), &names(ALL), Millis(0))
        .unwrap();
    let one = id(1).to_string();
    let mut say = |conn: &str, named: &str, seq, chunk: &str| {
        machine.progress(&id(1), conn, named, "q", seq, chunk)
    };
    assert_eq!(say("c1", &one, 0, "a"), Ok(true));
    assert_eq!(say("c1", &one, 0, "a"), Ok(false));
    assert_eq!(say("c2", &one, 1, "a"), Ok(false));
    assert_eq!(say("c1", "other", 1, "a"), Err(Refusal::NodeMismatch));
    assert_eq!(
        say("c1", &one, 1, &"a".repeat(16_385)),
        Err(Refusal::ChunkTooLarge)
    );
}

#[test]
fn one_node_cannot_be_flooded_and_nodes_are_counted() {
    let mut machine = Machine::new(Limits {
        nodes: 1,
        per_node: 2,
        ..Limits::default()
    });
    machine.attach(connected(1, "c1", ALL)).unwrap();
    assert_eq!(machine.attach(connected(2, "c2", ALL)), Err(Refusal::Full));
    for q in ["a", "b"] {
        machine
            .ask(q, &call(1, WHICH, false), &names(ALL), Millis(0))
            .unwrap();
    }
    assert_eq!(
        machine.ask("c", &call(1, WHICH, false), &names(ALL), Millis(0)),
        Err(Refusal::TooMany)
    );
}

#[test]
fn stats_are_numbers_or_nothing() {
    let good = serde_json::json!({
        "cpuCount": 2, "loadAverage": [1, 0.25, 3], "memoryTotalBytes": 1, "memoryFreeBytes": 1,
        "diskTotalBytes": 1, "diskAvailableBytes": 1, "more": "text",
    });
    let stats = Stats::parse(&good, Millis(7)).unwrap();
    assert_eq!(
        serde_json::to_value(&stats).unwrap(),
        serde_json::json!({
            "cpuCount": 2, "loadAverage": [1.0, 0.25, 3.0], "memoryTotalBytes": 1, "memoryFreeBytes": 1,
            "diskTotalBytes": 1, "diskAvailableBytes": 1, "updatedAtMs": 7,
        })
    );
    for (key, bad) in [
        ("cpuCount", serde_json::json!("2")),
        ("loadAverage", serde_json::json!([1, 2])),
        ("loadAverage", serde_json::json!([1, 2, -1])),
        ("diskTotalBytes", serde_json::json!(-1)),
    ] {
        let mut wrong = good.clone();
        wrong[key] = bad;
        assert_eq!(Stats::parse(&wrong, Millis(7)), None, "{key}");
    }
}

fn record(status: Status, device: Option<&str>) -> Record {
    let plan = ExecPlan {
        target: Target::Node(id(1).to_string()),
        executable: Executable::Node {
            claimed_sha256: None,
        },
        env: [("A".to_owned(), EnvValue::Plain("1".to_owned()))].into(),
        ..host_plan(&["/usr/bin/echo", "hi"])
    };
    Record {
        v: Row,
        id: ApprovalId::new("a1").unwrap(),
        status,
        requester: Requester {
            name: "uid:1000".into(),
            role: Role::Operator,
            device: device.map(str::to_owned),
            agent: None,
            connection: "c1".into(),
            door: "control.sock".into(),
            credential: None,
            secret: None,
        },
        idempotency_key: Some("a1".into()),
        plan_hash: plan.plan_hash(),
        subject_hash: plan.subject_hash(),
        subject: Subject::Exec(Box::new(plan)),
        reasons: vec![],
        may_always: false,
        created: Millis(0),
        expires: Millis(9),
        boot_end: None,
        quorum: 1,
        narrowing: crate::approval::Narrowing::default(),
        votes: vec![],
        resolution: None,
        used_by: None,
    }
}

/// What is wrong with a run that says it was approved, after `change` was made to the one that was.
fn gate<'a>(
    base: &'a (DeviceId, AgentId, [String; 2], [(String, String); 1]),
    record: Option<&Record>,
    change: impl FnOnce(&mut Claim<'a>),
) -> &'static str {
    let mut claim = Claim {
        node: &base.0,
        agent: &base.1,
        argv: &base.2,
        cwd: Some("/"),
        env: &base.3,
        principal: "uid:1000",
        device: None,
        connection: "c1",
        timeout_ms: None,
    };
    change(&mut claim);
    let asked = Asked {
        run_id: Some("a1"),
        claims_approval: true,
    };
    admit_run(asked, record, &claim).map_or_else(|refusal| refusal.code.name, |()| "ok")
}

#[test]
fn only_the_very_run_that_was_approved_passes_for_who_asked_then() {
    let longer = ["/usr/bin/echo".to_owned(), "hi".to_owned(), String::new()];
    let other = AgentId::new("other").unwrap();
    let env = [("A".to_owned(), "2".to_owned())];
    let elsewhere = id(2);
    let base = (
        id(1),
        AgentId::new("demo").unwrap(),
        ["/usr/bin/echo".to_owned(), "hi".to_owned()],
        [("A".to_owned(), "1".to_owned())],
    );
    let allowed = record(Status::Allowed, None);
    assert_eq!(gate(&base, Some(&allowed), |_| {}), "ok");
    assert_eq!(gate(&base, Some(&allowed), |c| c.cwd = None), "ok");
    assert_eq!(gate(&base, None, |_| {}), "UNKNOWN_APPROVAL_ID");
    for (status, code) in [
        (Status::Pending, "UNKNOWN_APPROVAL_ID"),
        (Status::Expired, "APPROVAL_EXPIRED"),
        (Status::Denied, "APPROVAL_REQUIRED"),
        (Status::Cancelled, "APPROVAL_REQUIRED"),
        (Status::Used, "APPROVAL_REQUIRED"),
    ] {
        assert_eq!(gate(&base, Some(&record(status, None)), |_| {}), code);
    }
    // Other arguments, in whole or in part: refused, never the approved ones run in their place.
    let mismatch = "APPROVAL_REQUEST_MISMATCH";
    assert_eq!(gate(&base, Some(&allowed), |c| c.argv = &longer), mismatch);
    assert_eq!(
        gate(&base, Some(&allowed), |c| c.argv = &longer[..1]),
        mismatch
    );
    assert_eq!(gate(&base, Some(&allowed), |c| c.agent = &other), mismatch);
    assert_eq!(
        gate(&base, Some(&allowed), |c| c.cwd = Some("/tmp")),
        mismatch
    );
    assert_eq!(gate(&base, Some(&allowed), |c| c.env = &env), mismatch);
    assert_eq!(gate(&base, Some(&allowed), |c| c.env = &[]), mismatch);
    assert_eq!(
        gate(&base, Some(&allowed), |c| c.timeout_ms = Some(1)),
        mismatch
    );
    // Another node, connection, device or person.
    assert_eq!(
        gate(&base, Some(&allowed), |c| c.node = &elsewhere),
        "APPROVAL_NODE_MISMATCH"
    );
    let client = "APPROVAL_CLIENT_MISMATCH";
    assert_eq!(gate(&base, Some(&allowed), |c| c.connection = "c2"), client);
    assert_eq!(
        gate(&base, Some(&allowed), |c| c.principal = "token"),
        client
    );
    let by_device = record(Status::Allowed, Some("d1"));
    assert_eq!(
        gate(&base, Some(&by_device), |c| {
            c.device = Some("d1");
            c.connection = "c2";
        }),
        "ok",
        "a device may come back over another connection"
    );
    for device in [None, Some("d2")] {
        assert_eq!(
            gate(&base, Some(&by_device), |c| c.device = device),
            "APPROVAL_DEVICE_MISMATCH"
        );
    }
    // An approval of something else.
    let mut host = record(Status::Allowed, None);
    host.subject = Subject::Exec(Box::new(host_plan(&["/usr/bin/echo", "hi"])));
    assert_eq!(
        gate(&base, Some(&host), |_| {}),
        "APPROVAL_NODE_BINDING_MISSING"
    );
    let mut document = record(Status::Allowed, None);
    document.subject = Subject::Policy {
        base: crate::ids::Hash32([0; 32]),
        old: serde_json::Value::Null,
        new: serde_json::Value::Null,
    };
    assert_eq!(gate(&base, Some(&document), |_| {}), "UNKNOWN_APPROVAL_ID");
}

#[test]
fn without_a_claim_nothing_passes_and_a_claim_names_its_approval() {
    let allowed = record(Status::Allowed, None);
    let (node, agent) = (id(1), AgentId::new("demo").unwrap());
    let claim = Claim {
        node: &node,
        agent: &agent,
        argv: &[],
        cwd: None,
        env: &[],
        principal: "uid:1000",
        device: None,
        connection: "c1",
        timeout_ms: None,
    };
    let look = |run_id, claims_approval| {
        let asked = Asked {
            run_id,
            claims_approval,
        };
        admit_run(asked, Some(&allowed), &claim)
            .unwrap_err()
            .code
            .name
    };
    assert_eq!(look(Some("a1"), false), "APPROVAL_REQUIRED");
    assert_eq!(look(None, true), "MISSING_RUN_ID");
    assert_eq!(look(Some(""), true), "MISSING_RUN_ID");
}

proptest! {
    /// Whatever happens in whatever order: each question ends at most once, and only by its own node or the clock.
    #[test]
    fn each_question_ends_at_most_once(steps in proptest::collection::vec((0u8..6, 0u8..3, 0u8..3, 0u64..300), 1..80)) {
        let mut machine = Machine::new(Limits::default());
        let all = names(ALL);
        let (mut asked, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for (n, (what, node, conn, at)) in steps.into_iter().enumerate() {
            let conn = format!("c{conn}");
            match what {
                0 => { machine.attach(connected(node, &conn, ALL)).unwrap(); }
                1 => {
                    let q = format!("q{n}");
                    if machine.ask(&q, &call(node, WHICH, false), &all, Millis(at)).is_ok() {
                        asked.insert(q);
                    }
                }
                2 | 3 => {
                    for q in asked.clone() {
                        if let Ok(Taken::Answer(_)) = machine.result(&id(node), &conn, good(&q, node)) {
                            prop_assert!(ended.insert(q));
                        }
                    }
                }
                4 => for left in machine.detach(&id(node), &conn) {
                    prop_assert!(ended.insert(left));
                },
                _ => for due in machine.due(Millis(at)) {
                    prop_assert!(ended.insert(due.id));
                },
            }
        }
        prop_assert!(ended.is_subset(&asked));
        prop_assert_eq!(asked.len() - ended.len(), machine.open());
    }
}
