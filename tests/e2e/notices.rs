//! Notices to a webhook: what it is told of questions, and that no question waits for it.

use std::time::{Duration, Instant};

use portcullis_core::notices::{key, signature};
use portcullis_core::seal::Secret;
use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::hook::{Hook, Mode, numbered};
use crate::support::ws::{Client, Connect, admin};

const KEY: &str = "planted-signing-key-71c5e0aa42";
/// In a command, and in its environment.
const PLANTED: &str = "planted-word-of-the-command-9d1f";
const PATIENCE: Duration = Duration::from_mins(1);

/// A gateway that tells this receiver, not started yet.
fn prepared(folder: &std::path::Path) -> (Gateway, Hook) {
    let hook = Hook::start(folder);
    let gateway = Gateway::prepared(&[
        ("notices.webhook.address", &hook.address()),
        ("notices.webhook.ca_file", hook.authority()),
        ("notices.webhook.networks", r#"["127.0.0.1", "::1"]"#),
        ("notices.webhook.key.vault", "HOOK"),
        ("notices.webhook.timeout_ms", "500"),
        ("notices.retry_ms", "50"),
        ("notices.attempts", "1000"),
        ("notices.page", "https://gate.example/"),
    ]);
    (gateway, hook)
}

/// Its key is in the vault, and may be used for it.
fn give_key(gateway: &Gateway) {
    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "HOOK"], KEY.as_bytes()), 0);
    gateway.json(&[
        "vault",
        "bind",
        "HOOK",
        "--host",
        "localhost",
        "--use",
        "gateway",
    ]);
}

fn webhook(gateway: &Gateway) -> Value {
    gateway.json(&["status"])["portcullis"]["notices"]["webhook"].clone()
}

fn until(gateway: &Gateway, what: &str, is: impl Fn(&Value) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = webhook(gateway);
        if is(&now) {
            return;
        }
        assert!(Instant::now() < end, "{what}: {now}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn says(part: &str) -> impl Fn(&Value) -> bool + '_ {
    move |now| now["error"].as_str().is_some_and(|why| why.contains(part))
}

pub fn question(id: &str, more: &Value) -> Value {
    let mut params = json!({
        "id": id, "command": PLANTED, "commandArgv": ["echo", PLANTED], "agentId": "demo",
        "warningText": PLANTED, "host": "gateway", "twoPhase": true,
    });
    params
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    params
}

/// Asks; the question is pending.
pub async fn ask(client: &mut Client, id: &str, more: Value) -> (String, Value) {
    let frame = client
        .ask("exec.approval.request", question(id, &more))
        .await;
    let first = client.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "accepted", "{first}");
    (frame, first["payload"].clone())
}

