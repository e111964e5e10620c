//! The supervised concerns of Portcullis, one folder each.
//!
//! | room | owns |
//! |---|---|
//! | `sandbox_pool/` | the sandbox driver, one box per agent, the agents' workspaces |
//! | `supervision/` | the machinery: tree, places, gates, tasks, feeds |
#![forbid(unsafe_code)]

pub mod sandbox_pool;
pub mod supervision;
