//! The path as a person walks it, by the real program against the real gateway, on both drivers: run contained, ask to
//! leave, decide, let a device in and throw it out, keep a secret, read the record; then `kill -9`, and all is as it was.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portcullis_core::ids::Hash32;
use serde_json::{Value, json};

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;
use crate::support::ws::{Came, Client, Connect, Device, join};

const PATIENCE: Duration = Duration::from_mins(1);
const READ: &[&str] = &["operator.read"];

#[tokio::test(flavor = "multi_thread")]
async fn the_path_of_a_person_on_the_native_driver() {
    let gateway = Gateway::prepared(&[("gateway.local.local_trust", "false")]).by_up();
    walk(gateway, "native", |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_of_a_person_on_docker() {
    let engine = tokio::task::spawn_blocking(Engine::shared).await.unwrap();
    let gateway = Gateway::prepared(&[
        ("gateway.local.local_trust", "false"),
        ("sandbox.driver", "docker"),
        ("sandbox.engine", &engine.host()),
    ]);
    let owner = Hash32::of(gateway.state().as_os_str().as_encoded_bytes()).to_string();
    let containers = |expected: usize| {
        let output = Command::new("docker")
            .args(["-H", &engine.host(), "ps", "-aq", "--filter"])
            .arg(format!("label=portcullis.owner={}", &owner[..16]))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout.split(|b| *b == b'\n').count() - 1, expected);
    };
    walk(gateway.by_up(), "docker", containers).await;
    tokio::task::spawn_blocking(move || drop(engine))
        .await
        .unwrap();
}

/// `containers` asserts that the engine has so many of this gateway's.
async fn walk(mut gateway: Gateway, driver: &str, containers: impl Fn(usize)) {
    gateway.launch();
    started(&gateway, driver);
    let outside = tempfile::tempdir().unwrap();
    std::fs::set_permissions(outside.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    contained(&gateway);
    asks_to_leave(&gateway);
    let device = Device::new();
    let token = devices(&gateway, &device).await;
    secrets_and_records(&gateway, driver);
    killed(&mut gateway, outside.path(), &device, &token).await;
    containers(1);
    assert_eq!(gateway.stop(), 0, "{}", gateway.log());
    containers(0);
    let report = gateway.json(&["audit", "verify", "--offline"]);
    assert_eq!(report["intact"], true);
}

/// Six lines: address and page, driver and why, how clients authenticate, what is pending, the log's first key, what to try
/// next.
fn started(gateway: &Gateway, driver: &str) {
    until("the six lines", || gateway.said().lines().count() >= 6);
    let said = gateway.said();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 6, "{said}");
    let port = gateway.port();
    let page = format!("page http://localhost:{port}");
    assert!(lines[0].contains(&format!("ws://127.0.0.1:{port}")) && lines[0].contains(&page));
    assert!(lines[1].contains(&format!("{driver} (")), "{said}");
    assert!(lines[2].contains("token") && lines[2].contains("control.sock"));
    assert!(lines[3].contains("portcullis devices list"));
    assert!(
        lines[4].starts_with("log key   portcullis-audit/"),
        "{said}"
    );
    assert!(lines[5].contains("portcullis exec --agent demo -- sh -c 'id; ls /'"));
    let status = gateway.json(&["status"]);
    assert_eq!(status["portcullis"]["driver"]["name"], driver, "{status}");
    let config = std::fs::read_to_string(gateway.state().join("config.toml")).unwrap();
    assert!(config.contains("[agents.demo]"), "{config}");
    gateway.json(&["version"]);
    gateway.json(&["config", "show"]);
}

/// Step 1: contained, streamed, exit code the child's.
fn contained(gateway: &Gateway) {
    let exec = |argv: &[&str]| {
        ran(
            gateway,
            &[&["exec", "--agent", "demo", "--timeout", "30s", "--"], argv].concat(),
        )
    };
    let (code, out, err) = exec(&[
        "sh",
        "-c",
        "id -u; hostname; pwd; echo kept > note; cat /etc/shadow; exit 7",
    ]);
    assert_eq!(code, 7, "{err}");
    assert_eq!(out, "65536\nbox\n/workspace\n", "{err}");
    assert!(
        err.contains("/etc/shadow") && !out.contains("root:"),
        "{err}"
    );
    let (code, out, err) = exec(&[
        "sh",
        "-c",
        "cat note; ls /; cat /proc/net/dev | grep -c eth; true",
    ]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("kept\n") && out.ends_with("\n0\n"), "{out}");
    assert!(
        !out.lines().any(|name| ["root", "home"].contains(&name)),
        "{out}"
    );
    assert_eq!(exec(&["no-such-program"]).0, 127);
    assert_eq!(exec(&["/workspace/note"]).0, 126);
    let (code, out, err) = ran(
        gateway,
        &[
            "exec",
            "--agent",
            "demo",
            "--timeout",
            "300ms",
            "--",
            "sleep",
            "60",
        ],
    );
    assert_eq!((code, out.as_str()), (125, ""), "{err}");
    assert!(err.contains("error[DEADLINE]: "), "{err}");
    let (code, out, _) = ran(
        gateway,
        &[
            "exec",
            "--json",
            "--agent",
            "demo",
            "--",
            "sh",
            "-c",
            "echo x; exit 3",
        ],
    );
    let lines: Vec<Value> = out
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let end = lines.last().unwrap();
    assert_eq!(
        (code, &end["type"], &end["exitCode"]),
        (3, &json!("end"), &json!(3)),
        "{out}"
    );
}

/// Step 2: it waits; list, show, allow, deny and watch decide; the plan shown is the plan that runs, as nobody.
fn asks_to_leave(gateway: &Gateway) {
    let (code, _, err) = ran(
        gateway,
        &["exec", "--agent", "other", "--host", "--", "uname", "-a"],
    );
    assert_eq!(code, 125);
    assert!(err.starts_with("error[ELEVATED_DISABLED]: "), "{err}");
    assert!(
        err.ends_with("\n  [agents.other]\n  elevated = \"ask\"\n"),
        "{err}"
    );

    let watch = Background::start(gateway, &["approvals", "watch", "--json"]);
    let asks = |argv: &[&str]| {
        let known = pending(gateway);
        let exec = Background::start(
            gateway,
            &[&["exec", "--agent", "demo", "--host", "--"], argv].concat(),
        );
        until("a question", || pending(gateway).len() > known.len());
        let new = pending(gateway).into_iter().find(|p| !known.contains(p));
        (exec, new.unwrap()["id"].as_str().unwrap().to_owned())
    };
    let (exec, id) = asks(&["sh", "-c", "uname -a; id -u"]);
    let shown = gateway.json(&["approvals", "show", &id]);
    let (_, card, _) = ran(gateway, &["approvals", "show", &id[..11]]);
    for part in [
        "\"uname -a; id -u\"",
        "on the host, outside the sandbox",
        "uid 65534 gid 65534",
        "uid:0 over control",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    let hash = shown["request"]["planHash"].as_str().unwrap();
    assert!(card.contains(hash));
    let (code, _, err) = ran(gateway, &["approvals", "allow", &id]);
    assert_eq!(code, 0, "{err}");
    let uname = Command::new("uname").arg("-a").output().unwrap().stdout;
    let (code, out, err) = exec.end();
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, format!("{}65534\n", String::from_utf8(uname).unwrap()));
    assert!(
        err.contains(&id) && err.contains("portcullis approvals show"),
        "{err}"
    );
    // What ran is on record under the hash that was shown, and nothing waits any more.
    let runs = gateway.json(&["audit", "query", "--action", "exec.run"]);
    let ran_it = runs["records"].as_array().unwrap().iter();
    let ran_it: Vec<_> = ran_it
        .filter(|r| r["record"]["plan_hash"] == hash)
        .collect();
    assert_eq!(ran_it.len(), 1, "{runs}");
    assert_eq!(ran_it[0]["record"]["approval_id"], id);
    assert!(pending(gateway).is_empty());

    let (exec, id) = asks(&["id"]);
    gateway.json(&["approvals", "deny", &id, "--reason", "not today"]);
    let (code, out, err) = exec.end();
    assert_eq!((code, out.as_str()), (125, ""));
    assert!(
        err.contains("error[APPROVAL_DENIED]: ") && err.contains("not today"),
        "{err}"
    );
    let (code, _, err) = ran(gateway, &["approvals", "allow", &id]);
    assert_ne!(code, 0);
    assert!(
        err.contains("error[APPROVAL_"),
        "the first answer stands: {err}"
    );

    let (code, watched, err) = watch.interrupt();
    assert_eq!(code, 0, "{err}");
    for line in watched.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    assert!(watched.contains(&id), "{watched}");
}

/// Step 3: a client with its own keys: approve, reject, revoke; a revoked live socket is closed before its next frame is
/// answered. Returns the token of a device that stays.
async fn devices(gateway: &Gateway, stays: &Device) -> String {
    let knock = async |device: &Device| {
        let connect = Connect::token().scopes(READ).device(device);
        let (error, _) = Client::dial(gateway).await.denied(&connect).await;
        error["details"]["requestId"].as_str().unwrap().to_owned()
    };
    let (goes, unwelcome) = (Device::p256(), Device::new());
    for device in [stays, &goes] {
        let id = knock(device).await;
        let shown = gateway.json(&["devices", "show", &id]);
        assert_eq!(shown["deviceId"], device.id());
        let wrong = gateway.cli(&["devices", "approve", &id, "--fingerprint", "00"]);
        assert!(!wrong.status.success());
        gateway.json(&["devices", "approve", &id, "--fingerprint", &device.id()]);
    }
    let id = knock(&unwelcome).await;
    gateway.json(&["devices", "reject", &id]);
    assert_ne!(
        knock(&unwelcome).await,
        id,
        "it may ask again, and waits again"
    );
    let (_, text, _) = ran(gateway, &["devices", "list"]);
    assert!(text.contains(&stays.id()[..12]), "{text}");

    let connect = Connect::token().scopes(READ);
    let (_socket, hello) = join(gateway, &connect.clone().device(stays)).await;
    let token = hello["auth"]["deviceToken"].as_str().unwrap().to_owned();
    let (mut live, _) = join(gateway, &connect.device(&goes)).await;
    live.get("health", json!({})).await;
    gateway.json(&["devices", "revoke", &goes.id()[..12]]);
    live.ask("health", json!({})).await;
    let next = live.next().await;
    assert!(matches!(next, Came::Closed(4001, _)), "{next:?}");
    let list = gateway.json(&["devices", "list"]);
    let revoked = list["paired"]
        .as_array()
        .unwrap()
        .iter()
        .find(|d| d["deviceId"] == goes.id());
    assert_eq!(revoked.unwrap()["roles"], json!([]), "{list}");
    gateway.json(&["devices", "rename", &stays.id(), "desk"]);
    gateway.json(&["devices", "remove", &goes.id()]);
    token
}

/// Step 4: secrets in, names out; the record read, searched and checked.
fn secrets_and_records(gateway: &Gateway, driver: &str) {
    gateway.vault_is_open();
    assert_eq!(
        gateway.feed(&["vault", "set", "API_KEY"], b"hunter2-in-the-vault"),
        0
    );
    assert_eq!(gateway.feed(&["vault", "set", "OLD"], b"x"), 0);
    gateway.json(&["vault", "rm", "OLD"]);
    assert_eq!(gateway.cli(&["vault", "rm", "OLD"]).status.code(), Some(3));
    let list = gateway.json(&["vault", "list"]);
    assert_eq!(list["entries"].as_array().unwrap().len(), 1);
    assert_eq!(list["entries"][0]["name"], "API_KEY");
    let (code, tail, _) = ran(gateway, &["audit", "tail", "-n", "50"]);
    assert_eq!(code, 0);
    for action in ["vault.set", "pairing.approve", "approval.resolve"] {
        assert!(tail.contains(action), "{action}: {tail}");
    }
    assert!(!tail.contains("hunter2") && !list.to_string().contains("hunter2"));
    let found = gateway.json(&["audit", "query", "--action", "vault.set", "--outcome", "ok"]);
    assert_eq!(found["records"].as_array().unwrap().len(), 2, "{found}");
    assert_eq!(gateway.json(&["audit", "verify"])["intact"], true);
    assert_eq!(
        gateway.json(&["audit", "verify", "--offline"])["intact"],
        true
    );
    let (code, text, _) = ran(gateway, &["status"]);
    assert!(
        code == 0 && text.contains(driver) && text.contains("vault"),
        "{text}"
    );
}

/// Step 5: `kill -9` in the middle of things, and a start.
async fn killed(gateway: &mut Gateway, outside: &Path, device: &Device, token: &str) {
    let marker = format!("86399.{}", gateway.port());
    let mark = outside.join("host").display().to_string();
    let in_box = format!("echo ran >> begun; exec sleep {marker}");
    let on_host = format!("echo ran >> {mark}");
    let begun = [
        "exec",
        "--agent",
        "demo",
        "--idempotency-key",
        "k-begun",
        "--",
        "sh",
        "-c",
        &in_box,
    ];
    let done = [
        "exec",
        "--agent",
        "demo",
        "--idempotency-key",
        "k-done",
        "--",
        "sh",
        "-c",
        "echo ran >> done",
    ];
    let waits = [
        "exec",
        "--agent",
        "demo",
        "--host",
        "--idempotency-key",
        "k-waits",
        "--",
        "sh",
        "-c",
        &on_host,
    ];
    let lines = |gateway: &Gateway, name: &str| {
        let file = gateway.state().join("workspaces/demo").join(name);
        std::fs::read_to_string(file)
            .unwrap_or_default()
            .lines()
            .count()
    };
    assert_eq!(ran(gateway, &done).0, 0);
    let running = Background::start(gateway, &begun);
    let waiting = Background::start(gateway, &waits);
    until("the question and the run", || {
        pending(gateway).len() == 1 && lines(gateway, "begun") == 1
    });
    until("the command", || !processes(&marker).is_empty());
    let third = Device::new();
    let knock = Connect::token().scopes(READ).device(&third);
    Client::dial(gateway).await.denied(&knock).await;
    let before = (
        pending(gateway),
        gateway.json(&["devices", "list"]),
        gateway.json(&["vault", "list"]),
    );
    let head = gateway.json(&["audit", "tail", "-n", "1"])["records"][0].clone();

    gateway.crash_and_start();
    assert_ne!(running.end().0, 0);
    assert_ne!(waiting.end().0, 0);
    gateway.vault_is_open();
    // Pairing, the pending plan, the vault and the record are as they were.
    assert_eq!(pending(gateway), before.0);
    let (now, then) = (gateway.json(&["devices", "list"]), before.1);
    assert_eq!(now["pending"], then["pending"]);
    let names = |list: &Value| -> Vec<(Value, Value)> {
        let all = list["paired"].as_array().unwrap().iter();
        all.map(|d| (d["deviceId"].clone(), d["operatorLabel"].clone()))
            .collect()
    };
    assert_eq!(names(&now), names(&then));
    assert_eq!(gateway.json(&["vault", "list"]), before.2);
    let seq = head["seq"].to_string();
    let again = gateway.json(&["audit", "query", "--since-seq", &seq, "--until-seq", &seq]);
    assert_eq!(
        again["records"][0]["record"]["hash"], head["hash"],
        "{again}"
    );
    assert_eq!(gateway.json(&["audit", "verify"])["intact"], true);
    let by_token = Connect::bare()
        .auth(json!({"deviceToken": token}))
        .scopes(READ);
    join(gateway, &by_token.device(device)).await;

    // No box is orphaned, no run happens twice.
    until("the old box's end", || processes(&marker).is_empty());
    for (again, name, said) in [
        (
            &begun,
            "RUN_UNKNOWN",
            "was under way when what ran it ended",
        ),
        (&done, "KEY_USED", "ended with exit code 0 (audit record "),
    ] {
        let (code, _, err) = ran(gateway, again);
        assert_eq!(code, 125);
        assert!(
            err.starts_with(&format!("error[{name}]: ")) && err.contains(said),
            "{err}"
        );
    }
    assert_eq!((lines(gateway, "begun"), lines(gateway, "done")), (1, 1));
    assert_eq!(
        ran(gateway, &["exec", "--agent", "demo", "--", "true"]).0,
        0
    );
    let boxes = std::fs::read_dir(gateway.state().join("run/b")).unwrap();
    let boxes: Vec<_> = boxes.flatten().filter(|b| b.path().is_dir()).collect();
    assert_eq!(boxes.len(), 1, "only the new one: {boxes:?}");
    let status = gateway.json(&["status"]);
    assert_eq!(status["portcullis"]["driver"]["boxes"], 1, "{status}");
    // The plan that waited is taken up by its key, decided on, and run once.
    let id = before.0[0]["id"].as_str().unwrap();
    let waiting = Background::start(gateway, &waits);
    let (code, _, err) = ran(gateway, &["approvals", "allow", id]);
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = waiting.end();
    assert_eq!(code, 0, "{err}");
    ran(gateway, &waits);
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "ran\n");
    assert!(pending(gateway).is_empty());
}

/// Exit code, stdout, stderr.
fn ran(gateway: &Gateway, args: &[&str]) -> (i32, String, String) {
    ended(&gateway.cli(args))
}

fn ended(output: &std::process::Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn pending(gateway: &Gateway) -> Vec<Value> {
    let list = gateway.json(&["approvals", "list"]);
    list.as_array().unwrap().clone()
}

/// Processes with this word among their arguments.
fn processes(word: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.split('\0').any(|part| part == word))
        .collect()
}

fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A command of the command line that goes on.
pub(super) struct Background(Option<Child>);

impl Background {
    pub(super) fn start(gateway: &Gateway, args: &[&str]) -> Self {
        let mut command = gateway.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(Some(command.spawn().unwrap()))
    }

    /// Its exit code, stdout and stderr.
    pub(super) fn end(mut self) -> (i32, String, String) {
        ended(&self.0.take().unwrap().wait_with_output().unwrap())
    }

    fn interrupt(self) -> (i32, String, String) {
        let child = self.0.as_ref().unwrap();
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.end()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
