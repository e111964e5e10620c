//! What the pages say must be there: commands, options, rooms, their order, tests, keys, files.

use std::collections::BTreeSet;

use clap::{Command, CommandFactory as _};
use portcullis::cli::Cli;
use portcullis::tree::ORDER;

use super::promises::tests as tests_of;
use super::rust;
use super::{Source, file, found, none, room_names, tree};

const README: &str = "README.md";
const ARCHITECTURE: &str = "ARCHITECTURE.md";
const SECURITY: &str = "SECURITY.md";
const CHANGELOG: &str = "CHANGELOG.md";
const PAGES: &[&str] = &[README, ARCHITECTURE, SECURITY, CHANGELOG];
/// What a first reader is told to type.
const FIRST: &[&str] = &["up", "test"];

fn pages(tree: &[Source]) -> impl Iterator<Item = &Source> {
    PAGES.iter().filter_map(|path| file(tree, path))
}

/// What stands between back ticks, and every line of a code block.
fn code(text: &str) -> Vec<&str> {
    let mut found = vec![];
    let mut in_block = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.push(line);
        } else {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

/// The words behind `program` in a piece of code, up to what is passed on or piped.
fn words_after<'a>(piece: &'a str, program: &str) -> Option<Vec<&'a str>> {
    let start = piece.trim_start().trim_start_matches("$ ");
    let rest = start.strip_prefix(program)?.strip_prefix(' ')?;
    Some(
        rest.split_whitespace()
            .map(|word| word.trim_end_matches([',', ';', ')']))
            .take_while(|word| !matches!(*word, "--" | "|" | "<" | "#"))
            .collect(),
    )
}

/// Pages that are missing.
fn missing(tree: &[Source]) -> Vec<String> {
    PAGES
        .iter()
        .filter(|path| file(tree, path).is_none())
        .map(|path| format!("{path} is missing"))
        .collect()
}

/// `cargo xtask WORD`: an arm of xtask's one match; the two first commands stand in the README.
fn xtask(tree: &[Source]) -> Vec<String> {
    let main = file(tree, "xtask/src/main.rs")
        .map(|source| rust::code_and_strings(&source.text))
        .unwrap_or_default();
    let mut findings = vec![];
    let mut told = BTreeSet::new();
    for page in pages(tree) {
        for piece in code(&page.text) {
            let Some(&word) = words_after(piece, "cargo xtask")
                .as_ref()
                .and_then(|w| w.first())
            else {
                continue;
            };
            if page.path == README {
                told.insert(word.to_owned());
            }
            if !main.contains(&format!("\"{word}\" =>")) {
                findings.push(format!("{}: xtask has no command {word:?}", page.path));
            }
        }
    }
    for word in FIRST.iter().filter(|word| !told.contains(**word)) {
        findings.push(format!("{README}: does not name `cargo xtask {word}`"));
    }
    findings
}

/// `portcullis WORD [WORD] [--option]`: in the program's own tree of commands, with those options.
fn commands(tree: &[Source], program: &Command) -> Vec<String> {
    let mut findings = vec![];
    for page in pages(tree) {
        for piece in code(&page.text) {
            let Some(words) = words_after(piece, "portcullis") else {
                continue;
            };
            // `portcullis 0.1.0, up 28 s` is what it prints.
            if words.first().is_none_or(|word| word.contains('.')) {
                continue;
            }
            let mut at = program;
            for word in words {
                if let Some(option) = word.strip_prefix("--") {
                    let option = option.split('=').next().unwrap_or_default();
                    let is_known = [at, program]
                        .iter()
                        .flat_map(|command| command.get_arguments())
                        .any(|argument| argument.get_long() == Some(option));
                    if !is_known {
                        findings.push(format!(
                            "{}: `portcullis {}` has no option --{option}",
                            page.path,
                            at.get_name()
                        ));
                    }
                } else if word != "help" && at.has_subcommands() {
                    let Some(next) = at.find_subcommand(word) else {
                        findings.push(format!("{}: no command in `{piece}`", page.path));
                        break;
                    };
                    at = next;
                } else {
                    break;
                }
            }
        }
    }
    findings
}

/// The page of the house: the one order as it is, and every room.
fn architecture(tree: &[Source], order: &[&str]) -> Vec<String> {
    let Some(page) = file(tree, ARCHITECTURE) else {
        return vec![];
    };
    let mut findings = vec![];
    let arrow = " \u{2192} ";
    let stated: Vec<Vec<&str>> = page
        .text
        .lines()
        .filter(|line| line.contains(arrow))
        .map(|line| line.trim().split(arrow).collect())
        .collect();
    if stated != [order] {
        findings.push(format!(
            "{ARCHITECTURE}: states {stated:?}, the tree has {order:?}"
        ));
    }
    for room in room_names(tree).into_iter().chain(["store", "supervision"]) {
        if !page.text.contains(&format!("`actors/{room}/`")) {
            findings.push(format!("{ARCHITECTURE}: does not name actors/{room}/"));
        }
    }
    findings
}

/// Every name with an underscore that the security page cites is a test, or a word of the settings.
fn citations(tree: &[Source]) -> Vec<String> {
    let Some(page) = file(tree, SECURITY) else {
        return vec![];
    };
    let known: BTreeSet<String> = tree
        .iter()
        .filter(|source| source.is_rust())
        .flat_map(|source| tests_of(&source.text))
        .collect();
    let settings = file(tree, "config/default.toml")
        .map(|source| source.text.as_str())
        .unwrap_or_default();
    let mut findings = vec![];
    let mut cited = 0;
    for piece in code(&page.text) {
        let is_name = piece.contains('_')
            && piece
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !is_name {
            continue;
        }
        if known.contains(piece) {
            cited += 1;
        } else if !rust::has_word(settings, piece) {
            findings.push(format!(
                "{SECURITY}: {piece} is neither a test nor a setting"
            ));
        }
    }
    if cited == 0 {
        findings.push(format!("{SECURITY}: cites no test"));
    }
    findings
}

