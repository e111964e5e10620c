//! Engines of an ordinary user, each on a socket and in a folder of its own: Docker under `rootlesskit`, and Podman.
//!
//! They need a user whose service manager runs and was given control groups of version 2 (`cargo xtask long cgroup2` has a machine
//! with one), so that they are tried only where somebody says that they are there.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// As Debian's `docker.io` and `rootlesskit` have it. Ends with its input, and leaves nothing: what it has stored belongs to users that only
/// a namespace of its own has.
const DOCKER: &str = r#"
folder=$1
echo '{}' > "$folder/daemon.json"
export DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS="--state-dir=$folder/kit"
sh /usr/share/docker.io/contrib/dockerd-rootless.sh --config-file "$folder/daemon.json" --host "unix://$folder/s" --data-root "$folder/data" \
    --exec-root "$folder/exec" --pidfile "$folder/dockerd.pid" --bridge=none --iptables=false --ip6tables=false > "$folder/log" 2>&1 &
engine=$!
while read -r word; do :; done
kill "$engine"
wait "$engine"
rootlesskit rm -rf "$folder/data" "$folder/exec"
rm -rf "$folder"
"#;

const PODMAN: &str = r#"
folder=$1
export CONTAINERS_CONF=$folder/containers.conf
printf '[engine]\nevents_logger = "file"\n' > "$CONTAINERS_CONF"
with="--root $folder/root --runroot $folder/run --tmpdir $folder/tmp --storage-driver vfs"
podman $with system service --time 0 "unix://$folder/s" > "$folder/log" 2>&1 &
engine=$!
while read -r word; do :; done
kill "$engine"
wait "$engine"
podman $with rm --all --force --time 0 > /dev/null 2>&1
podman unshare rm -rf "$folder/root" "$folder/run"
rm -rf "$folder"
"#;

/// Whether somebody says that they are there.
pub fn is_wanted() -> bool {
    std::env::var_os("PORTCULLIS_TEST_ROOTLESS").is_some()
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Docker,
    Podman,
}

/// A running one. Everything of it is gone when this is dropped.
pub struct Rootless {
    folder: PathBuf,
    guard: Mutex<Child>,
}

static SHARED: [Mutex<Weak<Rootless>>; 2] = [Mutex::new(Weak::new()), Mutex::new(Weak::new())];

impl Rootless {
    /// One for all tests that run at the same time.
    pub fn shared(kind: Kind) -> Arc<Self> {
        let shared = &SHARED[usize::from(kind == Kind::Podman)];
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let engine = Arc::new(Self::start(kind));
            *shared = Arc::downgrade(&engine);
            engine
        })
    }

    fn start(kind: Kind) -> Self {
        let folder = tempfile::TempDir::with_prefix("pcr").unwrap().keep();
        let script = match kind {
            Kind::Docker => DOCKER,
            Kind::Podman => PODMAN,
        };
        let guard = Command::new("sh")
            .args(["-c", script, "rootless-guard"])
            .arg(&folder)
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("guard.log")).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let engine = Self {
            folder,
            guard: Mutex::new(guard),
        };
        let end = Instant::now() + Duration::from_mins(3);
        while !engine.answers() {
            assert!(
                Instant::now() < end,
                "{kind:?} without root does not start: it needs rootlesskit, uidmap, slirp4netns and a service manager of the user's; {}",
                fs::read_to_string(engine.folder.join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        engine
    }

    /// Its socket may be there before it serves.
    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = UnixStream::connect(self.socket())?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(b"GET /v1.41/version HTTP/1.0\r\nHost: engine\r\n\r\n")?;
            let mut head = [0; 12];
            stream.read_exact(&mut head)?;
            Ok(String::from_utf8_lossy(&head).into_owned())
        };
        ask().is_ok_and(|head| head.ends_with(" 200"))
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// As the configuration names it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        drop(guard.stdin.take());
        let _ = guard.wait();
    }
}
