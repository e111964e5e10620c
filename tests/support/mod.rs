//! What tests share.
pub mod browser;
pub mod engine;
pub mod gateway;
pub mod ws;
