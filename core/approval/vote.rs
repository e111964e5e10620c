//! One person's decision, and what a question demands of it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::proof::{DecisionKey, DecisionProof, Extent};
use super::similar::Similar;
use super::{Basis, Credential, Grant, Record, Subject, Word};
use crate::auth::{ScopeSet, SecretStanding};
use crate::ids::{AgentId, Hash32};
use crate::plan::Target;
use crate::time::Millis;

/// A decision of one person on one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// What was said.
    pub word: Word,
    /// Who said it.
    pub by: String,
    /// When.
    pub at: Millis,
    /// The device that it was said with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// The device whose key signed it, where that is another: of our command line on `control.sock`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Credential>,
    /// Whose the signing key is, where local trust let it in: one user's keys are one person's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// The secret with which who said it had come in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretStanding>,
    /// Said by who had opened the question.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub self_opened: bool,
    /// The rule that it is about, where it is for more than the very same command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similar: Option<Similar>,
    /// What shows it.
    pub proof: DecisionProof,
}

impl Vote {
    /// What its proof names for the plan.
    pub fn signed_plan(&self, plan: Hash32) -> Hash32 {
        signed_plan(self.similar.as_ref(), plan)
    }

    /// On whose standing it rests.
    pub fn rests_on(&self) -> impl Iterator<Item = Basis> {
        let signer = self.signer.clone().map(Basis::Device);
        Basis::of(self.credential.as_ref(), self.secret.as_ref()).chain(signer)
    }

    /// The device whose key it is counted under: whose signature it has, else with which it was said.
    pub fn device(&self) -> Option<String> {
        let came_with = || self.credential.as_ref().map(|c| c.device.to_string());
        self.proof.device().or_else(came_with)
    }

    /// Does a device's key show it, and not the gateway's word alone?
    pub const fn is_signed(&self) -> bool {
        matches!(self.proof, DecisionProof::Device { .. })
    }

    /// Is it, as far as can be told, the other's person?
    pub fn is_same_person(&self, other: &Self) -> bool {
        self.device() == other.device() || !self.names().is_disjoint(&other.names())
    }

    /// Under which names its person may have let others in: the user, the device and the secret's owner that it came from.
    pub fn names(&self) -> BTreeSet<String> {
        let devices = [&self.credential, &self.signer].into_iter().flatten();
        let devices = devices.map(|credential| credential.device.to_string());
        let devices = devices
            .chain(self.device())
            .map(|id| format!("device:{id}"));
        let secret = self.secret.as_ref();
        // The shared token is nobody's name.
        Some(self.by.clone())
            .filter(|name| name != "token")
            .into_iter()
            .chain(devices)
            .chain(self.user.map(|uid| format!("uid:{uid}")))
            .chain(secret.and_then(|standing| standing.secret.person()))
            .collect()
    }
}

/// What a proof names for the plan: the plan, or the rule that was made of it.
pub(super) fn signed_plan(similar: Option<&Similar>, plan: Hash32) -> Hash32 {
    similar.map_or(plan, |similar| similar.hash(plan))
}

/// A device whose key signed a decision, as pairing has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The device in its role as an operator.
    pub credential: Credential,
    /// What it may.
    pub scopes: ScopeSet,
    /// The user of this machine whom local trust let it in for.
    pub user: Option<u32>,
}

/// A decision as it comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// What.
    pub word: Word,
    /// How far it reaches; none: as the word does.
    pub scope: Option<Extent>,
    /// After this nothing begins by it; none: the longest that is allowed.
    pub expires: Option<Millis>,
    /// The rule that it is about, as it was shown, where it is for more than the very same command.
    pub similar: Option<Similar>,
    /// A device's signature over it.
    pub signed: Option<Signed>,
}

/// A device's signature, with who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The device's key, in its one spelling.
    pub key: String,
    /// Base64url.
    pub signature: String,
    /// Whose key it is.
    pub signer: Signer,
}

impl From<Word> for Said {
    fn from(word: Word) -> Self {
        Self {
            word,
            scope: None,
            expires: None,
            similar: None,
            signed: None,
        }
    }
}

