//! Every test that needs more than one crate, as one binary: one link, one place to look.
//!
//! Rules of the tests: a name is a sentence that can be false; nothing sleeps for luck; what a machine cannot run is
//! reported through the file that `PORTCULLIS_NOT_RUN_FILE` names, and fails in CI.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests may sleep and read the clock; what they test may not"
)]

mod e2e; // whole paths, as a person walks them
mod house; // the tree keeps its own rules: who imports whom, who shares what, which files must exist
mod long; // what holds at full counts: crashes, power cuts, faults, fuzz, soak, sockets
mod protocol; // the wire, spoken to the real program
mod sandbox; // what every driver promises
mod security; // what others were attacked with, tried here; and the list of it
mod supervision; // what supervision promises, one file per promise; later one file per room
mod support; // what tests share
