//! Idempotency keys: what was begun under a key is not begun again.

use super::entry::OutcomeResult;
use super::hash::Seq;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Fingerprint of (principal, idempotency key), both as recorded. 128 bits: only the principal itself could look for a
/// collision, and would find it against itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OnceKey {
    /// Fingerprint of the principal: whose share it is.
    holder: u64,
    key: [u8; 16],
}

impl OnceKey {
    /// The fingerprint; an absent principal is one of its own.
    pub fn of(principal: Option<&str>, key: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update([u8::from(principal.is_some())]);
        let principal = principal.unwrap_or_default();
        hasher.update((principal.len() as u64).to_be_bytes());
        hasher.update(principal);
        let holder = hasher.clone().finalize();
        hasher.update(key);
        let digest: [u8; 32] = hasher.finalize().into();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        let of_holder = |all: u64, byte: &u8| all << 8 | u64::from(*byte);
        Self {
            holder: holder.iter().take(8).fold(0, of_holder),
            key,
        }
    }
}

/// The answer to "record this intent, unless its key is there already".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "once", rename_all = "snake_case")]
pub enum Once {
    /// Recorded now: act.
    New {
        /// The intent.
        seq: Seq,
    },
    /// The key was used before: do not act.
    Seen {
        /// The intent that has the key.
        seq: Seq,
        /// How it ended; `None`: it is still under way.
        outcome: Option<OutcomeResult>,
    },
}

impl Once {
    /// Whether it is known that nothing was done under the key.
    pub const fn was_refused(&self) -> bool {
        matches!(
            self,
            Self::Seen {
                outcome: Some(OutcomeResult::Refused { .. }),
                ..
            }
        )
    }
}

#[derive(Clone, Debug)]
struct Slot {
    intent: Seq,
    outcome: Option<OutcomeResult>,
}

/// The keys of the last `keep_ms`, at most `limit` of them. Beyond it the oldest of whoever has the most goes: who sends
/// many pushes out his own and nobody else's.
#[derive(Clone, Debug)]
pub struct OnceIndex {
    slots: BTreeMap<OnceKey, Slot>,
    /// Oldest first. An entry whose slot is gone, or has moved on to a newer intent, is stale.
    order: VecDeque<(u64, Seq, OnceKey)>,
    /// The same by holder.
    shares: BTreeMap<u64, VecDeque<(Seq, OnceKey)>>,
    /// Their lengths.
    sizes: BTreeSet<(usize, u64)>,
    open: BTreeMap<Seq, OnceKey>,
    begun: usize,
    keep_ms: u64,
    limit: usize,
}

impl OnceIndex {
    /// An empty index.
    pub const fn new(keep_ms: u64, limit: usize) -> Self {
        Self {
            slots: BTreeMap::new(),
            order: VecDeque::new(),
            shares: BTreeMap::new(),
            sizes: BTreeSet::new(),
            open: BTreeMap::new(),
            begun: 0,
            keep_ms,
            limit,
        }
    }

    /// The intent that has this key, if it is younger than `keep_ms` at `now_ms`.
    pub fn get(&mut self, key: &OnceKey, now_ms: u64) -> Option<Once> {
        self.expire(now_ms);
        self.slots.get(key).map(|slot| Once::Seen {
            seq: slot.intent,
            outcome: slot.outcome.clone(),
        })
    }

    /// An intent was recorded under the key.
    pub fn begin(&mut self, key: OnceKey, intent: Seq, at_ms: u64) {
        self.begun = self.begun.saturating_add(1);
        let slot = Slot {
            intent,
            outcome: None,
        };
        if let Some(before) = self.slots.insert(key, slot) {
            self.leave(&key, before.intent);
        }
        self.order.push_back((at_ms, intent, key));
        self.resize(key.holder, |share| share.push_back((intent, key)));
        self.open.insert(intent, key);
        while self.slots.len() > self.limit {
            let most = self.sizes.last().map(|(_, holder)| *holder);
            let share = most.and_then(|holder| self.shares.get(&holder));
            let Some((intent, key)) = share.and_then(|share| share.front().copied()) else {
                break;
            };
            self.drop_one(&key, intent);
        }
        // Stale entries count too: that bounds the queue, not only the map.
        if self.order.len() > 2 * self.limit.max(8) {
            let slots = &self.slots;
            self.order
                .retain(|(_, intent, key)| slots.get(key).is_some_and(|s| s.intent == *intent));
        }
    }

    /// The intent ended.
    pub fn end(&mut self, intent: Seq, result: impl FnOnce() -> OutcomeResult) {
        if let Some(key) = self.open.remove(&intent)
            && let Some(slot) = self.slots.get_mut(&key)
            && slot.intent == intent
        {
            slot.outcome = Some(result());
        }
    }

    /// How many keys are kept.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no key is kept.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many intents with a key it was told of, those that it forgot among them.
    pub const fn begun(&self) -> usize {
        self.begun
    }

    fn expire(&mut self, now_ms: u64) {
        while let Some((at, intent, key)) = self.order.front().copied() {
            if at.saturating_add(self.keep_ms) >= now_ms {
                return;
            }
            self.order.pop_front();
            self.drop_one(&key, intent);
        }
    }

    /// Forgets a key, unless it stands for a newer intent.
    fn drop_one(&mut self, key: &OnceKey, intent: Seq) {
        self.open.remove(&intent);
        if self
            .slots
            .get(key)
            .is_some_and(|slot| slot.intent == intent)
        {
            self.slots.remove(key);
            self.leave(key, intent);
        }
    }

    fn leave(&mut self, key: &OnceKey, intent: Seq) {
        self.resize(key.holder, |share| {
            // Nearly always the first.
            if let Some(at) = share.iter().position(|(seq, _)| *seq == intent) {
                share.remove(at);
            }
        });
    }

    fn resize(&mut self, holder: u64, change: impl FnOnce(&mut VecDeque<(Seq, OnceKey)>)) {
        let share = self.shares.entry(holder).or_default();
        self.sizes.remove(&(share.len(), holder));
        change(share);
        if share.is_empty() {
            self.shares.remove(&holder);
        } else {
            self.sizes.insert((share.len(), holder));
        }
    }
}
