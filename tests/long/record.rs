//! What strace wrote down of a process: its writes, syncs and names, in their order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The calls that strace must record, with `-f -y -xx -s`.
pub const CALLS: &str = "write,pwrite64,writev,sendto,fsync,fdatasync,ftruncate,rename,renameat,renameat2,\
    unlink,unlinkat,openat,mkdir,mkdirat,link,linkat";

/// One line of the record, or the half of one.
pub enum Step {
    Began(usize),
    Ended(usize),
}

pub struct Call {
    pub what: What,
    /// It succeeded, and wrote so many bytes.
    pub result: Option<usize>,
}

pub enum What {
    Write {
        path: PathBuf,
        at: Option<usize>,
        data: Vec<u8>,
    },
    Sync(PathBuf),
    Truncate(PathBuf, usize),
    Open {
        path: PathBuf,
        empties: bool,
        mode: u32,
    },
    Folder(PathBuf, u32),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    /// To a socket.
    Sent(Vec<u8>),
    Other,
}

/// A process' calls in their order.
pub struct Record {
    pub calls: Vec<Call>,
    pub steps: Vec<Step>,
}

impl Record {
    /// Reads what strace wrote.
    pub fn read(text: &str) -> Self {
        let mut record = Self {
            calls: vec![],
            steps: vec![],
        };
        let mut open: HashMap<&str, usize> = HashMap::new();
        for line in text.lines() {
            let Some((pid, rest)) = line.split_once(' ') else {
                continue;
            };
            let rest = rest.trim_start();
            if rest.starts_with("<... ") {
                if let Some(call) = open.remove(pid) {
                    record.calls[call].result = result(rest);
                    record.steps.push(Step::Ended(call));
                }
                continue;
            }
            let call = record.calls.len();
            let unfinished = rest.strip_suffix(" <unfinished ...>");
            let what = parse(unfinished.unwrap_or(rest));
            record.calls.push(Call { what, result: None });
            record.steps.push(Step::Began(call));
            if unfinished.is_some() {
                open.insert(pid, call);
            } else {
                record.calls[call].result = result(rest);
                record.steps.push(Step::Ended(call));
            }
        }
        record
    }

    /// How many moments there are to cut at.
    pub fn moments(&self) -> usize {
        self.steps.len()
    }

    /// The first moment at which a socket was being sent these bytes, the `nth` time (from 0).
    pub fn sent(&self) -> Vec<(usize, &[u8])> {
        let began = self.steps.iter().enumerate();
        began
            .filter_map(|(moment, step)| match step {
                Step::Began(call) => match &self.calls[*call].what {
                    What::Sent(data) => Some((moment, data.as_slice())),
                    _ => None,
                },
                Step::Ended(_) => None,
            })
            .collect()
    }
}

fn result(rest: &str) -> Option<usize> {
    let (_, result) = rest.rsplit_once(" = ")?;
    let digits = result.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn parse(line: &str) -> What {
    read(line).unwrap_or(What::Other)
}

fn read(line: &str) -> Option<What> {
    let (name, rest) = line.split_once('(')?;
    let args = Args(rest);
    Some(match name {
        "write" | "writev" | "sendto" => {
            let path = args.descriptor()?;
            let data = args.strings().concat();
            if path.to_str()?.starts_with("socket:") {
                What::Sent(data)
            } else {
                What::Write {
                    path,
                    at: None,
                    data,
                }
            }
        }
        "pwrite64" => What::Write {
            path: args.descriptor()?,
            data: args.strings().concat(),
            at: Some(args.numbers().last().copied()?),
        },
        "fsync" | "fdatasync" => What::Sync(args.descriptor()?),
        "ftruncate" => What::Truncate(args.descriptor()?, *args.numbers().first()?),
        "openat" => {
            let flags = args.0;
            if !flags.contains("O_CREAT") && !flags.contains("O_TRUNC") {
                return None;
            }
            What::Open {
                path: args.paths().first()?.clone(),
                empties: flags.contains("O_TRUNC"),
                mode: args.octal().unwrap_or(0o600),
            }
        }
        "mkdir" | "mkdirat" => {
            What::Folder(args.paths().first()?.clone(), args.octal().unwrap_or(0o700))
        }
        "link" | "linkat" => {
            What::Link(args.paths().first()?.clone(), args.paths().get(1)?.clone())
        }
        "rename" | "renameat" | "renameat2" => {
            What::Rename(args.paths().first()?.clone(), args.paths().get(1)?.clone())
        }
        "unlink" | "unlinkat" => What::Unlink(args.paths().first()?.clone()),
        _ => return None,
    })
}

/// The arguments of a call: descriptors with their paths in angle brackets, strings in quotes, all in hex.
struct Args<'a>(&'a str);

impl Args<'_> {
    /// What the first argument is open on.
    fn descriptor(&self) -> Option<PathBuf> {
        let (_, rest) = self.0.split_once('<')?;
        let (path, after) = rest.split_once('>')?;
        // Its name is gone: nobody finds it after the cut.
        if after.starts_with("(deleted)") {
            return None;
        }
        Some(text(path).into())
    }

    fn strings(&self) -> Vec<Vec<u8>> {
        self.0.split('"').skip(1).step_by(2).map(bytes).collect()
    }

    /// The strings, each below the folder descriptor before it.
    fn paths(&self) -> Vec<PathBuf> {
        let mut pieces = self.0.split('"');
        let mut found = vec![];
        while let (Some(before), Some(path)) = (pieces.next(), pieces.next()) {
            let folder = before
                .rsplit_once('<')
                .and_then(|(_, rest)| rest.split_once('>'));
            let folder = folder.map(|(path, _)| text(path)).unwrap_or_default();
            found.push(Path::new(&folder).join(text(path)));
        }
        found
    }

    /// Decimal arguments.
    fn numbers(&self) -> Vec<usize> {
        let arguments = self.0.rsplit_once(") = ").map_or(self.0, |(args, _)| args);
        arguments
            .split(", ")
            .filter_map(|word| word.trim_end_matches(')').parse().ok())
            .collect()
    }

    fn octal(&self) -> Option<u32> {
        let arguments = self.0.rsplit_once(") = ").map_or(self.0, |(args, _)| args);
        let word = arguments.rsplit(", ").next()?;
        u32::from_str_radix(word.trim_end_matches(')').strip_prefix('0')?, 8).ok()
    }
}

/// `\x61\x62` is `ab`.
fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.split("\\x").skip(1);
    pairs
        .filter_map(|pair| u8::from_str_radix(pair.get(..2)?, 16).ok())
        .collect()
}

fn text(hex: &str) -> String {
    String::from_utf8_lossy(&bytes(hex)).into_owned()
}
