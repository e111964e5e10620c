//! The way to the pool.

use std::time::Duration;

use portcullis_core::ids::{AgentId, BoxId, RunId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::messages::{
    BoxProfile, BoxShown, Explained, PoolError, PoolStatus, RunSpec, RunTicket, SandboxPoolMsg,
    Start,
};
use super::runs::RunEvent;
use crate::supervision::{CallError, Handle, TellError};

/// A first run may wait for the drivers' proof and for a box of its own.
const START_WITHIN: Duration = Duration::from_secs(45);
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// The pool, for the rooms above it.
#[derive(Clone, Debug)]
pub struct SandboxPoolHandle(Handle<SandboxPoolMsg>);

impl SandboxPoolHandle {
    /// Of the room's handle.
    pub const fn new(handle: Handle<SandboxPoolMsg>) -> Self {
        Self(handle)
    }

    /// Starts a run in the agent's box, making the box where there is none. Its events follow on `events`, ending with
    /// [`RunEvent::Exited`], [`RunEvent::BoxLost`] or [`RunEvent::GivenUp`] (a channel that ends without any says that the box is lost). A full channel stops the run
    /// until it is read; dropping the receiver cancels it.
    ///
    /// # Errors
    /// `Refused`: nothing ran. `Unavailable` and `Deadline` with `may_have_run`: it may have; dropping `events`' receiver ends it.
    pub async fn start_run(
        &self,
        agent: AgentId,
        spec: RunSpec,
        events: mpsc::Sender<RunEvent>,
    ) -> Result<RunTicket, CallError<PoolError>> {
        let start = |reply| {
            SandboxPoolMsg::Start(Box::new(Start {
                agent,
                spec,
                events,
                reply,
                asked: Instant::now(),
                tries: 0,
            }))
        };
        self.0.call(START_WITHIN, start).await
    }

    /// Ends a run: TERM, 200 ms, KILL. Its `Exited` says so; a run that is over or unknown is no error.
    pub async fn cancel(&self, agent: AgentId, run: RunId) -> Result<(), TellError> {
        self.0.tell(SandboxPoolMsg::Cancel { agent, run }).await
    }

    /// What a run of this agent would get now that asks for so much time.
    ///
    /// # Errors
    /// `Refused`: no driver, or none that will do for the agent.
    pub async fn profile(
        &self,
        agent: AgentId,
        timeout: Option<Duration>,
    ) -> Result<BoxProfile, CallError<PoolError>> {
        let ask = |reply| SandboxPoolMsg::Profile(agent, timeout, reply);
        self.0.call(START_WITHIN, ask).await
    }

    /// What the boxes of an agent are held by, and which layer decided each line; none: of agents that nothing is said of.
    pub async fn explain(
        &self,
        agent: Option<AgentId>,
    ) -> Result<Explained, CallError<std::convert::Infallible>> {
        let ask = |reply| SandboxPoolMsg::Explain(agent, reply);
        self.0.call(START_WITHIN, ask).await
    }

    /// Every box, the oldest first.
    pub async fn list(&self) -> Result<Vec<BoxShown>, CallError<std::convert::Infallible>> {
        self.0.call(STATUS_WITHIN, SandboxPoolMsg::List).await
    }

    /// Ends a box with all that runs in it; false: there is none of that name. It is over a moment later.
    pub async fn end(&self, id: BoxId) -> Result<bool, CallError<std::convert::Infallible>> {
        let end = |reply| SandboxPoolMsg::End(id, reply);
        self.0.call(STATUS_WITHIN, end).await
    }

    /// Driver, reason, boxes.
    pub async fn status(&self) -> Result<PoolStatus, CallError<std::convert::Infallible>> {
        self.0.call(STATUS_WITHIN, SandboxPoolMsg::Status).await
    }

    /// Other profiles hold from here on.
    #[cfg(test)]
    pub async fn set_profiles(
        &self,
        profiles: portcullis_core::sandbox::Profiles,
    ) -> Result<(), TellError> {
        self.0
            .tell(SandboxPoolMsg::Profiles(Box::new(profiles)))
            .await
    }

    /// Boxes that are nobody's are looked for now.
    #[cfg(test)]
    pub async fn sweep(&self) -> Result<(), TellError> {
        self.0.tell(SandboxPoolMsg::Sweep).await
    }

    /// The loops of all boxes stand still from here on.
    #[cfg(test)]
    pub async fn hang_boxes(&self) -> Result<(), TellError> {
        self.0.tell(SandboxPoolMsg::HangBoxes).await
    }
}
