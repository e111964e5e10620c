//! Pid 1 of a box: dials the host, gives each run a supervisor of its own, passes frames on, kills what belongs to nobody.
//!
//! When the host goes away its runs go on for [`KEPT_SECONDS`]: pid 1 dials again, tells whoever answers which runs there are and how those
//! have ended that are over, and takes no run before that. Then they are ended, and pid 1 dials on until its dead-man time.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portcullis_cell::{Cause, Ended, Exit, Frame, KEPT_SECONDS, MAX_NONCE, PROTO, Stream};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, kill_process};

use crate::channel::Channel;
use crate::tree::{self, Reaped};

/// Between two attempts to reach the host.
const REDIAL: Duration = Duration::from_millis(100);
/// Between two looks for strays while nothing happens.
const PATROL: Duration = Duration::from_secs(1);
/// After the end of a supervisor that had a run.
const SOON: Duration = Duration::from_millis(5);
/// A host that reads nothing makes the runs wait, not this process grow.
const UNSENT: usize = 1024 * 1024;
/// Most runs at once; the box's pids limit is the real one.
const MOST_RUNS: usize = 256;
/// Most supervisors that wait for a run, and how long all but one of them do.
const MOST_IDLE: usize = 8;
const IDLE: Duration = Duration::from_secs(10);
/// For the next host.
const KEPT: Duration = Duration::from_secs(KEPT_SECONDS);

struct Options {
    socket: String,
    nonce: String,
    dead_man: Duration,
    /// The gateway's proxy, where the box may reach hosts.
    egress: Option<String>,
    /// Its runs may look into their own processes.
    debug: bool,
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        socket: "/run/portcullis/s".to_owned(),
        nonce: String::new(),
        dead_man: Duration::from_mins(1),
        egress: None,
        debug: false,
    };
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--socket" => options.socket = value,
            "--egress" => options.egress = Some(value),
            "--calls" if value == "debug" => options.debug = true,
            "--nonce" if value.len() <= MAX_NONCE => options.nonce = value,
            "--dead-man" => {
                options.dead_man = Duration::from_secs(
                    value
                        .parse()
                        .map_err(|_| format!("--dead-man {value}: not seconds"))?,
                );
            }
            _ => return Err(format!("unknown or unusable option {name}")),
        }
    }
    Ok(options)
}

/// Entry of `portcullis-cell box`.
pub fn main(arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let options = options(arguments)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| error.to_string())?;
    rustix::thread::set_no_new_privs(true).map_err(|error| error.to_string())?;
    // Once, for everything in this box: the kernel compiles each filter anew, and a run has five of them.
    crate::rules::seccomp(options.debug)?;
    // The daemon's own mask would leave an agent's files unreadable to the agent's other tools.
    let _ = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Before the first run, which could take the port. Its thread has the filters of this one.
    if let Some(socket) = options.egress.clone() {
        crate::relay::start(socket)?;
    }
    let now = Instant::now();
    let mut pid1 = Pid1 {
        runs: Vec::new(),
        idle: Vec::new(),
        supervisors: BTreeSet::new(),
        standing: crate::runner::standing(),
        patrol_at: now,
        host: None,
        alone_since: None,
        heard: now,
        dial_at: now,
        dialled: false,
        over: false,
    };
    loop {
        pid1.dial(&options);
        if pid1.over {
            return Ok(());
        }
        pid1.wait(&options);
        // First: who is dead takes no run.
        pid1.reap();
        pid1.hear();
        pid1.pass();
        pid1.reap();
        if pid1.over || pid1.heard.elapsed() >= options.dead_man {
            // The kernel ends whatever else is in the box with its pid 1.
            return Ok(());
        }
    }
}

struct Supervisor {
    pid: Pid,
    channel: Channel,
    /// Of the run that it had; a process cannot raise its own again.
    limits: Option<Limits>,
    since: Instant,
}

/// Open files, bytes of a file.
type Limits = (u32, u64);

