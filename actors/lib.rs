//! The supervised concerns of Portcullis, one folder each.
//!
//! | room | owns |
//! |---|---|
//! | `store/` | `state.db`: conditional writes, its own threads |
//! | `vault/` | named secrets, sealed |
//! | `pairing/` | devices, their roles and tokens |
//! | `supervision/` | the machinery: tree, places, gates, tasks, feeds |
#![forbid(unsafe_code)]

pub mod act;
pub mod audit;
pub mod clock;
pub mod store;
pub mod supervision;
pub mod vault;
