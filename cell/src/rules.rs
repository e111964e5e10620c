//! What the kernel refuses to a command: Landlock (files, signals, abstract sockets) and seccomp (calls). Landlock is set on one thread,
//! which then starts the command: the supervisor around it stays free, and out of the command's reach. Seccomp holds for a box from its
//! pid 1 on, which needs none of the refused calls; a command of the host gets it on that thread too.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};
use portcullis_cell::CELL_INSIDE;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use std::cell::OnceCell;
use std::collections::BTreeMap;

/// Read and execute, where they exist.
const READ: [&str; 11] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc",
    "/opt",
    "/proc",
    "/dev",
    // Its `get` and `put`.
    CELL_INSIDE,
];
/// Files of the box's control folder that are for runs too: whom to trust.
const READ_FILES: [&str; 1] = ["/run/portcullis"];
/// Everything but making devices.
const WRITE: [&str; 6] = [
    "/workspace",
    // What the operator mounts: where it is read-only, its mount is.
    "/mnt",
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    "/dev/pts",
];
/// Single files.
const WRITE_FILES: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
];

/// The rules on files for the runs of one supervisor, made for its first: in a box these paths stay what they are (its root is read-only).
/// Each run gets a domain of its own from them, so that no signal passes from one to another.
#[derive(Default)]
pub struct Domain(OnceCell<RulesetCreated>);

impl Domain {
    /// Restricts the thread that calls what is returned, as far as the kernel has Landlock.
    pub fn restrict(&self) -> Result<impl FnOnce() -> Result<(), String> + Send + use<>, String> {
        let text = |error: &dyn std::fmt::Display| format!("landlock: {error}");
        if self.0.get().is_none() {
            let _ = self.0.set(ruleset().map_err(|error| text(&error))?);
        }
        let rules = self.0.get().ok_or("landlock: no rules")?;
        let rules = rules.try_clone().map_err(|error| text(&error))?;
        Ok(move || {
            let done = rules.restrict_self();
            done.map(|_| ()).map_err(|error| text(&error))
        })
    }
}

fn ruleset() -> Result<RulesetCreated, Box<dyn std::error::Error>> {
    // ABI 6 brings the scopes: no signal and no abstract socket leaves the run. Older kernels take what they know.
    let abi = ABI::V6;
    let all = AccessFs::from_all(abi);
    let read = AccessFs::from_read(abi);
    let file = AccessFs::from_file(abi);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(abi))?
        .create()?;
    let writable = all & !AccessFs::MakeBlock & !AccessFs::MakeChar;
    let sets = [
        // Names only: `ls /` may show what the box has; what is in a file is for the rules below.
        (&["/"][..], AccessFs::ReadDir.into()),
        (&READ[..], read),
        (&READ_FILES[..], AccessFs::ReadFile.into()),
        (&WRITE[..], writable),
        (&WRITE_FILES[..], file & !AccessFs::Execute),
    ];
    for (paths, access) in sets {
        for path in paths {
            // A path that the box does not have needs no rule.
            let Ok(opened) = PathFd::new(path) else {
                continue;
            };
            let is_file = std::fs::metadata(path).is_ok_and(|data| !data.is_dir());
            let access = if is_file { access & file } else { access };
            rules = rules.add_rule(PathBeneath::new(opened, access))?;
        }
    }
    Ok(rules)
}

/// What holds for a command of the host: no Landlock rule on files (its user has the rights it has), but no signal and no abstract socket
/// leaves the run, and the same calls are refused. Netlink is there: ordinary tools ask it about the network.
///
/// A kernel before Landlock's ABI 6 knows no scopes, but keeps a domain of its own from the memory, descriptors and environment of every other
/// process, another run's of the same user too (`/proc/PID/mem`); there only signals between runs of one user remain.
pub fn host() -> Result<(), String> {
    scope_only().map_err(|error| format!("landlock: {error}"))?;
    for program in programs(&[1, 2, 10, 16], false)? {
        seccompiler::apply_filter(&program).map_err(|error| format!("seccomp: {error}"))?;
    }
    Ok(())
}

/// A right on files that no command without root has anyway: a ruleset that handles nothing makes no domain.
fn no_devices() -> landlock::BitFlags<AccessFs> {
    AccessFs::MakeBlock | AccessFs::MakeChar
}

