//! Verifying a log without a daemon, and inside one.

use super::error::{AuditError, Fault};
use super::files;
use super::notes;
use super::retire;
use super::tiles::{Compare, read_front, read_full};
use super::walk::{Buffer, Segment, SegmentEnd};
use portcullis_core::audit::note::verifier_key;
use portcullis_core::audit::retired::{self, Gone, RETIRE, UNTIL};
use portcullis_core::audit::tree::{Nodes, root_of};
use portcullis_core::audit::verify::{Checker, Finding, Outside};
use portcullis_core::audit::{
    BodyRef, Hash32, Head, LeafRef, Seq, SignedCheckpoint, TileEdge, TileNodes, decode_leaf, tree,
};
use serde::Serialize;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;

/// What plain verifying cannot see.
const NO_OUTSIDE: &str = "no outside checkpoint: a cut tail cannot be excluded";

/// What a full reading of the log found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// No break was found.
    pub intact: bool,
    /// Records that were checked, up to the first break.
    pub records: u64,
    /// Records before these that retention has removed; their tree, keys and checkpoints were checked.
    pub retired: u64,
    /// Intents among them.
    pub intents: u64,
    /// Segments that were opened.
    pub segments: u64,
    /// Bytes that were checked.
    pub bytes: u64,
    /// The last good record.
    pub head: Head,
    /// The root of the tree over the records.
    pub root: Hash32,
    /// Checkpoints of the log's own that were checked.
    pub checkpoints: u64,
    /// Epochs: keys that have signed one after the other.
    pub epochs: u64,
    /// The first public key that the log names.
    pub first_key: Option<String>,
    /// The log ends with a stop mark.
    pub closed: bool,
    /// Records at the end that no checkpoint of the log's own covers: whoever can write the files can have made them.
    pub unsigned: u64,
    /// The newest epoch, where its checkpoints end in parts that never arrived: a power cut leaves that, and so does whoever
    /// wipes them.
    pub cut_checkpoints: Option<u64>,
    /// What this verifying could not see.
    pub notice: Option<&'static str>,
    /// Tiles of the tree that are gone, or that a crash has not let become whole: the next start makes them anew.
    pub missing_tiles: u64,
    /// The first break: everything from there on proves nothing.
    pub first_break: Option<Fault>,
    /// The log ends inside a record: what a crash leaves, never acknowledged. The next start cuts it off and says so.
    pub torn: Option<Fault>,
}

/// How far a running writer vouches for the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon {
    /// The newest durable record.
    pub head: Head,
    /// The segment that has it.
    pub segment: Seq,
    /// The durable bytes of that segment.
    pub len: u64,
}

/// Reads the whole log and checks every byte of it, its tiles and its checkpoints. Needs no daemon, no key and takes no
/// lock: beside a running daemon the end may look torn.
///
/// # Errors
/// The directory or a file cannot be read; what is wrong with their bytes is in the report.
pub fn verify_dir(dir: &Path) -> Result<VerifyReport, AuditError> {
    verify(dir, None, Outside::default())
}

/// As [`verify_dir`], and compares it with what somebody holds outside of the machine.
///
/// # Errors
/// As [`verify_dir`].
pub fn verify_dir_against(dir: &Path, outside: Outside) -> Result<VerifyReport, AuditError> {
    verify(dir, None, outside)
}

/// The checkpoints of the log's own, in order.
struct Ahead<'a> {
    dir: &'a Path,
    epochs: VecDeque<u64>,
    ready: VecDeque<(u64, SignedCheckpoint)>,
    /// What was passed over of the newest.
    cut: Option<u64>,
    /// Records under the newest one.
    covers: u64,
}

impl<'a> Ahead<'a> {
    fn new(dir: &'a Path) -> Result<Self, AuditError> {
        Ok(Self {
            dir,
            epochs: notes::epochs(dir)?.into(),
            ready: VecDeque::new(),
            cut: None,
            covers: 0,
        })
    }

    /// The size that the next one is over, and its epoch.
    fn next(&mut self) -> Result<Option<u64>, AuditError> {
        while self.ready.is_empty() {
            let Some(epoch) = self.epochs.pop_front() else {
                return Ok(None);
            };
            // Only the newest may end in one that was being written.
            let is_last = self.epochs.is_empty();
            let (notes, is_cut) = notes::read(self.dir, epoch, is_last)?;
            self.cut = is_cut.then_some(epoch);
            if let Some(last) = notes.last() {
                self.covers = last.checkpoint.size;
            }
            self.ready
                .extend(notes.into_iter().map(|note| (epoch, note)));
        }
        Ok(self.ready.front().map(|(_, note)| note.checkpoint.size))
    }

