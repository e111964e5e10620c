//! Pairing: which devices are known, in which roles, with which scopes; what waits for a person.
//!
//! The machine never changes itself while it decides: each decision gives a [`Change`], and only once that is durable
//! (audit intent, then the store) the room settles it. So what it answers with is what is on disk.
//!
//! Rules that hold in every path:
//! - a grant is never wider than the request, than the approver's own scopes, or (without a person) than `local_scopes`;
//! - a revoked role comes back only through a person, never by itself and never by local trust;
//! - nothing is stored for somebody who has not proven a credential and a key;
//! - one address cannot displace another's request, however many it makes;
//! - a node may be asked only what a person approved of what it offers; device approval alone gives it no command;
//! - a setup code is a person's word given ahead: once, for a device that is not known, and no more than its maker holds;
//! - every rotate, revoke, remove and re-approval gives the device a new generation, which ends its live sockets.

mod decide;
mod machine;
mod manage;
mod records;
mod setup;
mod surface;
mod view;

pub use decide::{ConnectFacts, Fresh, IssuedToken, PairingNeeded, Reason, TokenRefusal, Verdict};
pub use machine::{
    Change, Decision, Invalidation, LetIn, Limits, News, OperatorKey, Pairing, Record,
};
pub use manage::{Caller, Refusal, Rotated};
pub use records::{ApprovedVia, Client, Device, Grant, KeptToken, Pending};
pub use setup::{CODE_LIFE_MS, Maker, SetupCodes, Try};
pub use surface::{ApprovedSurface, Declared, Effective, PendingSurface, Surface, SurfaceState};

#[cfg(test)]
mod tests;
