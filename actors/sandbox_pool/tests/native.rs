//! The suite over bubblewrap.

use std::time::{Duration, Instant};

use super::harness::{self, State};
use crate::sandbox_pool::driver::{Driver, DriverError};
use crate::sandbox_pool::folders;
use crate::sandbox_pool::native::Native;
use crate::sandbox_pool::probe;

async fn driver(state: &State) -> Driver {
    match Native::find(&state.context).await {
        Ok(native) => Driver::Native(native),
        Err(error) => panic!("these tests need bubblewrap: apt-get install bubblewrap ({error})"),
    }
}

async fn held(state: &State) -> ((), Driver) {
    ((), driver(state).await)
}

promises!(held);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_proves_walls() {
    let state = State::new();
    let driver = driver(&state).await;
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
    let Ok(native) = Native::find(&state.context).await else {
        panic!("these tests need bubblewrap: apt-get install bubblewrap");
    };
    let open = Driver::Native(native.without_cgroups());
    let refused = probe::prove(&open, &state.context, true).await.unwrap_err();
    assert!(
        matches!(&refused, DriverError::NoDriver { reason, .. } if reason.contains("forks")),
        "{refused}"
    );
    state.context.uid = 0;
    assert!(matches!(
        Native::find(&state.context).await,
        Err(DriverError::NoDriver { .. })
    ));
}

/// No host uid 0 inside: the only uid that exists there is the box's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_namespace_maps_one_uid() {
    let state = State::new();
    let mut live = harness::Live::start(&driver(&state).await, state.spec("maps")).await;
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
        "stdin",
        "signals",
        "terminal",
        "the_user_namespace_maps_one_uid",
        "files_in_memory_have_a_number",
        "where_no_user_namespace_is_given_a_run_that_asks_for_a_terminal_is_refused",
        "a_cell_that_is_still_being_written_costs_a_gateway_without_root_no_stage",
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

/// The bug: a gateway that was killed before it had read bubblewrap's report left a box's init that waited for ever. What a kill closes is
/// closed here at many moments of a start; `PORTCULLIS_LONG` asks for a thousand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_ends_while_a_box_starts_leaves_no_process() {
    let rounds: u32 = if std::env::var_os("PORTCULLIS_LONG").is_some() {
        1000
    } else {
        60
    };
    let state = State::new();
    let native = Native::find(&state.context).await.unwrap();
    let mut nonces = Vec::new();
    for round in 0..rounds {
        let spec = state.spec("window");
        // The control folder without a socket: nobody listens any more.
        drop(folders::run_dir(&spec.run_dir, spec.gid).unwrap());
        let launched = native.launch(&spec).unwrap();
        // The whole of a start takes a few milliseconds.
        let moment = Duration::from_micros(u64::from(round % 30) * 200);
        tokio::time::sleep(moment).await;
        drop((launched.info, launched.block));
        drop(launched.child);
        nonces.push(spec.nonce);
    }
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let left: Vec<String> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let line = std::fs::read_to_string(path.join("cmdline")).ok()?;
                let ours = nonces.iter().any(|nonce| line.contains(nonce.as_str()));
                ours.then(|| format!("{}: {}", path.display(), line.replace('\0', " ")))
            })
            .collect();
        if left.is_empty() {
            return;
        }
        assert!(
            Instant::now() < until,
            "left: {} of {rounds}: {}",
            left.len(),
            left[0]
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The bug: a run set the limits of others in its box, and so ended them, or left pid 1 no descriptor for the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_sets_nobody_elses_resource_limits() {
    let state = State::new();
    let mut live = harness::Live::start(&driver(&state).await, state.spec("limits")).await;
    let ended = live.run("prlimit --pid 1 --nofile=3:3; sleep 60 & prlimit --pid $! --cpu=0:0; kill -0 $! && kill $!").await;
    assert_eq!(
        ended.err.matches("Operation not permitted").count(),
        2,
        "{ended:?}"
    );
    assert_eq!(ended.exit().code, Some(0), "{ended:?}");
    // Its own it may lower, and read.
    let ended = live
        .run("prlimit --nofile=20:20 sh -c 'ulimit -n'; ulimit -n 30; ulimit -n")
        .await;
    assert_eq!(ended.out, "20\n30\n", "{ended:?}");
    for _ in 0..3 {
        assert_eq!(live.run("true").await.exit().code, Some(0));
    }
    live.stop().await;
}

/// Inodes without bytes take a box's memory for good. A daemon that is not root bounds them too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_in_memory_have_a_number() {
    let state = State::new();
    let mut live = harness::Live::start(&driver(&state).await, state.spec("files")).await;
    let inodes = live.spec.limits.inodes();
    for folder in ["/tmp", "/dev/shm"] {
        let script = format!("df -P -i {folder} | tail -n 1 | tr -s ' ' | cut -d' ' -f2");
        let told = live.run(&script).await;
        assert_eq!(told.out.trim(), inodes.to_string(), "{folder}");
    }
    live.stop().await;
}

