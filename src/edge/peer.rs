//! Who is at the other end, asked of the kernel.

use std::net::SocketAddr;

/// The uid of the process that holds the other end of a loopback TCP connection, and the inode of its socket.
///
/// Read from `/proc/net/tcp` and `tcp6` (proc(5)); `None` where the kernel does not say.
pub fn tcp_owner(peer: SocketAddr, own: SocketAddr) -> Option<(u32, u64)> {
    let table = if peer.is_ipv4() {
        "/proc/net/tcp"
    } else {
        "/proc/net/tcp6"
    };
    find(&std::fs::read_to_string(table).ok()?, peer, own)
}

fn find(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<(u32, u64)> {
    let (local, remote) = (proc_form(local), proc_form(remote));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        if fields.next()? != local || fields.next()? != remote {
            return None;
        }
        // state, queues, timer, retransmits; then uid, timeout, inode.
        let uid = fields.nth(4)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        Some((uid, inode))
    })
}

/// The kernel prints the address as words in its own byte order.
fn proc_form(address: SocketAddr) -> String {
    let bytes = match address {
        SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
        SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
    };
    let mut text = String::new();
    for word in bytes.chunks_exact(4) {
        let word: [u8; 4] = word.try_into().unwrap_or_default();
        text.push_str(&format!("{:08X}", u32::from_ne_bytes(word)));
    }
    format!("{text}:{:04X}", address.port())
}

/// The groups of a process, for `gid:` operators (proc_pid_status(5)).
pub fn groups(pid: i32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name));
    let gid = line("Gid:").and_then(|l| l.split_ascii_whitespace().nth(1));
    line("Groups:")
        .unwrap_or_default()
        .split_ascii_whitespace()
        .chain(gid)
        .filter_map(|g| g.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_the_owner_of_a_loopback_connection() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(bind).unwrap();
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let (uid, inode) = tcp_owner(peer, server.local_addr().unwrap()).unwrap();
            assert_eq!(uid, rustix::process::geteuid().as_raw());
            assert!(inode > 0);
            assert_eq!(client.local_addr().unwrap(), peer);
        }
    }

    #[test]
    fn another_connection_is_not_taken_for_it() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 12345 1\n";
        let at = |t: &str| t.parse::<SocketAddr>().unwrap();
        assert_eq!(
            find(table, at("127.0.0.1:8080"), at("127.0.0.1:50000")),
            Some((1000, 12345))
        );
        assert_eq!(
            find(table, at("127.0.0.1:8080"), at("127.0.0.1:50001")),
            None
        );
        assert_eq!(
            find(table, at("127.0.0.2:8080"), at("127.0.0.1:50000")),
            None
        );
    }

    #[test]
    fn own_groups_are_read() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(groups(pid).contains(&rustix::process::getegid().as_raw()));
    }
}
