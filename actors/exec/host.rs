//! A process of the host: the cell's `host` mode supervises it, with the descriptors that were opened for the plan.
//!
//! A root gateway gives root up for the command; its state is closed to the command's user. Any other gateway's command has the gateway's own
//! user, so it runs inside bubblewrap: all of the host as it is, but without the gateway's own folders and processes.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portcullis_cell::{Decoder, Ended, Exit, Frame, Input, Spawn, Value, wipe};
use portcullis_core::codes;
use portcullis_core::plan::{ExecPlan, MAX_OPERANDS};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Child;

use super::config::HostConfig;
use super::messages::ExecRefusal;
use super::run::HostMeans;
use crate::sandbox_pool::{Exited, GivenUp, RunEvent};

const BUBBLEWRAP: [&str; 3] = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"];
/// The run's number on its own channel.
const RUN: u32 = 1;
/// Between TERM and KILL of a cancelled run.
const GRACE_MS: u32 = 200;
/// Credit is given back in pieces of at least this many bytes.
const GIVE_BACK: u32 = 64 * 1024;
/// For the supervisor to end what it started and itself.
const END_WITHIN: Duration = Duration::from_secs(3);
/// What a supervisor that failed is heard to say.
const SAID: usize = 2048;

/// Where bubblewrap is.
pub fn bubblewrap() -> Option<PathBuf> {
    BUBBLEWRAP
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
}

/// What to start.
pub struct HostOrder<'a> {
    pub cell: &'a Path,
    pub config: &'a HostConfig,
    pub plan: &'a ExecPlan,
    pub means: &'a HostMeans,
    /// The plan's variables with their values.
    pub env: Vec<(String, Value)>,
}

/// How a run ends without its exit.
pub enum Lost {
    /// Its box is gone.
    Box,
    /// Its box was ended under it.
    GivenUp(GivenUp),
    /// Its supervisor ended; what it did before that is unknown.
    Unknown(String),
    /// It was never begun.
    NotStarted(String),
    /// A node said no.
    Refused(String),
}

/// A process of the host and its supervisor. Dropping it ends both: the supervisor sees its channel close.
pub struct HostRun {
    stream: UnixStream,
    child: Child,
    decoder: Decoder,
    piece: Vec<u8>,
    seq: u64,
    owed: u32,
    started: Instant,
}

impl HostRun {
    /// Starts it.
    ///
    /// # Errors
    /// Nothing ran.
    pub fn start(order: &HostOrder<'_>) -> Result<Self, ExecRefusal> {
        let (argv, given) = order.argv();
        let spawn = order.spawn(argv);
        let command = order.command(&given)?;
        Self::begin(command, spawn, &order.descriptors(), None)
    }

