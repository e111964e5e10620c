//! Our own clients' side of the wire: where a gateway is, who it must be, and what this machine proves itself with.

mod address;
mod decide;
mod device;
mod idle;
mod keys;
mod remote;
pub mod seen;
mod server;
mod wire;

pub use address::{Address, Listener};
pub use decide::{Decider, Reach};
pub use device::Who;
pub use keys::{Keys, Place};
pub use remote::{Remote, Session, TokenFile};
pub use wire::{Client, Door, Incoming};
