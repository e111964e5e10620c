//! What the room may be asked.

use super::error::AuditError;
use super::offline::VerifyReport;
use super::proofs::{Consistency, Inclusion, Signed};
use super::read::{Followed, Found};
use super::writer::Look;
use crate::supervision::Reply;
use portcullis_core::audit::verify::Outside;
use portcullis_core::audit::{Body, Head, Once, OnceKey, Query, Record, Seq};
use portcullis_core::time::Millis;
use std::sync::Arc;

/// What a key means whose first try was refused before anything was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The refusal is the answer to the key, as any other end.
    Stands,
    /// Nothing was done, so the key is free: a retry is a new try.
    Anew,
}

/// A request to the audit room.
pub enum AuditMsg {
    /// Record this durably.
    Append(Box<Body>, Reply<Seq, AuditError>),
    /// Record this intent, unless its idempotency key is there already.
    Once(Box<Body>, Refused, Reply<Once, AuditError>),
    /// What was recorded under an idempotency key.
    Seen(OnceKey, Reply<Option<Once>, AuditError>),
    /// The newest durable record.
    Head(Reply<Head, AuditError>),
    /// The wall clock of the newest record that was there before the log was opened.
    Before(Reply<Millis, AuditError>),
    /// Why nothing can be recorded now.
    Broken(Reply<Option<AuditError>, AuditError>),
    /// The last records.
    Tail(usize, Reply<Vec<Arc<Record>>, AuditError>),
    /// The newest matches.
    Query(Box<Query>, Reply<Vec<Found>, AuditError>),
    /// Read everything again, and compare it with what is held outside.
    Verify(Box<Outside>, Reply<VerifyReport, AuditError>),
    /// The records from one on.
    Records(Seq, usize, Reply<Vec<Record>, AuditError>),
    /// Sign what the log is now.
    Sign(Reply<Signed, AuditError>),
    /// Prove that a record is in it.
    Prove(Seq, Reply<Inclusion, AuditError>),
    /// Prove that it has only grown from the one size to the other.
    Consistency(u64, u64, Reply<Consistency, AuditError>),
    /// From the room itself: the writer said what is durable, now read.
    Looked(Box<Looked>),
    /// From the room itself: these segments were read to their ends.
    Followed(Followed),
}

/// What to read, and how far the files may be trusted.
pub struct Looked {
    pub(super) look: Look,
    pub(super) want: Want,
}

/// What to read.
pub(super) enum Want {
    Tail(usize, Reply<Vec<Arc<Record>>, AuditError>),
    Query(Box<Query>, Reply<Vec<Found>, AuditError>),
    Verify(Box<Outside>, Reply<VerifyReport, AuditError>),
    Records(Seq, usize, Reply<Vec<Record>, AuditError>),
    Sign(Reply<Signed, AuditError>),
    Prove(Seq, Reply<Inclusion, AuditError>),
    Consistency(u64, u64, Reply<Consistency, AuditError>),
}

impl Want {
    /// Whether it needs the writer's signature.
    pub(super) const fn is_signed(&self) -> bool {
        matches!(
            self,
            Self::Sign(_) | Self::Prove(..) | Self::Consistency(..)
        )
    }
}
