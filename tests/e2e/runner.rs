//! The process that alone speaks to the container engine: what it has, what the gateway has not, and that it may end at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;

/// For what takes a moment, on a machine that builds something else.
const SOON: Duration = Duration::from_mins(1);

fn gateway(engine: &Engine) -> Gateway {
    Gateway::prepared(&[
        ("sandbox.driver", "docker"),
        ("sandbox.engine", &engine.host()),
    ])
}

fn exec(gateway: &Gateway, agent: &str, script: &str) -> Output {
    gateway.cli(&["exec", "--agent", agent, "--", "sh", "-c", script])
}

fn runs(gateway: &Gateway, agent: &str) {
    let output = exec(gateway, agent, "echo here");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", gateway.log());
    assert_eq!(output.stdout, b"here\n");
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).unwrap()
}

/// The children of a process that were started as its runner.
fn runners_of(parent: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, of) = (rest.next()?, rest.next()?);
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let is_runner = line.starts_with(b"portcullis\0runner\0") && state != "Z";
        (is_runner && of == parent.to_string()).then_some(pid)
    })
    .collect()
}

/// The one there is; another than `before`.
fn runner_of(parent: u32, before: Option<u32>) -> u32 {
    let end = Instant::now() + SOON;
    loop {
        match runners_of(parent)[..] {
            [pid] if Some(pid) != before => return pid,
            _ => assert!(Instant::now() < end, "{parent} has no runner"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

fn goes(pid: u32) {
    let end = Instant::now() + SOON;
    while !is_gone(pid) {
        assert!(Instant::now() < end, "{pid} is left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn shown(gateway: &Gateway) -> Value {
    gateway.json(&["status"])["portcullis"]["driver"]["runner"].clone()
}

/// Sockets of a process, by their inodes.
fn sockets(pid: u32) -> BTreeSet<u32> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten();
    open.filter_map(|fd| {
        let what = std::fs::read_link(fd.path()).ok()?;
        what.to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    })
    .collect()
}

/// Unix sockets as the kernel has them (sock_diag(7)): inode, name, the inode at the other end, whether it listens.
fn unix_sockets() -> Vec<(u32, Option<String>, Option<u32>, bool)> {
    let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
    let diag = rustix::net::socket_with(AddressFamily::NETLINK, kind, flags, Some(SOCK_DIAG));
    let diag = diag.unwrap();
    let mut ask = vec![0_u8; 40];
    let mut put = |at: usize, bytes: &[u8]| ask[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &40_u32.to_ne_bytes());
    // SOCK_DIAG_BY_FAMILY, of all.
    put(4, &20_u16.to_ne_bytes());
    put(6, &0x301_u16.to_ne_bytes());
    put(16, &[1]);
    put(20, &u32::MAX.to_ne_bytes());
    // Names and other ends.
    put(28, &5_u32.to_ne_bytes());
    put(32, &[0xff; 8]);
    rustix::net::sendto(
        &diag,
        &ask,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )
    .unwrap();
    let mut found = vec![];
    loop {
        let mut bytes = vec![0_u8; 1 << 16];
        let (_, length) = rustix::net::recv(&diag, &mut bytes, RecvFlags::empty()).unwrap();
        let mut rest = &bytes[..length];
        while rest.len() >= 16 {
            let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
            let half = |at: usize| u16::from_ne_bytes(rest[at..at + 2].try_into().unwrap());
            let (size, kind) = (word(0) as usize, half(4));
            if kind == 3 {
                return found;
            }
            assert_eq!(kind, 20, "the kernel tells nothing of Unix sockets");
            let (inode, is_listening) = (word(20), rest[18] == 10);
            let (mut name, mut peer, mut at) = (None, None, 32);
            while at + 4 <= size {
                let (long, what) = (usize::from(half(at)), half(at + 2));
                let value = &rest[at + 4..at + long];
                match what {
                    0 => {
                        let text = String::from_utf8_lossy(value);
                        name = Some(text.trim_end_matches('\0').to_owned());
                    }
                    2 => peer = Some(u32::from_ne_bytes(value.try_into().unwrap())),
                    _ => {}
                }
                at += long.next_multiple_of(4);
            }
            found.push((inode, name, peer, is_listening));
            rest = &rest[size.next_multiple_of(4)..];
        }
    }
}

/// The other ends of what is connected to this socket.
fn clients_of(socket: &Path) -> BTreeSet<u32> {
    let all = unix_sockets().into_iter();
    let of_it = all.filter(|(_, name, ..)| name.as_deref() == socket.to_str());
    of_it
        .filter_map(|(_, _, peer, _)| peer)
        .filter(|peer| *peer != 0)
        .collect()
}

#[test]
fn the_gateway_holds_no_descriptor_of_the_engine_and_the_runner_none_of_the_gateways() {
    let engine = Engine::start();
    let mut gateway = gateway(&engine);
    gateway.set("OF_NO_USE_TO_A_RUNNER", "1");
    gateway.launch();
    for agent in ["one", "two"] {
        runs(&gateway, agent);
    }
    let (pid, runner) = (gateway.pid(), runner_of(gateway.pid(), None));
    assert_eq!(shown(&gateway)["pid"], runner);
    let clients = clients_of(&engine.socket());
    let both = |pid: u32| sockets(pid).intersection(&clients).count();
    assert_eq!(both(pid), 0, "the gateway holds the engine's socket");
    assert!(both(runner) > 0, "nobody holds the engine's socket");
    let held = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten();
    assert!(
        held.filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .all(|what| what != engine.socket())
    );

    // Its own end of the one socket, the engine's, and what a runtime has.
    let own = std::fs::read_dir(format!("/proc/{runner}/fd"))
        .unwrap()
        .flatten();
    let odd: Vec<String> = own
        .filter_map(|fd| Some(std::fs::read_link(fd.path()).ok()?.display().to_string()))
        .filter(|what| {
            let known = ["socket:[", "pipe:[", "anon_inode:[event", "/dev/null"];
            !known.iter().any(|begins| what.starts_with(begins))
        })
        .collect();
    assert_eq!(odd, Vec::<String>::new());
    let held = sockets(runner);
    let mut named = unix_sockets()
        .into_iter()
        .filter(|(inode, ..)| held.contains(inode));
    assert!(named.all(|(_, name, _, listens)| name.is_none() && !listens));
    let tcp = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is_held = |line: &str| {
        let inode = line
            .split_whitespace()
            .nth(9)
            .and_then(|inode| inode.parse().ok());
        inode.is_some_and(|inode| held.contains(&inode))
    };
    assert!(!tcp.lines().any(is_held), "it has a network socket");
    let env = std::fs::read(format!("/proc/{runner}/environ")).unwrap();
    let names: Vec<String> = env
        .split(|byte| *byte == 0)
        .filter(|line| !line.is_empty())
        .map(|line| {
            String::from_utf8_lossy(line)
                .split('=')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert!(!names.is_empty());
    let is_needed = |name: &String| name.starts_with("PORTCULLIS__") || name == "DOCKER_HOST";
    assert!(names.iter().all(is_needed), "{names:?}");
    let status = std::fs::read_to_string(format!("/proc/{runner}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");

    assert_eq!(gateway.stop(), 0);
    assert!(is_gone(runner), "an orderly stop leaves the runner");
}

#[test]
fn only_the_runner_ever_connects_to_the_engine() {
    if Command::new("strace").arg("-V").output().is_err() {
        println!("NOT RUN: who connects is told by strace (apt-get install strace)");
        return;
    }
    let engine = Engine::start();
    let mut gateway = gateway(&engine);
    let record = gateway.home().join("connects");
    let file = record.display().to_string();
    let words = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "signal=none",
        "-e",
        "trace=connect",
        "-o",
        &file,
    ];
    if let Err((code, log)) = gateway.launch_under(&words) {
        panic!("{code}: {log}");
    }
    let lock = std::fs::read_to_string(gateway.state().join("lock")).unwrap();
    let daemon: u32 = lock.trim().parse().unwrap();
    runs(&gateway, "one");
    let first = runner_of(daemon, None);
    kill_process(pid_of(first), Signal::KILL).unwrap();
    let second = runner_of(daemon, Some(first));
    runs(&gateway, "two");
    assert_eq!(gateway.stop_under(), 0);
    let text = std::fs::read_to_string(&record).unwrap();
    let socket = format!("sun_path=\"{}\"", engine.socket().display());
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains(&socket)) {
        let pid = line.split_whitespace().next().unwrap().parse().unwrap();
        *counts.entry(pid).or_default() += 1;
    }
    let who: Vec<u32> = counts.keys().copied().collect();
    let mut expected = [first, second];
    expected.sort_unstable();
    assert_eq!(who, expected, "{counts:?}, the gateway is {daemon}");
}

/// A run that goes on until its workspace has a file `go`, and then ends with code 7.
fn waits_for_go(gateway: &Gateway, agent: &str) -> Child {
    let script = "echo tick; while [ ! -e go ]; do sleep 0.05; done; echo done; exit 7";
    let mut child = gateway
        .command(&["exec", "--agent", agent, "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 5];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(&first, b"tick\n", "{}", gateway.log());
    child
}

/// Lets it end, and sees that nothing of it was lost.
fn goes_on(gateway: &Gateway, agent: &str, child: Child) {
    let folder = gateway.state().join("workspaces").join(agent);
    std::fs::write(folder.join("go"), "").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(7),
        "{output:?}\n{}",
        gateway.log()
    );
    assert_eq!(output.stdout, b"done\n");
}

#[test]
fn a_runner_that_is_killed_takes_no_run_along_and_the_next_makes_the_next_box() {
    let engine = Engine::start();
    let mut gateway = gateway(&engine);
    gateway.launch();
    let pid = gateway.pid();
    let under_way = waits_for_go(&gateway, "one");
    let mut runner = runner_of(pid, None);
    for agent in ["two", "three", "four"] {
        kill_process(pid_of(runner), Signal::KILL).unwrap();
        // In the box that there is at once, and in a new one as soon as there is a runner for it.
        runs(&gateway, "one");
        runs(&gateway, agent);
        runner = runner_of(pid, Some(runner));
    }
    let status = shown(&gateway);
    assert_eq!(
        (&status["restarts"], &status["pid"]),
        (&3.into(), &runner.into())
    );
    let text = gateway.cli(&["status"]).stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find(|line| line.starts_with("runner "));
    assert!(
        line.is_some_and(|line| line.contains("started again 3 times")),
        "{text}"
    );
    // The configuration that the gateway has is what holds, whatever the file says meanwhile.
    let config = gateway.state().join("config.toml");
    std::fs::write(
        &config,
        "[sandbox]\nimage = \"none:1\"\nmemory_bytes = 67108864\n",
    )
    .unwrap();
    kill_process(pid_of(runner), Signal::KILL).unwrap();
    runs(&gateway, "five");
    goes_on(&gateway, "one", under_way);
    assert_eq!(gateway.pid(), pid);
    assert_eq!(gateway.stop(), 0);
}

#[test]
fn a_runner_that_hangs_is_killed_and_who_waits_for_it_is_served_by_the_next() {
    let engine = Engine::start();
    let mut gateway = gateway(&engine);
    gateway.launch();
    let under_way = waits_for_go(&gateway, "one");
    let runner = runner_of(gateway.pid(), None);
    kill_process(pid_of(runner), Signal::STOP).unwrap();
    // What has a box needs no runner.
    let began = Instant::now();
    runs(&gateway, "one");
    assert!(!is_gone(runner), "{:?}", began.elapsed());
    // What needs one is told that nothing ran and may ask again, or gets its box of the next.
    let asked = exec(&gateway, "two", "true");
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(is_gone(runner), "{said}");
    if asked.status.code() != Some(0) {
        assert_eq!(asked.status.code(), Some(125), "{said}");
        assert!(said.contains("nothing was run"), "{said}");
        assert!(
            said.contains("the process that speaks to the engine ended"),
            "{said}"
        );
    }
    runs(&gateway, "two");
    assert_ne!(runner_of(gateway.pid(), None), runner);
    let said = shown(&gateway)["said"].to_string();
    assert!(said.contains("no sign of life"), "{said}");
    goes_on(&gateway, "one", under_way);
    assert_eq!(gateway.stop(), 0);
}

#[test]
fn the_end_of_the_gateway_is_the_runners_however_it_comes() {
    let engine = Engine::start();
    let mut gateway = gateway(&engine);
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        gateway.launch();
        runs(&gateway, "one");
        let runner = runner_of(gateway.pid(), None);
        // As a service manager or a terminal does it: to both. It is needed until the last box has ended.
        if signal != Signal::KILL {
            kill_process(pid_of(runner), signal).unwrap();
        }
        kill_process(pid_of(gateway.pid()), signal).unwrap();
        let code = gateway.ends(SOON);
        assert_eq!(
            code,
            Some(if signal == Signal::KILL { -1 } else { 0 }),
            "{}",
            gateway.log()
        );
        goes(runner);
        let log = gateway.log();
        assert!(!log.contains("could not be ended"), "{log}");
        // A signal is not for it to follow: it goes with its socket.
        assert!(!log.contains("the runner has ended"), "{log}");
    }
}

#[test]
fn nobody_starts_a_runner_but_a_gateway() {
    let gateway = Gateway::prepared(&[]);
    let words = ["runner", "--boot", "x", "--state", "/nonexistent"];
    let output = gateway.cli(&words);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("is started by the gateway"), "{said}");
    // A socket alone does not make one.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut child = gateway
        .command(&words)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.contains("the configuration"), "{line}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(ours);
    let help = String::from_utf8(gateway.cli(&["--help"]).stdout).unwrap();
    assert!(!help.contains("runner"), "{help}");
}

#[test]
fn a_gateway_that_uses_no_engine_has_no_runner() {
    let gateway = Gateway::start();
    runs(&gateway, "one");
    assert_eq!(runners_of(gateway.pid()), Vec::<u32>::new());
    assert_eq!(shown(&gateway), Value::Null);
}

/// An image of the engine's own, under another name.
fn tag(engine: &Engine, repository: &str) {
    let asked = async {
        let raw =
            bollard::Docker::connect_with_unix(&engine.host(), 60, bollard::API_DEFAULT_VERSION)
                .unwrap();
        let options = bollard::query_parameters::ListImagesOptionsBuilder::default().build();
        let all = raw.list_images(Some(options)).await.unwrap();
        let options = bollard::query_parameters::TagImageOptionsBuilder::default()
            .repo(repository)
            .tag("1")
            .build();
        raw.tag_image(&all[0].id, Some(options)).await.unwrap();
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(asked);
}

#[test]
fn the_runner_makes_the_boxes_of_every_scope_and_of_named_images() {
    let engine = Engine::start();
    let mut gateway = gateway(&engine);
    gateway.set("sandbox.warm_min", "1");
    gateway.launch();
    // The default image is there from the first trial on.
    runs(&gateway, "demo");
    tag(&engine, "tools");
    assert_eq!(gateway.stop(), 0);
    let config = gateway.state().join("config.toml");
    let mut text = std::fs::read_to_string(&config).unwrap();
    text.push_str(
        r#"
[agents.each.sandbox]
scope = "session"
[agents.bare.sandbox]
scope = "session"
workspace = "none"
[agents.both.sandbox]
scope = "shared"
share = "team"
[agents.two.sandbox]
scope = "shared"
share = "team"
[agents.tools.sandbox]
image = "tools:1"
[agents.more.sandbox]
image = "tools:1"
memory_bytes = 268435456
[agents.out.sandbox]
egress = ["api.example.com:443"]
"#,
    );
    std::fs::write(&config, text).unwrap();
    gateway.launch();
    let pid = gateway.pid();
    for agent in [
        "each",
        "bare",
        "both",
        "two",
        "tools",
        "out",
        "nobody-named-it",
    ] {
        runs(&gateway, agent);
    }
    // The next session's box was made ahead, by the runner too.
    let end = Instant::now() + SOON;
    let warm = || gateway.json(&["status"])["portcullis"]["driver"]["warm"].clone();
    while warm()["ready"].as_u64() < Some(2) {
        assert!(Instant::now() < end, "{}\n{}", warm(), gateway.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let hits = warm()["hits"]["count"].as_u64().unwrap();
    // What is ready needs no runner, and none of the names that one had looked up is lost with it.
    let runner = runner_of(pid, None);
    kill_process(pid_of(runner), Signal::STOP).unwrap();
    for agent in ["each", "bare"] {
        runs(&gateway, agent);
    }
    assert_eq!(warm()["hits"]["count"].as_u64(), Some(hits + 2));
    kill_process(pid_of(runner), Signal::KILL).unwrap();
    runs(&gateway, "more");
    runs(&gateway, "each");
    let refused = gateway
        .log()
        .lines()
        .filter(|line| line.contains("refuse"))
        .count();
    assert_eq!(refused, 0, "{}", gateway.log());
    assert_eq!(gateway.stop(), 0);
}
