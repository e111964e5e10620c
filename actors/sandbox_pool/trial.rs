//! The folders of one trial box, made for a probe and removed with it.

use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use portcullis_core::ids::{AgentId, BoxId};

use super::driver::ProbeContext;
use super::image::hex;
use super::spec::BoxSpec;

/// No agent's name begins with a dot.
const PREFIX: &str = ".trial-";

/// A described box whose folders exist until this is dropped.
pub struct Trial {
    spec: BoxSpec,
}

impl Trial {
    /// Makes a workspace and a control folder with a fresh id.
    ///
    /// # Errors
    /// Whatever the file system says; nothing is left then.
    pub fn new(context: &ProbeContext) -> io::Result<Self> {
        sweep(context);
        let mut random = [0_u8; 6];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let name = hex(&random);
        let trial = Self {
            spec: BoxSpec {
                id: BoxId::new(&name).map_err(io::Error::other)?,
                agent: AgentId::new("trial").map_err(io::Error::other)?,
                workspace: context.workspaces.join(format!("{PREFIX}{name}")),
                run_dir: context.run_root.join("b").join(&name),
                cell: context.cell.clone(),
                limits: context.limits,
                uid: context.uid,
                gid: context.gid,
                owner: context.owner.clone(),
                boot: context.boot.clone(),
                profile_hash: "trial".to_owned(),
                nonce: name,
                dead_man: Duration::from_secs(30),
            },
        };
        // From here on a failure drops `trial`, which removes what there is.
        for folder in [&trial.spec.workspace, &trial.spec.run_dir] {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::set_permissions(&trial.spec.run_dir, PermissionsExt::from_mode(0o755))?;
        if rustix::process::geteuid().is_root() {
            chown(&trial.spec.workspace, Some(context.uid), Some(context.gid))?;
        }
        Ok(trial)
    }

    /// The box to start.
    pub fn spec(&self) -> &BoxSpec {
        &self.spec
    }
}

/// Removes what a daemon left that was killed in the middle of a probe. One daemon at a time uses a state directory.
fn sweep(context: &ProbeContext) {
    let entries = std::fs::read_dir(&context.workspaces);
    for entry in entries.into_iter().flatten().flatten() {
        if let Some(name) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
        {
            for folder in [entry.path(), context.run_root.join("b").join(name)] {
                // What cannot be removed is tried again at the next probe.
                let _ = std::fs::remove_dir_all(folder);
            }
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let folders: [&PathBuf; 2] = [&self.spec.workspace, &self.spec.run_dir];
        for folder in folders {
            if let Err(error) = std::fs::remove_dir_all(folder) {
                tracing::warn!(folder = %folder.display(), %error, "a trial box's folder is left behind");
            }
        }
    }
}
