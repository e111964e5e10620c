//! What runs stand beside: plain bubblewrap, and the memory that the boxes of a gateway hold while nothing runs in them.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// A command as people write it who use bubblewrap by hand: namespaces of its own, the system read-only, no ceilings, no record.
fn bubblewrap() -> Command {
    let mut command = Command::new("bwrap");
    command
        .args(["--unshare-all", "--die-with-parent", "--new-session"])
        .args(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"])
        .args(["--tmpfs", "/tmp", "--", "echo", "x"]);
    command
}

/// As little as a process can be.
pub fn bare() -> Command {
    let mut command = Command::new("echo");
    command.arg("x");
    command
}

/// From the start to the first byte; returns when the process has ended.
pub fn first_byte(mut command: Command) -> Result<Duration> {
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut byte = [0];
    child
        .stdout
        .take()
        .context("no pipe")?
        .read_exact(&mut byte)?;
    let took = began.elapsed();
    ensure!(child.wait()?.success(), "{command:?} failed");
    Ok(took)
}

/// From the start of plain bubblewrap to its command's first byte.
pub fn bubblewrap_first_byte() -> Result<Duration> {
    first_byte(bubblewrap())
}

/// Runs of plain bubblewrap a second, so many at once.
pub fn bubblewrap_rate(at_once: usize, span: Duration) -> Result<f64> {
    let began = Instant::now();
    let threads: Vec<_> = (0..at_once)
        .map(|_| {
            std::thread::spawn(move || {
                let mut count = 0_u32;
                while began.elapsed() < span {
                    bubblewrap_first_byte()?;
                    count += 1;
                }
                anyhow::Ok(count)
            })
        })
        .collect();
    let mut all = 0;
    for thread in threads {
        let count = thread.join();
        all += count.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    Ok(f64::from(all) / began.elapsed().as_secs_f64())
}

/// One process, as the kernel tells of it.
struct Process {
    parent: u32,
    /// Its share of memory, in KiB: pages that others use too are divided among them.
    share: f64,
    line: String,
}

/// What the processes of boxes hold, in KiB: those below the gateway but for its runner, and the engine's keeper of each container
/// (whose command line names this socket's folder) with what is below it.
pub fn held(gateway: u32, engine: Option<&Path>) -> Result<f64> {
    let all = processes()?;
    let engine = engine.map(|folder| folder.display().to_string());
    let keeps = |process: &Process| {
        engine.as_ref().is_some_and(|folder| {
            process.line.contains("containerd-shim") && process.line.contains(folder)
        })
    };
    let is_ours = |pid: u32| {
        let mut at = pid;
        // A chain of parents is short; the bound is for a list that changed while it was read.
        for _ in 0..64 {
            let Some(process) = all.get(&at) else {
                return false;
            };
            if keeps(process) || process.parent == gateway {
                return true;
            }
            at = process.parent;
        }
        false
    };
    let boxes = all
        .iter()
        .filter(|(pid, process)| is_ours(**pid) && !process.line.contains("portcullis\0runner"));
    Ok(boxes.map(|(_, process)| process.share).sum())
}

fn processes() -> Result<BTreeMap<u32, Process>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // One that has ended meanwhile has none of these.
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        let Some(parent) = parent else { continue };
        let rollup = String::from_utf8_lossy(&read("smaps_rollup")).into_owned();
        let share = rollup.lines().find_map(|line| {
            line.strip_prefix("Pss:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        });
        all.insert(
            pid,
            Process {
                parent,
                share: share.unwrap_or(0.0),
                line: String::from_utf8_lossy(&read("cmdline")).into_owned(),
            },
        );
    }
    Ok(all)
}
