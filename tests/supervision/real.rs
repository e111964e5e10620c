//! The real rooms in a small tree, on a temporary state: what stands below the room that a test breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_actors::approval::{ApprovalConfig, ApprovalHandle, ApprovalWiring};
use portcullis_actors::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring, verify_dir};
use portcullis_actors::auth::{AuthConfig, AuthHandle, AuthWiring, Modes, SharedSecret};
use portcullis_actors::clock::Clock;
use portcullis_actors::nodes::{NodesConfig, NodesHandle, NodesWiring};
use portcullis_actors::pairing::{PairingConfig, PairingHandle, PairingWiring};
use portcullis_actors::sandbox_pool::{
    Record, SandboxPool, SandboxPoolConfig, SandboxPoolHandle, SandboxPoolWiring, UserBook,
};
use portcullis_actors::store::{Op, Store};
use portcullis_actors::supervision::{
    Feed, Intensity, Policy, RoomState, RoomView, Tree, TreeBuilder,
};
use portcullis_actors::vault::{VaultConfig, VaultHandle, VaultWiring};
use portcullis_core::approval::{Agents, Deciding, DecisionKey, PlanSealer};
use portcullis_core::audit::{BootId, Entry};
use portcullis_core::auth::secret::SharedHash;
use portcullis_core::auth::{Door, Principal, Proof, Role, Scope, ScopeSet};
use portcullis_core::identity::Identity;
use portcullis_core::ids::AgentId;
use portcullis_core::policy::{AgentPolicy, Elevated, ExecMode};
use portcullis_core::sandbox::{DriverChoice, Layer, Overrides, Profiles};
use portcullis_core::seal::Secret;
use portcullis_core::time::Millis;
use portcullis_core::token::TokenHash;

use super::support::eventually;

/// A handle's own deadline, and a little for a busy machine.
pub const ANSWERED: Duration = Duration::from_secs(7);

/// Breaks a room in the middle of a request: its clock panics once.
#[derive(Clone, Default)]
pub struct Trip(Arc<AtomicBool>);

impl Trip {
    pub fn arm(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn clock(&self) -> Clock {
        let armed = self.0.clone();
        Clock::of(move || {
            assert!(!armed.swap(false, Ordering::SeqCst), "planned");
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            Millis(since.as_millis().try_into().unwrap())
        })
    }
}

/// A tree that is being planted: the store and the log stand.
pub struct Ground {
    pub state: tempfile::TempDir,
    pub store: Store,
    pub audit: AuditHandle,
    pub tree: TreeBuilder,
}

impl Ground {
    pub fn new() -> Self {
        Self::with(AuditConfig::default())
    }

    pub fn with(config: AuditConfig) -> Self {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(&state.path().join("state.db")).unwrap();
        let mut tree = TreeBuilder::new(
            Intensity::default(),
            Arc::new(|room, why| panic!("{room}: {why}")),
        );
        let audit = AuditHandle::add(
            &mut tree,
            AuditWiring {
                state: None,
                dir: state.path().join("audit"),
                keys: AuditKeys::new(state.path().join("keys"), &Identity::from_random([1; 32])),
                config,
                boot: BootId([1; 16]),
                clock: portcullis_actors::audit::Clock::new(),
                feed: Feed::new(),
                unwritten: std::sync::Arc::default(),
                version: "test".into(),
            },
        );
        Self {
            state,
            store,
            audit,
            tree,
        }
    }

    pub fn vault(&mut self, trip: &Trip) -> VaultHandle {
        VaultHandle::add(
            &mut self.tree,
            VaultWiring {
                config: VaultConfig::default(),
                store: self.store.clone(),
                audit: self.audit.clone(),
                identity: Identity::from_random([1; 32]),
                clock: trip.clock(),
                around: portcullis_actors::vault::Around::default(),
            },
        )
    }

    pub fn pairing(&mut self, trip: &Trip) -> PairingHandle {
        PairingHandle::add(
            &mut self.tree,
            PairingWiring {
                config: PairingConfig::default(),
                store: self.store.clone(),
                audit: self.audit.clone(),
                clock: trip.clock(),
                news: Feed::new(),
            },
        )
    }

    fn auth(&mut self, pairing: &PairingHandle) -> AuthHandle {
        AuthHandle::add(
            &mut self.tree,
            AuthWiring {
                config: AuthConfig::default(),
                modes: Modes::default(),
                bcrypt_cost: 4,
                pepper: Secret::new(vec![1; 32]),
                token: SharedSecret::Given(SharedHash::Random(TokenHash::of("tests"))),
                proxy_users: Arc::new([]),
                shared_token_scopes: ScopeSet::empty(),
                local_trust: false,
                local_scopes: ScopeSet::empty(),
                pairing: pairing.clone(),
                store: self.store.clone(),
                news: Feed::new(),
                audit: self.audit.clone(),
                clock: Clock::system(),
            },
        )
    }

