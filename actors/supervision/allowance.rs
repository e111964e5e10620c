//! Bytes that many may hold at once: so many of one party, and so many of all together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One party's, or that of all.
#[derive(Debug)]
pub struct Allowance {
    most: u64,
    held: AtomicU64,
    all: Option<Arc<Self>>,
}

impl Allowance {
    /// That of all.
    pub fn of_all(most: u64) -> Arc<Self> {
        Arc::new(Self {
            most,
            held: AtomicU64::new(0),
            all: None,
        })
    }

    /// One party's: what it holds, all hold.
    pub fn of_one(all: &Arc<Self>, most: u64) -> Arc<Self> {
        Arc::new(Self {
            most,
            held: AtomicU64::new(0),
            all: Some(all.clone()),
        })
    }

    fn take(&self, bytes: u64) -> bool {
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= self.most);
        if self.held.fetch_update(Relaxed, Relaxed, more).is_err() {
            return false;
        }
        let fits = self.all.as_ref().is_none_or(|all| all.take(bytes));
        if !fits {
            self.held.fetch_sub(bytes, Relaxed);
        }
        fits
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Relaxed);
        if let Some(all) = &self.all {
            all.give_back(bytes);
        }
    }
}

/// What one holder has of it; given back when dropped.
#[derive(Debug)]
pub struct Taken {
    of: Arc<Allowance>,
    bytes: u64,
}

impl Taken {
    /// Nothing yet.
    pub const fn none(of: Arc<Allowance>) -> Self {
        Self { of, bytes: 0 }
    }

    /// So many in all; `false`: there are not so many, and what is held stays.
    #[must_use]
    pub fn grow(&mut self, to: u64) -> bool {
        let more = to.saturating_sub(self.bytes);
        let fits = self.of.take(more);
        if fits {
            self.bytes += more;
        }
        fits
    }

    /// Gives all of it back.
    pub fn clear(&mut self) {
        self.of.give_back(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_party_has_its_share_and_all_have_no_more_than_there_is() {
        let all = Allowance::of_all(10);
        let parties: Vec<_> = (0..3).map(|_| Allowance::of_one(&all, 6)).collect();
        let mut first = Taken::none(parties[0].clone());
        assert!(first.grow(4) && first.grow(6) && !first.grow(7));
        let mut beside = Taken::none(parties[0].clone());
        assert!(!beside.grow(1), "its own connections share it");
        let mut second = Taken::none(parties[1].clone());
        assert!(second.grow(4));
        let mut third = Taken::none(parties[2].clone());
        assert!(!third.grow(1), "all of it is held");
        drop(first);
        assert!(third.grow(6) && !second.grow(5));
        third.clear();
        assert!(second.grow(6) && beside.grow(4) && !beside.grow(5));
        drop((second, beside, third));
        let mut last = Taken::none(parties[0].clone());
        assert!(last.grow(6), "nothing is lost");
        assert!(!last.grow(u64::MAX));
    }
}
