//! What a box does now, for the pool to decide by, and why the pool gives one up.

use portcullis_core::codes::{self, Code};
use tokio::time::Instant;

/// Why the pool ends a box in which something runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GivenUp {
    /// Nobody can say any more what holds the box.
    #[error("the sandbox engine was lost under the run, which was ended: {0}")]
    Engine(String),
    /// Somebody who may has ended it.
    #[error("an operator ended the sandbox under the run")]
    Operator,
}

impl GivenUp {
    /// The registered code.
    pub const fn code(&self) -> &'static Code {
        match self {
            Self::Engine(_) | Self::Operator => codes::BOX_LOST,
        }
    }
}

/// What a box does now, for the pool to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Orders to start that it has dealt with.
    pub taken: u64,
    /// Runs under way.
    pub running: usize,
    /// Since when nothing runs (where nothing does).
    pub idle_since: Instant,
    /// Its init process, once it serves.
    pub init: Option<u32>,
    /// It takes no orders any more.
    pub over: bool,
}

impl Standing {
    /// Of a box that is being made.
    pub fn new() -> Self {
        Self {
            taken: 0,
            running: 0,
            idle_since: Instant::now(),
            init: None,
            over: false,
        }
    }
}

impl Default for Standing {
    fn default() -> Self {
        Self::new()
    }
}

impl Standing {
    /// Whether nothing runs in it and nothing that was `sent` to it is on its way.
    pub const fn is_idle(&self, sent: u64) -> bool {
        self.init.is_some() && self.running == 0 && self.taken == sent && !self.over
    }
}
