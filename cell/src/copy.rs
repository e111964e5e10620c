//! `get` and `put`: a file out of a box and into it, by a command of the box's own. It has the rights of every other run there, so that no path
//! from elsewhere is ever looked up by somebody with more.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_cell::{CopyFailure, FileHead, MOST_FILE};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, fchmod, fstat, fsync, linkat, open,
    openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Relative paths are below it.
const WORKSPACE: &str = "/workspace";
/// Bytes read at once.
const PIECE: usize = 64 * 1024;
/// A change within the clock tick of the last one has the same time, so that a file is first let be for longer than a tick.
const SETTLED: Duration = Duration::from_millis(20);
/// How often that is tried.
const TRIES: u32 = 50;
/// Longest size that is said before the bytes, digits.
const DIGITS: usize = 20;

struct Failure {
    what: CopyFailure,
    text: String,
}

fn failed(what: CopyFailure, path: &Path, text: impl std::fmt::Display) -> Failure {
    Failure {
        what,
        text: format!("{}: {text}", path.display()),
    }
}

fn refused(path: &Path, error: Errno) -> Failure {
    let what = match error {
        Errno::NOENT | Errno::NOTDIR => CopyFailure::Missing,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => CopyFailure::NotPermitted,
        Errno::NOSPC | Errno::DQUOT | Errno::NOMEM => CopyFailure::NoRoom,
        Errno::FBIG => CopyFailure::TooLarge,
        Errno::EXIST => CopyFailure::Exists,
        Errno::LOOP | Errno::ISDIR | Errno::NAMETOOLONG | Errno::NXIO => CopyFailure::Unfit,
        _ => CopyFailure::Other,
    };
    failed(what, path, io::Error::from(error))
}

fn io_refused(path: &Path, error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(number) => refused(path, Errno::from_raw_os_error(number)),
        None => failed(CopyFailure::Other, path, error),
    }
}

/// Entry of `portcullis-cell get PATH`.
pub fn get_main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let result = match (arguments.next(), arguments.next()) {
        (Some(path), None) => get(&path, &mut io::stdout().lock(), &mut io::stderr()),
        _ => Err(usage("get PATH")),
    };
    ended(result)
}

/// Entry of `portcullis-cell put PATH MODE [replace]`: its input is the size of what comes in decimal digits and an end of line, then so many
/// bytes, and no more.
pub fn put_main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let next = || arguments.next();
    let words: Vec<String> = std::iter::from_fn(next).take(4).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        [path, mode] => put(path, mode, false, &mut io::stdin().lock()),
        [path, mode, "replace"] => put(path, mode, true, &mut io::stdin().lock()),
        _ => Err(usage("put PATH MODE [replace]")),
    };
    ended(result)
}

fn usage(words: &str) -> Failure {
    Failure {
        what: CopyFailure::Unfit,
        text: format!("usage: portcullis-cell {words}"),
    }
}

fn ended(result: Result<(), Failure>) -> ExitCode {
    let Err(Failure { what, text }) = result else {
        return ExitCode::SUCCESS;
    };
    // Not eprintln: it panics where nobody reads.
    let _ = io::stderr().write_all(format!("portcullis-cell: {text}\n").as_bytes());
    ExitCode::from(what.exit())
}

/// Below the workspace, unless it is absolute. What leads upwards is refused: it would mean another place than it seems to.
fn place(path: &str) -> Result<PathBuf, Failure> {
    let whole = Path::new(WORKSPACE).join(path);
    let unfit = |why| Err(failed(CopyFailure::Unfit, &whole, why));
    if path.is_empty() || path.ends_with('/') || path.ends_with("/.") || path == "." {
        return unfit("names a folder, not a file");
    }
    if whole.components().any(|part| part == Component::ParentDir) {
        return unfit("`..` is not taken");
    }
    Ok(whole)
}

fn kind(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "a plain file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        _ => "a device",
    }
}

