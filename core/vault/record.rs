//! One sealed secret.

use super::header::VaultKeys;
use super::{MAX_NAME, MAX_VALUE, VaultError};
use crate::encoding::{base64url, from_base64url, hex, unhex};
use crate::seal::{NONCE, Secret};
use crate::time::Millis;
use serde::{Deserialize, Serialize};

const DOMAIN: &[u8] = b"portcullis-vault-record";
const FORMAT: u8 = 1;

/// What is known of a secret without opening it; all of it is under its seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordMeta {
    /// Counts the values of this name, from 1.
    pub version: u64,
    /// When the name was first set.
    pub created_at_ms: Millis,
    /// When this value was set.
    pub updated_at_ms: Millis,
}

/// As stored (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SealedRecord {
    v: u8,
    epoch: u32,
    version: u64,
    created_at_ms: Millis,
    updated_at_ms: Millis,
    nonce: String,
    sealed: String,
}

/// Where a record belongs: part of its seal, never read from the record itself.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    namespace: &'a str,
    name: &'a str,
    intent: u64,
}

impl SealedRecord {
    /// Seals a value for its place. `nonce` is 96 random bits; `intent` the audit sequence of the row that will hold it.
    pub fn seal(
        keys: &VaultKeys,
        epoch: u32,
        (namespace, name): (&str, &str),
        intent: u64,
        meta: RecordMeta,
        nonce: &[u8; NONCE],
        value: &Secret,
    ) -> Result<Self, VaultError> {
        check_name(name)?;
        if value.is_empty() || value.len() > MAX_VALUE {
            return Err(VaultError::ValueInvalid);
        }
        let mut record = Self {
            v: FORMAT,
            epoch,
            version: meta.version,
            created_at_ms: meta.created_at_ms,
            updated_at_ms: meta.updated_at_ms,
            nonce: hex(nonce),
            sealed: String::new(),
        };
        let place = Place {
            namespace,
            name,
            intent,
        };
        let sealed = record.with_aad(keys, place, |aad| {
            keys.data_key(epoch).seal(nonce, aad, value.expose())
        });
        record.sealed = base64url(&sealed);
        Ok(record)
    }

    /// Opens the value, if this record is the one that was sealed for this very place.
    pub fn open(
        &self,
        keys: &VaultKeys,
        (namespace, name): (&str, &str),
        intent: u64,
    ) -> Result<Secret, VaultError> {
        let nonce: [u8; NONCE] = unhex(&self.nonce).ok_or(VaultError::RecordCorrupt)?;
        let sealed = from_base64url(&self.sealed).ok_or(VaultError::RecordCorrupt)?;
        let place = Place {
            namespace,
            name,
            intent,
        };
        // One key, chosen by the epoch that is itself under the seal: never "try each until one opens".
        self.with_aad(keys, place, |aad| {
            keys.data_key(self.epoch).open(&nonce, aad, &sealed)
        })
        .filter(|_| self.v == FORMAT)
        .ok_or(VaultError::RecordCorrupt)
    }

    /// What may be listed.
    pub const fn meta(&self) -> RecordMeta {
        RecordMeta {
            version: self.version,
            created_at_ms: self.created_at_ms,
            updated_at_ms: self.updated_at_ms,
        }
    }

    fn with_aad<T>(
        &self,
        keys: &VaultKeys,
        place: Place<'_>,
        use_it: impl FnOnce(&[&[u8]]) -> T,
    ) -> T {
        use_it(&[
            DOMAIN,
            &[FORMAT],
            &self.epoch.to_be_bytes(),
            &keys.store_id,
            place.namespace.as_bytes(),
            place.name.as_bytes(),
            &self.version.to_be_bytes(),
            &place.intent.to_be_bytes(),
            &self.created_at_ms.0.to_be_bytes(),
            &self.updated_at_ms.0.to_be_bytes(),
        ])
    }
}

/// `[A-Z][A-Z0-9_]{0,127}`.
pub fn check_name(name: &str) -> Result<(), VaultError> {
    let mut bytes = name.bytes();
    let head = bytes.next().is_some_and(|byte| byte.is_ascii_uppercase());
    let tail = bytes.all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    if head && tail && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(VaultError::NameInvalid)
}
