//! What a connection is told, and what it tells the edge.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use portcullis_core::audit::Entry;
use portcullis_core::auth::{Door, Principal, Whose};
use portcullis_core::protocol::Encoding;
use portcullis_core::protocol::frame::ErrorBody;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::io::Io;
use crate::auth::{Bearer, Peer};
use crate::supervision::Allowance;

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
    /// End for a newcomer's sake, unless its `connect` has come already.
    MakeRoom,
    /// It asked for its own end: let the answer out first.
    Linger,
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
    /// It is in: who, the connection's name, and whom to tell that it is on the list, and what its messages
    /// hold room of.
    Admitted(
        u64,
        Arc<Principal>,
        Arc<str>,
        oneshot::Sender<Arc<Allowance>>,
    ),
}

/// An order to end sessions.
#[derive(Debug, Clone)]
pub struct EndSessions {
    /// Which.
    pub whose: Whose,
    /// The close reason (4001).
    pub reason: &'static str,
    /// The connection that asks: told to end after its answer, and not waited for.
    pub but: String,
}

/// The certificate that TLS is spoken with: its files are the process's own, and no room's.
pub trait Certificate: Send + Sync {
    /// What it is; null where TLS is not spoken.
    fn facts(&self) -> Value;

    /// Reads it again, recorded as this entry says. An error is the answer; what was served is served on.
    fn reload(&self, by: Entry)
    -> Pin<Box<dyn Future<Output = Result<(), ErrorBody>> + Send + '_>>;
}

/// The list of all connections, for the methods: it lies in the edge, below them.
pub trait Sessions: Send + Sync {
    /// Ends sessions, and answers when they are gone. `false`: not all were seen to go in time.
    fn end(&self, order: EndSessions) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}
