//! A person's lasting word.

use serde::{Deserialize, Serialize};

use super::proof::Extent;
use super::similar::Similar;
use super::{Basis, Credential, Row};
use crate::auth::SecretStanding;
use crate::ids::{AgentId, ApprovalId, Hash32};
use crate::plan::ExecPlan;
use crate::time::{BootMoment, Millis};

/// A person's lasting word for the very same command (by [`ExecPlan::subject_hash`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Grant {
    /// Version of the form.
    pub v: Row,
    /// Its id.
    pub id: String,
    /// For which agent.
    pub agent: AgentId,
    /// Where: [`crate::plan::Target::word`].
    pub target: String,
    /// What exactly.
    pub subject_hash: Hash32,
    /// Which of its words may vary, and how far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similar: Option<Similar>,
    /// The whole command, for people.
    pub command: String,
    /// Its folder.
    pub cwd: String,
    /// The question that it came from.
    pub approval_id: ApprovalId,
    /// Who granted.
    pub by: String,
    /// What it was granted under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// The secret with which who granted had come in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretStanding>,
    /// Further devices that it rests on: whose keys signed it, and of others who granted it too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<Credential>,
    /// The secrets of those others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretStanding>,
    /// How far it reaches.
    #[serde(default = "always")]
    pub scope: Extent,
    /// The one session that it is for, where it is for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// How many people granted it.
    #[serde(default = "one")]
    pub voters: u8,
    /// Each of their words has the signature of a device's key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub signed: bool,
    /// When.
    pub created: Millis,
    /// Until when.
    pub expires: Millis,
    /// The same by the machine's own clock, within its present start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_end: Option<BootMoment>,
    /// How often something ran by it.
    #[serde(default)]
    pub uses: u64,
    /// When last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Millis>,
}

const fn one() -> u8 {
    1
}

const fn always() -> Extent {
    Extent::Always
}

impl Grant {
    /// What a grant is called that came from this question.
    pub fn id_of(question: &ApprovalId) -> String {
        format!("g-{question}")
    }

    /// On whose standing it rests.
    pub fn rests_on(&self) -> impl Iterator<Item = Basis> {
        let signers = self.signers.iter().cloned().map(Basis::Device);
        let secrets = self.secrets.iter().cloned().map(Basis::Secret);
        Basis::of(self.credential.as_ref(), self.secret.as_ref())
            .chain(signers)
            .chain(secrets)
    }

    /// Is this plan what it is about?
    pub fn is_about(&self, plan: &ExecPlan, subject_hash: Hash32) -> bool {
        let same = match &self.similar {
            Some(similar) => similar.covers(plan, self.subject_hash),
            None => self.subject_hash == subject_hash,
        };
        same && self.agent == plan.agent
    }

    /// Does this plan run by it now?
    pub fn covers(&self, plan: &ExecPlan, subject_hash: Hash32, now: Millis) -> bool {
        let in_session = match self.scope {
            Extent::Once => false,
            Extent::Session => self.session.as_deref() == Some(plan.session.as_str()),
            Extent::Until | Extent::Always => true,
        };
        in_session && self.is_about(plan, subject_hash) && self.created <= now && now < self.expires
    }

    /// Once more.
    #[must_use]
    pub fn used(&self, now: Millis) -> Self {
        Self {
            uses: self.uses.saturating_add(1),
            last_used: Some(now),
            ..self.clone()
        }
    }
}