    pub fn approval(&mut self, trip: &Trip) -> ApprovalHandle {
        let pairing = self.pairing(&Trip::default());
        let auth = self.auth(&pairing);
        let open = AgentPolicy {
            exec: ExecMode::Full,
            elevated: Elevated::Ask,
            nodes: ExecMode::Ask,
            ..AgentPolicy::default()
        };
        ApprovalHandle::add(
            &mut self.tree,
            ApprovalWiring {
                hosts: portcullis_actors::sandbox_pool::HostQuestions::new(),
                config: ApprovalConfig::default(),
                agents: Agents {
                    named: [(agent("demo"), open)].into(),
                    ..Agents::default()
                },
                store: self.store.clone(),
                audit: self.audit.clone(),
                pairing,
                auth,
                sealer: PlanSealer::of(&Identity::from_random([1; 32])),
                deciding: Deciding::plain(DecisionKey::from_seed(&[9; 32])),
                clock: trip.clock(),
                feed: Feed::new(),
            },
        )
    }

    pub fn pool(&mut self, capacity: usize) -> SandboxPoolHandle {
        self.pool_of(capacity, Profiles::default())
    }

    /// With profiles of the caller's own.
    pub fn pool_of(&mut self, capacity: usize, mut profiles: Profiles) -> SandboxPoolHandle {
        profiles.every.push(Layer {
            name: "[sandbox]".to_owned(),
            says: Overrides {
                driver: Some(DriverChoice::Native),
                ..Overrides::default()
            },
        });
        SandboxPoolHandle::new(self.tree.room::<SandboxPool>(
            Policy::new(capacity),
            SandboxPoolWiring {
                profiles,
                config: SandboxPoolConfig::default(),
                state: self.state.path().to_owned(),
                private: Vec::new(),
                cell: include_bytes!(env!("PORTCULLIS_CELL")),
                owner: format!(
                    "test-{}",
                    self.state.path().file_name().unwrap().to_string_lossy()
                ),
                boot: "boot-1".to_owned(),
                users: UserBook {
                    store: self.store.clone(),
                    record: Record::Log(self.audit.clone()),
                },
                ways: None,
                runner: None,
            },
        ))
    }

    /// With a pairing of its own.
    pub fn nodes(&mut self) -> NodesHandle {
        let pairing = self.pairing(&Trip::default());
        NodesHandle::add(
            &mut self.tree,
            NodesWiring {
                config: NodesConfig::default(),
                pairing,
                audit: self.audit.clone(),
                clock: Clock::system(),
            },
        )
    }

    pub async fn start(self) -> Standing {
        Standing {
            tree: self.tree.start().await.unwrap(),
            state: self.state,
            store: self.store,
            audit: self.audit,
        }
    }
}

/// A tree that stands.
pub struct Standing {
    pub state: tempfile::TempDir,
    pub store: Store,
    pub audit: AuditHandle,
    pub tree: Tree,
}

impl Standing {
    pub fn room(&self, name: &str) -> RoomView {
        let rooms = self.tree.window().look().rooms;
        rooms.into_iter().find(|room| room.name == name).unwrap()
    }

    /// Asks a room, and waits until its handler is through: an answer comes before the handler's last words. The only
    /// one that asks.
    pub async fn whole<T>(&self, name: &str, call: impl Future<Output = T>) -> T {
        let handled = || self.room(name).gate.unwrap().handled;
        let before = handled();
        let answer = call.await;
        eventually("the handler is through", || handled() > before).await;
        answer
    }

    /// After its `crashes`th crash the room serves again, has all permits back, and nobody else was restarted.
    pub async fn recovered(&self, name: &str, crashes: u64) {
        eventually("it serves again", || {
            let room = self.room(name);
            room.restarts == crashes && matches!(room.state, RoomState::Up | RoomState::Waiting)
        })
        .await;
        eventually("its permits are back", || {
            self.room(name).gate.unwrap().depth == 0
        })
        .await;
        for room in self.tree.window().look().rooms {
            assert!(
                room.name == name || room.restarts == 0,
                "{} was restarted too: {:?}",
                room.name,
                room.last_crash
            );
        }
        self.audit.event(Entry::new("test.alive")).await.unwrap();
    }

    /// Another hand changes a row underneath its room: the room's next write to it finds another revision.
    pub async fn touch(&self, kind: &str, id: &str) {
        let row = self.store.get(kind, id).await.unwrap().unwrap();
        let op = Op::compare_and_set(kind, id, row.intent, row.rev, row.payload);
        self.store.commit(vec![op]).await.unwrap();
    }

    /// Stops everything; the log must then be whole.
    pub async fn end(self) {
        self.tree.stop().await;
        self.store.close().await.unwrap();
        let report = verify_dir(&self.state.path().join("audit")).unwrap();
        assert!(report.intact, "{report:?}");
    }
}

pub fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

pub fn operator() -> Principal {
    Principal {
        proof: Proof::PeerUid(0),
        door: Door::Control,
        role: Role::Operator,
        scopes: [Scope::Admin, Scope::Approvals, Scope::ActAs]
            .into_iter()
            .collect(),
        agent: None,
        generation: 0,
        secret: None,
    }
}

/// The answer came within the caller's deadline.
pub async fn in_time<T>(answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(ANSWERED, answer)
        .await
        .expect("answered within the deadline")
}
