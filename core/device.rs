//! Device identity: the key a client proves at connect, its id, and the signed text (wire compatibility: versions 3
//! and 2 of the peer's signed string).
//!
//! The algorithm follows from the key, never from a field of the request. Ed25519 by `verify_strict` (RFC 8032 with
//! small-order keys and points refused), P-256 as fixed 64-byte P1363 with low S only, so that a signature has no
//! second spelling. P-256 keys are read by p256 and signatures checked by AWS-LC, in a third of p256's time; for Ed25519
//! the two are equally fast, and ed25519-dalek alone refuses small-order points by itself.

use crate::encoding::{base64url, from_base64url, hex};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ed25519_dalek::pkcs8::DecodePublicKey as _;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Longest `publicKey` text accepted, in bytes.
pub const MAX_PUBLIC_KEY_CHARS: usize = 4096;
/// How far `signedAt` may lie from our clock, in milliseconds, on either side.
pub const SIGNATURE_WINDOW_MS: u64 = 120_000;
const MAX_SIGNATURE_CHARS: usize = 256;

/// A client's public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKey {
    /// Ed25519 (RFC 8032).
    Ed25519(ed25519_dalek::VerifyingKey),
    /// ECDSA over P-256 with SHA-256 (FIPS 186-5).
    P256(p256::ecdsa::VerifyingKey),
}

/// The text is no public key of a kind we accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("device public key invalid")]
pub struct KeyError;

impl DeviceKey {
    /// Reads a key from base64url or standard base64 of the raw bytes (32: Ed25519; 33 or 65 in SEC1 form: P-256), or
    /// from an SPKI PEM of either kind. At most [`MAX_PUBLIC_KEY_CHARS`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_PUBLIC_KEY_CHARS {
            return Err(KeyError);
        }
        if text.contains("-----BEGIN") {
            let text = text.trim();
            return ed25519_dalek::VerifyingKey::from_public_key_pem(text)
                .map_err(|_| KeyError)
                .and_then(Self::strong)
                .or_else(|_| p256::ecdsa::VerifyingKey::from_public_key_pem(text).map(Self::P256))
                .map_err(|_| KeyError);
        }
        Self::from_raw(&decode_base64(text).ok_or(KeyError)?)
    }

    /// Reads the raw form: 32 bytes are Ed25519, SEC1 compressed or uncompressed points are P-256.
    pub fn from_raw(raw: &[u8]) -> Result<Self, KeyError> {
        match raw {
            raw if raw.len() == 32 => {
                let bytes: &[u8; 32] = raw.try_into().map_err(|_| KeyError)?;
                ed25519_dalek::VerifyingKey::from_bytes(bytes)
                    .map_err(|_| KeyError)
                    .and_then(Self::strong)
            }
            // SEC1 also knows a hybrid form (tags 6 and 7) and the point at infinity: neither has a place here.
            [2 | 3, x @ ..] if x.len() == 32 => Self::sec1(raw),
            [4, xy @ ..] if xy.len() == 64 => Self::sec1(raw),
            _ => Err(KeyError),
        }
    }

    fn sec1(raw: &[u8]) -> Result<Self, KeyError> {
        p256::ecdsa::VerifyingKey::from_sec1_bytes(raw)
            .map(Self::P256)
            .map_err(|_| KeyError)
    }

    /// A small-order key verifies signatures nobody made; a non-canonical one would give a key two ids.
    fn strong(key: ed25519_dalek::VerifyingKey) -> Result<Self, KeyError> {
        if key.is_weak() || key.to_edwards().compress().as_bytes() != key.as_bytes() {
            return Err(KeyError);
        }
        Ok(Self::Ed25519(key))
    }

    /// The bytes whose SHA-256 is the id: 32 raw bytes, or the uncompressed SEC1 form (65 bytes).
    pub fn canonical_bytes(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.as_bytes().to_vec(),
            Self::P256(key) => key.to_sec1_point(false).as_bytes().to_vec(),
        }
    }

    /// Device id: 64 lower-case hex digits.
    pub fn id(&self) -> String {
        hex(&Sha256::digest(self.canonical_bytes()))
    }

    /// The one spelling we keep and show: base64url of [`Self::canonical_bytes`].
    pub fn to_text(&self) -> String {
        base64url(&self.canonical_bytes())
    }

    /// `ed25519` or `p256`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "ed25519",
            Self::P256(_) => "p256",
        }
    }

    /// True when `signature` (64 raw bytes) is this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            Self::P256(key) => {
                p256::ecdsa::Signature::from_slice(signature).is_ok_and(|signature| {
                    // (r, n-s) verifies as well: only the low one is a signature here.
                    signature.normalize_s() == signature
                        && UnparsedPublicKey::new(
                            &ECDSA_P256_SHA256_FIXED,
                            key.to_sec1_point(false).as_bytes(),
                        )
                        .verify(message, &signature.to_bytes())
                        .is_ok()
                })
            }
        }
    }
}

