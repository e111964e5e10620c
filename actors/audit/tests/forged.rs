//! Whoever can write the files at rest, and has no key: what they add, rewrite or cut is not gone on with, and nothing of it
//! is signed.

use super::super::read::tail_to;
use super::super::retire;
use super::*;
use portcullis_core::audit::{
    Checkpoint, EpochKey, RecordKey, SegmentHeader, SignedCheckpoint, Stamp, encode_record,
};
use std::os::unix::fs::PermissionsExt as _;
use zeroize::Zeroizing;

const STAMP: Stamp = Stamp {
    wall_ms: 1_790_000_000_000,
    mono_ms: 5,
};

/// Records behind `head`, as one writes them who has this key.
fn forge(mut head: Head, bodies: &[Body], key: Option<&RecordKey>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for body in bodies {
        head = encode_record(&mut bytes, head, STAMP, BootId([1; 16]), body, key).unwrap();
    }
    bytes
}

fn foreign() -> EpochKey {
    EpochKey::from_random(&Zeroizing::new([99; 32]))
}

fn some(log: &Open, count: u64) {
    for n in 0..count {
        log.append(event(n)).unwrap();
    }
}

fn newest_notes(place: &Place) -> PathBuf {
    let entries = std::fs::read_dir(place.dir.join("checkpoints"));
    let paths = entries.into_iter().flatten();
    let paths = paths.map(|entry| entry.unwrap().path());
    let none = place.dir.join("checkpoints/0000000000000001");
    paths.max().unwrap_or(none)
}

fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status();
    assert!(done.unwrap().success());
}

fn refusal(place: &Place) -> AuditError {
    match place.try_open(9) {
        Err(error) => error,
        Ok(_) => panic!("the log was gone on with"),
    }
}

#[track_caller]
fn refused(place: &Place, why: &str) {
    let before = std::fs::read(place.segment(1)).unwrap();
    let notes = std::fs::read(newest_notes(place)).ok();
    let error = refusal(place);
    assert!(error.to_string().contains(why), "{error}");
    assert_eq!(std::fs::read(place.segment(1)).unwrap(), before);
    assert_eq!(std::fs::read(newest_notes(place)).ok(), notes);
}

/// The bug: what stood behind the last checkpoint was only a chain of SHA-256, and the next start signed it.
#[test]
fn records_appended_without_the_key_are_not_signed_by_the_next_start() {
    for is_closed in [true, false] {
        for key in [None, Some(foreign())] {
            let place = Place::new();
            let log = place.open(1);
            some(&log, 3);
            if is_closed {
                log.close();
            } else {
                log.crash();
            }
            let opened = Entry::new("vault.open").with("manifest", "00".repeat(32));
            let forged = [Body::event(opened).unwrap(), event(9)];
            let key = key.as_ref().map(EpochKey::records);
            let good = std::fs::read(place.segment(1)).unwrap();
            place.add(&forge(place.head(), &forged, key));
            let why = match key {
                Some(_) => "not written by this gateway",
                None => "no tag",
            };
            refused(&place, why);
            // Without the key it is told as what no checkpoint covers.
            let report = verify_dir(&place.dir).unwrap();
            assert!(report.unsigned >= 2, "{}", report.unsigned);
            // A true record further back is no help: it stands in its place only.
            let all = place.records();
            let whole = std::fs::read(place.segment(1)).unwrap();
            let one = forge(all[0].prev_head(), std::slice::from_ref(&all[0].body), None);
            let tagged = &whole[84..84 + one.len() + portcullis_core::audit::TAG];
            std::fs::write(place.segment(1), [&good[..], tagged].concat()).unwrap();
            refused(&place, "another record stands in its place");
            std::fs::write(place.segment(1), &good).unwrap();
            place.open(2).close();
            intact(&place.dir);
        }
    }
}

trait PrevHead {
    fn prev_head(&self) -> Head;
}

impl PrevHead for Record {
    fn prev_head(&self) -> Head {
        Head {
            seq: Seq(self.seq.0 - 1),
            hash: self.prev,
        }
    }
}

