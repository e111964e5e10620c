//! What is altered in the file is told, or changes nothing. Flips are sampled here, at every byte in a long run.

use super::*;
use portcullis_core::row::RowKey;
use portcullis_core::seal::Key;
use std::collections::BTreeMap;

fn key(n: u8) -> RowKey {
    RowKey::new(Key::new([n; 32]))
}

/// All that rooms see of the file.
type Seen = (Vec<Object>, Vec<Entry>, u64);

/// `Err`: refused, by its code.
async fn look(path: &Path, key: &RowKey) -> Result<Seen, &'static str> {
    let store = Store::open_under(path, key).map_err(|error| error.code())?;
    let read = async {
        let mut rows = vec![];
        for kind in ["auth.agent", "pairing.device", "pairing.pending"] {
            rows.extend(store.list_all(kind).await?);
        }
        let entries = store.entries("pairing.past", "one", 0, 100).await?;
        Ok((rows, entries, store.highest_intent().await?))
    };
    let seen = read.await;
    drop(store.close().await);
    seen.map_err(|error: StoreError| error.code())
}

fn without_sidecars(path: &Path) {
    for beside in ["state.db-wal", "state.db-shm"] {
        drop(std::fs::remove_file(path.with_file_name(beside)));
    }
}

async fn filled(path: &Path, key: &RowKey) {
    let store = Store::open_under(path, key).expect("open");
    for byte in 1..=12_u8 {
        let n = u64::from(byte);
        let (kind, id) = (
            ["pairing.device", "auth.agent"][usize::from(byte % 2)],
            format!("{n:064x}"),
        );
        let labels: BTreeMap<_, _> = [("role".to_owned(), format!("operator-{n}"))].into();
        let row = Op::create(kind, &id, n, vec![b'a' + byte; 300]).labelled(labels);
        let entry = Op::append("pairing.past", "one", n, vec![b'A' + byte; 40]);
        store.commit(vec![row, entry]).await.expect("commit");
    }
    let row = store.get("pairing.device", &format!("{:064x}", 2)).await;
    let rev = row.expect("get").expect("a row").rev;
    let id = format!("{:064x}", 2);
    let set = Op::compare_and_set("pairing.device", &id, 20, rev, b"set".to_vec());
    let claim = Op::claim("pairing.pending", "lease", 21, "me", 1, 1);
    store.commit(vec![set, claim]).await.expect("commit");
    store.close().await.expect("close");
}

/// The bug: rows of devices and tokens had no checksum, and a flip in one was another device's word.
#[test]
fn every_flipped_byte_of_a_row_is_detected_or_harmless() {
    let folder = folder();
    let path = folder.path().join("state.db");
    rt().block_on(filled(&path, &key(1)));
    let good = std::fs::read(&path).expect("read");
    let right = rt().block_on(look(&path, &key(1))).expect("whole");
    assert_eq!((right.0.len(), right.1.len(), right.2), (13, 12, 21));
    let step = match std::env::var_os("PORTCULLIS_LONG") {
        Some(_) => 1,
        None => (good.len() / 600).max(1),
    };
    let mut came: BTreeMap<&str, u32> = BTreeMap::new();
    for at in (0..good.len()).step_by(step) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&path, bad).expect("write");
        without_sidecars(&path);
        let how = match rt().block_on(look(&path, &key(1))) {
            Ok(seen) => {
                assert_eq!(seen, right, "byte {at} is another and nobody says so");
                "harmless"
            }
            Err(code) => code,
        };
        *came.entry(how).or_default() += 1;
    }
    println!(
        "FIGURE: flipped bytes of state.db ({} bytes): {came:?}",
        good.len()
    );
    assert!(
        came["STATE_ROW_ALTERED"] > 20 && came["harmless"] > 0,
        "{came:?}"
    );
}

