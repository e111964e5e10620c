//! `[audit]` in the configuration.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Limits of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// A segment that has reached this size, in bytes, is closed and the next one begun. At least 65,536.
    pub segment_bytes: u64,
    /// How long an idempotency key is remembered, in hours.
    pub once_hours: u64,
    /// The most idempotency keys remembered; beyond it the oldest is forgotten.
    pub once_keys: usize,
    /// Segments whose records are older than so many days are removed; 0: none for its age. What idempotency keys, open acts and the vault need stays: what is younger than the vault's last opening.
    pub keep_days: u64,
    /// When the segments are more than so many MiB together, the oldest are removed; 0: none for its size.
    pub keep_mib: u64,
    /// Other systems that get the records, by name; `*` is what holds for each unless it says otherwise.
    pub sinks: BTreeMap<String, SinkConfig>,
    /// No setting: the highest record that the state was written under. A log that ends before it is another's, or was
    /// cut at its end, and is not written to.
    #[serde(skip)]
    pub at_least: u64,
    /// No setting: a checkpoint follows a record by so many milliseconds at the latest.
    #[serde(skip)]
    pub checkpoint_ms: u64,
}

impl AuditConfig {
    /// How long a key is remembered, in milliseconds.
    pub(super) const fn once_ms(&self) -> u64 {
        self.once_hours.saturating_mul(3_600_000)
    }
}

/// `[audit.sinks.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkConfig {
    /// `file`, `syslog` or `http`.
    pub kind: String,
    /// `jsonl`, `ocsf` or `cef`.
    pub format: String,
    /// Of a file.
    pub path: PathBuf,
    /// Of a receiver.
    pub address: String,
    /// SHA-256 of the receiver's public key, in hexadecimal; empty: its certificate is verified.
    pub pin: String,
    /// What is sent along, as `Authorization: Bearer`.
    pub token: SecretRef,
}

impl Default for SinkConfig {
    fn default() -> Self {
        Self {
            kind: String::new(),
            format: "jsonl".to_owned(),
            path: PathBuf::new(),
            address: String::new(),
            pin: String::new(),
            token: SecretRef::default(),
        }
    }
}

/// A secret by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecretRef {
    /// In the vault; empty: none.
    pub vault: String,
}

impl AuditConfig {
    /// The sinks that there are.
    pub fn named_sinks(&self) -> impl Iterator<Item = (&str, &SinkConfig)> {
        let named = self.sinks.iter().filter(|(name, _)| *name != "*");
        named.map(|(name, sink)| (name.as_str(), sink))
    }
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            // A start verifies the last one: 16 MiB in some 60 ms.
            segment_bytes: 16 * 1024 * 1024,
            once_hours: 24,
            once_keys: 100_000,
            keep_days: 0,
            keep_mib: 0,
            sinks: [("*".to_owned(), SinkConfig::default())].into(),
            at_least: 0,
            checkpoint_ms: 10_000,
        }
    }
}