    /// The same of its parts: the supervisor, what it starts with these descriptors, and all that this reads.
    ///
    /// # Errors
    /// Nothing ran.
    pub fn begin(
        mut command: Command,
        spawn: Spawn,
        fds: &[BorrowedFd<'_>],
        input: Option<&[u8]>,
    ) -> Result<Self, ExecRefusal> {
        let failed = |error: std::io::Error| {
            ExecRefusal::new(
                codes::INTERNAL,
                format!("the command's supervisor could not be started: {error}"),
            )
        };
        let (ours, theirs) = StdStream::pair().map_err(failed)?;
        let mut frame = Vec::new();
        let spawn = Box::new(spawn);
        let mut frames = vec![Frame::Spawn { run: RUN, spawn }];
        // The last is empty: that was all.
        frames.extend(
            input
                .into_iter()
                .flat_map(|input| [input, &[]])
                .map(|part| {
                    let data = Input::new(part.to_vec());
                    Frame::Stdin { run: RUN, data }
                }),
        );
        for one in &frames {
            one.encode(&mut frame)
                .map_err(|error| ExecRefusal::new(codes::INVALID_PARAMS, error))?;
        }
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        send_descriptors(fds, &ours).map_err(failed)?;
        // A socket's buffer holds more than the longest frame, and nobody reads yet.
        let written = (&ours).write_all(&frame);
        // Its variables may be secrets.
        wipe(&mut frame);
        written.map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let stream = UnixStream::from_std(ours).map_err(failed)?;
        let child = tokio::process::Command::from(command)
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            stream,
            child,
            decoder: Decoder::new(),
            piece: vec![0; portcullis_cell::MAX_FRAME],
            seq: 0,
            owed: 0,
            started: Instant::now(),
        })
    }

    /// What it does next; may be dropped and called again.
    ///
    /// # Errors
    /// It ended without its exit.
    pub async fn next(&mut self) -> Result<RunEvent, Lost> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(Frame::Output { stream, data, .. })) => {
                    let seq = self.seq;
                    self.seq += 1;
                    self.owed += u32::try_from(data.len()).unwrap_or(u32::MAX);
                    return Ok(RunEvent::Output { stream, seq, data });
                }
                Ok(Some(Frame::Exit { exit, .. })) => {
                    return Ok(RunEvent::Exited(self.exited(&exit)));
                }
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(error) => return Err(Lost::Unknown(format!("its supervisor: {error}"))),
            }
            // Here and not with the output: by now its reader has taken it.
            if self.owed >= GIVE_BACK {
                let bytes = self.owed;
                self.owed = 0;
                self.tell(&Frame::Window { run: RUN, bytes }).await;
            }
            match self.stream.read(&mut self.piece).await {
                Ok(0) | Err(_) => return Err(self.lost().await),
                Ok(count) => self.decoder.push(&self.piece[..count]),
            }
        }
    }

    /// TERM, a moment, KILL.
    pub async fn cancel(&mut self) {
        self.tell(&Frame::End {
            run: RUN,
            now: false,
        })
        .await;
    }

    /// Ends the supervisor and everything below it by force.
    pub async fn kill(self: Box<Self>) {
        let Self {
            stream, mut child, ..
        } = *self;
        // Its closed channel is an order to end everything.
        drop(stream);
        if tokio::time::timeout(END_WITHIN, child.wait()).await.is_ok() {
            return;
        }
        let Some(pid) = child.id() else { return };
        for pid in below(pid) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // One that ended meanwhile is what is wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = child.kill().await;
    }

    async fn tell(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        if frame.encode(&mut bytes).is_ok() {
            // A few bytes into a buffer that its reader empties; a broken channel is seen by the next read.
            let _ = self.stream.write_all(&bytes).await;
        }
    }

    fn exited(&self, exit: &Exit) -> Exited {
        let (code, signal) = match exit.ended {
            Ended::Code(code) => (Some(code), None),
            Ended::Signal(signal) => (None, Some(signal)),
        };
        Exited {
            code,
            signal,
            cause: exit.cause,
            duration_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            dropped_stdout: exit.dropped_out,
            dropped_stderr: exit.dropped_err,
            cpu_ms: exit.user_ms.saturating_add(exit.system_ms),
            swept: exit.swept,
            out_of_memory: 0,
            full: None,
        }
    }

    async fn lost(&mut self) -> Lost {
        let mut said = vec![0; SAID];
        let mut count = 0;
        if let Some(stderr) = &mut self.child.stderr {
            let read = tokio::time::timeout(Duration::from_millis(500), stderr.read(&mut said));
            count = read.await.ok().and_then(Result::ok).unwrap_or(0);
        }
        let said = String::from_utf8_lossy(&said[..count]);
        let said = portcullis_core::display::visible(said.trim()).into_owned();
        tracing::warn!(%said, "a host command's supervisor ended");
        if said.starts_with("bwrap:") && self.seq == 0 {
            Lost::NotStarted(format!("bubblewrap cannot hold host commands here: {said}"))
        } else {
            Lost::Unknown("its supervisor ended: whether it finished is unknown".to_owned())
        }
    }
}

