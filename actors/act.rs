//! The one order of a privileged change to the store: intent, durable; commit that carries it; outcome; then the reply.

use crate::audit::{AuditError, AuditHandle};
use crate::store::{CommitError, Op, Revision, Store, StoreError};
use portcullis_core::audit::{Entry, Outcome};
use portcullis_core::auth::Principal;
use thiserror::Error;

/// A change that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Sequence of its intent, in every row that it wrote.
    pub intent: u64,
    /// What the store gave, operation by operation.
    pub revisions: Vec<Revision>,
}

/// Why a change was not made, or not cleanly.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ActError {
    /// No intent could be recorded. Nothing was done.
    #[error("the audit log cannot record this, so it was not done ({0})")]
    CannotRecord(AuditError),
    /// The store refused, and nothing was written.
    #[error("{0}")]
    Refused(StoreError),
    /// Rows are not as the room believed: it must re-read. Nothing was written.
    #[error("the state changed underneath: try again")]
    Stale,
    /// It may or may not be on disk: the room must re-read.
    #[error("whether this was done is uncertain ({0}): look before trying again")]
    Uncertain(StoreError),
}

impl ActError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::CannotRecord(AuditError::DiskFull) => "DISK_FULL",
            Self::CannotRecord(AuditError::Overloaded) => "OVERLOADED",
            Self::CannotRecord(AuditError::Ended) => "SESSION_ENDED",
            Self::CannotRecord(AuditError::Altered(_)) => "AUDIT_ALTERED",
            Self::CannotRecord(_) => "CANNOT_RECORD",
            Self::Refused(error) | Self::Uncertain(error) => error.code(),
            Self::Stale => "ROOM_DOWN",
        }
    }

    /// Must the room crash and re-read its state?
    pub const fn must_reread(&self) -> bool {
        matches!(self, Self::Stale | Self::Uncertain(_))
    }
}

/// Makes one change. `ops` gets the sequence of the intent, which every operation must carry.
///
/// An outcome that cannot be recorded does not undo a durable change: the change is reported as done, and the intent
/// stays open in the log, which says `unknown` at the next start.
///
/// # Errors
/// [`ActError`].
pub async fn act(
    audit: &AuditHandle,
    store: &Store,
    entry: Entry,
    ops: impl FnOnce(u64) -> Result<Vec<Op>, &'static str>,
) -> Result<Done, ActError> {
    let intent = audit.intent(entry).await.map_err(ActError::CannotRecord)?;
    let result = store_with(store, intent.0, ops).await;
    let outcome = match &result {
        Ok(_) => Outcome::ok(),
        // Left open on purpose: nobody knows.
        Err(ActError::Uncertain(error)) => return Err(ActError::Uncertain(error.clone())),
        Err(ActError::Stale) => Outcome::refused("STATE_CHANGED"),
        Err(error) => Outcome::failed(error.code()),
    };
    if let Err(error) = audit.outcome(intent, outcome).await {
        tracing::error!(intent = intent.0, %error, "an outcome could not be recorded");
    }
    result.map(|revisions| Done {
        intent: intent.0,
        revisions,
    })
}

/// The commit alone, for what needs no outcome: `intent` is the sequence of the event that was recorded before.
///
/// # Errors
/// [`ActError`].
pub async fn store_with(
    store: &Store,
    intent: u64,
    ops: impl FnOnce(u64) -> Result<Vec<Op>, &'static str>,
) -> Result<Vec<Revision>, ActError> {
    let ops = ops(intent).map_err(|why| ActError::Refused(StoreError::Invalid(why)))?;
    store.commit(ops).await.map_err(|error| match error {
        CommitError::Conflict { .. } => ActError::Stale,
        CommitError::Store(error) if error.may_have_run() => ActError::Uncertain(error),
        CommitError::Store(error) => ActError::Refused(error),
    })
}

/// The start of a record about what somebody does.
pub fn entry_of(principal: &Principal) -> Entry {
    let entry = Entry {
        principal: Some(principal.name()),
        door: Some(principal.door.as_str().to_owned()),
        ..Entry::default()
    };
    // The log takes it only as long as this generation lives.
    let entry = match principal.device() {
        Some(_) => entry.under(principal.generation),
        None => entry,
    };
    match &principal.secret {
        Some(standing) => entry.by_secret(&standing.secret, standing.generation),
        None => entry,
    }
}
