//! Pairing: which devices are known, what waits for a person, and whose sessions must end.
//!
//! - *Owns*: devices, requests and what nodes may be asked (kinds `pairing.device` and `pairing.pending` in the store); of tokens the hashes.
//! - *Called by*: auth (`decide`, `generation`), the connection (list, approve, reject, remove, rename, rotate, revoke;
//!   of nodes too), whoever asks a node something (`surface`).
//! - *Calls*: the audit log and the store. Upwards it only tells news: [`PairingHandle::news`].
//! - *On a crash* nothing durable is lost: every change is durable before it counts, and all of it is re-read. News told in
//!   between may be missed; a session compares its generation again before it acts. Setup codes are in memory and are lost.
//! - *Refuses* as core's `Refusal` says; when a change cannot be recorded or stored, it is not made. At a start, rows
//!   that are unsound or written under an intent that the log does not hold are left out: their devices pair anew.

mod actor;
mod codes;
mod config;
mod handle;
mod messages;
#[cfg(test)]
mod tests;

pub use actor::PairingRoom;
pub use config::PairingConfig;
pub use handle::PairingHandle;
pub use messages::{CodeVerdict, MadeCode, PairingMsg, PairingRefusal, PairingWiring, Presented};
pub use portcullis_core::pairing::{
    Caller, Client, ConnectFacts, Declared, Effective, Invalidation, IssuedToken, News,
    PairingNeeded, Surface, SurfaceState, TokenRefusal, Verdict,
};
