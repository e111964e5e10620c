//! From a request to a frozen plan: everything that will happen, said once, with what was opened for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use portcullis_cell::{CELL_INSIDE, output_cap};
use portcullis_core::codes;
use portcullis_core::ids::{AgentId, Hash32};
use portcullis_core::nodes::plan_of;
use portcullis_core::plan::{
    Egress, EnvPolicy, EnvValue, ExecPlan, Executable, Form, HOST_PATH, Limits, Nonce, Stdin,
    Target, is_canonical_path, named_session,
};
use portcullis_core::policy::ExecMode;
use portcullis_core::sandbox::Sharers;
use portcullis_core::vault::{Asked, Use, VaultError};
use tokio::sync::oneshot;

use super::actor::RunRoom;
use super::node::{NodeMeans, prepare};
use crate::exec::config::HostConfig;
use crate::exec::host::bubblewrap;
use crate::exec::messages::{ExecRefusal, ExecWiring, RunRequest};
use crate::exec::open::{Folder, Place, Program};
use crate::exec::operands::{Command, Operands};
use crate::exec::user::User;
use crate::sandbox_pool::BoxProfile;
use crate::supervision::{Ctx, Room};
use crate::vault::{VaultHandle, VaultRefusal};

/// The folders of a box that its agent cannot write.
const IMAGE: [&str; 8] = [
    "/usr/", "/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/etc/", "/opt/",
];
const WORKSPACE: &str = "/workspace";
/// argv and env travel in one frame of 64 KiB to where they run.
const MOST_TEXT: usize = 60 << 10;

/// What a plan was made from.
pub struct Frozen {
    /// The plan.
    pub plan: ExecPlan,
    /// What it needs to run.
    pub means: Means,
}

impl Frozen {
    /// What the node that it would run on itself says of it.
    pub const fn own(&self) -> ExecMode {
        match &self.means {
            Means::Node(means) => means.own,
            Means::Box(_) | Means::Host(_) => ExecMode::Full,
        }
    }
}

/// What was opened or learned for it.
pub enum Means {
    /// A box.
    Box(Box<BoxProfile>),
    /// The host.
    Host(Box<HostMeans>),
    /// A node, and what it says that it would run.
    Node(Box<NodeMeans>),
}

/// Opened for a host run.
pub struct HostMeans {
    pub opened: Arc<Opened>,
    pub cwd: Folder,
}

/// Its files, which are looked at again before it runs.
pub struct Opened {
    pub place: Place,
    /// Device and inode of the working folder.
    pub folder: (u64, u64),
    pub program: Program,
    pub operands: Operands,
}

impl Opened {
    /// What is not as it was any more.
    pub fn changed(&self, plan: &ExecPlan) -> Option<String> {
        // Names are looked up by its path below, and by the command in the folder itself: it must be one.
        if !Folder::leads_to(&plan.cwd, self.folder) {
            return Some("the working folder".to_owned());
        }
        if !self.program.is_unchanged() {
            return Some("the program".to_owned());
        }
        let command = Command {
            place: &self.place,
            cwd: &plan.cwd,
            executable: &plan.executable,
            argv: &plan.argv,
        };
        let index = self.operands.changed(command)?;
        Some(format!("what argument {index} names"))
    }
}

/// Session and nonce: fresh, or those of the plan that a person already sees.
pub struct Seal {
    pub session: String,
    pub nonce: Nonce,
}

impl Seal {
    /// For a new plan.
    pub fn fresh(request: &RunRequest) -> Result<Self, ExecRefusal> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| ExecRefusal::new(codes::INTERNAL, error))?;
        Ok(Self {
            session: (request.session_key.as_deref())
                .map_or_else(|| request.connection.clone(), named_session),
            nonce: Nonce::new(&bytes).map_err(invalid)?,
        })
    }

    /// Of a plan that exists.
    pub fn of(plan: &ExecPlan) -> Self {
        Self {
            session: plan.session.clone(),
            nonce: plan.nonce.clone(),
        }
    }
}

fn invalid(error: impl std::fmt::Display) -> ExecRefusal {
    ExecRefusal::new(codes::INVALID_PARAMS, error)
}

/// Longest name of a session, bytes.
const SESSION_MAX: usize = 200;

