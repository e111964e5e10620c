//! The frozen plan of one command: the only form in which a command is decided on, approved, recorded and run.
//!
//! contracts.md section 4. What is approved is the hash of the canonical bytes, so every field that changes what
//! happens is in them. Strings are UTF-8 without NUL; a plan that does not pass [`ExecPlan::validate`] is never hashed
//! for anybody.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::display;
use crate::egress::Rules;
use crate::ids::{AgentId, Hash32};

mod encode;
mod env;
mod operand;
mod sealed;

pub(crate) use env::is_harmless;
pub use env::{EnvPolicy, HOST_PATH, is_env_name, steers};
use env::{OWN_HOST_ENV, check_env_name};
pub use operand::{Held, MAX_OPERANDS, Operand, Unkept};
pub use sealed::PlanKey;

/// Most items of argv.
pub const MAX_ARGV: usize = 1024;
/// Most bytes of all texts of a plan together: below Linux' own limit of one string.
pub const MAX_BYTES: usize = 128 << 10;
/// Most variables of the environment.
pub const MAX_ENV: usize = 256;
/// Most supplementary groups.
pub const MAX_GROUPS: usize = 64;
const MAX_NAME: usize = 256;
const MAX_PATH: usize = 4096;

/// Why a plan is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A field breaks its rule.
    #[error("{field} must be {rule}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// A variable that who asks may not set there.
    #[error(
        "the variable {0} may not be set for a {1} command: leave it out, or name it in [exec.host] env"
    )]
    Env(String, &'static str),
    /// Two fields contradict one another.
    #[error("{0}")]
    Mismatch(&'static str),
    /// Kept bytes that are no plan.
    #[error("the kept plan cannot be read: {0}")]
    Json(String),
}

const fn field(field: &'static str, rule: &'static str) -> PlanError {
    PlanError::Field { field, rule }
}

/// Where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Target {
    /// In the agent's box.
    Sandbox,
    /// On the gateway's own machine, outside any box.
    Host,
    /// On a connected node, by its id.
    Node(String),
}

impl Target {
    /// The word in records and requests: `sandbox`, `host`, `node:<id>`.
    pub fn word(&self) -> String {
        match self {
            Self::Sandbox => "sandbox".to_owned(),
            Self::Host => "host".to_owned(),
            Self::Node(id) => format!("node:{id}"),
        }
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Host => "host",
            Self::Node(_) => "node",
        }
    }
}

/// A file of the host, opened once: what the descriptor said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFile {
    /// Resolved absolute path, without symbolic links, `.` or `..`.
    pub path: String,
    /// Device number of the opened file.
    pub dev: u64,
    /// Inode number of the opened file.
    pub ino: u64,
    /// Digest of its bytes.
    pub sha256: Hash32,
}

/// What runs. What each variant proves differs: contracts.md section 4.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Executable {
    /// A program of the host.
    Host(HostFile),
    /// A script of the host and the program that reads it.
    HostScript {
        /// The script; its descriptor is inherited by the interpreter.
        script: HostFile,
        /// The interpreter, opened too.
        interpreter: HostFile,
        /// The one argument of its `#!` line.
        argument: Option<String>,
    },
    /// A program of the box's image (or of the host's `/usr` in the native driver): the box's word is no evidence.
    Image {
        /// The image's or profile's digest, as its driver names it.
        digest: String,
        /// The path or name as asked.
        path: String,
    },
    /// A file of the workspace, which the agent can write.
    Workspace {
        /// The path as asked.
        path: String,
    },
    /// A program of a node.
    Node {
        /// What the node claims its file to be.
        claimed_sha256: Option<Hash32>,
    },
}

impl Executable {
    /// Its path, where it has one.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Host(file) | Self::HostScript { script: file, .. } => Some(&file.path),
            Self::Image { path, .. } | Self::Workspace { path } => Some(path),
            Self::Node { .. } => None,
        }
    }

    /// Its digest, where we have taken it ourselves.
    pub fn sha256(&self) -> Option<Hash32> {
        match self {
            Self::Host(file) | Self::HostScript { script: file, .. } => Some(file.sha256),
            _ => None,
        }
    }
}

/// The value of a variable: in clear, or which secret to put in at the moment of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum EnvValue {
    /// The value itself.
    Plain(String),
    /// A secret of the vault; never its value.
    Secret {
        /// Its name in the vault.
        name: String,
        /// The version that was approved; another version is another plan.
        version: u64,
    },
}

/// Standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Stdin {
    /// Closed: end of file at once.
    None,
    /// Exactly these bytes.
    Sha256(Hash32),
    /// A stream nobody has seen yet.
    Open,
}

/// A terminal's size. Each of both is 1 to 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub cols: u16,
}

impl TtySize {
    /// Largest of both.
    pub const MOST: u16 = 4096;

    /// Is it one?
    pub fn is_valid(self) -> bool {
        (1..=Self::MOST).contains(&self.rows) && (1..=Self::MOST).contains(&self.cols)
    }
}

impl fmt::Display for TtySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.rows, self.cols)
    }
}

/// `tty` as it is kept: plans of before there were terminals say `false`, and so does one without.
mod tty {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::TtySize;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Kept {
        None(bool),
        Size(TtySize),
    }

    // serde hands out a reference.
    #[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref)]
    pub(super) fn serialize<S: Serializer>(
        tty: &Option<TtySize>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        tty.map_or(Kept::None(false), Kept::Size).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<TtySize>, D::Error> {
        match Kept::deserialize(from)? {
            Kept::None(false) => Ok(None),
            Kept::None(true) => Err(serde::de::Error::custom("a terminal has a size")),
            Kept::Size(size) => Ok(Some(size)),
        }
    }
}

/// The network that the command sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Egress {
    /// The plan grants none: a box has no network. A host command is not confined by it and keeps the machine's.
    None,
    /// A box without a network, and the gateway's proxy to these hosts: `host:port`, each in its one form, ascending
    /// ([`Rules::texts`]).
    Hosts(Vec<String>),
    /// The host's network, for a box too.
    Host,
}

/// What ends the command if it does not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Wall time, ms, 1 to 24 h.
    pub timeout_ms: u64,
    /// Bytes of each of stdout and stderr.
    pub output_bytes: u64,
    /// Memory of the box; none: the machine's.
    pub memory_bytes: Option<u64>,
    /// Thousandths of one core; none: the machine's.
    pub cpu_millis: Option<u32>,
    /// Processes at once; none: the machine's.
    pub pids: Option<u32>,
}

/// Makes one approval good for one run: 16 to 32 random bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(Vec<u8>);

impl Nonce {
    /// 16 to 32 bytes.
    ///
    /// # Errors
    /// Another length.
    pub fn new(bytes: &[u8]) -> Result<Self, PlanError> {
        if (16..=32).contains(&bytes.len()) {
            Ok(Self(bytes.to_vec()))
        } else {
            Err(field("nonce", "16 to 32 bytes"))
        }
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(self.clone()))
    }
}

impl TryFrom<String> for Nonce {
    type Error = PlanError;
    fn try_from(text: String) -> Result<Self, PlanError> {
        let digit = |b: &u8| {
            char::from(*b)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        let bytes: Option<Vec<u8>> = text
            .as_bytes()
            .chunks(2)
            .map(|pair| match pair {
                [high, low] if !pair.iter().any(u8::is_ascii_uppercase) => {
                    Some((digit(high)? << 4) | digit(low)?)
                }
                _ => None,
            })
            .collect();
        Self::new(&bytes.ok_or(field("nonce", "lower-case hexadecimal digits"))?)
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('0');
        let digits = nonce.0.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]);
        digits.collect()
    }
}

/// The form of a plan. Each has canonical bytes of its own, so that a plan of one never has the hash of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Form {
    /// Without operands: read and hashed as before, made no more.
    V1,
    /// With operands.
    V2,
}

impl TryFrom<u8> for Form {
    type Error = &'static str;
    fn try_from(v: u8) -> Result<Self, Self::Error> {
        match v {
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            _ => Err("not version 1 or 2"),
        }
    }
}

impl From<Form> for u8 {
    fn from(form: Form) -> Self {
        match form {
            Form::V1 => 1,
            Form::V2 => 2,
        }
    }
}

