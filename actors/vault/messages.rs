//! What the vault may be asked, and how it refuses.

use super::config::VaultConfig;
use super::opening::Unlocked;
use crate::act::ActError;
use crate::audit::AuditHandle;
use crate::clock::Clock;
use crate::store::Store;
use crate::supervision::Reply;
use portcullis_core::audit::Entry;
use portcullis_core::identity::Identity;
use portcullis_core::seal::{Key, Secret};
use portcullis_core::vault::{RecordMeta, VaultError};
use serde::Serialize;
use thiserror::Error;

/// What the room is given at each start.
#[derive(Clone)]
pub struct VaultWiring {
    /// Limits.
    pub config: VaultConfig,
    /// Where records lie.
    pub store: Store,
    /// Where acts are recorded.
    pub audit: AuditHandle,
    /// The machine's key.
    pub identity: Identity,
    /// The time.
    pub clock: Clock,
}

/// One name, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The secret's name.
    pub name: String,
    /// Version and times.
    #[serde(flatten)]
    pub meta: RecordMeta,
    /// Why it cannot be used, where it cannot; its version is then 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
}

/// A refusal of the vault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VaultRefusal {
    /// Closed for good, until the cause is mended and the gateway started again.
    #[error("the vault is sealed: {0}")]
    Sealed(VaultError),
    /// Not open yet, and the caller's time is over.
    #[error("the vault is being unlocked: try again in a second")]
    Unsealing,
    /// About this request.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// As many records as allowed.
    #[error("the vault holds its {0} secrets already: remove one, or raise [vault] max_records")]
    Full(usize),
    /// Not recorded or not stored.
    #[error(transparent)]
    Act(#[from] ActError),
    /// The room is down or did not answer in time.
    #[error("the vault does not answer: `portcullis status` shows why")]
    Down {
        /// The change may have been made.
        may_have_run: bool,
    },
    /// Too many requests wait already.
    #[error("the vault is overloaded: try again")]
    Overloaded,
}

impl VaultRefusal {
    /// Stable code. A sealed vault says `SEALED`; the reason has a code of its own ([`VaultError::code`]).
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Sealed(_) => "SEALED",
            Self::Unsealing => "UNSEALING",
            Self::Vault(error) => error.code(),
            Self::Full(_) | Self::Overloaded => "OVERLOADED",
            Self::Act(error) => error.code(),
            Self::Down { .. } => "ROOM_DOWN",
        }
    }
}

/// A request to the vault. `by` says who asks, through which door; the room fills in what is done to what.
pub enum VaultMsg {
    /// Something a caller wants.
    Ask(Wanted),
    /// From the room's own thread: the keys, or why there are none.
    Unlocked(Box<Result<Unlocked, VaultError>>),
    /// From the room's own timer.
    StillUnsealing,
    /// From the room's own timer.
    Pin,
}

/// What callers want. While the vault unseals these wait.
pub enum Wanted {
    /// Sets a secret.
    Set {
        /// Who.
        by: Box<Entry>,
        /// Its name.
        name: String,
        /// Its value.
        value: Secret,
        /// What is known of it afterwards.
        reply: Reply<RecordMeta, VaultRefusal>,
    },
    /// Names, versions and times.
    List(Reply<Vec<Listed>, VaultRefusal>),
    /// Removes a secret.
    Remove {
        /// Who.
        by: Box<Entry>,
        /// Its name.
        name: String,
        /// The answer.
        reply: Reply<(), VaultRefusal>,
    },
    /// A secret's value for one run, whose own audit intent names it.
    Reveal {
        /// Its name.
        name: String,
        /// The version that the frozen plan names; any when absent.
        version: Option<u64>,
        /// The value.
        reply: Reply<(RecordMeta, Secret), VaultRefusal>,
    },
    /// A key under a label of its own, with which another room seals its rows.
    Derived(&'static str, Reply<Key, VaultRefusal>),
}
