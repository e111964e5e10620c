//! What did not reach the log and shall stand in it as soon as it takes records again. It lies outside of the room, so that the
//! room's restarts do not lose it; a crash of the daemon does, and the next start says `unknown` of what is open then.

use std::time::Instant;

use portcullis_core::audit::{Outcome, Seq};

use super::error::AuditError;
use crate::supervision::Flag;

/// The most outcomes that are kept: more than the limits of runs and requests let be under way.
const MOST_OWED: usize = 4_096;

/// Shared by the room and who records in it.
#[derive(Debug, Default)]
pub struct Unwritten {
    /// Events that nothing waited for: counted.
    pub(super) dropped: Flag<Dropped>,
    /// Outcomes: an act is over, whether or not its end could be recorded.
    owed: Flag<Vec<Owed>>,
}

/// The end of an act that was refused its record.
#[derive(Debug, Clone)]
pub(super) struct Owed {
    pub(super) intent: Seq,
    pub(super) outcome: Outcome,
    /// When the act ended.
    pub(super) since: Instant,
}

/// Events that were only noted and did not reach the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    pub(super) count: u64,
    pub(super) first_ms: u64,
    pub(super) last_ms: u64,
    /// Of the last.
    pub(super) code: &'static str,
}

impl Dropped {
    /// One more.
    pub(super) fn add(&mut self, count: u64, now_ms: u64, code: &'static str) {
        if self.count == 0 {
            self.first_ms = now_ms;
        }
        self.count += count;
        self.last_ms = now_ms;
        self.code = code;
    }
}

impl Unwritten {
    /// Keeps an outcome whose record failed with `error`, if it may succeed later.
    pub(super) fn owe(&self, intent: Seq, outcome: &Outcome, error: &AuditError) {
        let is_final = matches!(error, AuditError::Invalid(_) | AuditError::NotOpen(_));
        if !is_final {
            self.keep(Owed {
                intent,
                outcome: outcome.clone(),
                since: Instant::now(),
            });
        }
    }

    pub(super) fn keep(&self, one: Owed) {
        let mut is_full = false;
        let intent = one.intent.0;
        self.owed.update(|owed| {
            is_full = owed.len() >= MOST_OWED;
            if !is_full {
                owed.push(one);
            }
        });
        if is_full {
            tracing::error!(
                intent,
                "too many outcomes could not be recorded: this one is given up, and the log will say `unknown` of it"
            );
        }
    }

    /// Whether there is one.
    pub(super) fn owes(&self) -> bool {
        !self.owed.get().is_empty()
    }

    /// All of them; who takes them records them, or gives them back.
    pub(super) fn take(&self) -> Vec<Owed> {
        let mut all = Vec::new();
        self.owed.update(|owed| all = std::mem::take(owed));
        all
    }
}
