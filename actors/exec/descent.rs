//! Is a peer one of ours? What we let run can never approve, so no door gives operator authority to a process below the gateway.

use std::fs;
use std::io::ErrorKind;

/// Longest chain of parents that is followed; a longer one counts as ours.
const MOST: usize = 4096;
/// A chain that changes while it is read is read again.
const TRIES: usize = 5;

/// Does this process descend from this daemon? The daemon itself does not. Where that cannot be told of a process that exists the answer is
/// yes: an unknown peer gets no authority. A pid that is not positive is a peer the kernel cannot name here: yes.
pub fn is_descendant_of_daemon(pid: i32) -> bool {
    let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    if pid <= 0 {
        return true;
    }
    for _ in 0..TRIES {
        match walk(pid, own) {
            Walk::Ours => return true,
            Walk::Foreign | Walk::Gone => return false,
            Walk::Broken => {}
        }
    }
    true
}

enum Walk {
    Ours,
    Foreign,
    /// The process itself is gone.
    Gone,
    /// A parent went away meanwhile, or cannot be read.
    Broken,
}

fn walk(pid: i32, own: i32) -> Walk {
    let mut at = pid;
    for _ in 0..MOST {
        let parent = match parent_of(at) {
            Ok(parent) => parent,
            Err(ErrorKind::NotFound) if at == pid => return Walk::Gone,
            Err(_) => return Walk::Broken,
        };
        // 0: the parent lies outside this pid namespace, or there is none.
        if parent == 0 {
            return Walk::Foreign;
        }
        if parent == own {
            return Walk::Ours;
        }
        at = parent;
    }
    Walk::Broken
}

fn parent_of(pid: i32) -> Result<i32, ErrorKind> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| {
        // A process that ends while its file is read.
        if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) {
            ErrorKind::NotFound
        } else {
            error.kind()
        }
    })?;
    // The name may hold anything; the fields start after its last parenthesis: state, parent.
    stat.rsplit_once(')')
        .and_then(|(_, fields)| fields.split_whitespace().nth(1)?.parse().ok())
        .ok_or(ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn children_and_their_orphans_are_ours_and_nobody_else_is() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!is_descendant_of_daemon(own));
        assert!(!is_descendant_of_daemon(1));
        assert!(is_descendant_of_daemon(0) && is_descendant_of_daemon(-1));
        assert!(!is_descendant_of_daemon(i32::MAX));
        let mut child = Command::new("sh")
            .args(["-c", "sleep 30 & echo $!; read x; kill $!"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        assert!(is_descendant_of_daemon(i32::try_from(child.id()).unwrap()));
        assert!(is_descendant_of_daemon(line.trim().parse().unwrap()));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
