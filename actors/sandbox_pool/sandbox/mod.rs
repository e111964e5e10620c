//! One box: of an agent, of a session, of those that share it, or ready for a session.
//!
//! - *Owns*: the box's control socket, its link and the runs in it, through one task.
//! - *Called by*: the pool, which started it.
//! - *Calls*: the driver; where the box may reach hosts, its way out is a child of its own.
//! - *On a crash*: its runs end as `box lost` and its box is ended by the pool; it is never restarted, the agent's next run makes another.
//! - *Refuses when*: the box could not be started, or is over: the orders' answers are dropped and the pool makes a new one.

mod actor;
mod handle;
mod messages;

pub use actor::{Sandbox, SandboxWiring, WayOut};
pub use handle::SandboxHandle;
