//! The listening sockets. Bound before the tree starts and kept outside it, so that a restart of the edge keeps its
//! port.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Newcomers whom the kernel keeps until they are taken; it cuts it to `net.core.somaxconn` (listen(2)).
const BACKLOG: i32 = 4096;

/// The open doors. Cloning shares the sockets.
#[derive(Debug, Clone)]
pub struct Doors {
    tcp: Arc<TcpListener>,
    control: Arc<UnixListener>,
    shared: Option<Arc<UnixListener>>,
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
    /// Somebody else could put a socket of his own there.
    #[error("cannot listen on {}: {}", .0.display(), .1)]
    Shared(PathBuf, String),
}

impl Doors {
    /// Opens the TCP door, `run/control.sock`, `run/agent.sock`, and the control socket for users besides our own unless its
    /// path is empty. The state directory's lock is held: a socket file that is there is
    /// left from a process that ended.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn open(address: SocketAddr, run: &Path, shared: &Path) -> Result<Self, ListenError> {
        let tcp = TcpListener::bind(address).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse(address),
            _ => ListenError::Tcp(address, e),
        })?;
        // The library asks for 128: a burst would be lost for a second, until it is sent again.
        rustix::net::listen(&tcp, BACKLOG).map_err(|e| ListenError::Tcp(address, e.into()))?;
        let address = tcp.local_addr().map_err(|e| ListenError::Tcp(address, e))?;
        tcp.set_nonblocking(true)
            .map_err(|e| ListenError::Tcp(address, e))?;
        let open = |name: &str, mode: u32| {
            let path = run.join(name);
            unix(run, &path, mode).map_err(|e| ListenError::Unix(path, e))
        };
        let control = open("control.sock", 0o600)?;
        // Whoever the folder lets in may knock: without a token nobody gets further.
        let agent = open("agent.sock", 0o660)?;
        let shared = match shared.parent() {
            Some(folder) => Some(Arc::new(open_shared(folder, shared)?)),
            None => None,
        };
        Ok(Self {
            tcp: Arc::new(tcp),
            control: Arc::new(control),
            shared,
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

    pub(super) fn shared(&self) -> io::Result<Option<tokio::net::UnixListener>> {
        let shared = self.shared.as_ref();
        shared
            .map(|shared| tokio::net::UnixListener::from_std(shared.try_clone()?))
            .transpose()
    }
}

/// Whoever may write the folder could take the socket's place and be taken for the gateway.
fn open_shared(folder: &Path, path: &Path) -> Result<UnixListener, ListenError> {
    use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
    let no = |why: String| ListenError::Shared(path.to_owned(), why);
    let failed = |e: io::Error| ListenError::Unix(path.to_owned(), e);
    match std::fs::DirBuilder::new().mode(0o755).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(folder).map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || ![0, own].contains(&meta.uid()) || meta.mode() & 0o022 != 0 {
        return Err(no(format!(
            "{} must be a folder of root or of uid {own} that nobody else may write (chmod go-w)",
            folder.display()
        )));
    }
    for above in folder.ancestors().skip(1) {
        let meta = std::fs::symlink_metadata(above).map_err(failed)?;
        // Where others may write, the sticky bit keeps them from what is not theirs.
        if ![0, own].contains(&meta.uid()) || meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0
        {
            return Err(no(format!(
                "others may take away what lies in {}",
                above.display()
            )));
        }
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(no("something that is no socket is there".to_owned()));
        }
        _ => {}
    }
    unix(folder, path, 0o666).map_err(failed)
}

fn unix(run: &Path, path: &Path, mode: u32) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Through the folder's descriptor: a path over 107 bytes does not fit a socket address (unix(7)).
    let folder = std::fs::File::open(run)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
