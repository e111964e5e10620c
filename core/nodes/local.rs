//! The policy that a node's owner writes for it: the last gate before a command of a gateway runs there. Pure.
//!
//! It says the same as a gateway's policy does, of this machine alone: a mode (deny, allowlist, ask, full), lists of what
//! runs and of what never does, for all and per agent. A missing one asks for everything; one that cannot be read denies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use super::approvers::Approvers;
use crate::ids::{AgentId, Hash32};
use crate::plan::ExecPlan;
use crate::policy::{
    AgentPolicy, Document, Elevated, ExecMode, Judgement, Reason, Rules, Ruling, Settings,
    Standing, judge,
};
use crate::time::Millis;

/// What the node's owner lets its gateway change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemoteEdit {
    /// Nothing.
    Deny,
    /// What a command on the node's own machine consents to.
    Ask,
    /// It closes more, at once, and opens nothing.
    #[default]
    Tighten,
}

impl RemoteEdit {
    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Ask => "ask",
            Self::Tighten => "tighten",
        }
    }
}

/// Why a document is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct LocalError(pub String);

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    version: u8,
    /// Public keys of those without whose signature nothing runs.
    #[serde(default)]
    approvers: Vec<String>,
    /// How many of them.
    #[serde(default)]
    quorum: Option<u8>,
    #[serde(default)]
    remote_edit: RemoteEdit,
    #[serde(default)]
    defaults: RawRules,
    #[serde(default)]
    agents: BTreeMap<String, RawRules>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRules {
    #[serde(default)]
    mode: Option<ExecMode>,
    /// As in the gateway's own document.
    #[serde(default)]
    allowlist: Vec<Value>,
    #[serde(default)]
    denylist: Vec<Value>,
}

/// A document that was read and checked.
#[derive(Debug, Clone)]
pub struct LocalPolicy {
    raw: Raw,
    approvers: Option<Approvers>,
    hash: Hash32,
}

/// A node's document as it stands.
#[derive(Debug, Clone, Default)]
pub enum Local {
    /// There is none: everything asks.
    #[default]
    Absent,
    /// It says so.
    Valid(Box<LocalPolicy>),
    /// Nothing runs, for this reason.
    Malformed(String),
}

/// For whom a document is read to see whether it can be.
const ANYBODY: &str = "anybody";

impl LocalPolicy {
    /// Reads a document strictly: unknown fields and values are errors.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn parse(document: &Value) -> Result<Self, LocalError> {
        let raw = Raw::deserialize(document).map_err(|e| LocalError(e.to_string()))?;
        if raw.version != 1 {
            return Err(LocalError("version must be 1".to_owned()));
        }
        let approvers = match (&raw.approvers[..], raw.quorum) {
            ([], None) => None,
            ([], Some(_)) => {
                return Err(LocalError("quorum counts approvers: name them".to_owned()));
            }
            (keys, quorum) => Some(Approvers::new(keys, quorum.unwrap_or(1)).map_err(LocalError)?),
        };
        let read = Self {
            raw,
            approvers,
            hash: Hash32::of(document.to_string().as_bytes()),
        };
        let named = read.raw.agents.keys().map(String::as_str);
        for agent in named.chain([ANYBODY]) {
            AgentId::new(agent).map_err(|e| LocalError(format!("agents.{agent}: {e}")))?;
            read.document(agent)?;
        }
        Ok(read)
    }

    /// Without whose signature nothing runs.
    pub const fn approvers(&self) -> Option<&Approvers> {
        self.approvers.as_ref()
    }

    /// What the gateway may change.
    pub const fn remote_edit(&self) -> RemoteEdit {
        self.raw.remote_edit
    }

    fn mode(&self, agent: &str) -> ExecMode {
        let own = self.raw.agents.get(agent).and_then(|rules| rules.mode);
        own.or(self.raw.defaults.mode).unwrap_or(ExecMode::Ask)
    }

    /// What holds for one agent, in the words of a gateway's document: its own lists behind those for all.
    fn document(&self, agent: &str) -> Result<Document, LocalError> {
        let (security, ask) = match self.mode(agent) {
            ExecMode::Deny => ("deny", "on-miss"),
            ExecMode::Allowlist => ("allowlist", "off"),
            ExecMode::Ask => ("allowlist", "on-miss"),
            ExecMode::Full => ("full", "off"),
        };
        let own = self.raw.agents.get(agent);
        let list = |of: fn(&RawRules) -> &Vec<Value>| -> Vec<Value> {
            let own = own.map(of).into_iter().flatten();
            of(&self.raw.defaults).iter().chain(own).cloned().collect()
        };
        Document::parse(json!({ "version": 1, "agents": { agent: {
            "security": security, "ask": ask,
            "allowlist": list(|rules| &rules.allowlist), "denylist": list(|rules| &rules.denylist),
        } } }))
        .map_err(|e| LocalError(e.to_string()))
    }
}

