//! From a request to the start of what it asked for, with a person in between who answers at once, against the round trip's
//! own commits replayed bare: as many records in a plain file and as many rows in a bare SQLite, one after the other.
#![forbid(unsafe_code)]

mod support;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_actors::approval::{
    ApprovalConfig, ApprovalEvent, ApprovalHandle, ApprovalWiring, Ask, Decision,
};
use portcullis_actors::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring};
use portcullis_actors::auth::{AuthConfig, AuthHandle, AuthWiring, Modes, SharedSecret};
use portcullis_actors::clock::Clock;
use portcullis_actors::pairing::{PairingConfig, PairingHandle, PairingWiring};
use portcullis_actors::sandbox_pool::HostQuestions;
use portcullis_actors::store::Store;
use portcullis_actors::supervision::{Feed, FeedItem, Intensity, OnFatal, Tree, TreeBuilder};
use portcullis_core::approval::{Agents, Deciding, DecisionKey, PlanSealer, Status, Word};
use portcullis_core::audit::{BootId, Entry};
use portcullis_core::auth::secret::SharedHash;
use portcullis_core::auth::{Door, Principal, Proof, Role, Scope, ScopeSet};
use portcullis_core::identity::Identity;
use portcullis_core::ids::{AgentId, Hash32};
use portcullis_core::plan::{
    Egress, EnvValue, ExecPlan, Executable, Form, HOST_PATH, HostFile, Limits, Nonce, Stdin, Target,
};
use portcullis_core::policy::{AgentPolicy, Elevated, ExecMode};
use portcullis_core::seal::Secret;
use portcullis_core::token::TokenHash;
use support::{line, median, percentile};

/// Round trips of one turn; limit and subject one after the other, because the disk's mood changes within seconds.
const TRIPS: usize = 40;
const TURNS: usize = 9;
/// Questions that wait meanwhile: the one that is asked, and a crowd.
const WAITING: [usize; 2] = [1, 200];
const FOR_NEWS: Duration = Duration::from_secs(5);

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    for waiting in WAITING {
        let folder = tempfile::tempdir()?;
        let house = House::new(folder.path()).await?;
        for n in 1..waiting {
            house.ask(&format!("waits-{n}")).await?;
        }
        let cost = house.cost(folder.path()).await?;
        let (mut ratios, mut ours, mut limits, mut worst) = (vec![], vec![], vec![], vec![]);
        for turn in 0..TURNS {
            let bare = replayed(folder.path(), &cost)?;
            let mut took = vec![];
            for trip in 0..TRIPS {
                let began = Instant::now();
                house.round_trip(&format!("{turn}-{trip}")).await?;
                took.push(began.elapsed().as_secs_f64() * 1e3);
            }
            worst.push(percentile(took.clone(), 99));
            let trip = median(took);
            ratios.push(trip / bare);
            ours.push(trip);
            limits.push(bare);
        }
        let pending = house
            .approval
            .list()
            .await
            .map_err(|e| anyhow::anyhow!("{e}"))?;
        ensure!(pending.len() + 1 == waiting, "{} wait", pending.len());
        println!(
            "{waiting} pending: {:.2} ms a round trip (p99 {:.2} ms); its {} records and {} commits bare {:.2} ms",
            median(ours),
            median(worst),
            cost.records,
            cost.commits,
            median(limits)
        );
        let what = format!("approval, {waiting} pending / its commits bare");
        line(&what, median(ratios), "x", 1.5);
        house.tree.stop().await;
    }
    Ok(())
}

/// What one round trip makes durable.
struct Cost {
    records: usize,
    commits: usize,
    /// Bytes of a record, and of a row.
    record: usize,
    row: usize,
}

struct House {
    tree: Tree,
    approval: ApprovalHandle,
    audit: AuditHandle,
    store: Store,
}

