//! What is looked at from outside: output without end, and processes that outlive their run.

use std::fs;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::{Given, ourselves, say};

/// Nothing stays longer than this, whoever does not end it.
const STAYS: Duration = Duration::from_mins(1);

/// Does nothing. What it is called besides is for who looks for it.
pub fn hold() -> ExitCode {
    std::thread::sleep(STAYS);
    ExitCode::SUCCESS
}

/// So many bytes on standard output.
pub fn flood(given: &Given) -> ExitCode {
    let Ok(mut left) = given.number("bytes") else {
        return ExitCode::from(2);
    };
    let piece = vec![b'x'; 64 * 1024];
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        if std::io::stdout().write_all(&piece[..length]).is_err() {
            return ExitCode::FAILURE;
        }
        left -= length as u64;
    }
    ExitCode::SUCCESS
}

/// A process without this one above it, in a session of its own; ends when it is there.
pub fn daemon(token: &str) -> ExitCode {
    let left = ourselves(&["leave", token]).status();
    if left.is_ok_and(|status| status.success()) && is_there(token) {
        say("held");
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

/// The parent in between.
pub fn leave(token: &str) -> ExitCode {
    let _ = rustix::process::setsid();
    if ourselves(&["hold", token]).spawn().is_ok() {
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

/// Stays, beside such a process. Started by a shell that ignores signals, all of them do.
pub fn stubborn(token: &str) -> ExitCode {
    let code = daemon(token);
    if code == ExitCode::SUCCESS {
        std::thread::sleep(STAYS);
    }
    code
}

/// Whether a process with this word is seen: it must have been there to be gone.
fn is_there(token: &str) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            if words.get(2) == Some(&&b"hold"[..]) && words.get(3) == Some(&token.as_bytes()) {
                return true;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
