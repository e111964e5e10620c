//! Epoch keys and checkpoints on real files: a change of epoch broken off anywhere, keys and folders put back.

use super::super::notes;
use super::super::proofs::Signed;
use super::*;
use portcullis_core::audit::note::parse_first_key;
use portcullis_core::audit::tree::{check_consistency, check_inclusion};
use portcullis_core::audit::{EpochKey, PublicKey, SignedCheckpoint};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

fn small() -> AuditConfig {
    AuditConfig {
        segment_bytes: 64 * 1024,
        ..AuditConfig::default()
    }
}

/// Every file beside the log and under it, by its path.
pub(super) type Files = BTreeMap<PathBuf, Vec<u8>>;

pub(super) fn files(place: &Place) -> Files {
    let root = place.dir.parent().unwrap();
    let (mut found, mut folders) = (Files::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Puts all of it back, or what of it `which` lets pass; nothing else stays.
pub(super) fn put_back(place: &Place, files: &Files, which: impl Fn(&Path) -> bool) {
    let root = place.dir.parent().unwrap();
    for name in self::files(place).keys().filter(|name| which(name)) {
        std::fs::remove_file(root.join(name)).unwrap();
    }
    for (name, bytes) in files.iter().filter(|(name, _)| which(name)) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    for folder in ["audit", "keys"] {
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(root.join(folder), mode).unwrap();
    }
}

fn signed(log: &Open) -> Signed {
    let (tx, rx) = oneshot::channel();
    assert!(log.writer.submit(Job::Look(Answer::Own(tx), true)).is_ok());
    let look = rx.blocking_recv().unwrap().unwrap();
    *look.signed.unwrap()
}

fn checkpoint(log: &Open) -> SignedCheckpoint {
    (*signed(log).checkpoint).clone()
}

fn outside(checkpoint: &SignedCheckpoint) -> Outside {
    Outside {
        checkpoint: Some(checkpoint.clone()),
        first_key: None,
    }
}

fn first_key(place: &Place) -> PublicKey {
    let text = std::fs::read_to_string(place.dir.join("first.pub")).unwrap();
    parse_first_key(text.trim_end()).unwrap()
}

fn own_keys(place: &Place) -> Vec<u64> {
    keys(&place.dir).list().unwrap()
}

fn code(place: &Place) -> &'static str {
    place.try_open(9).err().map_or("opened", |e| e.code())
}

pub(super) fn fill(log: &Open, count: u64) {
    let all: Vec<u64> = (0..count).collect();
    for some in all.chunks(500) {
        let waits: Vec<_> = some.iter().map(|n| log.send(event(*n))).collect();
        for wait in waits {
            wait.blocking_recv().unwrap().unwrap();
        }
    }
}

#[test]
fn each_start_and_each_segment_is_an_epoch_and_only_the_newest_key_is_kept() {
    let place = Place::new();
    let log = try_open(&place.dir, 1, small()).unwrap();
    let began = log.report.began.clone().unwrap();
    assert_eq!(parse_first_key(&began), Some(first_key(&place)));
    fill(&log, 1_000);
    log.close();
    let segments = super::super::files::segments(&place.dir).unwrap().len() as u64;
    let log = try_open(&place.dir, 2, small()).unwrap();
    assert_eq!(log.report.began, None);
    log.crash();
    assert!(segments > 2);
    assert_eq!(own_keys(&place), [segments + 1]);
    let with_key = Outside {
        first_key: Some(first_key(&place)),
        checkpoint: None,
    };
    let report = verify_dir_against(&place.dir, with_key).unwrap();
    assert!(report.intact, "{:?}", report.first_break);
    assert_eq!(report.epochs, segments + 1);
    // Each epoch but the last is closed by its key, and each 256 records there is one.
    assert!(
        report.checkpoints >= segments + 1_000 / 256 - 1,
        "{report:?}"
    );
    assert!(report.notice.unwrap().starts_with("no outside checkpoint"));
    let other = Outside {
        first_key: Some(EpochKey::from_random(&zeroize::Zeroizing::new([7; 32])).public()),
        checkpoint: None,
    };
    let report = verify_dir_against(&place.dir, other).unwrap();
    assert_eq!(report.first_break.unwrap().seq, Seq(1));
}

#[test]
fn a_quiet_log_is_signed_in_its_time_and_an_end_in_order_at_once() {
    let place = Place::new();
    let config = AuditConfig {
        checkpoint_ms: 50,
        ..AuditConfig::default()
    };
    let log = try_open(&place.dir, 1, config).unwrap();
    log.append(event(1)).unwrap();
    let sizes = |epoch| {
        let all = notes::read(&place.dir, epoch, true).unwrap().0;
        all.iter()
            .map(|note| note.checkpoint.size)
            .collect::<Vec<_>>()
    };
    let began = std::time::Instant::now();
    while sizes(1).last() != Some(&2) {
        assert!(began.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    }
    // Nothing new: nothing is signed.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(sizes(1).last(), Some(&2));
    log.close();
    assert_eq!(sizes(1).last(), Some(&3));
    assert!(verify_dir(&place.dir).unwrap().closed);
}

/// The bug: a checkpoint that was wiped was passed over as one that a power cut had lost, and nothing said so. And of what no
/// key has signed yet nothing was said at all.
#[test]
fn verifying_says_what_no_checkpoint_covers_and_which_were_passed_over() {
    let place = Place::new();
    let log = place.try_open(1).unwrap();
    fill(&log, 300);
    log.close();
    let report = verify_dir(&place.dir).unwrap();
    assert_eq!(
        (report.intact, report.unsigned, report.cut_checkpoints),
        (true, 0, None)
    );
    let path = place.dir.join("checkpoints/0000000000000001");
    let whole = std::fs::read(&path).unwrap();
    let mut wiped = whole.clone();
    let last = whole.len() - 10;
    wiped[last] = 0;
    std::fs::write(&path, &wiped).unwrap();
    let report = verify_dir(&place.dir).unwrap();
    assert!(
        report.unsigned > 0 && report.cut_checkpoints == Some(1),
        "{report:?}"
    );
    std::fs::remove_file(&path).unwrap();
    let report = verify_dir(&place.dir).unwrap();
    assert_eq!(report.unsigned, report.records);
}

#[test]
fn a_record_is_proven_and_a_later_log_is_proven_to_go_on() {
    let place = Place::new();
    let log = try_open(&place.dir, 1, small()).unwrap();
    fill(&log, 700);
    let before = checkpoint(&log);
    fill(&log, 700);
    let now = signed(&log);
    for seq in [1, 2, 256, 257, 700, before.checkpoint.size, now.told().size] {
        let proof = now.prove(&place.dir, Seq(seq)).unwrap();
        assert!(check_inclusion(
            &proof.leaf_hash,
            seq - 1,
            proof.checkpoint.size,
            &proof.path,
            &proof.checkpoint.root
        ));
        let record = &place.records()[usize::try_from(seq).unwrap() - 1];
        assert_eq!(record.hash, proof.leaf_hash);
    }
    let (old, root) = (before.checkpoint.size, before.checkpoint.root);
    let proof = now.consistency(&place.dir, old, 0).unwrap();
    assert_eq!(proof.old_root, root);
    assert!(check_consistency(
        old,
        &root,
        proof.new,
        &proof.checkpoint.root,
        &proof.path
    ));
    for wrong in [0, now.told().size + 1] {
        let error = now.prove(&place.dir, Seq(wrong)).unwrap_err();
        assert_eq!(error.code(), "AUDIT_NO_RECORD");
    }
    let error = now.consistency(&place.dir, old, old - 1).unwrap_err();
    assert_eq!(error.code(), "AUDIT_NO_RECORD");
    // A tile that does not give the signed root proves nothing.
    let path = place.dir.join("tile/0/001");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = now.prove(&place.dir, Seq(300)).unwrap_err();
    assert_eq!(error.code(), "AUDIT_UNREADABLE");
    log.close();
}

/// As after a crash between any two steps of the change: key made; named; closed; destroyed.
#[test]
fn a_change_of_epoch_broken_off_anywhere_is_ended_by_the_next_start() {
    let place = Place::new();
    let log = place.open(1);
    fill(&log, 10);
    log.close();
    let before = files(&place);
    let old_key = place
        .dir
        .with_file_name("keys")
        .join("audit-0000000000000001.key");
    // 1 was done: the next key is there, and no record names it.
    keys(&place.dir).make(2, 12).unwrap();
    let log = place.open(2);
    log.crash();
    assert_eq!(own_keys(&place), [2]);
    intact(&place.dir);
    // 2 was done: named, and the checkpoint that closes the old epoch is not there.
    let after = files(&place);
    let closing = place.dir.join("checkpoints/0000000000000001");
    let whole = std::fs::read(&closing).unwrap();
    let begun = before[Path::new("audit/checkpoints/0000000000000001")].len();
    for cut in begun..whole.len() {
        put_back(&place, &after, |_| true);
        std::fs::write(
            &old_key,
            &before[Path::new("keys/audit-0000000000000001.key")],
        )
        .unwrap();
        std::fs::write(&closing, &whole[..cut]).unwrap();
        intact(&place.dir);
        place.open(3).crash();
        assert_eq!(std::fs::read(&closing).unwrap(), whole, "cut at {cut}");
        assert_eq!(own_keys(&place), [3]);
        intact(&place.dir);
    }
    // 3 was done: only the key is left, whole or overwritten.
    put_back(&place, &after, |_| true);
    std::fs::write(
        &old_key,
        &before[Path::new("keys/audit-0000000000000001.key")],
    )
    .unwrap();
    place.open(3).crash();
    assert_eq!(own_keys(&place), [3]);
    intact(&place.dir);
    put_back(&place, &after, |_| true);
    std::fs::write(&old_key, [0; 81]).unwrap();
    place.open(3).crash();
    assert_eq!(own_keys(&place), [3]);
    let names = std::fs::read_dir(place.dir.with_file_name("keys")).unwrap();
    let of_old = |name: &str| name.contains("0000000000000001");
    let left = names
        .filter(|entry| of_old(entry.as_ref().unwrap().file_name().to_str().unwrap()))
        .count();
    assert_eq!(left, 0, "nothing of a destroyed key stays");
}

#[test]
fn what_was_put_back_is_refused_or_told_by_an_outside_checkpoint() {
    let place = Place::new();
    let log = place.open(1);
    fill(&log, 10);
    let first = checkpoint(&log);
    log.close();
    let early = files(&place);
    let log = place.open(2);
    fill(&log, 10);
    log.close();
    let log = place.open(3);
    fill(&log, 3);
    let newest = checkpoint(&log);
    log.close();
    let late = files(&place);
    let in_folder = |folder: &'static str| move |name: &Path| name.starts_with(folder);
    // The log alone: its keys are further.
    put_back(&place, &early, in_folder("audit"));
    assert_eq!(code(&place), "AUDIT_KEY_MISMATCH");
    // The keys alone: an old key replayed.
    put_back(&place, &late, |_| true);
    put_back(&place, &early, in_folder("keys"));
    assert_eq!(code(&place), "AUDIT_KEY_MISMATCH");
    // An old key in the place of the new.
    put_back(&place, &late, |_| true);
    let root = place.dir.parent().unwrap();
    let old = &early[Path::new("keys/audit-0000000000000001.key")];
    std::fs::write(root.join("keys/audit-0000000000000003.key"), old).unwrap();
    assert_eq!(code(&place), "AUDIT_KEY_MISMATCH");
    // No key.
    std::fs::remove_file(root.join("keys/audit-0000000000000003.key")).unwrap();
    assert_eq!(code(&place), "AUDIT_KEY_MISMATCH");
    // The segments alone: the checkpoints know of more.
    put_back(&place, &late, |_| true);
    put_back(&place, &early, |name| {
        name.extension().is_some_and(|extension| extension == "log")
    });
    assert_eq!(code(&place), "AUDIT_ALTERED");
    let fault = verify_dir(&place.dir).unwrap().first_break.unwrap();
    assert_eq!(fault.seq.0, first.checkpoint.size + 2, "{fault}");
    // All of it: only who kept a checkpoint elsewhere can tell.
    put_back(&place, &early, |_| true);
    assert!(verify_dir(&place.dir).unwrap().intact);
    let report = verify_dir_against(&place.dir, outside(&newest)).unwrap();
    assert_eq!(report.first_break.unwrap().seq.0, first.checkpoint.size + 2);
    assert!(
        verify_dir_against(&place.dir, outside(&first))
            .unwrap()
            .intact
    );
    // And when it has grown again to the same length and beyond, with keys of its own.
    let log = place.open(4);
    fill(&log, 40);
    log.close();
    intact(&place.dir);
    let report = verify_dir_against(&place.dir, outside(&newest)).unwrap();
    assert!(!report.intact && report.notice.is_none());
    assert!(
        verify_dir_against(&place.dir, outside(&first))
            .unwrap()
            .intact
    );
}

#[test]
fn a_history_written_anew_with_a_new_key_is_told_by_the_first_key_and_by_any_checkpoint() {
    let (real, forged) = (Place::new(), Place::new());
    let log = real.open(1);
    fill(&log, 20);
    let kept = checkpoint(&log);
    log.close();
    let log = forged.open(1);
    fill(&log, 30);
    log.close();
    intact(&forged.dir);
    let with_key = Outside {
        first_key: Some(first_key(&real)),
        checkpoint: None,
    };
    for outside in [with_key, outside(&kept)] {
        let report = verify_dir_against(&forged.dir, outside).unwrap();
        assert!(!report.intact);
    }
}

#[test]
fn every_byte_of_checkpoints_keys_and_first_key_counts() {
    let place = Place::new();
    let log = place.open(1);
    fill(&log, 600);
    log.close();
    let log = place.open(2);
    fill(&log, 5);
    log.close();
    let good = files(&place);
    let root = place.dir.parent().unwrap();
    let of_interest = |name: &Path| {
        name.starts_with("keys")
            || name.starts_with("audit/checkpoints")
            || name.ends_with("first.pub")
    };
    for (name, bytes) in good.iter().filter(|(name, _)| of_interest(name)) {
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            std::fs::write(root.join(name), &bad).unwrap();
            if name.starts_with("keys") {
                assert_eq!(code(&place), "AUDIT_KEY_MISMATCH", "{name:?} {at}");
            } else {
                let report = verify_dir(&place.dir).unwrap();
                assert!(!report.intact, "{name:?} {at}");
            }
        }
        std::fs::write(root.join(name), bytes).unwrap();
    }
    intact(&place.dir);
    // Of the closed epoch no byte may be missing; of the newest, a crash may leave the front of a checkpoint.
    let closed = root.join("audit/checkpoints/0000000000000001");
    let bytes = std::fs::read(&closed).unwrap();
    for cut in 0..bytes.len() {
        std::fs::write(&closed, &bytes[..cut]).unwrap();
        let report = verify_dir(&place.dir).unwrap();
        let is_between = bytes[..cut].ends_with(b"\n") && cut > 0;
        // A cut between two checkpoints is a missing close of an epoch that nothing stands on yet.
        assert!(!report.intact || is_between || cut == 0, "cut at {cut}");
    }
    std::fs::write(&closed, &bytes).unwrap();
    place.open(3).close();
    std::fs::write(&closed, b"").unwrap();
    assert!(
        !verify_dir(&place.dir).unwrap().intact,
        "a later epoch stands on it"
    );
}

#[test]
fn a_log_that_names_no_key_verifies_and_is_not_gone_on_with() {
    let place = Place::new();
    let log = place.open(1);
    fill(&log, 3);
    log.close();
    // As the version before wrote it.
    let mut bytes = portcullis_core::audit::SegmentHeader {
        after: portcullis_core::audit::Head::EMPTY,
    }
    .encode()
    .to_vec();
    let mut head = portcullis_core::audit::Head::EMPTY;
    for record in place.records() {
        let body = match record.body {
            Body::Start {
                reopened,
                open,
                version,
                ..
            } => Body::Start {
                reopened,
                open,
                version,
                state_rev: None,
                epoch: None,
            },
            body => body,
        };
        let (stamp, boot) = (record.stamp, record.boot);
        head = portcullis_core::audit::encode_record(&mut bytes, head, stamp, boot, &body, None)
            .unwrap();
    }
    let old = Place::new();
    std::fs::create_dir(&old.dir).unwrap();
    std::fs::set_permissions(&old.dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(old.segment(1), &bytes).unwrap();
    let report = verify_dir(&old.dir).unwrap();
    assert!(report.intact && report.first_key.is_none());
    // Whoever has no key could have written it whole.
    let found = files(&old);
    assert_eq!(code(&old), "AUDIT_ALTERED");
    let mut now = files(&old);
    now.retain(|name, _| !name.ends_with("lock"));
    assert_eq!(now, found, "nothing was written");
}

/// The bug: a start on a full segment began the next one first, so that two marks named a key of the same number.
#[test]
fn a_start_on_a_full_segment_ends_one_epoch_and_not_two() {
    let place = Place::new();
    let log = place.open(1);
    fill(&log, 600);
    log.crash();
    for boot in 2..5 {
        try_open(&place.dir, boot, small()).unwrap().crash();
        intact(&place.dir);
    }
    assert_eq!(own_keys(&place), [4]);
}
