//! `[vault]` in the configuration.

use serde::{Deserialize, Serialize};

/// Limits of the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaultConfig {
    /// Most secrets kept.
    pub max_records: usize,
}

impl Default for VaultConfig {
    fn default() -> Self {
        Self {
            max_records: 10_000,
        }
    }
}
