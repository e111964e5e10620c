//! One question to a person about one frozen plan: asked once, answered once, used once.
//!
//! `pending → allowed (once | always) → used`, or `→ denied | expired | cancelled`. The machine decides on what it
//! holds and gives back a [`Step`]; only when the step is durable is it settled. Silence is never consent.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::auth::{Holder, Principal, Role, SecretStanding};
use crate::codes::{self, Code};
use crate::ids::{AgentId, ApprovalId, BoxId, DeviceId, Hash32};
use crate::plan::ExecPlan;
use crate::policy::Reason;
use crate::time::{BootMoment, Millis};

mod chosen;
mod due;
mod egress;
mod grant;
mod kin;
mod ledger;
mod machine;
mod manage;
mod proof;
mod resolve;
mod rows;
mod similar;
mod view;
mod vote;

pub use egress::{HostAsked, HostWord};
pub use grant::Grant;
pub use kin::{Key, Speaker};
pub use ledger::{RunsBy, Used, Uses};
pub use machine::{Agents, Asked, Machine, PolicySet};
pub use manage::Policy;
pub use proof::{DecisionKey, DecisionProof, Extent, ProofError, Statement, verify_proof};
pub use rows::{Place, PlanSealer};
pub use similar::{Similar, Slot};
pub use view::{PRESENTED_KIND, plan_json, record_json, request_json, snapshot_json};
pub use vote::{Act, Deciding, Demands, Quorum, Said, Signed, Signer, Vote};

/// What a person says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// This one time.
    AllowOnce,
    /// This, and the very same command later.
    AllowAlways,
    /// No.
    Deny,
}

impl Word {
    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllowOnce => "allow-once",
            Self::AllowAlways => "allow-always",
            Self::Deny => "deny",
        }
    }

    /// From the wire; anything else is no answer.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::AllowOnce, Self::AllowAlways, Self::Deny]
            .into_iter()
            .find(|w| w.as_str() == text)
    }
}

/// Where a question stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Nobody has answered.
    Pending,
    /// Allowed, not used yet.
    Allowed,
    /// Refused by a person.
    Denied,
    /// Nobody answered, or nobody used the answer, in time.
    Expired,
    /// Withdrawn: by who asked, or by a policy that now forbids it.
    Cancelled,
    /// Allowed and used; never again.
    Used,
}

impl Status {
    /// Can nothing happen to it any more?
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Allowed)
    }

    /// As in records and `status` fields.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Used => "used",
        }
    }
}

/// The paired device behind a question or an answer: what it gave holds no longer than its generation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Which.
    pub device: DeviceId,
    /// In which role.
    pub role: Role,
    /// Under which generation.
    pub generation: u64,
}

/// What a question, an answer or a grant rests on: when it ends, they end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Basis {
    /// A device's pairing.
    Device(Credential),
    /// A secret with which somebody came in.
    Secret(SecretStanding),
}

impl Basis {
    /// What it is a generation of.
    pub fn holder(&self) -> Holder {
        match self {
            Self::Device(credential) => Holder::Device(credential.device.clone()),
            Self::Secret(standing) => Holder::Secret(standing.secret.clone()),
        }
    }

    fn of(
        credential: Option<&Credential>,
        secret: Option<&SecretStanding>,
    ) -> impl Iterator<Item = Self> + use<> {
        let device = credential.cloned().map(Self::Device);
        let secret = secret.cloned().map(Self::Secret);
        device.into_iter().chain(secret)
    }
}

impl Credential {
    /// Of who comes with a device; others have none that could end by itself.
    pub fn of(principal: &Principal) -> Option<Self> {
        Some(Self {
            device: principal.device()?.clone(),
            role: principal.role,
            generation: principal.generation,
        })
    }
}

/// Who asked: what must be known later to tell who may answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requester {
    /// [`Principal::name`].
    pub name: String,
    /// Its role.
    pub role: Role,
    /// The device behind it.
    pub device: Option<String>,
    /// The agent it is.
    pub agent: Option<AgentId>,
    /// The connection.
    pub connection: String,
    /// Its door.
    pub door: String,
    /// What it asked under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// The secret with which it had come in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretStanding>,
}

