//! The supervised concerns of Portcullis, one folder each.
//!
//! | room | owns |
//! |---|---|
//! | `store/` | `state.db`: conditional writes, its own threads |
//! | `supervision/` | the machinery: tree, places, gates, tasks, feeds |
#![forbid(unsafe_code)]

pub mod store;
pub mod supervision;
