//! The supervisor of a run: its subreaper, its clock, its output, its end. In a box it takes another run after one that left nothing behind:
//! starting it costs more than most commands.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use portcullis_cell::{Cause, Ended, Exit, Frame, PROTO, Spawn, Stream};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitStatus, kill_process, kill_process_group, pidfd_open,
};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::channel::Channel;
use crate::host::Host;
use crate::input::Input;
use crate::output::Output;
use crate::rules::Domain;
use crate::start::{NotStarted, Started, start};
use crate::terminal;
use crate::tree::{self, Reaped};

/// How long output is awaited after the leader's end, in all.
const DRAIN: Duration = Duration::from_millis(200);
/// How long it may be silent before it counts as over: a background child that holds the pipe must not delay the end.
const QUIET: Duration = Duration::from_millis(10);
/// TERM to KILL when the time is over: the limit is a promise, so the grace is short (design.md section 6: limit + 50 ms).
const TIME_OUT_GRACE: Duration = Duration::from_millis(25);
/// Longest grace that a SPAWN may ask for.
const MOST_GRACE: Duration = Duration::from_secs(10);
/// How long KILL is repeated. What outlives it (uninterruptible in the kernel) becomes pid 1's.
const SWEEP: Duration = Duration::from_secs(2);

/// Entry of `portcullis-cell run [STANDING]`, and of `portcullis-cell host`: only a supervisor that stands as pid 1 did before its first run
/// takes another.
pub fn main(mut host: Option<Host>, first: Option<String>) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    crate::sys::keep_inherited_from_commands().map_err(text)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| error.to_string())?;
    rustix::thread::set_no_new_privs(true).map_err(|error| error.to_string())?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| error.to_string())?;
    // The run's own session; fails only where this process leads a group already, which changes nothing.
    let _ = rustix::process::setsid();
    let control = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(text)?;
    if let Some(host) = &mut host {
        host.receive(&control)?;
    }
    let mut channel = Channel::new(UnixStream::from(control)).map_err(text)?;
    let domain = Domain::default();
    loop {
        let Some((run, spawn)) = await_spawn(&mut channel).map_err(text)? else {
            return Ok(());
        };
        let started = start(&spawn, host.as_ref(), &domain);
        let (exit, clean) = match started.and_then(|started| Run::new(run, &spawn, started)) {
            Ok(mut running) => {
                let Ok(exit) = running.supervise(&mut channel) else {
                    // Nobody to report to: end everything and go.
                    running.sweep();
                    return Ok(());
                };
                (exit, running.swept)
            }
            Err(reason) => (not_started(run, &reason, &mut channel), false),
        };
        channel.queue(&Frame::Exit { run, exit });
        // The next command inherits from this process what a run of the same user could set on it.
        let again =
            clean && host.is_none() && first.as_ref().is_some_and(|first| *first == standing());
        if again {
            let nonce = String::new();
            channel.queue(&Frame::Hello {
                proto: PROTO,
                nonce,
            });
        }
        loop {
            channel.flush().map_err(text)?;
            if channel.pending() == 0 {
                break;
            }
            // Not for what comes: pid 1 may hold back for long, and what is not read here would wake this at once again.
            let mut polled = [PollFd::new(&channel, PollFlags::OUT)];
            match rustix::event::poll(&mut polled, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        if !again {
            // Nothing more is waited for: the other end keeps its own open until this process is gone.
            return Ok(());
        }
    }
}

fn await_spawn(channel: &mut Channel) -> std::io::Result<Option<(u32, Spawn)>> {
    loop {
        if let Some(frame) = channel.next_frame()? {
            if let Frame::Spawn { run, spawn } = frame {
                return Ok(Some((run, *spawn)));
            }
            continue;
        }
        wait(channel, false, std::iter::empty(), None, None)?;
        if !channel.fill()? {
            return Ok(None);
        }
    }
}

fn not_started(run: u32, reason: &NotStarted, channel: &mut Channel) -> Exit {
    let mut data = format!("portcullis: {}\n", reason.text).into_bytes();
    data.truncate(4096);
    channel.queue(&Frame::Output {
        run,
        stream: Stream::Err,
        data,
    });
    Exit {
        ended: Ended::Code(reason.code),
        cause: reason.cause,
        duration_ms: 0,
        user_ms: 0,
        system_ms: 0,
        dropped_out: 0,
        dropped_err: 0,
        swept: 0,
    }
}

/// Waits for the control channel, the given descriptors (one of them to be written to) and at most `time`.
fn wait<'a>(
    channel: &'a Channel,
    writing: bool,
    others: impl Iterator<Item = BorrowedFd<'a>>,
    writable: Option<BorrowedFd<'a>>,
    time: Option<Duration>,
) -> std::io::Result<()> {
    let flags = if writing {
        PollFlags::IN | PollFlags::OUT
    } else {
        PollFlags::IN
    };
    let mut polled = vec![PollFd::new(channel, flags)];
    polled.extend(others.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    polled.extend(writable.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT)));
    let time = time.map(|time| rustix::event::Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    match rustix::event::poll(&mut polled, time.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[derive(Clone, Copy)]
enum Phase {
    /// The leader lives.
    Running,
    /// TERM was sent; KILL follows at this time.
    Ending { kill_at: Instant },
    /// The leader is gone; its last output is read.
    Draining { until: Instant, quiet: Instant },
    /// Nothing is left alive; the last output waits for credit until this time.
    Sending { until: Instant },
}

struct Run {
    number: u32,
    leader: Pid,
    pidfd: OwnedFd,
    input: Input,
    output: Output,
    terminal: Option<OwnedFd>,
    started: Instant,
    deadline: Instant,
    grace: Duration,
    cause: Cause,
    status: Option<(WaitStatus, Instant)>,
    told: BTreeSet<i32>,
    /// Nothing of it is left below this process.
    swept: bool,
    /// Of earlier runs.
    used: (u64, u64),
    phase: Phase,
}

impl Run {
    fn new(run: u32, spawn: &Spawn, child: Started) -> Result<Self, NotStarted> {
        let started = Instant::now();
        let leader = child.leader;
        // The box dies before the gateway, the command before its supervisor.
        let _ = std::fs::write(
            format!("/proc/{}/oom_score_adj", leader.as_raw_pid()),
            "500",
        );
        let Started {
            input,
            out,
            err,
            terminal,
            ..
        } = child;
        let is_terminal = terminal.is_some();
        let setup = || -> std::io::Result<(OwnedFd, Input, Output)> {
            let input = input.map(|to| Input::new(to, is_terminal)).transpose()?;
            Ok((
                pidfd_open(leader, PidfdFlags::empty())?,
                input.unwrap_or_default(),
                Output::new(out, err, spawn.output_cap)?,
            ))
        };
        let (pidfd, input, output) = setup().map_err(|error| {
            tree::sweep(SWEEP, &mut BTreeSet::new(), |_, _| {});
            NotStarted::new(125, error.to_string())
        })?;
        let limit = Duration::from_millis(spawn.timeout_ms);
        Ok(Self {
            number: run,
            leader,
            pidfd,
            input,
            output,
            terminal,
            started,
            deadline: started
                .checked_add(limit)
                .unwrap_or(started + Duration::from_hours(24)),
            grace: Duration::from_millis(spawn.grace_ms.into()).min(MOST_GRACE),
            cause: Cause::Itself,
            status: None,
            told: BTreeSet::new(),
            swept: false,
            used: usage(),
            phase: Phase::Running,
        })
    }

    /// Runs to the end. An error means that the control channel is gone.
    fn supervise(&mut self, channel: &mut Channel) -> std::io::Result<Exit> {
        // What came together with the order to start is read already: nothing would wake this for it.
        self.take_frames(channel)?;
        loop {
            self.give_input(channel);
            self.output.send(self.number, channel);
            channel.flush()?;
            if let Some(exit) = self.step() {
                self.output.send(self.number, channel);
                return Ok(exit);
            }
            let tail = !matches!(self.phase, Phase::Running);
            let leader = self.status.is_none().then(|| self.pidfd.as_fd());
            wait(
                channel,
                channel.pending() > 0,
                self.output.readable(tail).chain(leader),
                self.input.writable(),
                Some(self.patience()),
            )?;
            self.listen(channel)?;
            if self.output.read(tail)
                && let Phase::Draining { quiet, .. } = &mut self.phase
            {
                *quiet = Instant::now() + QUIET;
            }
        }
    }

    /// Passes on what the command takes of its input, and asks for as much.
    fn give_input(&mut self, channel: &mut Channel) {
        self.input.write();
        if let Some(bytes) = self.input.credit() {
            let run = self.number;
            channel.queue(&Frame::Window { run, bytes });
        }
    }

    fn listen(&mut self, channel: &mut Channel) -> std::io::Result<()> {
        let open = channel.fill()?;
        self.take_frames(channel)?;
        if open {
            Ok(())
        } else {
            Err(std::io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn take_frames(&mut self, channel: &mut Channel) -> std::io::Result<()> {
        while let Some(frame) = channel.next_frame()? {
            match frame {
                Frame::Window { run, bytes } if run == self.number => self.output.grant(bytes),
                Frame::Stdin { run, data } if run == self.number => {
                    self.input.push(data.expose())?;
                }
                Frame::Resize { run, size } if run == self.number => {
                    if let Some(terminal) = &self.terminal {
                        // One that nobody has open any more has no size.
                        let _ = terminal::resize(terminal, size);
                    }
                }
                Frame::Signal { run, signal } if run == self.number => self.signal(signal),
                Frame::End { run, now } if run == self.number => {
                    let grace = if now { Duration::ZERO } else { self.grace };
                    self.end(Cause::Cancelled, grace);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn signal(&mut self, signal: u8) {
        let Some(signal) = Signal::from_named_raw(signal.into()) else {
            return;
        };
        if self.status.is_some() || !matches!(self.phase, Phase::Running) {
            // What it has left is swept.
            return;
        }
        match &self.terminal {
            None => tree::signal_all(signal, &mut BTreeSet::new()),
            Some(terminal) => {
                // None: it has not come to its terminal yet, or its foreground has ended. Then it is for who leads it.
                let _ = match terminal::foreground(terminal) {
                    Some(group) => kill_process_group(group, signal),
                    None => kill_process(self.leader, signal),
                };
            }
        }
    }

    fn end(&mut self, cause: Cause, grace: Duration) {
        let now = Instant::now();
        match &mut self.phase {
            Phase::Running => {
                self.cause = cause;
                if !grace.is_zero() {
                    if self.terminal.is_some() {
                        // A shell at a terminal ignores TERM.
                        tree::signal_all(Signal::HUP, &mut BTreeSet::new());
                    }
                    tree::signal_all(Signal::TERM, &mut BTreeSet::new());
                }
                self.phase = Phase::Ending {
                    kill_at: now + grace,
                };
            }
            Phase::Ending { kill_at } => *kill_at = (*kill_at).min(now + grace),
            // The leader is over: only its output is still awaited, and that ends now.
            Phase::Draining { until, .. } | Phase::Sending { until } => *until = now,
        }
    }

    /// What time and dead children bring; the exit once everything is over.
    fn step(&mut self) -> Option<Exit> {
        let mut childless = false;
        loop {
            match tree::reap() {
                Reaped::Child(pid, status) => self.dead(pid, status),
                Reaped::NoneYet => break,
                Reaped::NoChildren => {
                    childless = true;
                    break;
                }
            }
        }
        let now = Instant::now();
        if matches!(self.phase, Phase::Running) {
            if self.status.is_some() {
                self.phase = Phase::Draining {
                    until: now + DRAIN,
                    quiet: now + QUIET,
                };
            } else if now >= self.deadline {
                self.end(Cause::TimedOut, TIME_OUT_GRACE);
            }
        }
        match self.phase {
            Phase::Running => return None,
            Phase::Ending { kill_at } if !childless && now < kill_at => return None,
            Phase::Draining { until, quiet } if !self.output.ended() && now < until.min(quiet) => {
                return None;
            }
            Phase::Ending { .. } | Phase::Draining { .. } => {
                self.sweep();
                self.output.read(true);
                // Only a run that ended by itself may wait for a slow reader, and never past its own limit.
                let until = if self.cause == Cause::Itself {
                    self.deadline.max(now + DRAIN)
                } else {
                    now
                };
                self.phase = Phase::Sending { until };
            }
            Phase::Sending { .. } => {}
        }
        let Phase::Sending { until } = self.phase else {
            return None;
        };
        if !self.output.sent() && now < until {
            return None;
        }
        Some(self.exit())
    }

    fn dead(&mut self, pid: Pid, status: WaitStatus) {
        if pid == self.leader && self.status.is_none() {
            self.status = Some((status, Instant::now()));
            self.input.close();
        }
    }

    fn sweep(&mut self) {
        let mut told = std::mem::take(&mut self.told);
        self.swept = tree::sweep(SWEEP, &mut told, |pid, status| self.dead(pid, status));
        self.told = told;
    }

    fn patience(&self) -> Duration {
        let now = Instant::now();
        let until = match self.phase {
            Phase::Running => self.deadline,
            // Children end without a sign here (only the leader has a descriptor), so look often.
            Phase::Ending { kill_at } => kill_at.min(now + Duration::from_millis(2)),
            Phase::Draining { until, quiet } => until.min(quiet),
            Phase::Sending { until } => until,
        };
        until.saturating_duration_since(now)
    }

    fn exit(&mut self) -> Exit {
        self.output.abandon();
        let (status, at) = self
            .status
            .map_or((None, Instant::now()), |(status, at)| (Some(status), at));
        let (user, system) = usage();
        let (dropped_out, dropped_err) = self.output.dropped();
        self.told.remove(&self.leader.as_raw_pid());
        let byte = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
        Exit {
            ended: match status {
                Some(status) => match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Ended::Code(byte(code)),
                    (None, Some(signal)) => Ended::Signal(byte(signal).clamp(1, 64)),
                    (None, None) => Ended::Signal(9),
                },
                // It outlived KILL inside the kernel: say what was done to it.
                None => Ended::Signal(9),
            },
            cause: self.cause,
            duration_ms: u64::try_from(at.saturating_duration_since(self.started).as_millis())
                .unwrap_or(u64::MAX),
            user_ms: user.saturating_sub(self.used.0),
            system_ms: system.saturating_sub(self.used.1),
            dropped_out,
            dropped_err,
            swept: u32::try_from(self.told.len()).unwrap_or(u32::MAX),
        }
    }
}

/// Processor time of all reaped children in milliseconds: fields 16 and 17 of stat, in ticks of 10 ms (the same on every Linux).
fn usage() -> (u64, u64) {
    let fields = stat();
    let field = |at: usize| {
        let number = fields.get(at).and_then(|word| word.parse::<u64>().ok());
        number.unwrap_or(0) * 10
    };
    (field(13), field(14))
}

/// How the scheduler treats this process, which another of its user may change: priority, nice value, real-time priority and policy (fields
/// 18, 19, 40 and 41), and where it may run.
pub fn standing() -> String {
    let fields = stat();
    let of = [15, 16, 37, 38].map(|at| fields.get(at).cloned().unwrap_or_default());
    let places = sched_getaffinity(None).map(|set| {
        let places = (0..CpuSet::MAX_CPU).filter(|at| set.is_set(*at));
        places.map(|at| at.to_string()).collect::<Vec<_>>()
    });
    format!("{} {}", of.join(" "), places.unwrap_or_default().join(","))
}

/// The fields of this process' stat, from the third on.
fn stat() -> Vec<String> {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields.split_whitespace().map(str::to_owned).collect()
}
