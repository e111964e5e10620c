//! Time as an argument: core reads no clock.

use serde::{Deserialize, Serialize};

/// Wall clock, milliseconds since the Unix epoch.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// Later by so many milliseconds; stays at the end of time.
    #[must_use]
    pub const fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds since an earlier moment; 0 when it is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A moment by the clock of the machine's present start (`CLOCK_BOOTTIME`): it goes on while the machine sleeps, and nobody
/// sets it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootMoment {
    /// Which start of the machine.
    pub boot: String,
    /// Milliseconds since then.
    pub ms: u64,
}

impl BootMoment {
    /// Later by so many milliseconds.
    #[must_use]
    pub fn plus(&self, ms: u64) -> Self {
        Self {
            boot: self.boot.clone(),
            ms: self.ms.saturating_add(ms),
        }
    }

    /// How long until then, in the same start of the machine: 0 when it is over, none of another start.
    pub fn left(&self, now: &Self) -> Option<u64> {
        (self.boot == now.boot).then(|| self.ms.saturating_sub(now.ms))
    }
}
