//! Our own clients before what is no gateway of theirs: another user on its port, one that floods, one that says nothing of a
//! log that was cut.

use std::io::BufRead as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::node_host::Host;
use super::remote_cli::{STRICT, token_file};
use crate::support::gateway::{Gateway, TOKEN};

const OTHER: u32 = 65_527;
const PATIENCE: Duration = Duration::from_secs(30);

/// Listens at 127.0.0.1, and says how much each who dials has to say before he is answered.
const LISTENS: &str = "
import socket, sys
l = socket.socket()
l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind(('127.0.0.1', int(sys.argv[1])))
l.listen(5)
print(l.getsockname()[1], flush=True)
while True:
    c, _ = l.accept()
    c.settimeout(20)
    print(len(c.recv(65536)), flush=True)
    c.close()
";

/// Another user, on a port.
struct Stranger {
    child: Child,
    out: std::io::BufReader<std::process::ChildStdout>,
    port: usize,
}

impl Stranger {
    fn at(port: u16) -> Self {
        let mut command = Command::new("python3");
        command
            .args(["-c", LISTENS, &port.to_string()])
            .stdout(Stdio::piped())
            .current_dir("/")
            .uid(OTHER)
            .gid(OTHER);
        let mut child = command.spawn().unwrap();
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut stranger = Self {
            child,
            out,
            port: 0,
        };
        stranger.port = stranger.heard();
        stranger
    }

    fn heard(&mut self) -> usize {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().parse().unwrap()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn told(output: &Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// The bug: over a plain address the shared token, device tokens and signatures went to whoever listened there.
#[test]
fn no_token_goes_to_another_user_who_listens_on_the_gateways_port() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let gateway = Gateway::prepared(&[]);
    let token = token_file(&gateway);
    let mut stranger = Stranger::at(0);
    let port = stranger.port;
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let url = format!("ws://{host}:{port}");
        let at = ["devices", "list", "--url", &url, "--token-file", &token];
        let (code, said) = told(&gateway.cli(&at));
        assert_eq!(code, Some(4), "{said}");
        assert!(
            said.contains("error[SERVER_NOT_VERIFIED]")
                && said.contains(&format!("uid {OTHER} listens there"))
                && said.contains(&format!("--gateway-user {OTHER}")),
            "{said}"
        );
        assert_eq!(stranger.heard(), 0, "nothing was sent");
        for other in ["root", "1"] {
            let args = [&at[..], &["--gateway-user", other]].concat();
            assert_eq!(gateway.cli(&args).status.code(), Some(4));
            assert_eq!(stranger.heard(), 0, "nothing was sent");
        }
        for named in [&OTHER.to_string(), "any"] {
            let args = [&at[..], &["--gateway-user", named]].concat();
            let (code, said) = told(&gateway.cli(&args));
            assert_eq!(code, Some(7), "{said}");
            assert!(stranger.heard() > 0, "an upgrade is asked for");
        }
    }
    // A node host waits until its gateway is back on its port.
    let mut host = Host::start(&gateway, &format!("ws://127.0.0.1:{port}"), &token);
    host.says(&format!("uid {OTHER} listens there"));
    assert_eq!(stranger.heard(), 0, "nothing was sent");
    assert_eq!(stranger.heard(), 0, "it tries again, and sends nothing");
    assert_eq!(host.stop(), 0);
}

/// The bug: who listened at 127.0.0.1 beside a gateway at ::1 was taken for it, and passed on what he got.
#[tokio::test(flavor = "multi_thread")]
async fn on_localhost_the_gateway_is_found_beside_who_stands_in_for_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let gateway = Gateway::prepared(&[]);
    let token = token_file(&gateway);
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut stranger = Stranger::at(port);
    let url = format!("ws://localhost:{port}");
    let list = ["devices", "list", "--url", &url, "--token-file", &token];
    let mut command = tokio::process::Command::from(gateway.command(&list));
    let child = command.kill_on_drop(true).spawn().unwrap();
    drop(greets(&listener, "operator", &["operator.admin"]).await);
    assert_eq!(stranger.heard(), 0, "nothing was sent");
    drop(child);
    // He alone is nobody's gateway, whatever the name.
    drop(listener);
    let (code, said) = told(&gateway.cli(&list));
    assert_eq!(code, Some(4), "{said}");
    assert_eq!(stranger.heard(), 0, "nothing was sent");
}

