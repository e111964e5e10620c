//! `portcullis sandbox cp`: a file into an agent's box or out of it, by a command of the box itself. It passes the same gate as every run, and
//! the gateway looks no path up for it.

mod source;

use std::fs::File;
use std::io::{self, Cursor, IsTerminal as _, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_cell::{CELL_INSIDE, CopyFailure, FileHead, MOST_FILE};
use portcullis_core::auth::Scope;
use portcullis_core::codes::{self, Code};
use portcullis_core::ids::AgentId;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use source::opened;

use super::args::Copy;
use super::exec::failure;
use super::failure::Failure;
use super::given::{Given, Next};
use super::out::{Out, note};
use crate::client::{Client, Door, Incoming};
use crate::show::text::{clean, cut, typed};
use crate::show::value::{field, number};

/// For a cancelled run to end.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// Of what the box says of it, bytes and characters.
const SAID: usize = 4096;
const SHOWN: usize = 300;

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    /// Standard input or output.
    Stream,
    /// Of this machine.
    File(PathBuf),
    /// In a box.
    Boxed { agent: AgentId, path: String },
}

fn invalid(text: impl Into<String>) -> Failure {
    Failure::of(codes::INVALID_PARAMS, text)
}

fn side(text: &str) -> Result<Side, Failure> {
    match text.split_once(':') {
        _ if text == "-" => Ok(Side::Stream),
        _ if text.is_empty() => Err(invalid("FROM and TO are AGENT:PATH, a path, or `-`")),
        Some((agent, path)) if !agent.contains('/') && !agent.starts_with('.') => {
            let agent = AgentId::new(agent).map_err(|why| {
                invalid(format!("{}: {why}", clean(text)))
                    .hint("AGENT:PATH; a file of this machine with `:` in its name is ./NAME")
            })?;
            let path = path.to_owned();
            Ok(Side::Boxed { agent, path })
        }
        _ => Ok(Side::File(text.into())),
    }
}

/// Copies; returns the exit code.
///
/// # Errors
/// [`Failure`]. Nothing is left of a copy that failed.
pub async fn run(door: &Door, copy: &Copy, out: Out) -> Result<u8, Failure> {
    match (side(&copy.from)?, side(&copy.to)?) {
        (Side::Boxed { agent, path }, to @ (Side::File(_) | Side::Stream)) => {
            get(door, copy, (agent, path), to, out).await
        }
        (from @ (Side::File(_) | Side::Stream), Side::Boxed { agent, path }) => {
            put(door, copy, from, (agent, path), out).await
        }
        _ => Err(invalid("one of FROM and TO is AGENT:PATH, and only one")),
    }
}

fn params(copy: &Copy, agent: &AgentId, words: &[&str]) -> Value {
    let argv: Vec<&str> = [CELL_INSIDE].iter().chain(words).copied().collect();
    let mut params = json!({
        "argv": argv,
        "target": "sandbox",
        "agent": agent,
        "idempotencyKey": uuid::Uuid::new_v4().to_string(),
    });
    if let Some(timeout) = copy.timeout {
        let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        params["timeoutMs"] = ms.into();
    }
    if let Some(session) = &copy.session {
        params["sessionKey"] = session.as_str().into();
    }
    params
}

