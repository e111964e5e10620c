//! What authentication is asked, and what it answers.

use std::net::IpAddr;

use portcullis_core::auth::{Door, Principal};
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::protocol::connect::Checked;
use portcullis_core::token::Token;

use crate::supervision::Reply;

/// What the kernel and the edge know of the other end; nothing here is the client's word.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Of the socket; none on a Unix socket.
    pub ip: Option<IpAddr>,
    /// The uid that the kernel names.
    pub uid: Option<u32>,
    /// That uid maps to an operator, and the process does not descend from one of our runs.
    pub is_operator: bool,
    /// A loopback socket, no proxy header, a local Host, no foreign Origin.
    pub is_local: bool,
    /// An `Origin` header was there: a browser.
    pub has_origin: bool,
}

/// A `connect` that has arrived.
#[derive(Debug)]
pub struct Arrival {
    /// Its params.
    pub checked: Checked,
    /// This socket's challenge.
    pub nonce: String,
    /// Where it came in.
    pub door: Door,
    /// The other end.
    pub peer: Peer,
}

/// Let in.
pub struct Admitted {
    /// As whom.
    pub principal: Principal,
    /// A device's new token, shown this once, and when it was issued (Unix ms).
    pub device_token: Option<(Token, u64)>,
}

/// To the room.
pub enum AuthMsg {
    /// Decide.
    Connect(Box<Arrival>, Reply<Admitted, ConnectRefusal>),
    /// From the room's own flow: somebody was refused, for this reason.
    Refused {
        /// The stable word.
        reason: String,
        /// Where.
        door: Door,
    },
}
