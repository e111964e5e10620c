//! A gateway's rooms up to `exec`, in a state directory of their own.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use portcullis_core::approval::{Agents, Deciding, DecisionKey, PlanSealer, Record, Word};
use portcullis_core::audit::{BootId, Query};
use portcullis_core::auth::{Door, Principal, Proof, Role, Scope};
use portcullis_core::identity::Identity;
use portcullis_core::ids::AgentId;
use portcullis_core::plan::{PlanKey, Stdin, Target};
use portcullis_core::policy::{AgentPolicy, Elevated, ExecMode};
use portcullis_core::sandbox::{DriverChoice, EnvNames, Layer, Overrides, Profiles};
use portcullis_core::seal::Key;
use tokio::sync::mpsc;

use crate::approval::{ApprovalConfig, ApprovalHandle, ApprovalWiring};
use crate::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring, Found};
use crate::auth::AuthHandle;
use crate::clock::Clock;
use crate::exec::{
    Accepted, ExecConfig, ExecEvent, ExecHandle, ExecRefusal, ExecWiring, RunRequest, RunResult,
};
use crate::nodes::{NodesConfig, NodesHandle, NodesWiring};
use crate::pairing::{PairingConfig, PairingHandle, PairingWiring};
use crate::sandbox_pool::tests::harness::cell;
use crate::sandbox_pool::{
    SandboxPool, SandboxPoolConfig, SandboxPoolHandle, SandboxPoolWiring, UserBook, cell_file,
};
use crate::store::Store;
use crate::supervision::{Feed, Flag, Intensity, Policy, Tree, TreeBuilder};

/// The state directory, and a folder that everybody may walk.
pub struct Folders {
    pub state: tempfile::TempDir,
    pub open: tempfile::TempDir,
}

impl Folders {
    pub fn new() -> Self {
        let (state, open) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(state.path(), 0o700);
        mode(open.path(), 0o777);
        for name in ["run", "workspaces", "identity"] {
            std::fs::create_dir(state.path().join(name)).unwrap();
        }
        Self { state, open }
    }

    /// A script in the open folder.
    pub fn script(&self, name: &str, text: &str) -> String {
        let path = self.open.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.open.path().join(name)
    }
}

pub struct House {
    pub tree: Tree,
    pub exec: ExecHandle,
    pub approval: ApprovalHandle,
    pub audit: AuditHandle,
    pub store: Store,
    pub session: Flag<Option<String>>,
    boot: u8,
    keys: u32,
}

pub async fn house(folders: &Folders, boot: u8) -> House {
    house_with(folders, boot, |_| {}).await
}

pub async fn house_with(
    folders: &Folders,
    boot: u8,
    change: impl FnOnce(&mut ExecWiring),
) -> House {
    house_of(folders, boot, ApprovalConfig::default(), change).await
}

pub async fn house_of(
    folders: &Folders,
    boot: u8,
    config: ApprovalConfig,
    change: impl FnOnce(&mut ExecWiring),
) -> House {
    let state = folders.state.path();
    let store = Store::open(&state.join("state.db")).unwrap();
    let mut tree = TreeBuilder::new(
        Intensity::default(),
        Arc::new(|room, why| panic!("{room}: {why}")),
    );
    let audit = AuditHandle::add(&mut tree, audit_in(state, boot));
    let cell: &'static [u8] = std::fs::read(cell()).unwrap().leak();
    // One agent whose requests may set little.
    let narrow = Overrides {
        env: EnvNames::new(&["ALLOWED".to_owned(), "CI_*".to_owned()]).ok(),
        ..Overrides::default()
    };
    let narrow = Layer {
        name: "[agents.narrow.sandbox]".to_owned(),
        says: narrow,
    };
    let pool = SandboxPoolWiring {
        profiles: Profiles {
            every: vec![Layer {
                name: "[sandbox]".to_owned(),
                says: Overrides {
                    driver: Some(DriverChoice::Native),
                    ..Overrides::default()
                },
            }],
            agents: [(AgentId::new("narrow").unwrap(), vec![narrow])].into(),
        },
        config: SandboxPoolConfig::default(),
        state: state.to_owned(),
        private: Vec::new(),
        cell,
        owner: format!("test-{}", state.file_name().unwrap().to_string_lossy()),
        boot: format!("boot-{boot}"),
        users: UserBook {
            store: store.clone(),
            record: crate::sandbox_pool::Record::Log(audit.clone()),
        },
        ways: None,
        runner: None,
    };
    let pool = SandboxPoolHandle::new(tree.room::<SandboxPool>(Policy::new(256), pool));
    let policy = AgentPolicy {
        exec: ExecMode::Full,
        elevated: Elevated::Ask,
        nodes: ExecMode::Ask,
        ..AgentPolicy::default()
    };
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
    let auth = AuthHandle::bare(&mut tree, &store, &audit, &pairing);
    let approval = ApprovalHandle::add(
        &mut tree,
        ApprovalWiring {
            hosts: crate::sandbox_pool::HostQuestions::new(),
            config,
            auth,
            pairing,
            agents: Agents {
                named: [(agent(), policy)].into(),
                ..Agents::default()
            },
            store: store.clone(),
            audit: audit.clone(),
            sealer: PlanSealer::new(Key::new([7; 32])),
            deciding: Deciding::plain(DecisionKey::from_seed(&[9; 32])),
            clock: Clock::system(),
            feed: Feed::new(),
        },
    );
    let (cell, _) = cell_file::place(&state.join("run"), cell).unwrap();
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
    let nodes = NodesHandle::add(
        &mut tree,
        NodesWiring {
            config: NodesConfig::default(),
            pairing,
            audit: audit.clone(),
            clock: Clock::system(),
        },
    );
    let mut wiring = ExecWiring {
        vault: None,
        config: ExecConfig::default(),
        agents: BTreeMap::new(),
        every: crate::exec::AgentLimits::default(),
        operator_uids: vec![rustix::process::geteuid().as_raw()],
        operator_gids: Vec::new(),
        state: state.to_owned(),
        forbidden: vec![state.join("identity")],
        cell,
        approval: approval.clone(),
        pool,
        nodes,
        audit: audit.clone(),
        plans: plans(),
        clock: Clock::system(),
        since: Arc::new(Flag::new(None)),
    };
    change(&mut wiring);
    let exec = ExecHandle::add(&mut tree, wiring);
    House {
        tree: tree.start().await.unwrap(),
        exec,
        approval,
        audit,
        store,
        session: Flag::new(None),
        boot,
        keys: 0,
    }
}