/// Either alphabet, padded or not, as the peer's decoder accepts; still no white space, no loose trailing bits.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    if text.len() > MAX_PUBLIC_KEY_CHARS {
        return None;
    }
    let engine = if text.contains(['-', '_']) {
        &URL
    } else {
        &STANDARD
    };
    engine.decode(text).ok()
}

/// Which signed text verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedVersion {
    /// With platform and device family.
    V3,
    /// Without them.
    V2,
}

/// Everything of a `connect` that the device signature covers, as it arrived (role after its default).
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// `device.id`.
    pub device_id: &'a str,
    /// `device.publicKey`.
    pub public_key: &'a str,
    /// `device.signature`, base64url of 64 bytes.
    pub signature: &'a str,
    /// `device.signedAt`, Unix ms.
    pub signed_at_ms: u64,
    /// `device.nonce`; empty when absent.
    pub nonce: &'a str,
    /// `client.id`.
    pub client_id: &'a str,
    /// `client.mode`.
    pub client_mode: &'a str,
    /// `role`, `operator` when absent.
    pub role: &'a str,
    /// `scopes` in the order sent.
    pub scopes: &'a [String],
    /// `auth.token ?? auth.deviceToken ?? auth.bootstrapToken ?? ""`: never the password.
    pub token: &'a str,
    /// `client.platform`; empty when absent.
    pub platform: &'a str,
    /// `client.deviceFamily`; empty when absent.
    pub device_family: &'a str,
}

/// A proven device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The key, canonical.
    pub key: DeviceKey,
    /// Its id (64 hex digits).
    pub id: String,
    /// The text that was signed.
    pub version: SignedVersion,
}

/// Why a device is not believed. `Display` is the text on the wire (`INVALID_REQUEST`, close 1008 with the same text).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DeviceAuthError {
    /// The id is not the hash of the key.
    #[error("device identity mismatch")]
    IdMismatch,
    /// `signedAt` is more than [`SIGNATURE_WINDOW_MS`] away from our clock.
    #[error("device signature expired")]
    Expired,
    /// No nonce.
    #[error("device nonce required")]
    NonceMissing,
    /// Not the nonce of this socket.
    #[error("device nonce mismatch")]
    NonceMismatch,
    /// Neither version's text verifies.
    #[error("device signature invalid")]
    SignatureInvalid,
    /// The key is of no kind we accept.
    #[error("device public key invalid")]
    PublicKeyInvalid,
}

impl DeviceAuthError {
    /// Every variant, for tables and tests.
    pub const ALL: [Self; 6] = [
        Self::IdMismatch,
        Self::Expired,
        Self::NonceMissing,
        Self::NonceMismatch,
        Self::SignatureInvalid,
        Self::PublicKeyInvalid,
    ];

    /// `error.details.code`.
    pub const fn code(self) -> &'static str {
        match self {
            Self::IdMismatch => "DEVICE_AUTH_DEVICE_ID_MISMATCH",
            Self::Expired => "DEVICE_AUTH_SIGNATURE_EXPIRED",
            Self::NonceMissing => "DEVICE_AUTH_NONCE_REQUIRED",
            Self::NonceMismatch => "DEVICE_AUTH_NONCE_MISMATCH",
            Self::SignatureInvalid => "DEVICE_AUTH_SIGNATURE_INVALID",
            Self::PublicKeyInvalid => "DEVICE_AUTH_PUBLIC_KEY_INVALID",
        }
    }

    /// `error.details.reason`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::IdMismatch => "device-id-mismatch",
            Self::Expired => "device-signature-stale",
            Self::NonceMissing => "device-nonce-missing",
            Self::NonceMismatch => "device-nonce-mismatch",
            Self::SignatureInvalid => "device-signature",
            Self::PublicKeyInvalid => "device-public-key",
        }
    }

    /// `error.details.next`: what the client's owner does.
    pub const fn next(self) -> &'static str {
        match self {
            Self::IdMismatch => "device.id is the SHA-256 of device.publicKey's raw bytes, in hex",
            Self::Expired => {
                "set this machine's clock, and sign anew for each connect: signedAt may be 120 s off"
            }
            Self::NonceMissing | Self::NonceMismatch => {
                "sign the nonce of the connect.challenge that this very socket sent"
            }
            Self::SignatureInvalid => {
                "sign the text of version 3 (or 2) with the key in device.publicKey, over what connect says"
            }
            Self::PublicKeyInvalid => {
                "device.publicKey is an Ed25519 or P-256 key, raw in base64url or as PEM"
            }
        }
    }
}

