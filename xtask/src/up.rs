//! `cargo xtask up`: from a fresh clone to a gateway that answers.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::options::Options;
use crate::{cargo, machine, setup};

pub fn run(options: &Options) -> Result<u8> {
    // With an engine, boxes are its containers, made from a static busybox; without one they are bubblewrap's.
    let sandbox = if machine::engine().is_some() {
        &setup::BUSYBOX
    } else {
        &setup::BUBBLEWRAP
    };
    let mut needs = vec![&setup::COMPILER, sandbox];
    // Who is not root has no other user for commands outside the sandbox: bubblewrap keeps the state out of their reach.
    if !machine::is_root() && sandbox.what != setup::BUBBLEWRAP.what {
        needs.push(&setup::BUBBLEWRAP);
    }
    let lacking = setup::provide(&needs, &[], options)?;
    if lacking.iter().any(|need| need.what == setup::COMPILER.what) {
        bail!("without a C compiler nothing can be built: apt-get install gcc libc6-dev");
    }
    for need in lacking {
        // The gateway itself then says NO_DRIVER with the command that mends it; everything else works.
        eprintln!("Going on without {}: no {}.", need.what, need.serves);
    }
    let built = cargo::cargo(&["build", "--release", "--package", "portcullis"])
        .status()
        .context("cargo could not be started")?;
    if !built.success() {
        bail!("the release build failed");
    }
    let binary = cargo::target()?.join("release/portcullis");
    let error = Command::new(&binary)
        .arg("up")
        .args(&options.names)
        .args(&options.rest)
        .exec();
    Err(error).with_context(|| format!("{} could not be started", binary.display()))
}
