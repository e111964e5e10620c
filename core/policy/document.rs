//! The approvals document of the peer's shape (wire.md section 9), read strictly: it applies to host commands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Mode;
use super::list::{ArgPattern, PathPattern, listed_path};
use crate::display;
use crate::ids::{AgentId, Hash32};
use crate::plan::{ExecPlan, Stdin};

/// Most bytes of a document.
pub const MAX_DOCUMENT: usize = 256 << 10;
const MAX_AGENTS: usize = 256;
const MAX_ENTRIES: usize = 512;

/// Why a document is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DocumentError(pub String);

/// `security`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Security {
    /// Nothing runs.
    Deny,
    /// The listed runs.
    Allowlist,
    /// Everything runs.
    Full,
}

/// `ask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenAsk {
    /// For everything.
    Always,
    /// For what is not listed.
    OnMiss,
    /// Never.
    Off,
}

/// The settings that hold for one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// `security`.
    pub security: Security,
    /// `ask`.
    pub ask: WhenAsk,
}

impl Settings {
    /// Where no document sets another: the listed runs, a miss asks.
    pub const BUILT_IN: Self = Self {
        security: Security::Allowlist,
        ask: WhenAsk::OnMiss,
    };

    /// What they mean. `full` with `on-miss` asks on a miss: of two readings the stricter.
    pub const fn mode(self) -> Mode {
        match (self.security, self.ask) {
            (Security::Deny, _) => Mode::DENY,
            (_, WhenAsk::Always) => Mode::ALWAYS_ASK,
            (_, WhenAsk::OnMiss) => Mode::ASK,
            (Security::Allowlist, WhenAsk::Off) => Mode::ALLOWLIST,
            (Security::Full, WhenAsk::Off) => Mode::FULL,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    version: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    socket: Option<RawSocket>,
    #[serde(default)]
    defaults: RawSettings,
    #[serde(default)]
    agents: BTreeMap<String, RawAgent>,
}

/// Kept for clients that send it back; nothing listens there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSocket {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawSettings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    security: Option<Security>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ask: Option<WhenAsk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ask_fallback: Option<Security>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auto_allow_skills: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawAgent {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    security: Option<Security>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ask: Option<WhenAsk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ask_fallback: Option<Security>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auto_allow_skills: Option<bool>,
    #[serde(default)]
    allowlist: Vec<RawEntry>,
    /// Ours: refused whatever else lets it run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    denylist: Vec<RawEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mcp_tools: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawEntry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    pattern: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(default, skip_serializing)]
    command_text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arg_pattern: Option<String>,
    /// Ours: also where its standard input is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stdin: Option<bool>,
    /// Ours: also on a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tty: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_used_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_used_command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_resolved_path: Option<String>,
}

/// One checked entry of an agent's list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    name: String,
    path: PathPattern,
    args: Option<ArgPattern>,
    stdin: bool,
    tty: bool,
}

impl Entry {
    /// Its id, or a name made of what it says.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn path_pattern(&self) -> &PathPattern {
        &self.path
    }

    pub(super) const fn arg_pattern(&self) -> Option<&ArgPattern> {
        self.args.as_ref()
    }

    /// Does it speak of commands that take input later? Path and arguments say nothing about that.
    pub(super) fn covers_input(&self, plan: &ExecPlan) -> bool {
        (self.stdin || plan.stdin == Stdin::None) && (self.tty || plan.tty.is_none())
    }

    /// Does it let pass all that the other does, under whatever name?
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.path == other.path && self.args == other.args && self.covers_flags(other)
    }

    pub(super) const fn covers_flags(&self, other: &Self) -> bool {
        (self.stdin || !other.stdin) && (self.tty || !other.tty)
    }
}

/// A checked document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    raw: Raw,
    lists: BTreeMap<String, List>,
    denied: BTreeMap<String, List>,
}

/// An agent's list, in its order and by path: a long one is not walked for each command.
#[derive(Debug, Clone, PartialEq)]
struct List {
    entries: Vec<Entry>,
    /// Places of the entries without a wildcard, rising.
    exact: BTreeMap<String, Vec<usize>>,
    /// Places of the others, rising.
    stars: Vec<usize>,
}

impl List {
    fn new(entries: Vec<Entry>) -> Self {
        let (mut exact, mut stars) = (BTreeMap::<String, Vec<usize>>::new(), vec![]);
        for (at, entry) in entries.iter().enumerate() {
            let path = entry.path_pattern();
            if path.is_exact() {
                exact.entry(path.as_str().to_owned()).or_default().push(at);
            } else {
                stars.push(at);
            }
        }
        Self {
            entries,
            exact,
            stars,
        }
    }

