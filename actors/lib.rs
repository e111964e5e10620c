//! The supervised concerns of Portcullis.
#![forbid(unsafe_code)]

pub mod store;
