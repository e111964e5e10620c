//! What an approved host command tries, and does not get.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use portcullis_core::audit::Query;
use portcullis_core::codes;
use portcullis_core::ids::AgentId;
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
    assert!(said.contains("20 passed"), "{said}");
}

/// The bug: the program was looked up and hashed, as root, before policy was asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_leave_the_sandbox_learns_nothing_of_what_is_outside() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let node = Target::Node("a".repeat(64));
    for name in [
        "true",
        "/etc/passwd",
        "/nowhere/none",
        "/proc/1/exe",
        "no-such-command",
    ] {
        for target in [Target::Host, node.clone()] {
            let code = match target {
                Target::Node(_) => codes::NODES_DISABLED,
                _ => codes::ELEVATED_DISABLED,
            };
            let mut request = house.request(target, &[name]);
            request.agent = AgentId::new("lone").unwrap();
            let refused = house.begin(request).await.unwrap_err();
            assert_eq!(refused.code, code, "{name} {refused:?}");
            assert!(!refused.message.contains(name), "{refused:?}");
        }
    }
    // And it is on record, but not each of them.
    let query = || Query {
        action: Some("exec.refused".to_owned()),
        ..Query::default()
    };
    let mut found = vec![];
    while found.is_empty() {
        found = house.audit.query(query()).await.unwrap();
    }
    while house.exec.live().await > 0 {}
    let found = house.audit.query(query()).await.unwrap();
    assert!((1..5).contains(&found.len()), "{found:?}");
    house.end().await;
}

/// A command line that names a path, and its folder.
type Shape = fn(&str) -> (Vec<&str>, Option<&str>);

/// The bug: a root gateway told what lies in folders that are closed to the command's user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_closed_to_the_commands_user_is_told_apart_from_nothing_by_nobody() {
    if !rustix::process::geteuid().is_root() {
        // Its commands have its own user.
        return;
    }
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let closed = folders.path("closed");
    std::fs::create_dir(&closed).unwrap();
    for name in ["there", "folder/there"] {
        let path = closed.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let linked = folders.path("linked");
    std::os::unix::fs::symlink(closed.join("there"), &linked).unwrap();
    let back = folders.path("back");
    std::os::unix::fs::symlink("/usr/bin/true", closed.join("back")).unwrap();
    std::os::unix::fs::symlink(closed.join("back"), &back).unwrap();
    let state = folders.state.path();
    let paths = [
        closed.join("none"),
        closed.join("there"),
        closed.join("folder"),
        closed.join("folder/there"),
        closed.join("back"),
        linked,
        back,
        "/proc/1/exe".into(),
        state.join("state.db"),
        state.join("none"),
    ];
    let shapes: [Shape; 3] = [
        |path| (vec![path], None),
        |path| (vec!["sh", path], None),
        |path| (vec!["true"], Some(path)),
    ];
    for (n, shape) in shapes.into_iter().enumerate() {
        let mut seen = std::collections::BTreeSet::new();
        for path in &paths {
            let path = path.to_str().unwrap();
            let (argv, cwd) = shape(path);
            let mut request = house.request(Target::Host, &argv);
            request.cwd = cwd.map(str::to_owned);
            let refused = house.begin(request).await.unwrap_err();
            seen.insert((refused.code.name, refused.message.replace(path, "PATH")));
        }
        assert_eq!(seen.len(), 1, "{n}: {seen:?}");
    }
    house.end().await;
}
