//! One profile: every limit of a box and of the runs in it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::env::EnvNames;
use super::mounts::Mounts;
use crate::egress::{Rules, Terminations};
use crate::ids::AgentId;

/// Begins the canonical bytes; another form gets another number.
const CANONICAL: &[u8] = b"portcullis-profile-v7\0";

/// How strong what holds a box is; more is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Namespaces, filters and an unprivileged user, but no ceiling on memory, processors and processes of the tree.
    Unbounded,
    /// The same, under control groups.
    Native,
    /// A container of a Docker engine: besides, a root file system of its own and the engine's profiles.
    Docker,
}

/// Which driver makes a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverChoice {
    /// Docker where an engine answers, else native: decided once, at a gateway's start.
    #[default]
    Auto,
    /// A container of the engine, or nothing.
    Docker,
    /// bubblewrap, or nothing.
    Native,
}

impl DriverChoice {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Docker => "docker",
            Self::Native => "native",
        }
    }
}

/// What a box sees of its agent's folder; more is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Nothing: `/workspace` is empty, in memory, and goes with the box.
    None,
    /// It can be read.
    Ro,
    /// It can be written.
    Rw,
}

/// Who has a box together; more is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Each session of an agent has a fresh one, which goes with it.
    Session,
    /// Each agent has one.
    Agent,
    /// All agents that name the same [`Profile::share`] have one: each can read, change and end what the others do in it.
    Shared,
}

/// What becomes of a host that is not on the list; more is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlisted {
    /// It is refused.
    Refuse,
    /// A person is asked, and it is refused meanwhile.
    Ask,
}

impl Unlisted {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Ask => "ask",
        }
    }
}

/// What a box sees of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Its own loopback.
    None,
}

/// Which system calls the runs of a box may make; more is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SystemCalls {
    /// Ordinary programs' alone.
    Strict,
    /// Besides, those by which a debugger looks into its own run's processes.
    Debug,
}

impl SystemCalls {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Debug => "debug",
        }
    }
}

/// The profiles in this program, after Kubernetes' pod security levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Named {
    /// The default.
    Restricted,
    /// Room for a compiler.
    Baseline,
    /// The most that one box should ever take.
    Privileged,
}

impl Named {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Restricted, Self::Baseline, Self::Privileged];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restricted => "restricted",
            Self::Baseline => "baseline",
            Self::Privileged => "privileged",
        }
    }

    /// Its file.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Restricted => include_str!("../../config/profiles/restricted.toml"),
            Self::Baseline => include_str!("../../config/profiles/baseline.toml"),
            Self::Privileged => include_str!("../../config/profiles/privileged.toml"),
        }
    }

    /// Its limits.
    pub fn profile(self) -> Profile {
        // A test reads each file. One that could not be read would close, not open.
        toml::from_str(self.text()).unwrap_or_else(|_| Profile::least())
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Isolation {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unbounded => "unbounded",
            Self::Native => "native",
            Self::Docker => "docker",
        }
    }
}

impl Access {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ro => "ro",
            Self::Rw => "rw",
        }
    }
}

impl Scope {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Agent => "agent",
            Self::Shared => "shared",
        }
    }
}

impl Network {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
        }
    }
}