fn scope_only() -> Result<(), Box<dyn std::error::Error>> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(no_devices())?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    Ok(())
}

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EOPNOTSUPP: u32 = 95;
const EAFNOSUPPORT: u32 = 97;

/// Applies the seccomp filters to this thread and all that it starts. No-new-privileges must be set. With `debug` a process may look
/// into others as a debugger does: Landlock still keeps it within its own run.
pub fn seccomp(debug: bool) -> Result<(), String> {
    for program in programs(&[1, 2, 10], debug)?
        .into_iter()
        .chain([no_preallocation()?])
        .chain(no_set_ids()?)
    {
        seccompiler::apply_filter(&program).map_err(|error| format!("seccomp: {error}"))?;
    }
    Ok(())
}

/// Room on the disk cannot be taken at a stroke, only by writing. Punching holes (2) gives
/// room back. The C library writes zeros where it is refused so.
fn no_preallocation() -> Result<BpfProgram, String> {
    let takes =
        SeccompRule::new(vec![condition(1, SeccompCmpOp::MaskedEq(2), 0)?]).map_err(text)?;
    compile(
        BTreeMap::from([(calls::FALLOCATE, vec![takes])]),
        EOPNOTSUPP,
    )
}

/// No file that whoever starts it runs as its owner or group: a folder that the operator mounts, or the workspace, is seen by others of the
/// host, and there the box's `nosuid` does not hold. As systemd's `RestrictSUIDSGID=`. The modes of openat2 lie in memory where no filter can
/// look; who is told that there is none takes openat.
fn no_set_ids() -> Result<[BpfProgram; 2], String> {
    let set = [0o4000_u64, 0o2000];
    let mut denied = BTreeMap::new();
    for (call, mode) in calls::MODES {
        let rules = set.iter().map(|&bit| masked(mode, bit));
        denied.insert(call, rules.collect::<Result<Vec<_>, _>>()?);
    }
    // Only where one is made: else what is in the mode's place says nothing.
    for (call, flags) in calls::OPENS {
        let mut rules = Vec::new();
        for makes in [O_CREAT, O_TMPFILE] {
            for bit in set {
                let rule = vec![
                    condition(flags, SeccompCmpOp::MaskedEq(makes), makes)?,
                    condition(flags + 1, SeccompCmpOp::MaskedEq(bit), bit)?,
                ];
                rules.push(SeccompRule::new(rule).map_err(text)?);
            }
        }
        denied.insert(call, rules);
    }
    let openat2 = BTreeMap::from([(calls::OPENAT2, Vec::new())]);
    Ok([compile(denied, EPERM)?, compile(openat2, ENOSYS)?])
}

const O_CREAT: u64 = 0o100;
/// Without the bit of a folder that the C library's constant has beside.
const O_TMPFILE: u64 = 0o20_000_000;

