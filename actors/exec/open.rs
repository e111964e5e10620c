//! Opening what will run on the host: once, by descriptor, with its digest. What another user could change is copied to sealed memory first.
//! Everything here blocks: it runs on a blocking thread.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use portcullis_core::codes::{self, Code};
use portcullis_core::display;
use portcullis_core::ids::Hash32;
use portcullis_core::plan::{Executable, HOST_PATH, HostFile, is_canonical_path};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::messages::ExecRefusal;
use super::reach::{Way, may, reaches, walk};
use super::user::User;

/// Largest program.
const MOST: u64 = 1 << 30;
/// Largest program that is copied into memory.
const MOST_COPIED: u64 = 64 << 20;
/// Longest `#!` line, as the kernel's.
const SHEBANG: usize = 256;

/// What holds while files are opened.
#[derive(Debug, Clone)]
pub struct Place {
    /// Who will run it.
    pub user: User,
    /// Canonical paths out of every host command's reach.
    pub masked: Vec<PathBuf>,
}

impl Place {
    /// Is it out of reach?
    pub fn is_masked(&self, path: &Path) -> bool {
        self.masked.iter().any(|masked| path.starts_with(masked))
    }
}

/// An opened file, and what was opened.
#[derive(Debug)]
pub struct Opened {
    /// What the plan says of it.
    pub file: HostFile,
    /// Its bytes: the file itself, or the sealed copy.
    pub fd: OwnedFd,
    /// Of a file that was not copied: changes when its bytes may have.
    stamp: Option<Stamp>,
}

type Stamp = (u64, i64, i64, i64, i64);

/// A program of the host, opened.
#[derive(Debug)]
pub struct Program {
    /// What the kernel executes: the program, or a script's interpreter.
    pub exe: Opened,
    /// The script, and its `#!` line.
    pub script: Option<(Opened, Shebang)>,
}

/// A script's first line.
#[derive(Debug, Clone)]
pub struct Shebang {
    /// The interpreter as the line names it: what the interpreter finds as its own name.
    pub interpreter: String,
    /// All that follows, as one argument.
    pub argument: Option<String>,
}

/// A folder, opened.
#[derive(Debug)]
pub struct Folder {
    /// Its canonical path.
    pub path: String,
    /// `O_PATH`.
    pub fd: OwnedFd,
    /// Its device and inode.
    pub is: (u64, u64),
}

fn refuse(code: &'static Code, path: &Path, why: impl std::fmt::Display) -> ExecRefusal {
    let path = path.to_string_lossy();
    ExecRefusal::new(code, format!("{}: {why}", display::visible(&path)))
}

impl Program {
    /// Opens the program that `name` stands for, and where it is a script its interpreter too.
    ///
    /// # Errors
    /// `COMMAND_NOT_FOUND`, or `INVALID_PARAMS` with what is wrong with the file.
    pub fn open(place: &Place, cwd: &str, name: &str) -> Result<Self, ExecRefusal> {
        let path = find(name, cwd)?;
        let first = Opened::open(place, &path)?;
        let Some(line) = first.shebang()? else {
            return Ok(Self {
                exe: first,
                script: None,
            });
        };
        let exe = Opened::open(place, Path::new(&line.interpreter))?;
        if exe.shebang()?.is_some() {
            return Err(refuse(
                codes::INVALID_PARAMS,
                &path,
                "its interpreter is a script too: name the program that reads it",
            ));
        }
        Ok(Self {
            exe,
            script: Some((first, line)),
        })
    }

    /// As the plan says it.
    pub fn executable(&self) -> Executable {
        match &self.script {
            None => Executable::Host(self.exe.file.clone()),
            Some((script, line)) => Executable::HostScript {
                script: script.file.clone(),
                interpreter: self.exe.file.clone(),
                argument: line.argument.clone(),
            },
        }
    }

    /// The file in whose place others than root can put another under the same name: of a script first what reads it, for its own
    /// digest says nothing of that.
    pub fn changeable(&self) -> Option<HostFile> {
        let reader = self.script.as_ref();
        if !self.exe.is_fixed() || reader.is_some_and(|(_, line)| !line.is_fixed()) {
            return Some(self.exe.file.clone());
        }
        let script = reader.filter(|(script, _)| !script.is_fixed());
        script.map(|(script, _)| script.file.clone())
    }

    /// Are the bytes behind the descriptors still those that were decided on?
    pub fn is_unchanged(&self) -> bool {
        self.exe.is_unchanged() && self.script.as_ref().is_none_or(|(s, _)| s.is_unchanged())
    }
}

