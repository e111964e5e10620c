//! Connections: each dies alone, however it dies; the rooms and the other sockets do not notice.

use serde_json::json;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::support::gateway::Gateway;
use crate::support::ws::{self, Came, Client};

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_live_sockets_one_that_dies_takes_no_other_with_it() {
    use futures_util::SinkExt as _;
    let gateway = Gateway::start();
    let mut clients: Vec<Client> = vec![];
    for _ in 0..20 {
        clients.push(ws::admin(&gateway).await);
    }
    // One goes without a word, with requests under way and answers unread.
    let mut killed = clients.swap_remove(7);
    for _ in 0..30 {
        killed.ask("audit.tail", json!({ "limit": 100 })).await;
    }
    drop(killed);
    // One talks nonsense.
    let mut rude = clients.swap_remove(3);
    let control = Message::Ping(Bytes::from(vec![0; 4_000]));
    let _ = rude.ws.send(control).await;
    assert!(!matches!(rude.next().await, Came::Frame(_)));

    for client in &mut clients {
        client.get("health", json!({})).await;
        client.get("audit.tail", json!({ "limit": 1 })).await;
    }
    let client = &mut clients[0];
    let unknown = client.refused("no.such.method", json!({})).await;
    assert_eq!(unknown["details"]["code"], "UNKNOWN_METHOD", "{unknown}");
    let run = json!({ "argv": ["true"], "target": "sandbox", "idempotencyKey": "k" });
    let nobodys = client.refused("exec.run", run).await;
    assert_eq!(nobodys["details"]["code"], "AGENT_REQUIRED", "{nobodys}");
    let status = gateway.json(&["status"]);
    for room in status["portcullis"]["rooms"].as_array().unwrap() {
        assert_eq!(room["restarts"], 0, "{room}");
    }
}
