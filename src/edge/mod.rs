//! The doors: listeners, HTTP, the budget of those who have not said who they are, and a connection per socket.
//!
//! - *Owns*: the listening sockets, every socket before its upgrade, the list of connections and their principals.
//! - *Called by*: the kernel.
//! - *Calls*: connections (control only), pairing (does a new session's credential still hold?).
//! - *On a crash*: every connection ends and clients connect again; the listening sockets live on outside.
//! - *Refuses when*: sockets in all are over the limit. Over the budget of strangers the oldest silent one of the
//!   fullest address makes room; a newcomer is never refused for strangers.

mod accept;
mod actor;
mod budget;
mod handle;
mod http;
mod lines;
mod listen;
mod looks;
mod peer;
mod places;
mod proxy;
mod rpc;

pub use actor::{Edge, EdgeWiring};
pub use handle::EdgeHandle;
#[doc(hidden)]
pub use http::{HEADER_MAX, is_last};
pub use http::{Http, serve as serve_http};
#[doc(hidden)]
pub use lines::Strict;
pub use listen::{Doors, ListenError};
pub use looks::Looks;
pub use peer::{Runs, sub_uids};
pub use proxy::Again;
pub use rpc::Rpc;
