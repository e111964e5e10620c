//! A process of its own that appends until it is killed: this very test binary, asked by an environment variable.

use super::*;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const MODE: &str = "PORTCULLIS_AUDIT_CHILD";
const DIR: &str = "PORTCULLIS_AUDIT_DIR";

/// The command that becomes the child; `wrap` goes before it (strace).
pub(super) fn command(dir: &Path, mode: &str, wrap: &[&str]) -> Command {
    let own = std::env::current_exe().unwrap();
    let mut command = match wrap.split_first() {
        None => Command::new(own),
        Some((program, args)) => {
            let mut command = Command::new(program);
            command.args(args).arg(own);
            command
        }
    };
    command
        .args([
            "--exact",
            "audit::tests::child::body",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(MODE, mode)
        .env(DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

pub(super) fn start(dir: &Path, mode: &str) -> Child {
    command(dir, mode, &[]).spawn().unwrap()
}

/// What the child says, line by line, to its end.
pub(super) fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        // The harness prints the test's name first, without an end of line.
        .filter_map(|line| line.split_once("> ").map(|(_, said)| said.to_owned()))
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "> {text}").unwrap();
    out.flush().unwrap();
}

/// Not a test: does nothing unless it was started by one.
#[test]
fn body() {
    let (Ok(mode), Ok(dir)) = (std::env::var(MODE), std::env::var(DIR)) else {
        return;
    };
    let config = AuditConfig {
        segment_bytes: if mode == "hammer" { 64 * 1024 } else { 1 << 30 },
        ..AuditConfig::default()
    };
    let log = match try_open(Path::new(&dir), 9, config) {
        Ok(log) => log,
        Err(AuditError::Locked { pid }) => return say(&format!("open STATE_LOCKED {pid}")),
        Err(error) => return say(&format!("open {}", error.code())),
    };
    say("open ok");
    match mode.as_str() {
        "open" => log.close(),
        "hammer" => std::thread::scope(|scope| {
            for caller in 0..8 {
                let log = &log;
                scope.spawn(move || {
                    for n in 0.. {
                        let seq = log.append(event(caller * 1_000_000_000 + n)).unwrap();
                        say(&format!("{seq} {}", caller * 1_000_000_000 + n));
                    }
                });
            }
        }),
        "steps" => {
            for n in 0..8 {
                match log.append(event(n)) {
                    Ok(seq) => say(&format!("{seq} {n}")),
                    Err(error) => {
                        say(&format!("refused {}", error.code()));
                        std::thread::sleep(Duration::from_millis(220));
                    }
                }
            }
            match log.try_close() {
                Ok(_) => say("closed"),
                Err(error) => say(&format!("not closed {}", error.code())),
            }
        }
        other => panic!("unknown mode {other}"),
    }
}
