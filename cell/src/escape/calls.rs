//! The kernel's files, devices, and what it may be asked for.

use std::fs;
use std::os::fd::AsFd as _;

use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Gid, Uid};
use rustix::pty::OpenptFlags;
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::{Attempt, Given, Outcome, opens_to_write, ourselves, reads, refused};
use crate::escape::files::first;
use crate::sys::{Ask, ask};

const NEW_USER: u64 = 0x1000_0000;

pub const ALL: &[(&str, Attempt)] = &[
    ("core-pattern", |_| {
        opens_to_write("/proc/sys/kernel/core_pattern")
    }),
    ("overcommit", |_| {
        opens_to_write("/proc/sys/vm/overcommit_memory")
    }),
    ("ip-forward", |_| {
        opens_to_write("/proc/sys/net/ipv4/ip_forward")
    }),
    ("randomize", |_| {
        opens_to_write("/proc/sys/kernel/randomize_va_space")
    }),
    ("panic", |_| opens_to_write("/proc/sys/kernel/panic")),
    ("sysrq", |_| opens_to_write("/proc/sysrq-trigger")),
    ("modprobe", |_| opens_to_write("/proc/sys/kernel/modprobe")),
    ("kcore", |_| reads("/proc/kcore")),
    ("kernel-addresses", |_| {
        let text = fs::read_to_string("/proc/kallsyms")?;
        let told = text.lines().find(|line| !line.starts_with("00000000"));
        told.map_or_else(
            || refused("each of them is hidden"),
            |line| Ok(line.to_owned()),
        )
    }),
    ("kernel-messages", |_| {
        // Reading would take them from who collects them.
        fs::File::open("/proc/kmsg")?;
        Ok("/proc/kmsg is open".to_owned())
    }),
    ("timer-list", |_| reads("/proc/timer_list")),
    ("page-flags", |_| reads("/proc/kpageflags")),
    ("sys-block", |_| {
        let disks = fs::read_dir("/sys/block")?.filter_map(|entry| Some(entry.ok()?.path()));
        first(disks.collect(), |disk| {
            opens_to_write(disk.join("queue/read_ahead_kb"))
        })
    }),
    ("sys-memory", |_| {
        first(
            vec![
                "/sys/kernel/mm/transparent_hugepage/enabled",
                "/sys/kernel/mm/ksm/run",
            ],
            opens_to_write,
        )
    }),
    ("release-agent", |_| in_groups("release_agent")),
    ("cgroup-move", |_| in_groups("cgroup.procs")),
    ("cgroup-limit", |_| {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let mut files = vec![];
        for path in own.chain(["/"]) {
            files.push(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"));
            files.push(format!("/sys/fs/cgroup{path}/memory.max"));
        }
        first(files, opens_to_write)
    }),
    ("oom-score", |_| {
        fs::write("/proc/self/oom_score_adj", "-900")?;
        Ok("the kernel ends it last".to_owned())
    }),
    ("device-disk", |_| {
        let disks = [
            "/dev/vda",
            "/dev/sda",
            "/dev/nvme0n1",
            "/dev/xvda",
            "/dev/dm-0",
        ];
        first(disks.to_vec(), reads)
    }),
    ("device-kmsg", |_| {
        fs::File::open("/dev/kmsg")?;
        Ok("/dev/kmsg is open".to_owned())
    }),
    ("device-kvm", |_| opens("/dev/kvm")),
    ("device-fuse", |_| opens("/dev/fuse")),
    ("device-tun", |_| opens("/dev/net/tun")),
    ("device-loop", |_| opens("/dev/loop-control")),
    ("device-console", |_| {
        // Not as the controlling terminal.
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NOCTTY;
        rustix::fs::open("/dev/console", flags, rustix::fs::Mode::empty())?;
        Ok("/dev/console is open".to_owned())
    }),
    ("device-mem", |_| opens("/dev/mem")),
    ("become-root", |_| {
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
        Ok("uid 0".to_owned())
    }),
    ("groups", |_| {
        rustix::thread::set_thread_groups(&[Gid::ROOT])?;
        Ok("root's group".to_owned())
    }),
    ("capabilities", |_| {
        let mut sets = rustix::thread::capabilities(None)?;
        sets.permitted |= CapabilitySet::SYS_ADMIN;
        sets.effective |= CapabilitySet::SYS_ADMIN;
        rustix::thread::set_capabilities(None, sets)?;
        Ok("CAP_SYS_ADMIN".to_owned())
    }),
    ("host-name", |_| {
        rustix::system::sethostname(b"escaped")?;
        Ok("another name".to_owned())
    }),
    ("unshare-mount", |_| unshare(UnshareFlags::NEWNS)),
    ("unshare-net", |_| unshare(UnshareFlags::NEWNET)),
    ("unshare-time", |_| unshare(UnshareFlags::NEWTIME)),
    ("unshare-user", |_| unshare(UnshareFlags::NEWUSER)),
    ("clone-user", |_| asked(&Ask::Clone(NEW_USER))),
    ("clone3-user", |_| asked(&Ask::Clone3(NEW_USER))),
    ("bpf", |_| asked(&Ask::BpfMap)),
    ("module", |_| {
        past(rustix::system::init_module(b"none", c"").map_err(Into::into))
    }),
    ("kexec", |_| asked(&Ask::Kexec)),
    ("swap", |_| past(ask(&Ask::Swap).map(drop))),
    ("accounting", |_| past(ask(&Ask::Account).map(drop))),
    ("reboot", |_| past(ask(&Ask::Reboot).map(drop))),
    ("clock", |_| asked(&Ask::Clock)),
    ("io-ports", |_| asked(&Ask::IoPorts)),
    ("real-time", |_| asked(&Ask::RealTime)),
    ("io-uring", |_| asked(&Ask::IoUring)),
    ("perf", |_| asked(&Ask::Perf)),
    ("kernel-log", |_| asked(&Ask::KernelLog)),
    ("ia32", |_| asked(&Ask::Ia32)),
    ("x32", |_| asked(&Ask::X32)),
    ("keyring-add", |_| asked(&Ask::AddKey)),
    ("keyring-join", |_| asked(&Ask::JoinKeyring)),
    ("userfaultfd", |_| asked(&Ask::Userfault)),
    ("ptrace-child", |_| {
        let child = ourselves(&["hold"]).spawn()?;
        let traced = ask(&Ask::Trace(child.id().cast_signed()));
        super::end(child);
        traced?;
        Ok("a process of its own is traced".to_owned())
    }),
    ("terminal-input", terminal_input),
    ("packet-socket", |_| {
        socket(AddressFamily::PACKET, SocketType::RAW)
    }),
    ("raw-socket", |_| {
        let protocol = Some(rustix::net::ipproto::ICMP);
        rustix::net::socket(AddressFamily::INET, SocketType::RAW, protocol)?;
        Ok("a raw socket".to_owned())
    }),
    ("netlink-socket", |_| {
        socket(AddressFamily::NETLINK, SocketType::RAW)
    }),
    ("crypto-socket", |_| {
        socket(AddressFamily::from_raw(38), SocketType::SEQPACKET)
    }),
    ("vsock", |_| {
        socket(AddressFamily::from_raw(40), SocketType::STREAM)
    }),
    ("preallocate", |given| {
        let path = given.place("stroke");
        let file = fs::File::create(&path)?;
        let none = rustix::fs::FallocateFlags::empty();
        let taken = rustix::fs::fallocate(&file, none, 0, 1 << 20);
        let _ = fs::remove_file(&path);
        taken?;
        Ok("a megabyte without a write".to_owned())
    }),
];

fn asked(what: &Ask<'_>) -> Outcome {
    let answer = ask(what)?;
    Ok(format!("the kernel answers {answer}"))
}

/// A call that must fail, but not for want of rights: then its check was passed.
fn past(asked: std::io::Result<()>) -> Outcome {
    match asked {
        Ok(()) => Ok("it was done".to_owned()),
        Err(error) => match rustix::io::Errno::from_io_error(&error) {
            Some(
                rustix::io::Errno::PERM | rustix::io::Errno::ACCESS | rustix::io::Errno::NOSYS,
            )
            | None => Err(error.into()),
            Some(_) => Ok(format!("past the check, then: {error}")),
        },
    }
}

fn opens(path: &str) -> Outcome {
    fs::OpenOptions::new().read(true).write(true).open(path)?;
    Ok(format!("{path} is open"))
}

fn unshare(flags: UnshareFlags) -> Outcome {
    // Deprecated for flags that share descriptors between threads; this process has one.
    #[allow(deprecated)]
    rustix::thread::unshare(flags)?;
    Ok("a namespace of its own".to_owned())
}

fn socket(family: AddressFamily, kind: SocketType) -> Outcome {
    rustix::net::socket(family, kind, None)?;
    Ok("a socket".to_owned())
}

/// A file of each hierarchy's topmost group that it sees.
fn in_groups(name: &str) -> Outcome {
    let root = "/sys/fs/cgroup";
    let mut files = vec![format!("{root}/{name}")];
    for entry in fs::read_dir(root)?.flatten() {
        files.push(entry.path().join(name).display().to_string());
    }
    first(files, opens_to_write)
}

/// Into a terminal of its own, which is its controlling one: the kernel's own check lets that pass.
fn terminal_input(_: &Given) -> Outcome {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, vec![])?;
    let _ = rustix::process::setsid();
    let terminal = rustix::fs::open(name, rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
    let _ = rustix::process::ioctl_tiocsctty(&terminal);
    let outcome = asked(&Ask::PushInput(terminal.as_fd()));
    // Closed, it would hang up on this process before its word is out.
    std::mem::forget(master);
    outcome
}
