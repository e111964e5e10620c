//! Who holds the other end of a TCP connection, asked of the kernel: the edge asks it of who has come, and our own clients of
//! who listens where they have dialled.

mod diag;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use diag::{Diag, Known};

/// Interfaces whose sockets are asked about one by one; what is bound to another is not found.
const DEVICES: usize = 256;

/// The user of a socket's other end and the socket's inode, where it is of this machine.
pub type Owner = Option<(u32, u64)>;

/// The kernel's word on the other end of a TCP socket that has just come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// A process of this machine holds it; or, with `None`, another machine's, or one that is not found.
    By(Owner),
    /// It is closed already: nobody is there to hear an answer.
    Gone,
    /// The kernel cannot be asked about one socket: its list is to be read ([`listed`]), which takes long.
    Unsaid,
}

/// The uid of the process that holds the other end of a loopback TCP connection, and the inode of its socket, asked by
/// sock_diag(7).
pub fn came(peer: SocketAddr, own: SocketAddr) -> Came {
    let Ok(diag) = Diag::open() else {
        return Came::Unsaid;
    };
    let found = |device: u32| match diag.ask(peer, own, device) {
        Ok(Some(Known::Held { uid, inode })) => Some(Came::By(Some((uid, inode)))),
        Ok(Some(Known::Ended)) => Some(Came::Gone),
        Ok(None) => None,
        Err(_) => Some(Came::Unsaid),
    };
    if let Some(came) = found(0) {
        return came;
    }
    if !is_of_this_machine(peer.ip()) {
        return Came::By(None);
    }
    // The one question misses a socket that is bound to a device (SO_BINDTODEVICE).
    if let Some(came) = devices().into_iter().find_map(found) {
        return came;
    }
    // Without inet_diag the kernel knows of none: not of our own end either, which is there.
    match diag.ask(own, peer, 0) {
        Ok(Some(_)) => Came::By(None),
        Ok(None) | Err(_) => Came::Unsaid,
    }
}

/// In a user namespace that has not a number for every user, the one that stands for all who have none here
/// (user_namespaces(7)): of it the kernel's word says nothing.
pub fn nobody() -> Option<u32> {
    // Of a kernel without such namespaces nothing is there to read.
    let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
    if has_all(&map) {
        return None;
    }
    let named = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    Some(
        named
            .and_then(|uid| uid.trim().parse().ok())
            .unwrap_or(65_534),
    )
}

/// First number here, first outside, how many.
fn has_all(map: &str) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (first, count) = (fields.next(), fields.nth(1));
        first == Some("0") && count.and_then(|n| n.parse().ok()) == Some(u32::MAX)
    })
}

/// The indexes of the network interfaces; of very many the first.
fn devices() -> Vec<u32> {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else {
        return Vec::new();
    };
    let indexes = interfaces.iter().map(nix::net::if_::Interface::index);
    indexes.take(DEVICES).collect()
}

/// What `/proc/net/tcp` and `tcp6` (proc(5)) say of many (the other end, our own) at once, in their order: the kernel
/// walks over every socket of the machine for it.
pub fn listed(all: &[(SocketAddr, SocketAddr)]) -> Vec<Came> {
    let read = |table| std::fs::read_to_string(table).unwrap_or_default();
    let has = |is_v4: bool| all.iter().any(|(peer, _)| peer.is_ipv4() == is_v4);
    let mut tables = String::new();
    for (is_v4, table) in [(true, "/proc/net/tcp"), (false, "/proc/net/tcp6")] {
        if has(is_v4) {
            tables.push_str(&read(table));
        }
    }
    find(&tables, all)
}

