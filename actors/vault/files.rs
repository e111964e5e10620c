//! Key files and systemd credentials of unlockers. Blocking: not on a loop.

use super::messages::Around;
use portcullis_core::seal::Secret;
use portcullis_core::vault::{KeySource, MAX_UNLOCK, VaultError};
use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Magic numbers (statfs(2)) of file systems whose files the kernel makes up: proc, sysfs, cgroup and cgroup2, debugfs, tracefs,
/// securityfs, bpf, selinux, efivarfs, configfs, nsfs.
const MADE_UP: [rustix::fs::FsWord; 12] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0xf97c_ff8c,
    0xde5e_81e4,
    0x6265_6570,
    0x6e73_6673,
];

/// The content of a key file or credential. Opened by descriptor, checked by descriptor, read by descriptor.
pub(super) fn read(source: &KeySource, around: &Around) -> Result<Secret, VaultError> {
    let (path, is_credential) = match source {
        KeySource::File(path) => (PathBuf::from(path), false),
        KeySource::Credential(name) => (credential(name, around)?, true),
    };
    if !path.is_absolute() || is_inside(&path, around.state.as_deref()) || is_of_kernel(&path) {
        return Err(VaultError::KeyFile);
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(&path)
        .map_err(|_| VaultError::KeyFile)?;
    let meta = file.metadata().map_err(|_| VaultError::KeyFile)?;
    let own = rustix::process::geteuid().as_raw();
    // systemd gives a service's user its credentials by an ACL, whose mask stands in the group's bits.
    let others = if is_credential { 0o037 } else { 0o077 };
    if !meta.is_file() || meta.mode() & others != 0 || (meta.uid() != own && meta.uid() != 0) {
        return Err(VaultError::KeyFile);
    }
    let kind = rustix::fs::fstatfs(&file).map_err(|_| VaultError::KeyFile)?;
    if MADE_UP.contains(&kind.f_type) {
        return Err(VaultError::KeyFile);
    }
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let room = usize::try_from(meta.len())
        .unwrap_or(usize::MAX)
        .min(MAX_UNLOCK);
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(room + 2));
    (&mut file)
        .take(MAX_UNLOCK as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|_| VaultError::KeyFile)?;
    // What has no length, or another one than it says, is made while it is read.
    if bytes.len() as u64 != meta.len() && bytes.len() <= MAX_UNLOCK {
        return Err(VaultError::KeyFile);
    }
    Ok(Secret::new(std::mem::take(&mut *bytes)))
}

/// A credential's name is one file name (systemd.exec(5)), never a path.
fn credential(name: &str, around: &Around) -> Result<PathBuf, VaultError> {
    let is_name = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    let folder = around.credentials.as_ref().filter(|_| is_name);
    Ok(folder.ok_or(VaultError::KeyFile)?.join(name))
}

/// Of `/proc`, `/sys` or `/dev`: what lies there is no key of anybody's, and another at the next start.
fn is_of_kernel(path: &Path) -> bool {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    ["/proc", "/sys", "/dev"]
        .iter()
        .any(|folder| path.starts_with(folder) || real.starts_with(folder))
}

/// Who copies the state directory would copy its key with it.
fn is_inside(path: &Path, state: Option<&Path>) -> bool {
    let Some(state) = state.and_then(|state| state.canonicalize().ok()) else {
        return false;
    };
    path.canonicalize()
        .map_or(true, |real| real.starts_with(&state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// The bug: a process's environment was taken for a key file, and is another at the next start.
    #[test]
    fn what_the_kernel_makes_up_is_no_key_file() {
        let around = Around::default();
        let read = |path: &str| super::read(&KeySource::File(path.to_owned()), &around).err();
        let own = format!("/proc/{}/environ", std::process::id());
        for made_up in [
            "/proc/self/environ",
            &own,
            "/proc/thread-self/environ",
            "/proc/self/root/proc/self/environ",
            "/sys/kernel/notes",
            "/dev/null",
            "/dev/zero",
            "/dev/random",
            "/dev/stdin",
        ] {
            assert_eq!(read(made_up), Some(VaultError::KeyFile), "{made_up}");
        }
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(read(&pipe.display().to_string()), Some(VaultError::KeyFile));
        // A folder may be reached by another name: the file system says what it is.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc/self", &link).unwrap();
        let by_link = link.join("environ").display().to_string();
        assert_eq!(read(&by_link), Some(VaultError::KeyFile));
    }

    #[test]
    fn a_key_file_is_private_whole_and_outside_the_state_and_a_credential_is_no_path() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("state")).unwrap();
        let put = |name: &str, mode| {
            std::fs::write(at(name), [7; 40]).unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        put("key", 0o600);
        put("loose", 0o640);
        put("state/key", 0o600);
        std::os::unix::fs::symlink(at("key"), at("link")).unwrap();
        let around = Around {
            state: Some(at("state")),
            credentials: Some(folder.path().to_owned()),
            ..Around::default()
        };
        let read = |source| super::read(&source, &around).map(|secret| secret.len());
        let file = |name: &str| KeySource::File(at(name).display().to_string());
        assert_eq!(read(file("key")), Ok(40));
        for bad in ["loose", "state/key", "link", "none", "state"] {
            assert_eq!(read(file(bad)), Err(VaultError::KeyFile), "{bad}");
        }
        assert_eq!(
            read(KeySource::File("key".into())),
            Err(VaultError::KeyFile)
        );
        let credential = |name: &str| read(KeySource::Credential(name.into()));
        assert_eq!(credential("key"), Ok(40));
        // By the mask of an ACL the group may read, and nobody more.
        assert_eq!(credential("loose"), Ok(40));
        for bad in ["", ".", "..", "../key", "state/key", "none"] {
            assert_eq!(credential(bad), Err(VaultError::KeyFile), "{bad}");
        }
        let without = Around::default();
        let source = KeySource::Credential("key".into());
        assert!(super::read(&source, &without).is_err());
    }
}
