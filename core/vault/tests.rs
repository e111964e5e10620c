//! Seals against swaps, flips and other identities. scrypt runs at its real cost: there is no lower one.

mod history;
mod unlockers;

use super::*;
use crate::identity::Identity;
use crate::seal::{Key, Secret};
use crate::time::Millis;
use proptest::prelude::*;

fn identity(n: u8) -> Identity {
    Identity::from_random([n; 32])
}

/// Keys without scrypt: only the unlockers' tests need it.
fn keys(n: u8) -> VaultKeys {
    VaultKeys::new(Key::new([n; 32]), [n; 16])
}

const META: RecordMeta = RecordMeta {
    version: 3,
    created_at_ms: Millis(5),
    updated_at_ms: Millis(8),
};

fn sealed(value: &[u8]) -> SealedRecord {
    let value = Secret::new(value.to_vec());
    SealedRecord::seal(
        &keys(1),
        1,
        ("secrets", "NAME"),
        (META, Binds::default()),
        &[2; 12],
        &value,
    )
    .expect("seals")
}

fn place<'a>((namespace, name): (&'a str, &'a str), intent: u64) -> Place<'a> {
    Place {
        namespace,
        name,
        intent,
    }
}

/// Section 12. The fourth vector takes 1 GiB and is left out.
const RFC_7914: [(&str, &str, Kdf, &str); 3] = [
    (
        "",
        "",
        Kdf {
            log_n: 4,
            r: 1,
            p: 1,
        },
        "77d6576238657b203b19ca42c18a0497f16b4844e3074ae8dfdffa3fede21442fcd0069ded0948f8326a753a0fc81f17e8d3e0fb2e0d3628cf35e20c38d18906",
    ),
    (
        "password",
        "NaCl",
        Kdf {
            log_n: 10,
            r: 8,
            p: 16,
        },
        "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b3731622eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640",
    ),
    (
        "pleaseletmein",
        "SodiumChloride",
        Kdf {
            log_n: 14,
            r: 8,
            p: 1,
        },
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887",
    ),
];

#[test]
fn scrypt_is_the_one_of_rfc_7914() {
    for (password, salt, kdf, expected) in RFC_7914 {
        let mut key = [0; 64];
        kdf.fill(password.as_bytes(), salt.as_bytes(), &mut key)
            .expect("runs");
        assert_eq!(crate::encoding::hex(&key), expected);
        // Below the floor, so no unlocker has that cost.
        let refused = kdf.run(password.as_bytes(), salt.as_bytes());
        assert_eq!(refused.err(), Some(VaultError::HeaderCorrupt));
    }
    // The shortest allowed one is that very function.
    let mut key = [0; 32];
    Kdf::DEFAULT
        .fill(b"password", b"NaCl", &mut key)
        .expect("runs");
    let run = Kdf::DEFAULT.run(b"password", b"NaCl").expect("allowed");
    assert_eq!(run.expose(), &key);
}

#[test]
fn a_record_opens_in_its_place_alone() {
    let record = sealed(b"value");
    let open = |n, at| {
        record
            .open(&keys(n), place(at, 7))
            .map(|s| s.expose().to_vec())
    };
    assert_eq!(open(1, ("secrets", "NAME")), Ok(b"value".to_vec()));
    for (n, at) in [
        (2, ("secrets", "NAME")),
        (1, ("other", "NAME")),
        (1, ("secrets", "NAMF")),
        (1, ("secretsN", "AME")),
    ] {
        assert_eq!(open(n, at), Err(VaultError::RecordCorrupt), "{n} {at:?}");
    }
}

#[test]
fn a_record_of_the_first_form_opens_under_its_own_intent_alone() {
    // As the first form was sealed: with the intent among the associated data.
    let (nonce, intent) = ([3; 12], 7_u64);
    let aad: [&[u8]; 10] = [
        b"portcullis-vault-record",
        &[1],
        &1_u32.to_be_bytes(),
        &[1; 16],
        b"secrets",
        b"NAME",
        &3_u64.to_be_bytes(),
        &intent.to_be_bytes(),
        &5_u64.to_be_bytes(),
        &8_u64.to_be_bytes(),
    ];
    let bytes = keys(1).data_key(1).seal(&nonce, &aad, b"old");
    let json = format!(
        r#"{{"v":1,"epoch":1,"version":3,"createdAtMs":5,"updatedAtMs":8,"nonce":"{}","sealed":"{}"}}"#,
        crate::encoding::hex(&nonce),
        crate::encoding::base64url(&bytes)
    );
    let record: SealedRecord = serde_json::from_str(&json).expect("json");
    let opened = record.open(&keys(1), place(("secrets", "NAME"), 7));
    assert_eq!(opened.expect("opens").expose(), b"old");
    assert!(!record.is_current(1) && sealed(b"x").is_current(1));
    for bad in [
        record.open(&keys(1), place(("secrets", "NAME"), 8)),
        serde_json::from_str::<SealedRecord>(&json.replace("\"v\":1", "\"v\":2"))
            .expect("json")
            .open(&keys(1), place(("secrets", "NAME"), 7)),
    ] {
        assert!(bad.is_err());
    }
}

