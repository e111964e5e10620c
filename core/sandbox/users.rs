//! Users of the host that are no person's: each agent, and each share, has one of its own for all of its boxes.
//!
//! Whoever had one keeps it, and nobody else ever gets it: what it left anywhere on the machine is nobody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::profile::{Profile, Scope, ShareName};
use crate::ids::AgentId;

/// Who has a user of the host: boxes of an agent and of its sessions have the agent's, a shared one the share's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// One agent.
    Agent(AgentId),
    /// All agents that share a box under this name.
    Share(ShareName),
}

impl Owner {
    /// Of the boxes that an agent with this profile has.
    pub fn of(profile: &Profile, agent: &AgentId) -> Self {
        match profile.scope {
            Scope::Session | Scope::Agent => Self::Agent(agent.clone()),
            Scope::Shared => Self::Share(profile.share.clone()),
        }
    }

    /// Its folder below `workspaces/`. No agent's name has a dot.
    pub fn folder(&self) -> String {
        match self {
            Self::Agent(agent) => agent.to_string(),
            Self::Share(name) => format!("shared.{name}"),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(agent) => write!(f, "agent:{agent}"),
            Self::Share(name) => write!(f, "shared:{name}"),
        }
    }
}

/// The uids that boxes have, each with the gid of the same number: `FIRST-LAST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserRange {
    first: u32,
    last: u32,
}

/// Parts of the numbers that others give out, by systemd's "Users, Groups, UIDs and GIDs" and login.defs(5).
const OTHERS: [(u32, u32, &str); 4] = [
    (0, 999, "the system's own users"),
    (1000, 60_577, "people who log in"),
    (61_184, 65_519, "services with DynamicUser= of systemd"),
    (65_534, 65_535, "nobody, and who has no user in 16 bits"),
];
/// Numbers above it are negative to some programs.
const HIGHEST: u32 = 2_147_483_647;

impl Default for UserRange {
    /// Between systemd's own and the first sub-uid that useradd(8) gives out (`SUB_UID_MIN`), and short enough for every archive's form:
    /// ar(5) has six digits, tar's oldest form seven octal ones.
    fn default() -> Self {
        Self {
            first: 65_536,
            last: 99_999,
        }
    }
}

impl UserRange {
    /// Checks the text.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn new(text: &str) -> Result<Self, String> {
        let number = |digits: &str| {
            let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<u32>().ok().filter(|_| is_plain)
        };
        let range = text
            .split_once('-')
            .and_then(|(first, last)| Some((number(first)?, number(last)?)));
        let Some((first, last)) = range.filter(|(first, last)| first < last) else {
            return Err(format!(
                "{text:?} is no range of users: FIRST-LAST, such as {}",
                Self::default()
            ));
        };
        if last > HIGHEST {
            return Err(format!(
                "{text:?}: a user above {HIGHEST} is a negative number to some programs"
            ));
        }
        let range = Self { first, last };
        for (from, to, whose) in OTHERS {
            if range.meets(from, to) {
                return Err(format!("{text:?} meets {from}-{to}, which are for {whose}"));
            }
        }
        Ok(range)
    }

    /// Whether it has one of these.
    pub const fn meets(self, first: u32, last: u32) -> bool {
        self.first <= last && first <= self.last
    }

    /// Whether it has this one.
    pub const fn has(self, uid: u32) -> bool {
        self.meets(uid, uid)
    }

    /// All of it, lowest first.
    pub fn all(self) -> impl DoubleEndedIterator<Item = u32> {
        self.first..=self.last
    }
}

impl fmt::Display for UserRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl TryFrom<String> for UserRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<UserRange> for String {
    fn from(range: UserRange) -> Self {
        range.to_string()
    }
}