impl Requester {
    /// From a principal on a connection.
    pub fn new(principal: &Principal, connection: &str) -> Self {
        Self {
            name: principal.name(),
            role: principal.role,
            device: principal.device().map(ToString::to_string),
            agent: principal.agent.clone(),
            connection: connection.to_owned(),
            door: principal.door.as_str().to_owned(),
            credential: Credential::of(principal),
            secret: principal.secret.clone(),
        }
    }
}

/// What the question is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Subject {
    /// A command.
    Exec(Box<ExecPlan>),
    /// A change of the approvals document that frees something.
    Policy {
        /// The hash of the document that it changes.
        base: Hash32,
        /// The document that it changes, to be shown beside the new one.
        old: Value,
        /// The whole new document.
        new: Value,
    },
    /// A host that is not on an agent's list.
    Egress {
        /// Whose box asks.
        agent: AgentId,
        /// Which box.
        sandbox: BoxId,
        /// `api.example.com:443`.
        host: String,
    },
}

impl Subject {
    /// `exec`, `policy` or `egress`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Policy { .. } => "policy",
            Self::Egress { .. } => "egress",
        }
    }
}

/// How who asks narrows a question: it never gets more by that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Narrowing {
    /// It ends earlier than configured, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Only with one of these devices it is let happen; anybody who may answer may refuse it. None: with any, or without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reviewers: Vec<DeviceId>,
    /// Words that are not offered; a no always is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<Word>,
}

impl Narrowing {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Of the new question of a step.
    pub fn apply(self, step: &mut Step, now: Millis) {
        for put in &mut step.puts {
            if let Put::Record(record) = put {
                if let Some(ms) = self.timeout_ms {
                    record.expires = record.expires.min(now.plus(ms));
                }
                record.may_always &= !self.unavailable.contains(&Word::AllowAlways);
                record.narrowing = self.clone();
            }
        }
    }

