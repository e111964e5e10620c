//! The fuzz targets: built with the compiler's own coverage counters on any toolchain, each run for a while, as many at
//! once as there are processors.
//!
//! All code is safe Rust, so there is no sanitizer and no nightly compiler: a finding is a panic, an overflow, a hang or
//! too much memory.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::steps::Steps;
use crate::{cargo, machine};

/// Seconds for each target, where nothing else is said.
pub const SECONDS: u64 = 600;

/// What cargo-fuzz passes too.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg",
    "fuzzing",
];

/// Builds all targets and runs each for so many seconds. What one finds lies in `target/fuzz/found/`.
pub fn run(steps: &mut Steps, seconds: u64) -> Result<()> {
    if machine::program("c++").is_none() {
        steps.could_not("fuzz: no C++ compiler (apt-get install g++)".to_owned());
        return Ok(());
    }
    let target = cargo::target()?.join("fuzz");
    let host = host()?;
    let mut build = cargo::cargo(&["build", "--release", "--quiet", "--features", "gateway"]);
    build
        .args(["--manifest-path", "fuzz/Cargo.toml", "--target", &host])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", FLAGS.join(" "))
        .current_dir(cargo::root()?);
    if !steps.run("build fuzz", &mut build)? {
        return Ok(());
    }
    let seeds = cargo::root()?.join("fuzz/corpus");
    let names = targets(&seeds)?;
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    for group in names.chunks(at_once) {
        println!("\n== fuzz {}: {seconds} s", group.join(", "));
        let began = Instant::now();
        let mut running = vec![];
        for name in group {
            let work = target.join("work").join(name);
            let found = target.join("found");
            fs::create_dir_all(&work)?;
            fs::create_dir_all(&found)?;
            let said = fs::File::create(target.join(format!("{name}.log")))?;
            let mut fuzz = Command::new(target.join(&host).join("release").join(name));
            fuzz.arg(format!("-max_total_time={seconds}"))
                .args(["-timeout=10", "-rss_limit_mb=2048", "-max_len=8192"])
                .args(["-verbosity=0", "-print_final_stats=1"])
                .arg(format!("-artifact_prefix={}/{name}-", found.display()))
                .arg(&work)
                .arg(seeds.join(name))
                .stdout(said.try_clone()?)
                .stderr(said);
            running.push((name, fuzz.spawn().with_context(|| format!("fuzz {name}"))?));
        }
        for (name, mut fuzz) in running {
            let is_good = fuzz.wait()?.success();
            print!(
                "{}",
                fs::read_to_string(target.join(format!("{name}.log")))?
            );
            steps.note(&format!("fuzz {name}"), began, is_good);
        }
    }
    Ok(())
}

/// Each has a folder of seeds (tests/long/fuzz.rs checks it).
fn targets(seeds: &PathBuf) -> Result<Vec<String>> {
    let mut names = vec![];
    for entry in fs::read_dir(seeds).with_context(|| format!("{}", seeds.display()))? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Named, so that build scripts and macros are built without the counters.
fn host() -> Result<String> {
    let text = machine::says("rustc", &["-vV"]).context("rustc does not run")?;
    match text.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(host) => Ok(host.to_owned()),
        None => bail!("rustc does not name its host"),
    }
}
