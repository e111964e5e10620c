//! A workspace of another user than its agent's boxes have now: what was that user's becomes theirs. Everything here blocks.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::folders;
use super::walk::{Met, walk};

/// Files with several names that are kept in mind at once.
const MOST_LINKED: usize = 1 << 20;

/// What came of it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Entries that have the new user now, the folder itself among them.
    pub entries: u64,
    /// Names of files that were left to the old user: they have other names elsewhere.
    pub left: u64,
}

/// Whose the folder is; none where there is none.
///
/// # Errors
/// The kernel's; what lies there may be no folder.
pub fn owner(workspaces: &Path, folder: &str) -> io::Result<Option<u32>> {
    match rustix::fs::openat(
        folders::open(workspaces)?,
        folder,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(found) => Ok(Some(rustix::fs::fstat(found)?.st_uid)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives every entry of the old user to the new one, and the gid of its number; the folder itself last, so that one that was broken off is
/// begun again. Nothing is followed, opened or left: not a link, not another mount. A file with names outside of the folder stays as it is.
///
/// # Errors
/// The kernel's, and that the folder is not the old user's. What was done stays done.
pub fn take_over(workspaces: &Path, folder: &str, from: u32, to: u32) -> io::Result<Taken> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(folders::open(workspaces)?, folder, flags, Mode::empty())?;
    if rustix::fs::fstat(&top)?.st_uid != from {
        return Err(io::Error::other("it is another user's by now"));
    }
    let mut taken = Taken::default();
    // Names of each that were not met yet.
    let mut linked = BTreeMap::new();
    walk(&top, |met| {
        if is_linked(met) {
            if linked.len() >= MOST_LINKED {
                return Err(io::Error::other("too many files have several names"));
            }
            let id = (met.stat.st_dev, met.stat.st_ino);
            let left = linked.entry(id).or_insert(met.stat.st_nlink);
            *left = left.saturating_sub(1);
        } else if met.stat.st_uid == from {
            taken.entries += u64::from(take(met, from, to, false)?);
        }
        Ok(())
    })?;
    if !linked.is_empty() {
        walk(&top, |met| {
            let left = linked.get(&(met.stat.st_dev, met.stat.st_ino));
            if let Some(left) = left.filter(|_| is_linked(met) && met.stat.st_uid == from) {
                let is_ours = *left == 0 && take(met, from, to, true)?;
                taken.entries += u64::from(is_ours);
                taken.left += u64::from(!is_ours);
            }
            Ok(())
        })?;
    }
    // What was done is on disk before the folder says that all was.
    rustix::fs::syncfs(&top)?;
    let (uid, gid) = (Uid::from_raw(to), Gid::from_raw(to));
    rustix::fs::fchown(&top, Some(uid), Some(gid))?;
    taken.entries += 1;
    Ok(taken)
}

/// A file with more names than the one that was met.
fn is_linked(met: &Met<'_>) -> bool {
    met.kind() != FileType::Directory && met.stat.st_nlink > 1
}

/// False: it is another one by now, no longer the old user's, or has more names; `linked`: more than one, of which all were met.
fn take(met: &Met<'_>, from: u32, to: u32, linked: bool) -> io::Result<bool> {
    let Some((held, stat)) = met.hold()? else {
        return Ok(false);
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_device = matches!(
        kind,
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown
    );
    let is_whole = stat.st_nlink == 1 || linked && stat.st_nlink == met.stat.st_nlink;
    let has_others = kind != FileType::Directory && !is_whole;
    if stat.st_uid != from || is_device || has_others {
        return Ok(false);
    }
    let (uid, gid) = (Uid::from_raw(to), Gid::from_raw(to));
    rustix::fs::chownat(&held, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

    const OLD: u32 = 65_533;
    const NEW: u32 = 65_600;

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    fn uid(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().uid()
    }

    fn owned(path: &Path, uid: u32) {
        rustix::fs::chownat(
            rustix::fs::CWD,
            path,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(uid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
    }

    struct House {
        state: tempfile::TempDir,
    }

    impl House {
        fn new() -> Self {
            let state = tempfile::tempdir().unwrap();
            let house = Self { state };
            std::fs::create_dir_all(house.at("w/demo/a/b")).unwrap();
            for name in ["w/demo/a/b", "w/demo/a", "w/demo"] {
                owned(&house.at(name), OLD);
            }
            house
        }

        fn at(&self, name: &str) -> std::path::PathBuf {
            self.state.path().join(name)
        }

        fn file(&self, name: &str, uid: u32) -> std::path::PathBuf {
            let path = self.at(name);
            std::fs::write(&path, name).unwrap();
            chown(&path, Some(uid), Some(uid)).unwrap();
            path
        }

        fn take_over(&self) -> io::Result<Taken> {
            take_over(&self.at("w"), "demo", OLD, NEW)
        }
    }

    #[test]
    fn what_was_the_old_users_is_the_new_ones_and_nothing_else_is() {
        if !is_root() {
            return;
        }
        let house = House::new();
        let own = house.file("w/demo/a/b/own", OLD);
        let roots = house.file("w/demo/roots", 0);
        let elses = house.file("w/demo/a/elses", 1234);
        let tool = house.file("w/demo/tool", OLD);
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o4755)).unwrap();
        // Behind links, and by another name, lies what was never the agent's.
        let outside = house.file("outside", OLD);
        let folder = house.at("folder");
        std::fs::create_dir(&folder).unwrap();
        owned(&folder, OLD);
        let in_folder = house.file("folder/inside", OLD);
        for (to, name) in [(&outside, "w/demo/file"), (&folder, "w/demo/a/folder")] {
            symlink(to, house.at(name)).unwrap();
            owned(&house.at(name), OLD);
        }
        let shared = house.file("shared", OLD);
        std::fs::hard_link(&shared, house.at("w/demo/a/shared")).unwrap();
        // Two names of its own.
        let twice = house.file("w/demo/twice", OLD);
        std::fs::hard_link(&twice, house.at("w/demo/a/again")).unwrap();

        assert_eq!(owner(&house.at("w"), "demo").unwrap(), Some(OLD));
        let taken = house.take_over().unwrap();
        // demo, a, b, own, tool, two links, twice by one of its names.
        assert_eq!(
            taken,
            Taken {
                entries: 8,
                left: 1
            }
        );
        for path in [
            &own,
            &tool,
            &twice,
            &house.at("w/demo"),
            &house.at("w/demo/a"),
        ] {
            assert_eq!((uid(path), path.metadata().unwrap().gid()), (NEW, NEW));
        }
        assert_eq!(uid(&house.at("w/demo/file")), NEW, "the link itself");
        assert_eq!((uid(&roots), uid(&elses)), (0, 1234));
        for path in [&outside, &folder, &in_folder, &shared] {
            assert_eq!(uid(path), OLD, "{}", path.display());
        }
        assert_eq!(tool.metadata().unwrap().mode() & 0o7000, 0, "no setuid");
        assert!(
            house.take_over().is_err(),
            "it is not the old user's any more"
        );
    }

    /// What was broken off at any entry is finished by the next start.
    #[test]
    fn one_that_was_broken_off_is_begun_again() {
        if !is_root() {
            return;
        }
        let house = House::new();
        let twice = house.file("w/demo/twice", OLD);
        std::fs::hard_link(&twice, house.at("w/demo/a/again")).unwrap();
        let last = house.file("w/demo/a/b/last", OLD);
        // As a kill leaves it: some done, the folder itself not.
        for path in [&twice, &house.at("w/demo/a")] {
            owned(path, NEW);
        }
        assert_eq!(owner(&house.at("w"), "demo").unwrap(), Some(OLD));
        assert_eq!(
            house.take_over().unwrap(),
            Taken {
                entries: 3,
                left: 0
            }
        );
        assert_eq!((uid(&last), uid(&twice)), (NEW, NEW));
        assert_eq!(owner(&house.at("w"), "demo").unwrap(), Some(NEW));
        // A link in the folder's place is no folder.
        std::fs::rename(house.at("w/demo"), house.at("w/moved")).unwrap();
        symlink(house.at("w/moved"), house.at("w/demo")).unwrap();
        assert!(owner(&house.at("w"), "demo").is_err());
        assert!(house.take_over().is_err());
    }

    #[test]
    fn a_way_that_is_deeper_than_descriptors_are_many_is_walked_to_its_end() {
        let top = tempfile::tempdir().unwrap();
        let depth = 3000;
        let mut at = rustix::fs::open(top.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let name = c"a-folder-with-a-name";
        for _ in 0..depth {
            rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, name, OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let begun = rustix::fs::open(top.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut seen = 0;
        walk(&begun, |met| {
            seen += u32::from(met.kind() == FileType::Directory);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, depth);
        // remove_dir_all is recursive, and so deep that it would end this process.
        drop(at);
        let _ = std::process::Command::new("rm")
            .arg("-rf")
            .arg(top.path())
            .status();
    }
}
