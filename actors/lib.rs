//! The supervised concerns of Portcullis, one folder each.
//!
//! | room | owns |
//! |---|---|
//! | `dashboard/` | one-time codes and sessions of the page |
//! | `supervision/` | the machinery: tree, places, gates, tasks, feeds |
#![forbid(unsafe_code)]

pub mod dashboard;
pub mod supervision;
