//! The two kinds of driver, each tried by a box that tries to get out. Never the bare host.

use portcullis_core::sandbox::DriverChoice;

use super::config::SandboxPoolConfig;
use super::containers::Containers;
use super::docker::Docker;
use super::driver::{Driver, DriverError, ProbeContext};
use super::engine::EngineConfig;
use super::native::Native;
use super::probe;
use super::runner::{Remote, RunnerHandle};

/// What makes boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The engine.
    Docker,
    /// bubblewrap.
    Native,
}

impl Kind {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Native => "native",
        }
    }

    /// How an agent names it.
    pub const fn choice(self) -> DriverChoice {
        match self {
            Self::Docker => DriverChoice::Docker,
            Self::Native => DriverChoice::Native,
        }
    }
}

/// A driver that has proven itself, and why it is used.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The driver.
    pub driver: Driver,
    /// For `status` and the first lines of `up`.
    pub why: String,
}

/// Tries this one. The engine is spoken to by the runner where there is one; without it, as in tests, by this process.
///
/// # Errors
/// What it said, with the command that changes it.
pub async fn attempt(
    kind: Kind,
    config: &SandboxPoolConfig,
    context: &ProbeContext,
    runner: Option<&RunnerHandle>,
) -> Result<Chosen, DriverError> {
    match kind {
        Kind::Docker => docker(config, context, runner).await,
        Kind::Native => native(context).await,
    }
}

async fn native(context: &ProbeContext) -> Result<Chosen, DriverError> {
    let native = Native::find(context).await?;
    let ceilings = native.has_cgroups();
    let without = native.unstaged().map(str::to_owned);
    let driver = Driver::Native(native);
    probe::prove(&driver, context, ceilings).await?;
    let mut why = if ceilings {
        "bubblewrap, proven by a box that tried to get out"
    } else {
        "bubblewrap, WEAKER: boxes have no memory, processor or process ceiling (require_cgroup = false)"
    }
    .to_owned();
    if let Some(without) = without {
        why = format!("{why}; without terminals: {without}");
    }
    let groups = groups_beside();
    if !groups.is_empty() {
        why = format!("{why}; boxes have this gateway's other groups: {groups}");
    }
    Ok(Chosen { driver, why })
}

/// Groups that native boxes of a gateway that is not root have besides its own: the kernel lets nobody but root give one up. By number.
fn groups_beside() -> String {
    if rustix::process::geteuid().is_root() {
        return String::new();
    }
    let own = rustix::process::getgid();
    let groups = rustix::process::getgroups().unwrap_or_default();
    let beside = groups.into_iter().filter(|group| *group != own);
    let beside: Vec<String> = beside.map(|group| group.as_raw().to_string()).collect();
    beside.join(", ")
}

async fn docker(
    config: &SandboxPoolConfig,
    context: &ProbeContext,
    runner: Option<&RunnerHandle>,
) -> Result<Chosen, DriverError> {
    let docker = match runner {
        Some(runner) => Containers::Runner(Remote::connect(runner).await?),
        None => Containers::Here(Docker::connect(context, &EngineConfig::here(config)).await?),
    };
    let why = format!(
        "{}, proven by a box that tried to get out",
        docker.describe()
    );
    let driver = Driver::Docker(docker);
    probe::prove(&driver, context, true).await?;
    Ok(Chosen { driver, why })
}
