//! Who makes room when strangers fill a door's budget. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where a stranger comes from: an address (v4-mapped ones folded, IPv6 by /64), or a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Over TCP.
    Address(IpAddr),
    /// Over loopback, by the user that the kernel names: one user's flood is not another's.
    User(u32),
    /// Behind a trusted proxy, by the address that it names. What comes from there without the proxy is another's.
    Behind(IpAddr),
    /// Over `run/control.sock`: a budget of its own.
    Unix,
    /// Over the control socket that every user may dial: one for each user that is let in there.
    Shared(u32),
    /// Over `agent.sock`: one for each user.
    Agents(u32),
}

/// Doors that take no place from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// `[gateway] bind`.
    Tcp,
    /// `run/control.sock`.
    Unix,
    /// `[gateway.local] socket`.
    Shared,
    /// `run/agent.sock`.
    Agents,
}

impl Origin {
    /// Of an address, and of the user behind it where the kernel names one.
    pub fn of(ip: IpAddr, user: Option<u32>) -> Self {
        match user {
            Some(user) if ip.to_canonical().is_loopback() => Self::User(user),
            _ => Self::Address(network(ip)),
        }
    }

    /// Which door it came in at.
    pub const fn door(self) -> Door {
        match self {
            Self::Address(_) | Self::User(_) | Self::Behind(_) => Door::Tcp,
            Self::Unix => Door::Unix,
            Self::Shared(_) => Door::Shared,
            Self::Agents(_) => Door::Agents,
        }
    }
}

fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        // Whoever is on this machine has all of 127.0.0.0/8.
        IpAddr::V4(v4) if !v4.is_loopback() => IpAddr::V4(v4),
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

/// The limits of `[gateway.limits]`.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of one address that are silent; [`KNOCKING`] times as many with those that have asked for a WebSocket.
    pub per_address: usize,
    /// Of all addresses.
    pub total: usize,
    /// Of each user of a Unix socket.
    pub unix: usize,
}

/// A newcomer needs its time between the answer to its upgrade and its `connect`; a user who dials 14,000 times a second left
/// it two thousandths of one with 32 places.
const KNOCKING: usize = 8;

/// Users who may fill their budgets at one Unix socket; over that the fullest makes room.
const USERS: usize = 8;

/// Who goes first when room is made. In this order, and of equals the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Turned away: only its goodbye is under way.
    Refused,
    /// Nothing whole has come from it yet.
    Silent,
    /// It has asked for a WebSocket, and no `connect` has come from it yet.
    Knocks,
    /// Its `connect` is being decided: never closed to make room.
    Speaks,
}

#[derive(Debug, Clone, Copy)]
struct Stranger {
    /// The other end of its socket.
    gate: Origin,
    /// That, or the client behind it.
    origin: Origin,
    standing: Standing,
}

/// Sockets that have not said who they are.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    /// By key, which grows: the first is the oldest.
    strangers: BTreeMap<u64, Stranger>,
    counts: HashMap<Origin, usize>,
    /// Of each [`Door`].
    at: [usize; 4],
}

