//! Idempotency keys: what was begun under a key is not begun again.

use super::entry::OutcomeResult;
use super::hash::Seq;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};

/// Fingerprint of (principal, idempotency key), both as recorded. 128 bits: only the principal itself could look for a
/// collision, and would find it against itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OnceKey([u8; 16]);

impl OnceKey {
    /// The fingerprint; an absent principal is one of its own.
    pub fn of(principal: Option<&str>, key: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update([u8::from(principal.is_some())]);
        let principal = principal.unwrap_or_default();
        hasher.update((principal.len() as u64).to_be_bytes());
        hasher.update(principal);
        hasher.update(key);
        let digest: [u8; 32] = hasher.finalize().into();
        let mut out = [0; 16];
        out.copy_from_slice(&digest[..16]);
        Self(out)
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

#[derive(Clone, Debug)]
struct Slot {
    intent: Seq,
    outcome: Option<OutcomeResult>,
}

/// The keys of the last `keep_ms`, at most `limit` of them: beyond it the oldest goes.
#[derive(Clone, Debug)]
pub struct OnceIndex {
    slots: BTreeMap<OnceKey, Slot>,
    /// Oldest first; an entry whose slot has moved on to a newer intent is stale.
    order: VecDeque<(u64, Seq, OnceKey)>,
    open: BTreeMap<Seq, OnceKey>,
    keep_ms: u64,
    limit: usize,
}

impl OnceIndex {
    /// An empty index.
    pub const fn new(keep_ms: u64, limit: usize) -> Self {
        Self {
            slots: BTreeMap::new(),
            order: VecDeque::new(),
            open: BTreeMap::new(),
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
        self.slots.insert(
            key,
            Slot {
                intent,
                outcome: None,
            },
        );
        self.order.push_back((at_ms, intent, key));
        self.open.insert(intent, key);
        // Stale entries count too: that bounds the queue, not only the map.
        while self.order.len() > self.limit {
            self.drop_oldest();
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

    fn expire(&mut self, now_ms: u64) {
        while self
            .order
            .front()
            .is_some_and(|(at, ..)| at.saturating_add(self.keep_ms) < now_ms)
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((_, intent, key)) = self.order.pop_front() else {
            return;
        };
        self.open.remove(&intent);
        if self
            .slots
            .get(&key)
            .is_some_and(|slot| slot.intent == intent)
        {
            self.slots.remove(&key);
        }
    }
}
