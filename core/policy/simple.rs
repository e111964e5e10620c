//! Programs of the system that may be named without their arguments.

use super::command::base;
use super::reads::is_data_name;
use crate::plan::{ExecPlan, HOST_PATH};

/// More that start nothing, whatever their words are. They change more than those that a wildcard may
/// mean: who lists one of them names it.
const SIMPLE: &[&str] = &[
    "basenc",
    "cal",
    "chgrp",
    "csplit",
    "diff",
    "dir",
    "expr",
    "factor",
    "fallocate",
    "file",
    "findmnt",
    "free",
    "getconf",
    "getent",
    "gzip",
    "hostid",
    "hostname",
    "iconv",
    "kill",
    "killall",
    "last",
    "lastlog",
    "link",
    "locale",
    "logname",
    "lsblk",
    "lscpu",
    "lsipc",
    "lsmem",
    "lsmod",
    "lsns",
    "lspci",
    "lsusb",
    "mcookie",
    "mktemp",
    "modinfo",
    "mountpoint",
    "namei",
    "netstat",
    "nproc",
    "numfmt",
    "pidof",
    "ping",
    "pinky",
    "pkill",
    "pmap",
    "pr",
    "printenv",
    "ptx",
    "pwdx",
    "setterm",
    "shred",
    "shuf",
    "ss",
    "tload",
    "tree",
    "tsort",
    "tty",
    "uptime",
    "users",
    "uuidgen",
    "vdir",
    "vmstat",
    "w",
    "whereis",
    "who",
    "xz",
    "zstd",
];

/// Is it one of those, or one that a wildcard may mean, called by its own name?
pub(super) fn is_known_simple(plan: &ExecPlan) -> bool {
    let called = base(plan.argv.first().map_or("", String::as_str));
    let path = plan.executable.path().unwrap_or_default();
    is_simple_path(path) && called == base(path) && starts_none(called, &plan.argv)
}

/// Two of them have options by which they start another.
fn starts_none(name: &str, argv: &[String]) -> bool {
    let (letters, long): (&[char], &str) = match name {
        // `pr`.
        "diff" => (&['l'], "--p"),
        // What unpacks.
        "file" => (&['z', 'Z'], "--u"),
        _ => return true,
    };
    argv.iter().skip(1).all(|word| {
        let is_short = word.starts_with('-') && !word.starts_with("--");
        !(word.starts_with(long) || is_short && word.contains(letters))
    })
}

/// Is it a program of the system that is known to start nothing?
pub(super) fn is_simple_path(path: &str) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    HOST_PATH.split(':').any(|known| known == folder)
        && (is_data_name(name) || SIMPLE.contains(&name))
}
