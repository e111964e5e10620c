//! What came into the format later: it has kinds of its own, and what was written before reads as it did.

use super::super::epoch::Signature;
use super::*;

fn leaf(body: &Body) -> Vec<u8> {
    let mut out = Vec::new();
    encode_record(&mut out, Head::EMPTY, STAMP, BOOT, body, None).unwrap();
    out[4..out.len() - 32].to_vec()
}

/// As a leaf that says of itself what it is: the kind, and the length inside.
fn with_kind(mut leaf: Vec<u8>, kind: u8) -> Vec<u8> {
    let len = u32::try_from(leaf.len()).unwrap().to_be_bytes();
    leaf[17..21].copy_from_slice(&len);
    leaf[93] = kind;
    leaf
}

fn proof() -> Proof {
    Proof {
        by: "device:ada".into(),
        how: "key of device ada, generation 7".into(),
        decision: "allow-once".into(),
        recorded: Seq(9),
    }
}

#[test]
fn policy_and_proof_come_back_and_older_records_keep_their_bytes() {
    let plain = full_entry(1);
    for (policy_hash, proof) in [
        (None, None),
        (Some(Hash32([4; 32])), None),
        (None, Some(proof())),
        (Some(Hash32([4; 32])), Some(proof())),
    ] {
        let is_later = policy_hash.is_some() || proof.is_some();
        let entry = Entry {
            policy_hash,
            proof,
            ..plain.clone()
        };
        for (body, kinds) in [
            (Body::intent(entry.clone()).unwrap(), [1, 11]),
            (Body::event(entry.clone()).unwrap(), [3, 12]),
        ] {
            let leaf = leaf(&body);
            assert_eq!(leaf[93], kinds[usize::from(is_later)]);
            let read = decode_leaf(&leaf).unwrap();
            assert_eq!(read.body.to_body(), body);
            let json = serde_json::to_string(&read.to_record(leaf_hash(&leaf))).unwrap();
            let back: Record = serde_json::from_str(&json).unwrap();
            assert_eq!(back.body, body, "{json}");
            assert_eq!(json.contains("policy_hash"), policy_hash.is_some());
        }
    }
}

#[test]
fn each_record_has_one_form() {
    let old = leaf(&Body::intent(full_entry(1)).unwrap());
    // The later kind with nothing to be later for, and the older with something behind it.
    let mut none = old.clone();
    none.extend([0, 0]);
    assert_eq!(
        decode_leaf(&with_kind(none, 11)).unwrap_err(),
        "a record of the later kind without what the kind is for"
    );
    let entry = Entry {
        policy_hash: Some(Hash32([4; 32])),
        proof: Some(proof()),
        ..full_entry(1)
    };
    let new = leaf(&Body::intent(entry).unwrap());
    assert_eq!(
        decode_leaf(&with_kind(new.clone(), 1)).unwrap_err(),
        "bytes follow the last field"
    );
    for cut in old.len()..new.len() {
        decode_leaf(&with_kind(new[..cut].to_vec(), 11)).unwrap_err();
    }
    for kind in [0, 13, 14, 15, 18, 255] {
        decode_leaf(&with_kind(new.clone(), kind)).unwrap_err();
    }
}

#[test]
fn what_a_proof_says_is_one_line_and_within_its_limits() {
    let entry = Entry {
        proof: Some(Proof {
            by: "a\nb".into(),
            ..proof()
        }),
        ..Entry::new("exec.run")
    };
    let Ok(Body::Intent(clean)) = Body::intent(entry.clone()) else {
        panic!()
    };
    assert_eq!(clean.proof.unwrap().by, "a\\u{a}b");
    let long = Entry {
        proof: Some(Proof {
            how: "x".repeat(257),
            ..proof()
        }),
        ..entry
    };
    assert_eq!(
        Body::intent(long).unwrap_err().code(),
        "AUDIT_ENTRY_INVALID"
    );
}