/// Asks and has it refused by another, and says how long that took.
pub async fn asked_and_answered(gateway: &Gateway, id: &str) -> Duration {
    let begun = Instant::now();
    let (mut asks, mut decides) = (admin(gateway).await, admin(gateway).await);
    let (frame, _) = ask(&mut asks, id, json!({})).await;
    let no = json!({"id": id, "decision": "deny"});
    decides.get("exec.approval.resolve", no).await;
    let last = asks.answer(&frame).await;
    assert_eq!(last["payload"]["decision"], "deny", "{last}");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_told_of_each_question_signed_and_without_a_word_of_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let (mut gateway, hook) = prepared(folder.path());
    gateway.launch();
    // Without a key nothing goes out, and it says why; the question is asked and answered all the same.
    asked_and_answered(&gateway, "a1").await;
    until(&gateway, "no key", says("HOOK"));
    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "HOOK"], KEY.as_bytes()), 0);
    until(
        &gateway,
        "a key that is not bound to the receiver",
        says("bound"),
    );
    assert!(hook.all().is_empty());
    give_key(&gateway);
    hook.has_taken(&["approval.requested a1", "approval.resolved a1"]);
    // One that nobody answers.
    let mut asks = admin(&gateway).await;
    let (frame, first) = ask(&mut asks, "a2", json!({"timeoutMs": 1500})).await;
    assert_eq!(first["deliveryRoute"], "forwarder");
    let last = asks.answer(&frame).await;
    assert_eq!(last["payload"]["decision"], Value::Null, "{last}");
    hook.has_taken(&[
        "approval.requested a1",
        "approval.resolved a1",
        "approval.requested a2",
        "approval.expired a2",
    ]);
    let secret = key(&Secret::new(KEY.as_bytes().to_vec())).unwrap();
    let mut ids = std::collections::BTreeSet::new();
    for came in hook.all() {
        assert!(
            came.head.starts_with("POST /hook HTTP/1.1\r\n"),
            "{}",
            came.head
        );
        let (id, time) = (came.header("webhook-id"), came.header("webhook-timestamp"));
        let signed = signature(&secret, &id, time.parse().unwrap(), &came.body);
        assert_eq!(came.header("webhook-signature"), signed);
        assert!(ids.insert(id));
        let said = came.json();
        let keys: Vec<_> = said.as_object().unwrap().keys().cloned().collect();
        let due = ["agent", "event", "expiresAtMs", "id", "kind", "url", "v"];
        assert_eq!(
            keys.iter().collect::<std::collections::BTreeSet<_>>().len(),
            7
        );
        assert!(
            due.iter().all(|key| keys.iter().any(|known| known == key)),
            "{said}"
        );
        assert_eq!(
            (&said["agent"], &said["kind"]),
            (&json!("demo"), &json!("exec"))
        );
        assert_eq!(said["url"], "https://gate.example/");
        for secret in [PLANTED, KEY, "echo"] {
            assert!(!came.head.contains(secret) && !came.body.contains(secret));
        }
        assert!(said["id"].as_str().unwrap().starts_with("pc-"), "{said}");
    }
    // The key is on record by its name, and nowhere by its value.
    let used = gateway.json(&["audit", "query", "--action", "notices.secret"]);
    assert_eq!(used["records"].as_array().unwrap().len(), 1, "{used}");
    let told = gateway.json(&["status"]).to_string() + &gateway.log();
    assert!(!told.contains(KEY) && !told.contains(PLANTED));
    let text = String::from_utf8(gateway.cli(&["status"]).stdout).unwrap();
    assert!(
        text.contains("webhook localhost: 4 told, 0 waiting"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_question_waits_for_a_receiver_that_is_slow_dead_or_mad_and_it_is_told_later() {
    let folder = tempfile::tempdir().unwrap();
    let (mut gateway, hook) = prepared(folder.path());
    let other = Hook::start(folder.path());
    gateway.launch();
    give_key(&gateway);
    let location = format!("location: {}\r\n", other.address());
    let mut due: Vec<String> = Vec::new();
    for (number, (mode, why)) in [
        (Mode::Answer(500, String::new()), "answers 500"),
        (Mode::Answer(410, String::new()), "answers 410"),
        (Mode::Answer(307, location), "no redirect is followed"),
        (Mode::Silent, "no answer within 500 ms"),
        (Mode::Dumb, "no answer within 500 ms"),
        (Mode::HangsUp, "connection"),
    ]
    .into_iter()
    .enumerate()
    {
        hook.does(mode);
        let id = format!("b{number}");
        let took = asked_and_answered(&gateway, &id).await;
        assert!(took < Duration::from_secs(10), "{why}: {took:?}");
        until(&gateway, why, says(why));
        assert_eq!(hook.taken(), numbered(&due), "{why}");
        hook.answers(200);
        due.push(format!("approval.requested {id}"));
        due.push(format!("approval.resolved {id}"));
        hook.has_taken(&due.iter().map(String::as_str).collect::<Vec<_>>());
        until(&gateway, "it goes on", |now| {
            now["error"].is_null() && now["waiting"] == 0
        });
    }
    // Each try of one notice has the same number, and its own time.
    let of = |what: &str| {
        let all = hook.all().into_iter().filter(|came| came.what() == what);
        all.map(|came| came.header("webhook-id"))
            .collect::<Vec<_>>()
    };
    let tries = of(&hook.all()[0].what());
    assert!(
        tries.len() > 1 && tries.iter().all(|id| *id == tries[0]),
        "{tries:?}"
    );
    // A body without end is no reason to wait.
    hook.does(Mode::Endless);
    asked_and_answered(&gateway, "c1").await;
    due.extend(["approval.requested c1", "approval.resolved c1"].map(str::to_owned));
    hook.has_taken(&due.iter().map(String::as_str).collect::<Vec<_>>());
    until(&gateway, "both are told", |now| {
        now["error"].is_null() && now["waiting"] == 0 && now["lost"] == 0
    });
    assert!(other.all().is_empty());
    let failed = gateway.json(&["audit", "query", "--action", "notices.failed"]);
    let failed = failed["records"].as_array().unwrap().len();
    assert_eq!(failed, 6, "one for each trouble");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_is_counted_and_in_the_log_and_the_next_one_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (mut gateway, hook) = prepared(folder.path());
    gateway.set("notices.attempts", "2");
    gateway.set("notices.queue", "2");
    gateway.set("notices.webhook.timeout_ms", "2000");
    gateway.launch();
    give_key(&gateway);
    hook.answers(503);
    asked_and_answered(&gateway, "d1").await;
    until(&gateway, "given up", |now| {
        now["lost"] == 2 && now["waiting"] == 0
    });
    // More than may wait: the oldest goes, and is tried once more when there is room.
    hook.does(Mode::Silent);
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    for id in ["e0", "e1", "e2", "e3"] {
        ask(&mut asks, id, json!({})).await;
    }
    until(&gateway, "pushed out", |now| now["lost"] == 3);
    until(&gateway, "all given up", |now| {
        now["lost"] == 7 && now["waiting"] == 0
    });
    assert!(hook.taken().is_empty());
    hook.answers(200);
    for id in ["e0", "e1", "e2", "e3"] {
        let no = json!({"id": id, "decision": "deny"});
        decides.get("exec.approval.resolve", no).await;
    }
    asked_and_answered(&gateway, "f1").await;
    hook.has_taken(&[
        "approval.resolved e0",
        "approval.resolved e1",
        "approval.resolved e2",
        "approval.resolved e3",
        "approval.requested f1",
        "approval.resolved f1",
    ]);
    let lost = gateway.json(&["audit", "query", "--action", "notices.lost"]);
    let lost = lost["records"].as_array().unwrap();
    assert_eq!(lost.len(), 7);
    assert!(
        lost.iter()
            .all(|record| !record.to_string().contains(PLANTED))
    );
    assert_eq!(gateway.json(&["audit", "verify"])["intact"], true);
}

/// The bugs: an agent's chosen id, 128 characters of its own, went to the person's phone as it stood; and by asking and hanging up
/// one agent pushed the notices of all others out.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_no_word_in_a_notice_and_pushes_no_other_agents_out() {
    let folder = tempfile::tempdir().unwrap();
    let (mut gateway, hook) = prepared(folder.path());
    gateway.set("notices.queue", "4");
    gateway.set("agents.two.elevated", "ask");
    gateway.launch();
    give_key(&gateway);
    hook.answers(503);
    let mut asks = admin(&gateway).await;
    let word = "rm-rf.visit_evil.example:approve";
    ask(&mut asks, word, json!({})).await;
    until(&gateway, "it is tried", says("503"));
    // Another agent's, and then many that are withdrawn at once.
    ask(&mut asks, "theirs", json!({"agentId": "two"})).await;
    for round in 0..4 {
        let mut floods = admin(&gateway).await;
        for number in 0..6 {
            ask(&mut floods, &format!("flood-{round}-{number}"), json!({})).await;
        }
        drop(floods);
        let gone = Instant::now() + PATIENCE;
        while gateway
            .json(&["approvals", "list"])
            .as_array()
            .unwrap()
            .len()
            > 2
        {
            assert!(Instant::now() < gone);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    // Of all of them nobody needs to hear any more.
    until(&gateway, "only two wait", |now| now["waiting"] == 2);
    hook.answers(200);
    hook.has_taken(&["approval.requested one", "approval.requested other"]);
    let all = hook.all();
    let said = all.iter().map(crate::support::hook::Came::json);
    let said: Vec<Value> = said.filter(|said| said["agent"] == "two").collect();
    for came in &all {
        for own in [word, "rm-rf", "evil", "theirs", "flood"] {
            assert!(!came.head.contains(own) && !came.body.contains(own));
        }
    }
    // By what it is called there a person finds it, and decides.
    let told = said[0]["id"].as_str().unwrap();
    let found = gateway.json(&["approvals", "show", told]);
    assert_eq!(
        (&found["id"], &found["noticeId"]),
        (&json!("theirs"), &json!(told)),
        "{found}"
    );
    gateway.json(&["approvals", "deny", told]);
    let over = gateway.json(&["approvals", "show", "theirs"]);
    assert_eq!(over["status"], "denied", "{over}");
    // No question is called so by who asks.
    let mut taken = question(told, &json!({}));
    taken["agentId"] = json!("two");
    let error = asks.refused("exec.approval.request", taken).await;
    assert_ne!(error, Value::Null, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_tells_what_was_not_told_and_what_was_is_told_to_be_over() {
    let folder = tempfile::tempdir().unwrap();
    let (mut gateway, hook) = prepared(folder.path());
    gateway.launch();
    give_key(&gateway);
    let mut asks = admin(&gateway).await;
    // This one is told, and is over while nobody is there; that one is open, and could not be told.
    ask(&mut asks, "g1", json!({"timeoutMs": 2500})).await;
    hook.has_taken(&["approval.requested g1"]);
    until(&gateway, "told", |now| now["told"] == 1);
    hook.answers(503);
    ask(&mut asks, "g2", json!({})).await;
    until(&gateway, "not told", says("503"));
    gateway.kill();
    drop(asks);
    std::thread::sleep(Duration::from_millis(2600));
    hook.answers(200);
    gateway.launch();
    let mut taken = Vec::new();
    let end = Instant::now() + PATIENCE;
    while taken.len() < 3 {
        assert!(Instant::now() < end, "{taken:?}");
        std::thread::sleep(Duration::from_millis(50));
        taken = hook.taken();
    }
    taken[1..].sort();
    assert_eq!(
        taken,
        [
            "approval.requested 0",
            "approval.expired 0",
            "approval.requested 1"
        ]
    );
    // Nothing is told twice by an orderly stop and start.
    until(&gateway, "all told", |now| now["waiting"] == 0);
    assert_eq!(gateway.stop(), 0);
    gateway.launch();
    gateway.vault_is_open();
    let mut decides = admin(&gateway).await;
    let no = json!({"id": "g2", "decision": "deny"});
    decides.get("exec.approval.resolve", no).await;
    until(&gateway, "its end is told", |now| now["told"] == 1);
    assert_eq!(hook.taken()[3..], ["approval.resolved 1"]);
    let mode = std::fs::metadata(gateway.state().join("notices/webhook"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&mode.unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_met_where_and_as_whom_the_configuration_says_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let other = Hook::start(folder.path());
    for (setting, value, why) in [
        // The bug to be kept away: a name that leads into one's own network.
        ("notices.webhook.networks", "[]", "is a loopback address"),
        ("notices.webhook.ca_file", other.authority(), "TLS: "),
        (
            "notices.webhook.ca_file",
            "/nonexistent/ca.pem",
            "/nonexistent/ca.pem",
        ),
        ("notices.webhook.ca_file", "", "TLS: "),
    ] {
        let (mut gateway, hook) = prepared(folder.path());
        gateway.set(setting, value);
        gateway.launch();
        give_key(&gateway);
        asked_and_answered(&gateway, "h1").await;
        until(&gateway, why, says(why));
        assert!(hook.all().is_empty(), "{setting} {value}");
    }
}

#[test]
fn a_receiver_that_is_none_starts_nothing() {
    for (name, value, key) in [
        (
            "notices.webhook.address",
            "http://localhost/x",
            "notices.webhook.address",
        ),
        (
            "notices.webhook.address",
            "https://me:word@localhost/x",
            "notices.webhook.address",
        ),
        (
            "notices.webhook.address",
            "https://",
            "notices.webhook.address",
        ),
        ("notices.webhook.key.vault", "", "notices.webhook.key"),
        ("notices.webhook.pin", "12", "notices.webhook.pin"),
        (
            "notices.webhook.networks",
            r#"["169.254.169.254"]"#,
            "notices.webhook.networks",
        ),
        ("notices.page", "javascript:alert(1)", "notices.page"),
        ("notices.program.plugin", "bell", "notices.program.plugin"),
        ("notices.attempts", "0", "notices.attempts"),
        ("plugins.bell.path", "bell", "plugins.bell.path"),
        ("plugins.bell.sha256", "ab", "plugins.bell.sha256"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (mut gateway, _hook) = prepared(folder.path());
        gateway.set(name, value);
        let (code, text) = gateway.refused();
        assert_eq!(code, 2, "{name} {value}: {text}");
        assert!(
            text.contains(key) && text.contains("CONFIG_INVALID"),
            "{key}: {text}"
        );
        assert!(!text.contains("me:word"), "{text}");
    }
}

/// The bug: nobody heard of the question, and who had asked waited half an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_says_by_which_way_people_hear_of_it_and_is_over_at_once_where_that_is_asked_for()
 {
    let gateway = Gateway::start();
    let mut asks = admin(&gateway).await;
    let (_, first) = ask(&mut asks, "r1", json!({})).await;
    assert_eq!(first["deliveryRoute"], "none");
    let needs = json!({"requireDeliveryRoute": true});
    let answer = asks
        .get("exec.approval.request", question("r2", &needs))
        .await;
    assert_eq!(answer["decision"], Value::Null, "{answer}");
    let over = asks
        .get("exec.approval.waitDecision", json!({"id": "r2"}))
        .await;
    assert_eq!(over["terminalReason"], "no-route", "{over}");
    let late = admin(&gateway)
        .await
        .refused(
            "exec.approval.resolve",
            json!({"id": "r2", "decision": "allow-once"}),
        )
        .await;
    assert_ne!(late, Value::Null);
    // Who asks is nobody to answer, though it hears of questions.
    let hears = async || {
        let mut client = Client::control(&gateway.state()).await;
        let mut params = Connect::bare()
            .scopes(&["operator.admin", "operator.approvals"])
            .params(&client.nonce, client.ts);
        params["caps"] = json!(["exec-approvals"]);
        client.get("connect", params).await;
        client
    };
    let mut alone = hears().await;
    let answer = alone
        .get("exec.approval.request", question("r3", &needs))
        .await;
    assert_eq!(answer["decision"], Value::Null, "{answer}");
    let other = hears().await;
    let (_, first) = ask(&mut alone, "r4", needs).await;
    assert_eq!(first["deliveryRoute"], "approval-client");
    drop(other);
    // What a person could not read whole is not asked.
    let long = json!({"commandArgv": ["echo", "x".repeat(16_384)]});
    let error = asks
        .refused("exec.approval.request", question("r5", &long))
        .await;
    assert_eq!(
        error["details"]["code"], "EXEC_APPROVAL_COMMAND_DISPLAY_LIMIT",
        "{error}"
    );
}
