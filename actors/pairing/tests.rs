//! The room with the real audit log and the real store.

use super::*;
use crate::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring};
use crate::clock::Clock;
use crate::store::{Op, Store};
use crate::supervision::{Feed, FeedItem, FeedReader, Intensity, Tree, TreeBuilder};
use portcullis_core::audit::{BootId, Query};
use portcullis_core::auth::{Door, Principal, Proof, Role, Scope, ScopeSet};
use portcullis_core::device::DeviceKey;
use portcullis_core::identity::Identity;
use portcullis_core::ids::DeviceId;
use portcullis_core::token::TokenHash;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

struct House {
    tree: Tree,
    pairing: PairingHandle,
    audit: AuditHandle,
    store: Store,
}

async fn house(folder: &Path, boot: u8) -> House {
    house_with(folder, boot, Clock::system(), PairingConfig::default()).await
}

async fn house_with(folder: &Path, boot: u8, clock: Clock, config: PairingConfig) -> House {
    let store = Store::open(&folder.join("state.db")).unwrap();
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
    let wiring = PairingWiring {
        config,
        store: store.clone(),
        audit: audit.clone(),
        clock,
        news: Feed::new(),
    };
    let pairing = PairingHandle::add(&mut tree, wiring);
    House {
        tree: tree.start().await.unwrap(),
        pairing,
        audit,
        store,
    }
}

impl House {
    async fn end(self) {
        self.tree.stop().await;
        self.store.close().await.unwrap();
    }

    async fn let_in(&self, facts: ConnectFacts) -> (Option<String>, u64) {
        match self.pairing.decide(facts).await.unwrap() {
            Verdict::Paired {
                token, generation, ..
            } => (
                token.map(|issued| issued.token.expose().to_owned()),
                generation,
            ),
            Verdict::Pending(needed) => panic!("pending: {:?}", needed.reason),
            Verdict::TokenRefused(refusal) => panic!("{refusal:?}"),
        }
    }

    async fn request(&self, facts: ConnectFacts) -> String {
        match self.pairing.decide(facts).await.unwrap() {
            Verdict::Pending(needed) => needed.request_id,
            _ => panic!("not pending"),
        }
    }
}

/// A real key: rows of a device whose id is not its key's are not believed.
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

fn operator() -> Principal {
    Principal {
        proof: Proof::PeerUid(1000),
        door: Door::Control,
        role: Role::Operator,
        scopes: [Scope::Admin].into_iter().collect(),
        agent: None,
        generation: 0,
        secret: None,
    }
}

