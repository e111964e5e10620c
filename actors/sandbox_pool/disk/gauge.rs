//! One folder's gauge: knows who may write there, counts while somebody may, and ends them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::measure::{Measured, Unmeasured, measure};
use super::{Full, Used, Why};
use crate::sandbox_pool::standing::Standing;
use crate::supervision::{Flag, FlagReader, aside};

/// Requests that a gauge has not read.
const ASKS: usize = 1024;
/// Between two counts while somebody may write; and so many times what one took, so that counting takes a fifth of a processor at most.
const EVERY: Duration = Duration::from_millis(250);
const TIMES: u32 = 4;
/// Counts in a row that may come to nothing before what is there passes for too much.
const MISSES: u32 = 4;
/// More of these are not counted where there are too many already: as many times what there may be, and no fewer than that.
const NAMES: (u64, u64) = (4, 100_000);
/// What a run that deletes may leave more than it found: the blocks of folders, a name that it keeps its list in.
const SLACK: Used = Used {
    bytes: 1 << 20,
    files: 64,
};

/// What a gauge says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is not known, or those who wrote are being ended.
    Unknown,
    /// There is room.
    Within(Used),
    /// There is none: who runs there can delete.
    Full(Full),
    /// There is none, and nobody runs there.
    Closed(Full),
}

/// What a run carries that may write to a folder. The gauge takes it for ended when this is dropped.
#[derive(Debug)]
pub struct Pass {
    /// The run can only delete: why.
    pub to_delete: Option<Full>,
    held: oneshot::Sender<Infallible>,
    over: oneshot::Receiver<Full>,
}

/// Held as long as the run may write.
#[derive(Debug)]
pub struct Held(
    #[allow(dead_code, reason = "its end is what it says")] oneshot::Sender<Infallible>,
);

impl Pass {
    /// What is held until its run is over, and the order to end it, which may never come.
    pub fn split(self) -> (Held, impl Future<Output = Full> + Send + use<>) {
        let Self { held, over, .. } = self;
        let over = async move {
            match over.await {
                Ok(full) => full,
                // The gauge went with its pool, and the box goes too.
                Err(_) => std::future::pending().await,
            }
        };
        (Held(held), over)
    }
}

struct Entrant {
    deletes: bool,
    ended: oneshot::Receiver<Infallible>,
    over: oneshot::Sender<Full>,
    standing: FlagReader<Standing>,
}

enum Ask {
    Enter(Entrant),
    Look(oneshot::Sender<()>),
    Most(Used),
}

/// The way to it.
#[derive(Debug)]
pub struct Gauge {
    asks: mpsc::Sender<Ask>,
    /// What it was told last.
    most: Option<Used>,
    shown: FlagReader<(State, Option<Instant>)>,
}

impl Gauge {
    /// Of a folder, with the task that it is.
    pub fn new(
        workspaces: PathBuf,
        folder: String,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (asks, asked) = mpsc::channel(ASKS);
        let shown = Flag::new((State::Unknown, None));
        let gauge = Self {
            asks,
            most: None,
            shown: shown.reader(),
        };
        let watch = Watch {
            workspaces,
            folder: folder.into(),
            most: Used::default(),
            shown,
            live: BTreeMap::new(),
            next: 0,
            ending: FuturesUnordered::new(),
            looks: Vec::new(),
            phase: Phase::Unknown,
            misses: 0,
            due: Instant::now(),
            rested: Instant::now(),
            settle: false,
        };
        (gauge, watch.turn(asked))
    }

    /// What it says, and when the count began that says so.
    pub fn shown(&self) -> (State, Option<Instant>) {
        self.shown.get()
    }

    /// The limit from here on.
    pub fn may_hold(&mut self, most: Used) {
        // One that is full of other requests is told by the next that asks.
        if self.most != Some(most) && self.asks.try_send(Ask::Most(most)).is_ok() {
            self.most = Some(most);
        }
    }

    /// Ready when a count that begins from here on has said something.
    pub fn look(&self) -> oneshot::Receiver<()> {
        let (told, counted) = oneshot::channel();
        // Dropped unsaid where it does not fit: the caller is told.
        let _ = self.asks.try_send(Ask::Look(told));
        counted
    }

    /// For a run that is about to begin in the box that shows this.
    pub fn enter(&self, to_delete: Option<Full>, standing: FlagReader<Standing>) -> Pass {
        let (held, ended) = oneshot::channel();
        let (ends, over) = oneshot::channel();
        let entrant = Entrant {
            deletes: to_delete.is_some(),
            ended,
            over: ends,
            standing,
        };
        if let Err(mpsc::error::TrySendError::Full(Ask::Enter(entrant))) =
            self.asks.try_send(Ask::Enter(entrant))
        {
            // Nobody writes without being counted.
            let (used, most) = (Used::default(), Used::default());
            let why = Why::Unmeasured(Unmeasured::Slow);
            let _ = entrant.over.send(Full { used, most, why });
        }
        Pass {
            to_delete,
            held,
            over,
        }
    }
}