fn check_session(request: &RunRequest) -> Result<(), ExecRefusal> {
    let Some(key) = &request.session_key else {
        return Ok(());
    };
    if request.target != Target::Sandbox {
        return Err(invalid("sessionKey is for commands in the sandbox"));
    }
    if key.is_empty() || key.len() > SESSION_MAX || key.chars().any(char::is_control) {
        return Err(invalid(
            "sessionKey must be 1 to 200 bytes without control characters",
        ));
    }
    Ok(())
}

/// In a box that agents share, each can read what the others are given: a secret goes into it only where it may be each one's.
///
/// # Errors
/// `VAULT_NOT_BOUND`, and what else the vault says.
pub async fn shared_by_all(
    vault: Option<&VaultHandle>,
    sharers: &Sharers,
    secret: &str,
    by: &str,
) -> Result<(), ExecRefusal> {
    let vault =
        vault.ok_or_else(|| ExecRefusal::of_vault(&VaultRefusal::Sealed(VaultError::Locked)))?;
    if sharers.others {
        return Err(ExecRefusal::new(
            codes::VAULT_NOT_BOUND,
            format!(
                "every agent may come into the box {:?}, so no secret goes into it: give the agent a box of its own (scope)",
                sharers.name.as_str()
            ),
        ));
    }
    for agent in &sharers.agents {
        let usable = vault.usable(secret, asked(agent, by)).await;
        usable.map_err(|error| {
            let refusal = ExecRefusal::of_vault(&error);
            let message = format!(
                "agent {agent} shares the box {:?}, and what goes into it is its, too: {}",
                sharers.name.as_str(),
                refusal.message
            );
            ExecRefusal { message, ..refusal }
        })?;
    }
    Ok(())
}

/// What no target takes.
///
/// # Errors
/// `INVALID_PARAMS`.
pub fn check_request(
    argv: &[String],
    env: &BTreeMap<String, String>,
    timeout_ms: Option<u64>,
) -> Result<(), ExecRefusal> {
    let texts = argv.iter().map(String::len);
    let vars = env.iter().map(|(name, value)| name.len() + value.len());
    if texts.chain(vars).map(|len| len + 8).sum::<usize>() > MOST_TEXT {
        return Err(invalid("argv and env together must be at most 60 KiB"));
    }
    if argv.first().is_none_or(String::is_empty) {
        return Err(invalid("argv must name a command"));
    }
    if timeout_ms == Some(0) {
        return Err(invalid("timeoutMs must be at least 1"));
    }
    Ok(())
}

/// Freezes the request.
///
/// # Errors
/// What is wrong with it, or why it cannot run here.
pub async fn freeze(
    wiring: &ExecWiring,
    ctx: &Ctx<RunRoom>,
    request: &RunRequest,
    seal: Seal,
) -> Result<Frozen, ExecRefusal> {
    check_request(&request.argv, &request.env, request.timeout_ms)?;
    check_session(request)?;
    let takes_input = request.stdin != Stdin::None || request.tty.is_some();
    if takes_input && request.target != Target::Sandbox {
        return Err(ExecRefusal::new(
            codes::INPUT_UNAVAILABLE,
            "standard input and terminals are for commands in the sandbox",
        ));
    }
    let policy = EnvPolicy::new(&wiring.config.host.env)
        .map_err(|error| ExecRefusal::new(codes::CONFIG_INVALID, error))?;
    // Before anything is opened: what may not be set is refused by name.
    for name in request.env.keys() {
        policy.check(&request.target, name).map_err(invalid)?;
    }
    for name in request.secrets.keys() {
        policy.check(&request.target, name).map_err(invalid)?;
        if request.env.contains_key(name) {
            return Err(invalid(format!(
                "{name} is in env and in secrets: one of them"
            )));
        }
    }
    if !request.secrets.is_empty() && matches!(request.target, Target::Node(_)) {
        return Err(ExecRefusal::new(
            codes::SECRET_NOT_FOR_NODES,
            "no secret of the vault goes to a node",
        ));
    }
    let own = wiring.agents.get(&request.agent).unwrap_or(&wiring.every);
    let asked = request.timeout_ms.or(own.timeout_ms);
    let frozen = match &request.target {
        // What is configured for the agent is a layer of its boxes' profile.
        Target::Sandbox => in_box(wiring, request, request.timeout_ms, seal).await?,
        Target::Host => on_host(wiring, ctx, request, asked, seal).await?,
        Target::Node(node) => on_node(wiring, request, node, asked, seal).await?,
    };
    frozen.plan.validate(&policy).map_err(invalid)?;
    Ok(frozen)
}

