//! How often somebody may guess: counted before the look, per kind of secret and place it comes from.
//!
//! Nobody else pays: a place that guesses is locked out of guessing, and what cannot be guessed (random tokens, device
//! signatures, the kernel's word) never comes here. Each class has places of its own, and addresses, of which a stranger
//! may have any number, share none with this machine's users and with paired devices.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::ids::DeviceId;
use crate::time::Millis;

/// What is guessed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A person's password.
    Password,
    /// A shared token of somebody's own choice.
    ChosenToken,
    /// A setup code.
    SetupCode,
    /// A passphrase of the vault.
    Passphrase,
    /// A recovery code of the vault.
    RecoveryCode,
    /// The passphrase of an export's file.
    ExportPassphrase,
}

/// Who guesses, as far as the kernel and a signature say; nothing of it is the client's word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A network address: v4-mapped ones folded, IPv6 by /64.
    Address(IpAddr),
    /// A user of this machine: another user's guesses are not his.
    User(u32),
    /// A paired device that has just signed: its address may be anybody's.
    Device(DeviceId),
    /// Of this machine, and the kernel does not say whose: one for all, for any user has 127.0.0.0/8 to himself.
    Local,
}

impl Source {
    /// Of a socket.
    pub fn of(ip: Option<IpAddr>, uid: Option<u32>) -> Self {
        match (ip.map(|ip| ip.to_canonical()), uid) {
            (None, None) => Self::Local,
            (None, Some(uid)) => Self::User(uid),
            (Some(ip), uid) if ip.is_loopback() => uid.map_or(Self::Local, Self::User),
            (Some(IpAddr::V6(v6)), _) => {
                let [a, b, c, d, ..] = v6.segments();
                Self::Address(IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)))
            }
            (Some(v4), _) => Self::Address(v4),
        }
    }
}

impl Source {
    /// The network it is of: an address' /24 or /48, of which one party has many addresses; everybody else is his own.
    #[must_use]
    pub fn network(&self) -> Self {
        match self {
            Self::Address(IpAddr::V4(v4)) => {
                let [a, b, c, _] = v4.octets();
                Self::Address(IpAddr::from([a, b, c, 0]))
            }
            Self::Address(IpAddr::V6(v6)) => {
                let [a, b, c, ..] = v6.segments();
                Self::Address(IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)))
            }
            other => other.clone(),
        }
    }
}

/// The figures.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wrong tries within the window, then the lock.
    pub tries: usize,
    /// Milliseconds.
    pub window_ms: u64,
    /// Milliseconds.
    pub lock_ms: u64,
    /// Looks of one source under way at once.
    pub at_once: usize,
    /// Addresses remembered for each class, and as many users and devices.
    pub sources: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tries: 10,
            window_ms: 60_000,
            lock_ms: 300_000,
            at_once: 4,
            sources: 10_000,
        }
    }
}

/// Not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// Try again after so many milliseconds.
    pub retry_after_ms: u64,
    /// Too many looks are asked for at once; else there were too many wrong tries.
    pub is_busy: bool,
}

impl Limited {
    /// Too many at once.
    pub const fn busy(retry_after_ms: u64) -> Self {
        Self {
            retry_after_ms,
            is_busy: true,
        }
    }
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It was right.
    Right,
    /// It was wrong.
    Wrong,
    /// It was not looked at after all.
    Not,
}

/// A source that has tries of its own under way waits so long.
const SOON_MS: u64 = 1_000;
/// Of the places taken, one in so many is given up at once.
const FEW: usize = 32;

#[derive(Debug, Default)]
struct Entry {
    wrong: VecDeque<Millis>,
    under_way: usize,
    locked_until: Option<Millis>,
}

impl Entry {
    fn forget(&mut self, limits: &Limits, now: Millis) {
        if self.locked_until.is_some_and(|until| until <= now) {
            self.locked_until = None;
            self.wrong.clear();
        }
        while self
            .wrong
            .front()
            .is_some_and(|at| now.since(*at) >= limits.window_ms)
        {
            self.wrong.pop_front();
        }
    }

