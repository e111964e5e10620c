//! What holds for an agent, for a person: each source, the strictest of them, and the lists.

use serde_json::{Value, json};

use super::document::Entry;
use super::judge::{Ruling, sources};
use super::lint::lint;
use super::{Rules, Standing, effective};
use crate::plan::Target;

/// `{agent, target, listed, other, sources, allow, deny, findings}`.
pub fn explain(rules: &Rules<'_>, agent: &str, target: &Target) -> Value {
    let mode = effective(rules, agent, target);
    let (mut allow, mut deny, mut findings) = (vec![], vec![], vec![]);
    if let Standing::Valid(document) = rules.document {
        allow = document.entries(agent).map(entry_json).collect();
        deny = document.denied(agent).map(entry_json).collect();
        findings = lint(document, rules.now);
        findings.retain(|finding| finding.agent == agent);
    }
    json!({
        "agent": agent,
        "target": target.word(),
        "listed": Ruling::from(mode.listed),
        "other": Ruling::from(mode.other),
        "sources": sources(rules, agent, target),
        "allow": allow,
        "deny": deny,
        "findings": findings,
    })
}

/// `{id, pattern, args}`.
pub fn entry_json(entry: &Entry) -> Value {
    json!({
        "id": entry.name(),
        "pattern": entry.path_pattern().as_str(),
        "args": entry.arg_pattern().map(super::ArgPattern::to_json),
        "conditions": entry.conditions(),
    })
}
