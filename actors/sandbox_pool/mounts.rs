//! What of the host an operator lets boxes see, looked at step by step through descriptors before a box is made of it.
//!
//! No link is followed, and every folder on the way can be changed by root or the gateway's own user alone, so that nobody who is
//! to be contained can put another thing there between the look and the mount. The driver compares device and inode besides.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use portcullis_core::sandbox::{Access, MOUNTS_INSIDE, MountSource, Mounts};
use rustix::fs::{FileType, Mode, OFlags, Stat};

/// The system's own: nothing at, below or above them is mounted.
const SYSTEM: [&str; 8] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/run",
    "/boot",
    "/etc",
    "/var/lib/docker",
];
/// Names of folders and files that hold secrets, in a home folder or anywhere else.
const SECRET: [&str; 15] = [
    ".config",
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".password-store",
    ".mozilla",
    ".netrc",
    ".pgpass",
    ".git-credentials",
    ".vault-token",
    "gcloud",
    "keyrings",
];
/// People's accounts have uids from here on; their home folders are not mounted as a whole. Root's neither.
const PEOPLE: std::ops::RangeFrom<u32> = 1000..;
/// The uid of nobody, whose home is none.
const NOBODY: u32 = 65_534;
/// File systems that show the machine and not a disk: proc, sysfs, cgroup, cgroup2, devpts, securityfs, debugfs, tracefs, bpf.
const KERNELS: [u64; 18] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x7363_6673,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
    0xde5e_81e4, // efivarfs
    0x1980_0202, // mqueue
    0x6265_6570, // configfs
    0x6165_676c, // pstore
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
    0x6e73_6673, // nsfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
];

/// One mount of a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxMount {
    /// On the host.
    pub source: PathBuf,
    /// In the box.
    pub inside: PathBuf,
    /// How it is seen.
    pub access: Access,
    /// What lay there when it was looked at.
    pub node: Node,
}

/// A file or folder, whatever its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Node {
    device: u64,
    inode: u64,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.inode)
    }
}

