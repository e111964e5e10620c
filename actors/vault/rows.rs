//! What lies in the store, and how it is read back and changed: rows on one side, manifest and records on the other.

use super::messages::VaultWiring;
use crate::act::{ActError, Done, act, store_with};
use crate::store::{Object, Op, Store};
use crate::supervision::Crash;
use portcullis_core::audit::Entry;
use portcullis_core::ids::Hash32;
use portcullis_core::seal::Secret;
use portcullis_core::vault::{
    Binds, Change, Header, LastUse, Manifest, PAGES, Page, Place, RecordMeta, SealedManifest,
    SealedRecord, VaultError, VaultKeys, id_of,
};
use std::collections::BTreeMap;

pub(super) const HEADER: &str = "vault.header";
pub(super) const MANIFEST: &str = "vault.manifest";
pub(super) const PAGE: &str = "vault.page";
/// Last uses, by the secret's name. Not under the manifest, which changes with secrets and not with their use: the record
/// that a row names is the proof of it.
pub(super) const USED: &str = "vault.used";
/// Before there was a manifest.
pub(super) const EPOCH: &str = "vault.epoch";
pub(super) const ONLY: &str = "only";

/// What kind of record: each has rows, and a part in every seal, of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Space {
    /// What people keep.
    Secrets,
    /// Keys of other rooms that were taken along to a new root key.
    Keys,
}

impl Space {
    pub const ALL: [Self; 2] = [Self::Secrets, Self::Keys];

    /// In the seal and in the manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Secrets => "secrets",
            Self::Keys => "keys",
        }
    }

    /// Of its rows.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Secrets => "vault",
            Self::Keys => "vault.key",
        }
    }

    pub fn id(self, name: &str) -> String {
        id_of(self.name(), name)
    }
}

/// A header as found.
#[derive(Clone)]
pub(super) struct HeaderRow {
    pub rev: u64,
    pub hash: Hash32,
    pub header: Header,
}

/// What is kept of a record's row.
pub(super) struct Row {
    /// `None`: there is none, though the manifest names it.
    pub rev: Option<u64>,
    /// What may be known of it, or what is wrong with it.
    pub state: Result<RecordMeta, VaultError>,
    /// What it may be used for.
    pub binds: Binds,
    /// Its last use, and the revision of that row.
    pub used: Option<(LastUse, u64)>,
    /// It is to be sealed anew: an older epoch, or an older form.
    pub is_stale: bool,
}

/// Everything but the keys.
pub(super) struct Rows {
    pub manifest: Manifest,
    pub manifest_rev: u64,
    pub pages: BTreeMap<u8, u64>,
    pub header_rev: u64,
    pub header: Header,
    /// By kind and name.
    pub records: BTreeMap<(Space, String), Row>,
}

/// One record's change.
pub(super) enum Edit {
    Put {
        space: Space,
        name: String,
        meta: RecordMeta,
        binds: Binds,
        stored: Vec<u8>,
    },
    Remove {
        space: Space,
        name: String,
    },
}

/// What one commit changes beside the manifest.
#[derive(Default)]
pub(super) struct Parts {
    /// Records.
    pub edits: Vec<Edit>,
    /// The header in place of the present one.
    pub header: Option<Header>,
    /// Other rows.
    pub also: Vec<Op>,
}

/// Reads the header; `Err` in the `Ok`: it is there but no header.
pub(super) async fn read_header(
    store: &Store,
) -> Result<Result<Option<HeaderRow>, VaultError>, Crash> {
    let Some(row) = store.get(HEADER, ONLY).await? else {
        return Ok(Ok(None));
    };
    let hash = Hash32::of(&row.payload);
    Ok(Header::parse(&row.payload).map(|header| {
        Some(HeaderRow {
            rev: row.rev,
            hash,
            header,
        })
    }))
}

/// The manifest as found, authentic in itself; whether it is the newest is for the log to say.
pub(super) struct Stored {
    manifest: Manifest,
    rev: u64,
    pages: BTreeMap<u8, u64>,
}

