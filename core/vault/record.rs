//! One sealed secret.

use super::binds::Binds;
use super::header::VaultKeys;
use super::{MAX_NAME, MAX_VALUE, VaultError};
use crate::encoding::{base64url, from_base64url, hex, unhex};
use crate::seal::{NONCE, Secret};
use crate::time::Millis;
use serde::{Deserialize, Serialize};

const DOMAIN: &[u8] = b"portcullis-vault-record";
const FORMAT: u8 = 2;
/// The form before there was a manifest: it was bound to the audit intent that it was written under.
const FIRST_FORMAT: u8 = 1;

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
    #[serde(default, skip_serializing_if = "Binds::is_default")]
    binds: Binds,
}

/// Where a record belongs: part of its seal, never read from the record itself.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// What kind of secret.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The audit sequence of its row: part of the first form's seal.
    pub intent: u64,
}

impl SealedRecord {
    /// Seals a value for its place. `nonce` is 96 random bits.
    ///
    /// # Errors
    /// [`VaultError`]: a name or value outside the limits.
    pub fn seal(
        keys: &VaultKeys,
        epoch: u32,
        (namespace, name): (&str, &str),
        (meta, binds): (RecordMeta, Binds),
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
            binds,
        };
        let place = Place {
            namespace,
            name,
            intent: 0,
        };
        let sealed = record.with_aad(keys, place, |aad| {
            keys.data_key(epoch).seal(nonce, aad, value.expose())
        });
        record.sealed = base64url(&sealed);
        Ok(record)
    }

    /// Opens the value, if this record was sealed for this very place. Whether it is the newest of it, the manifest says.
    ///
    /// # Errors
    /// [`VaultError::RecordCorrupt`].
    pub fn open(&self, keys: &VaultKeys, place: Place<'_>) -> Result<Secret, VaultError> {
        let nonce: [u8; NONCE] = unhex(&self.nonce).ok_or(VaultError::RecordCorrupt)?;
        let sealed = from_base64url(&self.sealed).ok_or(VaultError::RecordCorrupt)?;
        // One key, chosen by the epoch that is itself under the seal: never "try each until one opens".
        self.with_aad(keys, place, |aad| {
            keys.data_key(self.epoch).open(&nonce, aad, &sealed)
        })
        .filter(|_| [FORMAT, FIRST_FORMAT].contains(&self.v))
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

    /// What it may be used for.
    pub const fn binds(&self) -> &Binds {
        &self.binds
    }

    /// Is it sealed in the present form, under this epoch's key?
    pub const fn is_current(&self, epoch: u32) -> bool {
        self.v == FORMAT && self.epoch == epoch
    }

    fn with_aad<T>(
        &self,
        keys: &VaultKeys,
        place: Place<'_>,
        use_it: impl FnOnce(&[&[u8]]) -> T,
    ) -> T {
        let (epoch, version) = (self.epoch.to_be_bytes(), self.version.to_be_bytes());
        let (created, updated) = (
            self.created_at_ms.0.to_be_bytes(),
            self.updated_at_ms.0.to_be_bytes(),
        );
        let binds = self.binds.bytes();
        let (format, intent) = ([self.v], place.intent.to_be_bytes());
        let mut fields: Vec<&[u8]> = vec![
            DOMAIN,
            &format,
            &epoch,
            &keys.store_id,
            place.namespace.as_bytes(),
            place.name.as_bytes(),
            &version,
        ];
        if self.v == FIRST_FORMAT {
            fields.push(&intent);
        }
        fields.extend([&created[..], &updated[..]]);
        if self.v != FIRST_FORMAT {
            fields.push(&binds);
        }
        use_it(&fields)
    }
}

/// `[A-Z][A-Z0-9_]{0,127}`.
///
/// # Errors
/// [`VaultError::NameInvalid`].
pub fn check_name(name: &str) -> Result<(), VaultError> {
    let mut bytes = name.bytes();
    let head = bytes.next().is_some_and(|byte| byte.is_ascii_uppercase());
    let tail = bytes.all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    if head && tail && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(VaultError::NameInvalid)
}
