//! Who signs: the epoch's key, the checkpoints, and the change from one epoch to the next.
//!
//! The order of a change, each step durable before the next, so that a crash between any two is told from the files: the
//! next key is made; the record that names it is in the log, signed by the key of now; the checkpoint over that record is
//! written, signed by the key of now; that key is destroyed. A start that finds both keys knows by the log which holds:
//! if the next one is named, the last two steps are done now; if not, the next key goes.

use super::error::{AuditError, Fault};
use super::keys::AuditKeys;
use super::notes::{self, NoteFile};
use portcullis_core::audit::note::{origin, verifier_key};
use portcullis_core::audit::{
    Checkpoint, Epoch, EpochKey, EpochMark, Hash32, Head, Notes, PublicKey, RecordKey, Seq,
    SignedCheckpoint, decode_leaf,
};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A checkpoint follows so many records at the latest.
pub(super) const RECORDS: u64 = 256;

/// Between two times that the log's size is written down beside its key, but for an orderly stop: it costs three syncs.
const REACH_EVERY: Duration = Duration::from_mins(1);
/// And so long it may not be possible, before nothing more is recorded.
const REACH_WITHIN: Duration = if cfg!(test) {
    Duration::from_secs(2)
} else {
    Duration::from_secs(90)
};

/// See the module.
pub(super) struct Signer {
    dir: PathBuf,
    keys: AuditKeys,
    /// The log's first public key, and the name that follows from it.
    first: Option<(PublicKey, String)>,
    current: Option<Current>,
    next: Option<(u64, EpochKey)>,
    /// Of an epoch that is over.
    closing: Option<Closing>,
    /// The newest checkpoint.
    last: Option<Arc<SignedCheckpoint>>,
    /// Since when there are records that no checkpoint covers.
    dirty: Option<Instant>,
    every: Duration,
    /// When the log's size was last written down, and which.
    reached: Instant,
    reached_size: u64,
    /// When that was so for the last time.
    bound: Instant,
    /// Durable records, whatever a checkpoint is over.
    size: u64,
    /// The root over the records up to the epoch's mark, as the epoch before has signed it.
    sealed: Option<Arc<SignedCheckpoint>>,
    /// What an earlier stop left, to be mended once the log was found to be ours.
    left: Left,
}

/// Of a start that is refused everything stays as it was found, so that it can be restored or be evidence.
#[derive(Default)]
struct Left {
    /// Epochs whose keys are none of the log's: never named, being destroyed, or of long ago.
    keys: Vec<u64>,
    /// Epochs whose checkpoints end so many bytes before their file does.
    notes: BTreeMap<u64, usize>,
}

struct Current {
    epoch: Epoch,
    key: EpochKey,
    notes: NoteFile,
}

/// The last checkpoint of an epoch, until it is durable and the key destroyed.
struct Closing {
    epoch: u64,
    notes: NoteFile,
    note: Option<Arc<SignedCheckpoint>>,
}

fn altered(seq: u64, why: String) -> AuditError {
    AuditError::Altered(Fault {
        seq: Seq(seq),
        segment: Seq(0),
        offset: 0,
        why,
    })
}

impl Signer {
    /// For the log that ends with `head`, in this epoch. Nothing is signed before [`Self::settle`].
    pub(super) fn open(
        dir: &Path,
        keys: &AuditKeys,
        epoch: Option<Epoch>,
        head: Head,
        every: Duration,
    ) -> Result<Self, AuditError> {
        let mut signer = Self {
            dir: dir.to_owned(),
            keys: keys.clone(),
            first: None,
            current: None,
            next: None,
            closing: None,
            last: None,
            dirty: None,
            every,
            reached: Instant::now(),
            reached_size: 0,
            bound: Instant::now(),
            size: head.seq.0,
            sealed: None,
            left: Left::default(),
        };
        let number = epoch.map_or(0, |epoch| epoch.number);
        let noted = notes::epochs(dir)?.last().copied();
        if let Some(noted) = noted {
            if noted > number {
                let why = format!(
                    "the log ends in epoch {number}, and there are checkpoints of epoch {noted}"
                );
                return Err(altered(head.next().0, why));
            }
            let newest = signer.recover(noted)?;
            signer.last = newest.all.last().cloned().map(Arc::new);
        }
        if let Some(last) = &signer.last
            && last.checkpoint.size > head.seq.0
        {
            let size = last.checkpoint.size;
            let why = format!("the log ends before it, and a checkpoint is over {size} records");
            return Err(altered(head.next().0, why));
        }
        signer.take_keys(epoch)?;
        if let Some(epoch) = epoch {
            signer.take_sealed(epoch)?;
        }
        Ok(signer)
    }

