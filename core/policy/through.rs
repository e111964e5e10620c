//! Which commands a plan's words start: through wrappers whose meaning is certain, and through a shell with a literal line.
//!
//! The tables only ever let something be looked through that does nothing else than start what follows. A wrapper, an option
//! or a form that is in none of them is a reason to ask; what may stand behind it is still told, so that it can be refused.

use std::collections::VecDeque;

use super::command::{CommandKind, base, kind_of_name, stem};
use super::shell::{self, Unclear};
use crate::plan::{HOST_PATH, is_canonical_path};

/// How many wrappers are looked through, one behind the other.
pub const MAX_DEPTH: usize = 4;
/// Most commands that are looked at for refusing.
const MAX_STARTED: usize = 64;

/// What a command is to the ones behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It starts the next one, and does nothing else.
    Wrapper,
    /// A shell with a line.
    Shell,
    /// A shell runs it itself, with the meaning of the program of that name.
    Builtin,
    /// It does what it does.
    Command,
    /// It may be one: a guess, for refusing.
    Guess,
}

/// A command that would be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Its words.
    pub argv: Vec<String>,
    /// Word of the plan and byte of it at which its name begins, where the plan can say it.
    pub place: Option<(usize, usize)>,
    /// What it is.
    pub role: Role,
    /// Its input is another command's output.
    pub piped: bool,
    /// The names that it is started through, from the outside.
    pub through: Vec<String>,
}

/// Why something is never automatic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Why {
    /// Stable.
    pub id: &'static str,
    /// For a person.
    pub text: &'static str,
}

const fn why(id: &'static str, text: &'static str) -> Why {
    Why { id, text }
}

const OPTIONS: Why = why(
    "wrapper-options",
    "A wrapper has words of which not all are known.",
);
const ENVIRONMENT: Why = why(
    "sets-environment",
    "It changes the variables that the command sees.",
);
const PRIVILEGE: Why = why("privilege", "It runs a command as another user.");
const REMOTE: Why = why("remote-command", "It runs a command on another machine.");
const INLINE: Why = why("inline-code", "It runs code that stands in its words.");
const DYNAMIC: Why = why(
    "dynamic-arguments",
    "A command gets words that are not known yet.",
);
const MULTI_CALL: Why = why(
    "multi-call",
    "It is a program of many names, and does what its first word says.",
);
const STARTS: Why = why("starts-commands", "It starts commands in a way of its own.");
const TOO_DEEP: Why = why(
    "wrapped-too-deep",
    "More wrappers stand one behind the other than what is looked through.",
);
const NESTED: Why = why("nested-shell", "A shell inside a shell's line.");
const SHELL: Why = why("shell", "A shell without a line that stands in its words.");
const NAME: Why = why(
    "command-name",
    "A command is named neither by a bare name nor by its one full path.",
);

/// What a plan's words start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commands {
    /// The plan's own command first, then as they are found.
    pub list: Vec<Started>,
    /// Empty: these are all, and each is what its words say.
    pub why: Vec<Why>,
}

impl Commands {
    fn add(&mut self, why: Why) {
        if !self.why.contains(&why) {
            self.why.push(why);
        }
    }

    fn unclear(&mut self, unclear: Unclear) {
        self.add(why(unclear.id(), unclear.text()));
    }
}

/// What one command's words start.
enum Look {
    /// Nothing, as far as words tell.
    Nothing,
    /// The command from this word on.
    Wraps(usize),
    /// The line in this word.
    Line(usize),
    /// Perhaps those from these words on, and those of the lines in these.
    Perhaps(Why, Vec<usize>, Vec<usize>),
}

struct Next {
    started: Started,
    /// Where each word stands in the plan, if it does.
    places: Vec<(usize, usize)>,
    depth: usize,
    in_line: bool,
}

