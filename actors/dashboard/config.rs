//! `[dashboard]` in the configuration.

use portcullis_core::dashboard::Limits;
use serde::{Deserialize, Serialize};

/// The page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DashboardConfig {
    /// Serve the page. Off: its paths answer 404 and `dashboard.code` refuses.
    pub enabled: bool,
    /// How long a one-time code works, in seconds.
    pub code_seconds: u64,
    /// A session ends after so many minutes without use.
    pub idle_minutes: u64,
    /// A session ends after so many hours in any case.
    pub session_hours: u64,
    /// Sessions at once; the one longest unused makes room.
    pub sessions: usize,
}

impl Default for DashboardConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            code_seconds: 60,
            idle_minutes: 30,
            session_hours: 12,
            sessions: 32,
        }
    }
}

/// Codes at once: a person needs one.
const CODES: usize = 16;

impl DashboardConfig {
    pub(super) const fn limits(&self) -> Limits {
        Limits {
            code_ms: self.code_seconds.saturating_mul(1_000),
            idle_ms: self.idle_minutes.saturating_mul(60_000),
            session_ms: self.session_hours.saturating_mul(3_600_000),
            codes: CODES,
            sessions: self.sessions,
        }
    }
}
