//! What may be asked of a box's way out.

/// Nothing: whoever wants something connects to its socket.
pub enum EgressMsg {}