/// The name of a local image, as the engine takes it: `tools:1`, or an id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// Checks the text. It is looked up by the engine, in a path of its API.
    ///
    /// # Errors
    /// The rule.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b);
        let begins = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if begins && text.len() <= 255 && text.bytes().all(is_plain) && !text.contains("..") {
            return Ok(Self(text.to_owned()));
        }
        Err("an image is named like tools:1 or sha256:…: letters, digits and . _ - / : @, at most 255".to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ImageName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

/// The name of one of the engine's runtimes: `runc`, `crun`, `runsc`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuntimeName(String);

impl RuntimeName {
    /// Checks the text.
    ///
    /// # Errors
    /// The rule.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let begins = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if begins && text.len() <= 64 && text.bytes().all(is_plain) {
            return Ok(Self(text.to_owned()));
        }
        Err("a runtime is named as the engine knows it, like runc or runsc: letters, digits and . _ -, at most 64".to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RuntimeName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<RuntimeName> for String {
    fn from(name: RuntimeName) -> Self {
        name.0
    }
}

/// What agents of scope `shared` call what they share. Written as an agent's name is: the box's folder has it in its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShareName(String);

impl ShareName {
    /// Checks the text.
    ///
    /// # Errors
    /// The rule.
    pub fn new(text: &str) -> Result<Self, String> {
        let checked = AgentId::new(text);
        checked.map(|name| Self(name.to_string())).map_err(|_| {
            "a share is named with 1 to 64 characters a-z, 0-9, _ or -, beginning with a letter or digit"
                .to_owned()
        })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ShareName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl TryFrom<String> for ShareName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<ShareName> for String {
    fn from(name: ShareName) -> Self {
        name.0
    }
}

impl fmt::Display for ShareName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A value of a profile, for people and for machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// A limit.
    Number(u64),
    /// A word.
    Word(String),
    /// Names.
    List(Vec<String>),
}

/// Every limit of a box. A field that is added here must be told in [`Profile::entries`], or this does not compile.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What makes it.
    pub driver: DriverChoice,
    /// The weakest isolation that will do.
    pub min_isolation: Isolation,
    /// A local image of the engine's; none is the default one.
    #[serde(deserialize_with = "unless_empty")]
    pub image: Option<ImageName>,
    /// One of the engine's runtimes; none is its default one.
    #[serde(deserialize_with = "runtime_unless_empty")]
    pub runtime: Option<RuntimeName>,
    /// Which system calls its runs may make.
    pub seccomp: SystemCalls,
    /// Who has it together.
    pub scope: Scope,
    /// With whom, where the scope is `shared`.
    pub share: ShareName,
    /// What it sees of its agent's folder.
    pub workspace: Access,
    /// Bytes of disk that its agent's folder may hold, whichever of its boxes writes there. A file with several names counts once, one with
    /// holes for what it has on disk.
    pub workspace_bytes: u64,
    /// Names in that folder: of files, folders and links. Each is something to count, so this bounds the time that counting takes.
    pub workspace_files: u64,
    /// What else it sees of the host.
    pub mounts: Mounts,
    /// What it sees of a network.
    pub network: Network,
    /// Hosts that it may reach through the gateway; none: nothing leaves it.
    pub egress: Rules,
    /// What becomes of any other host by name.
    pub egress_unlisted: Unlisted,
    /// Hosts among them whose TLS the gateway opens, and the secrets that it puts into requests to them.
    #[serde(deserialize_with = "entries")]
    pub terminate: Terminations,
    /// Variables that a request may set.
    pub env: EnvNames,
    /// Memory and swap together, bytes.
    pub memory_bytes: u64,
    /// Processor share in thousandths of a core.
    pub cpu_millis: u32,
    /// Processes and threads, the box's own included.
    pub pids: u32,
    /// Open files of a process.
    pub open_files: u32,
    /// The longest file that a process may write, bytes.
    pub file_bytes: u64,
    /// Bytes of each output stream of a run that are passed on.
    pub output_cap_bytes: u64,
    /// Time of a run that asks for none, milliseconds.
    pub timeout_ms: u64,
    /// The longest time that a run may ask for, milliseconds.
    pub max_timeout_ms: u64,
    /// A box without a run for so many seconds is ended.
    pub idle_secs: u64,
    /// A box of that age, in seconds, takes no new run and is ended when nothing runs in it.
    pub max_age_secs: u64,
}

fn entries<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Terminations, D::Error> {
    crate::egress::terminations(from).map(Option::unwrap_or_default)
}

fn unless_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<ImageName>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    ImageName::new(&text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}

fn runtime_unless_empty<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<RuntimeName>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    RuntimeName::new(&text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}

impl Profile {
    /// The least that a box can be: nothing is below it.
    pub fn least() -> Self {
        Self {
            driver: DriverChoice::Auto,
            min_isolation: Isolation::Docker,
            image: None,
            runtime: None,
            seccomp: SystemCalls::Strict,
            scope: Scope::Session,
            share: ShareName::default(),
            workspace: Access::None,
            workspace_bytes: 1 << 20,
            workspace_files: 64,
            mounts: Mounts::default(),
            network: Network::None,
            egress: Rules::default(),
            egress_unlisted: Unlisted::Refuse,
            terminate: Terminations::default(),
            env: EnvNames::default(),
            memory_bytes: 16 << 20,
            cpu_millis: 10,
            pids: 16,
            open_files: 32,
            file_bytes: 1,
            output_cap_bytes: 1,
            timeout_ms: 1,
            max_timeout_ms: 1,
            idle_secs: 1,
            max_age_secs: 1,
        }
    }

    /// What a child gets that was made by this one's agent: of each limit the smaller, the stronger isolation, and only what both may
    /// see and set. Driver, image, runtime and share are no more and no less: they are the parent's, whose tools and files they stand for.
    #[must_use]
    pub fn meet(&self, child: &Self) -> Self {
        let Network::None = child.network;
        Self {
            driver: self.driver,
            min_isolation: self.min_isolation.max(child.min_isolation),
            image: self.image.clone(),
            runtime: self.runtime.clone(),
            seccomp: self.seccomp.min(child.seccomp),
            scope: self.scope.min(child.scope),
            share: self.share.clone(),
            workspace: self.workspace.min(child.workspace),
            workspace_bytes: self.workspace_bytes.min(child.workspace_bytes),
            workspace_files: self.workspace_files.min(child.workspace_files),
            mounts: self.mounts.meet(&child.mounts),
            network: Network::None,
            egress: self.egress.meet(&child.egress),
            egress_unlisted: self.egress_unlisted.min(child.egress_unlisted),
            terminate: self.terminate.meet(&child.terminate),
            env: self.env.meet(&child.env),
            memory_bytes: self.memory_bytes.min(child.memory_bytes),
            cpu_millis: self.cpu_millis.min(child.cpu_millis),
            pids: self.pids.min(child.pids),
            open_files: self.open_files.min(child.open_files),
            file_bytes: self.file_bytes.min(child.file_bytes),
            output_cap_bytes: self.output_cap_bytes.min(child.output_cap_bytes),
            timeout_ms: self.timeout_ms.min(child.timeout_ms),
            max_timeout_ms: self.max_timeout_ms.min(child.max_timeout_ms),
            idle_secs: self.idle_secs.min(child.idle_secs),
            max_age_secs: self.max_age_secs.min(child.max_age_secs),
        }
    }

    /// Whether nothing in it is more than in the other. Driver, image, runtime and share are left out: they are no more and no less.
    pub fn is_within(&self, other: &Self) -> bool {
        let (Network::None, Network::None) = (self.network, other.network);
        self.min_isolation >= other.min_isolation
            && self.scope <= other.scope
            && self.seccomp <= other.seccomp
            && self.workspace <= other.workspace
            && self.workspace_bytes <= other.workspace_bytes
            && self.workspace_files <= other.workspace_files
            && self.mounts.is_within(&other.mounts)
            && self.egress.is_within(&other.egress)
            && self.egress_unlisted <= other.egress_unlisted
            && self.terminate.is_within(&other.terminate)
            && self.env.is_within(&other.env)
            && self.memory_bytes <= other.memory_bytes
            && self.cpu_millis <= other.cpu_millis
            && self.pids <= other.pids
            && self.open_files <= other.open_files
            && self.file_bytes <= other.file_bytes
            && self.output_cap_bytes <= other.output_cap_bytes
            && self.timeout_ms <= other.timeout_ms
            && self.max_timeout_ms <= other.max_timeout_ms
            && self.idle_secs <= other.idle_secs
            && self.max_age_secs <= other.max_age_secs
    }

    /// Every key with its value, in the order in which they are shown and hashed.
    pub fn entries(&self) -> Vec<(&'static str, Shown)> {
        let Self {
            driver,
            min_isolation,
            image,
            runtime,
            seccomp,
            scope,
            share,
            workspace,
            workspace_bytes,
            workspace_files,
            mounts,
            network,
            egress,
            egress_unlisted,
            terminate,
            env,
            memory_bytes,
            cpu_millis,
            pids,
            open_files,
            file_bytes,
            output_cap_bytes,
            timeout_ms,
            max_timeout_ms,
            idle_secs,
            max_age_secs,
        } = self;
        let word = |text: &str| Shown::Word(text.to_owned());
        let count = |number: &u32| Shown::Number(u64::from(*number));
        let size = |number: &u64| Shown::Number(*number);
        vec![
            ("driver", word(driver.as_str())),
            ("min_isolation", word(min_isolation.as_str())),
            ("image", word(image.as_ref().map_or("", ImageName::as_str))),
            (
                "runtime",
                word(runtime.as_ref().map_or("", RuntimeName::as_str)),
            ),
            ("seccomp", word(seccomp.as_str())),
            ("scope", word(scope.as_str())),
            ("share", word(share.as_str())),
            ("workspace", word(workspace.as_str())),
            ("workspace_bytes", size(workspace_bytes)),
            ("workspace_files", size(workspace_files)),
            ("mounts", Shown::List(mounts.texts())),
            ("network", word(network.as_str())),
            ("egress", Shown::List(egress.texts())),
            ("egress_unlisted", word(egress_unlisted.as_str())),
            ("terminate", Shown::List(terminate.texts())),
            (
                "env",
                Shown::List(env.entries().map(str::to_owned).collect()),
            ),
            ("memory_bytes", size(memory_bytes)),
            ("cpu_millis", count(cpu_millis)),
            ("pids", count(pids)),
            ("open_files", count(open_files)),
            ("file_bytes", size(file_bytes)),
            ("output_cap_bytes", size(output_cap_bytes)),
            ("timeout_ms", size(timeout_ms)),
            ("max_timeout_ms", size(max_timeout_ms)),
            ("idle_secs", size(idle_secs)),
            ("max_age_secs", size(max_age_secs)),
        ]
    }

    /// Whether anything may leave its boxes: then they have a proxy, and no network in either case.
    pub fn may_leave(&self) -> bool {
        !self.egress.is_empty() || self.egress_unlisted == Unlisted::Ask
    }

    /// The one form of these limits in bytes: equal exactly where they are. For a hash that names what a box was made from.
    pub fn canonical(&self) -> Vec<u8> {
        let mut bytes = CANONICAL.to_vec();
        let mut put = |field: &[u8]| {
            // No field is longer than the configuration that it came from (1 MiB).
            bytes.extend(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(field);
        };
        for (key, value) in self.entries() {
            put(key.as_bytes());
            match value {
                Shown::Number(number) => put(&number.to_be_bytes()),
                Shown::Word(word) => put(word.as_bytes()),
                Shown::List(names) => {
                    put(&(names.len() as u64).to_be_bytes());
                    for name in names {
                        put(name.as_bytes());
                    }
                }
            }
        }
        bytes
    }

    /// Time of a run, milliseconds: what it asks for, within the ceiling; there is always one.
    pub fn timeout(&self, asked: Option<u64>) -> u64 {
        asked
            .unwrap_or(self.timeout_ms)
            .clamp(1, self.max_timeout_ms.max(1))
    }
}