async fn in_box(
    wiring: &ExecWiring,
    request: &RunRequest,
    asked: Option<u64>,
    seal: Seal,
) -> Result<Frozen, ExecRefusal> {
    let profile = profile(wiring, &request.agent, asked).await?;
    // What the configuration itself gives the agent's runs is no request's.
    for name in request.env.keys().chain(request.secrets.keys()) {
        if !profile.env.allows(name) {
            return Err(ExecRefusal::new(
                codes::ENV_NOT_ALLOWED,
                format!(
                    "no request for agent {} may set {name} in its sandbox",
                    request.agent
                ),
            ));
        }
    }
    let cwd = request.cwd.clone().unwrap_or_else(|| WORKSPACE.to_owned());
    if !is_canonical_path(&cwd) {
        return Err(invalid(
            "cwd must be an absolute path inside the sandbox, without `.`, `..` or doubled `/`",
        ));
    }
    let name = request.argv.first().cloned().unwrap_or_default();
    let digest = profile
        .image_digest
        .clone()
        .unwrap_or_else(|| format!("profile:{}", profile.profile_hash));
    let limits = Limits {
        timeout_ms: profile.timeout_ms,
        output_bytes: output_cap(profile.output_bytes, &request.argv),
        memory_bytes: Some(profile.limits.memory_bytes),
        cpu_millis: Some(profile.limits.cpu_millis),
        pids: Some(profile.limits.pids),
    };
    let plan = ExecPlan {
        executable: if of_image(&name, &cwd) {
            Executable::Image { digest, path: name }
        } else {
            Executable::Workspace { path: name }
        },
        cwd,
        uid: profile.uid,
        gid: profile.gid,
        env: {
            // What is configured for the agent, but where the request says something else of that variable.
            let own = wiring.agents.get(&request.agent).unwrap_or(&wiring.every);
            let mut named = own.secrets.clone();
            named.retain(|variable, _| !request.env.contains_key(variable));
            named.extend(request.secrets.clone());
            if let Some(sharers) = &profile.sharers {
                let by = request.principal.name();
                for secret in named.values() {
                    shared_by_all(wiring.vault.as_ref(), sharers, secret, &by).await?;
                }
            }
            with_secrets(wiring, request, plain(&request.env), &named).await?
        },
        limits,
        egress: match &profile.egress[..] {
            [] => Egress::None,
            hosts => Egress::Hosts(hosts.to_vec()),
        },
        profile_digest: Hash32::try_from(profile.profile_hash.clone()).map_err(invalid)?,
        ..blank(request, seal)
    };
    Ok(Frozen {
        plan,
        means: Means::Box(Box::new(profile)),
    })
}

/// What the pool gives today.
pub async fn profile(
    wiring: &ExecWiring,
    agent: &AgentId,
    asked: Option<u64>,
) -> Result<BoxProfile, ExecRefusal> {
    wiring
        .pool
        .profile(agent.clone(), asked.map(Duration::from_millis))
        .await
        .map_err(|error| ExecRefusal::of_call(error, |refusal| ExecRefusal::of_pool(&refusal)))
}

/// A bare name is looked up in folders of the image only; anything that is not plainly in one of them the agent may have written.
fn of_image(name: &str, cwd: &str) -> bool {
    if !name.contains('/') {
        return true;
    }
    let path = if name.starts_with('/') {
        name.to_owned()
    } else {
        format!("{}/{name}", cwd.trim_end_matches('/'))
    };
    // The cell is the gateway's own, and read-only.
    path == CELL_INSIDE
        || is_canonical_path(&path) && IMAGE.iter().any(|folder| path.starts_with(folder))
}

/// The folder, the arguments and the digest are the node's word; its user and its rules are its own.
async fn on_node(
    wiring: &ExecWiring,
    request: &RunRequest,
    node: &str,
    asked: Option<u64>,
    seal: Seal,
) -> Result<Frozen, ExecRefusal> {
    let means = prepare(&wiring.nodes, request, node).await?;
    let run = means.run(request, wiring.config.host.timeout(asked));
    let principal = request.principal.name();
    let plan = plan_of(run, &seal.session, &principal, seal.nonce);
    Ok(Frozen {
        plan,
        means: Means::Node(Box::new(means)),
    })
}

