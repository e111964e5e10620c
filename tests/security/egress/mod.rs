//! The way out of a box: what may pass does, and everything that others got past such a proxy with does not. Each refusal is answered with
//! its reason and is in the log; nothing of it reaches the host behind.

mod asks; // hosts that a person is asked about
mod authority; // certificates
mod boxes; // inside of real boxes, on both drivers
mod corpus; // one request each
mod limits; // slow, many, long
mod reflected; // secrets that come back
mod table; // the corpus, item by item, each with its control
mod terminated; // TLS that the gateway opens, and the secrets for it
mod tunnels; // TLS, and what is not
mod upstream; // hosts on loopback

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portcullis_actors::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring};
use portcullis_actors::clock::Clock;
use portcullis_actors::sandbox_pool::HostQuestions;
use portcullis_actors::sandbox_pool::egress::{
    Egress, EgressLimits, EgressWiring, Opener, Resolver, Ways,
};
use portcullis_actors::store::Store;
use portcullis_actors::supervision::{Feed, Flag, Intensity, Policy, Tree, TreeBuilder};
use portcullis_actors::vault::{Around, VaultConfig, VaultHandle, VaultWiring};
use portcullis_core::audit::{BootId, Query, Record};
use portcullis_core::egress::{Addresses, Rules, Terminations};
use portcullis_core::identity::Identity;
use portcullis_core::ids::{AgentId, BoxId, RunId};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Longest time that anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// To look for this name breaks the room that does.
pub const BREAKS: &str = "breaks.test";

/// Nobody answers for names below this one.
pub const HANGS: &str = ".hangs.test";

/// What names stand for: one answer after the other, the last again and again.
#[derive(Clone, Default)]
pub struct Names(
    Arc<Mutex<HashMap<String, Vec<Vec<IpAddr>>>>>,
    Arc<Mutex<Vec<String>>>,
);

impl Names {
    pub fn set(&self, name: &str, answers: &[&[&str]]) {
        let answers = answers
            .iter()
            .map(|answer| answer.iter().map(|ip| ip.parse().unwrap()).collect())
            .collect();
        self.0.lock().unwrap().insert(name.to_owned(), answers);
    }

    /// Names that were looked up.
    pub fn asked(&self) -> Vec<String> {
        self.1.lock().unwrap().clone()
    }

    fn find(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        assert_ne!(name, BREAKS, "planned");
        self.1.lock().unwrap().push(name.to_owned());
        let mut names = self.0.lock().unwrap();
        let answers = names.get_mut(name).ok_or(std::io::ErrorKind::NotFound)?;
        Ok(if answers.len() > 1 {
            answers.remove(0)
        } else {
            answers[0].clone()
        })
    }

    pub fn resolver(&self) -> Resolver {
        let names = self.clone();
        Resolver::new(move |name| {
            if name.ends_with(HANGS) {
                return Box::pin(std::future::pending());
            }
            let found = names.find(&name);
            Box::pin(async move { found })
        })
    }
}

/// A log, in a tree that is not started yet.
pub fn log(state: &std::path::Path, tree: &mut TreeBuilder) -> AuditHandle {
    AuditHandle::add(
        tree,
        AuditWiring {
            state: None,
            dir: state.join("audit"),
            keys: AuditKeys::new(state.join("keys"), &Identity::from_random([1; 32])),
            config: AuditConfig::default(),
            boot: BootId([1; 16]),
            clock: portcullis_actors::audit::Clock::new(),
            feed: Feed::new(),
            unwritten: Arc::default(),
            version: "test".into(),
        },
    )
}

pub fn builder() -> TreeBuilder {
    TreeBuilder::new(
        Intensity::default(),
        Arc::new(|room, why| panic!("{room}: {why}")),
    )
}

/// What hosts' TLS is opened with.
pub struct Opening {
    pub terminate: Terminations,
    pub agents: Option<Arc<[String]>>,
    /// How hosts are verified.
    pub client: Option<Arc<rustls::ClientConfig>>,
}

impl Opening {
    pub fn opener(&self, vault: VaultHandle) -> Opener {
        Opener {
            vault,
            roots: Arc::new([]),
            client: self.client.clone(),
            clock: Clock::system(),
        }
    }
}

/// A vault, in a tree that is not started yet.
pub fn add_vault(
    state: &std::path::Path,
    tree: &mut TreeBuilder,
    audit: &AuditHandle,
) -> VaultHandle {
    VaultHandle::add(
        tree,
        VaultWiring {
            config: VaultConfig::default(),
            store: Store::open(&state.join("state.db")).unwrap(),
            audit: audit.clone(),
            identity: Identity::from_random([1; 32]),
            clock: Clock::system(),
            around: Around::default(),
        },
    )
}

