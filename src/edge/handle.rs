//! The way to the edge, for its own accept loops: a full gate makes them wait, and the kernel's backlog with them.

use std::time::Duration;

use portcullis_actors::connection::Stream;
use portcullis_actors::supervision::Handle;

use super::actor::{EdgeMsg, From};

/// A newcomer is entered within this, or dropped.
const WITHIN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Clone, Debug)]
pub struct EdgeHandle(Handle<EdgeMsg>);

impl EdgeHandle {
    /// Of the room's handle.
    pub const fn new(handle: Handle<EdgeMsg>) -> Self {
        Self(handle)
    }

    /// Hands over an accepted socket and waits until it is entered.
    pub(super) async fn accepted(&self, stream: Stream, from: From) {
        // A socket that cannot be entered is dropped, which closes it.
        let entered: Result<(), _> = self
            .0
            .call(WITHIN, |reply| EdgeMsg::Accepted(stream, from, reply))
            .await
            .map_err(|e: portcullis_actors::supervision::CallError<std::convert::Infallible>| e);
        if let Err(error) = entered {
            tracing::warn!(target: "portcullis", %error, "a socket could not be taken");
        }
    }
}
