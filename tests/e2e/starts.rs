//! What a start refuses: with a stable code, a text, a next step, an exit code, and nothing lost.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use portcullis_core::audit::HEADER_BYTES;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::gateway::Gateway;
use crate::support::ws::{Connect, Device, by_token, join};

/// The refusal has this code and names the next step; returns its text.
fn refused(gateway: &Gateway, code: &str, exit: i32) -> String {
    let (got, stderr) = gateway.refused();
    assert!(
        stderr.contains(&format!("error[{code}]: ")) && stderr.contains("\nnext: "),
        "{stderr}"
    );
    assert_eq!(got, exit, "{stderr}");
    assert!(
        !stderr.contains("panicked") && !stderr.contains(crate::support::gateway::TOKEN),
        "{stderr}"
    );
    stderr
}

pub(super) fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
    let gateway = Gateway::start();
    let text = refused(&gateway, "STATE_LOCKED", 1);
    assert!(text.contains(&gateway.pid().to_string()), "{text}");
    by_token(&gateway, &[]).await;
}

/// The bug: the lock file was removed beside a running gateway, and a second one wrote into its state.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_refused_though_the_lock_file_was_removed_or_replaced() {
    let mut gateway = Gateway::start();
    let lock = gateway.state().join("lock");
    std::fs::remove_file(&lock).unwrap();
    refused(&gateway, "STATE_LOCKED", 1);
    std::fs::remove_file(&lock).unwrap();
    std::fs::write(&lock, "1\n").unwrap();
    mode(&lock, 0o600);
    refused(&gateway, "STATE_LOCKED", 1);
    by_token(&gateway, &[]).await;
    gateway.kill();
    gateway.launch();
}

#[test]
fn a_state_folder_that_others_can_reach_is_refused_with_its_chmod() {
    let mut gateway = Gateway::prepared(&[]);
    mode(&gateway.state(), 0o755);
    let text = refused(&gateway, "STATE_MODE", 4);
    assert!(
        text.contains(&format!("chmod 700 {}", gateway.state().display())),
        "{text}"
    );
    mode(&gateway.state(), 0o700);
    gateway.launch();
    gateway.stop();
    mode(&gateway.state().join("audit"), 0o770);
    let text = refused(&gateway, "STATE_MODE", 4);
    assert!(
        text.contains(&format!(
            "chmod 700 {}",
            gateway.state().join("audit").display()
        )),
        "{text}"
    );
}

#[test]
fn a_loose_database_or_identity_is_refused_with_its_chmod() {
    let mut gateway = Gateway::start();
    assert_eq!(gateway.stop(), 0);
    mode(&gateway.state().join("state.db"), 0o644);
    let text = refused(&gateway, "STATE_MODE", 4);
    assert!(text.contains("chmod 600"), "{text}");
    mode(&gateway.state().join("state.db"), 0o600);
    mode(&gateway.identity(), 0o640);
    let text = refused(&gateway, "STATE_MODE", 4);
    assert!(text.contains("chmod 600"), "{text}");
    mode(&gateway.identity(), 0o600);
    gateway.launch();
}

