//! Which runs a node host has begun: none is begun twice, however late it is asked for again. Pure.
//!
//! A gateway of ours numbers its runs, by the record of each one's intent in its log, and says in its hello how far it
//! is. So what has no place here any more is refused by its number. A gateway without numbers has the names alone.

use std::collections::{BTreeSet, VecDeque};

use thiserror::Error;

use crate::ids::Hash32;

/// Why a run is not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotBegun {
    /// Its name is known.
    #[error("this run was begun before")]
    Before,
    /// Its number is below what is remembered.
    #[error(
        "this run is older than the link, or than the runs that are remembered here: ask for a new one"
    )]
    Old,
    /// This gateway numbers its runs.
    #[error("this run has no number, and the runs of this gateway have one")]
    NoNumber,
}

/// See the module.
#[derive(Debug)]
pub struct Begun {
    most: usize,
    /// By name, cut: nobody finds two names with one beginning.
    known: BTreeSet<[u8; 16]>,
    /// Oldest first, with its number.
    order: VecDeque<([u8; 16], u64)>,
    /// None: this gateway has no numbers. Else what is not above it is refused.
    floor: Option<u64>,
}

impl Begun {
    /// Nothing was begun; so many names are remembered.
    pub const fn new(most: usize) -> Self {
        Self {
            most,
            known: BTreeSet::new(),
            order: VecDeque::new(),
            floor: None,
        }
    }

    /// A link is up, and its gateway's log is so far. What was begun before is not for this link: a question does not
    /// outlive its own. A smaller number than before is another log's.
    pub const fn linked(&mut self, log_at: Option<u64>) {
        self.floor = log_at;
    }

    /// May this run be begun? It is then.
    ///
    /// # Errors
    /// [`NotBegun`].
    pub fn begin(&mut self, run: &str, number: Option<u64>) -> Result<(), NotBegun> {
        match (self.floor, number) {
            (Some(_), None) => return Err(NotBegun::NoNumber),
            (Some(floor), Some(number)) if number <= floor => return Err(NotBegun::Old),
            _ => {}
        }
        let mut name = [0; 16];
        name.copy_from_slice(&Hash32::of(run.as_bytes()).0[..16]);
        if !self.known.insert(name) {
            return Err(NotBegun::Before);
        }
        self.order.push_back((name, number.unwrap_or(0)));
        if self.order.len() > self.most
            && let Some((name, number)) = self.order.pop_front()
        {
            self.known.remove(&name);
            self.floor = self.floor.map(|floor| floor.max(number));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bug: a run was forgotten after so many others, and its name opened the door again.
    #[test]
    fn a_run_that_is_forgotten_is_refused_by_its_number() {
        let mut begun = Begun::new(4);
        begun.linked(Some(100));
        assert_eq!(begun.begin("old", Some(100)), Err(NotBegun::Old));
        assert_eq!(begun.begin("none", None), Err(NotBegun::NoNumber));
        for n in 1..=20 {
            assert_eq!(begun.begin(&format!("r{n}"), Some(100 + n)), Ok(()));
        }
        for n in 1..=16 {
            let again = begun.begin(&format!("r{n}"), Some(100 + n));
            assert_eq!(again, Err(NotBegun::Old), "{n}");
        }
        for n in 17..=20 {
            let again = begun.begin(&format!("r{n}"), Some(100 + n));
            assert_eq!(again, Err(NotBegun::Before), "{n}");
        }
        // Two at once may come in the other order.
        assert_eq!(begun.begin("b", Some(130)), Ok(()));
        assert_eq!(begun.begin("a", Some(129)), Ok(()));
    }

    #[test]
    fn another_link_takes_nothing_of_before_and_another_log_begins_anew() {
        let mut begun = Begun::new(4);
        begun.linked(Some(100));
        assert_eq!(begun.begin("a", Some(101)), Ok(()));
        begun.linked(Some(150));
        assert_eq!(begun.begin("b", Some(140)), Err(NotBegun::Old));
        begun.linked(Some(3));
        assert_eq!(begun.begin("b", Some(4)), Ok(()));
        assert_eq!(begun.begin("a", Some(5)), Err(NotBegun::Before));
        // A gateway that has no numbers: names alone, as many as are kept.
        begun.linked(None);
        assert_eq!(begun.begin("c", None), Ok(()));
        assert_eq!(begun.begin("c", Some(9)), Err(NotBegun::Before));
    }

    proptest! {
        /// Whatever comes in whatever order: no name with its number is begun twice.
        #[test]
        fn no_numbered_run_is_begun_twice(runs in proptest::collection::vec(1_u64..40, 0..200), most in 1_usize..8) {
            let mut begun = Begun::new(most);
            begun.linked(Some(0));
            let mut ran = BTreeSet::new();
            for number in runs {
                if begun.begin(&number.to_string(), Some(number)).is_ok() {
                    prop_assert!(ran.insert(number));
                }
            }
            prop_assert!(begun.order.len() <= most && begun.known.len() == begun.order.len());
        }
    }
}
