//! Portcullis.
//! Portcullis: the binary's rooms above the actors. Wires them, opens the doors, and serves the command line.
#![forbid(unsafe_code)]

mod above;
pub mod cli;
pub mod client;
pub mod config;
pub mod dashboard;
#[doc(hidden)]
pub mod echo;
pub mod edge;
mod ends;
mod files;
pub mod gateway;
pub mod identity;
pub mod images;
pub mod methods;
pub mod node;
mod random;
pub mod runner;
pub mod show;
pub mod telemetry;
pub mod tls;
pub mod tree;

/// Ends the process at once: for when nothing in it can be relied on to end in order.
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
pub fn end_now(code: i32) -> ! {
    std::process::exit(code)
}
