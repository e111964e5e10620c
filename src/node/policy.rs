//! What the gateway has closed here, kept in a file beside this client's keys: one for each gateway.

use std::path::{Path, PathBuf};

use portcullis_core::codes;
use portcullis_core::nodes::OwnPolicy;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::files;
use crate::identity;

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

impl Kept {
    /// Of this gateway, in this private folder.
    ///
    /// # Errors
    /// `STATE_MODE`, `STATE_CORRUPT`: what cannot be read may have closed everything, so nothing is served.
    pub fn read(folder: &Path, gateway: &str) -> Result<Self, Failure> {
        let path = folder.join(format!("node-approvals-{gateway}.json"));
        let bytes = identity::read_private(&path).map_err(|e| {
            let code = codes::find(e.code()).unwrap_or(codes::STATE_MODE);
            Failure::of(code, e.to_string())
        })?;
        let Some(bytes) = bytes else {
            return Ok(Self {
                path,
                exists: false,
                policy: OwnPolicy::default(),
            });
        };
        let damaged = |why: &dyn std::fmt::Display| {
            Failure::of(
                codes::STATE_CORRUPT,
                format!("{}: {why}", path.display()),
            )
            .hint("it says what the gateway has closed here: remove it to open all of that, or mend it")
        };
        let document: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(&e))?;
        let policy = OwnPolicy::read(&document).map_err(|e| damaged(&e))?;
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

    /// Replaces it, where that opens nothing. Blocks for a small file; durable when it returns.
    ///
    /// # Errors
    /// The wire's code and why.
    pub fn set(&self, params: &Value) -> Result<Self, (&'static str, String)> {
        let invalid = |why: String| ("INVALID_REQUEST", why);
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
        let next = OwnPolicy::read(&file).and_then(|next| self.policy.then(next));
        let policy = next.map_err(|e| invalid(e.to_string()))?;
        let next = Self {
            path: self.path.clone(),
            exists: true,
            policy,
        };
        let text = next.policy.document().to_string();
        files::replace(&next.path, text.as_bytes())
            .map_err(|e| ("UNAVAILABLE", format!("it could not be kept: {e}")))?;
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::ids::AgentId;

    #[test]
    fn what_a_gateway_closes_is_kept_and_it_opens_nothing_again() {
        let folder = tempfile::tempdir().unwrap();
        let read = |gateway: &str| Kept::read(folder.path(), gateway).unwrap();
        let kept = read("A");
        assert_eq!(kept.shown()["exists"], false);
        let deny = json!({ "version": 1, "defaults": { "security": "deny" } });
        let full = json!({ "version": 1, "defaults": { "security": "full" } });
        let hash = |kept: &Kept| kept.shown()["hash"].clone();
        let wrong = kept.set(&json!({ "file": deny, "baseHash": "x" }));
        assert!(wrong.unwrap_err().1.contains("changed since last load"));
        assert!(kept.set(&json!({})).is_err());
        assert!(!read("A").exists);
        let closed = kept.set(&json!({ "file": deny, "baseHash": hash(&kept) }));
        let closed = closed.unwrap();
        let agent = AgentId::new("demo").unwrap();
        assert!(closed.policy().denies(&agent) && read("A").policy().denies(&agent));
        assert!(!read("B").policy().denies(&agent), "another gateway's");
        // Once it is there its hash is named.
        assert!(closed.set(&json!({ "file": deny })).is_err());
        let opens = closed.set(&json!({ "file": full, "baseHash": hash(&closed) }));
        assert!(opens.unwrap_err().1.contains("not open it again"));
        assert!(read("A").policy().denies(&agent));
        // What cannot be read closes the node host, and opens nothing.
        std::fs::write(&closed.path, "{").unwrap();
        let damaged = Kept::read(folder.path(), "A").unwrap_err();
        assert_eq!(damaged.code, "STATE_CORRUPT");
    }
}
