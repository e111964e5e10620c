use super::proof::tests::signed;
use super::tests::{NOW, asked, consume, deciding, device, id, machine, operator, principal, say};
use super::*;
use crate::auth::{Proof, Scope, SecretName};
use crate::device::DeviceKey;
use crate::plan::tests::host_plan;
use crate::plan::{ExecPlan, Target};
use crate::policy::Document;
use ed25519_dalek::SigningKey;
use serde_json::json;

fn by_device(digit: &str) -> Principal {
    principal(Proof::DeviceToken(device(digit)), Role::Operator, None)
}

fn opened(m: &mut Machine, n: usize, by: &Principal, plan: ExecPlan) {
    let plan = ExecPlan {
        principal: by.name(),
        ..plan
    };
    match m.ask(plan, Requester::new(by, "c-1"), None, id(n), NOW) {
        Ok(Asked::New(step)) => m.settle(step),
        other => panic!("{other:?}"),
    }
}

/// Who opens a plan for an agent as an operator may decide it, and the record says so; nobody decides for himself else.
#[test]
fn who_opened_a_plan_for_an_agent_may_decide_it_and_the_record_says_so() {
    let password = |proof| Principal {
        secret: Some(SecretStanding {
            secret: SecretName::Password("ann".to_owned()),
            generation: 1,
        }),
        ..principal(proof, Role::Operator, None)
    };
    for by in [
        operator(),
        by_device("a"),
        principal(Proof::SharedToken, Role::Operator, None),
        principal(Proof::ProxyUser("ada".to_owned()), Role::Operator, None),
        password(Proof::Password("ann".to_owned())),
    ] {
        let page = principal(Proof::PageSession(by.name()), Role::Operator, None);
        for (answers, connection) in [(&by, "c-1"), (&by, "c-2"), (&page, "c-3")] {
            let mut m = machine();
            opened(&mut m, 1, &by, host_plan(&["uname"]));
            assert_eq!(
                say(&mut m, "a0001", Word::AllowOnce, answers, connection),
                Ok(true),
                "{}",
                by.name()
            );
            let record = m.get("a0001").unwrap();
            assert!(record.votes[0].self_opened, "{}", by.name());
            assert_eq!(record_json(record)["selfOpened"], true);
        }
        // Another's word is none of his own.
        let mut m = machine();
        opened(&mut m, 1, &by, host_plan(&["uname"]));
        let other = by_device("b");
        assert_eq!(
            say(&mut m, "a0001", Word::AllowOnce, &other, "c-1"),
            Ok(true)
        );
        let record = m.get("a0001").unwrap();
        assert!(!record.votes[0].self_opened);
        assert_eq!(record_json(record).get("selfOpened"), None);
    }
}

/// What an agent asked by its own device or token is not decided with them, in whatever role they come.
#[test]
fn an_agents_own_device_decides_nothing_of_the_agents() {
    let mut m = machine();
    let own = principal(Proof::DeviceToken(device("a")), Role::Agent, Some("demo"));
    opened(&mut m, 1, &own, host_plan(&["uname"]));
    let as_operator = by_device("a");
    let page = principal(Proof::PageSession(own.name()), Role::Operator, None);
    for by in [&own, &as_operator, &page] {
        assert_eq!(
            say(&mut m, "a0001", Word::AllowOnce, by, "c-2"),
            Err(Refusal::SelfApproval)
        );
    }
    // Nor by its key beside another's name.
    let said = with_key(&m, "a0001", Word::AllowOnce, &device_key(3));
    let mut said = said;
    if let Some(signed) = &mut said.signed {
        signed.signer.credential.device = device("a");
    }
    assert_eq!(
        m.decide("a0001", &said, &operator(), "c-2", NOW),
        Err(Refusal::SelfApproval)
    );
    assert_eq!(
        say(&mut m, "a0001", Word::AllowOnce, &by_device("b"), "c-2"),
        Ok(true)
    );
}

