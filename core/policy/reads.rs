//! Which words of a command may name files that it reads as code, and how sure that is.
//!
//! The lists here only ever take away: a program that is on none has every word looked at. What an interpreter is known
//! to run is handed over as a copy; what stands after that is its program's own business and is compared before the
//! start. An option that is not known makes every later word code.

use super::command::{base, stem};
use super::through::commands;
use crate::plan::{ExecPlan, Executable, HOST_PATH};

/// How the command takes a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// As what its code makes of it.
    Data,
    /// Perhaps as a file or folder of code: nothing is known of the program.
    May,
    /// As code, if it names a file.
    Code,
    /// As the file to run: without it nothing runs.
    Script,
    /// As the name of a program that is started, looked up as the plan's own is.
    Program,
}

/// A word to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Which word of argv.
    pub index: usize,
    /// Byte at which the name begins, where that is known.
    pub from: usize,
    /// How it is taken.
    pub reading: Reading,
}

/// Programs of the system that read what they name as data, show or remove it, and start nothing.
const DATA: &[&str] = &[
    "[",
    "b2sum",
    "base32",
    "base64",
    "basename",
    "cat",
    "cksum",
    "cmp",
    "column",
    "comm",
    "cut",
    "date",
    "df",
    "dirname",
    "du",
    "echo",
    "egrep",
    "expand",
    "false",
    "fgrep",
    "fmt",
    "fold",
    "grep",
    "head",
    "hexdump",
    "id",
    "join",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "nl",
    "od",
    "paste",
    "pgrep",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "rev",
    "rm",
    "rmdir",
    "seq",
    "sha1sum",
    "sha224sum",
    "sha256sum",
    "sha384sum",
    "sha512sum",
    "sleep",
    "stat",
    "strings",
    "sum",
    "sync",
    "tac",
    "tail",
    "test",
    "touch",
    "tr",
    "true",
    "truncate",
    "uname",
    "unexpand",
    "uniq",
    "unlink",
    "wc",
    "whoami",
    "xxd",
    "yes",
];

/// Programs of many names.
const MULTI_CALL: &[&str] = &["busybox", "toybox"];

/// What stands in an interpreter's options. Letters and names that are in none of these are not known.
struct Grammar {
    /// Letters without a value.
    flags: &'static str,
    /// Letters that take the rest of their word, if there is one.
    rest: &'static str,
    /// Letters whose value is no file.
    text: &'static str,
    /// Letters whose value is a file of code, to be read beside what is run.
    file: &'static str,
    /// Letters whose value is the file to run.
    program: &'static str,
    /// Letters whose value is the code to run: other words are data.
    code: &'static str,
    /// Letters after which nothing is an option: the value, if any, is code or a module.
    ends: &'static str,
    /// Long options: without a value, with one of the kinds above.
    long: &'static [(&'static str, Kind)],
    /// Is the first word that is no option the file to run? Otherwise it is code, unless that was given.
    script: bool,
    /// A value is always the next word; an option that `ends` still lets options follow.
    shell: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flag,
    Text,
    File,
    Program,
    Code,
}

const NOTHING: Grammar = Grammar {
    flags: "",
    rest: "",
    text: "",
    file: "",
    program: "",
    code: "",
    ends: "",
    long: &[],
    script: true,
    shell: false,
};

