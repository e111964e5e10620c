//! A group of which some sectors arrived and some did not.

use super::*;
use proptest::prelude::*;

const SECTOR: usize = 512;
const LATER: Stamp = Stamp {
    wall_ms: 1_700_000_000_700,
    mono_ms: 742,
};

/// A durable group, the group behind it, and the offset of each record of both.
fn two_groups(first: u64, second: u64) -> (Vec<u8>, usize, Vec<usize>) {
    let (mut out, mut head, mut at) = (Vec::new(), Head::EMPTY, vec![0]);
    let mut durable = 0;
    for i in 0..first + second {
        let stamp = if i < first { STAMP } else { LATER };
        head = encode_record(&mut out, head, stamp, BOOT, &body(i), Some(&record_key())).unwrap();
        at.push(out.len());
        if i + 1 == first {
            durable = out.len();
        }
    }
    (out, durable, at)
}

/// Takes away what the sectors of which `keeps` is false held behind `durable`.
fn tear(bytes: &[u8], durable: usize, keeps: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut torn = bytes.to_vec();
    for (i, byte) in torn.iter_mut().enumerate().skip(durable) {
        if !keeps(i / SECTOR) {
            *byte = 0;
        }
    }
    torn
}

/// How many records are as they were, from the front.
fn whole(bytes: &[u8], torn: &[u8], at: &[usize]) -> u64 {
    let same = at
        .windows(2)
        .take_while(|ends| torn.get(ends[0]..ends[1]) == Some(&bytes[ends[0]..ends[1]]));
    same.count() as u64
}

#[test]
fn a_group_that_lost_any_of_its_sectors_is_torn_and_never_altered() {
    for first in 1..12 {
        let (bytes, durable, at) = two_groups(first, 9);
        let begin = durable / SECTOR;
        let sectors = bytes.len().div_ceil(SECTOR) - begin;
        for kept in 0_u64..1 << sectors {
            let torn = tear(&bytes, durable, |sector| kept >> (sector - begin) & 1 == 1);
            let good = whole(&bytes, &torn, &at);
            match read(&torn) {
                End::Clean(seq) => assert_eq!((seq, &torn), (first + 9, &bytes)),
                End::Torn(found) => assert_eq!(found.seq, Seq(good + 1), "{first} {kept:b}"),
                End::Altered(found) => panic!("{first} {kept:b}: {found:?}"),
            }
        }
    }
}

#[test]
fn a_group_that_lost_sectors_and_its_end_is_torn() {
    let (bytes, durable, _) = two_groups(3, 12);
    let begin = durable / SECTOR;
    for upto in durable / SECTOR + 2..bytes.len() / SECTOR {
        let torn = tear(&bytes[..upto * SECTOR], durable, |sector| {
            sector != begin + 1
        });
        assert!(
            matches!(read(&torn), End::Torn(_)),
            "{upto}: {:?}",
            read(&torn)
        );
    }
}

#[test]
fn a_hole_with_another_group_behind_it_is_altered() {
    let (bytes, durable, at) = two_groups(12, 3);
    for sector in 0..durable / SECTOR {
        let mut bad = bytes.clone();
        bad[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
        let hit = at.partition_point(|start| *start <= sector * SECTOR);
        match read(&bad) {
            End::Altered(found) => assert_eq!(found.seq, Seq(hit as u64)),
            other => panic!("{sector}: {other:?}"),
        }
    }
}

#[test]
fn a_hole_in_more_than_one_group_can_be_is_altered() {
    let (mut bytes, mut head) = (Vec::new(), Head::EMPTY);
    while bytes.len() < MAX_TORN + SECTOR {
        head = encode_record(&mut bytes, head, STAMP, BOOT, &body(0), Some(&record_key())).unwrap();
    }
    bytes[..SECTOR].fill(0);
    assert!(matches!(read(&bytes), End::Altered(found) if found.seq == Seq(1)));
}

#[test]
fn a_bit_flipped_in_what_arrived_of_a_torn_group_is_altered() {
    let (bytes, durable, at) = two_groups(4, 12);
    let lost = durable / SECTOR + 2;
    let torn = tear(&bytes, durable, |sector| sector != lost);
    assert!(matches!(read(&torn), End::Torn(_)));
    let (from, to) = (lost * SECTOR, (lost + 1) * SECTOR);
    let next = at[at.partition_point(|start| *start < to)];
    for record in at
        .windows(2)
        .filter(|ends| ends[1] <= from || ends[0] >= to)
    {
        // Which record stands behind the hole is told by the words in its front.
        let front = if record[0] == next { 4 + 17 } else { 0 };
        for bit in (record[0] + front) * 8..record[1] * 8 {
            let mut bad = torn.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(read(&bad), End::Altered(_)),
                "bit {bit} of {record:?}"
            );
        }
    }
}

