//! The one writer thread: collects what callers bring into groups, makes each group durable with one sync, answers all.
//!
//! A group is what is waiting when the disk is free, up to 64 records or 256 KiB. Callers that were answered together tend to come
//! back together: the thread waits for as many as last time, but at most 2 ms and no longer than the last write took.
//! A lone caller never waits. Records are encoded and hashed as they arrive, so that the last one to come is the only one
//! that the disk waits for.

use super::error::AuditError;
use super::log::{Log, LogSpec, OpenReport, Written};
use super::messages::Refused;
use super::offline::Horizon;
use super::proofs::Signed;
use super::retire;
use super::unwritten::{Dropped, Unwritten};
use crate::supervision::{Feed, Flag, Reply};
use portcullis_core::audit::{Body, BootId, Head, Once, OnceKey, Record, Seq, is_weighty};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The most records of one sync.
const GROUP: usize = 64;
/// The longest wait for a group to fill.
const COLLECT: Duration = Duration::from_millis(2);
/// Between two looks at the queue while a group fills: so long for each record that is missing, within these limits.
const NAP_EACH: Duration = Duration::from_micros(1);
const NAP: (Duration, Duration) = (Duration::from_micros(10), Duration::from_micros(100));
/// How late the kernel may wake the thread from a nap, in nanoseconds; by default 50 us.
const SLACK: NonZeroU64 = NonZeroU64::MIN;
/// Jobs that may wait for the thread.
const QUEUE: usize = 1_024;
/// How long after a failed try outcomes that are owed to the log are tried again.
const PAY_EVERY: Duration = Duration::from_secs(1);
/// Between two readings of what could not be read back at a start.
const RECALL_EVERY: Duration = if cfg!(test) {
    Duration::from_millis(200)
} else {
    Duration::from_mins(1)
};
/// Newest records kept in memory for `tail`.
const RING: usize = 256;

/// Where an answer goes.
pub(super) enum Answer<T> {
    /// To a caller of the room; holds its place in the room's gate.
    Room(Reply<T, AuditError>),
    /// To a part of the room itself.
    Own(oneshot::Sender<Result<T, AuditError>>),
}

impl<T> Answer<T> {
    fn is_wanted(&self) -> bool {
        match self {
            Self::Room(reply) => reply.is_wanted(),
            Self::Own(reply) => !reply.is_closed(),
        }
    }

    pub(super) fn send(self, answer: Result<T, AuditError>) {
        match self {
            Self::Room(reply) => reply.send(answer),
            // Whoever gave up is told nothing.
            Self::Own(reply) => drop(reply.send(answer)),
        }
    }
}

/// Work for the thread.
pub(super) enum Job {
    /// Record this.
    Append(Box<Body>, Answer<Seq>),
    /// Record this intent, unless its key is there (see [`Refused`]).
    Once(Box<Body>, Refused, Answer<Once>),
    /// What was recorded under a key.
    Seen(OnceKey, Answer<Option<Once>>),
    /// What is durable now, and the newest records; signed, where that is asked for.
    Look(Answer<Look>, bool),
    /// Write the stop mark and end.
    Close(Answer<Seq>),
}

impl Job {
    /// Nothing of it was done.
    pub(super) fn refuse(self, error: AuditError) {
        match self {
            Self::Append(_, answer) | Self::Close(answer) => answer.send(Err(error)),
            Self::Once(_, _, answer) => answer.send(Err(error)),
            Self::Seen(_, answer) => answer.send(Err(error)),
            Self::Look(answer, _) => answer.send(Err(error)),
        }
    }
}

/// The state of the log between two groups.
pub(super) struct Look {
    pub(super) horizon: Horizon,
    /// The newest records in order, without a hole.
    pub(super) ring: Vec<Arc<Record>>,
    /// Where it was asked for.
    pub(super) signed: Option<Box<Signed>>,
}

/// What is shown of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStatus {
    /// The newest durable record.
    pub head: Head,
    /// Intents without an outcome.
    pub open: usize,
    /// Idempotency keys in memory.
    pub keys: usize,
    /// Syncs since the start.
    pub groups: u64,
    /// The epoch whose key signs.
    pub epoch: u64,
    /// Records that the newest checkpoint is over.
    pub signed: u64,
    /// Why nothing can be recorded now.
    pub broken: Option<AuditError>,
}

