//! The same commands where the engine is Podman.

use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::gateway::Gateway;
use crate::support::podman::Podman;

#[test]
fn the_same_commands_run_where_the_engine_is_podman_and_nothing_gets_out() {
    let podman = Podman::start();
    let host = podman.host();
    let mut gateway = Gateway::with(&[
        ("sandbox.driver", "docker"),
        ("sandbox.engine", &host),
        ("agents.odd.sandbox.runtime", "runc"),
    ]);
    let run = |words: &[&str]| {
        let output = gateway.cli(&[&["exec", "--agent", "demo"], words].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text, said)
    };
    let script = "echo x > f && cat f && ! (echo x > /etc/x) 2>/dev/null && test \"$(id -u)\" != 0";
    let (code, text, said) = run(&["--", "sh", "-c", script]);
    assert_eq!((code, text.as_str()), (0, "x\n"), "{said}");
    let (_, _, said) = run(&[
        "--timeout",
        "1s",
        "--",
        "sh",
        "-c",
        "setsid sleep 61234 & sleep 61235",
    ]);
    assert!(said.starts_with("error[DEADLINE]"), "{said}");
    let left = std::process::Command::new("pgrep")
        .args(["-f", "sleep 6123[45]"])
        .output()
        .unwrap();
    assert!(left.stdout.is_empty(), "{left:?}");
    // It does not say by which runtime it made a box, so none can be relied on.
    let refused = gateway.cli(&["exec", "--agent", "odd", "--", "true"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.starts_with("error[RUNTIME_UNUSABLE]"), "{said}");

    let tried = gateway.cli(&["sandbox", "selftest"]);
    assert_eq!(
        tried.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&tried.stdout)
    );

    // The service goes and comes back; what runs goes on.
    let words = [
        "exec",
        "--agent",
        "demo",
        "--",
        "sh",
        "-c",
        "echo begun; sleep 3; echo went on",
    ];
    let mut child = gateway
        .command(&words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut first = [0; 6];
    output.read_exact(&mut first).unwrap();
    podman.kill();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "went on\n");
    assert!(child.wait().unwrap().success());
    podman.start_again();
    let end = Instant::now() + Duration::from_mins(1);
    loop {
        let (code, _, said) = run(&["--", "true"]);
        if code == 0 {
            break;
        }
        assert!(Instant::now() < end, "{said}");
        std::thread::sleep(Duration::from_millis(200));
    }
    gateway.stop();
    assert_eq!(podman.containers(), "");
}
