//! Allow-list patterns: exact paths, names in one exact folder, all below one; exact arguments. No regular expressions.

use serde::Deserialize;

use super::args::{ArgWords, is_operators, may_be_open};
use super::command::{CommandKind, base, kind_of};
use super::document::Entry;
use super::reads::is_known_plain;
use super::simple::is_known_simple;
use crate::plan::{ExecPlan, Executable, is_canonical_path, is_harmless};
use crate::time::Millis;

/// A path; one folder with a `*` in the last part; or, with `/**` at the end, all below a folder. The folder is always literal, so
/// `*` never crosses a `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathPattern {
    text: String,
    star: Option<usize>,
}

/// The end of a pattern over a whole tree.
const BELOW: &str = "/**";

impl PathPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// The rule that it breaks, for a person.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if !is_canonical_path(text) || text == "/" {
            return Err("a pattern is an absolute path without `.`, `..` or doubled `/`");
        }
        // The one program of that name is no wildcard.
        let plain = text.strip_suffix("/[").unwrap_or(text);
        if plain.contains(['?', '[', ']', '{', '}', '\\']) {
            return Err("a pattern has no wildcard but one `*` in its last part");
        }
        let star = text.find('*');
        if let Some(root) = text.strip_suffix(BELOW) {
            if root.is_empty() || root.contains('*') {
                return Err(
                    "`/**` stands at the end of a pattern, below a folder, and is its one wildcard",
                );
            }
        } else if let Some(at) = star {
            let (folder, name) = text.rsplit_once('/').unwrap_or(("", text));
            if at <= folder.len() || folder.is_empty() || name.matches('*').count() > 1 {
                return Err("a pattern has at most one `*`, in the last part, below a folder");
            }
        }
        Ok(Self {
            text: text.to_owned(),
            star,
        })
    }

    /// Has it no wildcard?
    pub const fn is_exact(&self) -> bool {
        self.star.is_none()
    }

    /// The folder below which it names everything, if it does.
    pub(super) fn root(&self) -> Option<&str> {
        self.text.strip_suffix(BELOW)
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Does it name this resolved path?
    pub fn matches(&self, path: &str) -> bool {
        let Some(at) = self.star else {
            // The pattern's own text was checked when it was read.
            return path == self.text;
        };
        if let Some(root) = self.root() {
            return is_canonical_path(path)
                && path
                    .strip_prefix(root)
                    .and_then(|below| below.strip_prefix('/'))
                    // As with `*`: a leading dot hides, and no shell's wildcard names it.
                    .is_some_and(|below| !below.split('/').any(|part| part.starts_with('.')));
        }
        let (head, tail) = (&self.text[..at], &self.text[at + 1..]);
        path.strip_prefix(head)
            .and_then(|rest| rest.strip_suffix(tail))
            // A leading dot hides a file; a shell's `*` does not name it either.
            .is_some_and(|middle| {
                !(middle.contains('/') || (middle.starts_with('.') && head.ends_with('/')))
            })
            && is_canonical_path(path)
    }
}

/// The exact arguments after the name, and for runners the exact folder: `["-a"]` or `{"cwd":"/srv","args":["x.py"]}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArgPattern {
    cwd: Option<String>,
    args: Vec<String>,
}

impl ArgPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// The rule that it breaks, for a person.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct WithCwd {
            cwd: String,
            args: Vec<String>,
        }
        if let Ok(args) = serde_json::from_str::<Vec<String>>(text) {
            return Ok(Self { cwd: None, args });
        }
        match serde_json::from_str::<WithCwd>(text) {
            Ok(WithCwd { cwd, args }) if is_canonical_path(&cwd) => Ok(Self {
                cwd: Some(cwd),
                args,
            }),
            _ => Err(
                "argPattern is a JSON array of the exact arguments, or {\"cwd\": \"/folder\", \"args\": [...]}; regular expressions are not taken",
            ),
        }
    }

    pub(super) fn matches(&self, argv: &[String], cwd: &str) -> bool {
        argv.get(1..).is_some_and(|args| args == self.args)
            && self.cwd.as_ref().is_none_or(|own| own == cwd)
    }

    /// As it is shown.
    pub(super) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "args": self.args, "cwd": self.cwd })
    }

    /// Does it name a folder?
    pub(super) const fn has_cwd(&self) -> bool {
        self.cwd.is_some()
    }
}

/// What a list can name of a plan.
pub(super) fn listed_path(plan: &ExecPlan) -> Option<&str> {
    match &plan.executable {
        Executable::Host(file) | Executable::HostScript { script: file, .. } => Some(&file.path),
        Executable::Image { path, .. } => Some(path),
        // Who asks can write the one, and names the other.
        Executable::Workspace { .. } | Executable::Node { .. } => None,
    }
}

fn is_the_systems(path: &str) -> bool {
    const FOLDERS: [&str; 8] = [
        "/usr/", "/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/", "/snap/",
    ];
    FOLDERS.iter().any(|folder| path.starts_with(folder))
}

/// Brought by a package of the system, not by whoever keeps this machine.
pub(super) fn is_of_packages(path: &str) -> bool {
    is_the_systems(path) && !path.starts_with("/usr/local/")
}

impl Entry {
    /// Does this entry let the plan pass now? Narrow on purpose: the resolved file, the name it is called by, an environment
    /// that steers nothing; for what starts other programs the exact arguments too.
    pub fn matches(&self, plan: &ExecPlan, now: Millis) -> bool {
        let Some(path) = listed_path(plan) else {
            return false;
        };
        // First: of a long list nearly every entry ends here.
        if !self.path_pattern().matches(path) {
            return false;
        }
        // A multi-call program does what its name says, not what its file is.
        let called_so = plan
            .argv
            .first()
            .is_some_and(|name| name == path || name == base(path));
        let kind = kind_of(plan);
        let is_exact = self.path_pattern().is_exact();
        let narrow = match kind {
            // A pattern over the system's folders means what somebody thought of, and they hold hundreds of programs that
            // start others in ways that no list of names keeps up with.
            CommandKind::Plain if is_exact => {
                self.is_exact() || !is_of_packages(path) || is_known_simple(plan)
            }
            CommandKind::Plain => !is_the_systems(path) || is_known_plain(plan),
            // Named by its own path, a service's operator is what somebody hands over.
            CommandKind::Tool | CommandKind::Runner if is_operators(path) => {
                is_exact && self.arg_words().is_none_or(ArgWords::has_verb)
            }
            CommandKind::Tool => self.is_exact() && is_exact,
            CommandKind::Runner => is_exact && self.is_exact() && self.has_cwd(),
        };
        narrow
            // Others than root can make it another program: only the very one that was looked at.
            && plan.program_may_change().is_none_or(|file| self.has_digest(file.sha256))
            && (self.has_cwd() || !plan.folder_may_change())
            && (self.arg_words()).is_none_or(|words| words.is_exact() || may_be_open(kind, path))
            && self.holds(plan, now)
            && self.covers_input(plan)
            && called_so
            && self.covers_args(&plan.argv, &plan.cwd)
            && plan.env.iter().all(|(name, value)| {
                is_harmless(name) && matches!(value, crate::plan::EnvValue::Plain(_))
            })
    }
}
