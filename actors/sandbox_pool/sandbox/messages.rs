//! What the pool asks of one box.

use crate::sandbox_pool::link::LinkError;
use crate::sandbox_pool::runs::{Order, Over};

/// To one box.
pub enum SandboxMsg {
    /// For its link.
    Order(Order),
    /// From its own task: the box is over.
    Over(Result<Over, OverBy>),
    /// Its loop stands still from here on.
    #[cfg(test)]
    Hang,
}

/// What ended a box against its will.
#[derive(Debug, thiserror::Error)]
pub enum OverBy {
    /// It never served.
    #[error("{0}")]
    Start(String),
    /// Its link ended or broke.
    #[error(transparent)]
    Link(#[from] LinkError),
}
