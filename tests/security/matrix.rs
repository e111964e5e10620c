//! Every method of the registry, through every door, in every role, with every scope alone: the verdict is worked out
//! here from the table's rows, and compared with what a real connection gets.

use std::collections::BTreeSet;

use portcullis_core::auth::Scope;
use portcullis_core::protocol::method::{Access, METHODS};
use serde_json::{Value, json};

use crate::protocol::signed_http::Signer;
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, join};

/// The scopes of the wire's closed list that an operator may hold, and what each gives besides itself.
pub const SCOPES: &[(&str, &[&str])] = &[
    (
        "operator.admin",
        &[
            "operator.read",
            "operator.write",
            "operator.approvals",
            "operator.questions",
            "operator.pairing",
            "operator.talk",
            "operator.talk.secrets",
            "operator.sessions.read",
            "operator.sessions.write",
            "operator.act_as",
            "operator.auditor",
        ],
    ),
    ("operator.read", &["operator.sessions.read"]),
    (
        "operator.write",
        &[
            "operator.read",
            "operator.talk",
            "operator.sessions.read",
            "operator.sessions.write",
        ],
    ),
    ("operator.approvals", &[]),
    ("operator.questions", &[]),
    ("operator.pairing", &[]),
    ("operator.talk", &[]),
    ("operator.talk.secrets", &[]),
    ("operator.sessions.read", &[]),
    ("operator.sessions.write", &["operator.sessions.read"]),
    ("operator.act_as", &[]),
    ("operator.auditor", &[]),
];

/// What a request gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It reaches the method, which may dislike its params.
    Reached,
    /// `missing scope: …`
    Scope(String),
    /// `unauthorized role: …`
    Role,
    /// `unknown method: …`
    Unknown,
}

/// By the table's row, in words of this file.
pub fn expected(access: Option<Access>, role: &str, scope: Option<&str>) -> Verdict {
    let holds = |wanted: &str| {
        scope.is_some_and(|held| {
            held == wanted
                || SCOPES
                    .iter()
                    .any(|(name, gives)| *name == held && gives.contains(&wanted))
        })
    };
    let need = |wanted: &str| {
        if holds(wanted) {
            Verdict::Reached
        } else {
            Verdict::Scope(wanted.to_owned())
        }
    };
    match (access, role) {
        (None, _) => Verdict::Unknown,
        (Some(Access::Anyone), _) | (Some(Access::Node | Access::Holder), "node") => {
            Verdict::Reached
        }
        (Some(Access::Holder), "operator") if scope.is_some() => Verdict::Reached,
        (Some(Access::Holder), "operator") => need(Scope::Read.as_str()),
        (Some(Access::Operator(scope)), "operator") => need(scope.as_str()),
        (Some(Access::AgentOrActAs), "operator") => need(Scope::ActAs.as_str()),
        (Some(Access::AgentOrActAs), "agent") => need(Scope::Exec.as_str()),
        (Some(_), _) => Verdict::Role,
    }
}

/// Asked with params that no method takes, so that nothing is done.
async fn verdict(client: &mut Client, method: &str) -> Verdict {
    let answer = client.call(method, json!({ "no such param": [] })).await;
    verdict_of(&answer, method)
}

fn verdict_of(answer: &Value, method: &str) -> Verdict {
    let error = &answer["error"];
    let message = error["message"].as_str().unwrap_or_default();
    if let Some(scope) = message.strip_prefix("missing scope: ") {
        assert_eq!(
            (&error["code"], &error["details"]["code"]),
            (&json!("FORBIDDEN"), &json!("MISSING_SCOPE"))
        );
        return Verdict::Scope(scope.to_owned());
    }
    let invalid = error["code"] == "INVALID_REQUEST";
    if invalid && message.starts_with("unauthorized role: ") {
        return Verdict::Role;
    }
    if invalid && message == format!("unknown method: {method}") {
        return Verdict::Unknown;
    }
    Verdict::Reached
}