/// [`open_on_host`] on a thread that may wait for the disk: for a run, and for who asks what would be said of one.
pub async fn opened_on_host<R: Room>(
    wiring: &ExecWiring,
    ctx: &Ctx<R>,
    argv: &[String],
    cwd: Option<String>,
) -> Result<HostMeans, ExecRefusal> {
    let argv = argv.to_vec();
    let (reply, opened) = oneshot::channel();
    let job_wiring = wiring.clone();
    ctx.blocking("freeze", 0, move || {
        let ground = HostGround {
            config: &job_wiring.config.host,
            operator_uids: &job_wiring.operator_uids,
            operator_gids: &job_wiring.operator_gids,
            masked: std::iter::once(&job_wiring.state)
                .chain(&job_wiring.forbidden)
                .cloned()
                .collect(),
        };
        // Nobody waits any more: who asked is gone.
        let _ = reply.send(open_on_host(&ground, &argv, cwd));
    })
    .map_err(|error| ExecRefusal::new(codes::OVERLOADED, error))?;
    opened
        .await
        .map_err(|_| ExecRefusal::new(codes::INTERNAL, "opening the program failed"))?
}

async fn on_host(
    wiring: &ExecWiring,
    ctx: &Ctx<RunRoom>,
    request: &RunRequest,
    asked: Option<u64>,
    seal: Seal,
) -> Result<Frozen, ExecRefusal> {
    let means = opened_on_host(wiring, ctx, &request.argv, request.cwd.clone()).await?;
    let host = &wiring.config.host;
    let user = &means.opened.place.user;
    let env = host_env(&request.env, user);
    let env = with_secrets(wiring, request, env, &request.secrets).await?;
    let plan = ExecPlan {
        executable: means.opened.program.executable(),
        operands: means.opened.operands.list.clone(),
        cwd: means.cwd.path.clone(),
        uid: user.uid,
        gid: user.gid,
        env,
        limits: Limits {
            timeout_ms: host.timeout(asked),
            output_bytes: host.output_cap_bytes,
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
        },
        profile_digest: host_profile(host, &wiring.cell, user, &means.cwd),
        ..blank(request, seal)
    };
    Ok(Frozen {
        plan,
        means: Means::Host(Box::new(means)),
    })
}

/// The variables of every host command, and what was asked for beside them.
pub fn host_env(asked: &BTreeMap<String, String>, user: &User) -> BTreeMap<String, EnvValue> {
    let mut env = plain(asked);
    for (name, value) in [
        ("PATH", HOST_PATH),
        ("HOME", user.home.as_str()),
        ("USER", user.name.as_str()),
        ("LOGNAME", user.name.as_str()),
        ("LANG", "C.UTF-8"),
    ] {
        env.entry(name.to_owned())
            .or_insert_with(|| EnvValue::Plain(value.to_owned()));
    }
    env
}

/// What host commands stand on.
pub struct HostGround<'a> {
    pub config: &'a HostConfig,
    /// Users and groups that no command runs as.
    pub operator_uids: &'a [u32],
    pub operator_gids: &'a [u32],
    /// Out of every command's reach.
    pub masked: Vec<PathBuf>,
}

/// Opens what a command of the host would run. Blocks.
///
/// # Errors
/// What is wrong with it.
pub fn open_on_host(
    ground: &HostGround<'_>,
    argv: &[String],
    cwd: Option<String>,
) -> Result<HostMeans, ExecRefusal> {
    let user = User::find(ground.config, ground.operator_uids, ground.operator_gids)?;
    if !user.switched && bubblewrap().is_none() {
        return Err(ExecRefusal::new(
            codes::HOST_USER_INVALID,
            "a gateway that is not root keeps its state out of a host command's reach with bubblewrap, which is not installed",
        )
        .with("fix", "run: apt-get install bubblewrap"));
    }
    let masked = ground.masked.iter();
    let masked: Vec<PathBuf> = masked.filter_map(|path| path.canonicalize().ok()).collect();
    let place = Place { user, masked };
    let cwd = match cwd {
        Some(cwd) => Folder::open(&place, &cwd)?,
        None => Folder::open(&place, &place.user.home).or_else(|_| Folder::open(&place, "/"))?,
    };
    let name = argv.first().map_or("", String::as_str);
    let program = Program::open(&place, &cwd.path, name)?;
    let command = Command {
        place: &place,
        cwd: &cwd.path,
        executable: &program.executable(),
        argv,
    };
    let operands = Operands::freeze(command, program.changeable())?;
    let opened = Opened {
        place,
        folder: cwd.is,
        program,
        operands,
    };
    Ok(HostMeans {
        opened: Arc::new(opened),
        cwd,
    })
}

