//! Somebody changes the files of a log under its running writer: nothing acknowledged is forgotten, and nobody else's bytes go.

use super::*;
use std::time::{Duration, Instant};

/// Opened with these keys, which one process has for all lives of its room.
fn open_with(place: &Place, keys: &AuditKeys, config: AuditConfig) -> Result<Open, AuditError> {
    let spec = LogSpec {
        dir: place.dir.clone(),
        keys: keys.clone(),
        config,
        boot: BootId([9; 16]),
        clock: Clock::new(),
        version: "test".into(),
        state: None,
    };
    let (writer, report) = Writer::open(spec, Feed::new(), std::sync::Arc::default())?;
    Ok(Open { writer, report })
}

fn small() -> AuditConfig {
    AuditConfig {
        segment_bytes: 64 * 1024,
        ..AuditConfig::default()
    }
}

/// What it says once it has read what lies there; before that it cannot record.
fn in_the_end(log: &Open) -> Result<Seq, AuditError> {
    let began = Instant::now();
    loop {
        match log.append(event(1)) {
            Err(AuditError::CannotRecord(_)) if began.elapsed() < Duration::from_secs(30) => {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

/// The bug: a running gateway's log was cut back; its audit room restarted, took what lay there, and acknowledged runs were gone
/// and were done again under their keys.
#[test]
fn a_log_that_is_cut_under_its_writer_is_refused_by_the_room_that_restarts_and_by_the_next_start() {
    for put_back in [false, true] {
        let place = Place::new();
        let keys = keys(&place.dir);
        let log = open_with(&place, &keys, small()).unwrap();
        log.once("uid:0", "before");
        let path = place.segment(1);
        let older = std::fs::read(&path).unwrap();
        log.once("uid:0", "live");
        let newer = std::fs::read(&path).unwrap();
        if put_back {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, &older).unwrap();
        } else {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(older.len() as u64).unwrap();
        }
        assert!(matches!(in_the_end(&log), Err(AuditError::Altered(_))));
        assert_eq!(
            std::fs::read(&path).unwrap(),
            older,
            "it is not made longer"
        );
        log.crash();
        for _ in 0..2 {
            let error = open_with(&place, &keys, small()).err().unwrap();
            let AuditError::Altered(fault) = &error else {
                panic!("{error}");
            };
            assert!(fault.why.contains("while this gateway ran"), "{fault}");
        }
        // Another process knows it from what is sealed beside the key.
        let error = place.try_open(2).err().unwrap();
        assert!(error.to_string().contains("and had 3 records"), "{error}");
        std::fs::write(&path, &newer).unwrap();
        let log = place.open(3);
        assert!(matches!(log.once("uid:0", "live"), Once::Seen { .. }));
        log.close();
        intact(&place.dir);
    }
}

/// The bug: a full segment was not looked at before the next was begun beside what lay there.
#[test]
fn the_next_segment_is_not_begun_beside_another_file_than_the_last() {
    let place = Place::new();
    let log = open_with(&place, &keys(&place.dir), small()).unwrap();
    let size = || std::fs::metadata(place.segment(1)).unwrap().len();
    let mut older = vec![];
    while size() < 64 * 1024 {
        older = std::fs::read(place.segment(1)).unwrap();
        log.append(event(1)).unwrap();
    }
    std::fs::remove_file(place.segment(1)).unwrap();
    std::fs::write(place.segment(1), older).unwrap();
    let refused = log.append(event(2)).unwrap_err();
    assert_eq!(refused.code(), "CANNOT_RECORD");
    assert!(matches!(in_the_end(&log), Err(AuditError::Altered(_))));
    let segments = super::super::files::segments(&place.dir).unwrap();
    assert_eq!(segments, [Seq(1)]);
}

/// The bug: a longer segment that was put there while the log could not be written was cut to what the writer knew.
#[test]
fn what_lies_behind_the_last_record_and_was_not_written_here_is_never_cut_off() {
    for in_place in [true, false] {
        let place = Place::new();
        let log = place.open(1);
        log.append(event(1)).unwrap();
        let path = place.segment(1);
        let mut longer = std::fs::read(&path).unwrap();
        longer.extend_from_slice(b"records of a gateway that had come further");
        if !in_place {
            std::fs::remove_file(&path).unwrap();
        }
        std::fs::write(&path, &longer).unwrap();
        assert!(matches!(in_the_end(&log), Err(AuditError::Altered(_))));
        assert_eq!(std::fs::read(&path).unwrap(), longer, "{in_place}");
    }
}

/// The bug: how far the log had come was written down by what a checkpoint was over, also at an orderly stop: where none could be
/// written, all since the last could be taken back unseen.
#[test]
fn how_far_the_log_has_come_is_written_down_where_no_checkpoint_can_be() {
    let place = Place::new();
    place.open(1).close();
    let older = std::fs::read(place.segment(1)).unwrap();
    let log = place.open(2);
    let notes = place.dir.join("checkpoints");
    let away = place.dir.with_extension("notes");
    std::fs::rename(&notes, &away).unwrap();
    std::fs::write(&notes, "").unwrap();
    log.once("uid:0", "live");
    let newer = std::fs::read(place.segment(1)).unwrap();
    log.close();
    std::fs::remove_file(&notes).unwrap();
    std::fs::rename(&away, &notes).unwrap();
    // To where it was when this epoch had begun: its start is there.
    let closed = std::fs::read(place.segment(1)).unwrap();
    assert!(older.len() < newer.len() && newer.len() < closed.len());
    for cut in [newer.len(), closed.len() - 1] {
        std::fs::write(place.segment(1), &closed[..cut]).unwrap();
        let error = place.try_open(3).err().unwrap();
        assert_eq!(error.code(), "AUDIT_ALTERED", "{cut}: {error}");
    }
    std::fs::write(place.segment(1), &closed).unwrap();
    let log = place.open(3);
    assert!(matches!(log.once("uid:0", "live"), Once::Seen { .. }));
    log.close();
    intact(&place.dir);
}

/// The bug: a log that had come less far wrote its size over a larger one that had been put beside its key.
#[test]
fn a_larger_size_beside_the_key_is_never_written_over() {
    let place = Place::new();
    let log = place.open(1);
    log.append(event(1)).unwrap();
    let at = || {
        let keys = std::fs::read_dir(place.dir.with_file_name("keys")).unwrap();
        let mut ats: Vec<_> = keys
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "at"))
            .collect();
        ats.sort();
        ats.pop().unwrap()
    };
    let keys = keys(&place.dir);
    let epoch = log.writer.status().epoch;
    keys.reach(epoch, 1_000).unwrap();
    let larger = std::fs::read(at()).unwrap();
    let cut = std::fs::read(place.segment(1)).unwrap();
    std::fs::write(place.segment(1), &cut[..cut.len() - 3]).unwrap();
    assert!(in_the_end(&log).is_err());
    log.crash();
    assert_eq!(std::fs::read(at()).unwrap(), larger);
}

/// The bug: where the size of the log could not be written down beside its keys, acts went on without end, and all since then could
/// be taken back unseen.
#[test]
fn a_log_whose_size_cannot_be_written_down_for_long_records_nothing_more() {
    let place = Place::new();
    let log = place.open(1);
    let folder = place.dir.with_file_name("keys");
    let away = folder.with_extension("away");
    std::fs::rename(&folder, &away).unwrap();
    std::fs::write(&folder, "").unwrap();
    let began = Instant::now();
    let error = loop {
        match log.append(event(1)) {
            Ok(_) => assert!(began.elapsed() < Duration::from_secs(30), "it never stops"),
            Err(error) => break error,
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(error.code(), "CANNOT_RECORD", "{error}");
    assert!(error.to_string().contains("beside its keys"), "{error}");
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    in_the_end(&log).unwrap();
    log.close();
    intact(&place.dir);
}
