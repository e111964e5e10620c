//! What the gateway inherited at its start reaches nothing that it starts.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};

/// The bug: whatever the gateway's starter had left open stood open in every run and every box, and so did the token's memory file, where an
/// approved command of the host read the token.
#[test]
fn no_run_inherits_the_tokens_memory_or_the_starters_descriptors() {
    let state = tempfile::tempdir().unwrap();
    let identity = tempfile::tempdir().unwrap();
    let left_open: OwnedFd = std::fs::File::open("/").unwrap().into();
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command
        .args(["gateway", "--port", "0", "--state"])
        .arg(state.path().join("s"))
        .arg("--identity")
        .arg(identity.path().join("identity.key"))
        .env(
            "PORTCULLIS_GATEWAY_TOKEN",
            "a-token-of-forty-characters-for-one-test",
        )
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .fd_mappings(vec![FdMapping {
            parent_fd: left_open,
            child_fd: 40,
        }])
        .unwrap();
    let mut gateway = command.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while !state.path().join("s/run/control.sock").exists() {
        assert!(Instant::now() < until, "it did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let own = PathBuf::from(format!("/proc/{}", gateway.id()));
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
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    assert!(kept.is_empty(), "{kept:?}");
}