    /// May this word be said of it, with this device?
    fn allows(&self, word: Word, device: Option<&str>) -> Result<(), Refusal> {
        if word == Word::Deny {
            return Ok(());
        }
        if self.unavailable.contains(&word) {
            return Err(match word {
                Word::AllowAlways => Refusal::AlwaysUnavailable,
                _ => Refusal::WordUnavailable,
            });
        }
        let is_named = |id: &DeviceId| device == Some(id.as_str());
        if self.reviewers.is_empty() || self.reviewers.iter().any(is_named) {
            return Ok(());
        }
        Err(Refusal::NotReviewer)
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolution {
    /// What was said; none when it ended without an answer.
    pub word: Option<Word>,
    /// Who said it; `system` when nobody did.
    pub by: String,
    /// Why it ended: `user`, `timeout`, [`EXPIRED_CLOCK`], or the reason of a cancellation.
    pub why: String,
    /// What the person adds, for who asked; at most [`NOTE_MAX`] characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What it was said under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// The secret with which who said it had come in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretStanding>,
    /// When.
    pub at: Millis,
}

impl Resolution {
    /// With what who said it had come in: a device's key, a secret, or else his uid, asked of the kernel.
    pub fn proven(&self) -> String {
        let device = self.credential.as_ref().map(|credential| {
            format!(
                "key of device {}, generation {}",
                credential.device, credential.generation
            )
        });
        let secret = self.secret.as_ref().map(|standing| {
            let generation = standing.generation;
            format!("secret {}, generation {generation}", standing.secret)
        });
        match (device, secret) {
            (Some(device), Some(secret)) => format!("{device}; {secret}"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => "uid by the kernel".to_owned(),
        }
    }
}

/// Why a question ended whose clock cannot be believed: it lies before what is known already.
pub const EXPIRED_CLOCK: &str = "expired_clock";

/// See [`Resolution::note`].
pub const NOTE_MAX: usize = 500;

const fn one() -> u8 {
    1
}

/// The form in which questions and grants are kept. The first, which had neither votes nor uses, is read; the second is
/// written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Row;

impl TryFrom<u8> for Row {
    type Error = &'static str;
    fn try_from(v: u8) -> Result<Self, Self::Error> {
        match v {
            1 | 2 => Ok(Self),
            _ => Err("not version 1 or 2"),
        }
    }
}

impl From<Row> for u8 {
    fn from(_: Row) -> Self {
        2
    }
}

/// One question, as it is kept (sealed).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of the form.
    pub v: Row,
    /// Its id.
    pub id: ApprovalId,
    /// Where it stands.
    pub status: Status,
    /// Who asked.
    pub requester: Requester,
    /// The requester's key against running twice.
    pub idempotency_key: Option<String>,
    /// What it is about.
    pub subject: Subject,
    /// The hash that is approved.
    pub plan_hash: Hash32,
    /// The same without session and nonce.
    pub subject_hash: Hash32,
    /// Why a person is asked.
    pub reasons: Vec<Reason>,
    /// May the answer be kept?
    pub may_always: bool,
    /// When it was asked.
    pub created: Millis,
    /// When it ends by itself: unanswered, or allowed and unused.
    pub expires: Millis,
    /// The same by the machine's own clock, which nobody sets: the earlier of both ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_end: Option<BootMoment>,
    /// How many people must let it happen.
    #[serde(default = "one")]
    pub quorum: u8,
    /// How who asked has narrowed who may let it happen, and with which words.
    #[serde(default, skip_serializing_if = "Narrowing::is_none")]
    pub narrowing: Narrowing,
    /// What people have said, in order.
    #[serde(default)]
    pub votes: Vec<Vote>,
    /// The answer.
    pub resolution: Option<Resolution>,
    /// The audit sequence of the act that used it.
    pub used_by: Option<u64>,
}

impl Record {
    /// Is it over by the clock? A clock before its birth says nothing good either.
    pub fn is_due(&self, now: Millis) -> bool {
        !self.status.is_final() && (now >= self.expires || now < self.created)
    }

    /// The frozen plan, where it is about a command.
    pub fn plan(&self) -> Option<&ExecPlan> {
        match &self.subject {
            Subject::Exec(plan) => Some(plan),
            Subject::Policy { .. } | Subject::Egress { .. } => None,
        }
    }

    /// Something can still happen by it: it is open, or a host was allowed by it.
    fn is_in_force(&self) -> bool {
        let word = self.resolution.as_ref().and_then(|said| said.word);
        let is_once = word == Some(Word::AllowOnce) && self.status == Status::Used;
        !self.status.is_final() || is_once && matches!(self.subject, Subject::Egress { .. })
    }

    /// The agent that it is for.
    pub fn agent(&self) -> Option<&AgentId> {
        match &self.subject {
            Subject::Exec(plan) => Some(&plan.agent),
            Subject::Egress { agent, .. } => Some(agent),
            Subject::Policy { .. } => None,
        }
    }

    /// On whose standing it rests: who asked, and who has answered.
    pub fn rests_on(&self) -> impl Iterator<Item = Basis> {
        let asked = &self.requester;
        let answered = self.resolution.iter();
        let answered = answered.flat_map(|r| Basis::of(r.credential.as_ref(), r.secret.as_ref()));
        let voted = self.votes.iter().flat_map(Vote::rests_on);
        Basis::of(asked.credential.as_ref(), asked.secret.as_ref())
            .chain(answered)
            .chain(voted)
    }

    /// What stands until enough have said the same.
    pub fn voted_on(&self) -> impl Iterator<Item = Basis> {
        let votes = self.votes.iter().filter(|_| self.status == Status::Pending);
        votes.flat_map(Vote::rests_on)
    }

    /// Who has decided, by name: all whose word it took.
    pub fn deciders(&self) -> String {
        let of_votes: Vec<&str> = self.votes.iter().map(|vote| vote.by.as_str()).collect();
        let said = self.resolution.as_ref().map(|said| said.by.as_str());
        match of_votes[..] {
            [] | [_] => said.unwrap_or_default().to_owned(),
            // As many as a record of the log takes: it has each word by itself, too.
            _ => of_votes[..of_votes.len().min(3)].join(", "),
        }
    }

    /// With what the decision was made: with what who said it had come in, and whose keys signed it.
    pub fn proven(&self) -> String {
        let came = self.resolution.as_ref().map(Resolution::proven);
        let signed: Vec<String> = self
            .votes
            .iter()
            .filter_map(|vote| vote.proof.device())
            .map(|device| device.chars().take(16).collect())
            .collect();
        let came = came.unwrap_or_default();
        match &signed[..] {
            [] => came,
            some => {
                let keys = some[..some.len().min(4)].join(", ");
                format!("{came}; signed with the key of {keys}")
            }
        }
    }

    /// The newest moment it knows of.
    pub(crate) fn newest(&self) -> Millis {
        self.resolution
            .as_ref()
            .map_or(self.created, |r| r.at.max(self.created))
    }

    /// One line for logs and records.
    pub fn redacted_line(&self) -> String {
        match &self.subject {
            Subject::Exec(plan) => plan.redacted_line(),
            Subject::Policy { .. } => "change of the approvals document".to_owned(),
            Subject::Egress { host, .. } => format!("reach {host}"),
        }
    }
}

/// One durable change, to be written and then settled.
#[derive(Debug, Clone, PartialEq)]
pub enum Put {
    /// Write a question.
    Record(Box<Record>),
    /// Write a grant.
    Grant(Box<Grant>),
    /// Forget a finished question.
    DropRecord(ApprovalId),
    /// Forget a grant.
    DropGrant(String),
    /// Replace the approvals document.
    Document(Value),
    /// How often something ran by rules that are no grants.
    Uses(Box<Uses>),
}

/// Changes that belong together: all of them or none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// In order.
    pub puts: Vec<Put>,
}

/// Limits of `[approval]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a question waits, and how long an answer waits to be used, ms.
    pub timeout_ms: u64,
    /// How long a grant lasts, ms.
    pub grant_ms: u64,
    /// Unfinished questions of one agent.
    pub per_agent: usize,
    /// Unfinished questions of all.
    pub total: usize,
    /// Grants of all.
    pub grants: usize,
    /// Finished questions kept at most,
    pub finished: usize,
    /// and for how long at most, ms.
    pub finished_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout_ms: 30 * 60 * 1000,
            grant_ms: 30 * 24 * 60 * 60 * 1000,
            per_agent: 16,
            total: 256,
            grants: 1000,
            finished: 1_000,
            finished_ms: 30 * 24 * 60 * 60 * 1000,
        }
    }
}

