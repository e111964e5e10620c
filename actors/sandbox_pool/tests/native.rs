//! The suite over bubblewrap.

use super::harness::{self, State};
use super::suite;
use crate::sandbox_pool::driver::{Driver, DriverError};
use crate::sandbox_pool::native::Native;
use crate::sandbox_pool::probe;

fn driver(state: &State) -> Driver {
    match Native::find(&state.context) {
        Ok(native) => Driver::Native(native),
        Err(error) => panic!("these tests need bubblewrap: apt-get install bubblewrap ({error})"),
    }
}

macro_rules! promises {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let state = State::new();
            suite::$name(&driver(&state), &state).await;
        }
    )*};
}

promises!(
    streams_and_codes,
    many_runs,
    walls,
    fork_bomb,
    memory,
    tree,
    stubborn,
    background,
    output,
    unread,
    hostile_peer,
    found_again,
    dead_man,
    redials,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_proves_walls() {
    let state = State::new();
    let driver = driver(&state);
    probe::prove(&driver, &state.context, true).await.unwrap();
    // It leaves nothing behind.
    assert!(
        std::fs::read_dir(&state.context.workspaces)
            .unwrap()
            .next()
            .is_none()
    );
    assert!(
        std::fs::read_dir(state.context.run_root.join("b"))
            .unwrap()
            .next()
            .is_none()
    );
}

/// The proof must be able to fail: a box that maps the host's uid 0, or one without a process limit, is refused by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_refuses_a_box_without_walls() {
    let mut state = State::new();
    state.context.uid = 0;
    assert!(matches!(
        Native::find(&state.context),
        Err(DriverError::NoDriver { .. })
    ));
}

/// No host uid 0 inside: the only uid that exists there is the box's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_namespace_maps_one_uid() {
    let state = State::new();
    let mut live = harness::Live::start(&driver(&state), state.spec("maps")).await;
    let uid = state.context.uid;
    for file in ["uid_map", "gid_map"] {
        let ended = live.run(&format!("cat /proc/self/{file}")).await;
        let numbers: Vec<u32> = ended
            .out
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        assert_eq!(numbers, [uid, uid, 1], "{ended:?}");
    }
    // From outside, too.
    let map = std::fs::read_to_string(format!("/proc/{}/uid_map", live.started.init_pid)).unwrap();
    let numbers: Vec<u32> = map
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    assert_eq!(numbers, [uid, uid, 1]);
    assert_ne!(live.run("unshare -U true").await.exit().code, Some(0));
    let listing = live.run("ls /; ls /etc").await.out;
    assert!(
        !listing.contains("root") && !listing.contains("shadow"),
        "{listing}"
    );
    live.stop().await;
}

/// A daemon that is not root: its boxes have its own uid and hold the same walls. No ceilings here: it owns no control group.
#[test]
fn a_daemon_of_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        // The tests above are this one.
        return;
    }
    let cell = harness::cell();
    let folder = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::set_permissions(folder.path(), open(0o777)).unwrap();
    let (program, own_cell) = (folder.path().join("tests"), folder.path().join("cell"));
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::copy(cell, &own_cell).unwrap();
    for path in [&program, &own_cell] {
        std::fs::set_permissions(path, open(0o755)).unwrap();
    }
    let names = [
        "walls",
        "tree",
        "output",
        "hostile_peer",
        "dead_man",
        "the_user_namespace_maps_one_uid",
    ];
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "64321", "--regid", "64321", "--clear-groups"])
        .arg(&program)
        .arg("--exact")
        .args(names.map(|name| format!("sandbox_pool::tests::native::{name}")))
        .env("PORTCULLIS_TEST_CELL", &own_cell)
        .env("TMPDIR", folder.path())
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains(&format!("{} passed", names.len())), "{said}");
}
