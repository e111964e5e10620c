//! The runs of one box over its link: numbers, credit, clocks, delivery.
//!
//! Output that a receiver has not taken is never more than the credit the cell was given ([`INITIAL_WINDOW`]); a receiver that takes
//! nothing stops its own run and no other. A receiver that is dropped cancels its run.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use portcullis_cell::{Cause, Ended, Exit, Frame, INITIAL_WINDOW, Input, Spawn, Stream};
use portcullis_core::ids::RunId;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::cgroup::OutOfMemory;
use super::disk::{Full, Held, Pass};
use super::input::{NotTaken, RunInput, RunInputs, Stdin, ToCell};
use super::link::{Link, LinkError};
use super::standing::{GivenUp, Standing};
use crate::supervision::Flag;

/// Credit is given back in pieces of at least this many bytes.
const GIVE_BACK: u32 = 64 * 1024;
/// How long after a run's limit (which the cell keeps) the host ends it itself.
const HOST_GRACE: Duration = Duration::from_millis(300);
/// A cancelled run's grace, and as much again.
const CANCEL: Duration = Duration::from_millis(500);
/// How long the cell may take to answer an order to end; after that the box is not believed to work.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two pings, and the longest silence after one.
const PING: Duration = Duration::from_secs(5);
/// Orders that a cell has not read.
const UNREAD: usize = 1024 * 1024;

/// What a run does, in order; nothing follows `Exited`. A channel that ends without it says the same as `BoxLost`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEvent {
    /// It wrote something.
    Output {
        /// Where.
        stream: Stream,
        /// Position in this run's output, from 0, both streams together.
        seq: u64,
        /// At most 32 KiB, never empty.
        data: Vec<u8>,
    },
    /// It is over and nothing of it is left alive.
    Exited(Exited),
    /// Its box is gone; what it did before that is unknown.
    BoxLost,
    /// The pool ended its box; what it did before that is unknown.
    GivenUp(GivenUp),
}

/// How a run ended. From inside the box, except the duration: shown, and never a reason to trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exited {
    /// Exit code of the command, if it ended by itself.
    pub code: Option<u8>,
    /// Signal that ended it, otherwise.
    pub signal: Option<u8>,
    /// By itself, time-out, cancelled, or never started.
    pub cause: Cause,
    /// From the order to the end, by the host's clock, in milliseconds.
    pub duration_ms: u64,
    /// Bytes of standard output beyond the cap.
    pub dropped_stdout: u64,
    /// Bytes of standard error beyond the cap.
    pub dropped_stderr: u64,
    /// Processor time of the whole tree in milliseconds.
    pub cpu_ms: u64,
    /// Processes that the command left behind and that were killed.
    pub swept: u32,
    /// Processes of its box that the kernel killed for want of memory while it ran: its own, where nothing ran beside it. The
    /// kernel's word, not the box's.
    pub out_of_memory: u64,
    /// It was ended because its workspace holds more than it may.
    pub full: Option<Full>,
}

impl Exited {
    /// Whether its time was over.
    pub fn timed_out(&self) -> bool {
        self.cause == Cause::TimedOut
    }
}

/// What the box's owner asks of its link.
#[derive(Debug)]
pub enum Order {
    /// Start a run.
    Start {
        /// Its name, for [`Order::Cancel`].
        name: RunId,
        /// What to start.
        spawn: Box<Spawn>,
        /// Where its events go.
        events: mpsc::Sender<RunEvent>,
        /// It may write to its folder, which is counted as long as it does.
        pass: Option<Pass>,
        /// Whether it was asked of the cell. Dropped unanswered: it was not, and never will be.
        accepted: oneshot::Sender<Result<Accepted, NotAccepted>>,
    },
    /// End a run: TERM, grace, KILL. One that is over already is no error.
    Cancel {
        /// Its name.
        name: RunId,
    },
    /// End the box, and what runs in it.
    End(GivenUp),
    /// End the box as soon as nothing runs in it, and start nothing more.
    Retire,
}

/// A run that the cell has been asked to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Digest of the image the box was made from, where there is one.
    pub image_digest: Option<String>,
    /// The way into it.
    pub inputs: RunInputs,
}