/// One command, frozen. Every field is in [`ExecPlan::canonical`], in the order of contracts.md section 4; operands come
/// after the executable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecPlan {
    /// Version of the form.
    pub v: Form,
    /// Where.
    pub target: Target,
    /// For which agent.
    pub agent: AgentId,
    /// In which session: the connection or request session id, 1 to 256 bytes.
    pub session: String,
    /// Who asks ([`crate::auth::Principal::name`]), 1 to 256 bytes.
    pub principal: String,
    /// The arguments, the name first.
    pub argv: Vec<String>,
    /// What runs.
    pub executable: Executable,
    /// Words of argv that name files, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operands: Vec<Operand>,
    /// Absolute, without `.`, `..`, doubled or trailing `/`.
    pub cwd: String,
    /// As which user; never 0.
    pub uid: u32,
    /// As which group; never 0.
    pub gid: u32,
    /// Supplementary groups, ascending, each once, never 0.
    pub groups: Vec<u32>,
    /// The whole environment: nothing is inherited.
    pub env: BTreeMap<String, EnvValue>,
    /// Standard input.
    pub stdin: Stdin,
    /// On a terminal, and of which size at its start.
    #[serde(with = "tty")]
    pub tty: Option<TtySize>,
    /// Limits.
    pub limits: Limits,
    /// Network.
    pub egress: Egress,
    /// Digest of the sandbox or host profile that holds it; on the host with the very folder that it begins in.
    pub profile_digest: Hash32,
    /// Makes the approval of this plan good once.
    pub nonce: Nonce,
}

/// An absolute path in its one spelling.
pub fn is_canonical_path(path: &str) -> bool {
    path.len() <= MAX_PATH
        && !path.contains('\0')
        && (path == "/"
            || path.strip_prefix('/').is_some_and(|rest| {
                rest.split('/')
                    .all(|part| !part.is_empty() && part != "." && part != "..")
            }))
}

/// In a plan, the session that a request calls by a name.
const NAMED_SESSION: &str = "key:";

/// What the session of a plan is called, where its request named it; a connection's is not.
pub fn session_name(session: &str) -> Option<&str> {
    session.strip_prefix(NAMED_SESSION)
}

/// The session of a plan whose request calls it so.
pub fn named_session(name: &str) -> String {
    format!("{NAMED_SESSION}{name}")
}

