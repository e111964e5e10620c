//! The kept form: version, nonce, then AES-256-GCM bound to the row's place and intent. A row from elsewhere, or a bit
//! of it changed, does not open; so nobody who can write the database can approve.

use std::fmt;

use crate::identity::Identity;
use crate::seal::{Key, NONCE, Secret};

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"portcullis-approval-row-v1";

/// Where a row lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The store's kind.
    pub kind: &'a str,
    /// The row's id.
    pub id: &'a str,
    /// The audit sequence it was written under.
    pub intent: u64,
}

/// Seals what is pending, granted and set, under a key that comes from the machine identity.
#[derive(Clone)]
pub struct PlanSealer(Key);

impl fmt::Debug for PlanSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlanSealer")
    }
}

impl PlanSealer {
    /// With the key that this machine's identity has for it.
    pub fn of(identity: &Identity) -> Self {
        Self(identity.approval_rows())
    }

    /// With a key of its own, used for nothing else.
    pub const fn new(key: Key) -> Self {
        Self(key)
    }

    /// Seals a row. `nonce` is fresh random.
    pub fn seal(&self, place: Place<'_>, nonce: &[u8; NONCE], plain: &[u8]) -> Vec<u8> {
        let intent = place.intent.to_be_bytes();
        let sealed = self.0.seal(
            nonce,
            &[DOMAIN, place.kind.as_bytes(), place.id.as_bytes(), &intent],
            plain,
        );
        [&[VERSION], &nonce[..], &sealed].concat()
    }

    /// Opens a row; `None` when it is not what was sealed for this place.
    pub fn open(&self, place: Place<'_>, row: &[u8]) -> Option<Secret> {
        let (head, sealed) = row.split_at_checked(1 + NONCE)?;
        let nonce: &[u8; NONCE] = head.get(1..)?.try_into().ok()?;
        if head[0] != VERSION {
            return None;
        }
        let intent = place.intent.to_be_bytes();
        self.0.open(
            nonce,
            &[DOMAIN, place.kind.as_bytes(), place.id.as_bytes(), &intent],
            sealed,
        )
    }
}
