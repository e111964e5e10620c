//! The room with the real audit log, the real store and the real cost of scrypt.

mod flipped;
mod unlockers;

use super::*;
use crate::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring};
use crate::clock::Clock;
use crate::store::{Op, Store};
use crate::supervision::{Feed, Intensity, Tree, TreeBuilder};
use portcullis_core::audit::{BootId, Entry, Outcome, Query};
use portcullis_core::encoding::{base64url, hex};
use portcullis_core::identity::Identity;
use portcullis_core::seal::{Key, Secret};
use portcullis_core::vault::{Asked, VaultError};
use std::path::Path;
use std::sync::Arc;

struct House {
    tree: Tree,
    vault: VaultHandle,
    audit: AuditHandle,
    store: Store,
}

async fn house(folder: &Path, boot: u8, identity: u8) -> House {
    let store = Store::open(&folder.join("state.db")).unwrap();
    house_on(folder, boot, identity, store, true).await
}

async fn house_on(
    folder: &Path,
    boot: u8,
    identity: u8,
    store: Store,
    wait_until_open: bool,
) -> House {
    let around = Around::default();
    house_with(folder, boot, identity, store, around, wait_until_open).await
}

async fn house_around(folder: &Path, boot: u8, identity: u8, around: Around) -> House {
    let store = Store::open(&folder.join("state.db")).unwrap();
    house_with(folder, boot, identity, store, around, true).await
}

async fn house_with(
    folder: &Path,
    boot: u8,
    identity: u8,
    store: Store,
    around: Around,
    wait_until_open: bool,
) -> House {
    let mut tree = TreeBuilder::new(
        Intensity::default(),
        Arc::new(|room, why| panic!("{room}: {why}")),
    );
    let audit = log(&mut tree, folder, boot);
    let wiring = VaultWiring {
        config: VaultConfig {
            max_records: 3,
            ..VaultConfig::default()
        },
        store: store.clone(),
        audit: audit.clone(),
        identity: Identity::from_random([identity; 32]),
        clock: Clock::system(),
        around,
    };
    let vault = VaultHandle::add(&mut tree, wiring);
    let house = House {
        tree: tree.start().await.unwrap(),
        vault,
        audit,
        store,
    };
    if wait_until_open {
        // As a caller does on a machine whose cores are busy: scrypt takes what it takes.
        while house.vault.list().await == Err(VaultRefusal::Unsealing) {}
    }
    house
}

fn log(tree: &mut TreeBuilder, folder: &Path, boot: u8) -> AuditHandle {
    AuditHandle::add(
        tree,
        AuditWiring {
            state: None,
            dir: folder.join("audit"),
            keys: AuditKeys::new(folder.join("keys"), &Identity::from_random([1; 32])),
            // No checkpoint between two stops: tests cut the log where a machine stopped.
            config: AuditConfig {
                checkpoint_ms: 3_600_000,
                ..AuditConfig::default()
            },
            boot: BootId([boot; 16]),
            clock: crate::audit::Clock::new(),
            feed: Feed::new(),
            unwritten: std::sync::Arc::default(),
            version: "test".into(),
        },
    )
}

impl House {
    async fn end(self) {
        self.tree.stop().await;
        self.store.close().await.unwrap();
    }

    async fn value(&self, name: &str) -> Result<Vec<u8>, &'static str> {
        let revealed = self
            .vault
            .reveal(name, None, Asked::by_gateway("test"))
            .await;
        revealed
            .map(|(_, secret)| secret.expose().to_vec())
            .map_err(|refusal| refusal.code())
    }

    async fn set(&self, name: &str, value: &[u8]) -> Result<u64, &'static str> {
        let set = self
            .vault
            .set(by(), name, Secret::new(value.to_vec()))
            .await;
        set.map(|meta| meta.version)
            .map_err(|refusal| refusal.code())
    }
}

