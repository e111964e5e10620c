//! The vault's rows in the store, and what is made of them at a start.

use crate::act::{ActError, act};
use crate::store::{Object, Op, Store};
use crate::supervision::Crash;
use portcullis_core::audit::Entry;
use portcullis_core::identity::Identity;
use portcullis_core::seal::{Key, Secret};
use portcullis_core::vault::{
    Header, HeaderRandom, RecordMeta, SealedRecord, VaultError, VaultKeys,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(super) const RECORD: &str = "vault";
pub(super) const HEADER: &str = "vault.header";
pub(super) const EPOCH: &str = "vault.epoch";
pub(super) const ONLY: &str = "only";
/// The one namespace of today; part of every seal, so that others can come.
pub(super) const NAMESPACE: &str = "secrets";

/// Which key epoch seals, and how often it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Epoch {
    v: u8,
    pub term: u32,
    pub seals: u64,
}

impl Epoch {
    pub const FIRST: Self = Self {
        v: 1,
        term: 1,
        seals: 0,
    };

    /// What the next seal leaves behind: one more, or the first of a new epoch.
    pub fn next(self) -> Self {
        if self.seals >= portcullis_core::vault::EPOCH_SEALS {
            return Self {
                v: 1,
                term: self.term.saturating_add(1),
                seals: 1,
            };
        }
        Self {
            seals: self.seals + 1,
            ..self
        }
    }
}

/// The keys, fresh from the blocking thread.
pub struct Unlocked {
    pub(super) keys: VaultKeys,
    /// To be stored: this is a new vault.
    pub(super) made: Option<Header>,
}

/// Runs scrypt, so not on a loop: opens the vault whose header this is, or makes a new one.
pub(super) fn unlock(identity: &Identity, header: Option<&Header>) -> Result<Unlocked, VaultError> {
    if let Some(header) = header {
        return header
            .open(identity)
            .map(|keys| Unlocked { keys, made: None });
    }
    let (mut store_id, mut salt, mut nonce) = ([0; 16], [0; 32], [0; 12]);
    let root = random_key().map_err(|_| VaultError::HeaderCorrupt)?;
    for bytes in [&mut store_id[..], &mut salt[..], &mut nonce[..]] {
        getrandom::fill(bytes).map_err(|_| VaultError::HeaderCorrupt)?;
    }
    let made = Header::make(
        identity,
        HeaderRandom {
            store_id,
            salt,
            root,
            nonce,
        },
    )?;
    Ok(Unlocked {
        keys: made.keys,
        made: Some(made.header),
    })
}

fn random_key() -> Result<Key, getrandom::Error> {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes)?;
    Ok(Key::new(*bytes))
}

/// What is kept of a row: the store has the rest. `meta` is `None` when the record does not open.
pub(super) struct Row {
    pub rev: u64,
    pub meta: Option<RecordMeta>,
}

/// Everything but the keys.
pub(super) struct Rows {
    pub epoch: (u64, Epoch),
    pub records: BTreeMap<String, Row>,
}

/// Reads the header; `Err` in the `Ok`: it is there but no header.
pub(super) async fn read_header(
    store: &Store,
) -> Result<Result<Option<Header>, VaultError>, Crash> {
    let row = store.get(HEADER, ONLY).await?;
    Ok(row
        .map(|row| serde_json::from_slice(&row.payload).map_err(|_| VaultError::HeaderCorrupt))
        .transpose())
}

/// Stores a new vault's header and first epoch under an intent of their own.
pub(super) async fn store_header(
    audit: &crate::audit::AuditHandle,
    store: &Store,
    header: &Header,
) -> Result<(), ActError> {
    let payload = serde_json::to_vec(header).map_err(|_| "the header is no JSON");
    let epoch = serde_json::to_vec(&Epoch::FIRST).map_err(|_| "the epoch is no JSON");
    let ops = |intent| {
        Ok(vec![
            Op::create(HEADER, ONLY, intent, payload?),
            Op::create(EPOCH, ONLY, intent, epoch?),
        ])
    };
    act(audit, store, Entry::new("vault.create"), ops)
        .await
        .map(drop)
}

/// Reads the epoch and tries every record. `head`: the newest audit record; a row beyond it was written under an
/// intent that the log does not hold, and is treated as altered.
pub(super) async fn read_rows(
    store: &Store,
    keys: &VaultKeys,
    head: u64,
) -> Result<Result<Rows, VaultError>, Crash> {
    let Some(row) = store.get(EPOCH, ONLY).await? else {
        return Ok(Err(VaultError::HeaderCorrupt));
    };
    let Ok(epoch) = serde_json::from_slice::<Epoch>(&row.payload) else {
        return Ok(Err(VaultError::HeaderCorrupt));
    };
    let read = |object: Object| {
        let meta = open_record(keys, &object)
            .ok()
            .filter(|_| object.intent <= head)
            .map(|(meta, _)| meta);
        (
            object.id,
            Row {
                rev: object.rev,
                meta,
            },
        )
    };
    let records = store
        .list_all(RECORD)
        .await?
        .into_iter()
        .map(read)
        .collect();
    Ok(Ok(Rows {
        epoch: (row.rev, epoch),
        records,
    }))
}

/// Opens the record in a row, if it is the one that was sealed for this very row.
pub(super) fn open_record(
    keys: &VaultKeys,
    object: &Object,
) -> Result<(RecordMeta, Secret), VaultError> {
    let record: SealedRecord =
        serde_json::from_slice(&object.payload).map_err(|_| VaultError::RecordCorrupt)?;
    let secret = record.open(keys, (NAMESPACE, &object.id), object.intent)?;
    Ok((record.meta(), secret))
}
