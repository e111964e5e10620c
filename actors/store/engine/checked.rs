//! What a start believes of a file: every row under its tag, all of them under the sum; and a file of our own making in its place.

use super::{APPLICATION_ID, FORMAT, SCHEMA};
use super::{Engine, altered, broken, io, seals_itself};
use crate::plain;
use crate::store::messages::StoreError;
use portcullis_core::row::{Place, Tag, Weight};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, ToSql, params};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const INTO_OBJECT: &str = "INSERT INTO object (kind, id, rev, intent, payload, labels, tag) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const INTO_LIST: &str =
    "INSERT INTO list (kind, id, seq, intent, payload, tag) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

/// A new file for the rows of an old one. Whoever can write the old one chooses more than its rows: how each is encoded, where its
/// pages lie, what their free parts hold; SQLite's scans, lookups and checks do not agree on all of that. Rows are therefore
/// served from no file but one that this process, or an earlier start of it, has written. Rejected: `VACUUM`, which moves
/// records as they are encoded.
pub(in crate::store) struct Anew {
    db: Connection,
    path: PathBuf,
}

impl Anew {
    /// `PATH.new`, empty, 0600; what an earlier start left there goes.
    fn make(path: &Path) -> Result<Self, StoreError> {
        let path = beside(path, ".new");
        for beside in [&path, &beside(&path, "-wal"), &beside(&path, "-shm")] {
            plain::remove(beside).map_err(|error| io(&error))?;
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        plain::open(&options, &path).map_err(|error| io(&error))?;
        let made = Connection::open_with_flags(
            &path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .and_then(|db| {
            // It has its name only when it is whole and synced: until then nothing of it needs to last.
            db.pragma_update(None, "synchronous", "OFF")?;
            db.pragma_update(None, "journal_mode", "MEMORY")?;
            db.execute_batch(&format!(
                "BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
            ))?;
            Ok(db)
        });
        let db = made.map_err(|error| broken(&error))?;
        Ok(Self { db, path })
    }

    fn take(&self, sql: &str, row: &[&dyn ToSql]) -> rusqlite::Result<()> {
        self.db.prepare_cached(sql)?.execute(row).map(drop)
    }

    /// Whole and on the disk, under its own name still.
    fn finish(self) -> Result<PathBuf, StoreError> {
        let Self { db, path } = self;
        db.execute_batch("COMMIT")
            .and_then(|()| db.pragma_update(None, "journal_mode", "WAL"))
            .and_then(|()| db.close().map_err(|(_, error)| error))
            .map_err(|error| broken(&error))?;
        let file = plain::open(OpenOptions::new().read(true), &path).map_err(|error| io(&error))?;
        file.sync_all().map_err(|error| io(&error))?;
        Ok(path)
    }
}

impl Engine {
    /// Checks every row of the file and goes on with them in a file of our own making ([`Anew`]). A kill at any point leaves
    /// the old file whole, or the new one.
    pub(super) fn made_anew(self, path: &Path) -> Result<Self, StoreError> {
        let result = Anew::make(path).and_then(|anew| self.copied(path, anew));
        if result.is_err() {
            // The old file is as it was.
            drop(plain::remove(&beside(path, ".new")));
        }
        result
    }

    fn copied(self, path: &Path, anew: Anew) -> Result<Self, StoreError> {
        // One sight of the file for all that is read.
        self.run("BEGIN")?;
        self.check_rows(Some(&anew))?;
        self.run("COMMIT")?;
        let new = anew.finish()?;
        // What the write-ahead log holds belongs to the old file, and to no other.
        self.scrub().map_err(|error| match error {
            StoreError::Overloaded => StoreError::Locked,
            other => other,
        })?;
        let Self { db, key, sum, .. } = self;
        db.close().map_err(|(_, error)| broken(&error))?;
        let log = beside(path, "-wal");
        if log.metadata().is_ok_and(|meta| meta.len() > 0) {
            // Somebody else has written since.
            return Err(StoreError::Locked);
        }
        for sidecar in [log, beside(path, "-shm")] {
            plain::remove(&sidecar).map_err(|error| io(&error))?;
        }
        plain::rename(&new, path).map_err(|error| io(&error))?;
        super::sync_folder(path)?;
        let engine = Self::connect(path, key)?;
        engine.set_up(true).map_err(|error| broken(&error))?;
        engine.sum.set(sum.get());
        Ok(engine)
    }

    /// Every row whose room takes it as it lies there, and that they are all, and the newest of each.
    pub(in crate::store) fn check_rows(&self, anew: Option<&Anew>) -> Result<(), StoreError> {
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
            if let Some(anew) = anew {
                let row = params![kind, id, rev, intent, payload, labels, tag];
                anew.take(INTO_OBJECT, row)?;
            }
            if seals_itself(&kind) {
                return Ok(Ok(()));
            }
            let place = Place::row(&kind, &id, rev, intent);
            let right = self.key.weigh(&place, &payload, &labels);
            if self.seek(&kind, &id)?.is_none_or(|found| found != right.0) {
                return Ok(Err(altered(&kind, &id)));
            }
            *rows.entry(kind.clone()).or_default() += 1;
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
            if let Some(anew) = anew {
                anew.take(INTO_LIST, params![kind, id, seq, intent, payload, tag])?;
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
        if !self.key.fits_head(rev, intent, sum, &tag) {
            return Err(StoreError::Replaced);
        }
        let Some(anew) = anew else { return Ok(()) };
        let head = "UPDATE head SET rev = ?1, intent = ?2, tag = ?3";
        anew.take(head, params![rev, intent, tag])
            .map_err(|error| broken(&error))
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

/// A name beside the file's.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