/// As far as a hello, for whoever comes; what he asks first.
async fn greets(listener: &TcpListener, role: &str, scopes: &[&str]) -> WebSocketStream<TcpStream> {
    let came = tokio::time::timeout(PATIENCE, listener.accept()).await;
    let (stream, _) = came.expect("nobody comes").unwrap();
    let mut ws = tokio_tungstenite::accept_async(stream).await.unwrap();
    let challenge = json!({ "type": "event", "event": "connect.challenge", "payload": { "nonce": "n-1", "ts": 5 } });
    ws.send(Message::text(challenge.to_string())).await.unwrap();
    let connect = asked(&mut ws).await.unwrap();
    let hello = json!({
        "type": "res", "id": connect["id"], "ok": true,
        "payload": { "type": "hello-ok", "protocol": 4, "auth": { "role": role, "scopes": scopes } },
    });
    ws.send(Message::text(hello.to_string())).await.unwrap();
    ws
}

async fn asked(ws: &mut WebSocketStream<TcpStream>) -> Option<Value> {
    loop {
        match ws.next().await? {
            Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// Sends this for as long as it is taken, and reads nothing.
async fn floods(ws: WebSocketStream<TcpStream>, what: &[u8]) {
    let mut stream = ws.into_inner();
    let block = what.repeat(1_000);
    let all = async { while stream.write_all(&block).await.is_ok() {} };
    let ended = tokio::time::timeout(PATIENCE, all).await;
    ended.expect("the flood is heard to no end");
}

/// The bug: a gateway that flooded with pings and read none of the pongs made a client grow without end, and fragments of a
/// byte kept it beyond its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_floods_with_frames_that_say_nothing_is_left_at_once() {
    let gateway = Gateway::prepared(&[]);
    let token = token_file(&gateway);
    let ping = [&[0x89, 125][..], &[b'p'; 125]].concat();
    let node = ["node", "run", "--url"];
    let watch = ["approvals", "watch", "--url"];
    let list = ["devices", "list", "--url"];
    for (words, role, what) in [
        (&list, "operator", &ping[..]),
        (&list, "operator", &[0x82, 0]),
        (
            &list,
            "operator",
            &[0x01, 1, b'{', 0x00, 0, 0x00, 1, b' ', 0x80, 1, b'}'],
        ),
        (&watch, "operator", &ping),
        (&node, "node", &ping),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let mut command = gateway.command(&[&words[..], &[&url, "--token-file", &token]].concat());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let child = command.kill_on_drop(true).spawn().unwrap();
        let ws = greets(&listener, role, &["operator.admin"]).await;
        let began = Instant::now();
        floods(ws, what).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{words:?}");
        if role == "node" {
            // It comes back, by and by.
            listener.accept().await.unwrap();
            continue;
        }
        let output = child.wait_with_output().await.unwrap();
        let (code, said) = told(&output);
        assert_eq!(code, Some(7), "{words:?} {what:?}: {said}");
        assert!(said.contains("error[SERVER_FLOODS]"), "{said}");
    }
}

/// Elsewhere credentials went where a redirect said.
#[tokio::test(flavor = "multi_thread")]
async fn our_clients_follow_nobody_who_sends_them_elsewhere() {
    let gateway = Gateway::prepared(&[]);
    let token = token_file(&gateway);
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = elsewhere.local_addr().unwrap();
    for (words, scheme) in [
        (["devices", "list"], "ws"),
        (["devices", "list"], "http"),
        (["node", "run"], "ws"),
    ] {
        for status in ["301", "302", "307", "308"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("ws://{}", listener.local_addr().unwrap());
            let args = [&words[..], &["--url", &url, "--token-file", &token]].concat();
            let mut command = gateway.command(&args);
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            let mut command = tokio::process::Command::from(command);
            let child = command.kill_on_drop(true).spawn().unwrap();
            let came = tokio::time::timeout(PATIENCE, listener.accept()).await;
            let (mut stream, _) = came.expect("nobody comes").unwrap();
            let mut head = vec![];
            while !head.ends_with(b"\r\n\r\n") {
                let read = stream.read_buf(&mut head).await.unwrap();
                assert_ne!(read, 0, "it hung up");
            }
            assert!(!String::from_utf8_lossy(&head).contains(TOKEN));
            let answer = format!(
                "HTTP/1.1 {status} X\r\nLocation: {scheme}://{there}/\r\nContent-Length: 0\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            drop(stream);
            if words[0] == "node" {
                // It comes back to where it was told to go, by and by.
                let back = tokio::time::timeout(PATIENCE, listener.accept()).await;
                back.expect("it comes back").unwrap();
            } else {
                let (code, said) = told(&child.wait_with_output().await.unwrap());
                assert_eq!(code, Some(7), "{status}: {said}");
                assert!(!said.contains(TOKEN), "{said}");
            }
        }
    }
    let came = tokio::time::timeout(Duration::from_millis(200), elsewhere.accept()).await;
    assert!(came.is_err(), "somebody came");
}

/// The bug: a gateway whose log was cut had but to say that it tells nothing of it, and nobody heard of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_has_told_of_its_log_cannot_be_silent_about_it() {
    let mut gateway = Gateway::with(&[STRICT]);
    let url = format!("ws://127.0.0.1:{}", gateway.port());
    let token = token_file(&gateway);
    let at = |words: &[&'static str]| [words, &["--url", &url, "--token-file", &token]].concat();
    let list = at(&["devices", "list"]);
    let verify = at(&["audit", "verify"]);
    let waits = gateway.cli(&[&list[..], &["--json"]].concat());
    let waits: Value = serde_json::from_slice(&waits.stdout).unwrap();
    let id = waits["error"]["requestId"].as_str().unwrap();
    gateway.json(&["devices", "approve", id]);
    gateway.json(&list);
    let port = gateway.port();
    assert_eq!(gateway.stop(), 0);
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    for (args, code, (exit, word)) in [
        (&list, "MISSING_SCOPE", (10, "error[AUDIT_FORKED]")),
        (&list, "UNKNOWN_METHOD", (10, "error[AUDIT_FORKED]")),
        (&list, "INTERNAL", (0, "warning[AUDIT_NOT_COMPARED]")),
        (&verify, "MISSING_SCOPE", (10, "error[AUDIT_FORKED]")),
        (&verify, "UNKNOWN_METHOD", (10, "error[AUDIT_FORKED]")),
        (&verify, "INTERNAL", (1, "error[INTERNAL]")),
    ] {
        let mut command = gateway.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let child = command.kill_on_drop(true).spawn().unwrap();
        let mut ws = greets(&listener, "operator", &["operator.admin"]).await;
        while let Some(request) = asked(&mut ws).await {
            let method = request["method"].as_str().unwrap();
            let answer = if method == "audit.checkpoint" {
                let error = json!({ "code": "FORBIDDEN", "message": "\u{1b}[2Jno", "details": { "code": code } });
                json!({ "type": "res", "id": request["id"], "ok": false, "error": error })
            } else {
                let payload = json!({ "pending": [], "paired": [], "ok": true, "records": 1 });
                json!({ "type": "res", "id": request["id"], "ok": true, "payload": payload })
            };
            if ws.send(Message::text(answer.to_string())).await.is_err() {
                break;
            }
        }
        let (status, said) = told(&child.wait_with_output().await.unwrap());
        assert_eq!(status, Some(exit), "{args:?} {code}: {said}");
        assert!(said.contains(word) && !said.contains('\u{1b}'), "{said}");
        assert!(!said.contains(TOKEN));
    }
}
