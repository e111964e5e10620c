//! Reading the end of the log back at start.

use super::error::{AuditError, Fault};
use super::files;
use super::log::LogSpec;
use super::retire;
use super::tiles;
use super::walk::{Buffer, Segment, SegmentEnd};
use crate::plain;
use portcullis_core::audit::{
    BodyRef, HEADER_BYTES, Hash32, Head, Ledger, OnceIndex, PublicKey, SegmentHeader, Seq,
    decode_leaf,
};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

/// The log as found, its torn end cut off.
pub(super) struct Recovered {
    /// `None`: there is no segment yet, and [`clear`] makes the first.
    pub(super) file: Option<File>,
    pub(super) segment: SegmentHeader,
    pub(super) len: u64,
    pub(super) ledger: Ledger,
    /// What the first segment that was read follows, and the leaf hashes from there on.
    pub(super) base: Head,
    pub(super) leaves: Vec<Hash32>,
    /// The last record's leaf; empty: there is no record.
    pub(super) last: Vec<u8>,
    /// Where the end was cut and how many bytes went.
    pub(super) torn: Option<(u64, u64)>,
    /// This boot has written here before: the audit room alone was restarted.
    pub(super) same_boot: bool,
    pub(super) segments_read: usize,
    /// The keys of the whole time are in the ledger; else [`keys`] has them.
    pub(super) has_keys: bool,
    /// Up to here retention has removed the records.
    pub(super) gone_until: Seq,
}

impl Recovered {
    /// This record, which was made durable, must be there.
    pub(super) fn must_hold(&self, said: Head) -> Result<(), AuditError> {
        let at = said.seq.0.checked_sub(self.base.seq.0);
        let there = match at.and_then(|at| usize::try_from(at).ok()) {
            Some(0) => Some(self.base.hash),
            Some(at) => self.leaves.get(at - 1).copied(),
            None => None,
        };
        if there == Some(said.hash) {
            return Ok(());
        }
        let head = self.ledger.head.seq;
        Err(AuditError::Altered(Fault {
            seq: Seq(head.0.min(said.seq.0) + 1),
            segment: self.segment.first(),
            offset: self.len,
            why: format!(
                "the log had {} records while this gateway ran, and does not have the last of them now",
                said.seq
            ),
        }))
    }
}

/// Verifies the last segment, and as many before it as are needed to know the open intents; keys may lie further back,
/// and more is `verify`'s work. The caller holds the lock.
pub(super) fn recover(spec: &LogSpec) -> Result<Recovered, AuditError> {
    files::has_folder(&spec.dir.join("checkpoints"))?;
    tiles::check_folders(&spec.dir)?;
    let gone = retire::load(&spec.dir)?;
    let gone_until = retire::until(&gone).seq;
    if gone_until.0 > spec.keys.retired()? {
        return Err(AuditError::Altered(Fault {
            seq: gone_until,
            segment: Seq(0),
            offset: 0,
            why: "what says that the records up to this one are gone is not of this gateway's retention".into(),
        }));
    }
    let mut segments = files::segments(&spec.dir)?;
    segments.retain(|first| *first > gone_until);
    let Some(last) = segments.last() else {
        let header = SegmentHeader { after: Head::EMPTY };
        return Ok(Recovered {
            file: None,
            segment: header,
            len: HEADER_BYTES as u64,
            ledger: Ledger::new(Head::EMPTY, index(spec)),
            base: Head::EMPTY,
            leaves: Vec::new(),
            last: Vec::new(),
            torn: None,
            same_boot: false,
            segments_read: 0,
            has_keys: true,
            gone_until,
        });
    };
    // Locked before it is read: a second writer may have come another way.
    let file = files::open_segment(&spec.dir, *last).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => AuditError::Locked {
            pid: "(unknown)".into(),
        },
        _ => AuditError::reading("the last segment", &error),
    })?;
    let mut count = 1;
    let (tail, from) = loop {
        let from = segments.len() - count;
        let tail = read_tail(spec, &segments[from..])?;
        if tail.is_marked || from == 0 {
            check_link(spec, &segments[..from], tail.after)?;
            break (tail, from);
        }
        count = (count * 2).min(segments.len());
    };
    Ok(Recovered {
        file: Some(file),
        segment: tail.segment,
        len: tail.len,
        ledger: tail.ledger,
        base: tail.after,
        leaves: tail.leaves,
        last: tail.last,
        torn: tail.torn,
        same_boot: tail.same_boot,
        segments_read: count,
        has_keys: tail.has_keys || from == 0,
        gone_until,
    })
}

