//! SQLite: schema, pragmas, and each operation as one conditional statement.

mod checked;

use super::messages::{Change, CommitError, Entry, Lease, Object, Op, Revision, StoreError};
use crate::plain;
use portcullis_core::row::{Place, RowKey, Tag, Weight};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, params};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

const APPLICATION_ID: i64 = 0x5043_5354;
const FORMAT: i64 = 3;
/// How each file of SQLite's begins.
const HEADER: &[u8] = b"SQLite format 3\0";
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

/// What a file is when it is opened.
enum Found {
    /// Ours.
    Rows,
    /// A database without tables, or an empty file.
    Nothing,
}

pub(super) struct Engine {
    db: Connection,
    key: RowKey,
    /// Of all rows that are in the sum, as the open transaction leaves them; readers have none.
    sum: Cell<Weight>,
    /// As it was when the transaction began.
    sum_before: Cell<Weight>,
    /// The writer's files, as they lay there when it had opened them: device and inode.
    place: Option<Lies>,
}

struct Lies {
    files: [PathBuf; 2],
    were: [Option<(u64, u64)>; 2],
}

impl Lies {
    fn of(path: &Path) -> Self {
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let files = [path.to_owned(), PathBuf::from(wal)];
        let were = [Self::now(&files[0]), Self::now(&files[1])];
        Self { files, were }
    }

    fn now(file: &Path) -> Option<(u64, u64)> {
        let meta = file.symlink_metadata().ok()?;
        Some((meta.dev(), meta.ino()))
    }
}

impl Engine {
    /// Opens or makes the file, 0600, and checks it.
    pub fn open_writer(path: &Path, key: RowKey, may_make: bool) -> Result<Self, StoreError> {
        own_file(path, may_make)?;
        let mut engine = Self::connect(path, key)?;
        // Nothing is written, the form of the file neither, before all of it was looked at.
        engine.set_up().map_err(|error| broken(&error))?;
        match engine.check_format()? {
            Found::Rows => {
                engine.quick_check()?;
                engine.check_rows()?;
                engine.will_write().map_err(|error| broken(&error))?;
            }
            Found::Nothing if may_make => {
                engine.will_write().map_err(|error| broken(&error))?;
                engine.make()?;
            }
            Found::Nothing => {
                return Err(StoreError::Corrupt(format!(
                    "{} holds nothing, and the audit log of this state is there: put back the file that was here",
                    path.display()
                )));
            }
        }
        engine.place = Some(Lies::of(path));
        Ok(engine)
    }