fn by() -> Entry {
    Entry {
        principal: Some("uid:1000".into()),
        door: Some("control.sock".into()),
        ..Entry::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_outlive_the_process_and_nothing_plain_lies_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let house = house(folder.path(), 1, 1).await;
    assert_eq!(house.set("API_KEY", b"planted-secret-1").await, Ok(1));
    assert_eq!(house.set("API_KEY", b"planted-secret-2").await, Ok(2));
    assert_eq!(house.set("OTHER", b"planted-secret-3").await, Ok(1));
    assert_eq!(house.set("GONE", b"planted-secret-4").await, Ok(1));
    assert_eq!(house.set("ONE_TOO_MANY", b"x").await, Err("OVERLOADED"));
    house.vault.remove(by(), "GONE").await.unwrap();
    assert_eq!(
        house.value("API_KEY").await,
        Ok(b"planted-secret-2".to_vec())
    );
    assert_eq!(
        house
            .vault
            .reveal("API_KEY", Some(1), Asked::by_gateway("test"))
            .await
            .err()
            .map(|e| e.code()),
        Some("VAULT_NOT_FOUND")
    );
    assert_eq!(house.value("GONE").await, Err("VAULT_NOT_FOUND"));
    assert_eq!(
        house.vault.remove(by(), "GONE").await.map_err(|e| e.code()),
        Err("VAULT_NOT_FOUND")
    );
    assert_eq!(house.set("lower", b"x").await, Err("VAULT_NAME_INVALID"));
    assert_eq!(house.set("EMPTY", b"").await, Err("VAULT_VALUE_INVALID"));
    assert_eq!(
        house.set("API_KEY", &vec![0; 65_537]).await,
        Err("VAULT_VALUE_INVALID")
    );

    // Every act has its intent and outcome, and no value in it; what was refused before is not there.
    let query = Query {
        action: Some("vault.set".into()),
        ..Query::default()
    };
    let found = house.audit.query(query).await.unwrap();
    assert_eq!(found.len(), 4);
    assert!(!format!("{found:?}").contains("planted"));
    house.end().await;

    let mut stack = vec![folder.path().to_owned()];
    while let Some(at) = stack.pop() {
        for file in std::fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            if file.is_dir() {
                stack.push(file);
            } else {
                let bytes = std::fs::read(&file).unwrap();
                assert!(
                    !bytes.windows(7).any(|window| window == b"planted"),
                    "{}",
                    file.display()
                );
            }
        }
    }

    let house = house_again(folder.path(), 2).await;
    let listed = house.vault.list().await.unwrap();
    let names: Vec<_> = listed
        .iter()
        .map(|one| (one.name.as_str(), one.meta.version))
        .collect();
    assert_eq!(names, [("API_KEY", 2), ("OTHER", 1)]);
    assert!(!serde_json::to_string(&listed).unwrap().contains("planted"));
    assert_eq!(
        house.value("API_KEY").await,
        Ok(b"planted-secret-2".to_vec())
    );
    house.end().await;
}