/// `[text](path)`, `[section] key = value` and `error[CODE]`.
fn references(tree: &[Source]) -> Vec<String> {
    let codes = file(tree, "core/codes.rs")
        .map(|source| source.text.as_str())
        .unwrap_or_default();
    let settings: toml::Table = file(tree, "config/default.toml")
        .and_then(|source| source.text.parse().ok())
        .unwrap_or_default();
    let mut findings = vec![];
    for page in pages(tree) {
        for target in page.text.split("](").skip(1) {
            let target = target.split([')', '#']).next().unwrap_or_default();
            if !target.contains("://") && file(tree, target).is_none() {
                findings.push(format!("{}: {target} is no file", page.path));
            }
        }
        for code in page.text.split("error[").skip(1) {
            let code = code.split(']').next().unwrap_or_default();
            if !rust::has_word(codes, code) {
                findings.push(format!("{}: {code} is no code", page.path));
            }
        }
        for piece in code(&page.text) {
            let Some((section, rest)) = piece.strip_prefix('[').and_then(|p| p.split_once(']'))
            else {
                continue;
            };
            if section.contains(['<', ' ']) || section.starts_with("agents.") {
                continue;
            }
            let mut at = Some(&settings);
            for name in section.split('.') {
                // A name that somebody chooses: `*` has the keys of all.
                let name = if name == "NAME" { "*" } else { name };
                at = at.and_then(|table| table.get(name)?.as_table());
            }
            let key = rest.split_whitespace().next();
            if !at.is_some_and(|table| key.is_none_or(|key| table.contains_key(key))) {
                findings.push(format!("{}: `{piece}` is no setting", page.path));
            }
        }
    }
    findings
}

/// The newest entry is of the version that is built.
fn changelog(tree: &[Source], version: &str) -> Vec<String> {
    let is_there =
        file(tree, CHANGELOG).is_none_or(|page| page.text.contains(&format!("\n## [{version}]")));
    if is_there {
        vec![]
    } else {
        vec![format!("{CHANGELOG}: no entry for {version}")]
    }
}

#[test]
fn the_pages_name_what_is_there() {
    let tree = tree();
    none(&missing(&tree));
    none(&xtask(&tree));
    none(&commands(&tree, &Cli::command()));
    none(&references(&tree));
    none(&changelog(&tree, env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_architecture_states_the_tree_as_it_is() {
    none(&architecture(&tree(), ORDER));
}

#[test]
fn every_test_that_the_security_page_cites_exists() {
    none(&citations(&tree()));
}

#[test]
fn a_page_that_is_missing_is_found() {
    found(&missing(&[]), "SECURITY.md is missing");
}

#[test]
fn a_command_that_is_not_there_is_found() {
    let main = Source::new(
        "xtask/src/main.rs",
        "match x { \"up\" => a, \"test\" => b }",
    );
    let readme = |text: &str| vec![Source::new(README, text), main.clone()];
    none(&xtask(&readme(
        "`cargo xtask up`\n```\ncargo xtask test  # all\n```",
    )));
    found(&xtask(&readme("`cargo xtask up`")), "cargo xtask test");
    found(&xtask(&readme("`cargo xtask fly`")), "no command \"fly\"");
    let program = Cli::command();
    let look = |text: &str| commands(&readme(text), &program);
    none(&look(
        "```\n$ portcullis exec --agent demo -- sh --nothing\nportcullis 0.1.0, up\n```\n`portcullis help exec`",
    ));
    none(&look(
        "`portcullis audit verify --offline` and `portcullis up --port 1`",
    ));
    found(&look("`portcullis fly`"), "no command");
    found(&look("`portcullis audit fly`"), "no command");
    found(
        &look("`portcullis audit verify --online`"),
        "no option --online",
    );
}

#[test]
fn a_page_that_states_another_order_is_found() {
    let room = Source::new("actors/vault/mod.rs", "");
    let look = |text: &str| {
        let page = Source::new(ARCHITECTURE, text);
        architecture(&[page, room.clone()], &["store", "vault"])
    };
    let folders = "`actors/vault/` `actors/store/` `actors/supervision/`";
    none(&look(&format!("store \u{2192} vault\n{folders}")));
    found(
        &look(&format!("vault \u{2192} store\n{folders}")),
        "the tree has",
    );
    found(&look("store \u{2192} vault\n"), "actors/vault/");
}

#[test]
fn a_citation_of_nothing_is_found() {
    let code = Source::new("core/a.rs", "#[test]\nfn it_holds() {}\nfn it_helps() {}");
    let settings = Source::new("config/default.toml", "[a]\nlocal_trust = true");
    let page = |text: &str| Source::new(SECURITY, text);
    let look = |text: &str| citations(&[code.clone(), settings.clone(), page(text)]);
    none(&look("`it_holds` with `local_trust`"));
    found(&look("`it_helps`"), "neither a test");
    found(&look("nothing"), "cites no test");
    let look = |text: &str| references(&[code.clone(), settings.clone(), page(text)]);
    none(&look("`[a] local_trust = false` [there](core/a.rs) `[a]`"));
    found(&look("[there](core/b.rs)"), "is no file");
    found(&look("`[a] foreign_trust`"), "is no setting");
    found(&look("`[b]`"), "is no setting");
    found(&look("error[NOTHING]"), "is no code");
    found(
        &changelog(&[Source::new(CHANGELOG, "\n## [0.1.0]")], "0.2.0"),
        "0.2.0",
    );
}
