//! Agents: a token for each, which opens TCP and `agent.sock` for that agent and nothing else.

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, Connect, Device, admin};

fn minted(gateway: &Gateway, agent: &str) -> String {
    let answer = gateway.json(&["agents", "token", agent]);
    answer["token"].as_str().unwrap().to_owned()
}

fn by(token: &str) -> Connect<'static> {
    Connect::bare()
        .role("agent")
        .auth(json!({ "token": token }))
}

fn run(agent: Option<&str>) -> Value {
    let key = crate::support::ws::hex(&crate::support::ws::random::<8>());
    let mut run = json!({"target": "sandbox", "argv": ["true"], "idempotencyKey": key});
    if let Some(agent) = agent {
        run["agent"] = agent.into();
    }
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_token_opens_both_doors_for_that_agent_and_no_operators_method() {
    let gateway = Gateway::start();
    let token = minted(&gateway, "demo");
    assert!(token.starts_with("pc_agt_"), "{token}");
    for mut client in [
        Client::dial(&gateway).await,
        Client::agent(&gateway.state()).await,
    ] {
        // Whatever it asks for.
        let asked = by(&token).scopes(&["operator.admin", "exec", "operator.act_as"]);
        let hello = client.hello(&asked).await;
        let auth = &hello["auth"];
        assert_eq!(
            (&auth["method"], &auth["role"], &auth["scopes"]),
            (&json!("agent-token"), &json!("agent"), &json!(["exec"]))
        );
        for method in [
            "status",
            "agent.token.list",
            "exec.approval.list",
            "vault.list",
        ] {
            let error = client.refused(method, json!({})).await;
            assert_eq!(error["details"]["code"], "WRONG_ROLE", "{method}");
        }
        let error = client.refused("exec.run", run(Some("other"))).await;
        assert_eq!(error["details"]["code"], "AGENT_NOT_ALLOWED");
        client.get("exec.run", run(Some("demo"))).await;
        client.get("exec.run", run(None)).await;
    }
    let records = gateway.json(&["audit", "query", "--action", "exec.run"]);
    let records = records["records"].as_array().unwrap();
    assert!(!records.is_empty());
    for record in records.iter().map(|found| &found["record"]) {
        assert_eq!(record["principal"], "agent:demo", "{record}");
        assert!(record["act_as"].is_null(), "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_sock_is_for_agents_with_a_token_whoever_dials_it() {
    let gateway = Gateway::start();
    let token = minted(&gateway, "demo");
    // This process runs as an operator: that gives nothing there.
    for connect in [
        Connect::bare().scopes(&["operator.admin"]),
        Connect::token().scopes(&["operator.admin"]),
        Connect::bare().auth(json!({ "token": token })),
        Connect::token().role("node"),
    ] {
        let mut client = Client::agent(&gateway.state()).await;
        let (error, close) = client.denied(&connect).await;
        assert_eq!(error["message"], "invalid role");
        assert_eq!(close.0, 1008);
    }
    for (connect, code) in [
        (Connect::bare().role("agent"), "AUTH_TOKEN_MISSING"),
        (by(TOKEN), "AUTH_TOKEN_MISMATCH"),
        (by(&format!("{token}x")), "AUTH_TOKEN_MISMATCH"),
        (by(&token[..token.len() - 1]), "AUTH_TOKEN_MISMATCH"),
    ] {
        for mut client in [
            Client::agent(&gateway.state()).await,
            Client::dial(&gateway).await,
        ] {
            let (error, _) = client.denied(&connect).await;
            assert_eq!(error["details"]["code"], code);
        }
    }
    // Nor does it open another role on TCP, or stand beside a device.
    for role in ["operator", "node"] {
        let connect = Connect::bare().role(role).auth(json!({ "token": token }));
        let (error, _) = Client::dial(&gateway).await.denied(&connect).await;
        assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH");
    }
    let device = Device::new();
    let mut client = Client::dial(&gateway).await;
    let (error, _) = client.denied(&by(&token).device(&device)).await;
    let said = error["message"].as_str().unwrap();
    assert!(said.contains("leave the device out"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_or_revoked_agents_token_ends_its_sessions_and_stays_dead_after_kill_9() {
    let mut gateway = Gateway::start();
    let (first, other) = (minted(&gateway, "demo"), minted(&gateway, "other"));
    let mut session = Client::dial(&gateway).await;
    session.hello(&by(&first)).await;
    let mut beside = Client::dial(&gateway).await;
    beside.hello(&by(&other)).await;
    let second = minted(&gateway, "demo");
    let end = (4001, "gateway auth changed".to_owned());
    assert_eq!(session.closed().await, end);
    beside.get("health", json!({})).await;
    let mut session = Client::agent(&gateway.state()).await;
    session.hello(&by(&second)).await;

    let listed = gateway.json(&["agents", "list"]);
    let names: Vec<_> = listed["agents"].as_array().unwrap().iter().collect();
    assert_eq!(names.len(), 2);
    assert!(!listed.to_string().contains("pc_agt_"));
    gateway.json(&["agents", "revoke", "demo"]);
    assert_eq!(session.closed().await, end);
    for _ in 0..2 {
        for dead in [&first, &second] {
            let (error, _) = Client::dial(&gateway).await.denied(&by(dead)).await;
            assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH");
        }
        Client::dial(&gateway).await.hello(&by(&other)).await;
        gateway.crash_and_start();
    }
    let output = gateway.cli(&["agents", "revoke", "demo"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("error[CREDENTIAL_NOT_FOUND]: "), "{said}");
    let found = std::process::Command::new("grep")
        .args(["-rl", "pc_agt_"])
        .arg(gateway.state())
        .output()
        .unwrap();
    assert!(found.stdout.is_empty(), "kept in the clear: {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_acts_for_an_agent_needs_act_as_and_both_stand_in_the_record() {
    let gateway = Gateway::start();
    let mut without = Client::control(&gateway.state()).await;
    without
        .hello(&Connect::bare().scopes(&["operator.approvals"]))
        .await;
    let error = without.refused("exec.run", run(Some("demo"))).await;
    assert_eq!(error["details"]["code"], "MISSING_SCOPE");
    assert_eq!(error["details"]["missingScope"], "operator.act_as");
    let mut with = admin(&gateway).await;
    with.get("exec.run", run(Some("demo"))).await;
    let records = gateway.json(&["audit", "query", "--action", "exec.run"]);
    let uid = rustix::process::geteuid().as_raw();
    let both = records["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| &found["record"])
        .any(|record| record["principal"] == format!("uid:{uid}") && record["act_as"] == "demo");
    assert!(both, "{records}");
}
