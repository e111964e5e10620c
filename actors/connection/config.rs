//! `[connection]` in the configuration.

use portcullis_core::protocol::limits::IN_FLIGHT;
use serde::Deserialize;

/// Limits of one socket.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionConfig {
    /// Requests under way at once.
    pub in_flight: usize,
    /// Milliseconds that a client may leave its answers unread before it is closed as a slow consumer.
    pub write_timeout_ms: u64,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            in_flight: IN_FLIGHT,
            write_timeout_ms: 20_000,
        }
    }
}
