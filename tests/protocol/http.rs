//! HTTP on the same port: probes, names, and the rules of the upgrade.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect};

fn request(line: &str, headers: &[&str]) -> String {
    let mut text = format!("{line}\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text
}

fn status(answer: &str) -> u16 {
    answer
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0)
}

/// Everything an upgrade needs.
const UPGRADE: &[&str] = &[
    "Host: localhost",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// Reads the head of an answer only: an upgraded socket stays open.
fn head(gateway: &Gateway, text: &str) -> String {
    let mut socket = gateway.socket();
    socket.write_all(text.as_bytes()).unwrap();
    let mut head = vec![];
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).is_ok_and(|n| n > 0) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

#[test]
fn the_probes_answer_without_a_secret() {
    let gateway = Gateway::start();
    for (path, body) in [
        ("/healthz", r#"{"ok":true,"status":"live"}"#),
        ("/health", r#"{"ok":true,"status":"live"}"#),
        ("/readyz", r#"{"ready":true}"#),
        ("/ready", r#"{"ready":true}"#),
    ] {
        let answer = gateway.http(&request(
            &format!("GET {path} HTTP/1.1"),
            &["Host: localhost", "Connection: close"],
        ));
        assert!(status(&answer) == 200 && answer.ends_with(body), "{answer}");
        assert!(
            answer.to_lowercase().contains("cache-control: no-store"),
            "{answer}"
        );
        let answer = gateway.http(&request(
            &format!("HEAD {path} HTTP/1.1"),
            &["Host: localhost", "Connection: close"],
        ));
        assert!(
            status(&answer) == 200 && answer.ends_with("\r\n\r\n"),
            "{answer}"
        );
    }
}

#[test]
fn a_probe_with_another_method_gets_405_and_what_is_allowed() {
    let gateway = Gateway::start();
    for path in ["/healthz", "/readyz"] {
        for method in ["POST", "DELETE", "OPTIONS"] {
            let answer = gateway.http(&request(
                &format!("{method} {path} HTTP/1.1"),
                &["Host: localhost", "Connection: close"],
            ));
            assert_eq!(status(&answer), 405, "{answer}");
            assert!(
                answer.to_lowercase().contains("allow: get, head\r\n"),
                "{answer}"
            );
        }
    }
}

#[test]
fn a_foreign_host_is_refused_on_every_path_and_on_the_upgrade() {
    let gateway = Gateway::start();
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:18789",
        "[::1",
        "",
    ] {
        let host = format!("Host: {host}");
        for path in ["/", "/healthz", "/readyz", "/rpc/health", "/nothing"] {
            let answer = gateway.http(&request(
                &format!("GET {path} HTTP/1.1"),
                &[&host, "Connection: close"],
            ));
            assert_eq!(status(&answer), 421, "{host} {path}: {answer}");
        }
        let mut headers = UPGRADE.to_vec();
        headers[0] = &host;
        assert_eq!(
            status(&head(&gateway, &request("GET / HTTP/1.1", &headers))),
            421,
            "{host}"
        );
    }
    for host in ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:18789"] {
        let host = format!("Host: {host}");
        let answer = gateway.http(&request(
            "GET /healthz HTTP/1.1",
            &[&host, "Connection: close"],
        ));
        assert_eq!(status(&answer), 200, "{host}: {answer}");
    }
    let twice = ["Host: localhost", "Host: evil.example", "Connection: close"];
    assert_eq!(
        status(&gateway.http(&request("GET /healthz HTTP/1.1", &twice))),
        400
    );
}

#[test]
fn an_upgrade_with_everything_is_taken_without_extension_on_any_path() {
    let gateway = Gateway::start();
    for path in ["/", "/some/context", "/?x=1"] {
        let mut headers = UPGRADE.to_vec();
        headers.push("Sec-WebSocket-Extensions: permessage-deflate");
        headers.push("Sec-WebSocket-Protocol: chat");
        let answer = head(
            &gateway,
            &request(&format!("GET {path} HTTP/1.1"), &headers),
        )
        .to_lowercase();
        assert_eq!(status(&answer), 101, "{answer}");
        // RFC 6455 section 1.3 has this very key.
        assert!(
            answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
            "{answer}"
        );
        assert!(
            !answer.contains("extensions") && !answer.contains("sec-websocket-protocol"),
            "{answer}"
        );
    }
}

#[test]
fn an_upgrade_that_lacks_something_is_refused() {
    let gateway = Gateway::start();
    let without = |name: &str| -> Vec<&str> {
        UPGRADE
            .iter()
            .copied()
            .filter(|h| !h.starts_with(name))
            .collect()
    };
    let with = |name: &str, header: &'static str| {
        let mut headers = without(name);
        headers.push(header);
        headers
    };
    let twice = {
        let mut headers = UPGRADE.to_vec();
        headers.push("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==");
        headers
    };
    for (headers, code) in [
        (without("Sec-WebSocket-Key"), 400),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: short"), 400),
        (
            with(
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==",
            ),
            400,
        ),
        (
            with(
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==",
            ),
            400,
        ),
        (twice, 400),
        (without("Sec-WebSocket-Version"), 426),
        (
            with("Sec-WebSocket-Version", "Sec-WebSocket-Version: 12"),
            426,
        ),
        (without("Connection"), 400),
        (with("Upgrade", "Upgrade: h2c"), 400),
        // What follows the head is one thing only.
        (with("None", "Content-Length: 3"), 400),
        (with("None", "Transfer-Encoding: chunked"), 400),
    ] {
        let answer = head(&gateway, &request("GET / HTTP/1.1", &headers));
        assert_eq!(status(&answer), code, "{headers:?}: {answer}");
    }
    let old = with("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8");
    assert!(
        head(&gateway, &request("GET / HTTP/1.1", &old))
            .to_lowercase()
            .contains("sec-websocket-version: 13")
    );
    // The absolute form names the host as the header does, or nobody knows which is meant.
    let same = head(
        &gateway,
        &request("GET http://localhost/ HTTP/1.1", UPGRADE),
    );
    assert_eq!(status(&same), 101, "{same}");
    for line in [
        "GET / HTTP/1.0",
        "POST / HTTP/1.1",
        "GET http://evil.example/ HTTP/1.1",
    ] {
        let answer = head(&gateway, &request(line, UPGRADE));
        assert_eq!(status(&answer), 400, "{line}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_gets_no_websocket_session_whatever_it_knows() {
    let gateway = Gateway::start();
    let own = format!("http://localhost:{}", gateway.port());
    for origin in ["https://evil.example", "null", &own] {
        let mut client = Client::dial_with(&gateway, &[("Origin", origin)])
            .await
            .unwrap();
        let (error, close) = client.denied(&Connect::token()).await;
        // A guess from a page learns nothing: the right secret and a wrong one are told the same, however often.
        for n in 0..12 {
            let mut client = Client::dial_with(&gateway, &[("Origin", origin)])
                .await
                .unwrap();
            let auth = json!({ "token": format!("guess {n}"), "password": format!("guess {n}") });
            let told = client.denied(&Connect::bare().auth(auth)).await;
            assert_eq!(told, (error.clone(), close.clone()), "{origin}");
        }
        assert_eq!(error["code"], "INVALID_REQUEST");
        assert_eq!(
            error["details"]["code"], "CONTROL_UI_ORIGIN_NOT_ALLOWED",
            "{origin}"
        );
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .starts_with("origin not allowed (")
        );
        assert_eq!(close.0, 1008);
    }
    let mut plain = Client::dial(&gateway).await;
    plain.hello(&Connect::token()).await;
    plain.get("health", json!({})).await;
}

#[test]
fn a_header_over_16_kib_is_refused() {
    let gateway = Gateway::start();
    let fits = format!("X-Pad: {}", "x".repeat(12 * 1024));
    let answer = gateway.http(&request(
        "GET /healthz HTTP/1.1",
        &["Host: localhost", &fits, "Connection: close"],
    ));
    assert_eq!(status(&answer), 200, "{answer}");
    let large = format!("X-Pad: {}", "x".repeat(17 * 1024));
    let answer = gateway.http(&request(
        "GET /healthz HTTP/1.1",
        &["Host: localhost", &large, "Connection: close"],
    ));
    assert_eq!(status(&answer), 431, "{answer}");
}

#[test]
fn half_a_header_and_an_idle_connection_are_closed() {
    let gateway = Gateway::with(&[("gateway.limits.header_ms", "300")]);
    for sent in [
        "GET /healthz HTTP/1.1\r\nHost: loc",
        "",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut socket = gateway.socket();
        let began = Instant::now();
        socket.write_all(sent.as_bytes()).unwrap();
        let mut answer = vec![];
        let end = socket.read_to_end(&mut answer);
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(250) && took < Duration::from_secs(10),
            "{sent:?}: {took:?} {end:?}"
        );
    }
}

/// Keep-alive with a request now and then, a form whose body never comes, and answers that are never read.
#[test]
fn a_socket_that_stays_with_plain_http_is_closed_in_the_end() {
    let gateway = Gateway::with(&[
        ("gateway.limits.handshake_ms", "1200"),
        ("gateway.limits.header_ms", "300"),
    ]);
    let ask = "GET /style.css HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let closed = |send: &mut dyn FnMut(&mut TcpStream) -> std::io::Result<()>| {
        let mut socket = gateway.socket();
        socket
            .set_write_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let began = Instant::now();
        loop {
            match send(&mut socket) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
                Ok(()) => {}
            }
            assert!(began.elapsed() < Duration::from_secs(30), "it stays");
        }
    };
    let pause = || std::thread::sleep(Duration::from_millis(100));
    closed(&mut |socket| {
        pause();
        socket.write_all(ask.as_bytes())?;
        match socket.read(&mut vec![0; 64 * 1024])? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    });
    let many = ask.repeat(100);
    closed(&mut |socket| socket.write_all(many.as_bytes()));
    let mut sent = false;
    closed(&mut |socket| {
        if !sent {
            sent = true;
            let origin = format!("http://localhost:{}", socket.peer_addr()?.port());
            let head = format!(
                "POST /login HTTP/1.1\r\nHost: {}\r\nOrigin: {origin}\r\nContent-Length: 9999\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\n\r\n",
                &origin[7..]
            );
            socket.write_all(head.as_bytes())?;
        }
        pause();
        socket.write_all(b"x")
    });
}