    /// What tags the next record: the epoch's key, or the next one's from the record on that `enters` its epoch.
    pub(super) fn records(&self, enters: bool) -> Option<&RecordKey> {
        let next = || self.next.as_ref().map(|(_, key)| key);
        let current = || self.current.as_ref().map(|current| &current.key);
        let key = if enters { next() } else { current() };
        key.map(EpochKey::records)
    }

    /// Whether the last record is the epoch's: its tag vouches for all before it. `false`: it is of before there were tags,
    /// and [`Self::must_cover`] is to be asked.
    pub(super) fn has_tagged(&self, last: &[u8], head: Head) -> Result<bool, AuditError> {
        if head == Head::EMPTY && last.is_empty() {
            return Ok(true);
        }
        let foreign = |why: &str| altered(head.seq.0, why.to_owned());
        let leaf = decode_leaf(last).ok().filter(|leaf| leaf.seq == head.seq);
        let Some((leaf, key)) = leaf.zip(self.records(false)) else {
            return Err(foreign("the log ends with no record of a known key"));
        };
        if !leaf.is_tagged {
            return Ok(false);
        }
        if !key.has_tagged(&leaf) {
            return Err(foreign(
                "the last record was not written by this gateway: its tag is not the epoch key's",
            ));
        }
        let epoch = self.epoch();
        let Some(reached) = self.keys.reached(epoch)? else {
            return Err(AuditError::Key(format!(
                "how many records the log has had in epoch {epoch} is written down no more"
            )));
        };
        if reached > head.seq.0 {
            let why = format!("the log ends before it, and had {reached} records");
            return Err(altered(head.next().0, why));
        }
        Ok(true)
    }

    /// Of a log without tags: the newest checkpoint must be the epoch's own, over all of it.
    pub(super) fn must_cover(
        &self,
        head: Head,
        roots: &BTreeMap<u64, Hash32>,
    ) -> Result<(), AuditError> {
        let is_covered =
            self.last
                .as_ref()
                .zip(self.current.as_ref())
                .is_some_and(|(last, current)| {
                    let signed = &last.checkpoint;
                    signed.size == head.seq.0
                        && last.is_by(&current.epoch.key)
                        && roots.get(&signed.size) == Some(&signed.root)
                });
        if is_covered {
            return Ok(());
        }
        let why = "the last record has no tag, and no checkpoint covers it";
        Err(altered(head.seq.0, why.to_owned()))
    }

    /// The checkpoints of an epoch; what is behind them goes with [`Self::mend`].
    fn recover(&mut self, epoch: u64) -> Result<Notes, AuditError> {
        let notes = notes::recover(&self.dir, epoch)?;
        self.left.notes.insert(epoch, notes.whole);
        Ok(notes)
    }

    /// The log is ours: what an earlier stop left goes.
    fn mend(&mut self) -> Result<(), AuditError> {
        let Left { keys, notes } = std::mem::take(&mut self.left);
        for (epoch, whole) in notes {
            notes::cut(&self.dir, epoch, whole).map_err(|error| AuditError::writing(&error))?;
        }
        for epoch in keys {
            let destroyed = self.keys.destroy(epoch);
            destroyed.map_err(|error| AuditError::writing(&error))?;
        }
        Ok(())
    }

