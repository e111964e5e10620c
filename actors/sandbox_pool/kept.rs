//! What outlives the daemon: a box's state file, and whether its init process is still the one that was started.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::plain;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// Longest time from KILL of the init process to its end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// What is kept of a box outside this process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Version of this file: 1.
    pub v: u32,
    /// The gateway that owns the box.
    pub owner: String,
    /// The start of it that made the box.
    pub boot: String,
    /// What the box was made with.
    pub profile_hash: String,
    /// The machine's start: a pid of an earlier one means nothing.
    pub machine: String,
    /// The init process, and when it started (field 22 of its stat): a pid alone may be somebody else's by now.
    pub init: Option<(u32, u64)>,
}

impl Kept {
    /// The init process, if it is still the one that was started.
    pub fn living(&self) -> Option<(u32, u64)> {
        let (pid, started) = self.init?;
        (self.machine == machine() && started_at(pid) == Some(started)).then_some((pid, started))
    }
}

/// Kills an init process, which takes its whole pid namespace along, and waits for its end.
pub async fn kill_and_wait(pid: u32, started: u64) -> io::Result<()> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let descriptor = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(descriptor) => descriptor,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // The descriptor holds this process; was it the right one when it was opened?
    if started_at(pid) != Some(started) {
        return Ok(());
    }
    match pidfd_send_signal(&descriptor, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    // The end of an init process comes after that of everything in its namespace. Asked, not awaited: the only safe
    // way to wait on the descriptor is a thread.
    let until = Instant::now() + END_WITHIN;
    while started_at(pid) == Some(started) {
        if Instant::now() >= until {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "its init process does not end",
            ));
        }
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// When a process started, in ticks since the machine's start.
pub fn started_at(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // A zombie has ended, whoever has yet to bury it.
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The machine's start.
pub fn machine() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Writes a file so that it is there whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    plain::remove(&new)?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(bytes)?;
    // The mask may have taken readers away whom the mode names.
    fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    fs::rename(&new, path)
}
