//! `portcullis exec -i` and `-t`: a pipe goes through, a terminal is one, and ours is as it was afterwards.

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use super::watch::Terminal;
use crate::support::gateway::Gateway;

fn piped(gateway: &Gateway, args: &[&str], input: &[u8]) -> Output {
    let mut child = gateway
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command that does not read it ends before it is written.
    let writing = std::thread::spawn(move || drop(to.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_pipe_goes_through_to_its_end_and_only_where_it_is_asked_for() {
    let gateway = Gateway::with(&[("sandbox.output_cap_bytes", "8388608")]);
    let exec = |words: &[&str], input: &[u8]| {
        piped(
            &gateway,
            &[&["exec", "--agent", "demo"], words].concat(),
            input,
        )
    };
    let said = exec(&["-i", "--", "cat"], b"hi\n");
    assert_eq!(
        (text(&said.stdout).as_str(), said.status.code()),
        ("hi\n", Some(0)),
        "{said:?}"
    );
    // As before: not asked for, it has none.
    let none = exec(&["--", "cat"], b"hi\n");
    assert_eq!(
        (text(&none.stdout).as_str(), none.status.code()),
        ("", Some(0)),
        "{none:?}"
    );
    let code = exec(
        &[
            "--stdin",
            "--",
            "sh",
            "-c",
            "read x; echo \"got $x\"; exit 7",
        ],
        b"that\n",
    );
    assert_eq!(
        (text(&code.stdout).as_str(), code.status.code()),
        ("got that\n", Some(7)),
        "{code:?}"
    );
    // More than is held anywhere, there and back.
    let big: Vec<u8> = (0..600_000_u32).flat_map(u32::to_le_bytes).collect();
    let back = exec(&["-i", "--", "cat"], &big);
    assert!(
        back.stdout == big,
        "{} of {}: {}",
        back.stdout.len(),
        big.len(),
        text(&back.stderr)
    );
    // A command that ends before it has read all.
    let few = exec(&["-i", "--", "head", "-c", "3"], &big);
    assert_eq!(
        (few.stdout.as_slice(), few.status.code()),
        (&big[..3], Some(0)),
        "{}",
        text(&few.stderr)
    );
    let host = exec(&["-i", "--host", "--", "cat"], b"hi\n");
    assert_eq!(host.status.code(), Some(125), "{host:?}");
    assert!(text(&host.stderr).contains("INPUT_UNAVAILABLE"), "{host:?}");
    // No terminal, no -t; nothing was asked of the gateway.
    let none = exec(&["-t", "--", "true"], b"");
    assert_eq!(none.status.code(), Some(125), "{none:?}");
    assert!(
        text(&none.stderr).contains("-t needs a terminal"),
        "{none:?}"
    );
}

#[test]
fn a_terminal_has_our_size_our_keys_and_is_given_back() {
    let gateway = Gateway::start();
    let words = ["exec", "--agent", "demo", "-t", "--", "sh"];
    let mut at = Terminal::open(gateway.command(&words));
    at.size(33, 101);
    at.until("$");
    at.types("stty size\r");
    at.until("33 101\r\n");
    at.size(20, 70);
    // The size goes its own way: it is there a moment later.
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        at.types("echo $(stty size)=\r");
        if at.until("=\r\n").contains("20 70") {
            break;
        }
        let seen = at.until("=\r\n");
        if seen.contains("20 70") {
            break;
        }
        assert!(Instant::now() < end, "never resized: {seen}");
    }
    // Ctrl-C ends what is in the foreground there, not us.
    at.types("sleep 600; echo \"after $?\"\r");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!at.is_plain(), "ours passes each key on");
    at.types("\u{3}");
    at.until("$");
    at.types("exit 9\r");
    assert_eq!(at.ends(), Some(9));
    assert!(at.is_plain(), "as it was");
    // Told to end, too.
    let mut at = Terminal::open(gateway.command(&words));
    at.until("$");
    assert!(!at.is_plain());
    at.told(rustix::process::Signal::TERM);
    assert_eq!(at.ends(), Some(143));
    assert!(at.is_plain(), "as it was");
    // And where the gateway goes away under it.
    let mut gateway = gateway;
    let mut at = Terminal::open(gateway.command(&words));
    at.until("$");
    gateway.kill();
    assert_eq!(at.ends(), Some(125));
    assert!(at.is_plain(), "as it was");
}

/// A gateway of an ordinary user gives its boxes terminals, too.
#[test]
fn a_command_of_an_ordinary_users_gateway_has_a_terminal() {
    let mut gateway = Gateway::prepared(&[("sandbox.require_cgroup", "false")]).run_by(65_532);
    gateway.launch();
    let words = [
        "exec",
        "--agent",
        "demo",
        "-t",
        "--",
        "sh",
        "-c",
        "tty; exit 7",
    ];
    let mut at = Terminal::open(gateway.command(&words));
    at.until("/dev/pts/");
    assert_eq!(at.ends(), Some(7));
}

/// Where the kernel lets a gateway that is not root make no stage of its own, there is no devpts of the box's own; a command that shall have a
/// terminal does not run without one. What tries that is a program of the machine's: here it fails.
#[test]
fn where_no_terminal_is_to_be_had_nothing_runs() {
    let mut gateway = Gateway::prepared(&[("sandbox.require_cgroup", "false")]).run_by(65_532);
    let without = "mount --bind /bin/false /usr/bin/test && exec setpriv --reuid 65532 --regid 65532 --clear-groups \"$@\"";
    let started = gateway.launch_under(&["unshare", "-m", "sh", "-c", without, "sh"]);
    started.unwrap();
    let words = ["exec", "--agent", "demo", "-t", "--", "touch", "ran"];
    let mut at = Terminal::open(gateway.command(&words));
    at.until("TTY_UNAVAILABLE");
    assert_eq!(at.ends(), Some(125));
    assert!(at.is_plain(), "as it was");
    let words = ["exec", "--agent", "demo", "-i", "--", "sh", "-c", "cat; ls"];
    let said = piped(&gateway, &words, b"hi\n");
    assert_eq!(
        (text(&said.stdout).as_str(), said.status.code()),
        ("hi\n", Some(0)),
        "{said:?}"
    );
}
