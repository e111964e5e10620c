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

/// A look that is asked for: at all that was presented in one `connect`.
pub struct Look {
    /// By whom.
    pub source: Source,
    /// A paired device that has just signed.
    pub is_known: bool,
    /// What it may be, in the order in which it is looked at.
    pub guesses: Vec<Guess>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Found, Limited>>,
}

/// One text beside one hash.
pub struct Guess {
    /// What is guessed at.
    pub class: Class,
    /// What is presented.
    pub presented: Secret,
    /// What it should be.
    pub hash: PasswordHash,
    /// It takes as long as a hash of this cost.
    pub cost: u32,
}

/// What a look came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// What was right.
    pub right: Option<Class>,
    /// Something was not looked at: there were too many tries before.
    pub limited: Option<Limited>,
}

/// A look that runs.
pub(super) struct Running {
    counted: Vec<Class>,
    /// All of it at one text: who gives one means one secret, and a right one is no wrong guess at another.
    is_one_text: bool,
    source: Source,
    is_known: bool,
    limited: Option<Limited>,
    answer: oneshot::Sender<Result<Found, Limited>>,
}

/// One that waits, counted.
struct Waiting {
    look: Look,
    limited: Option<Limited>,
}

/// See the module.
pub(super) struct Hashing {
    limiter: Limiter,
    known: VecDeque<Waiting>,
    strangers: VecDeque<Waiting>,
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
    pub fn ask(&mut self, mut look: Look, now: Millis) {
        let mut limited = None;
        let (limiter, source) = (&mut self.limiter, &look.source);
        look.guesses
            .retain(|guess| match limiter.begin(guess.class, source, now) {
                Ok(()) => true,
                Err(why) => {
                    limited = Some(why);
                    false
                }
            });
        if let (Some(limited), []) = (limited, &look.guesses[..]) {
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
            queue.push_back(Waiting { look, limited });
            return;
        }
        self.uncount(&look, now);
        let full = Limited {
            retry_after_ms: FULL_MS,
        };
        let _ = look.answer.send(Err(full));
    }

    fn uncount(&mut self, look: &Look, now: Millis) {
        for guess in &look.guesses {
            self.limiter.end(guess.class, &look.source, Tried::Not, now);
        }
    }

    /// The next that may run, under this key.
    pub fn next(&mut self, key: u64, now: Millis) -> Option<Vec<Guess>> {
        loop {
            if self.running.len() >= AT_ONCE {
                return None;
            }
            let strangers = self.running.values().filter(|look| !look.is_known).count();
            let Waiting { look, limited } = match self.known.pop_front() {
                Some(waiting) => waiting,
                None if strangers < STRANGERS => self.strangers.pop_front()?,
                None => return None,
            };
            if look.answer.is_closed() {
                self.uncount(&look, now);
                continue;
            }
            self.made += 1;
            let mut texts = look.guesses.iter().map(|guess| guess.presented.expose());
            let first = texts.next();
            let running = Running {
                counted: look.guesses.iter().map(|guess| guess.class).collect(),
                is_one_text: texts.all(|text| Some(text) == first),
                source: look.source,
                is_known: look.is_known,
                limited,
                answer: look.answer,
            };
            self.running.insert(key, running);
            return Some(look.guesses);
        }
    }

    /// It has run, and this one of its guesses was right; `None`: none, or nobody knows.
    pub fn ended(&mut self, key: u64, right: Option<usize>, now: Millis) {
        let Some(look) = self.running.remove(&key) else {
            return;
        };
        for (at, class) in look.counted.iter().enumerate() {
            let tried = match right {
                Some(right) if right == at => Tried::Right,
                // Behind the right one nothing was looked at.
                Some(right) if right < at || look.is_one_text => Tried::Not,
                _ => Tried::Wrong,
            };
            self.limiter.end(*class, &look.source, tried, now);
        }
        let _ = look.answer.send(Ok(Found {
            right: right.and_then(|at| look.counted.get(at).copied()),
            limited: look.limited,
        }));
    }

    /// No thread was free for it: nothing was looked at, and nothing is counted.
    pub fn put_off(&mut self, key: u64, now: Millis) {
        let Some(look) = self.running.remove(&key) else {
            return;
        };
        self.made -= 1;
        for class in look.counted {
            self.limiter.end(class, &look.source, Tried::Not, now);
        }
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

    type Answer = oneshot::Receiver<Result<Found, Limited>>;

    fn look(who: u32, is_known: bool) -> (Look, Answer) {
        guesses(who, is_known, &[(Class::Password, "a")])
    }

    fn guesses(who: u32, is_known: bool, guesses: &[(Class, &str)]) -> (Look, Answer) {
        let (answer, answered) = oneshot::channel();
        let guess = |(class, text): &(Class, &str)| Guess {
            class: *class,
            presented: Secret::new(text.as_bytes().to_vec()),
            hash: PasswordHash::nobodys(10),
            cost: 10,
        };
        let look = Look {
            source: Source::User(who),
            is_known,
            guesses: guesses.iter().map(guess).collect(),
            answer,
        };
        (look, answered)
    }

    /// Asks, and lets it end so.
    fn done(
        hashing: &mut Hashing,
        asked: &[(Class, &str)],
        right: Option<usize>,
    ) -> Result<Found, Limited> {
        let (look, mut answered) = guesses(1, false, asked);
        hashing.ask(look, Millis(0));
        if hashing.next(1, Millis(0)).is_some() {
            hashing.ended(1, right, Millis(0));
        }
        answered.try_recv().expect("answered")
    }

    #[test]
    fn a_right_password_is_no_wrong_guess_at_the_token() {
        let mut hashing = Hashing::new();
        let one = [(Class::ChosenToken, "secret"), (Class::Password, "secret")];
        for _ in 0..30 {
            let found = done(&mut hashing, &one, Some(1)).expect("not limited");
            assert_eq!((found.right, found.limited), (Some(Class::Password), None));
        }
        assert_eq!(hashing.sources(), 0);
    }

    #[test]
    fn a_token_beside_a_right_password_is_a_guess_of_its_own() {
        let mut hashing = Hashing::new();
        let two = [(Class::ChosenToken, "guess"), (Class::Password, "secret")];
        for _ in 0..10 {
            let found = done(&mut hashing, &two, Some(1)).expect("not limited");
            assert_eq!(found.limited, None);
        }
        // The token is not looked at any more, the password is.
        let found = done(&mut hashing, &two, Some(0)).expect("the password");
        assert_eq!(found.right, Some(Class::Password));
        assert!(found.limited.is_some());
        assert!(done(&mut hashing, &two[..1], None).is_err());
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
        hashing.ended(3, Some(0), Millis(0));
        let found = answered.try_recv().expect("answered").expect("looked at");
        assert_eq!(found.right, Some(Class::Password));
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
