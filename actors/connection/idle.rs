//! What a client sends that is no request: pings, pongs, what is passed over, and messages that never come to their end.
//! Each costs little; without a budget they would cost it for ever.

use portcullis_core::protocol::limits::{FRAGMENT_PACE, IDLE_FRAMES, IDLE_FRAMES_PER_SECOND};
use tokio::time::Instant;

use super::scan::Unfinished;

/// So many frames that say nothing at once, and so many a second after that. Our own clients count a gateway's by it.
#[derive(Debug)]
pub struct IdleBudget {
    left: u32,
    filled: Instant,
}

impl Default for IdleBudget {
    /// Full.
    fn default() -> Self {
        Self {
            left: IDLE_FRAMES,
            filled: Instant::now(),
        }
    }
}

impl IdleBudget {
    /// One more.
    pub fn may(&mut self) -> bool {
        if self.left == 0 {
            let seconds = self.filled.elapsed().as_secs();
            let more = seconds.saturating_mul(u64::from(IDLE_FRAMES_PER_SECOND));
            if more == 0 {
                return false;
            }
            self.left = u32::try_from(more).unwrap_or(u32::MAX).min(IDLE_FRAMES);
            self.filled = Instant::now();
        }
        self.left -= 1;
        true
    }

    /// How many more there may be at once.
    pub const fn left(&self) -> u32 {
        self.left
    }
}

/// The budget of one connection.
#[derive(Debug, Default)]
pub(super) struct Idle {
    budget: IdleBudget,
    seen: Option<Unfinished>,
}

impl Idle {
    /// Full.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more frame that asks nothing.
    pub fn may(&mut self) -> bool {
        self.budget.may()
    }

    /// Asked at each ping: is it the same message as at the last one, with hardly more of it there?
    pub fn stands_still(&mut self, now: Option<Unfinished>) -> bool {
        let before = std::mem::replace(&mut self.seen, now);
        let (Some(before), Some(now)) = (before, now) else {
            return false;
        };
        before.message == now.message && now.passed.wrapping_sub(before.passed) < FRAGMENT_PACE
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_over_at_once_and_who_pings_now_and_then_stays() {
        let mut idle = Idle::new();
        let passed = (0..100_000).take_while(|_| idle.may()).count();
        assert_eq!(passed, IDLE_FRAMES as usize);
        let mut idle = Idle::new();
        for _ in 0..10_000 {
            assert!(idle.may());
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }

    #[test]
    fn a_message_that_comes_on_is_waited_for_and_one_that_stands_still_is_not() {
        let at = |message, passed| Some(Unfinished { message, passed });
        let mut idle = Idle::new();
        assert!(!idle.stands_still(None));
        assert!(!idle.stands_still(at(1, 10)));
        assert!(!idle.stands_still(at(1, 10 + FRAGMENT_PACE)));
        assert!(!idle.stands_still(at(2, 20 + FRAGMENT_PACE)));
        assert!(!idle.stands_still(None));
        assert!(!idle.stands_still(at(2, 30 + FRAGMENT_PACE)));
        assert!(idle.stands_still(at(2, 40 + FRAGMENT_PACE)));
    }
}
