//! Unlockers and header. scrypt runs at its real cost: there is no lower one.

use super::{identity, keys, place, sealed};
use crate::encoding::{base64url, hex};
use crate::seal::{Key, Secret};
use crate::time::Millis;
use crate::vault::*;

fn random(n: u8) -> UnlockerRandom {
    UnlockerRandom {
        id: [n; 4],
        salt: [n; 32],
        nonce: [n; 12],
    }
}

fn of_machine(n: u8, id: Option<&'static str>) -> Unlocker {
    let identity = identity(1);
    let secret = UnlockSecret::Machine {
        identity: &identity,
        machine_id: id,
    };
    Unlocker::make(
        keys(1).root(),
        Kind::Machine,
        None,
        &secret,
        Millis(5),
        &random(n),
    )
    .expect("makes")
}

fn by_text(n: u8, kind: Kind, text: &[u8]) -> Unlocker {
    let secret = Secret::new(text.to_vec());
    let secret = UnlockSecret::Bytes(&secret);
    let source = (kind == Kind::File).then(|| KeySource::File("/a/key".to_owned()));
    Unlocker::make(keys(1).root(), kind, source, &secret, Millis(5), &random(n)).expect("makes")
}

fn opens(header: &Header, id: &str, secret: &UnlockSecret<'_>) -> Result<[u8; 32], VaultError> {
    header.open(id, secret).map(|keys| *keys.root().1.expose())
}

#[test]
fn the_machine_opens_with_its_own_identity_and_machine_id_alone_and_within_the_limits() {
    let header = Header::new(&keys(1), vec![of_machine(2, Some("aa"))]);
    let open = |header: &Header, n, machine_id| {
        let identity = identity(n);
        let secret = UnlockSecret::Machine {
            identity: &identity,
            machine_id,
        };
        opens(header, "02020202", &secret)
    };
    assert_eq!(open(&header, 1, Some("aa")), Ok([1; 32]));
    assert_eq!(
        open(&header, 9, Some("aa")),
        Err(VaultError::IdentityMismatch)
    );
    for other in [Some("ab"), None] {
        assert_eq!(open(&header, 1, other), Err(VaultError::OtherMachine));
    }
    // Where there was no machine-id it opens everywhere, as before.
    let free = Header::new(&keys(1), vec![of_machine(2, None)]);
    assert_eq!(open(&free, 1, Some("aa")), Ok([1; 32]));

    let json = String::from_utf8(header.to_bytes()).expect("text");
    let altered = |from: &str, to: &str| {
        let text = json.replacen(from, to, 1);
        assert_ne!(text, json, "{from}");
        let header = Header::parse(text.as_bytes()).expect("still a header");
        open(&header, 1, Some("aa")).err()
    };
    let (corrupt, n) = (Some(VaultError::HeaderCorrupt), |key: &str, n: u32| {
        format!("\"{key}\":{n}")
    });
    // Outside the limits: refused before a byte of memory is taken.
    for (key, was, is) in [
        ("logN", 17, 16),
        ("logN", 17, 21),
        ("logN", 17, 63),
        ("r", 8, 1),
        ("r", 8, 9),
        ("p", 1, 0),
        ("p", 1, 5),
    ] {
        assert_eq!(altered(&n(key, was), &n(key, is)), corrupt, "{key} {is}");
    }
    // Inside them, but not what was wrapped.
    assert_eq!(altered(&"02".repeat(32), &"03".repeat(32)), corrupt);
    assert_eq!(altered("\"createdAtMs\":5", "\"createdAtMs\":6"), corrupt);
    for bad in [
        &b"{}"[..],
        b"",
        b"[]",
        json.replace("\"v\":2", "\"v\":3").as_bytes(),
        json.replace("storeId\":\"01", "storeId\":\"").as_bytes(),
    ] {
        assert_eq!(Header::parse(bad).err(), Some(VaultError::HeaderCorrupt));
    }
}

