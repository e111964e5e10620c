//! Keys of signed requests: a secret of its own for each device and role, sealed under a key of the vault. It comes
//! from the operating system and from nothing that the database holds.

use std::fmt;

use zeroize::Zeroizing;

use crate::encoding::{base64url, from_base64url};
use crate::seal::{Key, NONCE, Secret};

/// The vault's label for the key that seals them.
pub const SIGNING_KEYS: &str = "portcullis/vault/request-signing/v1";
const DOMAIN: &[u8] = b"portcullis-signing-key-v1";

/// A key in the clear. Wiped when dropped; cannot be printed, compared or serialised.
#[derive(Clone)]
pub struct SigningKey(Zeroizing<[u8; 32]>);

impl SigningKey {
    /// Of 32 random bytes.
    pub fn from_random(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// For its one delivery to the device: base64url.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(base64url(&*self.0))
    }

    /// As the device holds it.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(from_base64url(text)?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }

    /// For a MAC.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// What a sealed key is bound to: it opens for this row and this owner, and for no other.
#[derive(Debug, Clone, Copy)]
pub struct KeyPlace<'a> {
    /// The key's id.
    pub key_id: &'a str,
    /// Its device.
    pub device: &'a str,
    /// In this role.
    pub role: &'a str,
    /// Under this generation of the device.
    pub generation: u64,
    /// With these scopes, as text.
    pub scopes: &'a str,
    /// Written under this audit intent.
    pub intent: u64,
}

impl KeyPlace<'_> {
    fn aad<'b>(&'b self, numbers: &'b [u8; 16]) -> [&'b [u8]; 6] {
        let Self {
            key_id,
            device,
            role,
            scopes,
            ..
        } = self;
        let texts = [key_id, device, role, scopes].map(|text| text.as_bytes());
        [DOMAIN, texts[0], texts[1], texts[2], texts[3], numbers]
    }

    fn numbers(&self) -> [u8; 16] {
        let mut numbers = [0; 16];
        numbers[..8].copy_from_slice(&self.generation.to_be_bytes());
        numbers[8..].copy_from_slice(&self.intent.to_be_bytes());
        numbers
    }
}

/// Seals a key for its row. `nonce` is fresh random.
pub fn seal_key(vault: &Key, place: &KeyPlace<'_>, nonce: [u8; NONCE], key: &SigningKey) -> String {
    let sealed = vault.seal(&nonce, &place.aad(&place.numbers()), key.expose());
    base64url(&[&nonce[..], &sealed].concat())
}

/// Opens it; `None` when the row is not the one that was sealed, or the vault not the one that sealed it.
pub fn open_key(vault: &Key, place: &KeyPlace<'_>, sealed: &str) -> Option<SigningKey> {
    let bytes = from_base64url(sealed)?;
    let (nonce, sealed) = bytes.split_at_checked(NONCE)?;
    let nonce: &[u8; NONCE] = nonce.try_into().ok()?;
    let opened: Secret = vault.open(nonce, &place.aad(&place.numbers()), sealed)?;
    Some(SigningKey(Zeroizing::new(opened.expose().try_into().ok()?)))
}
