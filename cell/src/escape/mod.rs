//! What tries to get out. Each attempt is a process of its own that says how far it came; the list is in the library half.
//!
//! `portcullis-cell attempt [--apart] NAMES KEY=VALUE...` makes the attempts of NAMES (separated by commas) one after the other and writes a line
//! for each: `name`, `reached`, `refused`, `skipped` or (it hung or broke) `unknown`, and why, with tabs between. The values say what is out there to be reached; what needs
//! one that is not given is skipped. With `--apart` each has mount, host name and IPC namespaces of its own, so that a control as root leaves
//! nothing behind.
//!
//! None of them harms who it succeeds against: what would is only opened, or asked for with a value that means nothing.

mod calls;
mod files;
mod limits;
mod network;
mod outside;
mod processes;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::UnshareFlags;

/// Longest time of one attempt.
const WITHIN: Duration = Duration::from_secs(20);
const REACHED: u8 = 10;
const REFUSED: u8 = 11;
const SKIPPED: u8 = 12;

/// What an attempt reached, or why it did not.
pub type Outcome = Result<String, Why>;

/// See [`Outcome`].
pub enum Why {
    /// It was stopped.
    Refused(String),
    /// It cannot be tried with what was given.
    Skipped(String),
}

impl<E: Into<std::io::Error>> From<E> for Why {
    fn from(error: E) -> Self {
        Self::Refused(error.into().to_string())
    }
}

/// Stopped.
pub fn refused(why: impl Into<String>) -> Outcome {
    Err(Why::Refused(why.into()))
}

/// What is out there to be reached, and where it may write.
pub struct Given(BTreeMap<String, String>);

impl Given {
    /// A value, or the attempt is skipped.
    pub fn need(&self, name: &str) -> Result<&str, Why> {
        let value = self.0.get(name);
        value
            .map(String::as_str)
            .ok_or_else(|| Why::Skipped(format!("no {name} was given")))
    }

    /// The same as a number.
    pub fn number(&self, name: &str) -> Result<u64, Why> {
        let value = self.need(name)?;
        let bad = |_| Why::Skipped(format!("{name}={value} is no number"));
        value.parse().map_err(bad)
    }

    /// The path of a file of the host, and what is in it.
    pub fn canary(&self) -> Result<(&str, &str), Why> {
        Ok((self.need("canary")?, self.need("token")?))
    }

    /// A folder to write into.
    pub fn scratch(&self) -> PathBuf {
        let here = || std::env::current_dir().unwrap_or_else(|_| "/tmp".into());
        self.0.get("scratch").map_or_else(here, PathBuf::from)
    }

    /// A folder in memory.
    pub fn temporary(&self) -> PathBuf {
        self.0
            .get("tmp")
            .map_or_else(|| "/tmp".into(), PathBuf::from)
    }

    /// A path of this attempt's own in the folder to write into.
    pub fn place(&self, name: &str) -> PathBuf {
        self.scratch()
            .join(format!(".escape-{}-{name}", std::process::id()))
    }

    /// The processes that it attacks: those given, or pid 1 and the supervisor of the run.
    pub fn victims(&self) -> Result<Vec<i32>, Why> {
        let words = self.need("victims")?.split(',');
        let victims = words.filter_map(|word| match word {
            "supervisor" => supervisor(),
            word => word.parse().ok(),
        });
        Ok(victims.collect())
    }
}

/// The nearest process above this one that another program is.
fn supervisor() -> Option<i32> {
    let own = std::fs::metadata("/proc/self/exe").ok();
    let mut at = std::process::id().cast_signed();
    loop {
        let status = std::fs::read_to_string(format!("/proc/{at}/status")).ok()?;
        let above = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))?
            .trim();
        at = above.parse().ok().filter(|pid| *pid > 0)?;
        let line = std::fs::read(format!("/proc/{at}/cmdline")).ok()?;
        // The runner of the attempts, and the shell around it, are ours.
        let name = line.split(|byte| *byte == 0).nth(1).unwrap_or_default();
        if own.is_none() || !(name == b"attempt" || name == b"-c") {
            return Some(at);
        }
    }
}

type Attempt = fn(&Given) -> Outcome;