/// The bug: a row that somebody had put into the file was a room's own.
#[test]
fn a_row_that_was_planted_moved_or_changed_is_refused_with_its_name() {
    for (sql, name) in [
        (
            "INSERT INTO object SELECT 'pairing.device', 'planted', rev, intent, payload, labels, tag FROM object WHERE kind = 'auth.agent' LIMIT 1",
            "pairing.device/planted",
        ),
        (
            "INSERT INTO object VALUES ('auth.agent', 'planted', 1, 1, x'7b7d', '{}', x'')",
            "auth.agent/planted",
        ),
        (
            "UPDATE object SET labels = '{}' WHERE id LIKE '%c'",
            "pairing.device/0",
        ),
        (
            "UPDATE object SET intent = 1 WHERE id LIKE '%c'",
            "pairing.device/0",
        ),
        (
            "UPDATE list SET seq = 99 WHERE seq = 12",
            "pairing.past/one",
        ),
        ("UPDATE head SET intent = 1", "put back or taken away"),
        (
            "UPDATE object SET kind = 'pairing.other' WHERE id = 'lease'",
            "pairing.other/lease",
        ),
    ] {
        let folder = folder();
        let path = folder.path().join("state.db");
        rt().block_on(filled(&path, &key(1)));
        let raw = rusqlite::Connection::open(&path).expect("raw");
        assert!(raw.execute(sql, []).expect(sql) > 0);
        drop(raw);
        let error = Store::open_under(&path, &key(1)).err().expect(sql);
        assert_eq!(error.code(), "STATE_ROW_ALTERED");
        assert!(error.to_string().contains(name), "{error}");
    }
    // Whoever has not the machine's key cannot make a tag.
    let folder = folder();
    let path = folder.path().join("state.db");
    rt().block_on(filled(&path, &key(2)));
    assert_eq!(
        rt().block_on(look(&path, &key(1))),
        Err("STATE_ROW_ALTERED")
    );
}

