//! `tail` and `query`: reading records back from the files.

use super::error::{AuditError, Fault};
use super::files;
use super::offline::Horizon;
use super::walk::{Buffer, Passing, Segment, SegmentEnd};
use portcullis_core::audit::{
    BodyRef, HEADER_BYTES, Head, Outcome, OutcomeFilter, Query, Record, Seq, decode_leaf, leaf_hash,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// A record that a query found, with the outcome of an intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The record.
    pub record: Record,
    /// How the act ended, where the record is an intent that has ended.
    pub outcome: Option<Ended>,
}

/// An outcome and the record that states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The outcome's own record.
    pub seq: Seq,
    /// The outcome.
    pub outcome: Outcome,
}

/// Where a record lies.
#[derive(Clone, Copy)]
struct At {
    offset: u64,
    bytes: usize,
}

/// An outcome record that was passed on the way.
#[derive(Clone, Copy)]
struct OutcomeAt {
    segment: Seq,
    at: At,
    end: OutcomeFilter,
}

/// Reading back from the newest segment, each must end with what the one behind it follows. A start has checked who wrote the
/// newest; so what is read of the others is what was written, though it was not read at the start.
struct Links(Option<Head>);

impl Links {
    fn to(horizon: Option<Horizon>) -> Self {
        Self(horizon.map(|horizon| horizon.head))
    }

    /// `segment` was read to this end.
    fn holds(&mut self, first: Seq, segment: &Segment, end: SegmentEnd) -> Result<(), AuditError> {
        let wanted = self.0.replace(segment.after());
        match end {
            SegmentEnd::Altered(fault) => Err(AuditError::Altered(fault)),
            SegmentEnd::Clean | SegmentEnd::Torn(..) | SegmentEnd::Stopped => match wanted {
                Some(wanted) if wanted != segment.head() => Err(AuditError::Altered(Fault {
                    seq: segment.head().next(),
                    segment: first,
                    offset: segment.offset(),
                    why: "the segment does not end with what the next one follows".to_owned(),
                })),
                _ => Ok(()),
            },
        }
    }
}

/// The newest matches, in rising order. Reads segments from the newest back and stops when it has enough; holds places
/// of records, not records, until the end.
///
/// # Errors
/// A file cannot be read, or is altered where the query looks.
pub fn query_dir(dir: &Path, query: &Query) -> Result<Vec<Found>, AuditError> {
    query_to(dir, query, None)
}

pub(super) fn query_to(
    dir: &Path,
    query: &Query,
    horizon: Option<Horizon>,
) -> Result<Vec<Found>, AuditError> {
    let query = query.clone().clean();
    let limit = query.limit();
    // Outcomes of intents in segments not yet looked at: as many as acts that were under way at a rotation.
    let mut later: BTreeMap<Seq, OutcomeAt> = BTreeMap::new();
    let mut found: VecDeque<Found> = VecDeque::new();
    let (mut buf, mut links) = (Buffer::new(), Links::to(horizon));
    for first in files::segments(dir)?.into_iter().rev() {
        if horizon.is_some_and(|horizon| first > horizon.segment) {
            continue;
        }
        if found.len() >= limit
            || query
                .since_seq
                .is_some_and(|since| is_past(dir, first, since))
        {
            break;
        }
        let limit_bytes = horizon
            .filter(|horizon| horizon.segment == first)
            .map(|horizon| horizon.len);
        let mut segment = Segment::open(dir, first, limit_bytes)?;
        let mut hits: BTreeMap<Seq, At> = BTreeMap::new();
        let end = segment.read(&mut buf, |passing| {
            let at = At {
                offset: passing.offset,
                bytes: passing.bytes,
            };
            if let BodyRef::Outcome { intent, outcome } = passing.leaf.body {
                let end = OutcomeFilter::of(&outcome.result);
                // Kept for intents that match, and for those of earlier segments.
                if intent < first || hits.contains_key(&intent) {
                    later.insert(
                        intent,
                        OutcomeAt {
                            segment: first,
                            at,
                            end,
                        },
                    );
                }
            } else if query.matches(&passing.leaf) {
                hits.insert(passing.leaf.seq, at);
            }
            ControlFlow::Continue(())
        })?;
        links.holds(first, &segment, end)?;
        for (seq, at) in hits.into_iter().rev() {
            let outcome = later.remove(&seq);
            if !query.ended_so(outcome.map(|outcome| outcome.end)) {
                continue;
            }
            if found.len() == limit {
                break;
            }
            let record = read_at(dir, first, at)?;
            let outcome = match outcome {
                Some(place) => ended(read_at(dir, place.segment, place.at)?),
                None => None,
            };
            found.push_front(Found { record, outcome });
        }
    }
    Ok(found.into())
}

fn ended(record: Record) -> Option<Ended> {
    match record.body {
        portcullis_core::audit::Body::Outcome { outcome, .. } => Some(Ended {
            seq: record.seq,
            outcome,
        }),
        _ => None,
    }
}

