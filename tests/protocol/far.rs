//! What somebody beyond this machine gets, from a far end in a network namespace.

use std::io::{Read as _, Write as _};

use super::tls::{pinned, session_over};
use crate::support::gateway::Gateway;
use crate::support::net::{FAR, NEAR, dial_from, far};

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
