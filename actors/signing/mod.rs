//! Signed HTTP requests: whose key it is, and whether a request came already.
//!
//! - *Owns*: signing keys (kind `signing.key` in the store, sealed under a key of the vault; opened in memory), and the
//!   nonces that were used within the window.
//! - *Called by*: the connection (`mint`, once for a device that asks), the edge (`check`, `spend` for each request).
//! - *Calls*: the vault (once, for the sealing key), pairing (does the device still hold what its key was minted under?),
//!   the audit log and the store.
//! - *On a crash* keys are re-read. Nonces are lost, so a new life takes no request that was made before it began.
//! - *Refuses when* a request is not signed by a key that lives, is over 60 s off, came already, or its key has used as
//!   many nonces as are kept; while the vault is not open, everything.

mod actor;
mod config;
mod handle;
mod messages;
#[cfg(test)]
mod tests;

pub use actor::Signing;
pub use config::SigningConfig;
pub use handle::SigningHandle;
pub use messages::{Claim, Minted, SigningMsg, SigningRefusal, SigningWiring};
