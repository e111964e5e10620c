//! Starting a run's command: found as a shell would, restricted before its first instruction.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portcullis_cell::{Cause, Size, Spawn, Value};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, setrlimit};

use crate::host::Host;
use crate::rules::{self, Domain};
use crate::terminal;

/// Why a command was not started, with the exit code that a shell gives.
pub struct NotStarted {
    /// 127 not found, 126 found but not to be executed, 125 ours.
    pub code: u8,
    /// For standard error.
    pub text: String,
    /// `NotStarted`, or `NoTerminal`.
    pub cause: Cause,
}

/// A command that was started, and our ends of what it has.
pub struct Started {
    /// Its first process.
    pub leader: Pid,
    /// Its standard input, where that is open.
    pub input: Option<OwnedFd>,
    /// Its standard output, or all that its terminal shows.
    pub out: OwnedFd,
    /// Its standard error; on a terminal none of its own.
    pub err: Option<OwnedFd>,
    /// Its terminal.
    pub terminal: Option<OwnedFd>,
}

impl NotStarted {
    pub fn new(code: u8, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            cause: Cause::NotStarted,
        }
    }
}

/// Starts the command with pipes for its output and its input, or nothing as that; or with a terminal.
pub fn start(spawn: &Spawn, host: Option<&Host>, domain: &Domain) -> Result<Started, NotStarted> {
    let name = spawn.argv.first().cloned().unwrap_or_default();
    if let Some(host) = host {
        if spawn.tty.is_some() {
            return Err(no_terminal("not for a command of the host"));
        }
        let program = host.prepare(&spawn.cwd)?;
        limit(spawn).map_err(|error| NotStarted::new(125, format!("resource limits: {error}")))?;
        let mut command = Command::new(&program);
        host.become_user(&mut command);
        let argv = host.argv(&spawn.argv)?;
        return spawn_restricted(&argv, spawn, command, PathBuf::from(name), rules::host);
    }
    // The whole supervisor moves: a relative name then means the same to the check and to the kernel.
    rustix::process::chdir(spawn.cwd.as_str())
        .map_err(|error| NotStarted::new(126, format!("{}: {error}", spawn.cwd)))?;
    let program = find(&name, &spawn.env)?;
    limit(spawn).map_err(|error| NotStarted::new(125, format!("resource limits: {error}")))?;
    if let Some(size) = spawn.tty {
        return on_terminal(spawn, &program, size);
    }
    let command = Command::new(&program);
    // The calls are refused to all of the box already, by its pid 1.
    let restrict = domain.restrict();
    let restrict = restrict.map_err(|text| NotStarted::new(125, text))?;
    spawn_restricted(&spawn.argv, spawn, command, program, restrict)
}

