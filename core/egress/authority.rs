//! The key of a gateway's own authority, whose certificates only its boxes trust.
//!
//! It is derived from a key that the vault gives while it is open, and lies nowhere: sealed, there is none. Other names give another key, so
//! that no certificate of before holds for more than what is opened now.

use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};

use super::host::Name;
use crate::seal::Key;

/// HKDF's label of the key that the vault gives.
pub const AUTHORITY: &str = "portcullis-egress-authority-v1";
const SCALAR: &str = "portcullis-egress-authority-p256-v1";

/// ECDSA on P-256. Wiped when dropped; cannot be printed or written down.
pub struct AuthorityKey {
    key: SigningKey,
    public: Vec<u8>,
}

impl AuthorityKey {
    /// Of these names, and no others.
    pub fn derive<'a>(from: &Key, names: impl IntoIterator<Item = &'a Name>) -> Self {
        let mut context = Vec::new();
        for name in names {
            context.extend_from_slice(name.as_str().as_bytes());
            context.push(b'\n');
        }
        let mut tries = 0_u8;
        loop {
            let scalar = from.derive(&[tries], SCALAR, &context);
            // Of 2^32 derivations one gives no scalar of the curve.
            if let Ok(key) = SigningKey::from_slice(scalar.expose()) {
                let public = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
                return Self { key, public };
            }
            tries = tries.wrapping_add(1);
        }
    }

    /// The public key, an uncompressed point (SEC 1).
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// A signature over SHA-256 of this, in DER; the same for the same message (RFC 6979).
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: DerSignature = self.key.sign(message);
        signature.as_bytes().to_vec()
    }
}
