//! What a workspace takes of the disk, counted while an agent may be changing it: by descriptors, over no link, into no other mount, at any
//! depth with one open folder and a few names kept of each. Everything here blocks.
//!
//! Blocks are counted, not lengths: a sparse file takes what it takes. Each name counts, so that names bound the time; the blocks of a file
//! with several names count once. A file that has no name any more and is open somewhere in the box is found in `/proc`.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;

use super::Used;
use crate::sandbox_pool::folders;
use crate::sandbox_pool::walk::below;

/// The longest that one may take.
const LONGEST: Duration = Duration::from_secs(30);
/// Bytes of a folder that are read at once.
const PIECE: usize = 16 * 1024;
/// Folders in a folder whose names are kept, so far down; below that one, so that depth costs little memory.
const KEPT: usize = 128;
const KEPT_DOWN_TO: usize = 64;
/// Of `/proc/PID/maps`.
const MAPS: u64 = 4 << 20;
/// In which `stat` counts, whatever the file system's blocks are.
const BLOCK: u64 = 512;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// All of it.
    Whole(Used),
    /// It has more names than were to be counted: at least so much.
    AtLeast(Used),
    /// It cannot be told.
    Not(Unmeasured),
}

/// Why it cannot be told what a workspace takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmeasured {
    /// Folders were moved about under the count.
    Moved,
    /// A folder in it cannot be read by the gateway.
    Closed,
    /// Not in time.
    Slow,
    /// The kernel refused a step.
    Failed(Errno),
}

/// Counts the folder and what processes below these keep open without a name, up to so many names.
pub fn measure(workspaces: &Path, folder: &str, most_names: u64, inits: &[u32]) -> Measured {
    let mut sum = Used::default();
    let counted = count(workspaces, folder, most_names, &mut sum).and_then(|(device, until)| {
        sum.bytes += unnamed(inits, device, until);
        if Instant::now() < until {
            Ok(())
        } else {
            Err(Stop::Slow)
        }
    });
    match counted {
        Ok(()) => Measured::Whole(sum),
        Err(Stop::Enough) => Measured::AtLeast(sum),
        Err(Stop::Slow) => Measured::Not(Unmeasured::Slow),
        Err(Stop::Moved) => Measured::Not(Unmeasured::Moved),
        Err(Stop::Failed(Errno::ACCESS)) => Measured::Not(Unmeasured::Closed),
        Err(Stop::Failed(error)) => Measured::Not(Unmeasured::Failed(error)),
    }
}

enum Stop {
    Enough,
    Slow,
    Moved,
    Failed(Errno),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// A folder on the way.
struct Level {
    id: (u64, u64),
    /// Folders in it that are yet to be looked into.
    left: Vec<CString>,
    /// Where reading it goes on; none: it was read to its end.
    next: Option<u64>,
}

struct Walk<'a> {
    sum: &'a mut Used,
    most_names: u64,
    until: Instant,
    device: u64,
    /// Files with several names that were met.
    linked: BTreeSet<u64>,
}

/// On which device it lies, and until when there is time.
fn count(
    workspaces: &Path,
    folder: &str,
    most_names: u64,
    sum: &mut Used,
) -> Result<(u64, Instant), Stop> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let base = folders::open(workspaces)?;
    let until = Instant::now() + LONGEST;
    let mut at = match rustix::fs::openat(base, folder, flags, Mode::empty()) {
        Ok(found) => found,
        // Its first box makes it.
        Err(Errno::NOENT) => return Ok((0, until)),
        Err(error) => return Err(error.into()),
    };
    let top = rustix::fs::fstat(&at)?;
    sum.bytes = blocks(&top);
    let mut walk = Walk {
        sum,
        most_names,
        until,
        device: top.st_dev,
        linked: BTreeSet::new(),
    };
    let mut way = vec![level(&top)];
    let mut piece = vec![MaybeUninit::uninit(); PIECE];
    while let Some(last) = way.last_mut() {
        if Instant::now() >= walk.until {
            return Err(Stop::Slow);
        }
        if let Some(name) = last.left.pop() {
            if let Some(found) = below(at.as_fd(), &name, flags)? {
                way.push(level(&rustix::fs::fstat(&found)?));
                at = found;
            }
        } else if let Some(next) = last.next {
            let keep = if way.len() <= KEPT_DOWN_TO { KEPT } else { 1 };
            let (left, next) = walk.read(&at, next, keep, &mut piece)?;
            if let Some(last) = way.last_mut() {
                (last.left, last.next) = (left, next);
            }
        } else {
            way.pop();
            if let Some(up) = way.last() {
                at = rustix::fs::openat(&at, c"..", flags, Mode::empty())?;
                let found = rustix::fs::fstat(&at)?;
                if (found.st_dev, found.st_ino) != up.id {
                    return Err(Stop::Moved);
                }
            }
        }
    }
    Ok((walk.device, walk.until))
}

