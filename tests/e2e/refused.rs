//! A start that is refused: what lies there is as it was, and what was put back serves.

use std::path::{Path, PathBuf};

use crate::support::gateway::Gateway;

use super::starts::{again, begun, below, copied, end, mode, used};

/// What a database of somebody else's left beside it.
fn foreign_log(home: &Path) -> Vec<u8> {
    let path = home.join("foreign.db");
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1);")
        .unwrap();
    let log = std::fs::read(home.join("foreign.db-wal")).unwrap();
    assert!(!log.is_empty());
    log
}

fn mode_of_file(path: &Path) {
    if path.exists() {
        mode(path, 0o600);
    }
}

/// The bug: a start that was refused had destroyed a key that lay there, and cut and written files of the log.
#[test]
fn a_start_that_is_refused_changes_nothing_of_the_state() {
    is_refused_and_changes_nothing(false);
}

/// The bugs: a write-ahead log that a kill left was moved into the file by a start that was then refused; one of another
/// database emptied the file.
#[test]
fn a_start_that_is_refused_after_a_kill_leaves_the_write_ahead_log() {
    is_refused_and_changes_nothing(true);
}

fn is_refused_and_changes_nothing(killed: bool) {
    let (gateway, kept) = used();
    let child = begun(&gateway).unwrap();
    gateway.vault_is_open();
    end(child);
    let old = below(&gateway.state());
    let state = gateway.state();
    // Of an epoch that is long over, and half a checkpoint: what a start mends that finds the log to be its own.
    let stray = Path::new("keys/audit-0000000000000002.key");
    let notes = Path::new("audit/checkpoints/0000000000000004");
    let segment = Path::new("audit/0000000000000001.log");
    let database = Path::new("state.db");
    let mut child = begun(&gateway).unwrap();
    gateway.json(&["agents", "token", "demo"]);
    if killed {
        child.kill().unwrap();
        child.wait().unwrap();
    } else {
        end(child);
    }
    std::fs::write(state.join(stray), &below(&kept)[stray]).unwrap();
    mode(&state.join(stray), 0o600);
    // A kill comes before these are written, or after.
    if let Ok(mut text) = std::fs::read(state.join(notes)) {
        text.extend_from_slice(b"half a no");
        std::fs::write(state.join(notes), text).unwrap();
    } else {
        assert!(killed);
    }
    drop(std::fs::remove_file(state.join("audit/first.pub")));
    let whole = gateway.home().join("whole");
    copied(&state, &whole);
    let new = below(&whole);
    let log = Path::new("state.db-wal");
    assert_eq!(new.get(log).is_some_and(|log| !log.is_empty()), killed);
    let mut altered = new[segment].clone();
    let at = altered.len() - 40;
    altered[at] ^= 1;
    let cut = new[segment][..old[segment].len()].to_vec();
    let foreign = foreign_log(gateway.home());
    let mut row = new[database].clone();
    // Within the name of a kind of rows.
    let kinds = [&b"agent"[..], b"auth.", b"vault", b"pairi", b"appro"];
    let text = row.windows(5).position(|text| kinds.contains(&text));
    row[text.expect("a row")] ^= 1;
    let is_key = |name: &&PathBuf| {
        let text = name.to_string_lossy();
        text.starts_with("keys/audit-") && text.ends_with(".key") && name.as_path() != stray
    };
    let last = new.keys().filter(is_key).max();
    let nothing = vec![];
    let journal = Path::new("state.db-journal");
    // As a first start has it for a moment: SQLite would make the file as long as it was then.
    let mut hot = vec![0; 512];
    let words = [0xd9d5_05f9, 0x20a1_63d7, 0, 7, 0, 512, 4096_u32];
    for (at, word) in words.into_iter().enumerate() {
        hot[4 * at..4 * at + 4].copy_from_slice(&word.to_be_bytes());
    }
    for (what, name, bytes) in [
        ("the last record is altered", segment, Some(&altered)),
        ("the log's end is cut off", segment, Some(&cut)),
        ("the log is gone", segment, None),
        ("a key is gone", last.unwrap(), None),
        ("the state is older", database, Some(&old[database])),
        ("a row is altered", database, Some(&row)),
        ("the database is gone", database, None),
        ("the database is empty", database, Some(&nothing)),
        ("the database is one byte", database, Some(&vec![0])),
        ("a journal is planted", journal, Some(&hot)),
        ("the database is none", database, Some(&vec![b'x'; 20_000])),
        ("the write-ahead log is another's", log, Some(&foreign)),
        ("the write-ahead log is gone", log, Some(&nothing)),
    ] {
        // Without a log there is none to take away; with one, the file under it is the older one.
        let no_change = bytes.is_some_and(|bytes| new.get(name).unwrap_or(&nothing) == bytes);
        // What stands newer in the log is not read in the file.
        if killed && bytes == Some(&row) {
            continue;
        }
        if no_change {
            assert_eq!(killed, name == database, "{what}");
            continue;
        }
        again(&gateway, &whole);
        let path = state.join(name);
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        mode_of_file(&path);
        let mut before = below(&state);
        let (_, text) = begun(&gateway).expect_err(what);
        let mut after = below(&state);
        // Opened, and not written to.
        for all in [&mut before, &mut after] {
            all.remove(Path::new("state.db-shm"));
        }
        if !before.contains_key(log) {
            assert!(after.remove(log).unwrap_or_default().is_empty(), "{what}");
        }
        let differ = |name: &&PathBuf| before.get(*name) != after.get(*name);
        // Who holds it, and sockets and programs for this run.
        let is_state = |name: &&PathBuf| !name.ends_with("lock") && !name.starts_with("run");
        let all = before.keys().chain(after.keys()).filter(is_state);
        let changed: Vec<_> = all.filter(differ).collect();
        assert!(changed.is_empty(), "{what}: {changed:?} changed\n{text}");
        // As the error says, or as whoever did that can: the right file is put back, beside whatever else is there now.
        match new.get(name) {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        mode_of_file(&path);
        end(begun(&gateway).unwrap_or_else(|said| panic!("{what}: {said:?}")));
    }
    again(&gateway, &whole);
    end(begun(&gateway).unwrap());
    assert!(!state.join(stray).exists());
    assert_eq!(
        gateway.json(&["audit", "verify", "--offline"])["intact"],
        true
    );
}

/// The bug: a byte changed behind what a start reads let the gateway serve, and then its audit room restarted, each time with a
/// mark in the log, until the gateway ended.
#[test]
fn an_altered_record_behind_the_start_is_named_and_nothing_is_done_until_it_is_put_back() {
    let mut gateway = Gateway::with(&[("audit.segment_bytes", "65536")]);
    let long = "x".repeat(20_000);
    // Before all that is altered: what says which vault must be here.
    gateway.vault_is_open();
    let size = |gateway: &Gateway| {
        let files = std::fs::read_dir(gateway.state().join("audit")).unwrap();
        let files = files.map(|file| file.unwrap());
        let logs = files.filter(|file| file.path().extension().is_some_and(|end| end == "log"));
        logs.map(|log| log.metadata().unwrap().len()).sum::<u64>()
    };
    while size(&gateway) < 200_000 {
        let run = gateway.cli(&["exec", "--agent", "demo", "--", "true", &long]);
        let text = String::from_utf8(run.stderr).unwrap();
        assert!(run.status.success(), "{text}");
    }
    assert_eq!(gateway.stop(), 0);
    let first = gateway.state().join("audit/0000000000000001.log");
    let whole = std::fs::read(&first).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&first, &bytes).unwrap();
    gateway.launch();
    let served = size(&gateway);
    for _ in 0..3 {
        let run = gateway.cli(&["exec", "--agent", "demo", "--", "true"]);
        let text = String::from_utf8(run.stderr).unwrap();
        assert!(
            !run.status.success() && text.contains("AUDIT_ALTERED"),
            "{text}"
        );
        assert!(text.contains("segment 1, byte "), "{text}");
    }
    let status = gateway.cli(&["status"]);
    let text = String::from_utf8(status.stdout).unwrap();
    assert_eq!(status.status.code(), Some(8), "{text}");
    let line = text.lines().find(|line| line.starts_with("no record "));
    assert!(
        line.is_some_and(|line| line.contains("AUDIT_ALTERED: record ")),
        "{text}"
    );
    // What is known of the log goes on being proven; to read records of it is an act, which is recorded.
    assert!(gateway.cli(&["audit", "head"]).status.success());
    let tail = gateway.cli(&["audit", "tail", "-n", "3"]);
    assert_eq!(tail.status.code(), Some(10));
    assert_eq!(gateway.cli(&["audit", "verify"]).status.code(), Some(10));
    // The vault cannot know whether it is the right one, stays sealed, and takes nobody with it: it did, restart by restart.
    let began = std::time::Instant::now();
    loop {
        let vault = gateway.cli(&["vault", "status"]);
        let text = String::from_utf8_lossy(&vault.stdout).into_owned();
        if text.contains("sealed") {
            assert!(
                text.contains("AUDIT_ALTERED") || text.contains("altered"),
                "{text}"
            );
            break;
        }
        assert!(began.elapsed().as_secs() < 60, "{text}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let status = gateway.cli(&["status", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    let rooms = status["portcullis"]["rooms"].as_array().unwrap();
    for room in rooms {
        assert_eq!(room["restarts"], 0, "{room}");
    }
    assert_eq!(size(&gateway), served, "nothing is written behind it");
    gateway.stop();
    std::fs::write(&first, &whole).unwrap();
    gateway.launch();
    assert!(
        gateway
            .cli(&["exec", "--agent", "demo", "--", "true"])
            .status
            .success()
    );
    assert!(gateway.cli(&["audit", "verify"]).status.success());
}