impl Local {
    /// From what was found in the file: nothing, a document, or why it could not be read.
    pub fn read(found: Result<Option<Value>, String>) -> Self {
        match found {
            Ok(None) => Self::Absent,
            Ok(Some(document)) => match LocalPolicy::parse(&document) {
                Ok(policy) => Self::Valid(Box::new(policy)),
                Err(error) => Self::Malformed(error.to_string()),
            },
            Err(why) => Self::Malformed(why),
        }
    }

    /// `absent`, `valid` or `malformed`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Valid(_) => "valid",
            Self::Malformed(_) => "malformed",
        }
    }

    /// Without whose signature nothing runs.
    pub fn approvers(&self) -> Option<&Approvers> {
        match self {
            Self::Valid(policy) => policy.approvers(),
            Self::Absent | Self::Malformed(_) => None,
        }
    }

    /// What the gateway may change: where the document cannot be read, nothing.
    pub fn remote_edit(&self) -> RemoteEdit {
        match self {
            Self::Absent => RemoteEdit::default(),
            Self::Valid(policy) => policy.remote_edit(),
            Self::Malformed(_) => RemoteEdit::Deny,
        }
    }

    /// What is said of a command that this machine has opened. A plan for the host, as the node's own runs have it.
    pub fn judge(&self, plan: &ExecPlan, now: Millis) -> Judgement {
        let document = match self {
            Self::Absent => {
                Document::parse(Document::first()).map_err(|e| LocalError(e.to_string()))
            }
            Self::Valid(policy) => policy.document(plan.agent.as_str()),
            Self::Malformed(why) => Err(LocalError(why.clone())),
        };
        let standing = match &document {
            Ok(document) => Standing::Valid(document),
            Err(_) => Standing::Malformed,
        };
        let rules = Rules {
            // The document alone speaks here.
            agent: AgentPolicy {
                exec: ExecMode::Full,
                elevated: Elevated::Unasked,
                ..AgentPolicy::default()
            },
            document: standing,
            now,
        };
        let mut said = judge(&rules, plan, None);
        if matches!(self, Self::Absent) {
            "document:absent".clone_into(&mut said.rule);
        }
        if said.rule.starts_with("config:") {
            said.rule = format!("document:{}.mode=full", plan.agent);
        }
        if let Err(why) = &document {
            said.reasons.push(Reason {
                id: "malformed".to_owned(),
                text: format!("The node's document cannot be read: {why}."),
            });
        }
        if self.approvers().is_some() && said.verdict == Ruling::Allow {
            said.verdict = Ruling::Ask;
            "document:approvers".clone_into(&mut said.rule);
            said.reasons.push(Reason {
                id: "approvers".to_owned(),
                text:
                    "Nothing runs on this node without the signature of an approver that it names."
                        .to_owned(),
            });
        }
        said
    }

    /// What holds here for one agent, in the wire's words (`security`, `ask`).
    pub fn settings(&self, agent: &AgentId) -> Settings {
        const DENY: Settings = Settings {
            security: crate::policy::Security::Deny,
            ask: crate::policy::WhenAsk::Always,
        };
        match self {
            Self::Absent => Settings::BUILT_IN,
            Self::Malformed(_) => DENY,
            Self::Valid(policy) => {
                let document = policy.document(agent.as_str());
                let settings = document.map_or(DENY, |d| d.settings(agent.as_str()));
                if policy.approvers.is_some() {
                    Settings {
                        ask: crate::policy::WhenAsk::Always,
                        ..settings
                    }
                } else {
                    settings
                }
            }
        }
    }

    /// For who asks what this node lets its gateway do.
    pub fn shown(&self) -> Value {
        let (hash, why) = match self {
            Self::Absent => (None, None),
            Self::Valid(policy) => (Some(policy.hash), None),
            Self::Malformed(why) => (None, Some(why)),
        };
        json!({
            "document": self.word(), "hash": hash, "why": why, "remoteEdit": self.remote_edit().word(),
            "approvers": self.approvers().map_or(0, Approvers::len),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::host_plan;

    fn plan(argv: &[&str]) -> ExecPlan {
        host_plan(argv)
    }

    fn local(document: Value) -> Local {
        Local::read(Ok(Some(document)))
    }

    fn verdict(local: &Local, plan: &ExecPlan) -> Ruling {
        local.judge(plan, Millis(0)).verdict
    }

    #[test]
    fn a_node_without_a_document_asks_and_one_that_cannot_be_read_denies() {
        let uname = plan(&["uname"]);
        assert_eq!(verdict(&Local::Absent, &uname), Ruling::Ask);
        assert_eq!(Local::Absent.remote_edit(), RemoteEdit::Tighten);
        for malformed in [
            json!(null),
            json!({}),
            json!({ "version": 2 }),
            json!({ "version": 1, "mode": "full" }),
            json!({ "version": 1, "defaults": { "mode": "open" } }),
            json!({ "version": 1, "defaults": { "more": 1 } }),
            json!({ "version": 1, "agents": { "a b": {} } }),
            json!({ "version": 1, "agents": { "demo": { "allowlist": [{ "pattern": "ls" }] } } }),
            json!({ "version": 1, "defaults": { "denylist": [{ "pattern": "/*/x" }] } }),
            json!({ "version": 1, "quorum": 1 }),
            json!({ "version": 1, "approvers": ["none"] }),
            json!({ "version": 1, "remote_edit": "open" }),
        ] {
            let read = local(malformed.clone());
            assert_eq!(read.word(), "malformed", "{malformed}");
            let said = read.judge(&uname, Millis(0));
            assert_eq!(said.verdict, Ruling::Deny, "{malformed}");
            assert!(said.reasons.iter().any(|r| r.id == "malformed"), "{said:?}");
            assert_eq!(read.remote_edit(), RemoteEdit::Deny);
        }
        let unread = Local::read(Err("has mode 0666".to_owned()));
        assert_eq!(verdict(&unread, &uname), Ruling::Deny);
    }

    #[test]
    fn a_nodes_document_has_the_modes_and_the_lists_of_a_gateways() {
        let uname = plan(&["uname"]);
        let of = |mode: &str| local(json!({ "version": 1, "defaults": { "mode": mode } }));
        for (mode, said) in [
            ("deny", Ruling::Deny),
            ("allowlist", Ruling::Deny),
            ("ask", Ruling::Ask),
            ("full", Ruling::Allow),
        ] {
            assert_eq!(verdict(&of(mode), &uname), said, "{mode}");
        }
        // An entry lets what it names run, in each mode but deny; and of one agent alone where it stands there.
        let entry = json!([{ "pattern": "/usr/bin/uname" }]);
        for (mode, said) in [
            ("deny", Ruling::Deny),
            ("allowlist", Ruling::Allow),
            ("ask", Ruling::Allow),
        ] {
            let listed =
                local(json!({ "version": 1, "defaults": { "mode": mode, "allowlist": entry } }));
            assert_eq!(verdict(&listed, &uname), said, "{mode}");
            let of_one = local(json!({
                "version": 1, "defaults": { "mode": "deny" },
                "agents": { "demo": { "mode": mode, "allowlist": entry } },
            }));
            assert_eq!(verdict(&of_one, &uname), said, "{mode}");
            let mut other = uname.clone();
            other.agent = AgentId::new("other").unwrap();
            assert_eq!(verdict(&of_one, &other), Ruling::Deny, "{mode}");
        }
        // What is refused by name is refused in the freest mode, and behind a wrapper and in a shell's line.
        let refuses = local(json!({
            "version": 1, "defaults": { "mode": "full", "denylist": [{ "pattern": "/usr/bin/uname" }] },
        }));
        let mut sh = plan(&["sh", "-c", "true; uname -a"]);
        sh.executable = crate::plan::Executable::Host(crate::plan::HostFile {
            path: "/usr/bin/dash".to_owned(),
            dev: 1,
            ino: 3,
            sha256: Hash32::of(b"dash"),
        });
        let mut env = sh.clone();
        env.argv = ["env", "uname"].map(str::to_owned).to_vec();
        for refused in [&uname, &sh, &env] {
            let said = refuses.judge(refused, Millis(0));
            assert_eq!(said.verdict, Ruling::Deny, "{:?}", refused.argv);
            assert!(said.rule.starts_with("deny:"), "{said:?}");
        }
        assert_eq!(verdict(&of("full"), &sh), Ruling::Allow);
        let listed = local(json!({ "version": 1, "defaults": { "allowlist": entry } }));
        assert_eq!(
            verdict(&listed, &sh),
            Ruling::Ask,
            "a shell's line that is not pinned"
        );
    }

    #[test]
    fn with_approvers_nothing_runs_by_itself() {
        use ed25519_dalek::SigningKey;
        let key = SigningKey::from_bytes(&[7; 32]).verifying_key();
        let key = crate::device::DeviceKey::Ed25519(key).to_text();
        let named = json!({
            "version": 1, "approvers": [key], "defaults": { "mode": "full" }, "remote_edit": "ask",
        });
        let said = local(named.clone());
        let judged = said.judge(&plan(&["uname"]), Millis(0));
        assert_eq!(
            (judged.verdict, judged.rule.as_str()),
            (Ruling::Ask, "document:approvers")
        );
        assert_eq!(said.shown()["approvers"], 1);
        assert_eq!(said.remote_edit(), RemoteEdit::Ask);
        assert_eq!(
            said.settings(&AgentId::new("demo").unwrap()).ask,
            crate::policy::WhenAsk::Always
        );
        // They take nothing else away.
        let mut closed = named;
        closed["defaults"]["mode"] = "deny".into();
        assert_eq!(verdict(&local(closed), &plan(&["uname"])), Ruling::Deny);
    }
}
