//! Whose a uid is that stands in somebody's range of subuid(5).
//!
//! Who has such a range has as many uids as are in it: in a user namespace he takes any of them (`newuidmap(1)`), or gives
//! one to a socket of his (`fchown(2)`), and the kernel names that. So a limit for each user counts them as his. Only what
//! is counted goes by this; what a uid may do never does.

use std::collections::BTreeMap;

/// The ranges, in order, none over another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubUids(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    first: u32,
    last: u32,
    account: u32,
}

impl SubUids {
    /// Of the file's text. `uid_of` knows the users of this machine by name. Lines that are none are passed over, as
    /// newuidmap does.
    ///
    /// Root's ranges are left out: they hold whole containers, which are not one user. An owner whom `uid_of` does not
    /// know (his name is in a directory elsewhere) is told by the first uid of his lowest range. Of two ranges that
    /// share uids, the lower one has them.
    pub fn parse(text: &str, uid_of: impl Fn(&str) -> Option<u32>) -> Self {
        let mut owners: BTreeMap<&str, Vec<(u32, u32)>> = BTreeMap::new();
        for line in text.lines() {
            let mut fields = line.trim().split(':');
            let (Some(owner), Some(first), Some(count), None) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let (Ok(first), Ok(count)) = (first.parse::<u32>(), count.parse::<u32>()) else {
                continue;
            };
            if !owner.is_empty() && count > 0 {
                let last = first.saturating_add(count - 1);
                owners.entry(owner).or_default().push((first, last));
            }
        }
        let mut ranges = Vec::new();
        for (owner, own) in owners {
            let uid = owner.parse().ok().or_else(|| uid_of(owner));
            let lowest = own.iter().map(|(first, _)| *first).min();
            let Some(account) = uid.or(lowest).filter(|account| *account != 0) else {
                continue;
            };
            ranges.extend(own.into_iter().map(|(first, last)| Range {
                first,
                last,
                account,
            }));
        }
        ranges.sort_unstable();
        let mut apart: Vec<Range> = Vec::with_capacity(ranges.len());
        for mut range in ranges {
            if let Some(before) = apart.last()
                && before.last >= range.first
            {
                if before.last >= range.last {
                    continue;
                }
                range.first = before.last + 1;
            }
            apart.push(range);
        }
        Self(apart)
    }

    /// The user whose this uid is: its range's owner, or itself.
    pub fn account(&self, uid: u32) -> u32 {
        self.range(uid).map_or(uid, |range| range.account)
    }

    /// Can somebody else take this uid?
    pub fn is_lent(&self, uid: u32) -> bool {
        self.range(uid).is_some()
    }

    fn range(&self, uid: u32) -> Option<&Range> {
        let behind = self.0.partition_point(|range| range.first <= uid);
        let range = self.0.get(behind.checked_sub(1)?)?;
        (uid <= range.last).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn known(name: &str) -> Option<u32> {
        match name {
            "root" => Some(0),
            "ann" => Some(1000),
            "bob" => Some(1001),
            _ => None,
        }
    }

    /// The bug: one user with a range had 65,536 times the tries of another.
    #[test]
    fn a_sub_uid_counts_as_its_owner() {
        let text = "ann:100000:65536\nbob:165536:65536\nann:400000:10\n1002:500000:1\n";
        let ranges = SubUids::parse(text, known);
        for (uid, account) in [
            (1000, 1000),
            (99_999, 99_999),
            (100_000, 1000),
            (165_535, 1000),
            (165_536, 1001),
            (231_071, 1001),
            (231_072, 231_072),
            (400_009, 1000),
            (400_010, 400_010),
            (500_000, 1002),
            (500_001, 500_001),
            (u32::MAX, u32::MAX),
        ] {
            assert_eq!(ranges.account(uid), account, "{uid}");
            assert_eq!(ranges.is_lent(uid), uid != account, "{uid}");
        }
        assert_eq!(SubUids::default().account(100_000), 100_000);
    }

    #[test]
    fn who_is_not_known_by_name_is_one_all_the_same_and_roots_containers_are_apart() {
        let text = "far@example.org:700000:100\nfar@example.org:300000:100\nroot:1000000:1000000000\n0:5:5\n";
        let ranges = SubUids::parse(text, known);
        assert_eq!(ranges.account(700_050), 300_000);
        assert_eq!(ranges.account(300_000), 300_000);
        assert_eq!(ranges.account(1_234_567), 1_234_567);
        assert_eq!(ranges.account(7), 7);
    }

    #[test]
    fn lines_that_are_none_are_passed_over_and_shared_uids_are_the_lower_ranges() {
        let text = "\n# a word\nann\nann:1\nann:1:x\n:1:1\nann:1:0\nann:-1:5\nann:1:2:3\nann:5000000000:1\n\
            ann:200000:100\nbob:200050:100\nbob:200010:5\nbob:4294967290:4294967295\n";
        let ranges = SubUids::parse(text, known);
        for (uid, account) in [
            (1, 1),
            (200_049, 1000),
            (200_012, 1000),
            (200_099, 1000),
            (200_100, 1001),
            (200_149, 1001),
            (200_150, 200_150),
            (u32::MAX, 1001),
        ] {
            assert_eq!(ranges.account(uid), account, "{uid}");
        }
    }

    proptest! {
        /// Whatever the file holds: it is read, and each uid of a good range has an owner of one.
        #[test]
        fn any_text_is_read(text in "([a-c]|[0-9]|:|\n| |é){0,400}", uid in any::<u32>()) {
            let ranges = SubUids::parse(&text, |_| Some(9));
            let account = ranges.account(uid);
            prop_assert!(account == uid || ranges.range(uid).is_some());
            for pair in ranges.0.windows(2) {
                prop_assert!(pair[0].last < pair[1].first && pair[0].first <= pair[0].last);
            }
        }

        /// Each uid is the lowest-starting range's that holds it.
        #[test]
        fn each_uid_is_of_a_range_that_holds_it(
            lines in proptest::collection::vec((1..4_u32, 0..200_u32, 1..50_u32), 0..20), uid in 0..300_u32,
        ) {
            let text: Vec<_> = lines.iter().map(|(o, f, n)| format!("{o}:{f}:{n}")).collect();
            let ranges = SubUids::parse(&text.join("\n"), |_| None);
            let owners: Vec<u32> = lines.iter()
                .filter(|(_, first, count)| (*first..first + count).contains(&uid)).map(|(o, ..)| *o).collect();
            let account = ranges.account(uid);
            let is_right = if owners.is_empty() { account == uid } else { owners.contains(&account) };
            prop_assert!(is_right, "{account}");
        }
    }
}
