//! What may be asked of runs, and what they answer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use portcullis_cell::Stream;
use portcullis_core::approval::Narrowing;
use portcullis_core::audit::{Entry, Seq};
use portcullis_core::auth::{Principal, Whose};
use portcullis_core::codes::{self, Code};
use portcullis_core::ids::{AgentId, ApprovalId, DeviceId, Hash32, RunId};
use portcullis_core::plan::{PlanKey, Stdin, Target, TtySize};
use portcullis_core::policy::Judgement;
use rustix::io::Errno;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::config::ExecConfig;
use crate::approval::{ApprovalHandle, ApprovalRefusal};
use crate::audit::{AuditError, AuditHandle};
use crate::clock::Clock;
use crate::nodes::NodesHandle;
use crate::sandbox_pool::{NotTaken, PoolError, RunInputs, SandboxPoolHandle};
use crate::supervision::{CallError, Flag, FlagReader, Reply};
use crate::vault::{VaultHandle, VaultRefusal};

/// One command, as somebody who was authenticated asks for it.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// Who asks.
    pub principal: Principal,
    /// On which connection: its id, 1 to 256 bytes.
    pub connection: String,
    /// What it calls its session, 1 to 200 bytes, in the sandbox only: one of this principal and agent. None: its connection is one.
    pub session_key: Option<String>,
    /// For which agent. The caller has checked that the principal may act for it.
    pub agent: AgentId,
    /// Command and arguments.
    pub argv: Vec<String>,
    /// Working folder; none: `/workspace`, or the user's home on the host.
    pub cwd: Option<String>,
    /// Variables to set, as far as the plan's rules allow.
    pub env: BTreeMap<String, String>,
    /// Variables that get secrets of the vault, by the secrets' names; never on a node.
    pub secrets: BTreeMap<String, String>,
    /// Milliseconds; none: the configured time.
    pub timeout_ms: Option<u64>,
    /// Where.
    pub target: Target,
    /// None, or open: in the sandbox only.
    pub stdin: Stdin,
    /// On a terminal of this size: in the sandbox only.
    pub tty: Option<TtySize>,
    /// It goes on when its connection ends, also while it waits for a person, and is attached to again by [`ExecMsg::Attach`]. The end of
    /// the credential still ends it.
    pub detach: bool,
    /// The caller's key against running twice, 1 to 256 bytes.
    pub idempotency_key: String,
    /// `Some(reason)` once the credential behind it ended: looked at between intent and act, and ends the run.
    pub session: FlagReader<Option<String>>,
}

/// A command that policy is asked about, without a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgeAsk {
    /// Whose.
    pub agent: AgentId,
    /// Where.
    pub target: Target,
    /// Command and arguments.
    pub argv: Vec<String>,
    /// Working folder; none: as a run's.
    pub cwd: Option<String>,
}

/// How a question is asked ahead of its run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnlyAsk {
    /// How who asks narrows it.
    pub narrowing: Narrowing,
}

/// The first answer: the plan is frozen, and either runs now or waits for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The run.
    pub run_id: RunId,
    /// What exactly will run.
    pub plan_hash: Hash32,
    /// `accepted` or `approval-pending`.
    pub status: &'static str,
    /// The question to a person, where there is one.
    pub approval_id: Option<ApprovalId>,
    /// When the question ends by itself, Unix ms.
    pub expires_at_ms: Option<u64>,
}

/// What a run does, in order. A channel that closes without [`ExecEvent::Ended`] says `unknown`.
#[derive(Debug, Clone, PartialEq)]
pub enum ExecEvent {
    /// It has begun, and takes input: bytes of it that may be sent now. Only of a run with open input or a terminal, and first.
    Begun {
        /// None where its standard input is not open.
        credit: Option<u32>,
    },
    /// It wrote something.
    Output {
        /// From 0, both streams together.
        seq: u64,
        /// Where.
        stream: Stream,
        /// At most 32 KiB, never empty.
        data: Bytes,
        /// Bytes left out just before these: 0, as a reader that is slow makes the run wait.
        dropped: u64,
    },
    /// It goes on, and somebody else reads what it writes from here on. Nothing follows. Only of a detached run.
    Detached,
    /// It is over and nothing of it is left alive, unless the status says otherwise.
    Ended(RunResult),
}

/// A detached run that somebody reads again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The run.
    pub run_id: RunId,
    /// It is over: its last output and its end follow.
    pub over: bool,
}

