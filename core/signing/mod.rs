//! Signed requests: HTTP messages by RFC 9421 in one fixed profile, and the frames of a WebSocket connection.
//!
//! Everything is checked in one order: size, key, MAC, time, nonce or counter; only then is anything done. What has no
//! valid MAC reaches neither the clock's check nor the store of nonces.

pub mod frame;
pub mod http;
mod keys;
pub mod replay;

pub use keys::{KeyPlace, SIGNING_KEYS, SigningKey, open_key, seal_key};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// A signature's age either way, ms.
pub const SKEW_MS: u64 = 60_000;
/// How far ahead of our clock a request may have been signed, ms. It is done when its second has come, so that a life of the
/// gateway has done nothing that the next one could take for new.
pub const AHEAD_MS: u64 = 5_000;

/// HMAC-SHA256 (RFC 2104).
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    fed(key, parts).finalize().into_bytes().into()
}

/// Is this their MAC? In constant time.
pub fn mac_is(key: &[u8], parts: &[&[u8]], mac: &[u8]) -> bool {
    fed(key, parts).verify_slice(mac).is_ok()
}

fn fed(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut hmac =
        Hmac::<Sha256>::new_from_slice(key).expect("invariant: HMAC takes keys of any length");
    for part in parts {
        hmac.update(part);
    }
    hmac
}

#[cfg(test)]
mod tests;
