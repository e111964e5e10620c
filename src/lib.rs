//! Portcullis.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod dashboard;
pub mod identity;
pub mod show;
pub mod telemetry;
