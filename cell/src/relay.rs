//! The way out of a box that has one: what connects to 127.0.0.1 on [`RELAY_PORT`] is passed on, unread, to the gateway's socket.
//!
//! A thread of pid 1, with a loop of its own. Rejected: a process of its own, because it would have the runs' uid, and on kernels without
//! Landlock's scopes a run could end it or put another in its place; pid 1 takes no signal from inside, is not dumpable, and has the port
//! before the first run begins. A run may dial the gateway's socket itself: it is the box's own, and the gateway believes nothing that
//! comes over it, so nothing is gained by that.
//!
//! It keeps no clock: the gateway ends what is idle, and what it ends ends here.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use portcullis_cell::RELAY_PORT;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections at once; more wait in the kernel until one ends. A few more than the gateway takes, so that it is the one who says no.
const MOST: usize = 96;
/// Bytes under way in each direction of a connection.
const BUFFER: usize = 16 * 1024;
/// Of the thread.
const STACK: usize = 128 * 1024;

/// Takes the port and begins. From here on a connection to it is one to `socket`.
pub fn start(socket: String) -> Result<(), String> {
    let said = |error: io::Error| format!("127.0.0.1:{RELAY_PORT}: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, RELAY_PORT)).map_err(said)?;
    listener.set_nonblocking(true).map_err(said)?;
    std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || Relay::new(listener, socket).turn())
        .map_err(|error| format!("no thread: {error}"))?;
    Ok(())
}

struct Relay {
    listener: TcpListener,
    socket: String,
    pairs: Vec<Pair>,
}

impl Relay {
    const fn new(listener: TcpListener, socket: String) -> Self {
        Self {
            listener,
            socket,
            pairs: Vec::new(),
        }
    }

    fn turn(mut self) {
        loop {
            self.wait();
            while self.pairs.len() < MOST
                && let Ok((inside, _)) = self.listener.accept()
            {
                // Where the gateway does not listen, the client sees its connection end.
                if let Ok(pair) = dial(&self.socket).and_then(|out| Pair::new(inside, out)) {
                    self.pairs.push(pair);
                }
            }
            self.pairs.retain_mut(|pair| pair.pass().is_ok());
        }
    }

