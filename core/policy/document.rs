//! The approvals document of the peer's shape (wire.md section 9), read strictly: it applies to host commands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::ArgWords;
use super::list::{ArgPattern, PathPattern, listed_path};
use super::{ExecMode, Mode};
use crate::display;
use crate::ids::{AgentId, Hash32};
use crate::plan::{ExecPlan, Executable, Stdin, Target, is_canonical_path};
use crate::time::Millis;

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
    /// Ours: `security` and `ask` in one word; read, and kept as those.
    #[serde(default, skip_serializing)]
    mode: Option<ExecMode>,
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
    /// Ours, as in the defaults.
    #[serde(default, skip_serializing)]
    mode: Option<ExecMode>,
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
    /// Ours: the words after the name, each by itself; in place of `argPattern`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Vec<String>>,
    /// Ours: the exact folder that it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
    /// Ours: the file's SHA-256, as hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// Ours: the digest of the image that the file is in; a command in a sandbox of that image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    /// Ours: only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    only_in: Option<Where>,
    /// Ours: until this time (RFC 3339, with its offset).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
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

/// Where an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Where {
    /// In the sandbox, never outside.
    Sandbox,
    /// On the gateway's machine, outside the sandbox.
    Host,
}

/// One checked entry of an agent's list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    name: String,
    path: PathPattern,
    args: Option<ArgPattern>,
    words: Option<ArgWords>,
    cwd: Option<String>,
    sha256: Option<Hash32>,
    image: Option<String>,
    only_in: Option<Where>,
    until: Option<Millis>,
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

    pub(super) const fn arg_words(&self) -> Option<&ArgWords> {
        self.words.as_ref()
    }

    /// Does it say all arguments?
    pub(super) fn is_exact(&self) -> bool {
        self.args.is_some() || self.words.as_ref().is_some_and(ArgWords::is_exact)
    }

    /// Does it say that the file has these bytes?
    pub(super) fn has_digest(&self, digest: Hash32) -> bool {
        self.sha256 == Some(digest)
    }

    /// Does it name a folder?
    pub(super) fn has_cwd(&self) -> bool {
        self.cwd.is_some() || self.args.as_ref().is_some_and(ArgPattern::has_cwd)
    }

    pub(super) fn covers_args(&self, argv: &[String], cwd: &str) -> bool {
        self.args
            .as_ref()
            .is_none_or(|args| args.matches(argv, cwd))
            && self.words.as_ref().is_none_or(|words| words.matches(argv))
            && self.cwd.as_ref().is_none_or(|own| own == cwd)
    }

    /// Does it hold at this time, there, and for this very file?
    pub(super) fn holds(&self, plan: &ExecPlan, now: Millis) -> bool {
        let is_there = match self.only_in {
            None => true,
            Some(Where::Sandbox) => plan.target == Target::Sandbox,
            Some(Where::Host) => plan.target == Target::Host,
        };
        let is_file = match (&self.sha256, &plan.executable) {
            (None, _) => true,
            (Some(own), Executable::Host(file) | Executable::HostScript { script: file, .. }) => {
                *own == file.sha256
            }
            (Some(_), _) => false,
        };
        let is_image = match (&self.image, &plan.executable) {
            (None, _) => true,
            (Some(own), Executable::Image { digest, .. }) => own == digest,
            (Some(_), _) => false,
        };
        is_there && is_file && is_image && self.is_on(now)
    }

    /// Has its time not passed?
    pub(super) fn is_on(&self, now: Millis) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// What it says beside path and arguments, for a person: `until …`, `only in the sandbox`.
    pub(super) fn conditions(&self) -> Value {
        serde_json::json!({
            "words": self.words.as_ref().map(ArgWords::words), "cwd": self.cwd, "sha256": self.sha256, "image": self.image,
            "onlyIn": self.only_in, "until": self.until,
        })
    }

    /// Does it speak of commands that take input later? Path and arguments say nothing about that.
    pub(super) fn covers_input(&self, plan: &ExecPlan) -> bool {
        (self.stdin || plan.stdin == Stdin::None) && (self.tty || plan.tty.is_none())
    }

    /// Does it let pass all that the other does, under whatever name?
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.path == other.path
            && self.args == other.args
            && self.words == other.words
            && self.covers_rest(other)
    }

    /// Does it hold wherever and whenever the other does, path and arguments apart?
    pub(super) fn covers_rest(&self, other: &Self) -> bool {
        fn wider<T: PartialEq>(own: Option<&T>, of: Option<&T>) -> bool {
            own.is_none() || own == of
        }
        wider(self.cwd.as_ref(), other.cwd.as_ref())
            && wider(self.sha256.as_ref(), other.sha256.as_ref())
            && wider(self.image.as_ref(), other.image.as_ref())
            && wider(self.only_in.as_ref(), other.only_in.as_ref())
            && self
                .until
                .is_none_or(|own| other.until.is_some_and(|of| of <= own))
            && self.covers_flags(other)
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

    fn first(&self, plan: &ExecPlan, now: Millis) -> Option<&Entry> {
        let exact = self.exact.get(listed_path(plan)?);
        let first = |places: &[usize]| {
            let mut places = places.iter().copied();
            places.find(|at| self.entries[*at].matches(plan, now))
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
    /// What a new state begins with, written out: the listed runs, a miss asks, and nothing is listed.
    pub fn first() -> Value {
        serde_json::json!({
            "version": 1,
            "defaults": { "security": "allowlist", "ask": "on-miss", "askFallback": "deny" },
            "agents": {},
        })
    }

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
        let mut raw: Raw = serde_json::from_value(value)
            .map_err(|e| DocumentError(display::visible(&e.to_string()).into_owned()))?;
        if raw.version != 1 {
            return Err(DocumentError("version must be 1".to_owned()));
        }
        if raw.agents.len() > MAX_AGENTS {
            return Err(DocumentError("more than 256 agents".to_owned()));
        }
        let defaults = &mut raw.defaults;
        in_one_word(
            "defaults",
            &mut defaults.mode,
            &mut defaults.security,
            &mut defaults.ask,
        )?;
        for (id, agent) in &mut raw.agents {
            let place = format!("agents.{}", display::visible(id));
            in_one_word(&place, &mut agent.mode, &mut agent.security, &mut agent.ask)?;
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
            if let Some(at) = agent.denylist.iter().position(RawEntry::is_conditional) {
                return Err(DocumentError(format!(
                    "{place}.denylist[{at}]: a refused command is named by pattern and argPattern alone; what it is otherwise, it is refused too"
                )));
            }
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
            .filter(|at| list.entries[**at].covers_args(argv, cwd))
            .min()?;
        list.entries.get(*at)
    }

    /// The first entry of an agent's list that lets the plan pass.
    pub fn listing(&self, agent: &str, plan: &ExecPlan, now: Millis) -> Option<&Entry> {
        self.lists.get(agent)?.first(plan, now)
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

/// A mode, as the two settings that it stands for.
fn in_one_word(
    place: &str,
    mode: &mut Option<ExecMode>,
    security: &mut Option<Security>,
    ask: &mut Option<WhenAsk>,
) -> Result<(), DocumentError> {
    let Some(mode) = mode.take() else {
        return Ok(());
    };
    if security.is_some() || ask.is_some() {
        return Err(DocumentError(format!(
            "{place}.mode says what security and ask say: one of them"
        )));
    }
    let (says, when) = match mode {
        ExecMode::Deny => (Security::Deny, WhenAsk::OnMiss),
        ExecMode::Allowlist => (Security::Allowlist, WhenAsk::Off),
        ExecMode::Ask => (Security::Allowlist, WhenAsk::OnMiss),
        ExecMode::Full => (Security::Full, WhenAsk::Off),
    };
    (*security, *ask) = (Some(says), Some(when));
    Ok(())
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
    let words = raw.args.as_deref().map(ArgWords::parse).transpose()?;
    if args.is_some() && words.is_some() {
        return Err("args and argPattern say the same twice: one of them".to_owned());
    }
    if args.as_ref().is_some_and(ArgPattern::has_cwd) && raw.cwd.is_some() {
        return Err("cwd and the cwd of argPattern say the same twice: one of them".to_owned());
    }
    if raw.cwd.as_ref().is_some_and(|cwd| !is_canonical_path(cwd)) {
        return Err("cwd is an absolute path without `.`, `..` or doubled `/`".to_owned());
    }
    let sha256 = match raw.sha256.clone().map(Hash32::try_from) {
        None => None,
        Some(Ok(hash)) => Some(hash),
        Some(Err(_)) => return Err("sha256 is 64 hexadecimal digits".to_owned()),
    };
    let until = raw.until.as_deref().map(moment).transpose()?;
    let is_digest = |text: &String| {
        text.strip_prefix("sha256:")
            .is_some_and(|digits| Hash32::try_from(digits.to_owned()).is_ok())
    };
    if raw.image.as_ref().is_some_and(|image| !is_digest(image)) {
        return Err("image is the digest of one, `sha256:` and 64 hexadecimal digits".to_owned());
    }
    if raw.image.is_some() && (sha256.is_some() || raw.only_in == Some(Where::Host)) {
        return Err(
            "what an image holds runs in the sandbox, and its digest says which file it is"
                .to_owned(),
        );
    }
    if sha256.is_some() && raw.only_in == Some(Where::Sandbox) {
        return Err(
            "of a file in a sandbox the image's digest is known: image, not sha256".to_owned(),
        );
    }
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
        if raw.is_conditional() {
            let all = serde_json::json!([
                raw.args,
                raw.cwd,
                raw.sha256,
                raw.image,
                raw.only_in,
                raw.until
            ]);
            said.push_str(&all.to_string());
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
        words,
        cwd: raw.cwd.clone(),
        sha256,
        image: raw.image.clone(),
        only_in: raw.only_in,
        until,
        stdin,
        tty,
    })
}

/// A moment as people write it.
fn moment(text: &str) -> Result<Millis, &'static str> {
    const WANTED: &str = "until is a time with its offset, as 2027-01-31T18:00:00Z";
    let read: toml::value::Datetime = text.parse().map_err(|_| WANTED)?;
    let (Some(date), Some(time), Some(offset)) = (read.date, read.time, read.offset) else {
        return Err(WANTED);
    };
    // Days since 1970, of the calendar that begins its year with March.
    let (year, month) = (i64::from(date.year), i64::from(date.month));
    let year = if month > 2 { year } else { year - 1 };
    let day = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(date.day) - 1;
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day
        - 719_468;
    let minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    let seconds = ((days * 24 + i64::from(time.hour)) * 60 + i64::from(time.minute) - minutes) * 60
        + i64::from(time.second.unwrap_or(0));
    let ms = u64::try_from(seconds).map_err(|_| WANTED)? * 1_000;
    Ok(Millis(ms))
}

impl RawEntry {
    /// Says it more than the peer's entries can?
    const fn is_conditional(&self) -> bool {
        self.args.is_some()
            || self.cwd.is_some()
            || self.sha256.is_some()
            || self.image.is_some()
            || self.only_in.is_some()
            || self.until.is_some()
    }
}
