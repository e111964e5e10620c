//! Runs: the only way to a process.
//!
//! - *Owns*: the runs under way, a `run/` child each (its flow is plain sequential code in `run/flow.rs`), and the processes of host runs.
//! - *Called by*: `connection` (`exec.run`, `exec.cancel`), through [`ExecHandle`]; `notices` starts a program of `[plugins]` with [`ProgramGround`], which is
//!   no run: nobody asks for it, and it takes no order.
//! - *Calls*: `approval` (what policy and people say), `sandbox_pool` (boxes), `audit` (intent before, outcome after).
//! - *On a crash*: its runs die with it and their processes are ended; the next life records `unknown` for what they left open, and a
//!   caller's channel that closes without an end says the same. Nothing else is re-read: pending plans are approval's. A run's own crash is
//!   recorded here as its outcome.
//! - *Refuses when*: an agent or connection has too many runs, the plan breaks a rule, policy or a person says no, the key was used before,
//!   the intent cannot be recorded, the session has ended, or what would run is not what was decided on.

mod actor;
mod config;
pub mod descent;
mod handle;
mod host;
mod hosted;
mod judge;
mod keep;
mod messages;
mod open;
mod operands;
mod program;
mod reach;
mod run;
mod user;

pub use actor::Exec;
pub use config::{ExecConfig, HostConfig};
pub use descent::is_descendant_of_daemon;
pub use handle::ExecHandle;
pub use hosted::{Hosted, HostedNews, HostedPlan, HostedRequest, HostedRun};
pub use messages::{
    Accepted, AgentLimits, Attached, ExecEvent, ExecMsg, ExecRefusal, ExecWiring, JudgeAsk,
    OnlyAsk, PLAN_PARTS, RunRequest, RunResult, Spared,
};
pub use portcullis_cell::Stream;
pub use program::{ProgramEnd, ProgramGround, ProgramRun};
pub use user::{uid_of, uids};

#[cfg(test)]
mod tests;
