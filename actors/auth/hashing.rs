//! Slow looks at secrets: counted first, a few at a time, off the loop, and never all of them a stranger's.

use std::collections::{BTreeMap, VecDeque};

use portcullis_core::auth::limits::{Class, Limited, Limiter, Limits, Source, Tried};
use portcullis_core::auth::password::PasswordHash;
use portcullis_core::seal::Secret;
use portcullis_core::time::Millis;
use tokio::sync::oneshot;

/// Looks at once.
const AT_ONCE: usize = 2;
/// Of these, strangers' looks; the rest is kept for devices that are known and have signed.
const STRANGERS: usize = 1;
/// Looks that wait, of each kind: about as many as fit into a connect's patience.
const WAITING: usize = 16;
/// To somebody who finds the queue full.
const FULL_MS: u64 = 1_000;

/// A look that is asked for.
pub struct Look {
    /// What is guessed at.
    pub class: Class,
    /// By whom.
    pub source: Source,
    /// A paired device that has just signed.
    pub is_known: bool,
    /// What is presented.
    pub presented: Secret,
    /// What it should be.
    pub hash: PasswordHash,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<bool, Limited>>,
}

/// A look that runs.
pub(super) struct Running {
    class: Class,
    source: Source,
    is_known: bool,
    answer: oneshot::Sender<Result<bool, Limited>>,
}

/// See the module.
pub(super) struct Hashing {
    limiter: Limiter,
    known: VecDeque<Look>,
    strangers: VecDeque<Look>,
    running: BTreeMap<u64, Running>,
    /// Looks that were really made.
    pub made: u64,
}

impl Hashing {
    pub fn new() -> Self {
        Self {
            limiter: Limiter::new(Limits::default()),
            known: VecDeque::new(),
            strangers: VecDeque::new(),
            running: BTreeMap::new(),
            made: 0,
        }
    }

    /// Counts it and lets it wait, or refuses it.
    pub fn ask(&mut self, look: Look, now: Millis) {
        if let Err(limited) = self.limiter.begin(look.class, &look.source, now) {
            // Who has gone need not know.
            let _ = look.answer.send(Err(limited));
            return;
        }
        let queue = if look.is_known {
            &mut self.known
        } else {
            &mut self.strangers
        };
        if queue.len() < WAITING {
            queue.push_back(look);
            return;
        }
        self.limiter.end(look.class, &look.source, Tried::Not, now);
        let full = Limited {
            retry_after_ms: FULL_MS,
        };
        let _ = look.answer.send(Err(full));
    }

    /// The next that may run, under this key.
    pub fn next(&mut self, key: u64, now: Millis) -> Option<(Secret, PasswordHash)> {
        loop {
            if self.running.len() >= AT_ONCE {
                return None;
            }
            let strangers = self.running.values().filter(|look| !look.is_known).count();
            let look = match self.known.pop_front() {
                Some(look) => look,
                None if strangers < STRANGERS => self.strangers.pop_front()?,
                None => return None,
            };
            if look.answer.is_closed() {
                self.limiter.end(look.class, &look.source, Tried::Not, now);
                continue;
            }
            self.made += 1;
            let running = Running {
                class: look.class,
                source: look.source,
                is_known: look.is_known,
                answer: look.answer,
            };
            self.running.insert(key, running);
            return Some((look.presented, look.hash));
        }
    }

    /// It has run; `None`: nobody knows how it ended.
    pub fn ended(&mut self, key: u64, right: Option<bool>, now: Millis) {
        let Some(look) = self.running.remove(&key) else {
            return;
        };
        let tried = if right == Some(true) {
            Tried::Right
        } else {
            Tried::Wrong
        };
        self.limiter.end(look.class, &look.source, tried, now);
        let _ = look.answer.send(Ok(right == Some(true)));
    }

    /// No thread was free for it: nothing was looked at, and nothing is counted.
    pub fn put_off(&mut self, key: u64, now: Millis) {
        let Some(look) = self.running.remove(&key) else {
            return;
        };
        self.made -= 1;
        self.limiter.end(look.class, &look.source, Tried::Not, now);
        let full = Limited {
            retry_after_ms: FULL_MS,
        };
        let _ = look.answer.send(Err(full));
    }

    /// Counts a guess that is looked at elsewhere, before it is; [`Self::counted`] must follow.
    pub fn count(&mut self, class: Class, source: &Source, now: Millis) -> Result<(), Limited> {
        self.limiter.begin(class, source, now)
    }

    /// What a counted guess came to.
    pub fn counted(&mut self, class: Class, source: &Source, tried: Tried, now: Millis) {
        self.limiter.end(class, source, tried, now);
    }

    /// Guessers remembered.
    pub fn sources(&self) -> usize {
        self.limiter.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(who: u32, is_known: bool) -> (Look, oneshot::Receiver<Result<bool, Limited>>) {
        let (answer, answered) = oneshot::channel();
        let look = Look {
            class: Class::Password,
            source: Source::User(who),
            is_known,
            presented: Secret::new(vec![]),
            hash: PasswordHash::nobodys(10),
            answer,
        };
        (look, answered)
    }

    #[test]
    fn strangers_take_one_place_and_a_known_device_does_not_wait_for_them() {
        let mut hashing = Hashing::new();
        let mut answers = vec![];
        for who in 0..10 {
            let (look, answered) = look(who, false);
            hashing.ask(look, Millis(0));
            answers.push(answered);
        }
        assert!(hashing.next(1, Millis(0)).is_some());
        assert!(hashing.next(2, Millis(0)).is_none(), "the other is kept");
        let (known, mut answered) = look(100, true);
        hashing.ask(known, Millis(0));
        assert!(hashing.next(3, Millis(0)).is_some());
        hashing.ended(3, Some(true), Millis(0));
        assert_eq!(answered.try_recv(), Ok(Ok(true)));
        assert_eq!(hashing.made, 2);
    }

    #[test]
    fn a_full_queue_refuses_counts_nothing_and_forgets_who_left() {
        let mut hashing = Hashing::new();
        let mut answers = vec![];
        for who in 0..20 {
            let (look, answered) = look(who, false);
            hashing.ask(look, Millis(0));
            answers.push(answered);
        }
        let refused = answers.iter_mut().filter_map(|a| a.try_recv().ok()).count();
        assert_eq!(refused, 4);
        assert_eq!(hashing.sources(), 16);
        drop(answers);
        assert!(
            hashing.next(1, Millis(0)).is_none(),
            "nobody waits any more"
        );
        assert_eq!((hashing.made, hashing.sources()), (0, 0));
    }
}