struct Run {
    id: u32,
    /// What the host calls it.
    name: String,
    /// It has ended, and there was nobody to tell.
    over: Option<Exit>,
    supervisor: Supervisor,
    reported: bool,
    /// Its supervisor takes another.
    left: bool,
    gone: bool,
}

struct Pid1 {
    runs: Vec<Run>,
    /// Started ahead or left by a run, so that the next does not wait for one. The last is taken first.
    idle: Vec<Supervisor>,
    /// Every supervisor that has not been reaped, also those whose run is over.
    supervisors: BTreeSet<i32>,
    /// Before any run could change it.
    standing: String,
    patrol_at: Instant,
    host: Option<Channel>,
    /// The host that started the runs is gone.
    alone_since: Option<Instant>,
    heard: Instant,
    dial_at: Instant,
    /// Somebody has been reached.
    dialled: bool,
    over: bool,
}

impl Pid1 {
    fn dial(&mut self, options: &Options) {
        if self.host.is_some() || Instant::now() < self.dial_at {
            return;
        }
        self.dial_at = Instant::now() + REDIAL;
        let dialled = UnixStream::connect(&options.socket);
        // The host listens before it starts a box. Where nobody listens at the first call, it ended in between: nothing is to be waited for.
        self.over |= !self.dialled
            && matches!(&dialled, Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound));
        self.dialled |= dialled.is_ok();
        let Ok(mut channel) = dialled.and_then(Channel::new) else {
            return;
        };
        channel.queue(&Frame::Hello {
            proto: PROTO,
            nonce: options.nonce.clone(),
        });
        if self.alone_since.is_some() {
            for run in &self.runs {
                channel.queue(&Frame::Report {
                    run: run.id,
                    name: run.name.clone(),
                    ended: run.over.clone(),
                });
            }
        }
        if channel.flush().is_ok() {
            self.host = Some(channel);
            self.runs.retain(|run| run.over.is_none());
            self.ready_one();
        }
    }

    fn ready_one(&mut self) {
        if self.idle.is_empty()
            && let Ok(supervisor) = self.supervisor()
        {
            self.idle.push(supervisor);
        }
    }

    /// One that waits and may have these limits, or a new one.
    fn take(&mut self, limits: Limits) -> io::Result<Supervisor> {
        let fits = |one: &Supervisor| one.limits.is_none_or(|had| had == limits);
        let mut taken = match self.idle.iter().rposition(fits) {
            Some(at) => self.idle.remove(at),
            None => self.supervisor()?,
        };
        taken.limits = Some(limits);
        Ok(taken)
    }

    /// Waits for the host, any run, or the next thing that time brings.
    fn wait(&mut self, options: &Options) {
        let now = Instant::now();
        let mut until = (self.heard + options.dead_man).min(self.patrol_at);
        if let Some(since) = self.alone_since.filter(|_| !self.runs.is_empty()) {
            until = until.min(since + KEPT);
        }
        if self.host.is_none() {
            until = until.min(self.dial_at);
        }
        let full = self
            .host
            .as_ref()
            .is_some_and(|host| host.pending() > UNSENT);
        let mut polled = Vec::with_capacity(self.runs.len() + 1);
        let flags = |channel: &Channel, read: bool| {
            let mut flags = if read {
                PollFlags::IN
            } else {
                PollFlags::empty()
            };
            flags.set(PollFlags::OUT, channel.pending() > 0);
            flags
        };
        if let Some(host) = &self.host {
            polled.push(PollFd::new(host, flags(host, true)));
        }
        for run in self
            .runs
            .iter()
            .filter(|run| !run.gone && run.over.is_none())
        {
            let channel = &run.supervisor.channel;
            polled.push(PollFd::new(channel, flags(channel, !full)));
        }
        let time = until.saturating_duration_since(now);
        let time = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let _ = rustix::event::poll(&mut polled, Some(&time));
    }

    /// What the host says.
    fn hear(&mut self) {
        if let Some(mut host) = self.host.take() {
            match self.read_host(&mut host) {
                Ok(()) => self.host = Some(host),
                Err(_) => self.left_alone(),
            }
        }
    }

    /// The link has ended. Its runs go on for a while.
    fn left_alone(&mut self) {
        self.host = None;
        // How those ended was said.
        self.runs.retain(|run| !run.reported);
        self.alone_since.get_or_insert_with(Instant::now);
    }

    /// While nobody is there: what runs write is lost, how they end is kept.
    fn hold(&mut self) {
        for run in self.runs.iter_mut().filter(|run| run.over.is_none()) {
            match unheard(run) {
                Ok(exit) => run.over = exit,
                Err(_) => run.over = Some(ended(Ended::Signal(9), Cause::Itself)),
            }
        }
    }

    fn read_host(&mut self, host: &mut Channel) -> io::Result<()> {
        let open = host.fill()?;
        while let Some(frame) = host.next_frame()? {
            self.heard = Instant::now();
            match frame {
                Frame::Spawn { run, ref spawn } => {
                    self.spawn(host, &frame, run, (spawn.open_files, spawn.file_bytes));
                }
                Frame::Named { run, name } => {
                    if let Some(run) = self.runs.iter_mut().find(|known| known.id == run) {
                        run.name = name;
                    }
                }
                Frame::Stdin { run, .. }
                | Frame::Resize { run, .. }
                | Frame::Signal { run, .. }
                | Frame::End { run, .. }
                | Frame::Window { run, .. } => {
                    if let Some(run) = self.runs.iter_mut().find(|known| known.id == run) {
                        run.supervisor.channel.queue(&frame);
                    }
                }
                Frame::Ping { token } => host.queue(&Frame::Ping { token }),
                Frame::Bye => self.over = true,
                Frame::Hello { proto, .. } if proto == PROTO => {}
                Frame::Hello { .. }
                | Frame::Report { .. }
                | Frame::Output { .. }
                | Frame::Exit { .. } => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        }
        host.flush()?;
        if open {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn spawn(&mut self, host: &mut Channel, frame: &Frame, id: u32, limits: Limits) {
        let refusal = if self.runs.iter().any(|run| run.id == id) {
            // A number of a run that is alive: answering would end that run for the host.
            return;
        } else if self.alone_since.is_some() {
            Some("this sandbox is of a gateway that has ended".to_owned())
        } else if self.runs.len() >= MOST_RUNS {
            Some("too many runs in this box".to_owned())
        } else {
            match self.take(limits) {
                Ok(mut supervisor) => {
                    supervisor.channel.queue(frame);
                    // What does not go out now goes out after the next wait.
                    let _ = supervisor.channel.flush();
                    self.runs.push(Run {
                        id,
                        name: String::new(),
                        over: None,
                        supervisor,
                        reported: false,
                        left: false,
                        gone: false,
                    });
                    None
                }
                Err(error) => Some(format!("no process for the run: {error}")),
            }
        };
        if let Some(text) = refusal {
            host.queue(&Frame::Output {
                run: id,
                stream: Stream::Err,
                data: format!("portcullis: {text}\n").into_bytes(),
            });
            host.queue(&Frame::Exit {
                run: id,
                exit: ended(Ended::Code(125), Cause::NotStarted),
            });
        } else {
            self.ready_one();
        }
    }

    /// What the runs say, passed on to the host under the number that this process knows, not the one they claim.
    fn pass(&mut self) {
        if let Some(since) = self.alone_since
            && since.elapsed() >= KEPT
        {
            // Each supervisor sees its channel close and ends its tree.
            self.runs.clear();
            self.alone_since = None;
        }
        let Some(host) = &mut self.host else {
            return self.hold();
        };
        for run in &mut self.runs {
            if run.gone || host.pending() > UNSENT {
                continue;
            }
            if relay(run, host).is_err() {
                run.gone = true;
                if !run.reported {
                    // Its supervisor is gone without a word: out of memory, most likely. What it leaves comes to us in a moment.
                    self.patrol_at = self.patrol_at.min(Instant::now() + SOON);
                    host.queue(&Frame::Exit {
                        run: run.id,
                        exit: ended(Ended::Signal(9), Cause::Itself),
                    });
                }
            }
        }
        if host.flush().is_err() {
            self.left_alone();
        }
        self.runs.retain(|run| !run.gone);
        let now = Instant::now();
        for run in self.runs.extract_if(.., |run| run.left) {
            let mut supervisor = run.supervisor;
            supervisor.since = now;
            // One too many goes when it sees its channel close.
            if self.idle.len() < MOST_IDLE {
                self.idle.push(supervisor);
            }
        }
    }

    /// Buries the dead and kills what hangs below pid 1 without belonging to a run.
    fn reap(&mut self) {
        let mut look = self.patrol_at <= Instant::now();
        while let Reaped::Child(pid, _) = tree::reap() {
            // Orphans come only from a supervisor that died before it had swept its tree.
            look = true;
            self.supervisors.remove(&pid.as_raw_pid());
            self.idle.retain(|idle| idle.pid != pid);
        }
        if !look {
            return;
        }
        let now = Instant::now();
        self.patrol_at = now + PATROL;
        // The one that was used last is the last, and stays.
        let stale = |one: &Supervisor| now.duration_since(one.since) > IDLE;
        let most = self.idle.len().saturating_sub(1);
        let gone = self.idle[..most]
            .iter()
            .take_while(|one| stale(one))
            .count();
        self.idle.drain(..gone);
        for child in tree::children() {
            if !self.supervisors.contains(&child.as_raw_pid()) {
                let _ = kill_process(child, Signal::KILL);
            }
        }
    }

    /// Starts `portcullis-cell run` with one end of a socket pair as its standard input.
    fn supervisor(&mut self) -> io::Result<Supervisor> {
        let (ours, theirs) = UnixStream::pair()?;
        let channel = Channel::new(ours)?;
        let child = Command::new("/proc/self/exe")
            .arg0("portcullis-run")
            .arg("run")
            .arg(&self.standing)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()?;
        let pid = Pid::from_child(&child);
        self.supervisors.insert(pid.as_raw_pid());
        Ok(Supervisor {
            pid,
            channel,
            limits: None,
            since: Instant::now(),
        })
    }
}

fn relay(run: &mut Run, host: &mut Channel) -> io::Result<()> {
    let channel = &mut run.supervisor.channel;
    // A supervisor that has ended takes no more credit, but what it said before is still to be read.
    if channel.flush().is_err() {
        channel.forget();
    }
    let open = channel.fill()?;
    while let Some(frame) = channel.next_frame()? {
        match frame {
            Frame::Output { stream, data, .. } if !run.reported => host.queue(&Frame::Output {
                run: run.id,
                stream,
                data,
            }),
            Frame::Window { bytes, .. } if !run.reported => {
                host.queue(&Frame::Window { run: run.id, bytes });
            }
            Frame::Exit { exit, .. } if !run.reported => {
                run.reported = true;
                host.queue(&Frame::Exit { run: run.id, exit });
            }
            Frame::Hello { proto, .. } if proto == PROTO && run.reported => run.left = true,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    if open {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// What a run says that nobody hears; how it ended, once it has.
fn unheard(run: &mut Run) -> io::Result<Option<Exit>> {
    let channel = &mut run.supervisor.channel;
    if channel.flush().is_err() {
        channel.forget();
    }
    let open = channel.fill()?;
    while let Some(frame) = channel.next_frame()? {
        match frame {
            Frame::Output { .. } | Frame::Window { .. } => {}
            // Its supervisor takes no other: it goes with the report.
            Frame::Exit { exit, .. } => return Ok(Some(exit)),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    if open {
        Ok(None)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

const fn ended(ended: Ended, cause: Cause) -> Exit {
    Exit {
        ended,
        cause,
        duration_ms: 0,
        user_ms: 0,
        system_ms: 0,
        dropped_out: 0,
        dropped_err: 0,
        swept: 0,
    }
}
