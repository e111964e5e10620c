//! Start to ready beside existing state, and resident memory two seconds later, vault unlock included.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench waits for its child processes"
)]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use support::{State, line, median};

const STARTS: usize = 11;

fn main() -> Result<()> {
    let state = State::new()?;
    // The first start makes the state; the figure is about the later ones.
    let (first, took) = state.start()?;
    drop(first);
    println!(
        "first start, state made: {:.1} ms",
        took.as_secs_f64() * 1e3
    );
    let (mut ready, mut bare) = (vec![], vec![]);
    for _ in 0..STARTS {
        let (running, took) = state.start()?;
        drop(running);
        ready.push(took.as_secs_f64() * 1e3);
        let began = Instant::now();
        Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .arg("version")
            .stdout(Stdio::null())
            .status()?;
        bare.push(began.elapsed().as_secs_f64() * 1e3);
    }
    println!(
        "the process alone (portcullis version): {:.1} ms",
        median(bare)
    );
    line(
        "start to ready beside existing state, median",
        median(ready),
        "ms",
        150.0,
    );

    let (running, _) = state.start()?;
    std::thread::sleep(Duration::from_secs(2));
    line(
        "resident 2 s after start",
        running.resident()? as f64 / 1024.0,
        "MiB",
        20.0,
    );
    Ok(())
}
