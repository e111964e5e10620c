//! Whose the users of a box are on this machine, where it has a user namespace of its own (user_namespaces(7)).

/// What this machine says of one kind of ids, users or groups, and the id that a box must have, inside and outside.
#[derive(Debug, Clone, Copy)]
pub struct Mapping<'a> {
    /// `/proc/PID/uid_map` or `gid_map` of the box's first process, read from outside of its namespace.
    pub map: &'a str,
    /// The id of the gateway.
    pub own: u32,
    /// The gateway's user by name, where it has one here; its uid is the other way to write it.
    pub name: Option<&'a str>,
    /// See `name`: of groups too, ranges are lent to a user.
    pub uid: u32,
    /// subuid(5) or subgid(5).
    pub lent: &'a str,
    /// passwd(5) or group(5): ids of this machine's own.
    pub known: &'a str,
}

impl Mapping<'_> {
    /// Why no box may have it: it leaves out the gateway's own id, or holds one that is neither that nor lent to it.
    pub fn flaw(&self) -> Option<String> {
        let mut is_own = false;
        let mut lines = 0;
        for line in self.map.lines() {
            let Some((inside, first, last)) = range(line) else {
                return Some(format!("{line:?} is no range of ids"));
            };
            lines += 1;
            if first == 0 {
                return Some(format!("{inside} in it is 0 on this machine"));
            }
            let place = self.own.checked_sub(inside);
            let place = place.and_then(|place| first.checked_add(place));
            is_own |= place == Some(self.own) && self.own <= last;
            if (first, last) == (self.own, self.own) {
                continue;
            }
            if let Some((owner, id)) = self.known(first, last) {
                return Some(format!("{id} in it is {owner}'s"));
            }
            if !self.is_lent(first, last) {
                return Some(format!("{first}-{last} in it are not lent to this user"));
            }
        }
        match (lines, is_own) {
            (0, _) => Some("nothing is mapped in it".to_owned()),
            (_, false) => Some(format!("{0} in it is not {0} here", self.own)),
            _ => None,
        }
    }

    /// An id of somebody else's that is among these.
    fn known(&self, first: u32, last: u32) -> Option<(&str, u32)> {
        self.known.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (owner, id) = (fields.next()?, fields.nth(1)?.parse().ok()?);
            let is_there = id != self.own && (first..=last).contains(&id);
            is_there.then_some((owner, id))
        })
    }

    /// All of them are in ranges of this user's, in one or in several that follow one another.
    fn is_lent(&self, first: u32, last: u32) -> bool {
        let uid = self.uid.to_string();
        let mut own: Vec<(u32, u32)> = self
            .lent
            .lines()
            .filter_map(|line| {
                let mut fields = line.trim().split(':');
                let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
                let (first, count): (u32, u32) = (first.parse().ok()?, count.parse().ok()?);
                let last = first.checked_add(count.checked_sub(1)?)?;
                let is_own = Some(owner) == self.name || owner == uid;
                is_own.then_some((first, last))
            })
            .collect();
        own.sort_unstable();
        let mut next = u64::from(first);
        for (from, to) in own {
            if u64::from(from) <= next {
                next = next.max(u64::from(to) + 1);
            }
        }
        next > u64::from(last)
    }
}

/// The first id inside, and the first and last outside.
fn range(line: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = line.split_whitespace().map(str::parse::<u32>);
    let (inside, first) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let count = numbers.next()?.ok()?;
    let last = first.checked_add(count.checked_sub(1)?)?;
    numbers.next().is_none().then_some((inside, first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Docker without root has it (Docker 20.10 under rootlesskit 1.1).
    const DOCKER: &str = "         0       1000          1\n         1     100000      65536\n";
    /// As Podman without root has it with `keep-id` (Podman 4.3).
    const PODMAN: &str = "         0     100000       1000\n      1000       1000          1\n      1001     101000      64536\n";
    const LENT: &str = "worker:100000:65536\nother:165536:65536\n";

    fn mapping(map: &str) -> Mapping<'_> {
        Mapping {
            map,
            own: 1000,
            name: Some("worker"),
            uid: 1000,
            lent: LENT,
            known: "root:x:0:0::/root:/bin/sh\nworker:x:1000:1000::/home/worker:/bin/sh\nother:x:1001:1001:::\n",
        }
    }

    #[test]
    fn the_gateways_own_user_and_those_that_are_lent_to_it_are_a_boxs() {
        for map in [PODMAN, "1000 1000 1", "999 100000 1\n1000 1000 1"] {
            assert_eq!(mapping(map).flaw(), None, "{map}");
        }
        let lent = "1000:100000:10\n1000:100010:65526\n";
        let mapping = Mapping {
            lent,
            name: None,
            ..mapping(PODMAN)
        };
        assert_eq!(mapping.flaw(), None);
    }

    #[test]
    fn a_mapping_that_gives_a_box_root_or_anothers_user_is_refused() {
        for (map, why) in [
            // This machine's root, whatever it is called inside.
            ("0 0 4294967295", "0 on this machine"),
            ("1000 1000 1\n0 0 1", "0 on this machine"),
            ("1000 1000 1\n7 0 1", "0 on this machine"),
            // Somebody else's.
            ("1000 1000 1\n1 1001 1", "1001 in it is other's"),
            ("1000 1000 2", "1001 in it is other's"),
            ("999 999 2", "are not lent"),
            ("1000 1000 1\n1 165536 1", "are not lent"),
            ("1000 1000 1\n1 100000 65537", "are not lent"),
            ("1000 1000 1\n1 99999 2", "are not lent"),
            ("1000 1000 1\n1 70000 1", "are not lent"),
            // The box's own is not the gateway's.
            (DOCKER, "is not 1000 here"),
            ("0 100000 65536", "is not 1000 here"),
            ("", "nothing is mapped"),
            ("1000 1000", "no range"),
            ("1000 1000 0", "no range"),
            ("1000 1000 1 1", "no range"),
            ("0 4294967295 2", "no range"),
            ("-1 1000 1", "no range"),
        ] {
            let said = mapping(map).flaw().unwrap_or_default();
            assert!(said.contains(why), "{map:?}: {said}");
        }
        // What is lent, and somebody's all the same.
        let taken = Mapping {
            lent: "worker:1000:100\n",
            ..mapping("1000 1000 2")
        };
        assert!(taken.flaw().is_some_and(|why| why.contains("other's")));
        // What is lent to the root user, or to nobody, is not this user's.
        for lent in [
            "root:100000:65536\n",
            "",
            "worker:100000:0\n",
            "worker:x:9\n",
        ] {
            let mapping = Mapping {
                lent,
                ..mapping(PODMAN)
            };
            assert!(mapping.flaw().is_some(), "{lent}");
        }
    }
}
