//! `[signing]` in the configuration.

use portcullis_core::signing::replay::PER_KEY;
use serde::Deserialize;

/// Limits of signed requests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SigningConfig {
    /// Nonces that one key may use within the two minutes in which its requests can come.
    pub nonces_per_key: usize,
}

impl Default for SigningConfig {
    fn default() -> Self {
        Self {
            nonces_per_key: PER_KEY,
        }
    }
}
