//! The way to authentication.

use std::time::Duration;

use portcullis_core::codes;
use portcullis_core::protocol::ConnectRefusal;

use super::actor::{Auth, AuthWiring};
use super::messages::{Admitted, Arrival, AuthMsg};
use crate::supervision::{CallError, Handle, Policy, TreeBuilder};

/// For one connect; the socket itself has 15 s.
const WITHIN: Duration = Duration::from_secs(10);

/// Clone it freely; it survives restarts of the room.
#[derive(Clone, Debug)]
pub struct AuthHandle(Handle<AuthMsg>);

impl AuthHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: AuthWiring) -> Self {
        let policy = Policy::new(wiring.config.concurrent.max(1));
        Self(tree.room::<Auth>(policy, wiring))
    }

    /// Decides on a `connect`.
    ///
    /// # Errors
    /// The refusal to answer with, before the socket is closed.
    pub async fn connect(&self, arrival: Arrival) -> Result<Admitted, ConnectRefusal> {
        let arrival = Box::new(arrival);
        self.0
            .call(WITHIN, |reply| AuthMsg::Connect(arrival, reply))
            .await
            .map_err(|error| match error {
                CallError::Refused(refusal) => refusal,
                CallError::Overloaded => ConnectRefusal::unavailable(
                    codes::OVERLOADED,
                    "too many are connecting: try again",
                ),
                CallError::Unavailable { .. } | CallError::Deadline { .. } => {
                    ConnectRefusal::unavailable(
                        codes::ROOM_DOWN,
                        "authentication does not answer: try again",
                    )
                }
            })
    }
}
