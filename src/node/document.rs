//! What this machine's owner says of what gateways run here: a file that a person writes, and which of people's decisions
//! were used.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use portcullis_actors::plain;
use portcullis_core::ids::Hash32;
use portcullis_core::nodes::{Local, Spent};
use portcullis_core::time::Millis;
use serde_json::Value;

use crate::files;
use crate::identity;

/// In the folder of this client's keys, beside them: no command that runs here reaches it.
pub const FILE: &str = "node-policy.toml";
/// Longest one, bytes.
const MOST: u64 = 256 * 1024;

/// The document of this folder, as it stands now: a change holds for what is asked next.
pub fn read(folder: &Path) -> Local {
    Local::read(read_file(&folder.join(FILE)))
}

fn read_file(path: &Path) -> Result<Option<Value>, String> {
    let mut file = match plain::open(File::options().read(true), path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let meta = file.metadata().map_err(|error| error.to_string())?;
    // Who else may write it, owns this node.
    if meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(format!("others may write it (mode {mode:04o}): chmod go-w"));
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own && meta.uid() != 0 {
        return Err(format!("it belongs to uid {}", meta.uid()));
    }
    if meta.len() > MOST {
        return Err("it is longer than 256 KiB".to_owned());
    }
    let mut text = String::new();
    let read = (&mut file).take(MOST).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    let document = toml::from_str(&text).map_err(|error| error.to_string().trim().to_owned())?;
    Ok(Some(document))
}

/// Which decisions ran something here, of one gateway: a file beside the keys.
#[derive(Debug, Clone)]
pub struct Used {
    path: PathBuf,
}

impl Used {
    /// Of this gateway.
    pub fn of(folder: &Path, gateway: &str) -> Self {
        Self {
            path: folder.join(format!("node-decisions-{gateway}.json")),
        }
    }

    /// Uses this decision: durable when it returns. Blocks.
    ///
    /// # Errors
    /// It was used before, or that cannot be known or kept: then nothing runs by it.
    pub fn spend(&self, plan: Hash32, until: Millis, now: Millis) -> Result<(), String> {
        let unkept = |error: &dyn std::fmt::Display| {
            format!("which decisions were used here is not known: {error}")
        };
        // Two node hosts of one folder have one memory.
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.with_extension("lock"))
            .map_err(|e| unkept(&e))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| unkept(&e))?;
        let kept = identity::read_private(&self.path).map_err(|e| unkept(&e))?;
        let spent: Spent = match kept {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| unkept(&e))?,
            None => Spent::default(),
        };
        let next = spent.spend(plan, until, now).map_err(|e| e.to_string())?;
        let text = serde_json::to_vec(&next).map_err(|e| unkept(&e))?;
        files::replace(&self.path, &text).map_err(|e| unkept(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::nodes::Approvers;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_nodes_document_that_others_could_write_or_that_cannot_be_read_is_malformed() {
        let folder = tempfile::tempdir().unwrap();
        let word = || read(folder.path()).word();
        assert_eq!(word(), "absent");
        let path = folder.path().join(FILE);
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("version = 1\n[defaults]\nmode = \"deny\"\n");
        assert_eq!(word(), "valid");
        for (mode, said) in [(0o666, "malformed"), (0o620, "malformed"), (0o644, "valid")] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(word(), said, "{mode:o}");
        }
        write("version = 1\n[defaults\n");
        assert_eq!(word(), "malformed");
        write(&"# long\n".repeat(40_000));
        assert_eq!(word(), "malformed");
        // A link leads to where others may write.
        std::fs::rename(&path, folder.path().join("other")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("other"), &path).unwrap();
        assert_eq!(word(), "malformed");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(word(), "malformed");
    }

    #[test]
    fn the_example_of_a_nodes_document_is_one() {
        let text = include_str!("../../config/node-policy.toml");
        let read = |text: &str| {
            let document = toml::from_str(text).map_err(|error| error.to_string());
            Local::read(document.map(Some))
        };
        assert!(matches!(read(text), Local::Valid(_)), "{:?}", read(text));
        // And with what stands there as a comment.
        let all = text
            .replace("# approvers", "approvers")
            .replace("# quorum", "quorum");
        assert_eq!(
            read(&all).approvers().map(Approvers::len),
            Some(1),
            "{:?}",
            read(&all)
        );
    }

    #[test]
    fn a_decision_is_used_once_by_all_node_hosts_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let used = || Used::of(folder.path(), "A");
        let (plan, until, now) = (Hash32::of(b"1"), Millis(50), Millis(5));
        used().spend(plan, until, now).unwrap();
        let again = used().spend(plan, until, now).unwrap_err();
        assert!(again.contains("used here already"), "{again}");
        // What is not known is not taken for unused.
        std::fs::write(&used().path, "{").unwrap();
        let odd = used().spend(Hash32::of(b"2"), until, now).unwrap_err();
        assert!(odd.contains("is not known"), "{odd}");
    }
}
