//! What ractor does not give: places that survive restarts, bounded mailboxes, restart with back-off, health.
//!
//! - *Owns*: the tree's record of every permanent room (crashes, back-off, health) and every room's gate.
//! - *Called by*: every room, through [`Room`], [`Ctx`] and [`Handle`]; `src/tree.rs` builds the tree with it.
//! - *Calls*: nothing above it.
//! - *On a crash*: the root supervisor does nothing that can fail; if it still ended, every room ends and so does
//!   the process.
//! - *Refuses when*: a room is down ([`CallError::Unavailable`]) or its gate is full ([`CallError::Overloaded`]).
//!
//! Only here may ractor's `link` and `kill`, atomics, locks, semaphores and watches be used.

#![allow(
    clippy::disallowed_methods,
    reason = "the one place that spawns, for everybody else"
)]

mod allowance;
mod aside;
mod ctx;
mod envelope;
#[cfg(feature = "crash-for-tests")]
mod fault;
mod feed;
mod gate;
mod paced;
mod room;
mod shell;
mod slot;
mod spec;
mod tree;
mod view;
mod watchdog;

pub use allowance::{Allowance, Taken};
pub use aside::aside;
pub use ctx::{BlockingFull, Ctx, TaskHandle, WaitGuard};
pub use envelope::{CallError, Reply, TellError};
#[cfg(feature = "crash-for-tests")]
pub use fault::PanicAt;
pub use feed::{Feed, FeedItem, FeedReader, Flag, FlagReader, Numbered};
pub use gate::GateView;
pub use paced::Paced;
pub use room::{ChildEnd, Crash, Room, Snapshot, TaskEnd};
pub use shell::Shell;
pub use slot::Handle;
pub use spec::{Intensity, Policy};
pub use tree::{BootError, EXIT_TREE, OnFatal, Tree, TreeBuilder, TreeWindow};
pub use view::{RoomState, RoomView, TreeView};

#[cfg(test)]
mod tests;
