//! Podman's service on a socket and in a folder of its own.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Runs Podman until its input ends, which it does with this process, however that ends; then nothing of it is left.
const GUARD: &str = r#"
folder=$1
export CONTAINERS_CONF=$folder/containers.conf
with="--root $folder/root --runroot $folder/run --storage-driver vfs"
command podman $with system service --time 0 "unix://$folder/s" > "$folder/log" 2>&1 &
echo $! > "$folder/pid"
while read -r word; do
    case $word in
        kill) kill -9 "$(cat "$folder/pid")" ;;
        start) rm -f "$folder/s"
            command podman $with system service --time 0 "unix://$folder/s" >> "$folder/log" 2>&1 &
            echo $! > "$folder/pid" ;;
    esac
done
kill "$(cat "$folder/pid")"
command podman $with rm --all --force --time 0 > /dev/null 2>&1
rm -rf "$folder"
"#;

/// A running service.
pub struct Podman {
    folder: PathBuf,
    guard: Mutex<Child>,
}

impl Podman {
    /// One of one's own.
    pub fn start() -> Self {
        let folder = tempfile::TempDir::with_prefix("pcp").unwrap().keep();
        // What a machine's own configuration says is not looked at: crun starts nothing where control groups are of both versions.
        let config = "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n[network]\nnetwork_backend = \"cni\"\n";
        fs::write(folder.join("containers.conf"), config).unwrap();
        let guard = Command::new("sh")
            .args(["-c", GUARD, "podman-guard"])
            .arg(&folder)
            // conmon(8) writes a file `oom` to where it is, when a container's memory is used up: not beside the sources.
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("guard.log")).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let podman = Self {
            folder,
            guard: Mutex::new(guard),
        };
        podman.wait();
        podman
    }

    fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(self.socket()).is_err() {
            assert!(
                Instant::now() < end,
                "podman is missing, or does not start: run `apt-get install podman`; {}",
                fs::read_to_string(self.folder.join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// As the configuration names it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn tell(&self, word: &str) {
        use std::io::Write as _;
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        let input = guard.stdin.as_mut().unwrap();
        writeln!(input, "{word}").unwrap();
    }

    /// Ends the service; its containers go on.
    pub fn kill(&self) {
        self.tell("kill");
        let end = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(self.socket()).is_ok() {
            assert!(Instant::now() < end, "it still answers");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The service again.
    pub fn start_again(&self) {
        self.tell("start");
        self.wait();
    }

    /// Names of the containers that there are.
    pub fn containers(&self) -> String {
        let at = |name: &str| self.folder.join(name);
        let said = Command::new("podman")
            .arg("--root")
            .arg(at("root"))
            .arg("--runroot")
            .arg(at("run"))
            .args([
                "--storage-driver",
                "vfs",
                "ps",
                "--all",
                "--format",
                "{{.Names}}",
            ])
            .env("CONTAINERS_CONF", at("containers.conf"))
            .output()
            .unwrap();
        assert!(said.status.success(), "{said:?}");
        String::from_utf8(said.stdout).unwrap()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        drop(guard.stdin.take());
        let _ = guard.wait();
    }
}
