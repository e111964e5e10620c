//! The newest checkpoint of each gateway's audit log that this user has seen. Kept where the gateway cannot change it, it
//! tells when a log was cut, put back or written anew: each time it is compared by a consistency proof.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use portcullis_core::audit::note::{origin, parse_first_key};
use portcullis_core::audit::tree::check_consistency;
use portcullis_core::audit::{Hash32, SignedCheckpoint};
use portcullis_core::codes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Client, Door, Place};
use crate::cli::Failure;
use crate::files;
use crate::show::text::clean;
use crate::show::value::field;

/// Larger than any checkpoint.
const MAX_FILE: u64 = 16 * 1024;

/// With what a gateway says that it tells this session nothing of its log: one of before there was anything to tell.
const SILENT: [&str; 2] = [codes::UNKNOWN_METHOD.name, codes::MISSING_SCOPE.name];

/// A comparison under way, question by question, so that who has other things to hear meanwhile can hear them.
pub struct Comparing {
    path: PathBuf,
    first_key: String,
    /// What was seen, and what is told now: what a proof is waited for.
    asked: Option<(SignedCheckpoint, SignedCheckpoint)>,
}

/// What comes next.
pub enum Step {
    /// This is to be asked.
    Ask(&'static str, Value),
    /// It fits; the log's first public key, of a gateway that has one.
    Done(Option<String>),
}

impl Comparing {
    /// Begins: what is asked first. `None` where there is no place to keep a checkpoint.
    pub fn start(door: &Door) -> Option<(Self, Step)> {
        let begun = Self {
            path: place(door)?,
            first_key: String::new(),
            asked: None,
        };
        Some((begun, Step::Ask("audit.checkpoint", json!({}))))
    }

    /// Takes the answer to what was asked.
    ///
    /// # Errors
    /// `AUDIT_FORKED`: the log does not go on from what was seen. Others: it could not be compared.
    pub fn answered(&mut self, answer: Result<Value, Failure>) -> Result<Step, Failure> {
        match self.asked.take() {
            None => self.told(answer),
            Some((before, now)) => self.proven(answer, &before, &now),
        }
    }

    fn told(&mut self, answer: Result<Value, Failure>) -> Result<Step, Failure> {
        let path = &self.path;
        let told = match answer {
            Ok(told) => told,
            Err(failure) if !SILENT.contains(&failure.code.as_str()) => return Err(failure),
            // A gateway of before there were checkpoints has none to compare. One that has told of its log before does so
            // to everybody: silence hides what has become of it.
            Err(failure) if path.symlink_metadata().is_ok() => {
                let why = format!("it says no more what its log is: {}", failure.message);
                return Err(forked(path, &why));
            }
            Err(failure) if failure.code == codes::UNKNOWN_METHOD.name => {
                return Ok(Step::Done(None));
            }
            Err(failure) => return Err(failure),
        };
        let now = read_told(&told).ok_or_else(|| forked(path, "its checkpoint is none"))?;
        field(&told, "firstKey").clone_into(&mut self.first_key);
        let before = match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() && meta.len() <= MAX_FILE => {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                let unreadable = |_| forked(path, "what was seen of it cannot be read any more");
                SignedCheckpoint::parse(&text).map_err(unreadable)?
            }
            Ok(_) => return Err(forked(path, "what was seen of it is no plain file")),
            Err(_) => return Ok(self.done(&now)),
        };
        let (old, new) = (&before.checkpoint, &now.checkpoint);
        if old.origin != new.origin {
            let why = format!(
                "it is another log: {} was seen, and it is {}",
                old.origin, new.origin
            );
            return Err(forked(path, &why));
        }
        if new.size < old.size {
            let why = format!("it has {} records, and had {}", new.size, old.size);
            return Err(forked(path, &why));
        }
        if old == new {
            return Ok(Step::Done(Some(self.first_key.clone())));
        }
        let params = json!({ "old": old.size, "new": new.size });
        self.asked = Some((before, now));
        Ok(Step::Ask("audit.consistency", params))
    }

