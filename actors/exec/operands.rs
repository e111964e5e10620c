//! The files that a host command's words name: opened, and kept as they were decided on. Everything here blocks.

use std::fs::{File, Metadata};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use portcullis_core::codes;
use portcullis_core::display::{quoted, visible};
use portcullis_core::plan::{
    Executable, Held, HostFile, MAX_OPERANDS, Operand, Unkept, is_canonical_path,
};
use portcullis_core::policy::{
    CommandKind, Reading, Word, commands, kind_of_command, reads_its_folder, words,
};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::messages::ExecRefusal;
use super::open::{
    Place, digest, find, is_fixed_name, is_local, links_are_roots, parents_are_roots, sealed,
    shebang,
};
use super::reach::{PROC, Way, may, reaches, walk};

/// Of a script that is not there, and of one that is closed to the user: which of them is nobody's to know.
const NONE_THERE: &str = "is the file that would be run, and its user finds none there";

/// Longest file that is kept, and all copies of one plan together.
const MOST: u64 = 16 << 20;
/// Longest program that is compared.
const MOST_PROGRAM: u64 = 256 << 20;

/// What the words of one command name.
#[derive(Debug)]
pub struct Operands {
    /// For the plan.
    pub list: Vec<Operand>,
    /// Of those that are handed over.
    pub copies: Vec<Copy>,
}

/// A sealed copy that stands for a word.
#[derive(Debug)]
pub struct Copy {
    /// Which word of the plan's argv.
    pub index: usize,
    /// Byte of it from which on it is replaced.
    pub from: usize,
    /// The bytes.
    pub fd: OwnedFd,
}

/// One command, and where it would run.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    pub place: &'a Place,
    /// Canonical.
    pub cwd: &'a str,
    pub executable: &'a Executable,
    pub argv: &'a [String],
}

/// What was found under a name.
struct Found {
    held: Held,
    copy: Option<OwnedFd>,
}

impl Operands {
    /// Opens and keeps what the words name. `changeable`: the program itself, where others than root can change it.
    ///
    /// # Errors
    /// The file that would be run is missing, or cannot be kept as it is.
    pub fn freeze(command: Command<'_>, changeable: Option<HostFile>) -> Result<Self, ExecRefusal> {
        let own = changeable.map(|file| Operand {
            index: 0,
            from: 0,
            held: Held::Copied(file),
        });
        let mut all = Self {
            list: own.into_iter().chain(command.folder()).collect(),
            copies: Vec::new(),
        };
        let mut room = MOST;
        for word in words(command.executable, command.argv) {
            for (from, found) in command.find(word, &mut room, true)? {
                if all.list.len() + 1 == MAX_OPERANDS {
                    let held = command.one_too_many(word, &found)?;
                    all.list.push(operand(word, from, held));
                    return Ok(all);
                }
                all.copies.extend(found.copy.map(|fd| Copy {
                    index: word.index,
                    from,
                    fd,
                }));
                all.list.push(operand(word, from, found.held));
            }
        }
        Ok(all)
    }

    /// The first word that names something else than it did. What was copied stays what it is.
    pub fn changed(&self, command: Command<'_>) -> Option<usize> {
        let mut room = MOST;
        for word in words(command.executable, command.argv) {
            let of_word = |o: &&Operand| {
                usize::try_from(o.index) == Ok(word.index)
                    // Of a line each name is a word of its own.
                    && (word.reading != Reading::Program || usize::try_from(o.from) == Ok(word.from))
            };
            let before: Vec<&Operand> = self.list.iter().filter(of_word).collect();
            let is_copied = |o: &&Operand| matches!(o.held, Held::Copied(_));
            if before.iter().any(is_copied) {
                continue;
            }
            if before.iter().copied().any(is_one_too_many) {
                return None;
            }
            let Ok(found) = command.find(word, &mut room, false) else {
                return Some(word.index);
            };
            let now = found
                .into_iter()
                .map(|(from, found)| operand(word, from, found.held));
            if !now.eq(before.into_iter().cloned()) {
                return Some(word.index);
            }
        }
        None
    }
}

fn is_one_too_many(operand: &Operand) -> bool {
    matches!(&operand.held, Held::Open { why, .. } if *why == Unkept::TooMany)
}

fn operand(word: Word, from: usize, held: Held) -> Operand {
    let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
    Operand {
        index: number(word.index),
        from: number(from),
        held,
    }
}