fn level(stat: &Stat) -> Level {
    Level {
        id: (stat.st_dev, stat.st_ino),
        left: Vec::new(),
        next: Some(0),
    }
}

impl Walk<'_> {
    /// Counts names from there on, until so many folders are among them: those, and where it goes on.
    fn read(
        &mut self,
        at: &OwnedFd,
        from: u64,
        keep: usize,
        piece: &mut [MaybeUninit<u8>],
    ) -> Result<(Vec<CString>, Option<u64>), Stop> {
        // Of a folder that was gone down from, this is another descriptor; of one that was not, its own is further than what was counted.
        rustix::fs::seek(at, SeekFrom::Start(from))?;
        let mut left = Vec::new();
        let mut entries = RawDir::new(at, piece);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if self.count(at, name)? == Some(FileType::Directory) {
                left.push(name.to_owned());
                if left.len() >= keep {
                    return Ok((left, Some(entry.next_entry_cookie())));
                }
            }
        }
        Ok((left, None))
    }

    /// None: it is not there any more.
    fn count(&mut self, at: &OwnedFd, name: &CStr) -> Result<Option<FileType>, Stop> {
        let stat = match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.sum.files += 1;
        if self.sum.files >= self.most_names {
            return Err(Stop::Enough);
        }
        if self.sum.files.is_multiple_of(1024) && Instant::now() >= self.until {
            return Err(Stop::Slow);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        // What another file system shows there is not this one's.
        let is_here = stat.st_dev == self.device;
        let is_folder = kind == FileType::Directory;
        if is_here && (is_folder || stat.st_nlink <= 1 || self.linked.insert(stat.st_ino)) {
            self.sum.bytes += blocks(&stat);
        }
        Ok(Some(kind))
    }
}

fn blocks(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK
}

/// Bytes of files on this device that have no name, and that processes below these have open or mapped. What this process may not look at is
/// left out.
fn unnamed(inits: &[u32], device: u64, until: Instant) -> u64 {
    let mut seen = BTreeSet::new();
    let mut sum = 0;
    let mut take = |path: &str| {
        // Through the link to what it stands for, without opening it.
        if let Ok(stat) = rustix::fs::stat(path)
            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && (stat.st_nlink, stat.st_dev) == (0, device)
            && seen.insert(stat.st_ino)
        {
            sum += blocks(&stat);
        }
    };
    for pid in inits.iter().flat_map(|&init| processes(init)) {
        if Instant::now() >= until {
            break;
        }
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"));
        for entry in fds.into_iter().flatten().flatten() {
            if let Some(number) = entry.file_name().to_str() {
                take(&format!("/proc/{pid}/fd/{number}"));
            }
        }
        for range in unnamed_maps(pid) {
            take(&format!("/proc/{pid}/map_files/{range}"));
        }
    }
    sum
}

