//! The format holds what it promises: strict, canonical, and every change is found with its place.

mod damage;
mod epoch;
mod format;
mod later;
mod torn;
mod tree;

use super::*;
use std::collections::BTreeMap;

const BOOT: BootId = BootId([7; 16]);
const STAMP: Stamp = Stamp {
    wall_ms: 1_700_000_000_000,
    mono_ms: 42,
};

fn full_entry(n: u64) -> Entry {
    Entry {
        action: "exec.run".into(),
        principal: Some(format!("device:{n}")),
        act_as: Some("agent:demo".into()),
        door: Some("ws".into()),
        object: Some("run\u{e9}".into()),
        decision: Some("allow".into()),
        rule: Some("r1".into()),
        plan_hash: Some(Hash32([9; 32])),
        approval_id: Some("ap1".into()),
        idempotency_key: Some(format!("key{n}")),
        request_id: Some("q1".into()),
        detail: BTreeMap::from([
            ("argv".into(), "uname -a".into()),
            ("cwd".into(), String::new()),
        ]),
        ..Entry::default()
    }
}

/// A body of every kind, by turns.
fn body(n: u64) -> Body {
    match n % 8 {
        0 => Body::intent(full_entry(n)).unwrap(),
        1 => Body::outcome(Seq(n), Outcome::ok().with("exit", "0")).unwrap(),
        2 => Body::event(Entry::new("auth.failed")).unwrap(),
        3 => Body::Start {
            reopened: false,
            open: Some(vec![Seq(1), Seq(4)]),
            version: "0.1.0".into(),
            state_rev: None,
            epoch: None,
        },
        4 => Body::outcome(Seq(n), Outcome::unknown(BOOT)).unwrap(),
        5 => Body::Carry {
            open: None,
            state_rev: None,
            epoch: None,
        },
        6 => Body::outcome(Seq(n), Outcome::refused("PLAN_CHANGED")).unwrap(),
        _ => Body::Gap {
            count: 3,
            first_ms: 1,
            last_ms: 2,
            reason: "DISK_FULL".into(),
        },
    }
}

/// What tags the records of these tests.
fn record_key() -> RecordKey {
    let seed = zeroize::Zeroizing::new([7; 32]);
    EpochKey::from_random(&seed).records().clone()
}

/// The records of a segment without its header, and the offset of each (the last is the end).
fn chain(n: u64) -> (Vec<u8>, Vec<usize>) {
    chain_by(n, Some(&record_key()))
}

fn chain_by(n: u64, key: Option<&RecordKey>) -> (Vec<u8>, Vec<usize>) {
    let (mut out, mut head, mut at) = (Vec::new(), Head::EMPTY, vec![0]);
    for i in 0..n {
        head = encode_record(&mut out, head, STAMP, BOOT, &body(i), key).unwrap();
        at.push(out.len());
    }
    (out, at)
}

/// How reading a whole segment ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Clean(u64),
    Torn(Break),
    Altered(Break),
}

fn read(bytes: &[u8]) -> End {
    let mut scan = Scanner::new(Head::EMPTY, 0);
    loop {
        let at = usize::try_from(scan.offset()).unwrap();
        match scan.step(&bytes[at..], true) {
            Step::Record { .. } => {}
            Step::End => return End::Clean(scan.head().seq.0),
            Step::Torn(at) => return End::Torn(at),
            Step::Altered(at) => return End::Altered(at),
            Step::More(_) | Step::ZerosSoFar(_) => panic!("the whole file was in view"),
        }
    }
}