/// The bug: such a file, made of a good one by who has no key, got right tags for all that he had put there.
#[test]
fn a_file_of_the_form_without_tags_is_not_opened() {
    let folder = folder();
    let path = folder.path().join("state.db");
    rt().block_on(filled(&path, &key(1)));
    let raw = rusqlite::Connection::open(&path).expect("raw");
    raw.execute_batch(
        "BEGIN;
         CREATE TABLE o (kind TEXT NOT NULL, id TEXT NOT NULL, rev INTEGER NOT NULL, intent INTEGER NOT NULL,
             payload BLOB NOT NULL, labels TEXT NOT NULL, PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID;
         INSERT INTO o SELECT kind, id, rev, intent, payload, labels FROM object;
         DROP TABLE object; ALTER TABLE o RENAME TO object;
         CREATE TABLE l (kind TEXT NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL, intent INTEGER NOT NULL,
             payload BLOB NOT NULL, PRIMARY KEY (kind, id, seq)) STRICT, WITHOUT ROWID;
         INSERT INTO l SELECT kind, id, seq, intent, payload FROM list;
         DROP TABLE list; ALTER TABLE l RENAME TO list;
         CREATE TABLE h (only INTEGER PRIMARY KEY CHECK (only = 1), rev INTEGER NOT NULL, intent INTEGER NOT NULL) STRICT;
         INSERT INTO h SELECT only, rev, intent FROM head;
         DROP TABLE head; ALTER TABLE h RENAME TO head;
         PRAGMA user_version = 1; COMMIT;",
    )
    .expect("the form before");
    drop(raw);
    assert_eq!(rt().block_on(look(&path, &key(1))), Err("STATE_FORMAT"));
}

/// The bug: a trigger put back what a write had removed, and every row had its right tag.
#[test]
fn a_file_with_anything_beside_our_tables_is_not_opened() {
    for sql in [
        "CREATE TRIGGER back AFTER DELETE ON object BEGIN
             INSERT INTO object VALUES (old.kind, old.id, old.rev, old.intent, old.payload, old.labels, old.tag);
         END",
        "CREATE TRIGGER stay AFTER UPDATE ON head BEGIN UPDATE head SET rev = old.rev; END",
        "CREATE VIEW more AS SELECT * FROM object",
        "CREATE TABLE more (id TEXT)",
        "CREATE INDEX more ON object (rev)",
        "DROP TABLE list",
        "ALTER TABLE object RENAME TO kept; CREATE VIEW object AS SELECT * FROM kept",
    ] {
        let folder = folder();
        let path = folder.path().join("state.db");
        rt().block_on(filled(&path, &key(1)));
        let raw = rusqlite::Connection::open(&path).expect("raw");
        raw.execute_batch(sql).expect(sql);
        drop(raw);
        assert_eq!(
            rt().block_on(look(&path, &key(1))),
            Err("STATE_ROW_ALTERED"),
            "{sql}"
        );
    }
}

/// The bug: a row that was whole once, put back whole, had a right tag; and of one that was deleted nothing was left to see.
#[test]
fn rows_that_were_put_back_or_taken_away_are_seen() {
    for sql in [
        // As it was before it was set.
        "INSERT OR REPLACE INTO object SELECT * FROM old.object WHERE id LIKE '%02'",
        // It was deleted since.
        "INSERT INTO object SELECT * FROM old.object WHERE id LIKE '%03'",
        "DELETE FROM object WHERE id LIKE '%04'",
        "DELETE FROM list WHERE seq = 12",
        "DELETE FROM list",
        "INSERT INTO list SELECT * FROM old.list WHERE kind = 'pairing.other'",
        // All rows of before, under the new counters; the old counters over the new rows.
        "DELETE FROM object; DELETE FROM list; INSERT INTO object SELECT * FROM old.object; INSERT INTO list SELECT * FROM old.list",
        "DELETE FROM head; INSERT INTO head SELECT * FROM old.head",
        "UPDATE head SET rev = rev - 1",
    ] {
        let folder = folder();
        let (path, old) = (folder.path().join("state.db"), folder.path().join("old.db"));
        rt().block_on(filled(&path, &key(1)));
        std::fs::copy(&path, &old).expect("copy");
        rt().block_on(async {
            let store = Store::open_under(&path, &key(1)).expect("open");
            let id = |n: u64| format!("{n:064x}");
            let row = store
                .get("pairing.device", &id(2))
                .await
                .expect("get")
                .expect("a row");
            let gone = store
                .get("auth.agent", &id(3))
                .await
                .expect("get")
                .expect("a row");
            let set = Op::compare_and_set("pairing.device", &id(2), 30, row.rev, b"anew".to_vec());
            store
                .commit(vec![set, Op::delete_if("auth.agent", &id(3), 31, gone.rev)])
                .await
                .expect("commit");
            store.close().await.expect("close");
        });
        let before = rt().block_on(look(&path, &key(1))).expect("whole");
        let raw = rusqlite::Connection::open(&path).expect("raw");
        raw.execute_batch(&format!("ATTACH '{}' AS old", old.display()))
            .expect("attach");
        // No list of that name is there: another file has it.
        raw.execute_batch("UPDATE old.list SET kind = 'pairing.other' WHERE seq = 1; BEGIN")
            .expect("prepare");
        raw.execute_batch(sql).expect(sql);
        raw.execute_batch("COMMIT").expect("commit");
        drop(raw);
        let after = rt().block_on(look(&path, &key(1)));
        assert_eq!(
            after.as_ref().err(),
            Some(&"STATE_ROW_ALTERED"),
            "{sql}: {before:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Whatever came before, conflicts and groups that failed among it: the counters' tag is over the rows that are there.
    #[test]
    fn the_sum_is_that_of_the_rows_after_any_history(
        groups in proptest::collection::vec((any::<bool>(), proptest::collection::vec(proptest::collection::vec(any_op(), 1..4), 1..4)), 1..16)
    ) {
        let engine = Engine::in_memory().expect("engine");
        for (commits, group) in groups {
            let before = engine.revision().expect("revision");
            engine.begin().expect("begin");
            for ops in &group {
                // A conflict is as good.
                drop(engine.apply(ops));
            }
            if commits {
                engine.commit().expect("commit");
            } else {
                engine.rollback();
                prop_assert_eq!(engine.revision().expect("revision"), before);
            }
            prop_assert_eq!(engine.check_rows(), Ok(()));
        }
    }
}

/// The bug: a row whose place in the tree was changed was met by the start's scan, and by no lookup after it: what it had
/// revoked was valid again.
#[test]
fn a_row_that_lies_out_of_order_is_refused() {
    for table in ["object", "list"] {
        let folder = folder();
        let path = folder.path().join("state.db");
        rt().block_on(filled(&path, &key(1)));
        let raw = rusqlite::Connection::open(&path).expect("raw");
        let number = |sql: &str| {
            let found = raw.query_row(sql, [], |row| row.get::<_, u32>(0));
            found.expect(sql) as usize
        };
        let root = number(&format!(
            "SELECT rootpage FROM sqlite_schema WHERE name = '{table}'"
        ));
        let size = number("PRAGMA page_size");
        drop(raw);
        let mut bytes = std::fs::read(&path).expect("read");
        let two =
            |bytes: &[u8], at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        // The file format of SQLite, section 1.6: an interior page of an index is 2, a leaf 10.
        let mut page = (root - 1) * size;
        while bytes[page] == 2 {
            let cell = page + two(&bytes, page + 12);
            let child = u32::from_be_bytes(bytes[cell..cell + 4].try_into().expect("four"));
            page = (child as usize - 1) * size;
        }
        assert_eq!(bytes[page], 10);
        let cells = two(&bytes, page + 3);
        assert!(cells > 2, "{cells}");
        bytes[page + 8..page + 8 + 2 * cells].rotate_left(2);
        std::fs::write(&path, bytes).expect("write");
        without_sidecars(&path);
        let raw = rusqlite::Connection::open(&path).expect("raw");
        let verdict = raw.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        assert_eq!(
            verdict.expect("check"),
            "ok",
            "SQLite's quick look does not see it"
        );
        drop(raw);
        assert_eq!(
            rt().block_on(look(&path, &key(1))),
            Err("STATE_ROW_ALTERED"),
            "{table}"
        );
    }
}

fn varint(bytes: &[u8], at: usize) -> (usize, usize) {
    match (bytes[at], bytes[at + 1]) {
        (one @ ..128, _) => (usize::from(one), at + 1),
        (one, two @ ..128) => (usize::from(one & 127) << 7 | usize::from(two), at + 2),
        _ => panic!("a number of more than two bytes"),
    }
}

/// The cells of a leaf of `object`, each its payload without the length before it; and where the page lies.
fn cells(bytes: &[u8], root: usize, size: usize) -> (usize, Vec<Vec<u8>>) {
    let two = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let mut page = (root - 1) * size;
    while bytes[page] == 2 {
        let cell = page + two(page + 12);
        let child = u32::from_be_bytes(bytes[cell..cell + 4].try_into().expect("four"));
        page = (child as usize - 1) * size;
    }
    let cell = |n: usize| {
        let (length, from) = varint(bytes, page + two(page + 8 + 2 * n));
        bytes[from..from + length].to_vec()
    };
    (page, (0..two(page + 3)).map(cell).collect())
}

/// The bug: a record's header may say its own length in two bytes where one does. Every scan and check of SQLite takes that; its
/// quick comparison of strings does not, and the row was found by no lookup: what had been revoked was valid again.
#[test]
fn a_row_that_no_lookup_finds_is_refused() {
    let folder = folder();
    let path = folder.path().join("state.db");
    rt().block_on(filled(&path, &key(1)));
    // The second bug: rows that their room seals were not looked up, and hid those behind them after the next deletion.
    rt().block_on(async {
        let store = Store::open_under(&path, &key(1)).expect("open");
        let secret = Op::create("vault", "K", 22, vec![b'v'; 300]);
        store.commit(vec![secret]).await.expect("commit");
        store.close().await.expect("close");
    });
    let right = rt().block_on(look(&path, &key(1))).expect("whole");
    let raw = rusqlite::Connection::open(&path).expect("raw");
    let number = |sql: &str| {
        let found = raw.query_row(sql, [], |row| row.get::<_, u32>(0));
        found.expect(sql) as usize
    };
    let root = number("SELECT rootpage FROM sqlite_schema WHERE name = 'object'");
    let size = number("PRAGMA page_size");
    drop(raw);
    let good = std::fs::read(&path).expect("read");
    let (page, cells) = cells(&good, root, size);
    let mut refused = 0;
    for hidden in 0..cells.len() {
        let (mut bytes, mut end) = (good.clone(), size);
        for (n, cell) in cells.iter().enumerate() {
            let mut cell = cell.clone();
            if n == hidden {
                let length = cell[0] + 1;
                assert!(length < 128);
                cell.splice(..1, [0x80, length]);
            }
            let length = u16::try_from(cell.len()).expect("short");
            let mut whole = vec![
                0x80 | u8::try_from(length >> 7).expect("short"),
                length.to_be_bytes()[1] & 127,
            ];
            whole.extend(cell);
            end -= whole.len();
            bytes[page + end..page + end + whole.len()].copy_from_slice(&whole);
            let at = u16::try_from(end).expect("short").to_be_bytes();
            bytes[page + 8 + 2 * n..page + 10 + 2 * n].copy_from_slice(&at);
        }
        // No free block, no fragments, and where the cells begin.
        bytes[page + 1..page + 3].fill(0);
        bytes[page + 5..page + 7]
            .copy_from_slice(&u16::try_from(end).expect("short").to_be_bytes());
        bytes[page + 7] = 0;
        std::fs::write(&path, bytes).expect("write");
        without_sidecars(&path);
        let raw = rusqlite::Connection::open(&path).expect("raw");
        let verdict = raw.query_row("PRAGMA integrity_check(1)", [], |row| {
            row.get::<_, String>(0)
        });
        assert_eq!(
            verdict.expect("check"),
            "ok",
            "SQLite itself does not see it"
        );
        drop(raw);
        match rt().block_on(look(&path, &key(1))) {
            Ok(seen) => panic!("{hidden} of {}: {}", cells.len(), seen == right),
            Err(code) => {
                assert_eq!(code, "STATE_ROW_ALTERED");
                refused += 1;
            }
        }
    }
    assert!(refused > 3, "{}", cells.len());
}
