//! The files of checkpoints, `checkpoints/<epoch, 16 digits>`: signed notes one behind the other. And `first.pub`: the first
//! public key of the log, for whoever verifies it.

use super::error::{AuditError, Fault};
use super::files;
use crate::plain;
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
    if !files::has_folder(&folder(dir))? {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder(dir)).map_err(|error| unreadable(&error))?;
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
    match plain::read(&path(dir, epoch), MAX_FILE) {
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

/// The checkpoints of an epoch. Where a crash may have left one half written, or parts that never arrived, that is passed over
/// and told.
pub(super) fn read(
    dir: &Path,
    epoch: u64,
    may_be_cut: bool,
) -> Result<(Vec<SignedCheckpoint>, bool), AuditError> {
    let (notes, bytes) = load(dir, epoch)?;
    let is_cut = may_be_cut && has_lost_parts(&bytes, notes.whole);
    if let Some(flaw) = notes.flaw.filter(|_| !is_cut) {
        return Err(altered(epoch, &notes, &flaw.to_string()));
    }
    if notes.whole < bytes.len() && !may_be_cut {
        return Err(altered(epoch, &notes, "the last one is cut short"));
    }
    Ok((notes.all, notes.whole < bytes.len()))
}

/// What a power cut leaves of what was not synced: parts that never arrived, which read as zeros, be it three bytes at the
/// start of a sector. A note has none. Whoever can write one could as well cut the file there, so this hides nothing.
fn has_lost_parts(bytes: &[u8], whole: usize) -> bool {
    bytes[whole..].contains(&0)
}

/// For going on behind them: what was being written, or did not arrive, is passed over, and is to be [`cut`] off; anything
/// else is refused. None where there is no file.
pub(super) fn recover(dir: &Path, epoch: u64) -> Result<Notes, AuditError> {
    let (mut notes, bytes) = load(dir, epoch)?;
    if let Some(flaw) = notes.flaw.take_if(|_| !has_lost_parts(&bytes, notes.whole)) {
        return Err(altered(epoch, &notes, &flaw.to_string()));
    }
    notes.flaw = None;
    Ok(notes)
}

/// Cuts the file of an epoch behind its whole checkpoints.
pub(super) fn cut(dir: &Path, epoch: u64, whole: usize) -> io::Result<()> {
    let path = path(dir, epoch);
    match plain::open(File::options().write(true), &path) {
        Ok(file) if file.metadata()?.len() > whole as u64 => file.set_len(whole as u64),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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
        // One that was not synced where that was asked for is no more there than half a one: it is written again.
        let written = written.and_then(|()| if sync { file.sync_all() } else { Ok(()) });
        if let Err(error) = written {
            // What cannot be cut back now is cut when the file is opened again.
            let _ = file.set_len(self.len);
            return Err(error);
        }
        self.len += text.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    fn open(&self) -> io::Result<File> {
        let folder = folder(&self.dir);
        plain::is_folder(&folder)?;
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => File::open(&self.dir)?.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        let file = plain::open(&options, &path(&self.dir, self.epoch))?;
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
    plain::rename(&new, &path)?;
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
    let bytes = plain::read(&dir.join("first.pub"), 1_024).ok()?;
    parse_first_key(std::str::from_utf8(&bytes).ok()?.strip_suffix('\n')?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::audit::{Checkpoint, Hash32};

    fn note(size: u64) -> SignedCheckpoint {
        let key = PublicKey([7; 32]);
        let checkpoint = Checkpoint {
            origin: origin(&key),
            size,
            root: Hash32([size.to_le_bytes()[0]; 32]),
        };
        SignedCheckpoint::new(checkpoint, &key, [9; 64])
    }

    fn recovered(bytes: &[u8]) -> Result<Vec<u64>, AuditError> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(folder(dir.path())).unwrap();
        fs::write(path(dir.path(), 1), bytes).unwrap();
        let size = |note: &SignedCheckpoint| note.checkpoint.size;
        let read = read(dir.path(), 1, true);
        let read = read.map(|(all, _)| all.iter().map(size).collect::<Vec<_>>());
        let notes = recover(dir.path(), 1)?;
        let sizes: Vec<u64> = notes.all.iter().map(size).collect();
        assert_eq!(read.unwrap(), sizes);
        cut(dir.path(), 1, notes.whole).unwrap();
        assert_eq!(fs::read(path(dir.path(), 1)).unwrap().len(), notes.whole);
        Ok(sizes)
    }

    /// The bug: a power cut that lost checkpoints which were not synced yet was taken for an altered log. Every way in which
    /// sectors of six notes, each written by itself, may have been lost, over sizes that move where the sectors end.
    #[test]
    fn whatever_a_power_cut_loses_of_checkpoints_is_cut_off_and_not_called_altered() {
        for moved in 0..4 {
            let texts: Vec<String> = (0..6_u64)
                .map(|n| note(10_u64.pow(moved) + n).to_text())
                .collect();
            let whole: Vec<u8> = texts.concat().into_bytes();
            // What of each write lies in one sector arrives whole or not at all.
            let (mut parts, mut at) = (Vec::new(), 0);
            for text in &texts {
                let end = at + text.len();
                while at < end {
                    let upto = ((at / 512 + 1) * 512).min(end);
                    parts.push(at..upto);
                    at = upto;
                }
            }
            assert!(parts.len() > texts.len());
            for kept in 0..1_u32 << parts.len() {
                let mut bytes = Vec::new();
                for (n, part) in parts.iter().enumerate() {
                    if kept >> n & 1 == 1 {
                        bytes.resize(bytes.len().max(part.end), 0);
                        bytes[part.clone()].copy_from_slice(&whole[part.clone()]);
                    }
                }
                let first_lost = (!kept).trailing_zeros() as usize;
                let arrived = parts.get(first_lost).map_or(whole.len(), |part| part.start);
                let mut ends = texts.iter().scan(0, |end, text| {
                    *end += text.len();
                    Some(*end)
                });
                let least = ends.by_ref().take_while(|end| *end <= arrived).count();
                let found = recovered(&bytes).unwrap_or_else(|error| panic!("{kept:b}: {error}"));
                assert_eq!(found.len(), least, "{kept:b}");
            }
        }
    }

    #[test]
    fn a_changed_byte_in_a_checkpoint_is_no_lost_part() {
        let bytes: Vec<u8> = (1..4).map(|n| note(n).to_text()).collect::<String>().into();
        assert_eq!(recovered(&bytes).unwrap(), [1, 2, 3]);
        // The last line end makes it one that was being written.
        for at in 0..bytes.len() - 1 {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(folder(dir.path())).unwrap();
            fs::write(path(dir.path(), 1), &changed).unwrap();
            let is_same = |notes: &[SignedCheckpoint]| {
                let all: String = notes.iter().map(SignedCheckpoint::to_text).collect();
                all.as_bytes() == changed
            };
            // Another text of the same form is for the signature to refuse.
            match recover(dir.path(), 1) {
                Ok(notes) => assert!(is_same(&notes.all), "byte {at}"),
                Err(error) => assert!(matches!(error, AuditError::Altered(_)), "{error}"),
            }
        }
    }
}
