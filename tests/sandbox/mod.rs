//! Promises of the sandbox, each against the real engine or the real kernel.
mod copies;
mod docker;