/// What `[approval] require_proof` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// A command on the gateway's host, outside the sandbox.
    Elevation,
    /// A question that more than one person answers.
    Quorum,
    /// A change that lets more run.
    Loosening,
    /// Taking the vault's secrets out.
    VaultExport,
}

impl Act {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Elevation => "elevation",
            Self::Quorum => "quorum",
            Self::Loosening => "loosening",
            Self::VaultExport => "vault-export",
        }
    }
}

/// How many people each kind of question needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    /// A command outside the sandbox, or on a node.
    pub elevation: u8,
    /// A host that a box wants to reach.
    pub egress: u8,
    /// A change that lets more run.
    pub loosening: u8,
}

impl Default for Quorum {
    fn default() -> Self {
        Self {
            elevation: 1,
            egress: 1,
            loosening: 1,
        }
    }
}

/// What of a question says how it is decided.
#[derive(Clone, Copy)]
enum About<'a> {
    Exec(&'a Target, &'a AgentId),
    Egress(&'a AgentId),
    Policy,
}

impl<'a> From<&'a Subject> for About<'a> {
    fn from(subject: &'a Subject) -> Self {
        match subject {
            Subject::Exec(plan) => Self::Exec(&plan.target, &plan.agent),
            Subject::Egress { agent, .. } => Self::Egress(agent),
            Subject::Policy { .. } => Self::Policy,
        }
    }
}

/// What decisions must be made with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demands {
    /// Where the gateway's word for a session is not enough.
    pub proof: BTreeSet<Act>,
    /// By kind of question.
    pub quorum: Quorum,
    /// By agent, where that is more.
    pub of_agents: BTreeMap<AgentId, u8>,
    /// Of agents that nothing is said of, where that is more.
    pub every: u8,
}

impl Demands {
    /// How many people answer it.
    pub fn quorum(&self, subject: &Subject) -> u8 {
        self.people(subject.into())
    }

    fn people(&self, about: About<'_>) -> u8 {
        let (by_kind, agent) = match about {
            About::Exec(Target::Sandbox, agent) => (1, Some(agent)),
            About::Exec(_, agent) => (self.quorum.elevation, Some(agent)),
            About::Egress(agent) => (self.quorum.egress, Some(agent)),
            About::Policy => (self.quorum.loosening, None),
        };
        let by_agent = agent.map(|agent| self.of_agents.get(agent).unwrap_or(&self.every));
        by_kind.max(by_agent.copied().unwrap_or(1)).max(1)
    }

    /// Why a device must sign a word that lets this happen; none: the gateway's word for a session is enough.
    pub fn signature_for(&self, record: &Record) -> Option<Act> {
        self.signature((&record.subject).into(), self.needed(record))
    }

    fn signature(&self, about: About<'_>, needed: u8) -> Option<Act> {
        let kind = match about {
            About::Exec(Target::Host, _) => Some(Act::Elevation),
            About::Policy => Some(Act::Loosening),
            About::Exec(..) | About::Egress(_) => None,
        };
        let several = (needed > 1).then_some(Act::Quorum);
        [kind, several]
            .into_iter()
            .flatten()
            .find(|act| self.proof.contains(act))
    }

    /// Would this lasting word be enough today for a command there, or for a host? It may have been given with less than is
    /// demanded by now.
    pub(super) fn still_make(&self, grant: &Grant, target: Option<&Target>) -> bool {
        let agent = &grant.agent;
        let about = target.map_or(About::Egress(agent), |target| About::Exec(target, agent));
        let needed = self.people(about);
        grant.voters >= needed && (grant.signed || self.signature(about, needed).is_none())
    }

    /// How many people answer this one: as when it was asked, or more where that was made more since.
    pub fn needed(&self, record: &Record) -> u8 {
        record.quorum.max(self.quorum(&record.subject))
    }
}

impl Deciding {
    /// With this key, and asking nothing more than one person's word.
    pub fn plain(key: DecisionKey) -> Self {
        Self {
            key,
            demands: Demands::default(),
        }
    }
}

/// With what this gateway takes decisions.
#[derive(Debug, Clone)]
pub struct Deciding {
    /// Signs what is said on its connections.
    pub key: DecisionKey,
    /// What it asks of decisions.
    pub demands: Demands,
}
