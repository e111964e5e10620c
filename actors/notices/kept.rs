//! What a receiver was told to be open, kept over restarts: so it is told when that is over, and not told again that it is open.

use crate::plain;
use portcullis_core::ids::ApprovalId;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

/// The longest file: 16,384 of the longest ids.
const MOST: usize = 2 * 1024 * 1024;

/// The file of one receiver.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    /// `STATE/notices`.
    pub dir: PathBuf,
    /// The receiver's.
    pub name: &'static str,
}

impl Kept {
    /// One id a line; nothing where there is no file.
    pub fn read(&self) -> io::Result<BTreeSet<ApprovalId>> {
        if !plain::is_folder(&self.dir)? {
            return Ok(BTreeSet::new());
        }
        let bytes = match plain::read(&self.dir.join(self.name), MOST) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(error),
        };
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let ids = text.lines().map(ApprovalId::new);
        ids.collect::<Result<_, _>>()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Durable under its name, or as it was.
    pub fn write(&self, open: &BTreeSet<ApprovalId>) -> io::Result<()> {
        if !plain::is_folder(&self.dir)? {
            DirBuilder::new().mode(0o700).create(&self.dir)?;
        }
        let ids: Vec<&str> = open.iter().map(ApprovalId::as_str).collect();
        let text = ids.join("\n");
        let new = self.dir.join(format!("{}.new", self.name));
        plain::remove(&new)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // Not over what somebody else may have put there.
        plain::is_file(&self.dir.join(self.name))?;
        fs::rename(&new, self.dir.join(self.name))?;
        File::open(&self.dir)?.sync_all()
    }
}
