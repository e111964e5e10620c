//! The gateway's half: starts the runner, speaks to it, ends one that does not answer, and starts the next.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Pair;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use super::wire::{
    Answer, Answered, Ask, Asked, Failed, Incoming, MOST_ANSWERED, MOST_ASKED, frame,
};
use crate::supervision::Flag;

/// Bytes that may wait for the runner to read them.
const MOST_UNSENT: usize = 256 << 10;
/// A line of its log is cut here, bytes.
pub(super) const LONGEST_LINE: usize = 2048;
/// Lines of its log in a second; what is more is counted.
const LINES: u32 = 100;
/// From the second start in a row on there is a pause, doubled each time up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One that lived so long was well.
const WELL: Duration = Duration::from_mins(1);
/// For its end, once its socket is closed or it was killed.
const END_WITHIN: Duration = Duration::from_secs(2);
/// The number of its signs of life; requests begin at 1.
const BEAT: u64 = 0;

/// How a runner is started. It gets no more than this: no variable and no descriptor of the gateway's.
#[derive(Debug)]
pub struct RunnerProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its variables.
    pub env: Vec<(String, String)>,
    /// Its descriptor 3: the configuration as the gateway read it.
    pub config: Option<OwnedFd>,
    /// Between two signs of life; after two that did not come it is killed.
    pub beat: Duration,
}

/// What is known of the runner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunnerShown {
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// How often another one was started in its place.
    pub restarts: u64,
    /// Why the last one ended; empty where none has.
    pub said: String,
}

/// A request on its way.
pub struct Call {
    /// What.
    pub ask: Ask,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Answer, Failed>>,
}

/// Keeps a runner for as long as somebody may ask.
pub async fn keep(
    program: Arc<RunnerProgram>,
    mut calls: mpsc::Receiver<Call>,
    shown: Arc<Flag<RunnerShown>>,
) -> Infallible {
    let mut failures = 0_u32;
    loop {
        let began = Instant::now();
        let why = match Process::start(&program) {
            Ok(mut process) => {
                let pid = process.child.id();
                tracing::info!(pid, "the runner is started: it alone speaks to the engine");
                shown.update(|now| now.pid = pid);
                let why = process.serve(&program, &mut calls).await;
                process.end(&why).await
            }
            Err(error) => format!("it cannot be started: {error}"),
        };
        tracing::error!(%why, "the runner has ended; another is started. Boxes that serve go on");
        shown.update(|now| {
            now.pid = None;
            now.restarts += 1;
            now.said.clone_from(&why);
        });
        if began.elapsed() >= WELL {
            failures = 0;
        }
        if failures > 0 {
            let pause = PAUSE * 2_u32.saturating_pow(failures.min(10) - 1);
            sleep(pause.min(LONGEST_PAUSE)).await;
        }
        failures = failures.saturating_add(1);
    }
}

/// A runner that was started.
struct Process {
    child: Child,
    stream: Option<UnixStream>,
    log: Option<ChildStderr>,
    /// What was asked and not answered.
    open: BTreeMap<u64, oneshot::Sender<Result<Answer, Failed>>>,
    last: u64,
}

impl Process {
    fn start(program: &RunnerProgram) -> io::Result<Self> {
        let (ours, theirs) = Pair::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = std::process::Command::new(&program.program);
        command
            .arg0("portcullis")
            .args(&program.args)
            .env_clear()
            .envs(program.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(config) = &program.config {
            let config = FdMapping {
                parent_fd: config.try_clone()?,
                child_fd: 3,
            };
            command
                .fd_mappings(vec![config])
                .map_err(io::Error::other)?;
        }
        let mut child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self {
            log: child.stderr.take(),
            child,
            stream: Some(UnixStream::from_std(ours)?),
            open: BTreeMap::new(),
            last: BEAT,
        })
    }

