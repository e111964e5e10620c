//! `[exec]` of the config.

use portcullis_core::plan::EnvPolicy;
use serde::{Deserialize, Serialize};

/// Runs, wherever they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExecConfig {
    /// Runs of one agent at once, waiting ones included.
    pub runs_per_agent: usize,
    /// Runs of one connection at once, waiting ones included.
    pub runs_per_connection: usize,
    /// A lost connection ends its runs after this many milliseconds.
    pub lost_after_ms: u64,
    /// `[exec.host]`.
    pub host: HostConfig,
}

impl Default for ExecConfig {
    fn default() -> Self {
        Self {
            runs_per_agent: 16,
            runs_per_connection: 32,
            lost_after_ms: 2_000,
            host: HostConfig::default(),
        }
    }
}

/// Commands that leave the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// As whom a root gateway runs them: never root, never an operator. Any other gateway has only its own user.
    pub user: String,
    /// Names of variables that a request may set, beside LANG, LC_*, TZ, TERM, COLUMNS and LINES.
    pub env: Vec<String>,
    /// Milliseconds of a run that asks for none.
    pub timeout_ms: u64,
    /// Longest time that a run may ask for, in milliseconds; more is cut to it.
    pub max_timeout_ms: u64,
    /// Bytes of each output stream of a run that are passed on.
    pub output_cap_bytes: u64,
    /// Open files of a process.
    pub open_files: u32,
    /// Longest file that a process may write, in bytes.
    pub file_bytes: u64,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            user: "nobody".to_owned(),
            env: Vec::new(),
            timeout_ms: 60_000,
            max_timeout_ms: 3_600_000,
            output_cap_bytes: 1 << 20,
            open_files: 1024,
            file_bytes: 1 << 30,
        }
    }
}

impl HostConfig {
    /// Time of a run: what it asks for, within the ceiling; there is always one.
    pub fn timeout(&self, asked: Option<u64>) -> u64 {
        asked
            .unwrap_or(self.timeout_ms)
            .clamp(1, self.max_timeout_ms.max(1))
    }
}

impl ExecConfig {
    /// Every value that cannot be served, in words.
    pub fn problems(&self) -> Vec<String> {
        let host = &self.host;
        let rules = [
            (
                self.runs_per_agent == 0 || self.runs_per_connection == 0,
                "[exec] runs_per_agent and runs_per_connection must be at least 1",
            ),
            (
                host.timeout_ms == 0 || host.timeout_ms > host.max_timeout_ms,
                "[exec.host] timeout_ms must be 1 to max_timeout_ms",
            ),
            (
                host.max_timeout_ms > 86_400_000,
                "[exec.host] max_timeout_ms must be at most 86400000, 24 hours",
            ),
            (
                host.output_cap_bytes == 0,
                "[exec.host] output_cap_bytes must be at least 1",
            ),
            (
                host.open_files < 32,
                "[exec.host] open_files must be at least 32",
            ),
            (
                host.user.is_empty() || host.user == "root" || host.user == "0",
                "[exec.host] user must name a user other than root",
            ),
        ];
        let env = EnvPolicy::new(&host.env).err();
        rules
            .into_iter()
            .filter(|(wrong, _)| *wrong)
            .map(|(_, text)| text.to_owned())
            .chain(env.map(|error| format!("[exec.host] env: {error}")))
            .collect()
    }
}
