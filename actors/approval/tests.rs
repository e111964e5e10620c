//! The room with the real audit log and the real store; the clock runs with the runtime's time, which tests pause.

#![allow(
    clippy::disallowed_methods,
    reason = "tests may spawn; what they test may not"
)]

use super::*;
use crate::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring};
use crate::auth::AuthHandle;
use crate::clock::Clock;
use crate::pairing::{PairingConfig, PairingHandle, PairingWiring};
use crate::store::{Op, Store};
use crate::supervision::{Feed, FeedItem, FeedReader, Intensity, Tree, TreeBuilder};
use portcullis_core::approval::{
    Agents, Deciding, DecisionKey, PlanSealer, Refusal, Status, Word, record_json,
};
use portcullis_core::audit::{Body, BootId, Entry, Query, Seq};
use portcullis_core::auth::{Door, Principal, Proof, Role, Scope};
use portcullis_core::identity::Identity;
use portcullis_core::ids::{AgentId, ApprovalId, Hash32};
use portcullis_core::plan::{
    Egress, EnvValue, ExecPlan, Executable, Form, HOST_PATH, HostFile, Limits, Nonce, Stdin, Target,
};
use portcullis_core::policy::{AgentPolicy, Elevated, ExecMode};
use portcullis_core::time::Millis;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

mod clocks;

const START: Millis = Millis(4_000_000_000_000);
const HALF_HOUR: Duration = Duration::from_mins(30);

struct House {
    tree: Tree,
    approval: ApprovalHandle,
    audit: AuditHandle,
    store: Store,
}

async fn house(folder: &Path, boot: u8, clock: Clock) -> House {
    house_with(
        folder,
        boot,
        clock,
        Store::open(&folder.join("state.db")).unwrap(),
        1,
    )
    .await
}

async fn house_with(folder: &Path, boot: u8, clock: Clock, store: Store, key: u8) -> House {
    let mut tree = TreeBuilder::new(
        Intensity::default(),
        Arc::new(|room, why| panic!("{room}: {why}")),
    );
    let audit = AuditHandle::add(
        &mut tree,
        AuditWiring {
            state: None,
            dir: folder.join("audit"),
            keys: AuditKeys::new(folder.join("keys"), &Identity::from_random([1; 32])),
            config: AuditConfig::default(),
            boot: BootId([boot; 16]),
            clock: crate::audit::Clock::new(),
            feed: Feed::new(),
            unwritten: std::sync::Arc::default(),
            version: "test".into(),
        },
    );
    let open = AgentPolicy {
        exec: ExecMode::Full,
        elevated: Elevated::Ask,
        ..AgentPolicy::default()
    };
    let pairing = pairing(&mut tree, &store, &audit);
    let wiring = ApprovalWiring {
        hosts: crate::sandbox_pool::HostQuestions::new(),
        config: ApprovalConfig::default(),
        auth: AuthHandle::bare(&mut tree, &store, &audit, &pairing),
        pairing,
        agents: Agents {
            named: [(AgentId::new("demo").unwrap(), open)].into(),
            ..Agents::default()
        },
        store: store.clone(),
        audit: audit.clone(),
        sealer: PlanSealer::of(&Identity::from_random([key; 32])),
        deciding: Deciding::plain(DecisionKey::from_seed(&[9; 32])),
        clock,
        feed: Feed::new(),
    };
    let approval = ApprovalHandle::add(&mut tree, wiring);
    House {
        tree: tree.start().await.unwrap(),
        approval,
        audit,
        store,
    }
}

fn pairing(tree: &mut TreeBuilder, store: &Store, audit: &AuditHandle) -> PairingHandle {
    let wiring = PairingWiring {
        config: PairingConfig::default(),
        store: store.clone(),
        audit: audit.clone(),
        clock: Clock::system(),
        news: Feed::new(),
    };
    PairingHandle::add(tree, wiring)
}

impl House {
    async fn end(self) {
        self.tree.stop().await;
        self.store.close().await.unwrap();
    }

