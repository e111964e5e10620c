//! Verifying a log beyond its chain of records: the chain of epoch keys, the checkpoints, and what is held outside.
//!
//! The caller reads; here nothing is read, so that it can be fuzzed and used anywhere.

use super::Head;
use super::epoch::{Epoch, KeyChain};
use super::hash::{Hash32, PublicKey, Seq};
use super::note::{SignedCheckpoint, origin};
use super::record::LeafRef;
use super::tile::{Tile, TileEdge};

/// What is wrong, and with which record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {seq}: {why}")]
pub struct Finding {
    /// The record from which on nothing is proven.
    pub seq: Seq,
    /// What is wrong.
    pub why: String,
}

fn finding(seq: u64, why: impl Into<String>) -> Finding {
    Finding {
        seq: Seq(seq),
        why: why.into(),
    }
}

/// What somebody outside of the machine holds of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Its first public key.
    pub first_key: Option<PublicKey>,
    /// A checkpoint.
    pub checkpoint: Option<SignedCheckpoint>,
}

/// Goes through a log, record by record, and through its checkpoints beside.
#[derive(Clone, Debug, Default)]
pub struct Checker {
    chain: KeyChain,
    edge: TileEdge,
    head: Head,
    outside: Outside,
    /// An epoch whose closing checkpoint was not met yet, and its size.
    unclosed: Option<(Epoch, u64)>,
    notes: u64,
}

impl Checker {
    /// From the first record on.
    pub fn new(outside: Outside) -> Self {
        Self {
            outside,
            ..Self::default()
        }
    }

    /// The chain of keys so far.
    pub const fn chain(&self) -> &KeyChain {
        &self.chain
    }

    /// The tree so far.
    pub const fn edge(&self) -> &TileEdge {
        &self.edge
    }

    /// Goes on behind records that are gone: `base` is the last of them, `edge` the tree over them. What is known of them
    /// comes by [`Self::gone_mark`] and [`Self::gone_note`].
    pub fn resume(outside: Outside, base: Head, edge: TileEdge) -> Self {
        Self {
            outside,
            head: base,
            edge,
            ..Self::default()
        }
    }

