//! What a driver is asked to prove: run as a command in a box, this tries to get out and says how far it came.
//!
//! Plain std, no tool of the box's image: the same words come out of every driver. One fact per line, `name value`.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Entry of `portcullis-cell probe CANARY PORT FORKS`.
pub fn main(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let mut next = || arguments.next().ok_or("probe CANARY PORT FORKS".to_owned());
    let canary = next()?;
    if canary == "--wait" {
        // A child of the fork trial: lives until its input ends.
        let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
        return Ok(());
    }
    let port: u16 = next()?.parse().map_err(|_| "PORT")?;
    let forks: usize = next()?.parse().map_err(|_| "FORKS")?;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for name in ["CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp"] {
        println!(
            "{name} {}",
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
                .unwrap_or("?")
        );
    }
    println!("uid {}", rustix::process::getuid().as_raw());
    println!("uid_map {}", host_uids());
    println!("shadow {}", reach(fs::read("/etc/shadow").is_ok()));
    println!("canary {}", reach(fs::metadata(canary).is_ok()));
    println!(
        "root {}",
        reach(
            fs::write("/portcullis-probe", "").is_ok()
                || fs::write("/usr/portcullis-probe", "").is_ok()
        )
    );
    println!(
        "control {}",
        reach(
            fs::write("/run/portcullis/x", "").is_ok()
                || fs::remove_file("/run/portcullis/s").is_ok()
        )
    );
    println!(
        "workspace {}",
        reach(fs::write("/workspace/written", "x").is_ok())
    );
    let host = SocketAddr::from(([127, 0, 0, 1], port));
    println!(
        "host_port {}",
        reach(TcpStream::connect_timeout(&host, Duration::from_millis(300)).is_ok())
    );
    println!("interfaces {}", interfaces());
    println!(
        "init {}",
        reach(
            rustix::process::Pid::from_raw(1)
                .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
        )
    );
    println!(
        "forks {}",
        if forks == 0 {
            "0".to_owned()
        } else {
            fork(forks)
        }
    );
    Ok(())
}

const fn reach(reached: bool) -> &'static str {
    if reached { "reached" } else { "refused" }
}

/// The host uids that this user namespace maps to (all of them, in a box without a namespace of its own).
fn host_uids() -> String {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().collect::<Vec<_>>().join(",")
}

fn interfaces() -> String {
    let table = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names: Vec<_> = table
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    names.join(",")
}

/// How many children it could have at once, up to `most`.
fn fork(most: usize) -> String {
    let mut children: Vec<Child> = Vec::new();
    while children.len() < most {
        let child = Command::new("/proc/self/exe")
            .args(["probe", "--wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        match child {
            Ok(child) => children.push(child),
            Err(_) => break,
        }
    }
    let count = children.len();
    for mut child in children {
        drop(child.stdin.take());
        let _ = child.wait();
    }
    count.to_string()
}
