//! What authentication is asked, and what it answers.

use std::net::IpAddr;

use portcullis_core::audit::Entry;
use portcullis_core::auth::limits::{Class, Limited, Source, Tried};
use portcullis_core::auth::password::{PasswordError, PasswordHash};
use portcullis_core::auth::proxy::{Named, NotNamed};
use portcullis_core::auth::{Door, Holder, Principal, ScopeSet, SecretName, Whose};
use portcullis_core::ids::AgentId;
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::protocol::connect::Checked;
use portcullis_core::seal::Secret;
use portcullis_core::time::Millis;
use portcullis_core::token::Token;
use thiserror::Error;
use tokio::sync::oneshot;

use super::hashing::Look;
use crate::act::ActError;
use crate::supervision::{CallError, Reply};

/// What the kernel and the edge know of the other end; nothing here is the client's word.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Of the socket, or of the client behind a trusted proxy; none on a Unix socket.
    pub ip: Option<IpAddr>,
    /// The uid that the kernel names.
    pub uid: Option<u32>,
    /// Whose that uid is: of a sub-uid, its owner's. Whom tries and requests count against; it gives nothing.
    pub account: Option<u32>,
    /// That uid maps to an operator, and the process does not descend from one of our runs.
    pub is_operator: bool,
    /// The process descends from one of our runs, or may: it gets no operator's authority, whatever it presents.
    pub is_of_a_run: bool,
    /// A loopback socket, no proxy header, a local Host, no foreign Origin.
    pub is_local: bool,
    /// An `Origin` header was there: a browser.
    pub has_origin: bool,
    /// Whom a trusted proxy names, where users come by one and the request came through it.
    pub named: Option<Result<Named, NotNamed>>,
}

/// The secret of an `Authorization: Bearer` header. Wiped when dropped; cannot be printed.
#[derive(Clone, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
pub struct Bearer(String);

impl Bearer {
    /// Of a header's value.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// For the comparison.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bearer(..)")
    }
}

/// A `connect` that has arrived.
#[derive(Debug)]
pub struct Arrival {
    /// Its params.
    pub checked: Checked,
    /// This socket's challenge.
    pub nonce: String,
    /// Where it came in.
    pub door: Door,
    /// The other end.
    pub peer: Peer,
    /// What its upgrade request brought.
    pub bearer: Option<Bearer>,
}

impl Arrival {
    /// The token: of `connect`, else of the header.
    pub fn token(&self) -> Option<&str> {
        let auth = self.checked.params.auth.as_ref();
        auth.and_then(|auth| auth.token.as_deref())
            .or(self.bearer.as_ref().map(Bearer::expose))
    }

    /// The setup code.
    pub fn setup_code(&self) -> Option<&str> {
        let auth = self.checked.params.auth.as_ref();
        auth.and_then(|auth| auth.bootstrap_token.as_deref())
    }

    /// Is there more than a setup code?
    pub fn brings_more(&self) -> bool {
        let auth = self.checked.params.auth.as_ref();
        self.token().is_some()
            || self.password().is_some()
            || auth.is_some_and(|auth| auth.device_token.is_some())
    }

    /// The password.
    pub fn password(&self) -> Option<&str> {
        let auth = self.checked.params.auth.as_ref();
        auth.and_then(|auth| auth.password.as_deref())
    }
}

/// Let in.
pub struct Admitted {
    /// As whom.
    pub principal: Principal,
    /// What a key of this device's own may do, where local trust gives this session more.
    pub own_scopes: Option<ScopeSet>,
    /// A device's new token, shown this once, and when it was issued (Unix ms).
    pub device_token: Option<(Token, u64)>,
}

/// A secret was changed: what was made under it before is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthNews {
    /// This one; of it, only this generation lives on.
    Secret(SecretName, Option<u64>),
    /// Any of them: news were missed.
    Any,
}

impl AuthNews {
    /// Is this session over?
    pub fn ends(&self, who: &Principal) -> bool {
        match self {
            Self::Secret(secret, lives) => Whose {
                holder: Holder::Secret(secret.clone()),
                lives: *lives,
            }
            .is(who),
            Self::Any => who.secret.is_some(),
        }
    }
}

/// A change of secrets.
pub enum Change {
    /// The shared token becomes this one.
    RotateShared(Token),
    /// This agent's token becomes this one.
    MintAgent(AgentId, Token),
    /// This agent has none any more.
    RevokeAgent(AgentId),
    /// The password of this name has this hash.
    KeepPassword(String, PasswordHash),
    /// This name has none any more.
    RemovePassword(String),
}

