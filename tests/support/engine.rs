//! A private Docker engine for tests: own containerd, own folders, own socket, no bridge, no firewall rules.
//!
//! A guard process owns the engine and cleans up when its input closes: on drop, on a panic, and when the test process is killed. Nothing
//! outside the engine's own folder is touched. Missing programs are a failure, not a skip.
#![allow(
    clippy::disallowed_methods,
    reason = "waits for processes, outside any runtime"
)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// `$1` is the engine's folder. Each line of input starts the engine again; the end of input ends everything.
const GUARD: &str = r#"
set -u
trap '' INT TERM HUP
D=$1
containerd() {
    command containerd --config "$D/containerd.toml" </dev/null >>"$D/containerd.log" 2>&1 &
    C=$!
    echo "$C" >"$D/containerd.pid"
}
containerd
engine() {
    dockerd --config-file "$D/daemon.json" --host "unix://$D/s" --containerd "$D/c.sock" --data-root "$D/data" --exec-root "$D/exec" \
        --pidfile "$D/dockerd.pid" --bridge=none --iptables=false --ip6tables=false </dev/null >>"$D/dockerd.log" 2>&1 &
    E=$!
    echo "$E" >"$D/engine.pid"
}
engine
# An engine that was killed is a zombie until it is waited for, and its successor takes that for a rival.
while read -r what; do
    if [ "$what" = all ]; then wait "$C"; containerd; fi
    wait "$E"
    rm -f "$D/dockerd.pid"
    engine
done
for box in "$D"/exec/runtime-runc/*/*; do
    [ -d "$box" ] && runc --root "${box%/*}" delete --force "${box##*/}"
done
kill -9 "$E" "$C"
for process in /proc/[0-9]*; do
    case "$(tr '\0' ' ' 2>/dev/null <"$process/cmdline")" in
    *containerd-shim*" $D/c.sock"*) kill -9 "${process#/proc/}" ;;
    esac
done
wait
cut -d' ' -f2 /proc/self/mounts | grep "^$D/" | sort -r | while read -r mount; do umount -l "$mount"; done
rm -rf "$D"
"#;

/// A running engine. Everything of it is gone when this is dropped.
pub struct Engine {
    folder: PathBuf,
    guard: Mutex<Child>,
}

static SHARED: Mutex<Weak<Engine>> = Mutex::new(Weak::new());

impl Engine {
    /// One engine for all tests that run at the same time and do not harm it.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let engine = Arc::new(Self::start());
            *shared = Arc::downgrade(&engine);
            engine
        })
    }

    /// An engine of one's own, to be killed or stopped at will. As Docker comes: when it starts again, it ends what it finds.
    pub fn start() -> Self {
        Self::configured("{}")
    }

    /// The same, which leaves its containers alone when it starts again.
    pub fn start_restoring() -> Self {
        Self::configured(r#"{"live-restore": true}"#)
    }

    /// With a second runtime beside its default one.
    pub fn start_with_second_runtime() -> Self {
        // The same program under another name: crun 1.8 starts nothing where control groups are of both versions.
        Self::configured(r#"{"runtimes": {"second": {"path": "runc"}}}"#)
    }

    fn configured(config: &str) -> Self {
        for program in ["dockerd", "containerd", "runc"] {
            assert!(
                which(program),
                "{program} is missing: run `apt-get install docker.io`; tests of the Docker driver do not skip"
            );
        }
        // The guard removes the folder, also when this process can no longer do so.
        let folder = TempDir::with_prefix("pcd")
            .expect("a temporary folder")
            .keep();
        let path = |name: &str| folder.join(name).display().to_string();
        fs::write(folder.join("daemon.json"), config).expect("the engine's config");
        let containerd = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            path("c-root"),
            path("c-state"),
            path("c.sock"),
        );
        fs::write(folder.join("containerd.toml"), containerd).expect("containerd's config");
        let guard = Command::new("sh")
            .args(["-c", GUARD, "engine-guard"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("guard.log")).expect("the guard's log"))
            .process_group(0)
            .spawn()
            .expect("a shell");
        let engine = Self {
            folder,
            guard: Mutex::new(guard),
        };
        engine.wait_until_it_answers();
        engine
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// Where everything of it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its address as `DOCKER_HOST` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// `kill -SIGNAL` to the engine alone; its containers and containerd live on.
    pub fn signal(&self, signal: &str) {
        self.send(signal, "engine.pid");
    }

    fn send(&self, signal: &str, file: &str) {
        let pid = fs::read_to_string(self.folder.join(file)).expect("its pid");
        let done = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(pid.trim())
            .status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "kill -{signal} {pid}"
        );
    }

    /// `kill -9` to the engine and to its containerd; the containers' own shims live on.
    pub fn kill_all(&self) {
        for file in ["engine.pid", "containerd.pid"] {
            self.send("KILL", file);
        }
    }

    /// Starts the engine again after it was killed or stopped, on the same folders.
    pub fn start_again(&self) {
        self.again("engine");
    }

    /// The same after [`Self::kill_all`].
    pub fn start_all_again(&self) {
        self.again("all");
    }

    fn again(&self, what: &str) {
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        guard
            .stdin
            .as_mut()
            .expect("the guard's input")
            .write_all(format!("{what}\n").as_bytes())
            .expect("a living guard");
        drop(guard);
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !answers(&self.socket()) {
            if Instant::now() > deadline {
                let log = fs::read_to_string(self.folder.join("dockerd.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                panic!(
                    "the private engine did not start (it needs root); the end of its log, newest first:\n{}",
                    tail.join("\n")
                );
            }
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let guard = self.guard.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(guard.stdin.take());
        let deadline = Instant::now() + Duration::from_mins(1);
        while guard.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() > deadline {
                eprintln!(
                    "the engine's guard {} still cleans {}",
                    guard.id(),
                    self.folder.display()
                );
                return;
            }
            sleep(Duration::from_millis(20));
        }
    }
}

fn answers(socket: &Path) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(String::from_utf8_lossy(&head).into_owned())
    };
    ask().is_ok_and(|head| head.ends_with(" 200"))
}

fn which(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[test]
fn the_guard_leaves_nothing_of_an_engine() {
    let engine = Engine::start();
    let folder = engine.folder.clone();
    assert!(folder.join("s").exists());
    drop(engine);
    assert!(!folder.exists(), "the folder is left: {}", folder.display());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(&folder.display().to_string()),
        "a mount is left"
    );
    let left: Vec<String> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| line.contains(&folder.display().to_string()))
        .collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
}
