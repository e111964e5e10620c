//! What is taken from a device is gone when the answer says so: its sockets, what it asked, answered and granted, what it
//! runs; and no act of it follows in the log.

use std::time::Duration;

use serde_json::{Value, json};

use crate::long::{figure, times};
use crate::support::gateway::Gateway;
use crate::support::ws::{Came, Client, Connect, Device, admin, hex, join, random};

const ALL: &[&str] = &["operator.admin", "operator.approvals", "operator.act_as"];

/// Nobody is trusted for being here.
fn strict() -> Gateway {
    Gateway::with(&[("gateway.local.local_trust", "false")])
}

/// A device with every right, and its token.
async fn paired(gateway: &Gateway, by: &mut Client, device: &Device) -> String {
    let connect = Connect::token().scopes(ALL).device(device);
    let (error, _) = Client::dial(gateway).await.denied(&connect).await;
    let request = json!({ "requestId": error["details"]["requestId"] });
    by.get("device.pair.approve", request).await;
    let (_, hello) = join(gateway, &connect).await;
    hello["auth"]["deviceToken"].as_str().unwrap().to_owned()
}

fn with_token<'a>(device: &'a Device, token: &str) -> Connect<'a> {
    Connect::bare()
        .auth(json!({ "deviceToken": token }))
        .scopes(ALL)
        .device(device)
}

fn which(device: &Device) -> Value {
    json!({ "deviceId": device.id(), "role": "operator" })
}

fn run(target: &str, argv: &[&str]) -> Value {
    json!({"agent": "demo", "target": target, "argv": argv, "idempotencyKey": hex(&random::<8>())})
}

