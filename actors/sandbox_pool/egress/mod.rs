//! The way out of one box that may reach hosts: a proxy on the host, behind a socket of the box's own.
//!
//! - *Owns*: `run/b/<id>/e` and what goes through it. Who dials it is that box: the socket is the identity, there is no token to steal.
//! - *Called by*: nobody; the box's cell passes 127.0.0.1 on to the socket.
//! - *Calls*: `audit`, before each dial; `vault`, for the authority's key and for secrets; the system's resolver; the hosts that the rules name.
//! - *On a crash*: what goes through it ends, nothing is re-read; its box starts another at the same place.
//! - *Refuses when*: core's rules do not allow the host and port, an address of the name is not the world's, a tunnel does not begin with a TLS
//!   hello to the same name, the record cannot be made, or the box asks too often.
//!
//! What is inside a [`tunnel`] is the client's and the server's. For hosts that the operator names TLS is opened ([`terminate`]) with a
//! certificate of the gateway's [`authority`]: one request of HTTP/1.1, into which a secret of the vault is put, and its answer without it.
//!
//! A host that is not on the list is refused, or a person is asked ([`asks`]): a news upwards, and a word that comes down once it is durable.
//!
//! An allow is an event, durable before the dial, and its end is noted with the bytes that went through. It is no intent: that must have an
//! outcome, and tunnels of an hour would hold back retention and fill each segment's list of open intents.

mod actor;
mod asks;
mod authority;
mod bundle;
mod connection;
mod messages;
mod opened;
mod plain;
mod pump;
mod record;
mod resolve;
mod search;
mod terminate;
mod tunnel;
mod wiring;

pub use actor::Egress;
pub use asks::HostQuestions;
pub use authority::{Authority, Opener};
pub use messages::EgressMsg;
pub use resolve::Resolver;
pub use wiring::{EgressLimits, EgressWiring, Ways};