/// Why the room says no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each is named by its text")]
pub enum Refusal {
    #[error("unknown or expired approval id")]
    NotFound,
    #[error("no approval is called so, and others may begin so: give more of the id")]
    Ambiguous,
    #[error("nobody decided in time, which means no")]
    Expired,
    #[error("approval already resolved")]
    AlreadyResolved,
    #[error("this approval was used already: each is good once")]
    Used,
    #[error("a person refused this")]
    Denied,
    #[error("this was cancelled: {0}")]
    Cancelled(String),
    #[error("nobody has decided yet")]
    StillPending,
    #[error("who asked cannot approve")]
    SelfApproval,
    #[error(
        "this decision ({0}) needs the signature of a paired device's key, and none came with it"
    )]
    ProofNeeded(&'static str),
    #[error("the decision's proof does not hold: {0}")]
    ProofInvalid(&'static str),
    #[error("this person or key has decided already: another's is needed")]
    SameVoter,
    #[error(
        "several decide this, and a key that came in after the question, or was approved since, does not count"
    )]
    CameAfter,
    #[error("the decision's scope or expiry is none that it can have")]
    Extent,
    #[error(
        "who asked cannot approve, nor can a device that it let in, or that came after the question; nor does one count beside who let it in"
    )]
    SelfThroughAnother,
    #[error("nothing similar can be allowed: {0}")]
    NotSimilar(&'static str),
    #[error("who asked has named the devices that may let this run, and this is none of them")]
    NotReviewer,
    #[error("this word is not offered for this question")]
    WordUnavailable,
    #[error("only an operator decides")]
    WrongRole,
    #[error("this needs the scope {0}")]
    MissingScope(&'static str),
    #[error("allow-always is not offered for this: its plan does not say all that would run")]
    AlwaysUnavailable,
    #[error(
        "too many undecided requests ({0}): decide on some first with `portcullis approvals list`"
    )]
    TooManyPending(&'static str),
    #[error("too many standing grants: revoke some first")]
    TooManyGrants,
    #[error("what was approved is not what would run")]
    PlanChanged,
    #[error("exec approvals changed since last load; re-run exec.approvals.get and retry")]
    Conflict,
    #[error("invalid approvals document: {0}")]
    Document(String),
    #[error("invalid plan: {0}")]
    Plan(String),
    #[error("the idempotency key stands for another command")]
    KeyReused,
    #[error(
        "approval id already pending, or not long over: choose another, which begins like no other and with no other"
    )]
    IdTaken,
    #[error("you chose too many ids in a short time: leave the id out, and one is made")]
    TooManyIds,
    #[error("the plan names another {0} than the one who asks")]
    NotYours(&'static str),
    #[error("no such grant")]
    GrantNotFound,
    #[error("this is of the gateway's configuration: write there, and restart it: {}", .0.replace('\n', " "))]
    OfConfiguration(String),
}

