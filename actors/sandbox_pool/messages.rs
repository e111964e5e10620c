//! What may be asked of the pool.

use std::time::Duration;

use portcullis_cell::{Size, Value};
use portcullis_core::codes::{self, Code};
use portcullis_core::ids::{AgentId, BoxId, RunId};
use portcullis_core::sandbox::{
    EnvNames, ImageName, Isolation, Line, Named, Owner, RuntimeName, Scope, ShareName, Sharers,
    UserRange,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::choose::{Chosen, Kind};
use super::disk::Full;
use super::driver::Driver;
use super::holder::{Holder, SessionKey};
use super::input::RunInputs;
use super::runner::RunnerShown;
use super::runs::RunEvent;
use super::spec::FoundBox;
use super::users::{Job, Said};
use super::warm::{Fresh, WarmStatus};
use crate::supervision::{FlagReader, Reply};

/// A command for an agent's box. Policy has been asked before; the pool only contains.
#[derive(Clone)]
pub struct RunSpec {
    /// The run's name, unique among the agent's live runs.
    pub run: RunId,
    /// Whose box it goes to, where the scope of its agent's boxes is a session.
    pub session: SessionKey,
    /// Says when that session is over, by a word or by its own end; without it the session is over when it has been idle.
    pub session_over: Option<FlagReader<Option<String>>>,
    /// Command and arguments, not empty, without NUL; together with `env` under 60 KiB.
    pub argv: Vec<String>,
    /// Working folder inside the box; none is `/workspace`.
    pub cwd: Option<String>,
    /// Variables on top of PATH, HOME, LANG and TMPDIR, which they may replace.
    pub env: Vec<(String, Value)>,
    /// None is the configured time; more than the ceiling is cut to it.
    pub timeout: Option<Duration>,
    /// Its standard input is open: more of it comes by [`RunTicket::inputs`].
    pub stdin: bool,
    /// It has a terminal of this size.
    pub tty: Option<Size>,
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
    /// Who has the box together.
    pub scope: Scope,
    /// The time that the run really has, in milliseconds.
    pub timeout_ms: u64,
    /// The way into it.
    pub inputs: RunInputs,
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
    /// Variables that a request may set.
    pub env: EnvNames,
    /// Who has the box together.
    pub scope: Scope,
    /// The agents that share it, where that is its scope.
    pub sharers: Option<Sharers>,
}

/// What the boxes of an agent are held by, line by line, from the same value that a box is made from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// Whose; none: of agents that nothing is said of.
    pub agent: Option<AgentId>,
    /// The profile that the lines begin from.
    pub profile: Named,
    /// The agents of one box, where the scope is `shared`: each can read, change and end what the others do in it.
    pub shared: Option<Sharers>,
    /// Each limit, and the layer that decided it.
    pub lines: Vec<Line>,
    /// `native` or `docker`; none while none is proven.
    pub driver: Option<&'static str>,
    /// Why that one, or what each said.
    pub driver_why: String,
    /// How strong it is.
    pub isolation: Option<Isolation>,
    /// It is weaker than the profile takes: runs are refused.
    pub weaker: bool,
    /// Digest of the image; none with the native driver, or where there is none to be had.
    pub image_digest: Option<String>,
    /// Digest of everything that shapes the box, as [`RunTicket::profile_hash`]; none where no box would be made.
    pub profile_hash: Option<String>,
    /// Why no run would be started.
    pub refused: Option<ExplainedRefusal>,
}

/// See [`Explained::refused`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ExplainedRefusal {
    /// The stable code that a run would get.
    pub code: &'static str,
    /// In words.
    pub message: String,
    /// What to do.
    pub next: &'static str,
}

impl From<&PoolError> for ExplainedRefusal {
    fn from(error: &PoolError) -> Self {
        Self {
            code: error.code().name,
            message: error.to_string(),
            next: error.code().next,
        }
    }
}

/// Why a run was not started. Nothing ran.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// No driver can contain anything here.
    #[error("no sandbox driver can be used, so nothing was run: {0}")]
    NoDriver(String),
    /// The one that the agent's profile names cannot, and another would be none that somebody decided on.
    #[error(
        "the sandbox driver {driver:?} of {from} cannot be used and no other is taken for it, so nothing was run: {said}"
    )]
    NotThisDriver {
        /// `native` or `docker`.
        driver: &'static str,
        /// The layer that names it.
        from: String,
        /// What it said.
        said: String,
    },
    /// The box could not be made.
    #[error("the sandbox could not be started, nothing was run: {0}")]
    NoBox(String),
    /// All boxes are in use.
    #[error("all {0} sandboxes are in use, nothing was run")]
    Full(usize),
    /// Something runs in every session that the agent may have.
    #[error("something runs in each of the {0} sessions that this agent may have, nothing was run")]
    Sessions(usize),
    /// The request cannot be a run.
    #[error("{0}")]
    Invalid(String),
    /// The driver is weaker than the agent's profile takes.
    #[error(
        "the boxes of this agent need isolation {:?} and the driver gives {:?}: nothing was run",
        asked.as_str(),
        has.as_str()
    )]
    TooWeak {
        /// What will do.
        asked: Isolation,
        /// What there is.
        has: Isolation,
    },
    /// Each user of the range is somebody's.
    #[error(
        "every user of [sandbox] uids = \"{0}\" is an agent's or a share's, also of those that are gone: nothing was run"
    )]
    Users(UserRange),
    /// The workspace holds more than it may, and a run that was to delete made it more.
    #[error("{0}: nothing was run")]
    WorkspaceFull(Full),
    /// What lies in the place of the workspace is not its agent's.
    #[error("the workspace cannot be used, nothing was run: {0}")]
    Workspace(String),
    /// That the agent has a user of the host could not be kept.
    #[error("which user its boxes have cannot be kept, nothing was run: {1}")]
    NotKept(&'static Code, String),
    /// The agent's image cannot be used.
    #[error("the image {:?} cannot be used, nothing was run: {why}", name.as_str())]
    Image {
        /// As the configuration names it.
        name: ImageName,
        /// What is wrong with it.
        why: String,
    },
    /// There is no such runtime.
    #[error("the runtime {:?} cannot be used, nothing was run: {why}", name.as_str())]
    Runtime {
        /// As the configuration names it.
        name: RuntimeName,
        /// What there is.
        why: String,
    },
    /// A folder or file of the host may not be seen in a box.
    #[error("the mount {name:?} cannot be used, nothing was run: {why}")]
    Mount {
        /// Its name below `/mnt`.
        name: String,
        /// What is wrong with its source, and what mends it.
        why: String,
    },
}

