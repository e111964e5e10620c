//! Our own node host, a real process, at a real gateway; and at a server of the test's own that asks what it should not.

use std::io::{BufRead as _, BufReader, ErrorKind};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::remote_cli::{STRICT, token_file};
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, admin};

const PATIENCE: Duration = Duration::from_mins(1);

/// `portcullis node run`. Dropped, it is killed.
pub struct Host {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Host {
    pub fn start(gateway: &Gateway, url: &str, token: &str) -> Self {
        Self::start_with(gateway, url, token, &[])
    }

    fn start_with(gateway: &Gateway, url: &str, token: &str, more: &[&str]) -> Self {
        let args = [
            "node",
            "run",
            "--url",
            url,
            "--token-file",
            token,
            "--name",
            "far",
        ];
        let mut command = gateway.command(&[&args, more].concat());
        command.env("PLANTED_IN_THE_NODE", "hunter2");
        Self::spawned(command)
    }

    /// Started by this very command.
    pub fn spawned(mut command: std::process::Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        // A copy of the binary is busy while another test's fork, not yet executed, has it open for writing.
        let mut child = loop {
            match command.spawn() {
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                spawned => break spawned.unwrap(),
            }
        };
        let lines = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::<Mutex<String>>::default();
        let to = log.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = to.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, log }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has said this, and returns all that it said.
    pub fn says(&self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if log.contains(text) {
                return log;
            }
            assert!(Instant::now() < end, "it never says {text:?}:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn ends(&mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn stop(&mut self) -> i32 {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        self.ends()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the node's log:\n{}", self.log());
        }
    }
}

/// Asks the command line until the one node is so.
pub fn node(gateway: &Gateway, is: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let list = gateway.json(&["nodes", "list"]);
        if let Some(node) = list["nodes"].as_array().unwrap().iter().find(|n| is(n)) {
            return node.clone();
        }
        assert!(Instant::now() < end, "{list}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Paired and approved by the command line; its id.
pub fn let_in(gateway: &Gateway) -> String {
    let node = node(gateway, |n| n["approvalState"] == "pending-approval");
    let pending = gateway.json(&["nodes", "pending"]);
    let id = pending[0]["requestId"].as_str().unwrap();
    assert_eq!(
        pending[0]["commands"],
        json!([
            "system.execApprovals.get",
            "system.execApprovals.set",
            "system.run",
            "system.run.prepare",
            "system.which"
        ])
    );
    let text = String::from_utf8(gateway.cli(&["nodes", "pending"]).stdout).unwrap();
    assert!(
        text.contains("far") && text.contains("system.run"),
        "{text}"
    );
    let said = gateway.cli(&["nodes", "approve", &id[..8]]);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.starts_with("approved far"), "{said}");
    node["nodeId"].as_str().unwrap().to_owned()
}

/// Asks for a run there, has it allowed, and returns its last answer and its output.
pub async fn run(
    asks: &mut Client,
    decides: &mut Client,
    node: &str,
    params: Value,
) -> (Value, String) {
    let mut all = json!({ "agent": "demo", "target": format!("node:{node}"), "idempotencyKey": uuid::Uuid::new_v4().to_string() });
    for (key, value) in params.as_object().unwrap() {
        all[key] = value.clone();
    }
    let frame = asks.ask("exec.run", all).await;
    let first = asks.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "approval-pending", "{first}");
    let id = &first["payload"]["approvalId"];
    let decision = json!({ "id": id, "decision": "allow-once" });
    decides.get("exec.approval.resolve", decision).await;
    let mut out = Vec::new();
    loop {
        let came = asks.frame().await;
        if came["event"] == "exec.output" {
            use base64::Engine as _;
            let data = came["payload"]["data"].as_str().unwrap();
            out.extend(
                base64::engine::general_purpose::STANDARD
                    .decode(data)
                    .unwrap(),
            );
        } else if came["id"] == frame {
            return (came, String::from_utf8_lossy(&out).into_owned());
        }
    }
}

pub fn url(gateway: &Gateway) -> String {
    format!("ws://127.0.0.1:{}", gateway.port())
}