/// The thread and the way to it. Dropped, the thread finishes what it was given and ends; the lock on the log tells when.
pub(super) struct Writer {
    jobs: SyncSender<Job>,
    thread: JoinHandle<()>,
    status: Arc<Flag<LogStatus>>,
}

/// A job that was not taken.
pub(super) enum NotTaken {
    Full(Job),
    /// The thread is gone: the room must restart.
    Gone,
}

impl Writer {
    /// Opens the log and starts the thread. Blocks: reads the end of the log back.
    pub(super) fn open(
        spec: LogSpec,
        feed: Feed<Arc<Record>>,
        unwritten: Arc<Unwritten>,
    ) -> Result<(Self, OpenReport), AuditError> {
        let (log, report) = Log::open(spec)?;
        let (jobs, queue) = sync_channel(QUEUE);
        let status = Arc::new(Flag::new(status_of(&log, 0)));
        let thread = Thread {
            log,
            queue,
            feed,
            unwritten,
            pay_at: Instant::now(),
            status: status.clone(),
            ring: VecDeque::new(),
            expect: 1,
            took: Duration::ZERO,
            groups: 0,
            altered: false,
        };
        let thread = std::thread::Builder::new()
            .name("audit-writer".into())
            .spawn(move || thread.run())
            .map_err(|error| AuditError::writing(&error))?;
        let writer = Self {
            jobs,
            thread,
            status,
        };
        Ok((writer, report))
    }

    /// Hands a job over; never waits.
    pub(super) fn submit(&self, job: Job) -> Result<(), NotTaken> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) => NotTaken::Full(job),
            TrySendError::Disconnected(_) => NotTaken::Gone,
        })
    }

    pub(super) fn status(&self) -> LogStatus {
        self.status.get()
    }

    /// Waits for the thread, which must have been told to close.
    pub(super) fn join(self) {
        drop(self.jobs);
        // A panic of the thread was seen as a lost answer already.
        let _ = self.thread.join();
    }
}

fn status_of(log: &Log, groups: u64) -> LogStatus {
    LogStatus {
        head: log.head,
        open: log.ledger.open.len(),
        keys: log.ledger.once.len(),
        groups,
        epoch: log.signer().epoch(),
        signed: log.signer().covered(),
        broken: log.broken().cloned(),
    }
}

struct Thread {
    log: Log,
    queue: Receiver<Job>,
    feed: Feed<Arc<Record>>,
    unwritten: Arc<Unwritten>,
    status: Arc<Flag<LogStatus>>,
    ring: VecDeque<Arc<Record>>,
    /// Records in the last group: so many are waited for.
    expect: usize,
    /// How long the last group took to write.
    took: Duration,
    groups: u64,
    /// The log on the disk is not what was written.
    altered: bool,
    /// Outcomes that could not be recorded are tried again then.
    pay_at: Instant,
}

/// A group being put together: records, and who waits for what.
#[derive(Default)]
struct Group {
    bodies: Vec<Body>,
    waits: Vec<Wait>,
    /// Keys of intents in this group.
    keys: BTreeMap<OnceKey, usize>,
    /// Principals whose credentials this group ends.
    ends: BTreeSet<String>,
    /// Intents that this group closes.
    closed: BTreeSet<Seq>,
    looks: Vec<(Answer<Look>, bool)>,
    close: Option<Answer<Seq>>,
    /// An act begins or has ended that must not be undone.
    is_weighty: bool,
}

enum Wait {
    Seq(usize, Answer<Seq>),
    New(usize, Answer<Once>),
    /// The same key twice in one group: the second waits for the first.
    Twin(usize, Answer<Once>),
}

impl Thread {
    fn run(mut self) {
        // Refused, naps are longer.
        let _ = rustix::thread::set_current_timer_slack(Some(SLACK));
        if let Err(ended) = self.recall() {
            // No mark behind what was altered.
            drop(self.log);
            if let Some((close, error)) = ended {
                close.send(Err(error));
            }
            return;
        }
        while let Some(first) = self.next() {
            let mut group = Group::default();
            self.stage(&mut group, first);
            self.collect(&mut group);
            let (close, looks) = (group.close.take(), std::mem::take(&mut group.looks));
            self.write(group);
            for (look, is_signed) in looks {
                look.send(Ok(self.look(is_signed)));
            }
            if let Some(close) = close {
                let stop = self.log.append(&[Body::Stop]);
                let stop = stop.map(|written| self.publish(written, vec![Body::Stop]).seq);
                self.log.finish();
                // The lock goes before the answer: whoever was answered may open the log again.
                drop(self.log);
                close.send(stop);
                return;
            }
            if self.altered {
                // The room finds its thread gone, restarts, and reads the log anew.
                return;
            }
        }
    }