/// Where files without a name are mapped.
fn unnamed_maps(pid: u32) -> Vec<String> {
    let mut text = Vec::new();
    if let Ok(maps) = std::fs::File::open(format!("/proc/{pid}/maps")) {
        // What was read until an error counts.
        let _ = maps.take(MAPS).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter(|line| line.ends_with(" (deleted)"));
    lines
        .filter_map(|line| line.split_once(' ').map(|(range, _)| range.to_owned()))
        .collect()
}

/// This one and those below it.
fn processes(init: u32) -> Vec<u32> {
    let mut found = vec![init];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(
                list.split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    fn whole(state: &Path, most_names: u64, inits: &[u32]) -> Used {
        match measure(state, "demo", most_names, inits) {
            Measured::Whole(used) => used,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn blocks_are_counted_once_a_file_and_names_each_and_nothing_behind_a_link() {
        let state = tempfile::tempdir().unwrap();
        let at = |name: &str| state.path().join(name);
        std::fs::create_dir_all(at("demo/a/b")).unwrap();
        let empty = whole(state.path(), 100, &[]);
        assert_eq!(empty.files, 2);
        std::fs::write(at("demo/a/full"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(at("demo/a/full"), at("demo/a/b/again")).unwrap();
        let sparse = std::fs::File::create(at("demo/sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.write_at(b"x", 1 << 29).unwrap();
        sparse.sync_all().unwrap();
        std::fs::create_dir(at("other")).unwrap();
        std::fs::write(at("other/big"), vec![1; 4 << 20]).unwrap();
        std::os::unix::fs::symlink(at("other"), at("demo/link")).unwrap();
        let used = whole(state.path(), 100, &[]);
        assert_eq!(used.files, 6);
        let grown = used.bytes - empty.bytes;
        assert!((1 << 20..(1 << 20) + 64 * 1024).contains(&grown), "{grown}");
        // A link in its place is not followed, and nothing in its place is nothing.
        std::fs::rename(at("demo"), at("moved")).unwrap();
        assert_eq!(whole(state.path(), 100, &[]), Used::default());
        std::os::unix::fs::symlink(at("moved"), at("demo")).unwrap();
        assert!(matches!(
            measure(state.path(), "demo", 100, &[]),
            Measured::Not(Unmeasured::Failed(_))
        ));
    }

    #[test]
    fn it_stops_at_the_names_that_were_to_be_counted_and_meets_each_of_a_wide_and_deep_tree_once() {
        let state = tempfile::tempdir().unwrap();
        let top = state.path().join("demo");
        std::fs::create_dir(&top).unwrap();
        // More folders than names of one folder are kept, with files between them.
        for n in 0..700 {
            std::fs::create_dir(top.join(format!("folder-{n}"))).unwrap();
            std::fs::write(top.join(format!("folder-{n}/file")), b"").unwrap();
            std::fs::write(top.join(format!("file-{n}")), b"").unwrap();
        }
        let mut at = rustix::fs::open(&top, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..1500 {
            for name in [c"deep", c"beside"] {
                rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            }
            at = rustix::fs::openat(&at, c"deep", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        assert_eq!(whole(state.path(), 100_000, &[]).files, 2100 + 3000);
        match measure(state.path(), "demo", 1000, &[]) {
            Measured::AtLeast(used) => assert_eq!(used.files, 1000),
            other => panic!("{other:?}"),
        }
        // remove_dir_all is recursive, and so deep that it would end this process.
        let _ = std::process::Command::new("rm")
            .arg("-rf")
            .arg(&top)
            .status();
    }

    #[test]
    fn a_file_without_a_name_counts_while_a_process_holds_it() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("demo")).unwrap();
        let path = state.path().join("demo/gone");
        let held = std::fs::File::create(&path).unwrap();
        held.write_all_at(&vec![1; 2 << 20], 0).unwrap();
        std::fs::remove_file(&path).unwrap();
        // Of a process that has nothing else open: tests beside this one have files without names, too.
        let mut holder = std::process::Command::new("sleep");
        let mut holder = holder.arg("60").stdin(held).spawn().unwrap();
        let its = [holder.id()];
        let with = whole(state.path(), 100, &its);
        let without = whole(state.path(), 100, &[]);
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(with.files, 0);
        assert!(with.bytes >= without.bytes + (2 << 20), "{with:?}");
        assert!(whole(state.path(), 100, &its).bytes < 2 << 20);
    }
}
