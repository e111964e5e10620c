//! Entries of a document that do not do what whoever wrote them may think.

use serde::Serialize;

use super::args::{ArgWords, is_operators};
use super::command::{CommandKind, base, kind_of_name};
use super::document::{Document, Entry};
use super::list::is_of_packages;
use super::reads::is_data_name;
use super::simple::is_simple_path;
use super::{Answer, Mode};
use crate::plan::HOST_PATH;
use crate::time::Millis;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whose list.
    pub agent: String,
    /// Which entry; nothing: the agent's settings.
    pub entry: Option<String>,
    /// Stable: `matches-nothing`, `covered`, `refused`, `allows-shell`, `allows-anything`, `few-of-a-folder`, `no-effect`.
    pub id: &'static str,
    /// For a person.
    pub text: String,
}

/// Looks through a document.
pub fn lint(document: &Document, now: Millis) -> Vec<Finding> {
    let mut found = Vec::new();
    for agent in document.agents() {
        let entries: Vec<&Entry> = document.entries(agent).collect();
        let denied: Vec<&Entry> = document.denied(agent).collect();
        let mut add = |entry: Option<&Entry>, id, text: String| {
            found.push(Finding {
                agent: agent.to_owned(),
                entry: entry.map(|entry| entry.name().to_owned()),
                id,
                text,
            });
        };
        let mode = document.settings(agent).mode();
        if !entries.is_empty() && (mode.listed != Answer::Allow || mode == Mode::FULL) {
            let text = match mode.listed {
                Answer::Deny => "Nothing of this agent runs: its list lets nothing pass.",
                Answer::Ask => "Every command of this agent asks: its list lets nothing pass.",
                Answer::Allow => "Everything of this agent runs: its list adds nothing.",
            };
            add(None, "no-effect", text.to_owned());
        }
        for (at, entry) in entries.iter().enumerate() {
            if !entry.is_on(now) {
                let text = "Its time has passed: it allows nothing any more.";
                add(Some(entry), "matches-nothing", text.to_owned());
            } else if let Some(why) = matches_nothing(entry) {
                add(Some(entry), "matches-nothing", why.to_owned());
            } else if is_operators(entry.path_pattern().as_str()) && !entry.is_exact() {
                let text = format!(
                    "{} does for whoever calls it what its service and its files let it: often as much as root's own hand. Say the words that it may be called with (args).",
                    entry.path_pattern().as_str()
                );
                add(Some(entry), "allows-anything", text);
            } else if kind_of_entry(entry) == CommandKind::Runner {
                let text = format!(
                    "{} runs code: whoever can write what it reads decides what that is.",
                    entry.path_pattern().as_str()
                );
                add(Some(entry), "allows-shell", text);
            }
            if is_folder_of_the_system(entry) {
                let text = "Of this folder only programs that are known to start nothing match.";
                add(Some(entry), "few-of-a-folder", text.to_owned());
            }
            if let Some(by) = denied.iter().find(|deny| deny.spans(entry)) {
                let text = format!("The entry {} refuses all that it allows.", by.name());
                add(Some(entry), "refused", text);
            }
            let before = |other: usize| other < at || !entry.spans(entries[other]);
            let by = (0..entries.len())
                .find(|other| *other != at && entries[*other].spans(entry) && before(*other));
            if let Some(by) = by {
                let text = format!("The entry {} allows all of it already.", entries[by].name());
                add(Some(entry), "covered", text);
            }
        }
        for (at, entry) in denied.iter().enumerate() {
            let before = |other: usize| other < at || !entry.spans(denied[other]);
            let by = (0..denied.len())
                .find(|other| *other != at && denied[*other].spans(entry) && before(*other));
            if let Some(by) = by {
                let text = format!("The entry {} refuses all of it already.", denied[by].name());
                add(Some(entry), "covered", text);
            }
        }
    }
    found
}

/// By the part of its name that is no wildcard.
fn kind_of_entry(entry: &Entry) -> CommandKind {
    let name = base(entry.path_pattern().as_str());
    kind_of_name(name.split('*').next().unwrap_or(name))
}

fn matches_nothing(entry: &Entry) -> Option<&'static str> {
    let path = entry.path_pattern();
    let kind = kind_of_entry(entry);
    let is_open = entry.arg_words().is_some_and(|words| !words.is_exact());
    match kind {
        CommandKind::Tool | CommandKind::Runner if !path.is_exact() => {
            Some("What starts other programs is named by its exact path only.")
        }
        CommandKind::Tool | CommandKind::Runner if is_operators(path.as_str()) => {
            let has_verb = entry.arg_words().is_none_or(ArgWords::has_verb);
            (!has_verb).then_some("The first word of args is its verb: it is said, not left open.")
        }
        CommandKind::Tool | CommandKind::Runner if is_open => Some(
            "The program starts others by its arguments: none of them is left open (args without wildcards, or argPattern).",
        ),
        CommandKind::Tool if !entry.is_exact() => Some(
            "The program has options that start others: it matches with its exact arguments only (argPattern).",
        ),
        CommandKind::Runner if !(entry.is_exact() && entry.has_cwd()) => Some(
            "The program runs code: it matches with its exact arguments and folder only (argPattern with cwd).",
        ),
        CommandKind::Plain
            if path.is_exact()
                && is_of_packages(path.as_str())
                && !is_simple_path(path.as_str())
                && !entry.is_exact() =>
        {
            Some(
                "Nobody knows of this program of the system that it starts no others: it matches with its exact arguments only (args without wildcards, or argPattern).",
            )
        }
        CommandKind::Plain | CommandKind::Tool | CommandKind::Runner => None,
    }
}

fn is_folder_of_the_system(entry: &Entry) -> bool {
    let pattern = entry.path_pattern();
    let folder = pattern
        .as_str()
        .rsplit_once('/')
        .map_or("", |(folder, _)| folder);
    let folder = pattern.root().unwrap_or(folder);
    !pattern.is_exact() && HOST_PATH.split(':').any(|known| known == folder)
}

impl Entry {
    /// Does it name all that the other does, by another pattern perhaps?
    fn spans(&self, other: &Self) -> bool {
        let (path, of) = (self.path_pattern(), other.path_pattern());
        let same = path == of || (of.is_exact() && path.matches(of.as_str()));
        let args = match (self.arg_pattern(), other.arg_pattern()) {
            (None, _) => true,
            (Some(own), Some(of)) => own == of,
            (Some(_), None) => false,
        } && match (self.arg_words(), other.arg_words()) {
            (None, _) => true,
            (Some(own), Some(of)) => own.spans(of),
            (Some(_), None) => false,
        };
        let is_plain = kind_of_entry(other) == CommandKind::Plain;
        // A path without arguments does not name what starts others, nor does a pattern over a folder; over one of the
        // system's it names little.
        let kinds = if path == of {
            is_plain || self.is_exact() || is_operators(path.as_str())
        } else {
            is_plain && (!is_folder_of_the_system(self) || is_data_name(base(of.as_str())))
        };
        same && args && kinds && self.covers_rest(other)
    }
}
