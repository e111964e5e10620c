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
use crate::show::value::field;

/// Larger than any checkpoint.
const MAX_FILE: u64 = 16 * 1024;

/// Compares the gateway's log with what was seen of it last, and keeps what it is now. Does nothing where there is no place
/// for it.
///
/// # Errors
/// `AUDIT_FORKED`: the log does not go on from what was seen.
pub async fn compare(client: &mut Client, door: &Door) -> Result<(), Failure> {
    let Some(path) = place(door) else {
        return Ok(());
    };
    let told = match client.call("audit.checkpoint", json!({})).await {
        Ok(told) => told,
        // A gateway of before there were checkpoints has none to compare.
        Err(failure) if failure.code == codes::UNKNOWN_METHOD.name => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let now = read_told(&told).ok_or_else(|| forked(&path, "its checkpoint is none"))?;
    let before = match std::fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_file() && meta.len() <= MAX_FILE => {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let note = SignedCheckpoint::parse(&text);
            Some(note.map_err(|_| forked(&path, "what was seen of it cannot be read any more"))?)
        }
        Ok(_) => return Err(forked(&path, "what was seen of it is no plain file")),
        Err(_) => None,
    };
    if let Some(before) = &before {
        if let Some(why) = differs(client, before, &now).await? {
            return Err(forked(&path, &why));
        }
        if before.checkpoint == now.checkpoint {
            return Ok(());
        }
    }
    // One that cannot be kept is compared with what was kept before.
    drop(keep(&path, &now));
    Ok(())
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

/// What does not fit; `None`: it is the same log, further on.
async fn differs(
    client: &mut Client,
    before: &SignedCheckpoint,
    now: &SignedCheckpoint,
) -> Result<Option<String>, Failure> {
    let (old, new) = (&before.checkpoint, &now.checkpoint);
    if old.origin != new.origin {
        return Ok(Some(format!(
            "it is another log: {} was seen, and it is {}",
            old.origin, new.origin
        )));
    }
    if new.size < old.size {
        return Ok(Some(format!(
            "it has {} records, and had {}",
            new.size, old.size
        )));
    }
    let params = json!({ "old": old.size, "new": new.size });
    let proof = match client.call("audit.consistency", params).await {
        Ok(proof) => proof,
        Err(failure) if failure.retryable => return Err(failure),
        Err(failure) => {
            let why = format!(
                "it does not prove that it goes on from {} records: {}",
                old.size, failure.message
            );
            return Ok(Some(why));
        }
    };
    let path: Option<Vec<Hash32>> =
        serde_json::from_value(proof.get("path").cloned().unwrap_or_default()).ok();
    let holds =
        path.is_some_and(|path| check_consistency(old.size, &old.root, new.size, &new.root, &path));
    Ok((!holds).then(|| {
        format!(
            "the first {} records are not those that were seen",
            old.size
        )
    }))
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
