//! The supervised concerns of Portcullis, one folder each.
//!
//! | room | owns |
//! |---|---|
//! | `supervision/` | the machinery: tree, places, gates, tasks, feeds |
#![forbid(unsafe_code)]

pub mod supervision;
