//! Who could put something else in the place of a file: whoever may write a folder on the way to it.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Symbolic links on one way (as path_resolution(7)).
const LINKS: usize = 40;
/// Of `/etc/passwd` and `/etc/group`, bytes.
const ACCOUNTS: u64 = 16 * 1024 * 1024;

/// Whose folders may be on the way.
#[derive(Debug, Clone, Copy)]
pub struct Trust<'a> {
    /// Users who may write them.
    pub uids: &'a [u32],
    /// Where others may write too, the sticky bit keeps them from what is not theirs (inode(7)).
    pub sticky: bool,
}

/// A folder that somebody else can write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Which one.
    pub folder: PathBuf,
    /// Why: another's, or its mode.
    pub why: String,
}

impl std::fmt::Display for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.folder.display(), self.why)
    }
}

/// The first folder on the way to `path`, symbolic links followed, in which somebody else could put another thing in the
/// place of what is there. `path` itself is not looked into.
///
/// A folder that its group may write is not open where nobody but trusted users is in that group (the private groups that
/// Debian and Fedora give each user), as far as `/etc/passwd` and `/etc/group` say.
///
/// # Errors
/// It cannot be followed: something is missing (nothing before that is open), or may not be looked at.
pub fn open_to_others(path: &Path, trust: Trust<'_>) -> io::Result<Option<Open>> {
    let path = std::path::absolute(path)?;
    let mut left: VecDeque<OsString> = names(&path).collect();
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let (folder, entry) = (std::fs::metadata(&at)?, std::fs::symlink_metadata(&next));
        if let Some(why) = trust.misses(&folder, entry.as_ref().ok()) {
            return Ok(Some(Open { folder: at, why }));
        }
        let entry = entry?;
        if !entry.file_type().is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target = std::fs::read_link(&next)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
            left.push_front(name);
        }
    }
    Ok(None)
}

/// [`open_to_others`] for what is this process' own: root and its user may write, and the sticky bit counts. What is missing
/// is nobody's yet.
///
/// # Errors
/// It cannot be looked at.
pub fn open_above(path: &Path) -> io::Result<Option<Open>> {
    let own = rustix::process::geteuid().as_raw();
    let trust = Trust {
        uids: &[0, own],
        sticky: true,
    };
    match open_to_others(path, trust) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other,
    }
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

impl Trust<'_> {
    /// Why somebody else could replace `entry` in `folder`.
    fn misses(self, folder: &Metadata, entry: Option<&Metadata>) -> Option<String> {
        // Its owner may, whatever the mode is.
        if !self.uids.contains(&folder.uid()) {
            return Some(format!("belongs to uid {}", folder.uid()));
        }
        let mode = folder.mode() & 0o7777;
        let by_group = mode & 0o020 != 0 && !has_only(folder.gid(), self.uids);
        if mode & 0o002 == 0 && !by_group {
            return None;
        }
        // What is missing is nobody's yet.
        let is_kept = entry.is_none_or(|entry| self.uids.contains(&entry.uid()));
        let keeps = self.sticky && mode & 0o1000 != 0 && is_kept;
        (!keeps).then(|| format!("has mode {mode:04o}"))
    }
}

/// Whether a group is of this machine's files and has no other members than these users.
fn has_only(gid: u32, uids: &[u32]) -> bool {
    let read = |path| {
        let mut text = String::new();
        let file = std::fs::File::open(path)?;
        io::Read::read_to_string(&mut io::Read::take(file, ACCOUNTS), &mut text)?;
        io::Result::Ok(text)
    };
    let (Ok(users), Ok(groups)) = (read("/etc/passwd"), read("/etc/group")) else {
        return false;
    };
    members_are(&users, &groups, gid, uids)
}