impl From<&Stat> for Node {
    fn from(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

impl BoxMount {
    fn of(name: &str, source: &MountSource, node: Node) -> Self {
        Self {
            source: PathBuf::from(&source.path),
            inside: Path::new(MOUNTS_INSIDE).join(name),
            access: source.access,
            node,
        }
    }

    /// Its name in the launcher's stage.
    pub fn staged(&self, number: usize) -> String {
        format!("x{number}")
    }

    /// Whether at its source lies what was looked at.
    ///
    /// # Errors
    /// What lies there.
    pub fn is_still(&self) -> Result<(), String> {
        let (_, opened) = walk(&self.source)?;
        if Node::from(&opened) == self.node {
            Ok(())
        } else {
            Err("its source was replaced meanwhile; try again".to_owned())
        }
    }

    /// Whether the box of this first process sees there what was looked at.
    ///
    /// # Errors
    /// What it sees.
    pub fn is_seen_by(&self, init: u32) -> Result<(), String> {
        let inside = format!("/proc/{init}/root{}", self.inside.display());
        let seen =
            rustix::fs::stat(inside.as_str()).map_err(|error| format!("{inside}: {error}"))?;
        if Node::from(&seen) == self.node {
            Ok(())
        } else {
            Err(format!(
                "{} in the box is not what was looked at",
                self.inside.display()
            ))
        }
    }
}

/// The mounts by what the configuration alone says, for a digest.
pub fn shape(mounts: &Mounts) -> Vec<BoxMount> {
    let of = |(name, source)| BoxMount::of(name, source, Node::default());
    mounts.iter().map(of).collect()
}

/// Looks at every source. `off_limits`: besides the system's own. `uid`: of the box.
///
/// # Errors
/// The name of the first that may not be mounted, why, and what mends it.
pub fn look(
    mounts: &Mounts,
    off_limits: &[PathBuf],
    uid: u32,
) -> Result<Vec<BoxMount>, (String, String)> {
    let all = mounts.iter().map(|(name, source)| {
        let looked = one(source, off_limits, uid);
        looked
            .map(|node| BoxMount::of(name, source, node))
            .map_err(|why| (name.to_owned(), format!("{}: {why}", source.path)))
    });
    all.collect()
}

fn one(source: &MountSource, off_limits: &[PathBuf], uid: u32) -> Result<Node, String> {
    let path = Path::new(&source.path);
    let system = SYSTEM.iter().map(Path::new);
    let ours = off_limits.iter().map(PathBuf::as_path);
    let kept: Vec<&Path> = system.chain(ours).collect();
    let shows = |kept: &Path| format!("it would show {}, which no box may see", kept.display());
    if let Some(kept) = kept
        .iter()
        .find(|kept| path.starts_with(kept) || kept.starts_with(path))
    {
        return Err(shows(kept));
    }
    let holds_secret = |step: &std::ffi::OsStr| SECRET.iter().any(|secret| step == *secret);
    if let Some(step) = path.iter().find(|step| holds_secret(step)) {
        return Err(format!("{} holds secrets", step.display()));
    }
    let homes = homes();
    let whole = |home: &Path| {
        format!(
            "it would show the whole of {}, with all keys and histories in it: name a folder within",
            home.display()
        )
    };
    if let Some(home) = homes.iter().find(|home| home.starts_with(path)) {
        return Err(whole(home));
    }
    let (way, found) = walk(path)?;
    let node = Node::from(&found);
    // The same places under other names: through a link above them, or mounted a second time.
    for kept in kept {
        let at = nodes_to(kept);
        let is_within = at
            .last()
            .is_some_and(|kept| way.contains(kept) || *kept == node);
        if is_within || at.contains(&node) {
            return Err(shows(kept));
        }
    }
    if let Some(home) = homes.iter().find(|home| nodes_to(home).contains(&node)) {
        return Err(whole(home));
    }
    let kind = FileType::from_raw_mode(found.st_mode);
    if !matches!(kind, FileType::Directory | FileType::RegularFile) {
        return Err("it is neither a folder nor a plain file".to_owned());
    }
    if let Ok(there) = rustix::fs::statfs(path)
        && KERNELS.contains(&u64::try_from(there.f_type).unwrap_or_default())
    {
        return Err("it is the kernel's own, not files of a disk".to_owned());
    }
    if source.access == Access::Rw && found.st_uid != uid {
        return Err(format!(
            "it is mounted to be written, and belongs to uid {}: run `chown -R {uid}:{uid} {}`, or mount it read-only",
            found.st_uid, source.path
        ));
    }
    Ok(node)
}

/// What lies at a path and at each step to it but `/`, links followed; nothing where it is not there.
fn nodes_to(path: &Path) -> Vec<Node> {
    let Ok(real) = std::fs::canonicalize(path) else {
        return Vec::new();
    };
    let steps: Vec<&Path> = real.ancestors().collect();
    let below = steps.iter().rev().skip(1);
    below
        .filter_map(|step| rustix::fs::stat(*step).ok().as_ref().map(Node::from))
        .collect()
}

/// Step by step from `/` to what lies at the end, which is looked at without being opened. First what lay on the way, but for `/`.
fn walk(path: &Path) -> Result<(Vec<Node>, Stat), String> {
    let said = |at: &Path, error: rustix::io::Errno| match error {
        rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => {
            format!(
                "{} is a link or no folder: write the path without links",
                at.display()
            )
        }
        rustix::io::Errno::NOENT => format!("{} is not there", at.display()),
        other => format!("{}: {other}", at.display()),
    };
    let open = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = PathBuf::from("/");
    let mut folder: OwnedFd = rustix::fs::open("/", open | OFlags::DIRECTORY, Mode::empty())
        .map_err(|error| said(&at, error))?;
    let mut way = Vec::new();
    let mut steps = path.iter().skip(1).peekable();
    while let Some(step) = steps.next() {
        let passed = is_steady(&folder, &at)?;
        if at != Path::new("/") {
            way.push(passed);
        }
        at.push(step);
        let is_last = steps.peek().is_none();
        let flags = if is_last {
            open
        } else {
            open | OFlags::DIRECTORY
        };
        folder = rustix::fs::openat(&folder, step, flags, Mode::empty())
            .map_err(|error| said(&at, error))?;
    }
    let found = rustix::fs::fstat(&folder).map_err(|error| said(&at, error))?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
        return Err(said(&at, rustix::io::Errno::LOOP));
    }
    Ok((way, found))
}

/// A folder in which root and the gateway's own user alone can put one thing in another's place.
fn is_steady(folder: &OwnedFd, at: &Path) -> Result<Node, String> {
    let found = rustix::fs::fstat(folder).map_err(|error| format!("{}: {error}", at.display()))?;
    let own = rustix::process::geteuid().as_raw();
    if found.st_uid != 0 && found.st_uid != own {
        return Err(format!(
            "{} belongs to uid {}, who could put another thing in its place: use a source whose parents belong to root",
            at.display(),
            found.st_uid
        ));
    }
    if found.st_mode & 0o022 != 0 {
        return Err(format!(
            "{} can be changed by others: run `chmod go-w {}`, or use another source",
            at.display(),
            at.display()
        ));
    }
    Ok(Node::from(&found))
}

/// Home folders of root and of people, as `/etc/passwd` has them.
fn homes() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let home = |line: &str| {
        let mut fields = line.split(':').skip(2);
        let uid: u32 = fields.next()?.parse().ok()?;
        let home = PathBuf::from(fields.nth(2)?);
        let is_persons = uid == 0 || PEOPLE.contains(&uid) && uid != NOBODY;
        (is_persons && home.is_absolute() && home != Path::new("/")).then_some(home)
    };
    text.lines().filter_map(home).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(source: &str, off: &[PathBuf]) -> String {
        let mounts = Mounts::new([format!("{source}:x")]).unwrap();
        look(&mounts, off, 65_533).unwrap_err().1
    }

