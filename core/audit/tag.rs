//! Who wrote a record: each carries a tag under a key that follows from its epoch's.
//!
//! The chain of hashes alone takes no key: behind the newest checkpoint anybody who can write the files could go on with
//! it, and the next start would sign what it finds. The tag is over the whole record, the hash of the one before it
//! included: so the tag of the last record vouches for all of the log. It is checked before anything is signed. The
//! record that names an epoch's key is the first that carries this key's tag: the key of the epoch that ends there may
//! be destroyed when the tag is looked at.
//!
//! Rejected: a tag beside the record, for a byte of it could be changed and no `verify` without the key would see it.

use super::record::LeafRef;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// Bytes of a tag: HMAC-SHA-256-128, cut as RFC 2104 section 5 allows.
pub const TAG: usize = 16;
const LABEL: &[u8] = b"portcullis/audit/record/v1";

/// The key that tags the records of an epoch: HKDF-SHA256 (RFC 5869) of the epoch's. Wiped when dropped; cannot be printed.
#[derive(Clone)]
pub struct RecordKey(Box<Zeroizing<[u8; 32]>>);

impl RecordKey {
    /// The one of an epoch key's seed.
    pub(super) fn of(seed: &[u8; 32]) -> Self {
        let mut key = Box::new(Zeroizing::new([0; 32]));
        let made = Hkdf::<Sha256>::new(None, seed).expand(LABEL, &mut **key);
        assert!(
            made.is_ok(),
            "invariant: HKDF-SHA256 gives up to 8,160 bytes"
        );
        Self(key)
    }

    fn mac(&self, text: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&**self.0).expect("invariant: HMAC takes any key");
        mac.update(text);
        mac
    }

    /// The tag of a leaf whose bytes before the tag are these.
    pub(super) fn tag(&self, leaf: &[u8]) -> [u8; TAG] {
        let mut tag = [0; TAG];
        tag.copy_from_slice(&self.mac(leaf).finalize().into_bytes()[..TAG]);
        tag
    }

    /// Whether this key has tagged the record; never one without a tag.
    pub fn has_tagged(&self, leaf: &LeafRef<'_>) -> bool {
        leaf.is_tagged
            && leaf
                .raw
                .split_last_chunk::<TAG>()
                .is_some_and(|(text, tag)| self.mac(text).verify_truncated_left(tag).is_ok())
    }
}
