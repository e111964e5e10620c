//! `[signing]` in the configuration.

use portcullis_core::signing::replay::{IN_ALL, PER_KEY};
use serde::Deserialize;

/// Limits of signed requests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SigningConfig {
    /// Nonces that one key may use within the two minutes in which its requests can come.
    pub nonces_per_key: usize,
    /// Nonces that all keys together may use within them.
    pub nonces_max: usize,
}

impl Default for SigningConfig {
    fn default() -> Self {
        Self {
            nonces_per_key: PER_KEY,
            nonces_max: IN_ALL,
        }
    }
}
