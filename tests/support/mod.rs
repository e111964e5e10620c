//! What tests share.
pub mod browser;
pub mod collector;
pub mod engine;
pub mod gateway;
pub mod hook;
pub mod net;
pub mod npm;
pub mod podman;
pub mod protobuf;
pub mod rootless;
pub mod sshd;
pub mod ws;
