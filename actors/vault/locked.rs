//! Keeps the root key out of swap (mlock(2)).

use portcullis_core::vault::VaultKeys;

/// While it lives the pages that hold these keys stay in memory.
pub(super) struct Locked {
    _guards: Vec<region::LockGuard>,
    is_whole: bool,
}

impl Locked {
    /// Of these keys, whose boxes do not move. What the system refuses (its limit on locked memory) is told and not fatal.
    pub fn of(keys: &VaultKeys) -> Self {
        let lock = |(place, bytes): (*const u8, usize)| match region::lock(place, bytes) {
            Ok(guard) => Some(guard),
            Err(error) => {
                tracing::warn!(target: "portcullis", %error, "the vault's keys may be written to swap");
                None
            }
        };
        let places = keys.places();
        let asked = places.len();
        let guards: Vec<_> = places.into_iter().filter_map(lock).collect();
        Self {
            is_whole: guards.len() == asked,
            _guards: guards,
        }
    }

    /// Of nothing.
    pub const fn none() -> Self {
        Self {
            _guards: vec![],
            is_whole: false,
        }
    }

    /// Was nothing refused?
    pub const fn is_whole(&self) -> bool {
        self.is_whole
    }
}
