//! Commands of the host, asked for and decided on the command line: what was shown is what ran.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::gateway::Gateway;

const WITHIN: Duration = Duration::from_secs(30);

/// A folder that everybody may walk.
pub fn open() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mode = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.path(), mode).unwrap();
    folder
}

pub fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn exec(gateway: &Gateway, argv: &[&str]) -> Child {
    gateway
        .command(&[&["exec", "--agent", "demo", "--host", "--"], argv].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The one question that waits.
fn question(gateway: &Gateway) -> String {
    let end = Instant::now() + WITHIN;
    loop {
        let list = gateway.json(&["approvals", "list"]);
        if let Some(id) = list.pointer("/0/id").and_then(Value::as_str) {
            return id.to_owned();
        }
        assert!(Instant::now() < end, "nobody asks\n{}", gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asks, looks at the card, changes something, allows: the card, and how the command ended.
fn after(gateway: &Gateway, argv: &[&str], change: impl FnOnce()) -> (String, Output) {
    let child = exec(gateway, argv);
    let id = question(gateway);
    let card = text(&gateway.cli(&["approvals", "show", &id]).stdout);
    change();
    assert!(gateway.cli(&["approvals", "allow", &id]).status.success());
    (card, child.wait_with_output().unwrap())
}

#[test]
fn a_script_changed_after_the_question_does_not_run_from_the_command_line() {
    let (gateway, folder) = (Gateway::start(), open());
    let script = write(folder.path(), "x.sh", "echo old; cat $1");
    let data = write(folder.path(), "data", "kept\n");
    let (script, data) = (script.to_str().unwrap(), data.to_str().unwrap());
    let argv = ["sh", script, data];
    let (card, output) = after(&gateway, &argv, || {
        write(folder.path(), "x.sh", "echo new");
    });
    assert_eq!(text(&output.stdout), "old\nkept\n", "{output:?}");
    assert!(
        card.contains(&format!("argv[1] is {script}  sha256 ")),
        "{card}"
    );
    assert!(
        card.contains(&format!("argv[2] is {data}  sha256 ")),
        "{card}"
    );

    write(folder.path(), "x.sh", "echo old; cat $1");
    let (_, output) = after(&gateway, &argv, || {
        write(folder.path(), "data", "changed\n");
    });
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(125), String::new())
    );
    let said = text(&output.stderr);
    assert!(
        said.contains("PLAN_CHANGED") && said.contains("argument 2"),
        "{said}"
    );
}

/// What an agent's command writes to a terminal cannot steer it; a pipe, and who asks for it, gets every byte.
#[test]
fn the_output_of_a_command_steers_no_terminal_unless_raw_is_asked_for() {
    const WRITTEN: &str = "\\033]0;evil\\007\\033[2J\\033[31mred\\n";
    let gateway = Gateway::start();
    let exec = ["exec", "--agent", "demo", "--", "printf", WRITTEN];
    let piped = gateway.cli(&exec).stdout;
    let bytes = "\u{1b}]0;evil\u{7}\u{1b}[2J\u{1b}[31mred\n";
    assert_eq!(text(&piped), bytes);
    // `script` gives its command a terminal.
    let on_terminal = |raw: &str| {
        let program = env!("CARGO_BIN_EXE_portcullis");
        let line = format!("{program} exec --agent demo {raw} -- printf '{WRITTEN}'");
        let base = gateway.command(&[]);
        let mut command = std::process::Command::new("script");
        command.env_clear().stdin(Stdio::null());
        for (name, value) in base.get_envs() {
            command.envs(value.map(|value| (name, value)));
        }
        let output = command.args(["-qec", &line, "/dev/null"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    let shown = on_terminal("");
    assert!(
        shown.contains("\\u{1b}]0;evil\\u{7}\\u{1b}[2J\u{1b}[31mred\r\n\u{1b}[0m"),
        "{shown:?}"
    );
    assert!(!shown.contains("\u{1b}]") && !shown.contains("\u{1b}[2J"));
    assert!(on_terminal("--raw").contains(&bytes.replace('\n', "\r\n")));
}
