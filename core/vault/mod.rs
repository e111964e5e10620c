//! The vault's bytes: a header whose unlockers wrap the root key, sealed records, and a manifest of them.
//!
//! ```text
//! an unlocker's secret --scrypt(N, r, p, salt)--> wrapping key --AES-256-GCM--> root key
//! root key --HKDF "vault/data", epoch--> data key --AES-256-GCM, random 96-bit nonce--> record
//! ```
//!
//! A record's associated data binds format, epoch, store, namespace, name, record version, bindings and times: no record
//! passes for another, or for one of another store. That it is the newest of its place, and that none is missing, the
//! sealed [`manifest`] says, whose digest each change leaves in the audit log ([`mark`]).
//!
//! # Nonces
//! 96 random bits from the operating system for each seal (NIST SP 800-38D, 8.2.2), a count of the seals under each epoch
//! that is kept with the manifest, and a new epoch (new keys) at 2^30 seals, a quarter of the 2^32 at which two random
//! nonces meet with a probability of 2^-32. Nothing is counted up to make a nonce, so none repeats after a crash, a state
//! put back or a machine that was cloned. A crash between a seal and its commit may leave the count one too low, which is
//! why the limit is far away.

mod binds;
mod export;
mod header;
mod label;
mod manifest;
mod mark;
mod record;
mod recovery;
mod unlocker;

pub use binds::{Asked, Binds, LastUse, Use};
pub use export::{Export, ExportRandom, MAX_EXPORT};
pub use header::{Header, MAX_UNLOCKERS, VaultKeys};
pub use label::KeyLabel;
pub use manifest::{Change, Entry, Epoch, Manifest, PAGES, Page, SealedManifest, id_of};
pub use mark::{End, Found, Mark};
pub use record::{Place, RecordMeta, SealedRecord, check_name};
pub use recovery::{RECOVERY_BYTES, RecoveryCode};
pub use unlocker::{
    Kdf, KeySource, Kind, MAX_UNLOCK, UnlockSecret, Unlocker, UnlockerRandom, check_unlock_secret,
};

use thiserror::Error;

/// Longest value in bytes.
pub const MAX_VALUE: usize = 64 * 1024;
/// Longest name in bytes.
pub const MAX_NAME: usize = 128;
/// Records sealed under one epoch before the next begins: far below the 2^32 at which random nonces get too likely to
/// meet (NIST SP 800-38D 8.3).
pub const EPOCH_SEALS: u64 = 1 << 30;