/// The bug: the records of the newest epoch could be written anew where its checkpoints were taken away.
#[test]
fn the_newest_epoch_rewritten_without_its_checkpoints_is_refused() {
    let place = Place::new();
    let log = place.open(1);
    some(&log, 3);
    log.close();
    let log = place.open(2);
    some(&log, 5);
    let rewritten = log.append(event(77)).unwrap();
    some(&log, 2);
    log.close();
    let records = place.records();
    let at = usize::try_from(rewritten.0).unwrap() - 1;
    let mut bodies: Vec<Body> = records[at..]
        .iter()
        .map(|record| record.body.clone())
        .collect();
    bodies[0] = event(78);
    let good = std::fs::read(place.segment(1)).unwrap();
    let behind: usize = records[at..]
        .iter()
        .map(|record| {
            let plain = forge(record.prev_head(), std::slice::from_ref(&record.body), None);
            plain.len() + portcullis_core::audit::TAG
        })
        .sum();
    let kept = &good[..good.len() - behind];
    let key = foreign();
    let forged = forge(records[at].prev_head(), &bodies, Some(key.records()));
    std::fs::write(place.segment(1), [kept, &forged].concat()).unwrap();
    std::fs::remove_file(newest_notes(&place)).unwrap();
    std::fs::remove_dir_all(place.dir.join("tile")).unwrap();
    assert!(
        verify_dir(&place.dir).unwrap().intact,
        "no key, no checkpoint"
    );
    refused(&place, "not written by this gateway");
}

/// The bug: of a log without any key nobody asked who had written it.
#[test]
fn a_log_made_whole_by_somebody_else_is_refused() {
    let place = Place::new();
    let log = place.open(1);
    some(&log, 3);
    log.close();
    let bodies = [event(1), event(2), Body::Stop];
    let header = SegmentHeader { after: Head::EMPTY }.encode();
    let plain = forge(Head::EMPTY, &bodies, None);
    // With its own first key, signed by itself.
    let own = foreign();
    let start = Body::Start {
        reopened: false,
        open: Some(Vec::new()),
        version: "test".into(),
        state_rev: None,
        epoch: Some(own.hand_over(1, own.public(), Head::EMPTY)),
    };
    let named = [&[start][..], &bodies].concat();
    let named = forge(Head::EMPTY, &named, Some(own.records()));
    for (records, keeps_keys) in [
        (&plain, true),
        (&plain, false),
        (&named, true),
        (&named, false),
    ] {
        for folder in ["tile", "checkpoints"] {
            let _ = std::fs::remove_dir_all(place.dir.join(folder));
        }
        if !keeps_keys {
            let _ = std::fs::remove_dir_all(place.dir.with_file_name("keys"));
        }
        std::fs::write(place.segment(1), [&header[..], records].concat()).unwrap();
        let error = refusal(&place);
        let code = error.code();
        assert!(
            ["AUDIT_ALTERED", "AUDIT_KEY_MISMATCH"].contains(&code),
            "{error}"
        );
    }
}

/// The bug: within a minute after a crash, log and state of before a revocation, put back together, were gone on from.
#[test]
fn what_was_taken_back_is_not_undone_by_an_older_log_after_a_crash() {
    for (action, is_found) in [
        ("pairing.revoke", true),
        ("auth.token.rotate", true),
        ("approval.grant.revoke", true),
        ("vault.remove", true),
        ("approval.resolve", true),
        // A record of what ran is under the next minute's word.
        ("exec.run", false),
    ] {
        let place = Place::new();
        let log = place.open(1);
        some(&log, 4);
        // The start's own record is covered here, and those behind it.
        let intent = log.intent("pairing.approve");
        log.outcome(intent, Outcome::ok()).unwrap();
        let early = place.dir.with_file_name("early");
        copy(&place.dir, &early);
        let intent = log.intent(action);
        log.outcome(intent, Outcome::ok()).unwrap();
        log.crash();
        std::fs::remove_dir_all(&place.dir).unwrap();
        copy(&early, &place.dir);
        assert!(verify_dir(&place.dir).unwrap().intact);
        if is_found {
            refused(&place, "the log ends before it, and had 9 records");
        } else {
            place.open(2).close();
        }
    }
}

/// The bug: an answer that had been used was good once more; a revocation was answered though nothing bound it.
#[test]
fn an_answer_is_used_up_before_its_run_and_what_cannot_be_bound_is_not_begun() {
    let place = Place::new();
    let log = place.open(1);
    some(&log, 4);
    let early = place.dir.with_file_name("early");
    copy(&place.dir, &early);
    let run = Entry {
        approval_id: Some("ap1".into()),
        ..Entry::new("exec.run")
    };
    log.append(Body::intent(run).unwrap()).unwrap();
    log.crash();
    let late = place.dir.with_file_name("late");
    std::fs::rename(&place.dir, &late).unwrap();
    copy(&early, &place.dir);
    refused(&place, "the log ends before it, and had 6 records");
    std::fs::remove_dir_all(&place.dir).unwrap();
    std::fs::rename(&late, &place.dir).unwrap();
    // A folder stands where the size is written down: root is kept from writing by nothing less.
    let log = place.open(2);
    let new = place
        .dir
        .with_file_name("keys")
        .join("audit-0000000000000002.new");
    std::fs::create_dir(&new).unwrap();
    let entry = Body::intent(Entry::new("pairing.revoke")).unwrap();
    assert_eq!(log.append(entry).unwrap_err().code(), "CANNOT_RECORD");
    log.append(event(1)).unwrap();
    std::fs::remove_dir(&new).unwrap();
    log.intent("pairing.revoke");
    log.close();
}

