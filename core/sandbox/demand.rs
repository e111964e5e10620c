//! How many boxes are kept ready for fresh sessions: by how many were asked for lately.

use std::collections::VecDeque;
use std::time::Duration;

/// What is asked for within this time is asked for at once: a box takes a good part of a second, and is made after another.
const BURST: Duration = Duration::from_secs(5);
/// So long after its burst a demand counts.
const MEMORY: Duration = Duration::from_mins(5);
/// No more of them are counted: a bound on memory, far above any number of boxes.
const MOST: usize = 1024;

/// The fresh boxes of one kind that were asked for. Times are those of one clock that does not go back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// Within the last burst.
    asked: VecDeque<Duration>,
    /// Bursts with their sizes, each smaller than the one before it.
    bursts: VecDeque<(Duration, usize)>,
}

impl Demand {
    /// One is asked for.
    pub fn ask(&mut self, now: Duration) {
        while (self.asked.front()).is_some_and(|at| now.saturating_sub(*at) >= BURST) {
            self.asked.pop_front();
        }
        if self.asked.len() < MOST {
            self.asked.push_back(now);
        }
        let size = self.asked.len();
        while self.bursts.back().is_some_and(|(_, other)| *other <= size) {
            self.bursts.pop_back();
        }
        self.bursts.push_back((now, size));
    }

    /// The largest burst that still counts.
    pub fn most(&self, now: Duration) -> usize {
        let counts = |at: Duration| now.saturating_sub(at) < MEMORY;
        let mut all = self.bursts.iter();
        all.find(|(at, _)| counts(*at)).map_or(0, |(_, size)| *size)
    }

    /// When the last was asked for, while it counts.
    pub fn last(&self, now: Duration) -> Option<Duration> {
        let last = self.bursts.back().map(|(at, _)| *at);
        last.filter(|at| now.saturating_sub(*at) < MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_counts_whole_and_is_forgotten() {
        let mut demand = Demand::default();
        assert_eq!((demand.most(at(0)), demand.last(at(0))), (0, None));
        for n in 0..8 {
            demand.ask(at(n * 100));
        }
        assert_eq!(demand.most(at(800)), 8);
        // One a minute is one at once, beside the burst.
        demand.ask(at(60_000));
        assert_eq!(demand.most(at(60_000)), 8);
        assert_eq!(demand.most(at(300_699)), 8);
        assert_eq!(demand.most(at(300_700)), 1);
        assert_eq!(demand.last(at(300_700)), Some(at(60_000)));
        assert_eq!(
            (demand.most(at(360_000)), demand.last(at(360_000))),
            (0, None)
        );
    }

    proptest! {
        /// What it says is what a look at every time would.
        #[test]
        fn it_is_the_largest_number_within_a_burst(gaps in proptest::collection::vec(0..90_000_u64, 1..40), later in 0..700_000_u64) {
            let mut demand = Demand::default();
            let (mut times, mut now) = (Vec::new(), 0);
            for gap in gaps {
                now += gap;
                demand.ask(at(now));
                times.push(now);
            }
            let now = now + later;
            let burst = |end: u64| times.iter().filter(|&&time| time <= end && end - time < 5000).count();
            // Of several at one moment the last has them all.
            let counted = times.iter().filter(|&&time| now - time < 300_000);
            prop_assert_eq!(demand.most(at(now)), counted.map(|&time| burst(time)).max().unwrap_or(0));
        }
    }
}