    async fn ask(&self, plan: ExecPlan, key: Option<&str>) -> Result<Decision, &'static str> {
        let ask = Ask {
            plan,
            requester: operator(),
            connection: "c-1".into(),
            idempotency_key: key.map(str::to_owned),
            id: None,
            narrowing: portcullis_core::approval::Narrowing::default(),
            own: portcullis_core::policy::ExecMode::Full,
        };
        self.approval.decide(ask).await.map_err(|e| e.code())
    }

    async fn pending(&self, plan: ExecPlan) -> ApprovalId {
        match self.ask(plan, None).await.unwrap() {
            Decision::Pending { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    async fn say(&self, id: &ApprovalId, word: Word) -> Result<Status, &'static str> {
        let said = self
            .approval
            .resolve(id.as_str(), word, &operator(), "c-2")
            .await;
        said.map(|record| record.status).map_err(|e| e.code())
    }

    async fn intent(&self) -> Seq {
        self.audit.intent(Entry::new("exec.run")).await.unwrap()
    }

    async fn consume(&self, id: &ApprovalId, plan: &ExecPlan) -> Result<Consumed, &'static str> {
        let intent = self.intent().await;
        self.approval
            .consume(id, plan.plan_hash(), intent)
            .await
            .map_err(|e| e.code())
    }

    async fn status(&self, id: &ApprovalId) -> Status {
        self.approval.status(id).await.unwrap()
    }
}

fn operator() -> Principal {
    Principal {
        proof: Proof::PeerUid(1000),
        door: Door::Control,
        role: Role::Operator,
        scopes: [Scope::Admin].into_iter().collect(),
        agent: None,
        generation: 0,
        secret: None,
    }
}

fn plan(argv: &[&str]) -> ExecPlan {
    ExecPlan {
        v: Form::V2,
        target: Target::Host,
        agent: AgentId::new("demo").unwrap(),
        session: "c-1".into(),
        principal: operator().name(),
        argv: argv.iter().map(ToString::to_string).collect(),
        executable: Executable::Host(HostFile {
            path: format!("/usr/bin/{}", argv[0]),
            dev: 1,
            ino: 2,
            sha256: Hash32::of(b"x"),
        }),
        operands: vec![],
        cwd: "/".into(),
        uid: 65534,
        gid: 65534,
        groups: vec![],
        env: [("PATH".to_owned(), EnvValue::Plain(HOST_PATH.to_owned()))].into(),
        stdin: Stdin::None,
        tty: None,
        limits: Limits {
            timeout_ms: 1000,
            output_bytes: 1000,
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
        },
        egress: Egress::None,
        profile_digest: Hash32::of(b"p"),
        nonce: Nonce::new(&[1; 16]).unwrap(),
    }
}

async fn next(news: &mut FeedReader<ApprovalEvent>) -> ApprovalEvent {
    match news.next().await {
        FeedItem::Event(event) => event.event.clone(),
        _ => panic!("no news"),
    }
}

