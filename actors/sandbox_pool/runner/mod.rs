//! The runner: a child process, the only one of a gateway that speaks to the container engine.
//!
//! - *Owns*: the connection to the engine. It has read the configuration at its start, and makes boxes of it and of nothing else.
//! - *Called by*: the pool, over one socket ([`RunnerHandle`]), in the few words of `wire`.
//! - *Calls*: the engine, by the same [`super::docker::Docker`] that tests use in their own process.
//! - *On a crash*: what was asked of it and not answered is refused, nothing else is lost: a box's runs are between its cell and the gateway.
//!   The pool's task (`keep`) starts the next one: at once, then after a while that doubles. One that does not answer is killed.
//! - *Refuses when*: a request is not what the runner itself computes for that agent from its configuration (`judge`). What cannot be read at
//!   all ends it.
//!
//! It ends with the other end of its socket, so that no gateway leaves one behind.

mod handle;
mod judge;
mod keep;
mod serve;
#[cfg(test)]
mod tests;
mod wire;

pub use handle::{Remote, RunnerHandle};
pub(super) use keep::keep;
pub use keep::{RunnerProgram, RunnerShown};
pub use serve::{Ground, serve};