#[derive(Clone, Copy)]
enum Phase {
    Unknown,
    Within(Used),
    /// Over; those who wrote are being ended, or nothing has been counted since.
    Draining(Full),
    /// Over, by so much when nobody wrote; no more than this may be there.
    Settled(Full),
    Closed(Full, Option<Used>),
}

struct Live {
    over: oneshot::Sender<Full>,
    standing: FlagReader<Standing>,
}

type Ending = Pin<Box<dyn Future<Output = u64> + Send>>;
type Counting = Pin<Box<dyn Future<Output = Option<Measured>> + Send>>;

struct Watch {
    workspaces: PathBuf,
    folder: Arc<str>,
    most: Used,
    shown: Flag<(State, Option<Instant>)>,
    live: BTreeMap<u64, Live>,
    next: u64,
    ending: FuturesUnordered<Ending>,
    looks: Vec<(Instant, oneshot::Sender<()>)>,
    phase: Phase,
    misses: u32,
    due: Instant,
    /// Nor before then, whoever asks: half of a processor at most.
    rested: Instant,
    /// To be counted once more, with nobody in it.
    settle: bool,
}

impl Watch {
    async fn turn(mut self, mut asked: mpsc::Receiver<Ask>) {
        let mut counting: Option<(Instant, bool, Counting)> = None;
        loop {
            let is_wanted = self.settle || !self.live.is_empty() || !self.looks.is_empty();
            if counting.is_none() && is_wanted && Instant::now() >= self.due {
                // Whoever comes while it goes may be missed by it.
                let was_empty = self.live.is_empty();
                counting = Some((Instant::now(), was_empty, self.count()));
            }
            let is_counting = counting.is_some();
            tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => {
                        if let (Ask::Enter(_), Some((_, was_empty, _))) = (&ask, &mut counting) {
                            *was_empty = false;
                        }
                        self.asked(ask);
                    }
                    None => return,
                },
                Some(key) = self.ending.next() => self.ended(key),
                measured = of(&mut counting) => {
                    let (began, was_empty) = counting.take().map_or((Instant::now(), false), |(began, was_empty, _)| (began, was_empty));
                    self.counted(began, was_empty, measured);
                }
                () = tokio::time::sleep_until(self.due), if is_wanted && !is_counting => {}
            }
        }
    }

    fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Most(most) if most == self.most => {}
            Ask::Most(most) => {
                // What held under the old one says nothing of the new one.
                self.most = most;
                self.phase = Phase::Unknown;
                self.settle = true;
                self.due = Instant::now();
                self.show(None);
            }
            Ask::Look(told) => {
                self.looks.push((Instant::now(), told));
                self.due = self.rested;
            }
            Ask::Enter(entrant) => self.enter(entrant),
        }
    }

    fn enter(&mut self, entrant: Entrant) {
        let Entrant {
            deletes,
            ended,
            over,
            standing,
        } = entrant;
        let refused = match self.phase {
            Phase::Within(_) | Phase::Unknown => None,
            Phase::Settled(_) if deletes => None,
            Phase::Settled(full) | Phase::Draining(full) | Phase::Closed(full, _) => Some(full),
        };
        self.next += 1;
        let key = self.next;
        self.ending.push(Box::pin(async move {
            // Nothing is ever sent: it is dropped.
            let _ = ended.await;
            key
        }));
        if let Some(full) = refused {
            // It came between two words of this gauge's. It is alive until it has been ended.
            let _ = over.send(full);
            let (over, _) = oneshot::channel();
            self.live.insert(key, Live { over, standing });
            return;
        }
        self.live.insert(key, Live { over, standing });
    }

    fn ended(&mut self, key: u64) {
        self.live.remove(&key);
        if self.live.is_empty() {
            self.settle = true;
            // Those who wait for the ended do not wait for the clock.
            if matches!(self.phase, Phase::Draining(_)) {
                self.due = Instant::now();
            }
        }
    }

    fn count(&self) -> Counting {
        let (workspaces, folder) = (self.workspaces.clone(), self.folder.clone());
        let names = match self.phase {
            Phase::Within(_) => self.most.files.saturating_add(1),
            _ => self.most.files.saturating_mul(NAMES.0).max(NAMES.1),
        };
        let inits = self.live.values().filter_map(|one| one.standing.get().init);
        let inits: BTreeSet<u32> = inits.collect();
        let inits: Vec<u32> = inits.into_iter().collect();
        // A thread of its own, one a folder at most: a tree that takes long holds nobody else's up.
        let begun = aside("count", move || {
            measure(&workspaces, &folder, names, &inits)
        });
        Box::pin(async move { begun.ok()?.await.ok() })
    }

    fn counted(&mut self, began: Instant, was_empty: bool, measured: Option<Measured>) {
        let took = began.elapsed();
        self.due = Instant::now() + EVERY.max(took * TIMES);
        self.rested = Instant::now() + took;
        let failed = Unmeasured::Failed(rustix::io::Errno::NOMEM);
        match measured.unwrap_or(Measured::Not(failed)) {
            Measured::Whole(used) => {
                self.misses = 0;
                self.holds(used, true, was_empty);
            }
            Measured::AtLeast(used) => {
                self.misses = 0;
                self.holds(used, false, was_empty);
            }
            Measured::Not(why) => {
                self.misses += 1;
                // A tree that changes is looked at again first.
                if self.misses < MISSES && why != Unmeasured::Slow {
                    self.due = Instant::now() + EVERY.min(took.max(Duration::from_millis(10)));
                    return;
                }
                self.unmeasured(why, was_empty);
            }
        }
        if was_empty && self.live.is_empty() {
            self.settle = false;
        } else if matches!(self.phase, Phase::Draining(_)) && self.live.is_empty() {
            self.due = Instant::now();
        }
        let is_said = !matches!(self.phase, Phase::Draining(_));
        self.show(Some(began));
        if is_said {
            let (said, left) = std::mem::take(&mut self.looks)
                .into_iter()
                .partition(|(asked, _)| *asked <= began);
            self.looks = left;
            let said: Vec<(Instant, oneshot::Sender<()>)> = said;
            for (_, told) in said {
                // Nobody may wait any more.
                let _ = told.send(());
            }
        }
        if !self.looks.is_empty() {
            self.due = self.rested;
        }
    }

    /// `whole`: no more than that; else it was not counted to its end.
    fn holds(&mut self, used: Used, whole: bool, was_empty: bool) {
        let most = self.most;
        let full = |why| Full { used, most, why };
        if whole && used.is_within(most) {
            self.phase = Phase::Within(used);
            return;
        }
        let is_empty = was_empty && self.live.is_empty();
        match self.phase {
            Phase::Unknown | Phase::Within(_) | Phase::Draining(_) if !is_empty => {
                self.end_all(full(Why::Over));
                self.phase = Phase::Draining(full(Why::Over));
                self.settle = true;
            }
            // What is not counted to its end could grow unseen.
            _ if !whole && is_empty => self.phase = Phase::Closed(full(Why::Over), None),
            Phase::Settled(Full { used: found, .. }) | Phase::Closed(_, Some(found)) => {
                self.phase = if whole && is_no_more(used, found) {
                    Phase::Settled(Full {
                        // Never more than at first: or each would add a little.
                        used: used.lesser(found),
                        ..full(Why::Over)
                    })
                } else {
                    self.end_all(full(Why::Grew));
                    Phase::Closed(full(Why::Grew), Some(found))
                };
            }
            // A person has made it less, or nobody has: what there is now is what it may not grow beyond.
            Phase::Unknown | Phase::Within(_) | Phase::Draining(_) | Phase::Closed(_, None) => {
                self.phase = if whole {
                    Phase::Settled(full(Why::Over))
                } else {
                    Phase::Closed(full(Why::Over), None)
                };
            }
        }
    }

    fn unmeasured(&mut self, why: Unmeasured, was_empty: bool) {
        let full = Full {
            used: Used::default(),
            most: self.most,
            why: Why::Unmeasured(why),
        };
        let is_known = matches!(self.phase, Phase::Settled(before) if before.why == full.why);
        if is_known && why == Unmeasured::Closed {
            return;
        }
        self.end_all(full);
        self.phase = match (why, self.phase) {
            _ if !(was_empty && self.live.is_empty()) => {
                self.settle = true;
                Phase::Draining(full)
            }
            // Whose folder it is can open it, and no file can be longer than nothing meanwhile.
            (Unmeasured::Closed, _) => Phase::Settled(Full {
                used: Used {
                    bytes: u64::MAX,
                    files: u64::MAX,
                },
                ..full
            }),
            (_, Phase::Settled(Full { used, .. }) | Phase::Closed(_, Some(used))) => {
                Phase::Closed(full, Some(used))
            }
            _ => Phase::Closed(full, None),
        };
    }

    fn end_all(&mut self, full: Full) {
        // Before they hear of it: who asks then is not told that there is room.
        self.shown.set((State::Unknown, None));
        for live in self.live.values_mut() {
            let (spent, _) = oneshot::channel();
            // It may have ended by itself.
            let _ = std::mem::replace(&mut live.over, spent).send(full);
        }
    }

    fn show(&self, began: Option<Instant>) {
        let state = match self.phase {
            Phase::Unknown | Phase::Draining(_) => State::Unknown,
            Phase::Within(used) => State::Within(used),
            Phase::Settled(full) => State::Full(full),
            Phase::Closed(full, _) => State::Closed(full),
        };
        self.shown.set((state, began));
    }
}

fn is_no_more(used: Used, found: Used) -> bool {
    used.is_within(Used {
        bytes: found.bytes.saturating_add(SLACK.bytes),
        files: found.files.saturating_add(SLACK.files),
    })
}

/// What comes of the count under way, if there is one.
async fn of(counting: &mut Option<(Instant, bool, Counting)>) -> Option<Measured> {
    match counting {
        Some((_, _, count)) => count.await,
        None => std::future::pending().await,
    }
}
