//! THE supervision tree: every room, in start order, each wired with rooms above it in this list only.
//!
//! An upward call has no handle to be made with; upward news are feeds. Stop is the reverse. `tests/house/order.rs`
//! holds this page against the one order of ARCHITECTURE.md.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use portcullis_actors::approval::{ApprovalHandle, ApprovalWiring};
use portcullis_actors::audit::{AuditHandle, AuditKeys, AuditWiring};
use portcullis_actors::auth::{AuthHandle, AuthWiring, SharedSecret};
use portcullis_actors::clock::Clock;
use portcullis_actors::connection::{Certificate, ConnectionShared, Methods, Sessions};
use portcullis_actors::dashboard::{Dashboard, DashboardHandle};
use portcullis_actors::exec::{AgentLimits, ExecHandle, ExecWiring, ProgramGround};
use portcullis_actors::nodes::{NodesHandle, NodesWiring};
use portcullis_actors::notices::{self, NoticesHandle, NoticesWiring};
use portcullis_actors::pairing::{PairingHandle, PairingWiring};
use portcullis_actors::sandbox_pool::egress::Opener;
use portcullis_actors::sandbox_pool::{
    HostQuestions, Record, RunnerProgram, SandboxPool, SandboxPoolHandle, SandboxPoolWiring,
    UserBook, Ways,
};
use portcullis_actors::signing::{SigningHandle, SigningWiring};
use portcullis_actors::sinks::{self, SinksHandle, SinksWiring};
use portcullis_actors::store::Store;
use portcullis_actors::supervision::{
    Feed, Flag, FlagReader, OnFatal, Policy, TreeBuilder, TreeWindow,
};
use portcullis_actors::vault::{Around, VaultHandle, VaultWiring};
use portcullis_core::approval::{Agents, Deciding, DecisionKey, Demands, PlanSealer};
use portcullis_core::audit::BootId;
use portcullis_core::auth::proxy::ProxyRules;
use portcullis_core::auth::sub_uids::SubUids;
use portcullis_core::identity::Identity;
use portcullis_core::ids::AgentId;
use portcullis_core::plan::PlanKey;
use portcullis_core::policy::AgentPolicy;
use portcullis_core::seal::Secret;
use serde_json::Value;
use tokio::time::Instant;

use crate::config::Config;
use crate::edge::{Again, Doors, Edge, EdgeHandle, EdgeWiring, Http, Looks, Rpc, Runs};
use crate::methods::Site;
use crate::tls;

/// Start order, bottom first. `store` is a handle over its own threads; `connection` lives under `edge`.
pub const ORDER: &[&str] = &[
    "store",
    "audit",
    "vault",
    "sinks",
    "pairing",
    "signing",
    "auth",
    "sandbox_pool",
    "nodes",
    "approval",
    "exec",
    "notices",
    "dashboard",
    "edge",
    "connection",
];

/// What exists before the tree: made once, given to every life of a room.
pub struct Ground {
    /// All settings.
    pub config: Config,
    /// Redacted, for `config.get`.
    pub config_view: Value,
    /// `STATE`.
    pub state: PathBuf,
    /// `STATE/state.db`, open.
    pub store: Store,
    /// The machine's key.
    pub identity: Identity,
    /// What else unlockers of the vault need of the machine.
    pub around: Around,
    /// The shared token, as it is kept.
    pub token: SharedSecret,
    /// Of password hashes.
    pub pepper: Secret,
    /// This start.
    pub boot: BootId,
    /// The state directory's own name, for labels of boxes.
    pub owner: String,
    /// The process that speaks to the container engine.
    pub runner: RunnerProgram,
    /// The listening sockets.
    pub doors: Doors,
    /// Whose sub-uids are whose.
    pub sub_uids: Arc<SubUids>,
    /// Whose word on a client counts.
    pub proxies: FlagReader<Arc<ProxyRules>>,
    /// Who reads a proxy's key set again.
    pub again: Again,
    /// What TLS is spoken with.
    pub tls: FlagReader<tls::Serving>,
    /// The certificate, once it can be recorded.
    pub certificate: FlagReader<Option<Arc<dyn Certificate>>>,
    /// The same, for `status`.
    pub tls_shown: FlagReader<Value>,
    /// The cell's binary.
    pub cell: &'static [u8],
    /// The same on disk, in `run/`.
    pub cell_file: PathBuf,
    /// The identity key's folder: out of every run's reach.
    pub forbidden: Vec<PathBuf>,
    /// When this process began.
    pub began: Instant,
}

