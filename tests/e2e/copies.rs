//! `portcullis sandbox cp`: files go in and out whole, and only what the box itself sees.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;

const SECRET: &str = "the host's own secret";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn copy(gateway: &Gateway, words: &[&str]) -> Output {
    gateway.cli(&[&["sandbox", "cp"], words].concat())
}

#[track_caller]
fn done(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

#[track_caller]
fn refused(output: &Output, code: &str, exit: i32) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{said}");
    assert!(said.starts_with(&format!("error[{code}]: ")), "{said}");
    assert!(said.contains("\nnext: "), "{said}");
    assert!(!text(&output.stdout).contains(SECRET), "{output:?}");
}

fn sh(gateway: &Gateway, agent: &str, script: &str) -> Output {
    gateway.cli(&["exec", "--agent", agent, "--", "sh", "-c", script])
}

fn fed(gateway: &Gateway, words: &[&str], input: &Path) -> Output {
    gateway
        .command(&[&["sandbox", "cp"], words].concat())
        .stdin(fs::File::open(input).unwrap())
        .output()
        .unwrap()
}

fn path(at: &Path) -> &str {
    at.to_str().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The same on every driver.
fn files_go_in_and_out(gateway: &Gateway) {
    let ours = tempfile::tempdir().unwrap();
    let at = |name: &str| ours.path().join(name);
    let big: Vec<u8> = (0..786_432_u32).flat_map(u32::to_le_bytes).collect();
    for (name, data) in [("empty", &b""[..]), ("one", b"\0"), ("big", &big)] {
        fs::write(at(name), data).unwrap();
        done(&copy(gateway, &[path(&at(name)), "demo:"]));
        let back = at(&format!("{name}.back"));
        done(&copy(gateway, &[&format!("demo:{name}"), path(&back)]));
        assert!(fs::read(&back).unwrap() == data, "{name}");
        let streamed = copy(gateway, &[&format!("demo:{name}"), "-"]);
        assert!(streamed.stdout == data, "{name}");
        let input = at(name);
        done(&fed(gateway, &["-", &format!("demo:{name}.in")], &input));
        let same = sh(
            gateway,
            "demo",
            &format!("cmp {name} {name}.in && echo same"),
        );
        assert_eq!(text(&same.stdout), "same\n", "{same:?}");
    }
    // What is executable stays so, either way, and nothing else of the mode goes along.
    fs::set_permissions(at("one"), PermissionsExt::from_mode(0o700)).unwrap();
    done(&copy(gateway, &[path(&at("one")), "demo:/tmp/tool"]));
    let mode = sh(gateway, "demo", "stat -c %a /tmp/tool one; chmod 700 one");
    assert_eq!(text(&mode.stdout), "755\n644\n", "{mode:?}");
    done(&copy(gateway, &["demo:one", path(&at("tool"))]));
    let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("tool") & 0o111 != 0, mode("big.back") & 0o111),
        (true, 0)
    );

    // Nothing is replaced unasked; a folder gets the file.
    refused(
        &copy(gateway, &[path(&at("big")), "demo:one"]),
        "FILE_EXISTS",
        5,
    );
    refused(
        &copy(gateway, &["demo:one", path(&at("big"))]),
        "FILE_EXISTS",
        5,
    );
    done(&copy(gateway, &["--force", path(&at("one")), "demo:big"]));
    fs::set_permissions(at("big"), fs::Permissions::from_mode(0o600)).unwrap();
    done(&copy(gateway, &["--force", "demo:big", path(ours.path())]));
    let mode = at("big").metadata().unwrap().permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o600,
        "who could not read the file that was replaced still cannot"
    );
    // Files of no size that hold something are not copied as empty ones.
    refused(
        &copy(gateway, &["/proc/cpuinfo", "demo:cpuinfo"]),
        "FILE_UNFIT",
        5,
    );
    assert!(!sh(gateway, "demo", "test -e cpuinfo").status.success());
    // An agent's bytes reach no terminal as they are.
    done(&sh(gateway, "demo", "printf '\\033]0;x\\007' > escape"));
    let on_terminal = Command::new("script")
        .args([
            "-qec",
            &format!("{} sandbox cp demo:escape -", path(gateway.program())),
            "/dev/null",
        ])
        .env("PORTCULLIS_STATE_DIR", gateway.state())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = text(&on_terminal.stdout);
    assert!(
        said.contains("INVALID_PARAMS") && !said.contains("\u{1b}]0;"),
        "{said:?}"
    );
    assert_eq!(fs::read(at("big")).unwrap(), b"\0");

    // Files only, and none over the cap.
    fs::create_dir(at("folder")).unwrap();
    fs::File::create(at("large"))
        .unwrap()
        .set_len((64 << 20) + 1)
        .unwrap();
    let made = sh(
        gateway,
        "demo",
        "mkfifo pipe; mkdir folder; ln -s one link; truncate -s 67108865 large || dd if=/dev/zero of=large bs=1 count=1 seek=67108864; chmod 000 empty",
    );
    done(&made);
    for (words, code, exit) in [
        (["folder", "demo:"], "FILE_UNFIT", 5),
        (["large", "demo:l"], "FILE_TOO_LARGE", 5),
        (["none", "demo:"], "FILE_NOT_FOUND", 3),
        (["demo:pipe", "got"], "FILE_UNFIT", 5),
        (["demo:folder", "got"], "FILE_UNFIT", 5),
        (["demo:large", "got"], "FILE_TOO_LARGE", 5),
        (["demo:none", "got"], "FILE_NOT_FOUND", 3),
        (["demo:one/none", "got"], "FILE_NOT_FOUND", 3),
        (["demo:empty", "got"], "FILE_NOT_PERMITTED", 4),
        (["demo:one", "none/got"], "FILE_NOT_FOUND", 3),
        (["one", "demo:link"], "FILE_UNFIT", 5),
        (["one", "demo:folder"], "FILE_UNFIT", 5),
        (["one", "demo:none/one"], "FILE_NOT_FOUND", 3),
        (["one", "demo:/usr/one"], "FILE_NOT_PERMITTED", 4),
    ] {
        let words = words.map(|word| {
            if word.contains(':') {
                word.to_owned()
            } else {
                at(word).display().to_string()
            }
        });
        let output = copy(gateway, &["--force", &words[0], &words[1]]);
        refused(&output, code, exit);
        assert!(!at("got").exists());
    }
    let left = names(ours.path());
    assert!(!left.iter().any(|name| name.starts_with('.')), "{left:?}");
    let inside = names(&gateway.state().join("workspaces/demo"));
    assert!(
        !inside.iter().any(|name| name.starts_with('.')),
        "{inside:?}"
    );

    // A link is the box's own, and so is where it leads.
    let secret = gateway.home().join("secret");
    fs::write(&secret, SECRET).unwrap();
    let home = path(gateway.home()).to_owned();
    let links = format!(
        "ln -s /etc/passwd users; ln -s {home}/secret stolen; ln -s {home} way; ln -s /proc/1/root/etc/shadow far; mkdir -p up"
    );
    done(&sh(gateway, "demo", &links));
    let users = copy(gateway, &["demo:users", "-"]);
    let theirs = sh(gateway, "demo", "cat /etc/passwd");
    assert!(
        !theirs.stdout.is_empty() && users.stdout == theirs.stdout,
        "{users:?}"
    );
    assert_ne!(users.stdout, fs::read("/etc/passwd").unwrap());
    for from in ["demo:stolen", "demo:way/secret"] {
        refused(&copy(gateway, &[from, "-"]), "FILE_NOT_FOUND", 3);
    }
    let far = copy(gateway, &["demo:far", "-"]);
    assert!(!far.status.success() && far.stdout.is_empty(), "{far:?}");
    let memory = copy(gateway, &["demo:/proc/1/mem", "-"]);
    assert!(
        !memory.status.success() && memory.stdout.is_empty(),
        "{memory:?}"
    );
    for from in [
        "demo:../secret",
        "demo:up/../../secret",
        "demo:/workspace/../etc/passwd",
    ] {
        refused(&copy(gateway, &[from, "-"]), "FILE_UNFIT", 5);
        refused(&copy(gateway, &[path(&at("one")), from]), "FILE_UNFIT", 5);
    }
    refused(
        &copy(gateway, &[path(&at("one")), "demo:way/new"]),
        "FILE_NOT_FOUND",
        3,
    );
    assert!(!gateway.home().join("new").exists());

    // Who writes to it meanwhile is told of, and nothing is kept.
    let mut busy = gateway
        .command(&[
            "exec",
            "--agent",
            "demo",
            "--",
            "sh",
            "-c",
            "while :; do echo more >> busy; done",
        ])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !gateway.state().join("workspaces/demo/busy").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // On a busy machine the writer may stand still for as long as it takes to read once.
    let mut tries = (0..50).map(|_| {
        let output = copy(gateway, &["--force", "demo:busy", path(&at("got"))]);
        if output.status.success() {
            fs::remove_file(at("got")).unwrap();
        }
        output
    });
    let output = tries.find(|output| !output.status.success());
    let output = output.expect("no change was told in fifty tries");
    busy.kill().unwrap();
    busy.wait().unwrap();
    refused(&output, "FILE_CHANGED", 1);
    assert!(!at("got").exists());

    // Read-only, and full.
    refused(
        &copy(gateway, &[path(&at("one")), "reader:one"]),
        "FILE_NOT_PERMITTED",
        4,
    );
    let full = sh(
        gateway,
        "small",
        "cat /dev/zero > fill; cat /dev/zero > fill2; ls -a",
    );
    assert!(text(&full.stdout).contains("fill"), "{full:?}");
    refused(
        &copy(gateway, &[path(&at("big.back")), "small:big"]),
        "FILE_NO_ROOM",
        8,
    );
    let left = sh(gateway, "small", "ls -A");
    assert_eq!(text(&left.stdout), "fill\nfill2\n", "{left:?}");

    // Each is a run, decided and recorded like any other.
    let all = gateway.json(&["audit", "query", "--action", "exec.run", "--limit", "500"]);
    let said = all.to_string();
    for command in [
        "/run/portcullis-cell get big",
        "/run/portcullis-cell put big 755 replace",
    ] {
        assert!(said.contains(command), "{said}");
    }
}

