//! What a power cut leaves of a group that was being written: of its sectors some arrived and some did not, in any order.
//!
//! A sector that did not arrive reads as zeros, for it lay behind the end of the file. So the end of a segment is torn,
//! and not altered, where every byte in a sector that is not all zeros is what belongs there, where lost sectors (or the
//! end of the file) account for all that is wrong, and where it is no more than one group: the records in it carry one
//! stamp, since a group is stamped once. Rejected: to call every hole torn, for then a sector gone bad in the middle of a
//! log would take all that was written after it along.

use super::hash::{BootId, Hash32, Seq, leaf_hash};
use super::record::{
    AT_BODY, AT_LEN, AT_PREV, AT_SEQ, AT_VERSION, DOMAIN, Stamp, decode_leaf, is_version,
};
use super::{Head, MAX_LEAF};

/// The unit in which a disk writes or does not.
const SECTOR: usize = 512;
/// A shorter run of zeros may be what was written there.
const MIN_ZEROS: usize = 8;
/// Offset of the two clocks and the boot id in a leaf.
const AT_STAMP: usize = AT_PREV + 32;

/// Whether `bytes`, which lie at `offset` of a segment, behind the record `head`, and reach to the end of the file or of
/// all that is not zero, can be what is left of one group.
pub(super) fn is_group(head: Head, offset: u64, bytes: &[u8]) -> bool {
    let tail = Tail::new(offset, bytes);
    let mut wanted = Wanted {
        seq: head.next(),
        is_exact: true,
        prev: Some(head.hash),
        stamp: None,
    };
    let (mut at, mut is_torn) = (0, false);
    while at < bytes.len() {
        match tail.look(at, &mut wanted) {
            Found::Whole(end) => at = end,
            Found::Torn(end) => (at, is_torn) = (end, true),
            Found::Wrong => return false,
        }
    }
    is_torn
}

/// What the next record must say.
struct Wanted {
    seq: Seq,
    /// This sequence, or else it or a later one.
    is_exact: bool,
    prev: Option<Hash32>,
    stamp: Option<(Stamp, BootId)>,
}

enum Found {
    /// A whole record, and where it ends.
    Whole(usize),
    /// A record with a hole in it, and where to look on.
    Torn(usize),
    /// Something that no cut leaves.
    Wrong,
}

struct Tail<'a> {
    bytes: &'a [u8],
    /// How many bytes of the first sector lie before these.
    skew: usize,
    /// By sector: it holds nothing but zeros.
    lost: Vec<bool>,
}

impl<'a> Tail<'a> {
    fn new(offset: u64, bytes: &'a [u8]) -> Self {
        let skew = usize::try_from(offset % SECTOR as u64).unwrap_or(0);
        let (first, rest) = bytes.split_at((SECTOR - skew).min(bytes.len()));
        let lost = std::iter::once(first)
            .chain(rest.chunks(SECTOR))
            .map(|sector| sector.iter().all(|byte| *byte == 0))
            .collect();
        Self { bytes, skew, lost }
    }

    /// Whether the byte is there and arrived.
    fn has(&self, at: usize) -> bool {
        at < self.bytes.len() && !self.lost[(self.skew + at) / SECTOR]
    }

