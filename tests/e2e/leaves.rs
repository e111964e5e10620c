//! Every command that speaks to a gateway, where there is none: its exit code and its document are fixed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::CommandFactory as _;
use portcullis::cli::Cli;
use serde_json::Value;

/// Commands that need no gateway, and why.
const NEED_NONE: &[(&str, &str)] = &[
    ("gateway", "is the gateway"),
    ("up", "is the gateway"),
    ("runner", "is the gateway's own child"),
    ("version", "says what this program is"),
    ("config check", "reads config.toml itself"),
    (
        "sandbox image build",
        "speaks to the engine, not to the gateway",
    ),
    (
        "sandbox image import",
        "speaks to the engine, not to the gateway",
    ),
    (
        "sandbox image list",
        "speaks to the engine, not to the gateway",
    ),
    (
        "sandbox image verify",
        "speaks to the engine, not to the gateway",
    ),
    ("node policy show", "is about this machine alone"),
    ("node policy accept", "is about this machine alone"),
    ("node policy reject", "is about this machine alone"),
    (
        "node run",
        "dials a gateway elsewhere again and again: the tests of nodes are its own",
    ),
];

/// The words of every command that has no commands of its own, and its positional arguments that must be there.
fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, Vec<String>)>) {
    for below in command.get_subcommands().filter(|c| c.get_name() != "help") {
        let path = format!("{path} {}", below.get_name());
        if below.has_subcommands() {
            leaves(below, &path, found);
        } else {
            let needed = below.get_positionals().filter(|a| a.is_required_set());
            let needed = needed.map(|a| a.get_id().to_string()).collect();
            found.push((path.trim_start().to_owned(), needed));
        }
    }
}

/// What is on stdin, and in the file that a command reads.
fn input(state: &Path) -> PathBuf {
    state.with_extension("input")
}

/// `--json`, with something on stdin for those that keep it.
fn run(state: &Path, words: &[&str]) -> Output {
    let input = input(state);
    std::fs::write(&input, "KEY=a value that is long enough\n").unwrap();
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .arg("--json")
        .arg("--state")
        .arg(state)
        .args(words)
        .env_remove("PORTCULLIS_SOCKET")
        .stdin(std::fs::File::open(&input).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap()
}

#[test]
fn every_command_without_a_gateway_ends_with_its_code_and_a_document() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let mut all = vec![];
    leaves(&Cli::command(), "", &mut all);
    for (name, why) in NEED_NONE {
        assert!(all.iter().any(|(leaf, _)| leaf == name), "{name}: {why}");
    }
    all.retain(|(leaf, _)| !NEED_NONE.iter().any(|(name, _)| name == leaf));
    assert!(all.len() > 40, "{}", all.len());
    let mut wrong = vec![];
    let file = input(&state);
    for (leaf, needed) in &all {
        let mut words: Vec<&str> = leaf.split(' ').collect();
        if leaf == "policy test" {
            words.extend(["--", "true"]);
        }
        for argument in needed {
            match (leaf.as_str(), argument.as_str()) {
                ("grants test", "argv") => words.extend(["--", "true"]),
                ("exec", "argv") => words.extend(["--agent", "demo", "--", "true"]),
                ("audit show" | "audit prove" | "audit consistency", _) => words.push("1"),
                ("vault migrate", _) => words.push(file.to_str().unwrap()),
                ("vault set" | "vault rm" | "vault show" | "vault bind", _) => words.push("KEY"),
                ("sandbox cp", "from") => words.push("demo:abcdef12"),
                (_, "label" | "name") => words.push("demo"),
                _ => words.push("abcdef12"),
            }
        }
        let output = run(&state, &words);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let error = &answer["error"];
        let says = |key: &str| error[key].as_str().is_some_and(|text| !text.is_empty());
        let exit = if leaf == "exec" || leaf == "attach" {
            125
        } else {
            7
        };
        if output.status.code() != Some(exit)
            || error["code"] != "DAEMON_UNREACHABLE"
            || !says("message")
            || !says("hint")
            || !output.stderr.is_empty()
        {
            wrong.push(format!("{words:?}: {output:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
