//! The folders of a box on the host, made through descriptors: no step of the way may be a symbolic link.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// Opens a folder for use as a base of further steps. Its last step may not be a link.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Makes `name` below `base` where it is missing, and gives it to this owner with this mode; an existing one must be a folder.
pub fn make(
    base: impl AsFd,
    name: &str,
    owner: Option<(u32, u32)>,
    mode: u32,
) -> io::Result<OwnedFd> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    match rustix::fs::mkdirat(&base, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&base, name, flags, Mode::empty())?;
    if let Some((uid, gid)) = owner {
        let found = rustix::fs::fstat(&made)?;
        if (found.st_uid, found.st_gid) != (uid, gid) {
            rustix::fs::fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
    }
    rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?;
    Ok(made)
}

/// An agent's workspace: 0700, owned by the uid of its boxes. One of another user is given to nobody by this.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`]: it is another user's.
pub fn workspace(workspaces: &Path, agent: &str, uid: u32, gid: u32) -> io::Result<()> {
    let made = make(open(workspaces)?, agent, None, 0o700)?;
    let Some((uid, gid)) = owner_if_root(uid, gid) else {
        return Ok(());
    };
    let found = rustix::fs::fstat(&made)?.st_uid;
    // Root's: it was made just now, or by who put it there.
    if found != uid && found != 0 {
        let why = format!("it belongs to uid {found}, and its agent has {uid}");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    rustix::fs::fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(())
}

/// A box's control folder: the box may walk in and connect, nothing more.
pub fn run_dir(path: &Path, gid: u32) -> io::Result<OwnedFd> {
    let (Some(parent), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // Only root can give the group away; any other daemon's boxes have its own uid.
    let owner = owner_if_root(0, gid);
    make(open(parent)?, name, owner, 0o750)
}

/// Removes a control folder and the files in it. The box cannot have put any there: it sees the folder read-only.
pub fn remove_run_dir(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
    let _ = std::fs::remove_dir(path);
}

/// Removes control folders of no box, as a kill leaves them between the folder and the box. A box that may still be there has a
/// file beside its folder, was found and ended by its label, or is `served`.
pub fn sweep_run_dirs(base: &Path, served: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_str().is_some_and(&served) {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && !path.with_extension("json").exists() {
            remove_run_dir(&path);
        } else if path.extension().is_some_and(|extension| extension == "new") {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn owner_if_root(uid: u32, gid: u32) -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then_some((uid, gid))
}