/// Why a run was not asked of the cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAccepted {
    /// Arguments and environment are longer than a frame.
    TooLong,
    /// Its box could not be started.
    NoBox(String),
    /// Its box was given up before it served.
    GivenUp(GivenUp),
}

/// Why serving ended, the link being whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// No run for the idle time.
    Idle,
    /// No run, and past its age.
    Old,
    /// Nobody can give orders any more.
    NoOrders,
    /// Its place was needed.
    Retired,
    /// The pool ended it.
    GivenUp(GivenUp),
}

struct Run {
    name: RunId,
    events: mpsc::Sender<RunEvent>,
    waiting: VecDeque<RunEvent>,
    /// A permit is being waited for.
    reserving: bool,
    /// Output bytes that the cell may still send.
    credit: u32,
    /// Bytes delivered and not yet given back.
    owed: u32,
    /// None: it has none.
    stdin: Option<Stdin>,
    terminal: bool,
    seq: u64,
    started: Instant,
    /// When the host acts: ends the run, then (if `told`) gives the box up.
    deadline: Instant,
    told: bool,
    /// Somebody asked for its end.
    cancelled: bool,
    over: bool,
    /// Its receiver is gone: what comes is thrown away.
    deaf: bool,
    /// The kernel's count when it began.
    out_of_memory: u64,
    /// It may write to its folder.
    held: Option<Held>,
    /// It was told to end for that.
    full: Option<Full>,
}

enum Woken {
    Room(u32, Option<mpsc::OwnedPermit<RunEvent>>),
    Deaf(u32),
    Full(u32, Full),
    Input(u32, Option<RunInput>, mpsc::Receiver<RunInput>),
}

type Waking = Pin<Box<dyn Future<Output = Woken> + Send>>;

/// All runs of one box, while its link lives.
pub struct Runs {
    link: Link,
    live: BTreeMap<u32, Run>,
    waking: FuturesUnordered<Waking>,
    heard: Instant,
    pinged: bool,
    /// The number of the last run.
    last: u32,
    image_digest: Option<String>,
    idle: Duration,
    idle_since: Instant,
    /// Until its first run it does not count as idle.
    is_ready_made: bool,
    /// Its age is over then.
    old_at: Option<Instant>,
    /// Orders to start that were dealt with.
    taken: u64,
    retiring: bool,
    /// Orders that came before it served.
    first: VecDeque<Order>,
    shown: Option<Arc<Flag<Standing>>>,
    memory: Option<OutOfMemory>,
    /// Where the names of what runs are shown.
    named: Option<Arc<Flag<Arc<[RunId]>>>>,
}

impl Runs {
    /// For a link that has just been accepted; without a run for `idle`, serving ends.
    pub fn new(link: Link, image_digest: Option<String>, idle: Duration) -> Self {
        let now = Instant::now();
        Self {
            link,
            live: BTreeMap::new(),
            waking: FuturesUnordered::new(),
            heard: now,
            pinged: false,
            last: 0,
            image_digest,
            idle,
            idle_since: now,
            is_ready_made: false,
            old_at: None,
            taken: 0,
            retiring: false,
            first: VecDeque::new(),
            shown: None,
            memory: None,
            named: None,
        }
    }

    /// Serving ends then too, once nothing runs.
    #[must_use]
    pub fn until(mut self, old_at: Instant) -> Self {
        self.old_at = Some(old_at);
        self
    }

    /// Made ahead: until the first run serving does not end for want of one.
    #[must_use]
    pub fn ready_made(mut self, is_ready_made: bool) -> Self {
        self.is_ready_made = is_ready_made;
        self
    }

    /// Tells of what the kernel kills in the box of this process for want of memory.
    #[must_use]
    pub fn watching(mut self, init: u32) -> Self {
        self.memory = OutOfMemory::of(init);
        self
    }

    /// Begins with the orders that came before it served, and shows in the flag what it does.
    #[must_use]
    pub fn of_pool(mut self, first: VecDeque<Order>, shown: Arc<Flag<Standing>>) -> Self {
        self.first = first;
        self.shown = Some(shown);
        self
    }

    /// Shows the names of the runs under way.
    #[must_use]
    pub fn naming(mut self, named: Option<Arc<Flag<Arc<[RunId]>>>>) -> Self {
        self.named = named;
        self
    }