/// Looks through a command. `path` is the file of its own name, where that is known.
pub fn commands(argv: &[String], path: Option<&str>) -> Commands {
    let mut found = Commands::default();
    let started = Started {
        argv: argv.to_vec(),
        place: Some((0, 0)),
        role: Role::Command,
        piped: false,
        through: Vec::new(),
    };
    let mut next = VecDeque::from([Next {
        started,
        places: (0..argv.len()).map(|index| (index, 0)).collect(),
        depth: 0,
        in_line: false,
    }]);
    while let Some(mut this) = next.pop_front() {
        let called = this.started.argv.first().map_or("", String::as_str);
        let mut look = look(base(called), &this.started.argv);
        if let Some(path) = path.filter(|_| found.list.is_empty()) {
            look = own(look, called, path, argv);
        }
        if this.depth >= MAX_DEPTH
            && let Look::Wraps(at) = look
        {
            look = Look::Perhaps(TOO_DEEP, vec![at], vec![]);
        }
        if this.started.role == Role::Command {
            this.started.role = match &look {
                Look::Nothing if this.in_line && shell::is_harmless_builtin(called) => {
                    Role::Builtin
                }
                Look::Wraps(_) => Role::Wrapper,
                Look::Line(_) => Role::Shell,
                _ => Role::Command,
            };
            if !found.list.is_empty() && !is_certain_name(called) {
                found.add(NAME);
            }
        }
        behind(&mut found, &this, look, &mut next);
        if found.list.len() == MAX_STARTED {
            found.unclear(Unclear::TooManyCommands);
            break;
        }
        found.list.push(this.started);
    }
    found
}

/// The plan's own command: its file decides what it is, its name what it does.
fn own(look: Look, called: &str, path: &str, argv: &[String]) -> Look {
    match look {
        Look::Nothing => self::look(base(path), argv).unsure(),
        Look::Wraps(_) if is_wrapper_file(called, path) => look,
        Look::Line(_) if is_shell_file(called, path) => look,
        look => look.unsure(),
    }
}

impl Look {
    fn unsure(self) -> Self {
        match self {
            Self::Wraps(at) => Self::Perhaps(OPTIONS, vec![at], vec![]),
            Self::Line(at) => Self::Perhaps(SHELL, vec![], vec![at]),
            look => look,
        }
    }
}

/// Does one command stand behind these words for certain, which is looked at by itself?
pub(super) fn is_seen_through(argv: &[String]) -> bool {
    let called = argv.first().map_or("", |name| base(name));
    matches!(look(called, argv), Look::Wraps(_))
}

/// May this be a command that is looked through? Of nearly every other one this ends the question.
pub(super) fn may_be_looked_through(argv: &[String]) -> bool {
    let called = argv.first().map_or("", |name| base(name));
    matches!(
        called,
        "env" | "nice" | "nohup" | "time" | "timeout" | "stdbuf" | "sh" | "dash" | "bash"
    )
}

/// Is this the system's own file of a wrapper, called by its name?
pub(super) fn is_wrapper_file(called: &str, path: &str) -> bool {
    is_of_system(path) && base(called) == base(path) && is_called_plainly(called)
}

/// Is this a shell whose reading of a line is known?
pub(super) fn is_shell_file(called: &str, path: &str) -> bool {
    is_of_system(path) && matches!(base(path), "dash" | "bash") && is_called_plainly(called)
}

/// By its bare name, or by one in a folder of the system. What a program does may hang on the folder it is called in (stdbuf
/// loads a library from there), and a name that begins with a dash makes a login shell, which reads more than its line.
fn is_called_plainly(called: &str) -> bool {
    if called.contains('/') {
        is_of_system(called)
    } else {
        !called.is_empty() && !called.starts_with('-')
    }
}

fn is_of_system(path: &str) -> bool {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    HOST_PATH.split(':').any(|known| known == folder)
}

fn is_certain_name(name: &str) -> bool {
    if name.contains('/') {
        is_canonical_path(name)
    } else {
        !name.is_empty()
    }
}

