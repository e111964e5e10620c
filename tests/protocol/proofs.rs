//! Decisions with a proof: what a device signs decides what it says and nothing else, two keys are two people, and our
//! command line signs by itself.

use portcullis_core::approval::{DecisionProof, Extent, Statement, Word, verify_proof};
use portcullis_core::ids::Hash32;
use portcullis_core::time::Millis;
use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin, by_token, hex, join, random};

const DECIDES: [&str; 2] = ["operator.approvals", "operator.read"];

/// Let in by the machine's own operator.
async fn paired(gateway: &Gateway, device: &Device, scopes: &[&str]) -> Client {
    let connect = Connect::token().device(device).scopes(scopes);
    let (error, _) = Client::dial(gateway).await.denied(&connect).await;
    let request = error["details"]["requestId"].as_str().unwrap();
    gateway.json(&["devices", "approve", request]);
    join(gateway, &connect).await.0
}

fn apart() -> Vec<(&'static str, &'static str)> {
    vec![("gateway.local.local_trust", "false")]
}

/// A question about a host command; its id.
async fn asks(client: &mut Client) -> String {
    let key = hex(&random::<8>());
    let run = json!({ "agent": "demo", "target": "host", "argv": ["id"], "idempotencyKey": key });
    let id = client.ask("exec.run", run).await;
    let first = client.answer(&id).await;
    first["payload"]["approvalId"]
        .as_str()
        .unwrap_or_else(|| panic!("{first}"))
        .to_owned()
}

async fn shown(client: &mut Client, id: &str) -> Value {
    client.get("exec.approval.get", json!({ "id": id })).await
}

fn hash(value: &Value) -> Hash32 {
    Hash32::try_from(value.as_str().unwrap().to_owned()).unwrap()
}

/// What a device signs to say this of a question that was shown.
fn statement(shown: &Value, word: Word) -> Statement<'_> {
    let terms = &shown["sign"];
    Statement {
        gateway: hash(&terms["gateway"]),
        approval: shown["id"].as_str().unwrap(),
        plan: hash(&terms["planHash"]),
        word,
        scope: Extent::of(word),
        expires: Millis(terms["onceUntilMs"].as_u64().unwrap()),
    }
}

fn signed(device: &Device, said: &Statement<'_>) -> Value {
    json!({
        "id": said.approval, "decision": said.word.as_str(),
        "scope": said.scope.as_str(), "expiresAtMs": said.expires,
        "proof": {
            "kind": "device", "publicKey": device.public_key(),
            "signature": device.sign_bytes(&said.to_sign()),
        },
    })
}

async fn says(client: &mut Client, device: &Device, id: &str, word: Word) -> Value {
    let shown = shown(client, id).await;
    let params = signed(device, &statement(&shown, word));
    client.call("exec.approval.resolve", params).await
}

fn code(error: &Value) -> &str {
    error["details"]["code"].as_str().unwrap_or_default()
}

/// Of the record of this question's last decision.
fn recorded(gateway: &Gateway, id: &str) -> Value {
    let found = gateway.json(&["audit", "query", "--action", "approval.resolve"]);
    let records = found["records"].as_array().or_else(|| found.as_array());
    let records = records.unwrap_or_else(|| panic!("{found}"));
    let of = |record: &&Value| record.to_string().contains(id);
    records
        .iter()
        .rfind(of)
        .unwrap_or_else(|| panic!("{found}"))
        .clone()
}

fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => fields
            .get(key)
            .or_else(|| fields.values().find_map(|inner| find(inner, key))),
        Value::Array(items) => items.iter().find_map(|inner| find(inner, key)),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_signed_decides_that_and_nothing_else() {
    let gateway = Gateway::with(&apart());
    let (device, reader, p256) = (Device::new(), Device::new(), Device::p256());
    let mut decides = paired(&gateway, &device, &DECIDES).await;
    let mut also = paired(&gateway, &p256, &DECIDES).await;
    paired(&gateway, &reader, &["operator.read"]).await;
    let mut opens = admin(&gateway).await;
    let (one, two) = (asks(&mut opens).await, asks(&mut opens).await);
    let question = shown(&mut decides, &one).await;
    let whole = statement(&question, Word::AllowOnce);
    let good = signed(&device, &whole);
    let with = |changes: Value| {
        let mut params = good.clone();
        for (name, value) in changes.as_object().unwrap() {
            params[name] = value.clone();
        }
        params
    };
    let invalid = "APPROVAL_PROOF_INVALID";
    for (what, params, expected) in [
        ("another approval", with(json!({ "id": two })), invalid),
        (
            "another decision",
            with(json!({ "decision": "deny" })),
            invalid,
        ),
        (
            "a lasting one",
            with(json!({ "decision": "allow-always", "scope": "always" })),
            invalid,
        ),
        (
            "a later end",
            with(json!({ "expiresAtMs": whole.expires.0 + 1 })),
            invalid,
        ),
        (
            "another's key over it",
            {
                let mut forged = good.clone();
                forged["proof"]["publicKey"] = p256.public_key().into();
                forged
            },
            invalid,
        ),
        ("another device's own", signed(&p256, &whole), invalid),
        (
            "a key that nobody paired",
            signed(&Device::new(), &whole),
            invalid,
        ),
        (
            "after its end",
            signed(
                &device,
                &Statement {
                    expires: Millis(1_000),
                    ..whole
                },
            ),
            "INVALID_PARAMS",
        ),
        (
            "a scope that it cannot have",
            with(json!({ "scope": "always" })),
            "INVALID_PARAMS",
        ),
    ] {
        let error = decides.refused("exec.approval.resolve", params).await;
        assert_eq!(code(&error), expected, "{what}: {error}");
    }
    // Over a connection that is no device's, too: of a device that may not decide, and of none.
    let mut token = admin(&gateway).await;
    for (by, expected) in [(&reader, "MISSING_SCOPE"), (&Device::new(), invalid)] {
        let error = says(&mut token, by, &one, Word::AllowOnce).await["error"].take();
        assert_eq!(code(&error), expected, "{error}");
    }
    assert_eq!(shown(&mut token, &one).await["status"], "pending");

    assert_eq!(
        decides.get("exec.approval.resolve", good.clone()).await,
        json!({ "ok": true })
    );
    // Kept with the question, and in the log; each is checked by itself.
    let decided = shown(&mut token, &one).await;
    let vote = &decided["votes"][0];
    assert_eq!(vote["deviceId"], device.id(), "{vote}");
    let plan = hash(&question["sign"]["planHash"]);
    let check = |proof: &Value, id: &str| {
        let proof: DecisionProof = serde_json::from_value(proof.clone()).unwrap();
        assert_eq!(proof.device().as_deref(), Some(device.id().as_str()));
        verify_proof(&proof, id, plan, Word::AllowOnce).is_ok()
    };
    assert!(check(&vote["proof"], &one) && !check(&vote["proof"], &two));
    let record = recorded(&gateway, &one);
    let text = find(&record, "proof").and_then(Value::as_str);
    let logged: Value = serde_json::from_str(text.unwrap_or_else(|| panic!("{record}"))).unwrap();
    assert!(check(&logged, &one) && !check(&logged, &two), "{record}");

    // The other kind of key signs as well.
    let said = says(&mut also, &p256, &two, Word::Deny).await;
    assert_eq!(said["ok"], true, "{said}");

    // A revoked device's signature is worth nothing, whoever brings it.
    let three = asks(&mut opens).await;
    let question = shown(&mut token, &three).await;
    let late = signed(&device, &statement(&question, Word::AllowOnce));
    gateway.json(&["devices", "revoke", &device.id()]);
    let error = token.refused("exec.approval.resolve", late).await;
    assert_eq!(code(&error), invalid, "{error}");
    assert_eq!(shown(&mut token, &three).await["status"], "pending");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_proof_is_required_a_plain_client_is_told_so_and_our_command_line_decides() {
    let gateway = Gateway::with(&[("approvals.require_proof", "[\"elevation\", \"loosening\"]")]);
    let mut opens = admin(&gateway).await;
    let mut plain = by_token(&gateway, &["operator.admin", "operator.approvals"]).await;
    let id = asks(&mut opens).await;
    assert_eq!(
        shown(&mut plain, &id).await["sign"]["requiredFor"],
        "elevation"
    );
    for decision in ["allow-once", "allow-always"] {
        let params = json!({ "id": id, "decision": decision });
        let error = plain.refused("exec.approval.resolve", params.clone()).await;
        assert_eq!(code(&error), "APPROVAL_PROOF_REQUIRED", "{error}");
        let next = error["details"]["next"].as_str().unwrap();
        assert!(next.contains("portcullis approvals allow"), "{error}");
        let peers = json!({ "id": id, "kind": "exec", "decision": decision });
        let error = plain.refused("approval.resolve", peers).await;
        assert_eq!(code(&error), "APPROVAL_PROOF_REQUIRED", "{error}");
    }
    // A no needs none.
    let other = asks(&mut opens).await;
    let deny = json!({ "id": other, "decision": "deny" });
    plain.get("exec.approval.resolve", deny).await;
    // Our own makes a key at its first decision, and has it from then on.
    gateway.json(&["approvals", "allow", &id]);
    let first = shown(&mut plain, &id).await;
    let vote = &first["votes"][0];
    assert_eq!(
        (&vote["by"], &vote["proof"]["kind"], &vote["selfOpened"]),
        (&json!("uid:0"), &json!("device"), &json!(true)),
        "{vote}"
    );
    assert_eq!(first["selfOpened"], true);
    assert_eq!(
        find(&recorded(&gateway, &id), "self_opened"),
        Some(&json!("true"))
    );
    let again = asks(&mut opens).await;
    gateway.json(&["approvals", "deny", &again]);
    let second = shown(&mut plain, &again).await;
    assert_eq!(second["votes"][0]["deviceId"], vote["deviceId"]);
    let devices = gateway.json(&["devices", "list"]);
    assert_eq!(devices["paired"].as_array().unwrap().len(), 1, "{devices}");
    // A change that frees something, the same way.
    let before = opens.get("exec.approvals.get", json!({})).await;
    let free = json!({"version": 1, "agents": {"demo": {"security": "full", "ask": "off"}}});
    let set = json!({ "file": free, "baseHash": before["hash"] });
    let waits = opens.refused("exec.approvals.set", set).await;
    let change = waits["details"]["approvalId"].as_str().unwrap();
    let params = json!({ "id": change, "decision": "allow-once" });
    let mut console = admin(&gateway).await;
    let error = console.refused("exec.approval.resolve", params).await;
    assert_eq!(code(&error), "APPROVAL_PROOF_REQUIRED", "{error}");
    gateway.json(&["approvals", "allow", change]);
    let after = opens.get("exec.approvals.get", json!({})).await;
    assert_ne!(before["hash"], after["hash"]);
}

/// Where local trust pairs nothing the kernel's word for who is there is enough, until a proof is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_waits_for_a_person_signs_nothing_and_the_command_line_says_so() {
    let mut settings = apart();
    settings.push(("approvals.require_proof", "[\"loosening\"]"));
    let gateway = Gateway::with(&settings);
    let mut opens = admin(&gateway).await;
    let id = asks(&mut opens).await;
    let output = gateway.cli(&["approvals", "deny", &id]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("portcullis devices approve "), "{said}");
    let vote = shown(&mut opens, &id).await["votes"][0].take();
    assert_eq!(vote["proof"]["kind"], "session", "{vote}");
    let free = json!({"version": 1, "agents": {"demo": {"security": "full", "ask": "off"}}});
    let before = opens.get("exec.approvals.get", json!({})).await;
    let set = json!({ "file": free, "baseHash": before["hash"] });
    let waits = opens.refused("exec.approvals.set", set).await;
    let change = waits["details"]["approvalId"].as_str().unwrap();
    let output = gateway.cli(&["approvals", "allow", change, "--json"]);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["error"]["code"], "APPROVAL_PROOF_REQUIRED", "{error}");
    // Once a person has let the key in, it signs.
    let devices = gateway.json(&["devices", "list"]);
    let request = devices["pending"][0]["requestId"].as_str().unwrap();
    gateway.json(&["devices", "approve", request]);
    gateway.json(&["approvals", "allow", change]);
}

