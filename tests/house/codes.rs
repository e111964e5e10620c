//! Every stable code of the registry is met by a test: a code that no test sees is a code that may never come.

use std::collections::BTreeSet;

use super::rust;
use super::{Source, file, found, none, tree};

const REGISTRY: &str = "core/codes.rs";

fn findings(tree: &[Source]) -> Vec<String> {
    let Some(registry) = file(tree, REGISTRY).or_else(|| file(tree, "core/codes/mod.rs")) else {
        return vec![];
    };
    let names = names(&registry.text);
    if names.is_empty() {
        return vec![format!("{}: no `const NAME: Code` found", registry.path)];
    }
    let mut met = BTreeSet::new();
    for source in tree
        .iter()
        .filter(|source| source.is_rust() && source.path != registry.path)
    {
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

/// The constants of type `Code`.
fn names(text: &str) -> BTreeSet<String> {
    let code = rust::shipped(text);
    let words: Vec<&str> = rust::words(&code).map(|(_, word)| word).collect();
    words
        .windows(3)
        .filter(|three| three[0] == "const" && three[2] == "Code")
        .map(|three| three[1].to_owned())
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
        "/// Full.\npub const OVERLOADED: Code = code(\"OVERLOADED\");\npub const SEALED: Code = x;",
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
    found(
        &findings(&[Source::new(REGISTRY, "")]),
        "no `const NAME: Code`",
    );
}
