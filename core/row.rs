//! The tag of a row of the state database: whatever of it is altered, or put there without the machine's key, is seen.
//!
//! A row that was whole once, put back whole, has a right tag: that is for those to find who hold rows against the audit log.

use crate::seal::{Key, join};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

const DOMAIN: &[u8] = b"portcullis-row-v1";
const BYTES: usize = 16;

/// HMAC-SHA256, its first 16 bytes.
pub type Tag = [u8; BYTES];

/// What rows are tagged under: derived of the machine's identity key, which lies outside the state.
#[derive(Clone)]
pub struct RowKey(Key);

/// Where a row lies.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    table: &'static str,
    kind: &'a str,
    id: &'a str,
    number: i64,
    intent: i64,
}

impl<'a> Place<'a> {
    /// A row and its revision.
    pub const fn row(kind: &'a str, id: &'a str, rev: i64, intent: i64) -> Self {
        Self {
            table: "object",
            kind,
            id,
            number: rev,
            intent,
        }
    }

    /// An entry of a list and its sequence.
    pub const fn entry(kind: &'a str, id: &'a str, seq: i64, intent: i64) -> Self {
        Self {
            table: "list",
            kind,
            id,
            number: seq,
            intent,
        }
    }

    /// The one row of counters.
    pub const fn head(rev: i64, intent: i64) -> Self {
        Self {
            table: "head",
            kind: "",
            id: "",
            number: rev,
            intent,
        }
    }
}

impl RowKey {
    /// Of a machine.
    pub const fn new(key: Key) -> Self {
        Self(key)
    }

    /// Of nobody: the tag is a checksum then.
    pub fn none() -> Self {
        Self(Key::new([0; 32]))
    }

    /// Of these bytes at this place.
    pub fn tag(&self, place: &Place<'_>, payload: &[u8], labels: &str) -> Tag {
        let mut tag = [0; BYTES];
        let whole = self.mac(place, payload, labels).finalize().into_bytes();
        tag.copy_from_slice(&whole[..BYTES]);
        tag
    }

    /// Is this their tag? In constant time.
    pub fn fits(&self, place: &Place<'_>, payload: &[u8], labels: &str, tag: &[u8]) -> bool {
        tag.len() == BYTES
            && self
                .mac(place, payload, labels)
                .verify_truncated_left(tag)
                .is_ok()
    }

    fn mac(&self, place: &Place<'_>, payload: &[u8], labels: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose())
            .expect("invariant: HMAC takes a key of any length");
        let front = join(&[
            DOMAIN,
            place.table.as_bytes(),
            place.kind.as_bytes(),
            place.id.as_bytes(),
            &place.number.to_be_bytes(),
            &place.intent.to_be_bytes(),
            labels.as_bytes(),
        ]);
        // The payload is last, so that it need not be copied.
        mac.update(&front);
        mac.update(payload);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_of_one_key_one_place_and_these_bytes() {
        let (key, other) = (RowKey::new(Key::new([1; 32])), RowKey::none());
        let place = Place::row("pairing.device", "a", 3, 7);
        let tag = key.tag(&place, b"payload", "{}");
        assert!(key.fits(&place, b"payload", "{}", &tag));
        assert!(!other.fits(&place, b"payload", "{}", &tag));
        for elsewhere in [
            Place::row("pairing.device", "b", 3, 7),
            Place::row("pairing.devicea", "", 3, 7),
            Place::row("pairing.device", "a", 4, 7),
            Place::row("pairing.device", "a", 3, 8),
            Place::entry("pairing.device", "a", 3, 7),
        ] {
            assert!(
                !key.fits(&elsewhere, b"payload", "{}", &tag),
                "{elsewhere:?}"
            );
        }
        assert!(!key.fits(&place, b"payloae", "{}", &tag));
        assert!(!key.fits(&place, b"{}payload", "", &tag));
        for n in 0..BYTES {
            let mut flipped = tag;
            flipped[n] ^= 1;
            assert!(!key.fits(&place, b"payload", "{}", &flipped));
            assert!(!key.fits(&place, b"payload", "{}", &tag[..n]));
        }
    }
}
