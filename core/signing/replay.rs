//! Nonces that were used, for as long as their requests could come again. Bounded for each key and in all; a full store
//! refuses and forgets none that lives.

use std::collections::HashMap;

use super::SKEW_MS;
use crate::time::Millis;

/// Nonces that one key may use within the window.
pub const PER_KEY: usize = 10_000;
/// Nonces of all keys within the window.
pub const IN_ALL: usize = 100_000;
/// A full store is looked through for what is over no more often than this, ms: it costs a look at all of it.
const AGAIN_MS: u64 = 1_000;

/// Why a request is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayRefusal {
    /// Made before this store began, or before what it has forgotten: nobody can tell whether it came already.
    Stale,
    /// Came already.
    Repeated,
    /// As many within the window as are kept, of this key or in all.
    Full,
}

#[derive(Default)]
struct Used {
    /// A nonce, and until when its request would be taken.
    nonces: HashMap<Box<str>, u64>,
    /// Signed no later than this: forgotten, or never known.
    floor: u64,
}

/// Of one life of the room: a new one begins with its start, and takes nothing that was made before.
pub struct Replay {
    started: u64,
    per_key: usize,
    in_all: usize,
    keys: HashMap<Box<str>, Used>,
    /// Nonces of all keys.
    kept: usize,
    swept: u64,
}

impl Replay {
    /// Empty, from now on, for so many nonces of one key and of all.
    pub fn new(now: Millis, per_key: usize, in_all: usize) -> Self {
        Self {
            started: now.0,
            per_key,
            in_all,
            keys: HashMap::new(),
            kept: 0,
            swept: now.0,
        }
    }

    /// Uses a nonce of a request whose MAC and time have been checked. `created` in Unix ms, a whole second.
    ///
    /// # Errors
    /// [`ReplayRefusal`]; then nothing may be done.
    pub fn spend(
        &mut self,
        now: Millis,
        key: &str,
        nonce: &str,
        created: u64,
    ) -> Result<(), ReplayRefusal> {
        // Its second began before we did: an earlier life may have done it.
        // And one whose second has not come could be done again by the next.
        if created < self.started || created > now.0 {
            return Err(ReplayRefusal::Stale);
        }
        if let Some(used) = self.keys.get_mut(key) {
            if created <= used.floor {
                return Err(ReplayRefusal::Stale);
            }
            if used.nonces.contains_key(nonce) {
                return Err(ReplayRefusal::Repeated);
            }
            if used.nonces.len() >= self.per_key {
                self.kept -= used.forget(now);
                if used.nonces.len() >= self.per_key {
                    return Err(ReplayRefusal::Full);
                }
            }
        }
        if self.kept >= self.in_all {
            if now.0.abs_diff(self.swept) >= AGAIN_MS {
                self.sweep(now);
            }
            if self.kept >= self.in_all {
                return Err(ReplayRefusal::Full);
            }
            if created < self.started {
                return Err(ReplayRefusal::Stale);
            }
        }
        let used = match self.keys.get_mut(key) {
            Some(used) => used,
            None => self.keys.entry(key.into()).or_default(),
        };
        if created <= used.floor {
            return Err(ReplayRefusal::Stale);
        }
        used.nonces.insert(nonce.into(), created + SKEW_MS);
        self.kept += 1;
        Ok(())
    }

    /// Forgets what could not be taken again anyway, and keys that have nothing left.
    pub fn sweep(&mut self, now: Millis) {
        self.swept = now.0;
        for used in self.keys.values_mut() {
            self.kept -= used.forget(now);
        }
        let started = &mut self.started;
        self.keys.retain(|_, used| {
            let stays = !used.nonces.is_empty() || used.floor + 2 * SKEW_MS >= now.0;
            if !stays {
                // Its floor becomes everybody's: two minutes behind, it refuses nothing but what a clock set back revives.
                *started = (*started).max(used.floor + 1);
            }
            stays
        });
    }

    /// Nonces that are kept.
    pub const fn len(&self) -> usize {
        self.kept
    }

    /// None?
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Used {
    /// How many were forgotten. The floor keeps a clock that is set back from making room for them.
    fn forget(&mut self, now: Millis) -> usize {
        let before = self.nonces.len();
        let floor = &mut self.floor;
        self.nonces.retain(|_, until| {
            let lives = *until >= now.0;
            if !lives {
                *floor = (*floor).max(until.saturating_sub(SKEW_MS));
            }
            lives
        });
        before - self.nonces.len()
    }
}
