//! Nodes: which node hosts are connected, what each may be asked, and which answer belongs to which question.
//!
//! - *Owns*: in memory, the connected node hosts with what they declared, and the questions they have not answered.
//!   What a person approved of a node is pairing's; it is looked up again for each question.
//! - *Called by*: exec (a run on a node), connection (`attach`, answers and news of nodes; lists and questions of
//!   operators).
//! - *Calls*: pairing. Downwards to a node it tells through the bounded line that the node's connection gave it.
//! - *On a crash* the questions under way are lost: their callers hear that they may have run. Lines end, and each
//!   connection attaches again by itself.
//! - *Refuses* what is not declared, on this gateway's list for that platform, and approved, all three; a node that is
//!   not connected; a node that has too many questions open or does not read them; an answer in another node's name.

mod actor;
mod config;
mod handle;
mod messages;

pub use actor::Nodes;
pub use config::NodesConfig;
pub use handle::NodesHandle;
pub use messages::{Line, NodesError, NodesMsg, NodesWiring, Piece, Question, ToNode};