#[test]
fn a_tail_cut_after_an_orderly_stop_is_refused_at_the_start() {
    let place = Place::new();
    let log = place.open(1);
    some(&log, 4);
    let early = (
        std::fs::read(place.segment(1)).unwrap(),
        std::fs::read(newest_notes(&place)).unwrap_or_default(),
    );
    some(&log, 4);
    log.close();
    let notes = newest_notes(&place);
    let late = (
        std::fs::read(place.segment(1)).unwrap(),
        std::fs::read(&notes).unwrap(),
    );
    std::fs::write(place.segment(1), &early.0).unwrap();
    std::fs::write(&notes, &early.1).unwrap();
    std::fs::remove_dir_all(place.dir.join("tile")).unwrap();
    assert!(
        verify_dir(&place.dir).unwrap().intact,
        "nothing outside is known"
    );
    refused(&place, "the log ends before it, and had 10 records");
    std::fs::write(place.segment(1), &late.0).unwrap();
    std::fs::write(&notes, &late.1).unwrap();
    // What says so cannot be taken away, nor be that of another epoch, nor be changed.
    let at = place
        .dir
        .with_file_name("keys")
        .join("audit-0000000000000001.at");
    let good = std::fs::read(&at).unwrap();
    std::fs::remove_file(&at).unwrap();
    assert_eq!(refusal(&place).code(), "AUDIT_KEY_MISMATCH");
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        std::fs::write(&at, bad).unwrap();
        assert_eq!(refusal(&place).code(), "AUDIT_KEY_MISMATCH", "{byte}");
    }
    std::fs::write(&at, good).unwrap();
    place.open(2).close();
}

#[test]
fn the_checkpoint_that_closes_an_epoch_cannot_be_taken_away() {
    let place = Place::new();
    for boot in 1..4 {
        let log = place.open(boot);
        some(&log, 2);
        log.close();
    }
    let closing = place.dir.join("checkpoints/0000000000000002");
    let good = std::fs::read(&closing).unwrap();
    for bad in [&[][..], &good[..good.len() / 2]] {
        std::fs::write(&closing, bad).unwrap();
        let error = refusal(&place);
        assert_eq!(error.code(), "AUDIT_ALTERED", "{error}");
    }
    std::fs::write(&closing, good).unwrap();
    place.open(4).close();
}

/// The bug: a start reads the end of the log only, and what was changed before it was found where a person verified.
#[test]
fn what_is_read_back_from_before_the_start_is_what_was_written() {
    let place = Place::new();
    let config = AuditConfig {
        segment_bytes: 64 * 1024,
        once_hours: 0,
        ..AuditConfig::default()
    };
    let log = try_open(&place.dir, 1, config.clone()).unwrap();
    for n in 0..1_300 {
        log.append(event(n)).unwrap();
    }
    log.close();
    let segments = super::super::files::segments(&place.dir).unwrap();
    assert!(segments.len() > 3, "{segments:?}");
    // The whole of the second one written anew, with right hashes.
    let second = segments[1];
    let records = place.records();
    let range = usize::try_from(second.0).unwrap() - 1..usize::try_from(segments[2].0).unwrap() - 1;
    let after = records[range.start].prev_head();
    let mut bodies: Vec<Body> = records[range]
        .iter()
        .map(|record| record.body.clone())
        .collect();
    bodies[5] = event(77_777);
    let header = SegmentHeader { after }.encode();
    let forged = forge(after, &bodies, Some(foreign().records()));
    std::fs::write(place.segment(second.0), [&header[..], &forged].concat()).unwrap();
    // The start does not look there; whoever reads does.
    let log = try_open(&place.dir, 2, config).unwrap();
    let horizon = horizon(&log);
    let all = portcullis_core::audit::Query {
        limit: 1_000,
        ..portcullis_core::audit::Query::default()
    };
    let records = |from, limit| {
        let mut followed = super::super::read::Followed::default();
        super::super::read::records_to(&place.dir, from, limit, horizon, &mut followed)
    };
    let read = [
        super::super::read::query_to(&place.dir, &all, Some(horizon)).map(|_| ()),
        tail_to(&place.dir, usize::MAX, Some(horizon)).map(|_| ()),
        records(Seq(1), usize::MAX).map(|_| ()),
        // The bug: a page that ends before the end of its segment was handed on, and a sink took it for good.
        records(Seq(1), 10).map(|_| ()),
        records(second, 10).map(|_| ()),
        super::super::read::query_dir(&place.dir, &all).map(|_| ()),
    ];
    for (n, read) in read.into_iter().enumerate() {
        assert_eq!(read.unwrap_err().code(), "AUDIT_ALTERED", "{n}");
    }
    // What lies behind it is read.
    tail_to(&place.dir, 100, Some(horizon)).unwrap();
    let third = records(segments[2], 10).unwrap();
    assert_eq!(third.len(), 10);
    assert_eq!(third[0].seq, segments[2]);
    log.close();
}