const SETTINGS: [(&str, &str); 3] = [
    ("agents.reader.sandbox.workspace", "ro"),
    ("agents.small.sandbox.workspace", "none"),
    ("agents.small.sandbox.memory_bytes", "67108864"),
];

#[test]
fn files_go_in_and_out_of_a_native_box_and_nothing_else_does() {
    files_go_in_and_out(&Gateway::with(&SETTINGS));
}

#[test]
fn files_go_in_and_out_of_a_docker_box_and_nothing_else_does() {
    let engine = Engine::shared();
    let host = engine.host();
    let docker = [("sandbox.driver", "docker"), ("sandbox.engine", &host)];
    files_go_in_and_out(&Gateway::with(&[&docker[..], &SETTINGS[..]].concat()));
}

#[test]
fn the_list_says_which_copies_an_agent_has_and_no_entry_for_them_starts_anything_else() {
    let gateway = Gateway::with(&[("agents.demo.exec", "allowlist")]);
    let ours = tempfile::tempdir().unwrap();
    let at = |name: &str| ours.path().join(name);
    fs::write(at("one"), "one").unwrap();
    let set = |entries: Value| {
        let document = json!({"version": 1, "agents": {"demo": {"allowlist": entries.clone()}}});
        fs::write(at("policy"), document.to_string()).unwrap();
        // What opens more waits for an operator's word.
        gateway.cli(&["approvals", "policy", "--set", path(&at("policy"))]);
        let waiting = gateway.json(&["approvals", "list"]);
        if let Some(id) = waiting.pointer("/0/id").and_then(Value::as_str) {
            gateway.json(&["approvals", "allow", id]);
        }
        let holds = gateway.json(&["approvals", "policy"]);
        assert_eq!(holds["file"]["agents"]["demo"]["allowlist"], entries);
    };
    let put = |name: &str| {
        copy(
            &gateway,
            &["--force", path(&at("one")), &format!("demo:{name}")],
        )
    };
    let get = |name: &str| copy(&gateway, &[&format!("demo:{name}"), "-"]);
    refused(&put("one"), "POLICY_DENIED", 5);
    refused(&get("one"), "POLICY_DENIED", 5);
    // What comes by standard input is in no plan: an entry covers it only where it says so.
    set(json!([{"pattern": "/run/portcullis-cell"}]));
    refused(&put("one"), "POLICY_DENIED", 5);
    refused(&get("one"), "FILE_NOT_FOUND", 3);
    set(json!([{"pattern": "/run/portcullis-cell", "stdin": true}]));
    done(&put("one"));
    assert_eq!(text(&get("one").stdout), "one");
    // One file, by the very words.
    set(json!([
        {"pattern": "/run/portcullis-cell", "argPattern": "[\"get\",\"one\"]"},
        {"pattern": "/run/portcullis-cell", "argPattern": "[\"put\",\"two\",\"644\",\"replace\"]", "stdin": true},
    ]));
    done(&get("one"));
    done(&put("two"));
    refused(&put("one"), "POLICY_DENIED", 5);
    refused(&get("two"), "POLICY_DENIED", 5);
    // It has words that start other programs.
    set(json!([{"pattern": "/run/portcullis-cell", "stdin": true, "tty": true}]));
    for words in [
        &["tty", "/bin/echo", "echo", "started"][..],
        &["run"],
        &["probe"],
        &[],
    ] {
        let words = [
            &["exec", "--agent", "demo", "--", "/run/portcullis-cell"],
            words,
        ]
        .concat();
        let output = gateway.cli(&words);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(text(&output.stderr).contains("POLICY_DENIED"), "{output:?}");
    }
}

#[test]
fn ctrl_c_leaves_nothing_half_made_on_either_side() {
    let gateway = Gateway::with(&[("agents.demo.exec", "ask")]);
    let ours = tempfile::tempdir().unwrap();
    for words in [
        [
            "demo:one".to_owned(),
            ours.path().join("one").display().to_string(),
        ],
        [
            ours.path().join("two").display().to_string(),
            "demo:two".to_owned(),
        ],
    ] {
        fs::write(ours.path().join("two"), "two").unwrap();
        let mut child = gateway
            .command(&["sandbox", "cp", &words[0], &words[1]])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Once a person is asked.
        let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
        while gateway
            .json(&["approvals", "list"])
            .pointer("/0/id")
            .is_none()
        {
            assert!(std::time::Instant::now() < end, "nobody is asked");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(names(ours.path()), ["two"]);
        let waiting = gateway.json(&["approvals", "list"]);
        assert!(waiting.pointer("/0/id").is_none(), "{waiting}");
    }
}
