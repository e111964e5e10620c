//! The file of ours that is given to a box.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use portcullis_core::codes;

use super::super::failure::Failure;
use super::local;
use crate::show::text::clean;

/// A file that was changed within one tick of its clock is let be for longer than that, so that another change shows.
const SETTLED: Duration = Duration::from_millis(20);

/// A plain file of ours, to be read as it is now.
pub(super) async fn opened(path: &Path) -> Result<(Box<dyn Read + Send>, Metadata), Failure> {
    let no = |error: io::Error| local(path, &error);
    let data = std::fs::metadata(path).map_err(no)?;
    if !data.is_file() {
        let kind = match data.file_type() {
            kind if kind.is_dir() => "a folder",
            kind if kind.is_fifo() => "a pipe: `-` copies standard input",
            _ => "no plain file",
        };
        let text = format!("{}: is {kind}", clean(&path.display().to_string()));
        return Err(Failure::of(codes::FILE_UNFIT, text));
    }
    // A pipe that took its place in between is not waited for.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(no)?;
    let mut data = file.metadata().map_err(no)?;
    let unfit = |why| {
        let path = clean(&path.display().to_string());
        Failure::of(codes::FILE_UNFIT, format!("{path}: {why}"))
    };
    if !data.is_file() {
        return Err(unfit("is no plain file any more"));
    }
    // As those of /proc are.
    if data.len() == 0 && file.read_at(&mut [0], 0).map_err(no)? > 0 {
        return Err(unfit(
            "says that it is empty and is not: `-` copies standard input",
        ));
    }
    let changed = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    if changed.elapsed().is_ok_and(|ago| ago < SETTLED) {
        tokio::time::sleep(SETTLED).await;
        data = file.metadata().map_err(no)?;
    }
    let source = Unchanged {
        left: data.len(),
        first: data.clone(),
        file,
    };
    Ok((Box::new(source), data))
}

/// A file's bytes, as many as it had; of one that has changed meanwhile one byte less, so that the box does not take it.
struct Unchanged {
    file: File,
    first: Metadata,
    left: u64,
}

impl Read for Unchanged {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(into.len());
        let count = self.file.read(&mut into[..most])?;
        self.left -= count as u64;
        if self.left == 0 && count > 0 {
            let last = self.file.metadata()?;
            let is = |data: &Metadata| {
                (
                    data.len(),
                    data.mtime(),
                    data.mtime_nsec(),
                    data.ctime(),
                    data.ctime_nsec(),
                )
            };
            if is(&self.first) != is(&last) {
                return Ok(count - 1);
            }
        }
        Ok(count)
    }
}
