//! `cargo xtask test`: set-up, then everything that must hold, on the dev profile.

use anyhow::{Result, bail};

use crate::options::Options;
use crate::setup::{self, Need};
use crate::steps::Steps;
use crate::{cargo, clients, lint, machine};

const NEEDS: &[&Need] = &[
    &setup::COMPILER,
    &setup::BUBBLEWRAP,
    &setup::BUSYBOX,
    &setup::DOCKER,
    &setup::DEBOOTSTRAP,
    &setup::PODMAN,
    &setup::STRACE,
    &setup::CHROMIUM,
    &setup::NODE,
    &setup::PYTHON,
    &setup::OPENSSH,
];

pub fn run(options: &Options) -> Result<u8> {
    let mut steps = Steps::new()?;
    prepare(&mut steps, options)?;
    if options.names.is_empty() && options.rest.is_empty() {
        lint::components(options)?;
        lint::format_and_clippy(&mut steps)?;
        lint::deny(&mut steps, options)?;
        tests(&mut steps, "tests", &[])?;
    } else {
        let filter: Vec<&str> = options
            .names
            .iter()
            .chain(&options.rest)
            .map(String::as_str)
            .collect();
        println!("Only the tests that match {filter:?}: no format, no lints, no licences.");
        if tests(&mut steps, "tests", &filter)? == 0 {
            steps.could_not(format!("no test has {filter:?} in its name"));
        }
    }
    Ok(steps.finish())
}

/// Lists, asks, installs; what stays missing is noted as not run.
pub fn prepare(steps: &mut Steps, options: &Options) -> Result<()> {
    if !machine::is_root() {
        bail!(
            "the tests start engines and boxes and act as other users: run them as root, on a machine or in a container of their own"
        );
    }
    let mut also = vec![];
    if !clients::installed() {
        also.push(format!(
            "{:32} npm install into the target folder (800 MB, half a minute)",
            clients::names()
        ));
    }
    if lint::deny_program().is_none() {
        also.push(format!(
            "{:32} cargo install into the target folder (minutes)",
            "cargo-deny"
        ));
    }
    if !also.is_empty() || !setup::missing(NEEDS).is_empty() {
        also.push(
            "The tests start gateways, a Docker engine with a folder and socket of its own, and a browser; each is stopped by the test that started it.".to_owned(),
        );
    }
    for need in setup::provide(NEEDS, &also, options)? {
        if need.what == setup::COMPILER.what {
            bail!("without a C compiler nothing can be built: apt-get install gcc libc6-dev");
        }
        steps.could_not(format!("{}: {} is missing", need.serves, need.what));
    }
    if !options.offline {
        clients::install(steps)?;
    }
    Ok(())
}

/// All tests of the workspace whose name matches; returns how many ran.
pub fn tests(steps: &mut Steps, name: &str, filter: &[&str]) -> Result<u64> {
    cargo_test(steps, name, &[], filter, &[])
}

/// The same at full counts, optimised, and one after the other: their figures are of one test alone.
pub fn long(steps: &mut Steps, name: &str, filter: &[&str]) -> Result<u64> {
    let one = &["--test-threads=1"];
    cargo_test(steps, name, &["--release"], filter, one)
}

fn cargo_test(
    steps: &mut Steps,
    name: &str,
    profile: &[&str],
    filter: &[&str],
    more: &[&str],
) -> Result<u64> {
    // Built first and timed apart, so that a slow test is not hidden behind a slow build.
    let mut build = cargo::cargo(&["test", "--workspace", "--no-run", "--quiet"]);
    if !steps.run(&format!("build {name}"), build.args(profile))? {
        return Ok(1);
    }
    let mut command = cargo::cargo(&["test", "--workspace", "--no-fail-fast", "--quiet"]);
    command
        .args(profile)
        .args(["--", "--show-output"])
        .args(more)
        .args(filter)
        .env(clients::CLIENTS_DIR, cargo::target()?.join("clients"));
    if !profile.is_empty() {
        command.env("PORTCULLIS_LONG", "1");
    }
    let counts = steps.run_tests(name, &mut command)?;
    Ok(counts.passed + counts.failed)
}
