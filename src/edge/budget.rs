//! Who makes room when strangers fill a door's budget. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};

/// Where a stranger comes from: an address (v4-mapped ones folded, IPv6 by /64), or a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Over TCP.
    Address(IpAddr),
    /// Over loopback, by the user that the kernel names: one user's flood is not another's.
    User(u32),
    /// Over `run/control.sock`: a budget of its own.
    Unix,
    /// Over the control socket that every user may dial: another.
    Shared,
    /// Over `agent.sock`: another.
    Agents,
}

impl Origin {
    /// Of an address, and of the user behind it where the kernel names one.
    pub fn of(ip: IpAddr, user: Option<u32>) -> Self {
        if let Some(user) = user.filter(|_| ip.to_canonical().is_loopback()) {
            return Self::User(user);
        }
        Self::Address(match ip.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }

    const fn is_tcp(self) -> bool {
        matches!(self, Self::Address(_) | Self::User(_))
    }
}

/// The limits of `[gateway.limits]`.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of one address.
    pub per_address: usize,
    /// Of all addresses.
    pub total: usize,
    /// Of each Unix socket.
    pub unix: usize,
}

/// Who goes first when room is made. In this order, and of equals the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Turned away: only its goodbye is under way.
    Refused,
    /// No `connect` has come from it yet.
    Silent,
    /// Its `connect` is being decided: never closed to make room.
    Speaks,
}

/// Sockets that have not said who they are.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    /// By key, which grows: the first is the oldest.
    strangers: BTreeMap<u64, (Origin, Standing)>,
    counts: HashMap<Origin, usize>,
}

