//! What reaches the room: from its link, its runs, and nobody else.

use std::path::PathBuf;
use std::sync::Arc;

use portcullis_actors::exec::Hosted;
use portcullis_actors::supervision::Flag;
use portcullis_core::ids::DeviceId;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::document::Used;
use crate::cli::Failure;
use crate::client::Session;

/// What the room is given at each start.
#[derive(Clone)]
pub struct NodeWiring {
    /// Where it connects, and with what.
    pub session: Arc<Session>,
    /// Shown to people.
    pub name: String,
    /// How its commands are held.
    pub hosted: Hosted,
    /// Commands that may be opened at once: reading and hashing goes on where its question was taken back.
    pub openings: Arc<Semaphore>,
    /// Which node this machine is there.
    pub node: DeviceId,
    /// The name of its gateway's files.
    pub gateway: String,
    /// Where its own document lies; its disk is what is reported on.
    pub folder: PathBuf,
    /// Pieces of what runs write that the gateway has not answered yet: it takes no more requests at once than so many, and the
    /// results are among them.
    pub pieces: Arc<Semaphore>,
    /// Which decisions of people ran something here.
    pub used: Used,
    /// Set once: why this node host ends by itself.
    pub over: Arc<Flag<Option<Arc<Failure>>>>,
}

/// A question of the gateway.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Of the question.
    pub id: String,
    /// What.
    pub command: String,
    /// Read from its JSON text.
    pub params: Value,
}

/// To the link.
pub enum Out {
    /// A request whose answer is not waited for.
    Request(&'static str, Value),
    /// A piece of what a run writes. Its place is free again with the gateway's answer to it.
    Piece(Value, OwnedSemaphorePermit),
    /// The end: a close frame, then the sender is dropped.
    Close(oneshot::Sender<()>),
}

/// To the room.
pub enum NodeMsg {
    /// The link is up: what goes out goes here; and how far the gateway's log is, where it numbers its runs.
    Up(mpsc::Sender<Out>, Option<u64>),
    /// It is down; another try comes by itself.
    Down,
    /// The gateway asks.
    Asked(Box<Asked>),
    /// Nobody wants this answer any more: what it runs is ended, and said to be.
    Cancelled(String),
    /// A question was answered.
    Answered(String),
    /// It is time to report on the machine.
    Report,
    /// There is no use in another try.
    Over(Box<Failure>),
}
