//! A network of a test's own, with a far end that is not this machine: two network namespaces and a wire between them.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The near end: where the gateway is.
pub const NEAR: &str = "198.51.100.1";
/// Addresses of the far end.
pub const FAR: [&str; 2] = ["198.51.100.2", "198.51.100.3"];
const INSIDE: &str = "PORTCULLIS_TEST_NET";

/// The far end. Dropped, it is gone.
pub struct Far {
    holder: Child,
    net: File,
}

/// Runs the test of this whole name in a network namespace. There it is `Some`; outside `None`, and the test that ran
/// inside has passed, or a `NOT RUN` says why it could not.
pub fn far(test: &str) -> Option<Far> {
    if std::env::var_os(INSIDE).is_some() {
        return Some(Far::wired());
    }
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-current-user").arg("--keep-caps");
        unshare.arg("--user");
    }
    unshare.arg("--net").arg("--");
    let probe = "ip link set lo up && ip link add pcx type veth peer name pcy";
    let mut look = Command::new(unshare.get_program());
    look.args(unshare.get_args()).args(["sh", "-c", probe]);
    if !look.output().is_ok_and(|look| look.status.success()) {
        println!(
            "NOT RUN: {test}: this kernel or user makes no network namespace with a wire (unshare, ip)"
        );
        return None;
    }
    let output = unshare
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    None
}

fn run(words: &str) {
    let output = Command::new("sh").args(["-c", words]).output().unwrap();
    assert!(output.status.success(), "{words}: {output:?}");
}

impl Far {
    fn wired() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "--", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = holder.id();
        let path = format!("/proc/{pid}/ns/net");
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while std::fs::read_link(&path).is_ok_and(|there| there == own) {
            assert!(Instant::now() < end, "it stays here");
            std::thread::sleep(Duration::from_millis(5));
        }
        run(&format!(
            "ip link set lo up; ip link add pcg type veth peer name pcr netns {pid} && \
             ip addr add {NEAR}/24 dev pcg && ip link set pcg up"
        ));
        run(&format!(
            "nsenter -t {pid} -n sh -c 'ip link set lo up; ip addr add {}/24 dev pcr && ip addr add {}/24 dev pcr && ip link set pcr up'",
            FAR[0], FAR[1]
        ));
        let net = File::open(path).unwrap();
        Self { holder, net }
    }

    /// A shell's line, typed at the far end.
    pub fn typed(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.holder.id().to_string(), "-n", "--"])
            .args(["sh", "-c", &format!("exec {line}")])
            .stdin(Stdio::null());
        command
    }

    /// This program with its words, folder and variables, and no others, started at the far end.
    pub fn moved(&self, command: &Command) -> Command {
        let mut moved = Command::new("nsenter");
        moved
            .args(["-t", &self.holder.id().to_string(), "-n", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .stdin(Stdio::null());
        if let Some(folder) = command.get_current_dir() {
            moved.current_dir(folder);
        }
        moved
    }

    /// A socket from this address of the far end; it stays one of the far end wherever it is used.
    pub fn dial(&self, from: &str, port: u16) -> TcpStream {
        let net = self.net.try_clone().unwrap();
        let from: IpAddr = from.parse().unwrap();
        let to = SocketAddr::new(NEAR.parse().unwrap(), port);
        let dialled = std::thread::spawn(move || {
            move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            dial_from(from, to)
        });
        dialled.join().unwrap()
    }
}

/// A socket from this very address.
pub fn dial_from(from: IpAddr, to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let dialled = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        socket.connect(to).await?.into_std()
    });
    let socket: TcpStream = dialled.unwrap();
    socket.set_nonblocking(false).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    socket
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