/// What is behind a command, to be looked at next.
fn behind(found: &mut Commands, this: &Next, look: Look, next: &mut VecDeque<Next>) {
    let (role, from, lines) = match look {
        Look::Nothing => return,
        Look::Wraps(at) => (Role::Command, vec![at], vec![]),
        Look::Line(at) => (Role::Command, vec![], vec![at]),
        Look::Perhaps(why, from, lines) => {
            found.add(why);
            (Role::Guess, from, lines)
        }
    };
    let role = match this.started.role {
        Role::Guess => Role::Guess,
        _ => role,
    };
    let mut through = this.started.through.clone();
    through.extend(this.started.argv.first().cloned());
    // A shell's line is no wrapper: it is looked into once.
    let mut add = |argv: Vec<String>, places: Vec<(usize, usize)>, role, piped, in_line| {
        let is_new_line = in_line && !this.in_line;
        next.push_back(Next {
            started: Started {
                argv,
                place: places.first().copied(),
                role,
                piped,
                through: through.clone(),
            },
            places,
            depth: this.depth + usize::from(!is_new_line),
            in_line,
        });
    };
    for at in from {
        let argv = this.started.argv[at..].to_vec();
        let places = this.places.get(at..).unwrap_or_default().to_vec();
        add(argv, places, role, this.started.piped, this.in_line);
    }
    for at in lines {
        if this.in_line {
            found.add(NESTED);
        }
        let line = shell::read(&this.started.argv[at]);
        for unclear in &line.unclear {
            found.unclear(*unclear);
        }
        let role = if line.is_certain() { role } else { Role::Guess };
        // Where a line is a word of another, the plan cannot say where its words are.
        let index = this.places.get(at).filter(|_| !this.in_line);
        for simple in line.commands {
            let places = index.map_or_else(Vec::new, |(index, _)| {
                simple.starts.iter().map(|from| (*index, *from)).collect()
            });
            add(simple.argv, places, role, simple.piped, true);
        }
    }
}

/// Shells that read a line in ways of their own.
const OTHER_SHELLS: &[&str] = &[
    "ash", "csh", "elvish", "fish", "ksh", "mksh", "nu", "pwsh", "rbash", "tcsh", "xonsh", "yash",
    "zsh",
];

/// They start what follows, and do something beside: never automatic.
const CARRIERS: &[&str] = &[
    "aa-exec",
    "arch",
    "builtin",
    "bwrap",
    "caffeinate",
    "capsh",
    "catchsegv",
    "cgexec",
    "choom",
    "chpst",
    "chroot",
    "chrt",
    "command",
    "coresched",
    "cpulimit",
    "dbus-launch",
    "dbus-run-session",
    "dumb-init",
    "eatmydata",
    "entr",
    "exec",
    "faketime",
    "fakeroot",
    "firejail",
    "flock",
    "ionice",
    "linux32",
    "linux64",
    "logsave",
    "ltrace",
    "nsenter",
    "numactl",
    "parallel",
    "perf",
    "prlimit",
    "proot",
    "proxychains",
    "proxychains4",
    "rlwrap",
    "sandbox-exec",
    "script",
    "setarch",
    "setpriv",
    "setsid",
    "softlimit",
    "ssh-agent",
    "start-stop-daemon",
    "strace",
    "systemd-run",
    "taskset",
    "tini",
    "torify",
    "torsocks",
    "uclampset",
    "unbuffer",
    "unshare",
    "valgrind",
    "watch",
    "xcrun",
    "xvfb-run",
];

/// They start what follows as somebody else.
const CHANGERS: &[&str] = &[
    "doas",
    "gosu",
    "newgrp",
    "pkexec",
    "run0",
    "runuser",
    "setuidgid",
    "sg",
    "su",
    "su-exec",
    "sudo",
];

/// Options of interpreters after which code stands.
fn code_options(name: &str) -> &'static [&'static str] {
    match name {
        "python" | "pypy" => &["-c"],
        "perl" | "ruby" => &["-e", "-E"],
        "lua" | "luajit" | "osascript" | "julia" | "groovy" | "scala" | "elixir" | "ghc" | "r"
        | "rscript" => &["-e"],
        "node" | "nodejs" | "bun" | "deno" => &["-e", "-p", "--eval", "--print", "eval"],
        "php" => &["-r", "-B", "-R", "-E"],
        _ => &[],
    }
}

fn is_option(word: &str) -> bool {
    word.starts_with('-') && word != "-"
}

