//! Portcullis: the binary's rooms above the actors. Wires them, opens the doors, and serves the command line.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod dashboard;
pub mod identity;
pub mod show;
pub mod telemetry;
