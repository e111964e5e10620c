//! `portcullis gateway` and `portcullis up`: from a state directory to a serving tree, and back in order.

mod folders;
mod inherited;
mod proxies;
mod token;
mod users;

pub(crate) use inherited::close_all as close_inherited;

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use portcullis_actors::auth::SharedSecret;
use portcullis_actors::clock::Clock;
use portcullis_actors::connection::{Certificate, Methods};
use portcullis_actors::plain;
use portcullis_actors::sandbox_pool::cell_file;
use portcullis_actors::store::{Store, StoreError};
use portcullis_actors::supervision::{self, EXIT_TREE, OnFatal};
use portcullis_actors::vault::Around;
use portcullis_core::audit::{BootId, Entry};
use portcullis_core::auth::sub_uids::SubUids;
use portcullis_core::auth::{Door, Principal, Proof, Role, Scope};
use portcullis_core::codes;
use portcullis_core::identity::BootKey;
use portcullis_core::ids::Hash32;
use portcullis_core::seal::Secret;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use self::proxies::Proxies;
use crate::cli::{Failure, GatewayArgs, Global, identity_file, state_dir};
use crate::client::Place;
use crate::config::{self, Flag};
use crate::dashboard::{Page, PageConfig};
use crate::edge::{self, Doors, ListenError};
use crate::ends;
use crate::identity;
use crate::methods::{Local, Site};
use crate::random::random;
use crate::runner;
use crate::telemetry::Telemetry;
use crate::tls::{self, Keeper, Tls, TlsError};
use crate::tree::{Ground, Planted, plant};