    /// The keys on the disk must be those that the log's end asks for.
    fn take_keys(&mut self, epoch: Option<Epoch>) -> Result<(), AuditError> {
        let (mut keys, wiped) = self.keys.open_all()?;
        self.left.keys = wiped;
        let highest = keys.keys().last().copied().unwrap_or(0);
        let Some(epoch) = epoch else {
            return if highest > 1 {
                Err(AuditError::Key(format!(
                    "the log names no key, and there is one of epoch {highest}: the log was put back or cut"
                )))
            } else {
                Ok(())
            };
        };
        let number = epoch.number;
        let key = keys.remove(&number);
        if highest > number.saturating_add(1) || (key.is_none() && highest > number) {
            return Err(AuditError::Key(format!(
                "the log is in epoch {number}, and there is a key of epoch {highest}: the log was put back or cut"
            )));
        }
        let Some(key) = key else {
            return Err(AuditError::Key(format!(
                "the key of epoch {number} is missing"
            )));
        };
        if key.public() != epoch.key {
            return Err(AuditError::Key(format!(
                "the key of epoch {number} is not the one that the log names"
            )));
        }
        let whole = self.recover(number)?.whole;
        self.current = Some(Current {
            epoch,
            key,
            notes: NoteFile::new(&self.dir, number, whole),
        });
        for (number, key) in keys {
            if number.checked_add(1) == Some(epoch.number) {
                let notes = self.recover(number)?;
                let is_closed = notes
                    .all
                    .last()
                    .is_some_and(|note| note.checkpoint.size == epoch.mark.0);
                self.closing = Some(Closing {
                    epoch: number,
                    notes: NoteFile::new(&self.dir, number, notes.whole),
                    note: None,
                });
                if !is_closed {
                    // Signed once the root is known.
                    self.next = Some((number, key));
                }
            } else {
                // Made and never named, or left over from long ago.
                self.left.keys.push(number);
            }
        }
        Ok(())
    }

    /// The checkpoint that closes the epoch before this one must be there, unless its key is: it is written first.
    fn take_sealed(&mut self, epoch: Epoch) -> Result<(), AuditError> {
        let Some(before) = epoch.number.checked_sub(1).filter(|before| *before > 0) else {
            return Ok(());
        };
        if self
            .closing
            .as_ref()
            .is_some_and(|closing| closing.epoch == before)
        {
            return Ok(());
        }
        let notes = self.recover(before)?;
        let sealed = notes
            .all
            .last()
            .filter(|note| note.checkpoint.size == epoch.mark.0);
        if sealed.is_none() {
            let why = format!("the checkpoint that closes epoch {before} is gone");
            return Err(altered(epoch.mark.0, why));
        }
        self.sealed = sealed.cloned().map(Arc::new);
        Ok(())
    }

    /// The sizes whose roots [`Self::settle`] wants.
    pub(super) fn wanted(&self) -> Vec<u64> {
        let last = self.last.iter().map(|last| last.checkpoint.size);
        let mark = self.current.iter().map(|current| current.epoch.mark.0);
        last.chain(mark).collect()
    }

    /// Whether the tree is the one that was signed, as far as a root is there.
    pub(super) fn agrees(&self, roots: &BTreeMap<u64, Hash32>) -> bool {
        self.last.iter().chain(&self.sealed).all(|note| {
            let root = roots.get(&note.checkpoint.size);
            root.is_none_or(|root| *root == note.checkpoint.root)
        })
    }

