//! Slow looks at secrets: counted first, a few at a time, off the loop, and never all of them a stranger's.
//!
//! Strangers take turns: next is whose network, and within it whose own address, has been wrong least often of late, and
//! where all places are taken, the one that has been most makes room. So whoever guesses from many addresses of his waits for himself, and a
//! person who comes from elsewhere, or from this machine, waits for one look. Against guessers in more networks than there
//! are looks in a minute this does not help; devices do, whose looks have a place of their own.

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
/// Who has waited for so long is told to try again: his connect waits ten seconds at the most.
const PATIENCE_MS: u64 = 6_000;
/// A network's wrong looks are held against it for so long.
const LATELY_MS: u64 = 60_000;

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
    since: Millis,
}

/// What wrong looks are held against.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    Network(Source),
    Source(Source),
}

/// See the module.
pub(super) struct Hashing {
    limiter: Limiter,
    known: VecDeque<Waiting>,
    /// In the order in which they came.
    strangers: Vec<Waiting>,
    /// When looks for strangers were wrong, by network and by source: no more than are made in [`LATELY_MS`].
    wrong: BTreeMap<Held, VecDeque<Millis>>,
    running: BTreeMap<u64, Running>,
    /// Looks that were really made.
    pub made: u64,
}

impl Hashing {
    pub fn new() -> Self {
        Self {
            limiter: Limiter::new(Limits::default()),
            known: VecDeque::new(),
            strangers: Vec::new(),
            wrong: BTreeMap::new(),
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
        let waiting = Waiting {
            look,
            limited,
            since: now,
        };
        if waiting.look.is_known {
            if self.known.len() < WAITING {
                self.known.push_back(waiting);
            } else {
                self.turn_away(waiting, now);
            }
            return;
        }
        self.forget(now);
        if self.strangers.len() >= WAITING {
            let place = |waiting: &Waiting| self.wrong_of(&waiting.look.source);
            let worst = self.strangers.iter().enumerate();
            // Of the worst, the last to come.
            let worst = worst.max_by_key(|(_, waiting)| place(waiting));
            match worst {
                Some((at, worst)) if place(worst) > place(&waiting) => {
                    let worst = self.strangers.remove(at);
                    self.turn_away(worst, now);
                }
                _ => {
                    self.turn_away(waiting, now);
                    return;
                }
            }
        }
        self.strangers.push(waiting);
    }

    fn turn_away(&mut self, Waiting { look, .. }: Waiting, now: Millis) {
        self.uncount(&look, now);
        let _ = look.answer.send(Err(Limited::busy(FULL_MS)));
    }

    fn wrong_of(&self, source: &Source) -> [usize; 2] {
        let held = [
            Held::Network(source.network()),
            Held::Source(source.clone()),
        ];
        held.map(|held| self.wrong.get(&held).map_or(0, VecDeque::len))
    }

    fn forget(&mut self, now: Millis) {
        self.wrong.retain(|_, times| {
            while times.front().is_some_and(|at| now.since(*at) >= LATELY_MS) {
                times.pop_front();
            }
            !times.is_empty()
        });
    }

    /// Whose turn it is among the strangers.
    fn stranger(&mut self, now: Millis) -> Option<Waiting> {
        self.forget(now);
        let each = self.strangers.iter().enumerate();
        let (at, _) =
            each.min_by_key(|(at, waiting)| (self.wrong_of(&waiting.look.source), *at))?;
        Some(self.strangers.remove(at))
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
            let waiting = match self.known.pop_front() {
                Some(waiting) => waiting,
                None if strangers < STRANGERS => self.stranger(now)?,
                None => return None,
            };
            if waiting.look.answer.is_closed() || now.since(waiting.since) >= PATIENCE_MS {
                self.turn_away(waiting, now);
                continue;
            }
            let Waiting { look, limited, .. } = waiting;
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
        if right.is_none() && !look.is_known {
            let network = Held::Network(look.source.network());
            for held in [network, Held::Source(look.source.clone())] {
                self.wrong.entry(held).or_default().push_back(now);
            }
        }
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
        let _ = look.answer.send(Err(Limited::busy(FULL_MS)));
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

    /// One look of a second after another, and each second these addresses ask again.
    #[test]
    fn guessers_with_many_addresses_hold_up_neither_a_person_from_elsewhere_nor_this_machine() {
        let mut hashing = Hashing::new();
        let mut key = 0;
        let mut waits = vec![];
        let from = |source: Source| {
            let (mut look, answered) = look(0, false);
            look.source = source;
            (look, answered)
        };
        let address = |text: &str| Source::of(text.parse().ok(), None);
        let mut guessers = vec![];
        for second in 0..120_u64 {
            let now = Millis(second * 1_000);
            // A new address of its /48 each time: none is locked.
            for n in 0..24 {
                let (look, answered) =
                    from(address(&format!("2001:db8:7:{:x}::1", second * 24 + n)));
                hashing.ask(look, now);
                guessers.push(answered);
            }
            let honest = match second % 20 {
                10 => Some(from(address("2001:db8:8:1::1"))),
                15 => Some(from(Source::User(0))),
                _ => None,
            };
            if let Some((look, answered)) = honest {
                hashing.ask(look, now);
                waits.push((second, answered));
            }
            if key > 0 {
                // Whose look it was: the honest are right.
                let running = &hashing.running[&key];
                let network = address("2001:db8:7::").network();
                let right = (running.source.network() != network).then_some(0);
                hashing.ended(key, right, now);
            }
            key += 1;
            assert!(hashing.next(key, now).is_some());
            waits.retain_mut(|(since, answered)| match answered.try_recv() {
                Ok(found) => {
                    assert_eq!(found.expect("looked at").right, Some(Class::Password));
                    assert!(second - *since <= 2, "{since} {second}");
                    false
                }
                Err(_) => true,
            });
        }
        assert!(waits.is_empty(), "{waits:?}");
        let busy = guessers.iter_mut().filter_map(|one| one.try_recv().ok());
        assert!(busy.filter_map(Result::err).all(|limited| limited.is_busy));
        assert!(hashing.wrong.len() < 100, "bounded");
    }

    #[test]
    fn a_neighbour_of_guessers_comes_before_those_who_were_wrong() {
        let mut hashing = Hashing::new();
        let mut answers = vec![];
        let mut ask = |hashing: &mut Hashing, last: u8, second: u64| {
            let (mut look, answered) = look(0, false);
            look.source = Source::Address([192, 0, 2, last].into());
            hashing.ask(look, Millis(second * 1_000));
            answers.push(answered);
        };
        for second in 0..20 {
            for guesser in 10..34 {
                ask(&mut hashing, guesser, second);
            }
            if second > 0 {
                hashing.ended(second, None, Millis(second * 1_000));
            }
            assert!(hashing.next(second + 1, Millis(second * 1_000)).is_some());
        }
        // All 24 have asked, 20 of them were wrong; four wait that were not yet, and he is behind them at the most.
        ask(&mut hashing, 75, 20);
        for second in 20..25 {
            hashing.ended(second, None, Millis(second * 1_000));
            assert!(hashing.next(second + 1, Millis(second * 1_000)).is_some());
        }
        let source = &hashing.running[&25].source;
        assert!(
            hashing
                .strangers
                .iter()
                .all(|w| w.look.source != Source::Address([192, 0, 2, 75].into())),
            "{source:?}"
        );
    }

    #[test]
    fn who_has_waited_too_long_is_told_so_before_his_connect_gives_up() {
        let mut hashing = Hashing::new();
        let (first, _first) = look(1, false);
        let (second, mut waits) = look(2, false);
        hashing.ask(first, Millis(0));
        hashing.ask(second, Millis(0));
        assert!(hashing.next(1, Millis(0)).is_some());
        hashing.ended(1, None, Millis(7_000));
        assert!(hashing.next(2, Millis(7_000)).is_none());
        assert_eq!(waits.try_recv(), Ok(Err(Limited::busy(FULL_MS))));
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
