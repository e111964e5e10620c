//! Retention: segments go whole, and what they proved stays provable.

use super::super::proofs::Signed;
use super::super::retire;
use super::*;
use portcullis_core::audit::Tile;
use portcullis_core::audit::note::parse_first_key;
use portcullis_core::audit::tree::check_inclusion;

fn keeping(keep_mib: u64) -> AuditConfig {
    AuditConfig {
        segment_bytes: 64 * 1024,
        once_hours: 0,
        keep_mib,
        ..AuditConfig::default()
    }
}

fn big(n: u64) -> Body {
    Body::event(
        Entry::new("test.event")
            .with("n", n.to_string())
            .with("x", "x".repeat(900)),
    )
    .unwrap()
}

fn fill(log: &Open, from: u64, count: u64) {
    let all: Vec<u64> = (from..from + count).collect();
    for some in all.chunks(100) {
        let waits: Vec<_> = some.iter().map(|n| log.send(big(*n))).collect();
        for wait in waits {
            wait.blocking_recv().unwrap().unwrap();
        }
    }
}

fn signed(log: &Open) -> Signed {
    let (tx, rx) = oneshot::channel();
    assert!(log.writer.submit(Job::Look(Answer::Own(tx), true)).is_ok());
    *rx.blocking_recv().unwrap().unwrap().signed.unwrap()
}

fn segments(place: &Place) -> Vec<Seq> {
    super::super::files::segments(&place.dir).unwrap()
}

#[test]
fn old_segments_go_and_what_they_proved_stays_provable() {
    let place = Place::new();
    let log = try_open(&place.dir, 1, keeping(1)).unwrap();
    fill(&log, 0, 300);
    let early = signed(&log);
    let records = place.records();
    let first = std::fs::read_to_string(place.dir.join("first.pub")).unwrap();
    let first = parse_first_key(first.trim_end()).unwrap();
    let gone_segment = std::fs::read(place.segment(1)).unwrap();
    fill(&log, 300, 2_400);
    assert_eq!(segments(&place)[0], Seq(1), "the vault was not opened yet");
    log.append(Body::event(Entry::new("vault.open")).unwrap())
        .unwrap();
    fill(&log, 3_000, 400);
    let now = signed(&log);
    log.close();
    let begin = segments(&place)[0].0;
    assert!(begin > 301, "{begin}");
    let outside = |checkpoint| Outside {
        first_key: Some(first),
        checkpoint,
    };
    let verified = |outside: Outside| {
        let report = verify_dir_against(&place.dir, outside).unwrap();
        assert!(report.intact, "{:?}", report.first_break);
        assert_eq!(report.retired, begin - 1);
        assert_eq!(report.missing_tiles, 0);
        report
    };
    let report = verified(outside(None));
    assert_eq!(report.head.seq.0, report.retired + report.records);
    verified(outside(Some((*early.checkpoint).clone())));
    verified(outside(Some((*now.checkpoint).clone())));
    // A record that is gone is proven by whoever has it.
    let kept = &records[150];
    let proof = now.prove(&place.dir, kept.seq).unwrap();
    assert_eq!(proof.leaf_hash, kept.hash);
    let (size, root) = (proof.checkpoint.size, proof.checkpoint.root);
    assert!(check_inclusion(
        &kept.hash,
        kept.seq.0 - 1,
        size,
        &proof.path,
        &root
    ));
    let old = early.checkpoint.checkpoint.clone();
    let proof = now.consistency(&place.dir, old.size, 0).unwrap();
    assert_eq!(proof.old_root, old.root);
    // It goes on, also where a removal was broken off, and where the first key's file is gone.
    std::fs::write(place.segment(1), &gone_segment).unwrap();
    std::fs::remove_file(place.dir.join("first.pub")).unwrap();
    verified(outside(None));
    let log = try_open(&place.dir, 2, keeping(1)).unwrap();
    assert!(!place.segment(1).exists());
    fill(&log, 0, 10);
    log.crash();
    let report = verify_dir_against(&place.dir, outside(None)).unwrap();
    assert!(report.intact, "{:?}", report.first_break);
    // And when the tiles of what is still there have to be made anew.
    let last = std::fs::read_dir(place.dir.join("tile/0")).unwrap();
    let last = last
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file());
    std::fs::remove_file(last.max().unwrap()).unwrap();
    let log = try_open(&place.dir, 3, keeping(1)).unwrap();
    fill(&log, 0, 10);
    log.close();
    let report = verify_dir_against(&place.dir, outside(None)).unwrap();
    assert!(report.intact && report.missing_tiles == 0, "{report:?}");
}

