//! A real sshd of the test's own: its port, its host key, one user's key. Nothing of the machine's own SSH is read.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Who logs in: on every machine, and no operator of a gateway that root started.
pub const LOGIN: &str = "nobody@127.0.0.1";

/// See the module. Dropped, it is ended.
pub struct Sshd {
    folder: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Sshd {
    /// Serves this machine, with these lines of configuration too.
    pub fn start(more: &str) -> Self {
        Self::at("127.0.0.1", more)
    }

    /// The same at another address.
    pub fn at(address: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // sshd reads the user's keys as that user.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = |name: &str| folder.path().join(name);
        for name in ["host", "user", "other"] {
            make_key(&file(name));
        }
        std::fs::copy(file("user.pub"), file("authorized_keys")).unwrap();
        // Its empty folder for what has not logged in yet; the package's service makes it at each boot.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let port = free_port();
        let config = format!(
            "Port {port}\nListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\nLogLevel VERBOSE\n{more}\n",
            file("host").display(),
            file("authorized_keys").display(),
        );
        std::fs::write(file("sshd_config"), config).unwrap();
        let mut child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(file("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssh-server is installed (cargo xtask test)");
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut log = String::new();
        while !log.contains("Server listening on") {
            let read = said.read_line(&mut log).unwrap();
            assert!(read > 0, "sshd does not serve:\n{log}");
        }
        // It is not to stand still for want of a reader.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let sshd = Self {
            folder,
            child,
            port,
        };
        let key = std::fs::read_to_string(sshd.file("host.pub")).unwrap();
        let known = format!("[{address}]:{port} {key}");
        std::fs::write(sshd.file("known_hosts"), known).unwrap();
        sshd
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A configuration for the client: this key (`user`, `other`), and this file of known hosts (`known_hosts`, `none`).
    pub fn client(&self, key: &str, known: &str) -> String {
        let file = self.file(&format!("ssh_{key}_{known}"));
        let mut config = String::new();
        for (name, value) in [
            ("Port", self.port.to_string()),
            ("IdentityFile", self.file(key).display().to_string()),
            ("UserKnownHostsFile", self.file(known).display().to_string()),
        ] {
            writeln!(config, "{name} {value}").unwrap();
        }
        config.push_str("GlobalKnownHostsFile none\nIdentitiesOnly yes\nIdentityAgent none\n");
        std::fs::write(&file, config).unwrap();
        file.display().to_string()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make_key(file: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(file)
        .status()
        .unwrap();
    assert!(made.success());
}

/// Free a moment ago.
pub fn free_port() -> u16 {
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    free.local_addr().unwrap().port()
}

/// A tunnel, opened by a line as it is printed. Dropped, it is ended.
pub struct Tunnel(Child);

impl Tunnel {
    /// Runs the line on this machine, until something listens at the near port.
    pub fn open(line: &str, near: u16) -> Self {
        // exec: what is ended at the end is ssh, not the shell before it.
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {line}")]);
        Self::run(shell, || {
            std::net::TcpStream::connect(("127.0.0.1", near)).is_ok()
        })
    }

    /// Runs the command until the tunnel stands.
    pub fn run(mut command: Command, stands: impl Fn() -> bool) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut tunnel = Self(child);
        let end = Instant::now() + Duration::from_secs(30);
        while !stands() {
            let ended = tunnel.0.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < end,
                "no tunnel: {ended:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        tunnel
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