fn find(tables: &str, all: &[(SocketAddr, SocketAddr)]) -> Vec<Came> {
    let mut found = vec![Came::By(None); all.len()];
    let asked: HashMap<_, _> = all
        .iter()
        .zip(0_usize..)
        .map(|((peer, own), at)| ((proc_form(*peer), proc_form(*own)), at))
        .collect();
    for line in tables.lines() {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(remote)) = (fields.next(), fields.next()) else {
            continue;
        };
        let Some(at) = asked.get(&(local.to_owned(), remote.to_owned())) else {
            continue;
        };
        // state, queues, timer, retransmits; then uid, timeout, inode.
        let (uid, inode) = (fields.nth(4), fields.nth(1));
        let number = |field: Option<&str>| field.and_then(|f| f.parse::<u64>().ok());
        found[*at] = match (uid.and_then(|f| f.parse().ok()), number(inode)) {
            // One that is closed already has no inode, and root's uid, whoever made it.
            (Some(_), Some(0)) => Came::Gone,
            (Some(uid), Some(inode)) => Came::By(Some((uid, inode))),
            _ => Came::By(None),
        };
    }
    found
}

/// The kernel prints the address as words in its own byte order.
fn proc_form(address: SocketAddr) -> String {
    let bytes = match address {
        SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
        SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
    };
    let words: Vec<String> = bytes
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes(word.try_into().unwrap_or_default()))
        .map(|word| format!("{word:08X}"))
        .collect();
    format!("{}:{:04X}", words.concat(), address.port())
}

/// Loopback, or an address of one of our interfaces: any process here can send from it.
pub fn is_of_this_machine(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    if ip.is_loopback() {
        return true;
    }
    // Nobody can say: then it may be.
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return true;
    };
    let own = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    own.map(|own| own.to_canonical()).any(|own| own == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_a_number_for_every_user_or_one_that_stands_for_the_others() {
        assert!(has_all("         0          0 4294967295\n"));
        for part in ["", "65534 1000 1\n", "0 100000 65536\n1000 1000 1\n"] {
            assert!(!has_all(part), "{part}");
        }
    }

    fn tcp_owner(peer: SocketAddr, own: SocketAddr) -> Owner {
        match came(peer, own) {
            Came::By(owner) => owner,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_kernel_names_the_owner_of_a_loopback_connection() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(bind).unwrap();
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let own = server.local_addr().unwrap();
            let (uid, inode) = tcp_owner(peer, own).unwrap();
            assert_eq!(uid, rustix::process::geteuid().as_raw());
            assert!(inode > 0);
            assert_eq!(
                listed(&[(own, own), (peer, own)]),
                [Came::By(None), Came::By(Some((uid, inode)))]
            );
            assert_eq!(client.local_addr().unwrap(), peer);
        }
    }

    #[test]
    fn another_connection_is_not_taken_for_it() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 12345 1\n";
        let at = |t: &str| t.parse::<SocketAddr>().unwrap();
        let asked = [
            (at("127.0.0.1:8080"), at("127.0.0.1:50001")),
            (at("127.0.0.1:8080"), at("127.0.0.1:50000")),
            (at("127.0.0.2:8080"), at("127.0.0.1:50000")),
        ];
        let nobody = Came::By(None);
        let ann = Came::By(Some((1000, 12345)));
        assert_eq!(find(table, &asked), [nobody, ann, nobody]);
        let closed = table.replace(" 12345 ", " 0 ");
        assert_eq!(find(&closed, &asked), [nobody, Came::Gone, nobody]);
    }

    #[test]
    fn a_socket_that_is_closed_has_no_owner() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        drop(client);
        let own = server.local_addr().unwrap();
        // The kernel still knows it, as root's.
        assert_eq!(came(peer, own), Came::Gone);
        assert_eq!(listed(&[(peer, own)]), [Came::Gone]);
        // By a reset it is gone altogether, and our own end with it.
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        rustix::net::sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(came(peer, own), Came::Unsaid);
        assert!(server.peer_addr().is_err());
    }

    /// The bug: a command bound its socket to a device, was not found, and so was of another machine.
    #[test]
    fn a_socket_that_is_bound_to_a_device_has_its_owner_all_the_same() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let bound = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )
        .unwrap();
        nix::sys::socket::setsockopt(
            &bound,
            nix::sys::socket::sockopt::BindToDevice,
            &std::ffi::OsString::from("lo"),
        )
        .unwrap();
        rustix::net::connect(&bound, &at).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let own = server.local_addr().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(tcp_owner(peer, own).map(|(uid, _)| uid), Some(uid));
    }
}