/// The bug: who had the shared token let a change that frees something pass on a second connection with it.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_shared_token_alone_does_not_free_what_he_proposed() {
    let gateway = Gateway::with(&[(
        "gateway.auth.shared_token_scopes",
        "[\"operator.admin\", \"operator.approvals\"]",
    )]);
    let scopes = ["operator.admin", "operator.approvals"];
    let mut proposes = by_token(&gateway, &scopes).await;
    let mut again = by_token(&gateway, &scopes).await;
    let before = proposes.get("exec.approvals.get", json!({})).await;
    let free = json!({"version": 1, "agents": {"demo": {"security": "full", "ask": "off"}}});
    let set = json!({ "file": free, "baseHash": before["hash"] });
    let waits = proposes.refused("exec.approvals.set", set).await;
    let change = waits["details"]["approvalId"].as_str().unwrap();
    let params = json!({ "id": change, "decision": "allow-once" });
    let error = again.refused("exec.approval.resolve", params).await;
    assert_eq!(code(&error), "APPROVAL_SELF", "{error}");
    // At the machine itself somebody may.
    gateway.json(&["approvals", "allow", change]);
}

fn two_phase(id: &str, argv: &[&str]) -> Value {
    json!({
        "id": id, "command": "as argv says", "commandArgv": argv, "agentId": "demo",
        "host": "gateway", "security": "allowlist", "ask": "on-miss", "twoPhase": true,
    })
}

