//! What somebody beyond this machine gets, from a far end in a network namespace.

use std::io::{Read as _, Write as _};

use rustls::pki_types::ServerName;
use serde_json::json;
use tokio_rustls::TlsConnector;

use super::tls::{pinned, session_over};
use crate::support::gateway::Gateway;
use crate::support::net::{FAR, Far, NEAR, dial_from, far};
use crate::support::ws::{Client, Connect, Device};

fn serving(more: &[(&str, &str)]) -> Gateway {
    let mut gateway =
        Gateway::prepared(&[("gateway.bind", "0.0.0.0"), ("gateway.tls.enabled", "true")]);
    for (name, value) in more {
        gateway.set(name, value);
    }
    gateway.launch();
    gateway
}

fn request(path: &str, host: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n")
}

fn over_tls(gateway: &Gateway, socket: std::net::TcpStream, request: &str) -> String {
    let mut stream = session_over(socket, pinned(gateway)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[test]
fn a_strangers_plain_request_is_not_served_and_over_tls_it_is() {
    let Some(far) =
        far("protocol::far::a_strangers_plain_request_is_not_served_and_over_tls_it_is")
    else {
        return;
    };
    let gateway = serving(&[]);
    let probe = request("/healthz", NEAR, "");
    let mut plain = far.dial(FAR[0], gateway.port());
    plain.write_all(probe.as_bytes()).unwrap();
    let mut answer = vec![];
    let _ = plain.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    let answer = over_tls(&gateway, far.dial(FAR[0], gateway.port()), &probe);
    assert_eq!(status(&answer), "200", "{answer}");
    // From an address of our own that is not loopback, plain is not served either.
    let near = std::net::SocketAddr::new(NEAR.parse().unwrap(), gateway.port());
    let mut plain = dial_from(NEAR.parse().unwrap(), near);
    plain.write_all(probe.as_bytes()).unwrap();
    let mut answer = vec![];
    let _ = plain.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_loopback_name_from_elsewhere_is_foreign() {
    let Some(far) = far("protocol::far::a_loopback_name_from_elsewhere_is_foreign") else {
        return;
    };
    let gateway = serving(&[("gateway.hosts", r#"["gate.example"]"#)]);
    for path in ["/", "/healthz", "/readyz", "/rpc/health"] {
        let ask = |host: &str| {
            let socket = far.dial(FAR[0], gateway.port());
            over_tls(&gateway, socket, &request(path, host, ""))
        };
        for host in [
            "localhost",
            "127.0.0.1",
            "[::1]",
            "198.51.100.9",
            "evil.example",
        ] {
            assert_eq!(status(&ask(host)), "421", "{path} {host}");
        }
        for host in [
            NEAR,
            "gate.example",
            &format!("GATE.example:{}", gateway.port()),
        ] {
            // The page asks for its port besides (dashboard/http.rs).
            if path == "/" {
                continue;
            }
            let answer = ask(host);
            assert!(
                !["421", ""].contains(&status(&answer)),
                "{path} {host}: {answer}"
            );
        }
    }
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let asked = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n");
    let socket = far.dial(FAR[0], gateway.port());
    let mut stream = session_over(socket, pinned(&gateway)).unwrap();
    stream.write_all(asked.as_bytes()).unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 421");
}

#[test]
fn a_proxy_is_believed_by_its_address_and_no_other() {
    let Some(far) = far("protocol::far::a_proxy_is_believed_by_its_address_and_no_other") else {
        return;
    };
    let own_too = format!(r#"["{}", "{NEAR}"]"#, FAR[0]);
    let gateway = serving(&[("gateway.auth.trusted_proxy.addresses", &own_too)]);
    let asked = request("/readyz", NEAR, "X-Forwarded-For: 203.0.113.9\r\n");
    let from = |address: &str| over_tls(&gateway, far.dial(address, gateway.port()), &asked);
    assert_eq!(status(&from(FAR[0])), "200");
    assert_eq!(status(&from(FAR[1])), "403");
    // Any process here can send from our own address: the list alone makes it no proxy.
    let near = std::net::SocketAddr::new(NEAR.parse().unwrap(), gateway.port());
    let own = dial_from(NEAR.parse().unwrap(), near);
    assert_eq!(status(&over_tls(&gateway, own, &asked)), "403");
}

/// A WebSocket over TLS from this address of the far end, up to the challenge.
async fn dial(gateway: &Gateway, far: &Far, from: &str) -> Client {
    let socket = far.dial(from, gateway.port());
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::TcpStream::from_std(socket).unwrap();
    let name = ServerName::try_from(NEAR).unwrap();
    let stream = TlsConnector::from(pinned(gateway)).connect(name, socket);
    let stream = Box::new(stream.await.unwrap());
    let host = format!("{NEAR}:{}", gateway.port());
    Client::over(stream, gateway.port(), &[("host", &host)])
        .await
        .unwrap()
}

/// The issue's own words: a remote stranger with the token gets nothing beyond `health` without approval.
#[test]
fn a_remote_stranger_with_the_token_gets_health_and_a_device_of_his_waits_for_a_person() {
    let Some(far) = far(
        "protocol::far::a_remote_stranger_with_the_token_gets_health_and_a_device_of_his_waits_for_a_person",
    ) else {
        return;
    };
    let gateway = serving(&[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(from_afar(&gateway, &far));
}

async fn from_afar(gateway: &Gateway, far: &Far) {
    let all = [
        "operator.admin",
        "operator.read",
        "operator.pairing",
        "exec",
    ];
    let asks = Connect::token().scopes(&all);
    // Not even that without the token.
    let wrong = json!({ "token": "0c5b4ad5-74e8-4a35-8a3e-7f0f2a6b6d0b" });
    for (auth, code) in [
        (wrong, "AUTH_TOKEN_MISMATCH"),
        (json!({}), "AUTH_TOKEN_MISSING"),
    ] {
        let mut client = dial(gateway, far, FAR[0]).await;
        let (error, _) = client.denied(&asks.clone().auth(auth)).await;
        assert_eq!(error["details"]["code"], code, "{error}");
    }
    // Without a device: in, and nothing but health.
    let mut alone = dial(gateway, far, FAR[0]).await;
    let hello = alone.hello(&asks).await;
    assert_eq!(hello["auth"]["scopes"], json!([]), "{hello}");
    assert_eq!(hello["snapshot"]["presence"], json!([]), "{hello}");
    alone.get("health", json!({})).await;
    let methods = hello["features"]["methods"].as_array().unwrap();
    assert!(methods.len() > 40, "{methods:?}");
    for method in methods.iter().filter_map(|name| name.as_str()) {
        if method == "health" {
            continue;
        }
        let mut client = dial(gateway, far, FAR[0]).await;
        client.hello(&asks).await;
        let error = client.refused(method, json!({})).await;
        let said = error["message"].as_str().unwrap();
        assert!(
            said.starts_with("missing scope: ") || said.starts_with("unauthorized role: "),
            "{method}: {error}"
        );
    }
    let mut node = dial(gateway, far, FAR[0]).await;
    let (error, _) = node.denied(&Connect::token().role("node")).await;
    assert_eq!(error["details"]["code"], "DEVICE_IDENTITY_REQUIRED");

    // With a device that nobody knows: it waits, and a person sees from where.
    let device = Device::new();
    let reads = Connect::token().scopes(&["operator.read"]).device(&device);
    let mut stranger = dial(gateway, far, FAR[0]).await;
    let (error, (code, reason)) = stranger.denied(&reads).await;
    assert_eq!(error["code"], "NOT_PAIRED", "{error}");
    assert_eq!(error["details"]["code"], "PAIRING_REQUIRED", "{error}");
    let id = error["details"]["requestId"].as_str().unwrap();
    assert!(code == 1008 && reason.contains(id), "{code} {reason}");
    let listed = gateway.json(&["devices", "list"]);
    let pending = &listed["pending"][0];
    assert_eq!(
        (
            &pending["requestId"],
            &pending["deviceId"],
            &pending["remoteIp"]
        ),
        (&json!(id), &json!(device.id()), &json!(FAR[0])),
        "{listed}"
    );
    assert_eq!(listed["paired"], json!([]));

    // A person has approved it: what it asked for, and no more; then by its own token, from wherever it is.
    gateway.json(&["devices", "approve", id]);
    let mut client = dial(gateway, far, FAR[0]).await;
    let hello = client.hello(&reads).await;
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
    client.get("status", json!({})).await;
    client.refused("device.pair.list", json!({})).await;
    let own = json!({ "deviceToken": hello["auth"]["deviceToken"] });
    let own = reads.clone().auth(own);
    let mut elsewhere = dial(gateway, far, FAR[1]).await;
    elsewhere.hello(&own).await;
    elsewhere.get("status", json!({})).await;
    let mut more = dial(gateway, far, FAR[0]).await;
    let (error, _) = more.denied(&asks.clone().device(&device)).await;
    assert_eq!(error["code"], "NOT_PAIRED", "{error}");
    gateway.json(&["devices", "revoke", &device.id()]);
    for mut socket in [client, elsewhere] {
        assert_eq!(socket.closed().await.0, 4001);
    }
    let mut ended = dial(gateway, far, FAR[1]).await;
    ended.denied(&own).await;
}
