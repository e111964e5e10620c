//! Everything that runs without asking, in one list: grants, entries of the document, agents whose every command runs. With
//! how often each let something run, and when last.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::machine::Machine;
use super::manage::operator;
use super::{Grant, Put, Refusal, Row, Step};
use crate::auth::{Principal, Scope};
use crate::ids::{AgentId, ApprovalId};
use crate::plan::{ExecPlan, Target};
use crate::policy::{Answer, Document, Rules, Standing, Verdict, decide, effective, entry_json};
use crate::time::Millis;

/// Agents whose uses are counted: as many as a document names.
const MAX_AGENTS: usize = 256;
/// Rules of one agent that are counted: entries of a list, and its mode.
const MAX_RULES: usize = 600;
/// How an entry of the document is called here.
const ENTRY: &str = "list:";
/// How what the configuration says is called.
const MODE: &str = "config:";
/// Stands for agents that the configuration does not name.
const OTHERS: &str = "*";

/// How often something ran by a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// How often.
    pub count: u64,
    /// When last.
    pub last: Millis,
}

/// What ran of one agent by rules that are no grants, as it is kept (sealed).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uses {
    /// Version of the form.
    pub v: Row,
    /// Whose.
    pub agent: AgentId,
    /// By the rule's name.
    pub rules: BTreeMap<String, Used>,
}

/// Counts that are not written with each run: a run waits for no disk because of them.
#[derive(Debug, Default)]
pub(super) struct Counts {
    all: BTreeMap<AgentId, BTreeMap<String, Used>>,
    unsaved: BTreeSet<AgentId>,
}

/// By what a run runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunsBy {
    /// A rule, by its name: `grant:…`, `list:…`, `config:…`.
    Rule(String),
    /// A person's answer to this question.
    Answer(ApprovalId),
}

impl Machine {
    /// With the counts that were kept.
    #[must_use]
    pub fn with_uses(mut self, kept: Vec<Uses>) -> Self {
        self.counts.all = kept
            .into_iter()
            .map(|uses| (uses.agent, uses.rules))
            .collect();
        self
    }

    /// Something runs by this rule. A grant counts its own uses.
    pub fn count(&mut self, agent: &AgentId, rule: &str, now: Millis) {
        let names = match rule.strip_prefix(ENTRY) {
            Some(names) => self.entries_of(agent, names),
            None if rule.starts_with(MODE) => vec![rule.to_owned()],
            None => return,
        };
        if self.counts.all.len() >= MAX_AGENTS && !self.counts.all.contains_key(agent) {
            return;
        }
        let rules = self.counts.all.entry(agent.clone()).or_default();
        for name in names {
            if rules.len() < MAX_RULES || rules.contains_key(&name) {
                let used = rules.entry(name).or_insert(Used {
                    count: 0,
                    last: now,
                });
                used.count = used.count.saturating_add(1);
                used.last = now;
            }
        }
        self.counts.unsaved.insert(agent.clone());
    }

    /// The entries that a rule names: one, or of a line with several commands each.
    fn entries_of(&self, agent: &AgentId, names: &str) -> Vec<String> {
        let Standing::Valid(document) = self.document.standing() else {
            return vec![];
        };
        let is_one = |name: &str| document.entries(agent.as_str()).any(|e| e.name() == name);
        let names = if is_one(names) {
            vec![names]
        } else {
            names.split('+').filter(|name| is_one(name)).collect()
        };
        names.iter().map(|name| format!("{ENTRY}{name}")).collect()
    }

    /// The counts that are to be written, without those of rules that are no more.
    pub fn unsaved(&self) -> Step {
        let puts = self.counts.unsaved.iter().map(|agent| {
            let all = self.counts.all.get(agent).cloned().unwrap_or_default();
            let mut rules = all;
            rules.retain(|rule, _| match rule.strip_prefix(ENTRY) {
                Some(name) => !self.entries_of(agent, name).is_empty(),
                None => true,
            });
            Put::Uses(Box::new(Uses {
                v: Row,
                agent: agent.clone(),
                rules,
            }))
        });
        Step {
            puts: puts.collect(),
        }
    }

    /// Is there anything to be written?
    pub fn has_unsaved(&self) -> bool {
        !self.counts.unsaved.is_empty()
    }

    /// They are durable.
    pub(super) fn saved(&mut self, uses: Uses) {
        self.counts.unsaved.remove(&uses.agent);
        self.counts.all.insert(uses.agent, uses.rules);
    }

    fn used(&self, agent: &str, rule: &str) -> Option<Used> {
        let of_agent = |agent: &AgentId| self.counts.all.get(agent)?.get(rule).copied();
        AgentId::new(agent).ok().and_then(|agent| of_agent(&agent))
    }

    /// What runs without asking, beside the grants: `entries` of the document that let something run somewhere, and `modes`
    /// of the configuration by which every command of an agent runs.
    pub fn ledger(&self) -> (Vec<Value>, Vec<Value>) {
        let mut entries = vec![];
        if let Standing::Valid(document) = self.document.standing() {
            for agent in document.agents() {
                entries.extend(self.entries_ledger(document, agent));
            }
        }
        let named = self.agents.named.keys().map(AgentId::as_str);
        let modes = named.chain([OTHERS]).filter_map(|agent| self.mode(agent));
        (entries, modes.collect())
    }