#[test]
fn every_changed_character_of_a_stored_record_is_detected() {
    let json = serde_json::to_string(&sealed(b"value")).expect("json");
    let mut harmless = Vec::new();
    for at in 0..json.len() {
        for flip in [1, 4, 16] {
            let mut bytes = json.clone().into_bytes();
            bytes[at] ^= flip;
            let opened = serde_json::from_slice::<SealedRecord>(&bytes)
                .map_err(|_| VaultError::RecordCorrupt)
                .and_then(|record| record.open(&keys(1), place(("secrets", "NAME"), 7)));
            if opened.is_ok() {
                harmless.push(at);
            }
        }
    }
    assert!(harmless.is_empty(), "{harmless:?}");
}

#[test]
fn names_and_values_have_limits() {
    for name in ["A", "A_1", &"Z".repeat(128)] {
        assert_eq!(check_name(name), Ok(()), "{name}");
    }
    for name in [
        "",
        "a",
        "1A",
        "_A",
        "A-B",
        "A B",
        "Ä",
        "A\0",
        &"Z".repeat(129),
    ] {
        assert_eq!(check_name(name), Err(VaultError::NameInvalid), "{name}");
    }
    for size in [0, MAX_VALUE + 1] {
        let value = Secret::new(vec![1; size]);
        let sealed = SealedRecord::seal(
            &keys(1),
            1,
            ("s", "A"),
            (META, Binds::default()),
            &[0; 12],
            &value,
        );
        assert_eq!(sealed.err(), Some(VaultError::ValueInvalid), "{size}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_is_sealed_comes_back(value in proptest::collection::vec(any::<u8>(), 1..4_096), nonce: [u8; 12], epoch: u32, version: u64) {
        let meta = RecordMeta { version, ..META };
        let record = SealedRecord::seal(&keys(3), epoch, ("secrets", "A"), (meta, Binds::default()), &nonce, &Secret::new(value.clone())).expect("seals");
        let json = serde_json::to_vec(&record).expect("json");
        let read: SealedRecord = serde_json::from_slice(&json).expect("json");
        prop_assert_eq!(read.meta(), meta);
        let opened = read.open(&keys(3), place(("secrets", "A"), 1)).expect("opens");
        prop_assert_eq!(opened.expose(), &value[..]);
        if value.len() >= 8 {
            prop_assert!(!json.windows(value.len()).any(|window| window == &value[..]));
        }
    }
}

/// The keys of an epoch are made once, lie where they lay, and are the same as those that are made each time.
#[test]
fn the_keys_of_the_epoch_that_is_held_are_listed_and_are_that_epochs() {
    let mut held = keys(1);
    let roots = held.places().len();
    for epoch in [1, 2, 2] {
        held.hold(epoch);
        assert_eq!(held.held(), Some(epoch));
        assert_eq!(held.places().len(), 3 * roots);
    }
    let places = held.places();
    for epoch in [1, 2, 3] {
        assert_eq!(
            held.data_key(epoch).expose(),
            keys(1).data_key(epoch).expose()
        );
        assert_eq!(
            held.manifest_key(epoch).expose(),
            keys(1).manifest_key(epoch).expose()
        );
    }
    let at = std::ptr::from_ref(held.data_key(2).expose()).cast::<u8>();
    assert!(places.iter().any(|(place, _)| *place == at));
    let at = std::ptr::from_ref(held.manifest_key(2).expose()).cast::<u8>();
    assert!(places.iter().any(|(place, _)| *place == at));
    // Who works elsewhere with a copy has none of them.
    assert_eq!(held.clone().places().len(), roots);
}
