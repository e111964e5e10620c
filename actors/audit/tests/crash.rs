//! kill -9, a full disk, the n-th failing write and sync.

use super::*;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// What each record of the log says its number is.
fn numbers(dir: &Path) -> BTreeMap<u64, String> {
    tail_dir(dir, usize::MAX)
        .unwrap()
        .into_iter()
        .filter_map(|record| match record.body {
            Body::Event(entry) => Some((record.seq.0, entry.detail["n"].clone())),
            _ => None,
        })
        .collect()
}

/// The acknowledgements among a child's lines.
fn acknowledged(lines: &[String]) -> Vec<(u64, String)> {
    lines
        .iter()
        .filter_map(|line| {
            let (seq, n) = line.split_once(' ')?;
            Some((seq.parse().ok()?, n.to_owned()))
        })
        .collect()
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let rounds = std::env::var("PORTCULLIS_ROUNDS").ok();
    let usual = match std::env::var_os("PORTCULLIS_LONG") {
        Some(_) => 200,
        None => 20,
    };
    let rounds: u64 = rounds.and_then(|n| n.parse().ok()).unwrap_or(usual);
    let mut place = Place::new();
    let (mut acked_in_all, mut torn, mut seed) = (0, 0, 0x9e37_79b9_u64);
    for round in 0..rounds {
        if round % 25 == 24 {
            place = Place::new();
        }
        let mut child = super::child::start(&place.dir, "hammer");
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let lines = super::child::lines(&mut child);
        // Reads on while it runs, so that the pipe never stops it; the rest after its death.
        let reader = std::thread::spawn(move || lines.collect::<Vec<_>>());
        std::thread::sleep(Duration::from_micros(15_000 + (seed >> 40) % 150_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let lines = reader.join().unwrap();
        let acked = acknowledged(&lines);
        let report = verify_dir(&place.dir);
        let Ok(report) = report else {
            assert!(acked.is_empty(), "killed before there was a directory");
            continue;
        };
        assert!(report.intact, "round {round}: {:?}", report.first_break);
        torn += u64::from(report.torn.is_some());
        let found = numbers(&place.dir);
        for (seq, n) in &acked {
            assert_eq!(
                found.get(seq),
                Some(n),
                "round {round}: record {seq} was acknowledged"
            );
        }
        acked_in_all += acked.len();
    }
    eprintln!("kill -9: {rounds} rounds, {acked_in_all} acknowledged, 0 lost, {torn} torn ends");
    assert!(acked_in_all > 0);
    place.open(1).close();
    intact(&place.dir);
}

/// A small file system of its own; unmounted on drop.
struct Tmpfs(PathBuf, tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let option = format!("size={size},mode=0700");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "none"])
            .arg(&path)
            .output();
        mount
            .is_ok_and(|out| out.status.success())
            .then_some(Self(path, folder))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = &self.1;
    }
}

#[test]
fn a_full_disk_refuses_by_name_and_room_brings_the_log_back_with_its_gap() {
    let Some(disk) = Tmpfs::new("192k") else {
        eprintln!("NOT RUN: a full disk needs the right to mount a tmpfs (run the tests as root)");
        return;
    };
    let dir = disk.0.join("audit");
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![1; 64 * 1024]).unwrap();
    let log = try_open(&dir, 1, AuditConfig::default()).unwrap();
    let mut acked = BTreeMap::new();
    let refused = loop {
        let n = acked.len() as u64;
        match log.append(event(n)) {
            Ok(seq) => acked.insert(seq.0, n.to_string()),
            Err(error) => break error,
        };
    };
    assert_eq!(refused, AuditError::DiskFull);
    assert!(acked.len() > 100);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(210));
        assert_eq!(log.append(event(0)), Err(AuditError::DiskFull));
    }
    assert_eq!(log.writer.status().broken, Some(AuditError::DiskFull));
    intact(&dir);
    std::fs::remove_file(&ballast).unwrap();
    let began = Instant::now();
    let seq = loop {
        match log.append(event(7_777)) {
            Ok(seq) => break seq,
            Err(error) => assert_eq!(error, AuditError::DiskFull),
        }
        std::thread::sleep(Duration::from_millis(5));
        assert!(began.elapsed() < Duration::from_secs(2));
    };
    assert_eq!(log.writer.status().broken, None);
    acked.insert(seq.0, "7777".into());
    log.close();
    intact(&dir);
    assert_eq!(
        numbers(&dir),
        acked,
        "what was acknowledged, and nothing that was refused"
    );
    let records = tail_dir(&dir, usize::MAX).unwrap();
    let gap = records.iter().find_map(|record| match &record.body {
        Body::Gap { count, reason, .. } => Some((*count, reason.clone())),
        _ => None,
    });
    assert!(gap.is_some_and(|(count, reason)| count >= 4 && reason == "DISK_FULL"));
}

#[test]
fn a_log_altered_while_it_could_not_be_written_ends_its_writer() {
    let Some(disk) = Tmpfs::new("128k") else {
        eprintln!("NOT RUN: a full disk needs the right to mount a tmpfs (run the tests as root)");
        return;
    };
    let dir = disk.0.join("audit");
    let log = try_open(&dir, 1, AuditConfig::default()).unwrap();
    while log.append(event(0)).is_ok() {}
    let path = dir.join("0000000000000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1_000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    std::thread::sleep(Duration::from_millis(210));
    assert_eq!(log.append(event(0)).unwrap_err().code(), "AUDIT_ALTERED");
    // The thread is gone (or going): the room would crash, restart, and refuse to start.
    let began = Instant::now();
    loop {
        let (tx, _rx) = oneshot::channel();
        let job = Job::Append(Box::new(event(0)), Answer::Own(tx));
        if matches!(log.writer.submit(job), Err(NotTaken::Gone)) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(2));
    }
    let error = try_open(&dir, 1, AuditConfig::default()).err().unwrap();
    assert_eq!(error.code(), "AUDIT_ALTERED");
}