/// `families`: of sockets that may exist (1 Unix, 2 IPv4, 10 IPv6, 16 netlink). `debug`: without [`calls::DEBUGGERS`].
fn programs(families: &[u64], debug: bool) -> Result<Vec<BpfProgram>, String> {
    let debuggers = calls::DEBUGGERS.iter().filter(|_| !debug);
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = calls::DENIED
        .iter()
        .chain(debuggers)
        .map(|&call| (call, Vec::new()))
        .collect();
    // clone: a new namespace of any kind (the flags are its first argument on both architectures).
    denied.insert(
        calls::CLONE,
        NEW_NAMESPACES
            .iter()
            .map(|&flag| masked(0, flag))
            .collect::<Result<_, _>>()?,
    );
    // ioctl: pushing input into a terminal.
    denied.insert(
        calls::IOCTL,
        [0x5412, 0x541C]
            .iter()
            .map(|&request| equal(1, request))
            .collect::<Result<_, _>>()?,
    );
    // Another process' resource limits (its user may set them, and Landlock knows no such scope). Own ones go by pid 0.
    let foreign_limits = SeccompRule::new(vec![
        condition(0, SeccompCmpOp::Ne, 0)?,
        // A pointer: all of it, or one at a whole multiple of 4 GiB would pass.
        SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0).map_err(text)?,
    ])
    .map_err(text)?;
    denied.insert(calls::PRLIMIT64, vec![foreign_limits]);
    // Priorities of others, of groups and of users: a supervisor's would be its later runs'. Threads are moved between processors by the C
    // library under their own numbers, so that stays; a supervisor looks at that itself.
    let none_but = |process: u64| -> Result<Vec<SeccompRule>, String> {
        [(0, process), (1, 0)]
            .iter()
            .map(|&(at, value)| {
                SeccompRule::new(vec![condition(at, SeccompCmpOp::Ne, value)?]).map_err(text)
            })
            .collect()
    };
    denied.insert(calls::SETPRIORITY, none_but(0)?);
    denied.insert(calls::IOPRIO_SET, none_but(1)?);
    let foreign = SeccompRule::new(vec![condition(0, SeccompCmpOp::Ne, 0)?]).map_err(text)?;
    denied.insert(calls::SCHED_SETATTR, vec![foreign]);
    // Sockets by type that may exist, not by those that may not.
    let other = families
        .iter()
        .map(|&family| condition(0, SeccompCmpOp::Ne, family))
        .collect::<Result<_, _>>()?;
    let other_family = SeccompRule::new(other).map_err(text)?;
    let sockets = BTreeMap::from([
        (calls::SOCKET, vec![other_family.clone()]),
        (calls::SOCKETPAIR, vec![other_family]),
    ]);
    Ok(vec![
        compile(sockets, EAFNOSUPPORT)?,
        compile(denied, EPERM)?,
        // The flags of clone3 lie in memory where no filter can look: the C library then falls back to clone.
        compile(BTreeMap::from([(calls::CLONE3, Vec::new())]), ENOSYS)?,
        foreign_calls(),
    ])
}

// Without time (0x80): clone has its exit signal in those bits, so only clone3 and unshare can ask for one.
const NEW_NAMESPACES: [u64; 7] = [
    0x0002_0000, // mount
    0x0200_0000, // cgroup
    0x0400_0000, // uts
    0x0800_0000, // ipc
    0x1000_0000, // user
    0x2000_0000, // pid
    0x4000_0000, // net
];

fn masked(argument: u8, bit: u64) -> Result<SeccompRule, String> {
    SeccompRule::new(vec![condition(argument, SeccompCmpOp::MaskedEq(bit), bit)?]).map_err(text)
}

fn equal(argument: u8, value: u64) -> Result<SeccompRule, String> {
    SeccompRule::new(vec![condition(argument, SeccompCmpOp::Eq, value)?]).map_err(text)
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
    // The kernel looks at the lower half of these arguments only, so the upper half must not hide them from the filter.
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(text)
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: u32) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(text)?;
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        arch,
    )
    .and_then(BpfProgram::try_from)
    .map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    format!("seccomp: {error}")
}

/// On x86-64 the x32 calls share the architecture number and would pass every rule above: refuse them by their bit.
fn foreign_calls() -> BpfProgram {
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        op(0x20, 0, 0, 0),                    // load the call's number
        op(0x35, 0, 1, 0x4000_0000),          // at or above the x32 bit?
        op(0x06, 0, 0, 0x0005_0000 | ENOSYS), // errno
        op(0x06, 0, 0, 0x7fff_0000),          // allow
    ]
}

