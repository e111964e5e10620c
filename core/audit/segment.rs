//! The header of a segment file.

use super::Head;
use super::hash::{Hash32, Seq};
use sha2::{Digest, Sha256};

/// Size of a header: magic 8, version u32, first sequence u64, previous leaf hash 32, hash of all that 32.
pub const HEADER_BYTES: usize = 84;
const MAGIC: &[u8; 8] = b"PCAUDIT\n";
const VERSION: u32 = 1;
/// No leaf begins so (theirs is 0x00), no tree node either (0x01).
const DOMAIN: &[u8] = b"portcullis-audit-segment-v1\0";

/// What a segment says about its place in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The head that the segment's first record follows: that record has sequence `after.seq + 1`.
    pub after: Head,
}

/// Why bytes are no header of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer bytes than a header has.
    #[error("the segment header is cut short")]
    Short,
    /// Another kind of file.
    #[error("not an audit segment")]
    Magic,
    /// A format that this version does not read.
    #[error("the segment is of format version {0}")]
    Version(u32),
    /// The header's hash does not fit.
    #[error("the segment header does not match its hash")]
    Hash,
}

impl SegmentHeader {
    /// The first sequence of the segment.
    pub const fn first(&self) -> Seq {
        self.after.next()
    }

    /// The file's name: the first sequence in sixteen digits.
    pub fn file_name(&self) -> String {
        format!("{:016}.log", self.first().0)
    }

    /// The first sequence that a file name of ours states.
    pub fn first_of_name(name: &str) -> Option<Seq> {
        let digits = name
            .strip_suffix(".log")
            .filter(|digits| digits.len() == 16)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok().map(Seq))
            .flatten()
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_be_bytes());
        out[12..20].copy_from_slice(&self.first().0.to_be_bytes());
        out[20..52].copy_from_slice(&self.after.hash.0);
        let hash = header_hash(&out[..52]);
        out[52..].copy_from_slice(&hash);
        out
    }

    /// Reads the front of a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let bytes = bytes
            .first_chunk::<HEADER_BYTES>()
            .ok_or(HeaderError::Short)?;
        if &bytes[..8] != MAGIC {
            return Err(HeaderError::Magic);
        }
        let version = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let mut first = [0; 8];
        first.copy_from_slice(&bytes[12..20]);
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[20..52]);
        if header_hash(&bytes[..52])[..] != bytes[52..] {
            return Err(HeaderError::Hash);
        }
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let seq = u64::from_be_bytes(first)
            .checked_sub(1)
            .ok_or(HeaderError::Hash)?;
        Ok(Self {
            after: Head {
                seq: Seq(seq),
                hash: Hash32(hash),
            },
        })
    }
}

fn header_hash(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(bytes);
    hasher.finalize().into()
}