    /// Reads what the start left behind. While that cannot be read, or is not what was written, whoever would record is
    /// refused and told which record is wrong, and what can be read is read and proven; should the files be put back,
    /// recording begins. Fails where the room ends meanwhile.
    fn recall(&mut self) -> Result<(), Option<(Answer<Seq>, AuditError)>> {
        while let Err(error) = self.log.recall() {
            tracing::error!(%error, "nothing is recorded, so nothing is done");
            self.status.set(status_of(&self.log, self.groups));
            let until = Instant::now() + RECALL_EVERY;
            loop {
                match self
                    .queue
                    .recv_timeout(until.saturating_duration_since(Instant::now()))
                {
                    Ok(Job::Close(answer)) => return Err(Some((answer, error))),
                    Ok(Job::Look(answer, is_signed)) => answer.send(Ok(self.look(is_signed))),
                    Ok(job) => job.refuse(error.clone()),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return Err(None),
                }
            }
        }
        self.status.set(status_of(&self.log, self.groups));
        Ok(())
    }

    fn look(&mut self, is_signed: bool) -> Look {
        Look {
            signed: is_signed.then(|| self.log.signed()).flatten().map(Box::new),
            horizon: self.log.horizon(),
            ring: self.ring.iter().cloned().collect(),
        }
    }

    /// What was lost on the way here stands in the log as a gap.
    fn tell_dropped(&mut self) {
        if self.unwritten.dropped.get().count == 0 || self.log.broken().is_some() {
            return;
        }
        let mut lost = Dropped::default();
        self.unwritten
            .dropped
            .update(|dropped| lost = std::mem::take(dropped));
        let gap = Body::Gap {
            count: lost.count,
            first_ms: lost.first_ms,
            last_ms: lost.last_ms,
            reason: lost.code.to_owned(),
        };
        match self.log.append(std::slice::from_ref(&gap)) {
            Ok(written) => drop(self.publish(written, vec![gap])),
            // The log has counted the gap's own record as refused: what it is about is told later.
            Err(_) => self.unwritten.dropped.update(|dropped| {
                dropped.add(lost.count, lost.last_ms, lost.code);
                dropped.first_ms = dropped.first_ms.min(lost.first_ms);
            }),
        }
    }