/// The second answer.
#[derive(Debug, Clone, PartialEq)]
pub struct RunResult {
    /// The run.
    pub run_id: RunId,
    /// `exited`, `timed-out`, `cancelled`, `denied` (nothing ran), `box-lost` or `unknown`; `allowed` where it was only asked for.
    pub status: &'static str,
    /// Of a command that ended by itself.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// From the order to the end; 0 where nothing ran.
    pub duration_ms: u64,
    /// Bytes of standard output beyond the cap.
    pub dropped_stdout: u64,
    /// Bytes of standard error beyond the cap.
    pub dropped_stderr: u64,
    /// What it used; none where nothing ran, or nobody said.
    pub usage: Option<RunUsage>,
    /// contracts.md section 5.
    pub provenance: Value,
    /// Why it did not run, or not to its end.
    pub error: Option<(&'static Code, String)>,
}

/// What a run used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunUsage {
    /// Processor time of its whole tree, in milliseconds.
    pub cpu_ms: u64,
    /// Processes that it left behind, and that were ended.
    pub swept: u32,
    /// Processes of its box that the kernel ended for want of memory while it ran.
    pub out_of_memory: u64,
}

/// A refusal: nothing ran, unless `details.execution` says `may_have_executed`.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecRefusal {
    /// The registered code.
    pub code: &'static Code,
    /// What is wrong.
    pub message: String,
    /// For the caller's program: `fix`, `execution`, `runId`.
    pub details: Map<String, Value>,
}

impl fmt::Display for ExecRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name, self.message)
    }
}

impl std::error::Error for ExecRefusal {}

impl ExecRefusal {
    /// With nothing beside its text.
    pub fn new(code: &'static Code, message: impl fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
            details: Map::new(),
        }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Approval's own words.
    pub(super) fn of_approval(error: &ApprovalRefusal) -> Self {
        Self::new(codes::find(error.code()).unwrap_or(codes::INTERNAL), error)
    }

    /// No intent, no act.
    pub(super) fn of_audit(error: &AuditError) -> Self {
        let code = match error {
            AuditError::DiskFull => codes::DISK_FULL,
            AuditError::Overloaded => codes::OVERLOADED,
            AuditError::Ended => codes::SESSION_ENDED,
            AuditError::Altered(_) => codes::AUDIT_ALTERED,
            AuditError::Invalid(_) => codes::INVALID_PARAMS,
            _ => codes::CANNOT_RECORD,
        };
        Self::new(code, error)
    }

    /// A box that could not be had. What its driver met on a full disk comes as text, with the number of its cause.
    pub(super) fn of_pool(refusal: &PoolError) -> Self {
        let full = [Errno::NOSPC, Errno::DQUOT].map(|e| format!("(os error {})", e.raw_os_error()));
        let code = match refusal {
            PoolError::NoBox(text) if full.iter().any(|cause| text.contains(cause)) => {
                codes::DISK_FULL
            }
            other => other.code(),
        };
        Self::new(code, refusal)
    }

    /// Input that was not passed on.
    pub(super) fn of_input(not: NotTaken) -> Self {
        match not {
            NotTaken::Full(taken) => Self::new(codes::STDIN_FULL, not)
                .with("offset", taken.offset)
                .with("credit", taken.credit),
            NotTaken::Gap(offset) => Self::new(codes::STDIN_GAP, not).with("offset", offset),
            NotTaken::Closed => Self::new(codes::STDIN_CLOSED, not),
            NotTaken::NoTerminal => Self::new(codes::INVALID_PARAMS, not),
        }
    }

    /// A secret that may not be used, or cannot be.
    pub(super) fn of_vault(refusal: &VaultRefusal) -> Self {
        Self::new(
            codes::find(refusal.code()).unwrap_or(codes::INTERNAL),
            refusal,
        )
    }

    /// A room that did not answer.
    pub(super) fn of_call<E>(error: CallError<E>, refused: impl FnOnce(E) -> Self) -> Self {
        let execution = |ran| {
            if ran {
                "may_have_executed"
            } else {
                "not_started"
            }
        };
        match error {
            CallError::Refused(refusal) => refused(refusal),
            CallError::Overloaded => Self::new(
                codes::OVERLOADED,
                "too many requests are in work, nothing ran",
            ),
            CallError::Unavailable { may_have_run } => {
                Self::new(codes::ROOM_DOWN, "a room that runs need is down")
                    .with("execution", execution(may_have_run))
            }
            CallError::Deadline { may_have_run } => Self::new(codes::DEADLINE, "no answer in time")
                .with("execution", execution(may_have_run)),
        }
    }
}

/// What the configuration says of one agent's runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentLimits {
    /// Milliseconds of a run that asks for none; none: as configured for all.
    pub timeout_ms: Option<u64>,
    /// Variables of each of its runs in the sandbox that get secrets of the vault, by the secrets' names.
    pub secrets: BTreeMap<String, String>,
}

