//! The network, sockets of the host, and what is told of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::time::Duration;

use super::files::first;
use super::{Attempt, Given, Outcome, Why, refused};

/// For an answer.
const WITHIN: Duration = Duration::from_millis(700);

pub const ALL: &[(&str, Attempt)] = &[
    ("loopback", |given| connects(given, given.need("tcp")?)),
    ("host-address", |given| {
        connects(given, given.need("address")?)
    }),
    ("metadata", |_| {
        let address = SocketAddr::from(([169, 254, 169, 254], 80));
        let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
        stream.set_read_timeout(Some(WITHIN))?;
        stream.write_all(b"GET /latest/meta-data/ HTTP/1.0\r\n\r\n")?;
        hears(stream)
    }),
    ("abstract-socket", |given| {
        let address = UnixAddr::from_abstract_name(given.need("abstract")?)?;
        says_token(given, UnixStream::connect_addr(&address)?)
    }),
    ("path-socket", |given| {
        says_token(given, UnixStream::connect(given.need("path")?)?)
    }),
    ("control-socket", |_| {
        let mut stream = UnixStream::connect("/run/portcullis/s")?;
        stream.set_read_timeout(Some(WITHIN))?;
        // A HELLO that is none: nine bytes, its kind, no run.
        stream.write_all(b"\0\0\0\x09\x01\0\0\0\0\0\x02\0\0")?;
        hears(stream)
    }),
    ("engine-socket", |_| {
        let names = [
            "docker.sock",
            "containerd/containerd.sock",
            "podman/podman.sock",
        ];
        let folders = ["/var/run", "/run"];
        let paths = folders
            .iter()
            .flat_map(|at| names.map(|name| format!("{at}/{name}")));
        first(paths.collect(), |path| {
            UnixStream::connect(&path)?;
            Ok(format!("{path} answers"))
        })
    }),
    ("dns-tunnel", |given| {
        let server: SocketAddr = given.need("dns")?.parse().map_err(std::io::Error::other)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(WITHIN))?;
        // One question for the address of a name that carries data.
        let mut question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
        for label in ["stolen-data", "tunnel", "example"] {
            question.push(u8::try_from(label.len()).unwrap_or(0));
            question.extend(label.as_bytes());
        }
        question.extend(b"\0\0\x01\0\x01");
        socket.send_to(&question, server)?;
        let count = socket.recv(&mut [0; 512])?;
        Ok(format!("an answer of {count} bytes"))
    }),
    ("route-out", |_| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // Sends nothing: only the route is looked up.
        socket.connect("1.1.1.1:53")?;
        Ok(format!("from {}", socket.local_addr()?))
    }),
    ("interfaces", |_| {
        let table = fs::read_to_string("/proc/net/dev")?;
        let names = table.lines().skip(2);
        let mut names = names.filter_map(|line| Some(line.split_once(':')?.0.trim()));
        names.find(|name| *name != "lo").map_or_else(
            || refused("there is only lo"),
            |name| Ok(format!("{name} is there")),
        )
    }),
    ("sockets-listed", |given| {
        let name = given.need("abstract")?;
        if fs::read_to_string("/proc/net/unix")?.contains(name) {
            return Ok("the host's sockets are listed".to_owned());
        }
        refused("the host's socket is not listed")
    }),
    ("host-name-seen", |given| {
        let host = given.need("host")?;
        if rustix::system::uname().nodename().to_bytes() == host.as_bytes() {
            return Ok("the host's name is told".to_owned());
        }
        refused("it has another name")
    }),
    ("environment", |given| {
        let known: Vec<&str> = given.need("variables")?.split(',').collect();
        let mut names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        names
            .find(|name| !known.contains(&name.as_str()))
            .map_or_else(
                || refused("only what a box has"),
                |name| Ok(format!("{name} is set")),
            )
    }),
];

fn connects(given: &Given, address: &str) -> Outcome {
    let address = address.parse().map_err(std::io::Error::other)?;
    let stream = TcpStream::connect_timeout(&address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    says_token(given, stream)
}

/// Whoever answers is who was meant.
fn says_token(given: &Given, mut stream: impl std::io::Read) -> Outcome {
    let token = given.need("token")?;
    let mut said = vec![0; token.len()];
    stream.read_exact(&mut said)?;
    if said != token.as_bytes() {
        return refused("somebody else answers");
    }
    Ok("the host's service answers".to_owned())
}

fn hears(mut stream: impl std::io::Read) -> Result<String, Why> {
    let count = stream.read(&mut [0; 64])?;
    if count == 0 {
        return refused("it closes without a word");
    }
    Ok(format!("an answer of {count} bytes"))
}

/// Answers on an address for as long as this process lives: for a control in a network namespace of its own.
pub fn listen(given: &Given) {
    let Ok(address) = given.need("listen") else {
        return;
    };
    if let Ok(listener) = TcpListener::bind(address) {
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let _ = stream.read(&mut [0; 512]);
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
            }
        });
    }
}
