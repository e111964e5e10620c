//! Finding and ending processes. A subreaper's descendants are exactly what hangs below it: whoever daemonises comes back to it.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};

/// What a look for dead children found.
pub enum Reaped {
    /// This child, with its status.
    Child(Pid, WaitStatus),
    /// Children live, none is dead.
    NoneYet,
    /// No child at all: nothing is left below this process.
    NoChildren,
}

/// Takes one dead child, without waiting.
pub fn reap() -> Reaped {
    loop {
        return match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => Reaped::Child(pid, status),
            Err(Errno::INTR) => continue,
            Err(Errno::CHILD) => Reaped::NoChildren,
            Ok(None) | Err(_) => Reaped::NoneYet,
        };
    }
}

/// Direct children of this process.
pub fn children() -> Vec<Pid> {
    let own = rustix::process::getpid();
    children_of(own).unwrap_or_else(|| scan(own))
}

/// Every descendant of this process, parents first.
pub fn descendants() -> Vec<Pid> {
    let mut all = children();
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        for child in children_of(pid).unwrap_or_else(|| scan(pid)) {
            if !all.contains(&child) {
                all.push(child);
            }
        }
    }
    all
}

/// Sends a signal to every descendant and says to whom.
pub fn signal_all(signal: Signal, told: &mut BTreeSet<i32>) {
    for pid in descendants() {
        if kill_process(pid, signal).is_ok() {
            told.insert(pid.as_raw_pid());
        }
    }
}

/// Kills every descendant until none is left or the time is over; calls `dead` for each child that was reaped. True: nothing is left.
pub fn sweep(
    within: Duration,
    told: &mut BTreeSet<i32>,
    mut dead: impl FnMut(Pid, WaitStatus),
) -> bool {
    let until = Instant::now() + within;
    loop {
        loop {
            match reap() {
                Reaped::Child(pid, status) => dead(pid, status),
                Reaped::NoneYet => break,
                Reaped::NoChildren => return true,
            }
        }
        if Instant::now() >= until {
            return false;
        }
        // A process that has been sent KILL forks no more, so each round finds fewer.
        signal_all(Signal::KILL, told);
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// From the kernel's own list; none where the process is gone or the kernel has no such list.
fn children_of(pid: Pid) -> Option<Vec<Pid>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).ok()?;
    let mut found = Vec::new();
    for task in tasks.flatten() {
        let list = fs::read_to_string(task.path().join("children")).ok()?;
        found.extend(
            list.split_whitespace()
                .filter_map(|word| Pid::from_raw(word.parse().ok()?)),
        );
    }
    Some(found)
}

/// The slow way, for kernels without `children` lists: everyone whose parent is `parent`.
fn scan(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let wanted = parent.as_raw_pid().to_string();
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name may hold anything; the fields start after its last parenthesis: state, parent.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
            (parent == wanted).then_some(pid)
        })
        .collect()
}
