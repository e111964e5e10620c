//! Whose a box is.

use std::fmt;
use std::sync::Arc;

use portcullis_core::ids::AgentId;
use portcullis_core::sandbox::{Access, Effective, Owner, Profile, Scope, ShareName, Unlisted};
use serde::{Deserialize, Serialize, Serializer};

/// A session, as far as boxes go: of one principal, so that nobody comes into another's by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionKey {
    /// Who asks ([`portcullis_core::auth::Principal::name`]).
    pub by: String,
    /// The session of its plan: what the request calls one, or its connection.
    pub name: String,
}

/// Which boxes are ready for the same sessions: made alike, and seeing the same folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolKey {
    /// Digest of everything that shapes them.
    pub hash: String,
    /// Whose folder they see, or whose connections their way out records; none: they see none and have none, and are ready for any agent
    /// whose boxes have the same user (which the digest has, too).
    pub agent: Option<AgentId>,
}

impl PoolKey {
    /// Of the boxes of an agent's sessions.
    pub fn new(profile: &Profile, hash: &str, agent: &AgentId) -> Self {
        Self::of_any(profile, hash).unwrap_or_else(|| Self {
            hash: hash.to_owned(),
            agent: Some(agent.clone()),
        })
    }

    /// Of boxes that are ready for any agent with this profile, where there can be such.
    pub fn of_any(profile: &Profile, hash: &str) -> Option<Self> {
        let is_own = profile.workspace != Access::None || profile.may_leave();
        (!is_own).then(|| Self {
            hash: hash.to_owned(),
            agent: None,
        })
    }
}

/// Who has a box.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// One agent.
    Agent(AgentId),
    /// One session of an agent.
    Session(AgentId, SessionKey),
    /// All agents that share it.
    Shared(ShareName),
    /// Nobody yet: nothing has run in it.
    Nobody(PoolKey),
}

impl Holder {
    /// Of the box that a run of this agent goes to.
    pub fn of(profile: &Profile, agent: &AgentId, session: &SessionKey) -> Self {
        match profile.scope {
            Scope::Session => Self::Session(agent.clone(), session.clone()),
            Scope::Agent => Self::Agent(agent.clone()),
            Scope::Shared => Self::Shared(profile.share.clone()),
        }
    }

    /// May a run of this agent be in it?
    pub fn may_hold(&self, agent: &AgentId) -> bool {
        match self {
            Self::Agent(own) | Self::Session(own, _) => own == agent,
            Self::Shared(_) => true,
            Self::Nobody(_) => false,
        }
    }

    /// The agents whose runs may be in its box; none: also some that nobody has named.
    pub fn agents(&self, effective: &Effective) -> Option<Arc<[String]>> {
        match (self, &effective.sharers) {
            (Self::Shared(_), Some(sharers)) if !sharers.others => {
                Some(sharers.agents.iter().map(ToString::to_string).collect())
            }
            (Self::Shared(_), _) => None,
            (Self::Agent(agent) | Self::Session(agent, _), _) => Some([agent.to_string()].into()),
            (Self::Nobody(key), _) => key.agent.as_ref().map(|agent| [agent.to_string()].into()),
        }
    }

    /// For whom a person is asked about hosts: never for several, who would get what only one of them was given.
    pub fn asks_for(&self, effective: &Effective) -> Option<AgentId> {
        let is_asked = effective.profile.egress_unlisted == Unlisted::Ask;
        let whose = match self {
            Self::Agent(agent) | Self::Session(agent, _) => Some(agent),
            Self::Nobody(key) => key.agent.as_ref(),
            Self::Shared(_) => None,
        };
        whose.filter(|_| is_asked).cloned()
    }

    /// Is it a session of this agent?
    pub fn is_session_of(&self, agent: &AgentId) -> bool {
        matches!(self, Self::Session(own, _) if own == agent)
    }

    /// Is it ready for whoever comes first?
    pub const fn is_nobody(&self) -> bool {
        matches!(self, Self::Nobody(_))
    }

    /// The folder below `workspaces/` that its box sees. No agent's name has a dot.
    pub fn folder(&self) -> Option<String> {
        self.whose().folder()
    }

    /// The same without the session, which no driver needs to know.
    pub fn whose(&self) -> Whose {
        match self {
            Self::Agent(agent) => Whose::Agent(agent.clone()),
            Self::Session(agent, _) => Whose::Session(agent.clone()),
            Self::Shared(name) => Whose::Shared(name.clone()),
            Self::Nobody(key) => Whose::Ready(key.agent.clone()),
        }
    }

    /// Whose folder and user its box has; none: it has no folder, and the gateway's own user.
    pub fn owner(&self) -> Option<Owner> {
        match self {
            Self::Agent(agent) | Self::Session(agent, _) => Some(Owner::Agent(agent.clone())),
            Self::Shared(name) => Some(Owner::Share(name.clone())),
            Self::Nobody(key) => key.agent.clone().map(Owner::Agent),
        }
    }

    /// Who it is to whoever reads of its connections.
    pub fn recorded(&self) -> String {
        self.principal().trim_start_matches("agent:").to_owned()
    }

    /// Who it is in the log's words: a principal.
    pub fn principal(&self) -> String {
        match self {
            Self::Agent(agent) | Self::Session(agent, _) => format!("agent:{agent}"),
            Self::Shared(name) => format!("shared:{name}"),
            Self::Nobody(key) => key
                .agent
                .as_ref()
                .map_or_else(|| "nobody".to_owned(), |agent| format!("agent:{agent}")),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.whose().fmt(f)
    }
}

/// Who a box is made for, as far as that decides what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Whose {
    /// The trial by which a driver proves itself.
    Probe,
    /// One agent.
    Agent(AgentId),
    /// A session of this agent.
    Session(AgentId),
    /// All agents that share it.
    Shared(ShareName),
    /// A session to come: of this agent, or of any whose boxes are alike.
    Ready(Option<AgentId>),
}

impl Whose {
    /// See [`Holder::folder`].
    pub fn folder(&self) -> Option<String> {
        match self {
            Self::Probe => None,
            Self::Agent(agent) | Self::Session(agent) => Some(agent.to_string()),
            Self::Shared(name) => Some(format!("shared.{name}")),
            Self::Ready(agent) => agent.as_ref().map(ToString::to_string),
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe => f.write_str("probe"),
            Self::Agent(agent) => agent.fmt(f),
            Self::Session(agent) => write!(f, "{agent} (a session)"),
            Self::Shared(name) => write!(f, "shared:{name}"),
            Self::Ready(_) => f.write_str("nobody yet"),
        }
    }
}

impl Serialize for Holder {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