/// Every method in one connection; `health` between them, so that wrong roles in a row do not close it.
async fn walk(client: &mut Client, door: &str, role: &str, scope: Option<&str>) -> usize {
    let unknown = [
        "no.such",
        "",
        "HEALTH",
        "health ",
        "exec.approval",
        "connect.x",
        "admin",
    ];
    let rows = METHODS
        .iter()
        .map(|(name, access)| (*name, Some(*access)))
        .chain(unknown.map(|name| (name, None)));
    let mut cells = 0;
    for (method, access) in rows {
        if method.is_empty() {
            continue;
        }
        assert_eq!(
            verdict(client, method).await,
            expected(access, role, scope),
            "{door} {role} {scope:?} {method}"
        );
        assert_eq!(client.call("health", json!({})).await["ok"], true);
        cells += 1;
    }
    cells
}

pub fn list() -> String {
    let names: Vec<&str> = SCOPES.iter().map(|(name, _)| *name).collect();
    Value::from(names).to_string()
}

/// Through this door, as an operator with this scope only.
async fn operator(gateway: &Gateway, door: &str, scope: Option<&str>) -> Client {
    let scopes: Vec<&str> = scope.into_iter().collect();
    let (mut client, connect) = match door {
        "tcp" => (Client::dial(gateway).await, Connect::token()),
        _ => (Client::control(&gateway.state()).await, Connect::bare()),
    };
    let hello = client.hello(&connect.scopes(&scopes)).await;
    assert_eq!(hello["auth"]["scopes"], json!(scopes), "{door} {scope:?}");
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_gets_its_verdict_through_every_door_in_every_role_with_every_scope() {
    let all = list();
    let gateway = Gateway::with(&[
        ("gateway.auth.shared_token_scopes", all.as_str()),
        ("gateway.local.local_scopes", all.as_str()),
    ]);
    let mut cells = 0;
    for door in ["tcp", "control.sock"] {
        for scope in SCOPES.iter().map(|(name, _)| Some(*name)).chain([None]) {
            let mut client = operator(&gateway, door, scope).await;
            cells += walk(&mut client, door, "operator", scope).await;
        }
    }
    // A node holds no operator's scope, whatever it asks for.
    for scopes in [&[][..], &["operator.admin", "exec"]] {
        let device = Device::new();
        let node = Connect::token().role("node").device(&device).scopes(scopes);
        let mut client = Client::dial(&gateway).await;
        let params = node.params(&client.nonce, client.ts);
        let answer = client.call("connect", params).await;
        if answer["ok"] == true {
            assert_eq!(answer["payload"]["auth"]["scopes"], json!([]), "{answer}");
            cells += walk(&mut client, "tcp", "node", None).await;
        } else {
            assert!(!scopes.is_empty(), "{answer}");
        }
    }
    // No door lets a role in that is not for it.
    for (door, role, connect) in [
        ("control.sock", "node", Connect::bare()),
        ("control.sock", "agent", Connect::bare()),
        ("tcp", "agent", Connect::token()),
        ("tcp", "worker", Connect::token()),
        ("tcp", "root", Connect::token()),
    ] {
        let mut client = match door {
            "tcp" => Client::dial(&gateway).await,
            _ => Client::control(&gateway.state()).await,
        };
        let mut params = connect.params(&client.nonce, client.ts);
        params["role"] = role.into();
        params["scopes"] = json!(["exec", "operator.admin"]);
        // A worker is closed without a word.
        let answer = client.try_call("connect", params).await;
        assert!(
            answer.is_none_or(|answer| answer["ok"] == false),
            "{door} {role}"
        );
        cells += 1;
    }
    // The page shows and does nothing without a session; a session is an operator's, with what that one held.
    for path in ["/", "/live", "/approvals", "/devices", "/logout"] {
        for method in ["GET", "POST"] {
            let answer = gateway.http(&format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                gateway.port()
            ));
            let status = answer.split_whitespace().nth(1).unwrap();
            assert!(
                ["303", "401", "403", "405", "404", "204"].contains(&status),
                "{method} {path}: {answer}"
            );
            cells += 1;
        }
    }
    assert!(cells >= 24 * METHODS.len(), "{cells}");
    println!(
        "FIGURE: conformance matrix: {cells} cells, {} methods",
        METHODS.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_passwords_and_signed_requests_get_the_same_verdicts_as_the_table_says() {
    let all = list();
    let gateway = Gateway::with(&[
        ("gateway.auth.mode", "token+password"),
        ("gateway.auth.bcrypt_cost", "10"),
        ("gateway.auth.shared_token_scopes", all.as_str()),
        ("gateway.local.local_scopes", all.as_str()),
    ]);
    let mut cells = 0;
    // An agent, through both of its doors, whatever it asks for.
    let minted = gateway.json(&["agents", "token", "demo"]);
    for door in ["tcp", "agent.sock"] {
        let mut client = match door {
            "tcp" => Client::dial(&gateway).await,
            _ => Client::agent(&gateway.state()).await,
        };
        let token = json!({ "token": minted["token"] });
        let connect = Connect::bare().role("agent").auth(token);
        client
            .hello(&connect.scopes(&["exec", "operator.admin"]))
            .await;
        cells += walk(&mut client, door, "agent", Some("exec")).await;
    }
    // Nobody else comes in there.
    for role in ["operator", "node", "worker"] {
        let mut client = Client::agent(&gateway.state()).await;
        let params = Connect::token().role(role).params(&client.nonce, client.ts);
        let answer = client.try_call("connect", params).await;
        assert!(answer.is_none_or(|answer| answer["ok"] == false), "{role}");
        cells += 1;
    }
    let secret = b"a password of several words";
    assert_eq!(gateway.feed(&["password", "set"], secret), 0);
    for scope in SCOPES.iter().map(|(name, _)| Some(*name)).chain([None]) {
        let scopes: Vec<&str> = scope.into_iter().collect();
        let auth = json!({ "password": "a password of several words" });
        let connect = Connect::bare().auth(auth).scopes(&scopes);
        let (mut client, hello) = join(&gateway, &connect).await;
        assert_eq!(hello["auth"]["scopes"], json!(scopes), "{scope:?}");
        cells += walk(&mut client, "tcp by password", "operator", scope).await;
        // And over HTTP, signed with a key of a device that holds this scope.
        let signer = Signer::new(&gateway, &scopes).await;
        for (method, access) in METHODS {
            let body = r#"{"no such param": []}"#;
            let (_, answer) = signer.now(&gateway, method, body).go(&gateway);
            assert_eq!(
                verdict_of(&answer, method),
                expected(Some(*access), "operator", scope),
                "http {scope:?} {method}: {answer}"
            );
            cells += 1;
        }
    }
    assert!(cells >= 25 * METHODS.len(), "{cells}");
    println!("FIGURE: conformance matrix, further doors: {cells} cells");
}

#[tokio::test(flavor = "multi_thread")]
async fn hello_lists_the_methods_of_the_registry_to_everybody_and_no_other() {
    let gateway = Gateway::start();
    let ours: BTreeSet<&str> = METHODS.iter().map(|(name, _)| *name).collect();
    assert_eq!(ours.len(), METHODS.len(), "a method stands twice");
    let device = Device::new();
    for connect in [
        Connect::token(),
        Connect::token().scopes(&["operator.read"]),
        Connect::token().role("node").device(&device),
    ] {
        let (_, hello) = join(&gateway, &connect).await;
        let told = hello["features"]["methods"].as_array().unwrap();
        let told: BTreeSet<&str> = told.iter().filter_map(Value::as_str).collect();
        assert_eq!(told, ours);
    }
}
