//! Whose the sockets are that have come in, and who gives one up where they are many. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis_actors::supervision::Allowance;
use portcullis_core::auth::limits::Source;
use portcullis_core::auth::{Principal, Proof};
use portcullis_core::ids::{AgentId, DeviceId};
use portcullis_core::protocol::limits::{UNDER_WAY, UNDER_WAY_OF_ONE};

use super::budget::Door;

/// Who holds a socket: as far as is proven, else where it comes from. Whoever has the shared token is anybody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// With its key.
    Device(DeviceId),
    /// With its token, from wherever.
    Agent(AgentId),
    /// A person of a password, or of a proxy.
    Person(String),
    /// A user of this machine, or a network (/24, /48).
    From(Source),
}

impl Place {
    /// Of who has come in from there.
    pub fn of(who: &Principal, from: &Source) -> Self {
        if let Some(device) = who.device() {
            return Self::Device(device.clone());
        }
        match (&who.agent, &who.proof) {
            (Some(agent), _) => Self::Agent(agent.clone()),
            (None, Proof::Password(_) | Proof::ProxyUser(_)) => Self::Person(who.name()),
            (None, _) => Self::From(from.network()),
        }
    }
}

#[derive(Debug)]
struct Held {
    /// By key, which grows: the last is the newest.
    sockets: BTreeSet<u64>,
    allowance: Arc<Allowance>,
}

/// All who have come in.
#[derive(Debug)]
pub struct Places {
    /// Of one door: a quarter of its sockets is kept for those who have not come in yet, or hold few.
    most: usize,
    held: BTreeMap<(Door, Place), Held>,
    all: Arc<Allowance>,
}

impl Places {
    /// Nobody is there. `sockets`: the most of one door.
    pub fn new(sockets: usize) -> Self {
        Self {
            most: sockets - sockets / 4,
            held: BTreeMap::new(),
            all: Allowance::of_all(UNDER_WAY),
        }
    }

    /// One more has come in. Returns what its messages hold room of, and which socket ends for it: the newest of whoever has
    /// most at that door, where those who are in have all that they may have together.
    pub fn enter(&mut self, key: u64, door: Door, place: &Place) -> (Arc<Allowance>, Option<u64>) {
        let all = &self.all;
        let own = self
            .held
            .entry((door, place.clone()))
            .or_insert_with(|| Held {
                sockets: BTreeSet::new(),
                allowance: Allowance::of_one(all, UNDER_WAY_OF_ONE),
            });
        own.sockets.insert(key);
        let (allowance, own) = (own.allowance.clone(), own.sockets.len());
        let of_door = || self.held.iter().filter(|((at, _), _)| *at == door);
        let is_over = of_door().map(|(_, held)| held.sockets.len()).sum::<usize>() > self.most;
        let victim = is_over.then(|| {
            let fullest = of_door().max_by_key(|(_, held)| held.sockets.len());
            fullest
                .filter(|(_, held)| held.sockets.len() > own)
                .and_then(|(_, held)| held.sockets.last().copied())
                .unwrap_or(key)
        });
        (allowance, victim)
    }

    /// One is gone.
    pub fn leave(&mut self, key: u64, door: Door, place: Place) {
        let at = (door, place);
        if let Some(held) = self.held.get_mut(&at) {
            held.sockets.remove(&key);
            if held.sockets.is_empty() {
                self.held.remove(&at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> Place {
        Place::From(Source::User(uid))
    }

    fn device(n: u8) -> Place {
        Place::Device(DeviceId::new(&format!("{n:064x}")).unwrap())
    }

    /// The bug: one user with the shared token held every socket, and paired devices got 503.
    #[test]
    fn who_fills_the_sockets_gives_them_up_to_who_has_fewer() {
        let mut places = Places::new(16);
        let enter = |places: &mut Places, key, place: &Place| places.enter(key, Door::Tcp, place).1;
        for key in 0..12 {
            assert_eq!(enter(&mut places, key, &user(11_111)), None, "{key}");
        }
        assert_eq!(enter(&mut places, 12, &user(11_111)), Some(12), "its own");
        places.leave(12, Door::Tcp, user(11_111));
        for (key, newest) in [(13, 11), (14, 10), (15, 9)] {
            let place = if key == 15 { user(1000) } else { device(1) };
            assert_eq!(enter(&mut places, key, &place), Some(newest));
            places.leave(newest, Door::Tcp, user(11_111));
        }
        // At another door others count, and who is gone counts no more.
        assert_eq!(places.enter(20, Door::Shared, &user(11_111)).1, None);
        for key in 0..9 {
            places.leave(key, Door::Tcp, user(11_111));
        }
        assert_eq!(enter(&mut places, 30, &user(11_111)), None);
    }

    #[test]
    fn of_two_who_hold_as_many_the_newcomer_ends() {
        let mut places = Places::new(8);
        for key in 0..6 {
            let place = device(u8::try_from(key % 2).unwrap());
            assert_eq!(places.enter(key, Door::Tcp, &place).1, None);
        }
        assert_eq!(places.enter(6, Door::Tcp, &device(1)).1, Some(6));
        places.leave(6, Door::Tcp, device(1));
        let victim = places.enter(7, Door::Tcp, &device(2)).1;
        assert!(matches!(victim, Some(4 | 5)), "{victim:?}");
    }
}
