//! What the vault reads of its own and of others' files: header, sealed records, manifest, exports.

use std::collections::BTreeMap;

use portcullis_core::seal::{Key, Secret};
use portcullis_core::vault::{
    Export, Header, Kdf, Manifest, Page, Place, RecoveryCode, SealedManifest, SealedRecord,
    UnlockSecret, VaultKeys,
};

use super::parsers::{Target, text};

/// Each of them.
pub const ALL: &[Target] = &[
    ("vault_export", vault_export),
    ("vault_header", vault_header),
    ("vault_manifest", vault_manifest),
    ("vault_record", vault_record),
];

/// What the seeds were sealed under.
pub fn keys() -> VaultKeys {
    VaultKeys::new(Key::new([7; 32]), [1; 16])
}

/// What every record of the seeds holds.
pub const VALUE: &[u8] = b"the value of a seed";
/// What every manifest of the seeds lists.
pub const LISTED: [&str; 2] = ["keys/SIGNING_KEYS", "secrets/ONE"];

/// A cost that is run; within it, scrypt takes from half a second, so nothing here does.
const fn is_allowed(kdf: Kdf) -> bool {
    kdf.log_n >= 17 && kdf.log_n <= 18 && kdf.r == 8 && kdf.p >= 1 && kdf.p <= 2
}

/// The header: what is taken has one to sixteen unlockers, and is the same when it is stored and read again. And a
/// recovery code, as people type it.
pub fn vault_header(data: &[u8]) {
    if let Some(Ok(code)) = text(data).map(RecoveryCode::parse) {
        let again = RecoveryCode::parse(&code.text()).unwrap();
        assert_eq!(again.secret().expose(), code.secret().expose());
    }
    let Ok(header) = Header::parse(data) else {
        return;
    };
    assert!((1..=16).contains(&header.unlockers().len()));
    assert!(header.store_id().is_ok());
    for unlocker in header.unlockers() {
        // A cost outside the limits is refused before any work.
        if !is_allowed(unlocker.kdf()) {
            let secret = Secret::new(vec![7; 32]);
            let secret = UnlockSecret::Bytes(&secret);
            assert!(header.open(unlocker.id(), &secret).is_err());
        }
        // Never the last one, and the one that is meant.
        match header.without(unlocker.id()) {
            Ok(less) => assert!(less.unlocker(unlocker.id()).is_err()),
            Err(_) => assert_eq!(header.unlockers().len(), 1),
        }
    }
    let again = Header::parse(&header.to_bytes()).unwrap();
    assert_eq!(again.to_bytes(), header.to_bytes());
}

/// A record: it opens to what was sealed, in its place, or not at all.
pub fn vault_record(data: &[u8]) {
    let Ok(record) = serde_json::from_slice::<SealedRecord>(data) else {
        return;
    };
    let open = |namespace, name, intent| {
        let place = Place {
            namespace,
            name,
            intent,
        };
        record.open(&keys(), place)
    };
    if let Ok(value) = open("secrets", "ONE", 7) {
        assert_eq!(value.expose(), VALUE);
        assert_eq!(record.meta().version, 3);
    }
    assert!(open("secrets", "TWO", 7).is_err());
    assert!(open("keys", "ONE", 7).is_err());
}

/// A manifest and its pages, as `[top, { number: page }]`: it opens to what was sealed, with the very pages, or not at all.
pub fn vault_manifest(data: &[u8]) {
    let Ok((top, pages)) = serde_json::from_slice::<(SealedManifest, BTreeMap<u8, Page>)>(data)
    else {
        return;
    };
    if let Ok(manifest) = Manifest::open(&top, &keys(), pages) {
        let mut listed: Vec<&str> = manifest.entries().map(|(id, _)| id).collect();
        listed.sort_unstable();
        assert_eq!(listed, LISTED);
        assert_eq!(manifest.generation(), 1);
        let _ = manifest.digest(&keys());
    }
}

/// An export: what is taken has an allowed cost, and is the same when it is written and read again. Nothing is opened here:
/// that would be scrypt each time.
pub fn vault_export(data: &[u8]) {
    let Ok(export) = Export::parse(data) else {
        return;
    };
    let again = serde_json::to_vec(&export).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&again).unwrap();
    let kdf: Kdf = serde_json::from_value(document["kdf"].clone()).unwrap();
    assert!(is_allowed(kdf));
    assert_eq!(Export::parse(&again), Ok(export));
}
