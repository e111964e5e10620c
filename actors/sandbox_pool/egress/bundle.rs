//! The authorities that a box trusts, as a file in its control folder, which it sees read-only anyway: no mount more, and nothing of the host's
//! is changed. Where it lies follows from the box's folder alone ([`crate::sandbox_pool::spec::AUTHORITIES_INSIDE`] is what it is called inside).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::process::{Gid, Uid};

/// Its name in the control folder.
const NAME: &str = "ca.pem";
/// While it is written.
const NEW: &str = "ca.new";

/// Puts it there, whole or not at all; the box's group can read it.
pub fn write(folder: impl AsFd, gid: u32, text: &str) -> io::Result<()> {
    match unlinkat(&folder, NEW, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(&folder, NEW, flags, Mode::from_raw_mode(0o600))?;
    if rustix::process::geteuid().is_root() {
        rustix::fs::fchown(&made, Some(Uid::ROOT), Some(Gid::from_raw(gid)))?;
    }
    let mut file = File::from(made);
    file.write_all(text.as_bytes())?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o440))?;
    renameat(&folder, NEW, &folder, NAME)?;
    Ok(())
}