#[cfg(target_arch = "x86_64")]
mod calls {
    pub const CLONE: i64 = 56;
    pub const CLONE3: i64 = 435;
    pub const FALLOCATE: i64 = 285;
    pub const IOCTL: i64 = 16;
    pub const IOPRIO_SET: i64 = 251;
    pub const PRLIMIT64: i64 = 302;
    pub const SCHED_SETATTR: i64 = 314;
    pub const SETPRIORITY: i64 = 141;
    pub const SOCKET: i64 = 41;
    pub const SOCKETPAIR: i64 = 53;
    pub const OPENAT2: i64 = 437;
    /// open, openat: where their flags are; the mode is behind.
    pub const OPENS: [(i64, u8); 2] = [(2, 1), (257, 2)];
    /// chmod, fchmod, fchmodat, fchmodat2, creat, mknod, mknodat: where their mode is. (The kernel makes no folder with such a mode.)
    pub const MODES: [(i64, u8); 7] = [
        (90, 1),
        (91, 1),
        (268, 2),
        (452, 2),
        (85, 1),
        (133, 1),
        (259, 2),
    ];
    /// ptrace, process_vm_readv, process_vm_writev, process_madvise, kcmp, pidfd_getfd.
    pub const DEBUGGERS: [i64; 6] = [101, 310, 311, 440, 312, 438];
    pub const DENIED: [i64; 46] = [
        248, 249, 250, // add_key, request_key, keyctl
        165, 166, 155, 161, 428, 429, 430, 431, 432, 433, 442,
        467, // mount … open_tree_attr, with pivot_root and chroot
        272, 308, // unshare, setns
        321, 298, 425, 426, 427, 323, // bpf, perf_event_open, io_uring_*, userfaultfd
        246, 320, 175, 313, 176, 304, // kexec_*, modules, open_by_handle_at
        163, 167, 168, 169, 170, 171, 172, 173,
        103, // acct, swap, reboot, names, io ports, syslog
        179, 443, 153, 212, // quotactl, quotactl_fd, vhangup, lookup_dcookie
        159, 164, 227, 305, // clocks
    ];
}

#[cfg(target_arch = "aarch64")]
mod calls {
    pub const CLONE: i64 = 220;
    pub const CLONE3: i64 = 435;
    pub const FALLOCATE: i64 = 47;
    pub const IOCTL: i64 = 29;
    pub const IOPRIO_SET: i64 = 30;
    pub const PRLIMIT64: i64 = 261;
    pub const SCHED_SETATTR: i64 = 274;
    pub const SETPRIORITY: i64 = 140;
    pub const SOCKET: i64 = 198;
    pub const SOCKETPAIR: i64 = 199;
    pub const OPENAT2: i64 = 437;
    /// openat: where its flags are; the mode is behind.
    pub const OPENS: [(i64, u8); 1] = [(56, 2)];
    /// fchmod, fchmodat, fchmodat2, mknodat: where their mode is.
    pub const MODES: [(i64, u8); 4] = [(52, 1), (53, 2), (452, 2), (33, 2)];
    /// ptrace, process_vm_readv, process_vm_writev, process_madvise, kcmp, pidfd_getfd.
    pub const DEBUGGERS: [i64; 6] = [117, 270, 271, 440, 272, 438];
    pub const DENIED: [i64; 44] = [
        217, 218, 219, // add_key, request_key, keyctl
        40, 39, 41, 51, 428, 429, 430, 431, 432, 433, 442,
        467, // mount … open_tree_attr, with pivot_root and chroot
        97, 268, // unshare, setns
        280, 241, 425, 426, 427, 282, // bpf, perf_event_open, io_uring_*, userfaultfd
        104, 294, 105, 273, 106, 265, // kexec_*, modules, open_by_handle_at
        89, 224, 225, 142, 161, 162, 116, // acct, swap, reboot, names, syslog
        60, 443, 58, 18, // quotactl, quotactl_fd, vhangup, lookup_dcookie
        171, 170, 112, 266, // adjtimex, settimeofday, clock_settime, clock_adjtime
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_within_the_kernels_limit() {
        let programs = programs(&[1, 2, 10, 16], false).unwrap();
        for program in programs
            .into_iter()
            .chain([no_preallocation().unwrap()])
            .chain(no_set_ids().unwrap())
        {
            assert!(!program.is_empty() && program.len() < 4096);
        }
    }

    /// The bug: on a kernel without scopes (before 6.12) a host command had no domain at all, and wrote into the memory of another run's.
    #[test]
    fn a_host_command_has_a_domain_where_the_kernel_knows_no_scopes() {
        let status = std::thread::spawn(|| {
            // What such a kernel keeps of the ruleset.
            let rules = Ruleset::default()
                .handle_access(no_devices() & AccessFs::from_all(ABI::V1))
                .unwrap();
            rules.create().unwrap().restrict_self().unwrap().ruleset
        });
        assert_eq!(
            status.join().unwrap(),
            landlock::RulesetStatus::FullyEnforced
        );
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut calls = [&calls::DENIED[..], &calls::DEBUGGERS].concat();
        calls.sort_unstable();
        calls.dedup();
        let both = calls::DENIED.len() + calls::DEBUGGERS.len();
        assert_eq!(calls.len(), both);
    }
}
