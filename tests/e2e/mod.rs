//! Whole paths, as a person walks them.

mod cli;
mod host_runs;
mod engine;
mod inherited;
mod kills;
mod npm_client;
mod page;
mod starts;
