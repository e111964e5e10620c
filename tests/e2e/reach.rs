//! What we let run can never approve: an approved host command tries every door, and the gateway itself. The same
//! script, run by an operator's own process, comes in: so it is not the script that fails.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::walk::Background;
use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws;

/// Everything that the script tries.
const TRIES: usize = 17;
/// What the script asks for.
const SCOPES: [&str; 5] = [
    "operator.admin",
    "operator.approvals",
    "operator.pairing",
    "operator.read",
    "operator.act_as",
];
/// What an operator reaches with it; the rest is only for root, or for nobody.
const OPERATORS: [&str; 11] = [
    "approvals list",
    "approvals allow",
    "vault list",
    "dashboard",
    "state directory",
    "state.db",
    "control.sock",
    "tcp",
    "tcp with a device's key",
    "page",
    "rpc",
];

#[test]
fn an_approved_host_command_gets_through_no_door_of_a_root_gateway() {
    tries(Gateway::prepared(&[]));
}

/// Here the command has the gateway's own user, who is an operator everywhere else.
#[test]
fn an_approved_host_command_gets_through_no_door_of_its_own_users_gateway() {
    let require = [("sandbox.require_cgroup", "false")];
    tries(Gateway::prepared(&require).run_by(65_532));
}

fn tries(mut gateway: Gateway) {
    gateway.launch();
    gateway.vault_is_open();
    let outside = tempfile::tempdir().unwrap();
    let open = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(outside.path());
    let program = outside.path().join("portcullis");
    std::fs::copy(gateway.program(), &program).unwrap();
    open(&program);
    let script = outside.path().join("tries.py");
    std::fs::write(&script, include_str!("../support/tries.py")).unwrap();
    open(&script);

    let seed = paired(&gateway);
    let other = ask(&gateway, &["true"]);
    let code = code(&gateway);
    let state = gateway.state();
    let port = gateway.port().to_string();
    let pid = gateway.pid().to_string();
    let args = |code: &str| -> Vec<String> {
        let paths = [&script, &program, &state].map(|p| p.display().to_string());
        let rest = [&port, TOKEN, &other.1, &pid, code, &seed].map(str::to_owned);
        [&["/usr/bin/python3".to_owned()], &paths[..], &rest[..]].concat()
    };
    let argv = args(&code);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let run = ask(&gateway, &argv);
    gateway.json(&["approvals", "allow", &run.1]);
    let (_, said, told) = run.0.end();
    assert_eq!(said.lines().count(), TRIES, "{said}\n{told}");
    for line in said.lines() {
        assert!(line.contains(": refused "), "{line}\n{said}");
    }
    // The question that it tried to answer still waits, and the code that it had is still good.
    let waits = gateway.json(&["approvals", "list"]);
    assert_eq!(waits[0]["id"], other.1.as_str());
    let mut by_operator = as_operator(&gateway, &args(&code));
    let output = by_operator.arg("operator").output().unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(said.lines().count(), TRIES, "{said}\n{output:?}");
    for name in OPERATORS {
        let line = format!("{name}: REACHED");
        assert!(said.contains(&line), "{name}\n{said}");
    }
    // The operator's answer ends the other one.
    assert_eq!(other.0.end().0, 125);
}

/// A device that a person has made an operator of; the seed of its key, hex.
fn paired(gateway: &Gateway) -> String {
    let seed = ws::random::<32>();
    let key = ed25519_dalek::SigningKey::from_bytes(&seed);
    let device = ws::Device::Ed25519(Box::new(key));
    let connect = ws::Connect::token().scopes(&SCOPES).device(&device);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = ws::Client::dial(gateway).await;
        let params = connect.params(&client.nonce, client.ts);
        let answer = client.call("connect", params).await;
        // Local trust has let it in already, where this process is an operator's.
        if let Some(id) = answer["error"]["details"]["requestId"].as_str() {
            gateway.json(&["devices", "approve", id]);
        }
        ws::join(gateway, &connect).await;
    });
    ws::hex(&seed)
}

/// Asks for a host command; its process and its approval.
fn ask(gateway: &Gateway, argv: &[&str]) -> (Background, String) {
    let ids = || -> Vec<String> {
        let list = gateway.json(&["approvals", "list"]);
        let list = list.as_array().unwrap().iter();
        list.map(|a| a["id"].as_str().unwrap().to_owned()).collect()
    };
    let known = ids();
    let exec = ["exec", "--agent", "demo", "--host", "--"];
    let child = Background::start(gateway, &[&exec, argv].concat());
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(new) = ids().into_iter().find(|id| !known.contains(id)) {
            return (child, new);
        }
        assert!(Instant::now() < end, "no question:\n{}", gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn code(gateway: &Gateway) -> String {
    let answer = gateway.json(&["dashboard"]);
    let (url, code) = (&answer["url"], answer["code"].as_str().unwrap());
    assert!(url.as_str().unwrap().ends_with(&format!("/login#{code}")));
    code.to_owned()
}

/// Another program than ours, as the user of the command line.
fn as_operator(gateway: &Gateway, argv: &[String]) -> Command {
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).stdin(Stdio::null());
    if let Some(uid) = gateway.user() {
        use std::os::unix::process::CommandExt as _;
        command.uid(uid).gid(uid).current_dir("/");
    }
    command
}