fn look(name: &str, argv: &[String]) -> Look {
    let lower = name.to_ascii_lowercase();
    let wrapped = match lower.as_str() {
        "env" => return env(argv),
        "nice" => nice(argv),
        "nohup" => Some(1),
        "time" => Some(if argv.get(1).is_some_and(|word| word == "-p") {
            2
        } else {
            1
        }),
        "timeout" => timeout(argv),
        "stdbuf" => stdbuf(argv),
        "sh" | "dash" | "bash" => return shell_line(argv),
        "find" => return find(argv),
        "xargs" => return Look::Perhaps(DYNAMIC, guesses(argv), vec![]),
        "busybox" | "toybox" => return Look::Perhaps(MULTI_CALL, guesses(argv), vec![]),
        "ssh" => return Look::Perhaps(REMOTE, vec![], vec![]),
        other => return look_at_others(other, argv),
    };
    // Behind its time no `--` is one any more: it would be the command.
    let ends = |at: usize| lower != "timeout" && argv.get(at).is_some_and(|word| word == "--");
    let wrapped = wrapped.map(|at| at + usize::from(ends(at)));
    match wrapped {
        Some(at) if argv.get(at).is_some_and(|word| !word.starts_with('-')) => Look::Wraps(at),
        _ => Look::Perhaps(OPTIONS, guesses(argv), vec![]),
    }
}

fn look_at_others(name: &str, argv: &[String]) -> Look {
    let stem = stem(name);
    if OTHER_SHELLS.contains(&name) {
        return match shell_line(argv) {
            Look::Line(at) => Look::Perhaps(SHELL, vec![], vec![at]),
            look => look,
        };
    }
    if CHANGERS.contains(&name) {
        return Look::Perhaps(PRIVILEGE, guesses(argv), lines(argv));
    }
    if CARRIERS.contains(&name) {
        return Look::Perhaps(STARTS, guesses(argv), lines(argv));
    }
    let has_code = |option: &&str| {
        let attached = |word: &String| {
            word.as_str() == *option
                || (option.len() == 2
                    && word.len() > 2
                    && !word.starts_with("--")
                    && is_option(word)
                    && {
                        // `-ne`, `-lc`: a cluster that ends in it, or has its value attached.
                        word[1..].contains(&option[1..])
                    })
        };
        argv.iter()
            .skip(1)
            .take_while(|word| is_option(word) || *word == "eval")
            .any(attached)
    };
    if code_options(&stem).iter().any(has_code)
        || matches!(
            stem.as_str(),
            "awk" | "gawk" | "mawk" | "nawk" | "original-awk"
        )
    {
        return Look::Perhaps(INLINE, vec![], vec![]);
    }
    match kind_of_name(name) {
        CommandKind::Runner => Look::Perhaps(STARTS, vec![], vec![]),
        CommandKind::Tool | CommandKind::Plain => Look::Nothing,
    }
}

fn env(argv: &[String]) -> Look {
    match argv.get(1) {
        Some(word) if !word.starts_with('-') && !word.contains('=') => Look::Wraps(1),
        Some(word) if !word.starts_with('-') => Look::Perhaps(ENVIRONMENT, guesses(argv), vec![]),
        // `-S` makes words of one.
        _ => Look::Perhaps(OPTIONS, guesses(argv), lines(argv)),
    }
}

fn nice(argv: &[String]) -> Option<usize> {
    let is_number = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        !digits.is_empty() && digits.len() < 4 && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let first = argv.get(1)?;
    if first == "-n" {
        return argv.get(2).filter(|value| is_number(value)).map(|_| 3);
    }
    if !first.starts_with('-') || first == "--" {
        return Some(1);
    }
    let value = first
        .strip_prefix("--adjustment=")
        .or_else(|| first.strip_prefix("-n"))
        .or_else(|| {
            first
                .strip_prefix('-')
                .filter(|rest| !rest.starts_with('-'))
        })?;
    is_number(value).then_some(2)
}