/// The bug: while another child of the gateway still held the new cell's file, its trial was refused as busy, and boxes had no terminals
/// and no limit on files in memory until the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_is_still_being_written_costs_a_gateway_without_root_no_stage() {
    let state = State::new();
    let mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&state.context.cell, mode).unwrap();
    };
    mode(0o755);
    let mut opened = std::fs::OpenOptions::new();
    let held = opened.append(true).open(&state.context.cell).unwrap();
    mode(0o555);
    let written = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(held);
    });
    let native = Native::find(&state.context).await.unwrap();
    assert_eq!(native.unstaged(), None);
    written.join().unwrap();
}

/// The bug: in a folder that was mounted to be written, a box made a program that ran as the gateway's user for whoever started it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_makes_no_program_that_runs_as_its_owner() {
    let state = State::new();
    let mut live = harness::Live::start(&driver(&state).await, state.spec("bits")).await;
    let script = "cp /bin/true a; for mode in 4755 2755 u+s g+s; do chmod $mode a && echo $mode; done; chmod 1755 a && echo sticky; \
                  mkdir d && chmod g+s d && echo folder; install -m 4755 /bin/true b 2> /dev/null; ls -l | cut -c1-10 | grep s";
    let ended = live.run(script).await;
    assert_eq!(ended.out, "sticky\n", "{ended:?}");
    assert!(ended.err.matches("not permitted").count() >= 5, "{ended:?}");
    live.stop().await;
}

/// Never silently without one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_user_namespace_is_given_a_run_that_asks_for_a_terminal_is_refused() {
    let state = State::new();
    let native = Native::find(&state.context).await.unwrap();
    assert_eq!(native.unstaged(), None);
    let native = native.unstaged_for_a_test();
    if rustix::process::geteuid().is_root() {
        // Root without its stage cannot show a box's user its folders.
        return;
    }
    let mut live = harness::Live::start(&Driver::Native(native), state.spec("bare")).await;
    let ended = live.run_with("echo ran", |spawn| {
        spawn.tty = Some(portcullis_cell::Size { rows: 24, cols: 80 });
        spawn.stdin = true;
    });
    let ended = ended.await;
    let said = (ended.exit().cause, ended.out.as_str());
    assert_eq!(said, (portcullis_cell::Cause::NoTerminal, ""));
    assert_eq!(live.run("echo ran").await.out, "ran\n");
    live.stop().await;
}

/// What a box may take of the disk, it takes by writing, so that it is seen; a file has its ceiling, `/tmp` is memory of the box.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_cannot_take_room_at_a_stroke() {
    let state = State::new();
    let mut live = harness::Live::start(&driver(&state).await, state.spec("room")).await;
    let ended = live
        .run("fallocate -l 64M /workspace/stroke; fallocate -x -l 1M /workspace/posix")
        .await;
    assert!(ended.err.contains("not supported"), "{ended:?}");
    let length =
        |name: &str| std::fs::metadata(live.spec.workspace.join(name)).map(|file| file.len());
    assert!(length("stroke").is_ok_and(|length| length == 0));
    // By the C library's own way, which writes.
    assert!(length("posix").is_ok_and(|length| length == 1 << 20));
    let ended = live
        .run_with("cat /dev/zero > /workspace/big", |spawn| {
            spawn.file_bytes = 8 << 20;
        })
        .await;
    assert_ne!(ended.exit().code, Some(0), "{ended:?}");
    let length = std::fs::metadata(live.spec.workspace.join("big"))
        .unwrap()
        .len();
    assert_eq!(length, 8 << 20);
    let kilobytes: u64 = live
        .run("df -P -k /tmp | tail -n 1 | tr -s ' ' | cut -d' ' -f2")
        .await
        .out
        .trim()
        .parse()
        .unwrap();
    assert!(
        kilobytes << 10 <= state.context.limits.memory_bytes / 2,
        "{kilobytes}"
    );
    live.stop().await;
}