const SHELL: Grammar = Grammar {
    flags: "abefhiklmnprtuvxBCDEHPT",
    text: "oO",
    ends: "cs",
    long: &[
        ("login", Kind::Flag),
        ("noediting", Kind::Flag),
        ("noprofile", Kind::Flag),
        ("norc", Kind::Flag),
        ("posix", Kind::Flag),
        ("restricted", Kind::Flag),
        ("verbose", Kind::Flag),
        ("rcfile", Kind::File),
        ("init-file", Kind::File),
    ],
    shell: true,
    ..NOTHING
};
const PYTHON: Grammar = Grammar {
    flags: "bBdEhiIOPqRsStuvVx?",
    text: "WX",
    ends: "cm",
    ..NOTHING
};
const PERL: Grammar = Grammar {
    flags: "acfghlnpsStTuUvwWX0123456789",
    rest: "CdDFimMVx",
    text: "I",
    code: "eE",
    ..NOTHING
};
const RUBY: Grammar = Grammar {
    flags: "ahlnpsSvwy0123456789",
    rest: "FiKTWx",
    text: "EI",
    file: "r",
    code: "e",
    long: &[("version", Kind::Flag), ("verbose", Kind::Flag)],
    ..NOTHING
};
const LUA: Grammar = Grammar {
    flags: "EivW",
    text: "el",
    ..NOTHING
};
const PHP: Grammar = Grammar {
    flags: "aChHimnqsvw",
    text: "dt",
    file: "cz",
    program: "fF",
    code: "BErRS",
    ..NOTHING
};
const AWK: Grammar = Grammar {
    flags: "bcCghIMnNOPrsStV",
    rest: "dDopL",
    text: "vFl",
    file: "i",
    program: "fE",
    code: "e",
    long: &[
        ("posix", Kind::Flag),
        ("traditional", Kind::Flag),
        ("re-interval", Kind::Flag),
        ("sandbox", Kind::Flag),
        ("csv", Kind::Flag),
        ("assign", Kind::Text),
        ("field-separator", Kind::Text),
        ("include", Kind::File),
        ("file", Kind::Program),
        ("exec", Kind::Program),
        ("source", Kind::Code),
    ],
    script: false,
    ..NOTHING
};
const SED: Grammar = Grammar {
    flags: "nrEsuz",
    rest: "i",
    text: "l",
    program: "f",
    code: "e",
    long: &[
        ("quiet", Kind::Flag),
        ("silent", Kind::Flag),
        ("regexp-extended", Kind::Flag),
        ("separate", Kind::Flag),
        ("unbuffered", Kind::Flag),
        ("null-data", Kind::Flag),
        ("posix", Kind::Flag),
        ("sandbox", Kind::Flag),
        ("follow-symlinks", Kind::Flag),
        ("in-place", Kind::Flag),
        ("file", Kind::Program),
        ("expression", Kind::Code),
    ],
    script: false,
    ..NOTHING
};

fn grammar(name: &str) -> Option<&'static Grammar> {
    Some(match stem(name).as_str() {
        "sh" | "bash" | "rbash" | "dash" | "ash" | "ksh" | "mksh" | "zsh" => &SHELL,
        "python" | "pypy" => &PYTHON,
        "perl" => &PERL,
        "ruby" => &RUBY,
        "lua" | "luajit" => &LUA,
        "php" => &PHP,
        "awk" | "gawk" | "mawk" | "nawk" | "original-awk" => &AWK,
        "sed" => &SED,
        _ => return None,
    })
}

/// A program that runs the command in its arguments.
struct Wrapper {
    /// Letters without a value.
    flags: &'static str,
    /// Letters with one, which is no file.
    valued: &'static str,
    /// Words before the command.
    before: usize,
    /// Variables may stand before the command.
    sets: bool,
}

fn wrapper(name: &str) -> Option<Wrapper> {
    let (flags, valued, before) = match name {
        "env" => ("i0v", "u", 0),
        "nohup" | "busybox" | "toybox" => ("", "", 0),
        "setsid" => ("cfw", "", 0),
        "nice" => ("0123456789", "n", 0),
        "time" => ("pqv", "", 0),
        "ionice" => ("t", "cn", 0),
        "stdbuf" => ("", "ioe", 0),
        "timeout" => ("fpv", "ks", 1),
        _ => return None,
    };
    Some(Wrapper {
        flags,
        valued,
        before,
        sets: name == "env",
    })
}

/// Does a program of the system that is called so start nothing, whatever its words are?
pub(super) fn is_data_name(name: &str) -> bool {
    DATA.contains(&name)
}

