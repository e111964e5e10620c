//! Steps with their times, what could not run, and one last line that says how it went.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cargo;
use crate::options::in_ci;

/// Tests append a line here when this machine cannot run them (`tests/support`); a pass that hides it would be a lie.
pub const NOT_RUN_FILE: &str = "PORTCULLIS_NOT_RUN_FILE";

/// Sums of libtest's own result lines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
}

impl Counts {
    /// Adds what `test result: ok. 12 passed; 0 failed; 1 ignored; ...` says; other lines say nothing.
    pub fn read(&mut self, line: &str) {
        let Some(result) = line.trim_start().strip_prefix("test result: ") else {
            return;
        };
        let count = |word: &str| -> u64 {
            result
                .split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(word))
                .find_map(|number| number.trim().parse().ok())
                .unwrap_or(0)
        };
        self.passed += count("passed");
        self.failed += count("failed");
        self.ignored += count("ignored");
    }
}

/// Sorts the output of tests run with `--show-output`: what passing tests printed is noise but for the lines that begin
/// with `NOT RUN: ` or `FIGURE: `, which libtest would otherwise swallow.
#[derive(Debug, Default)]
struct TestOutput {
    in_successes: bool,
    not_run: Vec<String>,
}

impl TestOutput {
    fn is_shown(&mut self, line: &str) -> bool {
        match line.trim_end() {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            other if other.starts_with("test result: ") => self.in_successes = false,
            other => {
                if let Some(reason) = other.strip_prefix("NOT RUN: ") {
                    self.not_run.push(reason.to_owned());
                    return true;
                }
                if other.starts_with("FIGURE: ") {
                    return true;
                }
            }
        }
        !self.in_successes
    }
}

pub struct Steps {
    done: Vec<(String, Duration, bool)>,
    not_run: Vec<String>,
    remarks: Vec<String>,
    file: PathBuf,
    pub counts: Counts,
    began: Instant,
}

impl Steps {
    pub fn new() -> Result<Self> {
        let target = cargo::target()?;
        fs::create_dir_all(&target)?;
        let file = target.join("not-run.txt");
        fs::write(&file, "").with_context(|| format!("{} cannot be written", file.display()))?;
        Ok(Self {
            done: vec![],
            not_run: vec![],
            remarks: vec![],
            file,
            counts: Counts::default(),
            began: Instant::now(),
        })
    }

    /// Runs a command to its end with its output shown; a failure is noted, later steps still run.
    pub fn run(&mut self, name: &str, command: &mut Command) -> Result<bool> {
        let began = Instant::now();
        println!("\n== {name}");
        let status = command
            .env(NOT_RUN_FILE, &self.file)
            .status()
            .with_context(|| format!("{name} could not be started"))?;
        self.note(name, began, status.success());
        Ok(status.success())
    }

