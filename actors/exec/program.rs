//! A program of the gateway's own, from `[plugins]`: held as a command of the host is, with nothing of the gateway's. No agent asks for
//! it and no plan is made of it: what it is was written into the configuration, with its digest.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use portcullis_cell::{Cause, MAX_INPUT, Spawn};
use rustix::fs::{CWD, Mode, OFlags};

use super::config::HostConfig;
use super::host::{HostRun, in_bubblewrap};
use super::user::User;
use crate::plugins::Checked;
use crate::sandbox_pool::RunEvent;

/// Bytes of each of its output streams that are taken off it; nobody reads them.
const OUTPUT: u64 = 4096;
/// Its supervisor ends it at its limit; so much later it is ended with its supervisor.
const AFTER: Duration = Duration::from_secs(3);

/// What such programs stand on.
#[derive(Debug, Clone)]
pub struct ProgramGround {
    /// The cell's binary.
    pub cell: PathBuf,
    /// As whom, and within which limits.
    pub config: HostConfig,
    /// Users that nothing runs as.
    pub operator_uids: Vec<u32>,
    /// Groups that nothing runs in.
    pub operator_gids: Vec<u32>,
    /// The gateway's own folders, out of its reach.
    pub masked: Vec<PathBuf>,
}

/// A program that may be started, once.
#[derive(Debug)]
pub struct ProgramRun {
    ground: ProgramGround,
    user: User,
    checked: Checked,
    root: std::os::fd::OwnedFd,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramEnd {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// It took too long, and was ended with all that it had started.
    TimedOut,
}

impl ProgramGround {
    /// As whom it would run, and where. Blocks.
    ///
    /// # Errors
    /// Why it cannot be held.
    pub fn prepare(&self, checked: Checked) -> Result<ProgramRun, String> {
        let (uids, gids) = (&self.operator_uids, &self.operator_gids);
        let user = User::find(&self.config, uids, gids).map_err(|refused| refused.message)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, "/", flags, Mode::empty());
        let mut ground = self.clone();
        ground.masked = self
            .masked
            .iter()
            .filter_map(|path| path.canonicalize().ok())
            .collect();
        Ok(ProgramRun {
            ground,
            user,
            checked,
            root: root.map_err(|error| format!("/: {error}"))?,
        })
    }
}

impl ProgramRun {
    /// Starts it with an empty environment in `/`, gives it its input, and waits for its end. Dropped before that, it is ended.
    ///
    /// # Errors
    /// It was not started, or what became of it is unknown.
    pub async fn run(
        self,
        arguments: &[String],
        input: &[u8],
        limit: Duration,
    ) -> Result<ProgramEnd, String> {
        if input.len() > MAX_INPUT {
            return Err("its input is too long".to_owned());
        }
        let command = self.command()?;
        let argv = self.checked.words.iter().chain(arguments).cloned();
        let spawn = Spawn {
            argv: argv.collect(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1),
            grace_ms: 0,
            output_cap: OUTPUT,
            open_files: self.ground.config.open_files,
            file_bytes: self.ground.config.file_bytes,
            stdin: true,
            tty: None,
        };
        let mut fds = vec![self.checked.program.as_fd()];
        fds.extend(self.checked.script.as_ref().map(AsFd::as_fd));
        if self.user.switched {
            fds.push(self.root.as_fd());
        }
        let begun = HostRun::begin(command, spawn, &fds, Some(input));
        let mut run = Box::new(begun.map_err(|refused| refused.message)?);
        let end = tokio::time::timeout(limit + AFTER, async {
            loop {
                match run.next().await {
                    Ok(RunEvent::Exited(exited)) => return Ok(exited),
                    Ok(_) => {}
                    Err(_) => return Err("its supervisor ended".to_owned()),
                }
            }
        });
        let Ok(end) = end.await else {
            run.kill().await;
            return Ok(ProgramEnd::TimedOut);
        };
        let exited = end?;
        match (exited.cause, exited.code, exited.signal) {
            (Cause::TimedOut, ..) => Ok(ProgramEnd::TimedOut),
            (Cause::Itself, Some(code), _) => Ok(ProgramEnd::Code(code)),
            (Cause::Itself, None, Some(signal)) => Ok(ProgramEnd::Signal(signal)),
            _ => Err("it could not be started".to_owned()),
        }
    }

    fn command(&self) -> Result<Command, String> {
        let ground = &self.ground;
        let mut command = if self.user.switched {
            let mut command = Command::new(&ground.cell);
            let (uid, gid) = (self.user.uid, self.user.gid);
            command.args(["host", "--user", &format!("{uid}:{gid}")]);
            command
        } else {
            let held = in_bubblewrap(&ground.cell, self.user.uid, &ground.masked);
            let mut command = held.map_err(|refused| refused.message)?;
            let root = rustix::fs::fstat(&self.root).map_err(|error| format!("/: {error}"))?;
            let is = format!("{}:{}", root.st_dev, root.st_ino);
            command.args(["host", "--cwd-is", &is]);
            command
        };
        if self.checked.script.is_some() {
            // Its name is the last of the words, and is found by its descriptor.
            let word = self.checked.words.len() - 1;
            command.args(["--give", &format!("{word}:0")]);
        }
        Ok(command)
    }
}