    fn is_idle(&self) -> bool {
        self.under_way == 0 && self.wrong.is_empty() && self.locked_until.is_none()
    }
}

/// Whose places are taken: those of addresses, or those of users and devices.
type Places = (Class, bool);

/// Who has tried what, and how often.
#[derive(Debug)]
pub struct Limiter {
    limits: Limits,
    tables: BTreeMap<Places, BTreeMap<Source, Entry>>,
}

impl Limiter {
    /// Nobody has.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            tables: BTreeMap::new(),
        }
    }

    /// Before a look. Each that is let begin must [`Self::end`].
    ///
    /// # Errors
    /// [`Limited`]: do not look.
    pub fn begin(&mut self, class: Class, source: &Source, now: Millis) -> Result<(), Limited> {
        let limits = self.limits;
        let table = self.tables.entry(places(class, source)).or_default();
        if !table.contains_key(source) && table.len() >= limits.sources {
            make_room(table, &limits, now)?;
        }
        let entry = table.entry(source.clone()).or_default();
        entry.forget(&limits, now);
        if let Some(until) = entry.locked_until {
            return Err(Limited {
                retry_after_ms: until.since(now),
                is_busy: false,
            });
        }
        if entry.under_way >= limits.at_once || entry.under_way + entry.wrong.len() >= limits.tries
        {
            return Err(Limited::busy(SOON_MS));
        }
        entry.under_way += 1;
        Ok(())
    }

    /// After it.
    pub fn end(&mut self, class: Class, source: &Source, tried: Tried, now: Millis) {
        let Some(table) = self.tables.get_mut(&places(class, source)) else {
            return;
        };
        let Some(entry) = table.get_mut(source) else {
            return;
        };
        entry.under_way = entry.under_way.saturating_sub(1);
        if tried == Tried::Wrong {
            entry.wrong.push_back(now);
            entry.forget(&self.limits, now);
            if entry.wrong.len() >= self.limits.tries {
                entry.locked_until = Some(now.plus(self.limits.lock_ms));
            }
        }
        if entry.is_idle() {
            table.remove(source);
        }
    }

    /// Sources remembered.
    pub fn len(&self) -> usize {
        self.tables.values().map(BTreeMap::len).sum()
    }

    /// Is none remembered?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

const fn places(class: Class, source: &Source) -> Places {
    (class, matches!(source, Source::Address(_)))
}

/// Forgets what is over; else those that have been wrong least often; else, of those locked, the ones that are let go
/// first. What is under way stays: there are never more than wait for a thread. Rejected: to refuse newcomers while all
/// are locked, for then whoever has more addresses than places locks out everybody else. What he gains is nothing: so
/// many addresses are more tries than the threads can make.
fn make_room(
    table: &mut BTreeMap<Source, Entry>,
    limits: &Limits,
    now: Millis,
) -> Result<(), Limited> {
    table.retain(|_, entry| {
        entry.forget(limits, now);
        !entry.is_idle()
    });
    if table.len() < limits.sources {
        return Ok(());
    }
    let mut idle: Vec<_> = table
        .iter()
        .filter(|(_, entry)| entry.under_way == 0)
        .map(|(source, entry)| ((entry.locked_until, entry.wrong.len()), source.clone()))
        .collect();
    idle.sort_unstable();
    // A few at a time: a flood of newcomers does not have the table searched for each.
    for (_, source) in idle.iter().take((limits.sources / FEW).max(1)) {
        table.remove(source);
    }
    if idle.is_empty() {
        return Err(Limited::busy(SOON_MS));
    }
    Ok(())
}

/// Wrong tries of one setup code, kept with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Strikes(u8);

impl Strikes {
    /// The last one.
    pub const DEADLY: u8 = 5;

    /// One more wrong try. `true`: the code is dead.
    #[must_use]
    pub const fn wrong(&mut self) -> bool {
        self.0 = self.0.saturating_add(1);
        self.is_dead()
    }