/// Is it a program of the system, called by its own name, that is known to start nothing whatever its words are?
pub(crate) fn is_known_plain(plan: &ExecPlan) -> bool {
    let called = base(plan.argv.first().map_or("", String::as_str));
    let path = plan.executable.path().unwrap_or_default();
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    HOST_PATH.split(':').any(|known| known == folder) && called == name && DATA.contains(&name)
}

/// The words of a host command that are looked at as files, in order.
pub fn words(executable: &Executable, argv: &[String]) -> Vec<Word> {
    let mut words = named(executable, argv);
    for word in programs(executable, argv) {
        // Two readings of one place: what is run as a file is copied, which is more than being compared.
        let at = words.partition_point(|known| (known.index, known.from) < (word.index, word.from));
        match words.get_mut(at) {
            Some(known) if (known.index, known.from) == (word.index, word.from) => {
                if known.reading != Reading::Script {
                    *known = word;
                }
            }
            _ => words.insert(at, word),
        }
    }
    words
}

/// The names of what wrappers and shells start, where all of it is certain.
fn programs(executable: &Executable, argv: &[String]) -> Vec<Word> {
    let Executable::Host(file) = executable else {
        return Vec::new();
    };
    let found = commands(argv, Some(&file.path));
    if !found.why.is_empty() {
        return Vec::new();
    }
    let places = found
        .list
        .iter()
        .skip(1)
        .filter_map(|started| started.place);
    places
        .map(|(index, from)| Word {
            index,
            from,
            reading: Reading::Program,
        })
        .collect()
}

fn named(executable: &Executable, argv: &[String]) -> Vec<Word> {
    let Executable::Host(file) = executable else {
        // What follows a script's name is its own business; script and interpreter are in the plan.
        return all(argv, 1, Reading::Data);
    };
    let called = base(argv.first().map_or("", String::as_str));
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    let of_system = HOST_PATH.split(':').any(|known| known == folder);
    if of_system && called == name && DATA.contains(&name) {
        return Vec::new();
    }
    // A multi-call program is what it is called; by its own name it is a wrapper.
    let name = if MULTI_CALL.contains(&name) {
        called
    } else {
        name
    };
    of_program(name, argv, 1)
}

fn of_program(name: &str, argv: &[String], first: usize) -> Vec<Word> {
    if let Some(grammar) = grammar(name) {
        Reader::new(grammar, argv, first).read()
    } else if let Some(wrapper) = wrapper(name) {
        wrapped(&wrapper, argv, first)
    } else {
        all(argv, first, Reading::May)
    }
}

fn all(argv: &[String], first: usize, reading: Reading) -> Vec<Word> {
    (first..argv.len())
        .map(|index| whole(index, reading))
        .collect()
}

const fn whole(index: usize, reading: Reading) -> Word {
    Word {
        index,
        from: 0,
        reading,
    }
}

/// `env A=b nice -n 5 sh x.sh`: what counts is the command inside.
fn wrapped(wrapper: &Wrapper, argv: &[String], first: usize) -> Vec<Word> {
    let (mut at, mut before) = (first, wrapper.before);
    let mut words = Vec::new();
    while let Some(word) = argv.get(at) {
        match word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
            Some("-") => {}
            Some(letters) => match letters.find(|c| !wrapper.flags.contains(c)) {
                None => {}
                Some(i) if letters[i..].starts_with(|c| wrapper.valued.contains(c)) => {
                    at += usize::from(i + 1 == letters.len());
                }
                // Nothing is known of it: what follows may be anything.
                Some(_) => {
                    words.extend(code(argv, at));
                    return words;
                }
            },
            None if wrapper.sets && word == "-" => {}
            None if before > 0 => before -= 1,
            None if wrapper.sets && word.contains('=') => words.push(whole(at, Reading::May)),
            None => break,
        }
        at += 1;
    }
    let Some(inner) = argv.get(at) else {
        return words;
    };
    if inner.contains('/') {
        words.push(whole(at, Reading::Script));
    } else if words.is_empty() && DATA.contains(&inner.as_str()) {
        // By its bare name, and with no other PATH, it is the system's.
        return words;
    }
    words.extend(of_program(base(inner), argv, at + 1));
    words
}

