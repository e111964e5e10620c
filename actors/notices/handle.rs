//! The way to the notices, for who shows how they stand.

use super::actor::Notices;
use super::messages::{NoticesMsg, NoticesStatus, NoticesWiring};
use crate::supervision::{Handle, Policy, TreeBuilder};
use std::time::Duration;

/// Requests the room takes at once.
const CAPACITY: usize = 64;
/// Programs are read whole to be compared.
const WITHIN: Duration = Duration::from_secs(3);

/// The notices. Clone it freely; it survives restarts of the room.
#[derive(Clone, Debug)]
pub struct NoticesHandle {
    room: Handle<NoticesMsg>,
    forwards: bool,
}

impl NoticesHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: NoticesWiring) -> Self {
        let settings = &wiring.settings;
        let forwards = settings.webhook.is_some() || settings.program.is_some();
        let room = tree.room::<Notices>(Policy::new(CAPACITY), wiring);
        Self { room, forwards }
    }

    /// How all stand; none where the room does not answer.
    pub async fn status(&self) -> Option<NoticesStatus> {
        self.room.call(WITHIN, NoticesMsg::Status).await.ok()
    }

    /// Whether anybody is told of questions.
    pub const fn forwards(&self) -> bool {
        self.forwards
    }
}
