//! The wire: frames, `connect`, and the texts that clients match (wire.md sections 1, 3 and 4).

pub mod connect;
pub mod frame;
pub mod limits;
pub mod method;

pub use connect::{ConnectParams, ConnectRefusal};
pub use frame::{ErrorBody, EventFrame, FrameError, Request};
