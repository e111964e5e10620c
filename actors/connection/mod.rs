//! One socket: the handshake, then requests and events until it ends.
//!
//! - *Owns*: the socket (in its one I/O task, unsplit), the requests under way on it, and the word that ends it.
//! - *Called by*: the edge, which hands it the socket and tells it to close.
//! - *Calls*: auth once, then every other room through [`Methods`].
//! - *On a crash*: this socket is lost and no other; the client connects again. Its runs end.
//! - *Refuses when*: the first frame is no `connect`, a frame is too large, too many requests are under way, the
//!   credential was changed, or the client does not read.

mod actor;
mod answer;
mod asks;
mod audits;
mod boxes;
mod config;
mod decisions;
mod devices;
mod echo;
mod handle;
mod idle;
mod inputs;
mod invokes;
mod io;
mod messages;
mod methods;
mod nodes;
mod peer;
mod policy;
mod runs;
mod scan;
mod secrets;
mod serve;
mod shake;
mod tls;
mod vault;

pub use actor::{Connection, ConnectionShared, ConnectionWiring};
pub use answer::Params;
pub use config::ConnectionConfig;
pub use echo::echo;
pub use handle::{CAPACITY, ConnectionHandle};
pub use idle::IdleBudget;
pub use io::{Io, Stream};
pub use messages::{
    Accepted, Certificate, CloseOrder, ConnectionMsg, ConnectionNews, EndSessions, Sessions,
};
pub use methods::{About, Methods};
