//! `cargo xtask bench [name]`: each figure beside a limit measured in the same run.

use std::fs;

use anyhow::Result;

use crate::cargo;
use crate::options::Options;
use crate::steps::Steps;

pub fn run(options: &Options) -> Result<u8> {
    let mut benches: Vec<String> = fs::read_dir("benches")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".rs").map(str::to_owned))
        .collect();
    benches.sort();
    if let Some(unknown) = options.names.iter().find(|name| !benches.contains(name)) {
        eprintln!("no bench {unknown:?}; there are: {}", benches.join(", "));
        return Ok(2);
    }
    let mut steps = Steps::new()?;
    // Builds the release binary too: a bench gets its path from cargo.
    let mut build = cargo::cargo(&["bench", "--package", "portcullis", "--benches", "--no-run"]);
    if !steps.run("release build", &mut build)? {
        return Ok(steps.finish());
    }
    for bench in benches
        .iter()
        .filter(|bench| options.names.is_empty() || options.names.contains(bench))
    {
        let mut command = cargo::cargo(&[
            "bench",
            "--quiet",
            "--package",
            "portcullis",
            "--bench",
            bench,
            "--",
        ]);
        command.args(&options.rest);
        steps.run(bench, &mut command)?;
    }
    Ok(steps.finish())
}
