//! Users of the host for agents' boxes: this machine must have them, and give them to nobody else.

use std::io::Read as _;
use std::path::Path;

use portcullis_actors::plain;
use portcullis_core::codes;
use portcullis_core::sandbox::{Host, UserRange};

use crate::cli::Failure;
use crate::config::Local;

/// No such file is longer here, bytes; what is beyond is not looked at.
const MOST: u64 = 1 << 20;

/// For the file of a first run: another range than the default one where that is somebody's here, as in a container of 65,536 users.
pub fn of_first_run() -> Option<UserRange> {
    let host = host(&Local::default())?;
    host.conflict(UserRange::default())?;
    host.free()
}

/// What this machine says of its users; none where this gateway is not root, whose boxes have no other than its own.
fn host(local: &Local) -> Option<Host> {
    let own = rustix::process::geteuid();
    own.is_root().then(|| Host {
        passwd: text(Path::new("/etc/passwd")),
        group: text(Path::new("/etc/group")),
        sub_uids: text(&local.subuid_file),
        sub_gids: text(Path::new("/etc/subgid")),
        uid_map: text(Path::new("/proc/self/uid_map")),
        gid_map: text(Path::new("/proc/self/gid_map")),
        operator_uids: local.uids(own.as_raw()),
        operator_gids: local.gids(),
    })
}

/// Refuses a range that meets somebody's, with one that meets nobody's.
pub fn check(range: UserRange, local: &Local) -> Result<(), Failure> {
    let Some(host) = host(local) else {
        return Ok(());
    };
    let Some(why) = host.conflict(range) else {
        return Ok(());
    };
    let hint = match host.free() {
        Some(free) => format!("set [sandbox] uids = \"{free}\", or others that are nobody's"),
        None => "set [sandbox] uids to a range that is nobody's, or run the gateway as another user than root".to_owned(),
    };
    Err(Failure::of(
        codes::CONFIG_INVALID,
        format!("[sandbox] uids = \"{range}\" cannot be agents' users: {why}"),
    )
    .hint(hint))
}

fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = plain::open_linked(path) {
        // What cannot be read says nothing.
        let _ = file.take(MOST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
