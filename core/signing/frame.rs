//! Signed frames of one WebSocket connection. Each message is binary:
//!
//! ```text
//! MAC (32) | counter u64 | sender's time, Unix ms, u64 | the frame as it would go unsigned      (integers big-endian)
//! MAC = HMAC-SHA256(key of the direction, "portcullis-frame-v1" 0x00 | counter | time | frame)
//! key = HKDF-SHA256(token as presented, salt = server nonce "|" client nonce, info = label of the direction)
//! ```
//!
//! The counter is 1 for the first frame after the hello, in each direction, and one more for each next one.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{SKEW_MS, mac, mac_is};
use crate::encoding::from_base64url;
use crate::time::Millis;

/// The capability in `hello-ok.features.capabilities`, and what a client asks for it with in `connect`.
pub const CAPABILITY: &str = "frame-signing-v1";
/// Bytes before the frame.
pub const HEAD: usize = MAC + 8 + 8;
const MAC: usize = 32;
const DOMAIN: &[u8] = b"portcullis-frame-v1\0";

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The client.
    ToServer,
    /// The gateway.
    ToClient,
}

impl Direction {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::ToServer => b"portcullis-frames-v1 client to server",
            Self::ToClient => b"portcullis-frames-v1 server to client",
        }
    }
}

/// Why a frame ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameRefusal {
    /// Shorter than its head, or not binary.
    #[error("frame signing: this frame is not signed")]
    Unsigned,
    /// Not ours: changed, forged, of the other direction or of another connection.
    #[error("frame signing: wrong signature")]
    Mac,
    /// Too old, or from the future.
    #[error("frame signing: the sender's time is off by more than 60 s")]
    Time,
    /// Seen before.
    #[error("frame signing: counter repeated")]
    Repeated,
    /// Frames before it are missing.
    #[error("frame signing: counter gap")]
    Gap,
}

/// One direction's key and where its counter stands.
pub struct Direct {
    key: Zeroizing<[u8; 32]>,
    last: u64,
}

/// Both directions of a connection.
pub struct Keys {
    /// What the client sends.
    pub to_server: Direct,
    /// What the gateway sends.
    pub to_client: Direct,
}

/// A client's nonce is 32 random bytes in base64url.
pub fn is_nonce(text: &str) -> bool {
    from_base64url(text).is_some_and(|bytes| bytes.len() == 32)
}

impl Keys {
    /// Of the token that was presented in this connect, and both nonces of this connection.
    pub fn derive(token: &str, server_nonce: &str, client_nonce: &str) -> Self {
        let salt = format!("{server_nonce}|{client_nonce}");
        let hkdf = Hkdf::<Sha256>::new(Some(salt.as_bytes()), token.as_bytes());
        let key = |direction: Direction| {
            let mut key = Zeroizing::new([0; 32]);
            hkdf.expand(direction.label(), &mut *key)
                .expect("invariant: HKDF-SHA256 gives up to 8,160 bytes");
            Direct { key, last: 0 }
        };
        Self {
            to_server: key(Direction::ToServer),
            to_client: key(Direction::ToClient),
        }
    }
}

impl Direct {
    /// Signs the next frame.
    pub fn sign(&mut self, now: Millis, frame: &[u8]) -> Vec<u8> {
        self.last += 1;
        let mut head = [0; 16];
        head[..8].copy_from_slice(&self.last.to_be_bytes());
        head[8..].copy_from_slice(&now.0.to_be_bytes());
        let mac = mac(&*self.key, &[DOMAIN, &head, frame]);
        [&mac[..], &head, frame].concat()
    }

    /// Takes the next frame: its MAC, then its time, then its counter. After a refusal the connection ends.
    ///
    /// # Errors
    /// [`FrameRefusal`].
    pub fn open<'a>(&mut self, now: Millis, message: &'a [u8]) -> Result<&'a [u8], FrameRefusal> {
        let (mac, signed) = message
            .split_at_checked(MAC)
            .ok_or(FrameRefusal::Unsigned)?;
        let (head, frame) = signed
            .split_first_chunk::<16>()
            .ok_or(FrameRefusal::Unsigned)?;
        if !mac_is(&*self.key, &[DOMAIN, head, frame], mac) {
            return Err(FrameRefusal::Mac);
        }
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let (counter, time) = (number(&head[..8]), number(&head[8..]));
        if now.0.abs_diff(time) > SKEW_MS {
            return Err(FrameRefusal::Time);
        }
        if counter <= self.last {
            return Err(FrameRefusal::Repeated);
        }
        if counter - self.last > 1 {
            return Err(FrameRefusal::Gap);
        }
        self.last = counter;
        Ok(frame)
    }
}