fn is_plain(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// What is another once the file has been written to, replaced or moved. Nothing in a box can set the time of the last change of status.
fn identity(stat: &Stat) -> (u64, i64, i64) {
    #[allow(
        clippy::unnecessary_cast,
        reason = "another type on the other architecture"
    )]
    let nanoseconds = stat.st_ctime_nsec as i64;
    (size(stat), stat.st_ctime, nanoseconds)
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Has nothing changed it for longer than its clock's tick?
fn is_settled(stat: &Stat) -> bool {
    let (_, seconds, nanoseconds) = identity(stat);
    let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let changed =
        UNIX_EPOCH + seconds + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    // Changed in the future: the clock was set back.
    SystemTime::now()
        .duration_since(changed)
        .map_or(true, |ago| ago >= SETTLED)
}

/// Writes a plain file's bytes to `out`, after its [`FileHead`] on `err`; links are followed, to where the box has them.
fn get(path: &str, out: &mut impl Write, err: &mut impl Write) -> Result<(), Failure> {
    let path = place(path)?;
    let no = |error| refused(&path, error);
    // Not opened before it is known what it is: a pipe waits for a writer, a device does what it likes.
    let found = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(no)?;
    let stat = fstat(&found).map_err(no)?;
    if !is_plain(&stat) {
        let text = format!("is {}, not a plain file", kind(&stat));
        return Err(failed(CopyFailure::Unfit, &path, text));
    }
    let mut file = File::from(
        open(
            by_number(&found),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(no)?,
    );
    let changed = |why| failed(CopyFailure::Changed, &path, why);
    let mut first = fstat(&file).map_err(no)?;
    let mut tries = 0;
    while !is_settled(&first) {
        if tries == TRIES {
            return Err(changed("is being written to"));
        }
        tries += 1;
        std::thread::sleep(SETTLED);
        first = fstat(&file).map_err(no)?;
    }
    if size(&first) > MOST_FILE {
        return Err(too_large(&path, size(&first)));
    }
    let head = FileHead {
        size: size(&first),
        inode: first.st_ino,
        mtime: first.st_mtime,
        mode: first.st_mode & 0o777,
    };
    let io_no = |error: io::Error| io_refused(&path, &error);
    err.write_all(head.line().as_bytes()).map_err(io_no)?;
    let mut left = head.size;
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let count = read(&mut file, &mut piece[..most]).map_err(io_no)?;
        if count == 0 {
            return Err(changed("became shorter while it was read"));
        }
        out.write_all(&piece[..count]).map_err(io_no)?;
        left -= count as u64;
    }
    out.flush().map_err(io_no)?;
    let last = fstat(&file).map_err(no)?;
    // Some of the kernel's own files have no size and hold something all the same.
    if read(&mut file, &mut piece[..1]).map_err(io_no)? != 0 {
        return Err(changed("holds more than its size says"));
    }
    if identity(&first) != identity(&last) {
        return Err(changed("changed while it was read"));
    }
    Ok(())
}

fn too_large(path: &Path, size: u64) -> Failure {
    let text = format!("has {size} bytes, and {MOST_FILE} is the most that is copied");
    failed(CopyFailure::TooLarge, path, text)
}

