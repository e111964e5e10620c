//! The room with the real vault, pairing, log and store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portcullis_core::audit::BootId;
use portcullis_core::auth::{Door, Principal, Proof, Role, Scope, ScopeSet};
use portcullis_core::device::DeviceKey;
use portcullis_core::identity::Identity;
use portcullis_core::ids::DeviceId;
use portcullis_core::signing::SigningKey;
use portcullis_core::signing::http::content_digest;
use portcullis_core::time::Millis;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring};
use crate::clock::Clock;
use crate::pairing::{Client, ConnectFacts, PairingConfig, PairingHandle, PairingWiring, Verdict};
use crate::store::Store;
use crate::supervision::{Feed, Intensity, Tree, TreeBuilder};
use crate::vault::{VaultConfig, VaultHandle, VaultWiring};

struct House {
    tree: Tree,
    pairing: PairingHandle,
    signing: SigningHandle,
    store: Store,
    clock: Clock,
}

async fn house(folder: &Path, boot: u8, identity: u8, config: SigningConfig) -> House {
    let store = Store::open(&folder.join("state.db")).unwrap();
    let clock = Clock::system();
    let mut tree = TreeBuilder::new(
        Intensity::default(),
        Arc::new(|room, why| panic!("{room}: {why}")),
    );
    let audit = AuditHandle::add(
        &mut tree,
        AuditWiring {
            state: None,
            dir: folder.join("audit"),
            keys: AuditKeys::new(folder.join("keys"), &Identity::from_random([1; 32])),
            config: AuditConfig::default(),
            boot: BootId([boot; 16]),
            clock: crate::audit::Clock::new(),
            feed: Feed::new(),
            unwritten: std::sync::Arc::default(),
            version: "test".into(),
        },
    );
    let vault = VaultHandle::add(
        &mut tree,
        VaultWiring {
            config: VaultConfig::default(),
            store: store.clone(),
            audit: audit.clone(),
            identity: Identity::from_random([identity; 32]),
            clock: clock.clone(),
            around: crate::vault::Around::default(),
        },
    );
    let pairing = PairingHandle::add(
        &mut tree,
        PairingWiring {
            config: PairingConfig::default(),
            store: store.clone(),
            audit: audit.clone(),
            clock: clock.clone(),
            news: Feed::new(),
        },
    );
    let signing = SigningHandle::add(
        &mut tree,
        SigningWiring {
            config,
            store: store.clone(),
            audit,
            vault,
            pairing: pairing.clone(),
            clock: clock.clone(),
        },
    );
    House {
        tree: tree.start().await.unwrap(),
        pairing,
        signing,
        store,
        clock,
    }
}

/// A device, paired by local trust: its session's principal.
async fn device(house: &House) -> Principal {
    let secret = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
    let key = DeviceKey::Ed25519(secret.verifying_key());
    let device_id = DeviceId::new(&key.id()).unwrap();
    let scopes: ScopeSet = [Scope::Read].into_iter().collect();
    let facts = ConnectFacts {
        device_id: device_id.clone(),
        public_key: key.to_text(),
        client: Client {
            id: "gateway-client".into(),
            mode: "backend".into(),
            ..Client::default()
        },
        role: Role::Operator,
        asked: scopes.clone(),
        authenticated: true,
        secret: None,
        device_token: None,
        local_operator: true,
        local_scopes: scopes.clone(),
    };
    let Verdict::Paired { generation, .. } = house.pairing.decide(facts).await.unwrap() else {
        panic!("not paired");
    };
    Principal {
        proof: Proof::SharedTokenAndDevice(device_id),
        door: Door::Tcp,
        role: Role::Operator,
        scopes,
        agent: None,
        generation,
        secret: None,
    }
}

fn operator() -> Principal {
    Principal {
        proof: Proof::PeerUid(0),
        door: Door::Control,
        role: Role::Operator,
        scopes: [Scope::Admin].into_iter().collect(),
        agent: None,
        generation: 0,
        secret: None,
    }
}

/// The vault opens beside the start.
async fn mint(house: &House, principal: &Principal) -> Option<Minted> {
    for _ in 0..600 {
        match house.signing.mint(principal).await {
            Ok(minted) => return minted,
            Err(refusal) if refusal.code() == "UNSEALING" => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(refusal) => panic!("{refusal}"),
        }
    }
    panic!("the vault stays closed");
}

