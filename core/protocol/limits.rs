//! The numbers of the wire (wire.md section 1).

use crate::auth::{Role, ScopeSet};

/// A frame before authentication, bytes.
pub const PREAUTH_FRAME: usize = 64 * 1024;
/// A frame after authentication, bytes (`policy.maxPayload`).
pub const FRAME: usize = 25 * 1024 * 1024;
/// What may wait unsent for one socket, bytes (`policy.maxBufferedBytes`).
pub const BUFFERED: usize = 50 * 1024 * 1024;
/// Between two `tick` events, ms.
pub const TICK_MS: u64 = 30_000;
/// Between two WebSocket pings, and to the pong's deadline, ms.
pub const PING_MS: u64 = 25_000;
/// Frames behind `connect` that may wait for its answer.
pub const EARLY_FRAMES: usize = 15;
/// From a socket's first moment to a good `connect`, ms.
pub const HANDSHAKE_MS: u64 = 15_000;
/// A device signature's age either way, ms.
pub const SIGNATURE_SKEW_MS: u64 = 120_000;
/// Requests under way on one connection.
pub const IN_FLIGHT: usize = 32;
/// A frame of an agent after authentication, bytes: agents are many and trusted least, and ask with few words.
pub const AGENT_FRAME: usize = 1024 * 1024;
/// The largest frame of this role after authentication, bytes. Who may ask for nothing but `health` says no more than
/// before: anybody on this machine with the token is that.
pub fn frame_max(role: Role, scopes: &ScopeSet) -> usize {
    match role {
        Role::Agent => AGENT_FRAME,
        Role::Operator if scopes.is_empty() => PREAUTH_FRAME,
        Role::Operator | Role::Node => FRAME,
    }
}

/// Messages that have begun and are not there yet, bytes: of one device, agent, user or address, on all its connections.
pub const UNDER_WAY_OF_ONE: u64 = 64 * 1024 * 1024;
/// The same of all together.
pub const UNDER_WAY: u64 = 512 * 1024 * 1024;
/// A message of so many bytes counts towards neither.
pub const UNDER_WAY_FREE: u64 = 8 * 1024;
/// Empty fragments of one message.
pub const EMPTY_FRAGMENTS: u32 = 64;
/// What of a message that has begun must come in between two pings, bytes: else it is no message but a way to hold room.
pub const FRAGMENT_PACE: u64 = 64 * 1024;
/// Frames that ask nothing (pings, pongs, what is passed over): so many at once, and so many a second after that.
pub const IDLE_FRAMES: u32 = 256;
/// See [`IDLE_FRAMES`].
pub const IDLE_FRAMES_PER_SECOND: u32 = 16;
/// Wrong-role calls in a row before the socket is closed.
pub const WRONG_ROLE_CALLS: u32 = 10;
/// A close reason, bytes (RFC 6455 5.5: 125 less the code).
pub const CLOSE_REASON: usize = 123;
/// Nesting of params, in either encoding.
pub const JSON_DEPTH: usize = 32;
/// The protocol number.
pub const PROTOCOL: u64 = 4;
/// The oldest protocol that a node or a probe may offer as its newest.
pub const PROTOCOL_NODE_MIN: u64 = 3;