async fn get(
    door: &Door,
    copy: &Copy,
    (agent, path): (AgentId, String),
    to: Side,
    out: Out,
) -> Result<u8, Failure> {
    let target = match to {
        Side::File(target) => Some(local_target(&target, &path, copy.force)?),
        _ if out.json => {
            return Err(invalid("the file and --json both want standard output"));
        }
        // An agent wrote it, and a terminal obeys what it reads.
        _ if io::stdout().is_terminal() => {
            return Err(invalid("a file of a box is not written to a terminal as it is")
                .hint("redirect it (`> FILE`), or look at it with `portcullis exec --agent NAME -- cat PATH`"));
        }
        _ => None,
    };
    let mut signals = Signals::listen()?;
    let mut client = Client::connect(door, &[Scope::ActAs], &[]).await?;
    let mut into = match &target {
        Some(target) => Target::Part(Part::new(target, copy.force)?),
        None => Target::Memory(Vec::new()),
    };
    let params = params(copy, &agent, &["get", &path]);
    let mut received = 0;
    let mut take = |data: &[u8]| {
        received += data.len() as u64;
        if received > MOST_FILE {
            return Err(Failure::of(
                codes::FILE_TOO_LARGE,
                "more comes than is copied of one file",
            ));
        }
        into.take(data)
    };
    let done = follow(&mut client, params, None, &mut take, &mut signals).await;
    client.close().await;
    let Done { said, payload } = done?;
    let head = said.lines().next().and_then(FileHead::parse);
    let head = head
        .filter(|head| head.size == received)
        .ok_or_else(|| Failure::of(codes::FILE_CHANGED, "not all of the file came"))?;
    match into {
        Target::Part(part) => part.keep(head.mode & 0o111 != 0)?,
        Target::Memory(bytes) => {
            let written = tokio::task::spawn_blocking(move || {
                let mut to = io::stdout().lock();
                to.write_all(&bytes).and_then(|()| to.flush())
            });
            tokio::select! {
                written = written => written
                    .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
                    .map_err(|error| Failure::output(&error))?,
                end = signals.next() => return Ok(128 + end),
            }
            return Ok(0);
        }
    }
    let file = target.unwrap_or_default();
    let name = file.display().to_string();
    told(
        out,
        (&agent, &path),
        Some(&name),
        (received, head.mode),
        &payload,
        &name,
    )
}

/// Where it is to be: in the folder that is named, or as the file that is.
fn local_target(named: &Path, path: &str, force: bool) -> Result<PathBuf, Failure> {
    let no = |code, what: &Path, why: &str| {
        Err(Failure::of(
            code,
            format!("{}: {why}", clean(&what.display().to_string())),
        ))
    };
    let mut target = named.to_owned();
    if named.is_dir() {
        let name = path.rsplit('/').next().unwrap_or_default();
        if name.is_empty() || name == "." || name == ".." {
            return Err(Failure::of(codes::FILE_UNFIT, "AGENT:PATH names no file"));
        }
        target.push(name);
    }
    let folder = folder_of(&target);
    if !folder.is_dir() {
        return no(
            codes::FILE_NOT_FOUND,
            folder,
            "is no folder of this machine",
        );
    }
    match std::fs::symlink_metadata(&target) {
        Ok(data) if data.is_symlink() => no(
            codes::FILE_UNFIT,
            &target,
            "is a symbolic link, and is not followed: name the file itself",
        ),
        Ok(data) if data.is_dir() => no(codes::FILE_UNFIT, &target, "is a folder"),
        Ok(data) if !data.is_file() => no(
            codes::FILE_UNFIT,
            &target,
            "is no plain file: `-` writes to standard output",
        ),
        Ok(_) if !force => no(codes::FILE_EXISTS, &target, "is there already"),
        Ok(_) => Ok(target),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(target),
        Err(error) => no(codes::FILE_NOT_FOUND, &target, &error.to_string()),
    }
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Where what comes goes. It is shown to nobody before all of it is there.
enum Target {
    Part(Part),
    Memory(Vec<u8>),
}

impl Target {
    fn take(&mut self, data: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Part(part) => part.write(data),
            Self::Memory(bytes) => {
                bytes.extend_from_slice(data);
                Ok(())
            }
        }
    }
}

/// A file that is not in its place yet, and gone if it never comes there.
struct Part {
    path: PathBuf,
    target: PathBuf,
    force: bool,
    file: File,
    /// What the umask leaves of all permissions.
    mode: u32,
    /// Of the file that is replaced: who could read it stays who can.
    before: Option<u32>,
    kept: bool,
}