    fn proven(
        &self,
        answer: Result<Value, Failure>,
        before: &SignedCheckpoint,
        now: &SignedCheckpoint,
    ) -> Result<Step, Failure> {
        let (old, new) = (&before.checkpoint, &now.checkpoint);
        let proof = match answer {
            Ok(proof) => proof,
            Err(failure) if failure.retryable => return Err(failure),
            Err(failure) => {
                let why = format!(
                    "it does not prove that it goes on from {} records: {}",
                    old.size, failure.message
                );
                return Err(forked(&self.path, &why));
            }
        };
        let path: Option<Vec<Hash32>> =
            serde_json::from_value(proof.get("path").cloned().unwrap_or_default()).ok();
        let holds = path
            .is_some_and(|path| check_consistency(old.size, &old.root, new.size, &new.root, &path));
        if !holds {
            let why = format!(
                "the first {} records are not those that were seen",
                old.size
            );
            return Err(forked(&self.path, &why));
        }
        Ok(self.done(now))
    }

    fn done(&self, now: &SignedCheckpoint) -> Step {
        // One that cannot be kept is compared with what was kept before.
        drop(keep(&self.path, now));
        Step::Done(Some(self.first_key.clone()))
    }
}

/// Compares the gateway's log with what was seen of it last, and keeps what it is now. Gives the log's first public key;
/// none of a gateway without checkpoints, and where there is no place to keep one.
///
/// # Errors
/// `AUDIT_FORKED`: the log does not go on from what was seen.
pub async fn compare(client: &mut Client, door: &Door) -> Result<Option<String>, Failure> {
    let Some((mut comparing, mut step)) = Comparing::start(door) else {
        return Ok(None);
    };
    loop {
        match step {
            Step::Done(first_key) => return Ok(first_key),
            Step::Ask(method, params) => {
                step = comparing.answered(client.call(method, params).await)?;
            }
        }
    }
}

/// As [`compare`], before anything else is asked of a gateway elsewhere. One that was seen and cannot be compared now is
/// told so and goes on: a gateway whose log is broken must be mended by somebody.
///
/// # Errors
/// `AUDIT_FORKED`.
pub async fn hold(client: &mut Client, door: &Door) -> Result<(), Failure> {
    match compare(client, door).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.code == codes::AUDIT_FORKED.name => Err(failure),
        // Of a gateway of before such sessions could ask, or before there were checkpoints.
        Err(_) if !has_seen(door) => Ok(()),
        Err(failure) => {
            let code = codes::AUDIT_NOT_COMPARED;
            let why = format!(
                "warning[{}]: this gateway does not prove that its audit log goes on from what was seen of it: {}",
                code.name,
                clean(&failure.message)
            );
            crate::cli::note(&why);
            Ok(())
        }
    }
}

/// Whether anything was kept of it, readable or not.
fn has_seen(door: &Door) -> bool {
    place(door).is_some_and(|path| path.symlink_metadata().is_ok())
}

/// What was seen of it last, if there is any.
pub fn kept(door: &Door) -> Option<SignedCheckpoint> {
    let path = place(door)?;
    let meta = std::fs::symlink_metadata(&path).ok()?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return None;
    }
    SignedCheckpoint::parse(&std::fs::read_to_string(&path).ok()?).ok()
}

/// The note, if it is one, and its log's name is that of the first key beside it.
fn read_told(told: &Value) -> Option<SignedCheckpoint> {
    let note = SignedCheckpoint::parse(field(told, "note")).ok()?;
    let key = parse_first_key(field(told, "firstKey"))?;
    (origin(&key) == note.checkpoint.origin).then_some(note)
}

fn forked(path: &Path, why: &str) -> Failure {
    Failure::of(
        codes::AUDIT_FORKED,
        format!("the gateway's audit log does not go on from what this user has seen of it: {why}"),
    )
    .hint(format!(
        "compare it on its machine: `portcullis audit verify --offline --against {0}`; if it was put back with your knowledge, remove {0}",
        path.display()
    ))
}

/// One file for each way to a gateway.
fn place(door: &Door) -> Option<PathBuf> {
    let (place, name) = match door {
        Door::Socket(socket) => {
            // The socket is gone when the gateway is.
            let folder = std::fs::canonicalize(socket.parent()?).ok()?;
            let name = Path::new(socket.file_name()?);
            (
                Place::find(None).ok()?,
                format!("socket {}", folder.join(name).display()),
            )
        }
        Door::Remote(remote) => (
            remote.place.clone(),
            format!("url {}", remote.address.url()),
        ),
    };
    let hash = Hash32(Sha256::digest(name).into()).to_string();
    Some(place.folder.join("checkpoints").join(&hash[..32]))
}

fn keep(path: &Path, note: &SignedCheckpoint) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let meta = std::fs::symlink_metadata(folder)?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    files::replace(path, note.to_text().as_bytes())
}