impl HostOrder<'_> {
    /// The arguments, and at which word and byte of it the path of each descriptor goes: the script's, then the copies'.
    fn argv(&self) -> (Vec<String>, Vec<(usize, usize)>) {
        let asked = &self.plan.argv;
        let opened = &self.means.opened;
        let mut given = Vec::new();
        let mut argv = Vec::new();
        if let Some((script, line)) = &opened.program.script {
            argv.push(line.interpreter.clone());
            argv.extend(line.argument.clone());
            given.push((argv.len(), 0));
            argv.push(script.file.path.clone());
            argv.extend(asked.iter().skip(1).cloned());
        } else {
            argv.clone_from(asked);
        }
        let moved = argv.len() - asked.len();
        let copies = opened.operands.copies.iter();
        given.extend(copies.map(|copy| (copy.index + moved, copy.from)));
        (argv, given)
    }

    fn spawn(&self, argv: Vec<String>) -> Spawn {
        Spawn {
            argv,
            env: self.env.clone(),
            cwd: self.plan.cwd.clone(),
            timeout_ms: self.plan.limits.timeout_ms,
            grace_ms: GRACE_MS,
            output_cap: self.plan.limits.output_bytes,
            open_files: self.config.open_files,
            file_bytes: self.config.file_bytes,
            stdin: false,
            tty: None,
        }
    }

    fn command(&self, given: &[(usize, usize)]) -> Result<Command, ExecRefusal> {
        let means = self.means;
        let mut command = if means.opened.place.user.switched {
            let mut command = Command::new(self.cell);
            command.arg("host");
            command.arg("--user");
            command.arg(format!("{}:{}", self.plan.uid, self.plan.gid));
            command
        } else {
            let place = &means.opened.place;
            let mut command = in_bubblewrap(self.cell, self.plan.uid, &place.masked)?;
            // By path: an opened folder of outside would lead around what is masked.
            let (dev, ino) = means.cwd.is;
            command.args(["host", "--cwd-is", &format!("{dev}:{ino}")]);
            command
        };
        for (word, from) in given {
            command.args(["--give", &format!("{word}:{from}")]);
        }
        Ok(command)
    }

    /// The program, its script, the copies that stand for words, and its folder.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let opened = &self.means.opened;
        let program = &opened.program;
        let mut fds = vec![program.exe.fd.as_fd()];
        fds.extend(program.script.as_ref().map(|(script, _)| script.fd.as_fd()));
        fds.extend(opened.operands.copies.iter().map(|copy| copy.fd.as_fd()));
        if opened.place.user.switched {
            fds.push(self.means.cwd.fd.as_fd());
        }
        fds
    }
}

/// A supervisor in bubblewrap: all of the host as it is, but without these paths and the gateway's processes.
///
/// # Errors
/// There is no bubblewrap, or nothing to keep away.
pub fn in_bubblewrap(cell: &Path, uid: u32, masked: &[PathBuf]) -> Result<Command, ExecRefusal> {
    let bubblewrap = bubblewrap()
        .ok_or_else(|| ExecRefusal::new(codes::HOST_USER_INVALID, "bubblewrap is not installed"))?;
    let mut command = Command::new(bubblewrap);
    command.args(["--unshare-pid", "--as-pid-1", "--dev-bind", "/", "/"]);
    command.args(["--proc", "/proc"]);
    let services = services(uid);
    let mut cell_at = None;
    for path in masked.iter().chain(&services) {
        if path.is_dir() {
            command.arg("--tmpfs").arg(path);
            cell_at.get_or_insert_with(|| path.join("portcullis-cell"));
        } else if path.exists() {
            command.arg("--ro-bind").arg("/dev/null").arg(path);
        }
    }
    let cell_at = cell_at
        .ok_or_else(|| ExecRefusal::new(codes::INTERNAL, "the state directory is missing"))?;
    command.arg("--ro-bind").arg(cell).arg(&cell_at);
    command.arg("--").arg(cell_at);
    Ok(command)
}

/// One byte with the descriptors.
fn send_descriptors(fds: &[BorrowedFd<'_>], to: &StdStream) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3 + MAX_OPERANDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(std::io::Error::other("too many descriptors"));
    }
    sendmsg(
        to,
        &[IoSlice::new(&[0])],
        &mut ancillary,
        SendFlags::empty(),
    )?;
    Ok(())
}

/// Where the user's own services, terminals and engines listen: they would do for a command, outside, what it asks them. Not a wall of its
/// own, as this user may have others (SECURITY.md): a gateway that is root has one.
fn services(uid: u32) -> Vec<PathBuf> {
    let tmp = |name: &str| PathBuf::from(format!("/tmp/{name}-{uid}"));
    [
        PathBuf::from(format!("/run/user/{uid}")),
        tmp("tmux"),
        tmp("screen"),
        PathBuf::from("/run/screen"),
        PathBuf::from("/tmp/.X11-unix"),
        PathBuf::from("/run/docker.sock"),
        PathBuf::from("/run/podman"),
        PathBuf::from("/run/containerd"),
        PathBuf::from("/run/libvirt"),
    ]
    .into()
}

/// Every process below this one, itself not included.
fn below(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(
                list.split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
    }
    found.remove(0);
    found
}