    /// Outcomes that the log could not take when their acts ended. A log that failed is tried with the first of them.
    fn record_owed(&mut self) {
        if !self.unwritten.owes() || Instant::now() < self.pay_at {
            return;
        }
        let mut owed = self.unwritten.take().into_iter();
        for one in owed.by_ref() {
            if !self.log.is_open(one.intent) {
                // Its record came after all, or a start has said `unknown`.
                continue;
            }
            let Ok(mut body) = Body::outcome(one.intent, one.outcome.clone()) else {
                continue;
            };
            let late = u64::try_from(one.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.complete(&mut body, late);
            match self.log.append_again(&body) {
                Ok(written) => drop(self.publish(written, vec![body])),
                Err(error) => {
                    tracing::debug!(intent = one.intent.0, %error, "still not recorded");
                    self.status.set(status_of(&self.log, self.groups));
                    self.pay_at = Instant::now() + PAY_EVERY;
                    self.unwritten.keep(one);
                    break;
                }
            }
        }
        owed.for_each(|one| self.unwritten.keep(one));
    }

    /// What an outcome says of the log's own: how long its act took, which ended `late` milliseconds ago, and how far the state is.
    fn complete(&self, body: &mut Body, late: u64) {
        if let Body::Outcome { intent, outcome } = body {
            if let Some(ms) = self.log.open_for(*intent) {
                outcome.took(ms.saturating_sub(late));
            }
            let state = self.log.spec().state_rev();
            outcome.state_rev = state.filter(|_| state > self.log.ledger.state_rev);
        }
    }

    /// Retention, where a segment was begun: the record first, then the files.
    fn retire(&mut self) {
        let gone = self.log.retirable();
        let Some(body) = retire::record(&gone, &self.log.taken()) else {
            return;
        };
        match self.log.append(std::slice::from_ref(&body)) {
            Ok(written) => {
                self.publish(written, vec![body]);
                self.log.retire(&gone);
            }
            Err(error) => {
                tracing::warn!(%error, "old segments of the audit log cannot be removed yet");
            }
        }
    }

    /// The next job; meanwhile checkpoints are signed as they become due.
    fn next(&mut self) -> Option<Job> {
        loop {
            self.retire();
            self.tell_dropped();
            self.record_owed();
            self.log.tick();
            let owed = self.unwritten.owes().then_some(self.pay_at);
            let Some(due) = self.log.signer().due().into_iter().chain(owed).min() else {
                return self.queue.recv().ok();
            };
            let within = due.saturating_duration_since(Instant::now());
            match self.queue.recv_timeout(within) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn collect(&mut self, group: &mut Group) {
        self.drain(group);
        let until = Instant::now() + COLLECT.min(self.took);
        while !group.bodies.is_empty()
            && group.close.is_none()
            && !self.log.is_full()
            && Instant::now() < until
        {
            let missing = self.expect.min(GROUP).saturating_sub(group.bodies.len());
            let Ok(missing @ 1..) = u32::try_from(missing) else {
                return;
            };
            // Asleep, and not in `recv`: there each job would wake the thread, and cost a switch.
            #[expect(clippy::disallowed_methods, reason = "the log's own thread")]
            std::thread::sleep((NAP_EACH * missing).clamp(NAP.0, NAP.1));
            self.drain(group);
        }
    }

    fn drain(&mut self, group: &mut Group) {
        while group.bodies.len() < GROUP && group.close.is_none() && !self.log.is_full() {
            match self.queue.try_recv() {
                Ok(job) => self.stage(group, job),
                Err(_) => break,
            }
        }
    }

    fn stage(&mut self, group: &mut Group, job: Job) {
        match job {
            Job::Append(mut body, answer) => {
                if !answer.is_wanted() {
                    return;
                }
                if self.has_ended(group, &body) {
                    answer.send(Err(AuditError::Ended));
                    return;
                }
                if let Body::Outcome { intent, .. } = *body {
                    if !self.log.is_open(intent) || group.closed.contains(&intent) {
                        answer.send(Err(AuditError::NotOpen(intent)));
                        return;
                    }
                    group.is_weighty |= self.log.is_weighty(intent);
                    self.complete(&mut body, 0);
                }
                self.push(group, *body, answer, Wait::Seq);
            }
            Job::Once(body, refused, answer) => {
                if !answer.is_wanted() {
                    return;
                }
                if self.has_ended(group, &body) {
                    answer.send(Err(AuditError::Ended));
                    return;
                }
                let Some(key) = once_key(&body) else {
                    self.push(group, *body, answer, Wait::New);
                    return;
                };
                let now = self.log.spec().clock.stamp().wall_ms;
                if let Some(index) = group.keys.get(&key) {
                    group.waits.push(Wait::Twin(*index, answer));
                    return;
                }
                match self.log.ledger.once.get(&key, now) {
                    Some(seen) if !(refused == Refused::Anew && seen.was_refused()) => {
                        answer.send(Ok(seen));
                    }
                    _ => self.push(group, *body, answer, Wait::New),
                }
            }
            Job::Seen(key, answer) => {
                let now = self.log.spec().clock.stamp().wall_ms;
                answer.send(Ok(self.log.ledger.once.get(&key, now)));
            }
            Job::Look(answer, is_signed) => group.looks.push((answer, is_signed)),
            Job::Close(answer) => group.close = Some(answer),
        }
    }

    /// Would it be done under a credential that has ended, by the log so far or by this group? Nobody can hold a
    /// generation that is not durable yet.
    fn has_ended(&self, group: &Group, body: &Body) -> bool {
        let (Body::Intent(entry) | Body::Event(entry)) = body else {
            return false;
        };
        entry.standings().any(|(name, generation)| {
            group.ends.contains(name) || self.log.ledger.ended.has(name, generation)
        })
    }

    /// Encodes a record into the group. Whose record cannot be had is told at once.
    fn push<T>(
        &mut self,
        group: &mut Group,
        body: Body,
        answer: Answer<T>,
        wait: impl FnOnce(usize, Answer<T>) -> Wait,
    ) {
        match self.log.push(&body) {
            Ok(()) => {
                let index = group.push(body);
                group.waits.push(wait(index, answer));
            }
            Err(error) => {
                self.altered |= matches!(error, AuditError::Altered(_));
                self.status.set(status_of(&self.log, self.groups));
                answer.send(Err(error));
            }
        }
    }

    /// Writes and answers.
    fn write(&mut self, group: Group) {
        if !self.log.is_drafting() {
            return;
        }
        let began = Instant::now();
        let written = self.log.commit();
        self.took = began.elapsed();
        self.expect = group.bodies.len();
        self.groups += 1;
        match written {
            Ok(written) => {
                // Before any answer: whoever was answered finds its record in the head.
                self.status.set(status_of(&self.log, self.groups));
                // Whoever hears that something was taken back may rely on it, and what cannot be bound is not begun.
                let bound = if group.is_weighty {
                    self.log.bind()
                } else {
                    Ok(())
                };
                match bound {
                    Ok(()) => Self::answer(group.waits, &written.heads[written.lead.len()..]),
                    Err(error) => {
                        tracing::error!(%error, "how far the audit log has come cannot be written down: nothing that it must hold is begun");
                        Self::refuse(group.waits, &error);
                    }
                }
                self.publish(written, group.bodies);
            }
            Err(error) => {
                self.altered |= matches!(error, AuditError::Altered(_));
                Self::refuse(group.waits, &error);
                self.status.set(status_of(&self.log, self.groups));
            }
        }
    }

    fn refuse(waits: Vec<Wait>, error: &AuditError) {
        for wait in waits {
            match wait {
                Wait::Seq(_, answer) => answer.send(Err(error.clone())),
                Wait::New(_, answer) | Wait::Twin(_, answer) => answer.send(Err(error.clone())),
            }
        }
    }

    fn answer(waits: Vec<Wait>, heads: &[Head]) {
        for wait in waits {
            match wait {
                Wait::Seq(index, answer) => answer.send(Ok(heads[index].seq)),
                Wait::New(index, answer) => answer.send(Ok(Once::New {
                    seq: heads[index].seq,
                })),
                Wait::Twin(index, answer) => answer.send(Ok(Once::Seen {
                    seq: heads[index].seq,
                    outcome: None,
                })),
            }
        }
    }

    /// Shows durable records to those who watch; returns the head.
    fn publish(&mut self, written: Written, bodies: Vec<Body>) -> Head {
        let boot: BootId = self.log.spec().boot;
        self.log.settle(&written, &bodies);
        let mut before = written.before;
        for (body, head) in written.lead.into_iter().chain(bodies).zip(written.heads) {
            let record = Arc::new(Record {
                seq: head.seq,
                prev: before.hash,
                hash: head.hash,
                stamp: written.stamp,
                boot,
                body,
            });
            before = head;
            if self.ring.len() == RING {
                self.ring.pop_front();
            }
            self.ring.push_back(record.clone());
            self.feed.publish(record);
        }
        self.status.set(status_of(&self.log, self.groups));
        before
    }
}

impl Group {
    fn push(&mut self, body: Body) -> usize {
        let index = self.bodies.len();
        if let Some(key) = once_key(&body) {
            self.keys.insert(key, index);
        }
        if let Body::Intent(entry) = &body
            && let Some(name) = entry.ends()
        {
            self.ends.insert(name.to_owned());
        }
        if let Body::Intent(entry) = &body {
            self.is_weighty |= is_weighty(entry);
        }
        if let Body::Outcome { intent, .. } = body {
            self.closed.insert(intent);
        }
        self.bodies.push(body);
        index
    }
}

/// The key of an intent, as the index has it.
fn once_key(body: &Body) -> Option<OnceKey> {
    let Body::Intent(entry) = body else {
        return None;
    };
    let key = entry.idempotency_key.as_deref()?;
    Some(OnceKey::of(entry.principal.as_deref(), key))
}
