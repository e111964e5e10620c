//! A room is more than a folder: a line in the tree, a section in the config, a supervision test, a row in the crate's page.

use super::rust;
use super::{Source, file, found, none, room_names, tree};

/// The files of every room; tests.rs only where the room has tests of its own.
const FILES: &[&str] = &[
    "mod.rs",
    "messages.rs",
    "handle.rs",
    "actor.rs",
    "config.rs",
];

fn findings(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    let defaults: toml::Table = file(tree, "config/default.toml")
        .and_then(|source| source.text.parse().ok())
        .unwrap_or_default();
    let tree_code = file(tree, "src/tree.rs")
        .map(|source| rust::code_and_strings(&source.text))
        .unwrap_or_default();
    let page = file(tree, "actors/lib.rs")
        .map(|source| source.text.as_str())
        .unwrap_or_default();
    for room in room_names(tree) {
        let mut lacks = |what: &str| findings.push(format!("actors/{room}: {what}"));
        for name in FILES {
            if file(tree, &format!("actors/{room}/{name}")).is_none() {
                lacks(&format!("no {name}"));
            }
        }
        if file(tree, &format!("actors/{room}/mod.rs"))
            .is_some_and(|source| !source.text.starts_with("//!"))
        {
            lacks("mod.rs does not begin by saying what the room owns (a //! comment)");
        }
        if !rust::has_word(&tree_code, room) {
            lacks("no line in src/tree.rs");
        }
        // The pool's settings are those of the sandboxes.
        let section = room.strip_suffix("_pool").unwrap_or(room);
        // The sinks' are a part of the log's: [audit.sinks.NAME].
        let section = if section == "sinks" { "audit" } else { section };
        if !defaults.get(section).is_some_and(toml::Value::is_table) {
            lacks(&format!("no section [{section}] in config/default.toml"));
        }
        let test = file(tree, &format!("tests/supervision/{room}.rs"));
        // A connection is the edge's child: nothing breaks it by its own name.
        let child = format!("YoungestChild(\"{room}\")");
        let crashed = test.is_some_and(|source| crashes(&source.text, room))
            || tree.iter().any(|source| {
                source.path.starts_with("tests/long/") && source.text.contains(&child)
            });
        if !crashed {
            lacks("no test in tests/supervision/ that crashes it");
        }
        if !declares(&rust::code(page), room) {
            lacks("no mod in actors/lib.rs");
        }
        if !page
            .lines()
            .any(|line| line.starts_with("//!") && rust::has_word(line, room))
        {
            lacks("no row in the //! page of actors/lib.rs");
        }
    }
    findings.extend(untested_elsewhere(tree));
    findings
}

/// Rooms of the binary itself (`src/`): each is crashed by a test too, in a file of its name or by its name.
fn untested_elsewhere(tree: &[Source]) -> Vec<String> {
    let rooms = tree.iter().filter(|source| {
        let words = rust::code(&source.text);
        source.path.starts_with("src/") && words.contains("impl Room for ")
    });
    let names = rooms.filter_map(|source| {
        let name = source.text.split("const NAME: &'static str = \"").nth(1)?;
        name.split('"').next()
    });
    names
        .filter(|name| {
            let crash = format!("panic(\"{name}\"");
            !tree.iter().any(|source| {
                source.path.starts_with("tests/")
                    && !source.path.starts_with("tests/house/")
                    && source.text.contains(&crash)
            })
        })
        .map(|name| format!("src: the room {name} is crashed by no test"))
        .collect()
}

/// It is broken by its name, or seen back after one crash at least.
fn crashes(test: &str, room: &str) -> bool {
    test.contains(&format!("panic(\"{room}\", "))
        || test
            .split(&format!("recovered(\"{room}\", "))
            .skip(1)
            .any(|rest| rest.starts_with(|c: char| matches!(c, '1'..='9')))
}

fn declares(code: &str, name: &str) -> bool {
    let words: Vec<&str> = rust::words(code).map(|(_, word)| word).collect();
    words.windows(2).any(|pair| pair == ["mod", name])
}

#[test]
fn every_room_is_complete() {
    none(&findings(&tree()));
}

#[test]
fn a_room_that_lacks_one_thing_is_found() {
    let whole: Vec<Source> = [
        ("actors/vault/mod.rs", "//! Owns the secrets."),
        ("actors/vault/messages.rs", ""),
        ("actors/vault/handle.rs", ""),
        ("actors/vault/actor.rs", ""),
        ("actors/vault/config.rs", ""),
        ("src/tree.rs", "spec(\"vault\")"),
        ("config/default.toml", "[vault]\n"),
        (
            "tests/supervision/vault.rs",
            "house.recovered(\"vault\", 1)",
        ),
        ("actors/lib.rs", "//! | vault | secrets |\npub mod vault;"),
    ]
    .into_iter()
    .map(|(path, text)| Source::new(path, text))
    .collect();
    none(&findings(&whole));
    for (path, word) in [
        ("actors/vault/handle.rs", "no handle.rs"),
        ("src/tree.rs", "no line in src/tree.rs"),
        ("config/default.toml", "no section [vault]"),
        ("tests/supervision/vault.rs", "tests/supervision"),
        ("actors/lib.rs", "no row"),
    ] {
        let without: Vec<Source> = whole
            .iter()
            .filter(|source| source.path != path)
            .cloned()
            .collect();
        found(&findings(&without), word);
    }
    let silent = |path: &str, text: &str| -> Vec<Source> {
        whole
            .iter()
            .map(|source| {
                if source.path == path {
                    Source::new(path, text)
                } else {
                    source.clone()
                }
            })
            .collect()
    };
    for idle in ["", "house.recovered(\"vault\", 0)", "panic(\"vaults\", At)"] {
        found(
            &findings(&silent("tests/supervision/vault.rs", idle)),
            "that crashes it",
        );
    }
    found(
        &findings(&silent("actors/vault/mod.rs", "mod actor;")),
        "does not begin",
    );
    found(
        &findings(&silent("src/tree.rs", "// vault\nspec(\"vaults\")")),
        "no line in src/tree.rs",
    );
    found(
        &findings(&silent("actors/lib.rs", "//! | vault |")),
        "no mod",
    );
}

#[test]
fn a_room_of_the_binary_that_no_test_crashes_is_found() {
    let room = Source::new(
        "src/far/actor.rs",
        "impl Room for Far {\n    const NAME: &'static str = \"far\";\n}",
    );
    let with =
        |path: &str, text: &str| untested_elsewhere(&[room.clone(), Source::new(path, text)]);
    found(&with("tests/supervision/far.rs", ""), "far");
    none(&with("tests/long/x.rs", "window.panic(\"far\", At)"));
    found(&with("tests/long/x.rs", "panic(\"farther\", At)"), "far");
    found(&with("tests/house/x.rs", "panic(\"far\", At)"), "far");
}