/// A change that frees something is decided by another, or by who is at this machine, on another connection: the shared
/// token is nobody at this machine.
#[test]
fn a_loosening_is_decided_by_another_or_at_the_console() {
    let document = || {
        json!({"version": 1, "agents": {"demo": {
            "security": "full", "ask": "off", "allowlist": []}}})
    };
    for (by, connection, expected) in [
        (operator(), "c-1", Err(Refusal::SelfApproval)),
        (operator(), "c-2", Ok(true)),
        (
            principal(Proof::SharedToken, Role::Operator, None),
            "c-2",
            Err(Refusal::SelfApproval),
        ),
        (by_device("a"), "c-2", Err(Refusal::SelfApproval)),
    ] {
        let mut m = machine();
        let base = m.policy().hash.to_string();
        let set = m
            .set_policy(document(), Some(&base), &by, "c-1", id(1), NOW)
            .unwrap();
        let PolicySet::Ask(_, step) = set else {
            panic!()
        };
        m.settle(step);
        assert_eq!(
            say(&mut m, "a0001", Word::AllowOnce, &by, connection),
            expected,
            "{}",
            by.name()
        );
    }
}

/// A paired operator's key.
pub(super) struct Key {
    key: SigningKey,
    pub(super) signer: Signer,
}

pub(super) fn device_key(seed: u8) -> Key {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let id = DeviceKey::Ed25519(key.verifying_key()).id();
    Key {
        signer: Signer {
            credential: Credential {
                device: DeviceId::new(&id).unwrap(),
                role: Role::Operator,
                generation: 1,
            },
            scopes: [Scope::Admin].into_iter().collect(),
            user: None,
        },
        key,
    }
}

pub(super) fn statement<'a>(m: &Machine, record: &'a Record, word: Word) -> Statement<'a> {
    Statement {
        gateway: m.deciding.key.gateway(),
        approval: record.id.as_str(),
        plan: record.plan_hash,
        word,
        scope: Extent::of(word),
        expires: NOW.plus(60_000),
    }
}

pub(super) fn over(key: &Key, statement: &Statement<'_>) -> Said {
    let DecisionProof::Device {
        key: text,
        signature,
        ..
    } = signed(&key.key, statement)
    else {
        panic!()
    };
    Said {
        word: statement.word,
        scope: Some(statement.scope),
        expires: Some(statement.expires),
        similar: None,
        signed: Some(Signed {
            key: text,
            signature,
            signer: key.signer.clone(),
        }),
    }
}

pub(super) fn with_key(m: &Machine, approval: &str, word: Word, key: &Key) -> Said {
    let record = m.get(approval).unwrap();
    over(key, &statement(m, record, word))
}

pub(super) fn decide(
    m: &mut Machine,
    approval: &str,
    said: &Said,
    by: &Principal,
) -> Result<bool, Refusal> {
    let step = m.decide(approval, said, by, "c-7", NOW)?;
    let is_new = step.is_some();
    m.settle(step.unwrap_or_default());
    Ok(is_new)
}

