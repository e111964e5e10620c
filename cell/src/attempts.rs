//! The attempts to get out of a box, as a list: `portcullis-cell attempt` makes them, `portcullis sandbox selftest` shows them, and the
//! tests hold each against a control in which the same program succeeds.

/// Where the same program must succeed, so that an attempt counts as evidence: what is taken away there is what stops it in a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Control {
    /// The box's own user on the bare machine: only the box is missing.
    User,
    /// Root on the bare machine, in mount, host name and IPC namespaces of its own so that nothing stays: box and user are missing.
    Root,
    /// A network namespace with the address of the metadata service, where somebody answers: only the box's is missing.
    Net,
    /// A container of Docker's with its own walls (no capability, no new privileges, read-only root, no network, its filter of system
    /// calls), as the box's user: only our filter and rules are missing.
    Filter,
    /// A container of Docker's as root, without our walls, that has the box's own files and an engine's socket mounted writable.
    Mounts,
}

impl Control {
    /// As tables name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Root => "root",
            Self::Net => "net",
            Self::Filter => "no filter",
            Self::Mounts => "mounts",
        }
    }
}

/// How an attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By a process of its own, one after the other in one run; it says itself how far it came.
    Inside,
    /// The same in a run of its own: it may use up what the box has, and take the box with it.
    Alone,
    /// By runs whose end, output and remains are looked at from outside.
    Outside,
}

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Stable.
    pub name: &'static str,
    /// What it tries, in words.
    pub tries: &'static str,
    /// Where it must succeed.
    pub control: Control,
    /// How it is made.
    pub way: Way,
}

macro_rules! attempts {
    ($($control:ident $way:ident: $($name:literal $tries:literal),* ;)*) => {
        /// Every attempt, in the order in which they are made and shown.
        pub const ATTEMPTS: &[Attempt] = &[$($(
            Attempt { name: $name, tries: $tries, control: Control::$control, way: Way::$way },
        )*)*];
    };
}

