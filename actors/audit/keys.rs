//! The epoch keys' files: `STATE/keys/audit-<epoch, 16 digits>.key`, sealed under the machine's identity; and beside each,
//! as `.at`, how many records the log is known to have had.

use super::error::AuditError;
use super::files;
use crate::plain;
use crate::supervision::Flag;
use portcullis_core::audit::{EpochKey, EpochSealer, Head};
use portcullis_core::identity::Identity;
use portcullis_core::seal::NONCE;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Larger than any of them.
const MAX_FILE: usize = 1_024;

/// Where the keys lie, and what opens them. Cannot be printed.
#[derive(Clone)]
pub struct AuditKeys {
    dir: PathBuf,
    sealer: EpochSealer,
    /// The newest record that this process has made durable: a room that restarts must find it.
    acknowledged: Arc<Flag<Option<Head>>>,
}

impl AuditKeys {
    /// The keys in `dir` (`STATE/keys`), sealed under this identity.
    pub fn new(dir: impl Into<PathBuf>, identity: &Identity) -> Self {
        Self {
            dir: dir.into(),
            sealer: EpochSealer::new(identity),
            acknowledged: Arc::default(),
        }
    }

    /// The newest record that this process has made durable, through every life of the room.
    pub(super) fn acknowledged(&self) -> Option<Head> {
        self.acknowledged.get()
    }

    /// This record is durable.
    pub(super) fn acknowledge(&self, head: Head) {
        self.acknowledged.set(Some(head));
    }

    fn path(&self, epoch: u64) -> PathBuf {
        self.dir.join(format!("audit-{epoch:016}.key"))
    }

    fn path_reached(&self, epoch: u64) -> PathBuf {
        self.path(epoch).with_extension("at")
    }

    /// The epochs whose keys are there.
    pub(super) fn list(&self) -> Result<Vec<u64>, AuditError> {
        let failed = |error: io::Error| AuditError::reading("the folder of keys", &error);
        plain::is_folder(&self.dir).map_err(failed)?;
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut epochs = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let digits = name
                .to_str()
                .and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".key"));
            epochs.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
        }
        epochs.sort_unstable();
        Ok(epochs)
    }

    /// All that are there, and the epochs of those that were being destroyed.
    pub(super) fn open_all(&self) -> Result<(BTreeMap<u64, EpochKey>, Vec<u64>), AuditError> {
        let (mut keys, mut wiped) = (BTreeMap::new(), Vec::new());
        for epoch in self.list()? {
            let file = plain::read(&self.path(epoch), MAX_FILE)
                .map_err(|error| AuditError::reading("a key of the audit log", &error))?;
            if file.iter().all(|byte| *byte == 0) {
                wiped.push(epoch);
                continue;
            }
            let key = self.sealer.open(epoch, &file);
            let key = key.map_err(|error| AuditError::Key(format!("epoch {epoch}: {error}")))?;
            keys.insert(epoch, key);
        }
        Ok((keys, wiped))
    }

    /// Makes the key of an epoch, which is to be named by the record behind `size` others; durable when this returns. One
    /// that was never named gives way.
    pub(super) fn make(&self, epoch: u64, size: u64) -> io::Result<EpochKey> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(io::Error::other)?;
        let key = EpochKey::from_random(&seed);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        self.destroy(epoch)?;
        self.forget_parts()?;
        // First: a key without it tells that somebody took it away.
        self.reach(epoch, size)?;
        let sealed = self.sealer.seal(epoch, &key, &nonce()?);
        self.replace(&self.path(epoch), &sealed)?;
        Ok(key)
    }

    /// Writes down, durably, that the log has so many durable records in this epoch.
    pub(super) fn reach(&self, epoch: u64, size: u64) -> io::Result<()> {
        let sealed = self.sealer.seal_reached(epoch, size, &nonce()?);
        self.replace(&self.path_reached(epoch), &sealed)
    }

    /// What was written down last; `None`: nothing ever was.
    pub(super) fn reached(&self, epoch: u64) -> Result<Option<u64>, AuditError> {
        let file = match plain::read(&self.path_reached(epoch), MAX_FILE) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(AuditError::reading("the size of the audit log", &error)),
        };
        let size = self.sealer.open_reached(epoch, &file);
        let wrong =
            |error| AuditError::Key(format!("the size of the log in epoch {epoch}: {error}"));
        size.map(Some).map_err(wrong)
    }

    /// Writes down, durably, that retention may have removed the records up to here: the word of no epoch, so of number 0.
    pub(super) fn retire(&self, until: u64) -> io::Result<()> {
        self.reach(0, until)
    }

    /// How far retention may have come.
    pub(super) fn retired(&self) -> Result<u64, AuditError> {
        self.reached(0).map(Option::unwrap_or_default)
    }

    /// What was being written when an earlier start was killed.
    fn forget_parts(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let part = name
                .to_str()
                .and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".new"));
            if part.is_some() {
                plain::remove(&self.dir.join(name))?;
            }
        }
        Ok(())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = files::create_new(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        self.sync()
    }

    /// Overwrites the key of an epoch and removes it, durably. What the disk keeps of old blocks is the disk's.
    pub(super) fn destroy(&self, epoch: u64) -> io::Result<()> {
        let path = self.path(epoch);
        match plain::open(File::options().write(true), &path) {
            Ok(mut file) => {
                let len = file.metadata()?.len().min(MAX_FILE as u64);
                file.write_all(&vec![0; usize::try_from(len).unwrap_or(0)])?;
                file.sync_all()?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        // Before the key: a stop in between leaves a wiped key, which the next start takes for one to be destroyed.
        match fs::remove_file(self.path_reached(epoch)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::remove_file(&path)?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        let parent = self.dir.parent().unwrap_or(Path::new("."));
        for folder in [self.dir.as_path(), parent] {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

fn nonce() -> io::Result<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}
