//! A plan that starts other commands: refused if one of them is, listed if each of them is and each is pinned in the plan.

use super::args::is_operators;
use super::command::{CommandKind, base, kind_of};
use super::document::{Document, Entry};
use super::perhaps::perhaps;
use super::reads::{Reading, is_known_plain, words};
use super::through::{
    Role, Started, commands, is_shell_file, is_wrapper_file, may_be_looked_through,
};
use super::{Rules, Standing};
use crate::plan::{
    EnvValue, ExecPlan, Executable, HOST_PATH, Held, HostFile, Stdin, Target, is_canonical_path,
    is_harmless,
};
use crate::time::Millis;

/// Programs of the system that take their input as data, beside those that start nothing anyway.
const READ_DATA: &[&str] = &["sort", "sed", "tee", "gzip", "gunzip", "zcat", "split"];

/// What the agent's list says of this plan, and of all that it starts.
pub(super) fn listed(rules: &Rules<'_>, plan: &ExecPlan) -> Option<String> {
    let Standing::Valid(document) = rules.document else {
        return None;
    };
    let agent = plan.agent.as_str();
    if let Some(entry) = document.listing(agent, plan, rules.now) {
        return Some(format!("list:{}", entry.name()));
    }
    let entries = Chain::of(plan)?.entries(document, rules.now)?;
    let mut names: Vec<&str> = Vec::new();
    for entry in &entries {
        if !names.contains(&entry.name()) {
            names.push(entry.name());
        }
    }
    Some(format!("list:{}", names.join("+")))
}

/// A plan whose commands are all known, and pinned.
pub(super) struct Chain<'a> {
    plan: &'a ExecPlan,
    /// Each but the first, with its file.
    links: Vec<(Started, &'a HostFile)>,
}

impl<'a> Chain<'a> {
    /// Nothing, where the plan is one command, where it is unclear what it starts, or where that may be something else by
    /// the time it starts.
    pub(super) fn of(plan: &'a ExecPlan) -> Option<Self> {
        let Executable::Host(file) = &plan.executable else {
            return None;
        };
        if plan.target != Target::Host
            || plan.stdin != Stdin::None
            || plan.tty.is_some()
            || plan.program_may_change().is_some()
            || plan.folder_may_change()
            || !may_be_looked_through(&plan.argv)
        {
            return None;
        }
        let found = commands(&plan.argv, Some(&file.path));
        if !found.why.is_empty() || found.list.len() < 2 || !is_steady(plan) {
            return None;
        }
        let words = words(&plan.executable, &plan.argv);
        let mut links = Vec::new();
        for started in found.list.into_iter().skip(1) {
            let place = started.place?;
            let word = words
                .iter()
                .find(|word| (word.index, word.from) == place)
                .filter(|word| matches!(word.reading, Reading::Script | Reading::Program))?;
            let operand = plan.operands.iter().find(|operand| {
                usize::try_from(operand.index) == Ok(word.index)
                    && usize::try_from(operand.from) == Ok(word.from)
            })?;
            let file = match &operand.held {
                Held::Checked(file) | Held::Copied(file) => file,
                Held::Open { .. } => return None,
            };
            let is_what_it_says = match started.role {
                Role::Wrapper | Role::Builtin => is_wrapper_file(&started.argv[0], &file.path),
                Role::Shell => is_shell_file(&started.argv[0], &file.path),
                Role::Command => true,
                Role::Guess => false,
            };
            if !is_what_it_says {
                return None;
            }
            links.push((started, file));
        }
        Some(Self { plan, links })
    }

    /// Of each command, the entry that lets it pass: none if one has none.
    fn entries<'d>(&self, document: &'d Document, now: Millis) -> Option<Vec<&'d Entry>> {
        let entries: Option<Vec<&Entry>> = self
            .links
            .iter()
            .filter(|(started, _)| matches!(started.role, Role::Command | Role::Builtin))
            .map(|(started, file)| self.entry(document, started, file, now))
            .collect();
        entries.filter(|entries| !entries.is_empty())
    }

    /// As [`Self::entry`], of a command as it was found.
    pub(super) fn entry_of<'d>(
        &self,
        document: &'d Document,
        started: &Started,
        now: Millis,
    ) -> Option<&'d Entry> {
        let known = self.links.iter().find(|(known, _)| known == started);
        known.and_then(|(started, file)| self.entry(document, started, file, now))
    }

    fn entry<'d>(
        &self,
        document: &'d Document,
        started: &Started,
        file: &HostFile,
        now: Millis,
    ) -> Option<&'d Entry> {
        let alone = self.alone(started, file);
        // What it reads as code is in no plan here.
        if kind_of(&alone) == CommandKind::Runner && !is_operators(&file.path) {
            return None;
        }
        document.listing(self.plan.agent.as_str(), &alone, now)
    }

    /// The command as if it were a plan of its own.
    fn alone(&self, started: &Started, file: &HostFile) -> ExecPlan {
        let mut alone = ExecPlan {
            argv: started.argv.clone(),
            executable: Executable::Host(file.clone()),
            operands: Vec::new(),
            ..self.plan.clone()
        };
        if started.piped && !takes_data(&alone, &file.path) {
            alone.stdin = Stdin::Open;
        }
        alone
    }
}

