//! What the fuzzer calls with bytes of its own making.
#![forbid(unsafe_code)]

pub mod egress;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "gateway")]
pub mod heads;
pub mod log;
pub mod parsers;
pub mod vault;
pub mod wire;
