//! Words of the arguments that name files: what they named when the plan was frozen.
//!
//! A shell that runs a file runs what the file holds at that moment, so the file is part of the plan: its digest is
//! approved with the command, and either its bytes are handed over or they are compared once more before the start.

use serde::{Deserialize, Serialize};

use super::encode::Writer;
use super::{ExecPlan, Executable, HostFile, PlanError, Target, field, is_canonical_path};
use crate::ids::Hash32;

/// Most words of one plan that are looked at as files.
pub const MAX_OPERANDS: usize = 16;

/// One word, or a part of one, that names something which exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operand {
    /// Which word of argv; never 0.
    pub index: u32,
    /// Byte of the word at which the name begins: beyond 0 for `--file=/x`.
    pub from: u32,
    /// What was found there.
    pub held: Held,
}

/// How what a word names is kept as it was decided on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Held {
    /// Copied to sealed memory; the command gets the copy in place of the name.
    Copied(HostFile),
    /// Compared once more before the command starts, and opened by it under its own name.
    Checked(HostFile),
    /// Not kept: it can change at any time.
    Open {
        /// Resolved path.
        path: String,
        /// Why not.
        why: Unkept,
    },
}

/// Why something stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unkept {
    /// A folder: what lies in it is many files.
    Folder,
    /// A pipe, a device, a socket, or a name that means another thing in each process.
    NoFile,
    /// Longer than what is kept.
    TooLong,
    /// One of too many.
    TooMany,
    /// The command's user may not read it, as far as its mode tells.
    Unreadable,
    /// The program that a name stands for, which others than root can exchange.
    Changeable,
}

impl Unkept {
    /// For a person.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Folder => "a folder",
            Self::NoFile => "no regular file",
            Self::TooLong => "too long to be kept",
            Self::TooMany => "too many files: neither is what follows",
            Self::Unreadable => "not readable for the command's user now",
            Self::Changeable => "others than root can put another program in its place",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::NoFile => "no-file",
            Self::TooLong => "too-long",
            Self::TooMany => "too-many",
            Self::Unreadable => "unreadable",
            Self::Changeable => "changeable",
        }
    }
}

impl Held {
    /// Resolved path.
    pub fn path(&self) -> &str {
        match self {
            Self::Copied(file) | Self::Checked(file) => &file.path,
            Self::Open { path, .. } => path,
        }
    }

    /// Digest of what was decided on, where it is kept.
    pub const fn sha256(&self) -> Option<Hash32> {
        match self {
            Self::Copied(file) | Self::Checked(file) => Some(file.sha256),
            Self::Open { .. } => None,
        }
    }

    /// `copied`, `checked` or `not-kept`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Copied(_) => "copied",
            Self::Checked(_) => "checked",
            Self::Open { .. } => "not-kept",
        }
    }
}

impl Operand {
    pub(super) fn encode(&self, w: &mut Writer) {
        w.bytes(&self.index.to_be_bytes());
        w.bytes(&self.from.to_be_bytes());
        w.text(self.held.word());
        w.nested(|w| match &self.held {
            Held::Copied(file) | Held::Checked(file) => w.file(file),
            Held::Open { path, why } => {
                w.text(path);
                w.text(why.word());
            }
        });
    }
}

impl ExecPlan {
    /// Said of the command itself: its program, or what reads its script, is a sealed copy ([`Self::program_may_change`]), or its
    /// folder ([`Self::folder_may_change`]) is not root's alone.
    fn is_of_itself(&self, operand: &Operand) -> bool {
        match (&operand.held, operand.from, &self.executable) {
            (Held::Copied(copy), 0, Executable::Host(file)) => copy == file,
            (
                Held::Copied(copy),
                0,
                Executable::HostScript {
                    script,
                    interpreter,
                    ..
                },
            ) => copy == script || copy == interpreter,
            (Held::Open { path, why }, 1, _) => *path == self.cwd && *why == Unkept::Changeable,
            _ => false,
        }
    }

    /// Its program, or what reads its script, where others than root can make it another one. The one that was looked at runs,
    /// as a copy; the next plan may have another under the same name.
    pub fn program_may_change(&self) -> Option<&HostFile> {
        self.operands.iter().find_map(|o| match &o.held {
            Held::Copied(file) if (o.index, o.from) == (0, 0) => Some(file),
            _ => None,
        })
    }

    /// Does it start what its working folder's configuration names, and can others than root change that?
    pub fn folder_may_change(&self) -> bool {
        self.operands.iter().any(|o| (o.index, o.from) == (0, 1))
    }

    pub(super) fn validate_operands(&self) -> Result<(), PlanError> {
        if self.operands.is_empty() {
            return Ok(());
        }
        if self.target != Target::Host {
            return Err(PlanError::Mismatch("only a host command has operands"));
        }
        let word = |o: &Operand| self.argv.get(usize::try_from(o.index).ok()?);
        let good = self.operands.len() <= MAX_OPERANDS
            && self
                .operands
                .windows(2)
                .all(|w| (w[0].index, w[0].from) < (w[1].index, w[1].from))
            && self.operands.iter().all(|o| {
                let begins = usize::try_from(o.from).unwrap_or(usize::MAX);
                (o.index > 0 || self.is_of_itself(o))
                    && word(o).is_some_and(|w| begins < w.len() && w.is_char_boundary(begins))
                    && is_canonical_path(o.held.path())
            });
        if good {
            Ok(())
        } else {
            Err(field(
                "operands",
                "at most 16 parts of argv, ascending, with resolved paths",
            ))
        }
    }
}
