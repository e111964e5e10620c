//! Who may see the page: one-time codes, and the sessions that they open.
//!
//! - *Owns*: codes (a minute, once) and sessions, as hashes, in memory.
//! - *Called by*: the connection rooms (`dashboard.code`) and the page for every request.
//! - *Calls*: nothing; the caller records logins.
//! - *On a crash*: all codes and sessions are lost, so everybody asks for a new code; nothing is re-read.
//! - *Refuses when*: a code was used, is older than its time or never was; a session has ended.

mod actor;
mod config;
mod handle;
mod messages;
#[cfg(test)]
mod tests;

pub use actor::{Dashboard, Wiring};
pub use config::DashboardConfig;
pub use handle::{DashboardError, DashboardHandle};
pub use messages::{DashboardMsg, Minted, Secret};
