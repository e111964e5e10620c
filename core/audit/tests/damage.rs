//! Flips, cuts, swaps, zeros.

use super::*;
use proptest::prelude::*;

/// The index of the record that holds the byte.
fn record_of(at: &[usize], byte: usize) -> usize {
    at.partition_point(|start| *start <= byte) - 1
}

#[test]
fn every_flipped_bit_is_altered_with_its_sequence_and_offset() {
    let (bytes, at) = chain(9);
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let hit = record_of(&at, bit / 8);
        let End::Altered(found) = read(&bad) else {
            panic!("bit {bit}: {:?}", read(&bad))
        };
        assert_eq!(
            (found.seq, found.offset),
            (Seq(hit as u64 + 1), at[hit] as u64),
            "bit {bit}: {}",
            found.why
        );
    }
}

#[test]
fn every_cut_inside_a_record_is_torn_and_one_between_records_is_a_shorter_log() {
    let (bytes, at) = chain(9);
    for cut in 0..bytes.len() {
        let hit = record_of(&at, cut);
        match read(&bytes[..cut]) {
            End::Clean(seq) => assert!(at[hit] == cut && seq == hit as u64),
            End::Torn(found) => {
                assert!(at[hit] != cut);
                assert_eq!(
                    (found.seq, found.offset),
                    (Seq(hit as u64 + 1), at[hit] as u64)
                );
            }
            End::Altered(found) => panic!("cut {cut}: {found:?}"),
        }
    }
}

#[test]
fn a_zero_filled_end_is_torn_however_long() {
    let (bytes, at) = chain(5);
    for cut in 0..bytes.len() {
        for zeros in [64, 4096] {
            let mut bad = bytes[..cut].to_vec();
            bad.resize(cut + zeros, 0);
            let hit = record_of(&at, cut);
            match read(&bad) {
                End::Torn(found) => assert_eq!(
                    (found.seq, found.offset),
                    (Seq(hit as u64 + 1), at[hit] as u64)
                ),
                other => panic!("cut {cut} + {zeros}: {other:?}"),
            }
        }
    }
}

#[test]
fn zeros_with_something_behind_them_are_altered() {
    let (bytes, at) = chain(5);
    let mut bad = bytes.clone();
    bad[at[2] + 60..at[3]].fill(0);
    assert!(matches!(read(&bad), End::Altered(found) if found.seq == Seq(3)));
    let mut bad = bytes[..at[3] + 60].to_vec();
    bad.extend([0; 400]);
    bad.push(1);
    assert!(matches!(read(&bad), End::Altered(found) if found.seq == Seq(4)));
}

#[test]
fn every_swap_of_two_records_is_altered_at_the_earlier_one() {
    let (bytes, at) = chain(9);
    let part = |i: usize| &bytes[at[i]..at[i + 1]];
    for a in 0..9 {
        for b in a + 1..9 {
            let order = (0..9).map(|i| {
                if i == a {
                    b
                } else if i == b {
                    a
                } else {
                    i
                }
            });
            let bad: Vec<u8> = order.flat_map(|i| part(i).to_vec()).collect();
            assert!(
                matches!(read(&bad), End::Altered(found) if found.seq == Seq(a as u64 + 1)),
                "{a} {b}"
            );
        }
    }
}

#[test]
fn a_record_removed_doubled_or_taken_from_another_log_is_altered() {
    let (bytes, at) = chain(4);
    let without = [&bytes[..at[1]], &bytes[at[2]..]].concat();
    assert!(matches!(read(&without), End::Altered(found) if found.seq == Seq(2)));
    let doubled = [&bytes[..at[2]], &bytes[at[1]..]].concat();
    assert!(matches!(read(&doubled), End::Altered(found) if found.seq == Seq(3)));
    let (mut other, first) = (
        Vec::new(),
        Head {
            seq: Seq(1),
            hash: Hash32([1; 32]),
        },
    );
    encode_record(
        &mut other,
        first,
        STAMP,
        BOOT,
        &body(1),
        Some(&record_key()),
    )
    .unwrap();
    let foreign = [&bytes[..at[1]], &other[..]].concat();
    assert!(matches!(read(&foreign), End::Altered(found) if found.seq == Seq(2)));
}

#[test]
fn the_scanner_reads_the_same_in_small_pieces() {
    let (bytes, _) = chain(30);
    let (mut scan, mut seen, mut want) = (Scanner::new(Head::EMPTY, 0), 0, 1);
    loop {
        let at = usize::try_from(scan.offset()).unwrap();
        let end = bytes.len().min(at + want);
        match scan.step(&bytes[at..end], end == bytes.len()) {
            Step::Record { .. } => (seen, want) = (seen + 1, 1),
            Step::More(n) => {
                assert!(n > want);
                want = n;
            }
            Step::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, 30);
}

proptest! {
    #[test]
    fn any_change_of_bytes_is_found_at_or_after_none(
        n in 1_u64..12, place in any::<prop::sample::Index>(), new in prop::collection::vec(any::<u8>(), 1..40),
    ) {
        let (bytes, at) = chain(n);
        let start = place.index(bytes.len());
        let end = (start + new.len()).min(bytes.len());
        let mut bad = bytes.clone();
        bad[start..end].copy_from_slice(&new[..end - start]);
        prop_assume!(bad != bytes);
        let first = bad.iter().zip(&bytes).position(|(a, b)| a != b).unwrap();
        let hit = record_of(&at, first);
        match read(&bad) {
            End::Altered(found) => prop_assert_eq!(found.seq, Seq(hit as u64 + 1)),
            // Only zeros up to the very end can pass for torn.
            End::Torn(found) => prop_assert!(found.seq == Seq(hit as u64 + 1) && bad.ends_with(&[0; 8])),
            End::Clean(_) => prop_assert!(false, "not found"),
        }
    }

    #[test]
    fn no_bytes_make_the_scanner_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), eof in any::<bool>()) {
        let _ = Scanner::new(Head::EMPTY, 0).step(&bytes, eof);
        let _ = decode_leaf(&bytes);
        let _ = SegmentHeader::decode(&bytes);
    }
}
