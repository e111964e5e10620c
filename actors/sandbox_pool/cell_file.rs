//! The embedded cell as a file: `run/cell-<sha256>`, 0555, there whole or not at all, and checked on each start of the daemon.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::plain;
use portcullis_core::ids::Hash32;

/// Writes the cell below `run_root` (which must exist) unless a file with exactly these bytes, this mode and this owner is there
/// already. Returns its path and digest. Blocking: about 2 ms.
pub fn place(run_root: &Path, bytes: &[u8]) -> io::Result<(PathBuf, Hash32)> {
    let digest = Hash32::of(bytes);
    let path = run_root.join(format!("cell-{digest}"));
    // As a kill left it.
    plain::remove(&path.with_extension("new"))?;
    if !intact(&path, bytes)? {
        write(&path, bytes)?;
        if !intact(&path, bytes)? {
            return Err(io::Error::other(format!(
                "{} is not what was written to it",
                path.display()
            )));
        }
    }
    Ok((path, digest))
}

fn intact(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let mut file = match plain::open(fs::OpenOptions::new().read(true), path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        // A link, a pipe: not ours, replaced below.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(false),
        other => other?,
    };
    let data = file.metadata()?;
    let owner = rustix::process::geteuid().as_raw();
    if data.mode() & 0o7777 != 0o555 || data.uid() != owner || data.len() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut found = Vec::with_capacity(bytes.len());
    file.read_to_end(&mut found)?;
    Ok(found == bytes)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    plain::remove(&new)?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o500)
        .open(&new)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(0o555))?;
    file.sync_all()?;
    drop(file);
    plain::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_cell_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (path, digest) = place(folder.path(), b"the cell").unwrap();
        assert_eq!(
            path.file_name().unwrap().to_str().unwrap(),
            format!("cell-{digest}")
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o555);
        for spoil in [
            |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap(),
            |path: &Path| {
                fs::remove_file(path).unwrap();
                fs::write(path, "not it!!").unwrap();
            },
            |path: &Path| {
                fs::remove_file(path).unwrap();
                std::os::unix::fs::symlink("/bin/sh", path).unwrap();
            },
        ] {
            spoil(&path);
            assert_eq!(place(folder.path(), b"the cell").unwrap().0, path);
            assert_eq!(fs::read(&path).unwrap(), b"the cell");
            assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, 0o555);
        }
    }
}