/// The supervisor of every box, built by build.rs.
pub(crate) const CELL: &[u8] = include_bytes!(env!("PORTCULLIS_CELL"));
/// Between two looks whether a made certificate is to be made anew.
const RENEW_LOOK: Duration = Duration::from_hours(1);
/// A tree that does not stop in this time is left behind.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Runs the gateway until a signal ends it. `greet`: the lines of `up`.
pub fn run(global: &Global, args: &GatewayArgs, greet: bool) -> ExitCode {
    let began = std::time::Instant::now();
    let secret = match token::take() {
        Ok(secret) => secret,
        Err(failure) => return told(&failure),
    };
    inherited::close_all();
    if let Err(failure) = keep_memory() {
        return told(&failure);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .max_blocking_threads(8)
        // One figure for all threads: 512 KiB is too small for an unoptimised worker. Pages are only used when touched.
        .thread_stack_size(2 * 1024 * 1024)
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(serve(global, args, greet, secret, began));
            runtime.shutdown_timeout(Duration::from_secs(2));
            result
        }
        Err(e) => Err(Failure::of(codes::INTERNAL, format!("cannot start: {e}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => told(&failure),
    }
}

/// Operators whom no door, or not every door, can know.
/// Whom the kernel names by the number that stands for everybody without one is nobody known, so he must be no operator.
fn can_tell_users(local: &config::Local) -> Result<(), Failure> {
    let own = rustix::process::geteuid().as_raw();
    let Some(nobody) = ends::nobody() else {
        return Ok(());
    };
    if own != nobody && !local.uids(own).contains(&nobody) && !local.gids().contains(&nobody) {
        return Ok(());
    }
    Err(Failure::of(
        codes::CONFIG_INVALID,
        format!(
            "in this user namespace the number {nobody} stands for every user outside it, and it is an operator's here"
        ),
    )
    .hint("run the gateway as another user of the namespace, and name no operator by that number"))
}

fn warn_of_operators(local: &config::Local) {
    let own = rustix::process::geteuid();
    if !local.has_others(own.as_raw()) {
        return;
    }
    if local.socket.as_os_str().is_empty() {
        tracing::warn!(
            target: "portcullis",
            "[gateway.local] operators names other users, who cannot open run/control.sock: set [gateway.local] socket",
        );
    }
    if !own.is_root() {
        tracing::warn!(
            target: "portcullis",
            "other users' processes cannot be looked at by a gateway that is not root: by loopback they are no operators",
        );
    }
}

/// Operators whom somebody else may become.
fn warn_of_lent(local: &config::Local, sub_uids: &SubUids) {
    for uid in local.uids(rustix::process::geteuid().as_raw()) {
        if sub_uids.is_lent(uid) {
            let owner = sub_uids.account(uid);
            tracing::warn!(
                target: "portcullis", uid, owner,
                "an operator's uid is in the range of a user in [gateway.local] subuid_file, who can run processes as it",
            );
        }
    }
}

fn told(failure: &Failure) -> ExitCode {
    eprint!("{}", failure.lines());
    ExitCode::from(failure.exit)
}

async fn serve(
    global: &Global,
    args: &GatewayArgs,
    greet: bool,
    secret: Option<token::Given>,
    began: std::time::Instant,
) -> Result<(), Failure> {
    let state = state_dir(global.state.as_deref())?;
    folders::make(&state)?;
    let _lock = folders::lock(&state).await?;
    let config_file = state.join("config.toml");
    config::write_first(&config_file, &config::first_run(users::of_first_run()))
        .map_err(|e| Failure::io(codes::STATE_MODE, config_file.display(), &e))?;
    let mut loaded = config::load(&config_file, config::environment(), &flags(args))
        .map_err(|e| config_failure(&e))?;
    let boot = BootId(random()?);
    let telemetry = Telemetry::init(&loaded.config.telemetry, &boot.to_string())
        .map_err(|e| Failure::of(codes::CONFIG_INVALID, e.to_string()))?;
    let key_file = identity_file(global.identity.as_deref()).map_or_else(default_identity, Ok)?;
    let (identity, _) = identity::open_or_make(&key_file, &state).map_err(|e| {
        Failure::of(
            codes::find(e.code()).unwrap_or(codes::IDENTITY_INVALID),
            e.to_string(),
        )
    })?;
    let pepper = identity::boot_key(&identity, &state.join("keys"), BootKey::Pepper, || {
        let mut bytes = vec![0; 32];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        Ok(Secret::new(bytes))
    })
    .map_err(|e| {
        let code = codes::find(e.code()).unwrap_or(codes::STATE_CORRUPT);
        Failure::of(code, e.to_string())
    })?;
    let address = SocketAddr::new(loaded.config.gateway.bind, loaded.config.gateway.port);
    let local = &loaded.config.gateway.local;
    can_tell_users(local)?;
    warn_of_operators(local);
    let sub_uids = Arc::new(edge::sub_uids(&local.subuid_file));
    warn_of_lent(local, &sub_uids);
    users::check(loaded.config.sandbox.uids, local)?;
    let doors = Doors::open(address, &state.join("run"), &local.socket).map_err(|e| match &e {
        ListenError::InUse(_) => Failure::of(codes::PORT_IN_USE, e.to_string()),
        ListenError::Shared(..) => Failure::of(
            codes::CONFIG_INVALID,
            format!("[gateway.local] socket: {e}"),
        ),
        _ => Failure::of(codes::INTERNAL, e.to_string()),
    })?;
    let tls = {
        let gateway = &loaded.config.gateway;
        let names = tls::names(gateway.bind, &gateway.hosts);
        Tls::open(
            gateway.tls.clone(),
            names,
            identity.clone(),
            &state,
            Clock::system(),
        )
        .map_err(|e| {
            let code = match &e {
                TlsError::Key(e) => codes::find(e.code()),
                _ => None,
            };
            Failure::of(code.unwrap_or(codes::CONFIG_INVALID), e.to_string())
        })?
    };
    let proxies = Proxies::open(&loaded.config.gateway.auth)?;
    let database = state.join("state.db");
    let may_make = !folders::has_log(&state);
    folders::has_database(&state, may_make)?;
    let row_key = identity.row_key();
    let opened =
        tokio::task::spawn_blocking(move || Store::open_where(&database, &row_key, may_make));
    let store = opened
        .await
        .map_err(|e| Failure::of(codes::INTERNAL, e.to_string()))?
        .map_err(|e| {
            Failure::of(
                codes::find(e.code()).unwrap_or(codes::STATE_CORRUPT),
                e.to_string(),
            )
        })?;
    let unread = |e: StoreError| {
        Failure::of(
            codes::find(e.code()).unwrap_or(codes::STATE_CORRUPT),
            e.to_string(),
        )
    };
    let highest = store.highest_intent().await.map_err(unread)?;
    let is_kept = SharedSecret::is_kept(&store).await.map_err(unread)?;
    let auth = &loaded.config.gateway.auth;
    let (token, made) = tokio::task::block_in_place(|| {
        let cost = auth.bcrypt_cost;
        token::settle(secret, &auth.token_file, &pepper, cost, is_kept)
    })?;
    let (cell_file, _) = cell_file::place(&state.join("run"), CELL)
        .map_err(|e| Failure::io(codes::STATE_MODE, "run/", &e))?;
    // Told to the log before it is opened: once opened it has grown.
    loaded.config.audit.at_least = highest;
    let address = doors.address();
    let certificate: supervision::Flag<Option<Arc<dyn Certificate>>> = supervision::Flag::new(None);
    let on_fatal: OnFatal = Arc::new(|room, why| {
        eprintln!("portcullis: {room}: {why}; the process ends (exit {EXIT_TREE})");
        // Not through the runtime: it may be what is stuck.
        crate::end_now(EXIT_TREE);
    });
    let dashboard_config = loaded.config.dashboard.clone();
    let hosts = loaded.config.gateway.hosts.clone();
    let config_view = loaded.for_clients();
    let machine_id = machine_id(&loaded.config.vault.machine_id_file);
    let owner = owner_of(&state);
    let runner = runner::program(&state, &boot.to_string(), args, loaded.file.as_deref())
        .map_err(|e| Failure::of(codes::INTERNAL, format!("the runner's configuration: {e}")))?;
    let Planted {
        tree,
        window,
        site,
        methods,
        dashboard,
        pool,
    } = plant(
        Ground {
            config: loaded.config,
            config_view,
            state: state.clone(),
            store: store.clone(),
            around: Around::new(
                machine_id,
                std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
                Some(state.clone()),
            ),
            identity,
            token,
            pepper,
            boot,
            owner,
            runner,
            doors,
            sub_uids,
            proxies: proxies.rules(),
            again: proxies.again(),
            tls: tls.serving(),
            certificate: certificate.reader(),
            tls_shown: tls.shown(),
            cell: CELL,
            cell_file,
            forbidden: key_file
                .parent()
                .map(Path::to_path_buf)
                .into_iter()
                // This user's keys for gateways elsewhere.
                .chain(
                    Place::find(None)
                        .into_iter()
                        .flat_map(|place| place.paths()),
                )
                .collect(),
            began: Instant::from_std(began),
        },
        on_fatal,
    );
    let keeper = Arc::new(Keeper::new(Arc::new(tls), methods.audit.clone()));
    certificate.set(Some(keeper.clone()));
    // Before the first room starts: from here on an end is an end in order.
    let mut ends = Ends::listen();
    let tree = tree.start().await.map_err(|e| {
        let code = codes::ALL.iter().find(|c| e.why.contains(c.name)).copied();
        Failure::of(code.unwrap_or(codes::INTERNAL), e.to_string())
    })?;
    window.set(Some(tree.window()));
    let page = Page::new(
        Local(methods.clone()),
        dashboard,
        tree.window(),
        PageConfig {
            port: address.port(),
            hosts,
            dashboard: dashboard_config,
        },
    );
    site.set(Some(Site::new(page)));
    tracing::info!(target: "portcullis", %address, ready_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(0), "gateway serves");
    if let Some(made) = &made {
        show_token(made);
    }
    let serving = async {
        if greet {
            greeting(
                address,
                keeper.tls().pin().as_deref(),
                &pool,
                &methods,
                &state,
            )
            .await;
        }
        keeper.renew(RENEW_LOOK).await;
    };
    let keys = proxies.keep(methods.audit.clone());
    let mut lost_store = Box::pin(store.stopped());
    let lost = tokio::select! {
        () = ends.wait(&keeper) => false,
        () = &mut lost_store => true,
        () = serving => false,
        never = keys => match never {},
    };
    tracing::info!(target: "portcullis", "gateway stops");
    if tokio::time::timeout(STOP_WITHIN, tree.stop())
        .await
        .is_err()
    {
        tracing::error!(target: "portcullis", "rooms did not stop in time");
    }
    // All rows are committed: a close that fails loses nothing.
    let _ = store.close().await;
    telemetry.shutdown(Duration::from_secs(3)).await;
    if lost {
        crate::end_now(EXIT_TREE);
    }
    Ok(())
}

/// Label of the boxes of a gateway with this state directory.
pub(crate) fn owner_of(state: &Path) -> String {
    Hash32::of(state.as_os_str().as_encoded_bytes()).to_string()[..16].to_owned()
}

/// What this process holds in memory is in no core file, and no other process of its user may look at it (prctl(2),
/// `PR_SET_DUMPABLE`). After the last start of itself anew, which would undo it.
pub(crate) fn keep_memory() -> Result<(), Failure> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .map_err(|e| {
            Failure::of(
                codes::INTERNAL,
                format!("this process' memory cannot be kept from others: {e}"),
            )
        })
}

/// As machine-id(5) has it: 32 lower-case hexadecimal digits.
fn machine_id(file: &Path) -> Option<Arc<str>> {
    let mut text = String::new();
    let file = plain::open_linked(file).ok()?;
    file.take(64).read_to_string(&mut text).ok()?;
    let id = text.trim_end();
    portcullis_core::encoding::unhex::<16>(id).map(|_| id.into())
}

/// A line each: what is wrong where, with the text that it stands in.
fn config_failure(error: &config::LoadError) -> Failure {
    let text = error.to_string();
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let mut failure = Failure::of(error.code(), first);
    failure.fix = (!rest.is_empty()).then(|| rest.into());
    failure
}

pub(crate) fn flags(args: &GatewayArgs) -> Vec<Flag> {
    let mut flags = Vec::new();
    if let Some(port) = args.port {
        flags.push(Flag {
            name: "--port",
            key: "gateway.port",
            value: port.to_string(),
        });
    }
    if let Some(bind) = args.bind {
        flags.push(Flag {
            name: "--bind",
            key: "gateway.bind",
            value: bind.to_string(),
        });
    }
    flags
}

/// Outside the state directory, so that a copy of the one is not a copy of both.
pub(crate) fn default_identity() -> Result<PathBuf, Failure> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    folder("XDG_CONFIG_HOME")
        .filter(|p| p.is_absolute())
        .or_else(|| folder("HOME").map(|home| home.join(".config")))
        .map(|config| config.join("portcullis/identity.key"))
        .ok_or_else(|| {
            Failure::of(
                codes::IDENTITY_INVALID,
                "no place for the identity key: neither --identity nor HOME is set",
            )
        })
}