/// Digest of how host runs are held, and in which very folder: two plans with the same one are held alike. A plan that is made
/// again for its answer, later or after a start, is another one when its folder was exchanged under the same path.
pub fn host_profile(host: &HostConfig, cell: &Path, user: &User, cwd: &Folder) -> Hash32 {
    let (dev, ino) = cwd.is;
    let text = format!(
        "portcullis-host-v2\nuser {} {} {} switched {}\ncell {}\noutput {} files {} bytes {}\nfolder {dev} {ino}\n",
        user.name,
        user.uid,
        user.gid,
        user.switched,
        cell.file_name().unwrap_or_default().to_string_lossy(),
        host.output_cap_bytes,
        host.open_files,
        host.file_bytes,
    );
    Hash32::of(text.as_bytes())
}

fn plain(env: &BTreeMap<String, String>) -> BTreeMap<String, EnvValue> {
    env.iter()
        .map(|(name, value)| (name.clone(), EnvValue::Plain(value.clone())))
        .collect()
}

/// These variables, and those that get secrets: by name and version, never by value.
async fn with_secrets(
    wiring: &ExecWiring,
    request: &RunRequest,
    mut env: BTreeMap<String, EnvValue>,
    named: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, EnvValue>, ExecRefusal> {
    for (variable, name) in named {
        let vault = wiring
            .vault
            .as_ref()
            .ok_or_else(|| ExecRefusal::of_vault(&VaultRefusal::Sealed(VaultError::Locked)))?;
        let asked = asked(&request.agent, &request.principal.name());
        let meta = vault.usable(name, asked).await;
        let secret = EnvValue::Secret {
            name: name.clone(),
            version: meta.map_err(|e| ExecRefusal::of_vault(&e))?.version,
        };
        env.insert(variable.clone(), secret);
    }
    Ok(env)
}

/// A secret in the environment of this agent's run.
pub fn asked(agent: &AgentId, by: &str) -> Asked {
    Asked {
        agent: Some(agent.to_string()),
        host: None,
        way: Use::Run,
        by: by.to_owned(),
        run: None,
        record: None,
    }
}

/// What every plan says alike; the rest is filled in by its target.
fn blank(request: &RunRequest, seal: Seal) -> ExecPlan {
    ExecPlan {
        v: Form::V2,
        target: request.target.clone(),
        agent: request.agent.clone(),
        session: seal.session,
        principal: request.principal.name(),
        argv: request.argv.clone(),
        executable: Executable::Workspace {
            path: String::new(),
        },
        operands: Vec::new(),
        cwd: String::new(),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        env: BTreeMap::new(),
        stdin: request.stdin,
        tty: request.tty,
        limits: Limits {
            timeout_ms: 0,
            output_bytes: 0,
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
        },
        // A command on the host has the host's network: a card that said otherwise would be a lie.
        egress: match request.target {
            Target::Sandbox => Egress::None,
            Target::Host | Target::Node(_) => Egress::Host,
        },
        profile_digest: Hash32([0; 32]),
        nonce: seal.nonce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_may_have_written_is_no_image() {
        for (name, cwd, image) in [
            ("ls", "/workspace", true),
            ("/usr/bin/ls", "/workspace", true),
            ("./x", "/workspace", false),
            ("bin/ls", "/usr", true),
            ("/usr/../workspace/x", "/", false),
            ("/tmp/x", "/", false),
            ("/proc/self/cwd/x", "/", false),
            ("/workspace/x", "/", false),
        ] {
            assert_eq!(of_image(name, cwd), image, "{name} in {cwd}");
        }
    }
}