/// What seals plans in the log.
pub(super) fn plans() -> PlanKey {
    PlanKey::new(Identity::from_random([1; 32]).logged_plans())
}

fn audit_in(folder: &Path, boot: u8) -> AuditWiring {
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
    }
}

/// A log that records nothing any more.
pub async fn mute(folder: &Path) -> AuditHandle {
    let mut tree = TreeBuilder::new(
        Intensity::default(),
        Arc::new(|room, why| panic!("{room}: {why}")),
    );
    let audit = AuditHandle::add(&mut tree, audit_in(folder, 9));
    tree.start().await.unwrap().stop().await;
    audit
}

pub fn agent() -> AgentId {
    AgentId::new("demo").unwrap()
}

pub fn operator(uid: u32) -> Principal {
    Principal {
        proof: Proof::PeerUid(uid),
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

/// What a run said.
#[derive(Debug)]
pub struct Ended {
    pub out: String,
    pub err: String,
    pub result: RunResult,
}

impl House {
    pub async fn end(self) {
        self.tree.stop().await;
        self.store.close().await.unwrap();
    }

    pub fn request(&mut self, target: Target, argv: &[&str]) -> RunRequest {
        self.keys += 1;
        RunRequest {
            session_key: None,
            secrets: std::collections::BTreeMap::new(),
            principal: operator(0),
            connection: "c1".to_owned(),
            agent: agent(),
            argv: argv.iter().map(|&text| text.to_owned()).collect(),
            cwd: None,
            env: BTreeMap::new(),
            timeout_ms: Some(20_000),
            target,
            stdin: Stdin::None,
            tty: None,
            detach: false,
            idempotency_key: format!("key-{}-{}", self.boot, self.keys),
            session: self.session.reader(),
        }
    }

    pub async fn begin(
        &self,
        request: RunRequest,
    ) -> Result<(Accepted, mpsc::Receiver<ExecEvent>), ExecRefusal> {
        let (events, seen) = mpsc::channel(16);
        let accepted = self.exec.run(request, events).await?;
        Ok((accepted, seen))
    }

    pub async fn run(&self, request: RunRequest) -> Result<(Accepted, Ended), ExecRefusal> {
        let (accepted, seen) = self.begin(request).await?;
        Ok((accepted, finish(seen).await))
    }

    /// Begins a host run and answers its question.
    pub async fn run_allowed(&self, request: RunRequest) -> Ended {
        let (accepted, seen) = self.begin(request).await.unwrap();
        self.answer(&accepted, Word::AllowOnce).await;
        finish(seen).await
    }

    pub async fn answer(&self, accepted: &Accepted, word: Word) -> Record {
        let id = accepted.approval_id.as_ref().unwrap();
        let by = operator(0);
        let answer = self.approval.resolve(id.as_str(), word, &by, "c2");
        answer.await.unwrap()
    }

    pub async fn intents(&self) -> Vec<Found> {
        let query = Query {
            action: Some("exec.run".to_owned()),
            ..Query::default()
        };
        self.audit.query(query).await.unwrap()
    }
}

pub async fn finish(mut seen: mpsc::Receiver<ExecEvent>) -> Ended {
    let mut streams = [Vec::new(), Vec::new()];
    let mut next = 0;
    let within = Duration::from_mins(1);
    loop {
        match tokio::time::timeout(within, seen.recv()).await.unwrap() {
            Some(ExecEvent::Begun { .. }) => {}
            Some(ExecEvent::Output {
                seq, stream, data, ..
            }) => {
                assert_eq!(seq, next, "output in order");
                next += 1;
                streams[usize::from(stream == crate::exec::Stream::Err)].extend(data);
            }
            Some(ExecEvent::Ended(result)) => {
                let [out, err] = streams.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                return Ended { out, err, result };
            }
            Some(ExecEvent::Detached) | None => panic!("the channel closed without an end"),
        }
    }
}

/// Is a process alive whose command line holds this?
pub fn alive(mark: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(mark) && !line.contains("cargo")
        })
    })
}

pub async fn until(what: &str, within: Duration, mut test: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + within;
    while !test() {
        assert!(
            tokio::time::Instant::now() < end,
            "{what} within {within:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
