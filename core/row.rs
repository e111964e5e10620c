//! The tag of a row of the state database: whatever of it is altered, or put there without the machine's key, is seen.
//!
//! A row that was whole once, put back whole, has a right tag: so all rows together have a sum, which nobody without the key
//! knows, and which the tag of the counters is over.

use crate::seal::{Key, join};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

const DOMAIN: &[u8] = b"portcullis-row-v1";
const BYTES: usize = 16;

/// HMAC-SHA256, its first 16 bytes.
pub type Tag = [u8; BYTES];

/// What a row adds to the sum of all, modulo 2^128. Nobody without the key can tell: else old rows could be chosen that add up
/// to the same (which a sum of known numbers allows).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight(u128);

impl Weight {
    /// Of no row.
    pub const fn none() -> Self {
        Self(0)
    }

    /// With a row more.
    #[must_use]
    pub const fn with(self, row: Self) -> Self {
        Self(self.0.wrapping_add(row.0))
    }

    /// With a row less.
    #[must_use]
    pub const fn without(self, row: Self) -> Self {
        Self(self.0.wrapping_sub(row.0))
    }
}

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

    /// The one row of counters. Its payload is the sum of all others.
    const fn head(rev: i64, intent: i64) -> Self {
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
        self.weigh(place, payload, labels).0
    }

    /// The tag, and what the row adds to the sum: the halves of one MAC.
    pub fn weigh(&self, place: &Place<'_>, payload: &[u8], labels: &str) -> (Tag, Weight) {
        let (mut tag, mut weight) = ([0; BYTES], [0; BYTES]);
        let whole = self.mac(place, payload, labels).finalize().into_bytes();
        tag.copy_from_slice(&whole[..BYTES]);
        weight.copy_from_slice(&whole[BYTES..]);
        (tag, Weight(u128::from_be_bytes(weight)))
    }

    /// Is this their tag? In constant time.
    pub fn fits(&self, place: &Place<'_>, payload: &[u8], labels: &str, tag: &[u8]) -> bool {
        tag.len() == BYTES
            && self
                .mac(place, payload, labels)
                .verify_truncated_left(tag)
                .is_ok()
    }

    /// Of the counters, over all rows.
    pub fn tag_head(&self, rev: i64, intent: i64, sum: Weight) -> Tag {
        self.tag(&Place::head(rev, intent), &sum.0.to_be_bytes(), "")
    }

    /// Is this the counters' tag, with these rows?
    pub fn fits_head(&self, rev: i64, intent: i64, sum: Weight, tag: &[u8]) -> bool {
        self.fits(&Place::head(rev, intent), &sum.0.to_be_bytes(), "", tag)
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
    #[test]
    fn the_sum_is_of_exactly_these_rows_in_any_order() {
        let key = RowKey::new(Key::new([1; 32]));
        let row = |id, rev| {
            key.weigh(&Place::row("approval.grant", id, rev, 7), b"", "{}")
                .1
        };
        let (a, b) = (row("a", 1), row("b", 2));
        let sum = Weight::default().with(a).with(b);
        assert_eq!(sum, Weight::default().with(b).with(a));
        assert_eq!(sum.without(a), Weight::default().with(b));
        let tag = key.tag_head(2, 7, sum);
        assert!(key.fits_head(2, 7, sum, &tag));
        // A row put back as it was, taken away, there twice.
        for other in [
            Weight::default().with(row("a", 0)).with(b),
            Weight::default().with(b),
            sum.with(a),
        ] {
            assert!(!key.fits_head(2, 7, other, &tag));
        }
        assert!(!key.fits_head(1, 7, sum, &tag) && !key.fits_head(2, 6, sum, &tag));
        // The half that is written down does not tell the other.
        assert_ne!(
            a.0.to_be_bytes(),
            key.tag(&Place::row("approval.grant", "a", 1, 7), b"", "{}")
        );
    }
}