impl Budget {
    /// Nobody is there.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            strangers: BTreeMap::new(),
            counts: HashMap::new(),
        }
    }

    /// A newcomer. Returns who must make room for it: one that was refused, or else the oldest silent one, of its own
    /// address, or over the total of the fullest address and then of any.
    ///
    /// Nobody where all others have a `connect` that is being decided: the newcomer comes in beside them. They are no
    /// more than authentication decides at once, and each is in or refused within its time.
    pub fn enter(&mut self, key: u64, origin: Origin) -> Option<u64> {
        let victim = self.victim(origin);
        if let Some(victim) = victim {
            self.leave(victim);
        }
        self.strangers.insert(key, (origin, Standing::Silent));
        *self.counts.entry(origin).or_default() += 1;
        victim
    }

    fn victim(&self, newcomer: Origin) -> Option<u64> {
        let own = match newcomer {
            Origin::Unix | Origin::Shared | Origin::Agents => self.limits.unix,
            Origin::Address(_) | Origin::User(_) => self.limits.per_address,
        };
        if self.count(newcomer) >= own {
            return self.first(|origin| origin == newcomer);
        }
        let local: usize = [Origin::Unix, Origin::Shared, Origin::Agents]
            .map(|door| self.count(door))
            .iter()
            .sum();
        if !newcomer.is_tcp() || self.strangers.len() - local < self.limits.total {
            return None;
        }
        let fullest = self.fullest();
        self.first(|origin| Some(origin) == fullest)
            .or_else(|| self.first(Origin::is_tcp))
    }

    fn first(&self, is_wanted: impl Fn(Origin) -> bool) -> Option<u64> {
        self.strangers
            .iter()
            .filter(|(_, (origin, standing))| is_wanted(*origin) && *standing != Standing::Speaks)
            .min_by_key(|(key, (_, standing))| (*standing, **key))
            .map(|(key, _)| *key)
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
        if let Some((_, standing)) = self.strangers.get_mut(&key) {
            *standing = now;
        }
    }

    /// It is in, or gone.
    pub fn leave(&mut self, key: u64) {
        if let Some((origin, _)) = self.strangers.remove(&key)
            && let Some(count) = self.counts.get_mut(&origin)
        {
            *count -= 1;
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

    fn fullest(&self) -> Option<Origin> {
        self.counts
            .iter()
            .filter(|(o, _)| o.is_tcp())
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
        for key in 0..3 {
            assert_eq!(b.enter(key, ip("10.0.0.1")), None);
        }
        b.speaks(0);
        assert_eq!(b.enter(3, ip("::ffff:10.0.0.1")), Some(1));
        assert_eq!(b.enter(4, ip("10.0.0.1")), Some(2));
        b.speaks(3);
        b.speaks(4);
        assert_eq!(
            b.enter(5, ip("10.0.0.1")),
            None,
            "all others are being decided: the newcomer comes in beside them"
        );
        assert_eq!(b.enter(6, ip("10.0.0.1")), Some(5));
        assert_eq!(b.len(), 4);
    }

    /// The bug: one user's reconnects over loopback closed the sockets of another who was about to say who he is.
    #[test]
    fn a_users_flood_over_loopback_makes_room_among_its_own() {
        let mut budget = budget();
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let (honest, other) = (Origin::of(ip, Some(1000)), Origin::of(ip, Some(65_534)));
        assert_ne!(honest, other);
        assert_eq!(budget.enter(1, honest), None);
        let closed: Vec<u64> = (2..200)
            .filter_map(|key| budget.enter(key, other))
            .collect();
        assert!(!closed.is_empty() && !closed.contains(&1), "{closed:?}");
        // Elsewhere an address is all that is known.
        let far: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(Origin::of(far, Some(1)), Origin::of(far, None));
    }

    #[test]
    fn who_was_refused_makes_room_before_who_is_silent() {
        let mut b = budget();
        for key in 0..3 {
            b.enter(key, ip("10.0.0.1"));
        }
        b.speaks(1);
        b.speaks(2);
        b.refused(2);
        assert_eq!(b.enter(3, ip("10.0.0.1")), Some(2));
        assert_eq!(b.enter(4, ip("10.0.0.1")), Some(0));
        b.refused(1);
        assert_eq!(
            b.enter(5, ip("10.0.0.1")),
            Some(1),
            "not protected any more"
        );
    }

    /// The bug: only the fullest address was searched, and where all of its sockets spoke the newcomer went.
    #[test]
    fn over_the_total_any_silent_socket_makes_room_where_the_fullest_address_has_none() {
        let mut b = budget();
        b.enter(0, Origin::Unix);
        for key in 1..4 {
            b.enter(key, ip("10.0.0.1"));
            b.speaks(key);
        }
        b.enter(4, ip("10.0.0.2"));
        b.enter(5, ip("10.0.0.3"));
        assert_eq!(b.enter(6, ip("10.0.0.4")), Some(4));
        assert_eq!(b.enter(7, ip("10.0.0.4")), Some(5));
    }

    #[test]
    fn over_the_total_the_fullest_address_pays_and_not_the_honest_one() {
        let mut b = budget();
        for key in 0..3 {
            b.enter(key, ip("10.0.0.1"));
        }
        b.enter(3, ip("10.0.0.2"));
        b.enter(4, ip("10.0.0.3"));
        assert_eq!(b.enter(5, ip("10.0.0.4")), Some(0));
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
            b.enter(key, ip(spelled));
        }
        assert_eq!(b.enter(3, ip("::ffff:192.0.2.7")), Some(0));
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_unix_has_its_own_budget() {
        let mut b = budget();
        for key in 0..3 {
            b.enter(key, ip(&format!("2001:db8::{key}")));
        }
        assert_eq!(b.enter(3, ip("2001:db8::ffff")), Some(0));
        assert_eq!(b.enter(4, Origin::Unix), None);
        assert_eq!(b.enter(5, Origin::Unix), None);
        assert_eq!(b.enter(6, Origin::Unix), Some(4));
        // Nor do those who may dial the shared socket take anything from the other.
        for key in 7..9 {
            assert_eq!(b.enter(key, Origin::Shared), None);
        }
        assert_eq!(b.enter(9, Origin::Shared), Some(7));
        assert_eq!(b.enter(11, Origin::Agents), None, "and so have agents");
        assert_eq!(b.enter(10, ip("10.0.0.1")), None);
    }
}
