//! Why the log said no, and where it is broken.

use portcullis_core::audit::{Break, EntryError, Seq};
use serde::Serialize;
use std::io;

/// Where the chain breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("record {seq} (segment {segment}, byte {offset}): {why}")]
pub struct Fault {
    /// The sequence that should stand there.
    pub seq: Seq,
    /// The segment's first sequence, which names its file.
    pub segment: Seq,
    /// The byte offset in the segment.
    pub offset: u64,
    /// What is wrong.
    pub why: String,
}

impl Fault {
    pub(super) fn of(segment: Seq, at: Break) -> Self {
        Self {
            seq: at.seq,
            segment,
            offset: at.offset,
            why: at.why.to_owned(),
        }
    }
}

/// A refusal of the audit log. Whoever gets one for an intent must not act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The entry breaks a limit.
    #[error(transparent)]
    Invalid(#[from] EntryError),
    /// The record could not be made durable; nothing was acknowledged.
    #[error(
        "CANNOT_RECORD: the audit log cannot be written ({0}); mend the disk, nothing was done"
    )]
    CannotRecord(String),
    /// No room on the disk.
    #[error(
        "DISK_FULL: no room for the audit log; free disk space under the state directory, nothing was done"
    )]
    DiskFull,
    /// An outcome for an intent that is not open: never recorded, or closed already.
    #[error("AUDIT_NOT_OPEN: intent {0} is not open: it was closed before, or never recorded")]
    NotOpen(Seq),
    /// The log is not what was written.
    #[error(
        "AUDIT_ALTERED: {0}; keep the directory as evidence, then restore it or begin a new log elsewhere"
    )]
    Altered(Fault),
    /// The log and its keys do not belong together.
    #[error(
        "AUDIT_KEY_MISMATCH: {0}; restore STATE/audit and STATE/keys from one backup, and keep what is there as evidence"
    )]
    Key(String),
    /// The log ends before a record that the state was written under.
    #[error(
        "STATE_CORRUPT: the state was written under record {state}, and the log ends at {head}; restore state.db, audit and keys from one backup"
    )]
    Behind {
        /// The log's last record.
        head: Seq,
        /// The state's.
        state: Seq,
    },
    /// The state is older than the log says: an older copy, or writes in it were taken away.
    #[error(
        "STATE_CORRUPT: state.db was changed {state} times, and the log has recorded {said}: it is an older copy, or its write-ahead log (state.db-wal) was taken away; put that back, or restore state.db, audit and keys from one backup"
    )]
    StateBehind {
        /// How far the state has come.
        state: u64,
        /// How far the log says.
        said: u64,
    },
    /// The credential under which it would be done has ended: nothing was recorded, and nothing may be done.
    #[error("SESSION_ENDED: the credential of this connection was changed or revoked")]
    Ended,
    /// Another daemon writes this log.
    #[error("STATE_LOCKED: the audit log is in use by process {pid}; stop it first")]
    Locked {
        /// What the lock file names.
        pid: String,
    },
    /// Others than the owner may reach the log.
    #[error("STATE_MODE: {path} has mode {mode:o}; run `chmod go-rwx` on it")]
    Mode {
        /// Which file or folder.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// A record that the log does not have, or not yet.
    #[error("AUDIT_NO_RECORD: there is no record {seq}: the log has {size}")]
    NoRecord {
        /// The record, or the size of the log.
        seq: Seq,
        /// How many there are.
        size: u64,
    },
    /// The log could not be read.
    #[error("AUDIT_UNREADABLE: {0}")]
    Unreadable(String),
    /// Too much at once; nothing ran.
    #[error("OVERLOADED: the audit log has too many requests in work; try again in a moment")]
    Overloaded,
    /// The room is down.
    #[error("ROOM_DOWN: the audit room is down; `portcullis status` shows why")]
    Down {
        /// The record may be there all the same.
        may_have_run: bool,
    },
    /// No answer in time.
    #[error("DEADLINE: no answer from the audit log in time")]
    Deadline {
        /// The record may be there all the same.
        may_have_run: bool,
    },
}

impl AuditError {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid(error) => error.code(),
            Self::CannotRecord(_) => "CANNOT_RECORD",
            Self::DiskFull => "DISK_FULL",
            Self::NotOpen(_) => "AUDIT_NOT_OPEN",
            Self::Altered(_) => "AUDIT_ALTERED",
            Self::Key(_) => "AUDIT_KEY_MISMATCH",
            Self::Ended => "SESSION_ENDED",
            Self::Behind { .. } | Self::StateBehind { .. } => "STATE_CORRUPT",
            Self::Locked { .. } => "STATE_LOCKED",
            Self::Mode { .. } => "STATE_MODE",
            Self::NoRecord { .. } => "AUDIT_NO_RECORD",
            Self::Unreadable(_) => "AUDIT_UNREADABLE",
            Self::Overloaded => "OVERLOADED",
            Self::Down { .. } => "ROOM_DOWN",
            Self::Deadline { .. } => "DEADLINE",
        }
    }

    /// A failed write, sync or creation.
    pub(super) fn writing(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::CannotRecord(error.to_string()),
        }
    }

    /// A failed read or open.
    pub(super) fn reading(what: &str, error: &io::Error) -> Self {
        Self::Unreadable(format!("{what}: {error}"))
    }
}
