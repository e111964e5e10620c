//! What may be asked of the pool.

use std::time::Duration;

use portcullis_cell::Value;
use portcullis_core::ids::{AgentId, BoxId, RunId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::choose::Chosen;
use super::runs::RunEvent;
use crate::supervision::Reply;

/// A command for an agent's box. Policy has been asked before; the pool only contains.
#[derive(Clone)]
pub struct RunSpec {
    /// The run's name, unique among the agent's live runs.
    pub run: RunId,
    /// Command and arguments, not empty, without NUL; together with `env` under 60 KiB.
    pub argv: Vec<String>,
    /// Working folder inside the box; none is `/workspace`.
    pub cwd: Option<String>,
    /// Variables on top of PATH, HOME, LANG and TMPDIR, which they may replace.
    pub env: Vec<(String, Value)>,
    /// None is the configured time; more than the ceiling is cut to it.
    pub timeout: Option<Duration>,
}

/// Where a run was started, as far as the host knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunTicket {
    /// The box.
    pub box_id: BoxId,
    /// `native` or `docker`.
    pub driver: &'static str,
    /// Digest of the box's image; none with the native driver.
    pub image_digest: Option<String>,
    /// Digest of everything that shapes the box.
    pub profile_hash: String,
    /// The time that the run really has, in milliseconds.
    pub timeout_ms: u64,
}

/// What a run gets today, before one is started: for a plan that says all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxProfile {
    /// `native` or `docker`.
    pub driver: &'static str,
    /// Digest of the image; none with the native driver.
    pub image_digest: Option<String>,
    /// Digest of everything that shapes the box, as [`RunTicket::profile_hash`].
    pub profile_hash: String,
    /// Host uid of everything in the box.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
    /// Ceilings of the whole box.
    pub limits: super::spec::BoxLimits,
    /// The time that a run gets which asks for so much.
    pub timeout_ms: u64,
    /// Bytes of each output stream.
    pub output_bytes: u64,
    /// Hosts that it may reach, `host:port` in their one form; none: it has no way out.
    pub egress: Vec<String>,
}

/// Why a run was not started. Nothing ran.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// No driver can contain anything here.
    #[error("no sandbox driver can be used, so nothing was run: {0}")]
    NoDriver(String),
    /// The box could not be made.
    #[error("the sandbox could not be started, nothing was run: {0}")]
    NoBox(String),
    /// All boxes are in use.
    #[error("all {0} sandboxes are in use, nothing was run")]
    Full(usize),
    /// The request cannot be a run.
    #[error("{0}")]
    Invalid(String),
}

impl PoolError {
    /// The registered code.
    pub const fn code(&self) -> &'static portcullis_core::codes::Code {
        match self {
            Self::NoDriver(_) => portcullis_core::codes::NO_DRIVER,
            Self::NoBox(_) => portcullis_core::codes::BOX_LOST,
            Self::Full(_) => portcullis_core::codes::OVERLOADED,
            Self::Invalid(_) => portcullis_core::codes::INVALID_PARAMS,
        }
    }
}

/// The pool as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PoolStatus {
    /// `native` or `docker`; none while none is proven.
    pub driver: Option<&'static str>,
    /// Why that one, or what each said.
    pub why: String,
    /// It is not known yet: drivers are being tried.
    pub trying: bool,
    /// Live boxes with their agents.
    pub boxes: Vec<(BoxId, AgentId)>,
}

/// A request for a run, with where its answer and events go.
pub struct Start {
    /// Whose box.
    pub agent: AgentId,
    /// What.
    pub spec: RunSpec,
    /// Where events go.
    pub events: mpsc::Sender<RunEvent>,
    /// Where the answer goes.
    pub reply: Reply<RunTicket, PoolError>,
    /// When it was asked for.
    pub asked: Instant,
    /// Boxes that ended before they took it.
    pub tries: u8,
}

/// To the pool.
pub enum SandboxPoolMsg {
    /// Start a run.
    Start(Box<Start>),
    /// End a run.
    Cancel {
        /// Whose.
        agent: AgentId,
        /// Which.
        run: RunId,
    },
    /// What a run would get that asks for this time; waits while the drivers are tried.
    Profile(Option<Duration>, Reply<BoxProfile, PoolError>),
    /// What is.
    Status(Reply<PoolStatus, std::convert::Infallible>),
    /// From the pool's own task: the drivers have been tried and old boxes ended.
    Tried(Result<Chosen, Vec<String>>),
    /// From the pool's own timer: there is no driver, and they are tried again.
    TryAgain,
    /// From the pool's own task: the engine that makes the boxes died or does not answer.
    EngineLost(String),
    /// From the pool's own timer: somebody has waited long for the end of a box.
    Waited,
    /// From the pool's own task: the actor of this box does not answer.
    Stuck(u64),
    /// The loops of all boxes stand still from here on.
    #[cfg(test)]
    HangBoxes,
}
