//! `[sandbox]` of the config.

use std::time::Duration;

use portcullis_core::egress::{Addresses, Rules};
use serde::{Deserialize, Serialize};

use super::spec::BoxLimits;

/// Which driver makes the boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Docker where an engine answers, else native.
    #[default]
    Auto,
    /// Docker or nothing.
    Docker,
    /// bubblewrap or nothing.
    Native,
}

/// Where agents' commands run, and within what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxPoolConfig {
    /// Which driver.
    pub driver: Choice,
    /// The Docker engine, `unix:///path`; without it DOCKER_HOST, else /var/run/docker.sock.
    #[serde(deserialize_with = "unless_empty")]
    pub engine: Option<String>,
    /// Host uid and gid of all boxes where the daemon is root; not 0. Any other daemon's boxes have its own.
    pub uid: u32,
    /// Memory of a box, swap included, in bytes.
    pub memory_bytes: u64,
    /// Processor share of a box in thousandths of a core.
    pub cpu_millis: u32,
    /// Most processes and threads in a box.
    pub pids: u32,
    /// Time of a run that asks for none, in milliseconds.
    pub timeout_ms: u64,
    /// Longest time that a run may ask for, in milliseconds; more is cut to it.
    pub max_timeout_ms: u64,
    /// Bytes of each output stream of a run that are passed on.
    pub output_cap_bytes: u64,
    /// Open files of a process.
    pub open_files: u32,
    /// Longest file that a process may write, in bytes.
    pub file_bytes: u64,
    /// A box without a run for this many seconds is ended.
    pub idle_secs: u64,
    /// Most boxes at once.
    pub max_boxes: usize,
    /// False: run the native driver also where it can set no ceilings (memory, processor, processes). Weaker, and shown as such.
    pub require_cgroup: bool,
    /// Hosts that boxes may reach, `host:port`; none: nothing leaves a box.
    pub egress: Rules,
    /// Networks that names of `egress` may stand for although they are not the world's.
    pub egress_to_networks: Addresses,
}

/// The config names every key, so "none" is written as an empty text.
fn unless_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?;
    Ok((!text.is_empty()).then_some(text))
}

impl Default for SandboxPoolConfig {
    fn default() -> Self {
        Self {
            driver: Choice::Auto,
            engine: None,
            uid: 65_533,
            memory_bytes: 512 << 20,
            cpu_millis: 1000,
            pids: 128,
            timeout_ms: 60_000,
            max_timeout_ms: 3_600_000,
            output_cap_bytes: 1 << 20,
            open_files: 1024,
            file_bytes: 1 << 30,
            idle_secs: 600,
            max_boxes: 32,
            require_cgroup: true,
            egress: Rules::default(),
            egress_to_networks: Addresses::default(),
        }
    }
}

impl SandboxPoolConfig {
    /// Every value that cannot be served, in words.
    pub fn problems(&self) -> Vec<String> {
        let rules = [
            (self.uid == 0, "uid must not be 0: no box runs as root"),
            (
                self.memory_bytes < 16 << 20,
                "memory_bytes must be at least 16777216",
            ),
            (self.cpu_millis < 10, "cpu_millis must be at least 10"),
            (
                self.pids < 16,
                "pids must be at least 16: the box's own processes count",
            ),
            (
                self.timeout_ms == 0 || self.timeout_ms > self.max_timeout_ms,
                "timeout_ms must be 1 to max_timeout_ms",
            ),
            (
                self.max_timeout_ms > 7 * 86_400_000,
                "max_timeout_ms must be at most 604800000, seven days",
            ),
            (self.open_files < 32, "open_files must be at least 32"),
            (self.idle_secs == 0, "idle_secs must be at least 1"),
            (self.max_boxes == 0, "max_boxes must be at least 1"),
            (
                self.egress_to_networks.in_vain().is_some(),
                "egress_to_networks must not name link-local, multicast or metadata addresses: they are never dialled",
            ),
        ];
        rules
            .into_iter()
            .filter(|(wrong, _)| *wrong)
            .map(|(_, text)| format!("[sandbox] {text}"))
            .collect()
    }

    /// Ceilings of a box.
    pub const fn limits(&self) -> BoxLimits {
        BoxLimits {
            memory_bytes: self.memory_bytes,
            cpu_millis: self.cpu_millis,
            pids: self.pids,
            open_files: self.open_files,
        }
    }

    /// Time of a run: what it asks for, within the ceiling; there is always one.
    pub fn timeout(&self, asked: Option<Duration>) -> u64 {
        let asked = asked.map_or(self.timeout_ms, |asked| {
            u64::try_from(asked.as_millis()).unwrap_or(u64::MAX)
        });
        asked.clamp(1, self.max_timeout_ms)
    }

    /// When a box without a run ends.
    pub const fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_secs)
    }
}
