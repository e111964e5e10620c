//! What an approved host command tries, and does not get.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use portcullis_core::plan::Target;

use super::harness::{Folders, house};

const TRIES: &str = r#"
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name: REACHED"; else echo "$name: refused"; fi; }
try list ls "$1"
try read cat "$1/state.db"
try audit ls "$1/audit"
try identity cat "$1/identity/key"
try socket python3 -c 'import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1/run/control.sock"
try environ cat "/proc/$2/environ"
try memory head -c 1 "/proc/$2/mem"
try fds ls "/proc/$2/fd"
try signal kill -0 "$2"
try parent kill -0 "$PPID"
try ptrace python3 -c 'import ctypes,sys; sys.exit(0 if ctypes.CDLL(None).ptrace(16, int(sys.argv[1]), 0, 0) == 0 else 1)' "$2"
try sudo sudo -n true
try unshare unshare -U true
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_identity_sockets_and_the_gateway_are_out_of_reach() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let state = folders.state.path();
    std::fs::write(state.join("identity/key"), "key").unwrap();
    let socket = state.join("run/control.sock");
    let _control = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();
    let own = std::process::id().to_string();
    let mut request = house.request(
        Target::Host,
        &["sh", "-c", TRIES, "sh", state.to_str().unwrap(), &own],
    );
    request.cwd = Some("/".to_owned());
    let ended = house.run_allowed(request).await;
    assert_eq!(ended.result.status, "exited", "{ended:?}");
    // With the gateway's own user an empty folder stands where the state is.
    let empty = !rustix::process::geteuid().is_root();
    for line in ended.out.lines() {
        let seen = empty && line.starts_with("list:");
        assert!(line.ends_with(": refused") || seen, "{line}\n{}", ended.err);
    }
    assert_eq!(ended.out.lines().count(), 13);
    house.end().await;
}

/// The same as another user, where every host command runs inside bubblewrap.
#[test]
fn a_gateway_that_is_not_root_masks_what_is_its_own() {
    use std::os::unix::process::CommandExt as _;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let place = |from: &std::path::Path, name: &str| {
        let to = folder.path().join(name);
        std::fs::copy(from, &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let test = place(&std::env::current_exe().unwrap(), "tests");
    let cell = place(&crate::sandbox_pool::tests::harness::cell(), "cell");
    let output = std::process::Command::new(test)
        .args([
            "exec::tests::reach::state_identity",
            "exec::tests::host::",
            "exec::tests::operands::",
            "--test-threads=1",
        ])
        .env("PORTCULLIS_TEST_CELL", cell)
        .env("TMPDIR", folder.path())
        .current_dir(folder.path())
        .gid(65_533)
        .uid(65_533)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("19 passed"), "{said}");
}
