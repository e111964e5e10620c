//! Does a process descend from this one? Then it is one of our runs, and no operator's, whatever its uid (design rule:
//! what we let run can never approve). A run's processes stay below their supervisor, which is our child, for as long
//! as they live.

use std::collections::HashMap;

/// Longest chain of parents that is followed.
const CHAIN: usize = 4096;

/// Whether a process is one of ours. A process whose chain cannot be read is taken for one.
pub fn is_descendant(pid: i32) -> bool {
    let own = std::process::id().cast_signed();
    let mut at = pid;
    for _ in 0..CHAIN {
        if at == own {
            return true;
        }
        if at <= 1 {
            return false;
        }
        match parent(at) {
            Some(next) => at = next,
            None => return true,
        }
    }
    true
}

/// Whether one of our descendants holds the socket with this inode.
pub fn holds_socket(inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    descendants().into_iter().any(|pid| {
        let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            return false;
        };
        open.flatten().any(|fd| {
            std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str())
        })
    })
}

/// The processes below this one; this one is none of them.
fn descendants() -> Vec<i32> {
    let Ok(all) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in all
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
    {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![std::process::id().cast_signed()];
    while let Some(pid) = next.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            found.push(child);
            next.push(child);
        }
    }
    found
}

/// The fourth field of `/proc/PID/stat`, after the name in brackets, which may hold anything (proc_pid_stat(5)).
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_ours_and_our_parent_is_not() {
        let mut child = std::process::Command::new("sleep")
            .arg("5")
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        assert!(is_descendant(pid));
        assert!(descendants().contains(&pid));
        let above = parent(std::process::id().cast_signed()).unwrap();
        assert!(!is_descendant(above));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_descendant(pid), "gone: taken for ours");
    }
}