async fn asked_first(client: &mut Client, id: &str) {
    let params = two_phase(id, &["id", "-u"]);
    let frame = client.ask("exec.approval.request", params).await;
    let first = client.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "accepted", "{first}");
}

async fn comes(gateway: &Gateway, device: &Device) -> Client {
    let connect = Connect::token().device(device).scopes(&DECIDES);
    join(gateway, &connect).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn two_keys_let_a_command_run_over_a_restart_and_one_that_is_revoked_counts_no_more() {
    let mut settings = apart();
    settings.push(("agents.demo.quorum", "2"));
    let mut gateway = Gateway::with(&settings);
    gateway.keep_port();
    let (a, b, c) = (Device::new(), Device::new(), Device::new());
    let mut first = paired(&gateway, &a, &DECIDES).await;
    paired(&gateway, &b, &DECIDES).await;
    paired(&gateway, &c, &DECIDES).await;
    let mut opens = admin(&gateway).await;
    for id in ["q-one", "r-two", "s-three"] {
        asked_first(&mut opens, id).await;
    }
    // No device, no word; a session of a device is none either where the list says so, as it does.
    for client in [&mut opens, &mut first] {
        let params = json!({ "id": "q-one", "decision": "allow-once" });
        let error = client.refused("exec.approval.resolve", params).await;
        assert_eq!(code(&error), "APPROVAL_PROOF_REQUIRED", "{error}");
    }
    for id in ["q-one", "r-two", "s-three"] {
        let said = says(&mut first, &a, id, Word::AllowOnce).await;
        let waits = json!({ "ok": true, "status": "pending", "votes": 1, "quorum": 2 });
        assert_eq!(said["payload"], waits, "{said}");
        // Once more it is the same one word.
        let said = says(&mut first, &a, id, Word::AllowOnce).await;
        assert_eq!(said["payload"], waits, "{said}");
    }
    let said = says(&mut first, &a, "q-one", Word::AllowAlways).await;
    assert_eq!(code(&said["error"]), "APPROVAL_SAME_VOTER", "{said}");
    drop((opens, first));
    gateway.crash_and_start();
    // What runs is asked for once more, under its key; before the second word it waits.
    let mut second = comes(&gateway, &b).await;
    let question = shown(&mut second, "q-one").await;
    assert_eq!(
        (
            &question["status"],
            question["votes"].as_array().unwrap().len()
        ),
        (&json!("pending"), 1)
    );
    let said = says(&mut second, &b, "q-one", Word::AllowOnce).await;
    assert_eq!(said["payload"], json!({ "ok": true }), "{said}");
    let mut opens = admin(&gateway).await;
    let run = json!({
        "agent": "demo", "argv": ["id", "-u"], "target": "host", "idempotencyKey": "q-one",
    });
    let frame = opens.ask("exec.run", run).await;
    let ended = loop {
        let answer = opens.answer(&frame).await;
        let status = &answer["payload"]["status"];
        if status != "accepted" && status != "approval-pending" {
            break answer;
        }
    };
    assert_eq!(ended["payload"]["exitCode"], 0, "{ended}");
    // One no ends it, though one had said yes.
    let said = says(&mut second, &b, "r-two", Word::Deny).await;
    assert_eq!(said["ok"], true, "{said}");
    assert_eq!(shown(&mut second, "r-two").await["status"], "denied");
    // The first key is revoked: its word is gone, and the second is the first.
    gateway.json(&["devices", "revoke", &a.id()]);
    let said = says(&mut second, &b, "s-three", Word::AllowOnce).await;
    assert_eq!(said["payload"]["votes"], 1, "{said}");
    assert_eq!(shown(&mut second, "s-three").await["status"], "pending");
    // Two at the same moment: one more word is enough, and it is counted once.
    let mut third = comes(&gateway, &c).await;
    let (one, two) = tokio::join!(
        says(&mut second, &b, "s-three", Word::AllowOnce),
        says(&mut third, &c, "s-three", Word::AllowOnce),
    );
    assert!(one["ok"] == true && two["ok"] == true, "{one} {two}");
    let question = shown(&mut third, "s-three").await;
    assert_eq!(
        (
            &question["status"],
            question["votes"].as_array().unwrap().len()
        ),
        (&json!("allowed"), 2)
    );
}

/// A device that one of the two has let in is no second person, whichever of them speaks first.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_and_the_one_that_let_it_in_are_not_two_people() {
    let mut settings = apart();
    settings.push(("agents.demo.quorum", "2"));
    let gateway = Gateway::with(&settings);
    let (host, guest) = (Device::new(), Device::new());
    let all = ["operator.admin", "operator.approvals", "operator.read"];
    let mut own = paired(&gateway, &host, &all).await;
    let connect = Connect::token().device(&guest).scopes(&DECIDES);
    let (error, _) = Client::dial(&gateway).await.denied(&connect).await;
    let request = json!({ "requestId": error["details"]["requestId"] });
    own.get("device.pair.approve", request).await;
    let mut guests = comes(&gateway, &guest).await;
    let mut opens = admin(&gateway).await;
    for host_first in [true, false] {
        let id = asks(&mut opens).await;
        let (one, two) = if host_first {
            (
                says(&mut own, &host, &id, Word::AllowOnce).await,
                says(&mut guests, &guest, &id, Word::AllowOnce).await,
            )
        } else {
            (
                says(&mut guests, &guest, &id, Word::AllowOnce).await,
                says(&mut own, &host, &id, Word::AllowOnce).await,
            )
        };
        assert_eq!(one["ok"], true, "{one}");
        assert_eq!(code(&two["error"]), "APPROVAL_SELF", "{two}");
        assert_eq!(shown(&mut opens, &id).await["status"], "pending");
    }
}

