//! The supervised concerns of Portcullis, one folder each.
//!
//! | room | owns |
//! |---|---|
//! | `audit/` | the tamper-evident log, its writer thread, open intents, idempotency keys |
//! | `dashboard/` | one-time codes and sessions of the page |
//! | `supervision/` | the machinery: tree, places, gates, tasks, feeds |
#![forbid(unsafe_code)]

pub mod audit;
pub mod dashboard;
pub mod supervision;
