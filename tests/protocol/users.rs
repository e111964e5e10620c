//! What one user of this machine takes from another: nothing, whatever uids and addresses he has.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::local::dial_as;
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect};

const OPERATOR: u32 = 65_531;
/// Who has the range.
const OWNER: u32 = 65_529;
const OTHER: u32 = 65_528;
/// The first of his sub-uids.
const FIRST: u32 = 300_000;

/// Carries bytes to a port and back, over a socket that its owner has given to another uid of his user namespace: his own
/// is 0 there, his range begins at 1. The maps are written as newuidmap(1) would.
const RELAY: &str = "
import ctypes, os, socket, sys, threading
port, own, first, uid = map(int, sys.argv[1:])
asks, told = os.pipe(), os.pipe()
child = os.fork()
if child:
    os.read(asks[0], 1)
    open(f'/proc/{child}/gid_map', 'w').write(f'0 {own} 1')
    open(f'/proc/{child}/uid_map', 'w').write(f'0 {own} 1\\n1 {first} 65536')
    os.write(told[1], b'x')
    os.close(0), os.close(1)
    os._exit(os.waitpid(child, 0)[1] and 1)
os.setgroups([])
os.setgid(own)
os.setuid(own)
assert ctypes.CDLL(None).unshare(0x10000000) == 0
os.write(asks[1], b'x')
os.read(told[0], 1)
s = socket.socket()
try:
    os.fchown(s.fileno(), 70000, -1)
    os._exit(9)
except OSError:
    pass
os.fchown(s.fileno(), uid, -1)
s.connect(('127.0.0.1', port))
def up():
    while b := os.read(0, 65536):
        s.sendall(b)
    os._exit(0)
threading.Thread(target=up, daemon=True).start()
while b := s.recv(65536):
    os.write(1, b)
os._exit(0)
";

/// Dials a socket over and over, for ever, and keeps what it has.
const FLOOD: &str = "
import socket, sys
kept = []
for n in range(10 ** 9):
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(sys.argv[1])
    except OSError:
        pass
    kept.append(s)
    if n == 500:
        print('full', flush=True)
    if len(kept) > 400:
        kept.pop(0).close()
";

/// Only root can be another user.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Over TCP, from a socket of the owner's that has this uid of his namespace.
async fn dial_under(gateway: &Gateway, uid: u32) -> Client {
    let mut relay = Command::new("python3");
    let words = [u32::from(gateway.port()), OWNER, FIRST, uid].map(|n| n.to_string());
    relay
        .args(["-c", RELAY])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .current_dir("/");
    let mut relay = tokio::process::Command::from(relay)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pipes = (relay.stdout.take().unwrap(), relay.stdin.take().unwrap());
    let client = Client::through(tokio::io::join(pipes.0, pipes.1), gateway.port()).await;
    // It ends with its socket.
    tokio::spawn(async move { relay.wait().await });
    client
}

/// A guess at a password; the refusal's code.
async fn guess(mut client: Client, n: u32) -> Value {
    let auth = json!({ "password": format!("guess {n}"), "user": "ann" });
    let (error, _) = client.denied(&Connect::bare().auth(auth)).await;
    error["details"]["code"].clone()
}

fn with_ranges(settings: &[(&str, &str)], ranges: &str) -> Gateway {
    let mut gateway = Gateway::prepared(settings);
    let file = gateway.home().join("subuid");
    std::fs::write(&file, ranges).unwrap();
    gateway.set("gateway.local.subuid_file", file.to_str().unwrap());
    gateway.launch();
    gateway
}

/// The bug: a socket of a user namespace has any sub-uid of its owner's at its owner's wish, and each had ten tries.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_sub_uids_has_one_users_tries() {
    if !is_root() {
        return;
    }
    let gateway = with_ranges(
        &[
            ("gateway.auth.mode", "password"),
            ("gateway.auth.bcrypt_cost", "10"),
        ],
        &format!("{OWNER}:{FIRST}:65536\n"),
    );
    for n in 0..10 {
        let told = guess(dial_under(&gateway, 1 + n).await, n).await;
        assert_eq!(told, "AUTH_PASSWORD_MISMATCH", "{n}");
    }
    for uid in [11, 60_000, 0] {
        let told = guess(dial_under(&gateway, uid).await, uid).await;
        assert_eq!(told, "AUTH_RATE_LIMITED", "{uid}");
    }
    let told = guess(dial_as(&gateway, OTHER, OTHER).await, 0).await;
    assert_eq!(told, "AUTH_PASSWORD_MISMATCH");
}

