//! The machine identity key's file, and the sealed boot keys beside the state.
//!
//! The identity key is the one plaintext secret, so its file is private, made whole or not at all, and never inside
//! the state directory: a copied state directory opens nowhere else.

use portcullis_actors::plain;
use portcullis_core::identity::{BootKey, Identity, IdentityError};
use portcullis_core::seal::{NONCE, Secret};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

use crate::above::{Open, open_above};

/// Larger than any file of ours.
const MAX_FILE: u64 = 64 * 1024;
/// How the name of a key begins that is being made.
const PART: &str = ".key-";

/// Why an identity or boot key file cannot be used. `Display` says what to do.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// A pipe, a folder, a link lies in its place.
    #[error("{0}")]
    Odd(io::Error),
    /// Group or others have a right to it, or it is another user's.
    #[error("{path} {why}: others could read the key; run: chmod 600 {path}")]
    Mode {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Somebody else may write a folder on the way to it.
    #[error("others could put another key in the place of {path}: {open}; run: chmod go-w {folder}, or choose another place", folder = open.folder.display())]
    Above {
        /// The file.
        path: String,
        /// Which folder, and why.
        open: Open,
    },
    /// It lies in the state directory, so whoever copies the state copies its key.
    #[error(
        "the identity key {path} lies inside the state directory {state}: move it out and name it with --identity"
    )]
    Inside {
        /// The file.
        path: String,
        /// The state directory.
        state: String,
    },
    /// It holds no key of ours, or another identity's.
    #[error("{path}: {source}")]
    Key {
        /// The file.
        path: String,
        /// What the bytes say.
        source: IdentityError,
    },
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What it said.
        source: io::Error,
    },
}

impl KeyFileError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Odd(_) | Self::Mode { .. } | Self::Above { .. } => "STATE_MODE",
            Self::Key { source, .. } => source.code(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => "DISK_FULL",
            Self::Inside { .. } | Self::Io { .. } => "IDENTITY_INVALID",
        }
    }
}

/// Opens the identity key, or makes one on the first start (the second value says so).
///
/// # Errors
/// [`KeyFileError`]; a file that exists is never replaced.
pub fn open_or_make(path: &Path, state: &Path) -> Result<(Identity, bool), KeyFileError> {
    refuse_inside(path, state)?;
    refuse_above(path)?;
    if let Some(identity) = open(path)? {
        return Ok((identity, false));
    }
    let mut random = Zeroizing::new([0; 32]);
    fill(&mut *random, path)?;
    let identity = Identity::from_random(*random);
    let made = make(path, identity.to_text().as_bytes());
    refuse_above(path)?;
    match made {
        Ok(()) => Ok((identity, true)),
        // Another start was quicker: its key is the key.
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            let made = open(path)?;
            made.map(|identity| (identity, false))
                .ok_or_else(|| failed(path, io::Error::from(io::ErrorKind::NotFound)))
        }
        Err(error) => Err(error),
    }
}

/// Opens an identity key that must exist (a CLI that works on the files of a stopped gateway).
///
/// # Errors
/// [`KeyFileError`].
pub fn open_existing(path: &Path, state: &Path) -> Result<Identity, KeyFileError> {
    refuse_inside(path, state)?;
    refuse_above(path)?;
    open(path)?.ok_or_else(|| failed(path, io::Error::from(io::ErrorKind::NotFound)))
}

/// Opens a boot key in `keys` (STATE/keys), or makes it with `fresh` (bytes from the operating system) and seals it.
///
/// # Errors
/// [`KeyFileError`]; `IDENTITY_MISMATCH` when another identity sealed it.
pub fn boot_key(
    identity: &Identity,
    keys: &Path,
    which: BootKey,
    fresh: impl FnOnce() -> Result<Secret, io::Error>,
) -> Result<Secret, KeyFileError> {
    let path = keys.join(which.file_name());
    if let Some(file) = read_private(&path)? {
        return identity
            .open(which, &file)
            .map_err(|source| key_error(&path, source));
    }
    let plain = fresh().map_err(|source| failed(&path, source))?;
    let mut nonce = [0; NONCE];
    fill(&mut nonce, &path)?;
    make(&path, &identity.seal(which, &plain, &nonce))?;
    Ok(plain)
}

fn open(path: &Path) -> Result<Option<Identity>, KeyFileError> {
    let Some(bytes) = read_private(path)? else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| key_error(path, IdentityError::Format))?;
    Identity::parse(text)
        .map(Some)
        .map_err(|source| key_error(path, source))
}

