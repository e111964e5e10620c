//! From a header and the audit log to an open vault, or to the reason why it stays sealed.

use super::messages::VaultWiring;
use super::rows::{self, EPOCH, Edit, HeaderRow, NAMESPACE, ONLY, RECORD, Rows, random};
use crate::audit::AuditHandle;
use crate::store::Op;
use crate::supervision::Crash;
use portcullis_core::audit::{Body, Entry, Query, Seq};
use portcullis_core::identity::Identity;
use portcullis_core::ids::Hash32;
use portcullis_core::seal::Key;
use portcullis_core::vault::{
    Epoch, Found, Header, HeaderRandom, Manifest, Mark, VaultError, VaultKeys, id_of,
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The keys, fresh from the blocking thread.
pub struct Unlocked {
    keys: VaultKeys,
    header: Unlock,
}

/// Whose keys these are.
pub(super) enum Unlock {
    /// Of the vault that lies there.
    Stored(Box<HeaderRow>),
    /// Of a new one: to be stored, if none was lost.
    Made(Box<Header>),
}

/// An open vault.
pub(super) struct Open {
    pub keys: VaultKeys,
    pub rows: Rows,
    /// The audit record that last named the manifest.
    pub marked: u64,
}

/// Runs scrypt, so not on a loop: opens the vault whose header this is, or makes a new one.
pub(super) fn unlock(identity: &Identity, row: Option<HeaderRow>) -> Result<Unlocked, VaultError> {
    if let Some(row) = row {
        let keys = row.header.open(identity)?;
        let header = Unlock::Stored(Box::new(row));
        return Ok(Unlocked { keys, header });
    }
    let made = Header::make(
        identity,
        HeaderRandom {
            store_id: random().map_err(|_| VaultError::HeaderCorrupt)?,
            salt: random().map_err(|_| VaultError::HeaderCorrupt)?,
            root: random_key().map_err(|_| VaultError::HeaderCorrupt)?,
            nonce: random().map_err(|_| VaultError::HeaderCorrupt)?,
        },
    )?;
    Ok(Unlocked {
        keys: made.keys,
        header: Unlock::Made(Box::new(made.header)),
    })
}

fn random_key() -> Result<Key, getrandom::Error> {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes)?;
    Ok(Key::new(*bytes))
}

/// Opens it, if what lies there is what the log says. What it does to a vault from before there were manifests, and to none,
/// is a recorded change.
pub(super) async fn open(
    wiring: &VaultWiring,
    unlocked: Unlocked,
) -> Result<Result<Open, VaultError>, Crash> {
    let Unlocked { keys, header } = unlocked;
    let mark = mark(&wiring.audit).await?;
    let (has_header, found) = match &header {
        Unlock::Made(_) => (false, None),
        Unlock::Stored(_) => match rows::read_manifest(&wiring.store, &keys).await? {
            Ok(found) => (true, found),
            Err(error) => return Ok(Err(error)),
        },
    };
    let digest = found.as_ref().map(|found| found.digest(&keys));
    let verdict = match mark.judge(has_header, digest) {
        Ok(verdict) => verdict,
        Err(error) => return Ok(Err(error)),
    };
    let rows = match (verdict, header, found) {
        (Found::Right, Unlock::Stored(row), Some(found)) => {
            if found.manifest().header() != row.hash {
                return Ok(Err(VaultError::RolledBack));
            }
            rows::read_rows(&wiring.store, &keys, row.rev, found).await?
        }
        (Found::Unlisted, Unlock::Stored(row), None) => match listed(wiring, &keys, *row).await? {
            Ok(rows) => rows,
            Err(error) => return Ok(Err(error)),
        },
        (Found::New, Unlock::Made(header), None) => made(wiring, &keys, &header).await?,
        _ => return Ok(Err(VaultError::ManifestCorrupt)),
    };
    let opened = Entry {
        principal: Some("system".to_owned()),
        ..note("vault.open", &rows, &keys)
    };
    let marked = match wiring.audit.event(opened).await {
        Ok(seq) => seq.0,
        Err(error) => {
            // The records that are needed for it are in the log already: this one only settles what was uncertain.
            tracing::warn!(target: "portcullis", %error, "the opening of the vault could not be recorded");
            wiring.audit.head().await?.seq.0
        }
    };
    Ok(Ok(Open { keys, rows, marked }))
}

