//! The frames between a box's cell and the host.
