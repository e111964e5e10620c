//! What the vault may be asked, and how it refuses.

use super::config::VaultConfig;
use super::keys::Worked;
use crate::act::ActError;
use crate::audit::AuditHandle;
use crate::clock::Clock;
use crate::store::Store;
use crate::supervision::{Flag, Reply};
use portcullis_core::audit::Entry;
use portcullis_core::auth::limits::{Limited, Source};
use portcullis_core::identity::Identity;
use portcullis_core::seal::{Key, Secret};
use portcullis_core::time::Millis;
use portcullis_core::vault::{
    Asked, Binds, Export, KeyLabel, KeySource, Kind, LastUse, RecordMeta, VaultError,
};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;
use zeroize::Zeroizing;

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
    /// What unlockers need of the machine.
    pub around: Around,
}

/// What unlockers need of the machine, and where the room's state is told.
#[derive(Clone)]
pub struct Around {
    /// `/etc/machine-id`, where there is one: part of what the machine's unlocker is made of.
    pub machine_id: Option<Arc<str>>,
    /// `$CREDENTIALS_DIRECTORY`.
    pub credentials: Option<PathBuf>,
    /// Where no key file may lie.
    pub state: Option<PathBuf>,
    /// Told at each change.
    pub(super) phase: Arc<Flag<Phase>>,
}

impl Around {
    /// As found at a start.
    pub fn new(
        machine_id: Option<Arc<str>>,
        credentials: Option<PathBuf>,
        state: Option<PathBuf>,
    ) -> Self {
        Self {
            machine_id,
            credentials,
            state,
            phase: Arc::new(Flag::new(Phase::Unsealing)),
        }
    }
}

impl Default for Around {
    fn default() -> Self {
        Self::new(None, None, None)
    }
}

/// The room's state, for those who hold keys derived of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not open yet.
    Unsealing,
    /// Open.
    Open,
    /// Closed: who holds a key of its own drops it.
    Sealed,
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
    /// What it may be used for.
    pub binds: Binds,
    /// Its last use, if there was one.
    #[serde(rename = "lastUse", skip_serializing_if = "Option::is_none")]
    pub last_use: Option<LastUse>,
}

/// How the vault is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// See [`Phase`].
    pub state: Phase,
    /// Why it is sealed: a stable code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// The same as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where it is open.
    #[serde(flatten)]
    pub open: Option<OpenStatus>,
}

/// How an open vault is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenStatus {
    /// Secrets kept.
    pub records: usize,
    /// Of them, those that cannot be used.
    pub unreadable: usize,
    /// Counts changes.
    pub generation: u64,
    /// Of the data key.
    pub epoch: u32,
    /// Seals under it.
    pub seals: u64,
    /// Records that are under an older key still.
    pub to_seal_anew: usize,
    /// Of unlockers.
    pub unlockers: usize,
    /// Is there a recovery code?
    pub has_recovery: bool,
    /// Does the system keep the root key out of swap?
    pub is_locked_in_memory: bool,
    /// Does it open at a start, without a person?
    pub opens_by_itself: bool,
}

/// An unlocker, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownUnlocker {
    /// Names it.
    pub id: String,
    /// What it takes.
    pub kind: Kind,
    /// Where its secret comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<KeySource>,
    /// When it was made.
    pub created_at_ms: Millis,
    /// scrypt's log2 of N.
    pub log_n: u8,
    /// Does it open on one machine only?
    pub is_bound_to_machine: bool,
}

/// What a person opens the vault with.
pub enum Opener {
    /// Whatever opens it without a person.
    Automatic,
    /// What was typed.
    Typed {
        /// A passphrase or a recovery code.
        kind: Kind,
        /// Which of that kind, where there are several.
        id: Option<String>,
        /// The text.
        secret: Secret,
    },
}

/// An unlocker to be made.
pub struct NewUnlocker {
    /// What it takes.
    pub kind: Kind,
    /// For a passphrase: the text.
    pub secret: Option<Secret>,
    /// For a file: where from.
    pub source: Option<KeySource>,
    /// The one whose place it takes.
    pub replaces: Option<String>,
}

/// An unlocker that was made.
pub struct Added {
    /// Its id.
    pub id: String,
    /// A recovery code, on its only way out.
    pub code: Option<Zeroizing<String>>,
}

/// A new root key.
pub struct Rekeyed {
    /// The new recovery codes by their unlocker's id, on their only way out.
    pub codes: Vec<(String, Zeroizing<String>)>,
}

/// A refusal of the vault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VaultRefusal {
    /// Closed, until the cause is mended or a person opens it.
    #[error("the vault is sealed: {0}")]
    Sealed(VaultError),
    /// Not open yet, and the caller's time is over.
    #[error("the vault is being unlocked: try again in a second")]
    Unsealing,
    /// About this request.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// It is open already.
    #[error("the vault is open")]
    IsOpen,
    /// An import would overwrite.
    #[error("{0} of these names are in the vault already")]
    Exists(usize),
    /// As many records as allowed.
    #[error("the vault holds its {0} secrets already: remove one, or raise [vault] max_records")]
    Full(usize),
    /// Too many wrong tries.
    #[error("too many wrong tries: the next one is looked at in {} s", .0.retry_after_ms.div_ceil(1_000))]
    Limited(Limited),
    /// Not recorded or not stored.
    #[error(transparent)]
    Act(#[from] ActError),
    /// The room is down or did not answer in time.
    #[error("the vault does not answer: `portcullis status` shows why")]
    Down {
        /// The change may have been made.
        may_have_run: bool,
    },
    /// Too many requests wait already, or another unlocker is being looked at.
    #[error("the vault is busy: try again")]
    Overloaded,
}