    fn name(&self) {
        if let Some(named) = &self.named {
            named.set(self.live.values().map(|run| run.name.clone()).collect());
        }
    }

    /// Serves until the link ends, the orders end, or the box must be given up. Every run that was alive gets [`RunEvent::BoxLost`], or
    /// [`RunEvent::GivenUp`] where that is why.
    pub async fn serve(mut self, orders: &mut mpsc::Receiver<Order>) -> Result<Over, LinkError> {
        let end = self.turn(orders).await;
        let said = match &end {
            Ok(Over::GivenUp(why)) => RunEvent::GivenUp(why.clone()),
            _ => RunEvent::BoxLost,
        };
        for run in self.live.values_mut() {
            // A reader that is behind by a whole channel learns from its end that the box is gone, not why.
            let _ = run.events.try_send(said.clone());
        }
        end
    }

    async fn turn(&mut self, orders: &mut mpsc::Receiver<Order>) -> Result<Over, LinkError> {
        loop {
            while let Some(order) = self.first.pop_front() {
                if let Some(over) = self.order(order)? {
                    return Ok(over);
                }
            }
            if self.retiring && self.live.is_empty() {
                return Ok(Over::Retired);
            }
            self.show();
            let clock = self.next_deadline();
            tokio::select! {
                frame = self.link.next() => self.frame(frame?)?,
                order = orders.recv() => match order {
                    Some(order) => if let Some(over) = self.order(order)? {
                        return Ok(over);
                    },
                    None => return Ok(Over::NoOrders),
                },
                Some(woken) = self.waking.next() => self.woken(woken)?,
                () = tokio::time::sleep_until(clock) => {
                    self.tick()?;
                    if self.counts_as_idle() && self.idle_since.elapsed() >= self.idle {
                        return Ok(Over::Idle);
                    }
                    if self.is_old() {
                        return Ok(Over::Old);
                    }
                }
            }
            if self.link.pending() > UNREAD {
                return Err(LinkError::Protocol("it does not read".to_owned()));
            }
        }
    }

    fn counts_as_idle(&self) -> bool {
        self.live.is_empty() && (self.taken > 0 || !self.is_ready_made)
    }

    fn is_old(&self) -> bool {
        self.live.is_empty() && self.old_at.is_some_and(|at| Instant::now() >= at)
    }

    fn show(&self) {
        if let Some(flag) = &self.shown {
            let old = flag.get();
            let now = Standing {
                taken: self.taken,
                running: self.live.len(),
                idle_since: self.idle_since,
                ..old
            };
            if now != old {
                flag.set(now);
            }
        }
    }

    fn next_deadline(&self) -> Instant {
        let alive = || self.live.values().filter(|run| !run.over);
        let first = alive().map(|run| run.deadline).min();
        let input = alive().filter_map(|run| run.stdin.as_ref()?.until()).min();
        let ping = self.heard + PING * if self.pinged { 2 } else { 1 };
        let is_empty = self.live.is_empty();
        let idle = self.counts_as_idle().then(|| self.idle_since + self.idle);
        let old = self.old_at.filter(|_| is_empty);
        first
            .into_iter()
            .chain(input)
            .chain(idle)
            .chain(old)
            .fold(ping, Instant::min)
    }

    fn tick(&mut self) -> Result<(), LinkError> {
        let now = Instant::now();
        for (&id, run) in self
            .live
            .iter_mut()
            .filter(|(_, run)| !run.over && run.deadline <= now)
        {
            if run.told {
                return Err(LinkError::Protocol(format!(
                    "run {id} was to end and did not"
                )));
            }
            run.told = true;
            run.deadline = now + ANSWER;
            self.link.queue(&Frame::End { run: id, now: true })?;
        }
        for stdin in self.live.values_mut().filter_map(|run| run.stdin.as_mut()) {
            if stdin.until().is_some_and(|until| until <= now) {
                stdin.expire();
            }
        }
        if now >= self.heard + PING {
            if self.pinged && now >= self.heard + PING * 2 {
                return Err(LinkError::Protocol("it does not answer".to_owned()));
            }
            if !self.pinged {
                self.pinged = true;
                self.link.queue(&Frame::Ping { token: 0 })?;
            }
        }
        Ok(())
    }

