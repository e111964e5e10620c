//! What no file may hold, and what files must be there.

use super::rust;
use super::{Source, file, found, none, tree};

const LONGEST: usize = 800;

/// Too long, unfinished, switched off.
fn finished(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for source in tree.iter().filter(|source| source.is_rust()) {
        let lines = source.text.lines().count();
        if lines > LONGEST {
            findings.push(format!("{}: {lines} lines, over {LONGEST}", source.path));
        }
        let code = rust::code(&source.text);
        for mark in ["todo", "unimplemented"] {
            for (at, _) in rust::words(&code).filter(|(_, word)| *word == mark) {
                if code[at + mark.len()..].starts_with('!') {
                    findings.push(format!(
                        "{}:{}: {mark}!",
                        source.path,
                        rust::line(&code, at)
                    ));
                }
            }
        }
        if let Some(at) = code.find("#[ignore") {
            findings.push(format!(
                "{}:{}: a test that is switched off",
                source.path,
                rust::line(&code, at)
            ));
        }
        let marks = [
            ["FIX", "ME"].concat(),
            ["TO", "DO"].concat(),
            ["XX", "X"].concat(),
        ];
        for (number, line) in source.text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|mark| rust::has_word(line, mark)) {
                findings.push(format!("{}:{}: {mark}", source.path, number + 1));
            }
        }
    }
    findings
}

/// Paths that exist on the machine of whoever wrote the file, and nowhere else.
fn machine_paths(tree: &[Source], root: &str, home: Option<&str>) -> Vec<String> {
    // A clone in a place like /tmp says nothing about what else stands there.
    const COMMON: &[&str] = &[
        "",
        "/tmp",
        "/home",
        "/root",
        "/src",
        "/build",
        "/builds",
        "/opt",
        "/srv",
        "/usr/src",
        "/var/tmp",
        "/workspace",
    ];
    let mut marks = vec![format!("{root}/")];
    if let Some((parent, _)) = root.rsplit_once('/')
        && !COMMON.contains(&parent)
    {
        marks.push(format!("{parent}/"));
    }
    marks.extend(
        home.filter(|home| home.len() > 1)
            .map(|home| format!("{home}/")),
    );
    let mut findings = vec![];
    for source in tree.iter().filter(|source| source.path != "Cargo.lock") {
        for (number, line) in source.text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|mark| names(line, mark)) {
                findings.push(format!(
                    "{}:{}: {mark} is a path of this machine",
                    source.path,
                    number + 1
                ));
            }
        }
    }
    findings
}

/// Whether the mark stands in the line as the beginning of a path, not inside a longer one.
fn names(line: &str, mark: &str) -> bool {
    line.match_indices(mark).any(|(at, _)| {
        !line[..at].ends_with(|before: char| {
            before.is_alphanumeric() || matches!(before, '_' | '-' | '.' | '~' | '}')
        })
    })
}

fn licences(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for (path, mark) in [
        ("LICENSE-APACHE", "Apache License"),
        ("LICENSE-MIT", "Permission is hereby granted"),
        ("Cargo.toml", "license = \"Apache-2.0 OR MIT\""),
        (".ci/run", "cargo xtask test"),
        ("deny.toml", "[licenses]"),
    ] {
        if !file(tree, path).is_some_and(|source| source.text.contains(mark)) {
            findings.push(format!("{path}: missing, or without {mark:?}"));
        }
    }
    findings
}

#[test]
fn no_file_is_too_long_or_unfinished() {
    none(&finished(&tree()));
}

#[test]
fn no_file_names_a_path_of_this_machine() {
    none(&machine_paths(
        &tree(),
        env!("CARGO_MANIFEST_DIR"),
        std::env::var("HOME").ok().as_deref(),
    ));
}

#[test]
fn licences_and_the_check_command_are_there() {
    none(&licences(&tree()));
}

#[test]
fn an_unfinished_file_is_found() {
    let look = |text: &str| finished(&[Source::new("core/a.rs", text)]);
    found(&look(&"\n".repeat(LONGEST + 1)), "801 lines");
    found(&look("fn f() { todo!() }"), "todo!");
    found(
        &look("fn f() { unimplemented!(\"later\") }"),
        "unimplemented!",
    );
    found(
        &look("#[test]\n#[ignore = \"slow\"]\nfn f() {}"),
        "switched off",
    );
    found(&look(&["// FIX", "ME later"].concat()), "core/a.rs:1");
    none(&look(
        "// todo!() and #[ignore] in a comment are words\nfn f() { \"todo!\" }",
    ));
}

#[test]
fn a_path_of_a_machine_is_found() {
    let look = |text: &str| {
        machine_paths(
            &[Source::new("a.md", text)],
            "/there/clone",
            Some("/people/ann"),
        )
    };
    found(&look("see /there/clone/src"), "/there/clone/");
    found(&look("see /there/notes.md"), "/there/");
    found(&look("\"/people/ann/key\""), "/people/ann/");
    none(&look("/usr/bin/x and in/there/ and /theresa"));
    let in_tmp = machine_paths(&[Source::new("a.md", "/tmp/x")], "/tmp/clone", None);
    none(&in_tmp);
}

#[test]
fn a_missing_licence_is_found() {
    found(&licences(&[]), "LICENSE-MIT");
}
