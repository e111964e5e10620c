//! Who listens at a socket of this machine, before anything is said to him: a path alone names nobody.

use std::path::{Path, PathBuf};

use portcullis_core::codes;
use tokio::net::UnixStream;

use crate::above::{Open, Trust, open_to_others};
use crate::cli::Failure;
use crate::show::text::clean;

/// Root or we ourselves may listen anywhere. Another user is a gateway's only where nobody but root and we could have put
/// its socket there for him: above the state folder (of `run/control.sock` and `run/agent.sock`) every folder is root's or
/// ours. A socket elsewhere was named by itself, and so its folders may be that user's too. The sticky bit does not count
/// here: what is missing in such a folder anybody may make.
///
/// # Errors
/// `SERVER_NOT_VERIFIED`; nothing was sent.
pub fn check(stream: &UnixStream, path: &Path) -> Result<(), Failure> {
    let shown = clean(&path.display().to_string());
    let refuse = |why: String| {
        Failure::of(codes::SERVER_NOT_VERIFIED, format!("{shown}: {why}")).hint(
            "nothing was sent to it: run this as the gateway's user, or let root own the folders above the gateway's and close them to others (chmod go-w)",
        )
    };
    // Who called listen(2), by the kernel's word (unix(7)).
    let server = stream
        .peer_cred()
        .map_err(|e| refuse(format!("the kernel does not say who listens ({e})")))?
        .uid();
    let own = rustix::process::geteuid().as_raw();
    if [0, own].contains(&server) {
        return Ok(());
    }
    match placed_by(path, server, own) {
        Ok(None) => Ok(()),
        Ok(Some(open)) => Err(refuse(format!(
            "uid {server} listens there, and need not be your gateway: {} {}",
            clean(&open.folder.display().to_string()),
            open.why
        ))),
        Err(e) => Err(refuse(format!(
            "uid {server} listens there, and its folders cannot be looked at ({e})"
        ))),
    }
}

/// The first folder where somebody else could have put it.
fn placed_by(path: &Path, server: u32, own: u32) -> std::io::Result<Option<Open>> {
    let strictly = |path: &Path, uids: &[u32]| {
        let sticky = false;
        open_to_others(path, Trust { uids, sticky })
    };
    if let Some(state) = state_of(path)
        && let Some(open) = strictly(&state, &[0, own])?
    {
        return Ok(Some(open));
    }
    strictly(path, &[0, own, server])
}

/// The state folder that it is a socket of.
fn state_of(path: &Path) -> Option<PathBuf> {
    let (run, name) = (path.parent()?, path.file_name()?);
    let is_ours = name == "control.sock" || name == "agent.sock";
    (is_ours && run.file_name()? == "run").then(|| run.parent().map(Path::to_owned))?
}
