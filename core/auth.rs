//! Who somebody is and what they may ask for: every way in ends in one [`Principal`].

pub mod assertion;
pub mod limits;
pub mod password;
pub mod proxy;
pub mod secret;
mod standing;
pub mod sub_uids;

pub use standing::{Holder, SecretName, SecretStanding, Whose};

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, DeviceId};

/// The role of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A person's client.
    Operator,
    /// A node host: offers commands, holds no operator scope.
    Node,
    /// An agent: may ask for runs, may never decide.
    Agent,
}

impl Role {
    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Node => "node",
            Self::Agent => "agent",
        }
    }

    /// From the wire.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Operator, Self::Node, Self::Agent]
            .into_iter()
            .find(|r| r.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an operator may do. The closed set of wire.md section 7, and three of ours: `exec`, which only agents hold by
/// role, `act_as`, for an operator who acts for an agent, and `auditor`, who reads and proves the record and changes
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is named by its text in `as_str`")]
pub enum Scope {
    Admin,
    Read,
    Write,
    Approvals,
    Questions,
    Pairing,
    Talk,
    TalkSecrets,
    SessionsRead,
    SessionsWrite,
    Exec,
    ActAs,
    Auditor,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 13] = [
        Self::Admin,
        Self::Read,
        Self::Write,
        Self::Approvals,
        Self::Questions,
        Self::Pairing,
        Self::Talk,
        Self::TalkSecrets,
        Self::SessionsRead,
        Self::SessionsWrite,
        Self::Exec,
        Self::ActAs,
        Self::Auditor,
    ];

    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "operator.admin",
            Self::Read => "operator.read",
            Self::Write => "operator.write",
            Self::Approvals => "operator.approvals",
            Self::Questions => "operator.questions",
            Self::Pairing => "operator.pairing",
            Self::Talk => "operator.talk",
            Self::TalkSecrets => "operator.talk.secrets",
            Self::SessionsRead => "operator.sessions.read",
            Self::SessionsWrite => "operator.sessions.write",
            Self::Exec => "exec",
            Self::ActAs => "operator.act_as",
            Self::Auditor => "operator.auditor",
        }
    }

    /// From the wire; an unknown scope is none.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// What holding this scope also gives (wire.md 7): admin all operator scopes, write read and talk, and so on.
    pub const fn implies(self, other: Self) -> bool {
        use Scope::{Admin, Exec, Read, SessionsRead, SessionsWrite, Talk, Write};
        match (self, other) {
            (Admin, other) => !matches!(other, Exec),
            (Write, Read | Talk | SessionsRead | SessionsWrite)
            | (Read | SessionsWrite, SessionsRead) => true,
            (a, b) => a as u8 == b as u8,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Scope {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("unknown scope {text:?}")))
    }
}

/// A set of scopes, unexpanded: what was granted, in one order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ScopeSet(BTreeSet<Scope>);

impl ScopeSet {
    /// Nothing.
    pub const fn empty() -> Self {
        Self(BTreeSet::new())
    }

    /// May its holder do what needs `wanted`? By implication too.
    pub fn allows(&self, wanted: Scope) -> bool {
        self.0.iter().any(|held| held.implies(wanted))
    }

    /// Does it hold all of another set?
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|s| self.allows(*s))
    }

    /// The part of `asked` that this set allows: authority is intersected at each hop.
    #[must_use]
    pub fn narrow(&self, asked: &Self) -> Self {
        asked.iter().filter(|s| self.allows(*s)).collect()
    }

    /// The most that lies within both: what one holds and the other allows, either way round. Who asks for more than
    /// there is gets what there is, not nothing.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let mut met = self.narrow(other);
        let more: Vec<Scope> = other
            .narrow(self)
            .iter()
            .filter(|scope| !met.allows(*scope))
            .collect();
        met.0.extend(more);
        // What neither names and both imply.
        for scope in Scope::ALL {
            if self.allows(scope) && other.allows(scope) && !met.allows(scope) {
                met.0.insert(scope);
            }
        }
        met
    }

    /// Both together.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }

    /// One by one, in one order.
    pub fn iter(&self) -> impl Iterator<Item = Scope> + '_ {
        self.0.iter().copied()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

/// Through which door somebody came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Door {
    /// WebSocket over TCP.
    Tcp,
    /// `control.sock`: operators by peer uid.
    Control,
    /// `agent.sock`: role agent only.
    AgentSock,
    /// The page.
    Page,
    /// Signed requests over HTTP.
    Http,
}

impl Door {
    /// The word in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Control => "control.sock",
            Self::AgentSock => "agent.sock",
            Self::Page => "page",
            Self::Http => "http",
        }
    }
}

/// How somebody proved who they are. The word stands in `hello-ok.auth.method`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// The gateway's shared token.
    SharedToken,
    /// The kernel named the peer's uid, and configuration maps it to an operator.
    PeerUid(u32),
    /// A device's own token, with a signature of its key over this socket's challenge.
    DeviceToken(DeviceId),
    /// The shared token, with a paired device's signature.
    SharedTokenAndDevice(DeviceId),
    /// A one-time code opened a session on the page; the name of the operator who asked for that code.
    PageSession(String),
    /// A password of this name.
    Password(String),
    /// The password of this name, with a paired device's signature.
    PasswordAndDevice(String, DeviceId),
    /// A token that was minted for this agent alone.
    AgentToken(AgentId),
    /// A proxy that we trust named this user.
    ProxyUser(String),
    /// A setup code, used by this device.
    SetupCode(DeviceId),
    /// A request that was signed with this device's key of that id.
    Signature(DeviceId, String),
}