    fn wait(&self) {
        let mut polled = Vec::with_capacity(2 * self.pairs.len() + 1);
        if self.pairs.len() < MOST {
            polled.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        for pair in &self.pairs {
            let ends: [(BorrowedFd<'_>, bool, bool); 2] = [
                (pair.inside.as_fd(), pair.up.takes(), pair.down.gives()),
                (pair.outside.as_fd(), pair.down.takes(), pair.up.gives()),
            ];
            for (end, read, write) in ends {
                // What is neither read nor written is not asked about: its end would be told again and again.
                if read || write {
                    let mut flags = PollFlags::empty();
                    flags.set(PollFlags::IN, read);
                    flags.set(PollFlags::OUT, write);
                    polled.push(PollFd::from_borrowed_fd(end, flags));
                }
            }
        }
        let _ = rustix::event::poll(&mut polled, None);
    }
}

/// Without waiting: a gateway that does not accept must not hold the others up.
fn dial(path: &str) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// A client inside, and its connection to the gateway.
struct Pair {
    inside: TcpStream,
    outside: UnixStream,
    up: Pipe,
    down: Pipe,
}

impl Pair {
    fn new(inside: TcpStream, outside: UnixStream) -> io::Result<Self> {
        inside.set_nonblocking(true)?;
        let _ = inside.set_nodelay(true);
        Ok(Self {
            inside,
            outside,
            up: Pipe::new(),
            down: Pipe::new(),
        })
    }

    /// Whatever can be passed on now; an error where the pair is over.
    fn pass(&mut self) -> io::Result<()> {
        if self.down.pass(&mut &self.outside, &mut &self.inside)? {
            self.inside.shutdown(Shutdown::Write)?;
        }
        self.up.fill(&mut &self.inside)?;
        match self.up.empty(&mut &self.outside) {
            Ok(false) => {}
            // An end that is over already has nothing to be told.
            Ok(true) => drop(self.outside.shutdown(Shutdown::Write)),
            // The gateway takes no more, but its last words are still to be passed on.
            Err(_) => self.up.give_up(),
        }
        if self.up.ended && self.down.ended {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// One direction.
struct Pipe {
    bytes: Vec<u8>,
    sent: usize,
    /// Its source has ended.
    dry: bool,
    /// Its target has been told so.
    ended: bool,
}

impl Pipe {
    const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            sent: 0,
            dry: false,
            ended: false,
        }
    }

    fn takes(&self) -> bool {
        !self.dry && self.bytes.is_empty()
    }

    const fn gives(&self) -> bool {
        self.sent < self.bytes.len()
    }

    /// Reads once and writes what there is; true: its target is to be told of the end, once.
    fn pass(&mut self, from: &mut impl Read, to: &mut impl Write) -> io::Result<bool> {
        self.fill(from)?;
        self.empty(to)
    }

    fn fill(&mut self, from: &mut impl Read) -> io::Result<()> {
        if self.takes() {
            self.bytes.resize(BUFFER, 0);
            let read = ready(from.read(&mut self.bytes));
            self.bytes
                .truncate(read.as_ref().map_or(0, |read| read.unwrap_or(0)));
            self.dry = read? == Some(0);
        }
        Ok(())
    }

    fn empty(&mut self, to: &mut impl Write) -> io::Result<bool> {
        while self.gives() {
            let Some(count) = ready(to.write(&self.bytes[self.sent..]))? else {
                return Ok(false);
            };
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.sent += count;
        }
        self.bytes = Vec::new();
        self.sent = 0;
        let ends = self.dry && !self.ended;
        self.ended |= ends;
        Ok(ends)
    }

    /// Its target takes nothing any more.
    fn give_up(&mut self) {
        self.bytes = Vec::new();
        self.sent = 0;
        self.dry = true;
        self.ended = true;
    }
}

/// `None`: not now.
fn ready(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    fn relay(folder: &std::path::Path) -> (std::net::SocketAddr, UnixListener) {
        let path = folder.join("e");
        let gateway = UnixListener::bind(&path).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let relay = Relay::new(listener, path.to_str().unwrap().to_owned());
        std::thread::spawn(move || relay.turn());
        (address, gateway)
    }

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("relay-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn what_goes_in_comes_out_in_both_directions_and_ends_pass_each_way() {
        let folder = folder("both");
        let (address, gateway) = relay(&folder);
        let mut client = TcpStream::connect(address).unwrap();
        let (mut server, _) = gateway.accept().unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_be_bytes).collect();
        let expected = sent.clone();
        let mut writer = client.try_clone().unwrap();
        let up = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        up.join().unwrap();
        assert!(got == expected);
        // Its end has come, and the other direction still lives.
        server.write_all(&expected[..300_000]).unwrap();
        drop(server);
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        assert!(back == expected[..300_000]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn one_that_does_not_read_holds_nobody_up_and_too_many_wait() {
        let folder = folder("many");
        let (address, gateway) = relay(&folder);
        let stuck = TcpStream::connect(address).unwrap();
        let (server, _) = gateway.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        while (&server).write(&[7; 65_536]).is_ok() {}
        let others: Vec<_> = (1..MOST)
            .map(|_| {
                let client = TcpStream::connect(address).unwrap();
                let (mut server, _) = gateway.accept().unwrap();
                server.write_all(b"hello").unwrap();
                let mut got = [0; 5];
                (&client).read_exact(&mut got).unwrap();
                (client, server)
            })
            .collect();
        let mut late = TcpStream::connect(address).unwrap();
        late.write_all(b"late").unwrap();
        gateway.set_nonblocking(true).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(gateway.accept().is_err(), "it waits");
        drop((stuck, server));
        drop(others);
        gateway.set_nonblocking(false).unwrap();
        let (mut server, _) = gateway.accept().unwrap();
        let mut got = [0; 4];
        server.set_nonblocking(false).unwrap();
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"late");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_gateways_last_words_reach_who_still_sends() {
        let folder = folder("last");
        let (address, gateway) = relay(&folder);
        for _ in 0..50 {
            let mut client = TcpStream::connect(address).unwrap();
            let (mut server, _) = gateway.accept().unwrap();
            client.write_all(&[7; 100_000]).unwrap();
            server.write_all(b"no").unwrap();
            drop(server);
            let mut got = [0; 2];
            client.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"no");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn where_nobody_listens_a_connection_just_ends() {
        let folder = folder("none");
        let (address, gateway) = relay(&folder);
        drop(gateway);
        let mut client = TcpStream::connect(address).unwrap();
        let mut got = Vec::new();
        let ended = client.read_to_end(&mut got);
        assert!(ended.is_err() || got.is_empty());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