attempts! {
    // Files.
    User Inside:
        "host-file" "read a file of the host that everybody there may read",
        "machine-id" "read the machine's id",
        "symlink-out" "follow a symbolic link in the workspace to a file of the host",
        "symlink-race" "swap a file for such a link while it is opened, again and again",
        "hardlink-out" "make a hard link in the workspace to a file of the host",
        "dot-dot" "walk up from the workspace to the host's root",
        "fd-leak-open" "open a file of the host through an inherited descriptor (CVE-2024-21626)",
        "fd-leak-cwd" "change into the host's root through an inherited descriptor (CVE-2024-21626)",
        "setuid-program" "become root by a setuid program",
        "host-shm" "open shared memory of the host";
    Root Inside:
        "shadow" "read /etc/shadow",
        "root-home" "list root's home",
        "write-root" "write into /",
        "write-usr" "write into /usr",
        "write-etc" "write into /etc",
        "chown-root" "give a file to root",
        "file-capability" "give a program capabilities",
        "exe-overwrite" "write to the program that supervises it (CVE-2019-5736)",
        "open-by-handle" "open the host's root by its file handle";
    Mounts Inside:
        "cell-file" "overwrite the cell",
        "control-folder" "put a file beside the box's control socket",
        "control-socket" "speak to the gateway on the box's control socket",
        "engine-socket" "speak to a Docker, containerd or Podman socket";

    // Mounts and roots.
    Root Inside:
        "mount-tmpfs" "mount a file system",
        "mount-bind" "bind the root elsewhere",
        "mount-remount" "remount the root writable",
        "mount-proc" "mount another /proc",
        "mount-cgroup" "mount the control groups",
        "unmount" "unmount what hides the host's /proc",
        "mount-new-api" "mount by fsopen",
        "clone-tree" "clone the mounts by open_tree",
        "mount-attributes" "change the attributes of a mount",
        "pivot-root" "change the root by pivot_root",
        "chroot" "change the root by chroot, the first step of its break-out",
        "mknod" "make a device",
        "mknod-disk" "make the host's disk a device of its own and read it";

    // The kernel's files.
    Root Inside:
        "core-pattern" "open /proc/sys/kernel/core_pattern to write: the kernel would start a program of its own choice",
        "overcommit" "open /proc/sys/vm/overcommit_memory to write",
        "ip-forward" "open /proc/sys/net/ipv4/ip_forward to write",
        "randomize" "open /proc/sys/kernel/randomize_va_space to write",
        "panic" "open /proc/sys/kernel/panic to write",
        "sysrq" "open /proc/sysrq-trigger to write",
        "modprobe" "open /proc/sys/kernel/modprobe to write",
        "kcore" "read the kernel's memory in /proc/kcore",
        "kernel-addresses" "read the kernel's addresses in /proc/kallsyms",
        "kernel-messages" "open /proc/kmsg",
        "timer-list" "read /proc/timer_list",
        "page-flags" "read /proc/kpageflags",
        "sys-block" "open a setting of a disk under /sys to write",
        "sys-memory" "open a setting of memory under /sys to write",
        "release-agent" "open a control group's release_agent to write",
        "cgroup-move" "open another control group's list of processes to write",
        "cgroup-limit" "open its own memory limit to write",
        "oom-score" "make itself the last that the kernel ends",
        "device-disk" "open the host's disk",
        "device-kmsg" "open /dev/kmsg",
        "device-kvm" "open /dev/kvm",
        "device-fuse" "open /dev/fuse",
        "device-tun" "open /dev/net/tun",
        "device-loop" "open /dev/loop-control",
        "device-console" "open the machine's console",
        "device-mem" "open /dev/mem";

    // Other processes.
    User Inside:
        "process-list" "see a process of the host",
        "process-root" "reach the host's files through another process's root",
        "process-environ" "read the environment of its supervisor",
        "process-memory" "open the memory of its supervisor",
        "process-descriptors" "list the descriptors of its supervisor",
        "process-vm-read" "read its supervisor's memory by process_vm_readv",
        "ptrace" "trace its supervisor",
        "pidfd-getfd" "take a descriptor from its supervisor",
        "kcmp" "compare its supervisor's kernel objects with its own",
        "signal" "signal its supervisor",
        "limits-of-others" "set the resource limits of its supervisor",
        "priority-of-others" "make its supervisor slow";
    Root Inside:
        "setns-mount" "enter another mount namespace",
        "setns-net" "enter another network namespace",
        "setns-pidfd" "enter all of another process's namespaces";

    // What it may become, and what it may ask of the kernel.
    Root Inside:
        "become-root" "become uid 0",
        "groups" "take root's group",
        "capabilities" "raise a capability",
        "host-name" "change the host name",
        "unshare-mount" "make a mount namespace",
        "unshare-net" "make a network namespace",
        "unshare-time" "make a time namespace",
        "bpf" "make a BPF map",
        "module" "load a kernel module",
        "kexec" "load another kernel",
        "swap" "get past the check of swapon",
        "accounting" "get past the check of acct",
        "reboot" "get past the check of reboot",
        "clock" "set the clock",
        "io-ports" "take the machine's I/O ports",
        "real-time" "take a real-time priority",
        "packet-socket" "open a packet socket",
        "raw-socket" "open a raw socket";
    User Inside:
        "unshare-user" "make a user namespace, in which it would be root",
        "clone-user" "make one by clone",
        "clone3-user" "make one by clone3",
        "io-uring" "set up io_uring, which no filter sees into",
        "perf" "open a performance counter",
        "kernel-log" "read the kernel's log by syslog",
        "ia32" "call the kernel by 32-bit numbers",
        "x32" "call the kernel by x32 numbers",
        "vsock" "open a socket to the hypervisor";
    Filter Inside:
        "ptrace-child" "trace a process of its own",
        "netlink-socket" "open a netlink socket",
        "crypto-socket" "open a socket to the kernel's ciphers",
        "preallocate" "take room on the disk at a stroke",
        "setuid-file" "make a program that runs as its owner, for whoever starts it on the host",
        "setgid-file" "make a program that runs as its group, for whoever starts it on the host";
    User Inside:
        "keyring-add" "add a key to the kernel's keyrings",
        "keyring-join" "join another session keyring",
        "userfaultfd" "handle its own page faults, as exploits do",
        "terminal-input" "push input into a terminal (TIOCSTI)";

    // The network, and services of the host.
    User Inside:
        "loopback" "connect to a service on the host's loopback",
        "host-address" "connect to a service on the host's own address",
        "abstract-socket" "connect to an abstract Unix socket of the host",
        "path-socket" "connect to a Unix socket of the host",
        "dns-tunnel" "send data out in a question to a name server",
        "route-out" "find a route to the Internet",
        "interfaces" "see an interface of the host",
        "sockets-listed" "see the host's sockets in /proc/net",
        "host-name-seen" "see the host's name",
        "environment" "see a variable of whoever started it, such as TRACEPARENT";
    Net Inside:
        "metadata" "connect to 169.254.169.254, the cloud's metadata service";

    // How much it may take.
    User Alone:
        "fork-bomb" "have more processes than it may",
        "descriptors" "have more open files than it may",
        "processor" "use more of the processors than it may",
        "long-file" "make a longer file than it may",
        "memory" "take more memory than it may",
        "tmp-fill" "take more memory than it may by files in /tmp",
        "shm-fill" "take more memory than it may by files in /dev/shm",
        "tmp-inodes" "take more memory than it may by empty files in /tmp",
        "shm-inodes" "take more memory than it may by empty files in /dev/shm";
    User Outside:
        "output-flood" "write without end",
        "daemon" "leave a process behind that has its own session and parent",
        "stubborn" "outlive its time-out: signals ignored, children in sessions of their own";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_each_is_there_once() {
        let mut names: Vec<_> = ATTEMPTS.iter().map(|attempt| attempt.name).collect();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(names.iter().all(|name| name.chars().all(plain)));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ATTEMPTS.len());
    }
}
