//! Signed requests: a crash loses the nonces, so nothing that was signed before it is taken after it; keys are re-read.

use std::time::Duration;

use portcullis_actors::pairing::{Client, ConnectFacts, Verdict};
use portcullis_actors::signing::{Claim, Minted, SigningHandle, SigningWiring};
use portcullis_core::auth::{Door, Principal, Proof, Role, Scope, ScopeSet};
use portcullis_core::device::DeviceKey;
use portcullis_core::ids::DeviceId;
use portcullis_core::signing::SigningKey;
use portcullis_core::signing::http::content_digest;

use super::real::{Ground, Trip, in_time};

async fn mint(signing: &SigningHandle, session: &Principal) -> Option<Minted> {
    loop {
        match in_time(signing.mint(session)).await {
            Ok(minted) => return minted,
            // scrypt takes what it takes.
            Err(refusal) if refusal.code() == "UNSEALING" => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(refusal) => panic!("{refusal}"),
        }
    }
}

fn claim(key: &SigningKey, key_id: &str, nonce: &str) -> Claim {
    use base64::Engine as _;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let created = since.unwrap().as_secs();
    let params = format!(
        r#"("@method" "@authority" "@path" "@query" "content-digest");created={created};nonce="{nonce}";keyid="{key_id}";tag="portcullis""#
    );
    let digest = content_digest(b"");
    let base = format!(
        "\"@method\": POST\n\"@authority\": localhost\n\"@path\": /rpc/health\n\"@query\": ?\n\"content-digest\": {digest}\n\"@signature-params\": {params}"
    );
    let mac = portcullis_core::signing::mac(key.expose(), &[base.as_bytes()]);
    Claim {
        input: format!("s={params}"),
        signature: format!(
            "s=:{}:",
            base64::engine::general_purpose::STANDARD.encode(mac)
        ),
        method: "POST".into(),
        authority: "localhost".into(),
        tls: false,
        path: "/rpc/health".into(),
        query: String::new(),
        content_digest: digest,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_that_crashes_takes_nothing_from_before_and_keeps_its_keys() {
    let (mut ground, calm, trip) = (Ground::new(), Trip::default(), Trip::default());
    let vault = ground.vault(&calm);
    let pairing = ground.pairing(&calm);
    let wiring = SigningWiring {
        config: portcullis_actors::signing::SigningConfig::default(),
        store: ground.store.clone(),
        audit: ground.audit.clone(),
        vault,
        pairing: pairing.clone(),
        clock: trip.clock(),
    };
    let signing = SigningHandle::add(&mut ground.tree, wiring);
    let house = ground.start().await;

    let key = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
    let device_key = DeviceKey::Ed25519(key.verifying_key());
    let device = DeviceId::new(&device_key.id()).unwrap();
    let scopes: ScopeSet = [Scope::Read].into_iter().collect();
    let facts = ConnectFacts {
        device_id: device.clone(),
        public_key: device_key.to_text(),
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
    let Verdict::Paired { generation, .. } = in_time(pairing.decide(facts)).await.unwrap() else {
        panic!("not paired");
    };
    let session = Principal {
        proof: Proof::SharedTokenAndDevice(device),
        door: Door::Tcp,
        role: Role::Operator,
        scopes,
        agent: None,
        generation,
        secret: None,
    };
    let Minted { key_id, key } = mint(&signing, &session).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let request = claim(&key, &key_id, "before-the-crash-0123456789");
    in_time(signing.spend(request.clone())).await.unwrap();

    trip.arm();
    let broken = in_time(signing.check(&request)).await;
    assert_eq!(broken.unwrap_err().code(), "ROOM_DOWN");
    house.recovered("signing", 1).await;
    assert!(mint(&signing, &session).await.is_none(), "its key is there");
    let again = in_time(signing.spend(request)).await;
    assert_eq!(again.unwrap_err().code(), "SIGNATURE_STALE");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let fresh = claim(&key, &key_id, "after-the-crash-0123456789");
    in_time(signing.spend(fresh)).await.unwrap();
    house.end().await;
}
