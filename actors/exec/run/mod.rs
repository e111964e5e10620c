//! One run: from its request to its outcome.
//!
//! - *Owns*: one plan, its opened files, its process or its place in a box.
//! - *Called by*: `exec`, its owner.
//! - *Calls*: `approval`, `sandbox_pool`, `audit`.
//! - *On a crash*: its process is ended with it; its owner records the outcome and tells the caller `unknown`. Never restarted.
//! - *Refuses when*: see `exec`.

mod act;
mod actor;
mod ends;
mod flow;
mod freeze;
mod gate;
mod handle;
mod messages;
mod node;

pub(super) use actor::RunRoom;
pub(super) use freeze::{
    HostGround, HostMeans, check_request, host_env, host_profile, open_on_host, opened_on_host,
};
#[cfg(test)]
pub(super) use gate::{Gate, Said};
pub(super) use handle::RunHandle;
pub(super) use messages::RunWiring;
pub(super) use node::prepare_words;
