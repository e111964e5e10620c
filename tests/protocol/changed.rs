//! What a changed secret opened is over when the answer says so: sockets, questions, unused answers, grants and runs; and
//! no act of it follows in the log.

use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::long::{figure, times};
use crate::support::gateway::Gateway;
use crate::support::ws::{Came, Client, Connect, Device, admin, hex, join, random};

const ALL: &[&str] = &["operator.admin", "operator.approvals", "operator.act_as"];
const FIRST: &str = "the first password of several words";

/// A gateway that made its token itself, so that it may be changed; and that token's holder may do everything here.
fn gateway() -> Gateway {
    let mut gateway = Gateway::prepared(&[
        ("gateway.auth.mode", "token+password"),
        ("gateway.auth.bcrypt_cost", "10"),
        (
            "gateway.auth.shared_token_scopes",
            r#"["operator.admin", "operator.approvals", "operator.act_as"]"#,
        ),
    ]);
    gateway.unset("PORTCULLIS_GATEWAY_TOKEN");
    gateway.launch();
    gateway.vault_is_open();
    gateway
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Token,
    TokenAndDevice,
    Password,
    Agent,
}

/// What is changed, by whom, and what it opens.
struct Secret<'a> {
    kind: Kind,
    text: String,
    device: &'a Device,
}

impl<'a> Secret<'a> {
    async fn new(kind: Kind, device: &'a Device, by: &mut Client) -> Self {
        let text = String::new();
        let mut secret = Self { kind, text, device };
        secret.change(by).await;
        secret
    }

    /// As the command line does it; answers the sequence of the change.
    async fn change(&mut self, by: &mut Client) -> u64 {
        let action = match self.kind {
            Kind::Token | Kind::TokenAndDevice => {
                let made = by.get("auth.token.rotate", json!({})).await;
                made["token"].as_str().unwrap().clone_into(&mut self.text);
                "auth.token.rotate"
            }
            Kind::Agent => {
                let made = by.get("agent.token.mint", json!({"agentId": "demo"})).await;
                made["token"].as_str().unwrap().clone_into(&mut self.text);
                "auth.agent.mint"
            }
            Kind::Password => {
                self.text = format!("{FIRST} {}", hex(&random::<8>()));
                let text = base64::engine::general_purpose::STANDARD.encode(&self.text);
                let new = json!({"name": "ann", "passwordBase64": text});
                by.get("auth.password.set", new).await;
                "auth.password.set"
            }
        };
        seq_of(by, action).await
    }

    fn connect(&self) -> Connect<'a> {
        let token = Connect::bare().auth(json!({ "token": self.text }));
        match self.kind {
            Kind::Token => token.scopes(ALL),
            Kind::TokenAndDevice => token.scopes(ALL).device(self.device),
            Kind::Agent => token.role("agent"),
            Kind::Password => Connect::bare()
                .auth(json!({ "password": self.text, "user": "ann" }))
                .scopes(ALL),
        }
    }

    fn principal(&self) -> String {
        match self.kind {
            Kind::Token => "token".to_owned(),
            Kind::TokenAndDevice => format!("device:{}", self.device.id()),
            Kind::Password => "password:ann".to_owned(),
            Kind::Agent => "agent:demo".to_owned(),
        }
    }
}

/// The newest record of an action.
async fn seq_of(by: &mut Client, action: &str) -> u64 {
    let found = by
        .get("audit.query", json!({"action": action, "limit": 1}))
        .await;
    found["records"][0]["record"]["seq"].as_u64().unwrap()
}

fn run(argv: &[&str]) -> Value {
    json!({"agent": "demo", "target": "sandbox", "argv": argv, "idempotencyKey": hex(&random::<8>())})
}

