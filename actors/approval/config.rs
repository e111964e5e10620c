//! `[approval]` in the configuration.

use portcullis_core::approval::{Act, Limits, Quorum};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

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
    /// Where a decision must be signed by a paired device's key.
    pub require_proof: BTreeSet<Act>,
    /// How many people decide.
    pub quorum: QuorumConfig,
}

/// `[approval.quorum]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuorumConfig {
    /// On a command outside the sandbox, or on a node.
    pub elevation: u8,
    /// On a host that a sandbox wants to reach.
    pub egress: u8,
    /// On a change that lets more run.
    pub loosening: u8,
}

impl Default for QuorumConfig {
    fn default() -> Self {
        let Quorum {
            elevation,
            egress,
            loosening,
        } = Quorum::default();
        Self {
            elevation,
            egress,
            loosening,
        }
    }
}

impl From<QuorumConfig> for Quorum {
    fn from(config: QuorumConfig) -> Self {
        Self {
            elevation: config.elevation,
            egress: config.egress,
            loosening: config.loosening,
        }
    }
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
            require_proof: BTreeSet::from([Act::Quorum]),
            quorum: QuorumConfig::default(),
        }
    }
}
