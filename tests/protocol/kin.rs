//! Who asked answers neither himself nor by a device that he has let in.

use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin, hex, join, random};

const ALL: [&str; 4] = [
    "operator.admin",
    "operator.act_as",
    "operator.approvals",
    "operator.read",
];
const ANSWERS: [&str; 2] = ["operator.approvals", "operator.read"];

/// Asks to be let in, and returns the question.
async fn knocks(gateway: &Gateway, device: &Device, scopes: &[&str]) -> String {
    let connect = Connect::token().device(device).scopes(scopes);
    let (error, _) = Client::dial(gateway).await.denied(&connect).await;
    error["details"]["requestId"].as_str().unwrap().to_owned()
}

async fn comes(gateway: &Gateway, device: &Device, scopes: &[&str]) -> Client {
    let connect = Connect::token().device(device).scopes(scopes);
    join(gateway, &connect).await.0
}

/// Let in by the machine's own operator.
async fn known(gateway: &Gateway, device: &Device, scopes: &[&str]) -> Client {
    let request = knocks(gateway, device, scopes).await;
    gateway.json(&["devices", "approve", &request]);
    comes(gateway, device, scopes).await
}

/// By a setup code of this one.
async fn coded(gateway: &Gateway, by: &mut Client, device: &Device, scopes: &[&str]) -> Client {
    let gives = json!({ "role": "operator", "scopes": scopes });
    let made = by.get("device.pair.setupCode", gives).await;
    let secret = super::setup_codes::read(&made).1;
    let connect = Connect::bare().auth(json!({ "bootstrapToken": secret }));
    join(gateway, &connect.device(device).scopes(scopes))
        .await
        .0
}

async fn asks(client: &mut Client) -> Value {
    let key = hex(&random::<8>());
    let run = json!({ "agent": "demo", "target": "host", "argv": ["id"], "idempotencyKey": key });
    let id = client.ask("exec.run", run).await;
    client.answer(&id).await["payload"]["approvalId"].clone()
}

async fn refused(client: &mut Client, id: &Value, word: &str) {
    let answer = json!({ "id": id, "decision": word });
    let error = client.refused("exec.approval.resolve", answer).await;
    assert_eq!(error["details"]["code"], "APPROVAL_SELF", "{error}");
}

async fn allows(client: &mut Client, id: &Value) {
    let answer = json!({ "id": id, "decision": "deny" });
    client.get("exec.approval.resolve", answer).await;
}

/// The bug: a device answered its own question through another that it let in, by a setup code or by its word.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_does_not_answer_itself_through_one_that_it_has_let_in() {
    let gateway = Gateway::with(&[("gateway.local.local_trust", "false")]);
    let (first, coded_by, approved, chained) =
        (Device::new(), Device::new(), Device::new(), Device::new());
    let other = Device::new();
    let mut others = known(&gateway, &other, &ANSWERS).await;
    let mut own = known(&gateway, &first, &ALL).await;

    // Before the question is asked, and after.
    let mut by_code = coded(&gateway, &mut own, &coded_by, &ALL).await;
    let id = asks(&mut own).await;
    refused(&mut by_code, &id, "allow-once").await;
    refused(&mut by_code, &id, "allow-always").await;
    let request = knocks(&gateway, &approved, &ANSWERS).await;
    let mut same = comes(&gateway, &first, &ALL).await;
    same.get("device.pair.approve", json!({ "requestId": request }))
        .await;
    let mut by_word = comes(&gateway, &approved, &ANSWERS).await;
    refused(&mut by_word, &id, "allow-once").await;
    // Through another, and also when that one is gone.
    let mut at_the_end = coded(&gateway, &mut by_code, &chained, &ANSWERS).await;
    gateway.json(&["devices", "remove", &coded_by.id()]);
    let id = asks(&mut own).await;
    refused(&mut at_the_end, &id, "allow-once").await;
    // What others ask they may answer, and others may answer what it asks.
    allows(&mut others, &id).await;
    let mut console = admin(&gateway).await;
    let id = asks(&mut console).await;
    allows(&mut by_word, &id).await;
    let id = asks(&mut own).await;
    allows(&mut console, &id).await;
    // A restart forgets none of it.
    let mut gateway = gateway;
    gateway.keep_port();
    assert_eq!(gateway.stop(), 0);
    gateway.launch();
    let mut own = comes(&gateway, &first, &ALL).await;
    let mut by_word = comes(&gateway, &approved, &ANSWERS).await;
    let id = asks(&mut own).await;
    refused(&mut by_word, &id, "allow-once").await;
}

/// The bug: a device that came when the question was there already answered it.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_paired_after_a_devices_question_does_not_answer_it() {
    let gateway = Gateway::with(&[("gateway.local.local_trust", "false")]);
    let (first, late) = (Device::new(), Device::new());
    let mut own = known(&gateway, &first, &ALL).await;
    let id = asks(&mut own).await;
    let mut answers = known(&gateway, &late, &ANSWERS).await;
    refused(&mut answers, &id, "allow-once").await;
    let id = asks(&mut own).await;
    allows(&mut answers, &id).await;
    // What the console asks, and so an agent by it, waits for whoever comes.
    let mut console = admin(&gateway).await;
    let id = asks(&mut console).await;
    let mut later = known(&gateway, &Device::new(), &ANSWERS).await;
    allows(&mut later, &id).await;
}
