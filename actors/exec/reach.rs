//! What a user reaches, as the kernel would have it: root looks for somebody else, and tells of nothing that he could not
//! see for himself. Everything here blocks.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::user::User;

/// `f_type` of procfs: what lies there is another thing in each process.
pub const PROC: u64 = 0x9fa0;
/// Links on one way, as the kernel's.
const LINKS: usize = 40;
/// Of an access list: some eighty entries.
const LONGEST_LIST: usize = 4096;

/// Where a path leads a user.
#[derive(Debug, PartialEq, Eq)]
pub enum Way {
    /// To this place, by its one spelling. Whether he may do something there is another question.
    To(PathBuf),
    /// Nowhere, or to where he may not look: nobody is told which.
    Nowhere,
    /// Over a link of the process file system, which leads where its text does not say. Nothing behind it was looked at.
    Elsewhere,
}

/// Follows a path as this user would: each folder on the way, those that links name among them, must let him through.
pub fn walk(path: &Path, user: &User) -> Way {
    follow(path, user).unwrap_or(Way::Nowhere)
}

fn follow(path: &Path, user: &User) -> Option<Way> {
    let mut at = PathBuf::from("/");
    let mut todo: Vec<OsString> = parts(path);
    let mut links = 0;
    while let Some(part) = todo.pop() {
        let folder = at.symlink_metadata().ok()?;
        if !folder.is_dir() || !may(&at, &folder, user, 0o1) {
            return None;
        }
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        let found = next.symlink_metadata().ok()?;
        if !found.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS {
            return None;
        }
        let stat = rustix::fs::statfs(&at).ok()?;
        if u64::try_from(stat.f_type).is_ok_and(|kind| kind == PROC) {
            return Some(Way::Elsewhere);
        }
        let target = next.read_link().ok()?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        todo.extend(parts(&target));
    }
    Some(Way::To(at))
}

/// Last first.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}

/// May he read (4), write (2) or execute and search (1) what lies at `at`? By its access list where it has one (acl(5)), else
/// by its mode.
pub fn may(at: &Path, data: &Metadata, user: &User, bit: u32) -> bool {
    let mut list = [0; LONGEST_LIST];
    match rustix::fs::getxattr(at, c"system.posix_acl_access", &mut list[..]) {
        Ok(len) => listed(&list[..len], data, user, bit),
        Err(Errno::NODATA | Errno::NOTSUP) => by_mode(data, user, bit),
        // Too long a list, or none that can be read: nobody is taken to be on it.
        Err(_) => false,
    }
}

fn by_mode(data: &Metadata, user: &User, bit: u32) -> bool {
    let shift = if data.uid() == user.uid {
        6
    } else if data.gid() == user.gid {
        3
    } else {
        0
    };
    data.mode() & (bit << shift) != 0
}

/// By acl(5), "access check algorithm"; the form is the kernel's (linux/posix_acl_xattr.h).
fn listed(list: &[u8], data: &Metadata, user: &User, bit: u32) -> bool {
    const OWNER: u16 = 0x01;
    const USER: u16 = 0x02;
    const OWNING_GROUP: u16 = 0x04;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    let Some(([2, 0, 0, 0], entries)) = list.split_first_chunk::<4>() else {
        return false;
    };
    let entries: Vec<(u16, bool, u32)> = entries
        .chunks_exact(8)
        .map(|entry| {
            let short = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            (short(0), u32::from(short(2)) & bit != 0, id)
        })
        .collect();
    let of = |wanted: u16| entries.iter().find(|(tag, ..)| *tag == wanted);
    let says = |wanted: u16| of(wanted).is_some_and(|(_, gives, _)| *gives);
    if data.uid() == user.uid {
        return says(OWNER);
    }
    let mask = of(MASK).is_none_or(|(_, gives, _)| *gives);
    if let Some((_, gives, _)) = entries
        .iter()
        .find(|(tag, _, id)| *tag == USER && *id == user.uid)
    {
        return *gives && mask;
    }
    let mut groups = entries
        .iter()
        .filter(|(tag, _, id)| match *tag {
            OWNING_GROUP => data.gid() == user.gid,
            GROUP => *id == user.gid,
            _ => false,
        })
        .peekable();
    if groups.peek().is_some() {
        return mask && groups.any(|(_, gives, _)| *gives);
    }
    says(OTHER)
}

/// May the user walk there? A descriptor of ours must not open what a path would not.
pub fn reaches(path: &Path, user: &User) -> bool {
    path.ancestors().skip(1).all(|folder| {
        folder
            .metadata()
            .is_ok_and(|data| may(folder, &data, user, 0o1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn entry(tag: u16, perm: u16, id: u32) -> Vec<u8> {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        bytes
    }

    /// The bug: a list that shut the user out was passed over, and he got the text of a file that the kernel would not give.
    #[test]
    fn an_access_list_is_read_as_the_kernel_reads_it() {
        const NONE: u32 = u32::MAX;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let data = file.metadata().unwrap();
        let list = |entries: &[Vec<u8>]| [&[2, 0, 0, 0][..], &entries.concat()].concat();
        let shut = list(&[
            entry(1, 6, NONE),
            entry(2, 0, 65_534),
            entry(2, 7, 1_000),
            entry(4, 4, NONE),
            entry(8, 0, 100),
            entry(8, 4, 101),
            entry(0x10, 4, NONE),
            entry(0x20, 4, NONE),
        ]);
        let (own, group) = (data.uid(), data.gid());
        for (uid, gid, bit, due) in [
            (own, 7, 4, true),
            (own, 7, 1, false),
            (65_534, 7, 4, false),
            (1_000, 7, 4, true),
            // What the mask takes.
            (1_000, 7, 2, false),
            (5, group, 4, true),
            (5, 100, 4, false),
            (5, 101, 4, true),
            (5, 7, 4, true),
        ] {
            assert_eq!(
                listed(&shut, &data, &user(uid, gid), bit),
                due,
                "{uid} {gid} {bit}"
            );
        }
        for none in [&[][..], &[1, 0, 0, 0], &[2, 0, 0, 0], &[2, 0, 0, 0, 1]] {
            assert!(!listed(none, &data, &user(5, 7), 4));
        }
        // Where the file system keeps them.
        let set = rustix::fs::setxattr(
            &file,
            c"system.posix_acl_access",
            &list(&[
                entry(1, 6, NONE),
                entry(2, 0, 65_534),
                entry(4, 4, NONE),
                entry(0x10, 4, NONE),
                entry(0x20, 4, NONE),
            ]),
            rustix::fs::XattrFlags::empty(),
        );
        if set.is_ok() {
            assert!(!may(&file, &data, &user(65_534, 65_534), 4));
            assert!(may(&file, &data, &user(65_533, 65_533), 4));
        }
    }

    fn user(uid: u32, gid: u32) -> User {
        User {
            name: "someone".to_owned(),
            uid,
            gid,
            home: "/".to_owned(),
            switched: true,
        }
    }

    #[test]
    fn nobody_is_led_over_a_link_of_the_process_file_system() {
        let root = user(0, 0);
        for path in ["/proc/self/root/etc/passwd", "/proc/1/cwd/x", "/dev/fd/0/y"] {
            assert_eq!(walk(Path::new(path), &root), Way::Elsewhere, "{path}");
        }
        assert_eq!(
            walk(Path::new("/etc/../etc/passwd"), &root),
            Way::To("/etc/passwd".into())
        );
        assert_eq!(walk(Path::new("/etc/passwd/.."), &root), Way::Nowhere);
    }
}
