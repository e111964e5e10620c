//! Builds the cell, the static binary that is pid 1 of every box, so that a plain `cargo build` embeds it.
//!
//! A nested cargo with a target directory of its own: the outer one's lock is never waited for. `PORTCULLIS_CELL` is then the path for
//! `include_bytes!`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=Cargo.lock");
    println!("cargo:rerun-if-changed=cell");
    match build() {
        Ok(path) => {
            println!("cargo:rustc-env=PORTCULLIS_CELL={}", path.display());
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("the cell could not be built: {text}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let root = var("CARGO_MANIFEST_DIR")?;
    let out = PathBuf::from(var("OUT_DIR")?);
    let target = target(&var("TARGET")?);
    let folder = out.join("cell");
    let mut cargo = Command::new(var("CARGO")?);
    cargo
        .current_dir(&root)
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "portcullis-cell",
            "--features",
            "bin",
            "--bin",
            "portcullis-cell",
        ])
        // Named even where it is the host's: build scripts and macros then stay dynamic.
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&folder);
    // What the outer cargo (or clippy, or a coverage run) set for its own crates is not meant for this one.
    for name in [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "RUSTC",
    ] {
        cargo.env_remove(name);
    }
    cargo
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    let status = cargo.status().map_err(|error| format!("cargo: {error}"))?;
    if !status.success() {
        return Err(format!(
            "cargo build of portcullis-cell for {target}: {status}"
        ));
    }
    let built = folder.join(&target).join("release/portcullis-cell");
    let placed = out.join("portcullis-cell");
    fs::copy(&built, &placed).map_err(|error| format!("{}: {error}", built.display()))?;
    Ok(placed)
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set"))
}

/// The musl sibling of the target where its standard library is installed: a third of the size.
fn target(outer: &str) -> String {
    let musl = outer.replace("-gnu", "-musl");
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let library = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", &musl])
        .output();
    let installed = library.is_ok_and(|output| {
        output.status.success()
            && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
    });
    if installed { musl } else { outer.to_owned() }
}
