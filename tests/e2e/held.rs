//! What is held outside of the gateway: checkpoints by paired devices and node hosts, the log's first public key, records
//! by sinks; and the demonstration of it all.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fantoccini::Locator;
use serde_json::Value;

use super::node_host::{Host, let_in};
use super::remote_cli::{STRICT, token_file};
use crate::support::browser::Browser;
use crate::support::gateway::Gateway;

const PATIENCE: Duration = Duration::from_mins(1);

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(done.unwrap().success());
}

/// Puts back the state of before.
fn put_back(gateway: &mut Gateway, backup: &Path) {
    assert_eq!(gateway.stop(), 0);
    std::fs::remove_dir_all(gateway.state()).unwrap();
    copy(backup, &gateway.state());
    gateway.launch();
}

#[test]
fn a_paired_command_line_and_a_node_host_say_that_the_log_was_put_back() {
    let mut gateway = Gateway::with(&[STRICT]);
    gateway.keep_port();
    let url = format!("ws://127.0.0.1:{}", gateway.port());
    let token = token_file(&gateway);
    let list = ["devices", "list", "--url", &url, "--token-file", &token];
    let asked = gateway.cli(&[&list[..], &["--json"]].concat());
    let asked: Value = serde_json::from_slice(&asked.stdout).unwrap();
    let id = asked["error"]["requestId"].as_str().unwrap();
    gateway.json(&["devices", "approve", id]);
    gateway.json(&list);
    let mut host = Host::start(&gateway, &url, &token);
    host.says("portcullis devices approve");
    let pending = gateway.json(&["devices", "list"]);
    let request = pending["pending"][0]["requestId"].as_str().unwrap();
    gateway.json(&["devices", "approve", request]);
    let_in(&gateway);
    assert_eq!(host.stop(), 0);
    assert_eq!(gateway.stop(), 0);
    let backup = gateway.home().join("backup");
    copy(&gateway.state(), &backup);
    gateway.launch();

    // Both see the log as it goes on, and neither has anything to say.
    gateway.json(&list);
    let mut host = Host::start(&gateway, &url, &token);
    host.says("connected as a node");
    for _ in 0..3 {
        gateway.json(&["audit", "tail"]);
    }
    gateway.json(&list);
    assert_eq!(host.stop(), 0);
    let mut host = Host::start(&gateway, &url, &token);
    host.says("connected as a node");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!host.log().contains("AUDIT_FORKED"), "{}", host.log());
    put_back(&mut gateway, &backup);
    // It comes back by itself, and says so.
    let log = host.says("AUDIT_FORKED");
    assert!(
        log.contains("does not go on from what this user has seen"),
        "{log}"
    );
    let output = gateway.cli(&list);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(10), "{told}");
    assert!(told.contains("error[AUDIT_FORKED]"), "{told}");
    assert_eq!(host.stop(), 0);
}

#[test]
fn the_logs_first_public_key_is_told_at_the_start_and_by_status() {
    let mut gateway = Gateway::prepared(&[]).by_up();
    gateway.launch();
    let until = Instant::now() + PATIENCE;
    let said = loop {
        let said = gateway.said();
        if said.contains("log key") {
            break said;
        }
        assert!(Instant::now() < until, "{said}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let key = gateway.json(&["audit", "head"])["firstKey"].clone();
    let key = key.as_str().unwrap();
    assert!(said.contains(&format!("log key   {key} ")), "{said}");
    let status = String::from_utf8(gateway.cli(&["status"]).stdout).unwrap();
    assert!(status.contains(&format!("log key    {key}")), "{status}");
    assert_eq!(
        gateway.json(&["status"])["portcullis"]["auditFirstKey"],
        key
    );
    let report = gateway.json(&["audit", "verify", "--key", key]);
    assert_eq!(report["intact"], true);
}

/// Takes every POST that brings the token, and keeps what it says.
fn receiver(token: &'static str) -> (String, Arc<Mutex<Vec<u64>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/audit", listener.local_addr().unwrap());
    let seen = Arc::<Mutex<Vec<u64>>>::default();
    let to = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                // A connection that ends early is tried again.
                if stream.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                    break;
                }
                if let Some(count) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = count.trim().parse().unwrap();
                }
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            let whole = stream.read_exact(&mut body).is_ok();
            let is_ours = head.contains(&format!("Bearer {token}\r\n"));
            if whole && is_ours {
                let text = String::from_utf8(body).unwrap();
                let seq = |line: &str| {
                    let line: Value = serde_json::from_str(line).unwrap();
                    line["seq"].as_u64().unwrap()
                };
                to.lock().unwrap().extend(text.lines().map(seq));
            }
            let status = if is_ours {
                "200 OK"
            } else {
                "401 Unauthorized"
            };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            // Who has gone asks again.
            let _ = stream.get_mut().write_all(answer.as_bytes());
        }
    });
    (address, seen)
}

