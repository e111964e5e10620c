//! The decisions of Portcullis. No runtime, no I/O, no clock, no randomness: time, nonces and keys are arguments.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod approval;
pub mod audit;
pub mod auth;
pub mod codes;
pub mod dashboard;
pub mod device;
pub mod display;
pub mod egress;
pub mod encoding;
pub mod identity;
pub mod ids;
pub mod nodes;
pub mod notices;
pub mod pairing;
pub mod plan;
pub mod policy;
pub mod protocol;
pub mod row;
pub mod sandbox;
pub mod seal;
pub mod signing;
pub mod time;
pub mod token;
pub mod vault;
