//! Where the same program must succeed: without the box, without its user, or without our filter. None of it harms the machine: what an attempt
//! would change is opened only, or lies in namespaces and folders that go with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt as _;
use portcullis::cli::selftest::{Host, PROGRAM};
use portcullis_cell::{ATTEMPTS, Control, Way};

use super::TRACE;
use crate::support::engine::Engine;

/// As a box's: root's it is not.
const UID: u32 = 65_533;
/// The limits of the profile `restricted`, which the attempts try to pass.
const LIMITS: [&str; 5] = [
    "pids=128",
    "memory=536870912",
    "cpu=1000",
    "files=1024",
    "file-bytes=1073741824",
];
const OUTPUT: usize = 1 << 20;

/// Whether an attempt succeeded in its control.
#[derive(Debug)]
pub struct Said {
    pub reached: bool,
    pub why: String,
}

pub struct Controls {
    engine: Arc<Engine>,
    image: String,
    folder: tempfile::TempDir,
    /// In memory, for what fills it.
    memory: tempfile::TempDir,
    host: Host,
    victim: Child,
}

impl Controls {
    pub fn new(engine: &Arc<Engine>, image: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        open(folder.path(), 0o755);
        open(memory.path(), 0o777);
        let scratch = folder.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        open(&scratch, 0o777);
        let program = folder.path().join("probe");
        fs::write(&program, PROGRAM).unwrap();
        open(&program, 0o755);
        let host = Host::lay_out().unwrap();
        let victim = as_user(&program).args(["hold"]).spawn().unwrap();
        Self {
            engine: engine.clone(),
            image,
            folder,
            memory,
            host,
            victim,
        }
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("probe")
    }

    /// What every attempt is given.
    fn given(&self) -> Vec<String> {
        let mut given: Vec<String> = LIMITS.map(str::to_owned).to_vec();
        given.extend(self.host.given.iter().map(|(k, v)| format!("{k}={v}")));
        given.extend([
            format!("victims={}", self.victim.id()),
            "variables=PATH,HOME".to_owned(),
            format!("tmp={}", self.memory.path().display()),
            format!("scratch={}", self.folder.path().join("scratch").display()),
        ]);
        given
    }

    /// Every attempt in its control.
    pub fn all(&self) -> BTreeMap<&'static str, Said> {
        let names = |control| {
            let of = ATTEMPTS.iter().filter(move |one| one.control == control);
            let of = of.filter(|one| one.way != Way::Outside);
            of.map(|one| one.name).collect::<Vec<_>>().join(",")
        };
        let mut text = String::new();
        // With a descriptor of the root that nobody closed, as in CVE-2024-21626.
        let mut leaking = Command::new("sh");
        leaking
            .args(["-c", "exec 9</; exec \"$@\"", "sh"])
            .args(words(&as_user(&self.program())));
        text += &said(leaking.arg(names(Control::User)).args(self.given()));
        let mut root = plain(&self.program());
        let root = root.args(["--apart", &names(Control::Root)]);
        text += &said(root.args(self.given()));
        let mut net = Command::new("unshare");
        let address = "169.254.169.254";
        let script = format!("ip link set lo up; ip addr add {address}/32 dev lo; exec \"$@\"");
        net.args(["-n", "busybox", "sh", "-c", &script, "sh"])
            .args(words(&plain(&self.program())))
            .arg(names(Control::Net))
            .arg(format!("listen={address}:80"));
        text += &said(&mut net);
        text += &self.contained(Control::Filter, &names(Control::Filter));
        text += &self.contained(Control::Mounts, &names(Control::Mounts));