#[test]
fn every_error_of_a_broken_config_is_named_with_line_column_and_nearest_key() {
    let gateway = Gateway::prepared(&[]);
    let file = gateway.state().join("config.toml");
    std::fs::write(
        &file,
        "[gateway]\nprot = 1\nbind = 7\n\n[vautl]\nx = 1\n\n[pairing]\npending_max = \"many\"\n",
    )
    .unwrap();
    mode(&file, 0o600);
    let text = refused(&gateway, "CONFIG_INVALID", 2);
    for part in [
        "config.toml:2:1",
        "gateway.port?",
        "config.toml:3:8",
        "config.toml:5:2",
        "vault",
        "config.toml:9:15",
        "pending_max",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

#[test]
fn a_variable_that_names_no_setting_is_refused() {
    let gateway = Gateway::prepared(&[("gateway.limits.handshake_sm", "5")]);
    let text = refused(&gateway, "CONFIG_INVALID", 2);
    assert!(text.contains("handshake_ms"), "{text}");
}

#[test]
fn an_identity_inside_the_state_is_refused() {
    let gateway = Gateway::prepared(&[]);
    let inside = gateway.state().join("identity.key");
    let output = gateway
        .daemon()
        .env("PORTCULLIS_IDENTITY_FILE", &inside)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("error[IDENTITY_INVALID]: ") && text.contains("inside the state directory"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(4));
    assert!(!inside.exists());
}

#[test]
fn another_identity_opens_nothing() {
    let mut gateway = Gateway::start();
    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"value"), 0);
    gateway.stop();
    let kept = std::fs::read(gateway.identity()).unwrap();
    std::fs::remove_file(gateway.identity()).unwrap();
    let text = refused(&gateway, "IDENTITY_MISMATCH", 4);
    assert!(text.contains("--identity"), "{text}");
    // The right one back in its place: nothing was lost by the try.
    std::fs::write(gateway.identity(), kept).unwrap();
    mode(&gateway.identity(), 0o600);
    gateway.launch();
    gateway.vault_is_open();
    let listed = gateway.json(&["vault", "list"]);
    assert_eq!(listed["entries"][0]["name"], "KEY", "{listed}");
}

#[test]
fn a_port_in_use_is_named() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = Gateway::prepared(&[]);
    let port = other.local_addr().unwrap().port().to_string();
    let mut daemon = gateway.command(&["gateway", "--port", &port]);
    let output = daemon.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("error[PORT_IN_USE]: ") && text.contains(&port),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_altered_byte_of_the_log_refuses_the_start_and_no_byte_more_is_written() {
    let mut gateway = Gateway::start();
    gateway.vault_is_open();
    gateway.kill();
    let file = gateway.audit_segment();
    let good = std::fs::read(&file).unwrap();
    for at in [100, good.len() / 2, good.len() - 33] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        refused(&gateway, "AUDIT_ALTERED", 10);
        assert_eq!(
            std::fs::read(&file).unwrap(),
            bytes,
            "evidence is kept as it is"
        );
        assert_eq!(
            gateway.cli(&["audit", "verify", "--offline"]).status.code(),
            Some(10)
        );
    }
    std::fs::write(&file, good).unwrap();
    gateway.launch();
}

#[test]
fn a_torn_end_of_the_log_is_cut_recorded_and_serves() {
    let mut gateway = Gateway::start();
    gateway.kill();
    let file = gateway.audit_segment();
    // The beginning of a record, as a power cut leaves it.
    let good = std::fs::read(&file).unwrap();
    let mut torn = std::fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .unwrap();
    torn.write_all(&good[HEADER_BYTES..HEADER_BYTES + 7])
        .unwrap();
    drop(torn);
    gateway.launch();
    let tail = gateway.json(&["audit", "tail", "-n", "100"]);
    let told = tail["records"]
        .as_array()
        .unwrap()
        .iter()
        .find(|record| record["kind"] == "recovered");
    let told = told.unwrap_or_else(|| panic!("{tail}"));
    assert_eq!(
        (&told["bytes"], &told["offset"]),
        (&json!(7), &json!(good.len()))
    );
    assert_eq!(gateway.json(&["audit", "verify"])["intact"], true);
}

#[test]
fn a_database_that_another_process_holds_is_told_as_locked() {
    let mut gateway = Gateway::start();
    gateway.stop();
    let db = rusqlite::Connection::open(gateway.state().join("state.db")).unwrap();
    db.execute_batch("PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE;")
        .unwrap();
    refused(&gateway, "STATE_LOCKED", 1);
    drop(db);
    gateway.launch();
}

