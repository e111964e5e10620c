//! The file in the state directory: read only if nobody else can reach it, written once at first run.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use portcullis_actors::plain;
use portcullis_core::codes::{self, Code};

/// No configuration is longer, bytes.
const LONGEST: u64 = 1 << 20;

/// Why the file was not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Others can reach it, or it is not ours. Code `STATE_MODE`.
    #[error("{path}: {what}; run: {fix}", path = .path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// The command that mends it.
        fix: String,
    },
    /// A pipe, a folder, a link lies in its place. Code `STATE_MODE`.
    #[error("{0}")]
    Odd(io::Error),
    /// It is too long to be one. Code `CONFIG_INVALID`.
    #[error("{path} is longer than 1 MiB; make it shorter", path = .0.display())]
    TooLong(PathBuf),
    /// The system said no. Code `CONFIG_INVALID`.
    #[error("{path} cannot be read: {source}; look at the file and its folder", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FileError {
    /// The stable code.
    pub const fn code(&self) -> &'static Code {
        match self {
            Self::Mode { .. } | Self::Odd(_) => codes::STATE_MODE,
            Self::TooLong(_) | Self::Io { .. } => codes::CONFIG_INVALID,
        }
    }
}

/// The bytes of a file that only its owner, who must be us, can reach; `None` where there is no file.
///
/// The descriptor is checked that the bytes are then read from: another file cannot take its place in between.
///
/// # Errors
/// [`FileError`], with the command that mends it where one does.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let failed = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let mode = |what: String, fix: String| FileError::Mode {
        path: path.to_owned(),
        what,
        fix,
    };
    let file = match plain::open(File::options().read(true), path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            return Err(FileError::Odd(error));
        }
        Err(error) => return Err(failed(error)),
    };
    let found = file.metadata().map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own {
        let what = format!(
            "it belongs to uid {}, and the gateway runs as uid {own}",
            found.uid()
        );
        return Err(mode(what, format!("chown {own} {}", quoted(path))));
    }
    if found.mode() & 0o177 != 0 {
        let what = format!(
            "its mode is {:04o}, so that others can reach it",
            found.mode() & 0o7777
        );
        return Err(mode(what, format!("chmod 600 {}", quoted(path))));
    }
    let mut bytes = vec![];
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err(FileError::TooLong(path.to_owned()));
    }
    Ok(Some(bytes))
}

/// Writes the first-run file, durable and 0600. An existing file is left as it is: `false`.
///
/// # Errors
/// What the system said.
pub fn write_first(path: &Path, text: &str) -> io::Result<bool> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    if path.symlink_metadata().is_ok() {
        return Ok(false);
    }
    // Whole or not there: a cut-off file after a power failure would not parse.
    let draft = folder.join(".config.toml.new");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&draft, path);
    std::fs::remove_file(&draft)?;
    File::open(folder)?.sync_all()?;
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// For a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// The first-run file: every key of default.toml as a comment, and `active` lines under their sections.
///
/// Keys stay comments, so that a later version's better default is not held back by a copy of today's.
pub fn first_run(defaults: &str, active: &[(&str, &str)]) -> String {
    let mut text = String::from(
        "# The settings of this gateway. Lines that begin with #: are the defaults; take the #: away to change one.\n\n",
    );
    let mut left = active.to_vec();
    for line in defaults.lines().skip_while(|line| !line.starts_with('[')) {
        if line.is_empty() || line.starts_with('#') {
            text.push_str(line);
        } else if line.starts_with('[') {
            text.push_str(line);
            left.retain(|(section, setting)| {
                let here = line.trim_matches(['[', ']']) == *section;
                if here {
                    text.push('\n');
                    text.push_str(setting);
                }
                !here
            });
        } else {
            text.push_str("#: ");
            text.push_str(line);
        }
        text.push('\n');
    }
    for (section, setting) in left {
        text.push_str("\n[");
        text.push_str(section);
        text.push_str("]\n");
        text.push_str(setting);
        text.push('\n');
    }
    text
}
