//! Questions to the machine: is a program there, may we install, does an engine answer.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The first executable file of that name on `PATH`, and in the folders where Debian puts what only root's `PATH` has.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

/// What a program prints on stdout, trimmed; `None` where it is missing or fails.
pub fn says(name: &str, words: &[&str]) -> Option<String> {
    let output = Command::new(name)
        .args(words)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub fn is_root() -> bool {
    says("id", &["-u"]).as_deref() == Some("0")
}

/// The command that installs Debian packages here, as words before `apt-get`; `None` where there is no way.
pub fn installer() -> Option<Vec<&'static str>> {
    program("apt-get")?;
    if is_root() {
        Some(vec![])
    } else {
        program("sudo").map(|_| vec!["sudo"])
    }
}

pub fn compiler() -> Option<PathBuf> {
    ["cc", "gcc", "clang"].into_iter().find_map(program)
}

/// A Docker engine that answers a ping on its Unix socket (`DOCKER_HOST` or the usual place).
pub fn engine() -> Option<PathBuf> {
    let socket = match std::env::var("DOCKER_HOST") {
        Ok(host) => PathBuf::from(host.strip_prefix("unix://")?),
        Err(_) => PathBuf::from("/var/run/docker.sock"),
    };
    let mut stream = UnixStream::connect(&socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    stream
        .write_all(b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    (&head == b"HTTP/1.1 200").then_some(socket)
}

/// A busybox that needs no shared library: the engine's first image is made of it.
pub fn static_busybox() -> Option<PathBuf> {
    program("busybox").filter(|file| is_static(file))
}

/// True for a 64-bit little-endian ELF file without an interpreter segment.
fn is_static(file: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let Ok(bytes) = fs::read(file) else {
        return false;
    };
    let number = |at: usize, len: usize| -> Option<u64> {
        let field = bytes.get(at..at.checked_add(len)?)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |sum, byte| (sum << 8) | u64::from(*byte)),
        )
    };
    let has_interpreter = || -> Option<bool> {
        let table = usize::try_from(number(0x20, 8)?).ok()?;
        let size = usize::try_from(number(0x36, 2)?).ok()?;
        let count = usize::try_from(number(0x38, 2)?).ok()?;
        for row in 0..count {
            let at = table.checked_add(row.checked_mul(size)?)?;
            if number(at, 4)? == u64::from(PT_INTERP) {
                return Some(true);
            }
        }
        Some(false)
    };
    bytes.starts_with(b"\x7fELF\x02\x01") && has_interpreter() == Some(false)
}

/// The major and minor version of node, if any.
pub fn node() -> Option<(u32, u32)> {
    let text = says("node", &["--version"])?;
    let mut parts = text.strip_prefix('v')?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linked_program_is_not_taken_for_a_static_one() {
        let shell = program("sh").expect("every Debian has sh");
        assert!(!is_static(&shell));
        assert!(!is_static(Path::new("/nonexistent")));
        assert!(!is_static(Path::new(file!())));
    }

    #[test]
    fn what_is_not_on_the_path_is_not_found() {
        assert!(program("sh").is_some());
        assert!(program("no-such-program-anywhere").is_none());
        assert!(says("no-such-program-anywhere", &[]).is_none());
    }
}
