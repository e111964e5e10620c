//! The one way to the store's threads.

use super::engine::Engine;
use super::messages::{
    Answer, CommitError, Entry, Job, MAX_OPS, Object, Op, Revision, StoreError, check_kind,
};
use super::threads;
use crate::supervision::{Flag, FlagReader};
use portcullis_core::row::RowKey;
use std::path::Path;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

const QUEUE: usize = 1_024;
const MAX_LIST: usize = 1_000;
const WITHIN: Duration = Duration::from_secs(5);

/// Handle to the store. Cloning it is cheap; the threads end when the last clone is dropped.
#[derive(Clone)]
pub struct Store {
    writer: mpsc::Sender<Job>,
    readers: Vec<mpsc::Sender<Job>>,
    revision: FlagReader<u64>,
}

impl Store {
    /// As [`Self::open_under`], without a machine: its tags are checksums and no more.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_under(path, &RowKey::none())
    }

    /// Opens or makes the database file (0600) and starts one writer and two readers. Blocking: call it before the
    /// loops run. Checks the whole file (about 1 ms a MiB), and the tag of every row that its room takes as it
    /// lies there.
    pub fn open_under(path: &Path, key: &RowKey) -> Result<Self, StoreError> {
        Self::open_where(path, key, true)
    }

    /// As [`Self::open_under`]; where it may not make one, because a log speaks of one that was there, a file without rows is refused
    /// as it lies.
    pub fn open_where(path: &Path, key: &RowKey, may_make: bool) -> Result<Self, StoreError> {
        let writer = Engine::open_writer(path, key.clone(), may_make)?;
        let reached = Flag::new(writer.revision()?);
        let revision = reached.reader();
        let reader = || Engine::open_reader(path, key.clone());
        let readers = [reader()?, reader()?];
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .stack_size(512 << 10)
                .spawn(run)
                .map_err(|error| StoreError::Io(error.to_string()))
        };
        let (to_writer, jobs) = mpsc::channel(QUEUE);
        spawn(
            "store-write",
            Box::new(move || threads::write(writer, jobs, &reached)),
        )?;
        let mut to_readers = Vec::with_capacity(readers.len());
        for reader in readers {
            let (to_reader, jobs) = mpsc::channel(QUEUE);
            spawn("store-read", Box::new(move || threads::read(reader, jobs)))?;
            to_readers.push(to_reader);
        }
        Ok(Self {
            writer: to_writer,
            readers: to_readers,
            revision,
        })
    }

    /// A store that ends with the process, for tests: its calls never let a paused clock run on.
    pub fn in_memory() -> Result<Self, StoreError> {
        let engine = Engine::in_memory()?;
        let (writer, jobs) = mpsc::channel(QUEUE);
        let reached = Flag::new(0);
        let revision = reached.reader();
        std::thread::Builder::new()
            .name("store-memory".to_owned())
            .spawn(move || threads::write(engine, jobs, &reached))
            .map_err(|error| StoreError::Io(error.to_string()))?;
        Ok(Self {
            writer,
            readers: Vec::new(),
            revision,
        })
    }

    /// One row.
    pub async fn get(&self, kind: &str, id: &str) -> Result<Option<Object>, StoreError> {
        check_kind(kind)?;
        let (kind, id) = (kind.to_owned(), id.to_owned());
        self.ask(self.reader(), false, |reply| Job::Get { kind, id, reply })
            .await?
    }

    /// Rows of a kind in the order of their ids, after `after`; at most 1,000.
    pub async fn list(
        &self,
        kind: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Object>, StoreError> {
        check_kind(kind)?;
        let (kind, after, limit) = (
            kind.to_owned(),
            after.map(str::to_owned),
            limit.min(MAX_LIST),
        );
        self.ask(self.reader(), false, |reply| Job::List {
            kind,
            after,
            limit,
            reply,
        })
        .await?
    }

    /// Every row of a kind, for a room that starts. Each page is consistent in itself.
    pub async fn list_all(&self, kind: &str) -> Result<Vec<Object>, StoreError> {
        let mut rows: Vec<Object> = Vec::new();
        loop {
            let after = rows.last().map(|row| row.id.clone());
            let page = self.list(kind, after.as_deref(), MAX_LIST).await?;
            let full = page.len() == MAX_LIST;
            rows.extend(page);
            if !full {
                return Ok(rows);
            }
        }
    }

    /// Entries of the list `(kind, id)` after a sequence; at most 1,000.
    pub async fn entries(
        &self,
        kind: &str,
        id: &str,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        check_kind(kind)?;
        let (kind, id, limit) = (kind.to_owned(), id.to_owned(), limit.min(MAX_LIST));
        self.ask(self.reader(), false, |reply| Job::Entries {
            kind,
            id,
            after,
            limit,
            reply,
        })
        .await?
    }

    /// The highest audit intent that any write, deletions included, was made under. Beyond the head of the audit log
    /// it says that the log was cut.
    pub async fn highest_intent(&self) -> Result<u64, StoreError> {
        self.ask(self.reader(), false, |reply| Job::HighestIntent { reply })
            .await?
    }

    /// How often the state was changed, durably: it only rises.
    pub fn revision(&self) -> FlagReader<u64> {
        self.revision.clone()
    }

    /// Applies all operations or none, durably: when it returns `Ok`, a power cut does not undo it. Conditions are
    /// judged against what earlier operations of the same commit have done.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Revision>, CommitError> {
        if ops.is_empty() || ops.len() > MAX_OPS {
            return Err(StoreError::Invalid("a commit has 1 to 256 operations").into());
        }
        for op in &ops {
            op.check()?;
        }
        self.ask(&self.writer, true, |reply| Job::Commit { ops, reply })
            .await?
    }

    /// Nothing that was replaced or deleted stands in the database's files when this returns; what the disk keeps of their old
    /// blocks is another matter.
    ///
    /// # Errors
    /// `STORE_BUSY` where a reader was in the way, and what a commit may meet.
    pub async fn scrub(&self) -> Result<(), StoreError> {
        self.ask(&self.writer, true, |reply| Job::Scrub { reply })
            .await?
    }

    /// Finishes what is queued, folds the write-ahead log into the file and closes it. Later calls get `STORE_DOWN`.
    pub async fn close(&self) -> Result<(), StoreError> {
        // The last connection to close removes the write-ahead log, and that is the writer's to do.
        for reader in &self.readers {
            self.ask(reader, false, |reply| Job::Close { reply })
                .await??;
        }
        self.ask(&self.writer, true, |reply| Job::Close { reply })
            .await?
    }

    /// Returns when the writer has ended, by [`Self::close`] or by a panic: for the supervisor.
    pub async fn stopped(&self) {
        self.writer.closed().await;
    }

    /// The reader with the shorter queue; in memory the writer reads.
    fn reader(&self) -> &mpsc::Sender<Job> {
        self.readers
            .iter()
            .max_by_key(|reader| reader.capacity())
            .unwrap_or(&self.writer)
    }

    async fn ask<T>(
        &self,
        to: &mpsc::Sender<Job>,
        writes: bool,
        make: impl FnOnce(Answer<T>) -> Job,
    ) -> Result<T, StoreError> {
        if self.readers.is_empty() {
            let (reply, answer) = std::sync::mpsc::sync_channel(1);
            to.try_send(make(Answer::Thread(reply)))
                .map_err(|error| refused(&error))?;
            return answer.recv().map_err(|_| StoreError::Down);
        }
        let (reply, answer) = oneshot::channel();
        to.try_send(make(Answer::Task(reply)))
            .map_err(|error| refused(&error))?;
        match tokio::time::timeout(WITHIN, answer).await {
            Ok(answer) => answer.map_err(|_| StoreError::Down),
            Err(_) => Err(StoreError::Deadline {
                may_have_run: writes,
            }),
        }
    }
}

fn refused(error: &mpsc::error::TrySendError<Job>) -> StoreError {
    match error {
        mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
        mpsc::error::TrySendError::Closed(_) => StoreError::Down,
    }
}
