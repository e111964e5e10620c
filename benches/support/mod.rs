//! What the benches share: a gateway of their own, a client, and the CPU time of a process.

#![allow(
    clippy::disallowed_methods,
    reason = "a bench waits for its child processes"
)]
#![allow(
    dead_code,
    reason = "each bench is a program of its own and uses its part"
)]

pub mod device;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_core::protocol::{Encoding, Wire, strict};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

pub type Socket = WebSocketStream<TcpStream>;
/// Over `control.sock`: an operator by its uid.
pub type Control = WebSocketStream<UnixStream>;

/// Not a secret: it opens a gateway that lives for seconds.
pub const TOKEN: &str = "5d0c7b0e-93d1-4d0a-9f3c-2b7e61c8a4f7";

/// A started program that ends with its handle.
pub struct Running {
    child: Child,
    pub address: SocketAddr,
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its threads, user and system.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(self.child.id())
    }

    /// A line of `/proc/PID/status`, such as `VmRSS`, in MiB.
    pub fn mebibytes(&self, what: &str) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))
            .with_context(|| format!("no {what}"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}

/// CPU time of a process' living threads, user and system.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // Nanoseconds; /proc/PID/stat counts in steps of 10 ms. A thread that has just ended has no file.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let first = text.split(' ').next().unwrap_or_default();
        sum += first.parse::<u64>().unwrap_or_default();
    }
    Ok(Duration::from_nanos(sum))
}

impl Running {
    /// `kill -9`, and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A daemon is asked first, so that the sandboxes of its pool go with it.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// State of a gateway, outside of which lies its key. Both go when this goes.
pub struct State {
    folder: tempfile::TempDir,
    settings: Vec<(&'static str, String)>,
}

impl State {
    /// New and empty.
    pub fn new() -> Result<Self> {
        Self::with(vec![])
    }

