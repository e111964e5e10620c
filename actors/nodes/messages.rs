//! What may be asked of nodes, and how it is refused.

use portcullis_core::audit::{Entry, Seq};
use portcullis_core::codes::{self, Code};
use portcullis_core::ids::DeviceId;
use portcullis_core::nodes::{Approved, Call, Connected, NodeResult, Refusal, Stats};
use serde_json::Value;
use tokio::sync::mpsc;

use super::config::NodesConfig;
use crate::audit::{AuditError, AuditHandle};
use crate::clock::Clock;
use crate::pairing::PairingHandle;
use crate::supervision::Reply;

/// What the room is given at each start.
#[derive(Clone)]
pub struct NodesWiring {
    /// Limits.
    pub config: NodesConfig,
    /// Who knows what was approved.
    pub pairing: PairingHandle,
    /// Where what changes a node is recorded.
    pub audit: AuditHandle,
    /// The time.
    pub clock: Clock,
}

/// To a node, through its connection.
#[derive(Debug, Clone, PartialEq)]
pub enum ToNode {
    /// An event without a number.
    Event(&'static str, Value),
    /// A newer connection of the same device took its place: this one ends.
    Replaced,
}

/// The connection's end of what goes to its node. It ends with a life of the room: then attach again.
pub type Line = mpsc::Receiver<ToNode>;

/// A piece of what a node says before its answer: its number and its text.
pub type Piece = (u64, String);

/// A question to a node.
#[derive(Debug, Clone)]
pub struct Question {
    /// Whom, what, how long.
    pub call: Call,
    /// Params as JSON text, as they travel.
    pub params: Option<String>,
    /// The caller's key, passed on unchanged.
    pub idempotency_key: Option<String>,
    /// The caller's session, passed on unchanged.
    pub session_key: Option<String>,
    /// Where progress goes. What does not fit is dropped, and its number is missing.
    pub progress: Option<mpsc::Sender<Piece>>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodesError {
    /// By the rules, or the node's own word.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A room is down.
    #[error("nodes do not answer: `portcullis status` shows why")]
    Down {
        /// The node may have been asked.
        may_have_run: bool,
    },
    /// Too much waits already. Nothing was sent.
    #[error("nodes are overloaded: try again")]
    Overloaded,
}

impl NodesError {
    /// The registered code.
    pub const fn code(&self) -> &'static Code {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Down { .. } => codes::ROOM_DOWN,
            Self::Overloaded => codes::OVERLOADED,
        }
    }

    /// May the node have done what it was asked?
    pub const fn dispatched(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.dispatched(),
            Self::Down { may_have_run } => *may_have_run,
            Self::Overloaded => false,
        }
    }
}

/// Why a recorded question has no answer.
#[derive(Debug, Clone)]
pub enum ActRefusal {
    /// It could not be recorded, so it was not asked.
    Log(AuditError),
    /// It was recorded.
    Node(NodesError),
}

/// What was asked: the answer to one question is none to another with the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    node: DeviceId,
    command: String,
    params: Option<String>,
}

impl Asked {
    pub fn of(question: &Question) -> Self {
        Self {
            node: question.call.node.clone(),
            command: question.call.command.clone(),
            params: question.params.clone(),
        }
    }

    pub fn len(&self) -> usize {
        self.command.len() + self.params.as_ref().map_or(0, String::len)
    }
}

/// A question on record.
pub struct Recorded {
    pub(super) intent: Seq,
    pub(super) asked: Asked,
    pub(super) reply: Reply<Option<String>, ActRefusal>,
}

/// See [`super::NodesHandle`], whose methods they are.
#[allow(missing_docs, reason = "the handle's methods say what each is")]
pub enum NodesMsg {
    Attach(Box<Connected>, mpsc::Sender<ToNode>, Reply<(), Refusal>),
    /// From the room's own watch of a line.
    Gone(DeviceId, String),
    /// With the commands that a person approved.
    Ask(Box<Question>, Approved, Reply<Option<String>, Refusal>),
    Act(Box<Entry>, Box<Question>, Reply<Option<String>, ActRefusal>),
    /// From the room itself: the intent is durable, now it is asked.
    Recorded(Box<Question>, Approved, Recorded),
    /// From the room itself: the log has this question already.
    Again(Seq, Box<Question>, Reply<Option<String>, ActRefusal>),
    /// `true`: it was of an open question.
    Result(DeviceId, String, NodeResult, Reply<bool, Refusal>),
    Progress {
        node: DeviceId,
        conn: String,
        named: String,
        id: String,
        seq: u64,
        chunk: String,
        reply: Reply<bool, Refusal>,
    },
    /// `true`: the run was asked for, and the node was told to end it.
    Stop(DeviceId, String, Reply<bool, Refusal>),
    KnowsRun(DeviceId, String, String, Reply<bool, Refusal>),
    Stats(DeviceId, String, Stats, Reply<(), Refusal>),
    WorkerHost(DeviceId, String, bool, Reply<(), Refusal>),
    List(Reply<Vec<Connected>, Refusal>),
    /// From the room's own timer.
    Tick,
}
