//! Who listens at a socket of this machine, before anything is said to him: a path alone names nobody, and a port neither.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portcullis_core::codes;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use super::address::Listener;
use crate::above::{Open, Trust, open_to_others};
use crate::cli::Failure;
use crate::ends::{Came, came, listed, nobody};
use crate::show::text::clean;

/// For a process to take a connection that the kernel has taken for it.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);
/// The same where no other address is left: just within the time that a connect has.
const TAKEN_AT_LAST_WITHIN: Duration = Duration::from_secs(9);
/// For the kernel to know of its other end.
const KNOWN_WITHIN: Duration = Duration::from_millis(500);
/// Of whom the kernel's word says nothing.
const UNNUMBERED: &str = "who listens there has no number in this user namespace, and may be any user outside it: speak to it by wss:// and --pin";
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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
    if nobody() == Some(server) {
        return Err(refuse(UNNUMBERED.to_owned()));
    }
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

/// Who took a connection to a port of this machine: root, we ourselves, or whom the user named. Its listener alone says
/// nothing: another process may have listened there when it came. Who relays what he gets is asked about himself.
///
/// # Errors
/// `SERVER_NOT_VERIFIED`, `DAEMON_UNREACHABLE`: nobody takes it. Nothing was sent.
///
/// `is_last`: no other address is tried after this one, so a gateway that is busy gets its time.
pub async fn check_port(
    stream: &TcpStream,
    at: SocketAddr,
    may: Listener,
    is_last: bool,
) -> Result<(), Failure> {
    if may == Listener::Anybody {
        return Ok(());
    }
    let refuse = |why: String| {
        let mut failure = Failure::of(codes::SERVER_NOT_VERIFIED, format!("ws://{at}: {why}"));
        // The gateway may be back on its port a moment later.
        failure.retryable = true;
        failure
    };
    let unsaid = |error: std::io::Error| refuse(format!("the kernel does not say who ({error})"));
    let ends = (
        stream.peer_addr().map_err(unsaid)?,
        stream.local_addr().map_err(unsaid)?,
    );
    let began = Instant::now();
    let taken_within = if is_last {
        TAKEN_AT_LAST_WITHIN
    } else {
        TAKEN_WITHIN
    };
    loop {
        let told = match came(ends.0, ends.1) {
            Came::Unsaid => listed(&[ends]).first().copied().unwrap_or(Came::Unsaid),
            told => told,
        };
        match told {
            Came::By(Some((uid, _))) => {
                if nobody() == Some(uid) {
                    return Err(refuse(UNNUMBERED.to_owned()));
                }
                let own = rustix::process::geteuid().as_raw();
                return if [0, own].contains(&uid) || may == Listener::User(uid) {
                    Ok(())
                } else {
                    Err(refuse(format!("uid {uid} listens there, and need not be your gateway")).hint(format!(
                        "nothing was sent to it: if your gateway runs as that user, say so (--gateway-user {uid}); else look who took its port"
                    )))
                };
            }
            // No process has it yet; or it was hung up.
            Came::Gone if began.elapsed() < taken_within => {}
            Came::Gone => {
                let why = format!("ws://{at}: nobody takes the connection");
                return Err(Failure::of(codes::DAEMON_UNREACHABLE, why).hint(
                    "look at the address, and whether that gateway runs and lets this machine in",
                ));
            }
            Came::By(None) | Came::Unsaid if began.elapsed() < KNOWN_WITHIN => {}
            Came::By(None) | Came::Unsaid => {
                return Err(refuse(
                    "this system's kernel does not say who listens there, as with a port that leads into a container or another network namespace".to_owned(),
                )
                .hint(
                    "nothing was sent to it: speak to it by wss:// and --pin, or, where nobody else can listen there, give --gateway-user any",
                ));
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
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