#[test]
fn each_unlocker_opens_by_its_own_secret_and_none_takes_anothers_place() {
    let code = RecoveryCode::from_random([7; RECOVERY_BYTES]);
    let header = Header::new(
        &keys(1),
        vec![by_text(2, Kind::Passphrase, b"correct horse battery")],
    )
    .with(by_text(3, Kind::File, &[9; 40]))
    .and_then(|header| header.with(by_text(4, Kind::Recovery, code.secret().expose())))
    .expect("room");
    let header = Header::parse(&header.to_bytes()).expect("reads back");
    let open = |id: &str, text: &[u8]| {
        opens(
            &header,
            id,
            &UnlockSecret::Bytes(&Secret::new(text.to_vec())),
        )
    };
    assert_eq!(open("02020202", b"correct horse battery"), Ok([1; 32]));
    assert_eq!(open("03030303", &[9; 40]), Ok([1; 32]));
    let typed = RecoveryCode::parse(&code.text().to_lowercase()).expect("reads");
    assert_eq!(open("04040404", typed.secret().expose()), Ok([1; 32]));
    for (id, text) in [
        ("02020202", &b"correct horse batterz"[..]),
        ("03030303", b"correct horse battery"),
    ] {
        assert_eq!(open(id, text), Err(VaultError::Wrong));
    }
    assert_eq!(open("09090909", b"x"), Err(VaultError::UnlockerNotFound));
    // Exchanged places, kinds or sources: what stands beside the wrapped key is bound to it.
    let text = String::from_utf8(header.to_bytes()).expect("text");
    for (from, to) in [
        ("/a/key", "/b/key"),
        ("\"file\",\"created", "\"passphrase\",\"created"),
        ("03030303\",\"kind", "05050505\",\"kind"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let header = Header::parse(changed.as_bytes()).expect("a header");
        let id = if to.starts_with("05") {
            "05050505"
        } else {
            "03030303"
        };
        let secret = Secret::new(vec![9; 40]);
        assert_eq!(
            opens(&header, id, &UnlockSecret::Bytes(&secret)),
            Err(VaultError::Wrong),
            "{from}"
        );
    }
}

#[test]
fn there_is_always_an_unlocker_and_never_too_many() {
    let one = Header::new(&keys(1), vec![of_machine(2, None)]);
    assert_eq!(
        one.without("02020202").err(),
        Some(VaultError::LastUnlocker)
    );
    assert_eq!(
        one.without("03030303").err(),
        Some(VaultError::UnlockerNotFound)
    );
    let copy = one.unlockers()[0].clone();
    assert_eq!(one.with(copy).err(), Some(VaultError::UnlockersFull));
    let mut header = one;
    let text = String::from_utf8(header.to_bytes()).expect("text");
    for n in 3..3 + MAX_UNLOCKERS {
        let other = text.replace(
            "02020202\",\"kind",
            &format!("{}\",\"kind", hex(&[u8::try_from(n).expect("small"); 4])),
        );
        let unlocker = Header::parse(other.as_bytes())
            .expect("a header")
            .unlockers()[0]
            .clone();
        match header.with(unlocker) {
            Ok(more) => header = more,
            Err(error) => assert_eq!(
                (error, header.unlockers().len()),
                (VaultError::UnlockersFull, MAX_UNLOCKERS)
            ),
        }
    }
    assert_eq!(header.unlockers().len(), MAX_UNLOCKERS);
    let fewer = header.without("02020202").expect("others are left");
    assert_eq!(
        fewer.unlocker("02020202").err(),
        Some(VaultError::UnlockerNotFound)
    );
}

#[test]
fn weak_secrets_are_no_unlockers() {
    let check = |kind, bytes: &[u8]| check_unlock_secret(kind, &Secret::new(bytes.to_vec()));
    for good in [
        (Kind::Passphrase, "twelve chars".as_bytes()),
        (Kind::Passphrase, "\u{e4}".repeat(12).as_bytes()),
        (Kind::File, &[0; 32]),
    ] {
        assert_eq!(check(good.0, good.1), Ok(()));
    }
    for bad in [
        (Kind::Passphrase, &b"eleven char"[..]),
        (Kind::Passphrase, b""),
        (Kind::Passphrase, &[0xff; 20]),
        (Kind::File, &[0; 31]),
        (Kind::File, &vec![0; MAX_UNLOCK + 1][..]),
    ] {
        assert_eq!(check(bad.0, bad.1), Err(VaultError::UnlockSecret));
    }
}

/// As the first form was made.
fn first_form(n: u8, root: [u8; 32]) -> String {
    let identity = identity(1);
    let (salt, nonce, check) = ([5; 32], [6; 12], identity.check());
    let wrapping = Kdf::DEFAULT
        .run(identity.vault_password().expose(), &salt)
        .expect("runs");
    let mut cost = vec![17];
    cost.extend(8_u32.to_be_bytes());
    cost.extend(1_u32.to_be_bytes());
    let aad: [&[u8]; 5] = [
        b"portcullis-vault-header-v1",
        &[n; 16],
        &check,
        &cost,
        &salt,
    ];
    let wrapped = base64url(&wrapping.seal(&nonce, &aad, &root));
    format!(
        r#"{{"v":1,"storeId":"{}","identityCheck":"{}","kdf":{{"logN":17,"r":8,"p":1}},"salt":"{}","nonce":"{}","wrappedRoot":"{wrapped}"}}"#,
        hex(&[n; 16]),
        hex(&check),
        hex(&salt),
        hex(&nonce)
    )
}

#[test]
fn a_header_of_the_first_form_opens_and_is_told_from_the_present_one() {
    let identity = identity(1);
    let stored = first_form(1, [1; 32]);
    let header = Header::parse(stored.as_bytes()).expect("reads");
    let old = &header.unlockers()[0];
    assert!(old.is_first_form() && old.kind() == Kind::Machine);
    let secret = UnlockSecret::Machine {
        identity: &identity,
        machine_id: Some("aa"),
    };
    assert_eq!(opens(&header, old.id(), &secret), Ok([1; 32]));
    let now = header.replaced(old.id(), of_machine(2, Some("aa")));
    assert!(!now.unlockers()[0].is_first_form());
    assert_eq!(opens(&now, "02020202", &secret), Ok([1; 32]));
    let damaged = stored.replace(&hex(&[5; 32]), &hex(&[7; 32]));
    let header = Header::parse(damaged.as_bytes()).expect("reads");
    assert_eq!(
        opens(&header, "00000000", &secret),
        Err(VaultError::HeaderCorrupt)
    );
}

#[test]
fn after_a_new_root_key_old_records_open_until_it_is_forgotten_and_new_ones_for_the_new_key_alone()
{
    let old_record = sealed(b"value");
    let at = place(("secrets", "NAME"), 0);
    let new = keys(1).rekeyed(Key::new([8; 32]), 1);
    assert_eq!(
        old_record.open(&new, at).map(|s| s.expose().to_vec()),
        Ok(b"value".to_vec())
    );
    let meta = old_record.meta();
    let value = Secret::new(b"value".to_vec());
    let record = SealedRecord::seal(
        &new,
        2,
        ("secrets", "NAME"),
        (meta, Binds::default()),
        &[4; 12],
        &value,
    )
    .expect("seals");
    assert!(record.open(&new, at).is_ok() && record.open(&keys(1), at).is_err());

    // Through the header: by an unlocker of the new root, with the old one sealed beside it.
    let secret = Secret::new(b"correct horse battery".to_vec());
    let secret = UnlockSecret::Bytes(&secret);
    let made = Unlocker::make(
        new.root(),
        Kind::Passphrase,
        None,
        &secret,
        Millis(1),
        &random(3),
    )
    .expect("makes");
    let header = Header::new(
        &keys(1),
        vec![by_text(2, Kind::Passphrase, b"correct horse battery")],
    )
    .rekeyed(&new, vec![made], &[9; 12]);
    assert!(header.has_previous());
    let header = Header::parse(&header.to_bytes()).expect("reads back");
    let opened = header.open("03030303", &secret).expect("opens");
    assert!(old_record.open(&opened, at).is_ok() && record.open(&opened, at).is_ok());
    let last = header.without_previous();
    let mut opened = last.open("03030303", &secret).expect("opens");
    assert!(old_record.open(&opened, at).is_err() && record.open(&opened, at).is_ok());
    opened.forget_previous();
    assert!(record.open(&opened, at).is_ok());
    // The old root, put in by hand, is not believed.
    let text = String::from_utf8(header.to_bytes()).expect("text");
    let altered = text.replace("\"upTo\":1", "\"upTo\":7");
    let header = Header::parse(altered.as_bytes()).expect("reads");
    assert_eq!(
        header.open("03030303", &secret).err(),
        Some(VaultError::HeaderCorrupt)
    );
}
