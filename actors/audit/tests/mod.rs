//! The log on real files: what it keeps, what it refuses, how it ends and begins again.

#![allow(
    clippy::disallowed_methods,
    reason = "tests may sleep and spawn; what they test may not"
)]

mod child;
mod crash;
mod epochs;
mod forged;
mod histories;
mod odd;
mod replaced;
mod retention;
mod room;
mod tiles;
mod writer;

use super::config::AuditConfig;
use super::error::AuditError;
use super::keys::AuditKeys;
use super::log::{Clock, LogSpec, OpenReport};
use super::messages::Refused;
use super::offline::{verify_dir, verify_dir_against};
use super::read::tail_dir;
use super::writer::{Answer, Job, Look, NotTaken, Writer};
use crate::supervision::{Feed, Flag, FlagReader};
use portcullis_core::audit::verify::Outside;
use portcullis_core::audit::{Body, BootId, Entry, Head, Once, Outcome, Record, Seq};
use portcullis_core::identity::Identity;
use std::path::{Path, PathBuf};
use tokio::sync::oneshot;

/// A log directory of its own, under a temporary folder.
struct Place {
    _folder: tempfile::TempDir,
    dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("audit");
        Self {
            _folder: folder,
            dir,
        }
    }

    /// Opens as a daemon start of its own, named by one byte.
    fn open(&self, boot: u8) -> Open {
        self.try_open(boot).unwrap()
    }

    fn try_open(&self, boot: u8) -> Result<Open, AuditError> {
        try_open(&self.dir, boot, AuditConfig::default())
    }

    fn segment(&self, first: u64) -> PathBuf {
        self.dir.join(format!("{first:016}.log"))
    }

    fn records(&self) -> Vec<Record> {
        tail_dir(&self.dir, usize::MAX).unwrap()
    }

    fn head(&self) -> Head {
        let last = self.records().pop().unwrap();
        Head {
            seq: last.seq,
            hash: last.hash,
        }
    }

    /// Bytes at the end of the last segment, past the writer.
    fn add(&self, bytes: &[u8]) {
        let last = super::files::segments(&self.dir).unwrap().pop().unwrap();
        let path = self.segment(last.0);
        let mut all = std::fs::read(&path).unwrap();
        all.extend_from_slice(bytes);
        std::fs::write(path, all).unwrap();
    }
}

/// The keys beside a log.
fn keys(dir: &Path) -> AuditKeys {
    AuditKeys::new(dir.with_file_name("keys"), &Identity::from_random([1; 32]))
}

/// An open log, driven without the room.
struct Open {
    writer: Writer,
    report: OpenReport,
}

fn try_open(dir: &Path, boot: u8, config: AuditConfig) -> Result<Open, AuditError> {
    try_open_over(dir, boot, config, None)
}

/// Over a state that has come so far.
fn try_open_over(
    dir: &Path,
    boot: u8,
    config: AuditConfig,
    state: Option<FlagReader<u64>>,
) -> Result<Open, AuditError> {
    let spec = LogSpec {
        dir: dir.to_owned(),
        keys: keys(dir),
        config,
        boot: BootId([boot; 16]),
        clock: Clock::new(),
        version: "test".into(),
        state,
    };
    let (writer, report) = Writer::open(spec, Feed::new(), std::sync::Arc::default())?;
    Ok(Open { writer, report })
}

impl Open {
    fn send(&self, body: Body) -> oneshot::Receiver<Result<Seq, AuditError>> {
        let (tx, rx) = oneshot::channel();
        match self
            .writer
            .submit(Job::Append(Box::new(body), Answer::Own(tx)))
        {
            Ok(()) => rx,
            Err(NotTaken::Full(_)) => panic!("the queue is full"),
            Err(NotTaken::Gone) => panic!("the writer is gone"),
        }
    }

    fn append(&self, body: Body) -> Result<Seq, AuditError> {
        self.send(body).blocking_recv().unwrap()
    }

    fn intent(&self, action: &str) -> Seq {
        self.append(Body::intent(Entry::new(action)).unwrap())
            .unwrap()
    }

    fn once(&self, principal: &str, key: &str) -> Once {
        self.try_once(principal, key).unwrap()
    }

    fn try_once(&self, principal: &str, key: &str) -> Result<Once, AuditError> {
        let entry = Entry {
            principal: Some(principal.into()),
            idempotency_key: Some(key.into()),
            ..Entry::new("exec.run")
        };
        let (tx, rx) = oneshot::channel();
        let job = Job::Once(
            Box::new(Body::intent(entry).unwrap()),
            Refused::Stands,
            Answer::Own(tx),
        );
        assert!(self.writer.submit(job).is_ok());
        rx.blocking_recv().unwrap()
    }

    fn look(&self, is_signed: bool) -> Result<Look, AuditError> {
        let (tx, rx) = oneshot::channel();
        let job = Job::Look(Answer::Own(tx), is_signed);
        assert!(self.writer.submit(job).is_ok());
        rx.blocking_recv().unwrap()
    }

    fn outcome(&self, intent: Seq, outcome: Outcome) -> Result<Seq, AuditError> {
        self.append(Body::outcome(intent, outcome).unwrap())
    }

    /// In order, with a stop mark.
    fn close(self) {
        self.try_close().unwrap();
    }

    fn try_close(self) -> Result<Seq, AuditError> {
        let (tx, rx) = oneshot::channel();
        assert!(self.writer.submit(Job::Close(Answer::Own(tx))).is_ok());
        let closed = rx.blocking_recv().unwrap();
        self.writer.join();
        closed
    }

    /// As a crash of the process leaves it: no stop mark, the lock gone.
    fn crash(self) {
        self.writer.join();
    }
}

fn event(n: u64) -> Body {
    Body::event(Entry::new("test.event").with("n", n.to_string())).unwrap()
}

fn intact(dir: &Path) -> u64 {
    let report = verify_dir(dir).unwrap();
    assert!(report.intact, "{:?}", report.first_break);
    report.head.seq.0
}