/// Cuts a torn end off, and removes what was begun or ended and not whole. After the log was found to be ours. The last
/// segment, which is made where there is none.
pub(super) fn clear(dir: &Path, dir_fd: &File, found: &mut Recovered) -> Result<File, AuditError> {
    let writing = |error: io::Error| AuditError::writing(&error);
    remove_unfinished(dir)?;
    retire::sweep(dir, found.gone_until).map_err(writing)?;
    let Some(file) = found.file.take() else {
        return files::create_segment(dir, dir_fd, found.segment).map_err(writing);
    };
    if found.torn.is_some() {
        let cut = file.set_len(found.len);
        cut.and_then(|()| file.sync_all()).map_err(writing)?;
    }
    Ok(file)
}

/// The idempotency keys of the whole time, verified on the way, where the last `count` segments do not hold them all; and the
/// record that they end with, which must be the caller's last. The caller holds the lock and has not written a key since [`recover`].
pub(super) fn keys(spec: &LogSpec, mut count: usize) -> Result<(OnceIndex, Head), AuditError> {
    let segments = files::segments(&spec.dir)?;
    loop {
        count = (count * 2).min(segments.len());
        let from = segments.len() - count;
        let tail = read_tail(spec, &segments[from..])?;
        if tail.has_keys || from == 0 {
            check_link(spec, &segments[..from], tail.after)?;
            return Ok((tail.ledger.once, tail.ledger.head));
        }
    }
}

fn index(spec: &LogSpec) -> OnceIndex {
    OnceIndex::new(spec.config.once_ms(), spec.config.once_keys)
}

struct Tail {
    /// What the first of these segments follows.
    after: Head,
    segment: SegmentHeader,
    len: u64,
    ledger: Ledger,
    leaves: Vec<Hash32>,
    last: Vec<u8>,
    torn: Option<(u64, u64)>,
    same_boot: bool,
    /// A mark says which intents were open.
    is_marked: bool,
    /// The keys of the whole time are here, or as many as are kept at all.
    has_keys: bool,
}