/// What this machine says of its users: the text of each file, empty where it is not there.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// passwd(5).
    pub passwd: String,
    /// group(5).
    pub group: String,
    /// subuid(5).
    pub sub_uids: String,
    /// subgid(5).
    pub sub_gids: String,
    /// `/proc/self/uid_map`: which uids there are at all (user_namespaces(7)).
    pub uid_map: String,
    /// `/proc/self/gid_map`.
    pub gid_map: String,
    /// Uids of operators.
    pub operator_uids: Vec<u32>,
    /// Their groups.
    pub operator_gids: Vec<u32>,
}

impl Host {
    /// Why boxes cannot have these users here, in words.
    pub fn conflict(&self, range: UserRange) -> Option<String> {
        for (what, ids) in [("uid", &self.operator_uids), ("gid", &self.operator_gids)] {
            if let Some(id) = ids.iter().find(|id| range.has(**id)) {
                return Some(format!("{what} {id} is an operator's"));
            }
        }
        for (file, text, own) in [
            ("/etc/passwd", &self.passwd, &[2, 3][..]),
            ("/etc/group", &self.group, &[2]),
        ] {
            let mut lines = text.lines();
            let found = lines.find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let mut ids = own.iter().filter_map(|at| fields.get(*at)?.parse().ok());
                ids.find(|id| range.has(*id)).map(|id| (fields[0], id))
            });
            if let Some((name, id)) = found {
                return Some(format!("{id} is {name}'s in {file}"));
            }
        }
        for (file, text) in [("subuid(5)", &self.sub_uids), ("subgid(5)", &self.sub_gids)] {
            let mut lent = text.lines().filter_map(lent);
            if let Some((owner, first, last)) =
                lent.find(|(_, first, last)| range.meets(*first, *last))
            {
                return Some(format!("{first}-{last} are {owner}'s in {file}"));
            }
        }
        for (file, map) in [("uid_map", &self.uid_map), ("gid_map", &self.gid_map)] {
            if !map.is_empty() && !is_mapped(map, range) {
                return Some(format!(
                    "not all of them exist in this user namespace (/proc/self/{file})"
                ));
            }
        }
        None
    }

    /// Some that boxes could have here.
    pub fn free(&self) -> Option<UserRange> {
        const WIDTH: u32 = 65_536;
        // Below systemd's containers, where ranges are given out upward; then the small gap, all that a container of 65,536 users has; then
        // what is beyond directory services.
        let wide = (2..8).map(|at| (at * WIDTH, (at + 1) * WIDTH - 1));
        let others = [(60_578, 61_183), (2_100_000_000, 2_100_065_535)];
        let ranges = wide
            .chain(others)
            .map(|(first, last)| UserRange { first, last });
        std::iter::once(UserRange::default())
            .chain(ranges)
            .find(|range| self.conflict(*range).is_none())
    }
}

/// A line of subuid(5): whose, and which.
fn lent(line: &str) -> Option<(&str, u32, u32)> {
    let mut fields = line.trim().split(':');
    let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
    let (first, count): (u32, u32) = (first.parse().ok()?, count.parse().ok()?);
    Some((owner, first, first.saturating_add(count.checked_sub(1)?)))
}

/// Whether all of them are in one line or in lines that follow one another.
fn is_mapped(map: &str, range: UserRange) -> bool {
    let mut lines: Vec<(u64, u64)> = map
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            let first = numbers.next()?.ok()?;
            Some((first, first + numbers.nth(1)?.ok()?))
        })
        .collect();
    lines.sort_unstable();
    let mut next = u64::from(range.first);
    for (first, end) in lines {
        if first <= next {
            next = next.max(end);
        }
    }
    next > u64::from(range.last)
}

/// A row of the state: who has the user whose number is its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserRow {
    /// Form: 1.
    pub v: u8,
    /// [`Owner`], as it is written.
    pub owner: String,
    /// The owner has another by now.
    pub was: bool,
}

impl UserRow {
    /// Of the one that the owner has.
    pub fn of(owner: &Owner) -> Self {
        Self {
            v: 1,
            owner: owner.to_string(),
            was: false,
        }
    }

    /// The same user, which nobody has any more.
    #[must_use]
    pub fn past(self) -> Self {
        Self { was: true, ..self }
    }
}