    fn order(&mut self, order: Order) -> Result<Option<Over>, LinkError> {
        match order {
            Order::Start {
                name,
                spawn,
                events,
                pass,
                accepted,
            } => {
                self.taken += 1;
                // Its caller gave up: nothing was started, nothing will be.
                if accepted.is_closed() || self.retiring {
                    return Ok(None);
                }
                let limit = Duration::from_millis(spawn.timeout_ms);
                let run = self.last + 1;
                let (stdin, terminal) = (spawn.stdin, spawn.tty.is_some());
                let answer = match self.link.queue(&Frame::Spawn { run, spawn }) {
                    Ok(()) => {
                        self.last = run;
                        let named = name.to_string();
                        self.link.queue(&Frame::Named { run, name: named })?;
                        let inputs = self.begin(run, name, limit, events, stdin, terminal);
                        self.pass(run, pass);
                        Ok(Accepted {
                            image_digest: self.image_digest.clone(),
                            inputs,
                        })
                    }
                    Err(_) => Err(NotAccepted::TooLong),
                };
                // A caller that gives up at this moment drops its receiver of events, too, and so ends the run.
                let _ = accepted.send(answer);
            }
            Order::Cancel { name } => {
                let known = self.live.iter().find(|(_, run)| run.name == name);
                if let Some(id) = known.map(|(&id, _)| id) {
                    self.cancel(id)?;
                }
            }
            Order::End(why) => return Ok(Some(Over::GivenUp(why))),
            Order::Retire => self.retiring = true,
        }
        Ok(None)
    }

    fn begin(
        &mut self,
        id: u32,
        name: RunId,
        limit: Duration,
        events: mpsc::Sender<RunEvent>,
        stdin: bool,
        terminal: bool,
    ) -> RunInputs {
        let now = Instant::now();
        let (inputs, orders) = RunInputs::new();
        self.await_input(id, orders);
        let watched = events.clone();
        self.waking.push(Box::pin(async move {
            watched.closed().await;
            Woken::Deaf(id)
        }));
        let run = Run {
            name,
            events,
            waiting: VecDeque::new(),
            reserving: false,
            credit: INITIAL_WINDOW,
            owed: 0,
            stdin: stdin.then(Stdin::new),
            terminal,
            seq: 0,
            started: now,
            deadline: now + limit + HOST_GRACE,
            told: false,
            cancelled: false,
            over: false,
            deaf: false,
            out_of_memory: self.out_of_memory(),
            held: None,
            full: None,
        };
        self.live.insert(id, run);
        self.name();
        inputs
    }

    /// Tells who began a run that it can only delete, and waits for the word that ends it.
    fn pass(&mut self, id: u32, pass: Option<Pass>) {
        let (Some(pass), Some(run)) = (pass, self.live.get_mut(&id)) else {
            return;
        };
        if let Some(full) = pass.to_delete {
            let (stream, end) = if run.terminal {
                (Stream::Out, "\r\n")
            } else {
                (Stream::Err, "\n")
            };
            let text = format!("portcullis: {full}: this run can delete, and write no file{end}");
            let data = text.into_bytes();
            // Ours, so it takes nothing of what the cell may send. The channel is new and has room.
            let said = run.events.try_send(RunEvent::Output {
                stream,
                seq: run.seq,
                data,
            });
            run.seq += u64::from(said.is_ok());
        }
        let (held, over) = pass.split();
        run.held = Some(held);
        self.waking
            .push(Box::pin(async move { Woken::Full(id, over.await) }));
    }

    /// Its workspace holds too much: at once, for what it writes meanwhile is more.
    fn end_full(&mut self, id: u32, full: Full) -> Result<(), LinkError> {
        if let Some(run) = self.live.get_mut(&id).filter(|run| !run.over) {
            run.full = Some(full);
            (run.told, run.cancelled) = (true, true);
            run.deadline = run.deadline.min(Instant::now() + ANSWER);
            self.link.queue(&Frame::End { run: id, now: true })?;
        }
        Ok(())
    }

