//! What policy lets pass, run by real shells with every exec traced: they start what was shown, with the same words, and
//! nothing else.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use portcullis_core::plan::HOST_PATH;
use portcullis_core::policy::Ruling;

use super::corpus::judged;

/// Both read a line; dash is this system's `sh`.
const SHELLS: &[&str] = &["dash", "bash"];
/// Looked through by policy: they start what is shown.
const WRAPPERS: &[&str] = &["env", "nice", "nohup", "stdbuf", "time", "timeout"];

/// What a trace says was executed: the file, and its words.
fn executed(trace: &str) -> Vec<(String, Vec<String>)> {
    let unhex = |text: &str| {
        let bytes = text.split("\\x").skip(1);
        let bytes: Vec<u8> = bytes
            .map(|hex| u8::from_str_radix(&hex[..2], 16).unwrap())
            .collect();
        String::from_utf8(bytes).unwrap()
    };
    let quoted = |text: &str| -> Vec<String> {
        let parts = text.split('"').skip(1).step_by(2);
        parts.map(unhex).collect()
    };
    let done = trace
        .lines()
        .filter(|line| line.contains("execve(") && line.ends_with(" = 0"));
    let both = |line: &str| {
        let (_, rest) = line.split_once("execve(").unwrap();
        let (file, rest) = rest.split_once(", [").unwrap();
        let (words, _) = rest.split_once("], ").unwrap();
        (quoted(file).remove(0), quoted(words))
    };
    done.map(both).collect()
}

/// Runs it in a folder of its own, where nothing is.
fn traced(argv: &[String]) -> Vec<(String, Vec<String>)> {
    let folder = tempfile::tempdir().unwrap();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let ended = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-xx",
            "-s",
            "65536",
            "-e",
            "trace=execve",
            "-e",
            "signal=none",
            "-o",
        ])
        .arg(trace.path())
        .arg("--")
        .args(argv)
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", HOST_PATH)
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(ended.code().is_some(), "{argv:?} {ended}");
    executed(&std::fs::read_to_string(trace.path()).unwrap())
}

fn name(path: &str) -> &str {
    Path::new(path).file_name().unwrap().to_str().unwrap()
}

#[test]
fn what_policy_allows_starts_the_shown_programs_with_the_shown_words_and_nothing_else() {
    let (mut ran, mut started) = (0, 0);
    for case in judged() {
        if case.said.verdict != Ruling::Allow {
            continue;
        }
        let shown: BTreeSet<(&str, &[String])> = case
            .said
            .commands
            .iter()
            .map(|command| (name(command.path.as_deref().unwrap()), &command.argv[..]))
            .collect();
        for shell in SHELLS {
            let mut argv = case.argv.clone();
            for word in argv
                .iter_mut()
                .filter(|word| *word == "sh" || SHELLS.contains(&word.as_str()))
            {
                (*shell).clone_into(word);
            }
            for (file, words) in traced(&argv) {
                let of_system = HOST_PATH
                    .split(':')
                    .any(|folder| Path::new(folder) == Path::new(&file).parent().unwrap());
                assert!(of_system, "{argv:?} started {file}");
                if file.ends_with(&format!("/{shell}")) || WRAPPERS.contains(&name(&file)) {
                    continue;
                }
                // `exec` of a full path keeps it as the name.
                assert!(
                    shown.contains(&(name(&file), &words[..])),
                    "{argv:?} started {file} {words:?}, not {shown:?}"
                );
                started += 1;
            }
            ran += 1;
        }
    }
    assert!(ran > 300 && started > 200, "{ran} {started}");
}

/// The trace itself: what is started behind a shell's back is seen.
#[test]
fn a_trace_shows_what_a_shell_starts() {
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    for shell in SHELLS {
        let seen = traced(&words(&[shell, "-c", "x=$(uname 'a b'); nice id; echo y"]));
        let names: Vec<&str> = seen.iter().map(|(file, _)| name(file)).collect();
        assert_eq!(names, [shell, "uname", "nice", "id"]);
        assert_eq!(seen[1].1, words(&["uname", "a b"]));
    }
}