#[test]
fn a_sector_that_holds_a_few_bytes_of_a_record_hides_no_flip_in_the_rest() {
    // The record begins so few bytes before a sector's end that only zeros of its length lie there.
    let (bytes, at) = chain(9);
    for skew in 1..4_usize {
        let place = (at[4] + skew).next_multiple_of(SECTOR) - at[4] - skew;
        let offset = place as u64;
        let mut scan = Scanner::new(Head::EMPTY, offset);
        let mut rest = bytes.clone();
        let step = (0..5).find_map(|_| match scan.step(&rest, true) {
            Step::Record { bytes, .. } => {
                rest.drain(..bytes);
                (scan.head().seq == Seq(4)).then_some(())
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(step, Some(()));
        assert_eq!((scan.offset() + skew as u64) % SECTOR as u64, 0);
        // But one in the copy of the length, which then stands alone.
        for byte in (4..21).chain(25..at[5] - at[4]) {
            let mut bad = rest[..at[5] - at[4]].to_vec();
            bad[byte] ^= 1;
            let mut scan = scan;
            assert!(
                matches!(scan.step(&bad, true), Step::Altered(_)),
                "{skew} {byte}"
            );
        }
    }
}

#[test]
fn a_number_at_the_end_of_all_numbers_in_a_torn_group_does_not_panic() {
    let (bytes, durable, at) = two_groups(1, 12);
    let lost = durable / SECTOR + 1;
    let mut torn = tear(&bytes, durable, |sector| sector != lost);
    let next = at[at.partition_point(|start| *start < (lost + 1) * SECTOR)];
    torn[next + 4 + 17 + 4..][..8].fill(0xff);
    assert!(matches!(read(&torn), End::Altered(_)));
}

proptest! {
    /// Sectors lost, and anything at all put in the place of others.
    #[test]
    fn nothing_in_a_torn_group_makes_the_scanner_panic(
        lost in prop::collection::vec(0_usize..9, 1..5),
        put in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 4]>()), 0..20),
        offset in 0_u64..2_000,
    ) {
        let (bytes, durable, _) = two_groups(2, 14);
        let mut torn = tear(&bytes, durable, |sector| !lost.contains(&sector));
        for (place, with) in put {
            let at = place.index(torn.len() - 4);
            torn[at..at + 4].copy_from_slice(&with);
        }
        let _ = read(&torn);
        let _ = Scanner::new(Head::EMPTY, offset).step(&torn, true);
    }

    #[test]
    fn groups_of_all_sizes_torn_anywhere_are_torn(
        first in 0_u64..20, second in 1_u64..64, seed in any::<u64>(), end in any::<prop::sample::Index>(),
    ) {
        let (bytes, durable, at) = two_groups(first, second);
        let sectors = bytes.len().div_ceil(SECTOR);
        let mut kept: Vec<bool> = (0..sectors as u64)
            .map(|n| (seed.wrapping_mul(n * 2 + 1) >> 40) & 1 == 1)
            .collect();
        // The file reaches to the last sector that arrived, or was made longer before.
        kept[sectors - 1] |= seed & 1 == 1;
        let torn = tear(&bytes, durable, |sector| kept[sector]);
        let upto = end.index(sectors) * SECTOR;
        for torn in [&torn[..], &torn[..upto.clamp(durable, torn.len())]] {
            match read(torn) {
                End::Torn(found) => prop_assert_eq!(found.seq, Seq(whole(&bytes, torn, &at) + 1)),
                End::Clean(seq) => prop_assert_eq!(seq, whole(&bytes, torn, &at)),
                End::Altered(found) => prop_assert!(false, "{:?}", found),
            }
        }
    }
}
