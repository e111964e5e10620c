//! Other processes: those of the host, and those that supervise this one.

use std::fs;
use std::os::fd::AsFd as _;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::files::first;
use super::{Attempt, Given, Outcome, Why, reads, refused};
use crate::sys::{Ask, ask};

pub const ALL: &[(&str, Attempt)] = &[
    ("process-list", |given| {
        let token = given.need("token")?;
        for entry in fs::read_dir("/proc")?.flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            // Not our own, which have it as a value.
            if words.any(|word| word == token.as_bytes()) {
                return Ok(format!("{} is there", entry.path().display()));
            }
        }
        refused("it is not seen")
    }),
    ("process-root", |given| {
        let (canary, token) = given.canary()?;
        each(given, |pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/root{canary}"))?;
            if text.trim() == token {
                return Ok("the host's file was read".to_owned());
            }
            refused("another file lies there")
        })
    }),
    ("process-environ", |given| {
        each(given, |pid| reads(format!("/proc/{pid}/environ")))
    }),
    ("process-memory", |given| {
        each(given, |pid| {
            let path = format!("/proc/{pid}/mem");
            fs::OpenOptions::new().read(true).write(true).open(&path)?;
            Ok(format!("{path} is open to write"))
        })
    }),
    ("process-descriptors", |given| {
        each(given, |pid| {
            let count = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
            Ok(format!("{count} descriptors of process {pid}"))
        })
    }),
    ("process-vm-read", |given| {
        each(given, |pid| {
            // Where its map is not told, any address does: the check comes before it.
            let map = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            let begin = map.split('-').next().unwrap_or_default();
            let address = usize::from_str_radix(begin, 16).unwrap_or(0x40_0000);
            let count = ask(&Ask::ReadMemory(pid, address))?;
            Ok(format!("{count} bytes of process {pid}"))
        })
    }),
    ("ptrace", |given| {
        each(given, |pid| {
            ask(&Ask::Trace(pid))?;
            Ok(format!("process {pid} is traced"))
        })
    }),
    ("pidfd-getfd", |given| {
        each(given, |pid| {
            let process = rustix::process::pidfd_open(known(pid)?, PidfdFlags::empty())?;
            rustix::process::pidfd_getfd(process, 0, PidfdGetfdFlags::empty())?;
            Ok(format!("descriptor 0 of process {pid}"))
        })
    }),
    ("kcmp", |given| {
        each(given, |pid| {
            ask(&Ask::Compare(pid))?;
            Ok(format!("process {pid} is compared"))
        })
    }),
    ("signal", |given| {
        each(given, |pid| {
            rustix::process::test_kill_process(known(pid)?)?;
            Ok(format!("process {pid} may be signalled"))
        })
    }),
    ("limits-of-others", |given| {
        each(given, |pid| {
            let limits = rustix::process::getrlimit(Resource::Core);
            let new = Rlimit {
                current: Some(0),
                maximum: limits.maximum,
            };
            rustix::process::prlimit(Some(known(pid)?), Resource::Core, new)?;
            Ok(format!("a limit of process {pid} is set"))
        })
    }),
    ("priority-of-others", |given| {
        each(given, |pid| {
            rustix::process::setpriority_process(Some(known(pid)?), 10)?;
            Ok(format!("process {pid} is slow"))
        })
    }),
    ("setns-mount", |given| {
        enter(given, "mnt", LinkNameSpaceType::Mount)
    }),
    ("setns-net", |given| {
        enter(given, "net", LinkNameSpaceType::Network)
    }),
    ("setns-pidfd", |given| {
        each(given, |pid| {
            let process = rustix::process::pidfd_open(known(pid)?, PidfdFlags::empty())?;
            let all = ThreadNameSpaceType::MOUNT
                | ThreadNameSpaceType::NETWORK
                | ThreadNameSpaceType::PROCESS_ID;
            rustix::thread::move_into_thread_name_spaces(process.as_fd(), all)?;
            Ok(format!("in the namespaces of process {pid}"))
        })
    }),
];

fn each(given: &Given, tried: impl Fn(i32) -> Outcome) -> Outcome {
    first(given.victims()?, tried)
}

fn known(pid: i32) -> Result<Pid, Why> {
    Pid::from_raw(pid).ok_or_else(|| Why::Skipped(format!("{pid} is no process")))
}

fn enter(given: &Given, name: &str, kind: LinkNameSpaceType) -> Outcome {
    each(given, |pid| {
        let place = fs::File::open(format!("/proc/{pid}/ns/{name}"))?;
        rustix::thread::move_into_link_name_space(place.as_fd(), Some(kind))?;
        Ok(format!("in the namespace of process {pid}"))
    })
}