    fn out_of_memory(&self) -> u64 {
        self.memory.as_ref().map_or(0, OutOfMemory::count)
    }

    fn await_input(&self, id: u32, mut orders: mpsc::Receiver<RunInput>) {
        self.waking.push(Box::pin(async move {
            let input = orders.recv().await;
            Woken::Input(id, input, orders)
        }));
    }

    /// Something for a run. Of one that is over its answer goes with it.
    fn input(&mut self, id: u32, input: RunInput) -> Result<(), LinkError> {
        let Some(run) = self.live.get_mut(&id).filter(|run| !run.over) else {
            return Ok(());
        };
        match input {
            RunInput::Stdin(piece) => match &mut run.stdin {
                Some(stdin) => {
                    stdin.offer(piece);
                    return self.feed(id);
                }
                None => drop(piece.reply.send(Err(NotTaken::Closed))),
            },
            // Who asked has given up, and was told so: it does not happen later.
            RunInput::Resize(_, told) | RunInput::Signal(_, told) if told.is_closed() => {}
            RunInput::Resize(size, told) if run.terminal => {
                self.link.queue(&Frame::Resize { run: id, size })?;
                let _ = told.send(Ok(()));
            }
            RunInput::Resize(_, told) => drop(told.send(Err(NotTaken::NoTerminal))),
            RunInput::Signal(signal, told) => {
                self.link.queue(&Frame::Signal { run: id, signal })?;
                let _ = told.send(Ok(()));
            }
        }
        Ok(())
    }

    /// Sends the cell what it has room for.
    fn feed(&mut self, id: u32) -> Result<(), LinkError> {
        let Some(run) = self.live.get_mut(&id) else {
            return Ok(());
        };
        while let Some(next) = run.stdin.as_mut().and_then(Stdin::next) {
            let data = match next {
                ToCell::Bytes(data) => data,
                ToCell::End => Input::default(),
            };
            self.link.queue(&Frame::Stdin { run: id, data })?;
        }
        Ok(())
    }

    /// The cell has room for more of a run's input.
    fn granted(&mut self, id: u32, bytes: u32) -> Result<(), LinkError> {
        let run = self.known(id)?;
        if run.stdin.as_mut().is_some_and(|stdin| stdin.grant(bytes)) {
            return self.feed(id);
        }
        Err(LinkError::Protocol(format!(
            "run {id} takes more input than it was given"
        )))
    }

