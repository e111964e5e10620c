//! The listening sockets. Bound before the tree starts and kept outside it, so that a restart of the edge keeps its
//! port.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The open doors. Cloning shares the sockets.
#[derive(Debug, Clone)]
pub struct Doors {
    tcp: Arc<TcpListener>,
    control: Arc<UnixListener>,
    agent: Arc<UnixListener>,
    address: SocketAddr,
}

/// A door that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error("cannot listen on {0}: another program does already")]
    InUse(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Tcp(SocketAddr, io::Error),
    /// The Unix socket.
    #[error("cannot listen on {}: {}", .0.display(), .1)]
    Unix(PathBuf, io::Error),
}

impl Doors {
    /// Opens the TCP door, `run/control.sock` and `run/agent.sock`. The state directory's lock is held: a socket file that is there is
    /// left from a process that ended.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn open(address: SocketAddr, run: &Path) -> Result<Self, ListenError> {
        let tcp = TcpListener::bind(address).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse(address),
            _ => ListenError::Tcp(address, e),
        })?;
        let address = tcp.local_addr().map_err(|e| ListenError::Tcp(address, e))?;
        tcp.set_nonblocking(true)
            .map_err(|e| ListenError::Tcp(address, e))?;
        let open = |name: &str, mode: u32| {
            let path = run.join(name);
            unix(run, name, mode).map_err(|e| ListenError::Unix(path, e))
        };
        let control = open("control.sock", 0o600)?;
        // Whoever the folder lets in may knock: without a token nobody gets further.
        let agent = open("agent.sock", 0o660)?;
        Ok(Self {
            tcp: Arc::new(tcp),
            control: Arc::new(control),
            agent: Arc::new(agent),
            address,
        })
    }

    /// Where TCP listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn tcp(&self) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.tcp.try_clone()?)
    }

    pub(super) fn control(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.control.try_clone()?)
    }

    pub(super) fn agent(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.agent.try_clone()?)
    }
}

fn unix(run: &Path, name: &str, mode: u32) -> io::Result<UnixListener> {
    let path = run.join(name);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Through the folder's descriptor: a path over 107 bytes does not fit a socket address (unix(7)).
    let folder = std::fs::File::open(run)?;
    let short = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
