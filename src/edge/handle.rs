//! The way to the edge: for its own accept loops, which a full gate makes wait, and the kernel's backlog with them; and
//! for who ends sessions.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use portcullis_actors::connection::{EndSessions, Sessions, Stream};
use portcullis_actors::supervision::{CallError, Handle};

use super::accept::From;
use super::actor::EdgeMsg;

/// A newcomer is entered within this, or dropped.
const WITHIN: Duration = Duration::from_secs(5);

/// A socket that is told to end is cut off long before.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Newcomers that fill the room's gate do not keep a session alive: the order is brought again.
const AGAIN: Duration = Duration::from_millis(10);

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

impl Sessions for EdgeHandle {
    fn end(&self, order: EndSessions) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async move {
            let until = tokio::time::Instant::now() + END_WITHIN;
            loop {
                let order = order.clone();
                let ended: Result<(), CallError<Infallible>> = self
                    .0
                    .call(END_WITHIN, |reply| EdgeMsg::End(order, reply))
                    .await;
                match ended {
                    Ok(()) => return true,
                    // Its connections died with it, or it is as good as busy: the next life has none of them.
                    Err(CallError::Overloaded | CallError::Unavailable { .. })
                        if tokio::time::Instant::now() < until =>
                    {
                        tokio::time::sleep(AGAIN).await;
                    }
                    Err(_) => return false,
                }
            }
        })
    }
}
