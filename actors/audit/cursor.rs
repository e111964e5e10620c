//! How far each sink has come: `STATE/sinks/NAME`, the number of the last record that its receiver has taken.

use super::files;
use crate::plain;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// No number is longer.
const MAX_FILE: usize = 32;

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
        if !plain::is_folder(&self.dir)? {
            return Ok(0);
        }
        let bytes = match plain::read(&path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let none = || io::Error::new(io::ErrorKind::InvalidData, "the cursor is no number");
        let text = std::str::from_utf8(&bytes).map_err(|_| none())?;
        let digits = text.strip_suffix('\n').ok_or_else(none)?;
        digits.parse().map_err(|_| none())
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, taken: u64) -> io::Result<()> {
        let new = self.dir.join(format!("{}.new", self.name));
        plain::is_folder(&self.dir)?;
        let mut file = files::create_new(&new)?;
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
        if plain::is_folder(dir)? {
            return Ok(());
        }
        DirBuilder::new().mode(0o700).create(dir)
    }
}
