//! The wire: frames, `connect`, and the texts that clients match (wire.md sections 1, 3 and 4).

pub mod connect;
pub mod frame;
pub mod limits;
pub mod method;
pub mod strict;
pub mod wire;

pub use connect::{ConnectParams, ConnectRefusal};
pub use frame::{ErrorBody, FrameError, Request};
pub use strict::Unsound;
pub use wire::{Encoding, Wire};
