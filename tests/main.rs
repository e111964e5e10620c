//! All integration tests, in one binary.
#![forbid(unsafe_code)]

mod e2e;
mod support;