#[test]
fn how_far_the_state_had_come_comes_back_and_records_without_it_keep_their_bytes() {
    let mark = EpochMark {
        epoch: 3,
        key: PublicKey([5; 32]),
        signature: Signature([6; 64]),
    };
    let outcome = |state_rev| {
        let outcome = Outcome {
            state_rev,
            ..Outcome::ok().with("exit", "0")
        };
        Body::outcome(Seq(1), outcome).unwrap()
    };
    let start = |state_rev| Body::Start {
        reopened: false,
        open: Some(vec![Seq(1)]),
        version: "1".into(),
        state_rev,
        epoch: Some(mark),
    };
    let carry = |state_rev| Body::Carry {
        open: None,
        state_rev,
        epoch: Some(mark),
    };
    let far = Some(u64::MAX - 1);
    for bodies in [
        [(outcome(None), 2), (outcome(far), 13)],
        [(start(None), 9), (start(far), 14)],
        [(carry(None), 10), (carry(far), 15)],
    ] {
        for ((body, kind), rev) in bodies.into_iter().zip([None, far]) {
            let leaf = leaf(&body);
            assert_eq!(leaf[93], kind);
            let read = decode_leaf(&leaf).unwrap();
            assert_eq!(read.body.to_body(), body);
            let json = serde_json::to_string(&read.to_record(leaf_hash(&leaf))).unwrap();
            let back: Record = serde_json::from_str(&json).unwrap();
            assert_eq!(back.body, body, "{json}");
            assert_eq!(json.contains("state_rev"), rev.is_some());
            // What it says is the highest so far, read back as written.
            let mut ledgers = [(); 2].map(|()| Ledger::new(Head::EMPTY, OnceIndex::new(1, 1)));
            let head = Head {
                seq: Seq(1),
                hash: leaf_hash(&leaf),
            };
            ledgers[0].observe(&read, head);
            ledgers[1].wrote(&body, STAMP, BOOT, head);
            for ledger in ledgers {
                assert_eq!(ledger.state_rev, rev);
            }
            // The kind with it, without it, and the other way round, is none.
            let cut = with_kind(
                leaf[..leaf.len() - if rev.is_some() { 8 } else { 0 }].to_vec(),
                kind,
            );
            assert_eq!(decode_leaf(&cut).is_ok(), rev.is_none());
        }
    }
}

#[test]
fn what_is_sealed_comes_back_and_is_bounded() {
    for (policy_hash, body) in [
        (None, Body::event as fn(Entry) -> _),
        (Some(Hash32([4; 32])), Body::intent),
    ] {
        let entry = Entry {
            policy_hash,
            sealed: Sealed::new(vec![0x9f; 700]),
            ..full_entry(1)
        };
        let body = body(entry).unwrap();
        let leaf = leaf(&body);
        let kind = if policy_hash.is_some() { 16 } else { 17 };
        assert_eq!(leaf[93], kind);
        let read = decode_leaf(&leaf).unwrap();
        assert_eq!(read.body.to_body(), body);
        let json = serde_json::to_string(&read.to_record(leaf_hash(&leaf))).unwrap();
        let back: Record = serde_json::from_str(&json).unwrap();
        assert_eq!(back.body, body, "{json}");
        // A kind of before with the bytes behind it, and this kind without them.
        for other in [1, 3, 11, 12] {
            decode_leaf(&with_kind(leaf.clone(), other)).unwrap_err();
        }
        for cut in 0..702 {
            decode_leaf(&with_kind(leaf[..leaf.len() - 1 - cut].to_vec(), kind)).unwrap_err();
        }
        let mut none = leaf[..leaf.len() - 702].to_vec();
        none.extend([0, 0]);
        assert_eq!(
            decode_leaf(&with_kind(none, kind)).unwrap_err(),
            "a record of the later kind without what the kind is for"
        );
    }
    let long = Entry {
        sealed: Sealed::new(vec![0; Sealed::MOST + 1]),
        ..Entry::new("exec.run")
    };
    assert_eq!(
        Body::intent(long).unwrap_err().code(),
        "AUDIT_ENTRY_INVALID"
    );
}