    /// Passes requests and answers on; returns why it has to end.
    async fn serve(&mut self, program: &RunnerProgram, calls: &mut mpsc::Receiver<Call>) -> String {
        let (Some(stream), Some(mut log)) = (self.stream.take(), self.log.take()) else {
            return "it has no socket".to_owned();
        };
        let (from, mut to) = stream.into_split();
        let mut incoming = Incoming::new(from, MOST_ANSWERED);
        let mut unsent: Vec<u8> = Vec::new();
        let mut beats = interval_at(Instant::now() + program.beat, program.beat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut missed = 0;
        let (mut relay, mut is_logging) = (Relay::new(), true);
        loop {
            tokio::select! {
                call = calls.recv(), if unsent.len() < MOST_UNSENT => match call {
                    Some(call) => self.ask(call, &mut unsent),
                    None => return "nobody needs it any more".to_owned(),
                },
                sent = to.write(&unsent), if !unsent.is_empty() => match sent {
                    Ok(sent) => drop(unsent.drain(..sent)),
                    Err(error) => return format!("it does not read: {error}"),
                },
                answered = incoming.next::<Answered>() => match answered {
                    Ok(Some(Answered { id: BEAT, .. })) => missed = 0,
                    Ok(Some(answered)) => {
                        // One that nobody waits for any more may come still.
                        if let Some(answer) = self.open.remove(&answered.id) {
                            let _ = answer.send(answered.answer);
                        }
                    }
                    Ok(None) => return String::new(),
                    Err(error) => return format!("it speaks otherwise than it should: {error}"),
                },
                _ = beats.tick() => {
                    if missed == 2 {
                        let seconds = program.beat.as_secs_f32() * 2.0;
                        return format!("it gave no sign of life for {seconds:.1} s and is killed");
                    }
                    missed += 1;
                    push(&mut unsent, &Asked { id: BEAT, ask: Ask::Ping });
                    self.open.retain(|id, answer| {
                        let is_wanted = !answer.is_closed();
                        if !is_wanted {
                            push(&mut unsent, &Asked { id: BEAT, ask: Ask::Drop(*id) });
                        }
                        is_wanted
                    });
                }
                read = log.read_buf(&mut relay.bytes), if is_logging => {
                    is_logging = read.is_ok_and(|read| read > 0);
                    relay.pass();
                }
            }
        }
    }

    fn ask(&mut self, call: Call, unsent: &mut Vec<u8>) {
        let Call { ask, answer } = call;
        if answer.is_closed() {
            return;
        }
        self.last += 1;
        let id = self.last;
        if push(unsent, &Asked { id, ask }) {
            self.open.insert(id, answer);
        } else {
            let why = "it is longer than any request".to_owned();
            let _ = answer.send(Err(Failed::Refused(why)));
        }
    }

    /// Ends it, whatever it does, and tells whoever waits. Why it ended.
    async fn end(mut self, why: &str) -> String {
        if !why.is_empty() {
            // A process that is stopped ends by this, too.
            let _ = self.child.start_kill();
        }
        let ended = match timeout(END_WITHIN, self.child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its socket is closed, and it did not end".to_owned(),
        };
        let why = if why.is_empty() { &ended } else { why }.to_owned();
        for answer in self.open.into_values() {
            let _ = answer.send(Err(Failed::Gone(why.clone())));
        }
        why
    }
}

fn push(unsent: &mut Vec<u8>, asked: &Asked) -> bool {
    let framed = frame(asked, MOST_ASKED);
    framed.map(|frame| unsent.extend(frame)).is_ok()
}

/// Its log, line by line, into ours: bounded, and as text only.
pub(super) struct Relay {
    pub bytes: Vec<u8>,
    since: Instant,
    count: u32,
}

impl Relay {
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            since: Instant::now(),
            count: 0,
        }
    }

    pub fn pass(&mut self) {
        while let Some(line) = self.line() {
            if self.since.elapsed() >= Duration::from_secs(1) {
                if self.count > LINES {
                    let more = self.count - LINES;
                    tracing::warn!(more, "lines of the runner's log were left out");
                }
                (self.since, self.count) = (Instant::now(), 0);
            }
            self.count += 1;
            if self.count <= LINES {
                say(&line);
            }
        }
    }

    /// The next whole line, or as much of one as there may be.
    pub fn line(&mut self) -> Option<String> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n');
        let (take, skip) = match end {
            Some(end) => (end.min(LONGEST_LINE), end + 1),
            None if self.bytes.len() > LONGEST_LINE => (LONGEST_LINE, self.bytes.len()),
            None => return None,
        };
        let text = String::from_utf8_lossy(&self.bytes[..take]);
        let text = text
            .replace(|c: char| c.is_control(), " ")
            .trim()
            .to_owned();
        self.bytes.drain(..skip);
        Some(text)
    }
}

fn say(line: &str) {
    let (level, text) = line.split_once(' ').unwrap_or(("", line));
    let text = text.trim_start();
    match level {
        "" => {}
        "ERROR" => tracing::error!(said = text, "runner"),
        "WARN" => tracing::warn!(said = text, "runner"),
        "INFO" => tracing::info!(said = text, "runner"),
        "DEBUG" | "TRACE" => tracing::debug!(said = text, "runner"),
        _ => tracing::warn!(said = line, "runner"),
    }
}

impl std::fmt::Display for RunnerShown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None => f.write_str("being started")?,
        }
        if self.restarts > 0 {
            write!(f, ", started again {} times; {}", self.restarts, self.said)?;
        }
        Ok(())
    }
}