        let mut all = BTreeMap::new();
        for attempt in ATTEMPTS {
            let found = if attempt.way == Way::Outside {
                self.outside(attempt.name)
            } else {
                let lines = text.lines();
                let mut lines = lines.map(|line| line.splitn(3, '\t').collect::<Vec<_>>());
                let line = lines.find(|line| line[0] == attempt.name);
                let line = line.unwrap_or_else(|| panic!("{}: {text}", attempt.name));
                Said {
                    reached: line[1] == "reached",
                    why: line[2].to_owned(),
                }
            };
            all.insert(attempt.name, found);
        }
        all
    }

    /// In a container that the engine makes without our driver.
    fn contained(&self, control: Control, names: &str) -> String {
        let mut words = vec!["/probe".to_owned(), "attempt".to_owned(), names.to_owned()];
        words.extend(self.given());
        words.push("scratch=/workspace".to_owned());
        self.container(control, words)
    }

    /// The kernel's word on a process in a container without our filter.
    pub fn status(&self) -> String {
        let words = ["cat", "/proc/self/status"].map(str::to_owned);
        self.container(Control::Filter, words.to_vec())
    }

    fn container(&self, control: Control, words: Vec<String>) -> String {
        let at = |name: &str| self.folder.path().join(name);
        let mut binds = vec![
            format!("{}:/probe:ro", self.program().display()),
            format!("{}:/workspace", at("scratch").display()),
        ];
        let host = if control == Control::Mounts {
            // The box's own files as they are there, but writable, and somebody who answers.
            let folder = at("control");
            fs::create_dir(&folder).unwrap();
            fs::write(at("cell"), "the cell").unwrap();
            let listener = UnixListener::bind(folder.join("s")).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    // Who asks may be gone again.
                    let _ = stream.read(&mut [0; 64]);
                    let _ = stream.write_all(b"heard");
                }
            });
            binds.extend([
                format!("{}:/run/portcullis", folder.display()),
                format!("{}:/run/portcullis-cell", at("cell").display()),
                format!("{}:/var/run/docker.sock", self.engine.socket().display()),
            ]);
            HostConfig::default()
        } else {
            HostConfig {
                cap_drop: Some(vec!["ALL".to_owned()]),
                security_opt: Some(vec!["no-new-privileges".to_owned()]),
                readonly_rootfs: Some(true),
                ..HostConfig::default()
            }
        };
        let user = if control == Control::Mounts { 0 } else { UID };
        let body = ContainerCreateBody {
            image: Some(self.image.clone()),
            user: Some(format!("{user}:{user}")),
            entrypoint: Some(words),
            working_dir: Some("/workspace".to_owned()),
            host_config: Some(HostConfig {
                network_mode: Some("none".to_owned()),
                binds: Some(binds),
                ..host
            }),
            ..ContainerCreateBody::default()
        };
        let version = bollard::API_DEFAULT_VERSION;
        let socket = self.engine.host();
        let run = async {
            let engine = bollard::Docker::connect_with_unix(&socket, 60, version).unwrap();
            let engine = engine.negotiate_version().await.unwrap();
            let id = engine.create_container(None, body).await.unwrap().id;
            let start = None::<StartContainerOptions>;
            engine.start_container(&id, start).await.unwrap();
            let mut ends = engine.wait_container(&id, None::<WaitContainerOptions>);
            // Another code than 0 is an error there, and of no interest here.
            while ends.next().await.is_some() {}
            let logs = LogsOptionsBuilder::default().stdout(true).stderr(true);
            let mut logs = engine.logs(&id, Some(logs.build()));
            let mut text = Vec::new();
            while let Some(Ok(LogOutput::StdOut { message } | LogOutput::StdErr { message })) =
                logs.next().await
            {
                text.extend(message);
            }
            let gone = RemoveContainerOptionsBuilder::default().force(true).build();
            engine.remove_container(&id, Some(gone)).await.unwrap();
            String::from_utf8(text).unwrap()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(run)
    }

    /// The same as runs of the box's user, without anything that ends them.
    fn outside(&self, name: &str) -> Said {
        if name == "output-flood" {
            let bytes = format!("bytes={}", OUTPUT * 2);
            let output = as_user(&self.program()).args(["flood", &bytes]).output();
            let came = output.unwrap().stdout.len();
            return Said {
                reached: came > OUTPUT,
                why: format!("{came} bytes came"),
            };
        }
        let token = format!("bait-{name}-{}", std::process::id());
        let program = as_user(&self.program());
        let mut command = Command::new("sh");
        command
            .args(["-c", "trap '' HUP INT QUIT TERM; exec \"$@\"", "sh"])
            .args(words(&program))
            .args([name, &token])
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "held\n", "{name}");
        if name == "stubborn" {
            // As a time-out without a box ends it.
            let pid = child.id().to_string();
            Command::new("kill").arg(&pid).status().unwrap();
            std::thread::sleep(Duration::from_millis(300));
        } else {
            child.wait().unwrap();
        }
        let mut look = as_user(&self.program());
        let seen = said(look.args(["process-list", &format!("token={token}")]));
        let _ = child.kill();
        let _ = child.wait();
        end(&token);
        Said {
            reached: seen.contains("\treached\t"),
            why: seen,
        }
    }
}

impl Drop for Controls {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

/// Ends what this control left: the only process with such a word.
fn end(token: &str) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if line.split('\0').any(|word| word == token) {
            let pid = entry.file_name().to_str().unwrap().parse().unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// With the environment of whoever starts a gateway.
fn plain(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("attempt").env_clear().envs([TRACE]);
    command
}

fn as_user(program: &Path) -> Command {
    let uid = UID.to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &uid, "--regid", &uid, "--clear-groups"])
        .arg(program)
        .arg("attempt")
        .env_clear()
        .envs([TRACE, ("PATH", "/usr/bin:/bin")])
        .stdin(Stdio::null());
    command
}

/// Program and arguments.
fn words(command: &Command) -> Vec<&std::ffi::OsStr> {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    words
}

fn said(command: &mut Command) -> String {
    command
        .env_clear()
        .envs([TRACE, ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")]);
    let output: Output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
