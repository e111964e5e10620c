//! The vault's bytes: a header that wraps the root key, and sealed records.
//!
//! ```text
//! identity key --HKDF "vault/scrypt"--> password --scrypt(N, r, p, salt)--> wrapping key --AES-256-GCM--> root key
//! root key --HKDF "vault/data", epoch--> data key --AES-256-GCM, random 96-bit nonce--> record
//! ```
//!
//! A record's associated data binds format, epoch, store, namespace, name, record version, the audit intent it was
//! written under and its times: no record passes for another, for an older one, or for one of another store. It does
//! not show that a whole older state was put back; the audit log does.

mod header;
mod record;

pub use header::{Header, HeaderRandom, Kdf, Opened, VaultKeys};
pub use record::{RecordMeta, SealedRecord, check_name};

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
    /// The header was altered, or asks for a cost outside our limits.
    #[error("the vault's header is damaged: restore the state from your backup")]
    HeaderCorrupt,
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
            Self::HeaderCorrupt => "STATE_CORRUPT",
            Self::RecordCorrupt => "VAULT_RECORD_CORRUPT",
            Self::NameInvalid => "VAULT_NAME_INVALID",
            Self::ValueInvalid => "VAULT_VALUE_INVALID",
            Self::NotFound => "VAULT_NOT_FOUND",
        }
    }
}

#[cfg(test)]
mod tests;
