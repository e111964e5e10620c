//! One byte of `state.db` is another: the vault says so, or says what was set. Sampled here, at every byte in a long run.

use super::super::rows::{self, Space};
use super::*;
use portcullis_core::ids::Hash32;
use portcullis_core::vault::{Header, UnlockSecret, VaultKeys};

const SECRETS: [(&str, &[u8]); 3] = [("A", b"value-a"), ("B", b"value-b"), ("C", &[0xa5; 900])];

/// What a flip came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Came {
    /// The store or the vault refuses it all.
    Refused,
    /// At least one record is named as wrong, and the others are right.
    Named,
    /// All is as it was set.
    Harmless,
}

/// As an opening does it, but for scrypt, which would be run for each byte.
async fn look(path: &Path, keys: &VaultKeys, digest: Hash32, header: Hash32) -> Came {
    let Ok(store) = Store::open(path) else {
        return Came::Refused;
    };
    let came = read(&store, keys, digest, header).await;
    drop(store.close().await);
    came
}

async fn read(store: &Store, keys: &VaultKeys, digest: Hash32, header: Hash32) -> Came {
    let Ok(Ok(Some(row))) = rows::read_header(store).await else {
        return Came::Refused;
    };
    let Ok(Ok(Some(stored))) = rows::read_manifest(store, keys).await else {
        return Came::Refused;
    };
    // The log says which manifest must be there, and the manifest which header.
    if stored.digest(keys) != digest || stored.manifest().header() != row.hash {
        return Came::Refused;
    }
    assert_eq!(row.hash, header, "another header passes");
    let Ok(rows) = rows::read_rows(store, keys, row, stored).await else {
        return Came::Refused;
    };
    let mut came = Came::Harmless;
    for (name, value) in SECRETS {
        let known = rows
            .get(Space::Secrets, name)
            .expect("the manifest lists it");
        let Ok(found) = store.get(Space::Secrets.kind(), name).await else {
            return Came::Refused;
        };
        let opened = found.map(|row| {
            rows::read_record(keys, &rows.manifest, Space::Secrets, &row)?;
            rows::open_record(keys, Space::Secrets, &row)
        });
        match (known.state, opened) {
            (Ok(_), Some(Ok((meta, secret)))) => {
                assert_eq!(secret.expose(), value, "{name} is another");
                assert_eq!(meta.version, 2, "{name} is another version");
            }
            // What was read first and what is read when it is used are the same bytes.
            (Err(_), Some(Err(_)) | None) => came = Came::Named,
            (state, opened) => panic!("{name}: {state:?}, then {:?}", opened.map(|o| o.is_ok())),
        }
    }
    // A name that was never set is one of a record that is named as wrong.
    for (name, row) in rows.secrets() {
        let is_ours = SECRETS.iter().any(|(known, _)| *known == name);
        assert!(is_ours || row.state.is_err(), "{name} is there");
    }
    came
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_of_the_state_is_told_by_the_vault_or_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let house = house_again(at, 1).await;
    for (name, value) in SECRETS {
        house.set(name, b"before").await.unwrap();
        house.set(name, value).await.unwrap();
    }
    let used = house
        .vault
        .reveal("A", None, Asked::by_gateway("test"))
        .await;
    assert!(used.is_ok());
    house.end().await;
    let path = at.join("state.db");
    let store = Store::open(&path).unwrap();
    let row = store.get(rows::HEADER, rows::ONLY).await.unwrap().unwrap();
    let (header, hash) = (
        Header::parse(&row.payload).unwrap(),
        Hash32::of(&row.payload),
    );
    let identity = Identity::from_random([1; 32]);
    let secret = UnlockSecret::Machine {
        identity: &identity,
        machine_id: None,
    };
    let keys = header.open(header.unlockers()[0].id(), &secret).unwrap();
    let stored = rows::read_manifest(&store, &keys).await.unwrap();
    let digest = stored.unwrap().unwrap().digest(&keys);
    store.close().await.unwrap();

    let good = std::fs::read(&path).unwrap();
    assert_eq!(look(&path, &keys, digest, hash).await, Came::Harmless);
    let step = match std::env::var_os("PORTCULLIS_LONG") {
        Some(_) => 1,
        None => (good.len() / 300).max(1),
    };
    let mut seen = std::collections::BTreeMap::new();
    for place in (0..good.len()).step_by(step) {
        let mut bad = good.clone();
        bad[place] ^= 1 << (place % 8);
        std::fs::write(&path, bad).unwrap();
        for beside in ["state.db-wal", "state.db-shm"] {
            drop(std::fs::remove_file(at.join(beside)));
        }
        *seen
            .entry(look(&path, &keys, digest, hash).await)
            .or_insert(0) += 1;
    }
    // Each of them happens: else this would not be a test of the vault.
    println!(
        "FIGURE: flipped bytes of state.db ({} bytes): {seen:?}",
        good.len()
    );
    assert!(seen.len() == 3, "{seen:?}");
}
