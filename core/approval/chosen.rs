//! The ids that requesters chose. A person looks at one, and answers by it a while later: meanwhile it must not have
//! become the id of another command. So none is given twice, also long after its question is over and forgotten, and
//! none begins as another does, because people look at beginnings. A restart forgets those whose rows are gone: who
//! answers by the beginning of one is therefore always asked for the whole.

use super::{Machine, Record, Refusal};
use crate::ids::{ApprovalId, Hash32};
use crate::time::Millis;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;

/// The beginning that only one id has: in a UUID of version 7 all of its time is in it.
const BEGINNING: usize = 13;
/// For so long an id is not given again, ms. Longer than any question waits, and than anyone looks at one.
const KEEP_MS: u64 = 6 * 60 * 60 * 1000;
/// Ids that one requester may choose in that time.
pub(super) const PER_REQUESTER: usize = 4_096;
/// Ids of all: 24 bytes each.
const TOTAL: usize = 65_536;

impl Record {
    /// What it is called where who asked shall have no word: its id, or of one that a requester chose another of our own form
    /// that stands for it. The plan's hash in it is of a number that nobody chooses: no text is found that leads to a wanted one.
    pub fn notice_id(&self) -> ApprovalId {
        if self.id.as_str().starts_with(Machine::RESERVED) {
            return self.id.clone();
        }
        let (id, plan, created) = (&self.id, self.plan_hash, self.created.0);
        let text = format!("portcullis-notice-id-v1\0{id}\0{plan}\0{created}");
        let digest: String = Hash32::of(text.as_bytes()).to_string();
        let own = format!("{}{}", Machine::RESERVED, &digest[..32]);
        // Of letters and digits, and never too long.
        ApprovalId::new(&own).unwrap_or_else(|_| self.id.clone())
    }
}

/// What is remembered of an id.
#[derive(Debug, Clone, Copy)]
struct One {
    beginning: u64,
    requester: u64,
    at: Millis,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Chosen(VecDeque<One>);

impl Chosen {
    /// May this requester call a question so?
    ///
    /// # Errors
    /// [`Refusal::IdTaken`], [`Refusal::TooManyIds`].
    pub fn may(&self, id: &str, requester: &str, now: Millis) -> Result<(), Refusal> {
        // A clock that was set back keeps them longer.
        let kept = || self.0.iter().filter(|one| now.since(one.at) < KEEP_MS);
        let (beginning, requester) = (print(begin(id)), print(requester));
        if kept().any(|one| one.beginning == beginning) {
            return Err(Refusal::IdTaken);
        }
        let own = kept().filter(|one| one.requester == requester);
        if own.count() >= PER_REQUESTER || kept().count() >= TOTAL {
            return Err(Refusal::TooManyIds);
        }
        Ok(())
    }

    /// It is given.
    pub fn add(&mut self, id: &str, requester: &str, at: Millis) {
        let is_over = |one: &One| at.since(one.at) >= KEEP_MS;
        while self.0.len() >= TOTAL || self.0.front().is_some_and(is_over) {
            self.0.pop_front();
        }
        self.0.push_back(One {
            beginning: print(begin(id)),
            requester: print(requester),
            at,
        });
    }
}

fn begin(id: &str) -> &str {
    let end = id.char_indices().nth(BEGINNING);
    end.map_or(id, |(end, _)| &id[..end])
}

fn print(text: &str) -> u64 {
    let digest = Sha256::digest(text);
    digest
        .iter()
        .take(8)
        .fold(0, |all, byte| all << 8 | u64::from(*byte))
}
