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