fn by_number(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn read(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Puts what comes in a file's place: there whole, or not at all.
fn put(path: &str, mode: &str, replace: bool, input: &mut impl Read) -> Result<(), Failure> {
    let whole = place(path)?;
    let no = |error| refused(&whole, error);
    let mode = u32::from_str_radix(mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o777);
    let mode = mode.ok_or_else(|| {
        failed(
            CopyFailure::Unfit,
            &whole,
            "MODE is three octal digits, as 644",
        )
    })?;
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(failed(CopyFailure::Unfit, &whole, "names no file"));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = open(parent, flags, Mode::empty()).map_err(|error| refused(parent, error))?;
    match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        Err(error) => return Err(no(error)),
        Ok(stat) if !is_plain(&stat) => {
            let text = format!("is {}, and only a plain file is replaced", kind(&stat));
            return Err(failed(CopyFailure::Unfit, &whole, text));
        }
        Ok(_) if replace => {}
        Ok(_) => return Err(no(Errno::EXIST)),
    }
    let size = said_size(input).ok_or_else(|| {
        failed(
            CopyFailure::Changed,
            &whole,
            "no size came before its bytes",
        )
    })?;
    // Over its limit a write ends the process by a signal.
    let most = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
    if size > most {
        let text = format!("has {size} bytes, and the sandbox takes {most} of one file");
        return Err(failed(CopyFailure::TooLarge, &whole, text));
    }
    if size > MOST_FILE {
        return Err(too_large(&whole, size));
    }
    let part = Part::new(folder).map_err(no)?;
    fill(&part.file, size, input, &whole)?;
    let permissions = Mode::from_raw_mode(mode);
    fchmod(&part.file, permissions).map_err(no)?;
    fsync(&part.file).map_err(no)?;
    part.place(name.as_ref(), replace).map_err(no)
}

fn fill(file: &OwnedFd, size: u64, input: &mut impl Read, path: &Path) -> Result<(), Failure> {
    let changed = |why| failed(CopyFailure::Changed, path, why);
    let io_no = |error: io::Error| io_refused(path, &error);
    let mut piece = vec![0; PIECE];
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let count = read(input, &mut piece[..most]).map_err(io_no)?;
        if count == 0 {
            return Err(changed("not all of it came"));
        }
        let mut written = 0;
        while written < count {
            match rustix::io::write(file, &piece[written..count]) {
                Ok(0) => return Err(refused(path, Errno::NOSPC)),
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(error) => return Err(refused(path, error)),
            }
        }
        left -= count as u64;
    }
    match read(input, &mut piece[..1]).map_err(io_no)? {
        0 => Ok(()),
        _ => Err(changed("more came than was said")),
    }
}

/// The size that is said before the bytes.
fn said_size(input: &mut impl Read) -> Option<u64> {
    let mut digits = String::new();
    let mut byte = [0];
    while digits.len() <= DIGITS {
        if read(input, &mut byte).ok()? == 0 {
            return None;
        }
        match byte[0] {
            b'\n' => return digits.parse().ok(),
            digit if digit.is_ascii_digit() => digits.push(char::from(digit)),
            _ => return None,
        }
    }
    None
}

/// A file that is not in its place yet.
struct Part {
    folder: OwnedFd,
    file: OwnedFd,
    /// None: it has no name, and is gone with this process.
    name: Option<String>,
}

impl Part {
    fn new(folder: OwnedFd) -> Result<Self, Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let private = Mode::from_raw_mode(0o600);
        if let Ok(file) = openat(&folder, ".", flags | OFlags::TMPFILE, private) {
            return Ok(Self {
                folder,
                file,
                name: None,
            });
        }
        // Not every file system has files without a name. Where nothing can be made there at all this tells why.
        let name = part_name();
        let file = openat(
            &folder,
            &name,
            flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW,
            private,
        )?;
        Ok(Self {
            folder,
            file,
            name: Some(name),
        })
    }

    /// Gives it its name. Nothing is written through a link: a name is made, or changes hands.
    fn place(mut self, name: &Path, replace: bool) -> Result<(), Errno> {
        let folder = self.folder.as_fd();
        if self.name.is_none() {
            let to = if replace {
                Path::new(self.name.insert(part_name()))
            } else {
                name
            };
            linkat(
                CWD,
                by_number(&self.file),
                folder,
                to,
                AtFlags::SYMLINK_FOLLOW,
            )?;
        }
        if let Some(part) = &self.name {
            if replace {
                renameat(folder, part, folder, name)?;
            } else {
                renameat_with(folder, part, folder, name, RenameFlags::NOREPLACE)?;
            }
            self.name = None;
        }
        // A folder that cannot be synced has the file all the same.
        let _ = fsync(folder);
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = unlinkat(&self.folder, name, AtFlags::empty());
        }
    }
}

/// That it is nobody else's is seen to by whoever makes it: the name must not be there.
fn part_name() -> String {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!(".part-{random:016x}")
}
