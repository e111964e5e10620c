//! The room with the real log, store, approvals, boxes and processes.

mod apart;
mod crash;
mod detach;
mod harness;
mod host;
mod narrowed;
mod operands;
mod races;
mod reach;
mod sandbox;
