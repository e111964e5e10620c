//! What a connection is told, and what it tells the edge.

use portcullis_core::auth::{Door, Principal};
use portcullis_core::protocol::Encoding;
use tokio::time::Instant;

use super::io::Io;
use crate::auth::{Bearer, Peer};

/// A socket after its upgrade: from here on nobody knows of HTTP.
#[derive(Debug)]
pub struct Accepted {
    /// The socket.
    pub io: Io,
    /// Where it came in.
    pub door: Door,
    /// Who is at the other end, as far as the kernel knows.
    pub peer: Peer,
    /// The token of its upgrade request.
    pub bearer: Option<Bearer>,
    /// How its messages are written: agreed upon with the upgrade.
    pub encoding: Encoding,
    /// By when it must have authenticated.
    pub until: Instant,
}

/// How to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseOrder {
    /// WebSocket close code.
    pub code: u16,
    /// Close reason.
    pub reason: String,
}

/// To a connection.
pub enum ConnectionMsg {
    /// Here is your socket.
    Adopt(Box<Accepted>),
    /// End, before the next frame is answered.
    Close(CloseOrder),
    /// From its own timer: the other end does not take the close frame.
    Abort,
}

/// News for the edge, through a channel: a connection has no handle upward.
#[derive(Debug)]
pub enum ConnectionNews {
    /// A whole `connect` has arrived: it is no silent socket any more.
    Speaks(u64),
    /// It is turned away; its goodbye is still to come.
    Refused(u64),
    /// It is in.
    Admitted(u64, Box<Principal>),
}
