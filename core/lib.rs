//! The decisions of Portcullis. No runtime, no I/O, no clock, no randomness: time, nonces and keys are arguments.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod auth;
pub mod codes;
pub mod display;
pub mod ids;
pub mod plan;
pub mod policy;
pub mod protocol;
pub mod time;