/// A record that names the manifest that holds.
pub(super) fn note(action: &str, rows: &Rows, keys: &VaultKeys) -> Entry {
    Entry {
        object: Some("vault".to_owned()),
        ..Entry::new(action)
    }
    .with("generation", rows.manifest.generation().to_string())
    .vault_holds(rows.manifest.digest(keys))
}

/// The newest record that says which manifest must be found.
async fn mark(audit: &AuditHandle) -> Result<Mark, Crash> {
    let (mut limit, mut until) = (1, None);
    loop {
        let query = Query {
            action: Some("vault.".to_owned()),
            until_seq: until,
            limit,
            ..Query::default()
        };
        let found = audit.query(query).await?;
        for one in found.iter().rev() {
            let outcome = one.outcome.as_ref().map(|ended| &ended.outcome.result);
            let mark = match &one.record.body {
                Body::Intent(entry) => Mark::read(entry, outcome, false),
                Body::Event(entry) => Mark::read(entry, None, true),
                _ => None,
            };
            if let Some(mark) = mark {
                return Ok(mark);
            }
        }
        match found.first() {
            Some(first) if found.len() == limit && first.record.seq.0 > 1 => {
                until = Some(Seq(first.record.seq.0 - 1));
                limit = (limit * 8).min(1_000);
            }
            _ => return Ok(Mark::Never),
        }
    }
}

/// Nothing is stored yet: the rows that a change begins with.
fn blank(epoch: Epoch, header: Hash32, header_rev: u64) -> Rows {
    Rows {
        manifest: Manifest::new(epoch, header),
        manifest_rev: 0,
        pages: BTreeMap::new(),
        header_rev,
        records: BTreeMap::new(),
    }
}

/// Stores a new vault.
async fn made(wiring: &VaultWiring, keys: &VaultKeys, header: &Header) -> Result<Rows, Crash> {
    let stored = serde_json::to_vec(header)?;
    let mut rows = blank(Epoch::FIRST, Hash32::of(&stored), 0);
    let change = rows.manifest.next(0);
    let entry = Entry {
        object: Some("vault".to_owned()),
        ..Entry::new("vault.create")
    };
    rows.change(wiring, keys, entry, change, vec![], Some(stored), vec![])
        .await?;
    Ok(rows)
}

/// As it was kept before there were manifests.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldEpoch {
    #[serde(rename = "v")]
    _v: u8,
    term: u32,
    seals: u64,
}

/// Makes the manifest of a vault that has none. A record that does not open does not get into it.
async fn listed(
    wiring: &VaultWiring,
    keys: &VaultKeys,
    header: HeaderRow,
) -> Result<Result<Rows, VaultError>, Crash> {
    let store = &wiring.store;
    let old = store.get(EPOCH, ONLY).await?;
    let epoch = old
        .as_ref()
        .and_then(|row| serde_json::from_slice::<OldEpoch>(&row.payload).ok());
    let (Some(old), Some(OldEpoch { term, seals, .. })) = (old, epoch) else {
        return Ok(Err(VaultError::HeaderCorrupt));
    };
    // A row beyond the log was written under an intent that it does not hold.
    let head = wiring.audit.head().await?.seq.0;
    let mut rows = blank(Epoch { term, seals }, header.hash, header.rev);
    let mut change = rows.manifest.next(0);
    for object in store.list_all(RECORD).await? {
        if object.intent > head {
            continue;
        }
        if let Ok((meta, _)) = rows::open_record(keys, &object) {
            change.put(&id_of(NAMESPACE, &object.id), meta.version, &object.payload);
        }
    }
    let entry = Entry {
        principal: Some("system".to_owned()),
        object: Some("vault".to_owned()),
        ..Entry::new("vault.migrate")
    };
    let gone = Op::delete_if(EPOCH, ONLY, 0, old.rev);
    let none: Vec<Edit> = vec![];
    rows.change(wiring, keys, entry, change, none, None, vec![gone])
        .await?;
    match rows::read_manifest(store, keys).await? {
        Ok(Some(stored)) => Ok(Ok(rows::read_rows(store, keys, header.rev, stored).await?)),
        Ok(None) => Ok(Err(VaultError::Missing)),
        Err(error) => Ok(Err(error)),
    }
}
