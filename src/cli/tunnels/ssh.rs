//! The way over SSH: its command, and a try of that very command.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use portcullis_core::codes;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::Way;
use crate::cli::Failure;
use crate::client::{Address, Client};

/// For a tunnel to stand.
const STANDS_WITHIN: Duration = Duration::from_secs(20);
/// For ssh to go when it is asked to, and for its last words.
const GOES_WITHIN: Duration = Duration::from_secs(2);
/// Of what ssh says, bytes.
const LONGEST: u64 = 256 * 1024;
/// OpenSSH's word (with -v) that it is logged in and that its forwards are bound. Earlier, another program could sit on the
/// port and be taken for the tunnel.
const STANDS: &str = "Entering interactive session.";

/// Its own words for what only a check needs: it asks nobody anything, believes no new host, writes nothing, and leaves
/// nothing behind in another ssh's connection.
const CHECK: [&str; 9] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    "ConnectTimeout=10",
    "ControlMaster=no",
    "ControlPath=none",
    "PermitLocalCommand=no",
    "ForwardAgent=no",
    "ForwardX11=no",
];

/// Bound to loopback at the near end too, whatever GatewayPorts says there.
fn words(way: &Way, near: u16, to: &str) -> Vec<String> {
    let forward = format!("127.0.0.1:{near}:{}", way.at);
    let words = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", &forward, to];
    words.map(str::to_owned).to_vec()
}

/// As it is typed.
pub fn command(way: &Way, to: &str, config: Option<&Path>) -> String {
    let config = config.map_or_else(String::new, |file| {
        let file = file.display().to_string();
        format!("-F '{}' ", file.replace('\'', r"'\''"))
    });
    format!("ssh {config}{}", words(way, way.port(), to).join(" "))
}

/// Opens the tunnel on a free port, and goes as far as the gateway's greeting through it.
///
/// # Errors
/// `SSH_MISSING`, `SSH_HOST_UNKNOWN`, `SSH_REFUSED`, `SSH_UNREACHABLE`, `FORWARD_FAILED`, `SERVER_NOT_VERIFIED`.
pub async fn check(way: &Way, to: &str, config: Option<&Path>) -> Result<(), Failure> {
    let near = free_port()
        .await
        .map_err(|e| Failure::of(codes::FORWARD_FAILED, format!("no port is free here: {e}")))?;
    let url = format!("{}://127.0.0.1:{near}", way.scheme());
    let address = Address::parse(&url, way.pin.as_deref())?;
    let mut tunnel = Tunnel::start(way, near, to, config)?;
    let stands = timeout(STANDS_WITHIN, tunnel.stands()).await;
    if !matches!(stands, Ok(true)) {
        let said = tunnel.end().await;
        let late = stands.is_err();
        return Err(why(&said, late));
    }
    let greeted = Client::greeted(&address, &url).await;
    let said = tunnel.end().await;
    greeted.map_err(|failure| {
        if failure.code == codes::SERVER_NOT_VERIFIED.name {
            return failure;
        }
        // What sshd said of the forward tells more than that nothing came.
        let told = said.iter().find(|line| line.contains("open failed"));
        let told = told.unwrap_or(&failure.message);
        Failure::of(
            codes::FORWARD_FAILED,
            format!("the tunnel stands, and no gateway answers through it: {told}"),
        )
    })
}

async fn free_port() -> std::io::Result<u16> {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    Ok(free.local_addr()?.port())
}

struct Tunnel {
    child: Child,
    lines: UnboundedReceiver<String>,
    said: Vec<String>,
}

impl Tunnel {
    fn start(way: &Way, near: u16, to: &str, config: Option<&Path>) -> Result<Self, Failure> {
        let mut ssh = Command::new("ssh");
        if let Some(config) = config {
            ssh.arg("-F").arg(config);
        }
        ssh.arg("-v");
        for option in CHECK {
            ssh.args(["-o", option]);
        }
        ssh.args(words(way, near, to));
        ssh.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = ssh.spawn().map_err(|e| {
            let why = match e.kind() {
                ErrorKind::NotFound => "there is no ssh on this machine".to_owned(),
                _ => format!("ssh does not start: {e}"),
            };
            Failure::of(codes::SSH_MISSING, why)
        })?;
        let (tell, lines) = unbounded_channel();
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(async move {
                let mut stderr = BufReader::new(stderr.take(LONGEST));
                let mut line = vec![];
                while matches!(stderr.read_until(b'\n', &mut line).await, Ok(read) if read > 0) {
                    let text = String::from_utf8_lossy(&line);
                    // It names itself in some of its lines, and we in all of ours.
                    let text = text.trim().trim_start_matches("ssh: ").to_owned();
                    line.clear();
                    if tell.send(text).is_err() {
                        break;
                    }
                }
            });
        }
        let said = vec![];
        Ok(Self { child, lines, said })
    }

    /// False: it ended before.
    async fn stands(&mut self) -> bool {
        while let Some(line) = self.lines.recv().await {
            if line.ends_with(STANDS) {
                return true;
            }
            self.said.push(line);
        }
        false
    }

    /// Ends it, by its own way where it takes it; what it said, without what only -v makes it say.
    async fn end(mut self) -> Vec<String> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // It may have ended itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        if timeout(GOES_WITHIN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
        // A helper of its own (ProxyCommand) may hold the other end.
        let rest = async {
            while let Some(line) = self.lines.recv().await {
                self.said.push(line);
            }
        };
        let _ = timeout(GOES_WITHIN, rest).await;
        self.said
            .retain(|line| !line.is_empty() && !line.starts_with("debug1: "));
        self.said
    }
}

/// OpenSSH's words are not translated.
fn why(said: &[String], late: bool) -> Failure {
    let find = |words: &[&str]| {
        let has = |line: &&String| words.iter().any(|word| line.contains(word));
        said.iter().find(has).cloned()
    };
    let host = find(&[
        "HOST IDENTIFICATION HAS CHANGED",
        "host key is known",
        "Host key verification failed",
    ]);
    if let Some(line) = host {
        return Failure::of(codes::SSH_HOST_UNKNOWN, format!("ssh: {line}"));
    }
    if let Some(line) = find(&["Permission denied", "Too many authentication failures"]) {
        return Failure::of(codes::SSH_REFUSED, format!("ssh: {line}"));
    }
    let forward = find(&[
        "cannot listen to port",
        "Could not request local forwarding",
        "Address already in use",
    ]);
    if let Some(line) = forward {
        return Failure::of(codes::FORWARD_FAILED, format!("ssh: {line}"));
    }
    let last = said.last().map_or("it said nothing", String::as_str);
    let what = if late {
        format!(
            "no tunnel stands after {} s: {last}",
            STANDS_WITHIN.as_secs()
        )
    } else {
        format!("ssh: {last}")
    };
    Failure::of(codes::SSH_UNREACHABLE, what)
}
