//! Who on this machine is an operator: the kernel says under which user and in which groups a client runs.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect};

const OPERATOR: u32 = 65_531;
const GROUP: u32 = 65_530;
const NOBODY: u32 = 65_529;

/// Carries bytes to a port and back.
const RELAY: &str = "
import os, socket, sys, threading
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
def up():
    while b := os.read(0, 65536):
        s.sendall(b)
threading.Thread(target=up, daemon=True).start()
while b := s.recv(65536):
    os.write(1, b)
";

/// Only root can be another user.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Over TCP, by a process of this user and group.
pub async fn dial_as(gateway: &Gateway, uid: u32, gid: u32) -> Client {
    let mut relay = Command::new("python3");
    relay
        .args(["-c", RELAY, &gateway.port().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .current_dir("/")
        .uid(uid)
        .gid(gid);
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

/// The scopes that the token alone brings there.
async fn scopes_of(gateway: &Gateway, uid: u32, gid: u32) -> Value {
    let mut client = dial_as(gateway, uid, gid).await;
    let asked = Connect::token().scopes(&["operator.read", "operator.pairing"]);
    client.hello(&asked).await["auth"]["scopes"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_alone_gives_no_scope_to_another_users_process() {
    if !is_root() {
        return;
    }
    let gateway = Gateway::start();
    let own = scopes_of(&gateway, 0, 0).await;
    assert_eq!(own, json!(["operator.read", "operator.pairing"]));
    assert_eq!(scopes_of(&gateway, NOBODY, NOBODY).await, json!([]));
}

/// The command line, as this user and group.
fn cli_as(gateway: &Gateway, socket: &std::path::Path, uid: u32, gid: u32) -> Output {
    let mut command = Command::new(gateway.home().join("portcullis"));
    command
        .args(["status", "--json"])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("PORTCULLIS_SOCKET", socket)
        .current_dir("/")
        .uid(uid)
        .gid(gid);
    command.output().unwrap()
}

/// The bug: operators of another user were promised and could use no door of their own machine.
#[tokio::test(flavor = "multi_thread")]
async fn operators_of_other_users_come_in_by_their_socket_and_by_loopback_and_nobody_else_does() {
    if !is_root() {
        return;
    }
    let mut gateway = Gateway::prepared(&[(
        "gateway.local.operators",
        "[\"self\", \"uid:65531\", \"gid:65530\"]",
    )]);
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(gateway.home(), open.clone()).unwrap();
    let program = gateway.home().join("portcullis");
    std::fs::copy(gateway.program(), &program).unwrap();
    std::fs::set_permissions(&program, open).unwrap();
    let socket: PathBuf = gateway.home().join("doors/control.sock");
    gateway.set("gateway.local.socket", socket.to_str().unwrap());
    gateway.launch();

    for (uid, gid, comes_in) in [
        (OPERATOR, NOBODY, true),
        (NOBODY, GROUP, true),
        (NOBODY, NOBODY, false),
    ] {
        let output = cli_as(&gateway, &socket, uid, gid);
        assert_eq!(output.status.success(), comes_in, "{uid}:{gid} {output:?}");
        if !comes_in {
            assert_eq!(output.status.code(), Some(4), "{output:?}");
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(told.contains("no operator's"), "{told}");
        }
        let scopes = scopes_of(&gateway, uid, gid).await;
        let had = scopes.as_array().unwrap().len();
        assert_eq!(had, if comes_in { 2 } else { 0 }, "{uid}:{gid} {scopes}");
    }
    // The private one stays private.
    let private = gateway.state().join("run/control.sock");
    assert!(
        !cli_as(&gateway, &private, OPERATOR, NOBODY)
            .status
            .success()
    );
    gateway.json(&["status"]);
    // A start finds its own socket left behind; another's file is not taken away.
    gateway.crash_and_start();
    assert!(cli_as(&gateway, &socket, OPERATOR, NOBODY).status.success());
}

#[test]
fn a_shared_socket_is_made_only_where_nobody_else_could_take_its_place() {
    let mut gateway = Gateway::prepared(&[]);
    let folder = gateway.home().join("doors");
    std::fs::create_dir(&folder).unwrap();
    let socket = folder.join("control.sock");
    gateway.set("gateway.local.socket", socket.to_str().unwrap());
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let (_, told) = gateway.refused();
    assert!(told.contains("nobody else may write"), "{told}");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(&socket, "kept").unwrap();
    let (_, told) = gateway.refused();
    assert!(told.contains("no socket is there"), "{told}");
    assert_eq!(std::fs::read(&socket).unwrap(), b"kept");
    gateway.set("gateway.local.socket", "control.sock");
    let (_, told) = gateway.refused();
    assert!(told.contains("an absolute path"), "{told}");
}

/// Listens at a path, and says how much whoever dials has to say before he is answered.
const LISTENS: &str = "
import os, socket, sys
path = sys.argv[1]
os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
l = socket.socket(socket.AF_UNIX)
l.bind(path)
os.chmod(path, 0o777)
l.listen(5)
print('ready', flush=True)
while True:
    c, _ = l.accept()
    print(len(c.recv(65536)), flush=True)
    c.close()
";

struct Listener(
    std::process::Child,
    std::io::BufReader<std::process::ChildStdout>,
);

impl Listener {
    fn at(path: &std::path::Path, uid: u32) -> Self {
        let mut command = Command::new("python3");
        command
            .args(["-c", LISTENS, path.to_str().unwrap()])
            .stdout(std::process::Stdio::piped())
            .current_dir("/")
            .uid(uid)
            .gid(uid);
        let mut child = command.spawn().unwrap();
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut listener = Self(child, out);
        assert_eq!(listener.line(), "ready");
        listener
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.1, &mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// `vault set` by root: the exit code, what it said, and how much of it the one who listens has heard.
fn secret_sent(state: &std::path::Path, listener: &mut Listener) -> (i32, String, usize) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command
        .args(["vault", "set", "DB", "--state"])
        .arg(state)
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"hunter2hunter2").unwrap();
    let heard = listener.line().parse().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), said, heard)
}

/// The bug: who could write the folder above the state moved it away, listened at its path, and got what root set.
#[test]
fn a_secret_goes_to_no_socket_that_another_user_has_put_there() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    const OTHER: u32 = 65_528;
    if !is_root() {
        return;
    }
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // Below folders of root's alone, so that the sticky bit of a shared one has no part in it.
    let home = tempfile::tempdir_in("/var/lib").unwrap();
    set(home.path(), 0o755);
    let above = home.path().join("above");
    std::fs::create_dir(&above).unwrap();
    set(&above, 0o777);
    let state = above.join("state");
    let mut listener = Listener::at(&state.join("run/control.sock"), OTHER);
    let refused = |(code, said, heard): (i32, String, usize)| {
        assert_eq!((code, heard), (4, 0), "{said}");
        assert!(
            said.contains("SERVER_NOT_VERIFIED") && said.contains("65528"),
            "{said}"
        );
    };
    refused(secret_sent(&state, &mut listener));
    // He may make all look tidy in a folder that is his.
    chown(&above, Some(OTHER), None).unwrap();
    set(&above, 0o755);
    refused(secret_sent(&state, &mut listener));
    chown(&above, Some(0), None).unwrap();
    set(&above, 0o1777);
    refused(secret_sent(&state, &mut listener));
    // Where root gave him a state folder of his own, he is a gateway.
    set(&above, 0o755);
    let (code, said, heard) = secret_sent(&state, &mut listener);
    assert!(code == 7 && heard > 0, "{code} {heard} {said}");
}

/// The bug: it served where everybody could take the state away and put another in its place.
#[test]
fn no_gateway_serves_in_a_state_that_others_could_replace() {
    use std::os::unix::fs::PermissionsExt as _;
    let gateway = Gateway::prepared(&[]);
    let set = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(gateway.home(), mode).unwrap();
    };
    for mode in [0o777, 0o773, 0o722] {
        set(mode);
        let (code, said) = gateway.refused();
        let fix = format!("chmod go-w {}", gateway.home().display());
        assert_eq!(code, 4, "{said}");
        assert!(said.contains("STATE_MODE") && said.contains(&fix), "{said}");
    }
    set(0o1777);
    let mut gateway = gateway;
    gateway.launch();
}

/// The bug: in a user namespace one number stands for every user outside it, and where that was the gateway's own each of
/// them was its operator.
#[test]
fn a_gateway_that_cannot_tell_users_apart_does_not_start() {
    let others = ["unshare", "--user", "--map-user=65534"];
    let mut gateway = Gateway::prepared(&[]);
    let (exit, told) = gateway.launch_under(&others).unwrap_err();
    assert!(
        told.contains("CONFIG_INVALID") && told.contains("65534"),
        "{exit}: {told}"
    );
    // Under a number of its own it serves, and an operator by that number is none there either.
    let one = ["unshare", "--user", "--map-user=4711"];
    let mut gateway = Gateway::prepared(&[]);
    assert_eq!(gateway.launch_under(&one), Ok(()));
    let named = [("gateway.local.operators", r#"["self", "uid:65534"]"#)];
    let mut gateway = Gateway::prepared(&named);
    let (_, told) = gateway.launch_under(&one).unwrap_err();
    assert!(told.contains("CONFIG_INVALID"), "{told}");
}