/// A bare name only in the fixed path; a relative one from the working folder.
///
/// # Errors
/// `COMMAND_NOT_FOUND`.
pub fn find(name: &str, cwd: &str) -> Result<PathBuf, ExecRefusal> {
    if name.contains('/') {
        return Ok(Path::new(cwd).join(name));
    }
    HOST_PATH
        .split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(|path| is_found(path))
        .ok_or_else(|| {
            refuse(
                codes::COMMAND_NOT_FOUND,
                Path::new(name),
                "command not found",
            )
        })
}

/// Does a search in the fixed path end here?
fn is_found(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// The one spelling of a path, outside what is masked. What is not there, what its user does not reach, and what is the
/// gateway's own have one answer: otherwise a root gateway would tell its agents what lies in folders that are closed to them.
fn canonical(place: &Place, path: &Path) -> Result<(PathBuf, String), ExecRefusal> {
    let found = match walk(path, &place.user) {
        Way::To(found) if !place.is_masked(&found) => Some(found),
        _ => None,
    };
    let Some(found) = found else {
        return Err(refuse(
            codes::COMMAND_NOT_FOUND,
            path,
            format!("user {} finds nothing there", place.user.name),
        ));
    };
    match found.to_str() {
        Some(text) if is_canonical_path(text) => Ok((found.clone(), text.to_owned())),
        _ => Err(refuse(
            codes::INVALID_PARAMS,
            path,
            "its path is not UTF-8 or longer than 4096 bytes",
        )),
    }
}

fn open_path(path: &Path) -> Result<File, ExecRefusal> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
        .map(File::from)
        .map_err(|error| match error {
            Errno::LOOP => refuse(codes::PLAN_CHANGED, path, "changed while it was opened"),
            error => refuse(codes::COMMAND_NOT_FOUND, path, error),
        })
}

impl Folder {
    /// Does this canonical path still lead to the folder that was opened, over no link?
    pub fn leads_to(path: &str, is: (u64, u64)) -> bool {
        let data = open_path(Path::new(path)).map(|file| file.metadata());
        matches!(data, Ok(Ok(data)) if (data.dev(), data.ino()) == is)
    }

    /// Opens a working folder.
    ///
    /// # Errors
    /// As [`Program::open`].
    pub fn open(place: &Place, path: &str) -> Result<Self, ExecRefusal> {
        let no_folder = |error: ExecRefusal| ExecRefusal {
            code: codes::INVALID_PARAMS,
            message: format!("cwd {}", error.message),
            ..error
        };
        if !path.starts_with('/') {
            return Err(ExecRefusal::new(
                codes::INVALID_PARAMS,
                "cwd must be an absolute path",
            ));
        }
        let (canonical, text) = canonical(place, Path::new(path)).map_err(no_folder)?;
        let file = open_path(&canonical).map_err(no_folder)?;
        let data = file
            .metadata()
            .map_err(|error| refuse(codes::INVALID_PARAMS, &canonical, format!("cwd: {error}")))?;
        let reached = may(&canonical, &data, &place.user, 0o1) && reaches(&canonical, &place.user);
        if !data.is_dir() || !reached {
            return Err(refuse(
                codes::INVALID_PARAMS,
                &canonical,
                format!("cwd is no folder that user {} may enter", place.user.name),
            ));
        }
        Ok(Self {
            path: text,
            is: (data.dev(), data.ino()),
            fd: file.into(),
        })
    }
}