impl Part {
    fn new(target: &Path, force: bool) -> Result<Self, Failure> {
        let random = uuid::Uuid::new_v4().simple();
        let path = folder_of(target).join(format!(".part-{random}"));
        let made = || {
            // Not through a link: it must not be there.
            let mut open = File::options();
            let file = open.write(true).create_new(true).mode(0o777).open(&path)?;
            let mode = file.metadata()?.permissions().mode() & 0o777;
            Ok((file, mode))
        };
        let (file, mode) = made().map_err(|error| local(target, &error))?;
        let part = Self {
            path,
            target: target.to_owned(),
            force,
            file,
            mode,
            before: std::fs::symlink_metadata(target)
                .ok()
                .filter(|data| force && data.is_file())
                .map(|data| data.mode() & 0o777),
            kept: false,
        };
        part.permit(0o600)?;
        Ok(part)
    }

    fn permit(&self, mode: u32) -> Result<(), Failure> {
        let permissions = std::fs::Permissions::from_mode(mode);
        self.file
            .set_permissions(permissions)
            .map_err(|error| local(&self.target, &error))
    }

    fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.file
            .write_all(data)
            .map_err(|error| local(&self.target, &error))
    }

    /// Gives it its name; what has that name meanwhile is replaced only by force, and never written through.
    fn keep(mut self, executable: bool) -> Result<(), Failure> {
        let new = if executable {
            self.mode
        } else {
            self.mode & 0o666
        };
        self.permit(self.before.unwrap_or(new))?;
        let flags = if self.force {
            RenameFlags::empty()
        } else {
            RenameFlags::NOREPLACE
        };
        self.file
            .sync_all()
            .and_then(|()| Ok(renameat_with(CWD, &self.path, CWD, &self.target, flags)?))
            .map_err(|error| local(&self.target, &error))?;
        self.kept = true;
        // A folder that cannot be synced has the file all the same.
        let _ = File::open(folder_of(&self.target)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What our own file system says.
fn local(path: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => codes::FILE_NOT_FOUND,
        io::ErrorKind::AlreadyExists => codes::FILE_EXISTS,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => codes::FILE_NO_ROOM,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            codes::FILE_NOT_PERMITTED
        }
        _ => codes::FILE_NOT_COPIED,
    };
    let path = clean(&path.display().to_string());
    Failure::of(code, format!("on this machine: {path}: {error}"))
}

async fn put(
    door: &Door,
    copy: &Copy,
    from: Side,
    (agent, mut path): (AgentId, String),
    out: Out,
) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let (source, size, mode, name) = if let Side::File(file) = from {
        let (source, data) = opened(&file).await?;
        let mode = if data.mode() & 0o111 == 0 {
            0o644
        } else {
            0o755
        };
        (source, data.len(), mode, Some(file))
    } else {
        let reading = tokio::task::spawn_blocking(|| {
            let mut bytes = Vec::new();
            let read = io::stdin()
                .lock()
                .take(MOST_FILE + 1)
                .read_to_end(&mut bytes);
            read.map(|_| bytes)
        });
        let bytes = tokio::select! {
            read = reading => read.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())),
            end = signals.next() => return Ok(128 + end),
        };
        let bytes = bytes.map_err(|error| local(Path::new("standard input"), &error))?;
        let size = bytes.len() as u64;
        (
            Box::new(Cursor::new(bytes)) as Box<dyn Read + Send>,
            size,
            0o644,
            None,
        )
    };
    if size > MOST_FILE {
        let text = format!("{size} bytes, and {MOST_FILE} is the most that is copied");
        return Err(Failure::of(codes::FILE_TOO_LARGE, text));
    }
    if path.is_empty() || path.ends_with('/') {
        let last = name.as_deref().and_then(Path::file_name);
        let last = last.and_then(|last| last.to_str());
        path.push_str(last.ok_or_else(|| invalid("name the file: AGENT:PATH"))?);
    }
    let mut client = Client::connect(door, &[Scope::ActAs], &[]).await?;
    let octal = format!("{mode:o}");
    let mut words = vec!["put", &path, &octal];
    if copy.force {
        words.push("replace");
    }
    let mut params = params(copy, &agent, &words);
    params["stdin"] = "open".into();
    let before = Cursor::new(format!("{size}\n").into_bytes());
    let given = Given::from(before.chain(source));
    let done = follow(
        &mut client,
        params,
        Some(given),
        &mut |_| Ok(()),
        &mut signals,
    )
    .await;
    client.close().await;
    let shown = format!("{agent}:{path}");
    let name = name.map(|name| name.display().to_string());
    told(
        out,
        (&agent, &path),
        name.as_deref(),
        (size, mode),
        &done?.payload,
        &shown,
    )
}