/// The bug: who sat at the console said yes with the command line's key, let a device of his own in by a setup code, and said yes
/// with that: two of two.
#[tokio::test(flavor = "multi_thread")]
async fn one_user_at_the_console_is_not_two_people_by_a_device_that_he_lets_in() {
    let gateway = Gateway::with(&[("agents.demo.quorum", "2")]);
    let mut opens = admin(&gateway).await;
    let id = asks(&mut opens).await;
    let first = gateway.json(&["approvals", "allow", &id]);
    assert_eq!(first["answer"]["votes"], 1, "{first}");
    let device = Device::new();
    let gives = json!({ "role": "operator", "scopes": DECIDES });
    let made = opens.get("device.pair.setupCode", gives).await;
    let secret = super::setup_codes::read(&made).1;
    let connect = Connect::bare().auth(json!({ "bootstrapToken": secret }));
    let connect = connect.device(&device).scopes(&DECIDES);
    let mut second = join(&gateway, &connect).await.0;
    let said = says(&mut second, &device, &id, Word::AllowOnce).await;
    assert_eq!(code(&said["error"]), "APPROVAL_SELF", "{said}");
    assert_eq!(shown(&mut opens, &id).await["status"], "pending");
    // Of a question after it, it may be one of the two, and he who let it in is not the other.
    let id = asks(&mut opens).await;
    let said = says(&mut second, &device, &id, Word::AllowOnce).await;
    assert_eq!(said["payload"]["votes"], 1, "{said}");
    let output = gateway.cli(&["approvals", "allow", &id, "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["error"]["code"], "APPROVAL_SELF", "{said}");
    assert_eq!(shown(&mut opens, &id).await["status"], "pending");
    // He may say no to it all the same.
    gateway.json(&["approvals", "deny", &id]);
    assert_eq!(shown(&mut opens, &id).await["status"], "denied");
}

/// The bug: an "always" of before held on when the configuration asked for a key and for two people.
#[tokio::test(flavor = "multi_thread")]
async fn an_always_of_before_is_asked_about_where_the_configuration_demands_more() {
    let mut gateway = Gateway::with(&[]);
    gateway.keep_port();
    let mut opens = admin(&gateway).await;
    let id = asks(&mut opens).await;
    let mut other = admin(&gateway).await;
    let always = json!({ "id": id, "decision": "allow-always" });
    other.get("exec.approval.resolve", always).await;
    let run = async |client: &mut Client| {
        let key = hex(&random::<8>());
        let run =
            json!({ "agent": "demo", "target": "host", "argv": ["id"], "idempotencyKey": key });
        let frame = client.ask("exec.run", run).await;
        client.answer(&frame).await["payload"]["status"].clone()
    };
    assert_eq!(run(&mut opens).await, "accepted");
    let grants = gateway.json(&["approvals", "grants"]);
    let grant = &grants["grants"][0];
    assert_eq!(
        (&grant["voters"], &grant["signed"]),
        (&json!(1), &json!(false))
    );
    drop((opens, other));
    assert_eq!(gateway.stop(), 0);
    gateway.set("approval.require_proof", r#"["elevation"]"#);
    gateway.launch();
    let mut opens = admin(&gateway).await;
    assert_eq!(run(&mut opens).await, "approval-pending");
}

/// Two keys that one user of this machine has made for himself are one person's.
#[tokio::test(flavor = "multi_thread")]
async fn one_user_with_two_keys_of_his_own_is_one_person() {
    let gateway = Gateway::with(&[("agents.demo.quorum", "2")]);
    let mut opens = admin(&gateway).await;
    let id = asks(&mut opens).await;
    let allow = ["approvals", "allow", &id, "--json"];
    let first = gateway.json(&allow[..3]);
    assert_eq!(first["answer"]["votes"], 1, "{first}");
    let mut other = gateway.command(&allow);
    let output = other
        .env("PORTCULLIS_CLIENT_DIR", gateway.home().join("second"))
        .env(
            "PORTCULLIS_CLIENT_IDENTITY_FILE",
            gateway.home().join("second.key"),
        )
        .output()
        .unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["error"]["code"], "APPROVAL_SAME_VOTER", "{said}");
    assert_eq!(shown(&mut opens, &id).await["status"], "pending");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_word_is_for_a_session_or_a_time_where_the_command_line_says_so() {
    let gateway = Gateway::start();
    let mut opens = admin(&gateway).await;
    for (words, scope) in [(&["--session"][..], "session"), (&["--for", "2h"], "until")] {
        let id = asks(&mut opens).await;
        gateway.json(&[&["approvals", "allow", &id], words].concat());
        let grants = gateway.json(&["approvals", "grants"]);
        let grant = &grants["grants"][0];
        assert_eq!(
            (&grant["scope"], &grant["approvalId"]),
            (&json!(scope), &json!(id))
        );
        let lasts = grant["expiresAtMs"].as_u64().unwrap() - grant["createdAtMs"].as_u64().unwrap();
        assert_eq!(lasts <= 2 * 3_600_000, scope == "until", "{grant}");
        // It runs by it now without a question, and that is counted.
        let key = hex(&random::<8>());
        let run =
            json!({ "agent": "demo", "target": "host", "argv": ["id"], "idempotencyKey": key });
        let frame = opens.ask("exec.run", run).await;
        let first = opens.answer(&frame).await;
        assert_eq!(first["payload"]["status"], "accepted", "{first}");
        opens.answer(&frame).await;
        let grants = gateway.json(&["approvals", "grants"]);
        assert_eq!(grants["grants"][0]["useCount"], 1, "{grants}");
        let id = grants["grants"][0]["grantId"].as_str().unwrap().to_owned();
        gateway.json(&["approvals", "revoke", &id]);
    }
    // As the peer's client says it: days.
    let id = asks(&mut opens).await;
    let mut other = admin(&gateway).await;
    let params =
        json!({ "id": id, "kind": "exec", "decision": "allow-always", "grantExpiresInDays": 3 });
    other.get("approval.resolve", params).await;
    let grants = gateway.json(&["approvals", "grants"]);
    let grant = &grants["grants"][0];
    let lasts = grant["expiresAtMs"].as_u64().unwrap() - grant["createdAtMs"].as_u64().unwrap();
    // By the moment at which it was said, which is not quite the one at which it was taken.
    let short = (3 * 86_400_000_u64).checked_sub(lasts);
    assert!(short.is_some_and(|ms| ms < 5_000), "{grant}");
}

/// What a test of the vault's export has: a socket of a paired device, and what it signs.
struct Exports {
    gateway: Gateway,
    client: Client,
    device: Device,
    connection: String,
    id: Hash32,
    /// Until when the gateway takes a signature.
    until: Millis,
}

const PASSPHRASE: &str = "cGFzc3BocmFzZS1vZi1hLXBlcnNvbg==";

impl Exports {
    async fn start() -> Self {
        let gateway = Gateway::with(&[("approvals.require_proof", "[\"vault-export\"]")]);
        let device = Device::new();
        let mut client = Client::control(&gateway.state()).await;
        let connect = Connect::bare()
            .device(&device)
            .scopes(&["operator.admin", "operator.approvals"]);
        let hello = client.hello(&connect).await;
        let connection = hello["server"]["connId"].as_str().unwrap().to_owned();
        let status = client.get("status", json!({})).await;
        let id = hash(&status["portcullis"]["gatewayId"]);
        let plain = json!({ "passphraseBase64": PASSPHRASE });
        let error = client.refused("vault.export", plain).await;
        assert_eq!(code(&error), "APPROVAL_PROOF_REQUIRED", "{error}");
        let until = Millis(error["details"]["untilMs"].as_u64().unwrap());
        Self {
            gateway,
            client,
            device,
            connection,
            id,
            until,
        }
    }

    fn signed(by: &Device, said: &Statement<'_>) -> Value {
        json!({
            "passphraseBase64": PASSPHRASE, "expiresAtMs": said.expires,
            "proof": {
                "kind": "device", "publicKey": by.public_key(),
                "signature": by.sign_bytes(&said.to_sign()),
            },
        })
    }

    fn proof(&self, by: &Device, connection: &str, expires: Millis) -> Value {
        Self::signed(by, &Statement::of_export(self.id, connection, expires))
    }

    async fn invalid(&mut self, what: &str, params: Value) {
        let error = self.client.refused("vault.export", params).await;
        assert_eq!(code(&error), "APPROVAL_PROOF_INVALID", "{what}: {error}");
    }

    async fn exports(&mut self, params: Value) {
        let answer = self.client.call("vault.export", params).await;
        assert_eq!(answer["ok"], true, "{answer}");
    }
}

/// Every secret leaves by one method: where the list says so, only with a key, and only for the connection that signed.
#[tokio::test(flavor = "multi_thread")]
async fn the_vault_is_exported_only_with_a_key_where_that_is_required() {
    let mut x = Exports::start().await;
    let own = x.connection.clone();
    let far = x.until.plus(86_400_000);
    for (what, params) in [
        ("another connection's", x.proof(&x.device, "c-1", x.until)),
        ("nobody's", x.proof(&Device::new(), &own, x.until)),
        ("ended", x.proof(&x.device, &own, Millis(1_000))),
        ("endless", x.proof(&x.device, &own, far)),
    ] {
        x.invalid(what, params).await;
    }
    x.exports(x.proof(&x.device, &own, x.until)).await;
    let found = x
        .gateway
        .json(&["audit", "query", "--action", "vault.export"]);
    assert!(find(&found, "proof").is_some(), "{found}");
}

/// The bug: within five minutes the same signature took all secrets out as often as its connection liked.
#[tokio::test(flavor = "multi_thread")]
async fn an_exports_proof_is_good_once_and_for_this_gateway_and_act_alone() {
    let mut x = Exports::start().await;
    let own = x.connection.clone();
    let good = Statement::of_export(x.id, &own, x.until);
    let other = Statement {
        gateway: Hash32::of(b"another"),
        ..good
    };
    // What was signed for a question is no export, whatever the question is called.
    let question = Statement {
        plan: Hash32::of(b"a plan"),
        ..good
    };
    let no = Statement {
        word: Word::Deny,
        ..good
    };
    for (what, said) in [
        ("another gateway's", other),
        ("a question's", question),
        ("another decision", no),
    ] {
        let params = Exports::signed(&x.device, &said);
        x.invalid(what, params).await;
    }
    let params = Exports::signed(&x.device, &good);
    x.exports(params.clone()).await;
    x.invalid("used", params.clone()).await;
    let earlier = x.proof(&x.device, &own, Millis(x.until.0 - 1));
    x.invalid("older than what was used", earlier).await;
    x.exports(x.proof(&x.device, &own, x.until.plus(1))).await;
    x.invalid("used long ago", params.clone()).await;
    // On another connection of the same device it is nothing either.
    let mut second = Client::control(&x.gateway.state()).await;
    let scopes = ["operator.admin", "operator.approvals"];
    let connect = Connect::bare().device(&x.device).scopes(&scopes);
    second.hello(&connect).await;
    let error = second.refused("vault.export", params).await;
    assert_eq!(code(&error), "APPROVAL_PROOF_INVALID", "{error}");
}
