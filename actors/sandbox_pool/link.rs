//! The host's end of a box's link. Everything that comes from it was sent by something that runs beside an agent's commands: it is
//! bounded, checked, and believed for nothing but what to show.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use portcullis_cell::{Decoder, Frame, FrameError, PROTO, wipe};
use rustix::fs::{AtFlags, Mode};
use rustix::process::{Gid, Uid};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, timeout_at};

use super::folders;

/// How long a peer of the right pid may take to say HELLO.
const HELLO_WITHIN: Duration = Duration::from_secs(2);
/// Bytes read at once.
const READ: usize = 64 * 1024;

/// Why there is no link, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nothing that may speak for the box has spoken in time.
    #[error("the box's cell has not connected in time ({refused} others were refused)")]
    Silent {
        /// Connections that were closed: wrong pid, wrong nonce, no HELLO.
        refused: u32,
    },
    /// The socket failed or ended.
    #[error("the box's link ended: {0}")]
    Io(#[from] io::Error),
    /// The cell sent what it may not.
    #[error("the box broke its protocol: {0}")]
    Protocol(String),
}

impl From<FrameError> for LinkError {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// Makes the control folder (0750, group `gid`) where it is missing and listens on `name` in it, for the box's group. The descriptor
/// must live as long as the socket: its number is in the address that was bound. Must be called on the runtime.
pub fn listen(run_dir: &Path, name: &str, gid: u32) -> io::Result<(UnixListener, OwnedFd)> {
    let folder = folders::run_dir(run_dir, gid)?;
    match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    // Through the descriptor: the folder cannot be swapped, and the path never exceeds the 107 bytes of an address.
    let socket = UnixListener::bind(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))?;
    if rustix::process::geteuid().is_root() {
        rustix::fs::chownat(
            &folder,
            name,
            Some(Uid::ROOT),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    rustix::fs::chmodat(&folder, name, Mode::from_raw_mode(0o660), AtFlags::empty())?;
    Ok((socket, folder))
}

/// The socket that one box's cell dials.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    // Keeps the folder's descriptor: its number is in the address that was bound.
    _folder: OwnedFd,
}

impl Listener {
    /// Listens on `s` of the control folder, as [`listen`].
    pub fn bind(run_dir: &Path, gid: u32) -> io::Result<Self> {
        let (socket, folder) = listen(run_dir, "s", gid)?;
        Ok(Self {
            socket,
            _folder: folder,
        })
    }

    /// Waits for the box's cell: the peer whose pid the kernel says is `init_pid`, and which knows the nonce, where there is one. Others are
    /// closed unheard.
    ///
    /// # Errors
    /// [`LinkError::Silent`] when `within` is over.
    pub async fn accept(
        &self,
        init_pid: u32,
        nonce: Option<&str>,
        within: Duration,
    ) -> Result<Link, LinkError> {
        let until = Instant::now() + within;
        let mut refused = 0;
        loop {
            let Ok(accepted) = timeout_at(until, self.socket.accept()).await else {
                return Err(LinkError::Silent { refused });
            };
            let (stream, _) = accepted?;
            let pid = stream
                .peer_cred()?
                .pid()
                .and_then(|pid| u32::try_from(pid).ok());
            if pid == Some(init_pid) {
                let mut link = Link::new(stream);
                let hello = timeout_at(until.min(Instant::now() + HELLO_WITHIN), link.next()).await;
                if let Ok(Ok(Frame::Hello { proto: PROTO, nonce: said })) = hello
                    // No secret (it stands in the cell's command line): it tells this box's start from an earlier one.
                    && nonce.is_none_or(|nonce| said == nonce)
                {
                    link.queue(&Frame::Hello {
                        proto: PROTO,
                        nonce: String::new(),
                    })?;
                    return Ok(link);
                }
            }
            refused += 1;
        }
    }
}

/// A link whose peer has proven to be the box's cell.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    scratch: Vec<u8>,
}

impl Link {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::new(),
            out: Vec::new(),
            sent: 0,
            scratch: vec![0; READ],
        }
    }

    /// Queues a frame; it goes out in [`Self::next`].
    ///
    /// # Errors
    /// The frame is longer than a frame may be; nothing was queued.
    pub fn queue(&mut self, frame: &Frame) -> Result<(), FrameError> {
        frame.encode(&mut self.out)
    }

    /// Sends what is queued and waits for the next frame. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Frame, LinkError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            self.write()?;
            let interest = if self.out.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let ready = self.stream.ready(interest).await?;
            if ready.is_readable() || ready.is_read_closed() {
                match self.stream.try_read(&mut self.scratch) {
                    Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                    Ok(count) => self.decoder.push(&self.scratch[..count]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match self.stream.try_write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // A run's variables may be secrets.
        wipe(&mut self.out);
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Bytes that the cell has not taken yet.
    pub fn pending(&self) -> usize {
        self.out.len() - self.sent
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
