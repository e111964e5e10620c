//! The store: durable state of every room, with conditional writes only.
//!
//! - **Owns** `state.db` (SQLite, WAL, `synchronous=FULL`) and its three threads: one writer, two readers.
//! - **Called by** every room above it, through [`Store`]; **calls** nobody.
//! - **On a crash** of a thread its callers get `STORE_DOWN` and every later call too; the process is meant to end
//!   (exit 70) and start again: SQLite rolls back what was not committed, and whatever was acknowledged is there.
//! - **Refuses** when the expected revision is not the present one (`Conflict`), when the queue is full
//!   (`OVERLOADED`), when another process holds the file (`STATE_LOCKED`), when there is no room (`DISK_FULL`).
//!
//! Not a [`Room`](crate::supervision) by itself: it never awaits, it has no state but the file, and its work is blocking.
//! An unconditional write does not exist: each [`Op`] names the revision it expects, and the audit intent under which
//! it is written. Revisions come from one counter, so a row deleted and made anew never repeats one.

mod engine;
mod handle;
mod messages;
#[cfg(test)]
mod tests;
mod threads;

pub use handle::Store;
pub use messages::{
    Change, CommitError, Entry, Lease, MAX_OPS, MAX_PAYLOAD, Object, Op, Revision, StoreError,
};
