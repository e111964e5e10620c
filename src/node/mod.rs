//! `portcullis node run`: this machine as a node of a gateway elsewhere.
//!
//! - *Owns*: the link, the questions under way, and the processes that it runs for them.
//! - *Called by*: nobody. The gateway asks over the link.
//! - *Calls*: the host runs of `exec`, which are values here: opened, started, dropped.
//! - *On a crash*: its runs end with it, the link is lost, and the gateway is told so by that; the next life connects again.
//! - *Refuses when*: this machine's own document (`node-policy.toml`) refuses a run; a run has no person's answer where that
//!   document asks, or no signature of an approver where it names some; it is not the plan that was approved, was begun
//!   before, or is older than what is remembered of that.
//!
//! It has a tree of its own, with this one room: a process that is a node is no gateway.

mod actor;
mod commands;
mod document;
mod link;
mod messages;
mod policy;
mod stats;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use portcullis_actors::exec::{HostConfig, Hosted};
use portcullis_actors::sandbox_pool::cell_file;
use portcullis_actors::supervision::{EXIT_TREE, Flag, Intensity, OnFatal, Policy, TreeBuilder};
use portcullis_core::auth::Role;
use portcullis_core::codes;
use portcullis_core::ids::DeviceId;
use portcullis_core::nodes::{Approvers, Local, OUTPUT_CAP};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Failure, Global, NodePolicy, NodeRun, remote, state_dir};
use crate::client::{Place, Remote};
use crate::gateway::{CELL, close_inherited, default_identity};
use crate::telemetry::{Telemetry, TelemetryConfig};
use actor::NodeHost;
use messages::NodeWiring;

/// Messages at once: the gateway asks no more than this of a node.
const CAPACITY: usize = 256;
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Commands that are read and hashed at once.
const OPENINGS: usize = 4;
/// Pieces of output that the gateway has not answered yet.
const PIECES: usize = 8;

/// Runs it until a signal ends it, or the gateway wants it no more.
pub fn run(global: &Global, args: &NodeRun) -> ExitCode {
    close_inherited();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .max_blocking_threads(8)
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(serve(global, args));
            runtime.shutdown_timeout(Duration::from_secs(2));
            result
        }
        Err(e) => Err(Failure::of(codes::INTERNAL, format!("cannot start: {e}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{}", failure.lines());
            ExitCode::from(failure.exit)
        }
    }
}

/// A node host that is not started yet.
pub struct Planted {
    /// To be started.
    pub tree: TreeBuilder,
    /// Set once: why it ends by itself.
    pub over: Arc<Flag<Option<Arc<Failure>>>>,
}

/// Opens this machine's keys, and plants the tree.
///
/// # Errors
/// No address, keys that cannot be read, no place for the cell.
pub async fn plant(global: &Global, args: &NodeRun, on_fatal: OnFatal) -> Result<Planted, Failure> {
    let remote = remote(global)?.ok_or_else(|| {
        Failure::of(codes::INVALID_PARAMS, "a node needs its gateway's address")
            .hint("name it: `portcullis node run --url wss://HOST[:PORT] --pin sha256:HEX`")
    })?;
    let masked = masked(global, &remote);
    let folder = remote.place.folder.clone();
    let gateway = remote.address.id();
    let session = Arc::new(remote.open(Role::Node).await?);
    policy::Kept::read(&folder, &gateway)?;
    let node = DeviceId::new(&session.device_id())
        .map_err(|e| Failure::of(codes::INTERNAL, e.to_string()))?;
    tell_document(&folder);
    let (cell, _) = cell_file::place(&folder, CELL)
        .map_err(|e| Failure::io(codes::STATE_MODE, folder.display(), &e))?;
    let mut config = HostConfig {
        output_cap_bytes: OUTPUT_CAP,
        ..HostConfig::default()
    };
    if let Some(user) = &args.user {
        config.user.clone_from(user);
    }
    let over = Arc::new(Flag::new(None));
    let mut tree = TreeBuilder::new(Intensity::default(), on_fatal);
    // Without it there is nothing to serve.
    let policy = Policy::new(CAPACITY).critical();
    let wiring = NodeWiring {
        session,
        name: args.name.clone().unwrap_or_else(hostname),
        openings: Arc::new(tokio::sync::Semaphore::new(OPENINGS)),
        hosted: Hosted {
            config,
            cell,
            masked,
        },
        pieces: Arc::new(tokio::sync::Semaphore::new(PIECES)),
        used: document::Used::of(&folder, &gateway),
        node,
        folder,
        gateway,
        over: over.clone(),
    };
    drop(tree.room::<NodeHost>(policy, wiring));
    Ok(Planted { tree, over })
}

