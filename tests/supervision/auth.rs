//! Authentication: a connect that breaks it is told to try again, and so is one too many; nobody is let in by mistake.

use std::sync::Arc;

use portcullis_actors::auth::{
    Arrival, AuthConfig, AuthHandle, AuthWiring, Modes, Peer, SharedSecret,
};
use portcullis_actors::supervision::Feed;
use portcullis_core::auth::secret::SharedHash;
use portcullis_core::auth::{Door, Scope};
use portcullis_core::protocol::ConnectParams;
use portcullis_core::seal::Secret;
use portcullis_core::token::TokenHash;
use serde_json::{Value, json};

use super::real::{Ground, Standing, Trip, in_time};

fn arrival(door: Door, more: &[(&str, Value)]) -> Arrival {
    let mut params = json!({
        "minProtocol": 4, "maxProtocol": 4,
        "client": {"id": "test", "version": "1", "platform": "linux", "mode": "test"},
    });
    for (name, value) in more {
        params[*name] = value.clone();
    }
    let params: ConnectParams = serde_json::from_value(params).unwrap();
    Arrival {
        checked: params.check().unwrap(),
        nonce: "nonce".into(),
        door,
        bearer: None,
        peer: Peer {
            ip: None,
            uid: Some(0),
            account: Some(0),
            is_of_a_run: false,
            is_operator: true,
            is_local: true,
            has_origin: false,
            named: None,
        },
    }
}

/// Its signature is looked at with the clock in hand.
fn device() -> (&'static str, Value) {
    let claim =
        json!({"id": "x", "publicKey": "x", "signature": "x", "signedAt": 1, "nonce": "nonce"});
    ("device", claim)
}

async fn house(concurrent: usize) -> (Arc<AuthHandle>, Trip, Standing) {
    let (mut ground, trip) = (Ground::new(), Trip::default());
    let pairing = ground.pairing(&Trip::default());
    let auth = AuthHandle::add(
        &mut ground.tree,
        AuthWiring {
            config: AuthConfig { concurrent },
            modes: Modes::default(),
            bcrypt_cost: 10,
            pepper: Secret::new(vec![1; 32]),
            token: SharedSecret::Given(SharedHash::Random(TokenHash::of(
                "a token that nobody guesses",
            ))),
            store: ground.store.clone(),
            news: Feed::new(),
            proxy_users: Arc::new([]),
            shared_token_scopes: [Scope::Admin].into_iter().collect(),
            local_trust: true,
            local_scopes: [Scope::Admin].into_iter().collect(),
            pairing,
            audit: ground.audit.clone(),
            clock: trip.clock(),
        },
    );
    (Arc::new(auth), trip, ground.start().await)
}

async fn connect(auth: &AuthHandle, arrival: Arrival) -> Result<(), String> {
    let connected = in_time(auth.connect(arrival)).await;
    connected
        .map(|_| ())
        .map_err(|refusal| refusal.error.stable_code().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_that_crashes_authentication_is_told_to_try_again_and_lets_nobody_in() {
    let (auth, trip, house) = house(16).await;
    let token = ("auth", json!({"token": "a token that nobody guesses"}));
    trip.arm();
    let broken = connect(&auth, arrival(Door::Tcp, &[device(), token.clone()])).await;
    assert_eq!(broken, Err("ROOM_DOWN".into()));
    house.recovered("auth", 1).await;
    assert_eq!(connect(&auth, arrival(Door::Tcp, &[token])).await, Ok(()));
    assert_eq!(connect(&auth, arrival(Door::Control, &[])).await, Ok(()));
    let guess = ("auth", json!({"token": "guess"}));
    let wrong = connect(&auth, arrival(Door::Tcp, &[guess])).await;
    assert_eq!(wrong, Err("AUTH_TOKEN_MISMATCH".into()));
    house.recovered("auth", 1).await;
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connects_than_are_decided_at_once_are_refused_and_their_places_come_back() {
    let (auth, _, house) = house(4).await;
    let asking: Vec<_> = (0..500)
        .map(|_| {
            let auth = auth.clone();
            tokio::spawn(async move { connect(&auth, arrival(Door::Control, &[])).await })
        })
        .collect();
    let (mut served, mut refused) = (0, 0);
    for ask in asking {
        match ask.await.unwrap() {
            Ok(()) => served += 1,
            Err(code) => {
                assert_eq!(code, "OVERLOADED");
                refused += 1;
            }
        }
    }
    assert!(served >= 4 && served + refused == 500, "{served} {refused}");
    house.recovered("auth", 0).await;
    assert_eq!(connect(&auth, arrival(Door::Control, &[])).await, Ok(()));
    house.end().await;
}
