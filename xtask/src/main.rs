//! `cargo xtask`: the one door to set-up, test, lint, bench and the long runs.
//!
//! Std and anyhow only, so that it builds in seconds on a new machine, before anything else does.
#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod cgroup2;
mod clients;
mod demo;
mod fuzz;
mod guards;
mod lint;
mod long;
mod machine;
mod options;
mod setup;
mod steps;
mod test;
mod up;

use std::process::ExitCode;

use anyhow::Result;
use options::Options;

const HELP: &str = "\
cargo xtask COMMAND [OPTIONS] [-- ARGUMENTS]

  up      set up what is missing, build the release binary and start the gateway
          (arguments go to `portcullis up`: cargo xtask up -- --state DIR --port N)
  test    set up what is missing, then format, lints, licences and every test
          (cargo xtask test -- FILTER runs only the tests whose name holds FILTER)
  lint    format, clippy, cargo deny
  long    the full counts: kills, power, panics, faults, race, fuzz, guards, abuse, sockets, soak,
          cgroup2 (a virtual machine with control groups of version 2 only)
          (cargo xtask long [PART]; cargo xtask long fuzz -- --seconds N)
  bench   the figures, as ratios against a limit measured in the same run (cargo xtask bench [NAME])
  demo    show with a gateway of its own what is promised of vault and log (cargo xtask demo evidence)
  deny    licences, bans, sources, and advisories where the database can be reached
  help    this text

  --yes   do not ask before installing packages; so does CI=1, and a standard input that is no terminal
  --offline  install and fetch nothing: what is missing is listed at the end

Exit status: 0 all ran and passed; 1 something failed; 2 wrong usage; 3 all that ran passed, but in CI something could not run.
";

fn main() -> ExitCode {
    let code = run().unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        1
    });
    ExitCode::from(code)
}

/// The exit status that HELP promises.
fn run() -> Result<u8> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_else(|| "help".to_owned());
    let options = match Options::parse(words) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("xtask: {error}\n\n{HELP}");
            return Ok(2);
        }
    };
    std::env::set_current_dir(cargo::root()?)?;
    match command.as_str() {
        "up" => up::run(&options),
        "test" => test::run(&options),
        "lint" => lint::run(&options),
        "long" => long::run(&options),
        "bench" => bench::run(&options),
        "demo" => demo::run(&options),
        "deny" => lint::run_deny(&options),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(0)
        }
        other => {
            eprintln!("xtask: no command {other:?}\n\n{HELP}");
            Ok(2)
        }
    }
}
