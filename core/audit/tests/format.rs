//! Bytes, limits, escaping, ledger, keys, queries.

use super::*;
use proptest::prelude::*;

fn decode_all(bytes: &[u8]) -> Vec<Record> {
    let (mut scan, mut out) = (Scanner::new(Head::EMPTY, 0), Vec::new());
    loop {
        let at = usize::try_from(scan.offset()).unwrap();
        match scan.step(&bytes[at..], true) {
            Step::Record { leaf, hash, .. } => out.push(leaf.to_record(hash)),
            Step::End => return out,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_kind_comes_back_as_written_and_as_json() {
    let (bytes, _) = chain(16);
    let records = decode_all(&bytes);
    for (i, record) in records.iter().enumerate() {
        assert_eq!(record.body, body(i as u64));
        let json = serde_json::to_string(record).unwrap();
        assert_eq!(
            &serde_json::from_str::<Record>(&json).unwrap(),
            record,
            "{json}"
        );
    }
}

#[test]
fn the_leaf_hash_is_that_of_rfc_6962() {
    // The leaf hashes of the RFC's reference data: an empty leaf and the leaf 0x00.
    assert_eq!(
        leaf_hash(b"").to_string(),
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    );
    assert_eq!(
        leaf_hash(&[0]).to_string(),
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
    );
}

#[test]
fn the_bytes_of_version_one_stay() {
    let mut out = Vec::new();
    let head = encode_record(&mut out, Head::EMPTY, STAMP, BOOT, &Body::Stop, None).unwrap();
    assert_eq!(head.seq, Seq(1));
    assert_eq!(out.len(), 4 + 94 + 32);
    assert_eq!(&out[..4], &94_u32.to_be_bytes());
    assert_eq!(&out[4..21], b"portcullis-audit\x01");
    let (bytes, _) = chain_by(8, None);
    assert_eq!(
        leaf_hash(&bytes).to_string(),
        GOLDEN,
        "a change of the format needs a new version number"
    );
}

/// The hash over eight records, one of each kind: computed once, then kept.
const GOLDEN: &str = "166c872588b3e3a4414d7f93077352187caecc955f8acf1c66b96a15ef371e98";

/// The tag was computed by HKDF and HMAC of another language's standard library.
#[test]
fn the_tag_of_a_record_is_hmac_sha_256_under_a_key_that_hkdf_gives_of_the_epochs() {
    let mut out = Vec::new();
    let key = record_key();
    encode_record(&mut out, Head::EMPTY, STAMP, BOOT, &Body::Stop, Some(&key)).unwrap();
    assert_eq!(out.len(), 4 + 94 + TAG + 32);
    assert_eq!(&out[4..21], b"portcullis-audit\x02");
    let leaf = &out[4..out.len() - 32];
    let tag: [u8; TAG] = leaf[94..].try_into().unwrap();
    assert_eq!(BootId(tag).to_string(), TAG_OF_STOP);
    let read = decode_leaf(leaf).unwrap();
    assert!(key.has_tagged(&read));
    let other = EpochKey::from_random(&zeroize::Zeroizing::new([8; 32]));
    assert!(!other.records().has_tagged(&read));
    for bit in 0..leaf.len() * 8 {
        let mut bad = leaf.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(!decode_leaf(&bad).is_ok_and(|bad| key.has_tagged(&bad)));
    }
    // Without a tag nothing is anybody's, whatever its last bytes are.
    let (plain, _) = chain_by(1, None);
    assert!(!key.has_tagged(&decode_leaf(&plain[4..plain.len() - 32]).unwrap()));
}

/// Of the record above.
const TAG_OF_STOP: &str = "9b849e832d6983988cae6a52da564d9b";

#[test]
fn a_header_comes_back_and_any_flipped_bit_in_it_is_an_error() {
    let header = SegmentHeader {
        after: Head {
            seq: Seq(41),
            hash: Hash32([3; 32]),
        },
    };
    assert_eq!(header.file_name(), "0000000000000042.log");
    assert_eq!(
        SegmentHeader::first_of_name(&header.file_name()),
        Some(Seq(42))
    );
    for name in [
        "42.log",
        "+000000000000042.log",
        "0000000000000042.new",
        "00000000000000042.log",
    ] {
        assert_eq!(SegmentHeader::first_of_name(name), None);
    }
    let bytes = header.encode();
    assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes;
        bad[bit / 8] ^= 1 << (bit % 8);
        SegmentHeader::decode(&bad).unwrap_err();
    }
    for cut in 0..bytes.len() {
        assert_eq!(
            SegmentHeader::decode(&bytes[..cut]),
            Err(HeaderError::Short)
        );
    }
}

#[test]
fn a_leaf_with_anything_left_over_or_out_of_order_is_refused() {
    let mut out = Vec::new();
    let body = Body::event(Entry::new("a").with("k1", "v").with("k2", "v")).unwrap();
    encode_record(&mut out, Head::EMPTY, STAMP, BOOT, &body, None).unwrap();
    let leaf = &out[4..out.len() - 32];
    decode_leaf(leaf).unwrap();
    let relen = |mut leaf: Vec<u8>| {
        let len = u32::try_from(leaf.len()).unwrap().to_be_bytes();
        leaf[17..21].copy_from_slice(&len);
        leaf
    };
    assert_eq!(
        decode_leaf(&relen([leaf, &[0][..]].concat())).unwrap_err(),
        "bytes follow the last field"
    );
    let at = leaf.windows(2).position(|w| w == b"k1").unwrap();
    for key in [b"k2", b"k3"] {
        let mut bad = leaf.to_vec();
        bad[at..at + 2].copy_from_slice(key);
        assert_eq!(
            decode_leaf(&bad).unwrap_err(),
            "the keys of a map do not rise"
        );
    }
    let mut bad = leaf.to_vec();
    bad[at] = b'\n';
    assert_eq!(
        decode_leaf(&bad).unwrap_err(),
        "a field holds an unescaped control character"
    );
    bad[at] = 0xff;
    assert_eq!(decode_leaf(&bad).unwrap_err(), "a field is not UTF-8");
    let mut bad = leaf.to_vec();
    bad[16] = 3;
    assert_eq!(
        decode_leaf(&bad).unwrap_err(),
        "written by another version of the format"
    );
}

#[test]
fn nothing_that_forges_a_line_gets_in() {
    let entry = Entry {
        object: Some("x\n2026 root allowed\u{202e}\u{1b}[2J\\n".into()),
        ..Entry::new("exec.run").with("a\r", "b\0\u{2028}\u{e0041}")
    };
    let Body::Intent(entry) = Body::intent(entry).unwrap() else {
        panic!()
    };
    assert_eq!(
        entry.object.as_deref(),
        Some("x\\u{a}2026 root allowed\\u{202e}\\u{1b}[2J\\\\n")
    );
    assert_eq!(entry.detail["a\\u{d}"], "b\\u{0}\\u{2028}\\u{e0041}");
    let raw = Body::Event(Entry {
        object: Some("a\nb".into()),
        ..Entry::new("x")
    });
    let mut out = vec![1];
    encode_record(&mut out, Head::EMPTY, STAMP, BOOT, &raw, None).unwrap_err();
    assert_eq!(out, [1]);
}

#[test]
fn identity_over_its_limit_is_refused_and_details_are_cut_with_a_mark() {
    for (entry, wanted) in [
        (Entry::new(""), EntryError::Action),
        (Entry::new("Exec run"), EntryError::Action),
        (Entry::new("a".repeat(65)), EntryError::Action),
        (
            Entry {
                principal: Some("p".repeat(257)),
                ..Entry::new("a")
            },
            EntryError::TooLong {
                field: "principal",
                limit: 256,
            },
        ),
        (
            Entry {
                idempotency_key: Some("\n".repeat(60)),
                ..Entry::new("a")
            },
            EntryError::TooLong {
                field: "idempotency_key",
                limit: 256,
            },
        ),
        (
            Entry::new("a").with("k".repeat(65), ""),
            EntryError::TooLong {
                field: "detail key",
                limit: 64,
            },
        ),
    ] {
        assert_eq!(Body::intent(entry).unwrap_err(), wanted);
    }
    let many = (0..33).fold(Entry::new("a"), |entry, i| entry.with(i.to_string(), ""));
    assert_eq!(Body::intent(many).unwrap_err(), EntryError::TooManyKeys);
    let Body::Intent(cut) =
        Body::intent(Entry::new("a").with("k", "\u{e9}".repeat(1_000))).unwrap()
    else {
        panic!()
    };
    let digest = crate::ids::Hash32::of("\u{e9}".repeat(1_000).as_bytes());
    assert!(
        cut.detail["k"].len() <= 1_024
            && cut.detail["k"].ends_with(&format!("[1104 bytes cut, sha256 {digest}]")),
        "{}",
        cut.detail["k"]
    );
}

/// The bug: a list was joined by commas, so a host with a comma read as two; and a long one was cut without a trace of the
/// rest.
#[test]
fn a_list_reads_as_the_words_that_it_was_made_of_and_a_long_one_has_its_count_and_digest() {
    let listed = |words: &[&str]| {
        let entry = Entry::new("a").with_list("hosts", words.iter().copied());
        let Body::Intent(entry) = Body::intent(entry).unwrap() else {
            panic!()
        };
        entry.detail.clone()
    };
    assert_eq!(listed(&["a,b", "c"])["hosts"], r#"["a,b","c"]"#);
    assert_ne!(listed(&["a,b"]), listed(&["a", "b"]));
    assert_ne!(listed(&["a\",\"b"]), listed(&["a", "b"]));
    let long: Vec<String> = (0..200).map(|n| format!("host-{n}.example")).collect();
    let words: Vec<&str> = long.iter().map(String::as_str).collect();
    let detail = listed(&words);
    let whole = serde_json::json!(words).to_string();
    let digest = crate::ids::Hash32::of(whole.as_bytes());
    assert_eq!(detail["hosts_count"], "200");
    assert!(detail["hosts"].ends_with(&format!("sha256 {digest}]")));
    // One more or one less at the end, where it is cut: another record.
    assert_ne!(listed(&words[..199])["hosts"], detail["hosts"]);
}

#[test]
fn the_largest_legal_entry_fits_a_record() {
    let long = |n: usize| Some("x".repeat(n));
    let entry = Entry {
        action: "a".repeat(64),
        principal: long(256),
        act_as: long(256),
        door: long(32),
        object: long(4_096),
        decision: long(64),
        rule: long(256),
        plan_hash: Some(Hash32([1; 32])),
        approval_id: long(128),
        idempotency_key: long(256),
        request_id: long(256),
        policy_hash: Some(Hash32([2; 32])),
        proof: Some(Proof {
            by: "b".repeat(256),
            how: "h".repeat(256),
            decision: "d".repeat(64),
            recorded: Seq(u64::MAX),
        }),
        detail: (0..32)
            .map(|i| (format!("{i:064}"), "v".repeat(5_000)))
            .collect(),
        sealed: Sealed::new(vec![1; Sealed::MOST]),
    };
    let mut out = Vec::new();
    encode_record(
        &mut out,
        Head::EMPTY,
        STAMP,
        BOOT,
        &Body::intent(entry).unwrap(),
        None,
    )
    .unwrap();
    assert!(out.len() <= MAX_RECORD);
    let open = Some((0..MAX_MARK_OPEN as u64).map(Seq).collect());
    encode_record(
        &mut out,
        Head::EMPTY,
        STAMP,
        BOOT,
        &Body::Carry {
            open,
            state_rev: None,
            epoch: None,
        },
        None,
    )
    .unwrap();
    let open = Some((0..=MAX_MARK_OPEN as u64).map(Seq).collect());
    encode_record(
        &mut out,
        Head::EMPTY,
        STAMP,
        BOOT,
        &Body::Carry {
            open,
            state_rev: None,
            epoch: None,
        },
        None,
    )
    .unwrap_err();
}

#[test]
fn the_ledger_knows_what_is_open_from_any_mark_on() {
    let bodies = [
        Body::intent(full_entry(1)).unwrap(),
        Body::intent(full_entry(2)).unwrap(),
        Body::outcome(Seq(1), Outcome::ok()).unwrap(),
        Body::Carry {
            open: Some(vec![Seq(2)]),
            state_rev: None,
            epoch: None,
        },
        Body::intent(full_entry(5)).unwrap(),
        Body::outcome(Seq(2), Outcome::failed("BOX_LOST")).unwrap(),
    ];
    let (mut out, mut head, mut at) = (Vec::new(), Head::EMPTY, vec![(0, Head::EMPTY)]);
    for body in &bodies {
        head = encode_record(&mut out, head, STAMP, BOOT, body, None).unwrap();
        at.push((out.len(), head));
    }
    for from in [0, 3] {
        let (offset, head) = at[from];
        let mut ledger = Ledger::new(head, OnceIndex::new(1_000, 10));
        let mut scan = Scanner::new(head, offset as u64);
        while let Step::Record { leaf, .. } =
            scan.step(&out[usize::try_from(scan.offset()).unwrap()..], true)
        {
            let head = Head {
                seq: leaf.seq,
                hash: leaf_hash(&[]),
            };
            ledger.observe(&leaf, head);
        }
        assert_eq!(ledger.open.keys().copied().collect::<Vec<_>>(), [Seq(5)]);
        assert_eq!(ledger.open[&Seq(5)].boot, BOOT);
        let key = |n: u64| OnceKey::of(Some(&format!("device:{n}")), &format!("key{n}"));
        let now = STAMP.wall_ms;
        assert_eq!(
            ledger.once.get(&key(5), now),
            Some(Once::Seen {
                seq: Seq(5),
                outcome: None
            })
        );
        if from == 0 {
            let code = "BOX_LOST".into();
            let failed = Some(Once::Seen {
                seq: Seq(2),
                outcome: Some(OutcomeResult::Failed { code }),
            });
            assert_eq!(ledger.once.get(&key(2), now), failed);
        }
        assert_eq!(
            ledger.once.get(&key(5), now + 1_001),
            None,
            "a key is kept for its time only"
        );
    }
}

/// The bug: with many keys of its own, one principal had another's forgotten, and what stood under that ran again.
#[test]
fn who_sends_many_keys_pushes_out_his_own_only() {
    let mut index = OnceIndex::new(u64::MAX, 10);
    let mine = OnceKey::of(Some("agent"), "pay-once");
    index.begin(mine, Seq(1), 0);
    for n in 0..1_000_u64 {
        index.begin(OnceKey::of(Some("other"), &n.to_string()), Seq(n + 2), n);
    }
    assert_eq!(index.len(), 10);
    assert!(index.get(&mine, 1_000).is_some());
    let newest = OnceKey::of(Some("other"), "999");
    assert!(index.get(&newest, 1_000).is_some());
    assert!(
        index
            .get(&OnceKey::of(Some("other"), "990"), 1_000)
            .is_none()
    );
    // Of a third one, too.
    index.begin(OnceKey::of(None, "x"), Seq(2_000), 1_001);
    assert!(index.get(&mine, 1_001).is_some());
}

#[test]
fn keys_are_bounded_and_never_mixed_between_principals() {
    let mut index = OnceIndex::new(u64::MAX, 3);
    for n in 0..5 {
        index.begin(OnceKey::of(Some("p"), &n.to_string()), Seq(n + 1), n);
    }
    assert_eq!(index.len(), 3);
    assert_eq!(index.get(&OnceKey::of(Some("p"), "1"), 9), None);
    assert_eq!(
        index.get(&OnceKey::of(Some("p"), "4"), 9),
        Some(Once::Seen {
            seq: Seq(5),
            outcome: None
        })
    );
    assert_eq!(index.get(&OnceKey::of(None, "4"), 9), None);
    let mut again = OnceIndex::new(10, 3);
    for n in 0..100 {
        again.begin(OnceKey::of(Some("p"), "one"), Seq(n + 1), n);
    }
    assert_eq!((again.len(), again.begun()), (1, 100));
    assert!(again.get(&OnceKey::of(Some("p"), "one"), 109).is_some());
    assert!(again.get(&OnceKey::of(Some("p"), "one"), 110).is_none());
    assert!(again.is_empty());
    assert_ne!(OnceKey::of(Some("ab"), "c"), OnceKey::of(Some("a"), "bc"));
    assert_ne!(OnceKey::of(Some(""), "c"), OnceKey::of(None, "c"));
}

#[test]
fn a_query_holds_all_its_conditions() {
    let mut out = Vec::new();
    encode_record(
        &mut out,
        Head::EMPTY,
        STAMP,
        BOOT,
        &Body::intent(full_entry(1)).unwrap(),
        None,
    )
    .unwrap();
    let leaf = decode_leaf(&out[4..out.len() - 32]).unwrap();
    let hit = |query: Query| query.clean().matches(&leaf);
    assert!(hit(Query::default()));
    assert!(hit(Query {
        action: Some("exec.".into()),
        principal: Some("device:1".into()),
        ..Query::default()
    }));
    assert!(!hit(Query {
        action: Some("pairing.".into()),
        ..Query::default()
    }));
    assert!(!hit(Query {
        principal: Some("device:2".into()),
        ..Query::default()
    }));
    assert!(!hit(Query {
        since_seq: Some(Seq(2)),
        ..Query::default()
    }));
    assert!(hit(Query {
        until_seq: Some(Seq(1)),
        since_ms: Some(STAMP.wall_ms),
        ..Query::default()
    }));
    assert!(!hit(Query {
        until_ms: Some(STAMP.wall_ms - 1),
        ..Query::default()
    }));
    let query = Query {
        outcome: Some(OutcomeFilter::Open),
        ..Query::default()
    };
    assert!(query.ended_so(None) && !query.ended_so(Some(OutcomeFilter::Ok)));
    assert_eq!(
        (
            Query::default().limit(),
            Query {
                limit: 5_000,
                ..Query::default()
            }
            .limit()
        ),
        (100, 1_000)
    );
}

#[test]
fn hexadecimal_text_is_strict() {
    let hash = Hash32([0xab; 32]);
    assert_eq!(hash.to_string().parse(), Ok(hash));
    for bad in [
        "",
        "AB",
        &"AB".repeat(32),
        &"ab".repeat(31),
        &"zz".repeat(32),
    ] {
        assert_eq!(bad.parse::<Hash32>(), Err(HexError(64)));
    }
}

proptest! {
    #[test]
    fn escaping_is_clean_and_keeps_different_texts_different(a in ".{0,40}", b in ".{0,40}") {
        let (x, y) = (escape(&a), escape(&b));
        prop_assert!(super::super::entry::is_clean(&x));
        prop_assert_eq!(a == b, x == y);
    }

    #[test]
    fn any_entry_that_is_accepted_comes_back(
        object in proptest::option::of("\\PC{0,60}"), detail in proptest::collection::btree_map(".{0,20}", ".{0,80}", 0..6),
    ) {
        let entry = Entry { object, detail, ..Entry::new("a.b") };
        let Ok(body) = Body::event(entry) else { return Ok(()) };
        let mut out = Vec::new();
        encode_record(&mut out, Head::EMPTY, STAMP, BOOT, &body, None).unwrap();
        prop_assert_eq!(&decode_all(&out)[0].body, &body);
    }
}