/// `shown` is the program's name in an error.
fn spawn_restricted(
    argv: &[String],
    spawn: &Spawn,
    mut command: Command,
    shown: PathBuf,
    restrict: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Result<Started, NotStarted> {
    command
        .arg0(argv.first().map_or("", String::as_str))
        .args(argv.iter().skip(1))
        .env_clear()
        .envs(spawn.env.iter().map(|(name, value)| (name, value.expose())));
    // A group of its own, so that a signal to it spares the supervisor, whose session it shares with nobody else.
    command
        .stdin(if spawn.stdin {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let restricted = std::thread::Builder::new()
        .stack_size(128 * 1024)
        .spawn(move || {
            restrict().map_err(|text| NotStarted::new(125, text))?;
            command.spawn().map_err(|error| refused(&shown, &error))
        });
    let thread = restricted.map_err(|error| NotStarted::new(125, format!("no thread: {error}")))?;
    let started = thread.join();
    let mut child =
        started.unwrap_or_else(|_| Err(NotStarted::new(125, "the starting thread ended")))?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(NotStarted::new(125, "no pipes"));
    };
    Ok(Started {
        leader: Pid::from_child(&child),
        input: child.stdin.take().map(OwnedFd::from),
        out: out.into(),
        err: Some(err.into()),
        terminal: None,
    })
}

fn no_terminal(why: impl std::fmt::Display) -> NotStarted {
    NotStarted {
        cause: Cause::NoTerminal,
        ..NotStarted::new(125, format!("no terminal: {why}"))
    }
}

/// By way of a process that takes the terminal before it becomes the command: see [`terminal::main`].
fn on_terminal(spawn: &Spawn, program: &Path, size: Size) -> Result<Started, NotStarted> {
    let (ours, theirs) = terminal::open(size).map_err(no_terminal)?;
    let copy = |fd: &OwnedFd| {
        fd.try_clone()
            .map_err(|error| NotStarted::new(125, format!("descriptor: {error}")))
    };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("portcullis-tty")
        .arg("tty")
        .arg(program)
        .args(&spawn.argv)
        .env_clear()
        .envs(spawn.env.iter().map(|(name, value)| (name, value.expose())))
        .stdin(Stdio::from(copy(&theirs)?))
        .stdout(Stdio::from(copy(&theirs)?))
        .stderr(Stdio::from(theirs));
    let input = spawn.stdin.then(|| copy(&ours)).transpose()?;
    let out = copy(&ours)?;
    let child = command.spawn();
    let child = child.map_err(|error| NotStarted::new(125, format!("no process: {error}")))?;
    Ok(Started {
        leader: Pid::from_child(&child),
        input,
        out,
        err: None,
        terminal: Some(ours),
    })
}

/// Why the kernel did not execute it.
pub fn refused(program: &Path, error: &std::io::Error) -> NotStarted {
    let code = match error.raw_os_error().map(Errno::from_raw_os_error) {
        // The file was there a moment ago: its interpreter is not.
        Some(Errno::NOENT) => 127,
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => 125,
        _ => 126,
    };
    NotStarted::new(code, format!("{}: {error}", program.display()))
}

/// Looks a command up in its own PATH.
fn find(name: &str, env: &[(String, Value)]) -> Result<PathBuf, NotStarted> {
    if name.contains('/') {
        return match usable(Path::new(name)) {
            Usable::Yes => Ok(PathBuf::from(name)),
            Usable::No => Err(NotStarted::new(126, format!("{name}: cannot be executed"))),
            Usable::Missing => Err(NotStarted::new(127, format!("{name}: no such file"))),
        };
    }
    let path = env
        .iter()
        .rev()
        .find(|(name, _)| name == "PATH")
        .map_or("", |(_, value)| value.expose());
    let mut seen = false;
    // An empty entry means the working folder to a shell; here it means nothing, so that no agent's file becomes `ls` by accident.
    for folder in path
        .split(':')
        .filter(|folder| !folder.is_empty() && !name.is_empty())
    {
        let candidate = Path::new(folder).join(name);
        match usable(&candidate) {
            Usable::Yes => return Ok(candidate),
            Usable::No => seen = true,
            Usable::Missing => {}
        }
    }
    if seen {
        Err(NotStarted::new(126, format!("{name}: cannot be executed")))
    } else {
        Err(NotStarted::new(127, format!("{name}: command not found")))
    }
}

enum Usable {
    Yes,
    No,
    Missing,
}

fn usable(path: &Path) -> Usable {
    match std::fs::metadata(path) {
        Ok(data)
            if data.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() =>
        {
            Usable::Yes
        }
        Ok(_) => Usable::No,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Usable::No,
        Err(_) => Usable::Missing,
    }
}

fn limit(spawn: &Spawn) -> Result<(), Errno> {
    let both = |most: u64| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Core, both(0))?;
    // The supervisor needs a few itself; its own limit is its command's.
    setrlimit(Resource::Nofile, both(u64::from(spawn.open_files).max(32)))?;
    setrlimit(Resource::Fsize, both(spawn.file_bytes))
}
