//! Files that are there whole or not at all.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use portcullis_core::encoding::hex;

/// Puts these bytes in a file's place, for its owner alone (0600): written beside it, synced, then moved, so that whatever
/// ends this leaves the old file or the new one.
///
/// # Errors
/// Of the file system; nothing has changed then, or the change is not known to outlive a power cut.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut name = [0; 8];
    getrandom::fill(&mut name).map_err(io::Error::other)?;
    // Of nobody else: two may write at once.
    let part = folder.join(format!(".new-{}", hex(&name)));
    let written = (|| {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // It was never in its place, or is no more there.
        drop(std::fs::remove_file(&part));
    }
    written
}
