//! What a room is: the one trait that every supervised concern implements.

use std::fmt::Display;
use std::future::Future;

use super::ctx::Ctx;

/// One supervised concern. [`super::shell::Shell`] turns it into a ractor actor, so that ping, deadline, permit,
/// gauges and spans exist once.
pub trait Room: Sized + Send + 'static {
    /// The noun: the same in the tree, the config, spans and audit events.
    const NAME: &'static str;
    /// What others may ask.
    type Msg: Send + 'static;
    /// Configuration and lower rooms' handles; given again at every restart.
    type Wiring: Clone + Send + Sync + 'static;

    /// Re-reads the room's state. Runs at first start and at every restart, before any message.
    ///
    /// # Errors
    /// A [`Crash`] takes the restart path, like a crash while serving.
    fn start(
        wiring: &Self::Wiring,
        ctx: Ctx<Self>,
    ) -> impl Future<Output = Result<Self, Crash>> + Send;

    /// One message: one exhaustive `match`, each arm one call. A refusal goes into the reply.
    ///
    /// # Errors
    /// A [`Crash`] says "uncertain or broken": the actor ends, restarts and re-reads.
    fn handle(&mut self, msg: Self::Msg) -> impl Future<Output = Result<(), Crash>> + Send;

    /// A task of [`Ctx::task`] or [`Ctx::blocking`] ended by itself. A panic in one is by default the room's crash.
    fn task_ended(
        &mut self,
        name: &'static str,
        _key: u64,
        end: TaskEnd,
    ) -> impl Future<Output = Result<(), Crash>> + Send {
        async move {
            match end {
                TaskEnd::Done => Ok(()),
                TaskEnd::Panicked(why) => Err(Crash::new(format!("task {name} panicked: {why}"))),
            }
        }
    }

    /// A child of [`Ctx::child`] ended. Children are temporary: their owner decides what follows.
    fn child_ended(
        &mut self,
        _name: &'static str,
        _key: u64,
        _end: ChildEnd,
    ) -> impl Future<Output = Result<(), Crash>> + Send {
        async { Ok(()) }
    }

    /// What a person may see of the room. Never a secret.
    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }

    /// The orderly end: flush, release, zeroize. Not run after a crash or a kill.
    fn stop(self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Why an actor ends itself: something is uncertain or broken, and only re-reading helps.
#[derive(Debug)]
pub struct Crash(String);

impl Crash {
    /// The reason is logged and shown: no secret in it.
    pub fn new(why: impl Display) -> Self {
        Self(why.to_string())
    }

    /// The reason.
    pub fn why(&self) -> &str {
        &self.0
    }
}

// Not `std::error::Error` itself: that would forbid the blanket conversion below.
impl<E: std::error::Error> From<E> for Crash {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

/// How a task ended (an aborted one does not report).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    /// It returned.
    Done,
    /// It panicked with this text.
    Panicked(String),
}

/// How a temporary child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildEnd {
    /// It was stopped, or stopped itself.
    Stopped,
    /// It panicked, returned a [`Crash`] or was killed.
    Crashed(String),
}

/// Facts about a room for `status` and the page, in the order to show them.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// Name and value.
    pub facts: Vec<(&'static str, String)>,
}

impl Snapshot {
    /// Adds one fact.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.facts.push((name, value.to_string()));
        self
    }
}
