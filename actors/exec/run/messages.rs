//! To one run.

use portcullis_core::ids::RunId;
use tokio::sync::mpsc;

use crate::exec::messages::{Accepted, Begin, ExecRefusal, ExecWiring, Note};
use crate::supervision::Reply;

/// What a run is started with.
#[derive(Clone)]
pub struct RunWiring {
    /// The owner's.
    pub exec: ExecWiring,
    /// Its name.
    pub run: RunId,
    /// To its owner.
    pub notes: mpsc::Sender<Note>,
}

/// To the run.
pub enum RunMsg {
    /// Its request: once.
    Begin(Box<Begin>, Reply<Accepted, ExecRefusal>),
    /// Somebody who may wants its end.
    Cancel,
    /// It outlives its connection, or not.
    Keep(bool),
    /// A test breaks it.
    #[cfg(test)]
    Break,
}
