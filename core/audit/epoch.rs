//! Epochs: each has its own Ed25519 key. The last record of an epoch, a `start` or a `carry`, names the next epoch's public
//! key under the signature of its own, which is then destroyed: no key that a machine still has signs for a closed epoch.

use super::Head;
use super::hash::Seq;
use super::note::{Checkpoint, SignedCheckpoint, origin};
use super::record::{BodyRef, LeafRef};
use super::tag::RecordKey;
use crate::identity::{Identity, IdentityError};
use crate::seal::{Key, NONCE};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use super::hash::{PublicKey, Signature};

/// What a mark's signature is over begins so: no checkpoint does.
const DOMAIN: &[u8] = b"portcullis-audit-epoch-v1\0";
const LABEL: &[u8] = b"portcullis/audit/epoch/v1";
const LABEL_REACHED: &[u8] = b"portcullis/audit/reached/v1";
const MAGIC: &[u8; 4] = b"PCEK";
const MAGIC_REACHED: &[u8; 4] = b"PCER";
const VERSION: u8 = 1;
const CHECK: usize = 8;

impl PublicKey {
    /// Whether this is that key's signature (RFC 8032, strict: no small-order key or point).
    pub fn has_signed(&self, text: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else {
            return false;
        };
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(text, &signature).is_ok())
    }
}

/// What the last record of an epoch says of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochMark {
    /// The number of the epoch that begins behind this record, from 1.
    pub epoch: u64,
    /// Its public key.
    pub key: PublicKey,
    /// Under the key of the epoch that ends here; the first epoch's under its own.
    pub signature: Signature,
}

impl EpochMark {
    /// What is signed, in the record that follows `head`.
    fn text(epoch: u64, key: &PublicKey, head: Head) -> Vec<u8> {
        let mut text = DOMAIN.to_vec();
        text.extend_from_slice(&epoch.to_be_bytes());
        text.extend_from_slice(&head.next().0.to_be_bytes());
        text.extend_from_slice(&head.hash.0);
        text.extend_from_slice(&key.0);
        text
    }

    /// Whether this key has signed it, for the record that follows `head`.
    pub fn is_by(&self, key: &PublicKey, head: Head) -> bool {
        key.has_signed(&Self::text(self.epoch, &self.key, head), &self.signature.0)
    }
}

/// The private key of an epoch. Wiped when dropped; cannot be printed.
pub struct EpochKey {
    signing: SigningKey,
    records: RecordKey,
}

impl EpochKey {
    /// Makes a key of 32 random bytes from the operating system.
    pub fn from_random(random: &Zeroizing<[u8; 32]>) -> Self {
        Self {
            signing: SigningKey::from_bytes(random),
            records: RecordKey::of(random),
        }
    }

    /// What tags the epoch's records.
    pub const fn records(&self) -> &RecordKey {
        &self.records
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.signing.verifying_key().to_bytes())
    }

    /// Hands over to the next epoch, in the record that follows `head`; the first epoch's key does it for itself.
    pub fn hand_over(&self, epoch: u64, key: PublicKey, head: Head) -> EpochMark {
        let text = EpochMark::text(epoch, &key, head);
        let signature = Signature(self.signing.sign(&text).to_bytes());
        EpochMark {
            epoch,
            key,
            signature,
        }
    }

    /// Signs what the log is.
    pub fn sign(&self, checkpoint: Checkpoint) -> SignedCheckpoint {
        let signature = self.signing.sign(checkpoint.text().as_bytes()).to_bytes();
        SignedCheckpoint::new(checkpoint, &self.public(), signature)
    }
}

/// Seals epoch keys under the machine's identity. Cannot be printed.
#[derive(Clone)]
pub struct EpochSealer {
    key: Key,
    check: [u8; CHECK],
}

impl EpochSealer {
    /// The one of this identity.
    pub fn new(identity: &Identity) -> Self {
        Self {
            key: identity.audit_epochs(),
            check: identity.check(),
        }
    }

    /// Seals what is said of an epoch.
    fn put(&self, what: What, epoch: u64, plain: &[u8], nonce: &[u8; NONCE]) -> Vec<u8> {
        let (magic, label) = what;
        let epoch = epoch.to_be_bytes();
        let aad: [&[u8]; 5] = [magic, &[VERSION], label, &self.check, &epoch];
        let sealed = self.key.seal(nonce, &aad, plain);
        [magic, &[VERSION][..], &self.check, &epoch, nonce, &sealed].concat()
    }

