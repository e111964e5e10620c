//! Every stable code of the registry is met by a test: a code that no test sees is a code that may never come.

use std::collections::BTreeSet;

use super::rust;
use super::{Source, file, found, none, tree};

const REGISTRY: &str = "core/codes.rs";
/// Codes that the wire itself prescribes (wire.md sections 4 to 6), clients know them: they are none of ours.
const OF_THE_WIRE: &[&str] = &["DEVICE_AUTH_"];
/// How a run ended, in the audit log only: no answer's code.
const OF_THE_LOG: &[&str] = &["CANCELLED"];

fn findings(tree: &[Source]) -> Vec<String> {
    let Some(registry) = file(tree, REGISTRY).or_else(|| file(tree, "core/codes/mod.rs")) else {
        return vec![];
    };
    let names = names(&registry.text);
    if names.is_empty() {
        return vec![format!(
            "{}: no row `NAME, \"WIRE\", ...` found",
            registry.path
        )];
    }
    let mut met = BTreeSet::new();
    for source in tree.iter().filter(|source| {
        source.is_rust() && source.path != registry.path && source.path != "tests/house/codes.rs"
    }) {
        let text = rust::code_and_strings(&source.text);
        let text = if source.is_test() || source.path.starts_with("tests/") {
            text
        } else {
            only_tests(&text)
        };
        met.extend(
            rust::words(&text)
                .map(|(_, word)| word.to_owned())
                .filter(|word| names.contains(word)),
        );
    }
    names
        .difference(&met)
        .map(|name| format!("{}: no test meets {name}", registry.path))
        .collect()
}

/// The rows `NAME, "WIRE", ...` of the table that the registry's macro makes constants of.
fn names(text: &str) -> BTreeSet<String> {
    rust::code_and_strings(text)
        .lines()
        .filter_map(|line| line.trim().split_once(", \""))
        .map(|(name, _)| name)
        .filter(|name| {
            name.len() > 2
                && name
                    .bytes()
                    .all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'))
        })
        .map(str::to_owned)
        .collect()
}

/// What stands behind the first `#[cfg(test)]`: by habit the last thing in a file.
fn only_tests(text: &str) -> String {
    text.find("#[cfg(test)]")
        .map_or_else(String::new, |at| text[at..].to_owned())
}

#[test]
fn every_code_is_met_by_a_test() {
    none(&findings(&tree()));
}

#[test]
fn a_code_that_no_test_meets_is_found() {
    let registry = Source::new(
        REGISTRY,
        "codes! {\n    OVERLOADED, \"UNAVAILABLE\", true, 1, \"wait\";\n    SEALED, \"UNAVAILABLE\", false, 4, \"no\";\n}",
    );
    let look = |path: &str, text: &str| findings(&[registry.clone(), Source::new(path, text)]);
    found(
        &look("tests/a.rs", "assert_eq!(code, \"OVERLOADED\");"),
        "SEALED",
    );
    found(
        &look("actors/vault/actor.rs", "refuse(codes::SEALED, OVERLOADED)"),
        "SEALED",
    );
    found(&look("tests/a.rs", "// SEALED OVERLOADED"), "SEALED");
    none(&look(
        "tests/a.rs",
        "assert_eq!((a, b), (\"OVERLOADED\", codes::SEALED.name));",
    ));
    none(&look(
        "core/a.rs",
        "#[cfg(test)]\nmod tests { fn f() { OVERLOADED; \"SEALED\"; } }",
    ));
    found(&findings(&[Source::new(REGISTRY, "")]), "no row");
}

/// Every code that a refusal says (`fn code`), and every one that begins its text, is in the registry: elsewhere it would
/// come out as `INTERNAL`.
fn unregistered(tree: &[Source]) -> Vec<String> {
    let Some(registry) = file(tree, REGISTRY) else {
        return vec![];
    };
    let names = names(&registry.text);
    let mut findings = vec![];
    for source in tree.iter().filter(|source| {
        let folders = ["core/", "actors/", "src/"];
        let ours = folders.iter().any(|above| source.path.starts_with(above));
        ours && source.is_rust() && !source.is_test() && source.path != REGISTRY
    }) {
        let text = rust::code_and_strings(&source.text);
        let said = text.split("fn code(").skip(1).flat_map(|body| {
            let end = body.find("\n    }").unwrap_or(body.len());
            let strings = body[..end].split('"').skip(1).step_by(2);
            strings.map(str::to_owned).collect::<Vec<_>>()
        });
        let begun = text.split("#[error(").skip(1).filter_map(|rest| {
            let (code, _) = rest.trim_start().strip_prefix('"')?.split_once(": ")?;
            Some(code.to_owned())
        });
        for code in said.chain(begun.filter(|code| code.contains('_'))) {
            let is_code = |byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_');
            let of_the_wire = OF_THE_WIRE.iter().any(|start| code.starts_with(start));
            if code.bytes().all(is_code)
                && !names.contains(&code)
                && !of_the_wire
                && !OF_THE_LOG.contains(&code.as_str())
            {
                findings.push(format!("{}: {code} is not in {REGISTRY}", source.path));
            }
        }
    }
    findings
}

#[test]
fn every_code_that_a_refusal_says_is_registered() {
    none(&unregistered(&tree()));
}

#[test]
fn a_code_that_nobody_registered_is_found() {
    let registry = Source::new(
        REGISTRY,
        "codes! {\n    SEALED, \"UNAVAILABLE\", false, 4, \"no\";\n}",
    );
    let look = |text: &str| unregistered(&[registry.clone(), Source::new("actors/a.rs", text)]);
    let says = |code: &str| {
        format!("fn code(&self) -> &'static str {{\n match self {{ A => \"{code}\" }}\n    }}")
    };
    none(&look(&says("SEALED")));
    none(&look(&says("DEVICE_AUTH_NONCE_REQUIRED")));
    found(&look(&says("SEALED_TWICE")), "SEALED_TWICE");
    found(
        &look("#[error(\"STATE_GONE: {0}\")] A(String),"),
        "STATE_GONE",
    );
    none(&look(
        "#[error(\"no state: {0}\")] A(String), \"STATE_GONE\"",
    ));
}
