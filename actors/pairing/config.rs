//! `[pairing]` in the configuration.

use portcullis_core::pairing::Limits;
use serde::{Deserialize, Serialize};

/// Limits of pairing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PairingConfig {
    /// How long a request waits for a person, in seconds.
    pub pending_ttl_seconds: u64,
    /// Most requests that wait in all.
    pub pending_max: usize,
    /// Most requests that wait from one address (an IPv6 /64 counts as one; on this machine each user counts alone).
    pub pending_per_address: usize,
    /// Most paired devices.
    pub devices_max: usize,
}

impl PairingConfig {
    pub(super) const fn limits(&self) -> Limits {
        Limits {
            pending_ttl_ms: self.pending_ttl_seconds.saturating_mul(1_000),
            pending_max: self.pending_max,
            pending_per_address: self.pending_per_address,
            devices_max: self.devices_max,
        }
    }
}

impl Default for PairingConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            pending_ttl_seconds: limits.pending_ttl_ms / 1_000,
            pending_max: limits.pending_max,
            pending_per_address: limits.pending_per_address,
            devices_max: limits.devices_max,
        }
    }
}