#[test]
fn a_signed_decision_is_kept_with_its_proof_and_is_checked_without_a_gateway() {
    let mut m = machine();
    let plan = host_plan(&["uname"]);
    let hash = plan.plan_hash();
    asked(&mut m, 1, plan).unwrap();
    let key = device_key(3);
    let said = with_key(&m, "a0001", Word::AllowOnce, &key);
    assert_eq!(decide(&mut m, "a0001", &said, &operator()), Ok(true));
    let record = m.get("a0001").unwrap().clone();
    let [vote] = &record.votes[..] else { panic!() };
    assert_eq!(
        vote.device().unwrap(),
        key.signer.credential.device.as_str()
    );
    assert_eq!(
        verify_proof(&vote.proof, "a0001", hash, Word::AllowOnce),
        Ok(())
    );
    // As it is shown and exported.
    let shown = &record_json(&record)["votes"][0];
    let exported: DecisionProof = serde_json::from_value(shown["proof"].clone()).unwrap();
    assert_eq!(
        verify_proof(&exported, "a0001", hash, Word::AllowOnce),
        Ok(())
    );
    // It holds no longer than it says.
    assert_eq!(record.expires, NOW.plus(60_000));
    // It ends with the key's pairing.
    let basis = Basis::Device(key.signer.credential.clone());
    assert!(m.rests_on().contains(&basis));
    let step = m.void(&[basis].into(), NOW);
    m.settle(step);
    assert_eq!(m.get("a0001").unwrap().status, Status::Cancelled);
    // Without a key the gateway says what it saw.
    asked(&mut m, 2, host_plan(&["id"])).unwrap();
    say(&mut m, "a0002", Word::Deny, &operator(), "c-2").unwrap();
    let record = m.get("a0002").unwrap();
    let DecisionProof::Session {
        principal,
        connection,
        ..
    } = &record.votes[0].proof
    else {
        panic!()
    };
    assert_eq!(
        (principal.as_str(), connection.as_str()),
        ("uid:1000", "c-2")
    );
    let proof = &record.votes[0].proof;
    assert_eq!(
        verify_proof(proof, "a0002", record.plan_hash, Word::Deny),
        Ok(())
    );
}

/// What somebody signed for one thing decides no other: each is refused, and the question stays as it was.
#[test]
fn a_proof_is_taken_for_nothing_but_what_was_signed() {
    let mut m = machine();
    asked(&mut m, 1, host_plan(&["uname"])).unwrap();
    asked(&mut m, 2, host_plan(&["id"])).unwrap();
    let key = device_key(3);
    let whole = statement(&m, m.get("a0001").unwrap(), Word::AllowOnce);
    let signature =
        "its signature is not over this gateway, approval, plan, decision, scope and expiry";
    let replayed = Refusal::ProofInvalid(signature);
    let good = over(&key, &whole);
    let other = DecisionKey::from_seed(&[8; 32]).gateway();
    let attempts: Vec<(&str, &str, Said, Refusal)> = vec![
        ("another approval", "a0002", good.clone(), replayed.clone()),
        (
            "another decision",
            "a0001",
            Said {
                word: Word::Deny,
                ..good.clone()
            },
            replayed.clone(),
        ),
        (
            "a wider decision",
            "a0001",
            Said {
                word: Word::AllowAlways,
                scope: Some(Extent::Always),
                ..good.clone()
            },
            replayed.clone(),
        ),
        (
            "another scope",
            "a0001",
            Said {
                scope: Some(Extent::Always),
                ..over(
                    &key,
                    &Statement {
                        word: Word::AllowAlways,
                        scope: Extent::Session,
                        ..whole
                    },
                )
            },
            replayed.clone(),
        ),
        (
            "a later end",
            "a0001",
            Said {
                expires: Some(NOW.plus(60_001)),
                ..good.clone()
            },
            replayed.clone(),
        ),
        (
            "after its end",
            "a0001",
            over(
                &key,
                &Statement {
                    expires: NOW,
                    ..whole
                },
            ),
            Refusal::Extent,
        ),
        (
            "an end too far",
            "a0001",
            over(
                &key,
                &Statement {
                    expires: NOW.plus(u64::MAX / 4),
                    ..whole
                },
            ),
            Refusal::Extent,
        ),
        (
            "no end",
            "a0001",
            Said {
                expires: None,
                ..good.clone()
            },
            Refusal::Extent,
        ),
        (
            "another gateway",
            "a0001",
            over(
                &key,
                &Statement {
                    gateway: other,
                    ..whole
                },
            ),
            replayed.clone(),
        ),
        (
            "another plan",
            "a0001",
            over(
                &key,
                &Statement {
                    plan: Hash32::of(b"x"),
                    ..whole
                },
            ),
            replayed,
        ),
    ];
    for (what, approval, said, expected) in attempts {
        assert_eq!(
            decide(&mut m, approval, &said, &operator()),
            Err(expected),
            "{what}"
        );
        assert_eq!(m.get(approval).unwrap().status, Status::Pending, "{what}");
    }
    // Nor of a device that may decide nothing.
    let mut weak = good.clone();
    weak.signed.as_mut().unwrap().signer.scopes = [Scope::Read].into_iter().collect();
    assert!(matches!(
        decide(&mut m, "a0001", &weak, &operator()),
        Err(Refusal::MissingScope(_))
    ));
    assert_eq!(decide(&mut m, "a0001", &good, &operator()), Ok(true));
    // Once more it changes nothing.
    assert_eq!(decide(&mut m, "a0001", &good, &operator()), Ok(false));
}

