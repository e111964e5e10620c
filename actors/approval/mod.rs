//! Approvals: which plan may run at once, which waits for a person, and what that person said.
//!
//! - *Owns*: questions, standing grants and the approvals document (kinds `approval`, `approval.grant` and
//!   `approval.document` in the store), each row sealed under a key that comes from the machine identity.
//! - *Called by*: exec (`decide`, `find`, `consume`, `cancel`), the edge and the page (list, answer, revoke, the
//!   document).
//! - *Calls*: the audit log and the store. Upwards it only tells news: [`ApprovalHandle::feed`]. Boxes' ways out ask it about hosts by
//!   news, and read what was said.
//! - *On a crash* nothing is lost: every change is durable before it counts, and all of it is re-read. What ran out
//!   meanwhile, or was asked after the clock's present time, is expired: silence is never consent.
//! - *Refuses* as core's `Refusal` says; when a change cannot be recorded or stored, it is not made. It does not start
//!   where a row was written under an intent that the log does not hold (`STATE_CORRUPT`). A row that does not open is
//!   left out, so it allows nothing; a document that does not open closes the host.

mod actor;
mod answers;
mod config;
mod ends;
mod handle;
mod hosts;
mod messages;
#[cfg(test)]
mod revoked_tests;
mod rows;
#[cfg(test)]
mod tests;

pub use actor::Approval;
pub use config::{ApprovalConfig, QuorumConfig};
pub use handle::ApprovalHandle;
pub use messages::{
    ApprovalEvent, ApprovalMsg, ApprovalRefusal, ApprovalWiring, Ask, Consumed, Decision, Found,
    Ground, Ledger, Narrowed, PolicyChange, Resolved, Told,
};
