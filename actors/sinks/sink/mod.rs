//! One sink.
//!
//! - *Owns*: the way to its receiver, and the number of the last record that was taken there, through one task.
//! - *Called by*: nobody; the sinks' room started it.
//! - *Calls*: `audit`, `vault`.
//! - *On a crash* the sinks' room starts it again, and it reads on behind what was taken.
//! - *Refuses when*: it does not start where it cannot read how far it had come.

mod actor;
mod carry;
mod messages;

pub use actor::{SinkRoom, SinkWiring};
