//! What the room may be asked, what it tells, and how it refuses.

use super::config::ApprovalConfig;
use crate::act::ActError;
use crate::audit::AuditHandle;
use crate::auth::AuthHandle;
use crate::clock::Clock;
use crate::pairing::PairingHandle;
use crate::sandbox_pool::HostQuestions;
use crate::store::Store;
use crate::supervision::{Feed, Reply};
use portcullis_core::approval::{
    Agents, Deciding, Extent, Grant, HostAsked, Narrowing, PlanSealer, Policy, Record, Refusal,
    RunsBy, Similar, Status, Word,
};
use portcullis_core::audit::{Proof, Seq};
use portcullis_core::auth::{Holder, Principal};
use portcullis_core::codes::Code;
use portcullis_core::ids::{AgentId, ApprovalId, Hash32};
use portcullis_core::plan::{ExecPlan, Target};
use portcullis_core::policy::{ExecMode, Judgement};
use portcullis_core::time::Millis;
use serde_json::Value;
use std::sync::Arc;
use thiserror::Error;

/// What the room is given at each start.
#[derive(Clone)]
pub struct ApprovalWiring {
    /// Limits.
    pub config: ApprovalConfig,
    /// What the configuration says of agents.
    pub agents: Agents,
    /// Where rows lie.
    pub store: Store,
    /// Where acts are recorded.
    pub audit: AuditHandle,
    /// Which devices' word still counts.
    pub pairing: PairingHandle,
    /// Which secrets are still in force.
    pub auth: AuthHandle,
    /// Seals the rows.
    pub sealer: PlanSealer,
    /// What decisions must be made with, and the key for those that no device signs.
    pub deciding: Deciding,
    /// The time.
    pub clock: Clock,
    /// Where news are told.
    pub feed: Feed<ApprovalEvent>,
    /// Boxes' questions about hosts, and what has been said of them.
    pub hosts: HostQuestions,
}

/// A plan to decide on.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The plan, frozen.
    pub plan: ExecPlan,
    /// Who asks; its name must be the plan's.
    pub requester: Principal,
    /// On which connection.
    pub connection: String,
    /// The requester's key against running twice; none: the last look at the start of what was asked before, by which a
    /// grant is used.
    pub idempotency_key: Option<String>,
    /// What the requester calls its question; none: an id of ours.
    pub id: Option<ApprovalId>,
    /// How the requester narrows a question.
    pub narrowing: Narrowing,
    /// What the plan's node itself says of it.
    pub own: ExecMode,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It may run at once.
    Allow {
        /// By which rule: `config:…`, `list:<entry>`, `grant:<id>`.
        rule: String,
    },
    /// It may not run.
    Deny {
        /// The code.
        code: &'static Code,
        /// Why.
        message: String,
        /// `details.fix`: what to add, exactly.
        fix: Option<String>,
    },
    /// A person decides, or has decided for an earlier try with the same key: run the kept plan ([`Found::plan`]),
    /// never the one asked with.
    Pending {
        /// The question.
        id: ApprovalId,
        /// When it ends by itself.
        expires_at: Millis,
    },
}

/// An earlier try.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its question.
    pub id: ApprovalId,
    /// Where it stands.
    pub status: Status,
    /// Its plan, as frozen then.
    pub plan: ExecPlan,
    /// What it is about.
    pub subject_hash: Hash32,
    /// When it ends by itself.
    pub expires_at: Millis,
}

/// An answer that was used just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumed {
    /// Who gave it.
    pub by: String,
    /// What was said.
    pub decision: Word,
}

/// What became of a changed document.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicyChange {
    /// It holds.
    Applied(Policy),
    /// It frees something: an operator on another connection decides.
    Pending {
        /// The question.
        id: ApprovalId,
        /// When it ends by itself.
        expires_at: Millis,
    },
}

/// News. Lossy: who must know reads [`super::ApprovalHandle::status`] again.
#[derive(Debug, Clone)]
pub enum ApprovalEvent {
    /// A question was asked.
    Requested(Arc<Record>),
    /// It was answered, ran out or was withdrawn: the record says what, by whom and when.
    Resolved(Arc<Record>),
    /// What may run was changed otherwise: runs that are under way look whether they may go on.
    Narrowed(Narrowed),
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Narrowed {
    /// The approvals document.
    Policy,
    /// This grant was taken back.
    Grant(String),
}

impl ApprovalEvent {
    /// The event's name and payload on the wire (wire.md 15).
    pub fn to_wire(&self) -> Option<(&'static str, Value)> {
        match self {
            Self::Requested(record) => Some((
                "exec.approval.requested",
                portcullis_core::approval::record_json(record),
            )),
            Self::Resolved(record) => Some(("exec.approval.resolved", record.resolved_json())),
            Self::Narrowed(_) => None,
        }
    }