    fn connect(path: &Path, key: RowKey) -> Result<Self, StoreError> {
        // A reader of a write-ahead log must be able to write its index.
        let db = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        );
        Ok(Self::of(db.map_err(|error| broken(&error))?, key))
    }

    const fn of(db: Connection, key: RowKey) -> Self {
        let none = Weight::none();
        Self {
            db,
            key,
            sum: Cell::new(none),
            sum_before: Cell::new(none),
            place: None,
        }
    }

    /// A second connection that can only read; the writer has made the file.
    pub fn open_reader(path: &Path, key: RowKey) -> Result<Self, StoreError> {
        let engine = Self::connect(path, key)?;
        engine.set_up().map_err(|error| broken(&error))?;
        engine
            .db
            .pragma_update(None, "query_only", true)
            .map_err(|error| broken(&error))?;
        Ok(engine)
    }

    pub fn in_memory() -> Result<Self, StoreError> {
        let db = Connection::open_in_memory().map_err(|error| broken(&error))?;
        let engine = Self::of(db, RowKey::none());
        engine.make()?;
        Ok(engine)
    }

    fn set_up(&self) -> rusqlite::Result<()> {
        self.db.busy_timeout(BUSY)?;
        // SQLite moves what stands beside a file into it when the last connection closes, whatever was found to be wrong with it: a
        // start that is refused would change the state, and a write-ahead log that is another database's would replace it.
        self.db
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        self.db.pragma_update(None, "cache_size", -1024)?;
        self.db.pragma_update(None, "trusted_schema", false)?;
        // NORMAL would lose acknowledged rows at a power cut.
        self.db.pragma_update(None, "synchronous", "FULL")
    }

    fn will_write(&self) -> rusqlite::Result<()> {
        self.db.pragma_update(None, "journal_mode", "WAL")?;
        self.db.pragma_update(None, "secure_delete", true)?;
        self.db.pragma_update(None, "journal_size_limit", 4 << 20)
    }

    fn check_format(&self) -> Result<Found, StoreError> {
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
            (APPLICATION_ID, FORMAT, _) => self.check_schema().map(|()| Found::Rows),
            (0, 0, 0) => Ok(Found::Nothing),
            // Of the forms before too, whose rows had no tags, or no sum: whoever has no key could put any row of his own, or
            // any old one, into such a file.
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
        let tag = self.key.tag_head(rev, intent, self.sum.get());
        self.db
            .prepare_cached("UPDATE head SET tag = ?1")?
            .execute([tag])
            .map(drop)
    }

    fn head(&self) -> Result<(i64, i64, Vec<u8>), StoreError> {
        self.db
            .query_row("SELECT rev, intent, tag FROM head", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .map_err(|error| broken(&error))
    }

    /// How often the state was changed.
    pub fn revision(&self) -> Result<u64, StoreError> {
        self.head().map(|(rev, ..)| from_sql(rev))
    }

    pub fn begin(&self) -> Result<(), StoreError> {
        self.sum_before.set(self.sum.get());
        self.db
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(|error| broken(&error))
    }

    /// Commits, into the files that lie there: what went into a file which was moved away, nobody would find again.
    pub fn commit(&self) -> Result<(), StoreError> {
        if let Some(Lies { files, were }) = &self.place {
            for (file, was) in files.iter().zip(were) {
                // Where the second was not there yet when it was looked for, SQLite makes it.
                if was.is_some() && Lies::now(file) != *was {
                    let why = format!(
                        "{} was replaced or removed while the gateway ran: put the newest files back",
                        file.display()
                    );
                    tracing::error!(target: "portcullis", why, "nothing is written into the state");
                    return Err(StoreError::Moved(why));
                }
            }
        }
        self.db
            .execute_batch("COMMIT")
            .map_err(|error| broken(&error))
    }

    /// Leaves no transaction open, whatever state the engine is in.
    pub fn rollback(&self) {
        self.sum.set(self.sum_before.get());
        if !self.db.is_autocommit() {
            drop(self.db.execute_batch("ROLLBACK"));
        }
    }

    /// Applies one commit inside the open transaction: all of it or nothing.
    pub fn apply(&self, ops: &[Op]) -> Result<Vec<Revision>, CommitError> {
        self.run("SAVEPOINT one")?;
        let before = self.sum.get();
        let result = self.apply_all(ops);
        if result.is_err() {
            self.sum.set(before);
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
        let (rev, intent) = self.next_revision(ops)?;
        let revisions = ops
            .iter()
            .enumerate()
            .map(|(index, op)| match self.apply_one(op, rev) {
                Ok(Some(revision)) => Ok(Revision(from_sql(revision))),
                Ok(None) => Err(CommitError::Conflict { index }),
                Err(error) => Err(broken(&error).into()),
            })
            .collect::<Result<_, CommitError>>()?;
        self.tag_head(rev, intent).map_err(|error| broken(&error))?;
        Ok(revisions)
    }

    fn next_revision(&self, ops: &[Op]) -> Result<(i64, i64), StoreError> {
        let intent = ops.iter().map(|op| to_sql(op.intent)).max().unwrap_or(0);
        self.db
            .prepare_cached(
                "UPDATE head SET rev = rev + 1, intent = max(intent, ?1) RETURNING rev, intent",
            )
            .and_then(|mut statement| {
                statement.query_row([intent], |row| Ok((row.get(0)?, row.get(1)?)))
            })
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
            self.enters(kind, &Place::row(kind, id, rev, intent), payload, labels)
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
                self.leaves(kind, id)?;
                let (tag, expected) = (tag(payload, &labels), to_sql(*expected));
                self.db
                    .prepare_cached(
                        "UPDATE object SET rev = ?3, intent = ?4, payload = ?5, labels = ?6, tag = ?8
                         WHERE kind = ?1 AND id = ?2 AND rev = ?7",
                    )?
                    .execute(params![kind, id, rev, intent, payload, labels, expected, tag])?
            }
            Change::DeleteIf { rev: expected } => {
                self.leaves(kind, id)?;
                self.db
                    .prepare_cached("DELETE FROM object WHERE kind = ?1 AND id = ?2 AND rev = ?3")?
                    .execute(params![kind, id, to_sql(*expected)])?
            }
            Change::Append { payload } => {
                let seq: i64 = self
                    .db
                    .prepare_cached(
                        "SELECT coalesce(max(seq), 0) + 1 FROM list WHERE kind = ?1 AND id = ?2",
                    )?
                    .query_row([kind, id], |row| row.get(0))?;
                let place = Place::entry(kind, id, seq, intent);
                let tag = self.enters("", &place, payload, "");
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

    /// The tag of a row that is written. Of a condition that does not hold the whole commit goes, and the sum with it.
    fn enters(&self, kind: &str, place: &Place<'_>, payload: &[u8], labels: &str) -> Tag {
        let (tag, weight) = self.key.weigh(place, payload, labels);
        if !seals_itself(kind) {
            self.sum.set(self.sum.get().with(weight));
        }
        tag
    }

    /// The row as it stands is replaced or goes.
    fn leaves(&self, kind: &str, id: &str) -> rusqlite::Result<()> {
        if seals_itself(kind) {
            return Ok(());
        }
        let weight = self
            .db
            .prepare_cached(
                "SELECT rev, intent, payload, labels FROM object WHERE kind = ?1 AND id = ?2",
            )?
            .query_row([kind, id], |row| {
                let place = Place::row(kind, id, row.get(0)?, row.get(1)?);
                let (payload, labels): (Vec<u8>, String) = (row.get(2)?, row.get(3)?);
                Ok(self.key.weigh(&place, &payload, &labels).1)
            })
            .optional()?;
        self.sum
            .set(self.sum.get().without(weight.unwrap_or_default()));
        Ok(())
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
        self.leaves(&op.kind, &op.id)?;
        let tag = self.enters(&op.kind, &place, &payload, labels);
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
        self.head().map(|(_, intent, _)| from_sql(intent))
    }

    /// Moves the WAL into the file and empties it.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(|error| broken(&error))
    }

    /// Moves the WAL into the file, and removes it where no reader is left.
    pub fn close(self) -> Result<(), StoreError> {
        self.checkpoint()?;
        let kept = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        self.db
            .set_db_config(kept, false)
            .and_then(|_| self.db.close().map_err(|(_, error)| error))
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

/// Rows that their room seals and holds against a manifest, which the audit log has: what is wrong with one is for the room to
/// say, and keeps nobody from the others. They are not in the sum. Of a secret's last use no manifest knows.
fn seals_itself(kind: &str) -> bool {
    kind.starts_with("vault") && kind != "vault.used"
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
fn own_file(path: &Path, may_make: bool) -> Result<(), StoreError> {
    let open = |create| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(create);
        plain::open(options.mode(0o600), path)
    };
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::InvalidInput => StoreError::Mode(error.to_string()),
        _ => io(&error),
    };
    let is_nothing = |path: &Path| path.symlink_metadata().map_or(true, |meta| meta.len() == 0);
    // What does not begin as a database has no pages: SQLite takes it for an empty one.
    let has_none =
        is_nothing(path) || !plain::read(path, HEADER.len()).is_ok_and(|begin| begin == HEADER);
    // SQLite opens what it finds beside the file too; and removes it where there is no file, or an empty one.
    for beside in ["-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(beside);
        let name = Path::new(&name);
        plain::is_file(name).map_err(failed)?;
        // A journal is there while a new file is made, and never again: SQLite would do to the file what it says.
        let is_foreign = match beside {
            "-wal" => has_none,
            "-journal" => !may_make,
            _ => false,
        };
        if is_foreign && !is_nothing(name) {
            return Err(StoreError::Corrupt(format!(
                "{} lies there and does not belong to {} as it is now: put back both, or take it away",
                name.display(),
                path.display()
            )));
        }
    }
    let file = match open(true) {
        Ok(file) => {
            sync_folder(path)?;
            file
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            open(false).map_err(failed)?
        }
        Err(error) => return Err(failed(error)),
    };
    let meta = file.metadata().map_err(|error| io(&error))?;
    if meta.mode() & 0o077 != 0 {
        return Err(StoreError::Mode(format!(
            "{} has mode {:04o}; run: chmod 600 {}",
            path.display(),
            meta.mode() & 0o7777,
            path.display()
        )));
    }
    Ok(())
}

/// The name of a file lasts when its folder is synced.
fn sync_folder(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent();
    let Some(parent) = parent.filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    std::fs::File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| io(&error))
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
