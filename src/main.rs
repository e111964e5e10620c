//! The `portcullis` binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use portcullis::cli::{self, Command};
use portcullis::{gateway, node, runner};

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return ExitCode::from(code),
    };
    match &cli.command {
        Command::Gateway(args) => gateway::run(&cli.global, args, false),
        Command::Up(args) => gateway::run(&cli.global, args, true),
        Command::Runner(args) => runner::run(&cli.global, args),
        Command::Node(cli::Node::Run(args)) => node::run(&cli.global, args),
        _ => cli::run(&cli),
    }
}
