//! The room with the real audit log, the real store and the real cost of scrypt.

use super::*;
use crate::audit::{AuditConfig, AuditHandle, AuditWiring};
use crate::clock::Clock;
use crate::store::{Op, Store};
use crate::supervision::{Feed, Intensity, Tree, TreeBuilder};
use portcullis_core::audit::{BootId, Entry, Query};
use portcullis_core::identity::Identity;
use portcullis_core::seal::Secret;
use portcullis_core::vault::VaultError;
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
    let mut tree = TreeBuilder::new(
        Intensity::default(),
        Arc::new(|room, why| panic!("{room}: {why}")),
    );
    let audit = AuditHandle::add(
        &mut tree,
        AuditWiring {
            dir: folder.join("audit"),
            config: AuditConfig::default(),
            boot: BootId([boot; 16]),
            clock: crate::audit::Clock::new(),
            feed: Feed::new(),
            version: "test".into(),
        },
    );
    let wiring = VaultWiring {
        config: VaultConfig { max_records: 3 },
        store: store.clone(),
        audit: audit.clone(),
        identity: Identity::from_random([identity; 32]),
        clock: Clock::system(),
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

impl House {
    async fn end(self) {
        self.tree.stop().await;
        self.store.close().await.unwrap();
    }

    async fn value(&self, name: &str) -> Result<Vec<u8>, &'static str> {
        let revealed = self.vault.reveal(name, None).await;
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
            .reveal("API_KEY", Some(1))
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
    // The next step that the error names.
    assert_eq!(house.set("A", b"new").await, Ok(1));
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
async fn a_damaged_header_seals_and_a_row_beyond_the_log_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let house_1 = house(folder.path(), 1, 1).await;
    house_1.set("A", b"a").await.unwrap();
    house_1.end().await;
    // Rows whose intent no log holds.
    std::fs::remove_dir_all(folder.path().join("audit")).unwrap();
    let house_1 = house_again(folder.path(), 2).await;
    assert_eq!(house_1.value("A").await, Err("VAULT_RECORD_CORRUPT"));
    let header = house_1
        .store
        .get("vault.header", "only")
        .await
        .unwrap()
        .unwrap();
    let bad = Op::compare_and_set("vault.header", "only", 0, header.rev, b"{}".to_vec());
    house_1.store.commit(vec![bad]).await.unwrap();
    house_1.end().await;
    let house_1 = house_again(folder.path(), 3).await;
    assert_eq!(
        house_1.vault.list().await,
        Err(VaultRefusal::Sealed(VaultError::HeaderCorrupt))
    );
    house_1.end().await;
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
