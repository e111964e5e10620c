//! The tamper-evident audit log: what one record says, and the bytes that say it.
//!
//! # Record
//! A record's *leaf* is **length-prefixed binary**, not JSON: each value has exactly one encoding (no number forms, no
//! escapes, no key order, no white space), it is checked without allocating, and its length is known before it is
//! parsed. All integers are big-endian:
//!
//! ```text
//! "portcullis-audit" (16) | version u8 = 2 | leaf length u32 | seq u64 | previous leaf hash (32)
//! | wall ms u64 | monotonic ms u64 | boot id (16) | kind u8 | body | tag (16)
//! string: u16 length, bytes       optional: u8 0, or u8 1 and the value       map: u16 count, (string, string)* by rising key
//! ```
//!
//! The *leaf hash* is SHA-256(0x00 ‖ leaf): RFC 6962 section 2.1, and the records are the leaves of the tree ([`tree`]) that
//! lies in tiles ([`Tile`]) beside the segments. The previous leaf hash inside chains the records; the text in front keeps these hashes
//! apart from all others. Sequence numbers begin at 1; the tree's leaf index is `seq - 1`. The tag says who wrote the record
//! ([`RecordKey`]); records of version 1 have none.
//!
//! # File
//! A segment is a header ([`SegmentHeader`], under its own hash) and then, for each record,
//! `leaf length u32 | leaf | leaf hash`. The length stands outside and inside the leaf: a bit flipped in either never
//! passes for a torn end. Records that become durable by one sync carry one stamp, and are no more than [`MAX_TORN`] bytes:
//! so the rest of a group that a power cut tore, whichever of its sectors arrived, is told from an altered log.
//!
//! # What the chain proves, and what not
//! Whoever holds a later head finds every flip, cut, swap and insertion before it. Without an outside head, the end of
//! the log cut off exactly between two records is not found: signed checkpoints are for that.
//!
//! Nothing here reads a clock, a file or a random source.

mod codec;
mod ended;
mod entry;
pub mod epoch;
pub mod export;
mod hash;
mod ledger;
pub mod note;
mod once;
mod owned;
mod query;
mod record;
pub mod retired;
mod scan;
mod segment;
pub mod syslog;
mod tag;
mod tile;
mod torn;
pub mod tree;
pub mod verify;

pub use ended::Ended;
pub use entry::{Entry, EntryError, Outcome, OutcomeResult, Proof, Sealed, escape};
pub use epoch::{Epoch, EpochKey, EpochMark, EpochSealer, KeyChain};
pub use hash::{BootId, Hash32, HexError, PublicKey, Seq, leaf_hash};
pub use ledger::{Ledger, OpenIntent, is_weighty};
pub use note::{Checkpoint, NoteError, Notes, SignedCheckpoint};
pub use once::{Once, OnceIndex, OnceKey};
pub use query::{OutcomeFilter, Query};
pub use record::{
    Body, BodyRef, EntryRef, LeafRef, OpenRef, OutcomeRef, ProofRef, Record, ResultRef, Stamp,
    decode_leaf, encode_record,
};
pub use scan::{Break, Scanner, Step};
pub use segment::{HEADER_BYTES, HeaderError, SegmentHeader};
pub use tag::{RecordKey, TAG};
pub use tile::{TILE_BYTES, TILE_WIDTH, Tile, TileEdge, TileNodes, tile_bytes, tile_hashes};

/// Largest leaf in bytes; every legal [`Entry`] fits.
pub const MAX_LEAF: usize = 64 * 1024;
/// Largest record in a file: length, leaf, hash.
pub const MAX_RECORD: usize = 4 + MAX_LEAF + 32;
/// A group is written when it holds so many bytes: what a power cut can leave half done is no more than [`MAX_TORN`].
pub const GROUP_BYTES: usize = 256 * 1024;
/// The most bytes of a group: its last record may begin just below [`GROUP_BYTES`].
pub const MAX_TORN: usize = GROUP_BYTES + MAX_RECORD;
/// The most open intents one mark lists; with more it lists none, and a reader goes further back.
pub const MAX_MARK_OPEN: usize = 4_096;

/// The newest record: its sequence (0: the log is empty) and leaf hash (zeros: the log is empty).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Head {
    /// Sequence of the newest record, 0 when there is none.
    pub seq: Seq,
    /// Its leaf hash, zeros when there is none.
    pub hash: Hash32,
}

impl Default for Head {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Head {
    /// The head of a log without records.
    pub const EMPTY: Self = Self {
        seq: Seq(0),
        hash: Hash32([0; 32]),
    };

    /// The sequence of the record to come.
    pub const fn next(self) -> Seq {
        Seq(self.seq.0.saturating_add(1))
    }
}

#[cfg(test)]
mod tests;