impl Stored {
    pub fn digest(&self, keys: &VaultKeys) -> Hash32 {
        self.manifest.digest(keys)
    }

    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// Reads the manifest; `None`: there is none.
pub(super) async fn read_manifest(
    store: &Store,
    keys: &VaultKeys,
) -> Result<Result<Option<Stored>, VaultError>, Crash> {
    let Some(row) = store.get(MANIFEST, ONLY).await? else {
        return Ok(Ok(None));
    };
    let found = store.list_all(PAGE).await?;
    let read = || {
        let sealed: SealedManifest =
            serde_json::from_slice(&row.payload).map_err(|_| VaultError::ManifestCorrupt)?;
        let (mut pages, mut revs) = (BTreeMap::new(), BTreeMap::new());
        for page in &found {
            let number = page_number(&page.id).ok_or(VaultError::ManifestCorrupt)?;
            let read: Page =
                serde_json::from_slice(&page.payload).map_err(|_| VaultError::ManifestCorrupt)?;
            pages.insert(number, read);
            revs.insert(number, page.rev);
        }
        Ok(Some(Stored {
            manifest: Manifest::open(&sealed, keys, pages)?,
            rev: row.rev,
            pages: revs,
        }))
    };
    Ok(read())
}

fn page_id(number: u8) -> String {
    format!("{number:02}")
}

fn page_number(id: &str) -> Option<u8> {
    let number = id.parse().ok().filter(|number| *number < PAGES)?;
    (page_id(number) == id).then_some(number)
}

/// Holds every record against the manifest.
pub(super) async fn read_rows(
    store: &Store,
    keys: &VaultKeys,
    header: HeaderRow,
    stored: Stored,
) -> Result<Rows, Crash> {
    let Stored {
        manifest,
        rev,
        pages,
    } = stored;
    let term = manifest.epoch().term;
    let mut records = BTreeMap::new();
    for space in Space::ALL {
        for object in store.list_all(space.kind()).await? {
            let read = read_record(keys, &manifest, space, &object);
            let is_stale = read.as_ref().is_ok_and(|record| !record.is_current(term));
            let binds = read.as_ref().map(|record| record.binds().clone());
            let row = Row {
                rev: Some(object.rev),
                binds: binds.unwrap_or_default(),
                used: None,
                state: read.map(|record| record.meta()),
                is_stale,
            };
            records.insert((space, object.id), row);
        }
    }
    for (id, _) in manifest.entries() {
        let place = id.split_once('/').and_then(|(name, rest)| {
            let space = Space::ALL.into_iter().find(|space| space.name() == name)?;
            Some((space, rest.to_owned()))
        });
        // Another build's kind of record is not ours to judge.
        let Some(place) = place else { continue };
        records.entry(place).or_insert(Row {
            rev: None,
            state: Err(VaultError::RecordMissing),
            binds: Binds::default(),
            used: None,
            is_stale: false,
        });
    }
    for object in store.list_all(USED).await? {
        // One that was altered is not believed, and keeps nothing from being used.
        let used = serde_json::from_slice::<LastUse>(&object.payload).ok();
        let used = used.filter(|used| object.is_whole && used.record == object.intent);
        if let (Some(used), Some(row)) = (used, records.get_mut(&(Space::Secrets, object.id))) {
            row.used = Some((used, object.rev));
        }
    }
    Ok(Rows {
        manifest,
        manifest_rev: rev,
        pages,
        header_rev: header.rev,
        header: header.header,
        records,
    })
}

/// The record in a row, if it is the one that the manifest names.
pub(super) fn read_record(
    keys: &VaultKeys,
    manifest: &Manifest,
    space: Space,
    object: &Object,
) -> Result<SealedRecord, VaultError> {
    is_listed(manifest, space, object).map_err(|old| {
        // A whole one was put back, anything else was damaged.
        open_record(keys, space, object).map_or_else(|damaged| damaged, |_| old)
    })?;
    serde_json::from_slice(&object.payload).map_err(|_| VaultError::RecordCorrupt)
}

/// Are these the bytes that the manifest names?
fn is_listed(manifest: &Manifest, space: Space, object: &Object) -> Result<(), VaultError> {
    let listed = manifest.get(&space.id(&object.id));
    if listed.is_some_and(|entry| entry.hash == Hash32::of(&object.payload)) {
        return Ok(());
    }
    Err(VaultError::RecordOld)
}

/// Opens the record in a row, if it was sealed for this very place.
pub(super) fn open_record(
    keys: &VaultKeys,
    space: Space,
    object: &Object,
) -> Result<(RecordMeta, Secret), VaultError> {
    let record: SealedRecord =
        serde_json::from_slice(&object.payload).map_err(|_| VaultError::RecordCorrupt)?;
    let place = Place {
        namespace: space.name(),
        name: &object.id,
        intent: object.intent,
    };
    let secret = record.open(keys, place)?;
    Ok((record.meta(), secret))
}

impl Rows {
    /// What is known of a record.
    pub fn get(&self, space: Space, name: &str) -> Option<&Row> {
        self.records.get(&(space, name.to_owned()))
    }

    /// What people keep.
    pub fn secrets(&self) -> impl Iterator<Item = (&str, &Row)> {
        self.records
            .iter()
            .filter(|((space, _), _)| *space == Space::Secrets)
            .map(|((_, name), row)| (name.as_str(), row))
    }

    fn rev(&self, space: Space, name: &str) -> Option<u64> {
        self.get(space, name).and_then(|row| row.rev)
    }