    /// New and empty, for a gateway with these variables.
    pub fn with(settings: Vec<(&'static str, String)>) -> Result<Self> {
        Ok(Self {
            folder: tempfile::tempdir()?,
            settings,
        })
    }

    /// The state directory.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The command line on this state.
    pub fn cli(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command
            .args(args)
            .arg("--state")
            .arg(self.path())
            .arg("--identity")
            .arg(self.folder.path().join("identity.key"));
        command
    }

    fn command(&self, port: u16) -> Result<Command> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())?;
        let mut command = self.cli(&["gateway", "--port", &port.to_string()]);
        command
            .env("PORTCULLIS_GATEWAY_TOKEN", TOKEN)
            .env("PORTCULLIS__TELEMETRY__LEVEL", "warn")
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Starts a gateway on it, and says how long it took until `/readyz` was 200.
    pub fn start(&self) -> Result<(Running, Duration)> {
        let address = free_address()?;
        let began = Instant::now();
        let child = self
            .command(address.port())?
            .spawn()
            .context("the gateway does not start")?;
        let mut running = Running { child, address };
        while !ready(address) {
            if let Some(status) = running.child.try_wait()? {
                bail!(
                    "the gateway ended with {status}:\n{}",
                    fs::read_to_string(self.log())?
                );
            }
            if began.elapsed() > Duration::from_secs(30) {
                bail!(
                    "the gateway is not ready after 30 s:\n{}",
                    fs::read_to_string(self.log())?
                );
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        let took = began.elapsed();
        Ok((running, took))
    }
}

/// This very program again, in another role, which prints its address.
pub fn start_self(role: &str) -> Result<Running> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg(role)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{role} does not start"))?;
    let mut output =
        std::io::BufReader::new(child.stdout.take().context("its output is not piped")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line)?;
    Ok(Running {
        child,
        address: line.trim().parse().context("it printed no address")?,
    })
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(&head == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

/// 4 KiB for reading, as the server has: tungstenite's own default costs 131 KB a socket.
pub fn socket_config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(4096)
}

/// A WebSocket without anything said on it.
pub async fn dial(address: SocketAddr) -> Result<Socket> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let url = format!("ws://{address}/");
    let (socket, _) =
        tokio_tungstenite::client_async_with_config(url, stream, Some(socket_config())).await?;
    Ok(socket)
}

/// A WebSocket that has authenticated with the shared token for `operator.read`.
pub async fn connect(address: SocketAddr) -> Result<Socket> {
    connect_as(address, false, &["operator.read"]).await
}

/// The same for these scopes, in either encoding.
pub async fn connect_as(address: SocketAddr, packed: bool, scopes: &[&str]) -> Result<Socket> {
    let socket = if packed {
        dial_packed(address).await?
    } else {
        dial(address).await?
    };
    hello(socket, packed, json!({ "token": TOKEN }), scopes).await
}

async fn dial_packed(address: SocketAddr) -> Result<Socket> {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut request = format!("ws://{address}/").into_client_request()?;
    let subprotocol = Encoding::SUBPROTOCOL.parse()?;
    request
        .headers_mut()
        .insert("sec-websocket-protocol", subprotocol);
    let config = Some(socket_config());
    let (socket, _) = tokio_tungstenite::client_async_with_config(request, stream, config).await?;
    Ok(socket)
}

/// A WebSocket of an administrator who acts for agents.
pub async fn control(state: &State) -> Result<Control> {
    let stream = UnixStream::connect(state.path().join("run/control.sock")).await?;
    let (socket, _) = tokio_tungstenite::client_async("ws://localhost/", stream).await?;
    let scopes = ["operator.admin", "operator.act_as"];
    hello(socket, false, json!({}), &scopes).await
}

async fn hello<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: WebSocketStream<S>,
    packed: bool,
    auth: Value,
    scopes: &[&str],
) -> Result<WebSocketStream<S>> {
    let params = json!({
        "minProtocol": 4, "maxProtocol": 4,
        "client": { "id": "cli", "version": "bench", "platform": "linux", "mode": "cli" },
        "caps": [], "auth": auth, "role": "operator", "scopes": scopes,
    });
    let request = json!({ "type": "req", "id": "connect", "method": "connect", "params": params });
    let encoding = if packed {
        Encoding::MsgPack
    } else {
        Encoding::Json
    };
    let request = match encoding.write(&request)? {
        Wire::Text(text) => Message::text(text),
        Wire::Binary(bytes) => Message::binary(bytes),
    };
    socket.send(request).await?;
    loop {
        let Some(message) = socket.next().await.transpose()? else {
            bail!("the gateway closed the socket before hello-ok");
        };
        let frame = match &message {
            Message::Text(text) => strict::json(text.as_bytes()),
            Message::Binary(bytes) => strict::msgpack(bytes),
            _ => continue,
        };
        let frame: Value = frame.unwrap_or_default();
        if frame["id"] == "connect" {
            if frame["ok"] != true {
                bail!("connect was refused: {frame}");
            }
            return Ok(socket);
        }
    }
}

/// The middle of some figures.
pub fn median(figures: Vec<f64>) -> f64 {
    percentile(figures, 50)
}

/// The figure that so many in a hundred do not exceed.
pub fn percentile(mut figures: Vec<f64>, percent: usize) -> f64 {
    figures.sort_by(f64::total_cmp);
    let at = (figures.len() * percent / 100).min(figures.len().saturating_sub(1));
    figures.get(at).copied().unwrap_or(f64::NAN)
}

/// One line of the result: the figure, its target, and whether it is met.
pub fn line(what: &str, figure: f64, unit: &str, target: f64) {
    let word = if figure <= target { "met" } else { "NOT MET" };
    println!("{what:52} {figure:9.2} {unit:4} target <= {target:<6} {word}");
}

/// As [`line`], where more is better.
pub fn least(what: &str, figure: f64, unit: &str, target: f64) {
    let word = if figure >= target { "met" } else { "NOT MET" };
    println!("{what:52} {figure:9.2} {unit:4} target >= {target:<6} {word}");
}