fn timeout(argv: &[String]) -> Option<usize> {
    let is_time = |text: &str| {
        let number = text.strip_suffix(['s', 'm', 'h', 'd']).unwrap_or(text);
        number.starts_with(|c: char| c.is_ascii_digit())
            && number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    };
    let is_signal = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    };
    let mut at = 1;
    loop {
        let word = argv.get(at)?.as_str();
        let (value, next) = match word {
            "-v" | "--verbose" | "-f" | "--foreground" | "-p" | "--preserve-status" => {
                at += 1;
                continue;
            }
            "-k" | "-s" => (argv.get(at + 1)?.as_str(), at + 2),
            "--" => {
                at += 1;
                break;
            }
            _ if !word.starts_with('-') => break,
            _ => {
                let short = word.strip_prefix("-k").or_else(|| word.strip_prefix("-s"));
                let long = word
                    .strip_prefix("--kill-after=")
                    .or_else(|| word.strip_prefix("--signal="));
                (short.or(long)?, at + 1)
            }
        };
        let is_kill = word.starts_with("-k") || word.starts_with("--k");
        if !(if is_kill {
            is_time(value)
        } else {
            is_signal(value)
        }) {
            return None;
        }
        at = next;
    }
    argv.get(at).filter(|time| is_time(time)).map(|_| at + 1)
}

fn stdbuf(argv: &[String]) -> Option<usize> {
    let is_mode = |text: &str| {
        let number = text.trim_end_matches(['K', 'M', 'B']);
        text == "L" || (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut at = 1;
    while let Some(word) = argv
        .get(at)
        .filter(|word| word.starts_with('-') && *word != "--")
    {
        let (value, next) = match word.as_str() {
            "-i" | "-o" | "-e" => (argv.get(at + 1)?.as_str(), at + 2),
            word => {
                let starts = ["-i", "-o", "-e", "--input=", "--output=", "--error="];
                let value = starts.iter().find_map(|start| word.strip_prefix(start))?;
                (value, at + 1)
            }
        };
        if !is_mode(value) {
            return None;
        }
        at = next;
    }
    (at > 1).then_some(at)
}

/// `sh -c LINE`, with nothing before it but letters that change no word's meaning.
fn shell_line(argv: &[String]) -> Look {
    let mut at = 1;
    let mut has_line = false;
    while let Some(word) = argv.get(at).filter(|word| is_option(word)) {
        let letters = &word[1..];
        if !letters.bytes().all(|b| b"ceufx".contains(&b)) {
            let rest = at..argv.len();
            let lines = rest.filter(|at| !is_option(&argv[*at])).collect();
            return Look::Perhaps(SHELL, vec![], lines);
        }
        has_line |= letters.contains('c');
        at += 1;
    }
    match argv.get(at) {
        // `+x` is an option too, and where a dash alone stands the shells differ.
        Some(line) if has_line && !line.starts_with(['+', '-']) => Look::Line(at),
        Some(_) if has_line => Look::Perhaps(SHELL, vec![], (at..argv.len()).collect()),
        _ => Look::Perhaps(SHELL, vec![], vec![]),
    }
}

fn find(argv: &[String]) -> Look {
    let starts: Vec<usize> = (1..argv.len())
        .filter(|at| {
            matches!(
                argv[at - 1].as_str(),
                "-exec" | "-execdir" | "-ok" | "-okdir"
            )
        })
        .collect();
    if starts.is_empty() {
        Look::Nothing
    } else {
        Look::Perhaps(DYNAMIC, starts, vec![])
    }
}

/// Where a command may begin among words of which not all are known: the first that is no option, variable or number, and
/// where options stand before it the one after that, too.
fn guesses(argv: &[String]) -> Vec<usize> {
    let is_number = |word: &str| {
        let number = word.strip_suffix(['s', 'm', 'h', 'd']).unwrap_or(word);
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    };
    let mut has_options = false;
    let mut found = Vec::new();
    for (at, word) in argv.iter().enumerate().skip(1) {
        if is_option(word) {
            has_options |= found.is_empty();
        } else if !is_number(word) && !word.contains('=') {
            found.push(at);
            if found.len() > usize::from(has_options) {
                break;
            }
        }
    }
    found
}

/// Words that may be lines: more than one word stands in them.
fn lines(argv: &[String]) -> Vec<usize> {
    let is_line = |word: &str| word.contains([' ', '\t', '\n', ';', '|', '&']);
    (1..argv.len()).filter(|at| is_line(&argv[*at])).collect()
}

#[cfg(test)]
mod tests;
