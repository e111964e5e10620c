//! Clients of other makers that the tests drive, unmodified.

use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::steps::Steps;
use crate::{cargo, machine};

/// The client whose wire we keep, and the version the promise names.
pub const OPENCLAW_NODE: &str = "openclaw-node@0.14.0";
/// Where the tests find it: a folder that holds `node_modules`.
pub const CLIENTS_DIR: &str = "PORTCULLIS_TEST_CLIENTS";

pub fn installed() -> bool {
    cargo::target().is_ok_and(|target| {
        let manifest = target.join("clients/node_modules/openclaw-node/package.json");
        fs::read_to_string(manifest).is_ok_and(|text| text.contains("\"version\": \"0.14.0\""))
    })
}

/// Installs the client into the target folder, without running any script of a package.
pub fn install(steps: &mut Steps) -> Result<()> {
    if installed() {
        return Ok(());
    }
    if machine::program("npm").is_none() {
        return Ok(());
    }
    let folder = cargo::target()?.join("clients");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("package.json"), "{\"private\":true}\n")?;
    let mut command = Command::new("npm");
    command
        .args([
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
            OPENCLAW_NODE,
        ])
        .current_dir(&folder);
    steps.run("install openclaw-node", &mut command)?;
    Ok(())
}