impl Budget {
    /// Nobody is there.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            strangers: BTreeMap::new(),
            counts: HashMap::new(),
            at: [0; 4],
        }
    }

    /// A newcomer. Returns who must make room for it: one that was refused, or else the oldest silent one, or else the oldest
    /// that has asked for no more than a WebSocket, of its own address, or over the total of the fullest address and then of
    /// any.
    ///
    /// Nobody where all others have a `connect` that is being decided: the newcomer comes in beside them. They are no
    /// more than authentication decides at once, and each is in or refused within its time.
    ///
    /// `is_proxy`: it is a trusted proxy's. Each client behind that has the budget of an address, and all of them together
    /// half of the total; over that, the fullest of them makes room.
    pub fn enter(&mut self, key: u64, origin: Origin, is_proxy: bool) -> Option<u64> {
        let victim = if is_proxy && self.through(origin).count() >= self.limits.total / 2 {
            self.of_the_proxy(origin)
        } else {
            self.victim(origin, is_proxy)
        };
        if let Some(victim) = victim {
            self.leave(victim);
        }
        self.back(key, origin);
        victim
    }

    /// What was proven to be somebody's is done, and it is a stranger again. Nobody makes room for it at once.
    pub fn back(&mut self, key: u64, origin: Origin) {
        if self.strangers.contains_key(&key) {
            return;
        }
        let stranger = Stranger {
            gate: origin,
            origin,
            standing: Standing::Silent,
        };
        self.put(key, stranger);
    }

    /// The proxy names the client whose request this is: from here on it counts there. Returns who makes room for it.
    pub fn behind(&mut self, key: u64, client: IpAddr) -> Option<u64> {
        let stranger = *self.strangers.get(&key)?;
        let origin = Origin::Behind(network(client));
        if stranger.origin == origin {
            return None;
        }
        // Not itself.
        self.leave(key);
        let victim = self.over(origin, self.limits.per_address);
        if let Some(victim) = victim {
            self.leave(victim);
        }
        self.put(key, Stranger { origin, ..stranger });
        victim
    }

    fn put(&mut self, key: u64, stranger: Stranger) {
        self.strangers.insert(key, stranger);
        *self.counts.entry(stranger.origin).or_default() += 1;
        self.at[stranger.origin.door() as usize] += 1;
    }

    fn victim(&self, newcomer: Origin, is_proxy: bool) -> Option<u64> {
        let own = match newcomer {
            Origin::Unix | Origin::Shared(_) | Origin::Agents(_) => self.limits.unix,
            // How many of them say for whom they come is not known yet.
            _ if is_proxy => usize::MAX,
            Origin::Address(_) | Origin::User(_) | Origin::Behind(_) => self.limits.per_address,
        };
        if let Some(victim) = self.over(newcomer, own) {
            return Some(victim);
        }
        let door = newcomer.door();
        let most = match door {
            Door::Tcp => self.limits.total,
            Door::Unix | Door::Shared | Door::Agents => self.limits.unix.saturating_mul(USERS),
        };
        if self.at[door as usize] < most {
            return None;
        }
        let fullest = self.fullest(door);
        self.first(|s| Some(s.origin) == fullest)
            .or_else(|| self.first(|s| s.origin.door() == door))
    }

    /// Who makes room where one more would be too many of this origin: `own` that are silent, [`KNOCKING`] times as many in
    /// all. Whoever floods with what costs him nothing pushes out nobody who has done more; and whoever has just come, whose
    /// request is not read yet, does not go for those that have asked and say no more.
    fn over(&self, origin: Origin, own: usize) -> Option<u64> {
        let all = self.count(origin);
        if all < own {
            return None;
        }
        let of = |s: &&Stranger| s.origin == origin;
        let silent = self.strangers.values().filter(of);
        let silent = silent.filter(|s| s.standing <= Standing::Silent).count();
        if silent >= own {
            self.first(|s| s.origin == origin && s.standing <= Standing::Silent)
        } else if all >= own.saturating_mul(KNOCKING) {
            self.first(|s| s.origin == origin && s.standing != Standing::Silent)
        } else {
            None
        }
    }

    /// Those whose sockets are this one's.
    fn through(&self, gate: Origin) -> impl Iterator<Item = &Stranger> {
        self.strangers.values().filter(move |s| s.gate == gate)
    }

    fn of_the_proxy(&self, gate: Origin) -> Option<u64> {
        let mut counts: HashMap<Origin, usize> = HashMap::new();
        for stranger in self.through(gate) {
            *counts.entry(stranger.origin).or_default() += 1;
        }
        let fullest = counts.into_iter().max_by_key(|(_, n)| *n).map(|(o, _)| o);
        self.first(|s| s.gate == gate && Some(s.origin) == fullest)
            .or_else(|| self.first(|s| s.gate == gate))
    }

    fn first(&self, is_wanted: impl Fn(&Stranger) -> bool) -> Option<u64> {
        self.strangers
            .iter()
            .filter(|(_, s)| is_wanted(s) && s.standing != Standing::Speaks)
            .min_by_key(|(key, s)| (s.standing, **key))
            .map(|(key, _)| *key)
    }

    /// It has asked for a WebSocket: who is silent makes room before it does.
    pub fn knocks(&mut self, key: u64) {
        if let Some(stranger) = self.strangers.get_mut(&key)
            && stranger.standing == Standing::Silent
        {
            stranger.standing = Standing::Knocks;
        }
    }

    /// Its `connect` has arrived whole: it is not closed to make room any more.
    pub fn speaks(&mut self, key: u64) {
        self.stands(key, Standing::Speaks);
    }

    /// It is turned away: until it has gone, it is the first to make room.
    pub fn refused(&mut self, key: u64) {
        self.stands(key, Standing::Refused);
    }

    fn stands(&mut self, key: u64, now: Standing) {
        if let Some(stranger) = self.strangers.get_mut(&key) {
            stranger.standing = now;
        }
    }

    /// It is in, or gone.
    pub fn leave(&mut self, key: u64) {
        if let Some(Stranger { origin, .. }) = self.strangers.remove(&key)
            && let Some(count) = self.counts.get_mut(&origin)
        {
            *count -= 1;
            self.at[origin.door() as usize] -= 1;
            if *count == 0 {
                self.counts.remove(&origin);
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.strangers.len()
    }

    fn count(&self, origin: Origin) -> usize {
        self.counts.get(&origin).copied().unwrap_or(0)
    }

    fn fullest(&self, door: Door) -> Option<Origin> {
        self.counts
            .iter()
            .filter(|(o, _)| o.door() == door)
            .max_by_key(|(_, n)| **n)
            .map(|(o, _)| *o)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Origin {
        Origin::of(text.parse().unwrap(), None)
    }

    fn budget() -> Budget {
        Budget::new(Limits {
            per_address: 3,
            total: 5,
            unix: 2,
        })
    }

    #[test]
    fn the_oldest_silent_socket_of_the_same_address_makes_room() {
        let mut b = budget();
        for key in 0..4 {
            assert_eq!(b.enter(key, ip("10.0.0.1"), false), (key == 3).then_some(0));
        }
        b.speaks(1);
        assert_eq!(b.enter(4, ip("::ffff:10.0.0.1"), false), None);
        assert_eq!(b.enter(5, ip("10.0.0.1"), false), Some(2));
        for key in 3..6 {
            b.speaks(key);
        }
        assert_eq!(
            b.enter(6, ip("10.0.0.1"), false),
            None,
            "all others are being decided: the newcomer comes in beside them"
        );
        assert_eq!(b.len(), 5);
        assert_eq!(b.enter(7, ip("10.0.0.1"), false), Some(6), "the total");
    }

    /// The bug: silent sockets by the thousand pushed out whoever was about to send its `connect`, and newcomers of the same
    /// user came again and again.
    #[test]
    fn who_is_silent_makes_room_before_who_has_asked_for_a_websocket() {
        let mut b = budget();
        for key in 0..3 {
            b.enter(key, ip("10.0.0.1"), false);
        }
        b.knocks(0);
        b.knocks(1);
        for key in 3..100 {
            let due = (key > 4).then(|| if key == 5 { 2 } else { key - 3 });
            assert_eq!(b.enter(key, ip("10.0.0.1"), false), due, "{key}");
        }
        // One that was refused goes first, and is none of those that knock.
        b.refused(1);
        b.knocks(1);
        assert_eq!(b.enter(100, ip("10.0.0.1"), false), Some(1));
        assert_eq!(b.len(), 5);
    }

    /// The bug: whoever asked for a WebSocket and said no more, 14,000 times a second, left newcomers of his own user two
    /// thousandths of one for their `connect`.
    #[test]
    fn who_has_asked_for_a_websocket_has_more_places_than_who_is_silent() {
        let mut b = Budget::new(Limits {
            per_address: 3,
            total: 100,
            unix: 2,
        });
        let limit = 3 * KNOCKING as u64;
        for key in 0..limit {
            assert_eq!(b.enter(key, ip("10.0.0.1"), false), None, "{key}");
            b.knocks(key);
        }
        b.speaks(0);
        for key in limit..1_000 {
            // Never the newcomer itself, nor who speaks: the one that has knocked longest.
            let due = Some(key - limit + 1);
            assert_eq!(b.enter(key, ip("10.0.0.1"), false), due);
            b.knocks(key);
        }
        assert_eq!(b.len() as u64, limit);
        assert_eq!(b.enter(1_000, ip("10.0.0.2"), false), None);
    }

    /// The bug: where those that had asked for a WebSocket filled their places, each newcomer closed the one before it, whose
    /// request was not read yet: of a hundred dials of one user eight came in.
    #[test]
    fn a_newcomer_is_not_closed_for_those_that_have_asked_for_a_websocket_and_say_no_more() {
        let mut b = Budget::new(Limits {
            per_address: 3,
            total: 100,
            unix: 2,
        });
        let limit = 3 * KNOCKING as u64;
        for key in 0..limit {
            assert_eq!(b.enter(key, ip("10.0.0.1"), false), None, "{key}");
            b.knocks(key);
        }
        // Two come while the first of them is not read yet.
        assert_eq!(b.enter(limit, ip("10.0.0.1"), false), Some(0));
        assert_eq!(b.enter(limit + 1, ip("10.0.0.1"), false), Some(1));
        b.knocks(limit);
        assert_eq!(b.enter(limit + 2, ip("10.0.0.1"), false), Some(2));
        // One that was turned away goes before those that may still say who they are.
        b.refused(limit);
        assert_eq!(b.enter(limit + 3, ip("10.0.0.1"), false), Some(limit));
        // Those that stay silent are as few as ever.
        let oldest = Some(limit + 1);
        assert_eq!(b.enter(limit + 4, ip("10.0.0.1"), false), oldest);
        assert_eq!(b.len() as u64, limit);
    }

    /// The bug: one user's reconnects over loopback closed the sockets of another who was about to say who he is.
    #[test]
    fn a_users_flood_over_loopback_makes_room_among_its_own() {
        let mut budget = budget();
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let (honest, other) = (Origin::of(ip, Some(1000)), Origin::of(ip, Some(65_534)));
        assert_ne!(honest, other);
        assert_eq!(budget.enter(1, honest, false), None);
        let closed: Vec<u64> = (2..200)
            .filter_map(|key| budget.enter(key, other, false))
            .collect();
        assert!(!closed.is_empty() && !closed.contains(&1), "{closed:?}");
        // Nor has he sixteen million where nobody can say who he is.
        assert_eq!(self::ip("127.1.2.3"), self::ip("127.3.2.1"));
        assert_eq!(self::ip("127.1.2.3"), self::ip("::1"));
        // Elsewhere an address is all that is known.
        let far: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(Origin::of(far, Some(1)), Origin::of(far, None));
    }

    #[test]
    fn who_was_refused_makes_room_before_who_is_silent() {
        let mut b = budget();
        for key in 0..3 {
            b.enter(key, ip("10.0.0.1"), false);
        }
        b.speaks(1);
        b.speaks(2);
        b.refused(2);
        assert_eq!(b.enter(3, ip("10.0.0.1"), false), None);
        assert_eq!(b.enter(4, ip("10.0.0.1"), false), Some(2));
        assert_eq!(b.enter(5, ip("10.0.0.1"), false), Some(0));
        b.refused(1);
        assert_eq!(
            b.enter(6, ip("10.0.0.1"), false),
            Some(1),
            "not protected any more"
        );
    }

    /// The bug: only the fullest address was searched, and where all of its sockets spoke the newcomer went.
    #[test]
    fn over_the_total_any_silent_socket_makes_room_where_the_fullest_address_has_none() {
        let mut b = budget();
        b.enter(0, Origin::Unix, false);
        for key in 1..4 {
            b.enter(key, ip("10.0.0.1"), false);
            b.speaks(key);
        }
        b.enter(4, ip("10.0.0.2"), false);
        b.enter(5, ip("10.0.0.3"), false);
        assert_eq!(b.enter(6, ip("10.0.0.4"), false), Some(4));
        assert_eq!(b.enter(7, ip("10.0.0.4"), false), Some(5));
    }

    #[test]
    fn over_the_total_the_fullest_address_pays_and_not_the_honest_one() {
        let mut b = budget();
        for key in 0..3 {
            b.enter(key, ip("10.0.0.1"), false);
        }
        b.enter(3, ip("10.0.0.2"), false);
        b.enter(4, ip("10.0.0.3"), false);
        assert_eq!(b.enter(5, ip("10.0.0.4"), false), Some(0));
    }

    #[test]
    fn a_mapped_address_and_a_v6_network_have_one_budget() {
        let same = |a: &str, b: &str| ip(a) == ip(b);
        assert!(same("192.0.2.7", "::ffff:192.0.2.7"));
        assert!(same("127.0.0.1", "::ffff:127.0.0.1"));
        assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(!same("192.0.2.7", "192.0.2.8"));
        // Whatever spelling they come in, four of one address are four.
        let mut b = budget();
        for key in 0..3 {
            let spelled = if key % 2 == 0 {
                "192.0.2.7"
            } else {
                "::ffff:192.0.2.7"
            };
            b.enter(key, ip(spelled), false);
        }
        assert_eq!(b.enter(3, ip("::ffff:192.0.2.7"), false), Some(0));
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_unix_has_its_own_budget() {
        let mut b = budget();
        for key in 0..3 {
            b.enter(key, ip(&format!("2001:db8::{key}")), false);
        }
        assert_eq!(b.enter(3, ip("2001:db8::ffff"), false), Some(0));
        assert_eq!(b.enter(4, Origin::Unix, false), None);
        assert_eq!(b.enter(5, Origin::Unix, false), None);
        assert_eq!(b.enter(6, Origin::Unix, false), Some(4));
        // Nor do those who may dial the shared socket take anything from the other.
        for key in 7..9 {
            assert_eq!(b.enter(key, Origin::Shared(1), false), None);
        }
        assert_eq!(b.enter(9, Origin::Shared(1), false), Some(7));
        assert_eq!(
            b.enter(11, Origin::Agents(1), false),
            None,
            "and so have agents"
        );
        assert_eq!(b.enter(10, ip("10.0.0.1"), false), None);
    }

    /// The bug: all who may dial the shared socket had one budget, and one of them shut out the others.
    #[test]
    fn a_users_flood_at_a_unix_socket_makes_room_among_its_own() {
        for of in [Origin::Shared, Origin::Agents] {
            let mut b = budget();
            assert_eq!(b.enter(0, of(2000), false), None);
            let closed: Vec<u64> = (1..100)
                .filter_map(|key| b.enter(key, of(11_111), false))
                .collect();
            assert_eq!(closed, (1..98).collect::<Vec<u64>>());
            // Nor do eight users: over the door's own limit the fullest pays.
            for key in 100..200 {
                let user = 20_000 + u32::try_from(key).unwrap() % 7;
                assert_ne!(b.enter(key, of(user), false), Some(0));
            }
            assert_eq!(b.len(), 16);
            assert_ne!(b.enter(200, of(2000), false), Some(0));
            assert_eq!(b.len(), 16);
        }
    }

    /// The bug: all clients of a proxy had one address' budget, and one of them shut out the others.
    #[test]
    fn clients_behind_one_proxy_make_room_each_among_its_own() {
        let mut b = Budget::new(Limits {
            per_address: 3,
            total: 20,
            unix: 2,
        });
        let proxy = ip("10.1.0.1");
        let client = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(b.enter(1, proxy, true), None);
        assert_eq!(b.behind(1, client("198.51.100.7")), None);
        let mut closed = vec![];
        for key in 2..100 {
            closed.extend(b.enter(key, proxy, true));
            closed.extend(b.behind(key, client("203.0.113.9")));
        }
        assert_eq!(
            closed,
            (2..97).collect::<Vec<u64>>(),
            "its own, oldest first"
        );
        assert_eq!(b.len(), 4);
        // The same again changes nothing, and who has left is not there.
        assert_eq!(b.behind(99, client("::ffff:203.0.113.9")), None);
        b.leave(99);
        assert_eq!(b.behind(99, client("203.0.113.9")), None);
        assert_eq!(b.len(), 3);
        // One that comes without the proxy is somebody else.
        for key in 200..203 {
            assert_eq!(b.enter(key, ip("203.0.113.9"), false), None);
        }
    }

    #[test]
    fn all_behind_one_proxy_have_half_of_the_total_and_the_fullest_of_them_pays() {
        let mut b = Budget::new(Limits {
            per_address: 3,
            total: 20,
            unix: 2,
        });
        let proxy = ip("10.1.0.1");
        assert_eq!(b.enter(1, ip("192.0.2.1"), false), None);
        let mut closed = vec![];
        for key in 2..100_u64 {
            closed.extend(b.enter(key, proxy, true));
            let of = if key < 5 { 0 } else { key };
            let of = u16::try_from(of).unwrap();
            let client = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, of, 0, 0, 0, 1));
            closed.extend(b.behind(key, client));
        }
        // Ten of the proxy, and the one from elsewhere.
        assert_eq!(b.len(), 11);
        assert_eq!(closed[0], 2, "of the one with three");
        assert!(!closed.contains(&1));
        // Its silent sockets, before they say for whom they come, are bounded so too.
        let closed = (200..300).filter_map(|key| b.enter(key, proxy, true));
        assert!(!closed.collect::<Vec<_>>().contains(&1));
        assert_eq!(b.len(), 11);
    }

    /// What has proven itself is no stranger, and is one again when it is done.
    #[test]
    fn who_has_left_and_comes_back_counts_once() {
        let mut b = budget();
        for key in 0..3 {
            b.enter(key, ip("10.0.0.1"), false);
        }
        b.leave(0);
        assert_eq!(b.enter(3, ip("10.0.0.1"), false), None);
        b.back(0, ip("10.0.0.1"));
        b.back(0, ip("10.0.0.1"));
        assert_eq!(b.len(), 4);
        assert_eq!(b.enter(4, ip("10.0.0.1"), false), Some(0));
    }
}
