//! Random histories: records, acts, starts in order and after crashes, segments, epochs, retention. However the log came to
//! be, it verifies, each checkpoint of its life is part of it, and no change to it passes.

use super::super::proofs::Signed;
use super::*;
use portcullis_core::audit::note::parse_first_key;
use portcullis_core::audit::tree::check_consistency;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Records of so many bytes each.
    Events(u16, u16),
    /// An act, ended or left open.
    Act(bool),
    /// Somebody outside keeps a checkpoint.
    Keep,
    /// Ended in order or not, and begun again.
    Again(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..400_u16, 0..900_u16).prop_map(|(count, size)| Step::Events(count, size)),
        2 => any::<bool>().prop_map(Step::Act),
        2 => Just(Step::Keep),
        2 => any::<bool>().prop_map(Step::Again),
    ]
}

/// How somebody changes it.
#[derive(Debug, Clone)]
enum Change {
    /// A bit of any file.
    Flip(prop::sample::Index, prop::sample::Index, u8),
    /// A segment ends earlier.
    Cut(prop::sample::Index, prop::sample::Index),
    /// A segment is not there.
    Remove(prop::sample::Index),
    /// Two have changed places.
    Swap(prop::sample::Index, prop::sample::Index),
    /// One is there twice.
    Double(prop::sample::Index, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), index(), 0..8_u8).prop_map(|(file, at, bit)| Change::Flip(file, at, bit)),
        2 => (index(), index()).prop_map(|(file, at)| Change::Cut(file, at)),
        1 => index().prop_map(Change::Remove),
        1 => (index(), index()).prop_map(|(a, b)| Change::Swap(a, b)),
        1 => (index(), 1..200_u8).prop_map(|(file, by)| Change::Double(file, by)),
    ]
}

