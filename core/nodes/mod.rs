//! Connected node hosts: what each may be asked, and which answer belongs to which question.
//!
//! What a node declares is a ceiling. What it may be asked is the part of it that this gateway's allow list has for its
//! kind of machine and that a person has approved; before that it is nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::codes::{self, Code};
use crate::ids::DeviceId;
use crate::time::Millis;

mod approvers;
mod begun;
mod forward;
mod local;
mod machine;
mod own;
mod stream;
mod view;

pub use approvers::{
    APPROVAL, Approvers, Forwarded, NotShown, OUTPUT_CAP, OnNode, Shown, Spent, plan_of,
    said_digest,
};
pub use begun::{Begun, NotBegun};
pub use forward::{Asked, Claim, GateRefusal, admit_run};
pub use local::{Local, LocalError, LocalPolicy, RemoteEdit};
pub use machine::{Call, Due, Machine, NodeResult, Sent, Taken};
pub use own::{OwnPolicy, PolicyError};
pub use stream::{PROGRESS, Telling, Told, Way};
pub use view::{Standing, node_json};

/// Runs a command.
pub const RUN: &str = "system.run";
/// Says what exactly a command would run.
pub const PREPARE: &str = "system.run.prepare";
/// Finds programs.
pub const WHICH: &str = "system.which";
/// Reads the node's own approvals document.
pub const APPROVALS_GET: &str = "system.execApprovals.get";
/// Replaces it.
pub const APPROVALS_SET: &str = "system.execApprovals.set";
/// In the params of a run and in a node's hello: the record of the run's intent in the gateway's log, and how far that log
/// is. Ours; the peer's node hosts pass it over.
pub const RUN_NUMBER: &str = "runSeq";
/// In the answer of a prepared run: what the node's own document says of the command. Ours.
pub const VERDICT: &str = "portcullisVerdict";
/// A node's code for a run that it was told to end, and of which nothing is left (wire.md 8).
pub const STOPPED: &str = "ABORTED";
/// Shows a notice to the node's user.
pub const NOTIFY: &str = "system.notify";

/// Of a machine with a shell.
const DESKTOP: &[&str] = &[APPROVALS_GET, APPROVALS_SET, NOTIFY, RUN, PREPARE, WHICH];
/// Of any other.
const OTHER: &[&str] = &[NOTIFY];
/// Commands that are asked for by methods of their own.
const OWN_METHODS: &[&str] = &[APPROVALS_GET, APPROVALS_SET];

/// The commands that a node on this platform may ever be asked. What can run code or reach files without a question to
/// a person (browsers, file transfer, tools of others) is on no list.
pub fn allow_list(platform: Option<&str>) -> &'static [&'static str] {
    let platform = platform.unwrap_or_default().trim().to_ascii_lowercase();
    let word = platform.split(' ').next().unwrap_or_default();
    match word {
        "linux" | "macos" | "darwin" | "windows" | "win32" => DESKTOP,
        _ => OTHER,
    }
}

/// Is this command asked for by a method of its own, and never by `node.invoke`?
pub fn has_own_method(command: &str) -> bool {
    OWN_METHODS.contains(&command)
}

/// What a node says when it connects. Shown, and cut to what is allowed; believed in nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "wire.md 4.1 names each")]
pub struct Declared {
    pub display_name: Option<String>,
    pub version: String,
    pub client_id: String,
    pub client_mode: String,
    pub platform: Option<String>,
    pub device_family: Option<String>,
    pub caps: BTreeSet<String>,
    /// Cut to [`allow_list`].
    pub commands: BTreeSet<String>,
    pub permissions: BTreeMap<String, bool>,
    pub path_env: Option<String>,
}

impl Declared {
    /// Drops what is on no list, without a word: the node is not told what it might have had.
    pub fn cut(&mut self) {
        let allowed = allow_list(self.platform.as_deref());
        self.commands
            .retain(|command| allowed.contains(&command.as_str()));
    }
}

/// One connected node host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Its device.
    pub node: DeviceId,
    /// Its connection.
    pub conn: String,
    /// The generation of its credential when it came in.
    pub generation: u64,
    /// What it says of itself.
    pub declared: Declared,
    /// Since when.
    pub since: Millis,
    /// Its last report on its machine, as kept for `node.list`.
    pub stats: Option<Stats>,
    /// Does it say that it hosts workers? Shown only.
    pub worker_host: Option<bool>,
}

/// What a person approved of a node, as it stands at this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Approved {
    /// Its commands.
    pub commands: BTreeSet<String>,
    /// The generation that its credential has now; `None`: it is no node any more.
    pub generation: Option<u64>,
}

impl Connected {
    /// What it may be asked, where so much is approved: declared, allowed and approved, all three.
    pub fn commands(&self, approved: &BTreeSet<String>) -> BTreeSet<String> {
        approved
            .intersection(&self.declared.commands)
            .cloned()
            .collect()
    }
}