/// Rounds of a revocation against 32 requests in flight on four sockets, and two that connect meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn no_act_of_a_device_follows_its_revocation_and_no_socket_outlives_the_answer() {
    let gateway = strict();
    gateway.vault_is_open();
    let mut operator = admin(&gateway).await;
    let (rounds, mut acts, mut late) = (times(12, 1_000), 0, 0);
    for round in 0..rounds {
        let device = Device::new();
        let token = paired(&gateway, &mut operator, &device).await;
        let connect = with_token(&device, &token);
        let mut sockets = Vec::new();
        for _ in 0..4 {
            sockets.push(join(&gateway, &connect).await.0);
        }
        for n in 0..8 {
            for (at, socket) in sockets.iter_mut().enumerate() {
                let name = format!("R{round}_{at}_{n}");
                match n % 4 {
                    0 => socket.ask(
                        "device.pair.rename",
                        json!({"deviceId": device.id(), "label": name}),
                    ),
                    1 => socket.ask("exec.run", run("sandbox", &["true"])),
                    _ => socket.ask("vault.set", json!({"name": name, "valueBase64": "eA=="})),
                }
                .await;
            }
        }
        // Somewhere between the first and the last of them.
        tokio::time::sleep(Duration::from_micros(u64::from(random::<1>()[0]) * 40)).await;
        let mut newcomers = Vec::new();
        for _ in 0..2 {
            let mut newcomer = Client::dial(&gateway).await;
            let params = connect.params(&newcomer.nonce, newcomer.ts);
            newcomer.ask("connect", params).await;
            newcomers.push(newcomer);
        }
        let answer = operator.get("device.token.revoke", which(&device)).await;
        assert!(answer["revokedAtMs"].is_u64(), "{answer}");
        // After the answer no frame of its is answered, on whatever socket.
        for socket in sockets.iter_mut().chain(&mut newcomers) {
            let id = socket.ask("status", json!({})).await;
            loop {
                match socket.next().await {
                    Came::Frame(frame) => assert_ne!(frame["id"], id.as_str(), "{frame}"),
                    Came::Closed(code, _) => {
                        assert!([4001, 1008].contains(&code), "{code}");
                        break;
                    }
                    Came::Gone => break,
                }
            }
        }
        let of = format!("device:{}", device.id());
        let found = operator
            .get("audit.query", json!({"principal": of, "limit": 1000}))
            .await;
        let ended = operator
            .get(
                "audit.query",
                json!({"action": "pairing.token_revoke", "object": of}),
            )
            .await;
        let revoked = ended["records"][0]["record"]["seq"].as_u64().unwrap();
        for one in found["records"].as_array().unwrap() {
            let (seq, kind) = (
                one["record"]["seq"].as_u64().unwrap(),
                &one["record"]["kind"],
            );
            assert!(seq < revoked, "{one} follows {revoked}");
            acts += u64::from(kind == "intent");
        }
        // Nothing is in the store that the log does not know of.
        let names = operator.get("vault.list", json!({})).await["entries"].clone();
        let prefix = format!("R{round}_");
        let kept: Vec<&Value> = names
            .as_array()
            .unwrap()
            .iter()
            .filter(|entry| entry["name"].as_str().unwrap().starts_with(&prefix))
            .collect();
        let set = found["records"].as_array().unwrap().iter();
        let set = set
            .filter(|one| one["record"]["action"] == "vault.set")
            .count();
        assert!(kept.len() <= set, "{} kept of {set}", kept.len());
        late += 16 - kept.len();
        for entry in kept {
            operator
                .get("vault.remove", json!({"name": entry["name"]}))
                .await;
        }
    }
    // Both sides of the line were met, or nothing was tried.
    assert!(acts > 0 && late > 0, "{acts} before, {late} after");
    figure(&format!(
        "{rounds} revocations against 32 requests in flight: {acts} acts before, 0 after, {late} writes refused"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_rotates_its_own_token_hears_it_before_its_sockets_end() {
    let gateway = strict();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let token = paired(&gateway, &mut operator, &device).await;
    let (mut one, _) = join(&gateway, &with_token(&device, &token)).await;
    let (mut other, _) = join(&gateway, &with_token(&device, &token)).await;
    let rotated = one.get("device.token.rotate", which(&device)).await;
    assert_eq!(rotated["tokenDelivery"], "in-band");
    let reason = "client invalidated: device-token-rotated".to_owned();
    assert_eq!(one.closed().await, (4001, reason.clone()));
    assert_eq!(other.closed().await, (4001, reason));
    Client::dial(&gateway)
        .await
        .denied(&with_token(&device, &token))
        .await;
    let new = rotated["token"].as_str().unwrap();
    let (mut again, _) = join(&gateway, &with_token(&device, new)).await;
    // By another hand the token stays away, and the sockets end all the same.
    let rotated = operator.get("device.token.rotate", which(&device)).await;
    assert_eq!(rotated["tokenDelivery"], "withheld-cross-device");
    assert!(rotated.get("token").is_none(), "{rotated}");
    assert_eq!(again.closed().await.0, 4001);
    // It revokes itself, and hears that too.
    let (mut last, hello) = join(&gateway, &Connect::token().scopes(ALL).device(&device)).await;
    assert!(hello["auth"]["deviceToken"].is_string());
    last.get("device.token.revoke", which(&device)).await;
    assert_eq!(last.closed().await.0, 4001);
}

/// Asks `approval` for a host command, as its requester.
async fn question(client: &mut Client, argv: &[&str]) -> String {
    let params = json!({
        "host": "gateway", "command": argv.join(" "), "commandArgv": argv, "agentId": "demo", "twoPhase": true,
    });
    let answer = client.call("exec.approval.request", params).await;
    assert_eq!(answer["ok"], true, "{answer}");
    answer["payload"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_questions_unused_answers_and_grants_of_the_device_and_of_no_other() {
    let gateway = strict();
    let mut operator = admin(&gateway).await;
    let mut asks = admin(&gateway).await;
    let (device, stays) = (Device::new(), Device::new());
    let token = paired(&gateway, &mut operator, &device).await;
    let other = paired(&gateway, &mut operator, &stays).await;
    let (mut theirs, _) = join(&gateway, &with_token(&device, &token)).await;
    let (mut others, _) = join(&gateway, &with_token(&stays, &other)).await;
    // What it asked; what it allowed and nobody used; what it granted.
    let asked = question(&mut theirs, &["uname", "-a"]).await;
    let allowed = question(&mut asks, &["uname", "-r"]).await;
    let granted = question(&mut asks, &["uname", "-s"]).await;
    let by_other = question(&mut asks, &["uname", "-m"]).await;
    let word = |id: &str, decision| json!({"id": id, "decision": decision});
    for (id, decision) in [(&allowed, "allow-once"), (&granted, "allow-always")] {
        theirs
            .get("exec.approval.resolve", word(id, decision))
            .await;
    }
    let yes = word(&by_other, "allow-always");
    others.get("exec.approval.resolve", yes).await;
    let grants = operator.get("exec.approval.grants.list", json!({})).await;
    assert_eq!(
        grants["grants"].as_array().map_or(0, Vec::len),
        2,
        "{grants}"
    );
    operator.get("device.token.revoke", which(&device)).await;
    let grants = operator.get("exec.approval.grants.list", json!({})).await;
    let left = grants["grants"].as_array().unwrap();
    assert_eq!(left.len(), 1, "{grants}");
    assert!(left[0].to_string().contains("uname -m"), "{grants}");
    for id in [asked, allowed, granted] {
        let shown = operator.call("exec.approval.get", json!({"id": id})).await;
        assert!(
            shown["ok"] == false || shown["payload"]["status"] == "cancelled",
            "{shown}"
        );
    }
    let recorded = gateway.json(&["audit", "query", "--action", "approval.void"]);
    assert!(recorded.to_string().contains(&device.id()), "{recorded}");
}

/// A run of the device's, which says `started` and then takes its time.
async fn started(client: &mut Client, script: &str) -> String {
    let id = client
        .ask("exec.run", run("sandbox", &["sh", "-c", script]))
        .await;
    let first = client.answer(&id).await;
    loop {
        let frame = client.frame().await;
        if frame["event"] == "exec.output" {
            break;
        }
    }
    first["payload"]["runId"].as_str().unwrap().to_owned()
}

async fn outcome(operator: &mut Client, run: &str) -> Value {
    for _ in 0..600 {
        let found = operator
            .get("audit.query", json!({"action": "exec.run", "object": run}))
            .await;
        let outcome = found["records"][0]["outcome"].clone();
        if !outcome.is_null() {
            return outcome;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{run} does not end")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_runs_before_it_answers_unless_they_are_to_be_kept() {
    let gateway = strict();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let token = paired(&gateway, &mut operator, &device).await;
    let (mut theirs, _) = join(&gateway, &with_token(&device, &token)).await;
    let ended = started(&mut theirs, "echo; sleep 600").await;
    operator.get("device.token.revoke", which(&device)).await;
    // Over when the answer is there, not some time later.
    let found = operator
        .get(
            "audit.query",
            json!({"action": "exec.run", "object": ended}),
        )
        .await;
    let end = &found["records"][0]["outcome"];
    assert!(end.to_string().contains("cancelled"), "{found}");

    let device = Device::new();
    let token = paired(&gateway, &mut operator, &device).await;
    let (mut theirs, _) = join(&gateway, &with_token(&device, &token)).await;
    let kept = started(&mut theirs, "echo; sleep 4; exit 7").await;
    let waits = question(&mut theirs, &["uname", "-a"]).await;
    let output = gateway.cli(&[
        "devices",
        "revoke",
        &device.id(),
        "--keep-running",
        "--json",
    ]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(theirs.closed().await.0, 4001);
    let end = outcome(&mut operator, &kept).await;
    assert!(end.to_string().contains("exited"), "{end}");
    let shown = operator
        .call("exec.approval.get", json!({"id": waits}))
        .await;
    assert!(
        shown["ok"] == false || shown["payload"]["status"] == "cancelled",
        "{shown}"
    );
}

/// The bug: what a device had spared once, by a change of its own token, outlived its revocation, its removal, and a change of
/// the shared token.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_spared_once_ends_with_the_next_ending_of_its_device_or_of_its_secret() {
    let mut gateway = Gateway::prepared(&[("gateway.local.local_trust", "false")]);
    gateway.unset("PORTCULLIS_GATEWAY_TOKEN");
    gateway.launch();
    let mut operator = admin(&gateway).await;
    let rights = [ALL, &["operator.pairing"]].concat();
    for ending in [
        "device.token.revoke",
        "device.pair.remove",
        "auth.token.rotate",
    ] {
        let shared = operator.get("auth.token.rotate", json!({})).await["token"].clone();
        let device = Device::new();
        let connect = Connect::bare()
            .auth(json!({ "token": shared }))
            .scopes(&rights)
            .device(&device);
        let (error, _) = Client::dial(&gateway).await.denied(&connect).await;
        let request = json!({ "requestId": error["details"]["requestId"] });
        operator.get("device.pair.approve", request).await;
        let mut theirs = Client::dial(&gateway).await;
        theirs.hello(&connect).await;
        let run = started(&mut theirs, "echo; sleep 600").await;
        let mut how = which(&device);
        how["keepRunning"] = json!(true);
        assert_eq!(theirs.call("device.token.rotate", how).await["ok"], true);
        let looks = json!({"action": "exec.run", "object": run});
        let found = operator.get("audit.query", looks.clone()).await;
        assert!(
            found["records"][0]["outcome"].is_null(),
            "it was spared: {found}"
        );
        let params = match ending {
            "device.token.revoke" => which(&device),
            "device.pair.remove" => json!({ "deviceId": device.id() }),
            _ => json!({}),
        };
        operator.get(ending, params).await;
        let found = operator.get("audit.query", looks).await;
        let end = &found["records"][0]["outcome"];
        assert!(end.to_string().contains("cancelled"), "{ending}: {found}");
    }
}
