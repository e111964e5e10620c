//! How far each sink has come: `STATE/sinks/NAME`, the number of the last record that its receiver has taken.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// No number is longer.
const MAX_FILE: u64 = 32;

/// The place where one sink's is kept.
#[derive(Debug, Clone)]
pub struct Cursor {
    dir: PathBuf,
    name: String,
}

impl Cursor {
    /// Of this sink; `dir` is `STATE/sinks`.
    pub fn new(dir: &Path, name: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Reads it; 0 where nothing was taken yet.
    ///
    /// # Errors
    /// It cannot be read, or is no number: what was taken is not known.
    pub fn read(&self) -> io::Result<u64> {
        let path = self.dir.join(&self.name);
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let none = || io::Error::new(io::ErrorKind::InvalidData, "the cursor is no number");
        if !meta.is_file() || meta.len() > MAX_FILE {
            return Err(none());
        }
        let text = fs::read_to_string(&path)?;
        let digits = text.strip_suffix('\n').ok_or_else(none)?;
        digits.parse().map_err(|_| none())
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, taken: u64) -> io::Result<()> {
        let new = self.dir.join(format!("{}.new", self.name));
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(format!("{taken}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(&self.name))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Makes the folder of all.
    ///
    /// # Errors
    /// The disk's.
    pub fn folder(dir: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }
}
