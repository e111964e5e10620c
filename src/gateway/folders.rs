//! The state directory: made 0700, refused when others can reach it, and locked for one process.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use portcullis_actors::plain;
use portcullis_core::codes;
use rustix::fs::FlockOperation;

use crate::above;
use crate::cli::Failure;

/// The state is this process's until it is dropped. The file has the pid for whoever is refused; it can be taken away, and the
/// folder under a running gateway cannot.
pub struct Lock {
    _file: File,
    _folder: File,
}

/// How long a lock that is held is waited for.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);

/// Whether anything tells that this state has a log: its segments, what was signed of it, its keys. The database is made before all
/// of them.
pub fn has_log(state: &Path) -> bool {
    let in_folder = |folder: &str, is_of_log: fn(&str) -> bool| {
        let entries = state
            .join(folder)
            .read_dir()
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .any(|name| is_of_log(&name))
    };
    in_folder("audit", |name| {
        name.strip_suffix(".log").is_some()
            || ["checkpoints", "first.pub", "retired", "tile"].contains(&name)
    }) || in_folder("keys", |name| name.starts_with("audit-"))
}

/// Refuses a state whose database is gone while its log is there, before another is made in its place.
pub fn has_database(state: &Path, may_make: bool) -> Result<(), Failure> {
    let database = state.join("state.db");
    // What is no file is told by who opens it.
    let is_there = |found: std::fs::Metadata| !found.is_file() || found.len() > 0;
    if may_make || database.symlink_metadata().is_ok_and(is_there) {
        return Ok(());
    }
    Err(Failure::of(
        codes::STATE_CORRUPT,
        format!(
            "{} is missing or empty, and the audit log of this state is there: somebody took it away",
            database.display()
        ),
    )
    .hint("put state.db back as it was, or begin with an empty state directory"))
}

/// Makes what is missing (0700; `run` 0750) and refuses what is too open or another's, or where others could put another
/// folder in its place.
pub fn make(state: &Path) -> Result<(), Failure> {
    // Before anything is made there, and once more when all is.
    check_above(state)?;
    let folders = [
        (state.to_path_buf(), 0o700),
        (state.join("audit"), 0o700),
        (state.join("keys"), 0o700),
        (state.join("workspaces"), 0o700),
        (state.join("run"), 0o750),
    ];
    for (folder, mode) in folders {
        DirBuilder::new()
            .recursive(folder == state)
            .mode(mode)
            .create(&folder)
            .or_else(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(e),
            })
            .map_err(|e| {
                let what = format!("cannot make {}", folder.display());
                let failure = Failure::io(codes::STATE_MODE, what, &e);
                if failure.code == codes::STATE_MODE.name {
                    failure.hint("choose another with --state DIR")
                } else {
                    failure
                }
            })?;
        check(&folder, mode)?;
    }
    // Made where there are sinks, and where somebody is told of questions.
    for name in ["sinks", "notices"] {
        let folder = state.join(name);
        if folder.symlink_metadata().is_ok() {
            check(&folder, 0o700)?;
        }
    }
    check_above(state)
}

/// Who may write a folder above takes the state away and serves his own there: our command line would send him secrets.
fn check_above(state: &Path) -> Result<(), Failure> {
    let shown = state.display();
    match above::open_above(state) {
        Ok(None) => Ok(()),
        Ok(Some(open)) => Err(Failure::of(
            codes::STATE_MODE,
            format!("others could put another folder in the place of {shown}: {open}"),
        )
        .hint(format!(
            "choose another with --state DIR, or let root or this user own {0} and nobody else write it: chmod go-w {0}",
            open.folder.display()
        ))),
        Err(e) => Err(Failure::io(codes::STATE_MODE, format!("the folders above {shown}"), &e)),
    }
}

fn check(folder: &Path, mode: u32) -> Result<(), Failure> {
    let refuse = |why: String, fix: String| Err(Failure::of(codes::STATE_MODE, why).hint(fix));
    let shown = folder.display();
    let meta = match std::fs::symlink_metadata(folder) {
        Ok(meta) => meta,
        Err(e) => {
            return refuse(
                format!("{shown}: {e}"),
                "choose another with --state DIR".into(),
            );
        }
    };
    if !meta.is_dir() {
        return refuse(
            format!("{shown} is no folder"),
            "choose another with --state DIR".into(),
        );
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own {
        return refuse(
            format!(
                "{shown} belongs to uid {}, and the gateway runs as {own}",
                meta.uid()
            ),
            format!("chown {own} {shown}"),
        );
    }
    if meta.mode() & 0o777 & !mode != 0 {
        return refuse(
            format!("others can reach {shown} (mode {:o})", meta.mode() & 0o777),
            format!("chmod {mode:o} {shown}"),
        );
    }
    Ok(())
}

/// One process a state directory: held until the file is dropped, also by the kernel when the process dies.
pub async fn lock(state: &Path) -> Result<Lock, Failure> {
    let path = state.join("lock");
    let failed = |e: io::Error| Failure::io(codes::STATE_MODE, path.display(), &e);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    let mut file = plain::open(&options, &path).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidInput => {
            Failure::of(codes::STATE_MODE, e.to_string()).hint(format!("rm {}", path.display()))
        }
        _ => failed(e),
    })?;
    let folder = File::open(state).map_err(failed)?;
    let locks = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
    // What a killed gateway was just starting holds its lock until that is executed: moments, and no other gateway.
    // Some network file systems lock no folders; there the file alone is what is held.
    let free =
        || locks(&file).is_ok() && !matches!(locks(&folder), Err(rustix::io::Errno::WOULDBLOCK));
    let until = Instant::now() + LOCK_PATIENCE;
    let mut is_ours = free();
    while !is_ours && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
        is_ours = free();
    }
    if !is_ours {
        let mut pid = String::new();
        // Who holds it is a courtesy: that it is held is the fact.
        let _ = (&mut file).take(20).read_to_string(&mut pid);
        let pid = match pid.trim() {
            "" => "whose lock file was removed".to_owned(),
            pid => format!("pid {pid}"),
        };
        return Err(Failure::of(
            codes::STATE_LOCKED,
            format!("another gateway ({pid}) uses {}", state.display()),
        ));
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(Lock {
        _file: file,
        _folder: folder,
    })
}
