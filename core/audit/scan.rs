//! Reading a segment record by record, telling a torn end from an altered file.

use super::hash::{Hash32, Seq, leaf_hash};
use super::record::{
    AT_BODY, AT_LEN, AT_PREV, AT_SEQ, AT_VERSION, DOMAIN, LeafRef, decode_leaf, is_version,
};
use super::{Head, MAX_LEAF, MAX_TORN, torn};

/// A shorter run of zeros at the end of a file may be part of a hash and is no sign of a torn write.
const MIN_ZEROS: usize = 8;

/// Checks the records of one segment in order. The caller feeds it bytes from the current offset on.
#[derive(Clone, Copy, Debug)]
pub struct Scanner {
    head: Head,
    offset: u64,
}

/// What lies at the current offset.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "looked at and dropped, never kept"
)]
pub enum Step<'a> {
    /// A whole, checked record of `bytes` bytes; the scanner stands behind it.
    Record {
        /// The record.
        leaf: LeafRef<'a>,
        /// Its leaf hash.
        hash: Hash32,
        /// Its size in the file.
        bytes: usize,
    },
    /// The buffer ends inside a record and the file goes on: call again with at least so many bytes.
    More(usize),
    /// The file ends here, between two records.
    End,
    /// The file ends inside a record, or from a point inside it on there are only zeros, or some sectors of the last
    /// group are zeros and the others are right: the mark of a write that was never acknowledged. Legal at the end of the
    /// last segment only.
    Torn(Break),
    /// Zeros to the end of the buffer, but the file goes on: [`Step::Torn`] if all the rest of the file is zeros too,
    /// else altered.
    ZerosSoFar(Break),
    /// The bytes are not what was written.
    Altered(Break),
}

/// Where the chain breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Break {
    /// The sequence that should stand there.
    pub seq: Seq,
    /// The byte offset of its record in the segment.
    pub offset: u64,
    /// What is wrong.
    pub why: &'static str,
}

impl Scanner {
    /// Stands at `offset`, where the record after `head` is expected.
    pub const fn new(head: Head, offset: u64) -> Self {
        Self { head, offset }
    }

    /// The last good record.
    pub const fn head(&self) -> Head {
        self.head
    }

    /// The offset behind the last good record.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Looks at the next record. `buf` holds the file from [`Self::offset`] on; `eof` says that it reaches the file's end.
    pub fn step<'a>(&mut self, buf: &'a [u8], eof: bool) -> Step<'a> {
        if buf.is_empty() {
            return if eof { Step::End } else { Step::More(4) };
        }
        let Some(framed) = buf.first_chunk::<4>() else {
            return if eof {
                self.ends_inside(buf, None)
            } else {
                Step::More(4)
            };
        };
        let len = usize::try_from(u32::from_be_bytes(*framed)).unwrap_or(usize::MAX);
        if !(AT_BODY..=MAX_LEAF).contains(&len) {
            return self.suspect(buf, eof, None, "the length of the record is impossible");
        }
        let bytes = 4 + len + 32;
        if buf.len() < bytes {
            return if eof {
                self.ends_inside(buf, Some(len))
            } else {
                Step::More(bytes)
            };
        }
        let leaf = &buf[4..4 + len];
        let hash = leaf_hash(leaf);
        if hash.0[..] != buf[4 + len..bytes] {
            return self.suspect(buf, eof, Some(len), "the record does not match its hash");
        }
        let view = match decode_leaf(leaf) {
            Ok(view) => view,
            Err(why) => return Step::Altered(self.here(why)),
        };
        if view.seq != self.head.next() {
            return Step::Altered(self.here("another record stands in its place"));
        }
        if view.prev != self.head.hash {
            return Step::Altered(self.here("the record does not follow the one before it"));
        }
        self.head = Head {
            seq: view.seq,
            hash,
        };
        self.offset += bytes as u64;
        Step::Record {
            leaf: view,
            hash,
            bytes,
        }
    }

    const fn here(&self, why: &'static str) -> Break {
        Break {
            seq: self.head.next(),
            offset: self.offset,
            why,
        }
    }

    /// The file ends inside a record: torn, if what is there is the front of the record that belongs there.
    fn ends_inside<'a>(&self, buf: &[u8], len: Option<usize>) -> Step<'a> {
        if self.front_fits(buf, len) {
            Step::Torn(self.here("the file ends inside this record"))
        } else {
            self.suspect(
                buf,
                true,
                len,
                "the file ends inside a record that does not belong there",
            )
        }
    }

    /// The record is wrong: torn if, from some point inside it to the end of the file, all is zero and what stands before
    /// that point is the front of the right record, or if it is the rest of one group that lost sectors; altered otherwise.
    fn suspect<'a>(
        &self,
        buf: &[u8],
        eof: bool,
        len: Option<usize>,
        why: &'static str,
    ) -> Step<'a> {
        if !eof && buf.len() < MAX_TORN {
            // Judged with the whole group in view only.
            return Step::More(MAX_TORN);
        }
        let zeros = buf.iter().rev().take_while(|byte| **byte == 0).count();
        let front = &buf[..buf.len() - zeros];
        if front.len() > MAX_TORN || (!eof && zeros < MIN_ZEROS) {
            return Step::Altered(self.here(why));
        }
        let bytes = len.map_or(buf.len(), |len| 4 + len + 32);
        let is_front = zeros >= MIN_ZEROS && front.len() < bytes && self.front_fits(front, len);
        let here = if is_front {
            self.here("from inside this record on the file is zeros")
        } else if torn::is_group(self.head, self.offset, buf) {
            self.here("of this group some sectors did not reach the disk")
        } else {
            return Step::Altered(self.here(why));
        };
        if eof {
            Step::Torn(here)
        } else {
            Step::ZerosSoFar(here)
        }
    }

    /// Whether `front` can be the first bytes of the record that belongs here. The length is judged where `len` is given
    /// and enough of the leaf is there to hold its copy.
    fn front_fits(&self, front: &[u8], len: Option<usize>) -> bool {
        let Some(leaf) = front.get(4..) else {
            return true;
        };
        let Some(len) = len else {
            return leaf.is_empty();
        };
        let copy = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
        let seq = self.head.next().0.to_be_bytes();
        let agrees = |at: usize, wanted: &[u8]| {
            leaf.iter()
                .skip(at)
                .zip(wanted)
                .all(|(found, wanted)| found == wanted)
        };
        if !(agrees(0, DOMAIN)
            && leaf.get(AT_VERSION).is_none_or(|byte| is_version(*byte))
            && agrees(AT_LEN, &copy)
            && agrees(AT_SEQ, &seq)
            && agrees(AT_PREV, &self.head.hash.0))
        {
            return false;
        }
        // The leaf is whole: then it must be sound, and what there is of the hash must be its hash.
        leaf.split_at_checked(len).is_none_or(|(leaf, hash)| {
            decode_leaf(leaf).is_ok() && leaf_hash(leaf).0.starts_with(hash)
        })
    }
}