    #[test]
    fn what_holds_secrets_or_is_the_systems_own_is_no_mount() {
        for (source, why) in [
            ("/etc", "/etc"),
            ("/etc/ssl", "/etc"),
            ("/proc/1", "/proc"),
            ("/dev/null", "/dev"),
            ("/run/docker.sock", "/run"),
            ("/var", "/var/run"),
            ("/var/lib", "/var/lib/docker"),
            ("/root", "/root"),
            ("/srv/x/.ssh", ".ssh"),
            ("/srv/x/.aws/y", ".aws"),
            ("/srv/gate/state", "/srv/gate"),
            ("/srv", "/srv/gate"),
        ] {
            let said = refused(source, &[PathBuf::from("/srv/gate")]);
            assert!(said.contains(why), "{source}: {said}");
        }
        // Names alone decide nothing about what is beside them.
        assert!(refused("/srv/gates", &[PathBuf::from("/srv/gate")]).contains("is not there"));
    }

    /// The bug: the system's own and the gateway's state were compared by name alone, and seen by another name.
    #[test]
    fn what_no_box_may_see_is_none_under_another_name_either() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let at = folder.path();
        let real = at.join("real");
        std::fs::create_dir_all(real.join("state/keys")).unwrap();
        std::fs::create_dir(at.join("beside")).unwrap();
        std::os::unix::fs::symlink(&real, at.join("link")).unwrap();
        let off = [at.join("link/state")];
        if walk(at).is_err() {
            // A checkout in a place that others can change: nothing of it is mounted.
            return;
        }
        for (source, is_refused) in [
            ("real", true),
            ("real/state", true),
            ("real/state/keys", true),
            ("beside", false),
        ] {
            let mounts = Mounts::new([format!("{}:x", at.join(source).display())]).unwrap();
            let looked = look(&mounts, &off, 65_533);
            let shows = |why: &str| why.contains("no box may see");
            assert_eq!(
                looked.is_err_and(|(_, why)| shows(&why)),
                is_refused,
                "{source}"
            );
        }
        assert!(nodes_to(Path::new("/nowhere/at/all")).is_empty());
        assert!(refused("/srv/x/.config/y", &[]).contains(".config"));
    }

    #[test]
    fn a_way_that_others_can_change_or_that_is_a_link_is_no_mount() {
        use std::os::unix::fs::PermissionsExt as _;
        // Beside the build, whose parents are root's or our own; not below /tmp, which everybody may change.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let at = folder.path();
        let is_usable = look(
            &Mounts::new([format!("{}:x", at.display())]).unwrap(),
            &[],
            65_533,
        );
        if let Err((_, why)) = &is_usable {
            // Of a checkout in a place that others can change.
            assert!(
                why.contains("changed by others") || why.contains("belongs to"),
                "{why}"
            );
            return;
        }
        let data = at.join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("f"), "x").unwrap();
        std::os::unix::fs::symlink(&data, at.join("link")).unwrap();
        let of = |path: &Path| refused(&path.display().to_string(), &[]);
        assert!(of(&at.join("link")).contains("is a link"));
        assert!(of(&at.join("link/f")).contains("is a link"));
        assert!(of(&at.join("gone")).contains("is not there"));
        let socket = std::os::unix::net::UnixListener::bind(at.join("s")).unwrap();
        assert!(of(&at.join("s")).contains("neither a folder nor a plain file"));
        drop(socket);
        let file = data.join("f").display().to_string();
        let mounts = Mounts::new([format!("{file}:x")]).unwrap();
        let looked = look(&mounts, &[], 65_533).unwrap();
        assert_eq!(looked[0].inside, Path::new("/mnt/x"));
        looked[0].is_still().unwrap();
        std::fs::write(data.join("g"), "x").unwrap();
        std::fs::rename(data.join("g"), data.join("f")).unwrap();
        assert!(looked[0].is_still().unwrap_err().contains("replaced"));
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(of(&data.join("f")).contains("chmod go-w"));
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
        let rw = Mounts::new([format!("{file}:x:rw")]).unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert!(look(&rw, &[], own).is_ok());
        let (_, why) = look(&rw, &[], own + 1).unwrap_err();
        assert!(why.contains(&format!("chown -R {0}:{0}", own + 1)), "{why}");
    }
}