    /// Has it had its last?
    pub const fn is_dead(self) -> bool {
        self.0 >= Self::DEADLY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> Source {
        Source::of(Some(text.parse().expect("an address")), None)
    }

    #[test]
    fn sources_are_folded_and_users_of_one_machine_count_alone() {
        assert_eq!(ip("::ffff:10.0.0.1"), ip("10.0.0.1"));
        assert_eq!(ip("2001:db8:1:2::1"), ip("2001:db8:1:2:ffff::2"));
        assert_ne!(ip("2001:db8:1:2::1"), ip("2001:db8:1:3::1"));
        let local = |uid| Source::of("127.0.0.1".parse().ok(), Some(uid));
        assert_ne!(local(1000), local(1001));
        assert_eq!(local(1000), Source::of("::1".parse().ok(), Some(1000)));
        assert_eq!(local(1000), Source::of(None, Some(1000)));
    }

    /// The bug: any user of this machine has sixteen million addresses.
    #[test]
    fn no_loopback_address_makes_one_user_many() {
        let from = |ip: &str, uid| Source::of(ip.parse().ok(), uid);
        for ip in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.9.9.9"] {
            assert_eq!(from(ip, Some(1000)), Source::User(1000));
            assert_eq!(from(ip, None), Source::Local);
        }
    }

    #[test]
    fn ten_wrong_tries_lock_for_300_seconds_and_nobody_else() {
        let mut limiter = Limiter::new(Limits::default());
        let (guesser, other) = (ip("10.0.0.1"), ip("10.0.0.2"));
        for n in 0..10 {
            assert_eq!(limiter.begin(Class::Password, &guesser, Millis(n)), Ok(()));
            limiter.end(Class::Password, &guesser, Tried::Wrong, Millis(n));
        }
        let limited = limiter.begin(Class::Password, &guesser, Millis(10));
        assert_eq!(
            limited,
            Err(Limited {
                retry_after_ms: 299_999,
                is_busy: false,
            })
        );
        assert_eq!(
            limiter.begin(Class::ChosenToken, &guesser, Millis(10)),
            Ok(())
        );
        assert_eq!(limiter.begin(Class::Password, &other, Millis(10)), Ok(()));
        assert!(
            limiter
                .begin(Class::Password, &guesser, Millis(300_008))
                .is_err()
        );
        assert_eq!(
            limiter.begin(Class::Password, &guesser, Millis(300_009)),
            Ok(())
        );
    }

    #[test]
    fn right_tries_are_not_counted_and_those_under_way_wait_their_turn_without_a_lock() {
        let mut limiter = Limiter::new(Limits::default());
        let source = ip("10.0.0.1");
        for n in 0..100 {
            assert_eq!(limiter.begin(Class::Password, &source, Millis(n)), Ok(()));
            limiter.end(Class::Password, &source, Tried::Right, Millis(n));
        }
        assert!(limiter.is_empty());
        for _ in 0..4 {
            assert_eq!(limiter.begin(Class::Password, &source, Millis(0)), Ok(()));
        }
        let soon = Err(Limited::busy(1_000));
        assert_eq!(limiter.begin(Class::Password, &source, Millis(0)), soon);
        limiter.end(Class::Password, &source, Tried::Not, Millis(0));
        assert_eq!(limiter.begin(Class::Password, &source, Millis(0)), Ok(()));
    }

