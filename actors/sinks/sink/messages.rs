//! A sink is asked nothing.

/// To one sink: there is no such message.
pub enum SinkMsg {}