    /// Checks what was signed last, and ends what a crash has left open. `first` looks the log through for its first key.
    pub(super) fn settle(
        &mut self,
        roots: &BTreeMap<u64, Hash32>,
        first: impl FnOnce() -> Result<Option<PublicKey>, AuditError>,
    ) -> Result<(), AuditError> {
        let Some(current) = &self.current else {
            return self.mend();
        };
        let fits = |key: &PublicKey| {
            let last = self.last.as_ref();
            last.is_none_or(|last| last.checkpoint.origin == origin(key))
        };
        // Of the log and not of the file: anybody could have put another one there.
        let Some(key) = first()?.filter(fits) else {
            let why = "its checkpoints are of another log".to_owned();
            return Err(altered(1, why));
        };
        if let Some(last) = &self.last {
            let size = last.checkpoint.size;
            let is_signed = size <= current.epoch.mark.0 || last.is_by(&current.epoch.key);
            if !is_signed || !self.agrees(roots) {
                let why =
                    format!("the checkpoint over {size} records is not what the records give");
                return Err(altered(size, why));
            }
        }
        self.first = Some((key, origin(&key)));
        if let Some((_, key)) = self.next.take() {
            let mark = current.epoch.mark.0;
            let root = roots.get(&mark).copied();
            let root = root.ok_or_else(|| {
                AuditError::Unreadable(format!("the tree of {mark} records cannot be had"))
            })?;
            let note = key.sign(self.checkpoint_of(mark, root));
            if let Some(closing) = &mut self.closing {
                closing.note = Some(Arc::new(note));
            }
        }
        self.mend()?;
        if notes::read_first(&self.dir) != Some(key) {
            notes::write_first(&self.dir, &key).map_err(|error| AuditError::writing(&error))?;
        }
        self.close();
        Ok(())
    }

    fn checkpoint_of(&self, size: u64, root: Hash32) -> Checkpoint {
        let origin = self.first.as_ref().map(|(_, origin)| origin.clone());
        Checkpoint {
            origin: origin.unwrap_or_default(),
            size,
            root,
        }
    }

    /// What the record behind `head` says of the next epoch. Its key is durable when this returns.
    pub(super) fn mark(&mut self, head: Head) -> io::Result<EpochMark> {
        let number = self
            .current
            .as_ref()
            .map_or(1, |current| current.epoch.number.saturating_add(1));
        if self.next.as_ref().is_none_or(|(next, _)| *next != number) {
            self.next = Some((number, self.keys.make(number, head.seq.0)?));
        }
        let Some((_, next)) = &self.next else {
            return Err(io::Error::other("no key was made"));
        };
        let by = self.current.as_ref().map_or(next, |current| &current.key);
        Ok(by.hand_over(number, next.public(), head))
    }

    /// The record with the mark is durable and in the tree, whose root is this.
    pub(super) fn entered(&mut self, mark: &EpochMark, seq: Seq, root: Hash32) {
        let Some((_, key)) = self.next.take_if(|(next, _)| *next == mark.epoch) else {
            return;
        };
        let epoch = Epoch {
            number: mark.epoch,
            mark: seq,
            key: mark.key,
        };
        let current = Current {
            epoch,
            key,
            notes: NoteFile::new(&self.dir, mark.epoch, 0),
        };
        // One that could not be written yet stays to be closed by a start.
        self.close();
        if let Some(old) = self.current.replace(current) {
            let note = Arc::new(old.key.sign(self.checkpoint_of(seq.0, root)));
            self.last = Some(note.clone());
            self.closing = Some(Closing {
                epoch: old.epoch.number,
                notes: old.notes,
                note: Some(note),
            });
            self.close();
        } else {
            self.first = Some((mark.key, origin(&mark.key)));
            if let Err(error) = notes::write_first(&self.dir, &mark.key) {
                tracing::warn!(%error, "the audit log's first public key could not be written down");
            }
        }
        self.dirty = None;
    }

    /// The last two steps. What fails is tried again with the next checkpoint, and by the next start.
    fn close(&mut self) {
        let Some(closing) = &mut self.closing else {
            return;
        };
        let mut end = || {
            if let Some(note) = &closing.note {
                closing.notes.append(note, true)?;
                closing.note = None;
            }
            self.keys.destroy(closing.epoch)
        };
        match end() {
            Ok(()) => self.closing = None,
            Err(error) => {
                tracing::warn!(%error, "the last epoch of the audit log cannot be closed yet");
            }
        }
    }

    /// There are records that no checkpoint covers.
    pub(super) fn changed(&mut self, now: Instant, size: u64) {
        self.size = size;
        self.dirty.get_or_insert(now);
    }

