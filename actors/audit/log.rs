//! The open log: appends groups of records durably, rotates, and after a failure mends itself without ever vouching for
//! a byte that was not synced. Synchronous; [`super::writer`] runs it on its thread.

use super::config::AuditConfig;
use super::error::{AuditError, Fault};
use super::files;
use super::keys::AuditKeys;
use super::offline::Horizon;
use super::proofs::Signed;
use super::recover;
use super::retire;
use super::signer::{self, Signer};
use super::tiles::Tree;
use super::walk::{Buffer, Segment, SegmentEnd};
use crate::supervision::FlagReader;
use portcullis_core::audit::retired::Gone;
use portcullis_core::audit::{
    Body, BootId, GROUP_BYTES, HEADER_BYTES, Head, Ledger, Outcome, SegmentHeader, Seq, Stamp,
    decode_leaf, encode_record,
};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two attempts to mend a broken log; what comes meanwhile is refused at once.
const MEND_EVERY: Duration = Duration::from_millis(200);
/// Smallest segment, whatever the configuration says.
const MIN_SEGMENT: u64 = 64 * 1024;
/// Records in one group that the start writes.
const OPENING_GROUP: usize = 64;

/// Wall and monotonic time of the daemon.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Monotonic time counts from now: once per daemon start.
    pub fn new() -> Self {
        Self(Instant::now())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the writer thread stamps records itself, under the lock of their order"
    )]
    pub(super) fn stamp(&self) -> Stamp {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Stamp {
            wall_ms: ms(wall),
            mono_ms: ms(self.0.elapsed()),
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// What the log needs to be opened.
#[derive(Clone)]
pub struct LogSpec {
    /// `STATE/audit`.
    pub dir: PathBuf,
    /// What signs the log.
    pub keys: AuditKeys,
    /// Limits.
    pub config: AuditConfig,
    /// This daemon start.
    pub boot: BootId,
    /// Its time.
    pub clock: Clock,
    /// The program's version, for the start mark.
    pub version: String,
    /// How often the state was changed, durably.
    pub state: Option<FlagReader<u64>>,
}

impl LogSpec {
    /// So far has the state come by now.
    pub(super) fn state_rev(&self) -> Option<u64> {
        self.state.as_ref().map(FlagReader::get)
    }
}

/// What opening found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenReport {
    /// The wall clock of the newest record that was there before this opening; 0: there was none.
    pub before_ms: u64,
    /// The head when the log was ready.
    pub head: Head,
    /// Bytes of a torn end that were cut off.
    pub torn_bytes: u64,
    /// Intents of earlier boots that got `outcome: unknown`.
    pub unknown: usize,
    /// Segments that were read.
    pub segments_read: usize,
    /// The log begins here: its first public key.
    pub began: Option<String>,
}

/// The log, open for writing.
pub(super) struct Log {
    spec: LogSpec,
    dir: File,
    /// Held for the writer's whole life.
    _lock: File,
    /// `None`: broken, to be opened again.
    file: Option<File>,
    segment: SegmentHeader,
    len: u64,
    /// The newest durable record.
    pub(super) head: Head,
    /// What follows from the records up to the last [`Self::settle`].
    pub(super) ledger: Ledger,
    /// Over the records up to the last [`Self::settle`].
    tree: Tree,
    signer: Signer,
    /// A new segment waits for its first record, the mark.
    carry: bool,
    /// Since retention was looked at last.
    began_segment: bool,
    /// The start mark is not written yet: it is what ends the epoch, and no segment is begun before it.
    opening: bool,
    gap: Option<Gap>,
    /// What the start left unread is not what was written, or cannot be read: nothing is recorded behind it.
    refuses: Option<AuditError>,
    /// Keys lie further back than the so many segments that the start has read.
    keys_behind: Option<usize>,
    /// The group that is being put together.
    draft: Option<Draft>,
    buf: Vec<u8>,
    /// What was being written when it failed: all that may lie behind the last durable record.
    tried: Vec<u8>,
}

/// A group whose records are encoded as they come, into the log's buffer: hashing goes on while others still arrive.
struct Draft {
    stamp: Stamp,
    lead: Vec<Body>,
    heads: Vec<Head>,
    /// A record of the group names the next epoch's key: it and all behind it are that epoch's to tag.
    enters: bool,
}

/// A group that is durable.
pub(super) struct Written {
    pub(super) stamp: Stamp,
    /// The head before the first record.
    pub(super) before: Head,
    /// Records of the log's own that came first: a gap, a new segment's mark.
    pub(super) lead: Vec<Body>,
    /// The head after each record, those of `lead` first.
    pub(super) heads: Vec<Head>,
}

/// Since when and why nothing can be recorded.
struct Gap {
    error: AuditError,
    tried: Instant,
    count: u64,
    first_ms: u64,
    last_ms: u64,
}

impl Log {
    /// Locks, verifies, cuts off a torn end, closes what earlier boots left open, writes the start mark.
    pub(super) fn open(spec: LogSpec) -> Result<(Self, OpenReport), AuditError> {
        let dir = files::open_dir(&spec.dir)?;
        let lock = files::lock(&spec.dir)?;
        let mut found = recover::recover(&spec)?;
        // Only the room was restarted: what it has acknowledged before must be there.
        if let Some(said) = spec.keys.acknowledged() {
            found.must_hold(said)?;
        }
        if found.ledger.head.seq.0 < spec.config.at_least {
            return Err(AuditError::Behind {
                head: found.ledger.head.seq,
                state: Seq(spec.config.at_least),
            });
        }
        // Writes that the log knows of are durable: only whoever takes them away makes this so.
        if let (Some(state), Some(said)) = (spec.state_rev(), found.ledger.state_rev)
            && state < said
        {
            return Err(AuditError::StateBehind { state, said });
        }
        let began = found.ledger.epoch.is_none();
        let every = Duration::from_millis(spec.config.checkpoint_ms);
        let head = found.ledger.head;
        let mut signer = Signer::open(&spec.dir, &spec.keys, found.ledger.epoch, head, every)?;
        let is_ours = signer.has_tagged(&found.last, head)?;
        let wanted = signer.wanted();
        let (mut tree, roots) = Tree::open(&spec.dir, found.base, &found.leaves, &wanted)
            .filter(|(_, roots)| signer.agrees(roots))
            .map_or_else(|| Tree::rebuild(&spec.dir, head, &wanted, false), Ok)?;
        if !is_ours {
            signer.must_cover(head, &roots)?;
        }
        signer.settle(&roots, || recover::first_key(&spec.dir))?;
        // Only now is a file of the log changed: one that is refused stays as it was found.
        let file = recover::clear(&spec.dir, &dir, &mut found)?;
        tree.flush();
        let lost: Vec<(Seq, BootId)> = found
            .ledger
            .open
            .iter()
            .filter(|(_, open)| open.boot != spec.boot)
            .map(|(seq, open)| (*seq, open.boot))
            .collect();
        let mut log = Self {
            dir,
            _lock: lock,
            file: Some(file),
            segment: found.segment,
            len: found.len,
            head: found.ledger.head,
            ledger: found.ledger,
            tree,
            signer,
            carry: false,
            began_segment: false,
            opening: true,
            gap: None,
            refuses: None,
            keys_behind: (!found.has_keys).then_some(found.segments_read),
            draft: None,
            buf: Vec::new(),
            tried: Vec::new(),
            spec,
        };
        let before_ms = decode_leaf(&found.last).map_or(0, |leaf| leaf.stamp.wall_ms);
        let segment = log.segment.first();
        let recovered = found.torn.map(|(offset, bytes)| Body::Recovered {
            segment,
            offset,
            bytes,
        });
        // Of a log that begins here the start comes first: it names the key that tags.
        let (first, behind) = if began {
            (None, recovered)
        } else {
            (recovered, None)
        };
        if let Some(first) = first {
            log.append_own(&[first])?;
        }
        for group in lost.chunks(OPENING_GROUP) {
            let group: Vec<Body> = group
                .iter()
                .map(|(intent, boot)| Body::Outcome {
                    intent: *intent,
                    outcome: Outcome::unknown(*boot),
                })
                .collect();
            log.append_own(&group)?;
        }
        // Last: a start that fails before it is repeated in full by the next one.
        let mark = log.signer.mark(log.head);
        log.append_own(&[Body::Start {
            reopened: found.same_boot,
            open: log.ledger.open_list(),
            version: log.spec.version.clone(),
            state_rev: log.spec.state_rev(),
            epoch: Some(mark.map_err(|error| AuditError::writing(&error))?),
        }])?;
        if let Some(behind) = behind {
            log.append_own(&[behind])?;
        }
        log.opening = false;
        let report = OpenReport {
            before_ms,
            head: log.head,
            torn_bytes: found.torn.map_or(0, |(_, bytes)| bytes),
            unknown: lost.len(),
            segments_read: found.segments_read,
            began: began.then(|| log.signer.first()).flatten(),
        };
        Ok((log, report))
    }

    /// Reads the idempotency keys that the start left behind, and makes tiles anew that are gone, so that neither keeps
    /// the gateway from serving. Before the first key is asked for. While it fails nothing is recorded or removed;
    /// it may be called again.
    pub(super) fn recall(&mut self) -> Result<(), AuditError> {
        let recalled = self.read_behind();
        self.refuses = recalled.clone().err();
        recalled
    }

    fn read_behind(&mut self) -> Result<(), AuditError> {
        if !self.tree.is_whole() {
            match Tree::rebuild(&self.spec.dir, self.head, &[], true) {
                Ok((tree, _)) => self.tree = tree,
                // Of records that retention has removed a tile cannot be made anew: recording goes on, verifying says so.
                Err(AuditError::Unreadable(why)) => {
                    tracing::error!(why, "tiles of the audit log are lost");
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(count) = self.keys_behind {
            // What lies there now must be what the start has read, up to its last record: who cuts off the end takes keys away.
            let (once, head) = recover::keys(&self.spec, count)?;
            let first = self.segment.first();
            let fault = |why: String| {
                AuditError::Altered(Fault {
                    seq: Seq(self.head.seq.0.min(head.seq.0) + 1),
                    segment: first,
                    offset: self.len,
                    why,
                })
            };
            if head != self.head {
                let why = format!(
                    "the log ends at record {}, and ended at {}",
                    head.seq, self.head.seq
                );
                return Err(fault(why));
            }
            if let Some(file) = &self.file {
                files::is_in_place(&self.spec.dir, first, file, self.len)
                    .map_err(|error| fault(format!("{error}; restart the gateway")))?;
            }
            self.ledger.once = once;
            self.keys_behind = None;
        }
        self.began_segment = true;
        Ok(())
    }

    /// Makes the records durable, all or none.
    pub(super) fn append(&mut self, bodies: &[Body]) -> Result<Written, AuditError> {
        for body in bodies {
            if let Err(error) = self.push(body) {
                self.abandon();
                return Err(error);
            }
        }
        self.commit()
    }

    /// As [`Self::append`], of what was refused before: it does not count again in the gap.
    pub(super) fn append_again(&mut self, body: &Body) -> Result<Written, AuditError> {
        let before = self.gap.as_ref().map(|gap| gap.count);
        let written = self.append(std::slice::from_ref(body));
        if let (Some(count), Some(gap)) = (before, &mut self.gap)
            && written.is_err()
        {
            gap.count = count;
        }
        written
    }

    /// Adds a record to the group under way, or begins one. A record that breaks a limit is refused alone; every other
    /// error says that nothing can be recorded now, and ends the group.
    pub(super) fn push(&mut self, body: &Body) -> Result<(), AuditError> {
        if let Some(error) = &self.refuses {
            return Err(error.clone());
        }
        let mut draft = match self.draft.take() {
            Some(draft) => draft,
            None => self.begin().inspect_err(|error| self.refused(error, 1))?,
        };
        let before = draft.heads.last().copied().unwrap_or(self.head);
        let pushed = self.encode(&mut draft, before, body);
        self.draft = Some(draft);
        pushed
    }

    /// Makes the group under way durable, all or none of it. Records of the log's own are enough of a group.
    pub(super) fn commit(&mut self) -> Result<Written, AuditError> {
        let Some(draft) = self.draft.take() else {
            return Err(AuditError::CannotRecord("no record was given".into()));
        };
        if let Err(error) = self.write() {
            self.drop_back();
            let error = AuditError::writing(&error);
            self.refused(&error, draft.heads.len() - draft.lead.len());
            return Err(error);
        }
        let before = self.head;
        self.len += self.buf.len() as u64;
        self.head = draft.heads.last().copied().unwrap_or(before);
        self.spec.keys.acknowledge(self.head);
        self.tried.clear();
        self.gap = None;
        self.carry = false;
        self.buf.shrink_to(1024 * 1024);
        Ok(Written {
            stamp: draft.stamp,
            before,
            lead: draft.lead,
            heads: draft.heads,
        })
    }

    /// Whether the group under way must be written before it takes another record.
    pub(super) const fn is_full(&self) -> bool {
        self.draft.is_some() && self.buf.len() >= GROUP_BYTES
    }

    /// Whether records wait for [`Self::commit`].
    pub(super) const fn is_drafting(&self) -> bool {
        self.draft.is_some()
    }

    fn abandon(&mut self) {
        if self.draft.take().is_some() && self.gap.is_some() {
            // The gap is not recorded yet: mend again, with its record.
            self.file = None;
        }
    }

    /// What comes before the first record of a group: a mended log's gap, a new segment's mark.
    fn begin(&mut self) -> Result<Draft, AuditError> {
        self.buf.clear();
        self.signer.is_bound(self.head.seq.0).map_err(|error| {
            AuditError::CannotRecord(format!(
                "how far the log has come cannot be written down beside its keys: {error}"
            ))
        })?;
        let gap = match self.file {
            Some(_) => None,
            None => Some(self.mend()?),
        };
        let is_full = self.len >= self.spec.config.segment_bytes.max(MIN_SEGMENT);
        if is_full && !self.opening {
            self.rotate()?;
        }
        let mut draft = Draft {
            stamp: self.spec.clock.stamp(),
            lead: Vec::new(),
            heads: Vec::new(),
            enters: false,
        };
        if let Some(gap) = gap {
            self.lead(&mut draft, gap)?;
        }
        if self.carry {
            let head = draft.heads.last().copied().unwrap_or(self.head);
            let mark = self.signer.mark(head);
            let carry = Body::Carry {
                open: self.ledger.open_list(),
                state_rev: self.spec.state_rev(),
                epoch: Some(mark.map_err(|error| AuditError::writing(&error))?),
            };
            self.lead(&mut draft, carry)?;
        }
        Ok(draft)
    }

    fn lead(&mut self, draft: &mut Draft, body: Body) -> Result<(), AuditError> {
        let before = draft.heads.last().copied().unwrap_or(self.head);
        self.encode(draft, before, &body)?;
        draft.lead.push(body);
        Ok(())
    }

    fn encode(&mut self, draft: &mut Draft, before: Head, body: &Body) -> Result<(), AuditError> {
        let enters = draft.enters || body.next_epoch().is_some();
        let Some(key) = self.signer.records(enters) else {
            let why = "a record before the first that names a key".to_owned();
            return Err(AuditError::CannotRecord(why));
        };
        let (stamp, boot) = (draft.stamp, self.spec.boot);
        let head = encode_record(&mut self.buf, before, stamp, boot, body, Some(key))?;
        draft.enters = enters;
        draft.heads.push(head);
        Ok(())
    }

    /// Lets the ledger follow a durable group. Apart from [`Self::append`], so that callers are answered first; it must
    /// come before the next group.
    pub(super) fn settle(&mut self, written: &Written, bodies: &[Body]) {
        for (body, head) in written.lead.iter().chain(bodies).zip(&written.heads) {
            self.ledger
                .wrote(body, written.stamp, self.spec.boot, *head);
            self.tree.push(head.hash);
            self.began_segment |= matches!(body, Body::Carry { .. });
            if let Some(mark) = body.next_epoch() {
                self.signer.entered(mark, head.seq, self.tree.root());
            }
        }
        self.tree.flush();
        self.signer.changed(Instant::now(), self.head.seq.0);
    }

    /// What retention lets go now; looked for after a start and whenever a segment was begun.
    pub(super) fn retirable(&mut self) -> Vec<Gone> {
        if !std::mem::take(&mut self.began_segment) {
            return Vec::new();
        }
        // Rooms read back what is open, and what the vault holds since it was opened.
        let open = self.ledger.open.keys().next().copied();
        let Some(opened) = self.ledger.opened else {
            return Vec::new();
        };
        let needed = open.map_or(opened, |open| open.min(opened));
        let now = self.spec.clock.stamp().wall_ms;
        let (dir, config) = (&self.spec.dir, &self.spec.config);
        let found = retire::candidates(dir, config, needed, &self.taken(), now).and_then(|gone| {
            retire::sync_tiles(&self.spec.dir, &gone)
                .map_err(|error| AuditError::writing(&error))?;
            Ok(gone)
        });
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, "old segments of the audit log cannot be removed yet");
            Vec::new()
        })
    }

    /// How far the sinks have come.
    pub(super) fn taken(&self) -> Vec<(String, Seq)> {
        retire::taken(&self.spec.dir, &self.spec.config)
    }

    /// Removes them, once the record that says so is under a checkpoint: of one that is not, nobody can tell who wrote it.
    pub(super) fn retire(&mut self, gone: &[Gone]) {
        self.signer.sign(self.head.seq.0, self.tree.root(), true);
        if self.signer.covered() < self.head.seq.0 {
            tracing::warn!("old segments of the audit log stay: their end cannot be signed yet");
            return;
        }
        if let Err(error) = self.spec.keys.retire(retire::until(gone).seq.0) {
            tracing::warn!(%error, "old segments of the audit log stay: that they go cannot be written down yet");
            return;
        }
        match retire::remove(&self.spec.dir, gone) {
            // There may be more.
            Ok(()) => self.began_segment = true,
            Err(error) => {
                tracing::warn!(%error, "old segments of the audit log cannot be removed yet");
            }
        }
    }

    /// Signs what the log is, if that is due: after so many records, or so long after one.
    pub(super) fn tick(&mut self) {
        if self.refuses.is_some() {
            return;
        }
        let uncovered = self.head.seq.0.saturating_sub(self.signer.covered());
        let is_due = self.signer.is_due(Instant::now());
        if uncovered >= signer::RECORDS || is_due {
            self.signer.sign(self.head.seq.0, self.tree.root(), false);
        }
        self.signer.keep();
    }

    /// Signs what the log is now.
    pub(super) fn signed(&mut self) -> Option<Signed> {
        // The hashes are what was signed before, whatever became of the records; unless they are gone as well.
        if self.refuses.is_some() && !self.tree.is_whole() {
            return None;
        }
        self.signer.sign(self.head.seq.0, self.tree.root(), false);
        let (checkpoint, first_key) = self.signer.newest()?;
        // One that could not be written is no promise.
        (checkpoint.checkpoint.size == self.head.seq.0).then(|| Signed {
            checkpoint,
            first_key,
            edge: self.tree.edge().clone(),
        })
    }

    /// Whether this intent's outcome must not be undone by who puts an older log back, after a crash too.
    pub(super) fn is_weighty(&self, intent: Seq) -> bool {
        let open = self.ledger.open.get(&intent);
        open.is_some_and(|open| open.is_weighty)
    }

    /// Writes down beside the log's key that it has come so far.
    pub(super) fn bind(&mut self) -> Result<(), AuditError> {
        let bound = self.signer.reach_to(self.head.seq.0);
        bound.map_err(|error| AuditError::writing(&error))
    }

    /// After the stop mark: what an orderly end leaves.
    pub(super) fn finish(&mut self) {
        self.signer.sign(self.head.seq.0, self.tree.root(), true);
        self.signer.finish();
        if let Err(error) = self.tree.keep() {
            tracing::warn!(%error, "the tree of the audit log was not written whole");
        }
    }

    pub(super) const fn signer(&self) -> &Signer {
        &self.signer
    }

    fn append_own(&mut self, bodies: &[Body]) -> Result<(), AuditError> {
        let written = self.append(bodies)?;
        self.settle(&written, bodies);
        Ok(())
    }

    /// How far readers may trust the files.
    pub(super) const fn horizon(&self) -> Horizon {
        Horizon {
            head: self.head,
            segment: self.segment.first(),
            len: self.len,
        }
    }

    /// Why nothing can be recorded now.
    pub(super) fn broken(&self) -> Option<&AuditError> {
        let gap = self.gap.as_ref().map(|gap| &gap.error);
        self.refuses.as_ref().or(gap)
    }

    pub(super) const fn spec(&self) -> &LogSpec {
        &self.spec
    }

    fn write(&self) -> io::Result<()> {
        let Some(mut file) = self.file.as_ref() else {
            return Err(io::Error::other("the segment is not open"));
        };
        // Two looks, 2 us together: nothing is acknowledged that went into a file which is not the log any more.
        files::is_in_place(&self.spec.dir, self.segment.first(), file, self.len)?;
        file.write_all(&self.buf)?;
        file.sync_data()
    }

    /// After a failed write or sync: back to the last durable length, and away with the descriptor. What the kernel
    /// reports on it from now on proves nothing: a failed sync may leave pages marked clean that never reached the disk.
    fn drop_back(&mut self) {
        if self.tried.is_empty() {
            self.tried.clone_from(&self.buf);
        }
        if let Some(file) = self.file.take()
            && files::ends_with(&file, self.len, &self.tried).is_ok_and(|ours| ours)
        {
            // If this fails as well, mending repeats it.
            let _ = file.set_len(self.len);
        }
    }

    fn refused(&mut self, error: &AuditError, count: usize) {
        // A failed rotation leaves a good descriptor behind; it is opened anew all the same.
        self.file = None;
        // If somebody has cut the log, who starts next must know how far it had come. Once: on a full disk it cannot be told.
        if self.gap.is_none()
            && let Err(error) = self.signer.reach_to(self.head.seq.0)
        {
            tracing::warn!(%error, "the size of the audit log cannot be written down");
        }
        let now = self.spec.clock.stamp().wall_ms;
        let gap = self.gap.get_or_insert_with(|| Gap {
            error: error.clone(),
            tried: Instant::now(),
            count: 0,
            first_ms: now,
            last_ms: now,
        });
        gap.error = error.clone();
        gap.count += count as u64;
        gap.last_ms = now;
    }

    /// Opens the segment again, cuts it back, re-reads it from the disk, and returns the record of the gap.
    fn mend(&mut self) -> Result<Body, AuditError> {
        let Some(gap) = &mut self.gap else {
            return Err(AuditError::CannotRecord("the segment is not open".into()));
        };
        if gap.tried.elapsed() < MEND_EVERY {
            return Err(gap.error.clone());
        }
        gap.tried = Instant::now();
        let record = Body::Gap {
            count: gap.count,
            first_ms: gap.first_ms,
            last_ms: gap.last_ms,
            reason: gap.error.code().to_owned(),
        };
        let first = self.segment.first();
        let writing = |error: io::Error| AuditError::writing(&error);
        // The folder may be another one as well.
        self.dir = files::open_dir(&self.spec.dir)?;
        let file = files::open_segment(&self.spec.dir, first).map_err(writing)?;
        let found = file.metadata().map_err(writing)?.len();
        let shrunk = |offset, why: &str| {
            AuditError::Altered(Fault {
                seq: self.head.next(),
                segment: first,
                offset,
                why: why.to_owned(),
            })
        };
        if found < self.len {
            return Err(shrunk(found, "durable records are gone from the segment"));
        }
        // Only what a write of ours has left there is cut off.
        if !files::ends_with(&file, self.len, &self.tried).map_err(writing)? {
            let why = "behind the last durable record lies what was not written here";
            return Err(shrunk(self.len, why));
        }
        file.set_len(self.len).map_err(writing)?;
        file.sync_all().map_err(writing)?;
        self.tried.clear();
        // Out of the page cache, so that the disk is read and not our own memory of it.
        fadvise(&file, 0, None, Advice::DontNeed).map_err(|error| writing(error.into()))?;
        // For a caller all that fails here is one thing: no record.
        let unread = |error| match error {
            AuditError::Altered(fault) => AuditError::Altered(fault),
            error => AuditError::CannotRecord(error.to_string()),
        };
        let mut segment = Segment::open(&self.spec.dir, first, None).map_err(unread)?;
        let end = segment.read(&mut Buffer::new(), |_| ControlFlow::Continue(()));
        match end.map_err(unread)? {
            SegmentEnd::Clean if segment.head() == self.head => {}
            SegmentEnd::Altered(fault) | SegmentEnd::Torn(fault, _) => {
                return Err(AuditError::Altered(fault));
            }
            SegmentEnd::Clean | SegmentEnd::Stopped => {
                return Err(shrunk(
                    segment.offset(),
                    "the segment ends with another record",
                ));
            }
        }
        self.file = Some(file);
        Ok(record)
    }

    fn rotate(&mut self) -> Result<(), AuditError> {
        let header = SegmentHeader { after: self.head };
        if let Some(file) = &self.file {
            files::is_in_place(&self.spec.dir, self.segment.first(), file, self.len)
                .map_err(|error| AuditError::writing(&error))?;
        }
        // Before the segment: a start that reads it alone finds the tree that it goes on from.
        self.tree
            .keep()
            .map_err(|error| AuditError::writing(&error))?;
        let file = files::create_segment(&self.spec.dir, &self.dir, header)
            .map_err(|error| AuditError::writing(&error))?;
        self.file = Some(file);
        self.segment = header;
        self.len = HEADER_BYTES as u64;
        self.carry = true;
        Ok(())
    }

    /// Whether an outcome may be recorded for this intent.
    pub(super) fn is_open(&self, intent: Seq) -> bool {
        self.ledger.open.contains_key(&intent)
    }

    /// For how long the intent is open, in milliseconds; nobody knows of what another boot began.
    pub(super) fn open_for(&self, intent: Seq) -> Option<u64> {
        let open = self.ledger.open.get(&intent)?;
        let since = open.mono_ms.filter(|_| open.boot == self.spec.boot)?;
        Some(self.spec.clock.stamp().mono_ms.saturating_sub(since))
    }
}
