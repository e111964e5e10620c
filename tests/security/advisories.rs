//! `advisories.toml` has every id of `ids.txt`, with a test or a reason. The ids are those of public advisories on the
//! peer in the classes gateway and scopes (A), guessing (B), lifetimes (C), pairing (D), exhaustion (K), identity (L),
//! signatures and replay (M); what has no id has a name of ours.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::house;

const IDS: &str = include_str!("ids.txt");
const ADVISORIES: &str = include_str!("advisories.toml");

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

#[test]
fn every_advisory_has_a_test_that_exists_or_a_reason() {
    let findings = findings(IDS, ADVISORIES, &house::all_tests());
    assert!(findings.is_empty(), "{findings:#?}");
    assert_eq!(IDS.lines().count(), 158);
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