fn members_are(users: &str, groups: &str, gid: u32, trusted: &[u32]) -> bool {
    let number = |field: Option<&str>| field.and_then(|f| f.parse::<u32>().ok());
    let mut uids: HashMap<&str, u32> = HashMap::new();
    for line in users.lines() {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        if let (Some(uid), Some(of)) = (number(fields.nth(1)), number(fields.next())) {
            if of == gid && !trusted.contains(&uid) {
                return false;
            }
            uids.insert(name, uid);
        }
    }
    let mut is_known = false;
    for line in groups.lines() {
        let mut fields = line.split(':');
        if number(fields.nth(2)) != Some(gid) {
            continue;
        }
        is_known = true;
        let mut members = fields.next().unwrap_or_default().split(',');
        let is_trusted = |name: &str| uids.get(name).is_some_and(|uid| trusted.contains(uid));
        if !members.all(|name| name.is_empty() || is_trusted(name)) {
            return false;
        }
    }
    is_known
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn set(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_that_others_write_is_found_wherever_it_is_on_the_way() {
        let own = rustix::process::geteuid().as_raw();
        let trust = Trust {
            uids: &[0, own],
            sticky: true,
        };
        let home = tempfile::tempdir().unwrap();
        let (a, b) = (home.path().join("a"), home.path().join("a/b"));
        std::fs::create_dir_all(b.join("c")).unwrap();
        let file = b.join("c/file");
        std::fs::write(&file, "").unwrap();
        for folder in [home.path(), &a, &b] {
            set(folder, 0o755);
        }
        let found = |path: &Path, trust| open_to_others(path, trust).unwrap().map(|o| o.folder);
        assert_eq!(found(&file, trust), None);
        // /tmp has the sticky bit, and our folder in it is ours; who is another's has no such comfort.
        let strict = Trust {
            sticky: false,
            ..trust
        };
        if std::fs::metadata("/tmp").unwrap().mode() & 0o002 != 0 && file.starts_with("/tmp") {
            assert_eq!(found(&file, strict), Some("/tmp".into()));
        }
        set(&a, 0o777);
        assert_eq!(found(&file, trust), Some(a.clone()));
        set(&a, 0o1777);
        assert_eq!(found(&file, trust), None);
        set(&a, 0o755);
        // The last folder counts, the thing itself does not.
        set(&b.join("c"), 0o777);
        assert_eq!(found(&file, trust), Some(b.join("c")));
        assert_eq!(found(&b.join("c"), trust), None);
        set(&b.join("c"), 0o755);
        // By a link: its own folders count, and those of what it leads to.
        let (open, link) = (home.path().join("open"), home.path().join("link"));
        std::fs::create_dir(&open).unwrap();
        symlink("a/../open/there", &link).unwrap();
        symlink(&b, open.join("there")).unwrap();
        assert_eq!(found(&link.join("c/file"), trust), None);
        set(&open, 0o777);
        assert_eq!(found(&link.join("c/file"), trust), Some(open.clone()));
        set(&open, 0o755);
        symlink("round", home.path().join("round")).unwrap();
        assert!(open_to_others(&home.path().join("round/x"), trust).is_err());
        assert!(open_to_others(&home.path().join("none/x"), trust).is_err());
        // Another's folder is his to write, and what is his in a sticky one is his to take away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&a, Some(65_528), None).unwrap();
            assert_eq!(found(&file, trust), Some(a.clone()));
            set(home.path(), 0o1777);
            let all = Trust {
                uids: &[0, 65_528],
                sticky: true,
            };
            assert_eq!(found(&file, trust), Some(home.path().to_owned()));
            assert_eq!(found(&file, all), None);
        }
    }

    #[test]
    fn a_group_of_nobody_else_may_write() {
        let users = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n";
        let groups = "root:x:0:\nann:x:1000:\nbob:x:1001:ann\nstaff:x:50:ann,bob\nmine:x:51:ann\n";
        let only = |gid, uids: &[u32]| members_are(users, groups, gid, uids);
        assert!(only(1000, &[0, 1000]) && only(51, &[0, 1000]));
        assert!(!only(50, &[0, 1000]), "bob is a member");
        assert!(!only(1001, &[0, 1000]), "it is bob's own");
        assert!(!only(52, &[0, 1000]), "nobody knows it");
        assert!(!members_are(users, "x:x:60:ghost\n", 60, &[0, 1000]));
    }
}
