//! What tests share.
pub mod browser;
pub mod engine;