/// Every later word may be code. A bare one may be looked up elsewhere, so it is not replaced.
fn code(argv: &[String], first: usize) -> Vec<Word> {
    let reading = |word: &str| {
        if word.contains('/') {
            Reading::Code
        } else {
            Reading::May
        }
    };
    (first..argv.len())
        .map(|index| whole(index, reading(&argv[index])))
        .collect()
}

struct Reader<'a> {
    grammar: &'static Grammar,
    argv: &'a [String],
    at: usize,
    words: Vec<Word>,
    /// What the next words are values of.
    owed: Vec<Kind>,
    /// What is run was given: what follows is data.
    given: bool,
    /// Code comes as a word, after all options.
    awaits_code: bool,
    /// A part of a word was not understood.
    unsure: bool,
}

impl<'a> Reader<'a> {
    const fn new(grammar: &'static Grammar, argv: &'a [String], first: usize) -> Self {
        Self {
            grammar,
            argv,
            at: first,
            words: Vec::new(),
            owed: Vec::new(),
            given: false,
            awaits_code: false,
            unsure: false,
        }
    }

    fn read(mut self) -> Vec<Word> {
        while let Some(word) = self.argv.get(self.at) {
            let index = self.at;
            if !self.owed.is_empty() {
                let kind = self.owed.remove(0);
                self.value(index, 0, kind);
                self.at += 1;
                continue;
            }
            let known = if word == "--" || (word == "-" && self.grammar.shell) {
                self.at += 1;
                break;
            } else if let Some(long) = word.strip_prefix("--") {
                self.long(index, long)
            } else if let Some(letters) = self.letters(word) {
                self.short(index, letters)
            } else {
                break;
            };
            if !known {
                // An option of which nothing is known: from here on all may be code.
                let rest = (index..self.argv.len()).map(|i| whole(i, Reading::Code));
                self.words.extend(rest);
                return self.words;
            }
            self.at += 1;
            // Of these whatever follows the code is data, also with a dash.
            if self.given && !self.grammar.ends.is_empty() && !self.grammar.shell {
                break;
            }
        }
        self.operands();
        self.words
    }

