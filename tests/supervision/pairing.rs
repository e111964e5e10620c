//! Pairing: what waits for a person and who is paired outlives every crash of the room.

use std::collections::BTreeSet;

use portcullis_actors::pairing::{Client, ConnectFacts, PairingHandle, PairingRefusal, Verdict};
use portcullis_core::auth::{Role, Scope};
use portcullis_core::device::DeviceKey;
use portcullis_core::ids::DeviceId;

use super::real::{Ground, Trip, in_time, operator};

fn facts(seed: u8) -> ConnectFacts {
    let signing = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let key = DeviceKey::Ed25519(signing.verifying_key());
    ConnectFacts {
        device_id: DeviceId::new(&key.id()).unwrap(),
        public_key: key.to_text(),
        client: Client {
            id: "gateway-client".into(),
            mode: "backend".into(),
            ..Client::default()
        },
        role: Role::Operator,
        asked: [Scope::Read].into_iter().collect(),
        authenticated: true,
        secret: None,
        device_token: None,
        local_operator: false,
        local_scopes: [Scope::Read].into_iter().collect(),
    }
}

async fn request(pairing: &PairingHandle, seed: u8) -> String {
    match in_time(pairing.decide(facts(seed))).await.unwrap() {
        Verdict::Pending(needed) => needed.request_id,
        _ => panic!("not pending"),
    }
}

async fn pending(pairing: &PairingHandle) -> usize {
    let list = pairing.list(&operator(), BTreeSet::new()).await.unwrap();
    list["pending"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_devices_outlive_a_pairing_that_crashes_while_it_decides() {
    let (mut ground, trip) = (Ground::new(), Trip::default());
    let pairing = ground.pairing(&trip);
    let house = ground.start().await;
    let first = request(&pairing, 1).await;

    trip.arm();
    let broken = in_time(pairing.decide(facts(2))).await.map(|_| ());
    assert_eq!(broken, Err(PairingRefusal::Down { may_have_run: true }));
    house.recovered("pairing", 1).await;
    assert_eq!(pending(&pairing).await, 1, "the broken one left nothing");
    assert_eq!(request(&pairing, 1).await, first);

    house.touch("pairing.pending", &first).await;
    let refused = in_time(pairing.approve(&operator(), &first, false)).await;
    assert_eq!(refused.unwrap_err().code(), "ROOM_DOWN");
    house.recovered("pairing", 2).await;
    in_time(pairing.approve(&operator(), &first, false))
        .await
        .unwrap();
    assert_eq!(pending(&pairing).await, 0);
    let again = in_time(pairing.approve(&operator(), &first, false)).await;
    assert_eq!(again.unwrap_err().code(), "REQUEST_NOT_FOUND");
    assert!(matches!(
        in_time(pairing.decide(facts(1))).await.unwrap(),
        Verdict::Paired { .. }
    ));
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_devices_is_answered_whole_and_leaves_the_gate_empty() {
    let (mut ground, trip) = (Ground::new(), Trip::default());
    let pairing = ground.pairing(&trip);
    let house = ground.start().await;
    let id = request(&pairing, 1).await;
    let asking: Vec<_> = (0..2_000)
        .map(|_| {
            let pairing = pairing.clone();
            tokio::spawn(async move { pairing.decide(facts(1)).await })
        })
        .collect();
    let (mut same, mut refused) = (0, 0);
    for ask in asking {
        match in_time(ask).await.unwrap() {
            Ok(Verdict::Pending(needed)) if needed.request_id == id => same += 1,
            Err(PairingRefusal::Overloaded) => refused += 1,
            Ok(_) => panic!("another request"),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(same + refused, 2_000);
    house.recovered("pairing", 0).await;
    house.end().await;
}