    /// A record that is gone and names a key. That it was in the log is the caller's to check.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn gone_mark(&mut self, leaf: &LeafRef<'_>) -> Result<(), Finding> {
        let before = self.chain.last().copied();
        let prev = Head {
            seq: Seq(leaf.seq.0.saturating_sub(1)),
            hash: leaf.prev,
        };
        let observed = self.chain.observe(leaf, prev);
        observed.map_err(|why| finding(leaf.seq.0, why))?;
        self.marked(before, leaf.seq.0)
    }

    /// A checkpoint over records that are gone, and the root that the tiles give for its size; after all marks up to there.
    ///
    /// # Errors
    /// As [`Self::note`].
    pub fn gone_note(
        &mut self,
        epoch: u64,
        note: &SignedCheckpoint,
        root: Hash32,
    ) -> Result<(), Finding> {
        self.note_at(epoch, note, note.checkpoint.size, root)
    }

    /// The size of the outside checkpoint, as long as it was not met.
    pub fn outside_size(&self) -> Option<u64> {
        let note = self.outside.checkpoint.as_ref();
        note.map(|note| note.checkpoint.size)
    }

    /// Meets the outside checkpoint where the records are gone, as [`Self::gone_note`].
    ///
    /// # Errors
    /// The outside knows better.
    pub fn gone_outside(&mut self, root: Hash32) -> Result<(), Finding> {
        let Some(note) = self.outside.checkpoint.take() else {
            return Ok(());
        };
        let size = note.checkpoint.size;
        self.compare(&note, "the outside checkpoint", size, root)
            .map_err(|why| finding(size, why))
    }

    /// Checkpoints that were right.
    pub const fn notes(&self) -> u64 {
        self.notes
    }

    /// The next record, which [`super::Scanner`] has found to follow the one before. `full` gets the tiles it fills.
    ///
    /// # Errors
    /// Its key does not follow, or the outside knows better.
    pub fn record(
        &mut self,
        leaf: &LeafRef<'_>,
        hash: Hash32,
        full: impl FnMut(Tile, &[Hash32]),
    ) -> Result<(), Finding> {
        let (before, size) = (self.chain.last().copied(), leaf.seq.0);
        let observed = self.chain.observe(leaf, self.head);
        observed.map_err(|why| finding(size, why))?;
        self.head = Head {
            seq: leaf.seq,
            hash,
        };
        self.edge.push(hash, full);
        self.marked(before, size)?;
        let is_here = |note: &SignedCheckpoint| note.checkpoint.size == size;
        if let Some(note) = self.outside.checkpoint.take_if(|note| is_here(note)) {
            let (size, root) = (self.edge.size(), self.edge.root());
            self.compare(&note, "the outside checkpoint", size, root)
                .map_err(|why| finding(size, why))?;
        }
        Ok(())
    }

    /// The record `size` may have begun an epoch.
    fn marked(&mut self, before: Option<Epoch>, size: u64) -> Result<(), Finding> {
        let now = self.chain.last().copied();
        if now == before {
            return Ok(());
        }
        if let Some((epoch, size)) = self.unclosed {
            let why = format!("the checkpoint that closes epoch {} is gone", epoch.number);
            return Err(finding(size, why));
        }
        self.unclosed = before.map(|epoch| (epoch, size));
        if before.is_none()
            && let (Some(wanted), Some(first)) = (self.outside.first_key, now)
            && wanted != first.key
        {
            return Err(finding(size, "the log does not begin with that key"));
        }
        Ok(())
    }

    /// A checkpoint of the log's own, out of this epoch's file, when as many records have passed as it is over.
    ///
    /// # Errors
    /// It is not what the records give, or not that epoch's to sign.
    pub fn note(&mut self, epoch: u64, note: &SignedCheckpoint) -> Result<(), Finding> {
        self.note_at(epoch, note, self.edge.size(), self.edge.root())
    }

    fn note_at(
        &mut self,
        epoch: u64,
        note: &SignedCheckpoint,
        size: u64,
        root: Hash32,
    ) -> Result<(), Finding> {
        self.compare(note, "the checkpoint", size, root)
            .map_err(|why| finding(size, why))?;
        let signer = self.chain.signer(size).map(|signer| signer.number);
        if signer != Some(epoch) {
            let why = format!("a checkpoint over {size} records lies among those of epoch {epoch}");
            return Err(finding(size, why));
        }
        if self
            .unclosed
            .is_some_and(|(closed, at)| closed.number == epoch && at == size)
        {
            self.unclosed = None;
        }
        self.notes += 1;
        Ok(())
    }

    fn compare(
        &self,
        note: &SignedCheckpoint,
        what: &str,
        size: u64,
        root: Hash32,
    ) -> Result<(), String> {
        let checkpoint = &note.checkpoint;
        let Some(signer) = self.chain.signer(size) else {
            return Err(format!(
                "{what} over {size} records was signed when no key was named"
            ));
        };
        if self.chain.origin().as_ref() != Some(&checkpoint.origin) {
            return Err(format!("{what} is of another log, {}", checkpoint.origin));
        }
        if checkpoint.size != size || checkpoint.root != root {
            return Err(format!(
                "{what} over {size} records is not what the records give"
            ));
        }
        if !note.is_by(&signer.key) {
            let epoch = signer.number;
            return Err(format!(
                "{what} over {size} records is not signed by the key of epoch {epoch}"
            ));
        }
        Ok(())
    }

    /// After the last record.
    ///
    /// # Errors
    /// The outside knows of more.
    pub fn end(&self) -> Result<(), Finding> {
        let size = self.edge.size();
        if let Some(note) = &self.outside.checkpoint {
            let over = note.checkpoint.size;
            let own = self.chain.origin();
            let why = if over > size {
                format!("the log ends before it, and the outside checkpoint is over {over} records")
            } else {
                format!(
                    "the outside checkpoint of {} was not met",
                    note.checkpoint.origin
                )
            };
            let seq = if own.as_ref() == Some(&note.checkpoint.origin) {
                size.saturating_add(1)
            } else {
                1
            };
            return Err(finding(seq, why));
        }
        match (self.outside.first_key, self.chain.first()) {
            (Some(key), None) => {
                let why = format!("the log names no key, and should be {}", origin(&key));
                Err(finding(1, why))
            }
            _ => Ok(()),
        }
    }
}
