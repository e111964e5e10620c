//! What rests on the word of a device holds no longer than its generation, whoever was running when that ended.

use super::*;
use crate::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring};
use crate::auth::AuthHandle;
use crate::clock::Clock;
use crate::pairing::{Client, ConnectFacts, PairingConfig, PairingHandle, PairingWiring, Verdict};
use crate::store::Store;
use crate::supervision::{Feed, Intensity, Tree, TreeBuilder};
use portcullis_core::approval::{Agents, Deciding, DecisionKey, PlanSealer, Status, Word};
use portcullis_core::audit::{BootId, Entry};
use portcullis_core::auth::{Door, Principal, Proof, Role, Scope, ScopeSet};
use portcullis_core::device::DeviceKey;
use portcullis_core::identity::Identity;
use portcullis_core::ids::{AgentId, ApprovalId, DeviceId, Hash32};
use portcullis_core::plan::{
    Egress, EnvValue, ExecPlan, Executable, Form, HOST_PATH, HostFile, Limits, Nonce, Stdin, Target,
};
use portcullis_core::policy::{AgentPolicy, Elevated, ExecMode};
use std::path::Path;
use std::sync::Arc;

struct House {
    tree: Tree,
    audit: AuditHandle,
    pairing: PairingHandle,
    approval: Option<ApprovalHandle>,
    store: Store,
}

/// `approves`: with the room of approvals, or as if it had never come to it.
async fn house(folder: &Path, boot: u8, approves: bool) -> House {
    let store = Store::open(&folder.join("state.db")).unwrap();
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
    let pairing = PairingHandle::add(
        &mut tree,
        PairingWiring {
            config: PairingConfig::default(),
            store: store.clone(),
            audit: audit.clone(),
            clock: Clock::system(),
            news: Feed::new(),
        },
    );
    let open = AgentPolicy {
        exec: ExecMode::Full,
        elevated: Elevated::Ask,
        ..AgentPolicy::default()
    };
    let wiring = ApprovalWiring {
        hosts: crate::sandbox_pool::HostQuestions::new(),
        config: ApprovalConfig::default(),
        agents: Agents {
            named: [(AgentId::new("demo").unwrap(), open)].into(),
            ..Agents::default()
        },
        store: store.clone(),
        audit: audit.clone(),
        pairing: pairing.clone(),
        auth: AuthHandle::bare(&mut tree, &store, &audit, &pairing),
        sealer: PlanSealer::of(&Identity::from_random([1; 32])),
        deciding: Deciding::plain(DecisionKey::from_seed(&[9; 32])),
        clock: Clock::system(),
        feed: Feed::new(),
    };
    let approval = approves.then(|| ApprovalHandle::add(&mut tree, wiring));
    House {
        tree: tree.start().await.unwrap(),
        audit,
        pairing,
        approval,
        store,
    }
}

impl House {
    async fn end(self) {
        self.tree.stop().await;
        self.store.close().await.unwrap();
    }

    fn approval(&self) -> &ApprovalHandle {
        self.approval.as_ref().unwrap()
    }

    /// An operator's device that local trust lets in.
    async fn device(&self, seed: u8) -> Principal {
        let signing = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        let key = DeviceKey::Ed25519(signing.verifying_key());
        let scopes: ScopeSet = [Scope::Admin].into_iter().collect();
        let facts = ConnectFacts {
            device_id: DeviceId::new(&key.id()).unwrap(),
            public_key: key.to_text(),
            client: Client::default(),
            role: Role::Operator,
            asked: scopes.clone(),
            authenticated: true,
            secret: None,
            device_token: None,
            local_operator: true,
            local_scopes: scopes.clone(),
        };
        let device = facts.device_id.clone();
        let Verdict::Paired { generation, .. } = self.pairing.decide(facts).await.unwrap() else {
            panic!("not let in");
        };
        Principal {
            proof: Proof::DeviceToken(device),
            door: Door::Tcp,
            role: Role::Operator,
            scopes,
            agent: None,
            generation,
            secret: None,
        }
    }

    async fn ask(&self, by: &Principal, argv: &[&str]) -> Decision {
        let ask = Ask {
            plan: plan(by, argv),
            requester: by.clone(),
            connection: "c-1".into(),
            idempotency_key: None,
            id: None,
            narrowing: portcullis_core::approval::Narrowing::default(),
            own: portcullis_core::policy::ExecMode::Full,
        };
        self.approval().decide(ask).await.unwrap()
    }