/// In a second that began after the room did: before it nothing is taken.
async fn next_second(clock: &Clock) -> Millis {
    let now = clock.now().0;
    let next = now / 1000 * 1000 + 1000;
    tokio::time::sleep(Duration::from_millis(next - now + 5)).await;
    Millis(next)
}

fn claim(key: &SigningKey, key_id: &str, nonce: &str, created: Millis) -> Claim {
    use base64::Engine as _;
    let created = created.0 / 1000;
    let params = format!(
        r#"("@method" "@authority" "@path" "@query" "content-digest");created={created};nonce="{nonce}";keyid="{key_id}";tag="portcullis""#
    );
    let digest = content_digest(b"{}");
    let base = format!(
        "\"@method\": POST\n\"@authority\": localhost\n\"@path\": /rpc/health\n\"@query\": ?\n\"content-digest\": {digest}\n\"@signature-params\": {params}"
    );
    let mac = portcullis_core::signing::mac(key.expose(), &[base.as_bytes()]);
    let mac = base64::engine::general_purpose::STANDARD.encode(mac);
    Claim {
        input: format!("sig={params}"),
        signature: format!("sig=:{mac}:"),
        method: "POST".into(),
        authority: "localhost".into(),
        tls: false,
        path: "/rpc/health".into(),
        query: String::new(),
        content_digest: digest,
    }
}

const NONCE: &str = "0123456789abcdefghijkl";

#[tokio::test]
async fn a_request_is_done_once_and_a_restart_does_not_open_its_window_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = house(folder.path(), 1, 7, SigningConfig::default()).await;
    let session = device(&first).await;
    let Minted { key_id, key } = mint(&first, &session).await.unwrap();
    // Given once.
    assert!(mint(&first, &session).await.is_none());
    let created = next_second(&first.clock).await;
    let request = claim(&key, &key_id, NONCE, created);
    first.signing.check(&request).await.unwrap();
    // Looking at it uses nothing.
    first.signing.check(&request).await.unwrap();
    let asks = first.signing.spend(request.clone()).await.unwrap();
    assert_eq!(
        asks.proof,
        Proof::Signature(session.device().unwrap().clone(), key_id.clone())
    );
    assert_eq!(
        (asks.scopes, asks.door),
        (session.scopes.clone(), Door::Http)
    );
    let again = first.signing.spend(request.clone()).await.unwrap_err();
    assert_eq!(again, SigningRefusal::Repeated);
    first.tree.stop().await;
    first.store.close().await.unwrap();

    let second = house(folder.path(), 2, 7, SigningConfig::default()).await;
    assert!(
        mint(&second, &session).await.is_none(),
        "its key outlived the restart"
    );
    let again = second.signing.spend(request).await.unwrap_err();
    assert_eq!(again.code(), "SIGNATURE_STALE");
    let created = next_second(&second.clock).await;
    let fresh = claim(&key, &key_id, "another-nonce-0123456789", created);
    second.signing.spend(fresh).await.unwrap();
    second.tree.stop().await;
}