/// One run of the child with calls failing: (call, error, which). What it said.
fn with_faults(dir: &Path, faults: &[(&str, &str, u32)]) -> Vec<String> {
    let path = dir.join("0000000000000001.log").display().to_string();
    let mut wrap: Vec<String> = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", &path]
        .map(str::to_owned)
        .into();
    let calls: Vec<&str> = faults.iter().map(|(call, ..)| *call).collect();
    wrap.extend(["-e".into(), format!("trace={}", calls.join(","))]);
    for (call, error, nth) in faults {
        let inject = format!("inject={call}:error={error}:when={nth}");
        wrap.extend(["-e".into(), inject]);
    }
    let wrap: Vec<&str> = wrap.iter().map(String::as_str).collect();
    loop {
        let mut child = super::child::command(dir, "steps", &wrap).spawn().unwrap();
        let lines: Vec<String> = super::child::lines(&mut child).collect();
        child.wait().unwrap();
        // Another test's child has our lock's descriptor between its fork and its exec.
        let is_locked = |line: &String| line.starts_with("open STATE_LOCKED");
        if !lines.first().is_some_and(is_locked) {
            return lines;
        }
    }
}

fn has_strace() -> bool {
    let has = Command::new("strace").arg("-V").output().is_ok();
    if !has {
        eprintln!("NOT RUN: failing writes and syncs need strace (apt-get install strace)");
    }
    has
}

#[test]
fn a_failure_while_mending_is_no_acknowledgement_either() {
    if !has_strace() {
        return;
    }
    for (call, nth) in [
        ("ftruncate", 1),
        ("ftruncate", 2),
        ("fsync", 1),
        ("fdatasync", 5),
        ("openat", 4),
        ("openat", 5),
    ] {
        for first in ["write", "fdatasync"] {
            if call == first {
                continue;
            }
            let place = Place::new();
            place.open(1).close();
            let lines = with_faults(&place.dir, &[(first, "EIO", 4), (call, "EIO", nth)]);
            let refused = lines
                .iter()
                .filter(|line| line.starts_with("refused"))
                .count();
            let acked: BTreeMap<u64, String> = acknowledged(&lines).into_iter().collect();
            assert_eq!(refused + acked.len(), 8, "{first} {call}: {lines:?}");
            assert!((1..=3).contains(&refused), "{first} {call}: {lines:?}");
            assert!(
                lines.last().is_some_and(|line| line == "closed"),
                "{first} {call}: {lines:?}"
            );
            intact(&place.dir);
            assert_eq!(numbers(&place.dir), acked, "{first} {call}: {lines:?}");
            let gaps = place
                .records()
                .into_iter()
                .filter_map(|record| match record.body {
                    Body::Gap { count, .. } => Some(count),
                    _ => None,
                });
            assert_eq!(
                gaps.sum::<u64>(),
                refused as u64,
                "{first} {call}: {lines:?}"
            );
        }
    }
}

#[test]
fn the_nth_failing_write_or_sync_is_never_acknowledged_for_every_n() {
    if !has_strace() {
        return;
    }
    for (call, error, code) in [
        ("write", "ENOSPC", "DISK_FULL"),
        ("write", "EIO", "CANNOT_RECORD"),
        ("fdatasync", "EIO", "CANNOT_RECORD"),
    ] {
        let (mut nth, mut failed) = (1, 0);
        loop {
            let place = Place::new();
            place.open(1).close();
            let lines = with_faults(&place.dir, &[(call, error, nth)]);
            let refused: Vec<&String> = lines
                .iter()
                .filter(|line| line.starts_with("refused"))
                .collect();
            let opened = lines.first().is_some_and(|line| line == "open ok");
            let report = verify_dir(&place.dir).unwrap();
            assert!(report.intact, "{call} {nth}: {:?}", report.first_break);
            let found = numbers(&place.dir);
            let acked: BTreeMap<u64, String> = acknowledged(&lines).into_iter().collect();
            for (seq, n) in &acked {
                assert_eq!(found.get(seq), Some(n), "{call} {nth}: {lines:?}");
            }
            // What was refused for good is not there either: the file was cut back.
            assert_eq!(found.len(), acked.len(), "{call} {nth}: {lines:?}");
            if opened && refused.is_empty() && lines.last().is_some_and(|line| line == "closed") {
                break;
            }
            failed += 1;
            if opened {
                assert!(refused.iter().all(|line| line.ends_with(code)), "{lines:?}");
                // One failure refuses one record, or the stop mark; the next is recorded, with the gap before it.
                assert!(refused.len() <= 1, "{call} {nth}: {lines:?}");
                if !refused.is_empty() && acked.len() == 7 {
                    let records = place.records();
                    let gaps = records.iter().filter(|r| r.body.kind() == "gap").count();
                    assert!(
                        gaps == 1 || !lines.last().unwrap().starts_with('1'),
                        "{lines:?}"
                    );
                }
            }
            nth += 1;
            assert!(nth < 40, "{call}: never clean");
        }
        eprintln!("{call} {error}: {failed} faults in turn, none acknowledged");
        assert!(failed > 0, "{call}: nothing was hit");
    }
}
