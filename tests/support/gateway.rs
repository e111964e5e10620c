//! The real gateway as a process of its own, on a temporary state, and the command line beside it.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The shared token of every gateway here.
pub const TOKEN: &str = "478c9e6a-b11b-422b-8bf4-6ef024b4d6c3";
/// For a start, on a machine that builds something else.
const READY: Duration = Duration::from_mins(1);

/// See the module. Dropped, its process is killed and its state removed.
pub struct Gateway {
    home: tempfile::TempDir,
    env: Vec<(String, String)>,
    child: Option<Child>,
    port: u16,
    log: Arc<Mutex<String>>,
    /// What it writes to stdout.
    said: Arc<Mutex<String>>,
    words: Vec<&'static str>,
    program: PathBuf,
    uid: Option<u32>,
}

/// A long run may be of a copy, so that a build beside it does not change what it tests.
fn binary() -> PathBuf {
    std::env::var_os("PORTCULLIS_TEST_BINARY")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_portcullis").into())
        .into()
}

impl Gateway {
    /// Serves, with default settings.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Serves, with these variables; keys in small letters with dots are settings.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        let mut gateway = Self::prepared(settings);
        gateway.launch();
        gateway
    }

    /// Not started yet; the state directory is there.
    pub fn prepared(settings: &[(&str, &str)]) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(home.path().join("state"))
            .unwrap();
        let mut gateway = Self {
            home,
            env: vec![],
            child: None,
            port: 0,
            log: Arc::default(),
            said: Arc::default(),
            words: vec!["gateway", "--port", "0"],
            program: binary(),
            uid: None,
        };
        gateway.set("PORTCULLIS_GATEWAY_TOKEN", TOKEN);
        // Tests of the drivers have engines of their own.
        gateway.set("sandbox.driver", "native");
        for (name, value) in settings {
            gateway.set(name, value);
        }
        gateway
    }

    /// To be started as a person does it: `portcullis up`.
    pub fn by_up(mut self) -> Self {
        self.words[0] = "up";
        self
    }

    /// To be started, like its command line, as this user, with a copy of the program that everybody may run.
    pub fn run_by(mut self, uid: u32) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        self.program = self.home.path().join("portcullis");
        std::fs::copy(binary(), &self.program).unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&self.program, open.clone()).unwrap();
        std::fs::set_permissions(self.home.path(), open).unwrap();
        for path in [self.home.path().to_owned(), self.state()] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        }
        self.uid = Some(uid);
        self
    }

    /// The next start listens where the last one did.
    pub fn keep_port(&mut self) {
        let port = self.port.to_string();
        self.set("gateway.port", &port);
        self.words.truncate(1);
    }

    /// What it wrote to stdout so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Its user, where it is another than this process'.
    pub const fn user(&self) -> Option<u32> {
        self.uid
    }

    /// The program of its command line.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// For the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        let name = variable(name);
        self.env.retain(|(known, _)| *known != name);
        self.env.push((name, value.to_owned()));
    }

    /// For the next start.
    pub fn unset(&mut self, name: &str) {
        let name = variable(name);
        self.env.retain(|(known, _)| *known != name);
    }

    /// `portcullis` with these arguments, nothing of this process' environment but `PATH`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", self.home.path())
            .env("PORTCULLIS_STATE_DIR", self.state())
            .env("PORTCULLIS_IDENTITY_FILE", self.identity())
            .stdin(Stdio::null());
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid).current_dir("/");
        }
        command
    }

    /// The start itself.
    pub fn daemon(&self) -> Command {
        let mut command = self.command(&self.words);
        command
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts it and waits until `/readyz` says so.
    pub fn launch(&mut self) {
        if let Err((code, log)) = self.launch_as(self.daemon()) {
            panic!("the gateway does not serve (exit {code}):\n{log}");
        }
    }

    /// The same, started by another program (strace): its words stand before those of the daemon.
    ///
    /// # Errors
    /// It does not serve: its exit code and what it said.
    pub fn launch_under(&mut self, words: &[&str]) -> Result<(), (i32, String)> {
        let daemon = self.daemon();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg(daemon.get_program())
            .args(daemon.get_args())
            .env_clear()
            .envs(daemon.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.launch_as(command)
    }

    /// The same by a command made from [`Self::daemon`].
    ///
    /// # Errors
    /// It does not serve: its exit code and what it said.
    pub fn launch_as(&mut self, mut command: Command) -> Result<(), (i32, String)> {
        assert!(self.child.is_none(), "it runs already");
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        let said = BufReader::new(child.stdout.take().unwrap());
        self.said.lock().unwrap().clear();
        let to = self.said.clone();
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                writeln!(to.lock().unwrap(), "{line}").unwrap();
            }
        });
        self.child = Some(child);
        self.log.lock().unwrap().clear();
        let (log, (tell, told)) = (self.log.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Some(port) = port_in(&line) {
                    // Nobody waits any more: the test has ended.
                    let _ = tell.send(port);
                }
                writeln!(log.lock().unwrap(), "{line}").unwrap();
            }
        });
        let Ok(port) = told.recv_timeout(READY) else {
            let mut child = self.child.take().expect("it runs");
            // Closed its stderr, it ends; silent, it is ended.
            if child.try_wait().unwrap().is_none() && !self.log().contains("error[") {
                child.kill().unwrap();
            }
            return Err((child.wait().unwrap().code().unwrap_or(-1), self.log()));
        };
        self.port = port;
        let end = Instant::now() + READY;
        while !self
            .http("GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .starts_with("HTTP/1.1 200")
        {
            assert!(Instant::now() < end, "not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// A start that must fail: its exit code and its stderr.
    pub fn refused(&self) -> (i32, String) {
        let mut child = self.daemon().spawn().unwrap();
        let end = Instant::now() + READY;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                child.kill().unwrap();
                panic!("it started: {:?}", child.wait_with_output());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap_or(-1), stderr)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// `kill -9` without waiting for its end: [`Self::kill`] does.
    pub fn kill_now(&self) {
        kill_process(pid(self.child.as_ref().expect("it runs")), Signal::KILL).unwrap();
    }

    /// `kill`: stops in order; its exit code.
    pub fn stop(&mut self) -> i32 {
        let mut child = self.child.take().expect("it runs");
        kill_process(pid(&child), Signal::TERM).unwrap();
        child.wait().unwrap().code().unwrap_or(-1)
    }

    /// The same for a daemon under another program: the daemon is asked, the program ends with it.
    pub fn stop_under(&mut self) -> i32 {
        let lock = std::fs::read_to_string(self.state().join("lock")).unwrap();
        let daemon = Pid::from_raw(lock.trim().parse().unwrap()).unwrap();
        kill_process(daemon, Signal::TERM).unwrap();
        let mut child = self.child.take().expect("it runs");
        child.wait().unwrap().code().unwrap_or(-1)
    }

    /// Its exit code, if it ends by itself within a while.
    pub fn ends(&mut self, within: Duration) -> Option<i32> {
        let end = Instant::now() + within;
        while Instant::now() < end {
            let child = self.child.as_mut().expect("it runs");
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                return Some(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// `kill -9`, and a start on what is left.
    pub fn crash_and_start(&mut self) {
        self.kill();
        self.launch();
    }

    /// The daemon's.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Of its TCP door.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its own folder, the state's parent.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// STATE.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// The machine's key.
    pub fn identity(&self) -> PathBuf {
        self.home.path().join("identity.key")
    }

    /// The first, or only, segment of the audit log.
    pub fn audit_segment(&self) -> PathBuf {
        self.state().join("audit/0000000000000001.log")
    }

    /// What it wrote to stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The command line.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The command line with `--json`: must end with 0.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.cli(&[args, &["--json"]].concat());
        assert!(
            output.status.success(),
            "{args:?}: {output:?}\n{}",
            self.log()
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The command line with something on stdin; its exit code.
    pub fn feed(&self, args: &[&str], input: &[u8]) -> i32 {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A command that does not read it says why by its exit code.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait().unwrap().code().unwrap_or(-1)
    }

    /// Waits until the vault is open: its key is derived beside the start.
    pub fn vault_is_open(&self) {
        let end = Instant::now() + READY;
        while self.cli(&["vault", "status"]).status.code() != Some(0) {
            assert!(
                Instant::now() < end,
                "the vault stays closed:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What its status says of the driver, once one is proven: the door is open before that.
    pub fn proven_driver(&self) -> Value {
        let end = Instant::now() + READY;
        loop {
            let driver = self.json(&["status"])["portcullis"]["driver"].take();
            if driver["name"].is_string() {
                return driver;
            }
            assert!(
                Instant::now() < end,
                "no driver is proven: {driver:#}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A socket of its TCP door, with a time-out on reads.
    pub fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        socket
    }

    /// Sends bytes and reads until the other end closes.
    pub fn http(&self, request: &str) -> String {
        let mut socket = self.socket();
        // Closed early, it may answer before it has read all.
        let _ = socket.write_all(request.as_bytes());
        let mut answer = vec![];
        let _ = socket.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log());
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

/// `gateway.limits.handshake_ms` is `PORTCULLIS__GATEWAY__LIMITS__HANDSHAKE_MS`.
fn variable(name: &str) -> String {
    if name.contains('.') {
        format!("PORTCULLIS__{}", name.replace('.', "__").to_uppercase())
    } else {
        name.to_owned()
    }
}

fn port_in(line: &str) -> Option<u16> {
    let rest = line.split("gateway serves address=").nth(1)?;
    rest.split_whitespace()
        .next()?
        .rsplit(':')
        .next()?
        .parse()
        .ok()
}
