//! SQLite: schema, pragmas, and each operation as one conditional statement.

use super::messages::{Change, CommitError, Entry, Lease, Object, Op, Revision, StoreError};
use portcullis_core::row::{Place, RowKey};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, params};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

const APPLICATION_ID: i64 = 0x5043_5354;
const FORMAT: i64 = 2;
/// Above this a start would wait noticeably for the check (about 1 ms per MiB).
const QUICK_CHECK_MAX_BYTES: u64 = 64 << 20;
const BUSY: Duration = Duration::from_secs(1);

const SCHEMA: &str = "
    CREATE TABLE object (
        kind TEXT NOT NULL, id TEXT NOT NULL, rev INTEGER NOT NULL, intent INTEGER NOT NULL,
        payload BLOB NOT NULL, labels TEXT NOT NULL, tag BLOB NOT NULL, PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE list (
        kind TEXT NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL, intent INTEGER NOT NULL,
        payload BLOB NOT NULL, tag BLOB NOT NULL, PRIMARY KEY (kind, id, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE head (
        only INTEGER PRIMARY KEY CHECK (only = 1), rev INTEGER NOT NULL, intent INTEGER NOT NULL, tag BLOB NOT NULL
    ) STRICT;
    INSERT INTO head VALUES (1, 0, 0, x'');
";

pub(super) struct Engine {
    db: Connection,
    key: RowKey,
}

impl Engine {
    /// Opens or makes the file, 0600, and checks it.
    pub fn open_writer(path: &Path, key: RowKey) -> Result<Self, StoreError> {
        own_file(path)?;
        let db = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(|error| broken(&error))?;
        let engine = Self { db, key };
        engine.set_up(true).map_err(|error| broken(&error))?;
        engine.check_format()?;
        let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
        if bytes <= QUICK_CHECK_MAX_BYTES {
            engine.quick_check()?;
        }
        engine.highest_intent()?;
        engine.check_rows()?;
        Ok(engine)
    }

    /// A second connection that can only read; the writer has made the file.
    pub fn open_reader(path: &Path, key: RowKey) -> Result<Self, StoreError> {
        // Read-write on the file, since a reader of a WAL must be able to write its index; query_only below.
        let db = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(|error| broken(&error))?;
        let engine = Self { db, key };
        engine.set_up(false).map_err(|error| broken(&error))?;
        engine
            .db
            .pragma_update(None, "query_only", true)
            .map_err(|error| broken(&error))?;
        Ok(engine)
    }

    pub fn in_memory() -> Result<Self, StoreError> {
        let db = Connection::open_in_memory().map_err(|error| broken(&error))?;
        let key = RowKey::none();
        let engine = Self { db, key };
        engine.check_format()?;
        Ok(engine)
    }

    fn set_up(&self, writer: bool) -> rusqlite::Result<()> {
        self.db.busy_timeout(BUSY)?;
        self.db.pragma_update(None, "cache_size", -1024)?;
        self.db.pragma_update(None, "trusted_schema", false)?;
        if writer {
            self.db.pragma_update(None, "journal_mode", "WAL")?;
            self.db.pragma_update(None, "secure_delete", true)?;
            self.db.pragma_update(None, "journal_size_limit", 4 << 20)?;
        }
        // NORMAL would lose acknowledged rows at a power cut.
        self.db.pragma_update(None, "synchronous", "FULL")
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let read = |name| {
            self.db
                .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
        };
        let application = read("application_id").map_err(|error| broken(&error))?;
        let found = read("user_version").map_err(|error| broken(&error))?;
        let tables: i64 = self
            .db
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(|error| broken(&error))?;
        match (application, found, tables) {
            (APPLICATION_ID, FORMAT, _) => self.check_schema(),
            (0, 0, 0) => self.make(),
            // Of form 1 too, whose rows had no tags: whoever has no key could put any row into such a file.
            _ => Err(StoreError::Format {
                found,
                known: FORMAT,
            }),
        }
    }

    /// The tables as they are made here, and nothing beside them: a trigger would undo writes whose rows have right tags.
    fn check_schema(&self) -> Result<(), StoreError> {
        let read = |db: &Connection| {
            db.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name")?
                .query_map([], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })?
                .collect::<rusqlite::Result<Vec<(String, String, String, Option<String>)>>>()
        };
        let ours = Connection::open_in_memory().and_then(|db| {
            db.execute_batch(SCHEMA)?;
            read(&db)
        });
        let ours = ours.map_err(|error| broken(&error))?;
        let found = read(&self.db).map_err(|error| broken(&error))?;
        if found == ours {
            return Ok(());
        }
        let foreign = found.iter().find(|entry| !ours.contains(entry));
        let name = foreign.map_or("a table is missing", |(_, name, ..)| name);
        Err(altered("schema", name))
    }

    /// Makes the tables, all or nothing.
    fn make(&self) -> Result<(), StoreError> {
        self.begin()?;
        let made = self
            .db
            .execute_batch(&format!(
                "{SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
            ))
            .and_then(|()| self.tag_head(0, 0))
            .map_err(|error| broken(&error))
            .and_then(|()| self.commit());
        if made.is_err() {
            self.rollback();
        }
        made
    }

    fn tag_head(&self, rev: i64, intent: i64) -> rusqlite::Result<()> {
        let tag = self.key.tag(&Place::head(rev, intent), &[], "");
        self.db
            .prepare_cached("UPDATE head SET tag = ?1")?
            .execute([tag])
            .map(drop)
    }

    /// Every row whose room takes it as it lies there.
    fn check_rows(&self) -> Result<(), StoreError> {
        let kinds = |table| {
            self.db
                .prepare(&format!("SELECT DISTINCT kind FROM {table}"))?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<String>>>()
        };
        for kind in kinds("object").map_err(|error| broken(&error))? {
            if !seals_itself(&kind) {
                self.list(&kind, "", usize::MAX)?;
            }
        }
        for kind in kinds("list").map_err(|error| broken(&error))? {
            let ids: rusqlite::Result<Vec<String>> = self
                .db
                .prepare("SELECT DISTINCT id FROM list WHERE kind = ?1")
                .and_then(|mut ids| ids.query_map([&kind], |row| row.get(0))?.collect());
            for id in ids.map_err(|error| broken(&error))? {
                self.entries(&kind, &id, 0, usize::MAX)?;
            }
        }
        Ok(())
    }

    fn quick_check(&self) -> Result<(), StoreError> {
        let verdict: String = self
            .db
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| broken(&error))?;
        if verdict == "ok" {
            return Ok(());
        }
        Err(StoreError::Corrupt(verdict.chars().take(200).collect()))
    }

    pub fn begin(&self) -> Result<(), StoreError> {
        self.db
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(|error| broken(&error))
    }

    pub fn commit(&self) -> Result<(), StoreError> {
        self.db
            .execute_batch("COMMIT")
            .map_err(|error| broken(&error))
    }

    /// Leaves no transaction open, whatever state the engine is in.
    pub fn rollback(&self) {
        if !self.db.is_autocommit() {
            drop(self.db.execute_batch("ROLLBACK"));
        }
    }

    /// Applies one commit inside the open transaction: all of it or nothing.
    pub fn apply(&self, ops: &[Op]) -> Result<Vec<Revision>, CommitError> {
        self.run("SAVEPOINT one")?;
        let result = self.apply_all(ops);
        if result.is_err() {
            // A full disk may have rolled the whole transaction back already; then there is no savepoint.
            if !self.db.is_autocommit() {
                self.run("ROLLBACK TO one")?;
                self.run("RELEASE one")?;
            }
        } else {
            self.run("RELEASE one")?;
        }
        result
    }

    fn apply_all(&self, ops: &[Op]) -> Result<Vec<Revision>, CommitError> {
        let rev = self.next_revision(ops)?;
        ops.iter()
            .enumerate()
            .map(|(index, op)| match self.apply_one(op, rev) {
                Ok(Some(revision)) => Ok(Revision(from_sql(revision))),
                Ok(None) => Err(CommitError::Conflict { index }),
                Err(error) => Err(broken(&error).into()),
            })
            .collect()
    }

    fn next_revision(&self, ops: &[Op]) -> Result<i64, StoreError> {
        let intent = ops.iter().map(|op| to_sql(op.intent)).max().unwrap_or(0);
        self.db
            .prepare_cached(
                "UPDATE head SET rev = rev + 1, intent = max(intent, ?1) RETURNING rev, intent",
            )
            .and_then(|mut statement| {
                statement.query_row([intent], |row| Ok((row.get(0)?, row.get(1)?)))
            })
            .and_then(|(rev, intent)| self.tag_head(rev, intent).map(|()| rev))
            .map_err(|error| broken(&error))
    }

    /// `None`: the condition did not hold.
    fn apply_one(&self, op: &Op, rev: i64) -> rusqlite::Result<Option<i64>> {
        let Op {
            kind,
            id,
            intent,
            change,
        } = op;
        let intent = to_sql(*intent);
        let tag = |payload: &[u8], labels: &str| {
            let place = Place::row(kind, id, rev, intent);
            self.key.tag(&place, payload, labels)
        };
        let changed = match change {
            Change::Create { payload, labels } => {
                let labels = labels_text(labels);
                let tag = tag(payload, &labels);
                self.db
                    .prepare_cached(
                        "INSERT INTO object (kind, id, rev, intent, payload, labels, tag)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
                    )?
                    .execute(params![kind, id, rev, intent, payload, labels, tag])?
            }
            Change::CompareAndSet {
                rev: expected,
                payload,
                labels,
            } => {
                let labels = labels_text(labels);
                let (tag, expected) = (tag(payload, &labels), to_sql(*expected));
                self.db
                    .prepare_cached(
                        "UPDATE object SET rev = ?3, intent = ?4, payload = ?5, labels = ?6, tag = ?8
                         WHERE kind = ?1 AND id = ?2 AND rev = ?7",
                    )?
                    .execute(params![kind, id, rev, intent, payload, labels, expected, tag])?
            }
            Change::DeleteIf { rev: expected } => self
                .db
                .prepare_cached("DELETE FROM object WHERE kind = ?1 AND id = ?2 AND rev = ?3")?
                .execute(params![kind, id, to_sql(*expected)])?,
            Change::Append { payload } => {
                let seq: i64 = self
                    .db
                    .prepare_cached(
                        "SELECT coalesce(max(seq), 0) + 1 FROM list WHERE kind = ?1 AND id = ?2",
                    )?
                    .query_row([kind, id], |row| row.get(0))?;
                let place = Place::entry(kind, id, seq, intent);
                let tag = self.key.tag(&place, payload, "");
                self.db
                    .prepare_cached(
                        "INSERT INTO list (kind, id, seq, intent, payload, tag) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    )?
                    .execute(params![kind, id, seq, intent, payload, tag])?;
                return Ok(Some(seq));
            }
            Change::Claim {
                holder,
                now_ms,
                lease_ms,
            } => {
                return self.claim(op, rev, holder, *now_ms, *lease_ms);
            }
        };
        Ok((changed == 1).then_some(rev))
    }

    fn claim(
        &self,
        op: &Op,
        rev: i64,
        holder: &str,
        now_ms: u64,
        lease_ms: u64,
    ) -> rusqlite::Result<Option<i64>> {
        let found: Option<Vec<u8>> = self
            .db
            .prepare_cached("SELECT payload FROM object WHERE kind = ?1 AND id = ?2")?
            .query_row([&op.kind, &op.id], |row| row.get(0))
            .optional()?;
        // A row that is no lease is nobody's to claim.
        let free = found.is_none_or(|payload| {
            serde_json::from_slice::<Lease>(&payload)
                .is_ok_and(|lease| lease.holder == holder || lease.until_ms <= now_ms)
        });
        if !free {
            return Ok(None);
        }
        let lease = Lease {
            v: 1,
            holder: holder.to_owned(),
            until_ms: now_ms.saturating_add(lease_ms),
        };
        let payload = serde_json::to_vec(&lease)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        let (intent, labels) = (to_sql(op.intent), "{}");
        let place = Place::row(&op.kind, &op.id, rev, intent);
        let tag = self.key.tag(&place, &payload, labels);
        self.db
            .prepare_cached(
                "INSERT INTO object (kind, id, rev, intent, payload, labels, tag) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT DO UPDATE SET rev = ?3, intent = ?4, payload = ?5, labels = ?6, tag = ?7",
            )?
            .execute(params![op.kind, op.id, rev, intent, payload, labels, tag])?;
        Ok(Some(rev))
    }

    pub fn get(&self, kind: &str, id: &str) -> Result<Option<Object>, StoreError> {
        let found = self
            .db
            .prepare_cached(
                "SELECT id, rev, intent, payload, labels, tag FROM object WHERE kind = ?1 AND id = ?2",
            )
            .and_then(|mut statement| {
                let read = |row: &Row<'_>| self.object(kind, row);
                statement.query_row([kind, id], read).optional()
            })
            .map_err(|error| broken(&error))?;
        found.map(|row| believed(kind, row)).transpose()
    }

    pub fn list(&self, kind: &str, after: &str, limit: usize) -> Result<Vec<Object>, StoreError> {
        let found: Vec<Object> = self
            .db
            .prepare_cached(
                "SELECT id, rev, intent, payload, labels, tag FROM object WHERE kind = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
            )
            .and_then(|mut statement| {
                let read = |row: &Row<'_>| self.object(kind, row);
                statement
                    .query_map(params![kind, after, limit_sql(limit)], read)?
                    .collect()
            })
            .map_err(|error| broken(&error))?;
        found.into_iter().map(|row| believed(kind, row)).collect()
    }

    pub fn entries(
        &self,
        kind: &str,
        id: &str,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let found: Vec<(Entry, bool)> = self
            .db
            .prepare_cached(
                "SELECT seq, intent, payload, tag FROM list WHERE kind = ?1 AND id = ?2 AND seq > ?3 ORDER BY seq LIMIT ?4",
            )
            .and_then(|mut statement| {
                statement
                    .query_map(params![kind, id, to_sql(after), limit_sql(limit)], |row| {
                        let (seq, intent, payload): (_, _, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
                        let place = Place::entry(kind, id, seq, intent);
                        let whole = self.key.fits(&place, &payload, "", &row.get::<_, Vec<u8>>(3)?);
                        Ok((Entry { seq: from_sql(seq), intent: from_sql(intent), payload }, whole))
                    })?
                    .collect()
            })
            .map_err(|error| broken(&error))?;
        let whole = |(entry, is_whole)| {
            if is_whole {
                Ok(entry)
            } else {
                Err(altered(kind, id))
            }
        };
        found.into_iter().map(whole).collect()
    }

    fn object(&self, kind: &str, row: &Row<'_>) -> rusqlite::Result<Object> {
        let (id, rev, intent): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (payload, labels, tag): (Vec<u8>, String, Vec<u8>) =
            (row.get(3)?, row.get(4)?, row.get(5)?);
        let place = Place::row(kind, &id, rev, intent);
        let is_whole = self.key.fits(&place, &payload, &labels, &tag);
        let labels = serde_json::from_str(&labels);
        Ok(Object {
            rev: from_sql(rev),
            intent: from_sql(intent),
            payload,
            // Altered ones are not read, and say so.
            is_whole: is_whole && labels.is_ok(),
            labels: labels.unwrap_or_default(),
            id,
        })
    }

    pub fn highest_intent(&self) -> Result<u64, StoreError> {
        let (rev, intent, tag): (i64, i64, Vec<u8>) = self
            .db
            .query_row("SELECT rev, intent, tag FROM head", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .map_err(|error| broken(&error))?;
        if self.key.fits(&Place::head(rev, intent), &[], "", &tag) {
            return Ok(from_sql(intent));
        }
        Err(altered("head", "only"))
    }

    /// Moves the WAL into the file and empties it.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(|error| broken(&error))
    }

    /// As [`Self::checkpoint`], and an error where a reader kept it from being whole: then older rows may still stand in the
    /// write-ahead log, where `secure_delete` does not reach.
    pub fn scrub(&self) -> Result<(), StoreError> {
        let busy = self
            .db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                row.get::<_, i64>(0)
            })
            .map_err(|error| broken(&error))?;
        if busy == 0 {
            Ok(())
        } else {
            Err(StoreError::Overloaded)
        }
    }

    /// A disk that is full after this many pages.
    #[cfg(test)]
    pub fn limit_pages(&self, pages: i64) {
        self.db
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
            .expect("pragma");
    }

    fn run(&self, sql: &str) -> Result<(), StoreError> {
        self.db
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map(drop)
            .map_err(|error| broken(&error))
    }
}

/// Rows that their rooms seal and hold against a manifest or their own place: what is wrong with one is for the room to say,
/// and keeps nobody from the others.
fn seals_itself(kind: &str) -> bool {
    kind.starts_with("vault") || kind.starts_with("approval") || kind == "signing.key"
}

fn believed(kind: &str, row: Object) -> Result<Object, StoreError> {
    if row.is_whole || seals_itself(kind) {
        return Ok(row);
    }
    Err(altered(kind, &row.id))
}

fn altered(kind: &str, id: &str) -> StoreError {
    StoreError::Altered {
        kind: kind.escape_debug().to_string(),
        id: id.escape_debug().to_string(),
    }
}

fn labels_text(labels: &BTreeMap<String, String>) -> String {
    serde_json::to_string(labels).expect("invariant: a map of strings is JSON")
}

/// Sequences and revisions are below 2^63 ([`Op::check`]); what is not finds nothing.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn limit_sql(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Makes the file 0600 before SQLite sees it (its sidecars copy the mode); refuses one that others can reach.
fn own_file(path: &Path) -> Result<(), StoreError> {
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let open = |create| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(create)
            .mode(0o600)
            .custom_flags(no_follow)
            .open(path)
    };
    let file = match open(true) {
        Ok(file) => {
            if let Some(parent) = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
            {
                std::fs::File::open(parent)
                    .and_then(|folder| folder.sync_all())
                    .map_err(|error| io(&error))?;
            }
            file
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            open(false).map_err(|error| io(&error))?
        }
        Err(error) => return Err(io(&error)),
    };
    let meta = file.metadata().map_err(|error| io(&error))?;
    if !meta.is_file() || meta.mode() & 0o077 != 0 {
        return Err(StoreError::Mode(format!(
            "{} has mode {:04o}; run: chmod 600 {}",
            path.display(),
            meta.mode() & 0o7777,
            path.display()
        )));
    }
    Ok(())
}

fn io(error: &std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::DiskFull,
        _ => StoreError::Io(error.to_string()),
    }
}

fn broken(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed,
        ) => StoreError::Locked,
        Some(ErrorCode::DiskFull) => StoreError::DiskFull,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt(error.to_string())
        }
        // SQLite's texts name tables and codes, never values.
        _ => StoreError::Io(error.to_string()),
    }
}
