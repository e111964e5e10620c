//! From elsewhere, over SSH (a real sshd, the real ssh) and over Tailscale (its local API is simulated: a socket of ours
//! gives the answers that its daemon would give).

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Output;

use serde_json::{Value, json};

use super::remote_cli::token_file;
use crate::support::gateway::Gateway;
use crate::support::net::{NEAR, far};
use crate::support::sshd::{LOGIN, Sshd, Tunnel, free_port};
use crate::support::ws;

const TLS: (&str, &str) = ("gateway.tls.enabled", "true");
const NAME: &str = "gate.tail1234.ts.net";

fn answer(output: &Output) -> (Value, i32) {
    let answer = serde_json::from_slice(&output.stdout);
    let answer = answer.unwrap_or_else(|_| panic!("no document: {output:?}"));
    (answer, output.status.code().unwrap())
}

/// `remote --check` with a login by this configuration of ssh.
fn checked(gateway: &Gateway, config: &str) -> (Value, i32) {
    let (answer, exit) = answer(&gateway.cli(&[
        "remote",
        "--check",
        "--ssh",
        LOGIN,
        "--ssh-config",
        config,
        "--json",
    ]));
    (answer["checks"]["ssh"].clone(), exit)
}

/// The printed line, but for the near port: here both ends are one machine.
fn moved(line: &Value, port: u16, near: u16) -> String {
    let line = line.as_str().unwrap();
    let forward = format!("-L 127.0.0.1:{port}:127.0.0.1:{port} ");
    assert!(line.contains(&forward), "{line}");
    let moved = format!("-L 127.0.0.1:{near}:127.0.0.1:{port} ");
    line.replace(&forward, &moved)
}

#[test]
fn the_printed_tunnel_carries_clients_who_are_no_operators_for_coming_through_it() {
    let gateway = Gateway::start();
    let sshd = Sshd::start("");
    let config = sshd.client("user", "known_hosts");
    let ok = json!({ "ok": true, "said": "a gateway answers" });
    assert_eq!(checked(&gateway, &config), (ok, 0));
    let printed = gateway.json(&["remote", "--ssh", LOGIN, "--ssh-config", &config]);
    let near = free_port();
    let line = moved(&printed["ssh"]["command"], gateway.port(), near);
    let _tunnel = Tunnel::open(&line, near);
    // A client of the wire: this process is an operator's here, and at the far end it is sshd's user who speaks.
    let device = ws::Device::new();
    let connect = ws::Connect::token()
        .scopes(&["operator.read"])
        .device(&device);
    let id = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = ws::Client::dial_port(near).await.unwrap();
        let (error, _) = client.denied(&connect).await;
        error["details"]["requestId"].as_str().unwrap().to_owned()
    });
    gateway.json(&["devices", "approve", &id]);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = ws::Client::dial_port(near).await.unwrap();
        client.hello(&connect).await;
        client.get("status", json!({})).await;
    });
    // Our own command line, by the printed words.
    let at = format!(":{}", gateway.port());
    let client = printed["ssh"]["client"].as_str().unwrap();
    let client = client.replace(&at, &format!(":{near}"));
    let client = client.replace("FILE", &token_file(&gateway));
    let words: Vec<&str> = client.split(' ').skip(1).chain(["--json"]).collect();
    let (waits, exit) = answer(&gateway.cli(&words));
    assert_eq!(
        (&waits["error"]["code"], exit),
        (&"PAIRING_REQUIRED".into(), 4)
    );
    let id = waits["error"]["requestId"].as_str().unwrap();
    gateway.json(&["devices", "approve", id]);
    let (status, exit) = answer(&gateway.cli(&words));
    assert_eq!(exit, 0, "{status}");
}

#[test]
fn through_a_tunnel_to_a_tls_gateway_the_pinned_key_is_met() {
    let gateway = Gateway::with(&[TLS]);
    let sshd = Sshd::start("");
    let config = sshd.client("user", "known_hosts");
    let ok = json!({ "ok": true, "said": "this gateway answers, with its pinned key" });
    assert_eq!(checked(&gateway, &config), (ok, 0));
    let printed = gateway.json(&["remote", "--ssh", LOGIN, "--ssh-config", &config]);
    let pin = gateway.json(&["status"])["portcullis"]["tls"]["spkiSha256"].clone();
    assert_eq!(printed["pin"], pin);
    let near = free_port();
    let line = moved(&printed["ssh"]["command"], gateway.port(), near);
    let _tunnel = Tunnel::open(&line, near);
    let at = format!(":{}", gateway.port());
    let client = printed["ssh"]["client"].as_str().unwrap();
    let client = client.replace(&at, &format!(":{near}"));
    let client = client.replace("FILE", &token_file(&gateway));
    let code = |client: &str| {
        let words: Vec<&str> = client.split(' ').skip(1).chain(["--json"]).collect();
        answer(&gateway.cli(&words)).0["error"]["code"].clone()
    };
    assert_eq!(code(&client), "PAIRING_REQUIRED");
    let pin = pin.as_str().unwrap();
    let other = client.replace(pin, &"0".repeat(pin.len()));
    assert_eq!(code(&other), "SERVER_NOT_VERIFIED");
}