fn collect(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.file_name().unwrap() != "lock" {
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
}

fn signed(log: &Open) -> Signed {
    let (tx, rx) = oneshot::channel();
    assert!(log.writer.submit(Job::Look(Answer::Own(tx), true)).is_ok());
    *rx.blocking_recv().unwrap().unwrap().signed.unwrap()
}

fn live(place: &Place, config: &AuditConfig, steps: &[Step]) -> Vec<Signed> {
    let (mut boot, mut kept) = (1, Vec::new());
    let mut log = try_open(&place.dir, boot, config.clone()).unwrap();
    for step in steps {
        match *step {
            Step::Events(count, size) => {
                for some in (0..count).collect::<Vec<_>>().chunks(100) {
                    let big = |n: &u16| {
                        let entry = Entry::new("test.event").with("n", n.to_string());
                        Body::event(entry.with("x", "x".repeat(size.into()))).unwrap()
                    };
                    let waits: Vec<_> = some.iter().map(|n| log.send(big(n))).collect();
                    for wait in waits {
                        wait.blocking_recv().unwrap().unwrap();
                    }
                }
            }
            Step::Act(ends) => {
                let intent = log.intent("exec.run");
                if ends {
                    log.outcome(intent, Outcome::ok()).unwrap();
                }
            }
            Step::Keep => kept.push(signed(&log)),
            Step::Again(in_order) => {
                if in_order {
                    log.close();
                } else {
                    log.crash();
                }
                boot += 1;
                log = try_open(&place.dir, boot, config.clone()).unwrap();
                log.append(Body::event(Entry::new("vault.open")).unwrap())
                    .unwrap();
            }
        }
    }
    log.append(Body::event(Entry::new("test.last")).unwrap())
        .unwrap();
    log.close();
    // What its last start says for it.
    let log = try_open(&place.dir, boot + 1, config.clone()).unwrap();
    kept.push(signed(&log));
    log.close();
    let newest = try_open(&place.dir, boot + 2, config.clone()).unwrap();
    kept.push(signed(&newest));
    newest.crash();
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_log_has_been_through_it_verifies_and_no_change_of_it_passes(
        steps in prop::collection::vec(step(), 2..14),
        retains in any::<bool>(),
        changes in prop::collection::vec(change(), 12),
    ) {
        let place = Place::new();
        let config = AuditConfig {
            segment_bytes: 64 * 1024,
            once_hours: 0,
            keep_mib: u64::from(retains),
            ..AuditConfig::default()
        };
        let kept = live(&place, &config, &steps);
        let first = std::fs::read_to_string(place.dir.join("first.pub")).unwrap();
        let first_key = parse_first_key(first.trim_end());
        prop_assert!(first_key.is_some());
        let outside = |signed: &Signed| Outside { first_key, checkpoint: Some((*signed.checkpoint).clone()) };
        let newest = kept.last().unwrap();
        for signed in &kept {
            let report = verify_dir_against(&place.dir, outside(signed)).unwrap();
            prop_assert!(report.intact, "{:?}", report.first_break);
            let (old, new) = (&signed.checkpoint.checkpoint, &newest.checkpoint.checkpoint);
            let proof = newest.consistency(&place.dir, old.size, new.size).unwrap();
            prop_assert!(check_consistency(old.size, &old.root, new.size, &new.root, &proof.path));
        }
        let mut files = BTreeMap::new();
        collect(&place.dir, &mut files);
        let all: Vec<&PathBuf> = files.keys().filter(|path| !files[*path].is_empty()).collect();
        let segments: Vec<&PathBuf> = files.keys().filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
        for change in changes {
            let (touched, why): (Vec<&PathBuf>, String) = match &change {
                Change::Flip(file, at, bit) => {
                    let path = *file.get(&all);
                    let mut bytes = files[path].clone();
                    let at = at.index(bytes.len());
                    bytes[at] ^= 1 << bit;
                    std::fs::write(path, &bytes).unwrap();
                    (vec![path], format!("byte {at} of {}", path.display()))
                }
                Change::Cut(file, at) => {
                    let path = *file.get(&segments);
                    let at = at.index(files[path].len());
                    std::fs::write(path, &files[path][..at]).unwrap();
                    (vec![path], format!("{} cut at {at}", path.display()))
                }
                Change::Remove(file) => {
                    let path = *file.get(&segments);
                    std::fs::remove_file(path).unwrap();
                    (vec![path], format!("{} removed", path.display()))
                }
                Change::Swap(a, b) => {
                    let (a, b) = (*a.get(&segments), *b.get(&segments));
                    if a == b {
                        continue;
                    }
                    std::fs::write(a, &files[b]).unwrap();
                    std::fs::write(b, &files[a]).unwrap();
                    (vec![a, b], format!("{} and {}", a.display(), b.display()))
                }
                Change::Double(file, by) => {
                    let path = *file.get(&segments);
                    let name = path.file_stem().unwrap().to_str().unwrap();
                    let twin = place.segment(name.parse::<u64>().unwrap() + u64::from(*by));
                    if files.contains_key(&twin) {
                        continue;
                    }
                    std::fs::write(&twin, &files[path]).unwrap();
                    let passes = verify_dir_against(&place.dir, outside(newest)).is_ok_and(|report| report.intact);
                    std::fs::remove_file(&twin).unwrap();
                    prop_assert!(!passes, "{} twice", path.display());
                    continue;
                }
            };
            let report = verify_dir_against(&place.dir, outside(newest));
            for path in touched {
                std::fs::write(path, &files[path]).unwrap();
            }
            // A byte of the newest checkpoints that became a zero is what a power cut leaves: told, and no break.
            let unseen = report.is_ok_and(|report| report.intact && report.cut_checkpoints.is_none());
            prop_assert!(!unseen, "{why}");
        }
        prop_assert!(verify_dir_against(&place.dir, outside(newest)).unwrap().intact);
    }
}

/// A clock that jumps, backwards or forwards, changes when a record says that it was written, and nothing else.
#[test]
fn a_clock_that_jumps_either_way_breaks_nothing_and_takes_no_record_along() {
    use portcullis_core::audit::{Stamp, encode_record};
    let place = Place::new();
    place.open(9).crash();
    let begun = place.head();
    let key = keys(&place.dir).open_all().unwrap().0.remove(&1).unwrap();
    let (mut bytes, mut head) = (Vec::new(), begun);
    let year = 31_536_000_000;
    let now = 1_790_000_000_000_u64;
    for (n, wall_ms) in [now, now + 10 * year, now - 10 * year, 0, u64::MAX, now]
        .into_iter()
        .enumerate()
    {
        let stamp = Stamp {
            wall_ms,
            mono_ms: n as u64,
        };
        let body = event(n as u64);
        let (boot, key) = (BootId([9; 16]), Some(key.records()));
        head = encode_record(&mut bytes, head, stamp, boot, &body, key).unwrap();
    }
    place.add(&bytes);
    let config = AuditConfig {
        segment_bytes: 64 * 1024,
        keep_days: 1,
        once_hours: 0,
        ..AuditConfig::default()
    };
    let log = try_open(&place.dir, 1, config.clone()).unwrap();
    let begun = log.once("uid:0", "k");
    let Once::New { seq } = begun else { panic!() };
    log.outcome(seq, Outcome::ok()).unwrap();
    log.close();
    try_open(&place.dir, 2, config).unwrap().close();
    let records = place.records();
    assert!(
        records
            .iter()
            .zip(1..)
            .all(|(record, n)| record.seq == Seq(n))
    );
    assert_eq!(records[5].stamp.wall_ms, u64::MAX);
    intact(&place.dir);
}
