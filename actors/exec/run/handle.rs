//! The way to one run, for its owner.

use crate::exec::messages::{Accepted, Begin, ExecRefusal};
use crate::supervision::{Handle, Reply};

use super::messages::RunMsg;

/// One run.
#[derive(Clone)]
pub struct RunHandle(Handle<RunMsg>);

impl RunHandle {
    /// Of the child's handle.
    pub const fn new(handle: Handle<RunMsg>) -> Self {
        Self(handle)
    }

    /// Hands the request over. A run that has ended already drops the reply, and its caller hears that.
    pub async fn begin(&self, begin: Box<Begin>, reply: Reply<Accepted, ExecRefusal>) {
        if let Err(error) = self.0.tell(RunMsg::Begin(begin, reply)).await {
            tracing::error!(%error, "a run did not take its request");
        }
    }

    /// Asks for its end.
    pub async fn cancel(&self) {
        if let Err(error) = self.0.tell(RunMsg::Cancel).await {
            tracing::debug!(%error, "a run that is cancelled has ended");
        }
    }

    /// Lets it outlive its connection, or not.
    pub async fn keep(&self, on: bool) {
        if let Err(error) = self.0.tell(RunMsg::Keep(on)).await {
            tracing::debug!(%error, "a run that is kept has ended");
        }
    }

    /// Breaks it.
    #[cfg(test)]
    pub async fn break_it(&self) {
        self.0.tell(RunMsg::Break).await.unwrap();
    }
}
