//! `[vault]` in the configuration.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Limits of the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaultConfig {
    /// Most secrets kept.
    pub max_records: usize,
    /// The machine's own id (machine-id(5)), which the machine's unlocker is bound to.
    pub machine_id_file: PathBuf,
    /// Folders with backups, in which `vault migrate` looks for secrets that lie in the clear.
    pub backups: Vec<PathBuf>,
}

impl Default for VaultConfig {
    fn default() -> Self {
        Self {
            max_records: 10_000,
            machine_id_file: PathBuf::from("/etc/machine-id"),
            backups: vec![],
        }
    }
}