impl VaultRefusal {
    /// Stable code. A sealed vault says `SEALED`; the reason has a code of its own ([`VaultError::code`]).
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Sealed(_) => "SEALED",
            Self::Unsealing => "UNSEALING",
            Self::Vault(error) => error.code(),
            Self::IsOpen => "VAULT_IS_OPEN",
            Self::Exists(_) => "VAULT_EXISTS",
            Self::Limited(_) => "VAULT_UNLOCK_LIMITED",
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
    /// From the room's own thread: what a KDF had to be run for.
    Worked(Box<Worked>),
    /// From the room's own timer.
    StillUnsealing,
    /// From the room's own timer.
    Pin,
    /// From the room itself: some records are under an older key.
    SealAnew,
}

/// What callers want. While the vault unseals most of these wait.
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
        /// By whom and how.
        asked: Asked,
        /// The value.
        reply: Reply<(RecordMeta, Secret), VaultRefusal>,
    },
    /// Whether a secret may be used so, and in which version it is.
    Usable {
        /// Its name.
        name: String,
        /// By whom and how.
        asked: Asked,
        /// What is known of it.
        reply: Reply<RecordMeta, VaultRefusal>,
    },
    /// What a secret may be used for.
    Bind {
        /// Who.
        by: Box<Entry>,
        /// Its name.
        name: String,
        /// From now on.
        binds: Binds,
        /// The answer.
        reply: Reply<(), VaultRefusal>,
    },
    /// A key under a label of its own, with which another room seals its rows.
    Derived(KeyLabel, Reply<Key, VaultRefusal>),
    /// How it is, at once.
    Status(Reply<Status, VaultRefusal>),
    /// What opens it, at once.
    Unlockers(Reply<Vec<ShownUnlocker>, VaultRefusal>),
    /// Opens a sealed vault.
    Unlock {
        /// Who.
        by: Box<Entry>,
        /// Whose tries are counted.
        source: Source,
        /// By what.
        opener: Opener,
        /// It is open.
        reply: Reply<(), VaultRefusal>,
    },
    /// Wipes the keys now.
    Seal {
        /// Who.
        by: Box<Entry>,
        /// It is sealed.
        reply: Reply<(), VaultRefusal>,
    },
    /// A new data key; records follow one after the other.
    Rotate {
        /// Who.
        by: Box<Entry>,
        /// The new epoch, and the records that are under an older one.
        reply: Reply<(u32, usize), VaultRefusal>,
    },
    /// One more unlocker.
    AddUnlocker {
        /// Who.
        by: Box<Entry>,
        /// Which.
        new: Box<NewUnlocker>,
        /// What was made.
        reply: Reply<Added, VaultRefusal>,
    },
    /// One less.
    RemoveUnlocker {
        /// Who.
        by: Box<Entry>,
        /// Which.
        id: String,
        /// The answer.
        reply: Reply<(), VaultRefusal>,
    },
    /// A new root key, and all unlockers anew.
    Rekey {
        /// Who.
        by: Box<Entry>,
        /// Whose tries are counted.
        source: Source,
        /// The passphrases of those that have one, by id.
        passphrases: Vec<(String, Secret)>,
        /// Unlockers that are not to open the vault any more.
        drop: Vec<String>,
        /// New codes.
        reply: Reply<Rekeyed, VaultRefusal>,
    },
    /// Every secret, sealed under a passphrase.
    Export {
        /// Who.
        by: Box<Entry>,
        /// Of the file.
        passphrase: Secret,
        /// The file, and the names of secrets that cannot be read and are not in it.
        reply: Reply<(Export, Vec<String>), VaultRefusal>,
    },
    /// The secrets of such a file.
    Import {
        /// Who.
        by: Box<Entry>,
        /// Whose tries are counted.
        source: Source,
        /// The file.
        export: Box<Export>,
        /// Its passphrase.
        passphrase: Secret,
        /// May it overwrite what is there?
        replace: bool,
        /// How many were set.
        reply: Reply<usize, VaultRefusal>,
    },
    /// A new, empty vault in place of one that cannot be opened.
    Init {
        /// Who.
        by: Box<Entry>,
        /// It is open.
        reply: Reply<(), VaultRefusal>,
    },
}

/// The same for each: a reply, whatever it is of.
macro_rules! each_reply {
    ($wanted:expr, $reply:ident => $do:expr) => {
        match $wanted {
            Wanted::Set { reply: $reply, .. } => $do,
            Wanted::List($reply) => $do,
            Wanted::Remove { reply: $reply, .. } => $do,
            Wanted::Reveal { reply: $reply, .. } => $do,
            Wanted::Usable { reply: $reply, .. } => $do,
            Wanted::Bind { reply: $reply, .. } => $do,
            Wanted::Derived(_, $reply) => $do,
            Wanted::Status($reply) => $do,
            Wanted::Unlockers($reply) => $do,
            Wanted::Unlock { reply: $reply, .. } => $do,
            Wanted::Seal { reply: $reply, .. } => $do,
            Wanted::Rotate { reply: $reply, .. } => $do,
            Wanted::AddUnlocker { reply: $reply, .. } => $do,
            Wanted::RemoveUnlocker { reply: $reply, .. } => $do,
            Wanted::Rekey { reply: $reply, .. } => $do,
            Wanted::Init { reply: $reply, .. } => $do,
            Wanted::Export { reply: $reply, .. } => $do,
            Wanted::Import { reply: $reply, .. } => $do,
        }
    };
}

impl Wanted {
    /// Does its caller still wait?
    pub(super) fn is_wanted(&self) -> bool {
        each_reply!(self, reply => reply.is_wanted())
    }

    pub(super) fn refuse(self, why: VaultRefusal) {
        each_reply!(self, reply => reply.refuse(why));
    }
}
