//! The cell: pid 1 of every box.
//!
//! - `portcullis-cell box --socket PATH --nonce HEX --dead-man SECONDS [--egress PATH]` is pid 1: it dials the host and starts one of the next
//!   per run; with `--egress` it passes what connects to 127.0.0.1 on to that socket.
//! - `portcullis-cell run` supervises one run after another: its subreaper, clock, output and end. Its control channel is its standard input.
//! - `portcullis-cell host --exe-fd N ...` is not in a box: it supervises one approved command of the host, as another user.
//! - `portcullis-cell probe` is a command in a box that tries to get out of it: a driver's proof.
//! - `portcullis-cell attempt` makes the attempts of `portcullis_cell::ATTEMPTS`, in a box or, as their control, outside of one.
//! - `portcullis-cell tty PROGRAM NAME ARGUMENT...` becomes a run's command that has a terminal.
//! - `portcullis-cell get PATH` and `put PATH MODE [replace]` are commands of a run that give a file out of the box, or take one.
//! - `portcullis-cell launch` is not in a box: as root it stages a box's folders, becomes the box's uid and executes bubblewrap.
#![deny(unsafe_code)]

mod channel;
mod copy;
mod escape;
mod host;
mod input;
mod launch;
mod output;
mod pid1;
mod probe;
mod relay;
mod rules;
mod runner;
mod start;
mod sys;
mod terminal;
mod tree;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let _ = arguments.next();
    let result = match arguments.next().as_deref() {
        Some("box") => pid1::main(arguments),
        Some("run") => runner::main(None, arguments.next()),
        Some("host") => host::options(arguments).and_then(|host| runner::main(Some(host), None)),
        Some("launch") => launch::main(arguments),
        Some("probe") => probe::main(arguments),
        Some("attempt") => return escape::main(arguments),
        Some("tty") => return terminal::main(arguments),
        Some("get") => return copy::get_main(arguments),
        Some("put") => return copy::put_main(arguments),
        _ => Err("usage: portcullis-cell box | run | tty | host | probe | attempt | launch | get | put (started by portcullis, not by hand)".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            // Not eprintln: it panics where nobody reads.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("portcullis-cell: {text}\n").as_bytes(),
            );
            ExitCode::from(125)
        }
    }
}
