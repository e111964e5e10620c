//! The tamper-evident audit log: no record, no act.
//!
//! - *Owns*: `STATE/audit/`, its one writer thread, the open intents and the idempotency keys of the last day.
//! - *Called by*: every room, before (`intent`) and after (`outcome`) each privileged act; status and page (`tail`,
//!   `query`, `verify`).
//! - *Calls*: nobody.
//! - *On a crash* nothing acknowledged is lost: the old thread finishes what it was given and lets go of the lock; the
//!   new start waits for that, re-reads and verifies the end of the log, cuts off a torn end with a `recovered` record,
//!   and gives every intent of an earlier boot `outcome: unknown`. Intents of this boot stay open: their acts go on.
//! - *Refuses when* the record cannot be made durable (`CANNOT_RECORD`, `DISK_FULL`; it tries again by itself and then
//!   records the gap), when an outcome's intent is not open, when an entry breaks its limits. It does not start on an
//!   altered log (`AUDIT_ALTERED`), beside another writer (`STATE_LOCKED`) or where others may enter (`STATE_MODE`).

mod actor;
mod config;
mod cursor;
mod error;
mod files;
mod handle;
mod keys;
mod log;
mod messages;
mod notes;
mod offline;
mod proofs;
mod read;
mod recover;
mod retire;
mod signer;
mod tiles;
mod unwritten;
mod walk;
mod writer;

pub use actor::Audit;
pub use config::{AuditConfig, SecretRef, SinkConfig};
pub use cursor::Cursor;
pub use error::{AuditError, Fault};
pub use handle::AuditHandle;
pub use keys::AuditKeys;
pub use log::Clock;
pub use messages::{AuditMsg, Refused};
pub use offline::{VerifyReport, verify_dir, verify_dir_against};
pub use proofs::{Consistency, Inclusion, Signed, Told};
pub use read::{Ended, Found, query_dir, tail_dir};
pub use unwritten::{Dropped, Unwritten};

use crate::supervision::{Feed, FlagReader};
use portcullis_core::audit::{BootId, Record};
use std::path::PathBuf;
use std::sync::Arc;

/// What the room is given at each start.
#[derive(Clone)]
pub struct AuditWiring {
    /// `STATE/audit`; made if missing (its parent must be there).
    pub dir: PathBuf,
    /// What signs the log.
    pub keys: AuditKeys,
    /// Limits.
    pub config: AuditConfig,
    /// This start of the daemon: random, the same for every restart of the room within it.
    pub boot: BootId,
    /// The daemon's time.
    pub clock: Clock,
    /// Where durable records are shown.
    pub feed: Feed<Arc<Record>>,
    /// What could not be recorded, and is as soon as that can be.
    pub unwritten: Arc<Unwritten>,
    /// The program's version, for the start mark.
    pub version: String,
    /// How often the state was changed, durably ([`Store::revision`](crate::store::Store::revision)): the log says so, and is
    /// not opened over a state that has come less far.
    pub state: Option<FlagReader<u64>>,
}

#[cfg(test)]
mod tests;