    fn cancel(&mut self, id: u32) -> Result<(), LinkError> {
        if let Some(run) = self.live.get_mut(&id).filter(|run| !run.over) {
            self.link.queue(&Frame::End {
                run: id,
                now: false,
            })?;
            run.cancelled = true;
            // The cell answers after its grace; a cell that does not is told again, then given up.
            run.deadline = run.deadline.min(Instant::now() + CANCEL);
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> Result<(), LinkError> {
        self.heard = Instant::now();
        self.pinged = false;
        match frame {
            Frame::Output { run, stream, data } => self.output(run, stream, data),
            Frame::Exit { run, exit } => self.exited(run, &exit),
            Frame::Window { run, bytes } => self.granted(run, bytes),
            Frame::Ping { .. } => Ok(()),
            Frame::Bye => Err(LinkError::Protocol("it said goodbye".to_owned())),
            Frame::Report { .. } => {
                Err(LinkError::Protocol("a report to who started it".to_owned()))
            }
            Frame::Hello { .. }
            | Frame::Spawn { .. }
            | Frame::Named { .. }
            | Frame::Stdin { .. }
            | Frame::Resize { .. }
            | Frame::Signal { .. }
            | Frame::End { .. } => Err(LinkError::Protocol(
                "a frame that only a host sends".to_owned(),
            )),
        }
    }

    fn known(&mut self, id: u32) -> Result<&mut Run, LinkError> {
        let run = self.live.get_mut(&id).filter(|run| !run.over);
        run.ok_or_else(|| LinkError::Protocol(format!("a frame of run {id}, which is not alive")))
    }

    fn output(&mut self, id: u32, stream: Stream, data: Vec<u8>) -> Result<(), LinkError> {
        let run = self.known(id)?;
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        run.credit = run
            .credit
            .checked_sub(size)
            .ok_or_else(|| LinkError::Protocol(format!("run {id} sent beyond its credit")))?;
        let seq = run.seq;
        run.seq += 1;
        run.waiting
            .push_back(RunEvent::Output { stream, seq, data });
        self.deliver(id)
    }

    fn exited(&mut self, id: u32, exit: &Exit) -> Result<(), LinkError> {
        // Whoever was killed, or lost one that was, does not end well.
        let killed = match exit.ended {
            Ended::Code(0) => 0,
            _ => self.out_of_memory(),
        };
        let run = self.known(id)?;
        let out_of_memory = killed.saturating_sub(run.out_of_memory);
        run.over = true;
        run.held = None;
        run.stdin = None;
        let (code, signal) = match exit.ended {
            Ended::Code(code) => (Some(code), None),
            Ended::Signal(signal) => (None, Some(signal)),
        };
        run.waiting.push_back(RunEvent::Exited(Exited {
            code,
            signal,
            // Ended by the host because its time was up, on a machine that let the cell be late.
            cause: match exit.cause {
                Cause::Cancelled if run.told && !run.cancelled => Cause::TimedOut,
                cause => cause,
            },
            duration_ms: u64::try_from(run.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            dropped_stdout: exit.dropped_out,
            dropped_stderr: exit.dropped_err,
            cpu_ms: exit.user_ms.saturating_add(exit.system_ms),
            swept: exit.swept,
            out_of_memory,
            full: run.full.filter(|_| exit.cause == Cause::Cancelled),
        }));
        self.deliver(id)
    }

    /// Hands over what the receiver has room for; what is left waits for a permit.
    fn deliver(&mut self, id: u32) -> Result<(), LinkError> {
        let Some(run) = self.live.get_mut(&id) else {
            return Ok(());
        };
        while !run.reserving
            && let Some(event) = run.waiting.pop_front()
        {
            let size = size(&event);
            match if run.deaf {
                Ok(())
            } else {
                run.events.try_send(event)
            } {
                Ok(()) => run.owed += size,
                Err(TrySendError::Full(event)) => {
                    run.waiting.push_front(event);
                    run.reserving = true;
                    let events = run.events.clone();
                    self.waking.push(Box::pin(async move {
                        Woken::Room(id, events.reserve_owned().await.ok())
                    }));
                }
                // The watcher of the receiver says so too, and cancels the run.
                Err(TrySendError::Closed(_)) => run.deaf = true,
            }
        }
        if run.over && run.waiting.is_empty() {
            self.live.remove(&id);
            self.name();
            self.idle_since = Instant::now();
        } else if run.owed >= GIVE_BACK && !run.over {
            run.credit += run.owed;
            self.link.queue(&Frame::Window {
                run: id,
                bytes: std::mem::take(&mut run.owed),
            })?;
        }
        Ok(())
    }

    fn woken(&mut self, woken: Woken) -> Result<(), LinkError> {
        match woken {
            Woken::Deaf(id) => {
                if let Some(run) = self.live.get_mut(&id) {
                    run.deaf = true;
                    run.reserving = false;
                    self.cancel(id)?;
                    self.deliver(id)?;
                }
                Ok(())
            }
            Woken::Full(id, full) => self.end_full(id, full),
            Woken::Input(id, input, orders) => {
                // None: nobody can give any more.
                if let Some(input) = input
                    && self.live.contains_key(&id)
                {
                    self.await_input(id, orders);
                    self.input(id, input)?;
                }
                Ok(())
            }
            Woken::Room(id, permit) => {
                if let Some(run) = self.live.get_mut(&id) {
                    run.reserving = false;
                    match permit {
                        Some(permit) if !run.deaf => {
                            if let Some(event) = run.waiting.pop_front() {
                                run.owed += size(&event);
                                permit.send(event);
                            }
                        }
                        _ => run.deaf = true,
                    }
                }
                self.deliver(id)
            }
        }
    }
}

fn size(event: &RunEvent) -> u32 {
    match event {
        RunEvent::Output { data, .. } => u32::try_from(data.len()).unwrap_or(u32::MAX),
        RunEvent::Exited(_) | RunEvent::BoxLost | RunEvent::GivenUp(_) => 0,
    }
}
