//! Boxes: where agents' commands run.
//!
//! - *Owns*: the sandbox driver, a box for each agent, session or share (a `sandbox/` child each), boxes that are ready for sessions, the
//!   workspace folders and `run/b/`.
//! - *Called by*: `exec`, through [`SandboxPoolHandle`].
//! - *Calls*: `store` and `audit`, for which user of the host each agent has; `audit`, for what leaves boxes that may reach hosts; a driver (bubblewrap, or a Docker engine).
//! - *On a crash*: its boxes' actors die with it, their runs end as `box lost`; on start every box that carries this gateway's label is
//!   ended and the drivers are tried again. Workspaces are not touched.
//! - *Refuses when*: no driver has proven itself (`NO_DRIVER`, with what each said), the driver is weaker than the agent's profile takes
//!   (`ISOLATION_TOO_WEAK`), its image cannot be used (`IMAGE_UNUSABLE`), no user of the host is left for the agent (`UIDS_EXHAUSTED`) or its folder is
//!   another's (`WORKSPACE_FOREIGN`) or holds more than it may (`WORKSPACE_FULL`), all boxes are in use, or a box cannot be made. There is no falling
//!   back to the host.
//!
//! Where the configuration names hosts, a box has a child more: its way out ([`egress`]).
//!
//! What a box must be is `wanted`'s to say, for making one, for placing a run in one, and for `sandbox.explain`.
//! Who a box is for is a [`Holder`]. A box that a session has had is nobody else's, ever; `warm` keeps unused ones for sessions to come.
//! Only the [`runner`], a process of its own, speaks to the container engine: this one, which reads strangers' frames, never does.
//!
//! What workspaces take of the disk is [`disk`]'s to count, and to end runs for.
//!
//! A box is made by a [`Driver`], from a [`BoxSpec`]; the cell in it dials `run/b/<id>/s` (`link`), and `runs` keeps the runs on that link.

mod actor;
mod boxes;
mod bubblewrap;
pub mod cell_file;
mod cgroup;
mod choose;
mod config;
mod containers;
pub mod disk;
pub mod docker;
pub mod driver;
mod drivers;
pub mod egress;
pub mod engine;
mod evidence;
mod folders;
mod found;
mod handle;
mod hardening;
mod holder;
pub mod image;
pub mod images;
mod input;
mod kept;
mod link;
mod listed;
mod mapped;
mod messages;
mod mounts;
mod native;
mod podman;
mod probe;
mod reown;
mod request;
pub mod runner;
mod runs;
mod sandbox;
pub mod spec;
mod standing;
mod sweep;
mod users;
mod walk;
mod wanted;
mod warm;

pub use actor::{SandboxPool, SandboxPoolWiring};
pub use choose::{Chosen, Kind};
pub use config::SandboxPoolConfig;
pub use containers::Containers;
pub use disk::Full;
pub use docker::Docker;
pub use driver::{Driver, DriverError, ProbeContext};
pub use egress::{HostQuestions, Ways};
pub use engine::EngineConfig;
pub use handle::SandboxPoolHandle;
pub use holder::{Holder, PoolKey, SessionKey, Whose};
pub use input::{NotTaken, Piece, RunInput, RunInputs, Taken};
pub use messages::{
    BoxProfile, BoxShown, Explained, ExplainedRefusal, OtherDriver, PoolError, PoolStatus, RunSpec,
    RunTicket, SandboxPoolMsg,
};
pub use mounts::{BoxMount, Node};
pub use native::Native;
pub use portcullis_cell::{Cause, INPUT_WINDOW, Input, MAX_INPUT, SIGNALS, Size, Stream};
pub use runner::{RunnerProgram, RunnerShown};
pub use runs::{Exited, RunEvent};
pub use spec::{BoxLimits, BoxSpec, FoundBox, StartedBox};
pub use standing::GivenUp;
pub use users::{Record, UserBook};
pub use warm::{Fresh, Price, WarmStatus};

#[cfg(test)]
pub(crate) mod tests;
