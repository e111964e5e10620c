//! `cargo xtask bench [name]`: each figure beside a limit measured in the same run.

use std::fmt::Write as _;
use std::fs;

use anyhow::Result;

use crate::options::Options;
use crate::steps::Steps;
use crate::{cargo, setup};

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
    let needs = [
        &setup::COMPILER,
        &setup::BUBBLEWRAP,
        &setup::BUSYBOX,
        &setup::DOCKER,
    ];
    for need in setup::provide(&needs, &[], options)? {
        steps.could_not(format!("{}: {} is missing", need.serves, need.what));
    }
    // Builds the release binary too: a bench gets its path from cargo.
    let mut build = cargo::cargo(&["bench", "--package", "portcullis", "--benches", "--no-run"]);
    if !steps.run("release build", &mut build)? {
        return Ok(steps.finish());
    }
    let mut figures = Figures::default();
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
        steps.run_heard(bench, &mut command, |line| figures.hear(line))?;
    }
    print!("{}", figures.table());
    Ok(steps.finish())
}

/// The lines of all benches that name a target, or what could not be measured.
#[derive(Debug, Default)]
struct Figures {
    lines: Vec<String>,
    met: usize,
    missed: usize,
    absent: usize,
}

impl Figures {
    /// A figure ends with the word that `benches/support` writes; other lines explain.
    fn hear(&mut self, line: &str) {
        let count = match line.trim_end() {
            line if line.starts_with("NOT MEASURED") => &mut self.absent,
            line if !line.contains(" target ") => return,
            line if line.ends_with(" NOT MET") => &mut self.missed,
            line if line.ends_with(" met") => &mut self.met,
            _ => return,
        };
        *count += 1;
        self.lines.push(line.trim_end().to_owned());
    }

    /// A missed target is said, and is no failure: figures of a busy machine prove nothing.
    fn table(&self) -> String {
        let mut text = "\nfigures\n".to_owned();
        for line in &self.lines {
            text.push_str("  ");
            text.push_str(line);
            text.push('\n');
        }
        let Self {
            met,
            missed,
            absent,
            ..
        } = self;
        // Into a string: cannot fail.
        let _ = writeln!(
            text,
            "{met} targets met, {missed} not met, {absent} not measured"
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_from_what_explains_them() {
        let mut figures = Figures::default();
        for line in [
            "health at depth 1       1.20 x    target <= 1.35   met",
            "durable append          0.35 x    target >= 0.7    NOT MET",
            "the process alone: 3.0 ms",
            "NOT MEASURED: dockerd is not installed",
        ] {
            figures.hear(line);
        }
        let table = figures.table();
        assert_eq!((figures.met, figures.missed, figures.absent), (1, 1, 1));
        assert!(table.ends_with("1 targets met, 1 not met, 1 not measured\n"));
        assert!(!table.contains("process alone"));
    }
}
