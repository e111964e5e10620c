//! The supervised concerns of Portcullis, one folder each.
//!
//! | room | owns |
//! |---|---|
//! | `audit/` | the tamper-evident log, its writer thread, open intents, idempotency keys |
//! | `audit/` | the tamper-evident log of every privileged act |
//! | `pairing/` | devices, their roles and tokens |
//! | `store/` | `state.db`: conditional writes, its own threads |
//! | `sandbox_pool/` | the sandbox driver, one box per agent, the agents' workspaces |
//! | `dashboard/` | one-time codes and sessions of the page |
//! | `exec/` | runs: plans, intents, processes |
//! | `supervision/` | the machinery: tree, places, gates, tasks, feeds |
//! | `vault/` | named secrets, sealed |
#![forbid(unsafe_code)]

pub mod audit;
pub mod act;
pub mod clock;
pub mod store;
pub mod sandbox_pool;
pub mod dashboard;
pub mod exec;
pub mod supervision;
pub mod vault;