/// The tree, not yet started, and what the page needs of it.
pub struct Planted {
    /// To be started.
    pub tree: TreeBuilder,
    /// Set once it stands.
    pub window: Flag<Option<TreeWindow>>,
    /// Set once it stands.
    pub site: Flag<Option<Site>>,
    /// The page's calls.
    pub methods: Arc<Methods>,
    /// The page's sessions.
    pub dashboard: DashboardHandle,
    /// The pool, to say which driver it has.
    pub pool: SandboxPoolHandle,
}

/// One line a room.
pub fn plant(ground: Ground, on_fatal: OnFatal) -> Planted {
    let Ground {
        mut config,
        store,
        identity,
        doors,
        ..
    } = ground;
    let sealer = PlanSealer::new(identity.plans_key());
    let decisions = DecisionKey::of(&identity);
    let plans = PlanKey::new(identity.logged_plans());
    // What is said of every agent holds for those without a section of their own too.
    let every = config.agents.every().timeout_ms;
    if every > 0 {
        config.exec.host.timeout_ms = every;
    }
    let clock = Clock::system();
    let boot = ground.boot.to_string();
    let version = env!("CARGO_PKG_VERSION");
    let window: Flag<Option<TreeWindow>> = Flag::new(None);
    let site: Flag<Option<Site>> = Flag::new(None);
    let sessions: Flag<Option<Arc<dyn Sessions>>> = Flag::new(None);
    let connected = Arc::new(Flag::new(BTreeSet::new()));
    let mut tree = TreeBuilder::new(config.supervision, on_fatal);

    let sinks = config.audit.named_sinks();
    // What is wrong with one was told when the configuration was read.
    let sinks = sinks
        .filter_map(|(name, sink)| Some((name.to_owned(), sinks::settings(sink).ok()?)))
        .collect();
    let audit = AuditHandle::add(
        &mut tree,
        AuditWiring {
            dir: ground.state.join("audit"),
            keys: AuditKeys::new(ground.state.join("keys"), &identity),
            config: config.audit,
            boot: ground.boot,
            clock: portcullis_actors::audit::Clock::new(),
            feed: Feed::new(),
            unwritten: Arc::default(),
            version: version.to_owned(),
            state: Some(store.revision()),
        },
    );
    let vault = VaultHandle::add(
        &mut tree,
        VaultWiring {
            config: config.vault,
            store: store.clone(),
            audit: audit.clone(),
            identity,
            clock: clock.clone(),
            around: ground.around,
        },
    );
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().into_owned();
    let sinks = SinksHandle::add(
        &mut tree,
        SinksWiring {
            sinks,
            dir: ground.state.join("sinks"),
            audit: audit.clone(),
            vault: Some(vault.clone()),
            tls: Arc::new(tls::receiver),
            host: host.clone(),
            version: version.to_owned(),
        },
    );
    let pairing = PairingHandle::add(
        &mut tree,
        PairingWiring {
            config: config.pairing,
            store: store.clone(),
            audit: audit.clone(),
            clock: clock.clone(),
            news: Feed::new(),
        },
    );
    let signing = SigningHandle::add(
        &mut tree,
        SigningWiring {
            config: config.signing,
            store: store.clone(),
            audit: audit.clone(),
            vault: vault.clone(),
            pairing: pairing.clone(),
            clock: clock.clone(),
        },
    );
    let auth_news = Feed::new();
    let proxy_users: Arc<[String]> = match ground.proxies.get() {
        rules if rules.names_users => rules.allow_users.as_slice().into(),
        _ => Arc::new([]),
    };
    let auth = AuthHandle::add(
        &mut tree,
        AuthWiring {
            config: config.auth,
            modes: config.gateway.auth.mode,
            bcrypt_cost: config.gateway.auth.bcrypt_cost,
            pepper: ground.pepper,
            token: ground.token,
            proxy_users,
            shared_token_scopes: config.gateway.auth.shared_token_scopes.clone(),
            local_trust: config.gateway.local.local_trust,
            local_scopes: config.gateway.local.local_scopes.clone(),
            pairing: pairing.clone(),
            store: store.clone(),
            news: auth_news.clone(),
            audit: audit.clone(),
            clock: clock.clone(),
        },
    );
    let runs = Arc::new(Runs {
        boxes: config.sandbox.uids,
        host_user: config.exec.host.user.clone(),
    });
    let profiles = config.agents.profiles(config.sandbox.layer());
    let hosts = HostQuestions::new();
    let mut ways = Ways::new(audit.clone()).asking(hosts.clone());
    if !profiles.terminated().is_empty() {
        ways = ways.opening(Opener {
            vault: vault.clone(),
            roots: tls::system_certificates().into(),
            client: tls::of_hosts()
                .inspect_err(|error| {
                    tracing::warn!(target: "portcullis", %error, "no host whose TLS is opened for boxes can be verified");
                })
                .ok(),
            clock: clock.clone(),
        });
    }
    let pool = SandboxPoolHandle::new(tree.room::<SandboxPool>(
        Policy::new(256),
        SandboxPoolWiring {
            profiles,
            config: config.sandbox,
            state: ground.state.clone(),
            private: ground.forbidden.clone(),
            cell: ground.cell,
            owner: ground.owner,
            boot: boot.clone(),
            users: UserBook {
                store: store.clone(),
                record: Record::Log(audit.clone()),
            },
            ways: Some(ways),
            runner: Some(Arc::new(ground.runner)),
        },
    ));
    let nodes = NodesHandle::add(
        &mut tree,
        NodesWiring {
            config: config.nodes.clone(),
            pairing: pairing.clone(),
            audit: audit.clone(),
            clock: clock.clone(),
        },
    );
    let agents = Agents {
        every: policy_of(&config.agents.every()),
        named: config
            .agents
            .named()
            .filter_map(|(name, agent)| Some((AgentId::new(name).ok()?, policy_of(agent))))
            .collect(),
        nodes: config.nodes.exec,
    };
    let quorums = config.agents.named().filter_map(|(name, agent)| {
        let more = (agent.quorum > 0).then_some(agent.quorum)?;
        Some((AgentId::new(name).ok()?, more))
    });
    let deciding = Deciding {
        key: decisions,
        demands: Demands {
            proof: config.approval.require_proof.clone(),
            quorum: config.approval.quorum.into(),
            of_agents: quorums.collect(),
            every: config.agents.every().quorum,
        },
    };
    let approval = ApprovalHandle::add(
        &mut tree,
        ApprovalWiring {
            config: config.approval,
            agents,
            store,
            audit: audit.clone(),
            pairing: pairing.clone(),
            auth: auth.clone(),
            sealer,
            deciding,
            clock: clock.clone(),
            feed: Feed::new(),
            hosts,
        },
    );
    let operator_uids = config
        .gateway
        .local
        .uids(rustix::process::geteuid().as_raw());
    let operator_gids = config.gateway.local.gids();
    let ground_of_programs = ProgramGround {
        cell: ground.cell_file.clone(),
        config: config.exec.host.clone(),
        operator_uids: operator_uids.clone(),
        operator_gids: operator_gids.clone(),
        masked: std::iter::once(&ground.state)
            .chain(&ground.forbidden)
            .cloned()
            .collect(),
    };
    let exec = ExecHandle::add(
        &mut tree,
        ExecWiring {
            vault: Some(vault.clone()),
            config: config.exec,
            agents: config
                .agents
                .named()
                .filter_map(|(name, agent)| Some((AgentId::new(name).ok()?, limits_of(agent))))
                .collect(),
            every: AgentLimits {
                // Of all runs: see above.
                timeout_ms: None,
                ..limits_of(&config.agents.every())
            },
            operator_uids,
            operator_gids,
            state: ground.state.clone(),
            forbidden: ground.forbidden,
            cell: ground.cell_file,
            approval: approval.clone(),
            pool: pool.clone(),
            nodes: nodes.clone(),
            audit: audit.clone(),
            plans: plans.clone(),
            clock: clock.clone(),
            since: Arc::new(Flag::new(None)),
        },
    );
    let address = doors.address();
    let secure = config.gateway.tls.enabled;
    let page_url = format!(
        "{}://localhost:{}",
        if secure { "https" } else { "http" },
        address.port()
    );
    // What is wrong with it was told when the configuration was read.
    let settings = notices::settings(&config.notices, &config.plugins).unwrap_or_default();
    let notices = NoticesHandle::add(
        &mut tree,
        NoticesWiring {
            page: if settings.page.is_empty() {
                format!("{page_url}/")
            } else {
                settings.page.clone()
            },
            settings,
            plugins: Arc::new(config.plugins),
            ground: ground_of_programs,
            dir: ground.state.join("notices"),
            approval: approval.clone(),
            vault: Some(vault.clone()),
            audit: audit.clone(),
            clock: clock.clone(),
            tls: Arc::new(|to| tls::notified(&to.pin, &to.ca_file)),
            version: version.to_owned(),
        },
    );
    let dashboard =
        DashboardHandle::new(tree.room::<Dashboard>(Policy::new(64), config.dashboard.clone()));
    let methods = Arc::new(Methods {
        pairing: pairing.clone(),
        auth: auth.clone(),
        vault,
        approval,
        audit,
        plans,
        exec: exec.clone(),
        sessions: sessions.reader(),
        pool: pool.clone(),
        nodes,
        dashboard: dashboard.clone(),
        config: ground.config_view,
        tree: window.reader(),
        connected: connected.reader(),
        listeners: vec![
            format!("{}://{address}", if secure { "wss" } else { "ws" }),
            "control.sock".to_owned(),
            "agent.sock".to_owned(),
        ],
        certificate: ground.certificate,
        tls: ground.tls_shown,
        page_url,
        version,
        host,
        sinks,
        notices,
        audience: Arc::new(()),
        boot_id: boot.clone().into(),
        clock: clock.clone(),
        began: ground.began,
    });
    // Its capacity is the newcomers that wait to be entered.
    let edge = tree.room::<Edge>(
        Policy::new(1024),
        EdgeWiring {
            doors,
            http: Http {
                header_ms: config.gateway.limits.header_ms,
                runs,
                by_groups: !config.gateway.local.gids().is_empty(),
                looks: Looks::default(),
                hosts: Arc::new(config.gateway.hosts.clone()),
                proxies: ground.proxies,
                again: ground.again,
                clock: clock.clone(),
                tls: ground.tls,
                tree: window.reader(),
                site: site.reader(),
                rpc: Some(Rpc {
                    signing: signing.clone(),
                    methods: methods.clone(),
                    clock: clock.clone(),
                }),
            },
            limits: config.gateway.limits.clone(),
            local: config.gateway.local.clone(),
            sub_uids: ground.sub_uids,
            connection: ConnectionShared {
                config: config.connection,
                auth,
                signing,
                methods: methods.clone(),
                exec,
                news: tokio::sync::mpsc::channel(1).0,
                clock,
                boot_id: boot.into(),
                version,
                began: ground.began,
            },
            pairing,
            auth_news,
            connected,
        },
    );
    let edge: Arc<dyn Sessions> = Arc::new(EdgeHandle::new(edge));
    sessions.set(Some(edge));
    Planted {
        tree,
        window,
        site,
        methods,
        dashboard,
        pool,
    }
}

fn limits_of(agent: &crate::config::Agent) -> AgentLimits {
    let secrets = agent.secrets.iter();
    let secrets = secrets.map(|(variable, of)| (variable.clone(), of.vault.clone().into()));
    AgentLimits {
        timeout_ms: (agent.timeout_ms > 0).then_some(agent.timeout_ms),
        secrets: secrets.collect(),
    }
}

/// What the configuration says of one agent: its own words, or those for every one.
pub fn agent_policy(config: &Config, agent: &AgentId) -> AgentPolicy {
    policy_of(&config.agents.of(agent))
}

fn policy_of(agent: &crate::config::Agent) -> AgentPolicy {
    AgentPolicy {
        exec: agent.exec,
        elevated: agent.elevated,
        nodes: agent.nodes,
        ..AgentPolicy::default()
    }
}