/// `portcullis node policy`: what this machine's owner and its gateways have said of what runs here.
///
/// # Errors
/// What cannot be read; no proposal of that name.
pub fn policy(global: &Global, what: &NodePolicy) -> Result<Value, Failure> {
    let folder = Place::find(global.client_keys.as_deref())?.folder;
    match what {
        NodePolicy::Show => {
            let mut shown = document::read(&folder).shown();
            shown["path"] = json!(folder.join(document::FILE));
            shown["proposals"] = policy::proposals(&folder)?.into();
            Ok(shown)
        }
        NodePolicy::Accept { id } => policy::answer(&folder, id, true),
        NodePolicy::Reject { id } => policy::answer(&folder, id, false),
    }
}

/// What is wrong with this machine's own document is said at the start, and again where it refuses something.
fn tell_document(folder: &std::path::Path) {
    let at = folder.join(document::FILE);
    match document::read(folder) {
        Local::Absent => tracing::info!(
            target: "portcullis", at = %at.display(),
            "no document of this node's own: every run waits for a person at the gateway, and the gateway is believed that one said yes"
        ),
        Local::Valid(policy) => tracing::info!(
            target: "portcullis", at = %at.display(), approvers = policy.approvers().map_or(0, Approvers::len),
            "this node's own document holds"
        ),
        Local::Malformed(why) => tracing::error!(
            target: "portcullis", at = %at.display(), "this node's own document cannot be read, so nothing runs here: {why}"
        ),
    }
}

async fn serve(global: &Global, args: &NodeRun) -> Result<(), Failure> {
    let _telemetry = Telemetry::init(&TelemetryConfig::default(), "node")
        .map_err(|e| Failure::of(codes::INTERNAL, e.to_string()))?;
    let on_fatal: OnFatal = Arc::new(|room, why| {
        eprintln!("portcullis: {room}: {why}; the process ends (exit {EXIT_TREE})");
        crate::end_now(EXIT_TREE);
    });
    let Planted { tree, over } = plant(global, args, on_fatal).await?;
    let mut ended = over.reader();
    let failed = |e: std::io::Error| Failure::of(codes::INTERNAL, e.to_string());
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hup = signal(SignalKind::hangup()).map_err(failed)?;
    let tree = tree
        .start()
        .await
        .map_err(|e| Failure::of(codes::INTERNAL, e.to_string()))?;
    let why = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        _ = hup.recv() => None,
        why = ended.until(Option::is_some) => why.flatten(),
    };
    tracing::info!(target: "portcullis", "node host stops");
    if tokio::time::timeout(STOP_WITHIN, tree.stop())
        .await
        .is_err()
    {
        tracing::error!(target: "portcullis", "the node host did not stop in time");
    }
    why.map_or(Ok(()), |failure| Err((*failure).clone()))
}

/// What no command reaches: this client's keys, and what a gateway of this machine would have.
fn masked(global: &Global, remote: &Remote) -> Vec<PathBuf> {
    let mut all = remote.place.paths();
    // Another client of this user: what it may, a command would.
    all.extend(
        Place::find(None)
            .into_iter()
            .flat_map(|place| place.paths()),
    );
    all.extend(remote.token_file.as_ref().map(|file| file.0.clone()));
    all.extend(state_dir(global.state.as_deref()).ok());
    let identity = crate::cli::identity_file(global.identity.as_deref());
    let identity = identity.or_else(|| default_identity().ok());
    all.extend(identity);
    all
}

fn hostname() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