#[test]
fn from_another_machine_the_printed_lines_work_as_they_stand_and_nothing_else_is_open() {
    let whole = "e2e::remote::from_another_machine_the_printed_lines_work_as_they_stand_and_nothing_else_is_open";
    let Some(far) = far(whole) else {
        return;
    };
    let gateway = Gateway::with(&[TLS]);
    let sshd = Sshd::at(NEAR, "");
    let config = sshd.client("user", "known_hosts");
    let login = format!("nobody@{NEAR}");
    let printed = gateway.json(&["remote", "--ssh", &login, "--ssh-config", &config]);
    let port = gateway.port();
    let reaches = |host: &str| {
        let line = format!("bash -c ': < /dev/tcp/{host}/{port}'");
        far.typed(&line).output().unwrap().status.success()
    };
    assert!(!reaches(NEAR) && !reaches("127.0.0.1"));
    let line = printed["ssh"]["command"].as_str().unwrap();
    let _tunnel = Tunnel::run(far.typed(line), || reaches("127.0.0.1"));
    assert!(!reaches(NEAR));
    let client = printed["ssh"]["client"].as_str().unwrap();
    let client = client.replace("FILE", &token_file(&gateway));
    let client = client.replacen("portcullis", gateway.program().to_str().unwrap(), 1);
    let run = || {
        let mut command = far.typed(&format!("{client} --json"));
        command
            .env("HOME", gateway.home())
            .env_remove("PORTCULLIS_STATE_DIR");
        answer(&command.output().unwrap())
    };
    let (waits, exit) = run();
    assert_eq!(
        (&waits["error"]["code"], exit),
        (&"PAIRING_REQUIRED".into(), 4),
        "{waits}"
    );
    let id = waits["error"]["requestId"].as_str().unwrap();
    gateway.json(&["devices", "approve", id]);
    let (status, exit) = run();
    assert_eq!(exit, 0, "{status}");
    assert_eq!(status["portcullis"]["tls"]["spkiSha256"], printed["pin"]);
}

#[test]
fn a_tunnel_that_does_not_stand_is_told_by_its_reason() {
    let gateway = Gateway::start();
    let sshd = Sshd::start("");
    let told = |config: &str| {
        let (check, exit) = checked(&gateway, config);
        assert_eq!(check["ok"], false, "{check}");
        let error = &check["error"];
        assert!(!error["hint"].as_str().unwrap().is_empty(), "{error}");
        assert!(
            !error["message"].as_str().unwrap().contains("ssh: ssh: "),
            "{error}"
        );
        (error["code"].as_str().unwrap().to_owned(), exit)
    };
    let is = |code: &str, exit: i32| (code.to_owned(), exit);
    // A host that nobody vouched for is not believed, and not remembered.
    let unknown = sshd.client("user", "none");
    assert_eq!(told(&unknown), is("SSH_HOST_UNKNOWN", 4));
    assert_eq!(told(&unknown), is("SSH_HOST_UNKNOWN", 4));
    assert_eq!(
        told(&sshd.client("other", "known_hosts")),
        is("SSH_REFUSED", 4)
    );
    let config = sshd.client("user", "known_hosts");
    let output = gateway
        .command(&[
            "remote",
            "--check",
            "--ssh",
            LOGIN,
            "--ssh-config",
            &config,
            "--json",
        ])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    let (missing, exit) = answer(&output);
    assert_eq!(
        (&missing["checks"]["ssh"]["error"]["code"], exit),
        (&"SSH_MISSING".into(), 3)
    );
    drop(sshd);
    assert_eq!(told(&config), is("SSH_UNREACHABLE", 1));
    // Logged in, and the far end forwards nothing; or to somewhere else only.
    for more in ["AllowTcpForwarding no", "PermitOpen 127.0.0.1:1"] {
        let sshd = Sshd::start(more);
        let config = sshd.client("user", "known_hosts");
        assert_eq!(told(&config), is("FORWARD_FAILED", 1), "{more}");
        // A person reads the same, and the commands.
        let output = gateway.cli(&["remote", "--check", "--ssh", LOGIN, "--ssh-config", &config]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("check ssh: error[FORWARD_FAILED]: "),
            "{text}"
        );
        assert!(text.contains("administratively prohibited"), "{text}");
        assert!(text.contains("  ssh -F "), "{text}");
        // No ssh of ours is left behind.
        assert_eq!(processes_with(&config), 0);
    }
    // A check that checks nothing is none.
    let elsewhere = ["remote", "--check", "--url", "ws://127.0.0.1:1", "--json"];
    let (error, exit) = answer(&gateway.cli(&elsewhere));
    assert_eq!(
        (&error["error"]["code"], exit),
        (&"INVALID_PARAMS".into(), 2)
    );
    // What would be an option, or a word for a shell, is no destination.
    for bad in ["-oProxyCommand=touch x", "a;b", "me@-x"] {
        let given = format!("--ssh={bad}");
        let (error, exit) = answer(&gateway.cli(&["remote", "--check", &given, "--json"]));
        assert_eq!(
            (&error["error"]["code"], exit),
            (&"INVALID_PARAMS".into(), 2)
        );
    }
}

