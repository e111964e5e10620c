//! Who comes in: every door's `connect` ends here, in one [`Principal`](portcullis_core::auth::Principal) or a refusal.
//!
//! - *Owns*: the hashes of the shared token, of agents' tokens and of passwords; who guessed how often; the rules of
//!   local trust.
//! - *Called by*: connections, twice each; the methods that change secrets.
//! - *Calls*: pairing (devices and their tokens), store, audit (changes; refusals, at most one record a second with a
//!   count).
//! - *On a crash*: the counts of guessers are lost, and how long they are locked out. Secrets are read again. Connects
//!   under way are told to try again.
//! - *Refuses when*: a secret is wrong or missing, a signature does not verify, a device is not approved yet, or a
//!   room that it needs is down.

mod actor;
mod config;
mod credentials;
mod flow;
mod handle;
mod hashing;
mod messages;

pub use actor::{Auth, AuthWiring};
pub use config::{AuthConfig, Modes};
pub use credentials::SharedSecret;
pub use handle::AuthHandle;
pub use hashing::{Found, Guess, Look};
pub use messages::{
    Admitted, Arrival, AuthMsg, AuthNews, AuthRefusal, Bearer, Change, Listed, Made, NewPassword,
    Peer,
};
