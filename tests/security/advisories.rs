//! `advisories.toml` has every id of `ids.txt`, with a test or a reason. The ids are those of public advisories on the
//! peer in the classes gateway and scopes (A), guessing (B), lifetimes (C), pairing (D), approvals and lists (E), variables (F),
//! sandbox (G), paths and races for files (H), requests to elsewhere (I), exhaustion (K), identity (L), signatures and replay (M); what has no id has
//! a name of ours.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::house;

const IDS: &str = include_str!("ids.txt");
const ADVISORIES: &str = include_str!("advisories.toml");
/// Tests that were seen to fail without their guard: `cargo xtask long guards` sees it again.
const GUARDS: &str = include_str!("guards.txt");
/// As many must be shown to find what they are for.
const SHOWN: usize = 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advisories {
    advisory: Vec<Advisory>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advisory {
    class: char,
    ids: Vec<String>,
    /// What went wrong there.
    was: String,
    #[serde(default)]
    tests: Vec<String>,
    /// Why it cannot be tried here.
    #[serde(default)]
    reason: String,
}

/// What is wrong with the list, given the ids that it must have and the tests that exist.
fn findings(ids: &str, list: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let list: Advisories = match toml::from_str(list) {
        Ok(list) => list,
        Err(error) => return vec![error.to_string()],
    };
    let wanted: BTreeSet<(char, &str)> = ids
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(class, id)| Some((class.chars().next()?, id)))
        .collect();
    let mut findings = vec![];
    let mut had = BTreeSet::new();
    for advisory in &list.advisory {
        for id in &advisory.ids {
            if !had.insert((advisory.class, id.as_str())) {
                findings.push(format!("{id} stands twice"));
            }
        }
        let name = advisory.ids.join(", ");
        if advisory.was.is_empty() || advisory.ids.is_empty() {
            findings.push(format!("{name}: says nothing"));
        }
        if advisory.tests.is_empty() && advisory.reason.len() < 20 {
            findings.push(format!("{name}: neither a test nor a reason"));
        }
        for test in &advisory.tests {
            if !tests.contains(test) {
                findings.push(format!("{name}: {test} is no test in the tree"));
            }
        }
    }
    for (class, id) in wanted.difference(&had) {
        findings.push(format!("{class} {id} is missing"));
    }
    for (class, id) in had.difference(&wanted) {
        findings.push(format!("{class} {id} is in no list"));
    }
    findings
}

/// The tests that a list of advisories names.
fn tried(list: &str) -> BTreeSet<String> {
    let list: Advisories = toml::from_str(list).expect("checked elsewhere");
    let tests = list.advisory.into_iter().flat_map(|one| one.tests);
    tests.collect()
}

/// What is wrong with a list of guards, given the tests that may stand in it, how many must, and what stands in a file.
pub fn stale(
    guards: &str,
    tried: &BTreeSet<String>,
    shown: usize,
    file: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut findings = vec![];
    for block in guards.split("\n\n").skip(1) {
        let word = |name: &str| {
            let mut lines = block.lines();
            let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            found.unwrap_or_default()
        };
        let (test, on) = (word("test"), word("on"));
        // A lost empty line between two hides the second.
        let begun = block.lines().filter(|line| line.starts_with("test: "));
        if begun.count() != 1 {
            findings.push(format!("{test}: its block is not one of one test"));
        }
        let text = file(word("file")).unwrap_or_default();
        if !tried.contains(test) || !seen.insert(test) {
            findings.push(format!(
                "{test}: no test of what is listed, or stands twice"
            ));
        }
        if on.is_empty() || word("off") == on || text.matches(on).count() != 1 {
            findings.push(format!(
                "{test}: its guard does not stand once where the list says"
            ));
        }
    }
    if seen.len() < shown {
        findings.push(format!(
            "{} tests are shown to fail, of {shown}",
            seen.len()
        ));
    }
    findings
}

#[test]
fn twenty_tests_of_advisories_have_a_guard_without_which_they_were_seen_to_fail() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = |name: &str| std::fs::read_to_string(root.join(name)).ok();
    let findings = stale(GUARDS, &tried(ADVISORIES), SHOWN, file);
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn a_guard_that_has_moved_and_a_test_of_nothing_are_found() {
    let list = |tests: &[String]| {
        format!("[[advisory]]\nclass = \"A\"\nids = [\"X\"]\nwas = \"w\"\ntests = {tests:?}\n")
    };
    let names: Vec<String> = (0..SHOWN).map(|n| format!("test_{n}")).collect();
    let block = |name: &String| format!("\n\ntest: {name}\nfile: f\non: if x {{\noff: if y {{");
    let guards: String = names.iter().map(block).collect();
    let whole = |name: &str| (name == "f").then(|| "a if x { b".to_owned());
    let found = |guards: &str, tests: &[String], text: &str| {
        stale(guards, &tried(&list(tests)), SHOWN, |_| {
            Some(text.to_owned())
        })
    };
    let all = tried(&list(&names));
    assert!(stale(&guards, &all, SHOWN, whole).is_empty());
    assert_eq!(stale(&guards, &all, SHOWN, |_| None).len(), SHOWN);
    assert_eq!(found(&guards, &names, "if x { if x {").len(), SHOWN);
    assert_eq!(found(&guards, &names[1..], "if x {").len(), 2);
    assert_eq!(
        found(&guards[guards.len() / 2..], &names, "if x {").len(),
        1
    );
    assert_eq!(
        found(&guards.replace("if y", "if x"), &names, "if x {").len(),
        SHOWN
    );
}

#[test]
fn every_advisory_has_a_test_that_exists_or_a_reason() {
    let findings = findings(IDS, ADVISORIES, &house::all_tests());
    assert!(findings.is_empty(), "{findings:#?}");
    assert_eq!(IDS.lines().count(), 332);
}

#[test]
fn an_advisory_that_is_missing_or_names_no_test_is_found() {
    let tests = BTreeSet::from(["a_test".to_owned()]);
    let entry =
        |body: &str| format!("[[advisory]]\nclass = \"A\"\nids = [\"X-1\"]\nwas = \"w\"\n{body}\n");
    let found = |list: &str| findings("A X-1\n", list, &tests);
    assert_eq!(found(&entry("tests = [\"a_test\"]")), [""; 0]);
    assert_eq!(
        found(&entry("reason = \"there is no such thing here\"")),
        [""; 0]
    );
    for bad in [
        entry(""),
        entry("tests = [\"another\"]"),
        entry("reason = \"no\""),
        entry("tests = [\"a_test\"]").replace("X-1", "X-2"),
        entry("tests = [\"a_test\"]").repeat(2),
        "advisory = []".to_owned(),
    ] {
        assert!(!found(&bad).is_empty(), "{bad}");
    }
}