    #[test]
    fn more_guessers_than_there_are_places_lock_out_nobody_else() {
        let limits = Limits {
            sources: 50,
            ..Limits::default()
        };
        let mut limiter = Limiter::new(limits);
        let lock = |limiter: &mut Limiter, source: &Source, at: Millis| {
            let mut looks = 0;
            while limiter.begin(Class::SetupCode, source, at).is_ok() {
                limiter.end(Class::SetupCode, source, Tried::Wrong, at);
                looks += 1;
            }
            looks
        };
        let known = Source::Device(DeviceId::new(&"d".repeat(64)).expect("an id"));
        assert_eq!(lock(&mut limiter, &known, Millis(0)), 10);
        for n in 0..200_u16 {
            let address = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, n, 0, 0, 0, 1));
            let source = Source::of(Some(address), None);
            assert_eq!(lock(&mut limiter, &source, Millis(u64::from(n))), 10);
            // Whoever has just been locked stays so: the oldest lock makes room.
            assert_eq!(lock(&mut limiter, &source, Millis(u64::from(n) + 1)), 0);
        }
        assert_eq!(limiter.len(), 51);
        // A stranger, a user of this machine and another class go on; whom no stranger's place is, he cannot free.
        let now = Millis(300);
        assert_eq!(
            limiter.begin(Class::SetupCode, &ip("10.0.0.1"), now),
            Ok(())
        );
        assert_eq!(
            limiter.begin(Class::SetupCode, &Source::User(1), now),
            Ok(())
        );
        assert_eq!(limiter.begin(Class::Password, &ip("10.0.0.1"), now), Ok(()));
        assert!(limiter.begin(Class::SetupCode, &known, now).is_err());
    }

    #[test]
    fn a_setup_code_dies_of_its_fifth_wrong_try() {
        let mut strikes = Strikes::default();
        let deaths: Vec<bool> = (0..6).map(|_| strikes.wrong()).collect();
        assert_eq!(deaths, [false, false, false, false, true, true]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Begin(u8),
        End(u8, Tried),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let tried = prop_oneof![Just(Tried::Right), Just(Tried::Wrong), Just(Tried::Not)];
        prop_oneof![
            4 => (0..6_u8).prop_map(Step::Begin),
            4 => (0..6_u8, tried).prop_map(|(who, tried)| Step::End(who, tried)),
            1 => (0..90_000_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever happens, in whatever order: no source is wrong more than ten times between two locks or within its
        /// window, the table stays within its bound, and a source that was never wrong and has nothing under way is let
        /// begin, whatever the others did, unless all places are taken by those.
        #[test]
        fn no_order_of_tries_gives_more_than_the_limit(steps in proptest::collection::vec(step(), 0..400)) {
            let limits = Limits { sources: 5, ..Limits::default() };
            let mut limiter = Limiter::new(limits);
            let mut now = Millis(1);
            let mut under_way = [0_usize; 6];
            let mut begun: Vec<Vec<Millis>> = vec![vec![]; 6];
            let mut wrong: Vec<Vec<Millis>> = vec![vec![]; 6];
            let who = |n: u8| Source::User(u32::from(n));
            for step in steps {
                match step {
                    Step::Wait(ms) => now = now.plus(ms),
                    Step::Begin(n) => {
                        let at = usize::from(n);
                        let let_in = limiter.begin(Class::Password, &who(n), now).is_ok();
                        if let_in {
                            under_way[at] += 1;
                            begun[at].push(now);
                        } else {
                            let mine = wrong[at].iter().filter(|t| now.since(**t) < 360_000).count();
                            let full = limiter.len() >= limits.sources;
                            prop_assert!(mine > 0 || under_way[at] > 0 || full);
                        }
                        prop_assert!(under_way[at] <= limits.at_once);
                    }
                    Step::End(n, tried) => {
                        let at = usize::from(n);
                        if under_way[at] > 0 {
                            under_way[at] -= 1;
                            limiter.end(Class::Password, &who(n), tried, now);
                            if tried == Tried::Wrong {
                                wrong[at].push(now);
                            }
                        }
                    }
                }
                prop_assert!(limiter.len() <= limits.sources);
            }
        }

        /// One guesser alone, as fast as can be and as parallel as is allowed: at most ten looks in any 60 seconds.
        #[test]
        fn a_guesser_gets_ten_looks_a_window(waits in proptest::collection::vec(0..20_000_u64, 0..300)) {
            let mut limiter = Limiter::new(Limits::default());
            let source = Source::User(1);
            let mut now = Millis(1);
            let mut looks: Vec<Millis> = vec![];
            for wait in waits {
                now = now.plus(wait);
                let mut batch = 0;
                while limiter.begin(Class::Password, &source, now).is_ok() {
                    batch += 1;
                    looks.push(now);
                }
                for _ in 0..batch {
                    limiter.end(Class::Password, &source, Tried::Wrong, now);
                }
                let recent = looks.iter().filter(|at| now.since(**at) < 60_000).count();
                prop_assert!(recent <= 10, "{recent} looks within a minute");
            }
        }
    }
}