pub(super) fn demanding(acts: &[Act], elevation: u8) -> Machine {
    let mut m = machine();
    m.deciding = Deciding {
        demands: Demands {
            proof: acts.iter().copied().collect(),
            quorum: Quorum {
                elevation,
                ..Quorum::default()
            },
            ..Demands::default()
        },
        ..deciding()
    };
    m
}

#[test]
fn where_a_proof_is_required_a_session_may_only_refuse() {
    let mut m = demanding(&[Act::Elevation], 1);
    for n in [1, 2] {
        asked(&mut m, n, host_plan(&["uname", &n.to_string()])).unwrap();
    }
    let refused = Err(Refusal::ProofNeeded("elevation"));
    for word in [Word::AllowOnce, Word::AllowAlways] {
        assert_eq!(say(&mut m, "a0001", word, &operator(), "c-2"), refused);
    }
    let code = Refusal::ProofNeeded("elevation").code();
    assert_eq!((code.name, code.exit), ("APPROVAL_PROOF_REQUIRED", 4));
    let invalid = Refusal::ProofInvalid("").code();
    assert_eq!(invalid.name, "APPROVAL_PROOF_INVALID");
    assert_eq!(
        say(&mut m, "a0002", Word::Deny, &operator(), "c-2"),
        Ok(true)
    );
    let said = with_key(&m, "a0001", Word::AllowOnce, &device_key(3));
    assert_eq!(decide(&mut m, "a0001", &said, &operator()), Ok(true));
    let hash = m.get("a0001").unwrap().plan_hash;
    assert_eq!(consume(&mut m, &id(1), hash), Ok(()));

    // A change that frees something, too.
    let mut m = demanding(&[Act::Loosening], 1);
    let document = json!({"version": 1, "agents": {"demo": {
        "security": "full", "ask": "off", "allowlist": []}}});
    let base = m.policy().hash.to_string();
    let set = m.set_policy(document, Some(&base), &by_device("a"), "c-1", id(1), NOW);
    let Ok(PolicySet::Ask(_, step)) = set else {
        panic!()
    };
    m.settle(step);
    assert_eq!(
        say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-2"),
        Err(Refusal::ProofNeeded("loosening"))
    );
    let said = with_key(&m, "a0001", Word::AllowOnce, &device_key(3));
    assert_eq!(decide(&mut m, "a0001", &said, &operator()), Ok(true));
}