/// What the room is given at each start.
#[derive(Clone)]
pub struct ExecWiring {
    /// `[exec]`.
    pub config: ExecConfig,
    /// Agents that have values of their own.
    pub agents: BTreeMap<AgentId, AgentLimits>,
    /// What holds for all others.
    pub every: AgentLimits,
    /// Users whom an operator door accepts: no host command runs as one.
    pub operator_uids: Vec<u32>,
    /// Groups whom an operator door accepts.
    pub operator_gids: Vec<u32>,
    /// `STATE`: out of every host command's reach.
    pub state: PathBuf,
    /// What else is: the folder of the identity key.
    pub forbidden: Vec<PathBuf>,
    /// The static cell binary, as `sandbox_pool::cell_file` wrote it.
    pub cell: PathBuf,
    /// Policy, and people.
    pub approval: ApprovalHandle,
    /// Boxes.
    pub pool: SandboxPoolHandle,
    /// Node hosts.
    pub nodes: NodesHandle,
    /// Secrets that runs name; none: no run may name any.
    pub vault: Option<VaultHandle>,
    /// The log.
    pub audit: AuditHandle,
    /// What seals plans in it.
    pub plans: PlanKey,
    /// The time.
    pub clock: Clock,
    /// Where the log stood when this process' first life of the room began: what later lives look through.
    pub since: Arc<Flag<Option<Seq>>>,
}

/// The detail of a run's record that names, as a JSON list of sequences, those with the beginning of its sealed plan.
pub const PLAN_PARTS: &str = "plan_parts";

/// A run to begin.
pub struct Begin {
    /// What.
    pub request: RunRequest,
    /// Only to ask for it, under its key as the question's id: a later request with this key runs it.
    pub only_ask: Option<OnlyAsk>,
    /// Where its events go.
    pub events: mpsc::Sender<ExecEvent>,
}

/// Names one ending of a credential, to come, that spares what runs. Every other one ends it all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spared(pub(super) u64);

/// To the room.
pub enum ExecMsg {
    /// Begin a run.
    Run(Box<Begin>, Reply<Accepted, ExecRefusal>),
    /// What would policy say?
    Judge(JudgeAsk, Reply<Judgement, ExecRefusal>),
    /// End a run.
    Cancel {
        /// Which.
        run: RunId,
        /// Who wants it.
        by: Box<Principal>,
        /// On which connection.
        connection: String,
        /// The answer.
        reply: Reply<(), ExecRefusal>,
    },
    /// The way into a run.
    Inputs {
        /// Which.
        run: RunId,
        /// Who wants it: only who began it.
        by: Box<Principal>,
        /// On which connection.
        connection: String,
        /// The answer.
        reply: Reply<RunInputs, ExecRefusal>,
    },
    /// Reads a detached run from here on.
    Attach {
        /// Which.
        run: RunId,
        /// Who wants it: only who began it.
        by: Box<Principal>,
        /// On which connection: from now on it is the one that gives it input.
        connection: String,
        /// Bytes of its output, both streams together, that he has.
        offset: u64,
        /// Where it goes.
        events: mpsc::Sender<ExecEvent>,
        /// The answer.
        reply: Reply<Attached, ExecRefusal>,
    },
    /// Ends what runs, or waits to run, for these; answers how many ended, when they have. What is spared for this ending
    /// goes on.
    EndOf(Whose, Option<Spared>, Reply<usize, Infallible>),
    /// Runs of this device that have begun outlive its connections until its ending comes, which spares them.
    Spare(DeviceId, Reply<Spared, Infallible>),
    /// That ending does not come.
    SpareNot(Spared),
    /// A test breaks a run's actor.
    #[cfg(test)]
    Break(RunId),
    /// How many are under way.
    Live(Reply<usize, Infallible>),
}

/// From a run to its owner, so that its crash can be recorded.
#[derive(Debug)]
pub enum Note {
    /// It was not refused: its caller knows its id.
    Accepted,
    /// It was refused: what is to be recorded of that, no oftener than the log bears.
    Refused(Box<Entry>),
    /// Its intent is in the log: from here on it may act.
    Intent(Seq),
    /// It runs, and this is the way into it, where there is one.
    Begun(Option<RunInputs>),
    /// Its outcome is in the log.
    Outcome,
    /// Its caller is told the end now.
    Told,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_that_a_full_disk_prevents_is_told_as_that() {
        let met = |number| {
            let error = std::io::Error::from_raw_os_error(number);
            let text = format!("BOX_START_FAILED: state of the box: {error}; see the log");
            ExecRefusal::of_pool(&PoolError::NoBox(text)).code
        };
        assert_eq!(met(Errno::NOSPC.raw_os_error()), codes::DISK_FULL);
        assert_eq!(met(Errno::DQUOT.raw_os_error()), codes::DISK_FULL);
        assert_eq!(met(Errno::PERM.raw_os_error()), codes::BOX_LOST);
    }
}