/// Opens by descriptor, checks the descriptor, reads the descriptor.
pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, KeyFileError> {
    let mut file = match plain::open(File::options().read(true), path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            return Err(KeyFileError::Odd(error));
        }
        Err(error) => return Err(failed(path, error)),
    };
    let meta = file.metadata().map_err(|error| failed(path, error))?;
    if meta.mode() & 0o077 != 0 {
        return Err(loose(
            path,
            format!("has mode {:04o}", meta.mode() & 0o7777),
        ));
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own && meta.uid() != 0 {
        return Err(loose(path, format!("belongs to uid {}", meta.uid())));
    }
    if meta.len() > MAX_FILE {
        return Err(key_error(path, IdentityError::Format));
    }
    if meta.nlink() > 1 {
        forget_parts(path, &meta);
    }
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(meta.len()).unwrap_or(0) + 1,
    ));
    (&mut file)
        .take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(path, error))?;
    Ok(Some(bytes))
}

/// The whole file or none, 0600, durable with its directory entry; never over one that exists.
fn make(path: &Path, bytes: &[u8]) -> Result<(), KeyFileError> {
    let folder = folder_of(path);
    let mut folders = std::fs::DirBuilder::new();
    folders
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|error| failed(path, error))?;
    let mut suffix = [0; 8];
    fill(&mut suffix, path)?;
    let part = folder.join(format!("{PART}{}", portcullis_core::encoding::hex(&suffix)));
    let made = write_and_link(&part, path, bytes);
    drop(std::fs::remove_file(&part));
    made.and_then(|()| File::open(&folder)?.sync_all())
        .map_err(|error| failed(path, error))
}

/// A kill between the link and the removal of the part's name leaves the key under two names, and whoever removes one of them
/// believes it gone.
fn forget_parts(path: &Path, key: &std::fs::Metadata) {
    for entry in folder_of(path).read_dir().into_iter().flatten().flatten() {
        let is_part = entry.file_name().to_string_lossy().starts_with(PART);
        let same = |found: std::fs::Metadata| (found.dev(), found.ino()) == (key.dev(), key.ino());
        if is_part && entry.metadata().is_ok_and(same) {
            // Where it cannot be removed it is as private as the key.
            drop(std::fs::remove_file(entry.path()));
        }
    }
}

fn write_and_link(part: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // Unlike a rename, a link fails where a file stands.
    std::fs::hard_link(part, path)
}

fn refuse_inside(path: &Path, state: &Path) -> Result<(), KeyFileError> {
    let real = |path: &Path| {
        // The nearest ancestor that exists says where the rest will be.
        let absolute = std::path::absolute(path).ok()?;
        absolute.ancestors().find_map(|ancestor| {
            let rest = absolute.strip_prefix(ancestor).ok()?;
            ancestor.canonicalize().ok().map(|found| found.join(rest))
        })
    };
    match (real(path), real(state)) {
        (Some(file), Some(folder)) if !file.starts_with(&folder) => Ok(()),
        _ => Err(KeyFileError::Inside {
            path: path.display().to_string(),
            state: state.display().to_string(),
        }),
    }
}

