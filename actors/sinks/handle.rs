//! The way to the sinks, for who shows how they stand.

use super::actor::Sinks;
use super::messages::{SinkStatus, SinksMsg, SinksWiring};
use crate::supervision::{Handle, Policy, TreeBuilder};
use std::collections::BTreeMap;
use std::time::Duration;

/// Requests the room takes at once.
const CAPACITY: usize = 64;
const WITHIN: Duration = Duration::from_secs(2);

/// The sinks. Clone it freely; it survives restarts of the room.
#[derive(Clone, Debug)]
pub struct SinksHandle(Handle<SinksMsg>);

impl SinksHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: SinksWiring) -> Self {
        Self(tree.room::<Sinks>(Policy::new(CAPACITY), wiring))
    }

    /// How each stands; none where the room does not answer.
    pub async fn status(&self) -> Option<BTreeMap<String, SinkStatus>> {
        self.0.call(WITHIN, SinksMsg::Status).await.ok()
    }
}