/// Lets time pass. Paused only for that: the audit log's thread answers in real time.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_outlives_the_process_and_its_answer_is_used_once() {
    let folder = tempfile::tempdir().unwrap();
    let first = house(folder.path(), 1, Clock::system()).await;
    let mut news = first.approval.feed();
    let asked = plan(&["uname", "--planted=planted-command"]);
    let Decision::Pending { id, .. } = first.ask(asked.clone(), Some("k")).await.unwrap() else {
        panic!()
    };
    let event = next(&mut news).await;
    let (name, wire) = event.to_wire().unwrap();
    assert_eq!(
        (name, wire["id"].as_str()),
        ("exec.approval.requested", Some(id.as_str()))
    );
    assert_eq!(wire["request"]["planHash"], json!(asked.plan_hash()));
    assert_eq!(
        first.approval.list_json().await.unwrap(),
        json!([record_json(event.record().unwrap())])
    );
    first.end().await;

    // Neither command nor answer lies in clear in the database.
    for file in ["state.db", "state.db-wal"] {
        let bytes = std::fs::read(folder.path().join(file)).unwrap_or_default();
        assert!(!bytes.windows(7).any(|w| w == b"planted"), "{file}");
    }

    let second = house(folder.path(), 2, Clock::system()).await;
    let found = second
        .approval
        .find("uid:1000", "k")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (found.id.clone(), found.status, found.plan),
        (id.clone(), Status::Pending, asked.clone())
    );
    assert_eq!(second.approval.find("uid:1001", "k").await.unwrap(), None);
    let mut retry = asked.clone();
    retry.session = "c-9".into();
    assert!(
        matches!(second.ask(retry, Some("k")).await, Ok(Decision::Pending { id: same, .. }) if same == id)
    );
    assert_eq!(second.consume(&id, &asked).await, Err("APPROVAL_DENIED"));
    assert_eq!(second.say(&id, Word::AllowOnce).await, Ok(Status::Allowed));
    second.end().await;

    let third = house(folder.path(), 3, Clock::system()).await;
    assert_eq!(third.status(&id).await, Status::Allowed);
    let mut changed = asked.clone();
    changed.argv.push("more".into());
    assert_eq!(third.consume(&id, &changed).await, Err("PLAN_CHANGED"));
    let used = third.consume(&id, &asked).await.unwrap();
    assert_eq!(
        used,
        Consumed {
            by: "uid:1000".into(),
            decision: Word::AllowOnce
        }
    );
    assert_eq!(
        third.consume(&id, &asked).await,
        Err("APPROVAL_ALREADY_RESOLVED")
    );
    // Who allowed it is known over the restart, with the record under which his word was kept.
    let ground = third
        .approval
        .ground(&asked.agent, Some(&id))
        .await
        .unwrap();
    let proof = ground.proof.unwrap();
    assert_eq!(
        (&*proof.by, &*proof.how, &*proof.decision),
        ("uid:1000", "uid by the kernel", "allow-once")
    );
    let said = Query {
        action: Some("approval.resolve".into()),
        ..Query::default()
    };
    let said = third.audit.query(said).await.unwrap();
    // The bug: the record of his word did not say under which policy he gave it.
    let Body::Intent(entry) = &said[0].record.body else {
        panic!("an act")
    };
    assert_eq!(entry.policy_hash, Some(ground.policy_hash));
    // Using the answer wrote its row anew, under the act's own intent.
    assert!(proof.recorded > said[0].record.seq);
    third.end().await;

    let fourth = house(folder.path(), 4, Clock::system()).await;
    assert_eq!(
        fourth.consume(&id, &asked).await,
        Err("APPROVAL_ALREADY_RESOLVED")
    );
    // Asked for again under the same key, it does not run again.
    let again = fourth.ask(asked, Some("k")).await.unwrap();
    assert!(matches!(again, Decision::Deny { code, .. } if code.name == "RUN_UNKNOWN"));
    let query = |action: &str| Query {
        action: Some(action.to_owned()),
        ..Query::default()
    };
    let resolved = fourth.audit.query(query("approval.resolve")).await.unwrap();
    assert_eq!(resolved.len(), 1);
    assert_eq!(
        fourth
            .audit
            .query(query("approval.requested"))
            .await
            .unwrap()
            .len(),
        1
    );
    fourth.end().await;
}