/// Reads these segments, which end the log.
fn read_tail(spec: &LogSpec, segments: &[Seq]) -> Result<Tail, AuditError> {
    let keep_from = spec
        .clock
        .stamp()
        .wall_ms
        .saturating_sub(spec.config.once_ms());
    let (mut buf, mut tail, mut marked, mut first_ms) = (Buffer::new(), None::<Tail>, false, None);
    for (index, first) in segments.iter().enumerate() {
        let mut segment = Segment::open(&spec.dir, *first, None)?;
        let mut now = match tail.take() {
            None => Tail {
                after: segment.after(),
                segment: SegmentHeader {
                    after: segment.after(),
                },
                len: 0,
                ledger: Ledger::new(segment.after(), self::index(spec)),
                leaves: Vec::new(),
                last: Vec::new(),
                torn: None,
                same_boot: false,
                is_marked: false,
                has_keys: false,
            },
            Some(tail) if tail.ledger.head == segment.after() => tail,
            Some(tail) => {
                return Err(AuditError::Altered(Fault {
                    seq: tail.ledger.head.next(),
                    segment: *first,
                    offset: 0,
                    why: "the segment does not follow the one before it".into(),
                }));
            }
        };
        let end = segment.read(&mut buf, |passing| {
            let head = Head {
                seq: passing.leaf.seq,
                hash: passing.hash,
            };
            now.ledger.observe(&passing.leaf, head);
            now.leaves.push(passing.hash);
            now.last.clear();
            now.last.extend_from_slice(passing.leaf.raw);
            marked |= Ledger::is_mark(&passing.leaf.body);
            now.same_boot |= passing.leaf.boot == spec.boot;
            first_ms.get_or_insert(passing.leaf.stamp.wall_ms);
            ControlFlow::Continue(())
        })?;
        match end {
            SegmentEnd::Clean | SegmentEnd::Stopped => {}
            SegmentEnd::Torn(fault, bytes) if index + 1 == segments.len() => {
                now.torn = Some((fault.offset, bytes));
            }
            SegmentEnd::Torn(fault, _) | SegmentEnd::Altered(fault) => {
                return Err(AuditError::Altered(fault));
            }
        }
        now.segment = SegmentHeader {
            after: segment.after(),
        };
        now.len = segment.offset();
        tail = Some(now);
    }
    let mut tail = tail.ok_or_else(|| AuditError::Unreadable("no segment".into()))?;
    tail.is_marked = marked;
    // Of whoever sent the most the oldest are forgotten first, so as many again are read for the others.
    tail.has_keys = tail.ledger.once.begun() >= spec.config.once_keys.saturating_mul(8)
        || first_ms.is_some_and(|ms| ms < keep_from);
    Ok(tail)
}

/// The segment before the ones that were read must end with the hash they follow.
fn check_link(spec: &LogSpec, before: &[Seq], after: Head) -> Result<(), AuditError> {
    let fault = |why: &str| {
        AuditError::Altered(Fault {
            seq: after.seq,
            segment: before.last().copied().unwrap_or(after.seq),
            offset: 0,
            why: why.to_owned(),
        })
    };
    let Some(before) = before.last() else {
        return if after == retire::until(&retire::load(&spec.dir)?) {
            Ok(())
        } else {
            Err(fault("the segments before this record are missing"))
        };
    };
    let mut hash = [0; 32];
    files::read_segment(&spec.dir, *before)
        .and_then(|mut file| {
            file.seek(SeekFrom::End(-32))?;
            file.read_exact(&mut hash)
        })
        .map_err(|error| AuditError::reading("the segment before the last", &error))?;
    if hash == after.hash.0 {
        Ok(())
    } else {
        Err(fault(
            "the segment does not end with the record that the next one follows",
        ))
    }
}

/// The first public key that the log names.
pub(super) fn first_key(dir: &Path) -> Result<Option<PublicKey>, AuditError> {
    let (mut buf, mut key) = (Buffer::new(), None);
    let mark_of = |body: &BodyRef<'_>| match body {
        BodyRef::Start { epoch, .. } | BodyRef::Carry { epoch, .. } => *epoch,
        _ => None,
    };
    let gone = retire::load(dir)?;
    let mut marks = gone.iter().flat_map(|gone| &gone.marks);
    if let Some(mark) = marks.find_map(|leaf| mark_of(&decode_leaf(leaf).ok()?.body)) {
        return Ok(Some(mark.key));
    }
    for first in files::segments(dir)? {
        Segment::open(dir, first, None)?.read(&mut buf, |passing| {
            if let Some(mark) = mark_of(&passing.leaf.body) {
                key = Some(mark.key);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        if key.is_some() {
            break;
        }
    }
    Ok(key)
}

/// What a crash during a rotation left.
fn remove_unfinished(dir: &Path) -> Result<(), AuditError> {
    let writing = |error: io::Error| AuditError::writing(&error);
    for entry in std::fs::read_dir(dir).map_err(writing)? {
        let path = entry.map_err(writing)?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            plain::remove(&path).map_err(writing)?;
        }
    }
    Ok(())
}