impl Opened {
    fn open(place: &Place, path: &Path) -> Result<Self, ExecRefusal> {
        let (path, text) = canonical(place, path)?;
        let user = &place.user;
        let wrong = |why: &str| refuse(codes::INVALID_PARAMS, &path, why);
        let failed = |error: std::io::Error| refuse(codes::INVALID_PARAMS, &path, error);
        // By O_PATH first: opening a pipe or device has effects of its own.
        let looked = open_path(&path)?;
        let data = looked.metadata().map_err(failed)?;
        if !data.is_file() {
            return Err(wrong("is no file"));
        }
        if !may(&path, &data, user, 0o1) || !reaches(&path, user) {
            return Err(wrong(&format!("user {} may not execute it", user.name)));
        }
        if data.len() > MOST {
            return Err(wrong("is longer than 1 GiB"));
        }
        let mount = rustix::fs::fstatvfs(&looked).map_err(|error| failed(error.into()))?;
        if mount.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            return Err(wrong("lies on a mount from which nothing is executed"));
        }
        let file = File::open(format!("/proc/self/fd/{}", looked.as_raw_fd())).map_err(failed)?;
        let mutable = data.uid() != 0
            || data.mode() & 0o022 != 0
            || !parents_are_roots(&path)
            || !is_local(&looked);
        let describe = |sha256| HostFile {
            path: text.clone(),
            dev: data.dev(),
            ino: data.ino(),
            sha256,
        };
        if !mutable {
            let stamp = stamp(&file).map_err(failed)?;
            let sha256 = digest(&file, None, MOST).map_err(failed)?;
            return Ok(Self {
                file: describe(sha256),
                fd: file.into(),
                stamp: Some(stamp),
            });
        }
        if data.len() > MOST_COPIED {
            return Err(wrong(
                "is longer than 64 MiB, and others than root can change it: let root own it and its folders",
            ));
        }
        // What it is copied into may be read by the user, so the original must be as well, or a secret text would leak.
        if !may(&path, &data, user, 0o4) {
            return Err(wrong(&format!("user {} may not read it", user.name)));
        }
        let (sha256, fd) = sealed(&file, MOST_COPIED).map_err(failed)?;
        Ok(Self {
            file: describe(sha256),
            fd,
            stamp: None,
        })
    }

    /// Is it root's alone?
    const fn is_fixed(&self) -> bool {
        self.stamp.is_some()
    }

    fn is_unchanged(&self) -> bool {
        let Some(before) = self.stamp else {
            // Sealed: nobody can.
            return true;
        };
        let again = || -> std::io::Result<bool> {
            let file = File::from(self.fd.try_clone()?);
            Ok(stamp(&file)? == before || digest(&file, None, MOST)? == self.file.sha256)
        };
        again().unwrap_or(false)
    }

    /// Interpreter and argument of a script.
    fn shebang(&self) -> Result<Option<Shebang>, ExecRefusal> {
        shebang(&self.fd, Path::new(&self.file.path))
    }
}

/// Interpreter and argument of a script, by its first bytes.
///
/// # Errors
/// Its first line is none that is taken.
pub fn shebang(fd: impl AsFd, path: &Path) -> Result<Option<Shebang>, ExecRefusal> {
    let mut head = [0; SHEBANG];
    let count = rustix::io::pread(fd, &mut head, 0).unwrap_or(0);
    let Some(line) = head[..count].strip_prefix(b"#!") else {
        return Ok(None);
    };
    let wrong = |why: &str| refuse(codes::INVALID_PARAMS, path, why);
    let end = line.iter().position(|byte| *byte == b'\n');
    let end = match end {
        Some(end) => end,
        None if count < SHEBANG => line.len(),
        None => return Err(wrong("its #! line is longer than 254 bytes")),
    };
    let text = std::str::from_utf8(&line[..end])
        .map_err(|_| wrong("its #! line is not UTF-8"))?
        .trim_matches([' ', '\t']);
    if text.contains(['\0', '\r']) {
        return Err(wrong("its #! line holds a NUL or a carriage return"));
    }
    let (interpreter, argument) = match text.split_once([' ', '\t']) {
        Some((interpreter, rest)) => (interpreter, Some(rest.trim_matches([' ', '\t']))),
        None => (text, None),
    };
    if !interpreter.starts_with('/') {
        return Err(wrong("its #! line names no absolute path"));
    }
    let argument = argument.filter(|text| !text.is_empty()).map(str::to_owned);
    Ok(Some(Shebang {
        interpreter: interpreter.to_owned(),
        argument,
    }))
}

impl Shebang {
    /// Does it name a program that is root's alone, and not another that looks for it?
    pub fn is_fixed(&self) -> bool {
        let path = Path::new(&self.interpreter);
        let is_roots = |path: &Path| {
            path.metadata()
                .is_ok_and(|data| data.uid() == 0 && data.mode() & 0o022 == 0)
        };
        let is_program = |path: &Path| {
            let file = File::open(path);
            file.is_ok_and(|file| matches!(shebang(&file, path), Ok(None)))
        };
        let is_whole = links_are_roots(path)
            && path
                .canonicalize()
                .is_ok_and(|path| is_roots(&path) && parents_are_roots(&path) && is_program(&path));
        if !is_whole {
            return false;
        }
        if path.file_name().is_none_or(|name| name != "env") {
            return true;
        }
        let name = self.argument.as_deref().unwrap_or_default();
        let is_bare =
            !name.is_empty() && !name.contains(['/', ' ', '\t', '=']) && !name.starts_with('-');
        is_bare && find(name, "/").is_ok_and(|found| is_fixed_name(name) && links_are_roots(&found))
    }
}

/// Most links from a program's name to its file.
const LINKS: usize = 8;

