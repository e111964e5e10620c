//! The policy of our own node host: a person's word for each run, and what its gateway has closed on top of that. A gateway
//! closes more and opens nothing: who owns it owns no machine by it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::ids::{AgentId, Hash32};

/// Agents that are named in one document.
const MOST: usize = 256;

/// For whom nothing runs here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnPolicy {
    every: bool,
    agents: BTreeSet<AgentId>,
}

/// A document that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// Of another form.
    #[error("no approvals document of version 1: {0}")]
    Form(String),
    /// It says something that this node host does not do.
    #[error(
        "{0} can only be {1} here: each run waits for a person, and security may be full or deny"
    )]
    Fixed(&'static str, &'static str),
    /// It opens what was closed.
    #[error(
        "a gateway can close this node host, and not open it again: that is done on its machine"
    )]
    Opens,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    version: u64,
    /// The peer's; its receiver keeps its own.
    #[serde(default, rename = "socket")]
    _socket: Option<Value>,
    #[serde(default)]
    defaults: Rules,
    #[serde(default)]
    agents: BTreeMap<String, Rules>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rules {
    #[serde(default)]
    security: Option<String>,
    #[serde(default)]
    ask: Option<String>,
    #[serde(default)]
    ask_fallback: Option<String>,
    #[serde(default)]
    auto_allow_skills: Option<bool>,
    #[serde(default)]
    allowlist: Vec<Value>,
    #[serde(default)]
    mcp_tools: Vec<Value>,
}

impl Rules {
    /// Is everything closed by them?
    fn read(&self) -> Result<bool, PolicyError> {
        let is = |said: &Option<String>, only: &str| said.as_deref().is_none_or(|s| s == only);
        if !is(&self.ask, "always") {
            return Err(PolicyError::Fixed("ask", "always"));
        }
        if !is(&self.ask_fallback, "deny") {
            return Err(PolicyError::Fixed("askFallback", "deny"));
        }
        if self.auto_allow_skills == Some(true) {
            return Err(PolicyError::Fixed("autoAllowSkills", "false"));
        }
        if !self.allowlist.is_empty() {
            return Err(PolicyError::Fixed("allowlist", "empty"));
        }
        if !self.mcp_tools.is_empty() {
            return Err(PolicyError::Fixed("mcpTools", "empty"));
        }
        match self.security.as_deref() {
            None | Some("full") => Ok(false),
            Some("deny") => Ok(true),
            Some(_) => Err(PolicyError::Fixed("security", "full or deny")),
        }
    }
}

impl OwnPolicy {
    /// Of a document as the wire has it (wire.md 10).
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn read(document: &Value) -> Result<Self, PolicyError> {
        let form = |why: &dyn std::fmt::Display| PolicyError::Form(why.to_string());
        let read = Document::deserialize(document).map_err(|e| form(&e))?;
        if read.version != 1 {
            return Err(form(&"its version is another"));
        }
        if read.agents.len() > MOST {
            return Err(form(&"it names too many agents"));
        }
        let mut agents = BTreeSet::new();
        for (name, rules) in &read.agents {
            let agent = AgentId::new(name).map_err(|e| form(&e))?;
            if rules.read()? {
                agents.insert(agent);
            }
        }
        Ok(Self {
            every: read.defaults.read()?,
            agents,
        })
    }

    /// Another one in its place, where that opens nothing.
    ///
    /// # Errors
    /// [`PolicyError::Opens`].
    pub fn then(&self, next: Self) -> Result<Self, PolicyError> {
        let closes = |agent: &AgentId| next.denies(agent);
        if (self.every && !next.every) || !self.agents.iter().all(closes) {
            return Err(PolicyError::Opens);
        }
        Ok(next)
    }

    /// Does nothing run for this agent?
    pub fn denies(&self, agent: &AgentId) -> bool {
        self.every || self.agents.contains(agent)
    }

    /// As a document.
    pub fn document(&self) -> Value {
        let rules = |denies: bool| {
            json!({
                "security": if denies { "deny" } else { "full" }, "ask": "always", "askFallback": "deny",
                "autoAllowSkills": false,
            })
        };
        let agents: Map<_, _> = self
            .agents
            .iter()
            .map(|agent| (agent.to_string(), rules(true)))
            .collect();
        json!({ "version": 1, "defaults": rules(self.every), "agents": agents })
    }

    /// Of the document: who sets another one names it.
    pub fn hash(&self) -> Hash32 {
        Hash32::of(self.document().to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        AgentId::new(name).unwrap()
    }

    #[test]
    fn a_document_closes_and_its_own_reads_back() {
        let open = OwnPolicy::default();
        assert!(!open.denies(&agent("a")));
        assert_eq!(OwnPolicy::read(&open.document()), Ok(open.clone()));
        assert_eq!(OwnPolicy::read(&json!({ "version": 1 })), Ok(open.clone()));
        let one = json!({ "version": 1, "socket": { "path": "x" }, "agents": { "a": { "security": "deny" }, "b": {} } });
        let one = OwnPolicy::read(&one).unwrap();
        assert!(one.denies(&agent("a")) && !one.denies(&agent("b")));
        assert_eq!(OwnPolicy::read(&one.document()), Ok(one.clone()));
        let all = json!({ "version": 1, "defaults": { "security": "deny", "ask": "always" } });
        let all = OwnPolicy::read(&all).unwrap();
        assert!(all.denies(&agent("z")));
        assert_ne!(open.hash(), one.hash());
        // Closing goes on, opening does not.
        assert_eq!(open.then(one.clone()), Ok(one.clone()));
        assert_eq!(one.then(all.clone()), Ok(all.clone()));
        assert_eq!(one.then(open.clone()), Err(PolicyError::Opens));
        assert_eq!(all.then(one.clone()), Err(PolicyError::Opens));
        let other = json!({ "version": 1, "agents": { "b": { "security": "deny" } } });
        let other = OwnPolicy::read(&other).unwrap();
        assert_eq!(one.then(other), Err(PolicyError::Opens));
    }

    #[test]
    fn what_it_cannot_do_is_refused_and_never_kept_for_show() {
        for (rules, what) in [
            (json!({ "ask": "off" }), "ask"),
            (json!({ "ask": "on-miss" }), "ask"),
            (json!({ "askFallback": "full" }), "askFallback"),
            (json!({ "autoAllowSkills": true }), "autoAllowSkills"),
            (json!({ "security": "allowlist" }), "security"),
            (
                json!({ "allowlist": [{ "pattern": "/bin/ls" }] }),
                "allowlist",
            ),
            (json!({ "mcpTools": ["x"] }), "mcpTools"),
        ] {
            for document in [
                json!({ "version": 1, "defaults": rules }),
                json!({ "version": 1, "agents": { "a": rules } }),
            ] {
                let refused = OwnPolicy::read(&document).unwrap_err();
                assert!(
                    matches!(refused, PolicyError::Fixed(which, _) if which == what),
                    "{document}: {refused}"
                );
            }
        }
        for document in [
            json!(null),
            json!({}),
            json!({ "version": 2 }),
            json!({ "version": 1, "more": 1 }),
            json!({ "version": 1, "defaults": { "more": 1 } }),
            json!({ "version": 1, "agents": { "a b": {} } }),
        ] {
            let refused = OwnPolicy::read(&document).unwrap_err();
            assert!(matches!(refused, PolicyError::Form(_)), "{document}");
        }
    }
}
