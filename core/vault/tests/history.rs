//! Histories of a vault: what an honest machine may leave behind opens, what somebody put back does not.

use crate::audit::{BootId, Entry as Record, Outcome, OutcomeResult};
use crate::ids::Hash32;
use crate::seal::Key;
use crate::vault::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn keys() -> VaultKeys {
    VaultKeys::new(Key::new([7; 32]), [1; 16])
}

/// The store: rows as bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Disk {
    header: Option<Vec<u8>>,
    top: Option<Vec<u8>>,
    pages: BTreeMap<u8, Vec<u8>>,
    records: BTreeMap<String, Vec<u8>>,
}

impl Disk {
    fn manifest(&self) -> Result<Option<Manifest>, VaultError> {
        let Some(top) = &self.top else {
            return Ok(None);
        };
        let top: SealedManifest =
            serde_json::from_slice(top).map_err(|_| VaultError::ManifestCorrupt)?;
        let mut pages = BTreeMap::new();
        for (number, page) in &self.pages {
            let page = serde_json::from_slice(page).map_err(|_| VaultError::ManifestCorrupt)?;
            pages.insert(*number, page);
        }
        Manifest::open(&top, &keys(), pages).map(Some)
    }

    /// As the room opens it: the names whose records are not the ones that were last put there.
    fn open(&self, log: &Log) -> Result<Vec<String>, VaultError> {
        let manifest = self.manifest()?;
        let digest = manifest.as_ref().map(|manifest| manifest.digest(&keys()));
        log.mark().judge(self.header.is_some(), digest)?;
        let Some(manifest) = manifest else {
            return Ok(vec![]);
        };
        if Some(manifest.header()) != self.header.as_deref().map(Hash32::of) {
            return Err(VaultError::RolledBack);
        }
        let mut wrong = vec![];
        for (id, entry) in manifest.entries() {
            let found = self.records.get(id).map(|bytes| Hash32::of(bytes));
            if found != Some(entry.hash) {
                wrong.push(id.to_owned());
            }
        }
        let extra = self.records.keys().filter(|id| manifest.get(id).is_none());
        wrong.extend(extra.cloned());
        Ok(wrong)
    }
}

/// The log: changes and openings in order.
#[derive(Debug, Clone, Default)]
struct Log(Vec<(Record, Option<OutcomeResult>, bool)>);

impl Log {
    fn mark(&self) -> Mark {
        self.0
            .iter()
            .rev()
            .find_map(|(entry, outcome, is_event)| Mark::read(entry, outcome.as_ref(), *is_event))
            .unwrap_or(Mark::Never)
    }
}

/// How far a change gets before the machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stops {
    Nowhere,
    BeforeTheIntent,
    AfterTheIntent,
    AfterTheCommit,
    Refused,
}

#[derive(Debug, Clone)]
enum Step {
    Set(u8, u8),
    Remove(u8),
    Header(u8),
}

/// One change, as the room makes it.
fn change(disk: &mut Disk, log: &mut Log, step: &Step, stops: Stops) {
    if stops == Stops::BeforeTheIntent {
        return;
    }
    let before = disk.manifest().expect("own bytes");
    let over = before.as_ref().map(|manifest| manifest.digest(&keys()));
    let mut next = disk.clone();
    let base = before.unwrap_or_else(|| {
        next.header = Some(b"header".to_vec());
        Manifest::new(Epoch::FIRST, Hash32::of(b"header"))
    });
    let mut change = base.next(1);
    match step {
        Step::Set(name, value) => {
            let id = id_of("secrets", &format!("N{name}"));
            // Sealed anew each time, so the bytes differ also where the value does not.
            let bytes = vec![*name, *value, u8::try_from(log.0.len()).expect("short")];
            let version = base.get(&id).map_or(0, |entry| entry.version) + 1;
            change.put(&id, version, &bytes);
            next.records.insert(id, bytes);
        }
        Step::Remove(name) => {
            let id = id_of("secrets", &format!("N{name}"));
            change.remove(&id);
            next.records.remove(&id);
        }
        Step::Header(header) => {
            let bytes = vec![b'h', *header];
            change.set_header(&bytes);
            next.header = Some(bytes);
        }
    }
    let (manifest, touched) = change.finish();
    let entry = Record::new("vault.set").vault_change(over, manifest.digest(&keys()));
    for number in touched {
        match manifest.page(number) {
            Some(page) => next
                .pages
                .insert(number, serde_json::to_vec(page).expect("json")),
            None => next.pages.remove(&number),
        };
    }
    let sealed = manifest.seal(&keys(), &[9; 12]).expect("seals");
    next.top = Some(serde_json::to_vec(&sealed).expect("json"));
    let lost = Outcome::unknown(BootId([0; 16])).result;
    match stops {
        Stops::AfterTheIntent => log.0.push((entry, Some(lost), false)),
        Stops::AfterTheCommit => {
            *disk = next;
            log.0.push((entry, Some(lost), false));
        }
        Stops::Refused => {
            let refused = Outcome::refused("STATE_CHANGED").result;
            log.0.push((entry, Some(refused), false));
        }
        _ => {
            *disk = next;
            log.0.push((entry, Some(Outcome::ok().result), false));
        }
    }
}

