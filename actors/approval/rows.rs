//! Rows: sealed, each in its place, written on the revision that this room knows.

use super::messages::ApprovalWiring;
use crate::store::{Object, Op};
use crate::supervision::Crash;
use portcullis_core::approval::{Grant, Machine, Place, PlanSealer, Put, Record, Uses};
use portcullis_core::policy::Document;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;

pub(super) const RECORD: &str = "approval";
const GRANT: &str = "approval.grant";
const DOCUMENT: &str = "approval.document";
const USES: &str = "approval.uses";
/// A document was given or set.
const BEGUN: &str = "approval.begun";
const ONLY: &str = "only";

/// The revision of each row and the audit record that it was last written under, by kind and id.
pub(super) type Revisions = BTreeMap<(&'static str, String), (u64, u64)>;

/// Everything that is kept.
pub(super) struct Kept {
    pub machine: Machine,
    pub revisions: Revisions,
    /// Rows that do not open.
    pub left_out: usize,
}

/// Reads all rows.
pub(super) async fn read(wiring: &ApprovalWiring) -> Result<Kept, Crash> {
    let head = wiring.audit.head().await?.seq.0;
    let mut reader = Reader {
        sealer: &wiring.sealer,
        head,
        revisions: Revisions::new(),
        left_out: 0,
    };
    let records: Vec<Record> = reader.all(wiring.store.list_all(RECORD).await?, RECORD)?;
    let grants: Vec<Grant> = reader.all(wiring.store.list_all(GRANT).await?, GRANT)?;
    let uses: Vec<Uses> = reader.all(wiring.store.list_all(USES).await?, USES)?;
    begin(wiring, head).await?;
    let document = wiring.store.get(DOCUMENT, ONLY).await?;
    let document: Option<Result<Value, ()>> = match document {
        None => None,
        Some(row) => Some(reader.one(&row, DOCUMENT)?.ok_or(())),
    };
    if reader.left_out > 0 {
        tracing::error!(
            rows = reader.left_out,
            "rows of approvals were altered or sealed for another identity: they allow nothing"
        );
    }
    let (revisions, left_out) = (reader.revisions, reader.left_out);
    let machine = Machine::new(
        wiring.config.limits(),
        wiring.agents.clone(),
        wiring.deciding.clone(),
        records,
        grants,
        document,
    )
    .with_uses(uses);
    Ok(Kept {
        machine,
        revisions,
        left_out,
    })
}

/// Gives a state its first document, once: where one was and is no more, nothing is put in its place.
async fn begin(wiring: &ApprovalWiring, head: u64) -> Result<(), Crash> {
    let (store, sealer) = (&wiring.store, &wiring.sealer);
    if store.get(BEGUN, ONLY).await?.is_some() {
        return Ok(());
    }
    let first = Put::Document(Document::first());
    let mut all = vec![Op::create(BEGUN, ONLY, head, Vec::new())];
    // One that was set by a version before this mark stays.
    if store.get(DOCUMENT, ONLY).await?.is_none() {
        let first = ops(&[first], &Revisions::new(), sealer, head);
        all.extend(first.map_err(Crash::new)?);
    }
    store
        .commit(all)
        .await
        .map_err(|error| Crash::new(error.to_string()))?;
    Ok(())
}

struct Reader<'a> {
    sealer: &'a PlanSealer,
    head: u64,
    revisions: Revisions,
    left_out: usize,
}

impl Reader<'_> {
    fn all<T: DeserializeOwned>(
        &mut self,
        rows: Vec<Object>,
        kind: &'static str,
    ) -> Result<Vec<T>, Crash> {
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            found.extend(self.one(&row, kind)?);
        }
        Ok(found)
    }

    fn one<T: DeserializeOwned>(
        &mut self,
        row: &Object,
        kind: &'static str,
    ) -> Result<Option<T>, Crash> {
        if row.intent > self.head {
            return Err(Crash::new(format!(
                "STATE_CORRUPT: {kind} {} was written under audit record {}, but the log ends at {}",
                row.id, row.intent, self.head
            )));
        }
        let key = (kind, row.id.clone());
        self.revisions.insert(key, (row.rev, row.intent));
        let place = Place {
            kind,
            id: &row.id,
            intent: row.intent,
        };
        let opened = self.sealer.open(place, &row.payload);
        let value = opened.and_then(|plain| serde_json::from_slice(plain.expose()).ok());
        if value.is_none() {
            self.left_out += 1;
        }
        Ok(value)
    }
}

/// Kind and id of the row that a change writes.
pub(super) fn key(put: &Put) -> (&'static str, String) {
    match put {
        Put::Record(record) => (RECORD, record.id.as_str().to_owned()),
        Put::DropRecord(id) => (RECORD, id.as_str().to_owned()),
        Put::Grant(grant) => (GRANT, grant.id.clone()),
        Put::DropGrant(id) => (GRANT, id.clone()),
        Put::Document(_) => (DOCUMENT, ONLY.to_owned()),
        Put::Uses(uses) => (USES, uses.agent.to_string()),
    }
}

/// Does it delete its row?
pub(super) const fn drops(put: &Put) -> bool {
    matches!(put, Put::DropRecord(_) | Put::DropGrant(_))
}

/// The store's operations for these changes.
pub(super) fn ops(
    puts: &[Put],
    revisions: &Revisions,
    sealer: &PlanSealer,
    intent: u64,
) -> Result<Vec<Op>, &'static str> {
    puts.iter()
        .map(|put| {
            let (kind, id) = key(put);
            let known = revisions.get(&(kind, id.clone())).map(|(rev, _)| *rev);
            let plain = match put {
                Put::Record(record) => serde_json::to_vec(record),
                Put::Grant(grant) => serde_json::to_vec(grant),
                Put::Document(document) => serde_json::to_vec(document),
                Put::Uses(uses) => serde_json::to_vec(uses),
                Put::DropRecord(_) | Put::DropGrant(_) => {
                    let rev = known.ok_or("a row to delete that is not there")?;
                    return Ok(Op::delete_if(kind, &id, intent, rev));
                }
            };
            let plain = plain.map_err(|_| "a row that is no JSON")?;
            let mut nonce = [0; portcullis_core::seal::NONCE];
            getrandom::fill(&mut nonce).map_err(|_| "no random bytes")?;
            let sealed = sealer.seal(
                Place {
                    kind,
                    id: &id,
                    intent,
                },
                &nonce,
                &plain,
            );
            Ok(match known {
                Some(rev) => Op::compare_and_set(kind, &id, intent, rev, sealed),
                None => Op::create(kind, &id, intent, sealed),
            })
        })
        .collect()
}