impl Refusal {
    /// The stable code.
    pub const fn code(&self) -> &'static Code {
        match self {
            Self::NotFound | Self::Ambiguous | Self::GrantNotFound => codes::APPROVAL_NOT_FOUND,
            Self::Expired => codes::APPROVAL_EXPIRED,
            Self::AlreadyResolved | Self::Used => codes::APPROVAL_ALREADY_RESOLVED,
            Self::Denied | Self::Cancelled(_) | Self::StillPending => codes::APPROVAL_DENIED,
            Self::SelfApproval | Self::SelfThroughAnother | Self::CameAfter => codes::APPROVAL_SELF,
            Self::ProofNeeded(_) => codes::APPROVAL_PROOF_REQUIRED,
            Self::ProofInvalid(_) => codes::APPROVAL_PROOF_INVALID,
            Self::SameVoter => codes::APPROVAL_SAME_VOTER,
            Self::WrongRole | Self::NotReviewer => codes::WRONG_ROLE,
            Self::MissingScope(_) => codes::MISSING_SCOPE,
            Self::TooManyPending(_) | Self::TooManyIds | Self::TooManyGrants => {
                codes::TOO_MANY_PENDING
            }
            Self::PlanChanged => codes::PLAN_CHANGED,
            Self::Conflict => codes::POLICY_CONFLICT,
            Self::NotYours(_) => codes::AGENT_NOT_ALLOWED,
            Self::AlwaysUnavailable
            | Self::Extent
            | Self::NotSimilar(_)
            | Self::WordUnavailable
            | Self::Document(_)
            | Self::Plan(_)
            | Self::KeyReused
            | Self::OfConfiguration(_)
            | Self::IdTaken => codes::INVALID_PARAMS,
        }
    }

    /// `details.reason` of the wire, where the peer has one.
    pub const fn reason(&self) -> Option<&'static str> {
        match self {
            Self::NotFound | Self::Ambiguous | Self::Expired => Some("APPROVAL_NOT_FOUND"),
            Self::AlreadyResolved | Self::Used => Some("APPROVAL_ALREADY_RESOLVED"),
            Self::AlwaysUnavailable => Some("APPROVAL_ALLOW_ALWAYS_UNAVAILABLE"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod changed_tests;
#[cfg(test)]
mod decide_tests;
#[cfg(test)]
mod due_tests;
#[cfg(test)]
mod ids_tests;
#[cfg(test)]
mod kept_tests;
#[cfg(test)]
mod kin_tests;
#[cfg(test)]
mod ledger_tests;
#[cfg(test)]
mod narrow_tests;
#[cfg(test)]
mod similar_tests;
#[cfg(test)]
mod tests;