/// Printed once, to a person only: a log must not hold it.
fn show_token(token: &portcullis_core::token::Token) {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        let _ = writeln!(out, "gateway token (shown this once): {}", token.expose());
    }
}

/// Who started this gateway and reads its first lines.
fn myself() -> Principal {
    Principal {
        proof: Proof::PeerUid(rustix::process::geteuid().as_raw()),
        door: Door::Control,
        role: Role::Operator,
        scopes: [Scope::Read, Scope::Pairing, Scope::Approvals]
            .into_iter()
            .collect(),
        agent: None,
        generation: 0,
        secret: None,
    }
}

/// For the drivers that only some agents have, before the first lines are written.
const OTHERS_WITHIN: Duration = Duration::from_secs(10);

async fn greeting(
    address: SocketAddr,
    pin: Option<&str>,
    pool: &portcullis_actors::sandbox_pool::SandboxPoolHandle,
    methods: &Methods,
    state: &Path,
) {
    let asked = Instant::now();
    let driver = loop {
        match pool.status().await {
            // What others have is waited for, but not for as long as an engine may hang.
            Ok(status)
                if status.others.iter().any(|other| other.is_trying)
                    && asked.elapsed() < OTHERS_WITHIN =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(status) if status.driver.is_some() => {
                let also = status.others.iter().map(|other| {
                    let driver = other.driver;
                    if other.is_proven {
                        format!("; {driver}, for some agents")
                    } else if other.is_trying {
                        format!("; {driver}, for some agents, is being tried")
                    } else {
                        format!("; NOT {driver}, for some agents: {}", other.why)
                    }
                });
                let also: String = also.collect();
                break format!(
                    "{} ({}){also}",
                    status.driver.unwrap_or_default(),
                    status.why
                );
            }
            Ok(status) if !status.trying => break format!("none: {}", status.why),
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => break format!("none: {error}"),
        }
    };
    let (ws, http) = if pin.is_some() {
        ("wss", "https")
    } else {
        ("ws", "http")
    };
    let pin = pin.map_or_else(String::new, |pin| format!("pin       {pin}\n"));
    let (devices, approvals) = methods.pending(&myself()).await;
    let count = |n: Option<usize>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let pending = format!(
        "{} devices (portcullis devices list), {} approvals (portcullis approvals list)",
        count(devices),
        count(approvals)
    );
    // Before anybody can have changed it: a copy elsewhere is what the log is verified by.
    let key = methods.audit.sign().await.map(|signed| signed.told());
    let key = key.map_or_else(|error| format!("unknown: {error}"), |told| told.first_key);
    let lines = format!(
        "address   {ws}://{address}   page {http}://localhost:{} (open it with: portcullis dashboard)\n{pin}\
         sandbox   {driver}\n\
         clients   the gateway's token, or a paired device; this user's own processes over control.sock\n\
         pending   {pending}\n\
         log key   {key} (keep a copy elsewhere; portcullis audit verify --key)\n\
         try       portcullis exec --agent demo -- sh -c 'id; ls /'   (state: {})\n",
        address.port(),
        state.display(),
    );
    let mut out = std::io::stdout();
    // A closed stdout is no reason not to serve.
    let _ = out.write_all(lines.as_bytes());
    let _ = out.flush();
}

/// SIGTERM, ctrl-C and SIGHUP, caught from the moment of listening on.
struct Ends(Option<(Signal, Signal, Signal)>);

impl Ends {
    fn listen() -> Self {
        let all = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
            signal(SignalKind::hangup()),
        );
        let (Ok(term), Ok(int), Ok(hup)) = all else {
            tracing::warn!(target: "portcullis", "no signal handler: only kill ends this process");
            return Self(None);
        };
        Self(Some((term, int, hup)))
    }

    async fn wait(&mut self, keeper: &Keeper) {
        let Some((term, int, hup)) = &mut self.0 else {
            return std::future::pending().await;
        };
        loop {
            tokio::select! {
                _ = term.recv() => return,
                _ = int.recv() => return,
                // Without a certificate of ours there is nothing to read again: a terminal that is gone ends us.
                _ = hup.recv() => {
                    if keeper.tls().pin().is_none() {
                        return;
                    }
                    // Told in the log and, where it is refused, by `status`.
                    let _ = keeper.read_again("SIGHUP", Entry::default()).await;
                }
            }
        }
    }
}
