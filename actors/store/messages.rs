//! What goes into the store and comes out of it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;
use tokio::sync::oneshot;

/// Longest payload of one object or entry, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Most operations in one commit.
pub const MAX_OPS: usize = 256;
const MAX_NAME: usize = 256;

/// A row as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Name within its kind.
    pub id: String,
    /// Revision of the last write; never used twice in one store.
    pub rev: u64,
    /// Audit sequence of the intent under which it was written.
    pub intent: u64,
    /// JSON with a version field `v`, as its room defines.
    pub payload: Vec<u8>,
    /// Small facts to select by.
    pub labels: BTreeMap<String, String>,
    /// Its tag is that of these bytes. Rows of rooms that seal theirs come without, too.
    pub is_whole: bool,
}

/// One appended record of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Place in its list, from 1 without gaps.
    pub seq: u64,
    /// Audit sequence of the intent under which it was written.
    pub intent: u64,
    /// As given.
    pub payload: Vec<u8>,
}

/// What an operation produced: the new revision, or for [`Change::Append`] the entry's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// The payload of a claimed row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Payload version, 1.
    pub v: u8,
    /// Who holds it.
    pub holder: String,
    /// Until when (Unix ms); afterwards anyone may claim it.
    pub until_ms: u64,
}

/// A conditional change to one row or list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// Noun of the room, `[a-z][a-z0-9_.-]*`.
    pub kind: String,
    /// Name within the kind, 1 to 256 bytes.
    pub id: String,
    /// Audit sequence of the intent; 0 for what needs none (a cache, a heartbeat).
    pub intent: u64,
    /// What to do, and what must hold for it.
    pub change: Change,
}

/// The kinds of change. There is no unconditional one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The row must not exist.
    Create {
        /// New payload.
        payload: Vec<u8>,
        /// New labels.
        labels: BTreeMap<String, String>,
    },
    /// The row must be at this revision.
    CompareAndSet {
        /// Expected revision.
        rev: u64,
        /// New payload.
        payload: Vec<u8>,
        /// New labels.
        labels: BTreeMap<String, String>,
    },
    /// The row must be at this revision.
    DeleteIf {
        /// Expected revision.
        rev: u64,
    },
    /// Adds to the end of the list `(kind, id)`; lists and rows do not share names.
    Append {
        /// The record.
        payload: Vec<u8>,
    },
    /// The row must be absent, run out at `now_ms`, or held by the same holder. Its payload is a [`Lease`].
    Claim {
        /// Who claims.
        holder: String,
        /// The caller's clock, Unix ms.
        now_ms: u64,
        /// For how long.
        lease_ms: u64,
    },
}

impl Op {
    /// Makes a row that must not exist yet.
    pub fn create(kind: &str, id: &str, intent: u64, payload: Vec<u8>) -> Self {
        let labels = BTreeMap::new();
        Self::new(kind, id, intent, Change::Create { payload, labels })
    }

    /// Replaces a row that must still be at `rev`.
    pub fn compare_and_set(kind: &str, id: &str, intent: u64, rev: u64, payload: Vec<u8>) -> Self {
        let labels = BTreeMap::new();
        Self::new(
            kind,
            id,
            intent,
            Change::CompareAndSet {
                rev,
                payload,
                labels,
            },
        )
    }

    /// Deletes a row that must still be at `rev`.
    pub fn delete_if(kind: &str, id: &str, intent: u64, rev: u64) -> Self {
        Self::new(kind, id, intent, Change::DeleteIf { rev })
    }

    /// Adds to a list.
    pub fn append(kind: &str, id: &str, intent: u64, payload: Vec<u8>) -> Self {
        Self::new(kind, id, intent, Change::Append { payload })
    }

    /// Takes or renews a lease.
    pub fn claim(
        kind: &str,
        id: &str,
        intent: u64,
        holder: &str,
        now_ms: u64,
        lease_ms: u64,
    ) -> Self {
        let holder = holder.to_owned();
        Self::new(
            kind,
            id,
            intent,
            Change::Claim {
                holder,
                now_ms,
                lease_ms,
            },
        )
    }

    /// Sets the labels of a create or replace; nothing else has any.
    #[must_use]
    pub fn labelled(mut self, set: BTreeMap<String, String>) -> Self {
        if let Change::Create { labels, .. } | Change::CompareAndSet { labels, .. } =
            &mut self.change
        {
            *labels = set;
        }
        self
    }

    fn new(kind: &str, id: &str, intent: u64, change: Change) -> Self {
        Self {
            kind: kind.to_owned(),
            id: id.to_owned(),
            intent,
            change,
        }
    }