#[test]
fn bytes_that_are_no_http_are_closed_and_the_gateway_serves_on() {
    let gateway = Gateway::start();
    for bytes in [
        "\x16\x03\x01\x02\x00",
        "SSH-2.0-x\r\n\r\n",
        "GET\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        let answer = gateway.http(bytes);
        assert!(answer.is_empty() || status(&answer) == 400, "{answer}");
    }
    let answer = gateway.http(&request(
        "GET /healthz HTTP/1.1",
        &["Host: localhost", "Connection: close"],
    ));
    assert_eq!(status(&answer), 200);
}

/// The bug: only the last coding was looked at, so that `xchunked` beside `chunked` was served (RFC 9112 6.1).
#[test]
fn a_body_in_another_coding_than_one_chunked_is_refused_on_every_path() {
    let gateway = Gateway::start();
    let ask = |path: &str, codings: &[&str]| {
        let mut headers = vec!["Host: localhost"];
        headers.extend(codings);
        let text = request(&format!("GET {path} HTTP/1.1"), &headers);
        head(&gateway, &format!("{text}0\r\n\r\n"))
    };
    for path in ["/healthz", "/readyz", "/", "/rpc/status"] {
        for codings in [
            &["Transfer-Encoding: xchunked", "Transfer-Encoding: chunked"][..],
            &["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
            &["Transfer-Encoding: xchunked, chunked"],
            &["Transfer-Encoding: gzip, chunked"],
            &["Transfer-Encoding: chunked, chunked"],
        ] {
            let answer = ask(path, codings);
            assert_eq!(status(&answer), 501, "{path} {codings:?}: {answer}");
            assert!(
                answer.to_lowercase().contains("connection: close"),
                "{answer}"
            );
        }
    }
    for coding in ["Transfer-Encoding: chunked", "Transfer-Encoding: Chunked"] {
        assert_eq!(status(&ask("/healthz", &[coding])), 200);
    }
}

/// The bug: one value of a proxy's header with a line feed in it was read as two headers, and let its sender in as a user.
#[tokio::test(flavor = "multi_thread")]
async fn a_bare_lf_or_cr_in_a_head_is_refused_at_every_door() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let gateway = Gateway::start();
    let good = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
    let heads = [
        format!("{good}X-Forwarded-For: 203.0.113.9\nX-User: ann\r\n\r\n"),
        format!("{good}A: b\rC: d\r\n\r\n"),
        format!("{good}\n"),
        format!("{good}\r\r\n"),
        "GET /healthz HTTP/1.1\nHost: localhost\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\rHost: localhost\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\nHost: localhost\n\n".to_owned(),
        format!("\n{good}\r\n"),
        // On a connection that goes on, behind a body.
        format!(
            "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\na\nb{good}A: b\nC: d\r\n\r\n"
        ),
        format!("{good}\r\n{good}A: b\nC: d\r\n\r\n"),
        // What the library would leave out of the target.
        "GET /healthz#a HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
    ];
    for head in &heads {
        let answer = gateway.http(head);
        let last = answer.rsplit("HTTP/1.1 ").next().unwrap_or_default();
        assert!(last.starts_with("400"), "{head:?}: {answer}");
        for door in ["control.sock", "agent.sock"] {
            let path = gateway.state().join("run").join(door);
            let mut socket = tokio::net::UnixStream::connect(path).await.unwrap();
            socket.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            let last = answer.rsplit("HTTP/1.1 ").next().unwrap_or_default();
            assert!(last.starts_with("400"), "{door}: {head:?}: {answer}");
        }
    }
    // What is whole goes on: one socket, many requests, and a line feed in a body is its own business.
    let answer = gateway.http(&format!(
        "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\na\nb{good}\r\n{good}Connection: close\r\n\r\n"
    ));
    assert_eq!(answer.matches("HTTP/1.1 405").count(), 1, "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
}