async fn house_again(folder: &Path, boot: u8) -> House {
    house(folder, boot, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_or_altered_record_is_told_and_the_rest_serves() {
    let folder = tempfile::tempdir().unwrap();
    let house = house(folder.path(), 1, 1).await;
    for name in ["A", "B", "C"] {
        house.set(name, name.as_bytes()).await.unwrap();
    }
    house.end().await;
    // A gets B's record, its own revision and intent left as they are.
    let db = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    let swap = "UPDATE object SET payload = (SELECT payload FROM object WHERE kind = 'vault' AND id = 'B') WHERE kind = 'vault' AND id = 'A'";
    assert_eq!(db.execute(swap, []).unwrap(), 1);
    drop(db);
    let house = house_again(folder.path(), 2).await;
    assert_eq!(house.value("A").await, Err("VAULT_RECORD_CORRUPT"));
    assert_eq!(house.value("B").await, Ok(b"B".to_vec()));
    assert_eq!(house.vault.list().await.unwrap()[0].meta.version, 0);
    // While it runs, too.
    let db = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    db.execute(
        "UPDATE object SET payload = x'00' WHERE kind = 'vault' AND id = 'B'",
        [],
    )
    .unwrap();
    assert_eq!(house.value("B").await, Err("VAULT_RECORD_CORRUPT"));
    assert_eq!(house.value("C").await, Ok(b"C".to_vec()));
    // The next step that the error names; no version comes twice.
    assert_eq!(house.set("A", b"new").await, Ok(2));
    assert_eq!(house.value("A").await, Ok(b"new".to_vec()));
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_identity_finds_it_sealed_at_once_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let house_1 = house(folder.path(), 1, 1).await;
    house_1.set("A", b"a").await.unwrap();
    house_1.end().await;
    let other = house(folder.path(), 2, 9).await;
    assert_eq!(other.set("A", b"b").await, Err("SEALED"));
    let sealed = other.vault.list().await;
    assert_eq!(
        sealed,
        Err(VaultRefusal::Sealed(VaultError::IdentityMismatch))
    );
    other.end().await;
    let house_1 = house_again(folder.path(), 3).await;
    assert_eq!(house_1.value("A").await, Ok(b"a".to_vec()));
    house_1.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_header_seals_and_a_vault_that_the_log_does_not_know_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let house_1 = house(folder.path(), 1, 1).await;
    house_1.set("A", b"a").await.unwrap();
    house_1.end().await;
    // Without its log and the log's keys.
    let move_log = |from: &str, to: &str| {
        for part in ["audit", "keys"] {
            let at = |name: &str| folder.path().join(format!("{name}{part}"));
            std::fs::rename(at(from), at(to)).unwrap();
        }
    };
    move_log("", "kept-");
    let house_1 = house_again(folder.path(), 2).await;
    assert_eq!(
        house_1.vault.list().await,
        Err(VaultRefusal::Sealed(VaultError::RolledBack))
    );
    house_1.end().await;
    move_log("", "foreign-");
    move_log("kept-", "");
    let house_1 = house_again(folder.path(), 3).await;
    assert_eq!(house_1.value("A").await, Ok(b"a".to_vec()));
    let header = house_1
        .store
        .get("vault.header", "only")
        .await
        .unwrap()
        .unwrap();
    let bad = Op::compare_and_set("vault.header", "only", 0, header.rev, b"{}".to_vec());
    house_1.store.commit(vec![bad]).await.unwrap();
    house_1.end().await;
    let house_1 = house_again(folder.path(), 4).await;
    assert_eq!(
        house_1.vault.list().await,
        Err(VaultRefusal::Sealed(VaultError::HeaderCorrupt))
    );
    house_1.end().await;
}

/// The state's file, and beside it one of the tests' own: nothing of theirs may stand in it.
fn with_copies(folder: &Path) -> rusqlite::Connection {
    let db = rusqlite::Connection::open(folder.join("state.db")).unwrap();
    let copies = folder.join("copies.db");
    db.execute("ATTACH ?1 AS copies", [copies.to_str()])
        .unwrap();
    db
}

/// The vault's rows as they are now, whatever else is done to them later.
fn rows_of(folder: &Path, to: &str) {
    let copy = format!(
        "DROP TABLE IF EXISTS copies.{to};
         CREATE TABLE copies.{to} AS SELECT * FROM object WHERE kind LIKE 'vault%' AND kind <> 'vault.used';"
    );
    with_copies(folder).execute_batch(&copy).unwrap();
}

/// Takes rows away, as somebody who can write the file.
fn take_away(folder: &Path, which: &str) {
    let db = rusqlite::Connection::open(folder.join("state.db")).unwrap();
    let taken =
        format!("DELETE FROM object WHERE kind LIKE 'vault%' AND kind <> 'vault.used' AND {which}");
    db.execute(&taken, []).unwrap();
}

/// Puts earlier ones in their place.
fn put_back(folder: &Path, from: &str, which: &str) {
    take_away(folder, which);
    let back = format!("INSERT INTO object SELECT * FROM copies.{from} WHERE {which}");
    assert!(with_copies(folder).execute(&back, []).unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_put_back_or_taken_away_is_named_and_an_older_vault_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let house = house_again(at, 1).await;
    for (name, value) in [("A", b"a-1"), ("B", b"b-1"), ("C", b"c-1")] {
        house.set(name, value).await.unwrap();
    }
    house.end().await;
    rows_of(at, "before");
    let house = house_again(at, 2).await;
    house.set("A", b"a-2").await.unwrap();
    house.vault.remove(by(), "C").await.unwrap();
    house.end().await;
    rows_of(at, "after");

    // A: its first value. B: gone. C: what was removed is there again.
    put_back(at, "before", "kind = 'vault' AND id IN ('A', 'C')");
    take_away(at, "kind = 'vault' AND id = 'B'");
    let house = house_again(at, 3).await;
    assert_eq!(house.value("A").await, Err("VAULT_RECORD_OLD"));
    assert_eq!(house.value("B").await, Err("VAULT_RECORD_MISSING"));
    assert_eq!(house.value("C").await, Err("VAULT_RECORD_OLD"));
    let listed = house.vault.list().await.unwrap();
    let codes: Vec<_> = listed.iter().map(|one| one.code).collect();
    let (old, missing) = (Some("VAULT_RECORD_OLD"), Some("VAULT_RECORD_MISSING"));
    assert_eq!(codes, [old, missing, old]);
    // The next steps that the errors name, for each kind of damage.
    assert_eq!(house.set("A", b"a-3").await, Ok(3));
    assert_eq!(house.set("B", b"b-2").await, Ok(2));
    house.vault.remove(by(), "C").await.unwrap();
    house.end().await;
    let house = house_again(at, 4).await;
    assert_eq!(house.value("A").await, Ok(b"a-3".to_vec()));
    assert_eq!(house.value("B").await, Ok(b"b-2".to_vec()));
    assert_eq!(house.value("C").await, Err("VAULT_NOT_FOUND"));
    house.end().await;
    rows_of(at, "newest");

    // All of the vault's rows of an earlier day, and none at all.
    let sealed = async |boot, why| {
        let house = house_again(at, boot).await;
        let found = house.vault.list().await;
        assert_eq!(found, Err(VaultRefusal::Sealed(why)));
        assert_eq!(house.set("A", b"x").await, Err("SEALED"));
        house.end().await;
    };
    for old in ["before", "after"] {
        put_back(at, old, "1");
        sealed(5, VaultError::RolledBack).await;
    }
    take_away(at, "1");
    sealed(6, VaultError::Missing).await;
    // Without its manifest only.
    put_back(at, "newest", "1");
    take_away(at, "kind = 'vault.manifest'");
    sealed(7, VaultError::Missing).await;
    put_back(at, "newest", "1");
    let house = house_again(at, 8).await;
    assert_eq!(house.value("A").await, Ok(b"a-3".to_vec()));
    house.end().await;
}

/// Copies the log and its keys as they are at this moment.
fn copy_log(folder: &Path, from: &str, to: &str) {
    for part in ["audit", "keys"] {
        let at = |name: &str| folder.join(format!("{name}{part}"));
        drop(std::fs::remove_dir_all(at(to)));
        let done = std::process::Command::new("cp")
            .args(["-a".as_ref(), at(from).as_os_str(), at(to).as_os_str()])
            .status();
        assert!(done.unwrap().success());
    }
}

/// Cuts the log behind the intent of the last change, as if the machine had stopped there.
fn cut_behind_last_intent(folder: &Path) {
    use portcullis_core::audit::{BodyRef, HEADER_BYTES, decode_leaf};
    let path = folder.join("audit/0000000000000001.log");
    let log = std::fs::read(&path).unwrap();
    let (mut at, mut cut) = (HEADER_BYTES, 0);
    while at < log.len() {
        let len = u32::from_be_bytes(log[at..at + 4].try_into().unwrap()) as usize;
        let leaf = decode_leaf(&log[at + 4..at + 4 + len]).unwrap();
        at += 4 + len + 32;
        if matches!(leaf.body, BodyRef::Intent(entry) if entry.action == "vault.set") {
            cut = at;
        }
    }
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(cut as u64).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_between_intent_commit_and_outcome_opens_with_what_was_committed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let house = house_again(at, 1).await;
    house.set("A", b"a-1").await.unwrap();
    house.end().await;
    rows_of(at, "before");
    let house = house_again(at, 2).await;
    // Not as the outcome, which is bound to the log's keys, and an orderly stop leave it.
    copy_log(at, "", "stopped-");
    house.set("A", b"a-2").await.unwrap();
    let segment = |folder: &str| at.join(folder).join("0000000000000001.log");
    std::fs::copy(segment("audit"), segment("stopped-audit")).unwrap();
    house.end().await;
    rows_of(at, "after");
    copy_log(at, "stopped-", "");
    cut_behind_last_intent(at);
    copy_log(at, "", "stopped-");

    // The commit without its outcome.
    let house = house_again(at, 3).await;
    assert_eq!(house.value("A").await, Ok(b"a-2".to_vec()));
    house.end().await;
    // That opening has settled it: what was before it does not pass any more.
    put_back(at, "before", "1");
    let house = house_again(at, 4).await;
    assert_eq!(
        house.vault.list().await,
        Err(VaultRefusal::Sealed(VaultError::RolledBack))
    );
    house.end().await;
    // The intent without its commit; and then the other way round.
    copy_log(at, "stopped-", "");
    let house = house_again(at, 5).await;
    assert_eq!(house.value("A").await, Ok(b"a-1".to_vec()));
    assert_eq!(house.set("A", b"a-3").await, Ok(2));
    house.end().await;
    put_back(at, "after", "1");
    let house = house_again(at, 6).await;
    assert_eq!(
        house.vault.list().await,
        Err(VaultRefusal::Sealed(VaultError::RolledBack))
    );
    house.end().await;
}

/// A record as it was sealed before there were manifests.
fn first_form(root: &Key, store_id: &[u8; 16], name: &str, intent: u64, value: &[u8]) -> Vec<u8> {
    let epoch = 1_u32.to_be_bytes();
    let aad: [&[u8]; 10] = [
        b"portcullis-vault-record",
        &[1],
        &epoch,
        store_id,
        b"secrets",
        name.as_bytes(),
        &4_u64.to_be_bytes(),
        &intent.to_be_bytes(),
        &5_u64.to_be_bytes(),
        &6_u64.to_be_bytes(),
    ];
    let key = root.derive(store_id, "portcullis/vault/data/v1", &epoch);
    let sealed = base64url(&key.seal(&[9; 12], &aad, value));
    format!(
        r#"{{"v":1,"epoch":1,"version":4,"createdAtMs":5,"updatedAtMs":6,"nonce":"{}","sealed":"{sealed}"}}"#,
        hex(&[9; 12])
    )
    .into_bytes()
}

/// A header of that time: identity 01.., root key 03.., store 04...
const FIRST_HEADER: &str = r#"{"v":1,"storeId":"04040404040404040404040404040404","identityCheck":"64e29e8dc461eefc","kdf":{"logN":17,"r":8,"p":1},"salt":"0505050505050505050505050505050505050505050505050505050505050505","nonce":"060606060606060606060606","wrappedRoot":"wWsaIIUKjGFfM0u266g7nVl_7K_uBmXH1HrR-dQt4RuEsCDF5aWG31tfg5Zz53iJ"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_from_before_there_were_manifests_opens_and_gets_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let (root, store_id) = (Key::new([3; 32]), [4; 16]);
    // The log and the rows of that time, written before the room starts.
    let store = Store::open(&at.join("state.db")).unwrap();
    let (house, created) = {
        let house = log_only(at).await;
        let intent = house.1.intent(Entry::new("vault.create")).await.unwrap();
        house.1.outcome(intent, Outcome::ok()).await.unwrap();
        let set = house.1.intent(Entry::new("vault.set")).await.unwrap();
        house.1.outcome(set, Outcome::ok()).await.unwrap();
        (house, set.0)
    };
    let header = FIRST_HEADER.as_bytes().to_vec();
    let epoch = br#"{"v":1,"term":1,"seals":7}"#.to_vec();
    let record = |name, intent| first_form(&root, &store_id, name, intent, b"planted");
    let rows = vec![
        Op::create("vault.header", "only", created, header),
        Op::create("vault.epoch", "only", created, epoch),
        Op::create("vault", "OLD", created, record("OLD", created)),
        // Sealed for another place: not believed then, not believed now.
        Op::create("vault", "MOVED", created, record("OLD", created)),
    ];
    store.commit(rows).await.unwrap();
    house.0.stop().await;
    store.close().await.unwrap();

    let house = house_again(at, 2).await;
    assert_eq!(house.value("OLD").await, Ok(b"planted".to_vec()));
    assert_eq!(house.value("MOVED").await, Err("VAULT_RECORD_CORRUPT"));
    assert_eq!(house.set("OLD", b"new").await, Ok(5));
    house.end().await;
    let house = house_again(at, 3).await;
    assert_eq!(house.value("OLD").await, Ok(b"new".to_vec()));
    let gone = house.store.get("vault.epoch", "only").await.unwrap();
    assert_eq!(gone, None);
    house.end().await;
    take_away(at, "kind IN ('vault.manifest', 'vault.page')");
    let house = house_again(at, 4).await;
    assert_eq!(
        house.vault.list().await,
        Err(VaultRefusal::Sealed(VaultError::Missing))
    );
    house.end().await;
}

/// The audit room alone.
async fn log_only(folder: &Path) -> (Tree, AuditHandle) {
    let mut tree = TreeBuilder::new(
        Intensity::default(),
        Arc::new(|room, why| panic!("{room}: {why}")),
    );
    let audit = log(&mut tree, folder, 1);
    (tree.start().await.unwrap(), audit)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tree_is_ready_before_the_vault_and_callers_wait_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let began = std::time::Instant::now();
    let house = house_on(folder.path(), 1, 1, Store::in_memory().unwrap(), false).await;
    let ready = began.elapsed();
    while house.vault.list().await == Err(VaultRefusal::Unsealing) {}
    assert_eq!(house.vault.list().await, Ok(vec![]));
    let open = began.elapsed();
    assert!(
        ready * 2 < open,
        "ready after {ready:?}, open after {open:?}"
    );
    house.end().await;
}
