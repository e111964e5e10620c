//! The directory and the files of the log: names, modes, locks, durable creation.

use super::error::AuditError;
use crate::plain;
use portcullis_core::audit::{HEADER_BYTES, SegmentHeader, Seq};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a restart within this process waits for the old writer to end.
const OWN_LOCK_WAIT: Duration = Duration::from_secs(20);

/// Makes the directory (0700) if it is missing, and refuses one that others may enter.
pub(super) fn open_dir(path: &Path) -> Result<File, AuditError> {
    // A folder that is a link's end is somebody else's.
    plain::is_folder(path).map_err(|error| AuditError::reading("the directory", &error))?;
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            if let Some(parent) = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
            {
                sync_dir(parent).map_err(|error| AuditError::writing(&error))?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(AuditError::writing(&error)),
    }
    let dir = File::open(path).map_err(|error| AuditError::reading("the directory", &error))?;
    check_mode(&dir, path)?;
    Ok(dir)
}

fn check_mode(file: &File, path: &Path) -> Result<(), AuditError> {
    let mode = file
        .metadata()
        .map_err(|error| AuditError::reading("the mode", &error))?
        .mode();
    let open_to_others = mode & 0o077;
    if open_to_others != 0 {
        return Err(AuditError::Mode {
            path: path.display().to_string(),
            mode: mode & 0o7777,
        });
    }
    Ok(())
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Takes the one writer's lock and holds it as long as the file lives. A lock that this very process holds is an old
/// writer thread at its last records: it is waited for.
pub(super) fn lock(dir: &Path) -> Result<File, AuditError> {
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    let mut file = plain::open(&options, &path).map_err(|error| AuditError::writing(&error))?;
    let own = std::process::id().to_string();
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(AuditError::writing(&error)),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.rewind().and_then(|()| file.read_to_string(&mut pid));
                if pid.trim() != own || began.elapsed() > OWN_LOCK_WAIT {
                    let pid = match pid.trim() {
                        "" => "(unknown)".to_owned(),
                        pid => pid.chars().filter(char::is_ascii_digit).take(10).collect(),
                    };
                    return Err(AuditError::Locked { pid });
                }
                #[expect(
                    clippy::disallowed_methods,
                    reason = "on a blocking thread; a file lock cannot be awaited"
                )]
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    // The text is for people only; a full disk must not stop the reading of the log.
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(own.as_bytes()));
    Ok(file)
}

/// Whether this folder of the log's is there; a link in its place is followed by nobody.
pub(super) fn has_folder(path: &Path) -> Result<bool, AuditError> {
    let seen = plain::is_folder(path);
    seen.map_err(|error| AuditError::reading("a folder of the log", &error))
}

/// The segments' first sequences, rising.
pub(super) fn segments(dir: &Path) -> Result<Vec<Seq>, AuditError> {
    let unreadable = |error: io::Error| AuditError::reading("the directory", &error);
    let mut found = Vec::new();
    has_folder(dir)?;
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        found.extend(name.to_str().and_then(SegmentHeader::first_of_name));
    }
    found.sort_unstable();
    Ok(found)
}

/// The path of the segment that begins with `first`.
pub(super) fn segment_path(dir: &Path, first: Seq) -> PathBuf {
    dir.join(format!("{:016}.log", first.0))
}

/// Opens a segment for appending and locks it.
pub(super) fn open_segment(dir: &Path, first: Seq) -> io::Result<File> {
    let path = segment_path(dir, first);
    let file = plain::open(OpenOptions::new().read(true).append(true), &path)?;
    file.try_lock().map_err(io::Error::from)?;
    Ok(file)
}

/// Makes sure that this open segment is the one that lies at its place, with this length: what is written to another, a person
/// who restores files would never find again.
pub(super) fn is_in_place(dir: &Path, first: Seq, file: &File, len: u64) -> io::Result<()> {
    let (there, ours) = (
        segment_path(dir, first).symlink_metadata()?,
        file.metadata()?,
    );
    let why = if (there.dev(), there.ino()) != (ours.dev(), ours.ino()) {
        "another file lies where the segment was"
    } else if ours.len() == len {
        return Ok(());
    } else {
        "the segment was cut or written by somebody else"
    };
    Err(io::Error::other(why))
}

/// Whether nothing is behind this length but a beginning of these bytes.
pub(super) fn ends_with(file: &File, len: u64, bytes: &[u8]) -> io::Result<bool> {
    let Some(behind) = file.metadata()?.len().checked_sub(len) else {
        return Ok(false);
    };
    let Some(wanted) = usize::try_from(behind)
        .ok()
        .and_then(|end| bytes.get(..end))
    else {
        return Ok(false);
    };
    let mut there = vec![0; wanted.len()];
    file.read_exact_at(&mut there, len)?;
    Ok(there == wanted)
}

/// Opens a segment for reading.
pub(super) fn read_segment(dir: &Path, first: Seq) -> io::Result<File> {
    plain::open(File::options().read(true), &segment_path(dir, first))
}

/// Makes a file (0600) in place of one that a crash left.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    plain::remove(path)?;
    OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Makes a segment with its header, locked and durable under its name: a name never stands for half a header.
pub(super) fn create_segment(dir: &Path, dir_fd: &File, header: SegmentHeader) -> io::Result<File> {
    let path = segment_path(dir, header.first());
    match plain::read(&path, HEADER_BYTES + 1) {
        // Made by an attempt that failed after the rename: nothing was ever written behind its header.
        Ok(bytes) if bytes == header.encode() => {
            let file = open_segment(dir, header.first())?;
            file.sync_all()?;
            dir_fd.sync_all()?;
            return Ok(file);
        }
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let new = path.with_extension("new");
    let mut file = create_new(&new)?;
    file.try_lock().map_err(io::Error::from)?;
    file.write_all(&header.encode())?;
    file.sync_all()?;
    // Never over an existing segment.
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        &new,
        rustix::fs::CWD,
        &path,
        rustix::fs::RenameFlags::NOREPLACE,
    )?;
    dir_fd.sync_all()?;
    Ok(file)
}
