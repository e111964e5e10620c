//! Real boxes: bubblewrap, the kernel's limits, the cell. What every driver must hold is [`suite`]; the Docker driver passes the same.

mod docker;
pub(crate) mod harness;
mod native;
mod room;
pub mod suite;
