//! Nodes: who waits for a node hears of a crash, and a connection that attaches again is served.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_actors::nodes::{NodesConfig, NodesError, NodesHandle, NodesWiring};
use portcullis_core::ids::DeviceId;
use portcullis_core::nodes::{Connected, Declared, NodeResult, Refusal};
use portcullis_core::time::Millis;

use super::real::{Ground, Trip, in_time};

fn node(n: u8, conn: &str) -> Connected {
    Connected {
        node: DeviceId::new(&format!("{n:02x}").repeat(32)).unwrap(),
        conn: conn.to_owned(),
        declared: Declared {
            display_name: None,
            version: "1".into(),
            client_id: "node-host".into(),
            client_mode: "node".into(),
            platform: Some("linux".into()),
            device_family: None,
            caps: BTreeSet::new(),
            commands: ["system.which".to_owned()].into(),
            permissions: BTreeMap::new(),
            path_env: None,
        },
        generation: 7,
        since: Millis(0),
        stats: None,
        worker_host: None,
    }
}

fn nodes(ground: &mut Ground, trip: &Trip) -> NodesHandle {
    let pairing = ground.pairing(&Trip::default());
    NodesHandle::add(
        &mut ground.tree,
        NodesWiring {
            config: NodesConfig::default(),
            pairing,
            audit: ground.audit.clone(),
            clock: trip.clock(),
        },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_that_crashes_while_a_node_comes_in_ends_every_line_and_takes_them_up_again() {
    let (mut ground, trip) = (Ground::new(), Trip::default());
    let nodes = nodes(&mut ground, &trip);
    let house = ground.start().await;
    let mut first = in_time(nodes.attach(node(1, "c1"))).await.unwrap();

    trip.arm();
    let broken = in_time(nodes.attach(node(2, "c2"))).await.map(drop);
    assert_eq!(broken, Err(NodesError::Down { may_have_run: true }));
    house.recovered("nodes", 1).await;
    assert_eq!(in_time(first.recv()).await, None, "its line ended");
    assert!(nodes.list().await.unwrap().is_empty());

    let again = in_time(nodes.attach(node(1, "c1"))).await.unwrap();
    assert_eq!(nodes.list().await.unwrap().len(), 1);
    // An answer to a question of the last life is late.
    let late = NodeResult {
        id: "q".into(),
        node_id: node(1, "c1").node.to_string(),
        outcome: Ok(None),
    };
    let taken = nodes.result(&node(1, "c1").node, "c1", late).await;
    assert_eq!(taken, Ok(false));
    drop(again);
    let gone = async {
        while !nodes.list().await.unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    in_time(gone).await;
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_nodes_is_answered_whole_and_leaves_the_gate_empty() {
    let (mut ground, trip) = (Ground::new(), Trip::default());
    let nodes = nodes(&mut ground, &trip);
    let house = ground.start().await;
    let asking: Vec<_> = (0..2_000_u32)
        .map(|n| {
            let nodes = nodes.clone();
            let node = node((n % 250).try_into().unwrap(), &format!("c{n}"));
            tokio::spawn(async move { nodes.attach(node).await })
        })
        .collect();
    let (mut good, mut refused) = (0, 0);
    for ask in asking {
        match in_time(ask).await.unwrap() {
            Ok(_line) => good += 1,
            Err(NodesError::Overloaded | NodesError::Refused(Refusal::Full)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(good > 0 && good + refused == 2_000, "{good} {refused}");
    house.recovered("nodes", 0).await;
    house.end().await;
}