/// Who may write a folder above takes the key away, and the next start makes or finds another.
fn refuse_above(path: &Path) -> Result<(), KeyFileError> {
    match open_above(path).map_err(|e| failed(path, e))? {
        None => Ok(()),
        Some(open) => Err(KeyFileError::Above {
            path: path.display().to_string(),
            open,
        }),
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn fill(bytes: &mut [u8], path: &Path) -> Result<(), KeyFileError> {
    getrandom::fill(bytes).map_err(|error| {
        bytes.zeroize();
        failed(path, io::Error::other(error.to_string()))
    })
}

fn loose(path: &Path, why: String) -> KeyFileError {
    KeyFileError::Mode {
        path: path.display().to_string(),
        why,
    }
}

fn failed(path: &Path, source: io::Error) -> KeyFileError {
    KeyFileError::Io {
        path: path.display().to_string(),
        source,
    }
}

fn key_error(path: &Path, source: IdentityError) -> KeyFileError {
    KeyFileError::Key {
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn code<T>(result: Result<T, KeyFileError>) -> Option<&'static str> {
        result.err().map(|error| error.code())
    }

    /// The bug: a kill in the middle of the first start left the identity key under a second name for good.
    #[test]
    fn a_second_name_of_a_key_that_a_kill_left_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (path, state) = (
            folder.path().join("config/identity.key"),
            folder.path().join("state"),
        );
        let (made, _) = open_or_make(&path, &state).unwrap();
        let (part, other) = (
            path.with_file_name(".key-0011223344556677"),
            path.with_file_name("backup"),
        );
        std::fs::hard_link(&path, &part).unwrap();
        std::fs::hard_link(&path, &other).unwrap();
        let (again, fresh) = open_or_make(&path, &state).unwrap();
        assert!(!fresh && made.check() == again.check());
        assert!(!part.exists());
        assert!(path.exists() && other.exists(), "a name that somebody gave");
    }

    #[test]
    fn it_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let (path, state) = (
            folder.path().join("config/identity.key"),
            folder.path().join("state"),
        );
        let (made, fresh) = open_or_make(&path, &state).unwrap();
        assert!(fresh);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let (again, fresh) = open_or_make(&path, &state).unwrap();
        assert!(!fresh);
        assert_eq!(made.check(), again.check());
        // Nothing else is left in the folder.
        assert_eq!(
            std::fs::read_dir(folder.path().join("config"))
                .unwrap()
                .count(),
            1
        );
        assert_eq!(
            code(open_existing(&folder.path().join("none"), &state)),
            Some("IDENTITY_INVALID")
        );
    }

    #[test]
    fn a_key_under_a_folder_that_others_write_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let open = home.path().join("open");
        std::fs::create_dir(&open).unwrap();
        let (path, state) = (open.join("keys/identity.key"), home.path().join("state"));
        let set = |mode| {
            std::fs::set_permissions(&open, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(0o777);
        let refused = open_or_make(&path, &state).err().unwrap();
        assert_eq!(refused.code(), "STATE_MODE");
        assert!(
            refused
                .to_string()
                .contains(&format!("chmod go-w {}", open.display()))
        );
        assert!(!open.join("keys").exists(), "nothing is made there");
        set(0o755);
        open_or_make(&path, &state).unwrap();
        set(0o777);
        assert_eq!(code(open_or_make(&path, &state)), Some("STATE_MODE"));
        assert_eq!(code(open_existing(&path, &state)), Some("STATE_MODE"));
        set(0o1777);
        assert!(open_existing(&path, &state).is_ok());
    }

    #[test]
    fn what_others_reach_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, state) = (
            folder.path().join("identity.key"),
            folder.path().join("state"),
        );
        open_or_make(&path, &state).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o601] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(
                code(open_or_make(&path, &state)),
                Some("STATE_MODE"),
                "{mode:o}"
            );
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(open_or_make(&path, &state).is_ok());
        let link = folder.path().join("link.key");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(code(open_or_make(&link, &state)), Some("STATE_MODE"));
        assert_eq!(
            code(open_or_make(folder.path(), &state)),
            Some("STATE_MODE")
        );
        std::fs::write(folder.path().join("noise.key"), "noise").unwrap();
        std::fs::set_permissions(
            folder.path().join("noise.key"),
            std::fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        assert_eq!(
            code(open_or_make(&folder.path().join("noise.key"), &state)),
            Some("IDENTITY_INVALID")
        );
    }

    #[test]
    fn it_may_not_lie_in_the_state_directory_by_any_path() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::os::unix::fs::symlink(&state, folder.path().join("door")).unwrap();
        for path in [
            "state/identity.key",
            "state/deep/identity.key",
            "door/identity.key",
            "door/new/identity.key",
        ] {
            let refused = open_or_make(&folder.path().join(path), &state);
            assert!(
                matches!(refused, Err(KeyFileError::Inside { .. })),
                "{path}"
            );
        }
        assert!(std::fs::read_dir(&state).unwrap().next().is_none());
        // A neighbour whose name begins alike is outside.
        assert!(open_or_make(&folder.path().join("state2/identity.key"), &state).is_ok());
    }

    #[test]
    fn boot_keys_are_sealed_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::from_random([1; 32]);
        let fresh = || Ok(Secret::new(b"planted-secret".to_vec()));
        let made = boot_key(&identity, folder.path(), BootKey::Pepper, fresh).unwrap();
        let again = boot_key(&identity, folder.path(), BootKey::Pepper, || {
            panic!("exists")
        })
        .unwrap();
        assert_eq!(made.expose(), again.expose());
        let file = std::fs::read(folder.path().join(BootKey::Pepper.file_name())).unwrap();
        assert!(!file.windows(14).any(|window| window == b"planted-secret"));
        let other = Identity::from_random([2; 32]);
        let refused = boot_key(&other, folder.path(), BootKey::Pepper, || panic!("exists"));
        assert_eq!(code(refused), Some("IDENTITY_MISMATCH"));
    }
}
