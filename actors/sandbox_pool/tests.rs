//! Real boxes: bubblewrap, the kernel's limits, the cell. What every driver must hold is [`suite`]; the Docker driver passes the same.

#![allow(
    clippy::disallowed_methods,
    reason = "tests may sleep and spawn; what they test may not"
)]

pub(crate) mod docker;
pub(crate) mod harness;
mod input;
mod native;
mod places;
mod podman;
mod profiles;
pub mod room;
mod scopes;
pub mod suite;
mod users;
mod warm;