fn told(
    out: Out,
    (agent, path): (&AgentId, &str),
    file: Option<&str>,
    (size, mode): (u64, u32),
    payload: &Value,
    shown: &str,
) -> Result<u8, Failure> {
    let document = json!({
        "agent": agent, "path": path, "file": file, "bytes": size, "mode": format!("{mode:03o}"),
        "runId": payload["runId"], "auditSeq": payload["provenance"]["auditSeq"],
    });
    out.both(&document, || format!("{}: {size} bytes\n", clean(shown)))?;
    Ok(0)
}

/// A run that ended well.
struct Done {
    /// What it wrote to standard error.
    said: String,
    payload: Value,
}

/// Follows a run of the cell to its end.
async fn follow(
    client: &mut Client,
    params: Value,
    mut given: Option<Given>,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    signals: &mut Signals,
) -> Result<Done, Failure> {
    let request = client.send("exec.run", params).await?;
    let mut run = String::new();
    let mut said = Vec::new();
    // Why it is ended, and until when that is waited for.
    let mut leave: Option<(Failure, Instant)> = None;
    loop {
        let until = leave.as_ref().map(|(_, until)| *until);
        let incoming = tokio::select! {
            incoming = client.next() => incoming?,
            next = async {
                match &mut given {
                    Some(given) => given.next().await,
                    None => std::future::pending().await,
                }
            } => {
                if let (Next::Piece(piece), Some(given)) = (next, &mut given) {
                    given.send(client, &run, piece).await?;
                }
                continue;
            }
            end = signals.next(), if leave.is_none() => {
                let mut failure = Failure::of(codes::RUN_CANCELLED, "interrupted: nothing was kept");
                failure.exit = 128 + end;
                leave = Some(left(client, &run, failure).await?);
                continue;
            }
            () = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            } => {
                let mut failure = leave.map_or_else(|| invalid(""), |(failure, _)| failure);
                if given.is_some() {
                    let why = "interrupted, and no answer came: look whether the box has the file";
                    why.clone_into(&mut failure.message);
                }
                return Err(failure);
            }
        };
        match incoming {
            Incoming::Event { event, payload, .. } if field(&payload, "runId") == run => {
                match event.as_str() {
                    "exec.begun" if number(&payload, "credit").is_some() => {
                        if let Some(given) = &mut given {
                            given.begin(client, &run).await?;
                        }
                    }
                    "exec.output" if leave.is_none() => {
                        if let Err(failure) = output(&payload, &mut said, take) {
                            leave = Some(left(client, &run, failure).await?);
                        }
                    }
                    _ => {}
                }
            }
            Incoming::Answer { id, result } if id == request => {
                let payload = result.map_err(|error| client.refusal(&error))?;
                if let "accepted" | "approval-pending" = field(&payload, "status") {
                    field(&payload, "runId").clone_into(&mut run);
                    if let Some(id) = payload["approvalId"].as_str() {
                        let id = typed(id);
                        note(&format!(
                            "waiting for a person to decide on {id}: portcullis approvals show {id}"
                        ));
                    }
                    continue;
                }
                // What the box has taken whole before it heard of the interrupt is there.
                let is_put = given.is_some() && payload["exitCode"] == 0;
                if let Some((failure, _)) = leave.filter(|_| !is_put) {
                    return Err(failure);
                }
                return end(client, payload, &said);
            }
            Incoming::Answer { id, result } => {
                if let Some(given) = given.as_mut().filter(|given| given.awaits(&id)) {
                    given.answered(client, &run, result).await?;
                }
            }
            Incoming::Event { .. } => {}
        }
    }
}