    /// When there is something to do without a record: a checkpoint, or the log's size.
    pub(super) fn due(&self) -> Option<Instant> {
        let checkpoint = self.dirty.map(|since| since + self.every);
        let is_behind = self.size > self.reached_size;
        let size = is_behind.then(|| self.reached + REACH_EVERY);
        checkpoint.into_iter().chain(size).min()
    }

    /// Whether a checkpoint is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.dirty.is_some_and(|since| since + self.every <= now)
    }

    /// How many records the newest checkpoint covers.
    pub(super) fn covered(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.checkpoint.size)
    }

    /// The newest checkpoint, and the log's first public key.
    pub(super) fn newest(&self) -> Option<(Arc<SignedCheckpoint>, PublicKey)> {
        Some((self.last.clone()?, self.first.as_ref()?.0))
    }

    /// The log's first public key, for people to keep.
    pub(super) fn first(&self) -> Option<String> {
        let (key, origin) = self.first.as_ref()?;
        Some(verifier_key(origin, key))
    }

    /// The epoch.
    pub(super) fn epoch(&self) -> u64 {
        self.current
            .as_ref()
            .map_or(0, |current| current.epoch.number)
    }

    /// Signs what the log is now, unless that is signed. It is tried again when it could not be written.
    pub(super) fn sign(&mut self, size: u64, root: Hash32, sync: bool) {
        self.close();
        let checkpoint = self.checkpoint_of(size, root);
        let is_new = size > self.covered();
        let Some(current) = self.current.as_mut().filter(|_| is_new) else {
            self.dirty = None;
            return;
        };
        let note = current.key.sign(checkpoint);
        match current.notes.append(&note, sync) {
            Ok(()) => {
                self.last = Some(Arc::new(note));
                self.dirty = None;
            }
            Err(error) => {
                tracing::warn!(%error, "a checkpoint of the audit log cannot be written yet");
                self.dirty = Some(Instant::now());
            }
        }
        if sync {
            self.reach();
        }
    }

    /// At an orderly stop: how far the log has come, also where no checkpoint could be written.
    pub(super) fn finish(&mut self) {
        if self.size > self.reached_size {
            self.reach();
        }
    }

    /// Writes down how far the log has come. Not how far a checkpoint is over it: who keeps those from being written could put an
    /// older log back.
    fn reach(&mut self) {
        self.reached = Instant::now();
        if let Err(error) = self.reach_to(self.size) {
            tracing::warn!(%error, "the size of the audit log cannot be written down yet");
        }
    }

    /// Writes down, durably, that the log has so many durable records, whatever a checkpoint is over.
    pub(super) fn reach_to(&mut self, size: u64) -> io::Result<()> {
        // Before the first key there is nothing beside which it could lie.
        if size <= self.reached_size || self.current.is_none() {
            return Ok(());
        }
        // Somebody has put a newer one there: it says what is missing, and this log is not the one to go on with.
        let there = self.keys.reached(self.epoch()).ok().flatten();
        if let Some(there) = there.filter(|there| *there > size) {
            return Err(io::Error::other(format!(
                "it says there that the log has had {there} records"
            )));
        }
        self.keys.reach(self.epoch(), size)?;
        self.reached_size = size;
        self.bound = Instant::now();
        Ok(())
    }

    /// That the log has so many records is written down, or was not long enough ago to matter. Else it is written down now.
    ///
    /// # Errors
    /// It cannot be: nothing more may be acknowledged, since who puts an older log back would take it away unseen.
    pub(super) fn is_bound(&mut self, size: u64) -> io::Result<()> {
        if size <= self.reached_size {
            self.bound = Instant::now();
            return Ok(());
        }
        if self.bound.elapsed() < REACH_WITHIN {
            return Ok(());
        }
        self.reach_to(size)
    }

    /// The same, where its time has come.
    pub(super) fn keep(&mut self) {
        if self.size > self.reached_size && self.reached.elapsed() >= REACH_EVERY {
            self.reach();
        }
    }
}