    fn first(&self, plan: &ExecPlan) -> Option<&Entry> {
        let exact = self.exact.get(listed_path(plan)?);
        let first = |places: &[usize]| {
            let mut places = places.iter().copied();
            places.find(|at| self.entries[*at].matches(plan))
        };
        let exact = exact.and_then(|places| first(places));
        let at = match (exact, first(&self.stars)) {
            (Some(exact), Some(star)) => exact.min(star),
            (exact, star) => exact.or(star)?,
        };
        self.entries.get(at)
    }
}

impl Document {
    /// The empty one: every setting is the built-in one.
    pub fn empty() -> Self {
        let raw = Raw {
            version: 1,
            socket: None,
            defaults: RawSettings::default(),
            agents: BTreeMap::new(),
        };
        Self {
            raw,
            lists: BTreeMap::new(),
            denied: BTreeMap::new(),
        }
    }

    /// Reads a document strictly: unknown fields and values are errors.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn parse(value: Value) -> Result<Self, DocumentError> {
        let size = serde_json::to_vec(&value).map_or(usize::MAX, |bytes| bytes.len());
        if size > MAX_DOCUMENT {
            return Err(DocumentError("the document is over 256 KiB".to_owned()));
        }
        let raw: Raw = serde_json::from_value(value)
            .map_err(|e| DocumentError(display::visible(&e.to_string()).into_owned()))?;
        if raw.version != 1 {
            return Err(DocumentError("version must be 1".to_owned()));
        }
        if raw.agents.len() > MAX_AGENTS {
            return Err(DocumentError("more than 256 agents".to_owned()));
        }
        check_settings(
            "defaults",
            raw.defaults.ask_fallback,
            raw.defaults.auto_allow_skills,
        )?;
        let (mut lists, mut denied) = (BTreeMap::new(), BTreeMap::new());
        for (id, agent) in &raw.agents {
            let place = format!("agents.{}", display::visible(id));
            AgentId::new(id).map_err(|e| DocumentError(format!("{place}: {e}")))?;
            check_settings(&place, agent.ask_fallback, agent.auto_allow_skills)?;
            if !agent.mcp_tools.is_empty() {
                return Err(DocumentError(format!(
                    "{place}.mcpTools must be empty: tools are not granted here"
                )));
            }
            let read = |name: &str, raw: &[RawEntry]| list(&format!("{place}.{name}"), raw);
            lists.insert(id.clone(), read("allowlist", &agent.allowlist)?);
            if !agent.denylist.is_empty() {
                denied.insert(id.clone(), read("denylist", &agent.denylist)?);
            }
        }
        Ok(Self { raw, lists, denied })
    }

    /// The same without what this agent's list calls so; none where nothing is.
    pub fn without(&self, agent: &str, name: &str) -> Option<Self> {
        let named: Vec<bool> = self.entries(agent).map(|e| e.name() == name).collect();
        if !named.contains(&true) {
            return None;
        }
        let mut raw = self.raw.clone();
        let mut named = named.into_iter();
        let list = &mut raw.agents.get_mut(agent)?.allowlist;
        list.retain(|_| named.next() != Some(true));
        Self::parse(serde_json::to_value(raw).ok()?).ok()
    }

    /// The document as JSON: what `exec.approvals.get` sends and the store keeps.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(&self.raw).expect("invariant: maps by string are JSON")
    }

    /// Over the document's own spelling; 64 hexadecimal digits on the wire.
    pub fn hash(&self) -> Hash32 {
        Hash32::of(self.to_json().to_string().as_bytes())
    }

    /// Takes over what a sent document may leave out: the `socket`.
    #[must_use]
    pub fn keeping(mut self, old: &Self) -> Self {
        if self.raw.socket.is_none() {
            self.raw.socket.clone_from(&old.raw.socket);
        }
        self
    }

    /// What holds for an agent, named or not.
    pub fn settings(&self, agent: &str) -> Settings {
        let own = self.raw.agents.get(agent);
        let defaults = self.defaults();
        Settings {
            security: own.and_then(|a| a.security).unwrap_or(defaults.security),
            ask: own.and_then(|a| a.ask).unwrap_or(defaults.ask),
        }
    }

    /// What holds for an agent that the document does not name.
    pub fn defaults(&self) -> Settings {
        Settings {
            security: self
                .raw
                .defaults
                .security
                .unwrap_or(Settings::BUILT_IN.security),
            ask: self.raw.defaults.ask.unwrap_or(Settings::BUILT_IN.ask),
        }
    }

    /// `resolvedDefaults` of the wire. Silence is never consent: `askFallback` is always `deny`.
    pub fn resolved_defaults(&self) -> Value {
        let Settings { security, ask } = self.defaults();
        serde_json::json!({ "security": security, "ask": ask, "askFallback": "deny", "autoAllowSkills": false })
    }

    /// The agents it names.
    pub fn agents(&self) -> impl Iterator<Item = &str> {
        self.raw.agents.keys().map(String::as_str)
    }

    /// The list of one agent.
    pub fn entries(&self, agent: &str) -> impl Iterator<Item = &Entry> {
        self.lists
            .get(agent)
            .into_iter()
            .flat_map(|list| &list.entries)
    }

    /// What is refused to one agent.
    pub fn denied(&self, agent: &str) -> impl Iterator<Item = &Entry> {
        self.denied
            .get(agent)
            .into_iter()
            .flat_map(|list| &list.entries)
    }

    /// Is anything refused to it by name?
    pub(super) fn denies(&self, agent: &str) -> bool {
        self.denied.contains_key(agent)
    }

    /// The first entry that refuses a command under one of these paths.
    pub(super) fn denying(
        &self,
        agent: &str,
        paths: &[String],
        argv: &[String],
        cwd: &str,
    ) -> Option<&Entry> {
        let list = self.denied.get(agent)?;
        let exact = paths
            .iter()
            .filter_map(|path| list.exact.get(path))
            .flatten();
        let stars = list.stars.iter().filter(|at| {
            let pattern = list.entries[**at].path_pattern();
            paths.iter().any(|path| pattern.matches(path))
        });
        let at = exact
            .chain(stars)
            .filter(|at| {
                let args = list.entries[**at].arg_pattern();
                args.is_none_or(|args| args.matches(argv, cwd))
            })
            .min()?;
        list.entries.get(*at)
    }

    /// The first entry of an agent's list that lets the plan pass.
    pub fn listing(&self, agent: &str, plan: &ExecPlan) -> Option<&Entry> {
        self.lists.get(agent)?.first(plan)
    }
}

