//! What the gateway has closed here, kept in a file beside this client's keys: one for each gateway. And what it proposed,
//! where this machine's owner wants to be asked.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use portcullis_core::codes;
use portcullis_core::nodes::{OwnPolicy, RemoteEdit};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::files;
use crate::identity;

const CLOSED: &str = "node-approvals-";
const PROPOSED: &str = "node-proposal-";
/// So much of a proposal's hash a person types at least.
const BEGINNING: usize = 8;

/// The file, and what it says.
#[derive(Debug, Clone)]
pub struct Kept {
    path: PathBuf,
    exists: bool,
    policy: OwnPolicy,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Set {
    #[serde(default)]
    file: Option<Value>,
    #[serde(default)]
    base_hash: Option<String>,
}

/// What a gateway wants to have here, until this machine's owner has said something.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Proposal {
    /// Of what it would replace.
    base: String,
    file: Value,
}

/// Held while these files are read and replaced, by a node host and by the command line.
fn lock(folder: &Path) -> std::io::Result<File> {
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join("node-policy.lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(lock)
}

fn read_private(path: &Path) -> Result<Option<Value>, Failure> {
    let bytes = identity::read_private(path).map_err(|e| {
        let code = codes::find(e.code()).unwrap_or(codes::STATE_MODE);
        Failure::of(code, e.to_string())
    })?;
    let read = bytes.map(|bytes| serde_json::from_slice(&bytes));
    read.transpose().map_err(|e| damaged(path, &e))
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::of(codes::STATE_CORRUPT, format!("{}: {why}", path.display()))
        .hint("it says what the gateway has closed here: remove it to open all of that, or mend it")
}

impl Kept {
    /// Of this gateway, in this private folder, as it stands now.
    ///
    /// # Errors
    /// `STATE_MODE`, `STATE_CORRUPT`: what cannot be read may have closed everything, so nothing is served.
    pub fn read(folder: &Path, gateway: &str) -> Result<Self, Failure> {
        let path = folder.join(format!("{CLOSED}{gateway}.json"));
        let Some(document) = read_private(&path)? else {
            return Ok(Self {
                path,
                exists: false,
                policy: OwnPolicy::default(),
            });
        };
        let policy = OwnPolicy::read(&document).map_err(|e| damaged(&path, &e))?;
        Ok(Self {
            path,
            exists: true,
            policy,
        })
    }

    /// What is closed.
    pub const fn policy(&self) -> &OwnPolicy {
        &self.policy
    }

    /// `{path, exists, file, hash}` (wire.md 10).
    pub fn shown(&self) -> Value {
        json!({
            "path": self.path, "exists": self.exists, "file": self.policy.document(), "hash": self.policy.hash(),
        })
    }

    /// Replaces it, as far as this machine's owner lets its gateway do that. Blocks for a small file; durable when it returns.
    ///
    /// # Errors
    /// The wire's code and why.
    pub fn set(
        folder: &Path,
        gateway: &str,
        params: &Value,
        edit: RemoteEdit,
    ) -> Result<Self, (&'static str, String)> {
        let unkept = |error: &dyn std::fmt::Display| {
            ("UNAVAILABLE", format!("it could not be kept: {error}"))
        };
        let _lock = lock(folder).map_err(|e| unkept(&e))?;
        let now = Self::read(folder, gateway).map_err(|e| unkept(&e.message))?;
        let next = now.changed(params, edit)?;
        if edit == RemoteEdit::Ask {
            let hash = next.hash().to_string();
            let proposal = Proposal {
                base: now.policy.hash().to_string(),
                file: next.document(),
            };
            let text = serde_json::to_vec(&proposal).map_err(|e| unkept(&e))?;
            files::replace(&folder.join(format!("{PROPOSED}{gateway}.json")), &text)
                .map_err(|e| unkept(&e))?;
            let short = &hash[..12];
            return Err((
                "POLICY_CONSENT_REQUIRED",
                format!(
                    "this change waits for the owner of the node, who runs there: portcullis node policy accept {short}"
                ),
            ));
        }
        now.keep(next).map_err(|e| unkept(&e))
    }

    /// What a gateway's change would make of it.
    fn changed(
        &self,
        params: &Value,
        edit: RemoteEdit,
    ) -> Result<OwnPolicy, (&'static str, String)> {
        let invalid = |why: String| ("INVALID_REQUEST", why);
        if edit == RemoteEdit::Deny {
            return Err((
                "POLICY_EDIT_DENIED",
                "this node's own document takes no change from its gateway".to_owned(),
            ));
        }
        let set = Set::deserialize(params).map_err(|e| invalid(e.to_string()))?;
        let file = set.file.ok_or_else(|| {
            invalid("this node host has an approvals document: send file".to_owned())
        })?;
        let is_named = |hash: &String| *hash == self.policy.hash().to_string();
        if !set.base_hash.as_ref().map_or(!self.exists, is_named) {
            return Err(invalid(
                "exec approvals changed since last load; re-run exec.approvals.get and retry"
                    .to_owned(),
            ));
        }
        let next = OwnPolicy::read(&file).map_err(|e| invalid(e.to_string()))?;
        // What its owner consents to may open again what the gateway closed; his own document stands over it all the same.
        if edit == RemoteEdit::Ask {
            return Ok(next);
        }
        self.policy.then(next).map_err(|e| invalid(e.to_string()))
    }

    fn keep(&self, policy: OwnPolicy) -> std::io::Result<Self> {
        let text = policy.document().to_string();
        files::replace(&self.path, text.as_bytes())?;
        Ok(Self {
            path: self.path.clone(),
            exists: true,
            policy,
        })
    }
}

/// What waits for this machine's owner: of each gateway its last proposal, with what stands now.
///
/// # Errors
/// A file that cannot be read.
pub fn proposals(folder: &Path) -> Result<Vec<Value>, Failure> {
    Ok(read_proposals(folder)?
        .into_iter()
        .map(|(gateway, now, proposal, next)| {
            json!({
                "id": &next.hash().to_string()[..12], "gateway": gateway,
                "stands": proposal.base == now.policy.hash().to_string(),
                "now": now.policy.document(), "proposed": next.document(),
            })
        })
        .collect())
}

type Read = (String, Kept, Proposal, OwnPolicy);

fn read_proposals(folder: &Path) -> Result<Vec<Read>, Failure> {
    let failed = |e: std::io::Error| Failure::io(codes::STATE_MODE, folder.display(), &e);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(failed(error)),
    };
    let mut all = vec![];
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let gateway = name
            .and_then(|name| name.strip_prefix(PROPOSED))
            .and_then(|name| name.strip_suffix(".json"));
        let Some(gateway) = gateway else { continue };
        let Some(value) = read_private(&path)? else {
            continue;
        };
        let proposal = Proposal::deserialize(&value).map_err(|e| damaged(&path, &e))?;
        let next = OwnPolicy::read(&proposal.file).map_err(|e| damaged(&path, &e))?;
        let now = Kept::read(folder, gateway)?;
        all.push((gateway.to_owned(), now, proposal, next));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// The owner's word on the proposal that is called so: by so much of the hash of what is proposed that it can be no other.
///
/// # Errors
/// `APPROVAL_NOT_FOUND`, `POLICY_CONFLICT`, and what the disk says.
pub fn answer(folder: &Path, id: &str, accepts: bool) -> Result<Value, Failure> {
    let failed = |e: std::io::Error| Failure::io(codes::STATE_MODE, folder.display(), &e);
    let _lock = lock(folder).map_err(failed)?;
    let mut found = read_proposals(folder)?;
    found
        .retain(|(_, _, _, next)| id.len() >= BEGINNING && next.hash().to_string().starts_with(id));
    let [(gateway, now, proposal, next)] = &found[..] else {
        return Err(Failure::of(
            codes::APPROVAL_NOT_FOUND,
            "no proposal is called so: `portcullis node policy show` lists what waits, and eight characters are the least",
        ));
    };
    let shown = if accepts {
        if proposal.base != now.policy.hash().to_string() {
            return Err(Failure::of(
                codes::POLICY_CONFLICT,
                "what it would change has changed since: let the gateway's operator propose it again",
            ));
        }
        now.keep(next.clone()).map_err(failed)?.shown()
    } else {
        now.shown()
    };
    let path = folder.join(format!("{PROPOSED}{gateway}.json"));
    std::fs::remove_file(path).map_err(failed)?;
    Ok(json!({ "accepted": accepts, "gateway": gateway, "file": shown["file"] }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::ids::AgentId;

    fn hash(kept: &Kept) -> Value {
        kept.shown()["hash"].clone()
    }

    fn rules(security: &str) -> Value {
        json!({ "version": 1, "defaults": { "security": security } })
    }

    #[test]
    fn what_a_gateway_closes_is_kept_and_it_opens_nothing_again() {
        let folder = tempfile::tempdir().unwrap();
        let read = |gateway: &str| Kept::read(folder.path(), gateway).unwrap();
        let set = |params: Value| Kept::set(folder.path(), "A", &params, RemoteEdit::Tighten);
        let kept = read("A");
        assert_eq!(kept.shown()["exists"], false);
        let (deny, full) = (rules("deny"), rules("full"));
        let wrong = set(json!({ "file": deny, "baseHash": "x" }));
        assert!(wrong.unwrap_err().1.contains("changed since last load"));
        assert!(set(json!({})).is_err());
        assert!(!read("A").exists);
        let closed = set(json!({ "file": deny, "baseHash": hash(&kept) })).unwrap();
        let agent = AgentId::new("demo").unwrap();
        assert!(closed.policy().denies(&agent) && read("A").policy().denies(&agent));
        assert!(!read("B").policy().denies(&agent), "another gateway's");
        // Once it is there its hash is named.
        assert!(set(json!({ "file": deny })).is_err());
        let opens = set(json!({ "file": full, "baseHash": hash(&closed) }));
        assert!(opens.unwrap_err().1.contains("not open it again"));
        assert!(read("A").policy().denies(&agent));
        // What cannot be read closes the node host, and opens nothing.
        std::fs::write(&closed.path, "{").unwrap();
        let damaged = Kept::read(folder.path(), "A").unwrap_err();
        assert_eq!(damaged.code, "STATE_CORRUPT");
    }

    #[test]
    fn what_a_gateway_changes_waits_for_the_nodes_owner_where_he_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let read = || Kept::read(at, "A").unwrap();
        let agent = AgentId::new("demo").unwrap();
        let set = |file: &Value, edit| {
            let params = json!({ "file": file, "baseHash": hash(&read()) });
            Kept::set(at, "A", &params, edit)
        };
        let denied = set(&rules("deny"), RemoteEdit::Deny).unwrap_err();
        assert_eq!(denied.0, "POLICY_EDIT_DENIED");
        assert!(proposals(at).unwrap().is_empty());
        let waits = |file: &Value| {
            let waits = set(file, RemoteEdit::Ask).unwrap_err();
            assert_eq!(waits.0, "POLICY_CONSENT_REQUIRED");
            waits.1.rsplit(' ').next().unwrap().to_owned()
        };
        let id = waits(&rules("deny"));
        assert!(!read().policy().denies(&agent), "nothing holds before");
        assert_eq!(proposals(at).unwrap()[0]["id"], id.as_str());
        let code = |id: &str, accepts| answer(at, id, accepts).unwrap_err().code;
        assert_eq!(code(&id[..7], true), "APPROVAL_NOT_FOUND");
        assert_eq!(code("00000000", true), "APPROVAL_NOT_FOUND");
        answer(at, &id, false).unwrap();
        assert!(!read().policy().denies(&agent));
        assert_eq!(code(&id, true), "APPROVAL_NOT_FOUND", "it is over");
        answer(at, &waits(&rules("deny")), true).unwrap();
        assert!(read().policy().denies(&agent));
        // With his consent it opens again, too; but only what he saw, of what stood when it was proposed.
        let opens = waits(&rules("full"));
        let other = json!({ "version": 1, "defaults": { "security": "deny" }, "agents": { "demo": { "security": "deny" } } });
        set(&other, RemoteEdit::Tighten).unwrap();
        assert_eq!(code(&opens, true), "POLICY_CONFLICT");
        answer(at, &waits(&rules("full")), true).unwrap();
        assert!(!read().policy().denies(&agent));
    }
}