/// One way out, without a box: who dials its socket is taken for the box.
pub struct Scene {
    _state: tempfile::TempDir,
    pub tree: Tree,
    pub audit: AuditHandle,
    pub names: Names,
    pub vault: Option<VaultHandle>,
    pub socket: PathBuf,
}

impl Scene {
    pub async fn new(rules: &[String], networks: &[&str], limits: EgressLimits) -> Self {
        Self::with_log(rules, networks, limits, None).await
    }

    /// With another log than its own.
    pub async fn with_log(
        rules: &[String],
        networks: &[&str],
        limits: EgressLimits,
        other: Option<AuditHandle>,
    ) -> Self {
        Self::built(rules, networks, limits, other, None, None).await
    }

    pub async fn built(
        rules: &[String],
        networks: &[&str],
        limits: EgressLimits,
        other: Option<AuditHandle>,
        opening: Option<Opening>,
        questions: Option<HostQuestions>,
    ) -> Self {
        let state = tempfile::TempDir::with_prefix("pce").unwrap();
        let mut tree = builder();
        let audit = log(state.path(), &mut tree);
        let names = Names::default();
        std::fs::create_dir(state.path().join("b")).unwrap();
        let run_dir = state.path().join("b/0123456789ab");
        let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
        let used = other.unwrap_or_else(|| audit.clone());
        let mut ways = Ways::with(used, names.resolver(), limits);
        let asks_for = questions.is_some().then(|| AgentId::new("demo").unwrap());
        if let Some(questions) = questions {
            ways = ways.asking(questions);
        }
        let (mut vault, mut terminate) = (None, Terminations::default());
        let mut agents = Some([String::from("demo")].into());
        if let Some(opening) = opening {
            let handle = add_vault(state.path(), &mut tree, &audit);
            ways = ways.opening(opening.opener(handle.clone()));
            vault = Some(handle);
            terminate = opening.terminate;
            agents = opening.agents;
        }
        tree.room::<Egress>(
            Policy::new(4),
            EgressWiring {
                ways,
                rules: Rules::new(rules).unwrap(),
                addresses: Addresses::try_from(networks).unwrap(),
                terminate,
                agents,
                asks_for,
                section: "[sandbox]".to_owned(),
                lookups: Ways::lookups(),
                whose: "demo".to_owned(),
                principal: "agent:demo".to_owned(),
                id: BoxId::new("0123456789ab").unwrap(),
                run_dir: run_dir.clone(),
                gid: rustix::process::getegid().as_raw(),
                runs: Flag::new(Arc::from([RunId::new("run-7").unwrap()])).reader(),
            },
        );
        let tree = tree.start().await.unwrap();
        Self {
            _state: state,
            tree,
            audit,
            names,
            vault,
            socket: run_dir.join("e"),
        }
    }

    pub async fn dial(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Sends this and reads to the end.
    pub async fn ask(&self, request: &[u8]) -> Answer {
        let mut stream = self.dial().await;
        // It may be refused before all of it is there.
        let _ = stream.write_all(request).await;
        Answer::read(&mut stream).await
    }

    /// All records of this action, once there are so many.
    pub async fn records(&self, action: &str, least: usize) -> Vec<Value> {
        records(&self.audit, action, least).await
    }
}

/// All records of this action, once there are so many.
pub async fn records(audit: &AuditHandle, action: &str, least: usize) -> Vec<Value> {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let found = audit
            .query(Query {
                action: Some(action.to_owned()),
                limit: 1_000,
                ..Query::default()
            })
            .await
            .unwrap();
        let json = |record: &Record| serde_json::to_value(record).unwrap();
        let found: Vec<Value> = found.iter().map(|found| json(&found.record)).collect();
        if found.len() >= least {
            return found;
        }
        assert!(
            std::time::Instant::now() < end,
            "{action}: {} of {least}: {found:#?}",
            found.len()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What was answered.
#[derive(Debug)]
pub struct Answer(pub String);

impl Answer {
    pub async fn read(stream: &mut UnixStream) -> Self {
        let mut bytes = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes))
            .await
            .expect("the connection ends");
        Self(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn status(&self) -> &str {
        self.0.split(' ').nth(1).unwrap_or_default()
    }

    /// The word of a refusal.
    pub fn word(&self) -> &str {
        let header = self.0.split("X-Portcullis-Egress: ").nth(1);
        header
            .and_then(|rest| rest.split("\r\n").next())
            .unwrap_or_default()
    }
}
