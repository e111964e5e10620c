//! The files of checkpoints, `checkpoints/<epoch, 16 digits>`: signed notes one behind the other. And `first.pub`: the first
//! public key of the log, for whoever verifies it.

use super::error::{AuditError, Fault};
use super::files;
use portcullis_core::audit::note::{origin, parse_first_key, verifier_key};
use portcullis_core::audit::{Notes, PublicKey, Seq, SignedCheckpoint};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The largest file that is read: an epoch is a segment at most.
const MAX_FILE: usize = 64 * 1024 * 1024;

fn folder(dir: &Path) -> PathBuf {
    dir.join("checkpoints")
}

fn path(dir: &Path, epoch: u64) -> PathBuf {
    folder(dir).join(format!("{epoch:016}"))
}

fn unreadable(error: &io::Error) -> AuditError {
    AuditError::reading("the checkpoints", error)
}

/// The epochs that have checkpoints, rising.
pub(super) fn epochs(dir: &Path) -> Result<Vec<u64>, AuditError> {
    let entries = match fs::read_dir(folder(dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(&error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| unreadable(&error))?.file_name();
        let digits = name.to_str().filter(|name| name.len() == 16);
        found.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

fn load(dir: &Path, epoch: u64) -> Result<(Notes, Vec<u8>), AuditError> {
    match files::read_limited(&path(dir, epoch), MAX_FILE) {
        Ok(bytes) => Ok((Notes::read(&bytes), bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Notes::read(&[]), Vec::new())),
        Err(error) => Err(unreadable(&error)),
    }
}

fn altered(epoch: u64, notes: &Notes, why: &str) -> AuditError {
    let size = notes.all.last().map_or(0, |note| note.checkpoint.size);
    AuditError::Altered(Fault {
        seq: Seq(size.saturating_add(1)),
        segment: Seq(0),
        offset: notes.whole as u64,
        why: format!("in the checkpoints of epoch {epoch}: {why}"),
    })
}

/// The checkpoints of an epoch. Where a crash may have left one half written, that is passed over.
pub(super) fn read(
    dir: &Path,
    epoch: u64,
    may_be_cut: bool,
) -> Result<Vec<SignedCheckpoint>, AuditError> {
    let (notes, bytes) = load(dir, epoch)?;
    let is_cut = may_be_cut && has_lost_sectors(&bytes, notes.whole);
    if let Some(flaw) = notes.flaw.filter(|_| !is_cut) {
        return Err(altered(epoch, &notes, &flaw.to_string()));
    }
    if notes.whole < bytes.len() && !may_be_cut {
        return Err(altered(epoch, &notes, "the last one is cut short"));
    }
    Ok(notes.all)
}

/// What a power cut leaves of what was not synced: sectors that never arrived, which read as zeros. A note has none.
fn has_lost_sectors(bytes: &[u8], whole: usize) -> bool {
    const SECTOR: usize = 512;
    // One changed byte is none.
    const LEAST: usize = 8;
    let first = whole / SECTOR * SECTOR;
    (first..bytes.len()).step_by(SECTOR).any(|start| {
        let part = &bytes[start.max(whole)..bytes.len().min(start + SECTOR)];
        // From where it ended when the sector was last written, if it was.
        part.iter().rev().take_while(|byte| **byte == 0).count() >= LEAST
    })
}

/// For going on behind them: what was being written, or did not arrive, is cut off; anything else is refused. None where
/// there is no file.
pub(super) fn recover(dir: &Path, epoch: u64) -> Result<Notes, AuditError> {
    let (mut notes, bytes) = load(dir, epoch)?;
    if let Some(flaw) = notes
        .flaw
        .take_if(|_| !has_lost_sectors(&bytes, notes.whole))
    {
        return Err(altered(epoch, &notes, &flaw.to_string()));
    }
    notes.flaw = None;
    if notes.whole < bytes.len() {
        OpenOptions::new()
            .write(true)
            .custom_flags(files::nofollow())
            .open(path(dir, epoch))
            .and_then(|file| file.set_len(notes.whole as u64))
            .map_err(|error| AuditError::writing(&error))?;
    }
    Ok(notes)
}

/// The file that an epoch's checkpoints go to.
pub(super) struct NoteFile {
    dir: PathBuf,
    epoch: u64,
    file: Option<File>,
    /// Bytes of whole checkpoints.
    len: u64,
}

impl NoteFile {
    /// The one of this epoch, with so many bytes in it.
    pub(super) fn new(dir: &Path, epoch: u64, len: usize) -> Self {
        Self {
            dir: dir.to_owned(),
            epoch,
            file: None,
            len: len as u64,
        }
    }

    /// Adds a checkpoint. Synced only where that is asked for: the records that it is about are durable, and any later one
    /// says more.
    pub(super) fn append(&mut self, note: &SignedCheckpoint, sync: bool) -> io::Result<()> {
        let text = note.to_text();
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        let written = file.write_all(text.as_bytes());
        if let Err(error) = written {
            // What cannot be cut back now is cut by the next start.
            let _ = file.set_len(self.len);
            return Err(error);
        }
        self.len += text.len() as u64;
        if sync {
            file.sync_all()?;
        }
        self.file = Some(file);
        Ok(())
    }

    fn open(&self) -> io::Result<File> {
        let folder = folder(&self.dir);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => File::open(&self.dir)?.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(files::nofollow())
            .open(path(&self.dir, self.epoch))?;
        file.set_len(self.len)?;
        File::open(folder)?.sync_all()?;
        Ok(file)
    }
}

/// Writes down the log's first public key.
pub(super) fn write_first(dir: &Path, key: &PublicKey) -> io::Result<()> {
    let path = dir.join("first.pub");
    let new = dir.join("first.new");
    let mut file = files::create_new(&new)?;
    file.write_all(format!("{}\n", verifier_key(&origin(key), key)).as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)?;
    File::open(dir)?.sync_all()
}

/// Whether [`read_first`] says something else than this key; not where there is no such file.
pub(super) fn contradicts(dir: &Path, key: Option<PublicKey>) -> Result<bool, AuditError> {
    match fs::symlink_metadata(dir.join("first.pub")) {
        Ok(_) => {
            let written = read_first(dir);
            Ok(written.is_none() || written != key)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(unreadable(&error)),
    }
}

/// The log's first public key, as it was written down.
pub(super) fn read_first(dir: &Path) -> Option<PublicKey> {
    let bytes = files::read_limited(&dir.join("first.pub"), 1_024).ok()?;
    parse_first_key(std::str::from_utf8(&bytes).ok()?.strip_suffix('\n')?)
}

#[cfg(test)]
mod tests {
    use super::has_lost_sectors;

    /// The bug: a power cut that lost checkpoints which were not synced yet was taken for an altered log.
    #[test]
    fn sectors_that_never_arrived_are_told_from_a_changed_byte() {
        let mut bytes = vec![b'x'; 3_000];
        assert!(!has_lost_sectors(&bytes, 600));
        bytes[700] = 0;
        bytes[2_999] = 0;
        assert!(!has_lost_sectors(&bytes, 600));
        bytes[1_024..1_536].fill(0);
        assert!(has_lost_sectors(&bytes, 600));
        // Behind what is whole in its sector, too; what is whole is not looked at.
        let mut bytes = vec![b'x'; 1_000];
        bytes[700..].fill(0);
        assert!(has_lost_sectors(&bytes, 700));
        assert!(!has_lost_sectors(&bytes[..1_000], 1_000));
    }
}