#[tokio::test]
async fn silence_is_no() {
    let folder = tempfile::tempdir().unwrap();
    let house = house_with(
        folder.path(),
        1,
        Clock::of_runtime(START),
        Store::in_memory().unwrap(),
        1,
    )
    .await;
    let asked = plan(&["uname"]);
    let id = house.pending(asked.clone()).await;
    let unused = house.pending(asked.clone()).await;
    pass(HALF_HOUR / 2).await;
    assert_eq!(
        house.say(&unused, Word::AllowOnce).await,
        Ok(Status::Allowed)
    );
    let mut news = house.approval.feed();
    pass(HALF_HOUR / 2).await;
    // The room wakes by itself.
    let event = next(&mut news).await;
    assert!(matches!(&event, ApprovalEvent::Resolved(record) if record.id == id));
    let waited = house.approval.wait(&id, HALF_HOUR).await.unwrap();
    assert_eq!(
        (waited.status, waited.resolution.unwrap().why.as_str()),
        (Status::Expired, "timeout")
    );
    assert_eq!(
        house.say(&id, Word::AllowOnce).await,
        Err("APPROVAL_EXPIRED")
    );
    assert_eq!(house.status(&unused).await, Status::Allowed);
    pass(HALF_HOUR).await;
    assert_eq!(house.status(&unused).await, Status::Expired);
    assert_eq!(
        house.consume(&unused, &asked).await,
        Err("APPROVAL_EXPIRED")
    );
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_answer_wins_however_close_the_second() {
    let folder = tempfile::tempdir().unwrap();
    let house = house_with(
        folder.path(),
        1,
        Clock::system(),
        Store::in_memory().unwrap(),
        1,
    )
    .await;
    let mut allowed = 0;
    for round in 0..100 {
        let asked = plan(&["uname"]);
        let id = house.pending(asked.clone()).await;
        let answer = async |word, connection| {
            house
                .approval
                .resolve(id.as_str(), word, &operator(), connection)
                .await
        };
        // Both are in the room's queue before either is answered; either may be first there.
        let (yes, no) = if round % 2 == 0 {
            tokio::join!(answer(Word::AllowOnce, "c-2"), answer(Word::Deny, "c-3"))
        } else {
            let (no, yes) = tokio::join!(answer(Word::Deny, "c-3"), answer(Word::AllowOnce, "c-2"));
            (yes, no)
        };
        let lost = if yes.is_ok() { no } else { yes.clone() };
        assert_eq!(
            lost.map_err(|e| e.code()).unwrap_err(),
            "APPROVAL_ALREADY_RESOLVED"
        );
        assert_eq!(yes.is_ok(), house.status(&id).await == Status::Allowed);
        if yes.is_ok() {
            allowed += 1;
            let both = tokio::join!(house.consume(&id, &asked), house.consume(&id, &asked));
            assert_eq!(u8::from(both.0.is_ok()) + u8::from(both.1.is_ok()), 1);
        } else {
            assert_eq!(house.consume(&id, &asked).await, Err("APPROVAL_DENIED"));
        }
    }
    assert!(allowed > 0 && allowed < 100);
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asked_cannot_answer() {
    let folder = tempfile::tempdir().unwrap();
    let house = house_with(
        folder.path(),
        1,
        Clock::system(),
        Store::in_memory().unwrap(),
        1,
    )
    .await;
    let id = house.pending(plan(&["uname"])).await;
    let agent = Principal {
        role: Role::Agent,
        agent: Some(AgentId::new("demo").unwrap()),
        ..operator()
    };
    let node = Principal {
        role: Role::Node,
        ..operator()
    };
    for (by, connection, code) in [
        (operator(), "", "APPROVAL_SELF"),
        (agent.clone(), "c-2", "APPROVAL_SELF"),
        (node, "c-2", "WRONG_ROLE"),
    ] {
        let said = house
            .approval
            .resolve(id.as_str(), Word::AllowOnce, &by, connection)
            .await;
        assert_eq!(said.unwrap_err().code(), code);
    }
    // What an agent asks for itself, another agent's plan, another's name.
    let mut foreign = plan(&["uname"]);
    foreign.agent = AgentId::new("other").unwrap();
    let ask = Ask {
        plan: foreign,
        requester: agent,
        connection: "c-1".into(),
        idempotency_key: None,
        id: None,
        narrowing: portcullis_core::approval::Narrowing::default(),
        own: portcullis_core::policy::ExecMode::Full,
    };
    assert_eq!(
        house.approval.decide(ask).await.unwrap_err().code(),
        "AGENT_NOT_ALLOWED"
    );
    assert_eq!(house.status(&id).await, Status::Pending);
    assert_eq!(house.say(&id, Word::Deny).await, Ok(Status::Denied));
    assert_eq!(house.say(&id, Word::Deny).await, Ok(Status::Denied));
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn elevation_is_off_until_the_configuration_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let house = house_with(
        folder.path(),
        1,
        Clock::system(),
        Store::in_memory().unwrap(),
        1,
    )
    .await;
    let mut other = plan(&["uname"]);
    other.agent = AgentId::new("other").unwrap();
    let Decision::Deny { code, fix, .. } = house.ask(other, None).await.unwrap() else {
        panic!()
    };
    assert_eq!(code.name, "ELEVATED_DISABLED");
    assert_eq!(fix.as_deref(), Some("[agents.other]\nelevated = \"ask\""));
    assert!(house.approval.list().await.unwrap().is_empty());
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn always_is_a_grant_that_can_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let first = house(folder.path(), 1, Clock::system()).await;
    let id = first.pending(plan(&["uname"])).await;
    assert_eq!(first.say(&id, Word::AllowAlways).await, Ok(Status::Allowed));
    let shell = first.pending(plan(&["sh", "-c", "id"])).await;
    let said = first
        .approval
        .resolve(shell.as_str(), Word::AllowAlways, &operator(), "c-2")
        .await
        .unwrap_err();
    assert_eq!(said.reason(), Some("APPROVAL_ALLOW_ALWAYS_UNAVAILABLE"));
    first.end().await;
    let second = house(folder.path(), 2, Clock::system()).await;
    let grant = second.approval.grants().await.unwrap().remove(0);
    let rule = format!("grant:{}", grant.id);
    assert_eq!(
        second.ask(plan(&["uname"]), None).await,
        Ok(Decision::Allow { rule })
    );
    assert_eq!(
        second.approval.grants_json(9).await.unwrap()["grants"][0]["command"],
        "uname"
    );
    second
        .approval
        .revoke_grant(&grant.id, &operator())
        .await
        .unwrap();
    assert!(matches!(
        second.ask(plan(&["uname"]), None).await,
        Ok(Decision::Pending { .. })
    ));
    assert_eq!(
        second.consume(&id, &plan(&["uname"])).await,
        Err("APPROVAL_DENIED")
    );
    let gone = second.approval.revoke_grant(&grant.id, &operator()).await;
    assert_eq!(gone, Err(ApprovalRefusal::Rule(Refusal::GrantNotFound)));
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freer_document_waits_and_a_stricter_one_ends_what_it_forbids() {
    let folder = tempfile::tempdir().unwrap();
    let first = house(folder.path(), 1, Clock::system()).await;
    let set = async |house: &House, document: serde_json::Value| {
        let base = house.approval.policy_get().await.unwrap().hash.to_string();
        house
            .approval
            .policy_set(document, Some(&base), &operator(), "c-1")
            .await
    };
    let free = json!({"version": 1, "defaults": {"security": "full", "ask": "off"}});
    let PolicyChange::Pending { id, .. } = set(&first, free).await.unwrap() else {
        panic!()
    };
    let holds = first.approval.policy_get().await.unwrap().document;
    assert_eq!(holds.to_json()["defaults"]["ask"], "on-miss");
    let own = first
        .approval
        .resolve(id.as_str(), Word::AllowOnce, &operator(), "c-1")
        .await;
    assert_eq!(own.unwrap_err().code(), "APPROVAL_SELF");
    assert_eq!(
        first.approval.list_json().await.unwrap()[0]["approvalKind"],
        "policy"
    );
    assert_eq!(first.say(&id, Word::AllowOnce).await, Ok(Status::Used));
    first.end().await;

    let second = house(folder.path(), 2, Clock::system()).await;
    let policy = second.approval.policy_get().await.unwrap();
    assert_eq!(policy.to_json()["resolvedDefaults"]["security"], "full");
    // `elevated = "ask"` still asks: the strictest of all holds.
    let asked = second.pending(plan(&["uname"])).await;
    let shut = json!({"version": 1, "defaults": {"security": "deny"}});
    let stale = second
        .approval
        .policy_set(shut.clone(), None, &operator(), "c-1")
        .await;
    assert_eq!(stale.unwrap_err().code(), "POLICY_CONFLICT");
    assert!(matches!(
        set(&second, shut).await,
        Ok(PolicyChange::Applied(_))
    ));
    assert_eq!(second.status(&asked).await, Status::Cancelled);
    assert!(
        matches!(second.ask(plan(&["uname"]), None).await, Ok(Decision::Deny { code, .. }) if code.name == "POLICY_DENIED")
    );
    let wrong = set(
        &second,
        json!({"version": 1, "defaults": {"security": "yolo"}}),
    )
    .await;
    assert_eq!(wrong.unwrap_err().code(), "INVALID_PARAMS");
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_agent_floods_the_people() {
    let folder = tempfile::tempdir().unwrap();
    let house = house_with(
        folder.path(),
        1,
        Clock::system(),
        Store::in_memory().unwrap(),
        1,
    )
    .await;
    for _ in 0..16 {
        house.pending(plan(&["uname"])).await;
    }
    assert_eq!(
        house.ask(plan(&["uname"]), None).await,
        Err("TOO_MANY_PENDING")
    );
    let listed = house.approval.list().await.unwrap();
    assert_eq!(listed.len(), 16);
    house
        .approval
        .cancel(&listed[0].id, "run aborted")
        .await
        .unwrap();
    house
        .approval
        .cancel(&listed[0].id, "run aborted")
        .await
        .unwrap();
    assert!(house.ask(plan(&["uname"]), None).await.is_ok());
    assert_eq!(
        house.say(&listed[0].id, Word::AllowOnce).await,
        Err("APPROVAL_NOT_FOUND")
    );
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_altered_allows_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = house(folder.path(), 1, Clock::system()).await;
    let asked = plan(&["uname"]);
    let used = first.pending(asked.clone()).await;
    first.say(&used, Word::AllowOnce).await.unwrap();
    let granted = first.pending(asked.clone()).await;
    first.say(&granted, Word::AllowAlways).await.unwrap();
    let base = first.approval.policy_get().await.unwrap().hash.to_string();
    let stricter = json!({"version": 1, "defaults": {"ask": "always"}});
    first
        .approval
        .policy_set(stricter, Some(&base), &operator(), "c-1")
        .await
        .unwrap();
    first.end().await;

    // One bit of each row.
    let store = Store::open(&folder.path().join("state.db")).unwrap();
    for kind in ["approval", "approval.grant", "approval.document"] {
        for row in store.list_all(kind).await.unwrap() {
            let mut payload = row.payload.clone();
            *payload.last_mut().unwrap() ^= 1;
            let op = Op::compare_and_set(kind, &row.id, row.intent, row.rev, payload);
            store.commit(vec![op]).await.unwrap();
        }
    }
    let second = house_with(folder.path(), 2, Clock::system(), store, 1).await;
    assert_eq!(
        second.consume(&used, &asked).await,
        Err("APPROVAL_NOT_FOUND")
    );
    assert!(second.approval.grants().await.unwrap().is_empty());
    assert!(!second.approval.policy_get().await.unwrap().readable);
    assert!(matches!(
        second.ask(asked, None).await,
        Ok(Decision::Deny { .. })
    ));
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_beyond_the_audit_log_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let first = house(folder.path(), 1, Clock::system()).await;
    let id = first.pending(plan(&["uname"])).await;
    let head = first.audit.head().await.unwrap().seq;
    // Nor does the room let one be written.
    first.say(&id, Word::AllowOnce).await.unwrap();
    let beyond = first
        .approval
        .consume(&id, plan(&["uname"]).plan_hash(), Seq(head.0 + 1_000))
        .await;
    assert!(beyond.is_err());
    assert_eq!(first.status(&id).await, Status::Allowed);
    first.end().await;
    let store = Store::open(&folder.path().join("state.db")).unwrap();
    let row = store.get("approval", id.as_str()).await.unwrap().unwrap();
    let op = Op::compare_and_set("approval", id.as_str(), 1_000_000, row.rev, row.payload);
    store.commit(vec![op]).await.unwrap();
    store.close().await.unwrap();
    let mut tree = TreeBuilder::new(Intensity::default(), Arc::new(|_, _| {}));
    let audit = AuditHandle::add(
        &mut tree,
        AuditWiring {
            state: None,
            dir: folder.path().join("audit"),
            keys: AuditKeys::new(folder.path().join("keys"), &Identity::from_random([1; 32])),
            config: AuditConfig::default(),
            boot: BootId([2; 16]),
            clock: crate::audit::Clock::new(),
            feed: Feed::new(),
            unwritten: std::sync::Arc::default(),
            version: "test".into(),
        },
    );
    let store = Store::open(&folder.path().join("state.db")).unwrap();
    let pairing = pairing(&mut tree, &store, &audit);
    let wiring = ApprovalWiring {
        hosts: crate::sandbox_pool::HostQuestions::new(),
        config: ApprovalConfig::default(),
        auth: AuthHandle::bare(&mut tree, &store, &audit, &pairing),
        pairing,
        agents: Agents::default(),
        store,
        audit,
        sealer: PlanSealer::of(&Identity::from_random([1; 32])),
        deciding: Deciding::plain(DecisionKey::from_seed(&[9; 32])),
        clock: Clock::system(),
        feed: Feed::new(),
    };
    let approval = ApprovalHandle::add(&mut tree, wiring);
    let started = tree.start().await;
    let stopped = match &started {
        Err(error) => error.to_string().contains("STATE_CORRUPT"),
        Ok(_) => approval.list().await.is_err(),
    };
    assert!(stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_machines_rows_allow_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = house(folder.path(), 1, Clock::system()).await;
    let asked = plan(&["uname"]);
    let id = first.pending(asked.clone()).await;
    first.say(&id, Word::AllowAlways).await.unwrap();
    first.end().await;
    let store = Store::open(&folder.path().join("state.db")).unwrap();
    let second = house_with(folder.path(), 2, Clock::system(), store, 2).await;
    assert_eq!(second.consume(&id, &asked).await, Err("APPROVAL_NOT_FOUND"));
    let again = second.ask(asked, None).await;
    assert!(matches!(again, Ok(Decision::Deny { .. })));
    second.end().await;
}

mod begun;
