//! Our own command line as a device of a gateway elsewhere: real programs, real sockets, a key of its own.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Output;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;

use crate::support::gateway::{Gateway, TOKEN};

/// Nobody is trusted for being here: every device waits for a person.
pub const STRICT: (&str, &str) = ("gateway.local.local_trust", "false");
const TLS: (&str, &str) = ("gateway.tls.enabled", "true");

/// A private file in the gateway's home.
pub fn private(gateway: &Gateway, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = gateway.home().join(name);
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
    path
}

pub fn token_file(gateway: &Gateway) -> String {
    let path = private(gateway, "token", &format!("{TOKEN}\n"), 0o600);
    path.to_str().unwrap().to_owned()
}

fn plain(gateway: &Gateway) -> String {
    format!("ws://127.0.0.1:{}", gateway.port())
}

/// The failure's document, and the exit code.
fn failed(output: &Output) -> (Value, i32) {
    let error: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no failure: {output:?}"));
    (error["error"].clone(), output.status.code().unwrap())
}

/// Runs it, has what it waits for approved, and runs it again.
fn approved(gateway: &Gateway, args: &[&str]) -> Value {
    let args = [args, &["--json"]].concat();
    let (error, code) = failed(&gateway.cli(&args));
    assert_eq!(
        (&error["code"], code),
        (&"PAIRING_REQUIRED".into(), 4),
        "{error}"
    );
    let id = error["requestId"].as_str().unwrap();
    assert!(
        error["hint"]
            .as_str()
            .unwrap()
            .contains(&format!("portcullis devices approve {id}")),
        "{error}"
    );
    gateway.json(&["devices", "approve", id]);
    let output = gateway.cli(&args);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_device_elsewhere_waits_for_a_person_and_then_sees_what_the_control_socket_shows() {
    let gateway = Gateway::with(&[STRICT]);
    let (url, token) = (plain(&gateway), token_file(&gateway));
    let at = |args: &[&str]| gateway.cli(&[args, &["--url", &url, "--json"]].concat());
    let (error, code) = failed(&at(&["devices", "list"]));
    assert_eq!(
        (&error["code"], code),
        (&"CREDENTIAL_NEEDED".into(), 4),
        "{error}"
    );
    let with = ["devices", "list", "--url", &url, "--token-file", &token];
    // A person reads what to do, and whose key it is.
    let told = gateway.cli(&with);
    assert_eq!(told.status.code(), Some(4));
    let told = String::from_utf8(told.stderr).unwrap();
    assert!(
        told.contains("error[PAIRING_REQUIRED]") && told.contains("fingerprint of this device"),
        "{told}"
    );
    let seen = approved(&gateway, &with);
    assert_eq!(seen["paired"].as_array().unwrap().len(), 1, "{seen}");
    assert!(
        told.contains(seen["paired"][0]["deviceId"].as_str().unwrap()),
        "{told}"
    );
    assert_eq!(seen["pending"], serde_json::json!([]));
    // From now on it has a token of its own, the same key at each run, and says the same as the control socket.
    let own = gateway.json(&["devices", "list", "--url", &url]);
    let here = gateway.json(&["devices", "list"]);
    assert_eq!(own["paired"][0]["deviceId"], here["paired"][0]["deviceId"]);
    // Asking for more is asking a person again; the token is the same one.
    let rules = approved(&gateway, &["approvals", "policy", "--url", &url]);
    assert_eq!(rules, gateway.json(&["approvals", "policy"]));
    let text = |args: &[&str]| String::from_utf8(gateway.cli(args).stdout).unwrap();
    let here = text(&["approvals", "policy"]);
    assert!(here.len() > 20, "{here}");
    assert_eq!(text(&["approvals", "policy", "--url", &url]), here);
}

#[test]
fn a_run_for_an_agent_goes_through_a_gateway_elsewhere_to_its_own_end() {
    let gateway = Gateway::with(&[STRICT]);
    let (url, token) = (plain(&gateway), token_file(&gateway));
    let run = [
        "exec",
        "--agent",
        "demo",
        "--url",
        &url,
        "--token-file",
        &token,
        "--",
        "sh",
        "-c",
        "echo far; exit 7",
    ];
    let refused = gateway.cli(&run);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    let told = String::from_utf8(refused.stderr).unwrap();
    let id = told.split("portcullis devices approve ").nth(1).unwrap();
    let id = id.split('`').next().unwrap();
    gateway.json(&["devices", "approve", id]);
    let ran = gateway.cli(&run);
    assert_eq!(ran.status.code(), Some(7), "{ran:?}");
    assert_eq!(ran.stdout, b"far\n");
}

#[test]
fn over_tls_the_pinned_key_is_needed_and_nothing_is_told_to_another() {
    let gateway = Gateway::with(&[STRICT, TLS]);
    let token = token_file(&gateway);
    let url = format!("wss://localhost:{}", gateway.port());
    let pin = gateway.json(&["status"])["portcullis"]["tls"]["spkiSha256"].clone();
    let pin = format!("sha256:{}", pin.as_str().unwrap());
    let with = [
        "status",
        "--url",
        &url,
        "--pin",
        &pin,
        "--token-file",
        &token,
    ];
    let status = approved(&gateway, &with);
    assert_eq!(status["portcullis"]["tls"]["spkiSha256"], pin[7..]);
    gateway.json(&["status", "--url", &url, "--pin", &pin]);
    // Another key: refused before a token is read.
    let wrong = if pin.ends_with('0') { "1" } else { "0" };
    let wrong = format!("{}{wrong}", &pin[..pin.len() - 1]);
    let other = gateway.cli(&[
        "status",
        "--url",
        &url,
        "--pin",
        &wrong,
        "--token-file",
        "/nonexistent",
        "--json",
    ]);
    let (error, _) = failed(&other);
    assert_ne!(error["code"], "PAIRING_REQUIRED");
    let other = gateway.cli(&[
        "status",
        "--url",
        &url,
        "--pin",
        &wrong,
        "--token-file",
        &token,
        "--json",
    ]);
    let (error, code) = failed(&other);
    assert_eq!(
        (&error["code"], code),
        (&"SERVER_NOT_VERIFIED".into(), 4),
        "{error}"
    );
    // No pin: this system's authorities do not know it.
    let (error, _) =
        failed(&gateway.cli(&["status", "--url", &url, "--token-file", &token, "--json"]));
    assert_eq!(error["code"], "SERVER_NOT_VERIFIED", "{error}");
}

#[test]
fn without_a_pin_the_authorities_of_the_system_vouch_for_the_name() {
    let mut gateway = Gateway::prepared(&[STRICT, TLS]);
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_file = private(
        &gateway,
        "ca.pem",
        &ca.self_signed(&ca_key).unwrap().pem(),
        0o600,
    );
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let cert = private(&gateway, "c.pem", &leaf.pem(), 0o600);
    let key = private(&gateway, "k.pem", &key.serialize_pem(), 0o600);
    gateway.set("gateway.tls.cert_file", cert.to_str().unwrap());
    gateway.set("gateway.tls.key_file", key.to_str().unwrap());
    gateway.launch();
    let token = token_file(&gateway);
    let ask = |host: &str, authorities: bool| {
        let url = format!("wss://{host}:{}", gateway.port());
        let mut command =
            gateway.command(&["status", "--url", &url, "--token-file", &token, "--json"]);
        if authorities {
            command.env("SSL_CERT_FILE", &ca_file);
        }
        failed(&command.output().unwrap()).0["code"].clone()
    };
    assert_eq!(ask("localhost", true), "PAIRING_REQUIRED");
    assert_eq!(ask("localhost", false), "SERVER_NOT_VERIFIED");
    assert_eq!(
        ask("127.0.0.1", true),
        "SERVER_NOT_VERIFIED",
        "the certificate is for a name"
    );
}

#[test]
fn a_void_token_is_told_and_a_new_one_is_fetched_with_the_shared_one() {
    let gateway = Gateway::with(&[STRICT]);
    let (url, token) = (plain(&gateway), token_file(&gateway));
    let seen = approved(
        &gateway,
        &["devices", "list", "--url", &url, "--token-file", &token],
    );
    let device = seen["paired"][0]["deviceId"].as_str().unwrap();
    gateway.json(&["devices", "rotate", device]);
    let (error, code) = failed(&gateway.cli(&["devices", "list", "--url", &url, "--json"]));
    assert_eq!(
        (&error["code"], code),
        (&"AUTH_DEVICE_TOKEN_MISMATCH".into(), 4),
        "{error}"
    );
    assert!(
        error["hint"].as_str().unwrap().contains("--token-file"),
        "{error}"
    );
    gateway.json(&["devices", "list", "--url", &url, "--token-file", &token]);
    gateway.json(&["devices", "list", "--url", &url]);
    // Revoked, it waits for a person again.
    gateway.json(&["devices", "revoke", device]);
    let (error, _) = failed(&gateway.cli(&[
        "devices",
        "list",
        "--url",
        &url,
        "--token-file",
        &token,
        "--json",
    ]));
    assert_eq!(error["code"], "PAIRING_REQUIRED", "{error}");
}

#[test]
fn what_would_leak_is_refused_before_anything_is_sent() {
    let gateway = Gateway::with(&[STRICT]);
    let url = plain(&gateway);
    let loose = private(&gateway, "loose", TOKEN, 0o644);
    let loose = loose.to_str().unwrap();
    for (args, code, exit) in [
        (
            vec!["status", "--url", &url, "--token-file", loose],
            "STATE_MODE",
            4,
        ),
        (
            vec!["status", "--url", "ws://gate.example:1"],
            "INVALID_PARAMS",
            2,
        ),
        (
            vec!["status", "--url", "wss://me:secret@gate.example"],
            "INVALID_PARAMS",
            2,
        ),
        (
            vec!["status", "--url", "wss://localhost:1", "--pin", "beef"],
            "INVALID_PARAMS",
            2,
        ),
        (vec!["config", "check", "--url", &url], "INVALID_PARAMS", 2),
        (vec!["gateway", "--url", &url], "INVALID_PARAMS", 2),
        // What a gateway elsewhere names is no page for our browser.
        (
            vec!["dashboard", "--open", "--url", &url],
            "INVALID_PARAMS",
            2,
        ),
        (vec!["status", "--pin", "sha256:00"], "INVALID_PARAMS", 2),
    ] {
        let output = gateway.cli(&[&args[..], &["--json"]].concat());
        let (error, code_is) = failed(&output);
        assert_eq!(
            (&error["code"], code_is),
            (&code.into(), exit),
            "{args:?}: {error}"
        );
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert_eq!(
        gateway.json(&["devices", "list"])["pending"],
        serde_json::json!([])
    );
}