    /// The same, and hands each line of its output on.
    pub fn run_heard(
        &mut self,
        name: &str,
        command: &mut Command,
        mut hear: impl FnMut(&str),
    ) -> Result<bool> {
        let began = Instant::now();
        println!("\n== {name}");
        let mut child = command
            .env(NOT_RUN_FILE, &self.file)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} could not be started"))?;
        let output = child
            .stdout
            .take()
            .context("the child's output is not piped")?;
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            hear(&line);
        }
        let passed = child.wait()?.success();
        self.note(name, began, passed);
        Ok(passed)
    }

    /// The same for a test run: its result lines are counted as they pass by.
    pub fn run_tests(&mut self, name: &str, command: &mut Command) -> Result<Counts> {
        let began = Instant::now();
        println!("\n== {name}");
        let mut child = command
            .env(NOT_RUN_FILE, &self.file)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} could not be started"))?;
        let output = child
            .stdout
            .take()
            .context("the child's output is not piped")?;
        let mut counts = Counts::default();
        let mut reader = TestOutput::default();
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            if reader.is_shown(&line) {
                println!("{line}");
            }
            counts.read(&line);
        }
        self.not_run.extend(reader.not_run);
        let status = child.wait()?;
        self.counts.passed += counts.passed;
        self.counts.failed += counts.failed;
        self.counts.ignored += counts.ignored;
        self.note(name, began, status.success());
        Ok(counts)
    }

    pub fn note(&mut self, name: &str, began: Instant, passed: bool) {
        self.done.push((name.to_owned(), began.elapsed(), passed));
    }

    /// Something that this machine cannot run, and why.
    pub fn could_not(&mut self, line: String) {
        println!("NOT RUN: {line}");
        self.not_run.push(line);
    }

    /// Something outside this machine that could not be asked: said as loudly, but no fault of the machine.
    pub fn remark(&mut self, line: String) {
        println!("NOT RUN: {line}");
        self.remarks.push(line);
    }

    /// Prints the times, what did not run, and the summary line; returns the exit status.
    pub fn finish(mut self) -> u8 {
        let reported = fs::read_to_string(&self.file).unwrap_or_default();
        self.not_run.extend(reported.lines().map(str::to_owned));
        self.not_run.sort();
        self.not_run.dedup();
        println!();
        for (name, took, passed) in &self.done {
            let word = if *passed { "ok" } else { "FAILED" };
            println!("{:>8.1} s  {word:6}  {name}", took.as_secs_f64());
        }
        if !self.not_run.is_empty() {
            println!(
                "\n!!! {} could NOT RUN on this machine:",
                self.not_run.len()
            );
            for line in &self.not_run {
                println!("!!!   {line}");
            }
        }
        for line in &self.remarks {
            println!("\n!!! NOT RUN, and not counted: {line}");
        }
        let failed: Vec<&str> = self
            .done
            .iter()
            .filter(|step| !step.2)
            .map(|step| step.0.as_str())
            .collect();
        let code = exit_code(!failed.is_empty(), !self.not_run.is_empty(), in_ci());
        println!(
            "\n{}: {} tests passed, {} failed, {} ignored, {} not run, in {:.0} s{}",
            if code == 0 { "ok" } else { "FAILED" },
            self.counts.passed,
            self.counts.failed,
            self.counts.ignored,
            self.not_run.len(),
            self.began.elapsed().as_secs_f64(),
            if failed.is_empty() {
                String::new()
            } else {
                format!("; failed: {}", failed.join(", "))
            },
        );
        code
    }
}

/// 1 for a failure, 3 where a CI run left something out, else 0.
fn exit_code(failed: bool, left_out: bool, ci: bool) -> u8 {
    match (failed, left_out && ci) {
        (true, _) => 1,
        (false, true) => 3,
        (false, false) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up_and_other_lines_do_not_count() {
        let mut counts = Counts::default();
        counts.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s");
        counts
            .read("test result: FAILED. 2 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out");
        counts.read("test gateway::answers ... ok");
        counts.read("a program that prints 9 passed; 9 failed");
        assert_eq!(
            counts,
            Counts {
                passed: 14,
                failed: 5,
                ignored: 1
            }
        );
    }

    #[test]
    fn what_a_passing_test_says_it_could_not_run_is_heard() {
        let mut output = TestOutput::default();
        let text = "running 2 tests\n..\nsuccesses:\n\n---- a::b stdout ----\nnoise\nFIGURE: 3 of 3\nNOT RUN: no engine\n\n\nsuccesses:\n    a::b\n\nfailures:\n\n---- c stdout ----\nwhy\ntest result: FAILED. 1 passed; 1 failed";
        let shown: Vec<&str> = text.lines().filter(|line| output.is_shown(line)).collect();
        assert_eq!(output.not_run, ["no engine"]);
        assert!(
            !shown.contains(&"noise")
                && shown.contains(&"why")
                && shown.contains(&"FIGURE: 3 of 3")
                && shown.contains(&"NOT RUN: no engine")
        );
        assert!(shown.contains(&"test result: FAILED. 1 passed; 1 failed"));
    }

    #[test]
    fn what_was_left_out_fails_in_ci_only() {
        assert_eq!(exit_code(false, true, true), 3);
        assert_eq!(exit_code(false, true, false), 0);
        assert_eq!(exit_code(true, true, true), 1);
        assert_eq!(exit_code(false, false, true), 0);
    }
}