/// Every attempt that a process can make by itself.
fn all() -> impl Iterator<Item = (&'static str, Attempt)> {
    let sets: [&[(&'static str, Attempt)]; 5] = [
        files::ALL,
        calls::ALL,
        processes::ALL,
        network::ALL,
        limits::ALL,
    ];
    sets.into_iter().flatten().copied()
}

/// Entry of `portcullis-cell attempt`.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let mut apart = false;
    let mut words = vec![];
    let mut given = BTreeMap::new();
    for argument in arguments {
        match argument.split_once('=') {
            Some((name, value)) => drop(given.insert(name.to_owned(), value.to_owned())),
            None if argument == "--apart" => apart = true,
            None => words.push(argument),
        }
    }
    let given = Given(given);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["one", name] => one(name, apart, &given),
        ["hold", ..] => outside::hold(),
        ["flood"] => outside::flood(&given),
        ["daemon", token] => outside::daemon(token),
        ["leave", token] => outside::leave(token),
        ["stubborn", token] => outside::stubborn(token),
        [names] => many(names, apart, &given),
        _ => {
            say("usage: portcullis-cell attempt [--apart] NAME,NAME... KEY=VALUE...");
            ExitCode::from(2)
        }
    }
}

/// Not println: it panics where nobody reads.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(format!("{text}\n").as_bytes());
}

fn one(name: &str, apart: bool, given: &Given) -> ExitCode {
    let Some((_, attempt)) = all().find(|(known, _)| *known == name) else {
        say("there is no such attempt");
        return ExitCode::from(SKIPPED);
    };
    if apart && let Err(error) = stand_apart() {
        say(&format!("a control of its own: {error}"));
        return ExitCode::from(SKIPPED);
    }
    let (code, text) = match attempt(given) {
        Ok(what) => (REACHED, what),
        Err(Why::Refused(why)) => (REFUSED, why),
        Err(Why::Skipped(why)) => (SKIPPED, why),
    };
    say(&text);
    ExitCode::from(code)
}

fn stand_apart() -> rustix::io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    // Deprecated for flags that share descriptors between threads; this process has one.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC)?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
}

/// One process for each, so that none is what another made of it.
fn many(names: &str, apart: bool, given: &Given) -> ExitCode {
    network::listen(given);
    for name in names.split(',') {
        let (how, text) = of_its_own(name, apart, given);
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        say(&format!("{name}\t{how}\t{}", text.trim()));
    }
    ExitCode::SUCCESS
}

/// What an attempt left where it may write, as one that was ended does.
fn clear(pid: u32, given: &Given) {
    for entry in std::fs::read_dir(given.scratch())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        if name
            .to_string_lossy()
            .starts_with(&format!(".escape-{pid}-"))
        {
            let path = entry.path();
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
        }
    }
}

fn of_its_own(name: &str, apart: bool, given: &Given) -> (&'static str, String) {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["attempt", "one", name])
        .args(apart.then_some("--apart"))
        .args(
            given
                .0
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return ("refused", format!("no process for it: {error}")),
    };
    let until = Instant::now() + WITHIN;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) | Err(_) => {
                end(child);
                return ("unknown", "it hung and was ended".to_owned());
            }
        }
    };
    clear(child.id(), given);
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        // Short: what it started may hold the pipe, so no end is waited for.
        let mut bytes = vec![0; 4096];
        let count = out.read(&mut bytes).unwrap_or(0);
        text = String::from_utf8_lossy(&bytes[..count]).into_owned();
    }
    if let Some(signal) = status.signal() {
        // KILL: the kernel, for want of memory. XFSZ: too long a file. SYS: a call of another architecture.
        let how = if [9, 25, 31].contains(&signal) {
            "refused"
        } else {
            "unknown"
        };
        return (how, format!("ended by signal {signal}"));
    }
    let how = match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(REACHED) => "reached",
        Some(SKIPPED) => "skipped",
        Some(REFUSED) => "refused",
        _ => return ("unknown", format!("it broke: {status}")),
    };
    (how, text)
}

/// Ends a child.
pub fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// This program, to do something as a child.
pub fn ourselves(words: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("attempt")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Opens to write, and closes again: that it could is enough.
pub fn opens_to_write(path: impl AsRef<Path>) -> Outcome {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path.as_ref())?;
    Ok(format!("{} is open to write", path.as_ref().display()))
}

/// Reads a little of a file.
pub fn reads(path: impl AsRef<Path>) -> Outcome {
    let mut bytes = [0; 64];
    let count = std::fs::File::open(path.as_ref())?.read(&mut bytes)?;
    if count == 0 {
        return refused("it is empty");
    }
    Ok(format!("{} bytes of {}", count, path.as_ref().display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_cell::{ATTEMPTS, Way};

    #[test]
    fn every_attempt_of_the_list_is_there_and_no_other() {
        let listed = ATTEMPTS
            .iter()
            .filter(|attempt| attempt.way != Way::Outside);
        let mut listed: Vec<_> = listed.map(|attempt| attempt.name).collect();
        let mut known: Vec<_> = all().map(|(name, _)| name).collect();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(known, listed);
    }
}
