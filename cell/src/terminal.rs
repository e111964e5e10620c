//! A run's terminal: a pair of the box's own devpts, and the process that makes one end of it its controlling terminal.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use portcullis_cell::Size;
use rustix::process::{Pid, getpgid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};

use crate::rules::Domain;
use crate::start::refused;
use crate::tree;

/// Both ends of a new one: ours, the command's.
///
/// # Errors
/// This box has none to give.
pub fn open(size: Size) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    // A supervisor leads a session: without NOCTTY it would become its own.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    resize(&ours, size)?;
    // By the pair itself, not by a path that something in the box could have put there.
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    Ok((ours, theirs))
}

/// Tells what is in its foreground, too (WINCH).
pub fn resize(terminal: impl AsFd, size: Size) -> rustix::io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size)
}

/// The group in its foreground, while something of this process' run is in it.
pub fn foreground(terminal: impl AsFd) -> Option<Pid> {
    let group = tcgetpgrp(terminal).ok()?;
    let in_it = |pid: &Pid| getpgid(Some(*pid)).is_ok_and(|of| of == group);
    tree::descendants().iter().any(in_it).then_some(group)
}

/// Entry of `portcullis-cell tty PROGRAM NAME ARGUMENT...`, with a terminal as standard input: leads a session whose terminal that is, and
/// executes the program under the rules of a run. Between a fork and its exec that takes unsafe code; a process of its own does not.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let failed = |code: u8, text: String| {
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            format!("portcullis: {text}\n").as_bytes(),
        );
        ExitCode::from(code)
    };
    let (Some(program), Some(name)) = (arguments.next(), arguments.next()) else {
        return failed(125, "tty PROGRAM NAME ARGUMENT...".to_owned());
    };
    let owned =
        rustix::process::setsid().and_then(|_| rustix::process::ioctl_tiocsctty(std::io::stdin()));
    if let Err(error) = owned {
        return failed(125, format!("the terminal: {error}"));
    }
    let domain = Domain::default();
    if let Err(text) = domain.restrict().and_then(|restrict| restrict()) {
        return failed(125, text);
    }
    let error = Command::new(&program).arg0(name).args(arguments).exec();
    let refusal = refused(program.as_ref(), &error);
    failed(refusal.code, refusal.text)
}
