//! Allow-list patterns: exact paths, or names in one exact folder; exact arguments. No regular expressions.

use serde::Deserialize;

use super::command::{CommandKind, base, kind_of};
use super::document::Entry;
use super::reads::is_known_plain;
use crate::plan::{ExecPlan, Executable, is_canonical_path, is_harmless};

/// A path, or one folder with a `*` in the last part. The folder is always literal, so `*` never crosses a `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathPattern {
    text: String,
    star: Option<usize>,
}

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
        if let Some(at) = star {
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

impl Entry {
    /// Does this entry let the plan pass? Narrow on purpose: the resolved file, the name it is called by, an
    /// environment that steers nothing; for what starts other programs the exact arguments too.
    pub fn matches(&self, plan: &ExecPlan) -> bool {
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
        let narrow = match kind_of(plan) {
            // A pattern over the system's folders means what somebody thought of, and they hold hundreds of programs that
            // start others in ways that no list of names keeps up with.
            CommandKind::Plain => {
                self.path_pattern().is_exact() || !is_the_systems(path) || is_known_plain(plan)
            }
            CommandKind::Tool => self.arg_pattern().is_some() && self.path_pattern().is_exact(),
            CommandKind::Runner => {
                self.path_pattern().is_exact()
                    && self.arg_pattern().is_some_and(ArgPattern::has_cwd)
            }
        };
        narrow
            && self.covers_input(plan)
            && called_so
            && self
                .arg_pattern()
                .is_none_or(|p| p.matches(&plan.argv, &plan.cwd))
            && plan.env.iter().all(|(name, value)| {
                is_harmless(name) && matches!(value, crate::plan::EnvValue::Plain(_))
            })
    }
}