/// What of a change its caller is told.
pub struct Made {
    /// A new token, shown this once.
    pub token: Option<Token>,
    /// What the change ended.
    pub ended: Whose,
}

/// An agent's token or a name's password, as it is listed: no secret, no hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Of the agent, or of the password.
    pub name: String,
    /// When it was made.
    pub created_at: Millis,
}

/// A new password.
pub enum NewPassword {
    /// In the clear: hashed here.
    Plain(Secret),
    /// Its hash, made elsewhere.
    Hash(PasswordHash),
}

/// Why a change of secrets is not made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AuthRefusal {
    /// The shared token comes from outside.
    #[error("the gateway's token is given by its environment or by a file, and is changed there")]
    Given,
    /// Nothing of this name.
    #[error("there is none for {0}")]
    NotFound(String),
    /// No name, no password or no hash that can be used.
    #[error("{0}")]
    Unfit(PasswordError),
    /// A name is 1 to 64 of A-Z, a-z, 0-9, `-`, `_`, `.`, `@`.
    #[error("a password's name is 1 to 64 of A-Z, a-z, 0-9, -, _, ., @")]
    Name,
    /// As many as there may be.
    #[error("there are as many as there may be")]
    TooMany,
    /// The machine has no randomness, or a look broke.
    #[error("it could not be made")]
    Broken,
    /// It could not be recorded or stored.
    #[error("{0}")]
    Act(ActError),
    /// The room is down or has not answered.
    #[error("authentication does not answer: look before trying again")]
    Down,
    /// Its gate is full.
    #[error("authentication is overloaded: try again")]
    Overloaded,
}

impl Change {
    /// Which secret it changes.
    pub fn secret(&self) -> SecretName {
        match self {
            Self::RotateShared(_) => SecretName::Token,
            Self::MintAgent(agent, _) | Self::RevokeAgent(agent) => {
                SecretName::Agent(agent.clone())
            }
            Self::KeepPassword(name, _) | Self::RemovePassword(name) => {
                SecretName::Password(name.clone())
            }
        }
    }

    /// Is there no such secret after it?
    pub const fn removes(&self) -> bool {
        matches!(self, Self::RevokeAgent(_) | Self::RemovePassword(_))
    }
}

impl AuthRefusal {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Given => "CREDENTIAL_GIVEN",
            Self::NotFound(_) => "CREDENTIAL_NOT_FOUND",
            Self::Unfit(_) | Self::Name => "PASSWORD_INVALID",
            Self::TooMany | Self::Overloaded => "OVERLOADED",
            Self::Broken => "INTERNAL",
            Self::Act(error) => error.code(),
            Self::Down => "ROOM_DOWN",
        }
    }
}

impl From<CallError<Self>> for AuthRefusal {
    fn from(error: CallError<Self>) -> Self {
        match error {
            CallError::Refused(refusal) => refusal,
            CallError::Overloaded => Self::Overloaded,
            CallError::Unavailable { .. } | CallError::Deadline { .. } => Self::Down,
        }
    }
}

/// To the room.
pub enum AuthMsg {
    /// Decide.
    Connect(Box<Arrival>, Reply<Admitted, ConnectRefusal>),
    /// Does the secret behind this session still hold?
    Holds(Box<Principal>, Reply<bool, AuthRefusal>),
    /// Which generation of a secret is in force.
    Lives(SecretName, Reply<Option<u64>, AuthRefusal>),
    /// Change secrets.
    Change(Box<Entry>, Change, Reply<Made, AuthRefusal>),
    /// Hash a password, then keep it.
    SetPassword(Box<Entry>, String, Secret, Reply<Made, AuthRefusal>),
    /// Agents that have a token.
    Agents(Reply<Vec<Listed>, AuthRefusal>),
    /// Names that have a password.
    Passwords(Reply<Vec<Listed>, AuthRefusal>),
    /// From a connect's flow: a slow look.
    Look(Box<Look>),
    /// From a connect's flow: a guess that is looked at elsewhere.
    Count(Class, Source, oneshot::Sender<Result<(), Limited>>),
    /// From the same: what it came to.
    Counted(Class, Source, Tried),
    /// From a look's thread: which of its guesses was right.
    Looked(u64, Option<usize>),
    /// From the room's own flow: somebody was refused, for this reason.
    Refused {
        /// The stable word.
        reason: String,
        /// Where.
        door: Door,
    },
}