impl ExecPlan {
    /// Everything that can be told from the plan itself, and its environment against the policy.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn validate(&self, env: &EnvPolicy) -> Result<(), PlanError> {
        self.validate_shape()?;
        for (name, value) in &self.env {
            let own = matches!(value, EnvValue::Plain(_)) && OWN_HOST_ENV.contains(&name.as_str());
            match &self.target {
                Target::Host if own => {
                    if name == "PATH" && *value != EnvValue::Plain(HOST_PATH.to_owned()) {
                        return Err(field("PATH of a host command", "the gateway's own"));
                    }
                }
                // The runner of the box sets its own HOME and PATH.
                target => env.check(target, name)?,
            }
        }
        Ok(())
    }

    /// As [`Self::validate`] without the environment policy: what holds for a kept plan too.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn validate_shape(&self) -> Result<(), PlanError> {
        let name = |text: &str| (1..=MAX_NAME).contains(&text.len()) && !text.contains('\0');
        for (what, text) in [("session", &self.session), ("principal", &self.principal)] {
            if !name(text) {
                return Err(field(what, "1 to 256 bytes without NUL"));
            }
        }
        if !(1..=MAX_ARGV).contains(&self.argv.len()) {
            return Err(field("argv", "1 to 1024 items"));
        }
        if self.argv[0].is_empty() {
            return Err(field("argv[0]", "not empty"));
        }
        if self.argv.iter().any(|a| a.contains('\0')) {
            return Err(field("argv", "without NUL"));
        }
        if self.env.len() > MAX_ENV {
            return Err(field("env", "at most 256 variables"));
        }
        for (key, value) in &self.env {
            check_env_name(key)?;
            match value {
                EnvValue::Plain(text) if text.contains('\0') => {
                    return Err(field("env", "without NUL"));
                }
                EnvValue::Secret { name: secret, .. } if !name(secret) => {
                    return Err(field("a secret's name", "1 to 256 bytes without NUL"));
                }
                _ => {}
            }
        }
        if self.text_bytes() > MAX_BYTES {
            return Err(field("argv and env together", "at most 128 KiB"));
        }
        if !is_canonical_path(&self.cwd) {
            return Err(field(
                "cwd",
                "an absolute path without `.`, `..` or doubled `/`, at most 4096 bytes",
            ));
        }
        self.validate_executable()?;
        if self.v == Form::V1 && !self.operands.is_empty() {
            return Err(PlanError::Mismatch("a plan of version 1 has no operands"));
        }
        self.validate_operands()?;
        self.validate_user()?;
        self.validate_egress()?;
        if !(1..=86_400_000).contains(&self.limits.timeout_ms) {
            return Err(field("limits.timeout_ms", "1 ms to 24 h"));
        }
        if self.limits.output_bytes == 0 {
            return Err(field("limits.output_bytes", "at least 1"));
        }
        // What no runner carries out is refused, not dropped.
        if matches!(self.stdin, Stdin::Sha256(_)) {
            return Err(field("stdin", "none or open"));
        }
        if self.tty.is_some_and(|size| !size.is_valid()) {
            return Err(field("tty", "1 to 4096 rows and columns"));
        }
        if self.takes_input() && self.target != Target::Sandbox {
            return Err(PlanError::Mismatch(
                "standard input and terminals are for commands in the sandbox",
            ));
        }
        Ok(())
    }

    /// Can what it does depend on what nobody knows when it is decided on: what is typed or piped into it later?
    pub const fn takes_input(&self) -> bool {
        self.tty.is_some() || !matches!(self.stdin, Stdin::None)
    }

    fn validate_executable(&self) -> Result<(), PlanError> {
        let file = |file: &HostFile| is_canonical_path(&file.path) && file.path != "/";
        let text = |text: &str| (1..=MAX_PATH).contains(&text.len()) && !text.contains('\0');
        let good = match (&self.executable, &self.target) {
            (Executable::Host(program), Target::Host) => file(program),
            (
                Executable::HostScript {
                    script,
                    interpreter,
                    argument,
                },
                Target::Host,
            ) => file(script) && file(interpreter) && argument.as_ref().is_none_or(|a| text(a)),
            (Executable::Image { digest, path }, Target::Sandbox) => {
                name_like(digest) && text(path)
            }
            (Executable::Workspace { path }, Target::Sandbox) => text(path),
            (Executable::Node { .. }, Target::Node(id)) => name_like(id),
            _ => {
                return Err(PlanError::Mismatch(
                    "the executable is not of the plan's target",
                ));
            }
        };
        if good {
            Ok(())
        } else {
            Err(field(
                "executable",
                "a resolved path of at most 4096 bytes without NUL",
            ))
        }
    }

    fn validate_egress(&self) -> Result<(), PlanError> {
        let Egress::Hosts(hosts) = &self.egress else {
            return Ok(());
        };
        if self.target != Target::Sandbox {
            return Err(PlanError::Mismatch(
                "only a command in the sandbox has a list of hosts",
            ));
        }
        match Rules::new(hosts) {
            Ok(rules) if !rules.is_empty() && rules.texts() == *hosts => Ok(()),
            _ => Err(field(
                "egress",
                "rules as host:port in their one form, ascending, at least one",
            )),
        }
    }

    fn validate_user(&self) -> Result<(), PlanError> {
        if matches!(self.target, Target::Node(_)) {
            return Ok(());
        }
        if self.uid == 0 || self.gid == 0 || self.groups.contains(&0) {
            return Err(field("uid, gid and groups", "other than 0"));
        }
        if self.groups.len() > MAX_GROUPS || !self.groups.windows(2).all(|w| w[0] < w[1]) {
            return Err(field("groups", "at most 64, ascending, each once"));
        }
        Ok(())
    }

    fn text_bytes(&self) -> usize {
        let env = self.env.iter().map(|(name, value)| {
            name.len()
                + match value {
                    EnvValue::Plain(text) => text.len(),
                    EnvValue::Secret { name, .. } => name.len(),
                }
        });
        self.argv.iter().map(String::len).chain(env).sum()
    }

    /// The form in which it is kept (sealed).
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("invariant: strings, numbers and maps by string are JSON")
    }

    /// Reads the kept form; unknown fields and versions are refused.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, PlanError> {
        // The parser's text names fields and places; it may quote an unknown key, hence the sanitiser.
        let plan: Self = serde_json::from_slice(bytes)
            .map_err(|e| PlanError::Json(display::visible(&e.to_string()).into_owned()))?;
        plan.validate_shape()?;
        Ok(plan)
    }

    /// One line for logs and records: secrets masked, hidden characters visible.
    pub fn redacted_line(&self) -> String {
        display::redacted_line(&self.argv)
    }

    /// One line for the one who decides: the whole command, nothing masked or cut.
    pub fn command_line(&self) -> String {
        display::command_line(&self.argv)
    }
}

fn name_like(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && !text.contains('\0')
}

#[cfg(test)]
pub(crate) mod tests;