#[test]
fn what_is_gone_without_a_word_and_what_was_changed_of_it_is_found() {
    let place = Place::new();
    let log = try_open(&place.dir, 1, keeping(0)).unwrap();
    fill(&log, 0, 900);
    log.close();
    let (all, now) = (segments(&place), u64::MAX);
    assert!(all.len() > 8);
    // Nobody asked for it, or what is needed lies there: nothing goes.
    let find = |config: &AuditConfig, needed: Option<Seq>, now| {
        let needed = needed.unwrap_or(Seq(u64::MAX));
        retire::candidates(&place.dir, config, needed, &[], now)
            .unwrap()
            .len()
    };
    let days = AuditConfig {
        keep_days: 1,
        ..keeping(0)
    };
    assert_eq!(find(&keeping(0), None, now), 0);
    assert_eq!(find(&days, None, 0), 0);
    assert_eq!(find(&days, None, now), 4);
    assert_eq!(find(&days, Some(Seq(1)), now), 0);
    assert_eq!(find(&days, Some(all[2]), now), 2);
    let day = AuditConfig {
        once_hours: u64::MAX,
        ..days.clone()
    };
    assert_eq!(find(&day, None, now), 0, "keys are read back from there");
    // A tile that is not what the segment gives: it stays.
    let tile = place.dir.join("tile/0/000");
    let good = std::fs::read(&tile).unwrap();
    std::fs::write(&tile, vec![0; good.len()]).unwrap();
    assert_eq!(find(&days, None, now), 0);
    std::fs::write(&tile, &good).unwrap();
    // Removed, and no record says so.
    let gone = retire::candidates(&place.dir, &days, Seq(u64::MAX), &[], now).unwrap();
    retire::remove(&place.dir, &gone).unwrap();
    assert_eq!(segments(&place)[0], all[4]);
    let fault = verify_dir(&place.dir).unwrap().first_break.unwrap();
    assert_eq!(fault.seq.0, all[4].0 - 1, "{fault}");
    assert!(
        fault.why.contains("no record under a checkpoint says"),
        "{fault}"
    );
    // Nor is it gone on with: that it may be so is not written down.
    let refused = try_open(&place.dir, 2, keeping(0)).err().unwrap();
    assert!(
        refused
            .to_string()
            .contains("not of this gateway's retention"),
        "{refused}"
    );
    keys(&place.dir).retire(retire::until(&gone).seq.0).unwrap();
    // With a record of it.
    let log = try_open(&place.dir, 2, keeping(0)).unwrap();
    log.append(retire::record(&gone, &[]).unwrap()).unwrap();
    log.close();
    intact(&place.dir);
    // Every byte of what stays, and of the tiles over what is gone.
    for name in ["retired", "tile/0/000", "tile/0/001"] {
        let path = place.dir.join(name);
        let good = std::fs::read(&path).unwrap();
        let under_gone = Tile::of_path(name).is_none_or(|tile| (tile.index + 1) * 256 < all[4].0);
        for at in (0..good.len()).step_by(if name == "retired" { 1 } else { 61 }) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            let report = verify_dir(&place.dir).unwrap();
            assert!(!report.intact, "{name} {at}");
            let fault = report.first_break.unwrap();
            assert!(!under_gone || fault.seq < all[4], "{name} {at}: {fault}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!verify_dir(&place.dir).unwrap().intact, "{name} is gone");
        std::fs::write(&path, &good).unwrap();
    }
    intact(&place.dir);
    // Without it nothing says why the first segments are not there: nothing is written on that.
    std::fs::remove_file(place.dir.join("retired")).unwrap();
    std::fs::remove_file(place.segment(all[4].0)).ok();
    let error = verify_dir(&place.dir).unwrap().first_break.unwrap();
    assert_eq!(error.seq, Seq(1));
}

/// Age waits for whoever still has to take a record: a sink, a room that reads it back, a key against running twice.
#[test]
fn a_segment_that_is_old_stays_until_every_sink_has_taken_it() {
    const DAY: u64 = 86_400_000;
    let place = Place::new();
    let keeping = AuditConfig {
        keep_days: 1,
        ..keeping(0)
    };
    let log = try_open(&place.dir, 1, keeping.clone()).unwrap();
    fill(&log, 0, 1_200);
    log.close();
    let all = segments(&place);
    assert!(all.len() > 5, "{all:?}");
    let last = Seq(all[1].0 - 1);
    let now = u64::try_from(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap();
    let going = |config: &AuditConfig, needed, taken: &[Seq], now| {
        let taken: Vec<_> = taken.iter().map(|seq| ("a".to_owned(), *seq)).collect();
        let found = retire::candidates(&place.dir, config, needed, &taken, now).unwrap();
        found.iter().map(|gone| gone.last.seq).collect::<Vec<_>>()
    };
    let (all_read, later) = (Seq(u64::MAX), now + 2 * DAY);
    assert_eq!(going(&keeping, all_read, &[], now), [], "too young");
    let most = going(&keeping, all_read, &[], later);
    assert_eq!(most.first(), Some(&last));
    assert_eq!(most.len(), 4);
    // One sink of two has everything but the last record of the first segment.
    let behind = Seq(last.0 - 1);
    assert_eq!(
        going(&keeping, all_read, &[Seq(u64::MAX), behind], later),
        []
    );
    assert_eq!(
        going(&keeping, all_read, &[Seq(u64::MAX), last], later),
        [last]
    );
    // A room reads back from there.
    assert_eq!(going(&keeping, last, &[], later), []);
    assert_eq!(going(&keeping, Seq(last.0 + 1), &[], later), [last]);
    // Keys against running twice are read back for as long.
    let once = AuditConfig {
        once_hours: 72,
        ..keeping.clone()
    };
    assert_eq!(going(&once, all_read, &[], later), []);
    assert_eq!(going(&once, all_read, &[], now + 4 * DAY).len(), 4);
    // A disk that fills waits for no sink.
    let much = AuditConfig {
        keep_mib: 1,
        ..keeping
    };
    let log = try_open(&place.dir, 2, much.clone()).unwrap();
    fill(&log, 0, 1_000);
    log.close();
    assert_eq!(going(&much, all_read, &[Seq(0)], now).first(), Some(&last));
}

#[test]
fn parts_of_keys_that_a_kill_left_go_with_the_next_start() {
    let place = Place::new();
    place.try_open(1).unwrap().close();
    let keys = place.dir.with_file_name("keys");
    let part = keys.join("audit-0000000000000001.new");
    std::fs::write(&part, b"half").unwrap();
    place.try_open(2).unwrap().close();
    assert!(!part.exists());
}
