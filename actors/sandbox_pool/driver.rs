//! The two ways to make a box. An enum, not a trait object: the set is closed and every match says so.

use std::path::PathBuf;

use portcullis_core::ids::BoxId;
use portcullis_core::sandbox::Isolation;

use super::choose::Kind;
use super::containers::Containers;
use super::native::Native;
use super::spec::{BoxLimits, BoxSpec, FoundBox, StartedBox};

/// What every driver needs to know to prove that it works here.
#[derive(Debug, Clone)]
pub struct ProbeContext {
    /// `STATE/run`: boxes have their control folders in `run_root/b/<id>`.
    pub run_root: PathBuf,
    /// `STATE/workspaces`: a probe may make a folder of its own in it and must remove it.
    pub workspaces: PathBuf,
    /// The static cell binary on the host.
    pub cell: PathBuf,
    /// Host uid and gid of boxes; never 0.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Label of this gateway.
    pub owner: String,
    /// Label of this start of it.
    pub boot: String,
    /// Ceilings that the probe's own box gets.
    pub limits: BoxLimits,
    /// False: start even where no cgroup can be made (rlimits only, reported as weaker).
    pub require_cgroup: bool,
}

/// Why a driver could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// This driver cannot contain anything on this machine.
    #[error("NO_DRIVER: the {driver} sandbox cannot be used: {reason}; {fix}")]
    NoDriver {
        /// `native` or `docker`.
        driver: &'static str,
        /// What the probe saw.
        reason: String,
        /// The command or setting that changes it.
        fix: String,
    },
    /// A box could not be started.
    #[error("BOX_START_FAILED: {0}; see the daemon's log, then try again")]
    Start(String),
    /// A box could not be ended or listed; what is left is unknown.
    #[error("BOX_STATE_UNKNOWN: {0}; the next start of the daemon reconciles it")]
    Unknown(String),
}

impl DriverError {
    /// The stable code of this error.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoDriver { .. } => "NO_DRIVER",
            Self::Start(_) => "BOX_START_FAILED",
            Self::Unknown(_) => "BOX_STATE_UNKNOWN",
        }
    }
}

/// A driver that has passed its probe.
#[derive(Debug, Clone)]
pub enum Driver {
    /// bubblewrap: namespaces, and the host's `/usr` read-only.
    Native(Native),
    /// A container of a local Docker engine.
    Docker(Containers),
}

impl Driver {
    /// Which of the two.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Native(_) => Kind::Native,
            Self::Docker(_) => Kind::Docker,
        }
    }

    /// `native` or `docker`, as provenance and the log show it.
    pub const fn name(&self) -> &'static str {
        self.kind().as_str()
    }

    /// How strong it is.
    pub const fn isolation(&self) -> Isolation {
        match self {
            Self::Native(native) if native.has_cgroups() => Isolation::Native,
            Self::Native(_) => Isolation::Unbounded,
            Self::Docker(_) => Isolation::Docker,
        }
    }

    /// All that it would ask for such a box, and what decides what comes of it: for a digest.
    pub fn shape(&self, spec: &BoxSpec) -> Vec<u8> {
        match self {
            Self::Native(_) => Native::shape(spec),
            Self::Docker(driver) => driver.shape(spec),
        }
    }

    /// Starts a box and returns once its init process exists (not yet its HELLO).
    pub async fn start(&self, spec: &BoxSpec) -> Result<StartedBox, DriverError> {
        match self {
            Self::Native(driver) => driver.start(spec).await,
            Self::Docker(driver) => driver.start(spec).await,
        }
    }

    /// Ends a box and everything in it; returns when nothing of it is left. Ending one that does not exist is no error.
    pub async fn stop(&self, id: &BoxId) -> Result<(), DriverError> {
        match self {
            Self::Native(driver) => driver.stop(id).await,
            Self::Docker(driver) => driver.stop(id).await,
        }
    }

    /// The first process of a box that runs, whichever start made it.
    pub async fn init(&self, id: &BoxId) -> Option<u32> {
        match self {
            Self::Native(driver) => driver.init(id),
            Self::Docker(driver) => driver.init(id).await,
        }
    }

    /// Every box that carries this gateway's label, whichever start of it made the box.
    pub async fn list(&self, owner: &str) -> Result<Vec<FoundBox>, DriverError> {
        match self {
            Self::Native(driver) => driver.list(owner),
            Self::Docker(driver) => driver.list(owner).await,
        }
    }
}