impl House {
    async fn new(state: &Path) -> Result<Self> {
        let fatal: OnFatal = Arc::new(|room, why| panic!("{room}: {why}"));
        let mut tree = TreeBuilder::new(Intensity::default(), fatal);
        let store = Store::open(&state.join("state.db")).map_err(|e| anyhow::anyhow!("{e}"))?;
        let identity = || Identity::from_random([1; 32]);
        let audit = AuditHandle::add(
            &mut tree,
            AuditWiring {
                state: None,
                dir: state.join("audit"),
                keys: AuditKeys::new(state.join("keys"), &identity()),
                config: AuditConfig::default(),
                boot: BootId([1; 16]),
                clock: portcullis_actors::audit::Clock::new(),
                feed: Feed::new(),
                unwritten: Arc::default(),
                version: "bench".into(),
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
        let auth = AuthHandle::add(
            &mut tree,
            AuthWiring {
                config: AuthConfig::default(),
                modes: Modes::default(),
                bcrypt_cost: 4,
                pepper: Secret::new(vec![1; 32]),
                token: SharedSecret::Given(SharedHash::Random(TokenHash::of("bench"))),
                proxy_users: Arc::new([]),
                shared_token_scopes: ScopeSet::empty(),
                local_trust: false,
                local_scopes: ScopeSet::empty(),
                pairing: pairing.clone(),
                store: store.clone(),
                news: Feed::new(),
                audit: audit.clone(),
                clock: Clock::system(),
            },
        );
        let open = AgentPolicy {
            exec: ExecMode::Full,
            elevated: Elevated::Ask,
            ..AgentPolicy::default()
        };
        let approval = ApprovalHandle::add(
            &mut tree,
            ApprovalWiring {
                hosts: HostQuestions::new(),
                config: ApprovalConfig {
                    pending_per_agent: 256,
                    ..ApprovalConfig::default()
                },
                agents: Agents {
                    named: [(AgentId::new("demo")?, open)].into(),
                    ..Agents::default()
                },
                store: store.clone(),
                audit: audit.clone(),
                pairing,
                auth,
                sealer: PlanSealer::of(&identity()),
                deciding: Deciding::plain(DecisionKey::from_seed(&[9; 32])),
                clock: Clock::system(),
                feed: Feed::new(),
            },
        );
        let tree = tree.start().await.map_err(|e| anyhow::anyhow!("{e:?}"))?;
        Ok(Self {
            tree,
            approval,
            audit,
            store,
        })
    }

    async fn ask(&self, what: &str) -> Result<(ExecPlan, portcullis_core::ids::ApprovalId)> {
        let plan = plan(what)?;
        let ask = Ask {
            plan: plan.clone(),
            requester: operator(),
            connection: "c-1".into(),
            idempotency_key: Some(what.to_owned()),
            id: None,
            narrowing: portcullis_core::approval::Narrowing::default(),
            own: ExecMode::Full,
        };
        match self.approval.decide(ask).await {
            Ok(Decision::Pending { id, .. }) => Ok((plan, id)),
            other => bail!("{other:?}"),
        }
    }

    /// Request, event at who approves, decision, and the durable word that it starts.
    async fn round_trip(&self, what: &str) -> Result<()> {
        let mut news = self.approval.feed();
        let (plan, id) = self.ask(what).await?;
        loop {
            match tokio::time::timeout(FOR_NEWS, news.next()).await? {
                FeedItem::Event(told) => {
                    if let ApprovalEvent::Requested(record) = &told.event
                        && record.id == id
                    {
                        break;
                    }
                }
                _ => bail!("the event was lost"),
            }
        }
        let said = self
            .approval
            .resolve(id.as_str(), Word::AllowOnce, &operator(), "c-2")
            .await
            .map_err(|e| anyhow::anyhow!("{e}"))?;
        ensure!(said.status == Status::Allowed, "{:?}", said.status);
        let intent = self.audit.intent(Entry::new("exec.run")).await;
        let intent = intent.map_err(|e| anyhow::anyhow!("{e}"))?;
        let used = self.approval.consume(&id, plan.plan_hash(), intent).await;
        used.map_err(|e| anyhow::anyhow!("{e}"))?;
        Ok(())
    }

    /// Counts what one round trip makes durable, and how long its pieces are.
    async fn cost(&self, state: &Path) -> Result<Cost> {
        let length = || -> Result<u64> {
            let mut sum = 0;
            for file in std::fs::read_dir(state.join("audit"))? {
                let file = file?;
                if file.path().extension().is_some_and(|end| end == "log") {
                    sum += file.metadata()?.len();
                }
            }
            Ok(sum)
        };
        let head = async || self.audit.head().await.map_err(|e| anyhow::anyhow!("{e}"));
        // The first trip finds what all others find: finished questions that make place.
        self.round_trip("before").await?;
        let (seq, revision, bytes) = (head().await?.seq.0, self.store.revision().get(), length()?);
        self.round_trip("counted").await?;
        let records = usize::try_from(head().await?.seq.0 - seq)?;
        let commits = usize::try_from(self.store.revision().get() - revision)?;
        ensure!(records > 0 && commits > 0, "nothing was durable");
        let record = self.approval.history().await;
        let record = record.map_err(|e| anyhow::anyhow!("{e}"))?;
        let row = serde_json::to_vec(record.first().context("no question")?)?.len();
        Ok(Cost {
            records,
            commits,
            record: usize::try_from(length()? - bytes)? / records,
            row,
        })
    }
}

/// The same commits, bare: milliseconds for as many as one round trip has, the median of a turn's.
fn replayed(folder: &Path, cost: &Cost) -> Result<f64> {
    let (record, row) = (vec![7_u8; cost.record], vec![7_u8; cost.row]);
    let mut file = File::options()
        .append(true)
        .create(true)
        .open(folder.join("bare.log"))?;
    let db = rusqlite::Connection::open(folder.join("bare.db"))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute_batch("CREATE TABLE IF NOT EXISTS object (id INTEGER PRIMARY KEY, payload BLOB)")?;
    let mut took = vec![];
    for trip in 0..TRIPS {
        let began = Instant::now();
        for _ in 0..cost.records {
            file.write_all(&record)?;
            file.sync_data()?;
        }
        for _ in 0..cost.commits {
            db.execute(
                "INSERT OR REPLACE INTO object VALUES (?1, ?2)",
                (i64::try_from(trip)?, &row),
            )?;
        }
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(took))
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

fn plan(what: &str) -> Result<ExecPlan> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|e| anyhow::anyhow!("{e}"))?;
    Ok(ExecPlan {
        v: Form::V2,
        target: Target::Host,
        agent: AgentId::new("demo")?,
        session: "c-1".into(),
        principal: operator().name(),
        argv: vec!["uname".into(), what.into()],
        executable: Executable::Host(HostFile {
            path: "/usr/bin/uname".into(),
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
        nonce: Nonce::new(&nonce).map_err(|e| anyhow::anyhow!("{e}"))?,
    })
}