/// Checks a claim in the order of the wire: id, time, nonce, key, signature (version 3, then 2).
/// `socket_nonce` is the challenge of this very socket, `now_ms` our clock (Unix ms).
pub fn verify(
    claim: &Claim<'_>,
    socket_nonce: &str,
    now_ms: u64,
) -> Result<Verified, DeviceAuthError> {
    let key = DeviceKey::parse(claim.public_key);
    // A key we cannot use still has bytes: only a right id over wrong bytes is a key error, as with the peer.
    let id = match &key {
        Ok(key) => Some(key.id()),
        Err(_) => decode_base64(claim.public_key).map(|bytes| hex(&Sha256::digest(bytes))),
    };
    let id = id
        .filter(|id| id == claim.device_id)
        .ok_or(DeviceAuthError::IdMismatch)?;
    if now_ms.abs_diff(claim.signed_at_ms) > SIGNATURE_WINDOW_MS {
        return Err(DeviceAuthError::Expired);
    }
    if claim.nonce.trim().is_empty() {
        return Err(DeviceAuthError::NonceMissing);
    }
    // An empty challenge would be everybody's.
    if socket_nonce.is_empty() || claim.nonce != socket_nonce {
        return Err(DeviceAuthError::NonceMismatch);
    }
    let key = key.map_err(|_| DeviceAuthError::PublicKeyInvalid)?;
    let version = signed_version(&key, claim).ok_or(DeviceAuthError::SignatureInvalid)?;
    Ok(Verified { key, id, version })
}

fn signed_version(key: &DeviceKey, claim: &Claim<'_>) -> Option<SignedVersion> {
    if is_ambiguous(claim) || claim.signature.len() > MAX_SIGNATURE_CHARS {
        return None;
    }
    let signature = from_base64url(claim.signature.trim_end_matches('='))?;
    [SignedVersion::V3, SignedVersion::V2]
        .into_iter()
        .find(|version| key.verify(signed_text(claim, *version).as_bytes(), &signature))
}

/// The signed text has no escaping: a separator inside a field would let one signature speak for two requests.
/// The token may hold one, since the nonce after it is ours.
fn is_ambiguous(claim: &Claim<'_>) -> bool {
    [
        claim.client_id,
        claim.client_mode,
        claim.role,
        claim.nonce,
        claim.platform,
        claim.device_family,
    ]
    .iter()
    .any(|field| field.contains('|'))
        || claim.scopes.iter().any(|scope| scope.contains(['|', ',']))
}

/// The text that a device signs.
pub fn signed_text(claim: &Claim<'_>, version: SignedVersion) -> String {
    let Claim {
        device_id,
        client_id,
        client_mode,
        role,
        signed_at_ms,
        token,
        nonce,
        ..
    } = claim;
    let scopes = claim.scopes.join(",");
    match version {
        SignedVersion::V3 => format!(
            "v3|{device_id}|{client_id}|{client_mode}|{role}|{scopes}|{signed_at_ms}|{token}|{nonce}|{}|{}",
            normal_metadata(claim.platform),
            normal_metadata(claim.device_family)
        ),
        SignedVersion::V2 => {
            format!(
                "v2|{device_id}|{client_id}|{client_mode}|{role}|{scopes}|{signed_at_ms}|{token}|{nonce}"
            )
        }
    }
}

/// Platform and device family as signed and pinned: trimmed, ASCII letters lower-cased, nothing else touched.
pub fn normal_metadata(text: &str) -> String {
    // The clients trim in JavaScript, which also strips U+FEFF and keeps U+0085.
    text.trim_matches(|c: char| c == '\u{feff}' || (c.is_whitespace() && c != '\u{85}'))
        .to_ascii_lowercase()
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
