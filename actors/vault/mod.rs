//! The vault: named secrets, sealed with AES-256-GCM under keys that only this room has.
//!
//! - *Owns*: the root key in memory, the vault's header, manifest, records and their last uses in the store (kinds
//!   `vault.header`, `vault.manifest`, `vault.page`, `vault`, `vault.key`, `vault.used`).
//! - *Called by*: the edge (set, list, remove) and exec (a secret's value for one run).
//! - *Calls*: the audit log and the store.
//! - *On a crash* the keys are gone from memory and nothing else: it re-reads the header, runs scrypt once, off its
//!   loop, and re-reads the records. Readiness of the gateway never waits for it.
//! - *Refuses* when sealed (`SEALED`, with the reason in `status`: another identity key, a damaged header, another vault
//!   than the log's last word names), when a record is not the one of the manifest (the others serve), when names or values break their limits, when the
//!   act cannot be recorded. While unsealing, callers wait up to their own deadline.

mod actor;
mod asked;
mod config;
mod files;
mod handle;
mod keys;
mod locked;
mod messages;
mod open;
mod opening;
mod rows;
#[cfg(test)]
mod tests;
mod tries;

pub use actor::Vault;
pub use config::VaultConfig;
pub use handle::VaultHandle;
pub use messages::{
    Added, Around, Listed, NewUnlocker, OpenStatus, Opener, Phase, Rekeyed, ShownUnlocker, Status,
    VaultMsg, VaultRefusal, VaultWiring,
};