#[test]
fn a_database_that_is_none_is_told_as_corrupt() {
    let mut gateway = Gateway::start();
    gateway.stop();
    let file = gateway.state().join("state.db");
    std::fs::write(&file, vec![b'x'; 20_000]).unwrap();
    refused(&gateway, "STATE_CORRUPT", 10);
    assert_eq!(std::fs::read(&file).unwrap(), vec![b'x'; 20_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_older_than_the_state_is_refused() {
    let mut gateway = Gateway::start();
    gateway.kill();
    let old = std::fs::read(gateway.audit_segment()).unwrap();
    gateway.launch();
    join(
        &gateway,
        &Connect::token()
            .scopes(&["operator.read"])
            .device(&Device::new()),
    )
    .await;
    gateway.kill();
    let new = std::fs::read(gateway.audit_segment()).unwrap();
    assert!(new.starts_with(&old) && new.len() > old.len());
    std::fs::write(gateway.audit_segment(), &old).unwrap();
    refused(&gateway, "STATE_CORRUPT", 10);
    // And again: what the refused start wrote to the log does not make up for it.
    refused(&gateway, "STATE_CORRUPT", 10);
}

/// The bug: who took away what SQLite had not moved into its file yet, or put an older file back, undid what was revoked, and
/// the log that said so was intact.
#[test]
fn a_state_older_than_the_log_says_is_refused_and_what_was_revoked_stays_so() {
    let mut gateway = Gateway::start();
    let (file, wal) = (
        gateway.state().join("state.db"),
        gateway.state().join("state.db-wal"),
    );
    gateway.json(&["agents", "token", "demo"]);
    gateway.stop();
    let old = std::fs::read(&file).unwrap();
    gateway.launch();
    gateway.json(&["agents", "revoke", "demo"]);
    gateway.kill();
    let new = std::fs::read(&wal).unwrap();
    assert!(!new.is_empty());
    std::fs::remove_file(&wal).unwrap();
    let text = refused(&gateway, "STATE_CORRUPT", 10);
    assert!(text.contains("state.db-wal"), "{text}");
    std::fs::write(&file, &old).unwrap();
    refused(&gateway, "STATE_CORRUPT", 10);
    // A state that begins anew is none of this log either.
    std::fs::remove_file(&file).unwrap();
    refused(&gateway, "STATE_CORRUPT", 10);
    // What was taken away, put back: nothing is lost.
    for beside in ["state.db-wal", "state.db-shm"] {
        // Left by who was refused, or not there.
        drop(std::fs::remove_file(gateway.state().join(beside)));
    }
    std::fs::write(&file, &old).unwrap();
    std::fs::write(&wal, &new).unwrap();
    for file in [&file, &wal] {
        mode(file, 0o600);
    }
    gateway.launch();
    assert_eq!(gateway.json(&["agents", "list"])["agents"], json!([]));
    gateway.stop();
    // Both of before the revocation, together, and the keys as they are.
    gateway.launch();
    gateway.json(&["agents", "token", "demo"]);
    gateway.kill();
    let early = gateway.home().join("early");
    let both = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for name in ["state.db", "state.db-wal", "state.db-shm", "audit"] {
            let to = to.join(name);
            drop(std::fs::remove_dir_all(&to));
            drop(std::fs::remove_file(&to));
            let copied = std::process::Command::new("cp")
                .arg("-a")
                .args([from.join(name), to])
                .output();
            assert!(copied.unwrap().status.success(), "{name}");
        }
    };
    both(&gateway.state(), &early);
    let late = gateway.home().join("late");
    gateway.launch();
    gateway.json(&["agents", "revoke", "demo"]);
    gateway.kill();
    both(&gateway.state(), &late);
    both(&early, &gateway.state());
    refused(&gateway, "AUDIT_KEY_MISMATCH", 10);
    both(&late, &gateway.state());
    gateway.launch();
    assert_eq!(gateway.json(&["agents", "list"])["agents"], json!([]));
    gateway.stop();
    // The row alone, whole as it was.
    let db = rusqlite::Connection::open(&file).unwrap();
    let copy = gateway.home().join("copy.db");
    std::fs::write(&copy, &old).unwrap();
    db.execute_batch(&format!("ATTACH '{}' AS old", copy.display()))
        .unwrap();
    let rows = "INSERT OR REPLACE INTO object SELECT * FROM old.object WHERE kind = 'auth.agent'";
    assert!(db.execute(rows, []).unwrap() > 0);
    drop(db);
    let text = refused(&gateway, "STATE_ROW_ALTERED", 10);
    assert!(text.contains("put back"), "{text}");
}

#[test]
fn a_stop_is_in_order_and_says_so_in_the_log() {
    let mut gateway = Gateway::start();
    assert_eq!(gateway.stop(), 0);
    let log = gateway.log();
    assert!(
        log.contains("gateway stops") && !log.contains("ERROR"),
        "{log}"
    );
    let report = gateway.json(&["audit", "verify", "--offline"]);
    assert_eq!(report["intact"], json!(true));
}

#[test]
fn without_room_for_a_socket_path_the_gateway_still_serves() {
    let mut gateway = Gateway::prepared(&[]);
    let deep = gateway.home().join("d".repeat(100)).join("e".repeat(100));
    gateway.set("PORTCULLIS_STATE_DIR", deep.to_str().unwrap());
    gateway.launch();
    let output = gateway
        .command(&["status", "--state", deep.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A file system of so many KiB, gone when dropped.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn on(place: &'a Path, kib: u32) -> Self {
        let size = format!("size={kib}k,mode=0700");
        let mount = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        let mut command = std::process::Command::new("mount");
        assert!(command.args(mount).arg(place).status().unwrap().success());
        Self(place)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0).status();
    }
}

/// The bug: a full disk at the start was told as a file that others can reach.
#[test]
fn a_full_disk_at_the_start_is_told_as_that_and_room_mends_it() {
    assert!(
        rustix::process::geteuid().is_root(),
        "mounting needs root, as the tests do"
    );
    let mut gateway = Gateway::prepared(&[]);
    let state = gateway.state();
    let small = Small::on(&state, 4);
    let text = refused(&gateway, "DISK_FULL", 8);
    assert!(text.contains("free disk space"), "{text}");
    drop(small);
    gateway.launch();
    assert_eq!(gateway.stop(), 0);
}

/// The bug: until the driver was found, which an engine that does not answer delays, a signal killed without the stop in order.
#[test]
fn a_signal_while_the_driver_is_being_tried_ends_in_order() {
    let mut gateway = Gateway::prepared(&[]).by_up();
    let socket = gateway.home().join("engine.sock");
    // It takes connections into its queue and never answers.
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    gateway.set("sandbox.driver", "docker");
    gateway.set("sandbox.engine", &format!("unix://{}", socket.display()));
    gateway.launch();
    assert!(!gateway.said().contains("sandbox "), "{}", gateway.said());
    assert_eq!(gateway.stop(), 0);
    let log = gateway.log();
    assert!(log.contains("gateway stops"), "{log}");
}

#[test]
fn the_first_lines_count_what_is_pending() {
    let mut gateway = Gateway::prepared(&[]).by_up();
    gateway.launch();
    let until = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while !gateway.said().contains("\ntry ") {
        assert!(std::time::Instant::now() < until, "{}", gateway.said());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pending =
        "pending   0 devices (portcullis devices list), 0 approvals (portcullis approvals list)\n";
    assert!(gateway.said().contains(pending), "{}", gateway.said());
}

/// How large a file the running daemon may write.
fn file_size(gateway: &Gateway, bytes: Option<u64>) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(gateway.pid()).unwrap());
    let limit = rustix::process::Rlimit {
        current: bytes,
        maximum: None,
    };
    rustix::process::prlimit(pid, rustix::process::Resource::Fsize, limit).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_altered_while_the_gateway_runs_ends_the_process_with_70_and_the_next_start_names_the_record()
 {
    let mut gateway = Gateway::prepared(&[]);
    // Without the signal a write over the limit is an error, as on a full disk.
    let started = gateway.launch_under(&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
    assert_eq!(started, Ok(()));
    let mut admin = crate::support::ws::admin(&gateway).await;
    let set = |name: &str| json!({ "name": name, "valueBase64": "eA==" });
    admin.get("vault.set", set("BEFORE")).await;

    file_size(&gateway, Some(0));
    let full = admin.call("vault.set", set("FULL")).await;
    let code = &full["error"]["details"]["code"];
    assert!(code == "CANNOT_RECORD" || code == "DISK_FULL", "{full}");
    // Meanwhile somebody changes what was recorded.
    let segment = gateway.audit_segment();
    let good = std::fs::read(&segment).unwrap();
    let mut bad = good.clone();
    bad[HEADER_BYTES + 60] ^= 1;
    std::fs::write(&segment, &bad).unwrap();
    file_size(&gateway, None);

    // The log mends itself by reading what is there, and that is not what was written.
    for _ in 0..100 {
        let Some(answer) = admin.try_call("vault.set", set("AFTER")).await else {
            break;
        };
        assert_eq!(answer["ok"], false, "{answer}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let ended = gateway.ends(std::time::Duration::from_mins(1));
    assert_eq!(ended, Some(70), "{}", gateway.log());
    assert!(
        gateway.log().contains("AUDIT_ALTERED") && gateway.log().contains("the process ends"),
        "{}",
        gateway.log()
    );
    let text = refused(&gateway, "AUDIT_ALTERED", 10);
    assert!(text.contains("record 1 "), "{text}");

    std::fs::write(&segment, &good).unwrap();
    gateway.launch();
    let mut admin = crate::support::ws::admin(&gateway).await;
    let names = admin.get("vault.list", json!({})).await.to_string();
    assert!(
        names.contains("BEFORE") && !names.contains("FULL") && !names.contains("AFTER"),
        "{names}"
    );
}

/// Nobody waits longer for a start, on a machine that builds something else.
const SECONDS: Duration = Duration::from_secs(20);

/// All files below a folder, by their names from there.
pub(super) fn below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            let name = entry.path().strip_prefix(folder).unwrap().to_owned();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.insert(name, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

pub(super) fn copied(from: &Path, to: &Path) {
    let mut command = std::process::Command::new("cp");
    assert!(
        command
            .arg("-a")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
}

/// A state that has been used and was left in order, without a token of somebody's own; with a sink. And a copy of it.
pub(super) fn used() -> (Gateway, PathBuf) {
    let mut gateway = Gateway::prepared(&[
        ("audit.sinks.out.kind", "file"),
        ("gateway.tls.enabled", "true"),
    ]);
    gateway.unset("PORTCULLIS_GATEWAY_TOKEN");
    let out = gateway.home().join("out.jsonl");
    gateway.set("audit.sinks.out.path", out.to_str().unwrap());
    for _ in 0..2 {
        let child = begun(&gateway).unwrap();
        gateway.vault_is_open();
        end(child);
    }
    let kept = gateway.home().join("kept");
    copied(&gateway.state(), &kept);
    (gateway, kept)
}

/// A start that serves or ends, within seconds: its process, or its exit code and what it said.
pub(super) fn begun(gateway: &Gateway) -> Result<Child, (i32, String)> {
    let mut child = gateway.daemon().spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more: it serves.
        lines
            .map_while(Result::ok)
            .try_for_each(|line| tell.send(line))
    });
    let (end, mut said) = (Instant::now() + SECONDS, String::new());
    loop {
        match told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains("gateway serves address=") => return Ok(child),
            Ok(line) => said = said + &line + "\n",
            Err(RecvTimeoutError::Disconnected) => {
                return Err((child.wait().unwrap().code().unwrap_or(-1), said));
            }
            Err(RecvTimeoutError::Timeout) => {
                child.kill().unwrap();
                panic!("it neither serves nor ends:\n{said}");
            }
        }
    }
}

pub(super) fn end(mut child: Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

pub(super) fn again(gateway: &Gateway, kept: &Path) {
    std::fs::remove_dir_all(gateway.state()).unwrap();
    copied(kept, &gateway.state());
}

fn put(what: &str, path: &Path, aside: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    if path.symlink_metadata().is_ok() {
        std::fs::rename(path, aside).unwrap();
    } else {
        std::fs::write(aside, "").unwrap();
        mode(aside, 0o600);
    }
    match what {
        "pipe" => mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
        "folder" => std::fs::create_dir(path).unwrap(),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        _ => std::os::unix::fs::symlink(aside, path).unwrap(),
    }
}

/// The bug: a pipe in the place of a file kept a start waiting without end, and a link there was followed.
#[test]
fn what_is_no_file_in_the_place_of_one_is_named_by_a_start_within_seconds() {
    let (mut gateway, kept) = used();
    let outside = ["identity.key", "token", "machine-id"].map(|name| gateway.home().join(name));
    let [_, token, machine] = &outside;
    copied(Path::new("/etc/machine-id"), machine);
    std::fs::write(token, crate::support::gateway::TOKEN).unwrap();
    mode(token, 0o600);
    gateway.set("vault.machine_id_file", machine.to_str().unwrap());
    // Not there now, and read where they are.
    let others = [
        "audit/retired",
        "audit/retired.new",
        "audit/tile/0/000",
        "keys/tls.part",
        "state.db-wal",
        "state.db-shm",
        "state.db-journal",
    ];
    let mut paths: Vec<PathBuf> = below(&kept).into_keys().collect();
    // Made for boxes, and not read back.
    paths.retain(|name| !name.starts_with("run/etc"));
    paths.extend(others.map(PathBuf::from));
    let paths = paths.iter().map(|name| gateway.state().join(name));
    let paths: Vec<PathBuf> = paths.chain(outside.clone()).collect();
    assert!(paths.len() > 20, "{paths:?}");
    // Instead of these a start makes another, or goes on without.
    let may_go_on = [
        "audit/first.pub",
        "audit/retired.new",
        "audit/tile",
        "keys/tls.crt",
        "keys/tls.part",
        "run",
        "sinks/out",
    ]
    .map(|name| gateway.state().join(name));
    for path in paths {
        for what in ["pipe", "folder", "socket", "symbolic link"] {
            // Who places a file outside of the state may do so by a link.
            if what == "symbolic link" && outside[1..].contains(&path) {
                continue;
            }
            gateway.unset("gateway.auth.token_file");
            if path == *token {
                gateway.set("gateway.auth.token_file", token.to_str().unwrap());
            }
            let aside = gateway.home().join("aside");
            put(what, &path, &aside);
            match begun(&gateway) {
                Ok(child) => {
                    let may = may_go_on.iter().any(|may| path.starts_with(may));
                    assert!(may || path == *machine, "a {what} at {}", path.display());
                    end(child);
                }
                Err((code, text)) => {
                    let named = format!("{} is a {what} in the place of a file", path.display());
                    assert!(text.contains(&named), "{text}");
                    let (_, told) = text.split_once("error[").unwrap();
                    let (name, _) = told.split_once("]: ").unwrap();
                    let found = portcullis_core::codes::find(name).unwrap();
                    assert_eq!(code, i32::from(found.exit), "{text}");
                    assert!(text.contains("\nnext: "), "{text}");
                }
            }
            if outside.contains(&path) {
                if what == "folder" {
                    std::fs::remove_dir(&path).unwrap();
                }
                std::fs::rename(&aside, &path).unwrap();
            }
            again(&gateway, &kept);
        }
    }
    end(begun(&gateway).unwrap());
}

/// The bug: a link in the place of a folder of the state led what is written to wherever it pointed.
#[test]
fn a_link_in_the_place_of_a_folder_of_the_state_is_refused_by_its_name() {
    let (gateway, _) = used();
    for name in [
        "audit",
        "audit/checkpoints",
        "audit/tile",
        "keys",
        "run",
        "sinks",
        "workspaces",
    ] {
        let (path, aside) = (gateway.state().join(name), gateway.home().join("aside"));
        put("symbolic link", &path, &aside);
        let (_, text) = begun(&gateway).expect_err(name);
        let told = format!("{} is ", path.display());
        assert!(text.contains(&told) && text.contains("\nnext: "), "{text}");
        assert!(
            text.contains("error[STATE_MODE]") || text.contains("error[AUDIT_UNREADABLE]"),
            "{text}"
        );
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }
    end(begun(&gateway).unwrap());
}