impl Proof {
    /// The word on the wire (wire.md 4.2; `peer-uid` is ours).
    pub const fn method(&self) -> &'static str {
        match self {
            Self::SharedToken | Self::SharedTokenAndDevice(_) => "token",
            Self::PeerUid(_) => "peer-uid",
            Self::DeviceToken(_) => "device-token",
            Self::PageSession(_) => "page",
            Self::Password(_) | Self::PasswordAndDevice(..) => "password",
            Self::AgentToken(_) => "agent-token",
            Self::ProxyUser(_) => "trusted-proxy",
            Self::SetupCode(_) => "bootstrap-token",
            Self::Signature(..) => "signature",
        }
    }
}

/// Whether this name in records is of the machine's own console: a uid, or the shared token.
pub fn is_console(name: &str) -> bool {
    name == "token" || name.starts_with("uid:")
}

/// Somebody, after the gate: who, how proven, and what they may ask for at the most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// How it was proven.
    pub proof: Proof,
    /// Through which door.
    pub door: Door,
    /// Its role.
    pub role: Role,
    /// Its scopes: asked ∩ granted.
    pub scopes: ScopeSet,
    /// The agent it is, if it is one.
    pub agent: Option<AgentId>,
    /// The generation of its credential: a higher one ends the session (design.md rule 7).
    pub generation: u64,
    /// The secret that it came in with, if it came in with one: its next change ends the session too.
    pub secret: Option<SecretStanding>,
}

impl Principal {
    /// The name in records: stable, and no secret.
    pub fn name(&self) -> String {
        match &self.proof {
            Proof::SharedToken => "token".to_owned(),
            Proof::PeerUid(uid) => format!("uid:{uid}"),
            Proof::DeviceToken(device)
            | Proof::SharedTokenAndDevice(device)
            | Proof::PasswordAndDevice(_, device)
            | Proof::SetupCode(device)
            | Proof::Signature(device, _) => format!("device:{device}"),
            Proof::Password(name) => format!("password:{name}"),
            Proof::AgentToken(agent) => format!("agent:{agent}"),
            Proof::ProxyUser(user) => format!("proxy:{user}"),
            // The door in the record says that it was on the page.
            Proof::PageSession(by) => by.clone(),
        }
    }

    /// Who stands behind it, by name: the device or the user that it is, a user of this machine by his uid too, and the
    /// person whose secret it came in with. Nobody where it is the shared token, which is not one person's.
    pub fn behind(&self) -> BTreeSet<String> {
        let name = Some(self.name()).filter(|name| name != "token");
        let person = self
            .secret
            .as_ref()
            .and_then(|standing| standing.secret.person());
        name.into_iter().chain(person).collect()
    }

    /// The device behind it.
    pub fn device(&self) -> Option<&DeviceId> {
        match &self.proof {
            Proof::DeviceToken(device)
            | Proof::SharedTokenAndDevice(device)
            | Proof::PasswordAndDevice(_, device)
            | Proof::SetupCode(device)
            | Proof::Signature(device, _) => Some(device),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn implication_is_the_one_of_the_wire_and_gives_no_agent_scope_to_admin() {
        let set = |scopes: &[Scope]| scopes.iter().copied().collect::<ScopeSet>();
        let admin = set(&[Scope::Admin]);
        for scope in Scope::ALL {
            assert_eq!(admin.allows(scope), scope != Scope::Exec, "{scope}");
        }
        assert!(set(&[Scope::Write]).allows(Scope::SessionsRead));
        assert!(!set(&[Scope::Write]).allows(Scope::Approvals));
        assert!(!set(&[Scope::Read]).allows(Scope::Write));
        assert!(!ScopeSet::empty().allows(Scope::Read));
    }

    #[test]
    fn narrowing_never_adds() {
        let held: ScopeSet = [Scope::Write].into_iter().collect();
        let asked: ScopeSet = [Scope::Read, Scope::Admin].into_iter().collect();
        assert_eq!(held.narrow(&asked), [Scope::Read].into_iter().collect());
        assert_eq!(held.narrow(&ScopeSet::empty()), ScopeSet::empty());
    }

    #[test]
    fn what_two_sets_share_is_all_that_both_allow_and_nothing_more() {
        // Every pair of sets of up to three scopes.
        let sets: Vec<ScopeSet> = (0..Scope::ALL.len().pow(3))
            .map(|n| {
                let at =
                    |place: u32| Scope::ALL[n / Scope::ALL.len().pow(place) % Scope::ALL.len()];
                [at(0), at(1), at(2)].into_iter().collect()
            })
            .collect();
        for a in sets.iter().step_by(7) {
            for b in sets.iter().step_by(11) {
                let met = a.meet(b);
                for scope in Scope::ALL {
                    let both = a.allows(scope) && b.allows(scope);
                    assert_eq!(met.allows(scope), both, "{scope}: {a:?} {b:?}");
                }
            }
        }
        let held: ScopeSet = [Scope::Write, Scope::Approvals].into_iter().collect();
        let asked: ScopeSet = [Scope::Admin].into_iter().collect();
        assert_eq!(held.meet(&asked), held);
        assert_eq!(held.meet(&ScopeSet::empty()), ScopeSet::empty());
    }

    #[test]
    fn every_scope_reads_back() {
        for scope in Scope::ALL {
            assert_eq!(Scope::parse(scope.as_str()), Some(scope));
        }
        assert_eq!(Scope::parse("operator.everything"), None);
    }
}