async fn left(client: &mut Client, run: &str, why: Failure) -> Result<(Failure, Instant), Failure> {
    if !run.is_empty() {
        client.send("exec.cancel", json!({ "runId": run })).await?;
    }
    Ok((why, Instant::now() + LEAVE_WITHIN))
}

fn output(
    payload: &Value,
    said: &mut Vec<u8>,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let data = STANDARD.decode(field(payload, "data")).map_err(|_| {
        Failure::of(
            codes::INTERNAL,
            "the gateway sent output that is not base64",
        )
    })?;
    if field(payload, "stream") == "stdout" {
        return take(&data);
    }
    let room = SAID.saturating_sub(said.len());
    said.extend(data.iter().take(room));
    Ok(())
}

fn end(client: &Client, payload: Value, said: &[u8]) -> Result<Done, Failure> {
    if let Some(failure) = failure(client, &payload) {
        return Err(failure);
    }
    let said = String::from_utf8_lossy(said).into_owned();
    let exit = payload["exitCode"]
        .as_u64()
        .and_then(|code| u8::try_from(code).ok());
    match exit {
        Some(0) => Ok(Done { said, payload }),
        Some(exit) => Err(refused(exit, &said)),
        None => Err(Failure::of(
            codes::FILE_NOT_COPIED,
            "the copying command was ended in the sandbox by a signal",
        )),
    }
}

/// Why the box's own command did not do it, in its words, which may be an agent's.
fn refused(exit: u8, said: &str) -> Failure {
    let code: &'static Code = match CopyFailure::of_exit(exit) {
        CopyFailure::Missing => codes::FILE_NOT_FOUND,
        CopyFailure::Unfit => codes::FILE_UNFIT,
        CopyFailure::Exists => codes::FILE_EXISTS,
        CopyFailure::TooLarge => codes::FILE_TOO_LARGE,
        CopyFailure::Changed => codes::FILE_CHANGED,
        CopyFailure::NoRoom => codes::FILE_NO_ROOM,
        CopyFailure::NotPermitted => codes::FILE_NOT_PERMITTED,
        CopyFailure::Other => codes::FILE_NOT_COPIED,
    };
    let last = said.lines().last().unwrap_or_default();
    let last = last.split_once(": ").map_or(last, |(_, text)| text);
    Failure::of(
        code,
        format!("in the sandbox: {}", cut(&clean(last), SHOWN)),
    )
}

/// What ends us. From now on each of them leaves nothing half made.
pub(super) struct Signals([(u8, Signal); 3]);

impl Signals {
    pub(super) fn listen() -> Result<Self, Failure> {
        let of = |number, kind| match signal(kind) {
            Ok(signal) => Ok((number, signal)),
            Err(error) => Err(Failure::of(codes::INTERNAL, error.to_string())),
        };
        Ok(Self([
            of(1, SignalKind::hangup())?,
            of(2, SignalKind::interrupt())?,
            of(15, SignalKind::terminate())?,
        ]))
    }