/// `node.host.stats`: numbers only, so that nothing else travels to people through it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "wire.md 8 names each")]
pub struct Stats {
    pub cpu_count: u64,
    /// In thousandths.
    #[serde(serialize_with = "thousandths")]
    pub load_average: [u64; 3],
    pub memory_total_bytes: u64,
    pub memory_free_bytes: u64,
    pub disk_total_bytes: u64,
    pub disk_available_bytes: u64,
    pub updated_at_ms: Millis,
}

fn thousandths<S: serde::Serializer>(load: &[u64; 3], s: S) -> Result<S::Ok, S::Error> {
    use serde::Serialize as _;
    load.map(|n| n as f64 / 1000.0).serialize(s)
}

impl Stats {
    /// From the event's payload; `None` where it is none.
    pub fn parse(payload: &serde_json::Value, now: Millis) -> Option<Self> {
        let number = |key: &str| payload.get(key)?.as_u64();
        let load: Vec<u64> = payload
            .get("loadAverage")?
            .as_array()?
            .iter()
            .filter_map(serde_json::Value::as_f64)
            .filter(|n| (0.0..=1e6).contains(n))
            .map(|n| {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "between 0 and 10^9"
                )]
                let n = (n * 1000.0) as u64;
                n
            })
            .collect();
        Some(Self {
            cpu_count: number("cpuCount")?,
            load_average: load.try_into().ok()?,
            memory_total_bytes: number("memoryTotalBytes")?,
            memory_free_bytes: number("memoryFreeBytes")?,
            disk_total_bytes: number("diskTotalBytes")?,
            disk_available_bytes: number("diskAvailableBytes")?,
            updated_at_ms: now,
        })
    }
}

/// Numbers that bound the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connected nodes.
    pub nodes: usize,
    /// Questions to one node that it has not answered.
    pub per_node: usize,
    /// Questions to all: fewer than the room's gate holds, so that answers always get in.
    pub open: usize,
    /// What a question may take at most, ms.
    pub timeout_max_ms: u64,
    /// What it may take where its caller says nothing, ms.
    pub timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: 2_048,
            per_node: 32,
            open: 512,
            timeout_max_ms: 3_600_000,
            timeout_ms: 30_000,
        }
    }
}

/// Why a node is not asked, or has not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each is named by its text")]
pub enum Refusal {
    #[error("unknown nodeId")]
    NotFound,
    #[error("node not connected")]
    NotConnected,
    /// Texts of the wire, which clients show.
    #[error("node command not allowed: {text}")]
    NotAllowed {
        reason: &'static str,
        command: String,
        text: String,
    },
    #[error("nodeId mismatch")]
    NodeMismatch,
    #[error("progress chunk too large")]
    ChunkTooLarge,
    #[error("too many questions wait for this node")]
    TooMany,
    #[error("TIMEOUT: node invoke timed out")]
    TimedOut,
    #[error("DISCONNECTED: the node went away before it answered")]
    Disconnected,
    #[error("ABORTED: who asked has gone")]
    Aborted,
    #[error("who asked had gone before the node was asked")]
    NotAsked,
    #[error(
        "a question with this key came before (record {0}), and its answer is not kept any more or not there yet"
    )]
    Repeated(u64),
    #[error("too many nodes are connected")]
    Full,
    /// The node's own word, made visible and bounded where it enters.
    #[error("{code}: {message}")]
    Node { code: String, message: String },
}

impl Refusal {
    /// The registered code.
    pub const fn code(&self) -> &'static Code {
        match self {
            Self::NotFound => codes::NODE_NOT_FOUND,
            Self::NotConnected => codes::NOT_CONNECTED,
            Self::NotAllowed { .. } => codes::NODE_COMMAND_NOT_ALLOWED,
            Self::NodeMismatch => codes::NODE_ID_MISMATCH,
            Self::ChunkTooLarge => codes::INVALID_PARAMS,
            Self::TooMany | Self::Full => codes::OVERLOADED,
            Self::Repeated(_) => codes::NODE_REPEATED,
            Self::NotAsked
            | Self::TimedOut
            | Self::Disconnected
            | Self::Aborted
            | Self::Node { .. } => codes::NODE_ERROR,
        }
    }

    /// `details.nodeError.code`, where the peer has one.
    pub fn node_code(&self) -> Option<&str> {
        match self {
            Self::NotConnected => Some("NOT_CONNECTED"),
            Self::TimedOut => Some("TIMEOUT"),
            Self::Disconnected => Some("DISCONNECTED"),
            Self::Aborted => Some("ABORTED"),
            Self::Node { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Was the node asked?
    pub const fn dispatched(&self) -> bool {
        matches!(
            self,
            Self::TimedOut | Self::Disconnected | Self::Aborted | Self::Node { .. }
        )
    }
}

type Nodes = BTreeMap<DeviceId, Connected>;

#[cfg(test)]
mod tests;
