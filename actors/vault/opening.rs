//! From a header and the audit log to an open vault, or to the reason why it stays sealed.

use super::keys::{Unlock, Unlocked};
use super::locked::Locked;
use super::messages::{VaultRefusal, VaultWiring};
use super::rows::{self, EPOCH, HEADER, HeaderRow, MANIFEST, ONLY, PAGE, Parts, Rows, Space, USED};
use crate::act::{ActError, store_with};
use crate::audit::{AuditError, AuditHandle};
use crate::store::{Op, Store};
use crate::supervision::Crash;
use portcullis_core::audit::{Body, Entry, Outcome, OutcomeResult, Query, Seq};
use portcullis_core::ids::Hash32;
use portcullis_core::vault::{Epoch, Found, Header, Manifest, Mark, VaultError, VaultKeys};
use serde::Deserialize;
use std::collections::BTreeMap;

/// An open vault.
pub(super) struct Open {
    pub keys: VaultKeys,
    /// After the keys: they are wiped before their pages may go.
    pub locked: Locked,
    pub rows: Rows,
    /// The audit record that last named the manifest.
    pub marked: u64,
}

/// The act that throws a vault away.
const DISCARD: &str = "vault.init";

/// Opens it, if what lies there is what the log says. What it does to a vault of an older form, and to none, is a recorded
/// change.
pub(super) async fn open(
    wiring: &VaultWiring,
    unlocked: Unlocked,
) -> Result<Result<Open, VaultError>, Crash> {
    let Unlocked {
        mut keys,
        header,
        by,
    } = unlocked;
    let (mark, begun) = match mark(&wiring.audit).await {
        Ok(found) => found,
        // To try again at once changes nothing: it stays sealed, and the rest lives.
        Err(AuditError::Altered(fault)) => {
            tracing::error!(target: "portcullis", %fault, "the audit log was altered where it says which vault must be here");
            return Ok(Err(VaultError::LogAltered));
        }
        Err(AuditError::Unreadable(why)) => {
            tracing::error!(target: "portcullis", why, "the audit log cannot be read as far as it says which vault must be here");
            return Ok(Err(VaultError::LogUnreadable));
        }
        Err(error) => return Err(error.into()),
    };
    let (has_header, found) = match &header {
        Unlock::Made(_) => (false, None),
        Unlock::Stored(..) => match rows::read_manifest(&wiring.store, &keys).await? {
            Ok(found) => (true, found),
            Err(error) => return Ok(Err(error)),
        },
    };
    let digest = found.as_ref().map(|found| found.digest(&keys));
    // A person threw it away, and a crash came in between: the header went first, so his word is carried out.
    let mark = match begun {
        Some(_) if !has_header => Mark::Discarded,
        _ => mark,
    };
    let verdict = match mark.judge(has_header, digest) {
        Ok(verdict) => verdict,
        Err(error) => return Ok(Err(error)),
    };
    let rows = match (verdict, header, found) {
        (Found::Right, Unlock::Stored(row, newer), Some(found)) => {
            if found.manifest().header() != row.hash {
                return Ok(Err(VaultError::RolledBack));
            }
            let mut rows = rows::read_rows(&wiring.store, &keys, *row, found).await?;
            if newer.is_some() {
                let (entry, change) = (migration(), rows.manifest.next(0));
                let parts = Parts {
                    header: newer,
                    ..Parts::default()
                };
                rows.change(wiring, &keys, entry, change, parts).await?;
            }
            rows
        }
        (Found::Unlisted, Unlock::Stored(row, newer), None) => {
            match listed(wiring, &keys, *row, newer).await? {
                Ok(rows) => rows,
                Err(error) => return Ok(Err(error)),
            }
        }
        (Found::New, Unlock::Made(header), None) => {
            if let Some(intent) = begun {
                take_head(&wiring.store, intent.0).await?;
                take_rest(&wiring.store, intent.0).await?;
            }
            made(wiring, &keys, *header).await?
        }
        _ => return Ok(Err(VaultError::ManifestCorrupt)),
    };
    let opened = Entry {
        principal: Some("system".to_owned()),
        ..note("vault.open", &rows, &keys)
    };
    let marked = match wiring.audit.event(opened.with("unlocker", by)).await {
        Ok(seq) => seq.0,
        Err(error) => {
            // The records that are needed for it are in the log already: this one only settles what was uncertain.
            tracing::warn!(target: "portcullis", %error, "the opening of the vault could not be recorded");
            wiring.audit.head().await?.seq.0
        }
    };
    keys.hold(rows.manifest.epoch().term);
    Ok(Ok(Open {
        locked: Locked::of(&keys),
        keys,
        rows,
        marked,
    }))
}

fn migration() -> Entry {
    Entry {
        principal: Some("system".to_owned()),
        object: Some("vault".to_owned()),
        ..Entry::new("vault.migrate")
    }
}

/// A record that names the manifest that holds.
pub(super) fn note(action: &str, rows: &Rows, keys: &VaultKeys) -> Entry {
    Entry {
        object: Some("vault".to_owned()),
        ..Entry::new(action)
    }
    .with(
        "manifest_generation",
        rows.manifest.generation().to_string(),
    )
    .vault_holds(rows.manifest.digest(keys))
}