    /// As many bytes as arrived whole.
    fn get<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let found = self.bytes.get(at..at + N)?.try_into().ok()?;
        (at..at + N).all(|at| self.has(at)).then_some(found)
    }

    /// Whether what arrived of these bytes is what should stand there.
    fn agrees(&self, at: usize, wanted: &[u8]) -> bool {
        let mut each = wanted.iter().enumerate();
        each.all(|(i, wanted)| !self.has(at + i) || self.bytes[at + i] == *wanted)
    }

    /// The leaf length of the record at `at`, from its frame or from its copy; `Err`: what arrived is no length.
    fn len(&self, at: usize) -> Result<Option<usize>, ()> {
        let frame = self.get::<4>(at);
        let Some(len) = frame.or_else(|| self.get::<4>(at + 4 + AT_LEN)) else {
            return Ok(None);
        };
        let agree = self.agrees(at, &len) && self.agrees(at + 4 + AT_LEN, &len);
        let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
        if agree && (AT_BODY..=MAX_LEAF).contains(&len) {
            Ok(Some(len))
        } else {
            Err(())
        }
    }

    /// Where the next record begins of which the front arrived.
    fn next_front(&self, from: usize) -> Option<usize> {
        let rest = self.bytes.get(from + 4..)?;
        let found = rest.windows(DOMAIN.len()).position(|text| text == DOMAIN)?;
        Some(from + found)
    }

    fn look(&self, at: usize, wanted: &mut Wanted) -> Found {
        let Ok(len) = self.len(at) else {
            return Found::Wrong;
        };
        let leaf = at + 4;
        let version = self.get::<1>(leaf + AT_VERSION);
        if !self.agrees(leaf, DOMAIN)
            || version.is_some_and(|[byte]| !is_version(byte))
            || !self.takes_stamp(leaf, wanted)
        {
            return Found::Wrong;
        }
        if let Some(seq) = self.get::<8>(leaf + AT_SEQ) {
            let seq = Seq(u64::from_be_bytes(seq));
            if seq < wanted.seq || (wanted.is_exact && seq != wanted.seq) {
                return Found::Wrong;
            }
            (wanted.seq, wanted.is_exact) = (seq, true);
        } else if wanted.is_exact && !self.agrees(leaf + AT_SEQ, &wanted.seq.0.to_be_bytes()) {
            return Found::Wrong;
        }
        if let Some(prev) = wanted.prev.take()
            && !self.agrees(leaf + AT_PREV, &prev.0)
        {
            return Found::Wrong;
        }
        wanted.seq = Seq(wanted.seq.0.saturating_add(1));
        let Some(len) = len else {
            wanted.is_exact = false;
            // Behind it is a record whose front arrived, or nothing that could be told.
            return Found::Torn(self.next_front(at + 1).unwrap_or(self.bytes.len()));
        };
        let end = leaf + len + 32;
        if end > self.bytes.len() {
            return Found::Torn(self.bytes.len());
        }
        if self.longest_loss(at, end) >= MIN_ZEROS {
            return Found::Torn(end);
        }
        // What is missing is the length and the first letters, or the last bytes of the hash: the rest tells.
        let mut whole = self.bytes[leaf..leaf + len].to_vec();
        let front = DOMAIN.len().min(MIN_ZEROS);
        whole[..front].copy_from_slice(&DOMAIN[..front]);
        let hash = leaf_hash(&whole);
        if !self.agrees(leaf + len, &hash.0) || decode_leaf(&whole).is_err() {
            return Found::Wrong;
        }
        wanted.prev = Some(hash);
        if (at..end).all(|at| self.has(at)) {
            Found::Whole(end)
        } else {
            Found::Torn(end)
        }
    }

    /// One group has one stamp.
    fn takes_stamp(&self, leaf: usize, wanted: &mut Wanted) -> bool {
        let (wall, mono) = (self.get(leaf + AT_STAMP), self.get(leaf + AT_STAMP + 8));
        let (Some(wall), Some(mono), Some(boot)) = (wall, mono, self.get(leaf + AT_STAMP + 16))
        else {
            return true;
        };
        let stamp = Stamp {
            wall_ms: u64::from_be_bytes(wall),
            mono_ms: u64::from_be_bytes(mono),
        };
        let found = (stamp, BootId(boot));
        *wanted.stamp.get_or_insert(found) == found
    }

    fn longest_loss(&self, from: usize, to: usize) -> usize {
        let (mut longest, mut now) = (0, 0);
        for at in from..to {
            now = if self.has(at) { 0 } else { now + 1 };
            longest = longest.max(now);
        }
        longest
    }
}
