//! A node host of another platform: the frames of the peer's own node host (wire.md 11 and 15) as a Mac sends them.

use serde_json::{Value, json};

use super::nodes::{approve, event};
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin};

/// What it declares there.
const DECLARED: &[&str] = &[
    "browser.proxy",
    "fs.listDir",
    "mcp.tools.call.v1",
    "system.execApprovals.get",
    "system.execApprovals.set",
    "system.notify",
    "system.run",
    "system.run.prepare",
    "system.which",
    "terminal.upload",
];

/// Connects and declares, as it does there.
async fn mac(gateway: &Gateway, device: &Device) -> Client {
    let mut client = Client::dial(gateway).await;
    let connect = Connect::token().role("node").device(device);
    let connect = connect.on("macos").of("Mac");
    let mut params = connect.params(&client.nonce, client.ts);
    params["client"]["displayName"] = "a Mac".into();
    params["client"]["instanceId"] = device.id().into();
    params["caps"] = json!(["mcp", "system"]);
    params["commands"] = json!(DECLARED);
    params["pathEnv"] = "/usr/bin:/bin:/usr/sbin:/sbin".into();
    let hello = client.get("connect", params).await;
    assert_eq!(hello["auth"]["role"], "node", "{hello}");
    client
}

/// The document that it keeps, and whether it runs anything by it.
struct Kept {
    document: Value,
    denies: bool,
}

fn hash(document: &Value) -> String {
    portcullis_core::ids::Hash32::of(document.to_string().as_bytes()).to_string()
}

/// Answers as the peer's does, by a policy of its own, and says what it ran.
async fn serve(mut client: Client, id: String, ran: tokio::sync::mpsc::UnboundedSender<Value>) {
    let mut kept = Kept {
        document: json!({ "version": 1, "defaults": {}, "agents": {} }),
        denies: false,
    };
    loop {
        let frame = client.frame().await;
        if frame["event"] != "node.invoke.request" {
            continue;
        }
        let asked = &frame["payload"];
        let params = asked["paramsJSON"].as_str().unwrap_or("null");
        let params: Value = serde_json::from_str(params).unwrap();
        let shown = |document: &Value| json!({ "path": "~/x", "exists": true, "file": document, "hash": hash(document) });
        let said = match asked["command"].as_str().unwrap() {
            "system.execApprovals.get" => Ok(shown(&kept.document)),
            "system.execApprovals.set" if params["baseHash"] != hash(&kept.document).as_str() => {
                Err(("INVALID_REQUEST", "exec approvals changed since last load"))
            }
            "system.execApprovals.set" => {
                kept.document = params["file"].clone();
                kept.denies = kept.document["defaults"]["security"] == "deny";
                Ok(shown(&kept.document))
            }
            "system.run.prepare" => Ok(json!({
                "plan": {
                    "argv": params["command"], "cwd": "/Users/user", "commandText": "/bin/echo hi", "commandPreview": null,
                    "agentId": params["agentId"], "sessionKey": null,
                    "mutableFileOperand": { "argvIndex": 0, "path": "/bin/echo", "sha256": "ab".repeat(32) },
                    "policySnapshot": { "security": "full", "ask": "off" },
                },
                "execPolicy": { "security": "full", "ask": "off" },
                "allowAlwaysCoverage": { "complete": true, "patterns": [] },
            })),
            "system.run" if kept.denies => {
                Err(("SYSTEM_RUN_DENIED", "SYSTEM_RUN_DENIED: security=deny"))
            }
            "system.run" => {
                ran.send(params).unwrap();
                Ok(json!({
                    "exitCode": 0, "timedOut": false, "success": true, "stdout": "hi\n", "stderr": "", "error": null,
                }))
            }
            other => panic!("{other}"),
        };
        let mut result = json!({ "id": asked["id"], "nodeId": id });
        match said {
            Ok(payload) => {
                result["ok"] = true.into();
                result["payloadJSON"] = payload.to_string().into();
            }
            Err((code, message)) => {
                result["ok"] = false.into();
                result["error"] = json!({ "code": code, "message": message });
            }
        }
        client.ask("node.invoke.result", result).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_mac_pairs_keeps_its_own_policy_and_is_relayed_unverified_and_never_for_always()
{
    let gateway = Gateway::start();
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let device = Device::new();
    let mut client = mac(&gateway, &device).await;
    approve(&mut decides, &mut client, &device).await;
    let (tx, mut ran) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(serve(client, device.id(), tx));
    let shown = gateway.json(&["nodes", "show", &device.id()]);
    assert_eq!(shown["platform"], "macos", "{shown}");
    let offered: Vec<&str> = shown["commands"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(
        offered.contains(&"system.run") && !offered.contains(&"terminal.upload"),
        "{shown}"
    );

    // What a person sees is unverified, and no answer is kept.
    let run = |key: &str| json!({ "agent": "demo", "argv": ["/bin/echo", "hi"], "target": format!("node:{}", device.id()), "idempotencyKey": key });
    let frame = asks.ask("exec.run", run("k1")).await;
    let first = asks.answer(&frame).await;
    let id = first["payload"]["approvalId"].as_str().unwrap().to_owned();
    let question = decides.get("exec.approval.get", json!({ "id": id })).await;
    assert_eq!(
        question["request"]["executable"]["verified"], false,
        "{question}"
    );
    assert_eq!(
        question["allowedDecisions"],
        json!(["allow-once", "deny"]),
        "{question}"
    );
    let card = gateway.cli(&["approvals", "show", &id]);
    let card = String::from_utf8(card.stdout).unwrap();
    assert!(card.contains("unverified"), "{card}");
    let always = json!({ "id": id, "decision": "allow-always" });
    decides.refused("exec.approval.resolve", always).await;
    let once = json!({ "id": id, "decision": "allow-once" });
    decides.get("exec.approval.resolve", once).await;
    let output = event(&mut asks, "exec.output").await;
    assert_eq!(output["payload"]["data"], "aGkK", "{output}");
    let last = asks.answer(&frame).await;
    assert_eq!(last["payload"]["exitCode"], 0, "{last}");
    assert_eq!(ran.recv().await.unwrap()["approved"], true);

    // Its document is its own: read and set through it, by the hash that it says, and it is the last gate.
    let of_node = json!({ "nodeId": device.id() });
    let kept = decides.get("exec.approvals.node.get", of_node).await;
    let set = |base: &Value| {
        json!({
            "nodeId": device.id(), "baseHash": base,
            "file": { "version": 1, "defaults": { "security": "deny" }, "agents": {} },
        })
    };
    let error = decides
        .refused("exec.approvals.node.set", set(&json!("00")))
        .await;
    assert!(
        error.to_string().contains("changed since last load"),
        "{error}"
    );
    let closed = decides
        .get("exec.approvals.node.set", set(&kept["hash"]))
        .await;
    assert_eq!(closed["file"]["defaults"]["security"], "deny", "{closed}");
    let frame = asks.ask("exec.run", run("k2")).await;
    let first = asks.answer(&frame).await;
    let once = json!({ "id": first["payload"]["approvalId"], "decision": "allow-once" });
    decides.get("exec.approval.resolve", once).await;
    let last = asks.answer(&frame).await;
    assert_eq!(last["payload"]["status"], "denied", "{last}");
    assert!(last.to_string().contains("security=deny"), "{last}");
    assert!(ran.try_recv().is_err());
}
