//! What the gateway inherited at its start reaches nothing that it starts.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use command_fds::{CommandFdExt as _, FdMapping};

use crate::support::gateway::Gateway;

/// The bug: whatever the gateway's starter had left open stood open in every run and every box, and so did the token's memory file, where an
/// approved command of the host read the token.
#[test]
fn no_run_inherits_the_tokens_memory_or_the_starters_descriptors() {
    let left_open: OwnedFd = std::fs::File::open("/").unwrap().into();
    let mut gateway = Gateway::prepared(&[]);
    let mut command = gateway.daemon();
    command
        .fd_mappings(vec![FdMapping {
            parent_fd: left_open,
            child_fd: 40,
        }])
        .unwrap();
    // Looked at when all is open: it serves, and a box has run something and stays.
    gateway.launch_as(command).unwrap();
    let run = gateway.cli(&["exec", "--agent", "demo", "--", "true"]);
    assert!(run.status.success(), "{run:?}");
    let own = PathBuf::from(format!("/proc/{}", gateway.pid()));
    let mut kept = Vec::new();
    for fd in std::fs::read_dir(own.join("fd")).unwrap().flatten() {
        let number = fd.file_name().into_string().unwrap();
        let to = std::fs::read_link(fd.path()).unwrap_or_default();
        let info = std::fs::read_to_string(own.join("fdinfo").join(&number)).unwrap_or_default();
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        let closes_at_exec = flags.is_none_or(|flags| flags & 0o2_000_000 != 0);
        let is_memory = to.to_string_lossy().contains("portcullis-token");
        if number.parse::<i32>().unwrap() > 2 && (!closes_at_exec || is_memory) {
            kept.push((number, to));
        }
    }
    assert!(kept.is_empty(), "{kept:?}");
}