/// Why rows of the state cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// It is none of this form.
    #[error("the row of the user {0} cannot be read")]
    Row(String),
    /// Two users of one owner.
    #[error("{0} has two users, {1} and {2}")]
    Twice(String, u32, u32),
}

/// Who has which user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users {
    range: UserRange,
    /// By whom.
    held: BTreeMap<String, u32>,
    /// Everyone that somebody has or had, and who.
    taken: BTreeMap<u32, String>,
    /// Users of folders that are there already, by folder.
    folders: BTreeMap<String, u32>,
}

impl Users {
    /// Of the state's rows, by number, and of the owners of the folders below `workspaces/`.
    ///
    /// # Errors
    /// [`UserError`]: nobody is given a user by such a state.
    pub fn restore(
        range: UserRange,
        rows: impl IntoIterator<Item = (String, Option<UserRow>)>,
        folders: BTreeMap<String, u32>,
    ) -> Result<Self, UserError> {
        let mut users = Self {
            range,
            held: BTreeMap::new(),
            taken: BTreeMap::new(),
            folders,
        };
        for (id, row) in rows {
            let (Ok(uid), Some(row)) = (id.parse::<u32>(), row.filter(|row| row.v == 1)) else {
                return Err(UserError::Row(id));
            };
            if !row.was
                && let Some(other) = users.held.insert(row.owner.clone(), uid)
            {
                return Err(UserError::Twice(row.owner, other, uid));
            }
            users.taken.insert(uid, row.owner);
        }
        Ok(users)
    }

    /// The range that new ones come from.
    pub const fn range(&self) -> UserRange {
        self.range
    }

    /// The owner's own, if it may go on with it.
    pub fn of(&self, owner: &Owner) -> Option<u32> {
        self.had(owner).filter(|uid| self.range.has(*uid))
    }

    /// The owner's last one, also where the range is another by now.
    pub fn had(&self, owner: &Owner) -> Option<u32> {
        self.held.get(&owner.to_string()).copied()
    }

    /// Who has or had this one.
    pub fn whose(&self, uid: u32) -> Option<&str> {
        self.taken.get(&uid).map(String::as_str)
    }

    /// The one of trials, which no agent has: the highest that nobody ever had.
    pub fn of_trials(&self) -> Option<u32> {
        let mut down = self.range.all().rev();
        down.find(|uid| !self.taken.contains_key(uid))
    }

    /// One for an owner that has none: nobody has had it, and no other's folder is its. Where the state lost count of an owner, its folder
    /// tells which it had.
    pub fn next(&self, owner: &Owner) -> Option<u32> {
        let own = owner.folder();
        let foreign = self.folders.iter().filter(|(name, _)| **name != own);
        let foreign: BTreeSet<u32> = foreign.map(|(_, uid)| *uid).collect();
        let trial = self.of_trials();
        let is_free = |uid: &u32| {
            !self.taken.contains_key(uid) && !foreign.contains(uid) && Some(*uid) != trial
        };
        let had = self.folders.get(&own).copied();
        let had = had.filter(|uid| self.range.has(*uid) && is_free(uid));
        had.or_else(|| self.range.all().find(is_free))
    }

    /// It is the owner's from here on, and never another's.
    pub fn give(&mut self, owner: &Owner, uid: u32) {
        self.taken.insert(uid, owner.to_string());
        self.held.insert(owner.to_string(), uid);
    }

