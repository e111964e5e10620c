//! `tests/PROMISES.toml` says which tests would fail if a promise broke; here they are looked for.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::rust;
use super::{Source, file, found, none, tree};

const PATH: &str = "tests/PROMISES.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Promises {
    #[serde(default)]
    promise: Vec<Promise>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Promise {
    /// One sentence that can be false.
    text: String,
    /// Names of tests, with as many modules before as are needed: `house::text::no_file_is_too_long_or_unfinished`.
    tests: Vec<String>,
}

fn findings(tree: &[Source]) -> Vec<String> {
    let Some(source) = file(tree, PATH) else {
        return vec![format!("{PATH} is missing")];
    };
    let promises: Promises = match toml::from_str(&source.text) {
        Ok(promises) => promises,
        Err(error) => return vec![format!("{PATH}: {error}")],
    };
    let known: Vec<(&Source, BTreeSet<String>)> = tree
        .iter()
        .filter(|source| source.is_rust())
        .map(|source| (source, tests(&source.text)))
        .collect();
    let mut findings = vec![];
    if promises.promise.is_empty() {
        findings.push(format!("{PATH}: no promise"));
    }
    let mut texts = BTreeSet::new();
    for promise in &promises.promise {
        let text = &promise.text;
        if text.trim().is_empty() {
            findings.push(format!("{PATH}: a promise without text"));
        }
        if !texts.insert(text) {
            findings.push(format!("{PATH}: {text:?} stands twice"));
        }
        if promise.tests.is_empty() {
            findings.push(format!("{PATH}: {text:?} names no test"));
        }
        for name in &promise.tests {
            if !known
                .iter()
                .any(|(source, tests)| is_in(name, source, tests))
            {
                findings.push(format!(
                    "{PATH}: {text:?} names {name}, which is no test in the tree"
                ));
            }
        }
    }
    findings
}

/// Broken on purpose, one after the other, by `cargo xtask long guards`.
const BROKEN: &str = include_str!("promises.txt");
/// As many must be shown to find what they are for.
const SHOWN: usize = 15;

#[test]
fn fifteen_promises_can_be_broken_where_the_list_says() {
    let tree = tree();
    let list = &file(&tree, PATH).expect("it is there").text;
    let list: Promises = toml::from_str(list).expect("checked elsewhere");
    let tests = list.promise.into_iter().flat_map(|one| one.tests).collect();
    let text = |name: &str| file(&tree, name).map(|source| source.text.clone());
    let findings = crate::security::advisories::stale(BROKEN, &tests, SHOWN, text);
    assert!(findings.is_empty(), "{findings:#?}");
}

/// Whether the file has the test, and its path or its modules have every module named before it.
fn is_in(name: &str, source: &Source, tests: &BTreeSet<String>) -> bool {
    let mut parts: Vec<&str> = name.split("::").collect();
    let Some(last) = parts.pop() else {
        return false;
    };
    let path = source.path.trim_end_matches(".rs");
    tests.contains(last)
        && parts.iter().all(|part| {
            path.split('/').any(|folder| folder == *part)
                || source.text.contains(&format!("mod {part}"))
        })
}

/// The functions under a test attribute.
pub fn tests(text: &str) -> BTreeSet<String> {
    let code = rust::code(text);
    let mut found = BTreeSet::new();
    let mut attribute = false;
    let mut after_fn = false;
    for (at, word) in rust::words(&code) {
        if word == "test"
            && code[..at].trim_end().ends_with(['[', ':'])
            && in_attribute(&code[..at])
        {
            attribute = true;
        } else if after_fn && attribute {
            found.insert(word.to_owned());
            attribute = false;
        }
        after_fn = word == "fn";
    }
    found
}

fn in_attribute(before: &str) -> bool {
    before
        .rfind("#[")
        .is_some_and(|open| !before[open..].contains(']'))
}

#[test]
fn every_promise_names_tests_that_exist() {
    none(&findings(&tree()));
}

#[test]
fn a_promise_without_its_test_is_found() {
    let code = Source::new(
        "tests/e2e/exec.rs",
        "#[test]\nfn contained() {}\n#[tokio::test(flavor = \"current_thread\")]\nasync fn streamed() {}\nfn helper() {}\n// #[test] fn said() {}",
    );
    let look = |text: &str| findings(&[code.clone(), Source::new(PATH, text)]);
    none(&look(
        "[[promise]]\ntext = \"a\"\ntests = [\"contained\", \"e2e::exec::streamed\"]",
    ));
    found(
        &look("[[promise]]\ntext = \"a\"\ntests = [\"helper\"]"),
        "no test in the tree",
    );
    found(
        &look("[[promise]]\ntext = \"a\"\ntests = [\"said\"]"),
        "no test in the tree",
    );
    found(
        &look("[[promise]]\ntext = \"a\"\ntests = [\"vault::contained\"]"),
        "no test in the tree",
    );
    found(
        &look("[[promise]]\ntext = \"a\"\ntests = []"),
        "names no test",
    );
    found(
        &look("[[promise]]\ntext = \" \"\ntests = [\"contained\"]"),
        "without text",
    );
    found(
        &look(
            "[[promise]]\ntext = \"a\"\ntests = [\"contained\"]\n"
                .repeat(2)
                .as_str(),
        ),
        "twice",
    );
    found(
        &look("[[promise]]\ntext = \"a\"\ntest = \"contained\""),
        "unknown field",
    );
    found(&look(""), "no promise");
    found(&findings(&[code]), "is missing");
}