    /// The number of the next one.
    pub(super) async fn next(&mut self) -> u8 {
        let [
            (hangup, on_hangup),
            (interrupt, on_interrupt),
            (terminate, on_terminate),
        ] = &mut self.0;
        tokio::select! {
            _ = on_hangup.recv() => *hangup,
            _ = on_interrupt.recv() => *interrupt,
            _ = on_terminate.recv() => *terminate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_path_is_told_from_a_file_of_ours() {
        let boxed = |agent: &str, path: &str| Side::Boxed {
            agent: AgentId::new(agent).unwrap(),
            path: path.to_owned(),
        };
        for (text, wanted) in [
            ("-", Side::Stream),
            ("demo:a/b", boxed("demo", "a/b")),
            ("demo:", boxed("demo", "")),
            ("demo:/tmp/a:b", boxed("demo", "/tmp/a:b")),
            ("./demo:a", Side::File("./demo:a".into())),
            ("/a:b", Side::File("/a:b".into())),
            ("plain", Side::File("plain".into())),
        ] {
            assert_eq!(side(text).unwrap(), wanted, "{text}");
        }
        for bad in ["", "No Agent:x", ":x"] {
            assert_eq!(side(bad).unwrap_err().code, "INVALID_PARAMS", "{bad}");
        }
    }

    #[test]
    fn what_the_box_says_is_told_as_its_words_and_by_its_exit_code() {
        let failure = refused(
            7,
            "5 1 2 644\nportcullis-cell: /workspace/a: changed\u{1b}[2J\n",
        );
        assert_eq!(failure.code, "FILE_CHANGED");
        assert!(!failure.message.contains('\u{1b}'), "{}", failure.message);
        assert!(
            failure
                .message
                .starts_with("in the sandbox: /workspace/a: changed")
        );
        assert_eq!(refused(127, "sh: no such file").code, "FILE_NOT_COPIED");
        assert_eq!(refused(0, "").code, "FILE_NOT_COPIED");
    }

    #[tokio::test]
    async fn a_file_that_changes_while_it_is_read_is_one_byte_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, vec![7; 10]).unwrap();
        let (mut source, data) = opened(&path).await.unwrap();
        let mut all = Vec::new();
        source.read_to_end(&mut all).unwrap();
        assert_eq!((all.len(), data.len()), (10, 10));
        let (mut source, _) = opened(&path).await.unwrap();
        let mut five = [0; 5];
        source.read_exact(&mut five).unwrap();
        std::fs::write(&path, vec![8; 10]).unwrap();
        let mut rest = Vec::new();
        source.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), 4);
    }

    #[test]
    fn no_link_is_written_through_and_nothing_is_replaced_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("old"), "old").unwrap();
        std::os::unix::fs::symlink(at("old"), at("link")).unwrap();
        let code = |name: &str, force| {
            local_target(&at(name), "p/q", force).map_err(|failure| failure.code)
        };
        assert_eq!(code("new", false), Ok(at("new")));
        assert_eq!(code("old", false), Err("FILE_EXISTS".into()));
        assert_eq!(code("old", true), Ok(at("old")));
        assert_eq!(code("link", true), Err("FILE_UNFIT".into()));
        assert_eq!(code("none/new", true), Err("FILE_NOT_FOUND".into()));
        let within = local_target(folder.path(), "p/q", false).unwrap();
        assert_eq!(within, at("q"));
        // What takes the name meanwhile stays as it is.
        let mut part = Part::new(&at("late"), false).unwrap();
        part.write(b"ours").unwrap();
        std::fs::write(at("late"), "theirs").unwrap();
        assert_eq!(part.keep(false).unwrap_err().code, "FILE_EXISTS");
        assert_eq!(std::fs::read(at("late")).unwrap(), b"theirs");
        let mut part = Part::new(&at("kept"), false).unwrap();
        part.write(b"ours").unwrap();
        part.keep(true).unwrap();
        let mode = std::fs::metadata(at("kept")).unwrap().mode();
        assert_eq!(mode & 0o100, 0o100);
        drop(Part::new(&at("gone"), false).unwrap());
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["kept", "late", "link", "old"]);
    }
}