impl Command<'_> {
    /// Its working folder, where what it starts hangs on what lies there and others than root can change that.
    fn folder(&self) -> Option<Operand> {
        let started = commands(self.argv, self.executable.path()).list;
        let names = started.iter().filter_map(|started| started.argv.first());
        let reads = names
            .map(String::as_str)
            .chain(self.executable.path())
            .any(reads_its_folder);
        let path = Path::new(self.cwd);
        (reads && !parents_are_roots(&path.join("in"))).then(|| Operand {
            index: 0,
            from: 1,
            held: Held::Open {
                path: self.cwd.to_owned(),
                why: Unkept::Changeable,
            },
        })
    }

    /// All that a word may name, and from which byte on; `copy`: with its bytes, where they are handed over.
    fn find(
        &self,
        word: Word,
        room: &mut u64,
        copy: bool,
    ) -> Result<Vec<(usize, Found)>, ExecRefusal> {
        if word.reading == Reading::Program {
            let found = self.program(word);
            return Ok(found.map(|found| (word.from, found)).into_iter().collect());
        }
        let text = self.argv.get(word.index).map_or("", String::as_str);
        let mut all: Vec<(usize, Found)> = Vec::new();
        for (from, name) in names(text, word) {
            // Of two readings from the same byte the longer one is it.
            if all.iter().all(|(known, _)| *known != from)
                && let Some(found) = self.look(word, name, room, copy)?
            {
                all.push((from, found));
            }
        }
        all.sort_by_key(|(from, _)| *from);
        if all.is_empty() && word.reading == Reading::Script && text != "-" {
            return Err(self.refuse(word, NONE_THERE));
        }
        if all.len() > 1 && word.reading == Reading::Code {
            return Err(self.refuse(word, "names one file as a whole and another in its part"));
        }
        Ok(all)
    }

    /// The program that a wrapper or a shell finds under a name: kept by being root's alone, as nothing can be handed over in its
    /// place.
    fn program(&self, word: Word) -> Option<Found> {
        let all = commands(self.argv, self.executable.path()).list;
        let place = Some((word.index, word.from));
        let started = all.into_iter().find(|started| started.place == place);
        let name = started.and_then(|started| started.argv.into_iter().next())?;
        let Ok(asked) = find(&name, self.cwd) else {
            return None;
        };
        let user = &self.place.user;
        let Way::To(path) = walk(&asked, user) else {
            return None;
        };
        if self.place.is_masked(&path) || !reaches(&path, user) {
            return None;
        }
        let text = path.to_str().filter(|path| is_canonical_path(path))?;
        // A name may be a device's, and to open one does something.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let opened = rustix::fs::openat2(CWD, &path, flags, Mode::empty(), resolve);
        let changeable = || {
            let (path, why) = (text.to_owned(), Unkept::Changeable);
            Some(Found {
                held: Held::Open { path, why },
                copy: None,
            })
        };
        let Ok(file) = opened.map(File::from) else {
            return changeable();
        };
        let Ok(data) = file.metadata() else {
            return changeable();
        };
        // A shell passes over what its user may not run, and runs the next of that name.
        let is_run = data.is_file() && may(&path, &data, user, 0o1);
        if !is_run
            || data.len() > MOST_PROGRAM
            || !is_roots(&path, &data, &file)
            || !links_are_roots(&asked)
            || !(name.contains('/') || is_fixed_name(&name))
        {
            return changeable();
        }
        let Ok(reading) = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())) else {
            return changeable();
        };
        // What reads a script is in no plan of a line.
        let is_fixed = match shebang(&reading, &path) {
            Ok(None) => true,
            Ok(Some(line)) => line.is_fixed(),
            Err(_) => false,
        };
        if !is_fixed {
            return changeable();
        }
        let Ok(sha256) = digest(&reading, None, MOST_PROGRAM) else {
            return changeable();
        };
        let file = HostFile {
            path: text.to_owned(),
            dev: data.dev(),
            ino: data.ino(),
            sha256,
        };
        Some(Found {
            held: Held::Checked(file),
            copy: None,
        })
    }

    fn refuse(&self, word: Word, why: &str) -> ExecRefusal {
        let text = self.argv.get(word.index).map_or("", String::as_str);
        let text = format!("argument {}, {}, {why}", word.index, quoted(text));
        ExecRefusal::new(codes::INVALID_PARAMS, text)
    }

    fn one_too_many(&self, word: Word, found: &Found) -> Result<Held, ExecRefusal> {
        if word.reading == Reading::Script {
            return Err(self.refuse(word, "would be run, and too many files stand before it"));
        }
        let (path, why) = (found.held.path().to_owned(), Unkept::TooMany);
        Ok(Held::Open { path, why })
    }

    fn look(
        &self,
        word: Word,
        name: &str,
        room: &mut u64,
        copy: bool,
    ) -> Result<Option<Found>, ExecRefusal> {
        let runs = matches!(word.reading, Reading::Code | Reading::Script);
        // Joining an absolute name gives that name.
        let asked = Path::new(self.cwd).join(name);
        let user = &self.place.user;
        let is_runner = word.reading == Reading::May
            && kind_of_command(self.executable, self.argv) == CommandKind::Runner;
        // As its user first: what he does not reach, and what is the gateway's own, is as if it were not there. A gateway that
        // looked as root would tell its agents what lies in folders that are closed to them.
        let path = match walk(&asked, user) {
            Way::To(path) if !self.place.is_masked(&path) => path,
            Way::To(_) | Way::Nowhere => return Ok(None),
            Way::Elsewhere => {
                let listed = runs || (is_runner && !asked.starts_with("/dev"));
                return self.open(word, asked, Unkept::NoFile, listed);
            }
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        // Whoever turns a link or a folder meanwhile gets nothing for it.
        let resolve = ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let opened = rustix::fs::openat2(CWD, &path, flags, Mode::empty(), resolve);
        let Ok(file) = opened.map(File::from) else {
            return Ok(None);
        };
        let Ok(data) = file.metadata() else {
            return Ok(None);
        };
        let place = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if place.ok().as_ref() != Some(&path) || !reaches(&path, user) {
            return Ok(None);
        }
        let kind = data.file_type();
        let listed = runs || (is_runner && !kind.is_char_device());
        if data.is_dir() {
            return self.open(word, path, Unkept::Folder, listed);
        }
        if !data.is_file() || is_proc(&file) {
            return self.open(word, path, Unkept::NoFile, listed);
        }
        if !may(&path, &data, user, 0o4) {
            return self.open(word, path, Unkept::Unreadable, true);
        }
        if data.len() > MOST {
            return self.open(word, path, Unkept::TooLong, true);
        }
        let Some(text) = path.to_str().filter(|p| is_canonical_path(p)) else {
            return Err(self.refuse(word, "names a file whose path cannot be written down"));
        };
        let failed = |error: std::io::Error| {
            self.refuse(
                word,
                &format!("cannot be read: {}", visible(&error.to_string())),
            )
        };
        let reading = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(failed)?;
        let changeable = asked != path || !is_roots(&path, &data, &file);
        let of = |sha256| HostFile {
            path: text.to_owned(),
            dev: data.dev(),
            ino: data.ino(),
            sha256,
        };
        if !(runs && changeable) {
            let sha256 = digest(&reading, None, MOST).map_err(failed)?;
            return Ok(Some(Found {
                held: Held::Checked(of(sha256)),
                copy: None,
            }));
        }
        if data.len() > *room {
            return self.open(word, path, Unkept::TooLong, true);
        }
        *room -= data.len();
        let (sha256, copy) = if copy {
            let (sha256, fd) = sealed(&reading, MOST).map_err(failed)?;
            (sha256, Some(fd))
        } else {
            (digest(&reading, None, MOST).map_err(failed)?, None)
        };
        Ok(Some(Found {
            held: Held::Copied(of(sha256)),
            copy,
        }))
    }

    /// What cannot be kept: told where it matters, refused where it is what would be run.
    fn open(
        &self,
        word: Word,
        path: PathBuf,
        why: Unkept,
        listed: bool,
    ) -> Result<Option<Found>, ExecRefusal> {
        let refused = matches!(why, Unkept::NoFile | Unkept::Unreadable);
        if word.reading == Reading::Script && refused {
            // As where there is none: what is closed to its user is not told.
            return Err(self.refuse(
                word,
                "is the file that would be run, and its user finds none there",
            ));
        }
        let path = path.into_os_string().into_string();
        Ok(path
            .ok()
            .filter(|path| listed && is_canonical_path(path))
            .map(|path| Found {
                held: Held::Open { path, why },
                copy: None,
            }))
    }
}