/// Processes that have this in their command line.
fn processes_with(word: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap();
    all.filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains(word))
        .count()
}

/// Stands for Tailscale's daemon: answers its two questions.
fn tailscale(gateway: &Gateway, file: &str, state: &str, serves: Value) -> String {
    let path: PathBuf = gateway.home().join(file);
    let listener = UnixListener::bind(&path).unwrap();
    let status = json!({ "BackendState": state, "Self": { "DNSName": format!("{NAME}.") } });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> = lines
                .map_while(Result::ok)
                .take_while(|l| !l.is_empty())
                .collect();
            assert!(
                head.iter()
                    .any(|l| l.eq_ignore_ascii_case("host: local-tailscaled.sock")),
                "{head:?}"
            );
            let body = match head[0].as_str() {
                "GET /localapi/v0/status HTTP/1.1" => &status,
                "GET /localapi/v0/serve-config HTTP/1.1" => &serves,
                other => panic!("{other}"),
            };
            let body = body.to_string();
            let length = body.len();
            // Whoever asked may be gone.
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
            );
        }
    });
    path.display().to_string()
}

#[test]
fn what_tailscale_serves_is_compared_with_the_printed_command_and_funnel_is_never_let_pass() {
    let hosts = ("gateway.hosts", r#"["gate.tail1234.ts.net"]"#);
    let gateway = Gateway::with(&[hosts]);
    let port = gateway.port();
    let to = format!("127.0.0.1:{port}");
    let ours = json!({ "TCP": { port.to_string(): { "TCPForward": to, "TerminateTLS": NAME } } });
    let look = |socket: &str| {
        let (answer, exit) =
            answer(&gateway.cli(&["remote", "--check", "--tailscale-socket", socket, "--json"]));
        let check = &answer["checks"]["tailscale"];
        let code = check["error"]["code"].as_str().unwrap_or("OK").to_owned();
        assert_eq!(check["ok"].as_bool().unwrap(), code == "OK", "{check}");
        (answer, code, exit)
    };
    let (answer, code, exit) = look(&tailscale(&gateway, "good", "Running", ours.clone()));
    assert_eq!((code.as_str(), exit), ("OK", 0), "{answer}");
    let words = &answer["tailscale"];
    assert_eq!(
        words["command"],
        format!("tailscale serve --bg --tls-terminated-tcp={port} tcp://{to}")
    );
    assert_eq!(
        words["client"],
        format!("portcullis status --url wss://{NAME}:{port} --token-file FILE")
    );
    assert_eq!(words["needs"], format!("[gateway] hosts = [\"{NAME}\"]"));
    assert_eq!(answer["checks"]["ssh"], Value::Null);
    let mut open = ours.clone();
    open["TCP"]["443"] = json!({ "TCPForward": to, "TerminateTLS": NAME });
    open["AllowFunnel"] = json!({ format!("{NAME}:443"): true });
    for (file, state, serves, expected, code_of) in [
        ("open", "Running", open, "TAILSCALE_FUNNEL", 5),
        ("none", "Running", json!({}), "TAILSCALE_NOT_SERVING", 1),
        ("down", "Stopped", ours, "TAILSCALE_NOT_SERVING", 1),
    ] {
        let (answer, code, exit) = look(&tailscale(&gateway, file, state, serves));
        assert_eq!((code.as_str(), exit), (expected, code_of), "{answer}");
    }
    let absent = gateway.home().join("absent").display().to_string();
    let (answer, code, exit) = look(&absent);
    assert_eq!(
        (code.as_str(), exit),
        ("TAILSCALE_UNREACHABLE", 3),
        "{answer}"
    );
}

#[test]
fn a_tailnet_name_that_the_gateway_does_not_answer_to_is_told_with_the_lines_to_add() {
    let gateway = Gateway::with(&[TLS]);
    let port = gateway.port();
    let raw = json!({ "TCP": { port.to_string(): { "TCPForward": format!("127.0.0.1:{port}") } } });
    let socket = tailscale(&gateway, "net", "Running", raw);
    let (answer, exit) =
        answer(&gateway.cli(&["remote", "--check", "--tailscale-socket", &socket, "--json"]));
    assert_eq!(exit, 4, "{answer}");
    let error = &answer["checks"]["tailscale"]["error"];
    assert_eq!(error["code"], "NAME_NOT_OURS", "{error}");
    assert_eq!(error["fix"], format!("[gateway]\nhosts = [\"{NAME}\"]"));
    // The key of this gateway is met at the far end: its TLS is ended nowhere else.
    let words = &answer["tailscale"];
    assert_eq!(
        words["command"],
        format!("tailscale serve --bg --tcp={port} tcp://127.0.0.1:{port}")
    );
    let pin = answer["pin"].as_str().unwrap();
    assert_eq!(
        words["client"],
        format!("portcullis status --url wss://{NAME}:{port} --pin sha256:{pin} --token-file FILE")
    );
}
