//! The cell: pid 1 of every box.
//!
//! - `portcullis-cell box --socket PATH --nonce HEX --dead-man SECONDS` is pid 1: it dials the host and starts one of the next per run.
//! - `portcullis-cell run` supervises one run: its subreaper, clock, output and end. Its control channel is its standard input.
//! - `portcullis-cell launch` is not in a box: as root it stages a box's folders, becomes the box's uid and executes bubblewrap.
#![forbid(unsafe_code)]

mod channel;
mod launch;
mod output;
mod pid1;
mod rules;
mod runner;
mod start;
mod tree;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let _ = arguments.next();
    let result = match arguments.next().as_deref() {
        Some("box") => pid1::main(arguments),
        Some("run") => runner::main(),
        Some("launch") => launch::main(arguments),
        _ => Err("usage: portcullis-cell box | run | launch (started by portcullis, not by hand)".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("portcullis-cell: {text}");
            ExitCode::from(125)
        }
    }
}
