//! Which driver: what the config names, else Docker where an engine answers, else native. Never the bare host.

use super::config::{Choice, SandboxPoolConfig};
use super::containers::Containers;
use super::docker::Docker;
use super::driver::{Driver, DriverError, ProbeContext};
use super::engine::EngineConfig;
use super::native::Native;
use super::probe;
use super::runner::{Remote, RunnerHandle};

/// A driver that has proven itself, and why it is this one.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The driver.
    pub driver: Driver,
    /// For `status` and the first lines of `up`.
    pub why: String,
}

/// Tries the drivers in order; each proves itself with a box that tries to get out. The engine is spoken to by the runner where there
/// is one; without it, as in tests, by this process.
///
/// # Errors
/// What each of them said, with the command that changes it.
pub async fn choose(
    config: &SandboxPoolConfig,
    context: &ProbeContext,
    runner: Option<&RunnerHandle>,
) -> Result<Chosen, Vec<String>> {
    let mut said = Vec::new();
    if config.driver != Choice::Native {
        match docker(config, context, runner).await {
            Ok(chosen) => return Ok(chosen),
            Err(error) => said.push(error.to_string()),
        }
    }
    if config.driver != Choice::Docker {
        match native(context).await {
            Ok(mut chosen) => {
                if let [docker] = &said[..] {
                    chosen.why = format!("{}; not Docker: {docker}", chosen.why);
                }
                return Ok(chosen);
            }
            Err(error) => said.push(error.to_string()),
        }
    }
    Err(said)
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
    Ok(Chosen { driver, why })
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
