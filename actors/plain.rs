//! Names that stand for plain files and folders of ours. What else somebody may have put there (a pipe, a device, a socket, a
//! link) keeps nobody waiting, is not followed, and is told by its name.

use rustix::fs::OFlags;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Opens a plain file and no other thing: the descriptor is looked at, so nothing can take the name's place in between.
///
/// # Errors
/// Of the file system; [`io::ErrorKind::InvalidInput`], with what to do, where something else lies there.
pub fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    checked(options, path, false)
}

/// The same for reading a file that is somebody else's to place, who may do so by a link.
///
/// # Errors
/// As [`open`].
pub fn open_linked(path: &Path) -> io::Result<File> {
    checked(File::options().read(true), path, true)
}

fn checked(options: &OpenOptions, path: &Path, follows: bool) -> io::Result<File> {
    // Non-blocking: a pipe without a writer would be waited for without end. Closed by an exec, as every file of std is.
    let flags = if follows {
        OFlags::NONBLOCK
    } else {
        OFlags::NONBLOCK | OFlags::NOFOLLOW
    };
    let flags = flags.bits().cast_signed();
    let opened = options.clone().custom_flags(flags).open(path);
    let found = match &opened {
        Ok(file) => file.metadata(),
        // Only for its name: what could not be opened may be something that cannot be.
        Err(error) if error.kind() != io::ErrorKind::NotFound => path.symlink_metadata(),
        Err(_) => return opened,
    };
    match found.map(|found| found.file_type()) {
        Ok(kind) if kind.is_symlink() && follows => opened,
        Ok(kind) if !kind.is_file() => Err(odd(path, kind, "file")),
        Err(error) if opened.is_ok() => Err(error),
        _ => opened,
    }
}

/// A file's bytes; of a longer one the first `limit`.
///
/// # Errors
/// As [`open`].
pub fn read(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(File::options().read(true), path)?
        .take(limit as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether there is a folder. A link to one is none: what is written there would go wherever somebody says.
///
/// # Errors
/// Of the file system; [`io::ErrorKind::InvalidInput`], with what to do, where something else lies there.
pub fn is_folder(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => Ok(true),
        Ok(found) => Err(odd(path, found.file_type(), "folder")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether there is a file, without opening it: who closes a file of a database lets go of what it has locked there.
///
/// # Errors
/// As [`is_folder`].
pub fn is_file(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(found) if found.is_file() => Ok(true),
        Ok(found) => Err(odd(path, found.file_type(), "file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Puts a file in the place of whatever lies there but a folder.
///
/// # Errors
/// As [`is_folder`].
pub fn rename(new: &Path, path: &Path) -> io::Result<()> {
    // The system's own word for a folder there names neither.
    std::fs::rename(new, path).or_else(|error| is_file(path).and(Err(error)))
}

/// Removes whatever lies there but a folder; nothing there is as good.
///
/// # Errors
/// As [`is_folder`].
pub fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => Err(odd(path, found.file_type(), "file")),
        _ => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

fn odd(path: &Path, kind: FileType, wanted: &str) -> io::Error {
    let found = if kind.is_symlink() {
        "symbolic link"
    } else if kind.is_dir() {
        "folder"
    } else if kind.is_fifo() {
        "pipe"
    } else if kind.is_socket() {
        "socket"
    } else if kind.is_file() {
        "file"
    } else {
        "device"
    };
    let text = format!(
        "{} is a {found} in the place of a {wanted}: move it away, and put back what was there",
        path.display()
    );
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType as Kind, Mode, mknodat};

    /// The bug: a pipe in the place of a file was waited for without end, and a link was followed.
    #[test]
    fn only_a_plain_file_is_opened_and_whatever_else_is_told_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        assert_eq!(read(&at("file"), 3).unwrap(), b"tex");
        mknodat(CWD, at("pipe"), Kind::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("loose")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let rights = [
            File::options().read(true).clone(),
            File::options().write(true).clone(),
            File::options().append(true).create(true).clone(),
            File::options().read(true).write(true).clone(),
        ];
        for options in rights {
            for (name, what) in [
                ("pipe", "a pipe"),
                ("folder", "a folder"),
                ("link", "a symbolic link"),
                ("loose", "a symbolic link"),
                ("socket", "a socket"),
            ] {
                let error = open(&options, &at(name)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}: {error}");
                assert!(error.to_string().contains(what), "{error}");
            }
        }
        assert_eq!(
            read(&at("none"), 1).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert!(open_linked(&at("link")).is_ok());
        assert_eq!(
            open_linked(&at("loose")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        let device = open_linked(Path::new("/dev/zero")).unwrap_err();
        assert!(device.to_string().contains("a device"), "{device}");
        assert!(is_folder(&at("folder")).unwrap() && !is_folder(&at("none")).unwrap());
        assert!(is_file(&at("file")).unwrap() && !is_file(&at("none")).unwrap());
        for name in ["folder", "pipe", "link", "loose", "socket"] {
            assert!(is_file(&at(name)).is_err(), "{name}");
        }
        for name in ["file", "pipe", "link", "loose"] {
            assert!(is_folder(&at(name)).is_err(), "{name}");
            remove(&at(name)).unwrap();
            remove(&at(name)).unwrap();
        }
        std::fs::write(at("new"), "text").unwrap();
        let error = rename(&at("new"), &at("folder")).unwrap_err();
        assert!(error.to_string().contains("a folder in"), "{error}");
        rename(&at("new"), &at("socket")).unwrap();
        assert!(remove(&at("folder")).is_err() && is_folder(&at("folder")).unwrap());
    }
}
