//! What a start believes of a file: every row under its tag, all of them under the sum, each where it is looked for.

use super::{Engine, altered, broken, seals_itself};
use crate::store::messages::StoreError;
use portcullis_core::row::{Place, Tag, Weight};
use rusqlite::{CachedStatement, OptionalExtension as _, Row, params};
use std::collections::BTreeMap;

fn found_once(
    mut statement: CachedStatement<'_>,
    at: &[&dyn rusqlite::ToSql],
) -> rusqlite::Result<bool> {
    statement.query_row(at, |row| Ok(row.get::<_, i64>(0)? == 1))
}

impl Engine {
    /// Every row whose room takes it as it lies there, and that they are all, and the newest of each.
    pub(in crate::store) fn check_rows(&self) -> Result<(), StoreError> {
        let mut sum = Weight::none();
        let mut check = |kind: &str, id: &str, tag: &[u8], (right, weight): (Tag, Weight)| {
            if tag != right {
                return Err(altered(kind, id));
            }
            sum = sum.with(weight);
            Ok(())
        };
        // As they lie in the tree, each above the one before, and each is found where it is looked for: a scan meets every row,
        // but a lookup trusts the order and the form of what it compares. It would not find a row that was moved, nor one
        // whose header is written in more bytes than it needs; SQLite's own checks see neither.
        let mut rows: BTreeMap<String, i64> = BTreeMap::new();
        let mut entries: BTreeMap<(String, String), i64> = BTreeMap::new();
        let mut before = None;
        let of_rows = "SELECT kind, id, rev, intent, payload, labels, tag FROM object";
        self.each(of_rows, |row| {
            let (kind, id): (String, String) = (row.get(0)?, row.get(1)?);
            let key = Some((kind.clone(), id.clone()));
            if before >= key {
                return Ok(Err(altered(&kind, &id)));
            }
            before = key;
            let (rev, intent): (i64, i64) = (row.get(2)?, row.get(3)?);
            let (payload, labels): (Vec<u8>, String) = (row.get(4)?, row.get(5)?);
            let tag: Vec<u8> = row.get(6)?;
            // Also of rows that their room seals: they lie in one tree with the others, and one that is not found keeps those
            // behind it from being found.
            if self.seek(&kind, &id)?.is_none_or(|found| found != tag) {
                return Ok(Err(altered(&kind, &id)));
            }
            *rows.entry(kind.clone()).or_default() += 1;
            if seals_itself(&kind) {
                return Ok(Ok(()));
            }
            let place = Place::row(&kind, &id, rev, intent);
            let right = self.key.weigh(&place, &payload, &labels);
            Ok(check(&kind, &id, &tag, right))
        })?;
        // As a room reads them all: from the first on.
        let seeks = "SELECT count(*) FROM object WHERE kind = ?1 AND id > ''";
        for (kind, count) in &rows {
            if self.count(seeks, params![kind])? != *count {
                return Err(altered(kind, "(some)"));
            }
        }
        let mut before = None;
        let of_lists = "SELECT kind, id, seq, intent, payload, tag FROM list";
        self.each(of_lists, |row| {
            let (kind, id): (String, String) = (row.get(0)?, row.get(1)?);
            let (seq, intent): (i64, i64) = (row.get(2)?, row.get(3)?);
            let (payload, tag): (Vec<u8>, Vec<u8>) = (row.get(4)?, row.get(5)?);
            let key = Some((kind.clone(), id.clone(), seq));
            if before >= key {
                return Ok(Err(altered(&kind, &id)));
            }
            before = key;
            let one = "SELECT count(*) FROM list WHERE kind = ?1 AND id = ?2 AND seq = ?3";
            let found = self.db.prepare_cached(one)?;
            if !found_once(found, params![kind, id, seq])? {
                return Ok(Err(altered(&kind, &id)));
            }
            let place = Place::entry(&kind, &id, seq, intent);
            let right = self.key.weigh(&place, &payload, "");
            *entries.entry((kind.clone(), id.clone())).or_default() += 1;
            Ok(check(&kind, &id, &tag, right))
        })?;
        let seeks = "SELECT count(*) FROM list WHERE kind = ?1 AND id = ?2 AND seq > 0";
        for ((kind, id), count) in &entries {
            if self.count(seeks, params![kind, id])? != *count {
                return Err(altered(kind, id));
            }
        }
        self.sum.set(sum);
        let (rev, intent, tag) = self.head()?;
        if self.key.fits_head(rev, intent, sum, &tag) {
            return Ok(());
        }
        Err(StoreError::Replaced)
    }

    /// Until the first that is not as it should be.
    fn each(
        &self,
        sql: &str,
        mut check: impl FnMut(&Row<'_>) -> rusqlite::Result<Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        let mut statement = self.db.prepare(sql).map_err(|error| broken(&error))?;
        let mut rows = statement.query([]).map_err(|error| broken(&error))?;
        while let Some(row) = rows.next().map_err(|error| broken(&error))? {
            check(row).map_err(|error| broken(&error))??;
        }
        Ok(())
    }

    /// The tag of a row, by its key.
    fn seek(&self, kind: &str, id: &str) -> rusqlite::Result<Option<Vec<u8>>> {
        self.db
            .prepare_cached("SELECT tag FROM object WHERE kind = ?1 AND id = ?2")?
            .query_row([kind, id], |row| row.get(0))
            .optional()
    }

    fn count(&self, sql: &str, of: &[&dyn rusqlite::ToSql]) -> Result<i64, StoreError> {
        let counted = self.db.query_row(sql, of, |row| row.get(0));
        counted.map_err(|error| broken(&error))
    }

    pub(super) fn quick_check(&self) -> Result<(), StoreError> {
        let verdict: String = self
            .db
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| broken(&error))?;
        if verdict == "ok" {
            return Ok(());
        }
        Err(StoreError::Corrupt(verdict.chars().take(200).collect()))
    }
}