/// Who can write what is kept cannot make an answer: nothing is used by a decision whose proof is not there or not its own.
#[test]
fn an_answer_that_was_altered_where_it_is_kept_is_not_used() {
    let answered = || {
        let mut m = demanding(&[Act::Elevation], 1);
        asked(&mut m, 1, host_plan(&["uname"])).unwrap();
        let said = with_key(&m, "a0001", Word::AllowOnce, &device_key(3));
        decide(&mut m, "a0001", &said, &operator()).unwrap();
        m
    };
    let alter = |change: &dyn Fn(&mut Record)| {
        let mut m = answered();
        let mut record = m.get("a0001").unwrap().clone();
        change(&mut record);
        let hash = record.plan_hash;
        m.settle(Step {
            puts: vec![Put::Record(Box::new(record))],
        });
        consume(&mut m, &id(1), hash)
    };
    assert_eq!(alter(&|_| ()), Ok(()));
    assert_eq!(
        alter(&|record| record.votes.clear()),
        Err(Refusal::ProofNeeded("elevation"))
    );
    let invalid = |result| matches!(result, Err(Refusal::ProofInvalid(_)));
    // Another plan under the same proof.
    assert!(invalid(alter(&|record| {
        let plan = host_plan(&["rm", "-r"]);
        record.plan_hash = plan.plan_hash();
        record.subject = Subject::Exec(Box::new(plan));
    })));
    assert!(invalid(alter(&|record| record.votes[0].word = Word::Deny)));
    // The gateway's word in place of the device's.
    let m = answered();
    let record = m.get("a0001").unwrap();
    let session =
        m.deciding
            .key
            .session(&statement(&m, record, Word::AllowOnce), "uid:1000", "c-7");
    assert_eq!(
        alter(&|record| record.votes[0].proof = session.clone()),
        Err(Refusal::ProofNeeded("elevation"))
    );
}

#[test]
fn two_keys_are_two_people_and_one_no_is_enough() {
    let (a, b) = (device_key(3), device_key(4));
    let start = || {
        let mut m = demanding(&[Act::Quorum], 2);
        asked(&mut m, 1, host_plan(&["uname"])).unwrap();
        m
    };
    let mut m = start();
    let hash = m.get("a0001").unwrap().plan_hash;
    assert_eq!(
        say(&mut m, "a0001", Word::AllowOnce, &operator(), "c-2"),
        Err(Refusal::ProofNeeded("quorum"))
    );
    let token = principal(Proof::SharedToken, Role::Operator, None);
    let first = with_key(&m, "a0001", Word::AllowOnce, &a);
    assert_eq!(decide(&mut m, "a0001", &first, &token), Ok(true));
    assert_eq!(m.get("a0001").unwrap().status, Status::Pending);
    assert_eq!(consume(&mut m, &id(1), hash), Err(Refusal::StillPending));
    // The same key again is the same word; otherwise it is no second person.
    assert_eq!(decide(&mut m, "a0001", &first, &token), Ok(false));
    let again = with_key(&m, "a0001", Word::AllowAlways, &a);
    assert_eq!(
        decide(&mut m, "a0001", &again, &token),
        Err(Refusal::SameVoter)
    );
    assert_eq!(Refusal::SameVoter.code().name, "APPROVAL_SAME_VOTER");
    // A restart between the two.
    let rows: Vec<Record> = m.all().into_iter().cloned().collect();
    let kept = serde_json::to_vec(&rows).unwrap();
    let rows: Vec<Record> = serde_json::from_slice(&kept).unwrap();
    let mut m = Machine::new(
        m.limits,
        m.agents.clone(),
        m.deciding.clone(),
        rows,
        vec![],
        Some(Ok(Document::first())),
    );
    assert!(m.recover(NOW, Millis(0)).puts.is_empty());
    let second = with_key(&m, "a0001", Word::AllowAlways, &b);
    assert_eq!(
        decide(&mut m, "a0001", &second, &by_other_key(&b)),
        Ok(true)
    );
    let record = m.get("a0001").unwrap();
    // Of both words the narrower.
    assert_eq!(
        record.resolution.as_ref().unwrap().word,
        Some(Word::AllowOnce)
    );
    assert!(m.grants().is_empty());
    assert_eq!(record.votes.len(), 2);
    assert_eq!(consume(&mut m, &id(1), hash), Ok(()));

    // One no ends it, also without a key.
    let mut m = start();
    say_first(&mut m, &a, &token).unwrap();
    assert_eq!(
        say(&mut m, "a0001", Word::Deny, &operator(), "c-2"),
        Ok(true)
    );
    assert_eq!(m.get("a0001").unwrap().status, Status::Denied);
    assert_eq!(say_first(&mut m, &b, &token), Err(Refusal::AlreadyResolved));

    // A key that is revoked in between takes its word along; the question stands.
    let mut m = start();
    say_first(&mut m, &a, &token).unwrap();
    let step = m.void(&[Basis::Device(a.signer.credential.clone())].into(), NOW);
    m.settle(step);
    let record = m.get("a0001").unwrap();
    assert_eq!((record.status, record.votes.len()), (Status::Pending, 0));
    say_first(&mut m, &b, &token).unwrap();
    assert_eq!(m.get("a0001").unwrap().status, Status::Pending);

    // Two keys of one user of this machine, or on one name, are one person's.
    for (user, by) in [(Some(7), &token), (None, &operator())] {
        let mut m = start();
        let mut first = first_of(&m, &a);
        let mut second = first_of(&m, &b);
        for said in [&mut first, &mut second] {
            said.signed.as_mut().unwrap().signer.user = user;
        }
        decide(&mut m, "a0001", &first, by).unwrap();
        assert_eq!(
            decide(&mut m, "a0001", &second, by),
            Err(Refusal::SameVoter)
        );
    }
}