#[tokio::test(flavor = "multi_thread")]
async fn our_node_host_waits_for_a_person_twice_runs_what_was_allowed_and_comes_back() {
    let mut gateway = Gateway::with(&[STRICT, ("agents.closed.nodes", "ask")]);
    let token = token_file(&gateway);
    let mut host = Host::start(&gateway, &url(&gateway), &token);
    let log = host.says("portcullis devices approve ");
    let request = log.split("portcullis devices approve ").nth(1).unwrap();
    gateway.json(&["devices", "approve", request.split('`').next().unwrap()]);
    let id = let_in(&gateway);
    let shown = gateway.json(&["nodes", "show", &id[..12]]);
    assert_eq!(
        (&shown["nodeId"], &shown["approvalState"]),
        (&json!(id), &json!("approved"))
    );
    let text = String::from_utf8(gateway.cli(&["nodes", "show", &id]).stdout).unwrap();
    assert!(
        text.contains("name       far\nstate      connected\napproval   approved"),
        "{text}"
    );
    let text = String::from_utf8(gateway.cli(&["nodes", "list"]).stdout).unwrap();
    assert!(text.contains("far") && text.contains("connected"), "{text}");
    assert_eq!(
        gateway.cli(&["nodes", "show", "ffff"]).status.code(),
        Some(3)
    );
    node(&gateway, |n| n["hostStats"]["cpuCount"].is_u64());

    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let which = json!({
        "nodeId": id, "command": "system.which", "params": { "bins": ["sh", "no-such-program", "../bin/sh"] }, "idempotencyKey": "w",
    });
    let found = asks.get("node.invoke", which).await;
    assert!(
        found["payload"]["bins"]["sh"]
            .as_str()
            .unwrap()
            .ends_with("/sh"),
        "{found}"
    );
    assert_eq!(
        found["payload"]["bins"].as_object().unwrap().len(),
        1,
        "{found}"
    );

    // Its own words, its own variables, and no user that matters.
    let script = "echo $#:$1; env; id -u; exit 7";
    let argv = json!(["sh", "-c", script, "name", "a b;c"]);
    let (last, out) = run(&mut asks, &mut decides, &id, json!({ "argv": argv })).await;
    assert_eq!(
        (&last["payload"]["status"], &last["payload"]["exitCode"]),
        (&json!("exited"), &json!(7)),
        "{last}"
    );
    assert!(out.starts_with("1:a b;c\n"), "no shell in between: {out}");
    assert!(
        out.contains("PATH=/") && !out.contains("hunter2") && !out.contains("HOME=/root"),
        "{out}"
    );
    assert_ne!(out.trim_end().lines().last(), Some("0"), "{out}");
    // What it writes too much is dropped; what takes too long ends with all that it started.
    let (last, out) = run(
        &mut asks,
        &mut decides,
        &id,
        json!({ "argv": ["sh", "-c", "yes | head -c 900000"] }),
    )
    .await;
    assert_eq!(last["payload"]["exitCode"], 0, "{last}");
    assert_eq!(out.len(), 200_000);
    let mark = format!("31{:05}", std::process::id() % 100_000);
    let long = format!("sleep {mark} & sleep {mark}");
    let params = json!({ "argv": ["sh", "-c", long], "timeoutMs": 1_500 });
    let (last, _) = run(&mut asks, &mut decides, &id, params).await;
    assert_eq!(last["payload"]["status"], "timed-out", "{last}");
    let alive = std::process::Command::new("pgrep")
        .args(["-f", &format!("^sleep {mark}")])
        .output();
    assert!(alive.unwrap().stdout.is_empty(), "something is left");

    // The same from the command line.
    let mut command = gateway.command(&[
        "exec",
        "--agent",
        "demo",
        "--node",
        &id[..12],
        "--",
        "sh",
        "-c",
        "echo cli; exit 3",
    ]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + PATIENCE;
    let question = loop {
        let list = gateway.json(&["approvals", "list"]);
        if let Some(id) = list[0]["id"].as_str() {
            break id.to_owned();
        }
        assert!(Instant::now() < end, "no question");
        std::thread::sleep(Duration::from_millis(50));
    };
    gateway.json(&["approvals", "allow", &question]);
    let ran = child.wait_with_output().unwrap();
    assert_eq!(
        (ran.status.code(), ran.stdout.as_slice()),
        (Some(3), &b"cli\n"[..]),
        "{ran:?}"
    );
    let none = gateway.cli(&["exec", "--agent", "demo", "--node", "ffff", "--", "true"]);
    assert_eq!(none.status.code(), Some(125), "{none:?}");

    // Its approvals document: a gateway closes there, and opens nothing.
    let of_node = json!({ "nodeId": id });
    let shown = asks.get("exec.approvals.node.get", of_node.clone()).await;
    assert_eq!(
        (&shown["exists"], &shown["file"]["defaults"]["ask"]),
        (&json!(false), &json!("always")),
        "{shown}"
    );
    let set = |file: Value, hash: &Value| json!({ "nodeId": id, "file": file, "baseHash": hash });
    let off = json!({ "version": 1, "defaults": { "ask": "off" } });
    let error = asks
        .refused("exec.approvals.node.set", set(off, &shown["hash"]))
        .await;
    assert!(
        error.to_string().contains("each run waits for a person"),
        "{error}"
    );
    let closes = json!({ "version": 1, "agents": { "closed": { "security": "deny" } } });
    let shown = asks
        .get("exec.approvals.node.set", set(closes, &shown["hash"]))
        .await;
    assert_eq!(shown["file"]["agents"]["closed"]["security"], "deny");
    let opens = json!({ "version": 1 });
    let error = asks
        .refused("exec.approvals.node.set", set(opens, &shown["hash"]))
        .await;
    assert!(error.to_string().contains("not open it again"), "{error}");
    let closed = [
        "exec",
        "--agent",
        "closed",
        "--node",
        &id[..12],
        "--",
        "true",
    ];
    let refused = gateway.cli(&closed);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(125) && said.contains("nothing runs here for this agent"),
        "{refused:?}"
    );

    // The gateway goes and comes: the node is there again, and runs.
    drop((asks, decides));
    assert_eq!(gateway.stop(), 0);
    gateway.keep_port();
    gateway.launch();
    node(&gateway, |n| {
        n["connected"] == true && n["approvalState"] == "approved"
    });
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let (last, out) = run(
        &mut asks,
        &mut decides,
        &id,
        json!({ "argv": ["echo", "again"] }),
    )
    .await;
    assert_eq!(
        (out.as_str(), &last["payload"]["exitCode"]),
        ("again\n", &json!(0)),
        "{last}"
    );

    // It ends in order; with its token it needs no file; revoked, it says so and ends.
    assert_eq!(host.stop(), 0);
    node(&gateway, |n| n["connected"] == false);
    std::fs::remove_file(&token).unwrap();
    let mut host = Host::start(&gateway, &url(&gateway), &token);
    node(&gateway, |n| n["connected"] == true);
    gateway.json(&["devices", "revoke", &id]);
    assert_eq!(host.ends(), 4);
    assert!(
        host.log().contains("this node was revoked at the gateway"),
        "{}",
        host.log()
    );
}

