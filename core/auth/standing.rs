//! What somebody's word rests on, beside the machine: a device and a secret, each of which can end by itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Principal;
use crate::ids::{AgentId, DeviceId};

/// What opens a door, by the name under which it is kept and recorded: a secret, never the secret itself, or the
/// configuration's word that a proxy's user may come in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum SecretName {
    /// The gateway's shared token.
    Token,
    /// The token of this agent.
    Agent(AgentId),
    /// The password of this name.
    Password(String),
    /// This user is let in where a trusted proxy names it.
    ProxyUser(String),
}

impl SecretName {
    /// The name of the one person whose it is.
    pub fn person(&self) -> Option<String> {
        matches!(self, Self::Password(_) | Self::ProxyUser(_)).then(|| self.to_string())
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token => f.write_str("token"),
            Self::Agent(agent) => write!(f, "agent:{agent}"),
            Self::Password(name) => write!(f, "password:{name}"),
            Self::ProxyUser(user) => write!(f, "proxy:{user}"),
        }
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for SecretName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const UNKNOWN: &str = "not the name of a secret";
        match text.split_once(':') {
            None if text == "token" => Ok(Self::Token),
            Some(("agent", agent)) => AgentId::new(agent).map(Self::Agent).map_err(|_| UNKNOWN),
            Some(("password", name)) => Ok(Self::Password(name.to_owned())),
            Some(("proxy", user)) => Ok(Self::ProxyUser(user.to_owned())),
            _ => Err(UNKNOWN),
        }
    }
}

/// A secret, and the generation of it with which somebody came in: the audit sequence under which it was last changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretStanding {
    /// Which.
    pub secret: SecretName,
    /// As it was then; 0: as the gateway was first given it.
    pub generation: u64,
}

/// What can end by itself, and with it all that was made under it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// A device's pairing.
    Device(DeviceId),
    /// A secret.
    Secret(SecretName),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => write!(f, "device:{device}"),
            Self::Secret(secret) => secret.fmt(f),
        }
    }
}

/// Whose sessions, runs and words are over: those of every generation but the one that lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    /// Of this.
    pub holder: Holder,
    /// But not under this generation; `None`: nothing of it lives on.
    pub lives: Option<u64>,
}

impl Whose {
    /// Is this one meant?
    pub fn is(&self, who: &Principal) -> bool {
        match &self.holder {
            Holder::Device(device) => {
                who.device() == Some(device) && Some(who.generation) != self.lives
            }
            Holder::Secret(secret) => who.secret.as_ref().is_some_and(|standing| {
                standing.secret == *secret && Some(standing.generation) != self.lives
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_read_back_and_nothing_else_is_one() {
        let agent = AgentId::new("demo").unwrap();
        for name in [
            SecretName::Token,
            SecretName::Agent(agent),
            SecretName::Password("ann@example.org".to_owned()),
            SecretName::Password("a:b".to_owned()),
            SecretName::ProxyUser("ann@example.org".to_owned()),
        ] {
            assert_eq!(SecretName::try_from(String::from(name.clone())), Ok(name));
        }
        for text in ["", "tokens", "device:x", "agent:", "agent", "password"] {
            assert!(SecretName::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
