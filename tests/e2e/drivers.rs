//! Which driver a gateway of default settings takes and what it says of it, and what is left of it where none can be had.

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;

const WITHIN: Duration = Duration::from_mins(1);
const NOWHERE: &str = "unix:///nonexistent/docker.sock";
/// Hides bubblewrap from what follows, in a mount namespace of its own.
const NO_BUBBLEWRAP: &[&str] = &[
    "unshare",
    "-m",
    "sh",
    "-c",
    "for at in /usr/bin /usr/local/bin /bin; do
        if [ -f $at/bwrap ]; then mount --bind /dev/null $at/bwrap || exit; fi
    done
    exec \"$@\"",
    "sh",
];

/// The driver as the shipped settings choose it: none is set here.
fn by_default(engine: &str) -> Gateway {
    let mut gateway = Gateway::prepared(&[("sandbox.engine", engine)]).by_up();
    gateway.unset("sandbox.driver");
    gateway
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn until<T>(what: &str, gateway: &Gateway, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + WITHIN;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}\n{}", gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The `sandbox` lines of `up` and of `status`, and the driver and its reason from `status --json`.
fn told(gateway: &Gateway) -> (String, String, String, String) {
    let line = |text: &str| {
        let found = text.lines().find(|line| line.starts_with("sandbox "));
        found.unwrap_or_default().to_owned()
    };
    until("the first lines do not come", gateway, || {
        (gateway.said().lines().count() >= 5).then_some(())
    });
    let status = gateway.cli(&["status"]);
    let json = gateway.json(&["status"])["portcullis"]["driver"].take();
    let part = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    let (up, status) = (line(&gateway.said()), line(&text(&status.stdout)));
    (up, status, part("name"), part("detail"))
}

#[test]
fn by_default_the_driver_is_docker_where_an_engine_answers_and_says_why() {
    let engine = Engine::shared();
    let mut gateway = by_default(&engine.host());
    gateway.launch();
    let (up, status, name, why) = told(&gateway);
    assert_eq!(name, "docker", "{why}");
    let at = format!("at {}", engine.socket().display());
    assert!(
        why.starts_with("Docker ") && why.contains(&at) && why.contains("proven by a box"),
        "{why}"
    );
    assert_eq!(up, format!("sandbox   docker ({why})"));
    assert!(
        status.contains("docker") && status.contains(&why),
        "{status}"
    );
}

#[test]
fn by_default_the_driver_is_native_without_an_engine_and_says_why_not_docker() {
    let mut gateway = by_default(NOWHERE);
    gateway.launch();
    let (up, status, name, why) = told(&gateway);
    assert_eq!(name, "native", "{why}");
    let (own, not) = why.split_once("; not Docker: ").unwrap_or_default();
    assert!(own.contains("bubblewrap, "), "{why}");
    assert!(
        not.contains("there is no engine at /nonexistent/docker.sock")
            && not.contains("apt-get install docker.io"),
        "{why}"
    );
    assert_eq!(up, format!("sandbox   native ({why})"));
    assert!(
        status.contains("native") && status.contains(&why),
        "{status}"
    );
}

/// Everything but runs in a box works, and those say what to install.
#[test]
fn with_neither_driver_only_boxes_are_refused_and_say_what_to_install() {
    let mut gateway = by_default(NOWHERE);
    gateway.launch_under(NO_BUBBLEWRAP).unwrap();
    let fixes = |text: &str| {
        assert!(text.contains("apt-get install bubblewrap"), "{text}");
        assert!(text.contains("apt-get install docker.io"), "{text}");
    };
    let (up, status, name, why) = told(&gateway);
    assert_eq!(name, "", "{why}");
    assert!(up.starts_with("sandbox   none: "), "{up}");
    assert!(status.contains("none"), "{status}");
    fixes(&up);
    fixes(&status);

    let refused = gateway.cli(&["exec", "--agent", "demo", "--", "true"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(
        said.contains("error[NO_DRIVER]: ") && said.contains("\nnext: "),
        "{said}"
    );
    fixes(&said);

    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"value"), 0);
    let listed = gateway.json(&["vault", "list"]);
    assert_eq!(listed["entries"][0]["name"], "KEY", "{listed}");
    gateway.json(&["devices", "list"]);

    let output = allowed(&gateway, &["echo", "outside"]);
    assert_eq!(text(&output.stdout), "outside\n", "{output:?}");

    let tail = text(&gateway.cli(&["audit", "tail", "-n", "100"]).stdout);
    assert!(
        tail.contains("exec.run") && tail.contains("vault"),
        "{tail}"
    );
    assert_eq!(gateway.json(&["audit", "verify"])["intact"], true);
    assert_eq!(gateway.stop(), 0, "{}", gateway.log());
}

/// A command of the host, allowed when it asks.
fn allowed(gateway: &Gateway, argv: &[&str]) -> Output {
    let child = gateway
        .command(&[&["exec", "--agent", "demo", "--host", "--"], argv].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = until("nobody asks", gateway, || {
        let list = gateway.json(&["approvals", "list"]);
        list.pointer("/0/id")
            .and_then(Value::as_str)
            .map(str::to_owned)
    });
    assert!(gateway.cli(&["approvals", "allow", &id]).status.success());
    child.wait_with_output().unwrap()
}

/// What trials and boxes have in the state directory while they are there.
fn leftovers(gateway: &Gateway) -> Vec<String> {
    let names = |folder: &str, begins: &str| {
        let found = std::fs::read_dir(gateway.state().join(folder));
        let names = found.into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().into_string().unwrap());
        names
            .filter(|name| name.starts_with(begins))
            .collect::<Vec<_>>()
    };
    let (trials, canaries) = (names("workspaces", ".probe-"), names("run", "canary-"));
    [trials, canaries, names("run/b", "")].concat()
}

/// The bug: the workspace, the canary and the control folder of a trial that a kill broke off stayed for good.
#[test]
fn what_a_killed_start_left_of_its_trial_is_gone_after_the_next_one() {
    let mut gateway = Gateway::prepared(&[]);
    for _ in 0..3 {
        let mut daemon = gateway.daemon().spawn().unwrap();
        until("no trial is seen", &gateway, || {
            let found = leftovers(&gateway);
            let has = |begins: &str| found.iter().any(|name| name.starts_with(begins));
            (has(".probe-") && has("canary-")).then_some(())
        });
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
    assert!(leftovers(&gateway).len() >= 3, "{:?}", leftovers(&gateway));
    // An agent may be called so.
    let own = gateway.state().join("workspaces/probe-0123456789ab");
    std::fs::create_dir(&own).unwrap();
    gateway.launch();
    until("the sandbox is not proven", &gateway, || {
        let status = gateway.json(&["status"]);
        (status["portcullis"]["driver"]["name"] == "native").then_some(())
    });
    let left = leftovers(&gateway);
    assert!(left.is_empty() && own.exists(), "{left:?}");
}