#[tokio::test]
async fn a_key_ends_with_the_credential_that_it_was_minted_under() {
    let folder = tempfile::tempdir().unwrap();
    let house = house(folder.path(), 1, 7, SigningConfig::default()).await;
    let session = device(&house).await;
    let Minted { key_id, key } = mint(&house, &session).await.unwrap();
    let created = next_second(&house.clock).await;
    let id = session.device().unwrap();
    house
        .pairing
        .rotate(&operator(), id, Role::Operator, None)
        .await
        .unwrap();
    // By the generation at once, and by the news the key itself goes.
    let refused = house
        .signing
        .spend(claim(&key, &key_id, NONCE, created))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), "SIGNATURE_INVALID");
    for _ in 0..600 {
        if house
            .store
            .list_all("signing.key")
            .await
            .unwrap()
            .is_empty()
        {
            house.tree.stop().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the sealed key of an ended credential stays");
}

#[tokio::test]
async fn a_full_store_of_nonces_refuses_and_other_keys_and_wrong_signatures_take_no_place() {
    let folder = tempfile::tempdir().unwrap();
    let config = SigningConfig {
        nonces_per_key: 2,
        ..SigningConfig::default()
    };
    let house = house(folder.path(), 1, 7, config).await;
    let session = device(&house).await;
    let Minted { key_id, key } = mint(&house, &session).await.unwrap();
    let created = next_second(&house.clock).await;
    let wrong = SigningKey::from_random(zeroize::Zeroizing::new([9; 32]));
    for n in 0..20 {
        let nonce = format!("wrong-nonce-012345678{n:02}");
        let refused = house
            .signing
            .spend(claim(&wrong, &key_id, &nonce, created))
            .await;
        assert_eq!(refused.unwrap_err().code(), "SIGNATURE_INVALID");
        let refused = house
            .signing
            .spend(claim(&key, "nobody", &nonce, created))
            .await;
        assert_eq!(refused.unwrap_err().code(), "SIGNATURE_INVALID");
    }
    for (n, result) in [(1, Ok(())), (2, Ok(())), (3, Err("OVERLOADED"))] {
        let nonce = format!("right-nonce-012345678{n:02}");
        let spent = house
            .signing
            .spend(claim(&key, &key_id, &nonce, created))
            .await;
        assert_eq!(spent.map(drop).map_err(|refusal| refusal.code()), result);
    }
    house.tree.stop().await;
}

/// Every text and number of the database, as a key, signs nothing: nor do the hashes of tokens that it holds.
#[tokio::test]
async fn a_copy_of_the_database_signs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = house(folder.path(), 1, 7, SigningConfig::default()).await;
    let session = device(&first).await;
    let Minted { key_id, key } = mint(&first, &session).await.unwrap();
    let created = next_second(&first.clock).await;
    let mut words = vec![];
    let mut devices = 0;
    for kind in [
        "pairing.device",
        "signing.key",
        "vault.header",
        "vault.epoch",
    ] {
        for row in first.store.list_all(kind).await.unwrap() {
            devices += usize::from(kind == "pairing.device");
            collect(&serde_json::from_slice(&row.payload).unwrap(), &mut words);
        }
    }
    assert!(devices == 1 && words.len() > 20, "{}", words.len());
    let mut tried = 0;
    for word in &words {
        for bytes in guesses(word) {
            let guess = SigningKey::from_random(zeroize::Zeroizing::new(bytes));
            assert_ne!(guess.expose(), key.expose(), "{word}");
            let refused = first
                .signing
                .check(&claim(&guess, &key_id, NONCE, created))
                .await;
            assert_eq!(refused.unwrap_err().code(), "SIGNATURE_INVALID", "{word}");
            tried += 1;
        }
    }
    assert!(tried > 40, "{tried}");
    first
        .signing
        .check(&claim(&key, &key_id, NONCE, created))
        .await
        .unwrap();
    first.tree.stop().await;
    first.store.close().await.unwrap();
    // Nowhere on disk in the clear.
    let text = key.to_text();
    for file in ["state.db", "state.db-wal"] {
        let bytes = std::fs::read(folder.path().join(file)).unwrap_or_default();
        for needle in [&key.expose()[..], text.as_bytes()] {
            assert!(
                !bytes.windows(needle.len()).any(|part| part == needle),
                "{file}"
            );
        }
    }
    // The copy under another machine's identity: sealed, and nothing is taken or minted.
    let copy = house(folder.path(), 2, 8, SigningConfig::default()).await;
    for _ in 0..600 {
        let refused = copy
            .signing
            .check(&claim(&key, &key_id, NONCE, created))
            .await;
        match refused.unwrap_err().code() {
            "UNSEALING" => tokio::time::sleep(Duration::from_millis(50)).await,
            code => {
                assert_eq!(code, "SEALED");
                assert_eq!(
                    copy.signing.mint(&session).await.err().unwrap().code(),
                    "SEALED"
                );
                copy.tree.stop().await;
                return;
            }
        }
    }
    panic!("the vault neither opens nor says that it is sealed");
}

fn collect(value: &serde_json::Value, words: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                words.push(key.clone());
                collect(value, words);
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| collect(value, words)),
        serde_json::Value::String(text) => words.push(text.clone()),
        other => words.push(other.to_string()),
    }
}

/// What somebody would try: the text's own bytes, what it encodes, and their hashes.
fn guesses(word: &str) -> Vec<[u8; 32]> {
    let mut guesses = vec![Sha256::digest(word.as_bytes()).into()];
    let decoded = [
        portcullis_core::encoding::unhex::<32>(word).map(|bytes| bytes.to_vec()),
        portcullis_core::encoding::from_base64url(word),
        Some(word.as_bytes().to_vec()),
    ];
    for bytes in decoded.into_iter().flatten() {
        guesses.push(Sha256::digest(&bytes).into());
        guesses.extend(
            bytes
                .windows(32)
                .map(|part| part.try_into().unwrap())
                .take(64)
                .collect::<Vec<[u8; 32]>>(),
        );
    }
    guesses
}