/// Is every link on the way root's, and every folder that holds one?
pub fn links_are_roots(asked: &Path) -> bool {
    let mut path = asked.to_path_buf();
    for _ in 0..LINKS {
        if !parents_are_roots(&path) {
            return false;
        }
        match std::fs::read_link(&path) {
            // Joining an absolute name gives that name.
            Ok(to) => path = path.parent().unwrap_or(Path::new("/")).join(to),
            Err(_) => return true,
        }
    }
    false
}

/// Can nobody but root put a program of this bare name before the one that is found? Every folder that is looked into first is
/// root's; one that is not there can be made by whom its parent belongs to.
pub fn is_fixed_name(name: &str) -> bool {
    is_fixed_name_in(name, HOST_PATH.split(':').map(Path::new))
}

fn is_fixed_name_in<'a>(name: &str, folders: impl Iterator<Item = &'a Path>) -> bool {
    for folder in folders {
        let mut there = folder;
        while std::fs::symlink_metadata(there).is_err() {
            there = there.parent().unwrap_or(Path::new("/"));
            if there == Path::new("/") {
                break;
            }
        }
        let path = there.join(name);
        if !(parents_are_roots(&path) && links_are_roots(there)) {
            return false;
        }
        // What is there and is no program is passed over.
        if is_found(&folder.join(name)) {
            return true;
        }
    }
    true
}

/// Can nobody but root put another file in its place?
pub fn parents_are_roots(path: &Path) -> bool {
    path.ancestors().skip(1).all(|folder| {
        folder
            .metadata()
            .is_ok_and(|data| data.uid() == 0 && data.mode() & 0o022 == 0)
    })
}

/// Is it on a file system whose bytes only this kernel changes?
pub fn is_local(fd: &File) -> bool {
    // FUSE, NFS, SMB, CIFS, SMB2, 9p, Ceph, AFS.
    const ELSEWHERE: [u64; 8] = [
        0x6573_5546,
        0x6969,
        0x517b,
        0xff53_4d42,
        0xfe53_4d42,
        0x0102_1997,
        0x00c3_6400,
        0x5346_414f,
    ];
    rustix::fs::fstatfs(fd).is_ok_and(|found| {
        u64::try_from(found.f_type).is_ok_and(|kind| !ELSEWHERE.contains(&(kind & 0xffff_ffff)))
    })
}

fn stamp(file: &File) -> std::io::Result<Stamp> {
    let data = file.metadata()?;
    Ok((
        data.len(),
        data.mtime(),
        data.mtime_nsec(),
        data.ctime(),
        data.ctime_nsec(),
    ))
}

/// Digest of the bytes, from the first, `most` of them; what was read goes to `copy` too.
pub fn digest(mut file: &File, mut copy: Option<&mut File>, most: u64) -> std::io::Result<Hash32> {
    file.rewind()?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 128 << 10];
    let mut total = 0;
    loop {
        let count = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        total += count as u64;
        if total > most {
            return Err(std::io::Error::other("grows while it is read"));
        }
        hasher.update(&piece[..count]);
        if let Some(copy) = &mut copy {
            copy.write_all(&piece[..count])?;
        }
    }
    file.rewind()?;
    Ok(Hash32(hasher.finalize().into()))
}

/// Copies a file into memory that nobody can change any more, and opens that for reading only: what is open for writing is not executed.
pub fn sealed(file: &File, most: u64) -> std::io::Result<(Hash32, OwnedFd)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let name = "portcullis-frozen";
    // Kernels before 6.3 do not know EXEC, and need not be told.
    let memory = rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create(name, flags))?;
    let mut memory = File::from(memory);
    let sha256 = digest(file, Some(&mut memory), most)?;
    rustix::fs::fchmod(&memory, Mode::from_raw_mode(0o555))?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals)?;
    let reading = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
    Ok((sha256, reading.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bug: who owned a folder that is looked into first put a program there, under a name that was pinned to a later one.
    #[test]
    fn a_name_is_fixed_only_where_each_folder_before_it_is_roots() {
        let others = tempfile::tempdir().unwrap();
        let missing = others.path().join("missing");
        let is = |folders: &[&Path]| is_fixed_name_in("uname", folders.iter().copied());
        let (bin, nowhere) = (Path::new("/usr/bin"), Path::new("/usr/no/such/folder"));
        assert!(is(&[bin]) && is(&[nowhere, bin]) && is(&[bin, others.path()]));
        assert!(!is(&[others.path(), bin]) && !is(&[&missing, bin]));
        // A folder of the system in which something of that name is no program does not end the search.
        let folders = [Path::new("/usr"), others.path()];
        assert!(!is_fixed_name_in("bin", folders.into_iter()));
        let link = others.path().join("link");
        std::os::unix::fs::symlink(bin, &link).unwrap();
        assert!(!is(&[&link]));
    }
}