/// Why the vault refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VaultError {
    /// The identity key is not the one that made this vault.
    #[error(
        "the identity key is not the one that this vault was made with: point --identity at the right file"
    )]
    IdentityMismatch,
    /// The unlocker is bound to another machine-id.
    #[error(
        "this vault was made on another machine: open it with a passphrase or recovery code (`portcullis vault unlock`), or name a file with that machine's id in [vault] machine_id_file"
    )]
    OtherMachine,
    /// A passphrase, code or key file that does not open.
    #[error(
        "this does not open the vault: look at what was typed, and at `portcullis vault unlockers list`"
    )]
    Wrong,
    /// Mistyped.
    #[error("this is no recovery code: a character is wrong, missing or too much")]
    RecoveryTypo,
    /// Too weak or too long.
    #[error(
        "a passphrase has 12 characters or more, a key file 32 bytes or more, and both at most 64 KiB"
    )]
    UnlockSecret,
    /// The key file or credential cannot be used.
    #[error(
        "the key file or credential cannot be read: it must exist, be reachable for the gateway's user only (chmod 600), and lie outside the state directory"
    )]
    KeyFile,
    /// Not for this agent, host or use.
    #[error(
        "this secret is not bound to this agent, host and use: `portcullis vault show` says to what it is"
    )]
    NotBound,
    /// No file of ours.
    #[error("this is no export of a vault, or it was damaged")]
    ExportInvalid,
    /// Does not fit into one file.
    #[error("the secrets are more than 8 MiB together: they do not fit into one export")]
    ExportTooLarge,
    /// No unlocker of this id.
    #[error(
        "no such unlocker, or several of this kind: name one by --unlocker, `portcullis vault unlockers list` shows them"
    )]
    UnlockerNotFound,
    /// A new root key needs it typed.
    #[error("each passphrase must be typed for a new root key: give it, or drop that unlocker")]
    PassphraseNeeded,
    /// It would leave none.
    #[error(
        "this is the last unlocker, without it the vault would never open again: add another one first"
    )]
    LastUnlocker,
    /// As many as allowed.
    #[error("the vault has its 16 unlockers already: remove one first")]
    UnlockersFull,
    /// Sealed by a person, or waiting for one.
    #[error("a person must open it: `portcullis vault unlock`")]
    Locked,
    /// The header was altered, or asks for a cost outside our limits.
    #[error("the vault's header is damaged: restore the state from your backup")]
    HeaderCorrupt,
    /// The manifest was altered.
    #[error("the vault's manifest is damaged: restore the state from your backup")]
    ManifestCorrupt,
    /// The state is not the one that the audit log was written with.
    #[error(
        "an older or foreign vault was put back: the audit log says that another one must be here; restore state.db, audit and keys from one backup"
    )]
    RolledBack,
    /// The log knows of a vault that is not there.
    #[error(
        "the vault's records were taken away: the audit log says that there must be a vault; restore the state from your backup"
    )]
    Missing,
    /// The log says which vault must be here, and was altered behind that.
    #[error(
        "the audit log was altered where it says which vault must be here: `portcullis audit verify --offline` names the record; put its files back, then restart the gateway"
    )]
    LogAltered,
    /// The log says which vault must be here, and cannot be read so far.
    #[error(
        "the audit log cannot be read as far as it says which vault must be here: mend that, then restart the gateway"
    )]
    LogUnreadable,
    /// An older record in place of the newest, or one that was removed.
    #[error(
        "this record is not the one that was set last, an older one was put back: set it again, and look at `portcullis audit verify`"
    )]
    RecordOld,
    /// A record is gone that nobody removed.
    #[error("this record was taken away from the disk: set it again or remove its name")]
    RecordMissing,
    /// A record does not open: altered, swapped or cut. The others serve.
    #[error("this record was altered on disk: set it again, and look at `portcullis audit verify`")]
    RecordCorrupt,
    /// Not `[A-Z][A-Z0-9_]{0,127}`.
    #[error("a secret's name is A-Z, then A-Z, 0-9 or _, at most 128 characters")]
    NameInvalid,
    /// Empty or longer than 64 KiB.
    #[error("a secret is 1 byte to 64 KiB")]
    ValueInvalid,
    /// No such record.
    #[error("no such secret: `portcullis vault list` shows the names")]
    NotFound,
}

impl VaultError {
    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::IdentityMismatch => "IDENTITY_MISMATCH",
            Self::OtherMachine => "VAULT_OTHER_MACHINE",
            Self::Wrong => "VAULT_UNLOCK_WRONG",
            Self::RecoveryTypo => "VAULT_RECOVERY_INVALID",
            Self::UnlockSecret => "VAULT_UNLOCKER_WEAK",
            Self::KeyFile => "VAULT_KEY_FILE",
            Self::UnlockerNotFound => "VAULT_UNLOCKER_NOT_FOUND",
            Self::LastUnlocker => "VAULT_LAST_UNLOCKER",
            Self::NotBound => "VAULT_NOT_BOUND",
            Self::ExportInvalid => "VAULT_EXPORT_INVALID",
            Self::ExportTooLarge => "VAULT_EXPORT_TOO_LARGE",
            Self::PassphraseNeeded => "VAULT_PASSPHRASE_NEEDED",
            Self::UnlockersFull => "OVERLOADED",
            Self::Locked => "VAULT_LOCKED",
            Self::HeaderCorrupt | Self::ManifestCorrupt => "STATE_CORRUPT",
            Self::RolledBack => "VAULT_ROLLED_BACK",
            Self::Missing => "VAULT_MISSING",
            Self::LogAltered => "AUDIT_ALTERED",
            Self::LogUnreadable => "AUDIT_UNREADABLE",
            Self::RecordOld => "VAULT_RECORD_OLD",
            Self::RecordMissing => "VAULT_RECORD_MISSING",
            Self::RecordCorrupt => "VAULT_RECORD_CORRUPT",
            Self::NameInvalid => "VAULT_NAME_INVALID",
            Self::ValueInvalid => "VAULT_VALUE_INVALID",
            Self::NotFound => "VAULT_NOT_FOUND",
        }
    }
}

#[cfg(test)]
mod tests;