/// Devices that nobody knows connect under a secret while it is changed. What is recorded of them under the old one is
/// recorded before the change, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn no_device_is_paired_nor_asks_nor_gets_a_key_under_a_secret_that_has_been_changed() {
    const OF_DEVICES: &[&str] = &["pairing.auto_approve", "pairing.request", "signing.mint"];
    let gateway = gateway();
    let mut operator = admin(&gateway).await;
    let owner = Device::new();
    let (mut paired, mut refused) = (0, 0);
    for round in 0..times(6, 60) {
        let kind = [Kind::Token, Kind::Password][round % 2];
        let mut secret = Secret::new(kind, &owner, &mut operator).await;
        let auth = match kind {
            Kind::Password => json!({ "password": secret.text, "user": "ann" }),
            _ => json!({ "token": secret.text }),
        };
        let strangers: Vec<_> = (0..24)
            .map(|n| {
                let (port, auth) = (gateway.port(), auth.clone());
                tokio::spawn(async move {
                    let mut client = Client::dial_port(port).await.ok()?;
                    let device = Device::new();
                    let connect = Connect::bare().auth(auth).device(&device);
                    let connect = match n % 3 {
                        0 => connect.role("node"),
                        // More than local trust gives: it waits for a person.
                        1 => connect.scopes(ALL),
                        _ => connect.scopes(&["operator.read"]),
                    };
                    let mut params = connect.params(&client.nonce, client.ts);
                    params["caps"] = json!(["request-signing-v1"]);
                    client.try_call("connect", params).await
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(
            5 * u64::try_from(round).unwrap() % 40,
        ))
        .await;
        let change = secret.change(&mut operator).await;
        for stranger in strangers {
            match stranger.await.unwrap() {
                Some(answer) if answer["ok"] == true => paired += 1,
                _ => refused += 1,
            }
        }
        for action in OF_DEVICES {
            let late = operator
                .get(
                    "audit.query",
                    json!({"action": action, "sinceSeq": change, "limit": 100}),
                )
                .await;
            let late = late["records"].as_array().unwrap();
            assert!(
                late.is_empty(),
                "{kind:?} changed by record {change}: {late:?}"
            );
        }
    }
    figure(&format!(
        "connects of new devices against a change: {paired} before, {refused} refused, 0 recorded after"
    ));
    assert!(refused > 0);
}

/// After the answer of the change no frame is answered on this socket.
async fn is_over(socket: &mut Client) {
    let id = socket.ask("health", json!({})).await;
    loop {
        match socket.next().await {
            Came::Frame(frame) => assert_ne!(frame["id"], id.as_str(), "{frame}"),
            Came::Closed(code, _) => {
                assert!([4001, 1008].contains(&code), "{code}");
                return;
            }
            Came::Gone => return,
        }
    }
}

/// Rounds of a change against 32 requests in flight on four sockets, and (with a token) two that connect meanwhile.
async fn race(kind: Kind) {
    let gateway = gateway();
    let mut operator = admin(&gateway).await;
    let device = Device::new();
    let mut secret = Secret::new(kind, &device, &mut operator).await;
    let (rounds, mut acts, mut late) = (times(5, 250), 0, 0);
    let mut head_start = Duration::ZERO;
    for round in 0..rounds {
        let before = seq_of(&mut operator, "auth.").await;
        let connect = secret.connect();
        let mut sockets = Vec::new();
        for _ in 0..4 {
            sockets.push(join(&gateway, &connect).await.0);
        }
        let mut newcomers = Vec::new();
        let asked = async {
            tokio::time::sleep(head_start).await;
            for n in 0..8 {
                for (at, socket) in sockets.iter_mut().enumerate() {
                    let name = format!("C{round}_{at}_{n}");
                    if kind == Kind::Agent || n % 4 == 0 {
                        socket.ask("exec.run", run(&["true"])).await;
                    } else {
                        let set = json!({"name": name, "valueBase64": "eA=="});
                        socket.ask("vault.set", set).await;
                    }
                }
            }
            if kind != Kind::Password {
                tokio::time::sleep(Duration::from_micros(u64::from(random::<1>()[0]) * 60)).await;
            }
            // With an old password they are wrong guesses, of which a few in a minute lock everybody here out.
            let count = if kind == Kind::Password { 0 } else { 2 };
            for _ in 0..count {
                let mut newcomer = Client::dial(&gateway).await;
                let params = connect.params(&newcomer.nonce, newcomer.ts);
                newcomer.ask("connect", params).await;
                newcomers.push(newcomer);
            }
        };
        let began = Instant::now();
        let changed = if kind == Kind::Password {
            // It is hashed first: what is asked meanwhile, or just before its end, meets the change itself.
            let change = async {
                let changed = secret.change(&mut operator).await;
                (changed, began.elapsed())
            };
            let ((changed, took), ()) = tokio::join!(change, asked);
            head_start = took.mul_f64(f64::from(random::<1>()[0]) / 256.0);
            changed
        } else {
            asked.await;
            secret.change(&mut operator).await
        };
        for socket in sockets.iter_mut().chain(&mut newcomers) {
            is_over(socket).await;
        }
        let query = json!({"principal": secret.principal(), "sinceSeq": before, "limit": 1000});
        let found = operator.get("audit.query", query).await;
        let mut set = 0;
        for one in found["records"].as_array().unwrap() {
            let record = &one["record"];
            let seq = record["seq"].as_u64().unwrap();
            assert!(seq < changed, "{one} follows {changed}");
            acts += u64::from(record["kind"] == "intent");
            set += usize::from(record["action"] == "vault.set");
        }
        let names = operator.get("vault.list", json!({})).await["entries"].clone();
        let kept = names.as_array().unwrap();
        assert!(kept.len() <= set, "{} kept of {set}", kept.len());
        late += 24 - kept.len();
        for entry in kept {
            let name = json!({"name": entry["name"]});
            operator.get("vault.remove", name).await;
        }
    }
    // That the race was met; in a few rounds of a change that is hashed first nothing may be late.
    let may_be_early = kind == Kind::Password && rounds < 50;
    assert!(
        acts > 0 && (late > 0 || may_be_early),
        "{acts} before, {late} after"
    );
    figure(&format!(
        "{rounds} changes of {kind:?} against 32 requests in flight: {acts} acts before, 0 after"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_act_under_the_shared_token_follows_its_rotation() {
    race(Kind::Token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_act_of_a_device_that_came_with_the_shared_token_follows_its_rotation() {
    race(Kind::TokenAndDevice).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_act_under_a_password_follows_its_change() {
    race(Kind::Password).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_act_under_an_agents_token_follows_the_next() {
    race(Kind::Agent).await;
}

async fn question(client: &mut Client, argv: &[&str]) -> String {
    let params = json!({
        "host": "gateway", "command": argv.join(" "), "commandArgv": argv, "agentId": "demo", "twoPhase": true,
    });
    let answer = client.call("exec.approval.request", params).await;
    assert_eq!(answer["ok"], true, "{answer}");
    answer["payload"]["id"].as_str().unwrap().to_owned()
}

async fn is_void(operator: &mut Client, id: &str) {
    let shown = operator.call("exec.approval.get", json!({"id": id})).await;
    assert!(
        shown["ok"] == false || shown["payload"]["status"] == "cancelled",
        "{shown}"
    );
}

/// The run's outcome is there already.
async fn has_ended(operator: &mut Client, run: &str) {
    let found = operator
        .get("audit.query", json!({"action": "exec.run", "object": run}))
        .await;
    let end = &found["records"][0]["outcome"];
    assert!(end.to_string().contains("cancelled"), "{found}");
}

async fn started(client: &mut Client) -> String {
    let id = client
        .ask("exec.run", run(&["sh", "-c", "echo; sleep 600"]))
        .await;
    let first = client.answer(&id).await;
    while client.frame().await["event"] != "exec.output" {}
    first["payload"]["runId"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_ends_questions_answers_grants_and_runs_under_it_and_under_no_other() {
    let mut gateway = gateway();
    let mut operator = admin(&gateway).await;
    let mut asks = admin(&gateway).await;
    let device = Device::new();
    for kind in [Kind::Token, Kind::TokenAndDevice, Kind::Password] {
        let mut secret = Secret::new(kind, &device, &mut operator).await;
        let (mut theirs, _) = join(&gateway, &secret.connect()).await;
        let running = started(&mut theirs).await;
        let asked = question(&mut theirs, &["uname", "-a"]).await;
        let allowed = question(&mut asks, &["uname", "-r"]).await;
        let granted = question(&mut asks, &["uname", "-s"]).await;
        let by_other = question(&mut asks, &["uname", "-m"]).await;
        let word = |id: &str, decision| json!({"id": id, "decision": decision});
        for (id, decision) in [(&allowed, "allow-once"), (&granted, "allow-always")] {
            let word = word(id, decision);
            theirs.get("exec.approval.resolve", word).await;
        }
        operator
            .get("exec.approval.resolve", word(&by_other, "allow-once"))
            .await;
        secret.change(&mut operator).await;
        has_ended(&mut operator, &running).await;
        for id in [asked, allowed, granted] {
            is_void(&mut operator, &id).await;
        }
        let grants = operator.get("exec.approval.grants.list", json!({})).await;
        assert_eq!(grants["grants"], json!([]), "{kind:?}");
        let shown = operator
            .get("exec.approval.get", json!({"id": by_other}))
            .await;
        assert_ne!(shown["status"], "cancelled", "{shown}");
        is_over(&mut theirs).await;
    }
    // An agent: its run, and its question.
    let secret = Secret::new(Kind::Agent, &device, &mut operator).await;
    let (mut theirs, _) = join(&gateway, &secret.connect()).await;
    let running = started(&mut theirs).await;
    theirs
        .ask(
            "exec.run",
            json!({"target": "host", "argv": ["uname", "-v"], "idempotencyKey": "k"}),
        )
        .await;
    let id = loop {
        let listed = operator.get("exec.approval.list", json!({})).await;
        if let Some(id) = listed[0]["id"].as_str() {
            break id.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    operator
        .get("agent.token.revoke", json!({"agentId": "demo"}))
        .await;
    has_ended(&mut operator, &running).await;
    is_void(&mut operator, &id).await;
    is_over(&mut theirs).await;
    // A password that is taken away; and what was granted under it does not come back with the next start.
    let secret = Secret::new(Kind::Password, &device, &mut operator).await;
    let (mut theirs, _) = join(&gateway, &secret.connect()).await;
    let granted = question(&mut asks, &["uname", "-o"]).await;
    let yes = json!({"id": granted, "decision": "allow-always"});
    theirs.get("exec.approval.resolve", yes).await;
    operator
        .get("auth.password.remove", json!({"name": "ann"}))
        .await;
    is_over(&mut theirs).await;
    gateway.crash_and_start();
    let mut operator = admin(&gateway).await;
    let grants = operator.get("exec.approval.grants.list", json!({})).await;
    assert_eq!(grants["grants"], json!([]));
}
