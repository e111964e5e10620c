//! Boxes: where agents' commands run.
pub mod cell_file;
mod cgroup;
mod driver;
mod folders;
mod link;
mod native;
mod probe;
mod runs;
mod spec;

pub use driver::{Driver, DriverError, ProbeContext};
pub use native::Native;
pub use runs::{Exited, RunEvent};
pub use spec::{BoxLimits, BoxSpec, FoundBox, StartedBox};

#[cfg(test)]
mod tests;
