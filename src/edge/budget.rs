//! Who makes room when strangers fill a door's budget. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};

/// Where a stranger comes from: an address (v4-mapped ones folded, IPv6 by /64), or the Unix sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Over TCP.
    Address(IpAddr),
    /// Over a Unix socket: a budget of its own.
    Unix,
}

impl Origin {
    /// Of an address.
    pub fn of(ip: IpAddr) -> Self {
        Self::Address(match ip.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// The limits of `[gateway.limits]`.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of one address.
    pub per_address: usize,
    /// Of all addresses.
    pub total: usize,
    /// Of the Unix sockets.
    pub unix: usize,
}

/// Sockets that have not said who they are.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    /// By key, which grows: the first is the oldest.
    strangers: BTreeMap<u64, (Origin, bool)>,
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

    /// A newcomer. Returns who must make room for it: the oldest silent one, or the newcomer itself when all others
    /// have a whole `connect` under way.
    pub fn enter(&mut self, key: u64, origin: Origin) -> Option<u64> {
        self.strangers.insert(key, (origin, false));
        *self.counts.entry(origin).or_default() += 1;
        let full = match origin {
            Origin::Unix => self.count(Origin::Unix) > self.limits.unix,
            Origin::Address(_) => self.count(origin) > self.limits.per_address,
        };
        let from = if full {
            origin
        } else {
            let tcp = self.strangers.len() - self.count(Origin::Unix);
            if tcp <= self.limits.total {
                return None;
            }
            self.fullest()
        };
        let silent = |wanted: Option<Origin>| {
            self.strangers
                .iter()
                .find(|(k, (o, speaks))| **k != key && !speaks && wanted.is_none_or(|w| *o == w))
                .map(|(k, _)| *k)
        };
        let victim = silent(Some(from)).unwrap_or(key);
        self.leave(victim);
        Some(victim)
    }

    /// Its `connect` has arrived whole: it is not closed to make room any more.
    pub fn speaks(&mut self, key: u64) {
        if let Some((_, speaks)) = self.strangers.get_mut(&key) {
            *speaks = true;
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

    fn fullest(&self) -> Origin {
        self.counts
            .iter()
            .filter(|(o, _)| **o != Origin::Unix)
            .max_by_key(|(_, n)| **n)
            .map_or(Origin::Unix, |(o, _)| *o)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Origin {
        Origin::of(text.parse().unwrap())
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
            Some(5),
            "nobody is silent: the newcomer waits outside"
        );
        assert_eq!(b.len(), 3);
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
    }
}