impl PoolError {
    /// The registered code.
    pub const fn code(&self) -> &'static Code {
        match self {
            Self::NoDriver(_) | Self::NotThisDriver { .. } => codes::NO_DRIVER,
            Self::NoBox(_) => codes::BOX_LOST,
            Self::Full(_) | Self::Sessions(_) => codes::OVERLOADED,
            Self::Invalid(_) => codes::INVALID_PARAMS,
            Self::TooWeak { .. } => codes::ISOLATION_TOO_WEAK,
            Self::Image { .. } => codes::IMAGE_UNUSABLE,
            Self::Runtime { .. } => codes::RUNTIME_UNUSABLE,
            Self::Mount { .. } => codes::MOUNT_REFUSED,
            Self::Users(_) => codes::UIDS_EXHAUSTED,
            Self::WorkspaceFull(_) => codes::WORKSPACE_FULL,
            Self::Workspace(_) => codes::WORKSPACE_FOREIGN,
            Self::NotKept(code, _) => code,
        }
    }
}

/// One box, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BoxShown {
    /// Its name.
    pub id: BoxId,
    /// Who has it together; none: it is kept ready.
    pub scope: Option<Scope>,
    /// The agent that has it, or for whom it is kept ready.
    pub agent: Option<AgentId>,
    /// What the agents that share it call it.
    pub share: Option<ShareName>,
    /// What its session is called; a connection's has no name.
    pub session: Option<String>,
    /// Whose session: who asked for it.
    pub session_of: Option<String>,
    /// What made it: `native` or `docker`.
    pub driver: &'static str,
    /// `starting`, `serves` or `leaves` (it takes no new run).
    pub state: &'static str,
    /// Runs under way in it.
    pub runs: usize,
    /// Digest of everything that shaped it.
    pub profile_hash: String,
}

/// A driver that some agents name, beside that of all others.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherDriver {
    /// `native` or `docker`.
    pub driver: &'static str,
    /// It makes boxes now.
    pub is_proven: bool,
    /// It is not known yet: it is being tried.
    pub is_trying: bool,
    /// Why, or why not.
    pub why: String,
}

/// The pool as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PoolStatus {
    /// `native` or `docker`, of agents that name none; none while it is not proven.
    pub driver: Option<&'static str>,
    /// Why that one, or what each said.
    pub why: String,
    /// It is not known yet: it is being tried.
    pub trying: bool,
    /// What other agents name.
    pub others: Vec<OtherDriver>,
    /// Live boxes, and who has each.
    pub boxes: Vec<(BoxId, Holder)>,
    /// Boxes that are kept ready for sessions.
    pub warm: WarmStatus,
    /// The process that speaks to the engine; none where no engine is used.
    pub runner: Option<RunnerShown>,
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
    /// What a run of this agent would get that asks for this time; waits while the drivers are tried.
    Profile(AgentId, Option<Duration>, Reply<BoxProfile, PoolError>),
    /// What the agent's boxes are held by, and who decided it; waits while the drivers are tried.
    Explain(Option<AgentId>, Reply<Explained, std::convert::Infallible>),
    /// Every box that there is.
    List(Reply<Vec<BoxShown>, std::convert::Infallible>),
    /// End a box and what runs in it; whether there is one.
    End(BoxId, Reply<bool, std::convert::Infallible>),
    /// What `status` shows.
    Status(Reply<PoolStatus, std::convert::Infallible>),
    /// From the pool's own task: a driver has been tried, and its old boxes ended.
    Tried(Kind, Box<Result<Chosen, String>>),
    /// From the pool's own timer: a driver is not there, and is tried again.
    TryAgain(Kind),
    /// From the pool's own task: the id of an image, or why it cannot be used.
    Image(ImageName, Result<String, String>),
    /// From the pool's own task: whether this owner has a user of the host, and its folder.
    User(Owner, Job, Said),
    /// From the pool's own task: the engine that makes the boxes died or does not answer.
    EngineLost(String),
    /// From the pool's own timer: boxes that are nobody's are looked for.
    Sweep,
    /// From the pool's own task: what there is of this driver.
    Swept(Driver, Vec<FoundBox>),
    /// From the pool's own timer: somebody has waited long for the end of a box.
    Waited,
    /// From the pool's own task: the actor of this box does not answer.
    Stuck(u64),
    /// From the pool's own task: a session is over, its boxes end when what runs in them has.
    SessionOver(SessionKey),
    /// From the pool's own task: who waits may find a place now.
    Again,
    /// From the pool's own timers and tasks: boxes are made ahead, and those that are not wanted ended.
    Fill,
    /// From the pool's own task: how a session came by its box, and in what time.
    Began(Fresh, Duration),
    /// The loops of all boxes stand still from here on.
    #[cfg(test)]
    HangBoxes,
    /// Other profiles hold from here on.
    #[cfg(test)]
    Profiles(Box<portcullis_core::sandbox::Profiles>),
}