    /// What was given just now was not written down: it is nobody's, and the owner has what it had.
    pub fn take_back(&mut self, owner: &Owner, uid: u32, had: Option<u32>) {
        self.taken.remove(&uid);
        match had {
            Some(had) => self.held.insert(owner.to_string(), had),
            None => self.held.remove(&owner.to_string()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agent(name: &str) -> Owner {
        Owner::Agent(AgentId::new(name).unwrap())
    }

    fn small(last: u32) -> UserRange {
        UserRange::new(&format!("65536-{last}")).unwrap()
    }

    fn none() -> Users {
        Users::restore(small(65_540), [], BTreeMap::new()).unwrap()
    }

    #[test]
    fn a_range_that_others_give_out_is_refused_with_whose_it_is() {
        for (text, why) in [
            ("0-10", "system's own"),
            ("60000-60600", "people who log in"),
            ("61000-61184", "DynamicUser"),
            ("65520-65534", "nobody"),
            ("65535-70000", "nobody"),
            ("70000-4294967294", "negative"),
            ("70000", "FIRST-LAST"),
            ("70000-70000", "FIRST-LAST"),
            ("70001-70000", "FIRST-LAST"),
            ("+70000-80000", "FIRST-LAST"),
            ("70000-80000 ", "FIRST-LAST"),
            ("", "FIRST-LAST"),
        ] {
            let said = UserRange::new(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        let own = UserRange::default();
        assert_eq!(UserRange::new(&own.to_string()), Ok(own));
        assert!(own.has(65_536) && own.has(99_999) && !own.has(65_535) && !own.has(100_000));
        assert!(UserRange::new("60578-61183").is_ok());
    }

    #[test]
    fn a_range_that_meets_somebodys_here_is_refused_with_his_name_and_a_free_one() {
        let full = "0 0 4294967295\n".to_owned();
        let clean = Host {
            passwd: "root:x:0:0:::\nann:x:1000:1000:::\n".to_owned(),
            group: "root:x:0:\n".to_owned(),
            sub_uids: "ann:100000:65536\n".to_owned(),
            sub_gids: "ann:100000:65536\n".to_owned(),
            uid_map: full.clone(),
            gid_map: full,
            ..Host::default()
        };
        let range = UserRange::default();
        assert_eq!(clean.conflict(range), None);
        assert_eq!(clean.free(), Some(range));
        let with = |change: fn(&mut Host)| {
            let mut host = clean.clone();
            change(&mut host);
            host
        };
        for (host, why) in [
            (with(|h| h.operator_uids.push(70_000)), "operator"),
            (with(|h| h.operator_gids.push(65_536)), "operator"),
            (with(|h| h.passwd += "bob:x:99999:100:::\n"), "bob"),
            (with(|h| h.passwd += "bob:x:100:70000:::\n"), "bob"),
            (with(|h| h.group += "team:x:80000:\n"), "team"),
            (with(|h| h.sub_uids += "bob:90000:65536\n"), "bob"),
            (with(|h| h.sub_uids += "root:65536:1000000\n"), "root"),
            (with(|h| h.sub_gids += "eve:99999:1\n"), "eve"),
            (
                with(|h| h.uid_map = "0 1000 1\n1 100000 65535\n".into()),
                "uid_map",
            ),
            (
                with(|h| h.gid_map = "0 0 65535\n65537 1 99999\n".into()),
                "gid_map",
            ),
        ] {
            let said = host.conflict(range).unwrap_or_default();
            assert!(said.contains(why), "{why}: {said}");
            let free = host.free().unwrap();
            assert_eq!(host.conflict(free), None);
            assert!(UserRange::new(&free.to_string()).is_ok(), "{free}");
        }
        // Lines that follow one another are one.
        let parts = with(|h| h.uid_map = "70000 1 200000\n0 0 70000\n".into());
        assert_eq!(parts.conflict(range), None);
        let tiny = with(|h| h.uid_map = "0 1000 1\n".into());
        assert_eq!(tiny.free(), None);
    }

    #[test]
    fn each_has_its_own_and_a_restart_changes_nothing() {
        let mut users = none();
        let mut rows = Vec::new();
        for name in ["a", "b", "c"] {
            let uid = users.next(&agent(name)).unwrap();
            users.give(&agent(name), uid);
            rows.push((uid.to_string(), Some(UserRow::of(&agent(name)))));
        }
        assert_eq!(users.of(&agent("b")), Some(65_537));
        // A share is not the agent of that name.
        let share = Owner::Share(ShareName::new("a").unwrap());
        assert_eq!(users.of(&share), None);
        let again = Users::restore(small(65_540), rows.clone(), BTreeMap::new()).unwrap();
        assert_eq!(again, users);
        // The last one is left for trials.
        assert_eq!(users.of_trials(), Some(65_540));
        let uid = users.next(&share).unwrap();
        users.give(&share, uid);
        assert_eq!((uid, users.next(&agent("d"))), (65_539, None));
        // Another range: others than they had, which stay nobody else's.
        let moved = UserRange::new("65538-65600").unwrap();
        let users = Users::restore(moved, rows, BTreeMap::new()).unwrap();
        assert_eq!(
            (users.of(&agent("a")), users.had(&agent("a"))),
            (None, Some(65_536))
        );
        assert_eq!(users.of(&agent("c")), Some(65_538));
        assert_eq!(users.next(&agent("a")), Some(65_539));
        assert_eq!(users.whose(65_536), Some("agent:a"));
    }

    #[test]
    fn rows_that_cannot_be_believed_give_nobody_a_user() {
        let row = |owner: &str| Some(UserRow::of(&agent(owner)));
        let restore = |rows: Vec<(String, Option<UserRow>)>| {
            Users::restore(small(65_540), rows, BTreeMap::new())
        };
        for rows in [
            vec![("65536".to_owned(), None)],
            vec![("one".to_owned(), row("a"))],
            vec![(
                "65536".to_owned(),
                row("a").map(|row| UserRow { v: 2, ..row }),
            )],
        ] {
            assert!(matches!(restore(rows), Err(UserError::Row(_))));
        }
        let twice = vec![
            ("65536".to_owned(), row("a")),
            ("65537".to_owned(), row("a")),
        ];
        assert!(matches!(restore(twice), Err(UserError::Twice(..))));
        let one_was = vec![
            ("65536".to_owned(), row("a").map(UserRow::past)),
            ("65537".to_owned(), row("a")),
        ];
        assert_eq!(restore(one_was).unwrap().of(&agent("a")), Some(65_537));
    }

    /// A state that begins anew beside old folders.
    #[test]
    fn whose_folder_is_there_gets_its_old_user_and_nobody_gets_anothers() {
        let folders = [("b", 65_536), ("x", 65_537), ("old", 65_533)];
        let folders = folders.map(|(name, uid)| (name.to_owned(), uid)).into();
        let users = Users::restore(small(65_545), [], folders).unwrap();
        assert_eq!(users.next(&agent("a")), Some(65_538));
        assert_eq!(users.next(&agent("b")), Some(65_536));
        assert_eq!(users.next(&agent("old")), Some(65_538));
    }

    proptest! {
        /// In any order of askers, restarts and ranges nobody gets a user that somebody had.
        #[test]
        fn no_order_of_askers_restarts_and_ranges_gives_a_user_twice(
            steps in proptest::collection::vec((0..12_u8, 65_537..65_560_u32, any::<bool>()), 1..60),
        ) {
            let mut rows: BTreeMap<u32, UserRow> = BTreeMap::new();
            let mut users = none();
            for (who, last, restarts) in steps {
                if restarts {
                    let all = rows.iter().map(|(uid, row)| (uid.to_string(), Some(row.clone())));
                    users = Users::restore(small(last), all.collect::<Vec<_>>(), BTreeMap::new()).unwrap();
                }
                let owner = agent(&format!("a{who}"));
                if let Some(uid) = users.of(&owner) {
                    prop_assert_eq!(&rows[&uid].owner, &owner.to_string());
                    continue;
                }
                let Some(uid) = users.next(&owner) else { continue };
                prop_assert!(users.range().has(uid) && Some(uid) != users.of_trials());
                if let Some(had) = users.had(&owner) {
                    let row = rows.remove(&had).unwrap();
                    rows.insert(had, row.past());
                }
                users.give(&owner, uid);
                prop_assert_eq!(rows.insert(uid, UserRow::of(&owner)), None);
            }
        }
    }
}
