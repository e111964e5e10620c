//! What the audit log says of the vault: which manifest must be found.
//!
//! Each record of a change names the manifest that it makes and the one that it follows; each opening names the one that
//! it found. So the newest such record is enough. Where its act ended well, its manifest must be there; where it was
//! refused or failed, the one before; where nobody knows (a crash between intent and outcome), either one, and the
//! opening that finds it settles which.

use super::VaultError;
use crate::audit::{Entry, OutcomeResult};
use crate::ids::Hash32;

/// Key in an entry's detail: the manifest that holds with this act.
const MANIFEST: &str = "manifest";
/// Key in an entry's detail: the manifest that held before it.
const OVER: &str = "over";
const NONE: &str = "none";
/// The act that throws a vault away.
const DISCARD: &str = "vault.init";
/// Changes as they were recorded before there were manifests.
const OLD: [&str; 3] = ["vault.create", "vault.set", "vault.remove"];

/// How an act ended, as far as the log knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was done; or nothing was to be done, and this is what was found.
    Done,
    /// It was not done.
    NotDone,
    /// Nobody knows.
    Unknown,
}

impl End {
    /// Of an intent; without an outcome nobody knows.
    pub const fn of(outcome: Option<&OutcomeResult>) -> Self {
        match outcome {
            Some(OutcomeResult::Ok) => Self::Done,
            Some(OutcomeResult::Refused { .. } | OutcomeResult::Failed { .. }) => Self::NotDone,
            Some(OutcomeResult::Unknown { .. }) | None => Self::Unknown,
        }
    }
}

/// The newest word of the log on the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It has none: there never was a vault.
    Never,
    /// A change from before there were manifests.
    Old(End),
    /// A person has thrown it away.
    Discarded,
    /// A change or an opening.
    Known {
        /// The manifest that it makes or finds.
        manifest: Hash32,
        /// What it follows: `None`, there was no manifest.
        over: Option<Hash32>,
        /// How it ended.
        end: End,
    },
}

/// What is to be done at an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is the right one.
    Right,
    /// There is no vault, and none was lost: make one.
    New,
    /// There is one from before there were manifests: make its manifest.
    Unlisted,
}

impl Entry {
    /// A change from one manifest to the next; `over` is `None` where there was none.
    #[must_use]
    pub fn vault_change(self, over: Option<Hash32>, manifest: Hash32) -> Self {
        let over = over.map_or_else(|| NONE.to_owned(), |over| over.to_string());
        self.with(OVER, over).with(MANIFEST, manifest.to_string())
    }

    /// The manifest that holds.
    #[must_use]
    pub fn vault_holds(self, manifest: Hash32) -> Self {
        self.with(MANIFEST, manifest.to_string())
    }
}

impl Mark {
    /// Of a record; `None`: it says nothing of the manifest, and the one before it counts. `outcome` is that of an intent,
    /// `is_event` where the record has none.
    pub fn read(entry: &Entry, outcome: Option<&OutcomeResult>, is_event: bool) -> Option<Self> {
        let end = if is_event {
            End::Done
        } else {
            End::of(outcome)
        };
        let hash = |key| {
            let text = entry.detail.get(key)?;
            Hash32::try_from(text.clone()).ok()
        };
        if entry.action == DISCARD {
            // Not done whole, what is left is what was there before.
            return (end == End::Done).then_some(Self::Discarded);
        }
        match hash(MANIFEST) {
            Some(manifest) => {
                // Without a change what holds is the same however the act ended.
                let is_change = entry.detail.contains_key(OVER);
                Some(Self::Known {
                    manifest,
                    over: hash(OVER),
                    end: if is_change { end } else { End::Done },
                })
            }
            None if OLD.contains(&entry.action.as_str()) => Some(Self::Old(end)),
            None => None,
        }
    }

    /// Is what was found what the log says? `header`: there is a header; `found`: the digest of the manifest, if there is one.
    ///
    /// # Errors
    /// [`VaultError::Missing`], [`VaultError::RolledBack`].
    pub fn judge(self, header: bool, found: Option<Hash32>) -> Result<Found, VaultError> {
        let unlisted = if header { Found::Unlisted } else { Found::New };
        match (self, found) {
            (Self::Never | Self::Discarded, None) if !header => Ok(Found::New),
            // A state without its log: whoever cut the log may have changed the state.
            (Self::Never | Self::Discarded | Self::Old(_), Some(_))
            | (Self::Never | Self::Discarded, None) => Err(VaultError::RolledBack),
            (Self::Old(End::Done), None) if !header => Err(VaultError::Missing),
            (Self::Old(_), None) => Ok(unlisted),
            (
                Self::Known {
                    manifest,
                    over,
                    end,
                },
                found,
            ) => {
                let is_new = found == Some(manifest);
                let is_old = found == over;
                let is_right = match end {
                    End::Done => is_new,
                    End::NotDone => is_old,
                    End::Unknown => is_new || is_old,
                };
                match found {
                    None if is_right => Ok(unlisted),
                    None => Err(VaultError::Missing),
                    Some(_) if is_right && header => Ok(Found::Right),
                    Some(_) => Err(VaultError::RolledBack),
                }
            }
        }
    }
}
