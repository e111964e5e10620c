//! Many node hosts that do nothing.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::soak::Sample;
use super::{figure, times};
use crate::e2e::nodes::node;
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Device, admin};

/// Of memory for each that is connected: its socket, its actor, its place in the room and its pairing.
const EACH: u64 = 64 * 1024;
/// For the list of all of them, on a machine that does something else.
const LIST_WITHIN: Duration = Duration::from_secs(10);

/// Reads on, however long nothing comes, so that it answers pings; and the one question that is asked.
async fn serve(mut client: Client, id: String) {
    while let Some(Ok(message)) = client.ws.next().await {
        let Message::Text(text) = message else {
            continue;
        };
        let frame: Value = serde_json::from_str(&text).unwrap();
        if frame["event"] == "node.invoke.request" {
            let result = json!({
                "id": frame["payload"]["id"], "nodeId": id, "ok": true, "payloadJSON": "{\"bins\":{}}",
            });
            client.ask("node.invoke.result", result).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_nodes_cost_little_and_one_of_them_is_asked_and_answers() {
    let gateway = Gateway::start();
    // The derivation of the vault's key takes more than all nodes do, and gives it back.
    gateway.vault_is_open();
    let count = times(40, 1_000);
    let commands = ["system.run", "system.run.prepare", "system.which"];
    // What the first ones cost is what the gateway itself takes for its first work.
    let mut before = None;
    let began = Instant::now();
    for n in 0..count {
        if n == 10 {
            before = Some(Sample::take(gateway.pid(), began).resident);
        }
        let device = Device::new();
        let client = node(&gateway, &device, &commands).await;
        tokio::spawn(serve(client, device.id()));
    }
    let took = began.elapsed();
    let now = Sample::take(gateway.pid(), began).resident;
    let grown = now.saturating_sub(before.unwrap());
    let mut operator = admin(&gateway).await;
    let asked = Instant::now();
    let list = operator.get("node.list", json!({})).await;
    let listed = asked.elapsed();
    let all = list["nodes"].as_array().unwrap();
    let connected = all.iter().filter(|one| one["connected"] == true);
    assert_eq!(connected.count(), count);
    assert!(listed < LIST_WITHIN, "{listed:?}");
    let each = grown / u64::try_from(count - 10).unwrap();
    figure(&format!(
        "{count} idle nodes: {each} bytes of memory each, all in after {took:?}, listed in {listed:?}"
    ));
    // A few are less than the allocator's own steps.
    let is_told = (1..EACH).contains(&each);
    assert!(is_told || count < 200, "{each} bytes each");
    // One that waits for a person is asked once he has said yes.
    let list = operator.get("node.pair.list", json!({})).await;
    let request = &list["pending"][0];
    let id = request["nodeId"].as_str().unwrap();
    let yes = json!({ "requestId": request["requestId"] });
    operator.get("node.pair.approve", yes).await;
    let asked = json!({
        "nodeId": id, "command": "system.which", "params": { "bins": ["sh"] }, "idempotencyKey": "w",
    });
    let answer = operator.get("node.invoke", asked).await;
    assert_eq!(answer["payload"], json!({ "bins": {} }), "{answer}");
}