#[test]
fn a_sink_with_a_token_of_the_vault_gets_every_record_also_those_of_a_crash_and_status_shows_it() {
    let (address, seen) = receiver("planted-token-4f2a");
    let mut gateway = Gateway::prepared(&[]);
    let config = format!(
        "[audit.sinks.siem]\nkind = \"http\"\naddress = \"{address}\"\ntoken = {{ vault = \"SIEM\" }}\n"
    );
    let path = gateway.state().join("config.toml");
    std::fs::write(&path, config).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    gateway.launch();
    gateway.vault_is_open();
    let sink = |gateway: &Gateway| gateway.json(&["status"])["portcullis"]["sinks"]["siem"].clone();
    let until = |gateway: &Gateway, what: &str, is: &dyn Fn(&Value) -> bool| {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = sink(gateway);
            if is(&now) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {now}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    // Without its token nothing goes out, and it says why; with a wrong one the receiver does.
    until(&gateway, "no token", &|now| {
        now["error"]
            .as_str()
            .is_some_and(|why| why.contains("SIEM"))
    });
    assert_eq!(gateway.feed(&["vault", "set", "SIEM"], b"another-token"), 0);
    // The bug: whoever wrote config.toml had any secret sent to a receiver of his.
    until(
        &gateway,
        "a token that is not bound to the receiver",
        &|now| {
            let why = now["error"].as_str().unwrap_or_default();
            why.contains("SIEM") && why.contains("bound")
        },
    );
    assert!(seen.lock().unwrap().is_empty());
    let host = address
        .strip_prefix("http://")
        .unwrap()
        .split(':')
        .next()
        .unwrap();
    gateway.json(&["vault", "bind", "SIEM", "--host", host, "--use", "gateway"]);
    until(&gateway, "a wrong token", &|now| {
        now["error"].as_str().is_some_and(|why| why.contains("401"))
    });
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(
        gateway.feed(&["vault", "set", "SIEM"], b"planted-token-4f2a"),
        0
    );
    until(&gateway, "it goes on", &|now| now["error"].is_null());
    gateway.crash_and_start();
    gateway.json(&["audit", "tail"]);
    let last = gateway.json(&["audit", "head"])["size"].as_u64().unwrap();
    until(&gateway, "all is taken", &|now| {
        now["taken"].as_u64() >= Some(last)
    });
    let all: std::collections::BTreeSet<u64> = seen.lock().unwrap().iter().copied().collect();
    assert!((1..=last).all(|seq| all.contains(&seq)), "{last}: {all:?}");
    let text = String::from_utf8(gateway.cli(&["status"]).stdout).unwrap();
    assert!(text.contains("siem (http) has record "), "{text}");
    // The token is on record by its name, and nowhere by its value.
    let used = gateway.json(&["audit", "query", "--action", "sinks.secret"]);
    assert!(!used["records"].as_array().unwrap().is_empty(), "{used}");
    assert!(!gateway.log().contains("planted-token"));
    let config = gateway.json(&["config", "show"]).to_string();
    assert!(!config.contains("planted-token"));
}

#[test]
fn a_sink_that_is_none_starts_nothing() {
    for (lines, key) in [
        ("kind = \"kafka\"", "audit.sinks.siem.kind"),
        (
            "kind = \"http\"\naddress = \"http://siem.example/\"",
            "audit.sinks.siem.address",
        ),
        (
            "kind = \"file\"\npath = \"relative\"",
            "audit.sinks.siem.path",
        ),
        (
            "kind = \"http\"\naddress = \"https://siem.example/\"\npin = \"ab\"",
            "audit.sinks.siem.pin",
        ),
        (
            "kind = \"http\"\naddress = \"https://siem.example/\"\ntoken = \"planted-literal\"",
            "audit.sinks.siem.token",
        ),
    ] {
        let gateway = Gateway::prepared(&[]);
        let path = gateway.state().join("config.toml");
        std::fs::write(&path, format!("[audit.sinks.siem]\n{lines}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let (code, said) = gateway.refused();
        assert_ne!(code, 0);
        assert!(
            said.contains("CONFIG_INVALID") && said.contains(key),
            "{said}"
        );
        assert!(!said.contains("planted-literal"), "{said}");
    }
}

#[test]
fn the_demonstration_of_the_evidence_holds() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xtask");
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "xtask", "--target-dir"])
        .arg(target)
        .args([
            "--",
            "demo",
            "evidence",
            "--",
            "--binary",
            env!("CARGO_BIN_EXE_portcullis"),
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{told}");
    assert_eq!(said.matches("HELD: ").count(), 10, "{said}");
    for text in [
        "IDENTITY_MISMATCH",
        "AUDIT_ALTERED",
        "AUDIT_FORKED",
        "no outside checkpoint",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_says_that_the_log_was_put_back_until_a_person_says_that_he_knows() {
    let Some(browser) = Browser::open(false, true, 1280).await else {
        return;
    };
    let mut gateway = Gateway::start();
    gateway.keep_port();
    assert_eq!(gateway.stop(), 0);
    let backup = gateway.home().join("backup");
    copy(&gateway.state(), &backup);
    gateway.launch();
    let client = &browser.client;
    let enter = async |gateway: &Gateway, then: &str| {
        let told = gateway.cli(&["dashboard"]);
        let told = String::from_utf8(told.stdout).unwrap();
        client.goto(told.lines().next().unwrap()).await.unwrap();
        let found = client.wait().at_most(PATIENCE);
        found.for_element(Locator::Css(then)).await.unwrap()
    };
    let grow = |gateway: &Gateway, count: usize| {
        for _ in 0..count {
            gateway.json(&["audit", "tail"]);
        }
    };
    // It is kept, and goes on.
    enter(&gateway, "#plans").await;
    grow(&gateway, 5);
    enter(&gateway, "#plans").await;
    let kept = "return localStorage.getItem('portcullis audit log')";
    let kept = client.execute(kept, vec![]).await.unwrap();
    let kept: Value = serde_json::from_str(kept.as_str().unwrap()).unwrap();
    assert!(kept["size"].as_u64() > Some(10), "{kept}");
    put_back(&mut gateway, &backup);
    let forked = "#forked:not([hidden]) .notice.bad";
    let told = enter(&gateway, forked).await.text().await.unwrap();
    assert!(
        told.contains("AUDIT_FORKED") && told.contains(" and had "),
        "{told}"
    );
    browser.keep("page-forked").await;
    // Longer by now than what was seen, and still another: its proof does not hold.
    grow(&gateway, 20);
    let told = enter(&gateway, forked).await.text().await.unwrap();
    assert!(told.contains("are not those that were seen"), "{told}");
    let anew = client.find(Locator::Css("#anew")).await.unwrap();
    anew.click().await.unwrap();
    let plans = client.wait().at_most(PATIENCE);
    plans.for_element(Locator::Css("#plans")).await.unwrap();
    enter(&gateway, "#plans").await;
    browser.close().await;
}

/// The receiver is a gateway of ours, which has TLS and no such path: what it answers has come through the pinned key.
#[test]
fn a_receiver_behind_tls_is_met_by_its_pinned_key_and_by_no_other() {
    let receiver = Gateway::with(&[("gateway.tls.enabled", "true")]);
    let pin = receiver.json(&["status"])["portcullis"]["tls"]["spkiSha256"].clone();
    let pin = pin
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    let other: String = pin
        .chars()
        .map(|digit| if digit == '0' { '1' } else { '0' })
        .collect();
    let mut lines = String::new();
    for (name, scheme, kind, pin) in [
        ("right", "https", "http", pin.as_str()),
        ("wrong", "https", "http", other.as_str()),
        ("system", "https", "http", ""),
        ("stream", "tls", "syslog", other.as_str()),
    ] {
        let address = format!("{scheme}://127.0.0.1:{}", receiver.port());
        let address = if kind == "http" {
            address + "/none"
        } else {
            address
        };
        writeln!(
            lines,
            "[audit.sinks.{name}]\nkind = \"{kind}\"\naddress = \"{address}\"\npin = \"{pin}\""
        )
        .unwrap();
    }
    let mut gateway = Gateway::prepared(&[]);
    let path = gateway.state().join("config.toml");
    std::fs::write(&path, lines).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    gateway.launch();
    let end = Instant::now() + PATIENCE;
    let sinks = loop {
        let sinks = gateway.json(&["status"])["portcullis"]["sinks"].clone();
        if sinks
            .as_object()
            .unwrap()
            .values()
            .all(|sink| sink["error"].is_string())
        {
            break sinks;
        }
        assert!(Instant::now() < end, "{sinks}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let error = |name: &str| sinks[name]["error"].as_str().unwrap().to_owned();
    assert!(
        error("right").starts_with("the receiver answers 4"),
        "{sinks}"
    );
    for name in ["wrong", "system", "stream"] {
        assert!(!error(name).contains("answers"), "{name}: {sinks}");
        assert_eq!(sinks[name]["taken"], 0);
    }
}
