//! Who comes in: every door's `connect` ends here, in one [`Principal`](portcullis_core::auth::Principal) or a refusal.
//!
//! - *Owns*: the hash of the shared token, and the rules of local trust.
//! - *Called by*: connections, once each.
//! - *Calls*: pairing (devices and their tokens), audit (refusals, at most one record a second with a count).
//! - *On a crash*: nothing is lost: the token's hash comes with the wiring. Connects under way are told to try again.
//! - *Refuses when*: a secret is wrong or missing, a signature does not verify, a device is not approved yet, or a
//!   room that it needs is down.

mod actor;
mod config;
mod flow;
mod handle;
mod messages;

pub use actor::{Auth, AuthWiring};
pub use config::AuthConfig;
pub use handle::AuthHandle;
pub use messages::{Admitted, Arrival, AuthMsg, Peer};