    /// The question that it is about.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Self::Requested(record) | Self::Resolved(record) => Some(record),
            Self::Narrowed(_) => None,
        }
    }
}

/// A refusal of this room.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ApprovalRefusal {
    /// By the rules.
    #[error(transparent)]
    Rule(#[from] Refusal),
    /// Not recorded or not stored.
    #[error(transparent)]
    Act(#[from] ActError),
    /// The room is down or did not answer in time.
    #[error("approvals do not answer: `portcullis status` shows why")]
    Down {
        /// The change may have been made.
        may_have_run: bool,
    },
    /// Too many requests wait already.
    #[error("approvals are overloaded: try again")]
    Overloaded,
}

impl ApprovalRefusal {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Rule(refusal) => refusal.code().name,
            Self::Act(error) => error.code(),
            Self::Down { .. } => "ROOM_DOWN",
            Self::Overloaded => "OVERLOADED",
        }
    }

    /// `details.reason` on the wire, where the peer has one.
    pub const fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Rule(refusal) => refusal.reason(),
            _ => None,
        }
    }
}

/// Who does something, and on which connection.
#[derive(Debug, Clone)]
pub struct By {
    pub(super) principal: Principal,
    pub(super) connection: String,
}

/// What somebody decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What.
    pub word: Word,
    /// How far it reaches.
    pub scope: Option<Extent>,
    /// After this nothing begins by it.
    pub expires: Option<Millis>,
    /// The rule that it is about, where it is for more than the very same command.
    pub similar: Option<Similar>,
    /// A device's public key, and its signature over the decision (base64url).
    pub signed: Option<(String, String)>,
    /// For who asked.
    pub note: Option<String>,
}

impl From<Word> for Told {
    fn from(word: Word) -> Self {
        Self {
            word,
            scope: None,
            expires: None,
            similar: None,
            signed: None,
            note: None,
        }
    }
}

/// A question after an answer to it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// As it stands.
    pub record: Record,
    /// Whether this answer was the first, and did something.
    pub applied: bool,
}

/// What runs without asking.
#[derive(Debug, Clone, PartialEq)]
pub struct Ledger {
    /// What people have granted, newest first.
    pub grants: Vec<Grant>,
    /// Entries of the document.
    pub entries: Vec<Value>,
    /// Agents whose every command runs.
    pub modes: Vec<Value>,
}

type Answer<T> = Reply<T, ApprovalRefusal>;

/// What an act rests on, for its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground {
    /// Of the policy for its agent, as it stands now.
    pub policy_hash: portcullis_core::audit::Hash32,
    /// Who allowed it, where somebody was asked.
    pub proof: Option<Proof>,
    /// How long the question waited for its answer, in milliseconds.
    pub waited_ms: Option<u64>,
}

/// A request to the room.
pub enum ApprovalMsg {
    /// A plan to decide on.
    Decide(Box<Ask>, Answer<Decision>),
    /// Is it denied whatever the command is?
    Outright(AgentId, Target, Answer<Option<Decision>>),
    /// What would be said of this plan?
    Judge(Box<ExecPlan>, Answer<Judgement>),
    /// What holds for this agent there, and why.
    Explain(AgentId, Target, Answer<Value>),
    /// An earlier try of this principal under this key.
    Find(String, String, Answer<Option<Found>>),
    /// One question, by id or a unique beginning of it.
    Get(String, Answer<Record>),
    /// What an act of this agent rests on: the policy, and this answer.
    Ground(AgentId, Option<ApprovalId>, Answer<Ground>),
    /// What is undecided (`false`) or everything known.
    List(bool, Answer<Vec<Record>>),
    /// Uses an answer.
    Consume(ApprovalId, Hash32, Seq, Answer<Consumed>),
    /// Withdraws a question.
    Cancel(ApprovalId, String, Answer<()>),
    /// A person's answer.
    Resolve(Box<By>, String, Box<Told>, Answer<Resolved>),
    /// Standing grants.
    Grants(Answer<Vec<Grant>>),
    /// What runs without asking.
    Ledger(Answer<Ledger>),
    /// May a run that is under way go on?
    GoesOn(Box<ExecPlan>, RunsBy, Answer<bool>),
    /// Takes back what the ledger calls so.
    Revoke(Box<By>, String, Answer<()>),
    /// The document.
    Policy(Answer<Policy>),
    /// A new document, and the hash of the one it replaces.
    SetPolicy(Box<By>, Value, Option<String>, Answer<PolicyChange>),
    /// Looks again at what rests on this; answers how much has ended with it.
    Void(Holder, Answer<usize>),
    /// The same, or on any, from the news of pairing and authentication.
    LookAgain(Option<Holder>),
    /// From a box's way out: may it reach this host?
    Host(HostAsked),
    /// From the room's own timer.
    Expire,
}