    fn targets(
        &self,
        agent: &str,
        runs: impl Fn(crate::policy::Mode) -> bool,
    ) -> Vec<&'static str> {
        let policy = AgentId::new(agent).map_or(self.agents.every, |id| self.agents.of(&id));
        let rules = Rules {
            agent: policy,
            document: self.document.standing(),
            // A mode has no time.
            now: Millis::default(),
        };
        [("host", Target::Host), ("sandbox", Target::Sandbox)]
            .into_iter()
            .filter(|(_, target)| runs(effective(&rules, agent, target)))
            .map(|(word, _)| word)
            .collect()
    }

    fn entries_ledger(&self, document: &Document, agent: &str) -> Vec<Value> {
        let listed =
            |mode: crate::policy::Mode| mode.listed == Answer::Allow && mode.other != Answer::Allow;
        let targets = self.targets(agent, listed);
        if targets.is_empty() {
            return vec![];
        }
        let one = |entry: &crate::policy::Entry| {
            let name = format!("{ENTRY}{}", entry.name());
            let used = self.used(agent, &name);
            let mut value = entry_json(entry);
            value["id"] = format!("{ENTRY}{agent}:{}", entry.name()).into();
            value["kind"] = "entry".into();
            value["agentId"] = agent.into();
            value["targets"] = json!(targets);
            value["useCount"] = json!(used.map_or(0, |used| used.count));
            value["lastUsedAtMs"] = json!(used.map(|used| used.last));
            value
        };
        document.entries(agent).map(one).collect()
    }

    fn mode(&self, agent: &str) -> Option<Value> {
        let targets = self.targets(agent, |mode| mode.other == Answer::Allow);
        if targets.is_empty() {
            return None;
        }
        let rule = |agent: &str| format!("{MODE}agents.{agent}.exec=full");
        let used: Vec<Used> = if agent == OTHERS {
            let unnamed = self.counts.all.iter();
            let unnamed = unnamed.filter(|(id, _)| !self.agents.named.contains_key(*id));
            let used = unnamed.filter_map(|(id, rules)| rules.get(&rule(id.as_str())));
            used.copied().collect()
        } else {
            self.used(agent, &rule(agent)).into_iter().collect()
        };
        Some(json!({
            "id": rule(agent),
            "kind": "mode",
            "agentId": agent,
            "targets": targets,
            "useCount": used.iter().map(|used| used.count).sum::<u64>(),
            "lastUsedAtMs": used.iter().map(|used| used.last).max(),
            "fix": tighter(agent),
        }))
    }

    /// Takes back whatever is called so in the ledger: a grant, or an entry of the document, whose end holds at once.
    ///
    /// # Errors
    /// Nothing is called so, it is the configuration's, or not for this operator.
    pub fn revoke(&self, id: &str, by: &Principal, now: Millis) -> Result<Step, Refusal> {
        if let Some(agent) = id.strip_prefix(MODE) {
            operator(by, Scope::Approvals)?;
            let agent = agent.strip_prefix("agents.").unwrap_or(agent);
            let agent = agent.strip_suffix(".exec=full").unwrap_or(agent);
            return Err(Refusal::OfConfiguration(tighter(agent)));
        }
        let Some(entry) = id.strip_prefix(ENTRY) else {
            return self.revoke_grant(id, by, now);
        };
        operator(by, Scope::Admin)?;
        let Standing::Valid(document) = self.document.standing() else {
            return Err(Refusal::GrantNotFound);
        };
        let (agent, name) = entry.split_once(':').ok_or(Refusal::GrantNotFound)?;
        let without = document
            .without(agent, name)
            .ok_or(Refusal::GrantNotFound)?;
        Ok(Step {
            puts: self.applied(&without, now, None),
        })
    }

    /// May a run that is under way go on, after the policy was changed? What ran by a rule must run by one still; what a
    /// person has let run must not be forbidden.
    pub fn may_go_on(&self, plan: &ExecPlan, by: &RunsBy, now: Millis) -> bool {
        let rules = Rules {
            agent: self.agents.at(&plan.agent, &plan.target),
            document: self.document.standing(),
            now,
        };
        match by {
            RunsBy::Rule(rule) => {
                let grant = rule.strip_prefix("grant:");
                matches!(decide(&rules, plan, grant), Verdict::Allow { .. })
            }
            RunsBy::Answer(_) => !matches!(decide(&rules, plan, None), Verdict::Deny { .. }),
        }
    }
}

impl RunsBy {
    /// Did it come from this grant?
    pub fn is_of_grant(&self, grant: &str) -> bool {
        match self {
            Self::Rule(rule) => rule.strip_prefix("grant:") == Some(grant),
            Self::Answer(id) => Grant::id_of(id) == grant,
        }
    }
}

/// What to write into the configuration instead.
fn tighter(agent: &str) -> String {
    if agent == OTHERS {
        "[agents.\"*\"]\nexec = \"ask\"".to_owned()
    } else {
        format!("[agents.{agent}]\nexec = \"ask\"")
    }
}
