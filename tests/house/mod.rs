//! The house: rules of the tree itself, read from its files.
//!
//! Each rule is a function over file contents that returns findings, so that each is also tried on a bad tree: a check
//! that cannot fail is no check.

mod codes;
mod dependencies;
mod docs;
mod order;
mod profiles;
mod promises;
mod rooms;
mod rust;
mod sharing;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

/// One file of the tree: its path from the root with `/`, and its text.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: String,
    pub text: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    pub fn is_rust(&self) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|end| end == "rs")
    }

    /// Whether the whole file is test code.
    pub fn is_test(&self) -> bool {
        ["tests/", "benches/", "fuzz/"]
            .iter()
            .any(|folder| self.path.starts_with(folder))
            || self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
    }

    /// The room whose folder holds the file: `actors/vault/actor.rs` is in `vault`.
    pub fn room(&self) -> Option<&str> {
        let (room, _) = self.path.strip_prefix("actors/")?.split_once('/')?;
        Some(room)
    }
}

/// Every text file of the tree that a commit could hold.
pub fn tree() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![];
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))
            .expect("the tree can be read")
            .flatten()
        {
            let name = entry
                .file_name()
                .into_string()
                .expect("file names are UTF-8");
            let path = folder.join(&name);
            let kind = entry.file_type().expect("the kind of a file can be read");
            if kind.is_dir() && !matches!(name.as_str(), ".git" | "target" | "node_modules") {
                folders.push(path);
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(entry.path())
            {
                found.push(Source {
                    path: path.to_str().expect("paths are UTF-8").to_owned(),
                    text,
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 20, "the tree was not found");
    found
}

/// The file with that path, if it is there.
pub fn file<'a>(tree: &'a [Source], path: &str) -> Option<&'a Source> {
    tree.iter().find(|source| source.path == path)
}

/// The folders of `actors/` that are rooms: all but the two that rooms stand on.
pub fn room_names(tree: &[Source]) -> Vec<&str> {
    let mut names: Vec<&str> = tree
        .iter()
        .filter_map(Source::room)
        .filter(|room| !matches!(*room, "supervision" | "store"))
        .collect();
    names.dedup();
    names
}

/// Fails with every finding, one a line.
#[track_caller]
pub fn none(findings: &[String]) {
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        findings.len(),
        findings.join("\n")
    );
}

/// A bad tree must be found, and what is found must say so.
#[track_caller]
pub fn found(findings: &[String], word: &str) {
    assert!(
        findings.iter().any(|line| line.contains(word)),
        "{word:?} is not among the findings {findings:?}"
    );
}

/// The name of every test in the tree.
pub fn all_tests() -> std::collections::BTreeSet<String> {
    tree()
        .iter()
        .filter(|source| source.is_rust())
        .flat_map(|source| promises::tests(&source.text))
        .collect()
}
