//! Every stable code of the registry is met by a test: a code that no test sees is a code that may never come.

use std::collections::BTreeSet;

use super::rust;
use super::{Source, file, found, none, tree};

const REGISTRY: &str = "core/codes.rs";
/// Codes whose test is still to come: to be emptied, never added to.
const STILL_TO_COME: &[&str] = &[
    "AGENT_NOT_ALLOWED",
    "AGENT_REQUIRED",
    "APPROVAL_ALREADY_RESOLVED",
    "APPROVAL_DENIED",
    "APPROVAL_EXPIRED",
    "APPROVAL_NOT_FOUND",
    "APPROVAL_SELF",
    "AUDIT_ALTERED",
    "BOX_LOST",
    "CANNOT_RECORD",
    "COMMAND_NOT_FOUND",
    "DAEMON_UNREACHABLE",
    "DEADLINE",
    "DEVICE_NOT_FOUND",
    "DISK_FULL",
    "DUPLICATE_ID",
    "ELEVATED_DISABLED",
    "HOST_USER_INVALID",
    "IDENTITY_INVALID",
    "IDENTITY_MISMATCH",
    "INTERNAL",
    "INVALID_FRAME",
    "INVALID_PARAMS",
    "MISSING_SCOPE",
    "NO_DRIVER",
    "OUTPUT_UNWRITABLE",
    "OVERLOADED",
    "PAIRING_DENIED",
    "PLAN_CHANGED",
    "POLICY_CONFLICT",
    "POLICY_DENIED",
    "PORT_IN_USE",
    "REQUEST_NOT_FOUND",
    "ROOM_DOWN",
    "RUN_NOT_FOUND",
    "RUN_UNKNOWN",
    "SEALED",
    "SESSION_ENDED",
    "STATE_CORRUPT",
    "STATE_LOCKED",
    "TOKEN_INVALID",
    "TOO_MANY_IN_FLIGHT",
    "TOO_MANY_PENDING",
    "TOO_MANY_RUNS",
    "UNKNOWN_METHOD",
    "UNSEALING",
    "VAULT_NAME_INVALID",
    "VAULT_NOT_FOUND",
    "VAULT_RECORD_CORRUPT",
    "VAULT_VALUE_INVALID",
    "WRONG_ROLE",
];

fn findings(tree: &[Source], still_to_come: &[&str]) -> Vec<String> {
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
        .filter(|name| !still_to_come.contains(&name.as_str()))
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
    none(&findings(&tree(), STILL_TO_COME));
}

#[test]
fn a_code_that_no_test_meets_is_found() {
    let registry = Source::new(
        REGISTRY,
        "codes! {\n    OVERLOADED, \"UNAVAILABLE\", true, 1, \"wait\";\n    SEALED, \"UNAVAILABLE\", false, 4, \"no\";\n}",
    );
    let look = |path: &str, text: &str| findings(&[registry.clone(), Source::new(path, text)], &[]);
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
    none(&findings(&[registry], &["SEALED", "OVERLOADED"]));
    found(&findings(&[Source::new(REGISTRY, "")], &[]), "no row");
}
