//! What a secret may be used for, under its seal.

use super::VaultError;
use crate::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A way to use a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// In the environment of a run.
    Run,
    /// By the gateway itself.
    Gateway,
    /// Put into a request of a box by the gateway, so that no run sees it.
    Egress,
}

impl Use {
    /// The word on the wire and in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Gateway => "gateway",
            Self::Egress => "egress",
        }
    }
}

/// Who may use a secret, and how. A new secret is bound to no agent, so no agent's run may have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Binds {
    /// Agents whose runs may have it; empty: none.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub agents: BTreeSet<String>,
    /// Hosts that it may be sent to; absent: not bound to hosts, and the gateway itself sends it to none. A use that names no
    /// host is refused where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<BTreeSet<String>>,
    /// Ways to use it; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<BTreeSet<Use>>,
}

/// A use that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// For this agent.
    pub agent: Option<String>,
    /// To be sent there.
    pub host: Option<String>,
    /// In this way.
    pub way: Use,
    /// Who asks for it, for people.
    pub by: String,
    /// For which run.
    pub run: Option<String>,
    /// The audit record of the act that it is used in.
    pub record: Option<u64>,
}

/// The last use of a secret, as it is kept and shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastUse {
    /// When.
    pub at_ms: Millis,
    /// Who asked for it.
    pub by: String,
    /// For which agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// In which run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The audit record of that act: what it says is the log's word.
    pub record: u64,
}

impl Asked {
    /// By the gateway itself.
    pub fn by_gateway(what: &str) -> Self {
        Self {
            agent: None,
            host: None,
            way: Use::Gateway,
            by: what.to_owned(),
            run: None,
            record: None,
        }
    }
}

impl Binds {
    /// Is nothing said of it?
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// May it be used so?
    ///
    /// # Errors
    /// [`VaultError::NotBound`].
    pub fn allow(&self, asked: &Asked) -> Result<(), VaultError> {
        let agent = match (&asked.agent, asked.way) {
            (Some(agent), _) => self.agents.contains(agent),
            (None, way) => way == Use::Gateway,
        };
        let host = match (&self.hosts, &asked.host) {
            (Some(hosts), Some(host)) => hosts.contains(host),
            (Some(_), None) => false,
            // On the configuration's word alone it goes nowhere: whoever writes that file could name any secret, and a
            // receiver of his own.
            (None, Some(_)) => asked.agent.is_some() && asked.way != Use::Egress,
            (None, None) => true,
        };
        let way = self
            .uses
            .as_ref()
            .is_none_or(|uses| uses.contains(&asked.way));
        if agent && host && way {
            return Ok(());
        }
        Err(VaultError::NotBound)
    }

    /// Its bytes under the seal: one form.
    pub(super) fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("invariant: sets of words are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_allowed_that_was_not_bound() {
        let run = |agent: &str, host: Option<&str>| Asked {
            agent: Some(agent.to_owned()),
            host: host.map(str::to_owned),
            way: Use::Run,
            by: "run".to_owned(),
            run: None,
            record: None,
        };
        let none = Binds::default();
        assert_eq!(none.allow(&run("demo", None)), Err(VaultError::NotBound));
        assert_eq!(none.allow(&Asked::by_gateway("x")), Ok(()));
        let nobody = Asked {
            agent: None,
            ..run("", None)
        };
        assert_eq!(none.allow(&nobody), Err(VaultError::NotBound));
        let demo = Binds {
            agents: ["demo".to_owned()].into(),
            ..Binds::default()
        };
        assert_eq!(demo.allow(&run("demo", None)), Ok(()));
        assert_eq!(demo.allow(&run("other", None)), Err(VaultError::NotBound));
        // Bound to hosts, a use that names none is none of them.
        let hosts = Binds {
            hosts: Some(["api.example".to_owned()].into()),
            ..demo.clone()
        };
        assert_eq!(hosts.allow(&run("demo", None)), Err(VaultError::NotBound));
        assert_eq!(hosts.allow(&run("demo", Some("api.example"))), Ok(()));
        // The bug: whoever wrote the configuration had any secret sent to a receiver of his.
        let sent = |host: &str| Asked {
            host: Some(host.to_owned()),
            ..Asked::by_gateway("audit sink x")
        };
        assert_eq!(hosts.allow(&sent("api.example")), Ok(()));
        for other in [
            "other.example",
            "api.example.other.example",
            "other-api.example",
            "x.api.example",
            "api.example.",
            "API.example",
            "*",
            "",
        ] {
            let refused = hosts.allow(&sent(other));
            assert_eq!(refused, Err(VaultError::NotBound), "{other:?}");
        }
        assert_eq!(none.allow(&sent("api.example")), Err(VaultError::NotBound));
        assert_eq!(demo.allow(&sent("api.example")), Err(VaultError::NotBound));
        assert!(hosts.allow(&run("demo", Some("other.example"))).is_err());
        let uses = Binds {
            uses: Some([Use::Gateway].into()),
            ..demo
        };
        assert_eq!(uses.allow(&run("demo", None)), Err(VaultError::NotBound));
        // Into a box's request only for a host that a person has bound it to.
        let put = |host: Option<&str>| Asked {
            way: Use::Egress,
            ..run("demo", host)
        };
        let demo = Binds {
            agents: ["demo".to_owned()].into(),
            ..Binds::default()
        };
        assert!(demo.allow(&put(Some("api.example"))).is_err());
        assert_eq!(hosts.allow(&put(Some("api.example"))), Ok(()));
        assert!(hosts.allow(&put(Some("x.api.example"))).is_err());
        assert!(hosts.allow(&put(None)).is_err());
        let only_put = Binds {
            uses: Some([Use::Egress].into()),
            ..hosts.clone()
        };
        assert_eq!(only_put.allow(&put(Some("api.example"))), Ok(()));
        assert!(only_put.allow(&run("demo", Some("api.example"))).is_err());
        // Empty is nobody, not everybody.
        let empty = Binds {
            uses: Some(BTreeSet::new()),
            ..Binds::default()
        };
        assert!(empty.allow(&Asked::by_gateway("x")).is_err());
    }
}