/// The newest record that says which manifest must be found; and behind it the one, if any, by which a person began to throw
/// the vault away, and nobody knows whether that was done.
async fn mark(audit: &AuditHandle) -> Result<(Mark, Option<Seq>), AuditError> {
    let (mut limit, mut until, mut begun) = (1, None, None);
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
                return Ok((mark, begun));
            }
            if let Body::Intent(entry) = &one.record.body
                && entry.action == DISCARD
                && matches!(outcome, None | Some(OutcomeResult::Unknown { .. }))
            {
                begun.get_or_insert(one.record.seq);
            }
        }
        match found.first() {
            Some(first) if found.len() == limit && first.record.seq.0 > 1 => {
                until = Some(Seq(first.record.seq.0 - 1));
                limit = (limit * 8).min(1_000);
            }
            _ => return Ok((Mark::Never, begun)),
        }
    }
}

/// Nothing is stored yet: the rows that a change begins with.
fn blank(epoch: Epoch, header: Header, hash: Hash32, header_rev: u64) -> Rows {
    Rows {
        manifest: Manifest::new(epoch, hash),
        manifest_rev: 0,
        pages: BTreeMap::new(),
        header_rev,
        header,
        records: BTreeMap::new(),
    }
}

/// Stores a new vault.
async fn made(wiring: &VaultWiring, keys: &VaultKeys, header: Header) -> Result<Rows, Crash> {
    let hash = Hash32::of(&header.to_bytes());
    let mut rows = blank(Epoch::FIRST, header.clone(), hash, 0);
    let change = rows.manifest.next(0);
    let entry = Entry {
        object: Some("vault".to_owned()),
        ..Entry::new("vault.create")
    };
    let parts = Parts {
        header: Some(header),
        ..Parts::default()
    };
    rows.change(wiring, keys, entry, change, parts).await?;
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
    row: HeaderRow,
    newer: Option<Header>,
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
    let mut rows = blank(Epoch { term, seals }, row.header.clone(), row.hash, row.rev);
    let mut change = rows.manifest.next(0);
    for object in store.list_all(Space::Secrets.kind()).await? {
        if object.intent > head {
            continue;
        }
        if let Ok((meta, _)) = rows::open_record(keys, Space::Secrets, &object) {
            change.put(
                &Space::Secrets.id(&object.id),
                meta.version,
                &object.payload,
            );
        }
    }
    let gone = Op::delete_if(EPOCH, ONLY, 0, old.rev);
    let parts = Parts {
        header: newer,
        also: vec![gone],
        ..Parts::default()
    };
    rows.change(wiring, keys, migration(), change, parts)
        .await?;
    let header = match rows::read_header(store).await? {
        Ok(Some(header)) => header,
        Ok(None) => return Ok(Err(VaultError::Missing)),
        Err(error) => return Ok(Err(error)),
    };
    match rows::read_manifest(store, keys).await? {
        Ok(Some(stored)) => Ok(Ok(rows::read_rows(store, keys, header, stored).await?)),
        Ok(None) => Ok(Err(VaultError::Missing)),
        Err(error) => Ok(Err(error)),
    }
}

/// Rows taken away by one commit.
const BATCH: usize = 200;

/// Takes away everything that lies there, so that a new vault can be made: a person's word, when the old one cannot be
/// opened. What says that there is a vault goes first, in one commit: a stop before it leaves all as it was, and a stop after
/// it leaves what the next opening takes away.
pub(super) async fn clear(wiring: &VaultWiring, by: Entry) -> Result<(), VaultRefusal> {
    let VaultWiring { audit, store, .. } = wiring;
    let entry = Entry {
        object: Some("vault".to_owned()),
        action: DISCARD.to_owned(),
        ..by
    };
    let intent = audit.intent(entry).await.map_err(ActError::CannotRecord)?;
    let head = take_head(store, intent.0).await;
    let has_begun = !head.as_ref().is_err_and(|error| !error.must_reread());
    let cleared = match head {
        Ok(()) => take_rest(store, intent.0).await,
        Err(error) => Err(error),
    };
    let outcome = match &cleared {
        Ok(()) => Outcome::ok(),
        // Begun and not done: left open, so that the next opening carries it out.
        Err(_) if has_begun => return Ok(cleared?),
        Err(error) => Outcome::failed(error.code()),
    };
    if let Err(error) = audit.outcome(intent, outcome).await {
        tracing::error!(target: "portcullis", intent = intent.0, %error, "an outcome could not be recorded");
    }
    Ok(cleared?)
}

/// What says that there is a vault.
async fn take_head(store: &Store, intent: u64) -> Result<(), ActError> {
    let mut head = vec![];
    for kind in [HEADER, MANIFEST, EPOCH, PAGE] {
        head.extend(taken(store, kind, intent).await?);
    }
    for batch in head.chunks(BATCH) {
        store_with(store, intent, |_| Ok(batch.to_vec())).await?;
    }
    Ok(())
}

/// All the rest of it.
async fn take_rest(store: &Store, intent: u64) -> Result<(), ActError> {
    for kind in Space::ALL.map(Space::kind).into_iter().chain([USED]) {
        for batch in taken(store, kind, intent).await?.chunks(BATCH) {
            store_with(store, intent, |_| Ok(batch.to_vec())).await?;
        }
    }
    Ok(())
}

async fn taken(store: &Store, kind: &str, intent: u64) -> Result<Vec<Op>, ActError> {
    let rows = store.list_all(kind).await.map_err(ActError::Refused)?;
    let gone = rows.iter();
    Ok(gone
        .map(|row| Op::delete_if(kind, &row.id, intent, row.rev))
        .collect())
}
