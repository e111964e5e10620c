//! `[approval]` in the configuration.

use portcullis_core::approval::Limits;
use serde::{Deserialize, Serialize};

/// Limits of approvals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApprovalConfig {
    /// How long a question waits for a person, and an answer to be used, in seconds. Then it means no.
    pub timeout_seconds: u64,
    /// How long "always" lasts, in days.
    pub grant_days: u64,
    /// Most unfinished questions of one agent.
    pub pending_per_agent: usize,
    /// Most unfinished questions in all.
    pub pending_max: usize,
}

impl ApprovalConfig {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            timeout_ms: self.timeout_seconds.saturating_mul(1_000),
            grant_ms: self.grant_days.saturating_mul(86_400_000),
            per_agent: self.pending_per_agent,
            total: self.pending_max,
            ..Limits::default()
        }
    }
}

impl Default for ApprovalConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            timeout_seconds: limits.timeout_ms / 1_000,
            grant_days: limits.grant_ms / 86_400_000,
            pending_per_agent: limits.per_agent,
            pending_max: limits.total,
        }
    }
}
