//! Our own node host: its room crashes under a run and on an idle link. What it ran ends with it and is told as unknown,
//! nothing runs twice, and the next life attaches by itself.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portcullis::cli::{Global, NodeRun};
use portcullis::node::{Planted, plant};
use portcullis_actors::supervision::{PanicAt, RoomState, Tree};
use serde_json::{Value, json};

use super::support::eventually;
use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, admin};

/// A node host in this process, whose rooms a test can reach, of a gateway in another.
async fn node_host(gateway: &Gateway, folder: &Path) -> Tree {
    let token = folder.join("token");
    let mut options = std::fs::File::options();
    let private = options.write(true).create_new(true).mode(0o600);
    writeln!(private.open(&token).unwrap(), "{TOKEN}").unwrap();
    let global = Global {
        state: Some(gateway.state()),
        socket: None,
        identity: Some(folder.join("identity")),
        url: Some(format!("ws://127.0.0.1:{}", gateway.port())),
        pin: None,
        gateway_user: None,
        token_file: Some(token),
        client_keys: Some(folder.join("keys")),
        json: false,
    };
    let args = NodeRun {
        name: Some("far".to_owned()),
        user: None,
    };
    let on_fatal = Arc::new(|room: &'static str, why: &str| panic!("{room}: {why}"));
    let Planted { tree, .. } = plant(&global, &args, on_fatal).await.unwrap();
    tree.start().await.unwrap()
}

/// Waits until its room serves in the life after so many crashes, and the gateway has it.
async fn attaches(asks: &mut Client, tree: &Tree, crashes: u64) {
    eventually("its room serves", || {
        let rooms = tree.window().look().rooms;
        let room = rooms.iter().find(|room| room.name == "node_host").unwrap();
        room.state == RoomState::Up && room.restarts == crashes
    })
    .await;
    for _ in 0..1_200 {
        let list = asks.get("node.list", json!({})).await;
        if list["nodes"][0]["connected"] == true {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never attaches again");
}

fn runs(mark: &str) -> bool {
    let found = std::process::Command::new("pgrep")
        .args(["-f", &format!("^sleep {mark}")])
        .output()
        .unwrap();
    !found.stdout.is_empty()
}

/// Asks for a run there, has it allowed if it must be, and returns its last answer.
async fn run(asks: &mut Client, decides: &mut Client, params: &Value) -> (String, Value) {
    let frame = asks.ask("exec.run", params.clone()).await;
    let first = asks.answer(&frame).await;
    if first["payload"]["status"] == "approval-pending" {
        let word = json!({ "id": first["payload"]["approvalId"], "decision": "allow-once" });
        decides.get("exec.approval.resolve", word).await;
    }
    (frame, first)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_host_that_crashes_ends_its_run_as_unknown_repeats_none_and_attaches_again() {
    let gateway = Gateway::start();
    let folder = tempfile::tempdir().unwrap();
    let tree = node_host(&gateway, folder.path()).await;
    let mut decides = admin(&gateway).await;
    let mut asks = admin(&gateway).await;
    let id = loop {
        let list = decides.get("node.pair.list", json!({})).await;
        if let Some(pending) = list["pending"].as_array().and_then(|all| all.first()) {
            let request = json!({ "requestId": pending["requestId"] });
            decides.get("node.pair.approve", request).await;
            break pending["nodeId"].as_str().unwrap().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mark = format!("33{:05}", std::process::id() % 100_000);
    let long = json!({
        "agent": "demo", "target": format!("node:{id}"), "idempotencyKey": "k1",
        "argv": ["sh", "-c", format!("sleep {mark} & sleep {mark}; true")],
    });

    // Under a run.
    let (frame, _) = run(&mut asks, &mut decides, &long).await;
    eventually("it runs", || runs(&mark)).await;
    assert!(tree.window().panic("node_host", PanicAt::Now));
    let last = asks.answer(&frame).await;
    assert_eq!(last["payload"]["status"], "unknown", "{last}");
    assert_eq!(last["payload"]["error"]["code"], "RUN_UNKNOWN", "{last}");
    eventually("it runs on without its room", || !runs(&mark)).await;
    attaches(&mut asks, &tree, 1).await;
    // The same key is that run's end, and no second run.
    let (_, again) = run(&mut asks, &mut decides, &long).await;
    assert_ne!(again["payload"]["status"], "approval-pending", "{again}");
    assert!(again.to_string().contains("RUN_UNKNOWN"), "{again}");
    assert!(!runs(&mark), "it runs a second time");
    let record = json!({ "action": "exec.run" });
    let records = asks.get("audit.query", record).await["records"].clone();
    let intents: Vec<&Value> = records
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["record"]["kind"] == "intent")
        .collect();
    assert_eq!(intents.len(), 1, "{records}");
    assert!(
        intents[0]["outcome"].to_string().contains("unknown"),
        "{records}"
    );

    // On an idle link: the next question is answered by the next life.
    assert!(tree.window().panic("node_host", PanicAt::Now));
    attaches(&mut asks, &tree, 2).await;
    let which = json!({
        "nodeId": id, "command": "system.which", "params": { "bins": ["sh"] }, "idempotencyKey": "w1",
    });
    let whole = asks.get("node.invoke", which).await;
    assert!(whole["payload"]["bins"]["sh"].is_string(), "{whole}");
    let short = json!({
        "agent": "demo", "target": format!("node:{id}"), "idempotencyKey": "k2", "argv": ["sh", "-c", "exit 7"],
    });
    let (frame, _) = run(&mut asks, &mut decides, &short).await;
    let last = asks.answer(&frame).await;
    assert_eq!(last["payload"]["exitCode"], 7, "{last}");
    tree.stop().await;
}