    /// Checks those that are over as many records as have passed.
    fn meet(&mut self, checker: &mut Checker) -> Result<Result<(), Finding>, AuditError> {
        let size = checker.edge().size();
        while let Some(next) = self.next()?.filter(|next| *next <= size) {
            let Some((epoch, note)) = self.ready.pop_front() else {
                break;
            };
            if next < size {
                let why = format!("a checkpoint over {next} records is not where one should be");
                return Ok(Err(Finding {
                    seq: Seq(next),
                    why,
                }));
            }
            if let Err(finding) = checker.note(epoch, &note) {
                return Ok(Err(finding));
            }
        }
        Ok(Ok(()))
    }
}

/// A reading under way.
struct Reading<'a> {
    report: VerifyReport,
    checker: Checker,
    ahead: Ahead<'a>,
    tiles: Compare,
    finding: Option<Finding>,
    /// The first record that says that what is gone was removed.
    said: Option<Seq>,
    failed: Option<AuditError>,
}

impl Reading<'_> {
    fn record(&mut self, leaf: &LeafRef<'_>, hash: Hash32) -> ControlFlow<()> {
        let tiles = &mut self.tiles;
        let met = self
            .checker
            .record(leaf, hash, |tile, hashes| tiles.full(tile, hashes))
            .map_or_else(
                |finding| Ok(Err(finding)),
                |()| self.ahead.meet(&mut self.checker),
            );
        match met {
            Ok(Ok(())) => {
                self.report.records += 1;
                self.report.intents += u64::from(matches!(leaf.body, BodyRef::Intent(_)));
                self.report.closed = matches!(leaf.body, BodyRef::Stop);
                if self.said.is_none() && says_gone(leaf, self.report.retired) {
                    self.said = Some(leaf.seq);
                }
                return ControlFlow::Continue(());
            }
            Ok(Err(finding)) => self.finding = Some(finding),
            Err(AuditError::Altered(fault)) => {
                self.finding = Some(Finding {
                    seq: fault.seq,
                    why: fault.why,
                });
            }
            Err(error) => self.failed = Some(error),
        }
        ControlFlow::Break(())
    }

    /// What stays of the records that are gone: their tree, the keys that they named, the checkpoints over them.
    fn gone(&mut self, gone: &[Gone], edge: &TileEdge) -> Result<Option<Finding>, AuditError> {
        let dir = self.ahead.dir;
        let mut nodes = TileNodes::new(edge, |tile| read_full(dir, tile));
        let until = retire::until(gone);
        let wrong = |seq: Seq, why: &str| {
            Ok(Some(Finding {
                seq,
                why: why.to_owned(),
            }))
        };
        if nodes.node(0, until.seq.0 - 1) != Some(until.hash) {
            return wrong(
                until.seq,
                "the tiles do not have the last record that is gone",
            );
        }
        for leaf in gone.iter().flat_map(|gone| &gone.marks) {
            let Ok(view) = decode_leaf(leaf) else {
                return wrong(until.seq, "a record that names a key cannot be read");
            };
            if let Some(found) = self.notes_up_to(view.seq.0 - 1, &mut nodes)? {
                return Ok(Some(found));
            }
            if nodes.node(0, view.seq.0 - 1) != Some(retired::hash_of(leaf)) {
                return wrong(
                    view.seq,
                    "the tiles do not have this record, which names a key",
                );
            }
            if let Err(found) = self.checker.gone_mark(&view) {
                return Ok(Some(found));
            }
            if let Some(found) = self.notes_up_to(view.seq.0, &mut nodes)? {
                return Ok(Some(found));
            }
        }
        self.notes_up_to(until.seq.0, &mut nodes)
    }

    fn notes_up_to(
        &mut self,
        most: u64,
        nodes: &mut impl Nodes,
    ) -> Result<Option<Finding>, AuditError> {
        let lost = |size: u64| Finding {
            seq: Seq(size),
            why: "the tiles do not give the tree of so many records".to_owned(),
        };
        if let Some(size) = self
            .checker
            .outside_size()
            .filter(|size| *size <= most && *size > 0)
        {
            let Some(root) = root_of(nodes, size) else {
                return Ok(Some(lost(size)));
            };
            if let Err(found) = self.checker.gone_outside(root) {
                return Ok(Some(found));
            }
        }
        while self.ahead.next()?.is_some_and(|next| next <= most) {
            let Some((epoch, note)) = self.ahead.ready.pop_front() else {
                break;
            };
            let size = note.checkpoint.size;
            let Some(root) = root_of(nodes, size) else {
                return Ok(Some(lost(size)));
            };
            if let Err(found) = self.checker.gone_note(epoch, &note, root) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// After the last record.
    fn end(&mut self, live: bool) -> Result<(), AuditError> {
        let size = self.checker.edge().size();
        let next = match self.ahead.next() {
            Err(AuditError::Altered(fault)) => {
                self.finding = Some(Finding {
                    seq: fault.seq,
                    why: fault.why,
                });
                return Ok(());
            }
            next => next?,
        };
        if let Some(over) = next.filter(|_| !live) {
            self.finding = Some(Finding {
                seq: Seq(size.saturating_add(1)),
                why: format!("the log ends before it, and a checkpoint is over {over} records"),
            });
            return Ok(());
        }
        // One behind the newest checkpoint may be anybody's: retention removes nothing before its record is signed.
        let covers = self.ahead.covers;
        if self.report.retired > 0 && self.said.is_none_or(|said| said.0 > covers) {
            self.finding = Some(Finding {
                seq: Seq(self.report.retired),
                why: "the records up to this one are gone, and no record under a checkpoint says that retention removed them".to_owned(),
            });
            return Ok(());
        }
        self.finding = self.checker.end().err();
        let first = self.checker.chain().first().map(|first| first.key);
        if self.finding.is_none() && notes::contradicts(self.ahead.dir, first)? {
            self.finding = Some(Finding {
                seq: self
                    .checker
                    .chain()
                    .first()
                    .map_or(Seq(1), |first| first.mark),
                why: "first.pub is not the key that the log begins with".to_owned(),
            });
        }
        Ok(())
    }
}

/// As [`verify_dir`]; with a horizon the log must reach it, and what is behind it is not looked at.
pub(super) fn verify(
    dir: &Path,
    horizon: Option<Horizon>,
    outside: Outside,
) -> Result<VerifyReport, AuditError> {
    // Before the segments: a writer beside us is no further with these than with those.
    let ahead = Ahead::new(dir)?;
    let mut segments = files::segments(dir)?;
    let settled = segments.last().map_or(0, |last| last.0.saturating_sub(1));
    let tiles = Compare::new(dir, settled, horizon.is_some())?;
    segments = files::segments(dir)?;
    segments.retain(|first| horizon.is_none_or(|horizon| *first <= horizon.segment));
    let gone = match retire::load(dir) {
        Ok(gone) => Ok(gone),
        Err(AuditError::Altered(fault)) => Err(fault),
        Err(error) => return Err(error),
    };
    let until = gone
        .as_ref()
        .map_or(Head::EMPTY, |gone| retire::until(gone));
    // A removal may have been broken off: what is written down as gone counts as gone.
    segments.retain(|first| *first > until.seq);
    let edge = TileEdge::load(until.seq.0, |tile| read_front(dir, tile));
    let has_outside = outside.checkpoint.is_some();
    let mut reading = Reading {
        report: VerifyReport {
            intact: false,
            records: 0,
            retired: until.seq.0,
            intents: 0,
            segments: 0,
            bytes: 0,
            head: until,
            root: tree::empty_root(),
            checkpoints: 0,
            epochs: 0,
            first_key: None,
            closed: false,
            unsigned: 0,
            cut_checkpoints: None,
            notice: (!has_outside).then_some(NO_OUTSIDE),
            missing_tiles: 0,
            first_break: None,
            torn: None,
        },
        checker: Checker::resume(outside, until, edge.clone().unwrap_or_default()),
        ahead,
        said: None,
        tiles,
        finding: None,
        failed: None,
    };
    match (&gone, &edge) {
        (Err(fault), _) => reading.report.first_break = Some(fault.clone()),
        (Ok(_), None) => {
            reading.finding = Some(Finding {
                seq: until.seq,
                why: "the tiles over the records that are gone are not there".to_owned(),
            });
        }
        (Ok(gone), Some(edge)) if until.seq.0 > 0 => {
            reading.tiles.gone(until.seq.0, edge);
            reading.finding = reading.gone(gone, edge)?;
        }
        _ => {}
    }
    if let Some(found) = reading.finding.take() {
        reading.report.first_break = Some(Fault {
            seq: found.seq,
            segment: found.seq,
            offset: 0,
            why: found.why,
        });
    }
    let mut buf = Buffer::new();
    for (index, first) in segments.iter().enumerate() {
        if reading.report.first_break.is_some() {
            break;
        }
        let last = index + 1 == segments.len();
        let fault = |seq, offset, why: String| Fault {
            seq,
            segment: *first,
            offset,
            why,
        };
        let expected = reading.report.head.next();
        if *first != expected {
            let why = format!("the segment that begins with record {expected} is missing");
            reading.report.first_break = Some(fault(expected, 0, why));
            break;
        }
        let limit = horizon
            .filter(|horizon| horizon.segment == *first)
            .map(|horizon| horizon.len);
        let mut segment = match Segment::open(dir, *first, limit) {
            Ok(segment) => segment,
            Err(AuditError::Altered(fault)) => {
                reading.report.first_break = Some(fault);
                break;
            }
            Err(error) => return Err(error),
        };
        reading.report.segments += 1;
        if segment.after() != reading.report.head {
            let why = "the segment does not follow the one before it".to_owned();
            reading.report.first_break = Some(fault(*first, 0, why));
            break;
        }
        let mut at = 0;
        let end = segment.read(&mut buf, |passing| {
            at = passing.offset;
            reading.record(&passing.leaf, passing.hash)
        })?;
        if let Some(error) = reading.failed.take() {
            return Err(error);
        }
        if let Some(found) = reading.finding.take() {
            reading.report.first_break = Some(fault(found.seq, at, found.why));
            break;
        }
        reading.report.head = segment.head();
        reading.report.bytes += segment.offset();
        match end {
            SegmentEnd::Clean | SegmentEnd::Stopped => {}
            SegmentEnd::Torn(fault, _) if last && horizon.is_none() => {
                reading.report.torn = Some(fault);
            }
            SegmentEnd::Torn(fault, _) | SegmentEnd::Altered(fault) => {
                reading.report.first_break = Some(fault);
                break;
            }
        }
    }
    finish(reading, horizon, &segments)
}

/// Whether this record says that retention removes what is gone.
fn says_gone(leaf: &LeafRef<'_>, gone: u64) -> bool {
    let (BodyRef::Event(entry) | BodyRef::Intent(entry)) = &leaf.body else {
        return false;
    };
    let says = |(key, value): (&str, &str)| {
        key == UNTIL && value.parse::<u64>().is_ok_and(|until| until >= gone)
    };
    gone > 0 && entry.action == RETIRE && entry.detail().any(says)
}

/// What is left to see when the records have passed.
fn finish(
    mut reading: Reading<'_>,
    horizon: Option<Horizon>,
    segments: &[Seq],
) -> Result<VerifyReport, AuditError> {
    if let Some(horizon) = horizon
        && reading.report.first_break.is_none()
        && reading.report.head != horizon.head
    {
        reading.report.first_break = Some(Fault {
            seq: reading.report.head.next(),
            segment: horizon.segment,
            offset: horizon.len,
            why: format!(
                "the log ends before record {}, which was written",
                horizon.head.seq
            ),
        });
    }
    if reading.report.first_break.is_none() {
        reading.end(horizon.is_some())?;
        reading.tiles.finish(reading.checker.edge());
    }
    let of_tiles = reading.tiles.fault().map(|(leaf, why)| Finding {
        seq: Seq(leaf.saturating_add(1)),
        why,
    });
    let Reading {
        mut report,
        checker,
        tiles,
        finding,
        ahead: Ahead { cut, covers, .. },
        ..
    } = reading;
    for found in [finding, of_tiles].into_iter().flatten() {
        let is_earlier = |fault: &Fault| found.seq < fault.seq;
        if report.first_break.as_ref().is_none_or(is_earlier) {
            let of = |first: &&Seq| **first <= found.seq;
            report.first_break = Some(Fault {
                seq: found.seq,
                segment: segments.iter().rev().find(of).copied().unwrap_or(Seq(1)),
                offset: 0,
                why: found.why,
            });
        }
    }
    report.root = checker.edge().root();
    report.checkpoints = checker.notes();
    report.epochs = checker.chain().last().map_or(0, |last| last.number);
    report.first_key = checker
        .chain()
        .origin()
        .zip(checker.chain().first())
        .map(|(origin, first)| verifier_key(&origin, &first.key));
    report.missing_tiles = tiles.missing();
    report.unsigned = checker.edge().size().saturating_sub(covers);
    report.cut_checkpoints = cut;
    report.intact = report.first_break.is_none();
    Ok(report)
}