    /// A change's operations, for one commit: records, pages that differ, the manifest, and where given the header.
    fn ops(
        &self,
        intent: u64,
        next: &Next,
        edits: &[Edit],
        header: Option<&[u8]>,
    ) -> Result<Vec<Op>, &'static str> {
        let mut ops = vec![];
        for edit in edits {
            match edit {
                Edit::Put {
                    space,
                    name,
                    stored,
                    ..
                } => {
                    let rev = self.rev(*space, name);
                    ops.push(put(space.kind(), name, intent, rev, stored.clone()));
                }
                Edit::Remove { space, name } => {
                    if let Some(rev) = self.rev(*space, name) {
                        ops.push(Op::delete_if(space.kind(), name, intent, rev));
                    }
                    if let Some((_, rev)) = self.get(*space, name).and_then(|row| row.used.as_ref())
                    {
                        ops.push(Op::delete_if(USED, name, intent, *rev));
                    }
                }
            }
        }
        for number in &next.touched {
            let (id, rev) = (page_id(*number), self.pages.get(number).copied());
            match (next.manifest.page(*number), rev) {
                (Some(page), rev) => {
                    let payload = serde_json::to_vec(page).map_err(|_| "a page is no JSON")?;
                    ops.push(put(PAGE, &id, intent, rev, payload));
                }
                (None, Some(rev)) => ops.push(Op::delete_if(PAGE, &id, intent, rev)),
                (None, None) => {}
            }
        }
        let rev = (self.manifest_rev > 0).then_some(self.manifest_rev);
        ops.push(put(MANIFEST, ONLY, intent, rev, next.sealed.clone()));
        if let Some(header) = header {
            let rev = (self.header_rev > 0).then_some(self.header_rev);
            ops.push(put(HEADER, ONLY, intent, rev, header.to_vec()));
        }
        Ok(ops)
    }

    /// Makes a change: its intent with the manifest's digest, one commit, the outcome. Afterwards this is what lies there.
    ///
    /// # Errors
    /// [`ActError`]; then nothing here has changed.
    pub async fn change(
        &mut self,
        wiring: &VaultWiring,
        keys: &VaultKeys,
        entry: Entry,
        change: Change,
        parts: Parts,
    ) -> Result<Done, ActError> {
        let Parts {
            edits,
            header,
            also,
        } = parts;
        let mut change = change;
        let stored_header = header.as_ref().map(Header::to_bytes);
        if let Some(stored) = &stored_header {
            change.set_header(stored);
        }
        let over = (self.manifest_rev > 0).then(|| self.manifest.digest(keys));
        let next = Next::of(change, keys)?;
        let entry = entry.vault_change(over, next.manifest.digest(keys));
        let ops = |intent| {
            let mut ops = self.ops(intent, &next, &edits, stored_header.as_deref())?;
            ops.extend(also.into_iter().map(|op| Op { intent, ..op }));
            Ok(ops)
        };
        let done = act(&wiring.audit, &wiring.store, entry, ops).await?;
        // All of one commit has one revision.
        let rev = done.revisions.first().ok_or(ActError::Stale)?.0;
        for number in next.touched {
            match next.manifest.page(number) {
                Some(_) => self.pages.insert(number, rev),
                None => self.pages.remove(&number),
            };
        }
        self.manifest = next.manifest;
        self.manifest_rev = rev;
        if let Some(header) = header {
            self.header_rev = rev;
            self.header = header;
        }
        for edit in edits {
            match edit {
                Edit::Put {
                    space,
                    name,
                    meta,
                    binds,
                    ..
                } => {
                    let place = (space, name);
                    let used = self.records.remove(&place).and_then(|row| row.used);
                    let row = Row {
                        rev: Some(rev),
                        state: Ok(meta),
                        binds,
                        used,
                        is_stale: false,
                    };
                    self.records.insert(place, row);
                }
                Edit::Remove { space, name } => {
                    self.records.remove(&(space, name));
                }
            }
        }
        Ok(done)
    }
}

/// Keeps a secret's last use; the record that it names is in the log already.
pub(super) async fn keep_use(
    store: &Store,
    name: &str,
    row: &mut Row,
    used: LastUse,
) -> Result<(), ActError> {
    let rev = row.used.as_ref().map(|(_, rev)| *rev);
    let kept = store_with(store, used.record, |intent| {
        let payload = serde_json::to_vec(&used).map_err(|_| "a use is no JSON")?;
        Ok(vec![put(USED, name, intent, rev, payload)])
    });
    let rev = kept.await?.first().ok_or(ActError::Stale)?.0;
    row.used = Some((used, rev));
    Ok(())
}

/// The manifest to come.
struct Next {
    manifest: Manifest,
    touched: std::collections::BTreeSet<u8>,
    sealed: Vec<u8>,
}

impl Next {
    fn of(change: Change, keys: &VaultKeys) -> Result<Self, ActError> {
        let broken = |why| ActError::Refused(crate::store::StoreError::Invalid(why));
        let (manifest, touched) = change.finish();
        let nonce = random().map_err(|_| broken("the system gives no random bytes"))?;
        let sealed = manifest.seal(keys, &nonce);
        let sealed = sealed.and_then(|sealed| serde_json::to_vec(&sealed).ok());
        Ok(Self {
            manifest,
            touched,
            sealed: sealed.ok_or(broken("the manifest is no JSON"))?,
        })
    }
}

fn put(kind: &str, id: &str, intent: u64, rev: Option<u64>, payload: Vec<u8>) -> Op {
    match rev {
        None => Op::create(kind, id, intent, payload),
        Some(rev) => Op::compare_and_set(kind, id, intent, rev, payload),
    }
}

/// Bytes from the operating system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