/// Whether every record from `first` on to the next segment is older than `since`: then the next one begins after it.
fn is_past(dir: &Path, first: Seq, since: Seq) -> bool {
    files::segments(dir).is_ok_and(|segments| {
        segments
            .iter()
            .find(|segment| **segment > first)
            .is_some_and(|next| *next <= since)
    })
}

fn read_at(dir: &Path, segment: Seq, at: At) -> Result<Record, AuditError> {
    let failed = |error: std::io::Error| AuditError::reading(&format!("segment {segment}"), &error);
    let file: File = files::read_segment(dir, segment).map_err(failed)?;
    let mut bytes = vec![0; at.bytes];
    file.read_exact_at(&mut bytes, at.offset).map_err(failed)?;
    let leaf = bytes
        .get(4..at.bytes.saturating_sub(32))
        .unwrap_or_default();
    let view = decode_leaf(leaf).map_err(|why| AuditError::Unreadable(why.to_owned()))?;
    Ok(view.to_record(leaf_hash(leaf)))
}

/// What each segment follows, as far as somebody has read back: each was read to its end, and ends with what the one behind it
/// follows; the newest with what its writer vouches for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Followed(BTreeMap<Seq, Head>);

impl Followed {
    /// Reads a segment to its end, which must be this.
    fn read(
        &mut self,
        dir: &Path,
        first: Seq,
        wanted: Head,
        horizon: Horizon,
        buf: &mut Buffer,
        mut visit: impl FnMut(Passing<'_>),
    ) -> Result<Head, AuditError> {
        let limit = (horizon.segment == first).then_some(horizon.len);
        let mut segment = Segment::open(dir, first, limit)?;
        let end = segment.read(buf, |passing| {
            visit(passing);
            ControlFlow::Continue(())
        })?;
        Links(Some(wanted)).holds(first, &segment, end)?;
        self.0.insert(first, segment.after());
        Ok(segment.after())
    }
}

/// The records from `from` on, in rising order. Nothing is given of a segment that was not read to its end and found to be what
/// the next one follows, up to the newest: what is handed on to somebody else cannot be taken back. The first call reads
/// all that lies behind `from`; what it found is in `followed`.
pub(super) fn records_to(
    dir: &Path,
    from: Seq,
    limit: usize,
    horizon: Horizon,
    followed: &mut Followed,
) -> Result<Vec<Record>, AuditError> {
    let (mut found, mut buf) = (Vec::new(), Buffer::new());
    let mut segments = files::segments(dir)?;
    segments.retain(|first| *first <= horizon.segment);
    followed.0.retain(|first, _| segments.contains(first));
    let begin = segments
        .partition_point(|first| *first <= from)
        .saturating_sub(1);
    let segments = segments.get(begin..).unwrap_or_default();
    let mut wanted = horizon.head;
    for first in segments.iter().skip(1).rev() {
        wanted = match followed.0.get(first) {
            Some(after) => *after,
            None => followed.read(dir, *first, wanted, horizon, &mut buf, |_| ())?,
        };
    }
    for (at, first) in segments.iter().enumerate() {
        let next = segments.get(at + 1).and_then(|next| followed.0.get(next));
        let wanted = next.copied().unwrap_or(horizon.head);
        followed.read(dir, *first, wanted, horizon, &mut buf, |passing| {
            if passing.leaf.seq >= from && found.len() < limit {
                found.push(passing.leaf.to_record(passing.hash));
            }
        })?;
        if found.len() == limit {
            break;
        }
    }
    Ok(found)
}

/// The last `n` records of the log, outcomes and marks among them, in rising order.
///
/// # Errors
/// A file cannot be read, or is altered in the segments that hold them.
pub fn tail_dir(dir: &Path, n: usize) -> Result<Vec<Record>, AuditError> {
    tail_to(dir, n, None)
}

pub(super) fn tail_to(
    dir: &Path,
    n: usize,
    horizon: Option<Horizon>,
) -> Result<Vec<Record>, AuditError> {
    let mut out: VecDeque<Record> = VecDeque::new();
    let (mut buf, mut links) = (Buffer::new(), Links::to(horizon));
    for first in files::segments(dir)?.into_iter().rev() {
        if horizon.is_some_and(|horizon| first > horizon.segment) {
            continue;
        }
        let missing = n - out.len();
        if missing == 0 {
            break;
        }
        let limit = horizon
            .filter(|horizon| horizon.segment == first)
            .map(|horizon| horizon.len);
        let mut segment = Segment::open(dir, first, limit)?;
        debug_assert!(segment.offset() == HEADER_BYTES as u64);
        let mut places: VecDeque<At> = VecDeque::new();
        let end = segment.read(&mut buf, |passing| {
            if places.len() == missing {
                places.pop_front();
            }
            places.push_back(At {
                offset: passing.offset,
                bytes: passing.bytes,
            });
            ControlFlow::Continue(())
        })?;
        links.holds(first, &segment, end)?;
        for at in places.into_iter().rev() {
            out.push_front(read_at(dir, first, at)?);
        }
    }
    Ok(out.into())
}