/// What an opening leaves in the log.
fn opening(disk: &Disk, log: &mut Log) {
    if let Some(manifest) = disk.manifest().expect("own bytes") {
        let entry = Record::new("vault.open").vault_holds(manifest.digest(&keys()));
        log.0.push((entry, None, true));
    }
}

fn steps() -> impl Strategy<Value = Vec<(Step, Stops)>> {
    let step = prop_oneof![
        (0..5_u8, any::<u8>()).prop_map(|(name, value)| Step::Set(name, value)),
        (0..5_u8).prop_map(Step::Remove),
        any::<u8>().prop_map(Step::Header),
    ];
    let stops = prop_oneof![
        4 => Just(Stops::Nowhere),
        1 => Just(Stops::BeforeTheIntent),
        1 => Just(Stops::AfterTheIntent),
        1 => Just(Stops::AfterTheCommit),
        1 => Just(Stops::Refused),
    ];
    proptest::collection::vec((step, stops), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Wherever the machine stops, what it leaves opens with every record; and no other state that ever was does.
    #[test]
    fn what_a_crash_leaves_opens_and_an_older_vault_put_back_never_does(history in steps()) {
        let (mut disk, mut log) = (Disk::default(), Log::default());
        let mut past = vec![disk.clone()];
        for (step, stops) in &history {
            change(&mut disk, &mut log, step, *stops);
            prop_assert_eq!(disk.open(&log), Ok(vec![]), "{:?} {:?}", step, stops);
            // The next start settles what was uncertain.
            if *stops != Stops::Nowhere {
                opening(&disk, &mut log);
                prop_assert_eq!(disk.open(&log), Ok(vec![]));
            }
            for old in past.iter().filter(|old| **old != disk) {
                prop_assert!(old.open(&log).is_err(), "{:?}", old);
            }
            past.push(disk.clone());
        }
    }

    /// One row of any earlier moment, put into the newest state, or one taken out of it: named, or the vault is refused.
    #[test]
    fn a_row_put_back_or_taken_away_is_found_and_named(history in steps(), pick: prop::sample::Index) {
        let (mut disk, mut log) = (Disk::default(), Log::default());
        let mut past = vec![disk.clone()];
        for (step, stops) in &history {
            change(&mut disk, &mut log, step, *stops);
            opening(&disk, &mut log);
            past.push(disk.clone());
        }
        let old = pick.get(&past);
        for id in old.records.keys().chain(disk.records.keys()) {
            let mut bad = disk.clone();
            match old.records.get(id) {
                Some(bytes) => bad.records.insert(id.clone(), bytes.clone()),
                None => bad.records.remove(id),
            };
            let expected = if bad == disk { vec![] } else { vec![id.clone()] };
            prop_assert_eq!(bad.open(&log), Ok(expected));
        }
        for bad in [
            Disk { top: old.top.clone(), ..disk.clone() },
            Disk { pages: old.pages.clone(), ..disk.clone() },
            Disk { header: old.header.clone(), ..disk.clone() },
            Disk { top: old.top.clone(), pages: old.pages.clone(), ..disk.clone() },
            Disk { top: old.top.clone(), pages: old.pages.clone(), records: old.records.clone(), ..disk.clone() },
        ] {
            prop_assert_eq!(bad.open(&log).is_ok(), bad == disk, "{:?}", bad);
        }
    }
}

#[test]
fn a_log_that_knows_nothing_of_the_vault_refuses_it_and_a_vault_that_is_gone_is_not_made_anew() {
    let (mut disk, mut log) = (Disk::default(), Log::default());
    assert_eq!(log.mark().judge(false, None), Ok(Found::New));
    change(&mut disk, &mut log, &Step::Set(1, 1), Stops::Nowhere);
    assert_eq!(disk.open(&Log::default()), Err(VaultError::RolledBack));
    assert_eq!(Disk::default().open(&log), Err(VaultError::Missing));
    let codes = [VaultError::RolledBack, VaultError::Missing].map(VaultError::code);
    assert_eq!(codes, ["VAULT_ROLLED_BACK", "VAULT_MISSING"]);
    // Nobody knows whether it was ever made.
    let (mut none, mut open) = (Disk::default(), Log::default());
    change(
        &mut none,
        &mut open,
        &Step::Set(1, 1),
        Stops::AfterTheIntent,
    );
    assert_eq!(open.mark().judge(false, None), Ok(Found::New));
}

#[test]
fn a_vault_that_a_person_threw_away_does_not_come_back() {
    let (mut disk, mut log) = (Disk::default(), Log::default());
    change(&mut disk, &mut log, &Step::Set(1, 1), Stops::Nowhere);
    let discard = |outcome: Outcome| (Record::new("vault.init"), Some(outcome.result), false);
    // Not done whole: what was there before counts.
    log.0.push(discard(Outcome::unknown(BootId([0; 16]))));
    assert_eq!(disk.open(&log), Ok(vec![]));
    assert_eq!(Disk::default().open(&log), Err(VaultError::Missing));
    log.0.push(discard(Outcome::ok()));
    assert_eq!(disk.open(&log), Err(VaultError::RolledBack));
    assert_eq!(log.mark().judge(false, None), Ok(Found::New));
    let mut new = Disk::default();
    change(&mut new, &mut log, &Step::Set(1, 1), Stops::Nowhere);
    assert_eq!(new.open(&log), Ok(vec![]));
    assert_eq!(disk.open(&log), Err(VaultError::RolledBack));
}

#[test]
fn a_vault_from_before_there_were_manifests_gets_one_once() {
    let old = |outcome: Outcome| {
        let entry = Record::new("vault.set");
        Mark::read(&entry, Some(&outcome.result), false).expect("a change")
    };
    let unknown = Outcome::unknown(BootId([0; 16]));
    for outcome in [Outcome::ok(), unknown.clone(), Outcome::failed("X")] {
        assert_eq!(old(outcome).judge(true, None), Ok(Found::Unlisted));
    }
    assert_eq!(
        old(Outcome::ok()).judge(false, None),
        Err(VaultError::Missing)
    );
    assert_eq!(old(unknown.clone()).judge(false, None), Ok(Found::New));
    // Its manifest was being made when the machine stopped: made again; once it is there it may not go.
    let digest = Hash32([5; 32]);
    let made = Record::new("vault.migrate").vault_change(None, digest);
    let mark = |outcome: &Outcome| Mark::read(&made, Some(&outcome.result), false).expect("one");
    assert_eq!(mark(&unknown).judge(true, None), Ok(Found::Unlisted));
    assert_eq!(mark(&unknown).judge(true, Some(digest)), Ok(Found::Right));
    assert_eq!(
        mark(&Outcome::ok()).judge(true, None),
        Err(VaultError::Missing)
    );
}

#[test]
fn what_says_nothing_of_the_manifest_is_passed_over() {
    let entry = Record::new("vault.unlock").with("manifest", "not a digest");
    assert_eq!(Mark::read(&entry, None, true), None);
    // What holds is the same however an act ended that changes nothing.
    let digest = Hash32([5; 32]);
    let held = Record::new("vault.export").vault_holds(digest);
    let failed = Outcome::failed("X").result;
    let mark = Mark::read(&held, Some(&failed), false).expect("says");
    assert_eq!(mark.judge(true, Some(digest)), Ok(Found::Right));
    assert_eq!(
        mark.judge(true, Some(Hash32([6; 32]))),
        Err(VaultError::RolledBack)
    );
}

#[test]
fn a_top_opens_for_its_own_vault_and_with_its_own_pages_alone() {
    let (mut disk, mut log) = (Disk::default(), Log::default());
    for name in 0..5 {
        change(&mut disk, &mut log, &Step::Set(name, 1), Stops::Nowhere);
    }
    let top: SealedManifest =
        serde_json::from_slice(disk.top.as_ref().expect("top")).expect("json");
    let pages = || {
        disk.pages
            .iter()
            .map(|(number, page)| (*number, serde_json::from_slice::<Page>(page).expect("json")))
            .collect::<BTreeMap<_, _>>()
    };
    assert!(Manifest::open(&top, &keys(), pages()).is_ok());
    for other in [
        VaultKeys::new(Key::new([7; 32]), [2; 16]),
        VaultKeys::new(Key::new([8; 32]), [1; 16]),
    ] {
        let opened = Manifest::open(&top, &other, pages());
        assert_eq!(opened.err(), Some(VaultError::ManifestCorrupt));
    }
    for number in disk.pages.keys() {
        let mut fewer = pages();
        let page = fewer.remove(number).expect("page");
        assert!(Manifest::open(&top, &keys(), fewer.clone()).is_err());
        // Under another number.
        let free = (0..PAGES)
            .find(|n| !disk.pages.contains_key(n))
            .expect("free");
        fewer.insert(free, page);
        assert!(Manifest::open(&top, &keys(), fewer).is_err());
    }
}

#[test]
fn an_epoch_ends_at_its_limit_and_counts_every_seal() {
    let full = Epoch {
        term: 3,
        seals: EPOCH_SEALS - 1,
    };
    assert_eq!(full.after(1).seals, EPOCH_SEALS);
    assert_eq!(full.after(1).after(2), Epoch { term: 4, seals: 2 });
    let manifest = Manifest::new(full, Hash32([0; 32]));
    // A change that seals no record seals the manifest.
    assert_eq!(manifest.next(0).epoch().seals, EPOCH_SEALS);
    assert_eq!(manifest.next(5).epoch().term, 3);
}
