//! A walk through a folder that an agent may be changing meanwhile: by descriptors, over no link, into no other mount, at any depth with
//! one open folder. Everything here blocks.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// What is met on the way: anything but the folder that it began from.
pub struct Met<'a> {
    folder: BorrowedFd<'a>,
    name: &'a CStr,
    /// As it was a moment ago.
    pub stat: Stat,
}

impl Met<'_> {
    /// What kind it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Holds it, opening nothing; none where it is not there any more, or is another mount.
    ///
    /// # Errors
    /// The kernel's.
    pub fn hold(&self) -> io::Result<Option<(OwnedFd, Stat)>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Some(held) = below(self.folder, self.name, flags)? else {
            return Ok(None);
        };
        let stat = rustix::fs::fstat(&held)?;
        Ok(Some((held, stat)))
    }
}

/// Shows each entry once, a folder before what is in it. What comes and goes meanwhile may be missed.
///
/// # Errors
/// The visitor's, which ends the walk; the kernel's; and that a folder on the way was moved elsewhere.
pub fn walk(top: impl AsFd, mut visit: impl FnMut(&Met<'_>) -> io::Result<()>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::openat(&top, c".", flags, Mode::empty())?;
    let mut way = vec![read(&at, &mut visit)?];
    while let Some(level) = way.last_mut() {
        if let Some(name) = level.left.pop() {
            if let Some(next) = below(at.as_fd(), &name, flags)? {
                at = next;
                way.push(read(&at, &mut visit)?);
            }
            continue;
        }
        way.pop();
        if let Some(level) = way.last() {
            at = rustix::fs::openat(&at, c"..", flags, Mode::empty())?;
            let found = rustix::fs::fstat(&at)?;
            if (found.st_dev, found.st_ino) != level.id {
                return Err(io::Error::other("a folder was moved elsewhere meanwhile"));
            }
        }
    }
    Ok(())
}

/// A folder on the way, and the folders in it that are yet to be looked into.
struct Level {
    id: (u64, u64),
    left: Vec<CString>,
}

fn read(at: &OwnedFd, visit: &mut impl FnMut(&Met<'_>) -> io::Result<()>) -> io::Result<Level> {
    let own = rustix::fs::fstat(at)?;
    let mut left = Vec::new();
    for entry in Dir::read_from(at)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let met = Met {
            folder: at.as_fd(),
            name,
            stat,
        };
        visit(&met)?;
        if met.kind() == FileType::Directory {
            left.push(name.to_owned());
        }
    }
    Ok(Level {
        id: (own.st_dev, own.st_ino),
        left,
    })
}

/// None: it is not there any more, is of another kind by now, or is another mount.
pub fn below(folder: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    loop {
        match rustix::fs::openat2(folder, name, flags, Mode::empty(), within) {
            Ok(found) => return Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
            // Something was renamed at that moment.
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
