//! `[nodes]` in the configuration.

use std::collections::BTreeMap;

use portcullis_core::nodes::Limits;
use portcullis_core::policy::ExecMode;
use serde::Deserialize;

/// Limits of node hosts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodesConfig {
    /// Node hosts connected at once.
    pub max: usize,
    /// Questions to one node at once.
    pub in_flight: usize,
    /// Milliseconds that a node has to answer where the caller names none.
    pub timeout_ms: u64,
    /// What commands on single nodes may do, by their ids, whoever asks; of the others their agents' own `nodes` says it.
    pub exec: BTreeMap<String, ExecMode>,
}

impl Default for NodesConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            max: limits.nodes,
            in_flight: limits.per_node,
            timeout_ms: limits.timeout_ms,
            exec: BTreeMap::new(),
        }
    }
}

impl NodesConfig {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            nodes: self.max,
            per_node: self.in_flight,
            timeout_ms: self.timeout_ms,
            ..Limits::default()
        }
    }
}