    /// Limits that hold before anything is queued.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        check_kind(&self.kind)?;
        if self.id.is_empty() || self.id.len() > MAX_NAME || self.id.contains('\0') {
            return Err(StoreError::Invalid("an id has 1 to 256 bytes and no NUL"));
        }
        if i64::try_from(self.intent).is_err() {
            return Err(StoreError::Invalid("an intent is below 2^63"));
        }
        match &self.change {
            Change::Create { payload, .. }
            | Change::CompareAndSet { payload, .. }
            | Change::Append { payload }
                if payload.len() > MAX_PAYLOAD =>
            {
                Err(StoreError::Invalid("a payload has at most 1 MiB"))
            }
            Change::Claim { holder, .. } if holder.is_empty() || holder.len() > MAX_NAME => {
                Err(StoreError::Invalid("a holder has 1 to 256 bytes"))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn check_kind(kind: &str) -> Result<(), StoreError> {
    let mut bytes = kind.bytes();
    let head = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
    let tail = bytes
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte));
    if head && tail && kind.len() <= 64 {
        return Ok(());
    }
    Err(StoreError::Invalid("a kind is [a-z][a-z0-9_.-]{0,63}"))
}

/// The store could not do it. `Display` has the next step; no payload is ever in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// Another process holds the database.
    #[error(
        "the state database is locked by another process: stop it (fuser state.db) and try again"
    )]
    Locked,
    /// No room on the file system. Nothing was written.
    #[error("no space left for the state database: free some on its file system and try again")]
    DiskFull,
    /// The file is damaged.
    #[error(
        "the state database is damaged ({0}): stop the gateway and restore the file from a backup"
    )]
    Corrupt(String),
    /// A row was altered, or put there by somebody else.
    #[error(
        "the row {kind}/{id} of the state database was altered, or is none of ours: stop the gateway, restore state.db, audit and keys from one backup, and look at `portcullis audit verify --offline`"
    )]
    Altered {
        /// Its kind.
        kind: String,
        /// Its name.
        id: String,
    },
    /// Rows were put back as they had been, or taken away; each by itself is right.
    #[error(
        "rows of the state database were put back or taken away: stop the gateway, restore state.db, audit and keys from one backup, and look at `portcullis audit verify --offline`"
    )]
    Replaced,
    /// Made by another Portcullis, or no database of ours.
    #[error(
        "the state database has format {found}, this build reads {known}: run the build that wrote it"
    )]
    Format {
        /// `user_version` of the file.
        found: i64,
        /// Newest that this build knows.
        known: i64,
    },
    /// Readable or writable by others, or no plain file.
    #[error("the state database must be a plain file of mode 0600: {0}")]
    Mode(String),
    /// Any other failure of the engine or the disk. Whether a write happened is unknown.
    #[error("the state database failed ({0}): look at the disk and the system log")]
    Io(String),
    /// The file was moved away or replaced under the gateway. Nothing was done.
    #[error("the state database failed ({0}): look at the disk and the system log")]
    Moved(String),
    /// Too many calls wait already. Nothing was done.
    #[error("the store is overloaded: try again")]
    Overloaded,
    /// No answer within the handle's deadline.
    #[error("the store did not answer in time: try again, reading first")]
    Deadline {
        /// True when the change may have been made.
        may_have_run: bool,
    },
    /// The thread is gone.
    #[error("the store has stopped: the gateway restarts it")]
    Down,
    /// Our own mistake: an operation outside the limits.
    #[error("invalid store operation: {0}")]
    Invalid(&'static str),
}

impl StoreError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Locked => "STATE_LOCKED",
            Self::DiskFull => "DISK_FULL",
            Self::Corrupt(_) => "STATE_CORRUPT",
            Self::Altered { .. } | Self::Replaced => "STATE_ROW_ALTERED",
            Self::Format { .. } => "STATE_FORMAT",
            Self::Mode(_) => "STATE_MODE",
            Self::Io(_) | Self::Moved(_) => "STATE_IO",
            Self::Overloaded => "OVERLOADED",
            Self::Deadline { .. } => "DEADLINE",
            Self::Down => "STORE_DOWN",
            Self::Invalid(_) => "STORE_INVALID",
        }
    }

    /// True when a commit that ended so may nevertheless be on disk: re-read before acting on it.
    pub const fn may_have_run(&self) -> bool {
        matches!(
            self,
            Self::Io(_) | Self::Down | Self::Deadline { may_have_run: true }
        )
    }
}

/// Why a commit did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommitError {
    /// The condition of this operation did not hold; nothing of the commit was written.
    #[error("operation {index} found another revision than it expects")]
    Conflict {
        /// Which of the operations, from 0.
        index: usize,
    },
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One unit of work for a thread.
pub(super) enum Job {
    Commit {
        ops: Vec<Op>,
        reply: Answer<Result<Vec<Revision>, CommitError>>,
    },
    Get {
        kind: String,
        id: String,
        reply: Answer<Result<Option<Object>, StoreError>>,
    },
    List {
        kind: String,
        after: Option<String>,
        limit: usize,
        reply: Answer<Result<Vec<Object>, StoreError>>,
    },
    Entries {
        kind: String,
        id: String,
        after: u64,
        limit: usize,
        reply: Answer<Result<Vec<Entry>, StoreError>>,
    },
    HighestIntent {
        reply: Answer<Result<u64, StoreError>>,
    },
    Scrub {
        reply: Answer<Result<(), StoreError>>,
    },
    Close {
        reply: Answer<Result<(), StoreError>>,
    },
}

/// Where an answer goes: to a waiting task, or (in memory) to a waiting thread, so that a paused clock does not run on
/// while the answer is being made.
pub(super) enum Answer<T> {
    Task(oneshot::Sender<T>),
    Thread(std::sync::mpsc::SyncSender<T>),
}

impl<T> Answer<T> {
    /// A caller that has gone loses the answer, not the work.
    pub fn send(self, answer: T) {
        match self {
            Self::Task(to) => drop(to.send(answer)),
            Self::Thread(to) => drop(to.send(answer)),
        }
    }
}
