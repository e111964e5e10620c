//! Opening, appending, rotating, closing; torn, altered, locked; keys.

use super::*;
use portcullis_core::audit::{HEADER_BYTES, OutcomeResult};
use std::os::unix::fs::PermissionsExt as _;

#[test]
fn what_was_acknowledged_is_there_in_order_and_verifies() {
    let place = Place::new();
    let log = place.open(1);
    let waits: Vec<_> = (0..500).map(|n| log.send(event(n))).collect();
    let seqs: Vec<u64> = waits
        .into_iter()
        .map(|wait| wait.blocking_recv().unwrap().unwrap().0)
        .collect();
    assert_eq!(seqs, (2..502).collect::<Vec<_>>());
    log.close();
    assert_eq!(intact(&place.dir), 502);
    let kinds: Vec<_> = place.records().iter().map(|r| r.body.kind()).collect();
    assert_eq!((kinds[0], kinds[501]), ("start", "stop"));
    for (n, record) in place.records()[1..501].iter().enumerate() {
        let Body::Event(entry) = &record.body else {
            panic!()
        };
        assert_eq!(entry.detail["n"], n.to_string());
    }
}

#[test]
fn each_outcome_says_how_long_its_act_took() {
    let place = Place::new();
    let log = place.open(1);
    let (slow, quick) = (log.intent("exec.run"), log.intent("exec.run"));
    log.outcome(quick, Outcome::ok().with("took_ms", "5"))
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    log.outcome(slow, Outcome::ok()).unwrap();
    let left = log.intent("exec.run");
    log.crash();
    // Of what another start began nobody knows.
    place.open(2).close();
    let took: Vec<_> = place
        .records()
        .into_iter()
        .filter_map(|record| match record.body {
            Body::Outcome { intent, outcome } => {
                Some((intent, outcome.detail.get("took_ms").cloned()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(took[0], (quick, Some("5".into())));
    assert_eq!(took[1].0, slow);
    let ms: u64 = took[1].1.as_ref().unwrap().parse().unwrap();
    assert!((30..10_000).contains(&ms), "{ms}");
    assert_eq!(took[2], (left, None));
}

#[test]
fn files_and_folder_are_for_the_owner_only_and_a_looser_folder_is_refused() {
    let place = Place::new();
    place.open(1).close();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&place.dir), 0o700);
    assert_eq!(mode(&place.segment(1)), 0o600);
    assert_eq!(mode(&place.dir.join("lock")), 0o600);
    std::fs::set_permissions(&place.dir, std::fs::Permissions::from_mode(0o750)).unwrap();
    assert_eq!(place.try_open(1).err().unwrap().code(), "STATE_MODE");
}

#[test]
fn a_link_in_place_of_a_segment_is_not_followed() {
    let place = Place::new();
    place.open(1).close();
    let other = place.dir.with_extension("elsewhere");
    std::fs::rename(place.segment(1), &other).unwrap();
    std::os::unix::fs::symlink(&other, place.segment(1)).unwrap();
    assert_eq!(place.try_open(2).err().unwrap().code(), "AUDIT_UNREADABLE");
    assert_eq!(
        verify_dir(&place.dir).unwrap_err().code(),
        "AUDIT_UNREADABLE"
    );
}

#[test]
fn a_key_far_back_is_known_though_the_start_does_not_read_that_far() {
    let place = Place::new();
    let config = AuditConfig {
        segment_bytes: 64 * 1024,
        ..AuditConfig::default()
    };
    let open = |boot| try_open(&place.dir, boot, config.clone()).unwrap();
    let log = open(1);
    assert!(matches!(log.once("uid:0", "k"), Once::New { .. }));
    let events: Vec<_> = (0..1_000).map(|n| log.send(event(n))).collect();
    for event in events {
        event.blocking_recv().unwrap().unwrap();
    }
    log.crash();
    let log = open(2);
    assert_eq!(log.report.segments_read, 1);
    let Once::Seen { outcome, .. } = log.once("uid:0", "k") else {
        panic!("the key was forgotten");
    };
    let boot = BootId([1; 16]);
    assert_eq!(outcome, Some(OutcomeResult::Unknown { boot }));
    log.close();
    // What it does not read at once is verified all the same, and the writer does not go on after an altered byte.
    let mut bytes = std::fs::read(place.segment(1)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(place.segment(1), bytes).unwrap();
    let log = open(3);
    let refused = |log: &Open| match log.append(event(1)) {
        Err(AuditError::Altered(fault)) => fault.segment,
        other => panic!("{other:?}"),
    };
    let files = super::super::files::segments(&place.dir).unwrap();
    let last = place.segment(files.last().unwrap().0);
    let end = std::fs::read(&last).unwrap();
    assert_eq!(refused(&log), Seq(1));
    assert_eq!(refused(&log), Seq(1), "the thread goes on");
    let why = log.writer.status().broken.unwrap();
    assert_eq!(why.code(), "AUDIT_ALTERED");
    let once = log.try_once("uid:0", "k");
    assert_eq!(once.unwrap_err().code(), "AUDIT_ALTERED");
    // What its end holds is read, the hashes are signed as they were, and an orderly stop leaves no mark behind what was altered.
    let signed = log.look(true).unwrap().signed.unwrap();
    assert_eq!(signed.checkpoint.checkpoint.size, log.report.head.seq.0);
    let stopped = log.try_close();
    assert_eq!(stopped.unwrap_err().code(), "AUDIT_ALTERED");
    assert_eq!(std::fs::read(&last).unwrap(), end);
    // Put back, it is recorded again, without a restart.
    let log = open(4);
    assert_eq!(refused(&log), Seq(1));
    let mut bytes = std::fs::read(place.segment(1)).unwrap();
    bytes[middle] ^= 1;
    std::fs::write(place.segment(1), bytes).unwrap();
    let began = std::time::Instant::now();
    while log.append(event(1)).is_err() {
        assert!(began.elapsed() < std::time::Duration::from_secs(30));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(log.writer.status().broken.is_none());
    assert!(matches!(log.once("uid:0", "k"), Once::Seen { .. }));
    log.close();
    intact(&place.dir);
}

/// A log whose first segment was altered after a key lay in each of its segments, opened again: it refuses.
fn refusing() -> (Place, Open, Vec<PathBuf>, Vec<u8>) {
    let place = Place::new();
    let config = AuditConfig {
        segment_bytes: 64 * 1024,
        ..AuditConfig::default()
    };
    let open = |boot| try_open(&place.dir, boot, config.clone()).unwrap();
    let log = open(1);
    for key in 0..4 {
        log.once("uid:0", &format!("k{key}"));
        for n in 0..400 {
            log.append(event(n)).unwrap();
        }
    }
    log.once("uid:0", "last");
    log.close();
    let segments = super::super::files::segments(&place.dir).unwrap();
    let segments: Vec<_> = segments
        .iter()
        .map(|first| place.segment(first.0))
        .collect();
    assert!(segments.len() >= 4, "{segments:?}");
    let good = std::fs::read(&segments[0]).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&segments[0], bad).unwrap();
    let log = open(2);
    assert!(matches!(log.append(event(1)), Err(AuditError::Altered(_))));
    (place, log, segments, good)
}

/// Longer than it waits between two readings.
fn some_readings() {
    std::thread::sleep(std::time::Duration::from_secs(1));
}

/// The bug: while it refused, segments were moved away, the altered one put right, and recording went on without the keys of those
/// that were gone; put back, the log was intact, and a run had been done twice.
#[test]
fn a_log_that_refuses_does_not_go_on_without_its_later_segments_or_behind_a_cut_end() {
    let (_place, log, segments, good) = refusing();
    let away = |path: &PathBuf| path.with_extension("away");
    for path in &segments[1..] {
        std::fs::rename(path, away(path)).unwrap();
    }
    std::fs::write(&segments[0], &good).unwrap();
    some_readings();
    assert!(matches!(
        log.try_once("uid:0", "k3"),
        Err(AuditError::Altered(_))
    ));
    for path in &segments[1..] {
        std::fs::rename(away(path), path).unwrap();
    }
    // And where the last one is cut at a record, or within one, in place.
    let last = segments.last().unwrap();
    let whole = std::fs::read(last).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(last).unwrap();
    for len in [whole.len() as u64 - 3, 3_000, HEADER_BYTES as u64] {
        file.set_len(len).unwrap();
        some_readings();
        let refused = log.try_once("uid:0", "last").unwrap_err();
        assert_eq!(refused.code(), "AUDIT_ALTERED", "{len}");
    }
    drop(file);
    std::fs::write(last, &whole).unwrap();
    some_readings();
    for key in ["k0", "k1", "k2", "k3", "last"] {
        assert!(matches!(log.once("uid:0", key), Once::Seen { .. }), "{key}");
    }
}

/// The bug: files were put back as others of the same name, and what was acknowledged from then on went into those that had been
/// moved away.
#[test]
fn a_log_that_refuses_does_not_write_into_a_file_that_was_replaced() {
    let (place, log, segments, good) = refusing();
    for path in &segments {
        let bytes = std::fs::read(path).unwrap();
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    std::fs::write(&segments[0], good).unwrap();
    some_readings();
    let Err(AuditError::Altered(fault)) = log.append(event(1)) else {
        panic!("it went on");
    };
    assert!(fault.why.contains("another file lies"), "{fault}");
    drop(log.try_close());
    let log = place.open(3);
    log.append(event(2)).unwrap();
    log.close();
    intact(&place.dir);
}

/// The same of a log that records: it goes on in the file that lies there, if that is what was written, and in no other.
#[test]
fn a_segment_that_is_replaced_under_its_writer_is_gone_on_with_or_refused() {
    let place = Place::new();
    let log = place.open(1);
    log.append(event(1)).unwrap();
    let path = place.segment(1);
    let copy = |cut: usize| {
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
    };
    copy(0);
    let began = std::time::Instant::now();
    let seq = loop {
        match log.append(event(2)) {
            Ok(seq) => break seq,
            Err(error) => assert_eq!(error.code(), "CANNOT_RECORD"),
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(30));
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    let head = intact(&place.dir);
    assert_eq!(head, seq.0, "it lies where it is looked for");
    copy(5);
    let began = std::time::Instant::now();
    loop {
        match log.append(event(3)) {
            Err(AuditError::Altered(_)) => break,
            Err(error) => assert_eq!(error.code(), "CANNOT_RECORD"),
            Ok(_) => panic!("acknowledged into a cut log"),
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(30));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The bug: with the tiles gone as well, the record was not named.
#[test]
fn an_altered_record_is_named_where_the_tiles_are_gone_as_well() {
    let (place, log, segments, _) = refusing();
    drop(log.try_close());
    std::fs::remove_dir_all(place.dir.join("tile")).unwrap();
    let error = place.try_open(3).err().unwrap();
    let AuditError::Altered(fault) = &error else {
        panic!("{error}");
    };
    assert_eq!(fault.segment, Seq(1), "{segments:?}");
}

#[test]
fn segments_rotate_and_chain_and_the_open_intents_are_carried() {
    let place = Place::new();
    let config = AuditConfig {
        segment_bytes: 64 * 1024,
        once_hours: 0,
        ..AuditConfig::default()
    };
    let open = |boot| try_open(&place.dir, boot, config.clone()).unwrap();
    let log = open(1);
    let forgotten = log.intent("exec.run");
    for n in 0..1_500 {
        log.append(event(n)).unwrap();
    }
    log.crash();
    let segments = super::super::files::segments(&place.dir).unwrap();
    assert!(segments.len() >= 4, "{segments:?}");
    intact(&place.dir);
    std::thread::sleep(std::time::Duration::from_millis(5));
    let log = open(2);
    assert_eq!((log.report.unknown, log.report.segments_read), (1, 1));
    log.close();
    let last = place.records().into_iter().rev().nth(2).unwrap();
    let unknown = Outcome::unknown(BootId([1; 16]));
    assert_eq!(
        last.body,
        Body::Outcome {
            intent: forgotten,
            outcome: unknown
        }
    );
    // Every segment but the first begins with its mark.
    let marks = place
        .records()
        .iter()
        .filter(|r| r.body.kind() == "carry")
        .count();
    assert_eq!(marks, segments.len() - 1);
    // A segment gone, an old one emptied to its header, and one exchanged: each is found with its sequence.
    let second = place.dir.join(format!("{:016}.log", segments[1].0));
    let bytes = std::fs::read(&second).unwrap();
    std::fs::remove_file(&second).unwrap();
    assert_eq!(
        verify_dir(&place.dir).unwrap().first_break.unwrap().seq,
        segments[1]
    );
    std::fs::write(&second, &bytes[..HEADER_BYTES]).unwrap();
    assert_eq!(
        verify_dir(&place.dir).unwrap().first_break.unwrap().seq,
        segments[1]
    );
    std::fs::write(&second, &bytes[..bytes.len() - 5]).unwrap();
    let fault = verify_dir(&place.dir).unwrap().first_break.unwrap();
    assert_eq!(
        fault.seq.0,
        segments[2].0 - 1,
        "torn is for the last segment only"
    );
    std::fs::write(&second, &bytes).unwrap();
    intact(&place.dir);
}

#[test]
fn a_torn_end_is_cut_off_and_the_log_says_so() {
    for tear in [&b"\0\0\x01"[..], &[0; 5000], b""] {
        let place = Place::new();
        let log = place.open(1);
        log.append(event(1)).unwrap();
        log.crash();
        let whole = std::fs::read(place.segment(1)).unwrap();
        let torn = if tear.is_empty() {
            whole[..whole.len() - 1].to_vec()
        } else {
            [&whole[..], tear].concat()
        };
        std::fs::write(place.segment(1), &torn).unwrap();
        let report = verify_dir(&place.dir).unwrap();
        assert!(report.intact && report.torn.is_some());
        let log = place.open(2);
        assert!(log.report.torn_bytes > 0);
        log.close();
        let kept = if tear.is_empty() { 1 } else { 2 };
        let records = place.records();
        let Body::Recovered { segment, bytes, .. } = records[kept].body else {
            panic!("{:?}", records[kept])
        };
        assert_eq!(segment, Seq(1));
        let expected = if tear.is_empty() {
            records[1].body != event(1)
        } else {
            bytes == tear.len() as u64
        };
        assert!(expected);
        intact(&place.dir);
    }
}

#[test]
fn an_altered_log_is_not_opened_and_every_bit_of_a_directory_counts() {
    let place = Place::new();
    let log = place.open(1);
    for n in 0..6 {
        log.append(event(n)).unwrap();
    }
    log.close();
    let path = place.segment(1);
    let good = std::fs::read(&path).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bad).unwrap();
        let report = verify_dir(&place.dir).unwrap();
        let fault = report
            .first_break
            .unwrap_or_else(|| panic!("bit {bit} not found"));
        assert!(report.torn.is_none() && fault.offset <= (bit / 8) as u64);
        // The opening reads the same way; a few stand for all.
        if bit % 997 == 0 {
            let error = place.try_open(2).err().unwrap();
            assert_eq!(error, AuditError::Altered(fault));
        }
    }
    std::fs::write(&path, &good).unwrap();
    place.open(2).close();
}

#[test]
fn a_second_writer_is_refused_while_the_first_lives() {
    let place = Place::new();
    let log = place.open(1);
    // Another process: the lock file names it.
    let mut other = super::child::start(&place.dir, "open");
    let said: Vec<String> = super::child::lines(&mut other).collect();
    assert_eq!(said, [format!("open STATE_LOCKED {}", std::process::id())]);
    other.wait().unwrap();
    log.close();
    let mut other = super::child::start(&place.dir, "open");
    let said: Vec<String> = super::child::lines(&mut other).collect();
    assert_eq!(said, ["open ok"]);
    other.wait().unwrap();
}

#[test]
fn a_restart_in_the_same_process_waits_for_the_old_thread_and_keeps_its_open_intents() {
    let place = Place::new();
    let log = place.open(1);
    let kept = log.intent("exec.run");
    let waits: Vec<_> = (0..800).map(|n| log.send(event(n))).collect();
    let Open { writer, .. } = log;
    drop(writer);
    let log = place.open(1);
    assert_eq!(log.report.unknown, 0, "an act of this boot goes on");
    // The old thread has finished what it was given: everything is acknowledged and there.
    let last = waits
        .into_iter()
        .map(|wait| wait.blocking_recv().unwrap().unwrap())
        .max();
    assert_eq!(last, Some(Seq(log.report.head.seq.0 - 1)));
    log.outcome(kept, Outcome::ok()).unwrap();
    log.close();
    let starts: Vec<Body> = place.records().into_iter().map(|r| r.body).collect();
    let reopened = |open: &Body| matches!(open, Body::Start { reopened: true, open: Some(open), .. } if *open == [kept]);
    assert_eq!(starts.iter().filter(|body| reopened(body)).count(), 1);
}

#[test]
fn an_outcome_needs_an_open_intent() {
    let place = Place::new();
    let log = place.open(1);
    let intent = log.intent("vault.set");
    log.outcome(intent, Outcome::failed("SEALED")).unwrap();
    for wrong in [intent, Seq(0), Seq(1), Seq(999)] {
        assert_eq!(
            log.outcome(wrong, Outcome::ok()),
            Err(AuditError::NotOpen(wrong))
        );
    }
    let intent = log.intent("vault.set");
    let twice = [Outcome::ok(), Outcome::ok()].map(|o| log.send(Body::outcome(intent, o).unwrap()));
    let ended = twice.map(|wait| wait.blocking_recv().unwrap().is_ok());
    assert_eq!(ended, [true, false]);
    log.close();
    intact(&place.dir);
}

#[test]
fn a_key_is_used_once_and_after_a_crash_the_retry_gets_unknown() {
    let place = Place::new();
    let log = place.open(1);
    let Once::New { seq: done } = log.once("p", "k1") else {
        panic!()
    };
    log.outcome(done, Outcome::ok()).unwrap();
    let Once::New { seq: lost } = log.once("p", "k2") else {
        panic!()
    };
    let seen = |seq, outcome| Once::Seen { seq, outcome };
    assert_eq!(log.once("p", "k1"), seen(done, Some(OutcomeResult::Ok)));
    assert_eq!(log.once("p", "k2"), seen(lost, None));
    assert!(
        matches!(log.once("other", "k2"), Once::New { .. }),
        "keys are per principal"
    );
    log.crash();
    let log = place.open(2);
    assert_eq!(log.report.unknown, 2);
    let boot = BootId([1; 16]);
    assert_eq!(log.once("p", "k1"), seen(done, Some(OutcomeResult::Ok)));
    assert_eq!(
        log.once("p", "k2"),
        seen(lost, Some(OutcomeResult::Unknown { boot }))
    );
    log.close();
}

#[test]
fn of_many_callers_with_one_key_exactly_one_acts() {
    let place = Place::new();
    let log = place.open(1);
    let new = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..32)
            .map(|_| scope.spawn(|| log.once("p", "k")))
            .collect();
        let answers: Vec<Once> = calls.into_iter().map(|call| call.join().unwrap()).collect();
        assert!(answers.iter().all(
            |once| matches!(once, Once::New { seq } | Once::Seen { seq, .. } if *seq == Seq(2))
        ));
        answers
            .iter()
            .filter(|once| matches!(once, Once::New { .. }))
            .count()
    });
    assert_eq!(new, 1);
    log.close();
}

#[test]
fn what_a_failed_rotation_left_behind_does_no_harm() {
    let place = Place::new();
    place.open(1).close();
    std::fs::write(place.dir.join("0000000000000003.new"), b"half").unwrap();
    place.open(2).close();
    assert!(!place.dir.join("0000000000000003.new").exists());
    // Only the header of the next segment: the rename was done, the first record not.
    let head = verify_dir(&place.dir).unwrap().head;
    let header = portcullis_core::audit::SegmentHeader { after: head };
    std::fs::write(place.dir.join(header.file_name()), header.encode()).unwrap();
    let log = place.open(3);
    log.append(event(1)).unwrap();
    log.close();
    intact(&place.dir);
}

/// The bug: writes of the state that the log knew of were taken away, and the log went on as if nothing were.
#[test]
fn a_log_is_not_opened_over_a_state_that_has_come_less_far_than_it_says() {
    let place = Place::new();
    let state = Flag::new(3);
    let open = |boot| {
        let config = AuditConfig {
            segment_bytes: 1,
            ..AuditConfig::default()
        };
        try_open_over(&place.dir, boot, config, Some(state.reader()))
    };
    let log = open(1).unwrap();
    for n in 4..6 {
        let intent = log.intent("pairing.revoke");
        state.set(n);
        log.outcome(intent, Outcome::ok()).unwrap();
        // What changed nothing need not say it again.
        let intent = log.intent("exec.run");
        log.outcome(intent, Outcome::ok()).unwrap();
    }
    let said = || -> Vec<Option<u64>> {
        let revs = place
            .records()
            .into_iter()
            .filter_map(|record| match record.body {
                Body::Outcome { outcome, .. } => Some(outcome.state_rev),
                Body::Start { state_rev, .. } | Body::Carry { state_rev, .. } => Some(state_rev),
                _ => None,
            });
        revs.collect()
    };
    assert_eq!(said(), [Some(3), Some(4), None, Some(5), None]);
    log.crash();
    for (boot, less) in [(2, 4), (3, 0)] {
        state.set(less);
        let (before, error) = (place.records(), open(boot).err().unwrap());
        assert_eq!(
            error,
            AuditError::StateBehind {
                state: less,
                said: 5
            }
        );
        assert_eq!(error.code(), "STATE_CORRUPT");
        assert_eq!(place.records(), before);
    }
    // As far, and further: writes whose outcome is not on record.
    state.set(5);
    open(4).unwrap().crash();
    state.set(9);
    let log = open(5).unwrap();
    // Many segments on, none of whose acts changed the state: each begins with it.
    for _ in 0..4 {
        let waits: Vec<_> = (0..500).map(|n| log.send(event(n))).collect();
        for wait in waits {
            wait.blocking_recv().unwrap().unwrap();
        }
    }
    log.close();
    assert!(super::super::files::segments(&place.dir).unwrap().len() > 2);
    state.set(8);
    let error = open(6).err().unwrap();
    assert_eq!(error, AuditError::StateBehind { state: 8, said: 9 });
    state.set(9);
    open(7).unwrap().close();
}
