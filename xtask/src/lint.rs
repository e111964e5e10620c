//! Format, clippy, cargo deny: what needs no machine beside the toolchain.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::options::Options;
use crate::steps::Steps;
use crate::{cargo, machine};

const DENY_VERSION: &str = "^0.20";

pub fn run(options: &Options) -> Result<u8> {
    let mut steps = Steps::new()?;
    components(options)?;
    format_and_clippy(&mut steps)?;
    deny(&mut steps, options)?;
    Ok(steps.finish())
}

pub fn run_deny(options: &Options) -> Result<u8> {
    let mut steps = Steps::new()?;
    deny(&mut steps, options)?;
    Ok(steps.finish())
}

/// rustup's minimal profile comes without these two.
pub fn components(options: &Options) -> Result<()> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let there = cargo::cargo(&[tool, "--version"])
            .output()
            .is_ok_and(|out| out.status.success());
        if !there && !options.offline && machine::program("rustup").is_some() {
            Command::new("rustup")
                .args(["component", "add", component])
                .status()?;
        }
    }
    Ok(())
}

pub fn format_and_clippy(steps: &mut Steps) -> Result<()> {
    steps.run("format", &mut cargo::cargo(&["fmt", "--all", "--check"]))?;
    steps.run(
        "clippy",
        &mut cargo::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    Ok(())
}

/// cargo-deny on the path, or the one of an earlier run in the target folder.
pub fn deny_program() -> Option<PathBuf> {
    machine::program("cargo-deny").or_else(|| {
        let ours = cargo::target().ok()?.join("tools/bin/cargo-deny");
        ours.exists().then_some(ours)
    })
}

/// Licences, bans and sources always; advisories where their database can be fetched, and loudly not where it cannot.
pub fn deny(steps: &mut Steps, options: &Options) -> Result<()> {
    if deny_program().is_none() && !options.offline {
        let tools = cargo::target()?.join("tools");
        // Unoptimised: it is run once or twice, and builds in half the time.
        steps.run(
            "install cargo-deny",
            cargo::cargo(&[
                "install",
                "--locked",
                "--debug",
                "--version",
                DENY_VERSION,
                "cargo-deny",
            ])
            .arg("--root")
            .arg(tools),
        )?;
    }
    let Some(program) = deny_program() else {
        steps.could_not("cargo deny: not installed (cargo install --locked cargo-deny)".to_owned());
        return Ok(());
    };
    let checks = [
        "--workspace",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ];
    steps.run(
        "deny: licences, bans, sources",
        Command::new(&program).args(checks),
    )?;

    println!("\n== deny: advisories");
    let began = Instant::now();
    let output = Command::new(&program)
        .args(["--workspace", "check", "advisories"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    print!("{text}");
    if !output.status.success() && unreachable(&text) {
        steps.remark(
            "deny: advisories: the advisory database cannot be fetched from here".to_owned(),
        );
    } else {
        steps.note("deny: advisories", began, output.status.success());
    }
    Ok(())
}

/// Whether the failure is about fetching the database, not about what it says.
fn unreachable(text: &str) -> bool {
    text.contains("failed to fetch advisory database")
        || text.contains("failed to load advisory database")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_not_taken_for_a_database_that_cannot_be_reached() {
        assert!(unreachable(
            "[ERROR] failed to fetch advisory database https://example.org"
        ));
        assert!(!unreachable(
            "error[vulnerability]: a crate has a hole\nadvisories FAILED"
        ));
    }
}