/// A namespace has its owner's uid and his range. An operator's number in it is another uid outside.
#[tokio::test(flavor = "multi_thread")]
async fn no_socket_of_a_user_namespace_becomes_an_operators() {
    if !is_root() {
        return;
    }
    let operators = [("gateway.local.operators", "[\"self\", \"uid:65531\"]")];
    let gateway = with_ranges(&operators, &format!("{OWNER}:{FIRST}:65536\n"));
    for uid in [0, 1, OPERATOR] {
        let mut client = dial_under(&gateway, uid).await;
        let asked = Connect::token().scopes(&["operator.read"]);
        let hello = client.hello(&asked).await;
        assert_eq!(hello["auth"]["scopes"], json!([]), "{uid}");
    }
    assert!(!gateway.log().contains("is in the range"));
    // Who has an operator's uid in his range is that operator, and no gateway can tell: a start says so.
    // Agents' users are none of his.
    let apart = [operators[0], ("sandbox.uids", "70000-99999")];
    let gateway = with_ranges(&apart, "65529:65000:1000\n");
    let log = gateway.log();
    assert!(
        log.contains("is in the range") && log.contains("65531"),
        "{log}"
    );
}

fn cli_as(gateway: &Gateway, socket: &Path, uid: u32) -> Output {
    let mut command = Command::new(gateway.home().join("portcullis"));
    command
        .args(["status", "--json"])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("PORTCULLIS_SOCKET", socket)
        .current_dir("/")
        .uid(uid)
        .gid(uid);
    command.output().unwrap()
}

/// The bug: whoever may dial the shared socket took a place there, and any user's flood kept all operators out.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_operator_takes_no_place_at_the_shared_socket() {
    if !is_root() {
        return;
    }
    let mut gateway =
        Gateway::prepared(&[("gateway.local.operators", "[\"self\", \"uid:65531\"]")]);
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(gateway.home(), open.clone()).unwrap();
    let program = gateway.home().join("portcullis");
    std::fs::copy(gateway.program(), &program).unwrap();
    std::fs::set_permissions(&program, open).unwrap();
    let socket: PathBuf = gateway.home().join("doors/control.sock");
    gateway.set("gateway.local.socket", socket.to_str().unwrap());
    gateway.launch();
    let mut flood = Command::new("python3");
    flood
        .args(["-c", FLOOD, socket.to_str().unwrap()])
        .stdout(Stdio::piped())
        .current_dir("/")
        .uid(OTHER)
        .gid(OTHER);
    let mut flood = flood.spawn().unwrap();
    let mut told = [0; 5];
    std::io::Read::read_exact(flood.stdout.as_mut().unwrap(), &mut told).unwrap();
    let mut slowest = std::time::Duration::ZERO;
    for _ in 0..10 {
        let began = std::time::Instant::now();
        let output = cli_as(&gateway, &socket, OPERATOR);
        assert!(output.status.success(), "{output:?}");
        slowest = slowest.max(began.elapsed());
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let rooms = status["portcullis"]["rooms"].as_array().unwrap();
        let edge = rooms.iter().find(|room| room["name"] == "edge").unwrap();
        let facts = edge["facts"].as_array().unwrap();
        let fact = |name: &str| facts.iter().find(|fact| fact[0] == name).unwrap()[1].clone();
        // Of a hundred thousand nobody, and a goodbye or two.
        let accepted: u64 = fact("accepted").as_str().unwrap().parse().unwrap();
        assert!(accepted < 100, "{edge}");
    }
    flood.kill().unwrap();
    flood.wait().unwrap();
    assert!(slowest.as_secs() < 5, "{slowest:?}");
}