/// What of a word may be a name: all of it, or what stands behind its option; and from which byte on.
fn names(text: &str, word: Word) -> Vec<(usize, &str)> {
    if word.reading == Reading::Script {
        return vec![(word.from, text.get(word.from..).unwrap_or_default())];
    }
    let value = text.find('=').map(|at| at + 1);
    // `-f/x`, also where the letter is not known.
    let attached = text
        .strip_prefix('-')
        .and_then(|rest| rest.chars().next())
        .filter(|letter| *letter != '-')
        .map(|letter| 1 + letter.len_utf8());
    let starts = std::iter::once(word.from).chain(value).chain(attached);
    let mut names: Vec<(usize, &str)> = starts
        .filter_map(|from| Some((from, text.get(from..)?)))
        .collect();
    // `/x:/y`: its first part, which is only compared.
    if word.reading != Reading::Code {
        names.extend(text.split_once(':').map(|(first, _)| (0, first)));
    }
    names.retain(|(_, name)| !name.is_empty() && *name != "-");
    names
}

/// Can nobody but root change it, or put another in its place?
fn is_roots(path: &Path, data: &Metadata, file: &File) -> bool {
    data.uid() == 0 && data.mode() & 0o022 == 0 && parents_are_roots(path) && is_local(file)
}

fn is_proc(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| u64::try_from(found.f_type) == Ok(PROC))
}
