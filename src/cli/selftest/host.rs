//! What there is on this machine to be reached from a box: a file, services, a process. All of it goes with the value.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Baits, and the word by which each is known.
pub struct Host {
    folder: PathBuf,
    shared: PathBuf,
    process: Child,
    /// Keys and values, as `portcullis-cell attempt` takes them.
    pub given: Vec<(&'static str, String)>,
}

impl Host {
    /// Puts everything out.
    ///
    /// # Errors
    /// A file, a socket or a process cannot be made.
    pub fn lay_out() -> io::Result<Self> {
        let random = || super::random().map_err(|failure| io::Error::other(failure.message));
        let token = format!("bait-{}", random()?);
        let folder = std::env::temp_dir().join(format!("portcullis-selftest-{}", random()?));
        fs::DirBuilder::new().mode(0o755).create(&folder)?;
        let shared = PathBuf::from("/dev/shm").join(format!("portcullis-selftest-{}", random()?));
        let process = Command::new("/bin/sh")
            // Ends when we do: its input is ours.
            .args(["-c", "read -r end", "sh", &token])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = process.inspect_err(|_| drop(fs::remove_dir_all(&folder)))?;
        let mut host = Self {
            folder,
            shared,
            process,
            given: vec![],
        };
        host.put(&token)?;
        Ok(host)
    }

    fn put(&mut self, token: &str) -> io::Result<()> {
        // Everybody may, so that only a box stands between.
        let open = |path: &PathBuf| -> io::Result<()> {
            fs::write(path, token)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o666))
        };
        let canary = self.folder.join("canary");
        open(&canary)?;
        open(&self.shared)?;
        let word: Arc<str> = token.into();

        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut given = vec![("tcp", tcp.local_addr()?.to_string())];
        serve(move || tcp.accept().map(|(stream, _)| stream), &word);
        if let Some(address) = own_address()
            && let Ok(listener) = TcpListener::bind((address, 0))
        {
            given.push(("address", listener.local_addr()?.to_string()));
            serve(move || listener.accept().map(|(stream, _)| stream), &word);
        }
        let name = format!("portcullis-{token}");
        let listener = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name)?)?;
        given.push(("abstract", name));
        serve(move || listener.accept().map(|(stream, _)| stream), &word);
        let path = self.folder.join("service");
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        given.push(("path", path.display().to_string()));
        serve(move || listener.accept().map(|(stream, _)| stream), &word);
        let names = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        given.push(("dns", names.local_addr()?.to_string()));
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((count, from)) = names.recv_from(&mut question) {
                let _ = names.send_to(&question[..count], from);
            }
        });

        let disk = fs::metadata(&canary)?.dev();
        let (major, minor) = (rustix::fs::major(disk), rustix::fs::minor(disk));
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let shared = self.shared.file_name().unwrap_or_default();
        given.extend([
            ("canary", canary.display().to_string()),
            ("disk", format!("{major}:{minor}")),
            ("host", host),
            ("shm", shared.to_string_lossy().into_owned()),
            ("token", token.to_owned()),
        ]);
        self.given = given;
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.shared);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whoever comes is told the word. The thread ends with this process.
fn serve<S: Write + Send + 'static>(
    mut accept: impl FnMut() -> io::Result<S> + Send + 'static,
    word: &Arc<str>,
) {
    let word = word.clone();
    std::thread::spawn(move || {
        while let Ok(mut stream) = accept() {
            let _ = stream.write_all(word.as_bytes());
        }
    });
}

/// The first address of this machine that is not its loopback's.
fn own_address() -> Option<Ipv4Addr> {
    let mut found = nix::ifaddrs::getifaddrs().ok()?;
    found.find_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        (!address.is_loopback()).then_some(address)
    })
}
