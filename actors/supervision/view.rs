//! What a person may see of the tree.

use serde::Serialize;
use tokio::time::Instant;

use super::gate::GateView;

/// The tree at one moment, rooms in start order (bottom first).
#[derive(Debug, Clone, Default, Serialize)]
pub struct TreeView {
    /// The permanent rooms.
    pub rooms: Vec<RoomView>,
}

impl TreeView {
    /// Do all rooms serve?
    pub fn all_up(&self) -> bool {
        !self.rooms.is_empty()
            && self
                .rooms
                .iter()
                .all(|r| matches!(r.state, RoomState::Up | RoomState::Waiting))
    }
}

/// One room.
#[derive(Debug, Clone, Serialize)]
pub struct RoomView {
    /// Its noun.
    pub name: &'static str,
    /// Whether it serves.
    pub state: RoomState,
    /// Since when.
    #[serde(skip)]
    pub up_since: Option<Instant>,
    /// Restarts since the process started.
    pub restarts: u64,
    /// Restarts of the last five minutes.
    pub recent_restarts: usize,
    /// Why it last ended.
    pub last_crash: Option<String>,
    /// Its gate's gauges.
    pub gate: Option<GateView>,
    /// Its own facts.
    pub facts: Vec<(&'static str, String)>,
}

/// Whether a room serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RoomState {
    /// Being started or restarted; callers wait.
    Starting,
    /// Serving.
    Up,
    /// Serving, and its loop waits on disk or engine now.
    Waiting,
    /// Over its intensity, or stopped; callers are refused.
    Down,
}

impl RoomState {
    /// The word shown.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Waiting => "waiting",
            Self::Down => "down",
        }
    }
}
