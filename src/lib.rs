//! Portcullis.

pub mod identity;