fn list(place: &str, raw: &[RawEntry]) -> Result<List, DocumentError> {
    if raw.len() > MAX_ENTRIES {
        return Err(DocumentError(format!("{place} has more than 512 entries")));
    }
    let read = |(at, raw): (usize, &RawEntry)| {
        entry(raw).map_err(|why| DocumentError(format!("{place}[{at}]: {why}")))
    };
    let entries: Result<Vec<Entry>, DocumentError> = raw.iter().enumerate().map(read).collect();
    Ok(List::new(entries?))
}

fn check_settings(
    place: &str,
    fallback: Option<Security>,
    skills: Option<bool>,
) -> Result<(), DocumentError> {
    if fallback.is_some_and(|f| f != Security::Deny) {
        return Err(DocumentError(format!(
            "{place}.askFallback must be \"deny\": silence is never consent"
        )));
    }
    if skills == Some(true) {
        return Err(DocumentError(format!(
            "{place}.autoAllowSkills must be false: a skill's own word allows nothing"
        )));
    }
    Ok(())
}

fn entry(raw: &RawEntry) -> Result<Entry, String> {
    for text in [&raw.id, &raw.source].into_iter().flatten() {
        if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
            return Err("id and source have 1 to 128 characters without controls".to_owned());
        }
    }
    let path = PathPattern::parse(&raw.pattern)?;
    let args = raw
        .arg_pattern
        .as_deref()
        .map(ArgPattern::parse)
        .transpose()?;
    let (stdin, tty) = (raw.stdin == Some(true), raw.tty == Some(true));
    let name = raw.id.clone().unwrap_or_else(|| {
        let mut said = format!(
            "{}\0{}",
            raw.pattern,
            raw.arg_pattern.as_deref().unwrap_or("")
        );
        for (word, is) in [("\0stdin", stdin), ("\0tty", tty)] {
            said.push_str(if is { word } else { "" });
        }
        Hash32::of(said.as_bytes())
            .to_string()
            .chars()
            .take(12)
            .collect()
    });
    Ok(Entry {
        name,
        path,
        args,
        stdin,
        tty,
    })
}