    fn letters(&self, word: &'a str) -> Option<&'a str> {
        let minus = word.strip_prefix('-');
        let plus = word.strip_prefix('+').filter(|_| self.grammar.shell);
        minus.or(plus).filter(|rest| !rest.is_empty())
    }

    /// From the first word that is no option.
    fn operands(&mut self) {
        let Some(first) = self.argv.get(self.at) else {
            return;
        };
        let input = first == "-";
        let mut data = self.at;
        if self.awaits_code || (!self.given && !self.grammar.script) {
            data += 1;
        } else if !self.given && !input {
            let reading = if self.unsure {
                Reading::Code
            } else {
                Reading::Script
            };
            self.words.push(whole(self.at, reading));
            data += 1;
        }
        self.words.extend(all(self.argv, data, Reading::Data));
    }

    fn value(&mut self, index: usize, from: usize, kind: Kind) {
        let reading = match kind {
            Kind::Flag | Kind::Text => return,
            Kind::Code => {
                self.given = true;
                return;
            }
            Kind::File => Reading::Code,
            Kind::Program => {
                self.given = true;
                Reading::Script
            }
        };
        self.words.push(Word {
            index,
            from,
            reading,
        });
    }

    /// `false`: nothing is known of it.
    fn long(&mut self, index: usize, word: &str) -> bool {
        let (name, value) = word
            .split_once('=')
            .map_or((word, None), |(name, _)| (name, Some(name.len() + 3)));
        let Some((_, kind)) = self.grammar.long.iter().find(|(known, _)| *known == name) else {
            return false;
        };
        match value {
            Some(from) => self.value(index, from, *kind),
            None if *kind != Kind::Flag => self.owed.push(*kind),
            None => {}
        }
        true
    }

    /// `false`: there is a letter of which nothing is known.
    fn short(&mut self, index: usize, letters: &str) -> bool {
        let grammar = self.grammar;
        for (i, letter) in letters.char_indices() {
            let from = 1 + i + letter.len_utf8();
            let last = from > letters.len();
            if let Some(kind) = grammar.valued(letter) {
                if last || grammar.shell {
                    self.owed.push(kind);
                } else {
                    self.value(index, from, kind);
                    return true;
                }
            } else if grammar.ends.contains(letter) {
                if grammar.shell {
                    self.given = true;
                    self.awaits_code = letter == 'c';
                } else {
                    self.given = true;
                    // Its value is code or a module: attached, or the next word.
                    self.at += usize::from(last);
                    return true;
                }
            } else if grammar.rest.contains(letter) {
                self.unsure |= !last;
                return true;
            } else if !grammar.flags.contains(letter) {
                return false;
            }
        }
        true
    }
}

impl Grammar {
    fn valued(&self, letter: char) -> Option<Kind> {
        [
            (self.text, Kind::Text),
            (self.file, Kind::File),
            (self.program, Kind::Program),
            (self.code, Kind::Code),
        ]
        .into_iter()
        .find(|(letters, _)| letters.contains(letter))
        .map(|(_, kind)| kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Hash32;
    use crate::plan::HostFile;

    fn host(path: &str) -> Executable {
        Executable::Host(HostFile {
            path: path.to_owned(),
            dev: 1,
            ino: 1,
            sha256: Hash32::of(b""),
        })
    }

    /// `S` a file to run, `C` code, `d` data, `m` perhaps a file; with the byte where its name begins.
    fn shown(path: &str, line: &str) -> String {
        let argv: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let words = words(&host(path), &argv);
        let one = |word: &Word| {
            let kind = match word.reading {
                Reading::Data => 'd',
                Reading::May => 'm',
                Reading::Code => 'C',
                Reading::Script => 'S',
                Reading::Program => 'P',
            };
            let from = if word.from == 0 {
                String::new()
            } else {
                format!("+{}", word.from)
            };
            format!("{}{kind}{from}", word.index)
        };
        words.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_file_that_an_interpreter_runs_is_found_among_its_options() {
        for (path, line, found) in [
            ("/usr/bin/dash", "sh x.sh a", "1S 2d"),
            ("/usr/bin/dash", "sh -eu /tmp/x.sh a", "2S 3d"),
            ("/usr/bin/bash", "bash -o pipefail -e x a", "4S 5d"),
            ("/usr/bin/bash", "bash -eo pipefail x", "3S"),
            ("/usr/bin/bash", "bash +o posix -- x", "4S"),
            ("/usr/bin/bash", "bash - x", "2S"),
            ("/usr/bin/bash", "bash --rcfile rc x", "2C 3S"),
            ("/usr/bin/bash", "bash --what x y", "1C 2C 3C"),
            ("/usr/bin/dash", "sh -c code name a", "2P 3d 4d"),
            ("/usr/bin/dash", "sh -c -x code a", "3P 4d"),
            ("/usr/bin/dash", "sh -c ls;wc|/bin/cat", "2P 2P+3 2P+6"),
            ("/usr/bin/dash", "sh -c ls;$x", ""),
            ("/tmp/dash", "sh -c ls", ""),
            ("/usr/bin/dash", "sh -s a", "2d"),
            ("/usr/bin/python3.12", "python3 -W error -u x.py a", "4S 5d"),
            ("/usr/bin/python3.12", "python3 -Werror x.py", "2S"),
            ("/usr/bin/python3.12", "python3 -c code a", "3d"),
            ("/usr/bin/python3.12", "python3 -m mod x", "3d"),
            ("/usr/bin/python3.12", "python3 -mmod x", "2d"),
            ("/usr/bin/python3.12", "python3 - x", "1d 2d"),
            ("/usr/bin/python3.12", "python3 --new x y", "1C 2C 3C"),
            ("/usr/bin/perl", "perl -lne code f", "3d"),
            ("/usr/bin/perl", "perl -I lib -w x.pl f", "4S 5d"),
            ("/usr/bin/perl", "perl -CSD x.pl f", "2C 3d"),
            ("/usr/bin/ruby3.1", "ruby -r lib x.rb", "2C 3S"),
            ("/usr/bin/php8.2", "php -f x.php a", "2S 3d"),
            ("/usr/bin/php8.2", "php -fx.php a", "1S+2 2d"),
            ("/usr/bin/mawk", "awk -v a=b code f", "4d"),
            ("/usr/bin/mawk", "awk -F: -f x.awk f", "3S 4d"),
            ("/usr/bin/gawk", "gawk --file=x.awk f", "1S+7 2d"),
            ("/usr/bin/sed", "sed -n -e code f", "4d"),
            ("/usr/bin/sed", "sed -i -f x.sed f", "3S 4d"),
            ("/usr/bin/sed", "sed -nfx.sed f", "1S+3 2d"),
            ("/usr/bin/busybox", "sh x", "1S"),
            ("/usr/bin/busybox", "busybox sh x", "2S"),
            ("/usr/bin/env", "env - sh x", "3S"),
            ("/usr/bin/env", "env A=/tmp/x sh y", "1m 3S"),
            ("/usr/bin/env", "env -u A nice -n 5 /tmp/sh y z", "6S 7S 8d"),
            ("/usr/bin/env", "env -S x /tmp/y z", "1m 2m 3C 4m"),
            ("/usr/bin/env", "env PATH=/tmp cat x", "1m 3m"),
            ("/usr/bin/nice", "nice /tmp/a=b x", "1S 2m"),
            ("/usr/bin/timeout", "timeout -k 1 5 python3 x.py", "5S"),
            ("/usr/bin/timeout", "timeout 5 cat x", "2P"),
            ("/usr/bin/timeout", "timeout 5 nice -n 1 cat x", "2P 5P"),
            ("/tmp/timeout", "timeout 5 cat x", ""),
            ("/usr/bin/cat", "cat x", ""),
            ("/usr/bin/cat", "ls x", "1m"),
            ("/tmp/cat", "cat x", "1m"),
            ("/usr/bin/cp", "cp a b", "1m 2m"),
            ("/usr/local/bin/own", "own --config=x y", "1m 2m"),
        ] {
            assert_eq!(shown(path, line), found, "{line}");
        }
    }

    #[test]
    fn what_follows_a_scripts_own_name_is_its_data() {
        let file = |path: &str| HostFile {
            path: path.to_owned(),
            dev: 1,
            ino: 1,
            sha256: Hash32::of(b""),
        };
        let script = Executable::HostScript {
            script: file("/tmp/sh"),
            interpreter: file("/usr/bin/dash"),
            argument: None,
        };
        let argv = ["sh", "a"].map(str::to_owned);
        assert_eq!(words(&script, &argv), [whole(1, Reading::Data)]);
    }

    #[test]
    fn no_arguments_make_it_panic_or_name_a_word_twice() {
        use proptest::prelude::*;
        let word = prop_oneof![
            "[-+a-zA-Z=/é]{0,5}",
            Just("--".to_owned()),
            Just("-".to_owned())
        ];
        let name = prop_oneof![
            Just("sh"),
            Just("python3"),
            Just("perl"),
            Just("awk"),
            Just("sed"),
            Just("env"),
            Just("php"),
            Just("timeout")
        ];
        proptest!(|(name in name, rest in proptest::collection::vec(word, 0..6))| {
            let argv: Vec<String> = std::iter::once(name.to_owned()).chain(rest).collect();
            let words = words(&host(&format!("/usr/bin/{name}")), &argv);
            prop_assert!(words.windows(2).all(|w| w[0].index < w[1].index), "{words:?}");
            for word in words {
                prop_assert!(word.index > 0 && argv[word.index].is_char_boundary(word.from));
            }
        });
    }
}
