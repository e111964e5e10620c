//! `[auth]` in the configuration.

use portcullis_core::protocol::limits::SIGNATURE_SKEW_MS;
use serde::Deserialize;

/// Limits of authentication.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// Connects that are decided at once; more are told to try again.
    pub concurrent: usize,
}

impl Default for AuthConfig {
    fn default() -> Self {
        // The clock window of signatures is the wire's and no setting.
        const { assert!(SIGNATURE_SKEW_MS == 120_000) }
        Self { concurrent: 256 }
    }
}
