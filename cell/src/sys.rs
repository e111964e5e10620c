//! The one place with `unsafe`: descriptors that this process got from its parent have a number and no owner in the type system.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::FdFlags;

/// Nothing that was inherited, beside standard input and output, passes to a command: a gateway may have been started with descriptors that
/// it does not know. To be called while this process has one thread and before it opens what a command shall have.
pub fn keep_inherited_from_commands() -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse::<RawFd>().ok());
        if let Some(fd) = number.filter(|fd| *fd > 2) {
            // SAFETY: it was listed as open just now, no other thread closes it, and the borrow ends with this statement. The folder's own
            // descriptor is among them and is open until the loop ends.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

/// A call that an attempt to get out of a box makes and that no safe interface has. Each is made with null, or with memory of its own that is as
/// long as the kernel reads or writes, so that none can harm the process that makes it.
pub enum Ask<'a> {
    /// To trace a process.
    Trace(i32),
    /// To read eight bytes of a process' memory at an address.
    ReadMemory(i32, usize),
    /// To compare this process' memory with another's.
    Compare(i32),
    /// A key into the process keyring.
    AddKey,
    /// Another session keyring.
    JoinKeyring,
    /// A ring of one entry.
    IoUring,
    /// An array of one element.
    BpfMap,
    /// A counter of this process' time in user mode.
    Perf,
    /// Faults of user mode only.
    Userfault,
    /// To forget the kernel that is loaded for a kexec: there is none.
    Kexec,
    /// The folder with inode 2, the root of an ext4, on the file system of a descriptor.
    OpenRoot(BorrowedFd<'a>),
    /// A swap file that does not exist.
    Swap,
    /// Accounting into a file that does not exist.
    Account,
    /// With a magic number that is none.
    Reboot,
    /// The clock, to nothing.
    Clock,
    /// The newest bytes of the kernel's log.
    KernelLog,
    /// All I/O ports.
    IoPorts,
    /// No devices on the root mount.
    MountAttributes,
    /// A child with these namespaces of its own, which ends at once.
    Clone(u64),
    /// The same by clone3.
    Clone3(u64),
    /// A letter into a terminal's input.
    PushInput(BorrowedFd<'a>),
    /// The first real-time priority.
    RealTime,
    /// The bit of its owner on this file, by fchmodat2.
    OwnersBit(BorrowedFd<'a>),
    /// A new file that has that bit, by openat2.
    NewWithOwnersBit(&'a std::ffi::CStr),
    /// This process' number by the 32-bit interface.
    Ia32,
    /// The same by the x32 interface.
    X32,
}

/// The signal of a child's end.
const CHILD_ENDS: u64 = 17;

/// Asks the kernel.
pub fn ask(what: &Ask<'_>) -> std::io::Result<i64> {
    use std::os::fd::AsRawFd as _;
    let mut seen = 0_u64;
    // What a call reads or writes more than numbers; longer than any of them needs.
    let mut words = [0_u64; 16];
    match *what {
        // Where to, and where from.
        Ask::ReadMemory(_, address) => {
            words[..4].copy_from_slice(&[(&raw mut seen) as u64, 8, address as u64, 8]);
        }
        // An array, keys of 4 bytes; values of 4 bytes, one of them.
        Ask::BpfMap => words[..2].copy_from_slice(&[2 | 4 << 32, 4 | 1 << 32]),
        Ask::Perf => {
            words[0] = 1 | 64 << 32; // software, the first version's length
            words[5] = 1 | 1 << 5 | 1 << 6; // disabled, without kernel and hypervisor
        }
        // Eight bytes: inode and generation, 32 bits each.
        Ask::OpenRoot(_) => words[..2].copy_from_slice(&[8 | 1 << 32, 2]),
        Ask::MountAttributes => words[0] = 4,
        Ask::Clone3(flags) => {
            words[0] = flags;
            words[4] = CHILD_ENDS;
        }
        Ask::RealTime => words[0] = 1,
        Ask::NewWithOwnersBit(_) => {
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_CLOEXEC;
            words[..2].copy_from_slice(&[flags.cast_unsigned().into(), 0o4755]);
        }
        _ => {}
    }
    let at = words.as_mut_ptr() as usize;
    let [none, text, root] =
        [c"/portcullis/does/not/exist", c"user", c"/"].map(|text| text.as_ptr() as usize);
    let process = |pid: i32| pid.cast_unsigned() as usize;
    let here = libc::AT_FDCWD.cast_unsigned() as usize;
    // -1 and -2 as the kernel reads them: no process, and its own keyring.
    let (nobody, own) = (usize::MAX, usize::MAX - 1);
    let (number, arguments) = match *what {
        Ask::Trace(pid) => (libc::SYS_ptrace, [0x4206, process(pid), 0, 0, 0, 0]),
        Ask::ReadMemory(pid, _) => {
            let from = at + 2 * size_of::<u64>();
            (
                libc::SYS_process_vm_readv,
                [process(pid), at, 1, from, 1, 0],
            )
        }
        Ask::Compare(pid) => {
            let own = std::process::id() as usize;
            (libc::SYS_kcmp, [own, process(pid), 1, 0, 0, 0])
        }
        Ask::AddKey => (libc::SYS_add_key, [text, text, text, 4, own, 0]),
        Ask::JoinKeyring => (libc::SYS_keyctl, [1, 0, 0, 0, 0, 0]),
        Ask::IoUring => (libc::SYS_io_uring_setup, [1, at, 0, 0, 0, 0]),
        Ask::BpfMap => (libc::SYS_bpf, [0, at, 20, 0, 0, 0]),
        Ask::Perf => (libc::SYS_perf_event_open, [at, 0, nobody, nobody, 0, 0]),
        Ask::Userfault => (libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0]),
        Ask::Kexec => (libc::SYS_kexec_load, [0; 6]),
        Ask::OpenRoot(file_system) => {
            let flags = (libc::O_RDONLY | libc::O_DIRECTORY).cast_unsigned() as usize;
            let folder = process(file_system.as_raw_fd());
            (libc::SYS_open_by_handle_at, [folder, at, flags, 0, 0, 0])
        }
        Ask::Swap => (libc::SYS_swapon, [none, 0, 0, 0, 0, 0]),
        Ask::Account => (libc::SYS_acct, [none, 0, 0, 0, 0, 0]),
        Ask::Reboot => (libc::SYS_reboot, [0; 6]),
        Ask::Clock => (libc::SYS_settimeofday, [0; 6]),
        Ask::KernelLog => (libc::SYS_syslog, [3, at, 64, 0, 0, 0]),
        Ask::MountAttributes => (libc::SYS_mount_setattr, [here, root, 0, at, 32, 0]),
        Ask::Clone(flags) => (
            libc::SYS_clone,
            [
                usize::try_from(flags | CHILD_ENDS).unwrap_or(0),
                0,
                0,
                0,
                0,
                0,
            ],
        ),
        Ask::Clone3(_) => (libc::SYS_clone3, [at, 64, 0, 0, 0, 0]),
        Ask::PushInput(terminal) => {
            let terminal = process(terminal.as_raw_fd());
            (libc::SYS_ioctl, [terminal, 0x5412, text, 0, 0, 0])
        }
        Ask::RealTime => (libc::SYS_sched_setscheduler, [0, 1, at, 0, 0, 0]),
        Ask::OwnersBit(file) => {
            let (file, empty) = (process(file.as_raw_fd()), c"".as_ptr() as usize);
            let flags = libc::AT_EMPTY_PATH.cast_unsigned() as usize;
            (452, [file, empty, 0o4755, flags, 0, 0])
        }
        Ask::NewWithOwnersBit(path) => {
            let path = path.as_ptr() as usize;
            (libc::SYS_openat2, [here, path, at, 24, 0, 0])
        }
        #[cfg(target_arch = "x86_64")]
        Ask::IoPorts => (libc::SYS_iopl, [3, 0, 0, 0, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        Ask::Ia32 => return by_32_bits(),
        #[cfg(target_arch = "x86_64")]
        Ask::X32 => (0x4000_0000 | libc::SYS_getpid, [0; 6]),
        #[cfg(not(target_arch = "x86_64"))]
        Ask::IoPorts | Ask::Ia32 | Ask::X32 => return Err(rustix::io::Errno::NOSYS.into()),
    };
    let [first, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: the match above is the list of calls. Each pointer in it is null, a C string, `words` or (from there) `seen`; no call reads or
    // writes more than 128 bytes of `words` and 8 of `seen`, and both live to the end of this function. None changes this process' memory or
    // what its descriptors mean.
    let answer = unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) };
    if answer == 0 && matches!(what, Ask::Clone(_) | Ask::Clone3(_)) {
        // The child: on a copy of the memory (no CLONE_VM) of a process with one thread.
        // SAFETY: ends this process, and takes nothing but a number.
        unsafe { libc::syscall(libc::SYS_exit_group, 0_usize) };
    }
    if answer == -1 {
        return Err(std::io::Error::last_os_error());
    }
    // What the kernel may have written there.
    std::hint::black_box((words, seen));
    Ok(answer)
}

#[cfg(target_arch = "x86_64")]
fn by_32_bits() -> std::io::Result<i64> {
    let answer: i64;
    // SAFETY: getpid of the 32-bit interface takes nothing and touches no memory; the registers that old kernels clear are named.
    unsafe {
        std::arch::asm!(
            "int 0x80", inlateout("rax") 20_i64 => answer, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if answer > 0 {
        Ok(answer)
    } else {
        Err(std::io::Error::from_raw_os_error(
            i32::try_from(-answer).unwrap_or(1),
        ))
    }
}