fn horizon(log: &Open) -> super::super::offline::Horizon {
    let (tx, rx) = oneshot::channel();
    assert!(log.writer.submit(Job::Look(Answer::Own(tx), false)).is_ok());
    rx.blocking_recv().unwrap().unwrap().horizon
}

/// The bug: the first key was read from its file, and told to people as the one to keep.
#[test]
fn a_first_key_that_somebody_put_there_is_not_told() {
    let place = Place::new();
    let log = place.open(1);
    some(&log, 2);
    log.close();
    let path = place.dir.join("first.pub");
    let good = std::fs::read(&path).unwrap();
    let foreign = foreign().public();
    let origin = portcullis_core::audit::note::origin(&foreign);
    let text = portcullis_core::audit::note::verifier_key(&origin, &foreign);
    std::fs::write(&path, format!("{text}\n")).unwrap();
    std::fs::remove_dir_all(place.dir.join("checkpoints")).unwrap();
    let log = place.open(2);
    assert_eq!(std::fs::read(&path).unwrap(), good);
    log.close();
    intact(&place.dir);
}

/// The bug: closed segments were gone by a forged word of retention.
#[test]
fn segments_gone_by_a_forged_word_of_retention_are_missed() {
    let place = Place::new();
    let config = AuditConfig {
        segment_bytes: 64 * 1024,
        once_hours: 0,
        keep_days: 1,
        ..AuditConfig::default()
    };
    let log = try_open(&place.dir, 1, config.clone()).unwrap();
    let big = |n: u64| {
        let entry = Entry::new("test.event").with("x", "x".repeat(900));
        Body::event(entry.with("n", n.to_string())).unwrap()
    };
    for n in 0..700 {
        log.append(big(n)).unwrap();
    }
    log.close();
    let gone = retire::candidates(&place.dir, &config, Seq(u64::MAX), &[], u64::MAX).unwrap();
    assert!(!gone.is_empty());
    let word = retire::record(&gone, &[]).unwrap();
    let foreign = foreign();
    place.add(&forge(place.head(), &[word], Some(foreign.records())));
    retire::remove(&place.dir, &gone).unwrap();
    let fault = verify_dir(&place.dir).unwrap().first_break.unwrap();
    assert!(
        fault.why.contains("no record under a checkpoint"),
        "{fault}"
    );
    let error = refusal(&place);
    assert!(
        error
            .to_string()
            .contains("not of this gateway's retention"),
        "{error}"
    );
}

/// A log of the version before, which had no tags: its end must be under a checkpoint of its own.
#[test]
fn a_log_without_tags_goes_on_where_a_checkpoint_covers_its_end_and_nowhere_else() {
    let place = Place::new();
    std::fs::create_dir(&place.dir).unwrap();
    std::fs::set_permissions(&place.dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let keys = keys(&place.dir);
    let key = keys.make(1, 0).unwrap();
    let start = Body::Start {
        reopened: false,
        open: Some(Vec::new()),
        version: "0.0.9".into(),
        state_rev: None,
        epoch: Some(key.hand_over(1, key.public(), Head::EMPTY)),
    };
    let header = SegmentHeader { after: Head::EMPTY }.encode();
    let records = forge(Head::EMPTY, &[start, event(1), Body::Stop], None);
    std::fs::write(place.segment(1), [&header[..], &records].concat()).unwrap();
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(place.segment(1), private).unwrap();
    assert!(refusal(&place).to_string().contains("no tag"));
    let root = verify_dir(&place.dir).unwrap().root;
    let sign = |key: &EpochKey, size| -> SignedCheckpoint {
        key.sign(Checkpoint {
            origin: portcullis_core::audit::note::origin(&keys_first(&place)),
            size,
            root,
        })
    };
    std::fs::create_dir(place.dir.join("checkpoints")).unwrap();
    let notes = place.dir.join("checkpoints/0000000000000001");
    std::fs::write(&notes, sign(&foreign(), 3).to_text()).unwrap();
    assert_eq!(refusal(&place).code(), "AUDIT_ALTERED");
    std::fs::write(&notes, sign(&key, 2).to_text()).unwrap();
    assert_eq!(refusal(&place).code(), "AUDIT_ALTERED");
    std::fs::write(&notes, sign(&key, 3).to_text()).unwrap();
    place.open(2).close();
    intact(&place.dir);
    assert_eq!(place.records().len(), 5);
}

fn keys_first(place: &Place) -> portcullis_core::audit::PublicKey {
    keys(&place.dir).open_all().unwrap().0[&1].public()
}
