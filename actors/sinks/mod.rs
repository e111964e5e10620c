//! The sinks: other systems that get the log's records as they are written.
//!
//! - *Owns*: one child for each `[audit.sinks.NAME]`, and how far each has come (`STATE/sinks/NAME`).
//! - *Called by*: nobody.
//! - *Calls*: `audit`, for records: the log itself is the spool, nothing lies a second time; `vault`, for a token.
//! - *On a crash* of a sink it is started again, after a wait that doubles to 30 s; it reads on behind the last record that
//!   its receiver has taken. So a receiver may get records twice, and drops them by their number.
//! - *Refuses when*: never. A sink that is slow or dead waits by itself; the log does not wait for it.

mod actor;
mod config;
mod handle;
mod messages;
mod outlet;
mod sink;

pub use actor::Sinks;
pub use config::{Destination, Peer, Problem, Settings, settings};
pub use handle::SinksHandle;
pub use messages::{SinkStatus, SinksMsg, SinksWiring, TlsFor};

#[cfg(test)]
mod tests;