    fn take<const N: usize>(
        &self,
        what: What,
        epoch: u64,
        file: &[u8],
    ) -> Result<Zeroizing<[u8; N]>, IdentityError> {
        let (magic, label) = what;
        let cut = |bytes: &mut &[u8], n: usize| {
            let (front, rest) = bytes.split_at_checked(n).ok_or(IdentityError::Damaged)?;
            let front = front.to_vec();
            *bytes = rest;
            Ok(front)
        };
        let mut rest = file;
        let start = cut(&mut rest, magic.len() + 1)?;
        let check = cut(&mut rest, CHECK)?;
        let number = cut(&mut rest, 8)?;
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE>()
            .ok_or(IdentityError::Damaged)?;
        let epoch = epoch.to_be_bytes();
        if start[..magic.len()] != *magic || start[magic.len()] != VERSION || number != epoch {
            return Err(IdentityError::Damaged);
        }
        if check != self.check {
            return Err(IdentityError::Mismatch);
        }
        let aad: [&[u8]; 5] = [magic, &[VERSION], label, &self.check, &epoch];
        let plain = self
            .key
            .open(nonce, &aad, sealed)
            .ok_or(IdentityError::Damaged)?;
        let plain: [u8; N] = plain
            .expose()
            .try_into()
            .map_err(|_| IdentityError::Damaged)?;
        Ok(Zeroizing::new(plain))
    }

    /// For the file of the epoch's key.
    pub fn seal(&self, epoch: u64, key: &EpochKey, nonce: &[u8; NONCE]) -> Vec<u8> {
        let seed = Zeroizing::new(key.signing.to_bytes());
        self.put((MAGIC, LABEL), epoch, &*seed, nonce)
    }

    /// Opens the file of this epoch's key.
    ///
    /// # Errors
    /// Another identity's, another epoch's, or altered.
    pub fn open(&self, epoch: u64, file: &[u8]) -> Result<EpochKey, IdentityError> {
        let seed = self.take((MAGIC, LABEL), epoch, file)?;
        Ok(EpochKey::from_random(&seed))
    }

    /// For the file that says how many records the log has had in this epoch: what ends before them was cut.
    pub fn seal_reached(&self, epoch: u64, size: u64, nonce: &[u8; NONCE]) -> Vec<u8> {
        let what = (MAGIC_REACHED, LABEL_REACHED);
        self.put(what, epoch, &size.to_be_bytes(), nonce)
    }

    /// Opens what [`Self::seal_reached`] made.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_reached(&self, epoch: u64, file: &[u8]) -> Result<u64, IdentityError> {
        let size = self.take((MAGIC_REACHED, LABEL_REACHED), epoch, file)?;
        Ok(u64::from_be_bytes(*size))
    }
}

/// What a sealed file is: its first bytes, and the label of its use.
type What = (&'static [u8; 4], &'static [u8]);

/// An epoch of a log: sizes from just behind its mark up to the next mark are its key's to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// From 1.
    pub number: u64,
    /// The record that named its key.
    pub mark: Seq,
    /// Its public key.
    pub key: PublicKey,
}

/// The chain of epoch keys, as the records give it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyChain {
    first: Option<Epoch>,
    last: Option<Epoch>,
    /// The epoch before the last: its closing checkpoint covers the last's mark.
    before: Option<Epoch>,
}

impl KeyChain {
    /// The first epoch.
    pub const fn first(&self) -> Option<&Epoch> {
        self.first.as_ref()
    }

    /// The newest.
    pub const fn last(&self) -> Option<&Epoch> {
        self.last.as_ref()
    }

    /// The log's name.
    pub fn origin(&self) -> Option<String> {
        self.first.map(|first| origin(&first.key))
    }

    /// Whose checkpoint of this size it is, a size from the last mark on.
    pub fn signer(&self, size: u64) -> Option<&Epoch> {
        match &self.last {
            Some(last) if size > last.mark.0 => Some(last),
            Some(last) if size == last.mark.0 => self.before.as_ref().or(Some(last)),
            _ => None,
        }
    }

    /// Takes the next record in. `prev`: the head that it follows.
    ///
    /// # Errors
    /// Why its mark does not follow.
    pub fn observe(&mut self, leaf: &LeafRef<'_>, prev: Head) -> Result<(), &'static str> {
        let (BodyRef::Start { epoch: mark, .. } | BodyRef::Carry { epoch: mark, .. }) = &leaf.body
        else {
            return Ok(());
        };
        match (mark, self.last) {
            (None, None) => return Ok(()),
            (None, Some(_)) => return Err("the record names no next key"),
            (Some(mark), None) => {
                if mark.epoch != 1 || !mark.is_by(&mark.key, prev) {
                    return Err("the first key of the log is not signed by itself");
                }
            }
            (Some(mark), Some(last)) => {
                if mark.epoch != last.number.saturating_add(1) || !mark.is_by(&last.key, prev) {
                    return Err("the next key is not signed by the key of the epoch that it ends");
                }
            }
        }
        if let Some(mark) = mark {
            let epoch = Epoch {
                number: mark.epoch,
                mark: leaf.seq,
                key: mark.key,
            };
            self.before = self.last.replace(epoch);
            self.first.get_or_insert(epoch);
        }
        Ok(())
    }
}