/// What it reads can start nothing?
fn takes_data(alone: &ExecPlan, path: &str) -> bool {
    is_known_plain(alone)
        || (is_wrapper_file(&alone.argv[0], path) && READ_DATA.contains(&base(path)))
}

/// Does nothing in the plan's environment change what a line's bytes or names mean?
fn is_steady(plan: &ExecPlan) -> bool {
    plan.env.iter().all(|(name, value)| {
        let EnvValue::Plain(value) = value else {
            return false;
        };
        match name.as_str() {
            "PATH" => value == HOST_PATH,
            // Of other sets of characters a byte of ours may be half of one of theirs.
            "LANG" => is_known_locale(value),
            name if name.starts_with("LC_") => is_known_locale(value),
            name => is_harmless(name),
        }
    }) && plan.env.contains_key("PATH")
}

/// By its whole form: behind `@` or `;` another set of characters may stand, and what a system does not know it looks for
/// without its end.
fn is_known_locale(value: &str) -> bool {
    if matches!(value, "" | "C" | "POSIX") {
        return true;
    }
    let Some((language, charset)) = value.split_once('.') else {
        return false;
    };
    let of = |text: &str, range: std::ops::RangeInclusive<usize>, is: fn(&u8) -> bool| {
        range.contains(&text.len()) && text.as_bytes().iter().all(is)
    };
    let is_language = match language.split_once('_') {
        Some((language, country)) => {
            of(language, 2..=3, u8::is_ascii_lowercase)
                && of(country, 2..=2, u8::is_ascii_uppercase)
        }
        None => language == "C",
    };
    is_language && matches!(charset, "UTF-8" | "utf-8" | "UTF8" | "utf8")
}

/// The entry that refuses something of this plan, and what.
pub(super) fn refused<'a>(rules: &Rules<'a>, plan: &ExecPlan) -> Option<(&'a Entry, String)> {
    let Standing::Valid(document) = rules.document else {
        return None;
    };
    let agent = plan.agent.as_str();
    if !document.denies(agent) {
        return None;
    }
    let own = plan.executable.path();
    let found = commands(&plan.argv, own);
    let named = |started: &Started, own: Option<&str>| {
        let entry = refusing(document, plan, started, own)?;
        Some((entry, started.argv.first().cloned().unwrap_or_default()))
    };
    let mut all = found.list.iter().enumerate();
    let sure = all.find_map(|(at, started)| named(started, own.filter(|_| at == 0)));
    if sure.is_some() || found.why.is_empty() {
        return sure;
    }
    // Where it is not clear what is started, whatever may be it counts.
    let perhaps = found.list.iter().flat_map(|started| perhaps(&started.argv));
    perhaps.into_iter().find_map(|argv| {
        let started = Started {
            argv,
            place: None,
            role: Role::Guess,
            piped: false,
            through: Vec::new(),
        };
        named(&started, None)
    })
}

/// The entry that refuses one of its commands.
pub(super) fn refusing<'a>(
    document: &'a Document,
    plan: &ExecPlan,
    started: &Started,
    own: Option<&str>,
) -> Option<&'a Entry> {
    let name = started.argv.first()?;
    let mut paths: Vec<String> = Vec::new();
    paths.extend(own.map(str::to_owned));
    paths.extend(file_of(plan, started).map(|file| file.path.clone()));
    let folder = name.rsplit_once('/').map(|(folder, _)| folder);
    // By its bare name it is found in one of these, and some of them are others by another name.
    if folder.is_none_or(|folder| HOST_PATH.split(':').any(|known| known == folder)) {
        let folders = HOST_PATH.split(':');
        paths.extend(folders.map(|folder| format!("{folder}/{}", base(name))));
    } else if is_canonical_path(name) {
        paths.push(name.clone());
    } else {
        paths.extend(joined(&plan.cwd, name));
    }
    // What one spelling names in a folder of the system is found in each of them that is it by another name.
    for path in paths.clone() {
        if let Some((folder, name)) = path.rsplit_once('/')
            && HOST_PATH.split(':').any(|known| known == folder)
        {
            let folders = HOST_PATH.split(':');
            paths.extend(folders.map(|folder| format!("{folder}/{name}")));
        }
    }
    document.denying(plan.agent.as_str(), &paths, &started.argv, &plan.cwd)
}

/// Its file, where the plan holds it.
pub(super) fn file_of<'a>(plan: &'a ExecPlan, started: &Started) -> Option<&'a HostFile> {
    let (index, from) = started.place?;
    let operand = plan.operands.iter().find(|operand| {
        usize::try_from(operand.index) == Ok(index) && usize::try_from(operand.from) == Ok(from)
    })?;
    match &operand.held {
        Held::Checked(file) | Held::Copied(file) => Some(file),
        Held::Open { .. } => None,
    }
}

/// A name as one path, by its text: a relative one below a folder.
fn joined(cwd: &str, name: &str) -> Option<String> {
    let base = if name.starts_with('/') { "/" } else { cwd };
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let path = format!("/{}", parts.join("/"));
    is_canonical_path(&path).then_some(path)
}
