//! Whole paths, as a person walks them.

mod cli;
mod drivers;
mod engine;
mod evidence;
mod host_asks;
mod host_runs;
mod inherited;
mod kills;
mod leaves;
mod memory;
mod node_host;
mod node_runs;
mod nodes;
mod npm_client;
mod page;
mod peer_cli;
mod peer_far;
mod peer_node;
mod reach;
mod remote;
mod remote_cli;
mod starts;
mod trace;
mod vault;
mod walk;
mod watch;