    async fn pending(&self, by: &Principal, argv: &[&str]) -> ApprovalId {
        match self.ask(by, argv).await {
            Decision::Pending { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    async fn say(&self, id: &ApprovalId, word: Word, by: &Principal) {
        let said = self.approval().resolve(id.as_str(), word, by, "c-9").await;
        said.unwrap();
    }

    async fn stands(&self, id: &ApprovalId) -> (Status, String) {
        let record = self.approval().get(id.as_str()).await.unwrap();
        let why = record.resolution.map(|r| r.why).unwrap_or_default();
        (record.status, why)
    }
}

fn local() -> Principal {
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

fn plan(by: &Principal, argv: &[&str]) -> ExecPlan {
    ExecPlan {
        v: Form::V2,
        target: Target::Host,
        agent: AgentId::new("demo").unwrap(),
        session: "c-1".into(),
        principal: by.name(),
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

#[tokio::test(flavor = "multi_thread")]
async fn what_rests_on_a_revoked_device_is_void_at_the_next_start_though_nobody_said_so_here() {
    let folder = tempfile::tempdir().unwrap();
    let first = house(folder.path(), 1, true).await;
    let (gone, stays) = (first.device(1).await, first.device(2).await);
    let asked = first.pending(&gone, &["uname"]).await;
    let allowed = first.pending(&local(), &["id"]).await;
    first.say(&allowed, Word::AllowOnce, &gone).await;
    let granted = first.pending(&local(), &["who"]).await;
    first.say(&granted, Word::AllowAlways, &gone).await;
    let other = first.pending(&local(), &["pwd"]).await;
    first.say(&other, Word::AllowAlways, &stays).await;
    let theirs = first.pending(&stays, &["date"]).await;
    // A standing word lets it run without a question.
    assert!(matches!(
        first.ask(&local(), &["who"]).await,
        Decision::Allow { .. }
    ));
    first.end().await;

    // The revocation is durable, and the process dies before it says so to anybody.
    let second = house(folder.path(), 2, false).await;
    let device = gone.device().unwrap();
    let by = local();
    let revoked = second.pairing.revoke(&by, device, Role::Operator);
    revoked.await.unwrap();
    second.end().await;

    let third = house(folder.path(), 3, true).await;
    for id in [&asked, &allowed, &granted] {
        let (status, why) = third.stands(id).await;
        assert_eq!((status, why.as_str()), (Status::Cancelled, "revoked"));
    }
    assert_eq!(third.stands(&theirs).await.0, Status::Pending);
    assert_eq!(third.approval().grants().await.unwrap().len(), 1);
    assert!(matches!(
        third.ask(&local(), &["who"]).await,
        Decision::Pending { .. }
    ));
    assert!(matches!(
        third.ask(&local(), &["pwd"]).await,
        Decision::Allow { .. }
    ));
    third.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_or_a_grant_of_a_device_is_not_used_from_the_moment_its_generation_ended() {
    for round in 0..12_u8 {
        let folder = tempfile::tempdir().unwrap();
        let house = house(folder.path(), round + 1, true).await;
        let device = house.device(round + 1).await;
        let id = house.pending(&local(), &["id"]).await;
        house.say(&id, Word::AllowOnce, &device).await;
        let granted = house.pending(&local(), &["who"]).await;
        house.say(&granted, Word::AllowAlways, &device).await;
        let plan_hash = plan(&local(), &["id"]).plan_hash();
        let intent = house.audit.intent(Entry::new("exec.run")).await.unwrap();
        let id_of = device.device().unwrap().clone();
        if round % 2 == 0 {
            let by = local();
            let rotated = house.pairing.rotate(&by, &id_of, Role::Operator, None);
            rotated.await.unwrap();
        } else {
            house.pairing.remove(&local(), &id_of).await.unwrap();
        }
        // At once: the news may not have been heard here yet.
        let used = house.approval().consume(&id, plan_hash, intent).await;
        assert_eq!(used.map_err(|e| e.code()), Err("APPROVAL_DENIED"));
        assert!(matches!(
            house.ask(&local(), &["who"]).await,
            Decision::Pending { .. }
        ));
        // What it would ask or answer under the old generation is not taken either.
        let late = house.approval().decide(Ask {
            plan: plan(&device, &["date"]),
            requester: device.clone(),
            connection: "c-2".into(),
            idempotency_key: None,
            id: None,
            narrowing: portcullis_core::approval::Narrowing::default(),
            own: portcullis_core::policy::ExecMode::Full,
        });
        assert_eq!(late.await.map_err(|e| e.code()), Err("SESSION_ENDED"));
        house.end().await;
    }
}
