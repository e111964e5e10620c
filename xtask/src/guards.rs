//! A test is worth what it finds: the guard of an advisory, or what keeps a promise, is switched off in a copy of this tree, and its
//! test must fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::cargo;
use crate::steps::{Counts, Steps};

/// The lists, beside those of the advisories and the promises.
const LISTS: [&str; 2] = ["tests/security/guards.txt", "tests/house/promises.txt"];

#[derive(Debug, PartialEq, Eq)]
struct Guard<'a> {
    test: &'a str,
    package: &'a str,
    file: &'a str,
    on: &'a str,
    off: &'a str,
}

/// Blocks of five lines, after one of words.
fn read(list: &str) -> Result<Vec<Guard<'_>>> {
    let blocks = list.split("\n\n").skip(1);
    blocks
        .map(|block| {
            let word = |name: &str| {
                let mut lines = block.lines();
                let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                found.with_context(|| format!("no {name} in {block:?}"))
            };
            Ok(Guard {
                test: word("test")?,
                package: word("package")?,
                file: word("file")?,
                on: word("on")?,
                off: word("off")?,
            })
        })
        .collect()
}

impl Guard<'_> {
    /// The file's text without the guard.
    fn switched_off(&self, text: &str) -> Result<String> {
        if text.matches(self.on).count() != 1 {
            bail!("{} does not stand once in {}", self.on, self.file);
        }
        Ok(text.replacen(self.on, self.off, 1))
    }
}

pub fn run(steps: &mut Steps) -> Result<()> {
    let root = cargo::root()?;
    let lists = LISTS.map(|list| fs::read_to_string(root.join(list)));
    let lists = lists.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut guards = vec![];
    for list in &lists {
        guards.extend(read(list)?);
    }
    guards.sort_by_key(|guard| guard.package);
    let work = cargo::target()?.join("guards");
    let tree = work.join("tree");
    copy(&root, &tree)?;
    let mut packages: Vec<&str> = guards.iter().map(|guard| guard.package).collect();
    packages.dedup();
    for package in packages {
        let names = guards.iter().filter(|guard| guard.package == package);
        let names: Vec<&str> = names.map(|guard| guard.test).collect();
        let name = format!("guards of {package} on");
        let began = Instant::now();
        println!("\n== {name}");
        let (text, counts) = test(&work, package, &names)?;
        let all_pass = counts.failed == 0 && counts.passed == names.len() as u64;
        if !all_pass {
            println!("{text}");
        }
        steps.note(&name, began, all_pass);
    }
    for guard in guards {
        let began = Instant::now();
        println!("\n== {}: {} off", guard.test, guard.on);
        let file = tree.join(guard.file);
        let text = fs::read_to_string(&file)?;
        fs::write(&file, guard.switched_off(&text)?)?;
        let ran = test(&work, guard.package, &[guard.test]);
        fs::write(&file, text)?;
        let (text, counts) = ran?;
        // What does not build has failed for no reason of the test's.
        let is_found = (counts.passed, counts.failed) == (0, 1);
        if !is_found {
            println!("{text}");
        }
        steps.note(
            &format!("without its guard fails {}", guard.test),
            began,
            is_found,
        );
    }
    Ok(())
}

/// The tests of this name, in the copy: what they said, and how they went.
fn test(work: &Path, package: &str, names: &[&str]) -> Result<(String, Counts)> {
    let output = cargo::cargo(&["test", "--quiet", "--lib", "--package", package, "--"])
        .args(names)
        .current_dir(work.join("tree"))
        .env("CARGO_TARGET_DIR", work.join("target"))
        .output()
        .context("cargo test could not be started")?;
    let text =
        [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned());
    let text = text.concat();
    let mut counts = Counts::default();
    text.lines().for_each(|line| counts.read(line));
    Ok((text, counts))
}

/// What git knows of, as it lies here. A file that is the same already keeps its time, and is not built again.
fn copy(root: &Path, tree: &Path) -> Result<()> {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root)
        .output()
        .context("git could not be started")?;
    for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        let (from, to): (PathBuf, PathBuf) = (root.join(name), tree.join(name));
        // Listed, and deleted here.
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(&from, &to).with_context(|| format!("{}", to.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "Words.\nMore.\n\ntest: a\npackage: p\nfile: f.rs\non: if x {\noff: if y {\n";

    #[test]
    fn a_guard_is_switched_off_where_it_stands_once() {
        let guards = read(TEXT).unwrap();
        assert_eq!(guards.len(), 1);
        assert_eq!(
            guards[0],
            Guard {
                test: "a",
                package: "p",
                file: "f.rs",
                on: "if x {",
                off: "if y {",
            }
        );
        assert_eq!(guards[0].switched_off("a if x { b").unwrap(), "a if y { b");
        assert!(guards[0].switched_off("a").is_err());
        assert!(guards[0].switched_off("if x { if x {").is_err());
        assert!(read(&TEXT.replace("on: ", "")).is_err());
    }
}