fn first_of(m: &Machine, key: &Key) -> Said {
    with_key(m, "a0001", Word::AllowOnce, key)
}

fn say_first(m: &mut Machine, key: &Key, by: &Principal) -> Result<bool, Refusal> {
    let said = first_of(m, key);
    decide(m, "a0001", &said, by)
}

/// Connected with the device whose key it is.
pub(super) fn by_other_key(key: &Key) -> Principal {
    let device = key.signer.credential.device.clone();
    principal(Proof::DeviceToken(device), Role::Operator, None)
}

/// Where only one of the kept votes is there, whatever the status says, nothing is used.
#[test]
fn an_answer_that_lacks_a_persons_word_is_not_used() {
    let mut m = demanding(&[], 2);
    asked(&mut m, 1, host_plan(&["uname"])).unwrap();
    let token = principal(Proof::SharedToken, Role::Operator, None);
    for key in [device_key(3), device_key(4)] {
        let said = first_of(&m, &key);
        decide(&mut m, "a0001", &said, &token).unwrap();
    }
    let mut record = m.get("a0001").unwrap().clone();
    assert_eq!(record.status, Status::Allowed);
    let hash = record.plan_hash;
    record.votes.pop();
    m.settle(Step {
        puts: vec![Put::Record(Box::new(record))],
    });
    assert_eq!(
        consume(&mut m, &id(1), hash),
        Err(Refusal::ProofNeeded("quorum"))
    );
}

/// Of an agent, of a kind of question, of nobody: the most counts, and one sandbox command needs one person.
#[test]
fn how_many_decide_is_the_most_that_anything_asks_for() {
    let demands = Demands {
        quorum: Quorum {
            elevation: 2,
            egress: 1,
            loosening: 3,
        },
        of_agents: [(AgentId::new("demo").unwrap(), 4)].into(),
        ..Demands::default()
    };
    let exec = |agent: &str, target| {
        let mut plan = host_plan(&["uname"]);
        plan.agent = AgentId::new(agent).unwrap();
        plan.target = target;
        demands.quorum(&Subject::Exec(Box::new(plan)))
    };
    assert_eq!(exec("demo", Target::Host), 4);
    assert_eq!(exec("b", Target::Host), 2);
    assert_eq!(exec("b", Target::Node("n".repeat(64))), 2);
    assert_eq!(exec("b", Target::Sandbox), 1);
    let change = Subject::Policy {
        base: Hash32::of(b""),
        old: json!({}),
        new: json!({}),
    };
    assert_eq!(demands.quorum(&change), 3);
}
