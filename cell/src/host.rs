//! A command of the host, outside any box: what the gateway opened and a person approved, by descriptor, as another user.
//!
//! The supervisor keeps the gateway's own user, so that the command can neither signal nor trace it; the command gives it up. The
//! descriptors come with one byte over the control channel, before its first frame.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::Mode;
use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::start::NotStarted;

/// Processes and threads of the command's user, all of its runs together.
const MOST_PROCESSES: u64 = 1024;
/// Descriptors of one command: program, script, copies of what its words name, folder.
const MOST_FDS: usize = 3 + 16;

/// How the gateway wants a host command started.
#[derive(Debug, Default)]
pub struct Host {
    /// At which word of argv, and from which byte of it on, the path of each given descriptor stands.
    given: Vec<(usize, usize)>,
    cwd_is: Option<(u64, u64)>,
    user: Option<(u32, u32)>,
    fds: Vec<OwnedFd>,
}

/// Of `portcullis-cell host [--give WORD:BYTE]... [--cwd-is DEV:INO] [--user UID:GID]`. Over the channel come the program's descriptor, one
/// for each `--give` in their order (the command inherits it, and its path stands in that word from that byte on), and the folder's
/// without `--cwd-is`. Without `--user` the user stays (a gateway that is not root, inside bubblewrap).
pub fn options(mut arguments: impl Iterator<Item = String>) -> Result<Host, String> {
    let mut host = Host::default();
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?;
        let wrong = || format!("{name} {value}: not understood");
        let pair = || value.split_once(':').ok_or_else(wrong);
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        match name.as_str() {
            "--give" => {
                let (word, byte) = pair()?;
                let place = |text: &str| text.parse::<usize>().map_err(|_| wrong());
                host.given.push((place(word)?, place(byte)?));
            }
            "--cwd-is" => {
                let (dev, ino) = pair()?;
                host.cwd_is = Some((number(dev)?, number(ino)?));
            }
            "--user" => {
                let (uid, gid) = pair()?;
                let id = |text| number(text).and_then(|id| u32::try_from(id).map_err(|_| wrong()));
                host.user = Some((id(uid)?, id(gid)?));
            }
            _ => return Err(format!("unknown option {name}")),
        }
    }
    let (uid, gid) = host.user.unwrap_or((
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    ));
    if uid == 0 || gid == 0 {
        return Err("a host command never runs as uid or gid 0".to_owned());
    }
    Ok(host)
}

impl Host {
    /// Takes the descriptors. One byte, so that no frame is read with them.
    pub fn receive(&mut self, control: impl AsFd) -> Result<(), String> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0; 1];
        let got = recvmsg(
            control,
            &mut [IoSliceMut::new(&mut byte)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(|error| format!("descriptors: {error}"))?;
        self.fds = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let wanted = 1 + self.given.len() + usize::from(self.cwd_is.is_none());
        if got.bytes == 1 && self.fds.len() == wanted {
            Ok(())
        } else {
            Err(format!(
                "{} descriptors came, {wanted} are needed",
                self.fds.len()
            ))
        }
    }

    /// Goes to the folder, leaves what is given open for the command, and says what to execute.
    pub fn prepare(&self, cwd: &str) -> Result<String, NotStarted> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            NotStarted::new(125, format!("{what}: {error}"))
        };
        let no_folder =
            |error: &dyn std::fmt::Display| NotStarted::new(126, format!("{cwd}: {error}"));
        match (self.cwd_is, self.fds.last()) {
            (None, Some(folder)) => {
                rustix::process::fchdir(folder).map_err(|error| no_folder(&error))?;
            }
            (is, _) => {
                rustix::process::chdir(cwd).map_err(|error| no_folder(&error))?;
                let here = std::fs::metadata(".").map_err(|error| no_folder(&error))?;
                if is != Some((here.dev(), here.ino())) {
                    return Err(no_folder(&"changed meanwhile"));
                }
            }
        }
        rustix::process::umask(Mode::from_raw_mode(0o077));
        if self.user.is_some() {
            let most = Rlimit {
                current: Some(MOST_PROCESSES),
                maximum: Some(MOST_PROCESSES),
            };
            setrlimit(Resource::Nproc, most).map_err(|error| failed("process limit", &error))?;
        }
        for (_, given) in self.given() {
            rustix::io::fcntl_setfd(given, FdFlags::empty())
                .map_err(|error| failed("what is handed over", &error))?;
        }
        let program = self.fds.first().map_or(-1, AsRawFd::as_raw_fd);
        Ok(format!("/proc/self/fd/{program}"))
    }

    /// The arguments, with what is given by its descriptor, as the kernel starts a script.
    pub fn argv(&self, argv: &[String]) -> Result<Vec<String>, NotStarted> {
        let mut argv = argv.to_vec();
        for ((word, byte), given) in self.given() {
            let place = argv.get_mut(*word).filter(|w| w.is_char_boundary(*byte));
            // Without it the name would be opened.
            let place = place.ok_or_else(|| NotStarted::new(125, "no such word to replace"))?;
            place.truncate(*byte);
            place.push_str(&format!("/proc/self/fd/{}", given.as_raw_fd()));
        }
        Ok(argv)
    }

    fn given(&self) -> impl Iterator<Item = (&(usize, usize), &OwnedFd)> {
        self.given.iter().zip(self.fds.iter().skip(1))
    }

    /// Who the command becomes: std drops the supplementary groups with the user.
    pub fn become_user(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.user {
            command.gid(gid).uid(uid);
        }
    }
}