async fn next(news: &mut FeedReader<News>) -> News {
    match news.next().await {
        FeedItem::Event(event) => event.event.clone(),
        _ => panic!("no news"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_waits_is_approved_and_stays_paired_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let house_1 = house(folder.path(), 1).await;
    let mut news = house_1.pairing.news();
    let request = house_1.request(facts(1)).await;
    assert!(
        matches!(next(&mut news).await, News::Requested(pending) if pending.request_id == request)
    );
    house_1.end().await;

    // What waits outlives the process, and so does everything after it.
    let house_2 = house(folder.path(), 2).await;
    assert_eq!(house_2.request(facts(1)).await, request);
    let result = house_2
        .pairing
        .approve(&operator(), &request, false)
        .await
        .unwrap();
    assert_eq!(result["requestId"], request.as_str());
    assert_eq!(result["device"]["deviceId"], facts(1).device_id.as_str());
    let again = house_2.pairing.approve(&operator(), &request, false).await;
    assert_eq!(
        again.map_err(|error| error.to_string()),
        Err("unknown requestId".into())
    );
    let (token, generation) = house_2.let_in(facts(1)).await;
    let token = token.unwrap();
    assert!(generation > 0);
    house_2.end().await;

    let house_3 = house(folder.path(), 3).await;
    let by_token = ConnectFacts {
        authenticated: false,
        device_token: Some(TokenHash::of(&token)),
        ..facts(1)
    };
    assert_eq!(house_3.let_in(by_token).await, (None, generation));
    let list = house_3
        .pairing
        .list(&operator(), BTreeSet::from([facts(1).device_id]))
        .await
        .unwrap();
    assert_eq!(list["paired"][0]["connected"], true);
    assert!(!list.to_string().contains(&token));
    // Each privileged change has its intent and its outcome.
    let found = house_3
        .audit
        .query(Query {
            action: Some("pairing.".into()),
            ..Query::default()
        })
        .await
        .unwrap();
    let actions = format!("{found:?}");
    for action in ["pairing.request", "pairing.approve", "pairing.token_issue"] {
        assert!(actions.contains(action), "{action}");
    }
    assert!(!actions.contains(&token));
    house_3.end().await;
    let files = std::fs::read(folder.path().join("state.db")).unwrap();
    assert!(
        !files
            .windows(token.len())
            .any(|window| window == token.as_bytes())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_is_told_ends_the_generation_and_outlives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let house_1 = house(folder.path(), 1).await;
    let local = ConnectFacts {
        local_operator: true,
        ..facts(1)
    };
    let (token, generation) = house_1.let_in(local.clone()).await;
    let device = local.device_id.clone();
    assert_eq!(
        house_1
            .pairing
            .current_generation(&device, Role::Operator)
            .await,
        Ok(Some(generation))
    );
    let mut news = house_1.pairing.news();
    let result = house_1
        .pairing
        .revoke(&operator(), &device, Role::Operator)
        .await
        .unwrap();
    assert_eq!(result["role"], "operator");
    let News::Invalidated {
        device_id,
        why,
        generation: after,
        ..
    } = next(&mut news).await
    else {
        panic!("no close")
    };
    assert_eq!(
        (&device_id, why.close_reason()),
        (&device, "client invalidated: device-token-revoked")
    );
    assert!(after > Some(generation));
    assert_eq!(
        house_1
            .pairing
            .current_generation(&device, Role::Operator)
            .await,
        Ok(None)
    );
    house_1.end().await;

    let house_2 = house(folder.path(), 2).await;
    let by_token = ConnectFacts {
        authenticated: false,
        device_token: token.as_deref().map(TokenHash::of),
        ..local.clone()
    };
    assert!(matches!(
        house_2.pairing.decide(by_token).await,
        Ok(Verdict::TokenRefused(TokenRefusal::TokenRevoked))
    ));
    // Local trust does not bring it back, a person does.
    let request = house_2.request(local.clone()).await;
    house_2
        .pairing
        .approve(&operator(), &request, false)
        .await
        .unwrap();
    assert!(house_2.let_in(local).await.0.is_some());
    house_2.end().await;
}

/// The wall clock stands still, as if set back again and again; the time to live runs out all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_runs_out_under_a_clock_that_is_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let still = Clock::system().now();
    let config = PairingConfig {
        pending_ttl_seconds: 1,
        ..PairingConfig::default()
    };
    let house = house_with(folder.path(), 1, Clock::of(move || still), config).await;
    let request = house.request(facts(1)).await;
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    let late = house.pairing.approve(&operator(), &request, false).await;
    assert_eq!(late.map_err(|error| error.code()), Err("REQUEST_NOT_FOUND"));
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_answers_as_the_wire_says() {
    let folder = tempfile::tempdir().unwrap();
    let house = house(folder.path(), 1).await;
    let by = operator();
    let device = facts(1).device_id;
    house
        .let_in(ConnectFacts {
            local_operator: true,
            ..facts(1)
        })
        .await;
    assert_eq!(
        house.pairing.rename(&by, &device, "desk").await.unwrap()["label"],
        "desk"
    );
    let code =
        |result: Result<serde_json::Value, PairingRefusal>| result.map_err(|error| error.code());
    assert_eq!(
        code(house.pairing.rename(&by, &device, "").await),
        Err("INVALID_PARAMS")
    );
    let rotated = house
        .pairing
        .rotate(&by, &device, Role::Operator, None)
        .await
        .unwrap();
    assert_eq!(
        (&rotated["tokenDelivery"], rotated.get("token")),
        (&"withheld-cross-device".into(), None)
    );
    let lives = house.pairing.lives(&device).await.unwrap().unwrap();
    let mut own = Principal {
        proof: Proof::DeviceToken(device.clone()),
        generation: lives - 1,
        scopes: [Scope::Read].into_iter().collect::<ScopeSet>(),
        ..operator()
    };
    // A session of an earlier generation changes nothing: the log does not take its intent.
    let late = house
        .pairing
        .rotate(&own, &device, Role::Operator, None)
        .await;
    assert_eq!(code(late), Err("SESSION_ENDED"));
    own.generation = lives;
    let rotated = house
        .pairing
        .rotate(&own, &device, Role::Operator, None)
        .await
        .unwrap();
    assert_eq!(rotated["tokenDelivery"], "in-band");
    let by_token = ConnectFacts {
        authenticated: false,
        device_token: rotated["token"].as_str().map(TokenHash::of),
        ..facts(1)
    };
    house.let_in(by_token).await;
    // Of another it sees and changes nothing.
    let request = house.request(facts(2)).await;
    assert_eq!(
        house.pairing.list(&own, BTreeSet::new()).await.unwrap()["pending"],
        serde_json::json!([])
    );
    assert_eq!(house.pairing.show(&own, &request).await, Ok(None));
    assert_eq!(
        code(house.pairing.approve(&own, &request, false).await),
        Err("REQUEST_NOT_FOUND")
    );
    assert_eq!(
        code(house.pairing.reject(&own, &request).await),
        Err("REQUEST_NOT_FOUND")
    );
    assert_eq!(
        house.pairing.show(&by, &request).await.unwrap().unwrap()["requestId"],
        request.as_str()
    );
    assert_eq!(
        house.pairing.reject(&by, &request).await.unwrap()["deviceId"],
        facts(2).device_id.as_str()
    );
    assert_eq!(
        house.pairing.remove(&by, &device).await.unwrap()["deviceId"],
        device.as_str()
    );
    assert_eq!(
        code(house.pairing.remove(&by, &device).await),
        Err("DEVICE_NOT_FOUND")
    );
    let empty = serde_json::json!({ "pending": [], "paired": [] });
    assert_eq!(house.pairing.list(&by, BTreeSet::new()).await, Ok(empty));
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_log_does_not_know_is_not_believed_and_pairs_anew() {
    let folder = tempfile::tempdir().unwrap();
    let house_1 = house(folder.path(), 1).await;
    let local = |seed| ConnectFacts {
        local_operator: true,
        ..facts(seed)
    };
    for seed in [1, 2, 3] {
        house_1.let_in(local(seed)).await;
    }
    let row = |seed| {
        let (store, id) = (house_1.store.clone(), facts(seed).device_id.to_string());
        async move { store.get("pairing.device", &id).await.unwrap().unwrap() }
    };
    let (one, two) = (row(1).await, row(2).await);
    // A hand in the database: an intent of the future, and one device's row under another's id.
    let forged = vec![
        Op::compare_and_set(
            "pairing.device",
            &one.id,
            1_000_000,
            one.rev,
            one.payload.clone(),
        ),
        Op::compare_and_set("pairing.device", &two.id, 1, two.rev, one.payload.clone()),
    ];
    house_1.store.commit(forged).await.unwrap();
    house_1.end().await;
    let house_2 = house(folder.path(), 2).await;
    let paired = house_2
        .pairing
        .list(&operator(), BTreeSet::new())
        .await
        .unwrap()["paired"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(paired, 1);
    assert!(house_2.let_in(local(1)).await.0.is_some());
    house_2.end().await;
    let house_3 = house(folder.path(), 3).await;
    let paired = house_3
        .pairing
        .list(&operator(), BTreeSet::new())
        .await
        .unwrap()["paired"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(paired, 2);
    house_3.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_surface_waits_for_a_second_word_and_both_are_on_record_and_on_the_wire() {
    let folder = tempfile::tempdir().unwrap();
    let house_1 = house(folder.path(), 1).await;
    let node_facts = ConnectFacts {
        role: Role::Node,
        asked: ScopeSet::empty(),
        local_operator: true,
        ..facts(1)
    };
    let (_, generation) = house_1.let_in(node_facts.clone()).await;
    let node = Principal {
        proof: Proof::SharedTokenAndDevice(node_facts.device_id.clone()),
        door: Door::Tcp,
        role: Role::Node,
        scopes: ScopeSet::empty(),
        agent: None,
        generation,
        secret: None,
    };
    let declared = Declared {
        surface: Surface {
            caps: BTreeSet::from(["system".to_owned()]),
            commands: BTreeSet::from(["system.run".to_owned()]),
            ..Surface::default()
        },
        version: Some("1.2.3".into()),
    };
    let mut news = house_1.pairing.news();
    let effective = house_1
        .pairing
        .declare_surface(&node, declared.clone())
        .await
        .unwrap();
    assert!(effective.surface.is_empty());
    let request = effective.pending.unwrap();
    let (name, payload) = next(&mut news).await.to_wire().unwrap();
    assert_eq!(name, "node.pair.requested");
    assert_eq!(
        (
            &payload["requestId"],
            &payload["nodeId"],
            &payload["version"]
        ),
        (
            &request.as_str().into(),
            &node_facts.device_id.as_str().into(),
            &"1.2.3".into()
        )
    );
    assert_eq!(
        payload["requiredApproveScopes"],
        serde_json::json!(["operator.pairing", "operator.admin"])
    );
    let listed = house_1.pairing.nodes(&operator()).await.unwrap();
    assert_eq!(
        listed,
        serde_json::json!({ "pending": [payload], "paired": [] })
    );
    house_1.end().await;

    let house_2 = house(folder.path(), 2).await;
    let weak = Principal {
        scopes: [Scope::Pairing, Scope::Write].into_iter().collect(),
        ..operator()
    };
    let denied = house_2.pairing.approve_surface(&weak, &request).await;
    assert_eq!(
        denied.map_err(|error| error.to_string()),
        Err("missing scope: operator.admin".into())
    );
    let mut news = house_2.pairing.news();
    let answer = house_2
        .pairing
        .approve_surface(&operator(), &request)
        .await
        .unwrap();
    assert_eq!(
        answer["node"]["commands"],
        serde_json::json!(["system.run"])
    );
    let (name, payload) = next(&mut news).await.to_wire().unwrap();
    assert_eq!(
        (name, &payload["decision"]),
        ("node.pair.resolved", &"approved".into())
    );
    // The generation is the same: no session ends for it.
    let state = house_2
        .pairing
        .surface(&node_facts.device_id)
        .await
        .unwrap();
    assert_eq!(state.generation, Some(generation));
    assert_eq!(state.approved.unwrap().surface, declared.surface);
    let named = house_2
        .pairing
        .rename_node(&operator(), &node_facts.device_id, "bench")
        .await
        .unwrap();
    assert_eq!(named["displayName"], "bench");
    let paired = house_2.pairing.nodes(&operator()).await.unwrap()["paired"].clone();
    assert_eq!(paired[0]["displayName"], "bench");
    let gone = house_2
        .pairing
        .remove_node(&operator(), &node_facts.device_id)
        .await
        .unwrap();
    assert_eq!(gone["nodeId"], node_facts.device_id.as_str());
    let late = house_2.pairing.declare_surface(&node, declared).await;
    assert_eq!(late.map_err(|error| error.code()), Err("DEVICE_NOT_FOUND"));
    let found = house_2
        .audit
        .query(Query {
            action: Some("pairing.".into()),
            ..Query::default()
        })
        .await
        .unwrap();
    let actions = format!("{found:?}");
    for action in [
        "pairing.surface_request",
        "pairing.surface_approve",
        "pairing.rename",
        "pairing.remove",
    ] {
        assert!(actions.contains(action), "{action}");
    }
    house_2.end().await;
}