/// A server that takes any node and asks what it likes.
pub struct Rogue {
    ws: WebSocketStream<TcpStream>,
    pub node: String,
}

impl Rogue {
    pub async fn accept(listener: &TcpListener) -> Self {
        Self::accept_at(listener, Value::Null).await
    }

    /// With a log that is so far.
    async fn accept_at(listener: &TcpListener, log_at: impl Into<Value>) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        let mut ws = tokio_tungstenite::accept_async(stream).await.unwrap();
        let challenge = json!({ "type": "event", "event": "connect.challenge", "payload": { "nonce": "n-1", "ts": 5 } });
        ws.send(Message::text(challenge.to_string())).await.unwrap();
        let mut rogue = Self {
            ws,
            node: String::new(),
        };
        let connect = rogue.frame().await;
        assert_eq!(connect["method"], "connect");
        let params = &connect["params"];
        assert_eq!(
            (&params["role"], &params["client"]["id"]),
            (&json!("node"), &json!("node-host"))
        );
        assert_eq!(params["device"]["nonce"], "n-1");
        rogue.node = params["device"]["id"].as_str().unwrap().to_owned();
        let mut hello = json!({
            "type": "res", "id": connect["id"], "ok": true,
            "payload": { "type": "hello-ok", "protocol": 4, "auth": { "role": "node", "scopes": [], "deviceToken": "given-by-the-server" } },
        });
        hello["payload"]["runSeq"] = log_at.into();
        rogue
            .ws
            .send(Message::text(hello.to_string()))
            .await
            .unwrap();
        rogue
    }

    async fn frame(&mut self) -> Value {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.ws.next())
                .await
                .unwrap();
            if let Message::Text(text) = next.unwrap().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// The node's result.
    pub async fn ask(&mut self, id: &str, command: &str, params: &Value) -> Value {
        let asked = json!({
            "type": "event", "event": "node.invoke.request",
            "payload": { "id": id, "nodeId": self.node, "command": command, "paramsJSON": params.to_string() },
        });
        self.ws
            .send(Message::text(asked.to_string()))
            .await
            .unwrap();
        loop {
            let frame = self.frame().await;
            if frame["method"] == "node.invoke.result" && frame["params"]["id"] == id {
                assert_eq!(frame["params"]["nodeId"], self.node.as_str());
                return frame["params"].clone();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_node_host_believes_no_gateway_that_changes_the_plan_or_skips_the_person() {
    believes_no_rogue(Gateway::prepared(&[])).await;
}

/// Its commands have its own user: bubblewrap keeps its keys from them.
#[tokio::test(flavor = "multi_thread")]
async fn our_node_host_that_is_not_root_believes_no_rogue_either_and_keeps_its_keys() {
    believes_no_rogue(Gateway::prepared(&[]).run_by(60_123)).await;
}

async fn believes_no_rogue(gateway: Gateway) {
    let token = token_file(&gateway);
    std::os::unix::fs::chown(&token, gateway.user(), gateway.user()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let mut host = Host::start(&gateway, &url, &token);
    let mut rogue = Rogue::accept(&listener).await;
    // Something that another user could change, so that its bytes matter.
    let tool = std::env::temp_dir().join(format!(
        "node-tool-{}-{}",
        std::process::id(),
        gateway.user().unwrap_or(0)
    ));
    let write = |text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(&tool, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    write("echo one");
    let command = json!({ "command": [tool, "x"], "cwd": "/", "agentId": "demo" });
    let prepared = rogue.ask("p1", "system.run.prepare", &command).await;
    assert_eq!(prepared["ok"], true, "{prepared}");
    let plan: Value = serde_json::from_str(prepared["payloadJSON"].as_str().unwrap()).unwrap();
    let plan = plan["plan"].clone();
    let mut right = command.clone();
    right["systemRunPlan"] = plan.clone();
    right["approved"] = true.into();
    right["approvalDecision"] = "allow-once".into();
    right["timeoutMs"] = 20_000.into();
    let mut other_plan = plan.clone();
    other_plan["argv"] = json!([tool, "y"]);
    for (n, (key, value)) in [
        ("approved", json!(false)),
        ("approved", Value::Null),
        ("approvalDecision", json!("deny")),
        ("approvalDecision", Value::Null),
        ("systemRunPlan", Value::Null),
        ("systemRunPlan", other_plan),
        ("command", json!([tool, "y"])),
        ("command", json!([tool, "x", "y"])),
        ("command", json!(["/bin/sh", "-c", "echo x"])),
        ("cwd", json!("/tmp")),
        ("env", json!({ "LANG": "de_DE" })),
        ("env", json!({ "LD_PRELOAD": "/tmp/x.so" })),
        ("agentId", json!("other")),
        ("runId", Value::Null),
    ]
    .into_iter()
    .enumerate()
    {
        let mut asked = right.clone();
        asked["runId"] = format!("changed-{n}").into();
        asked[key] = value.clone();
        if asked[key].is_null() {
            asked.as_object_mut().unwrap().remove(key);
        }
        let said = rogue.ask(&format!("c{n}"), "system.run", &asked).await;
        assert_eq!(said["ok"], false, "{key} {value}: {said}");
        let code = said["error"]["code"].as_str().unwrap();
        assert!(
            ["SYSTEM_RUN_DENIED", "INVALID_REQUEST"].contains(&code),
            "{said}"
        );
    }
    // The very plan runs, once.
    right["runId"] = "r1".into();
    let ran = rogue.ask("r1", "system.run", &right).await;
    let payload: Value = serde_json::from_str(ran["payloadJSON"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&payload["stdout"], &payload["exitCode"]),
        (&json!("one\n"), &json!(0)),
        "{ran}"
    );
    let again = rogue.ask("r2", "system.run", &right).await;
    assert_eq!(again["error"]["code"], "SYSTEM_RUN_DENIED", "{again}");
    // Another file under the same name is another plan.
    write("echo two");
    right["runId"] = "r3".into();
    let changed = rogue.ask("r3", "system.run", &right).await;
    assert_eq!(changed["error"]["code"], "SYSTEM_RUN_DENIED", "{changed}");
    std::fs::remove_file(&tool).unwrap();
    // Its own keys are out of reach, and what it never offered is not there.
    let keys = gateway
        .home()
        .join(".local/state/portcullis-client/keys.json");
    assert!(keys.exists());
    let mut peek = json!({ "command": ["cat", keys], "cwd": "/", "agentId": "demo" });
    let prepared = rogue.ask("p2", "system.run.prepare", &peek).await;
    let plan: Value = serde_json::from_str(prepared["payloadJSON"].as_str().unwrap()).unwrap();
    peek["systemRunPlan"] = plan["plan"].clone();
    peek["approved"] = true.into();
    peek["approvalDecision"] = "allow-once".into();
    peek["runId"] = "r4".into();
    let peeked = rogue.ask("r4", "system.run", &peek).await;
    let payload: Value = serde_json::from_str(peeked["payloadJSON"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&payload["exitCode"], &payload["stdout"]),
        (&json!(1), &json!("")),
        "{peeked}"
    );
    for (n, command) in ["fs.listDir", "system.notify", "terminal.upload", "x"]
        .iter()
        .enumerate()
    {
        let said = rogue.ask(&format!("u{n}"), command, &json!({})).await;
        assert_eq!(said["error"]["code"], "UNAVAILABLE", "{said}");
    }
    // One that ends in order says goodbye.
    assert_eq!(host.stop(), 0);
    let closed = loop {
        match tokio::time::timeout(PATIENCE, rogue.ws.next())
            .await
            .unwrap()
        {
            Some(Ok(Message::Close(_))) => break true,
            Some(Ok(_)) => {}
            _ => break false,
        }
    };
    assert!(closed, "a close frame");
    // The token that the server gave is kept, for that server alone.
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", other.local_addr().unwrap());
    let mut host = Host::start(&gateway, &url, "/nonexistent");
    assert_ne!(host.ends(), 0);
    assert!(!host.log().contains("given-by-the-server"));
}

/// Does a command that begins so run?
fn runs(start: &str) -> bool {
    let found = std::process::Command::new("pgrep")
        .args(["-f", &format!("^{start}")])
        .output()
        .unwrap();
    !found.stdout.is_empty()
}

fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Begins a long run there, has it allowed, and waits until it runs.
async fn long(asks: &mut Client, decides: &mut Client, node: &str, mark: &str) -> String {
    let frame = asks
        .ask(
            "exec.run",
            json!({
                "agent": "demo", "target": format!("node:{node}"), "idempotencyKey": mark,
                "argv": ["sh", "-c", format!("sleep {mark} & sleep {mark}; true")],
            }),
        )
        .await;
    let first = asks.answer(&frame).await;
    let decision = json!({ "id": first["payload"]["approvalId"], "decision": "allow-once" });
    decides.get("exec.approval.resolve", decision).await;
    until("it never runs", || runs(&format!("sleep {mark}")));
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn what_our_node_host_runs_ends_with_its_caller_and_with_the_node_itself_however_it_ends() {
    let gateway = Gateway::with(&[("gateway.tls.enabled", "true")]);
    let token = token_file(&gateway);
    let pin = gateway.json(&["status"])["portcullis"]["tls"]["spkiSha256"].clone();
    let pin = format!("sha256:{}", pin.as_str().unwrap());
    let url = format!("wss://localhost:{}", gateway.port());
    // Another key: it does not even try again.
    let wrong = format!(
        "{}{}",
        &pin[..pin.len() - 1],
        if pin.ends_with('0') { '1' } else { '0' }
    );
    let mut stranger = Host::start_with(&gateway, &url, &token, &["--pin", &wrong]);
    assert_eq!(stranger.ends(), 4, "{}", stranger.log());
    assert!(
        stranger.log().contains("SERVER_NOT_VERIFIED"),
        "{}",
        stranger.log()
    );

    let mut host = Host::start_with(&gateway, &url, &token, &["--pin", &pin]);
    let id = let_in(&gateway);
    let mut decides = admin(&gateway).await;
    let mark = |n: u32| format!("32{:05}", (std::process::id() * 10 + n) % 100_000);
    // Who asked goes away.
    let mut asks = admin(&gateway).await;
    long(&mut asks, &mut decides, &id, &mark(1)).await;
    asks.ws.close(None).await.unwrap();
    until("it runs on without its caller", || {
        !runs(&format!("sleep {}", mark(1)))
    });
    // The node is asked to end.
    let mut asks = admin(&gateway).await;
    let frame = long(&mut asks, &mut decides, &id, &mark(2)).await;
    assert_eq!(host.stop(), 0);
    until("it runs on without its node", || {
        !runs(&format!("sleep {}", mark(2)))
    });
    let last = asks.answer(&frame).await;
    assert_ne!(last["payload"]["status"], "exited", "{last}");
    // The node is killed.
    let mut host = Host::start_with(&gateway, &url, &token, &["--pin", &pin]);
    node(&gateway, |n| n["connected"] == true);
    let frame = long(&mut asks, &mut decides, &id, &mark(3)).await;
    host.child.kill().unwrap();
    host.child.wait().unwrap();
    until("it runs on without its node", || {
        !runs(&format!("sleep {}", mark(3)))
    });
    let last = asks.answer(&frame).await;
    assert_ne!(last["payload"]["status"], "exited", "{last}");
    assert_eq!(
        gateway.json(&["nodes", "list"])["nodes"][0]["connected"],
        false
    );
}

/// The bug: the answer came when the node had been told, and what ran there went on for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn an_agents_run_on_a_node_is_over_when_the_answer_of_its_new_token_comes() {
    let gateway = Gateway::start();
    let _host = Host::start(&gateway, &url(&gateway), &token_file(&gateway));
    let id = let_in(&gateway);
    let mut decides = admin(&gateway).await;
    for n in 1..6 {
        let mark = format!("33{:05}", (std::process::id() * 10 + n) % 100_000);
        let minted = gateway.json(&["agents", "token", "demo"]);
        let mut asks = Client::dial(&gateway).await;
        let by = Connect::bare().role("agent");
        asks.hello(&by.auth(json!({ "token": minted["token"] })))
            .await;
        long(&mut asks, &mut decides, &id, &mark).await;
        gateway.json(&["agents", "token", "demo"]);
        assert!(!runs(&format!("sleep {mark}")), "it runs on");
    }
    let ended = gateway.json(&["audit", "query", "--action", "exec.run"]);
    let ended = ended["records"].as_array().unwrap();
    assert_eq!(ended.len(), 5, "{ended:?}");
}

/// The bug: a run was forgotten after many others, or with the process, and begun again when it was asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn our_node_host_begins_no_run_that_is_older_than_its_link() {
    let gateway = Gateway::prepared(&[]);
    let token = token_file(&gateway);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let host = Host::start(&gateway, &url, &token);
    let mut rogue = Rogue::accept_at(&listener, 100).await;
    let mut command = json!({ "command": ["echo", "x"], "cwd": "/", "agentId": "demo" });
    let prepared = rogue.ask("p1", "system.run.prepare", &command).await;
    let plan: Value = serde_json::from_str(prepared["payloadJSON"].as_str().unwrap()).unwrap();
    command["systemRunPlan"] = plan["plan"].clone();
    command["approved"] = true.into();
    command["approvalDecision"] = "allow-once".into();
    let mut asked = 0;
    let mut run = async |rogue: &mut Rogue, run: &str, number: Value| {
        asked += 1;
        let mut params = command.clone();
        params["runId"] = run.into();
        params["runSeq"] = number;
        let said = rogue.ask(&format!("q{asked}"), "system.run", &params).await;
        match said["ok"].as_bool() {
            Some(true) => "ran".to_owned(),
            _ => said["error"]["message"].as_str().unwrap().to_owned(),
        }
    };
    let old = "SYSTEM_RUN_DENIED: this run is older than";
    let said = run(&mut rogue, "r0", json!(100)).await;
    assert!(said.starts_with(old), "{said}");
    let said = run(&mut rogue, "r0", Value::Null).await;
    assert!(said.contains("has no number"), "{said}");
    assert_eq!(run(&mut rogue, "r1", json!(101)).await, "ran");
    let said = run(&mut rogue, "r1", json!(101)).await;
    assert!(said.ends_with("this run was begun before"), "{said}");
    // The next life knows no name, and is linked later than that run was begun.
    drop((host, rogue));
    let _host = Host::start(&gateway, &url, &token);
    let mut rogue = Rogue::accept_at(&listener, 101).await;
    let said = run(&mut rogue, "r1", json!(101)).await;
    assert!(said.starts_with(old), "{said}");
    assert_eq!(run(&mut rogue, "r2", json!(103)).await, "ran");
}
