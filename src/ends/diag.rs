//! The kernel's word on one TCP socket of this machine: sock_diag(7), one question and one answer.
//!
//! Reading `/proc/net/tcp` instead costs the kernel a walk over every socket of the machine for each newcomer. The
//! libraries for it bring crates that are not kept any more, for 72 bytes of request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR` of linux/netlink.h.
const ERROR: u16 = 2;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
const TCP: u8 = 6;
const V4: u8 = 2;
const V6: u8 = 10;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const ASK: usize = 16 + 56;
/// `struct nlmsghdr` and `struct inet_diag_msg`.
const TOLD: usize = 16 + 72;

/// A socket that the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// A process holds it.
    Held {
        /// Its user.
        uid: u32,
        /// Of the socket.
        inode: u64,
    },
    /// Its holder has closed it: it keeps its place a while, with the uid 0 and the inode 0 of nobody.
    Ended,
}

/// The way to ask.
#[derive(Debug)]
pub struct Diag(OwnedFd);

impl Diag {
    /// # Errors
    /// The kernel cannot be asked this way.
    pub fn open() -> rustix::io::Result<Self> {
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        rustix::net::socket_with(AddressFamily::NETLINK, kind, flags, Some(SOCK_DIAG)).map(Self)
    }

    /// The socket whose own end is `local` and whose other end is `remote`, and which is bound to no device, or to the
    /// one with the index `device` (0: to none); `None`: there is no such socket, or (inet_diag is not there) the kernel
    /// says nothing of any.
    ///
    /// # Errors
    /// The kernel cannot be asked this way.
    pub fn ask(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        device: u32,
    ) -> rustix::io::Result<Option<Known>> {
        let to = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(
            &self.0,
            &ask(local, remote, device),
            SendFlags::empty(),
            &to,
        )?;
        // The kernel has answered before the question's call returns: waiting would be for ever.
        let mut answer = [0; 512];
        let (_, length) = rustix::net::recv(&self.0, &mut answer, RecvFlags::DONTWAIT)?;
        read(answer.get(..length).unwrap_or_default(), local, remote)
    }
}

fn ask(local: SocketAddr, remote: SocketAddr, device: u32) -> [u8; ASK] {
    let mut ask = [0; ASK];
    let mut put = |at: usize, bytes: &[u8]| ask[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &72_u32.to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &REQUEST.to_ne_bytes());
    put(16, &[if local.is_ipv4() { V4 } else { V6 }, TCP]);
    // Every state; the answer says which.
    put(20, &u32::MAX.to_ne_bytes());
    put(24, &local.port().to_be_bytes());
    put(26, &remote.port().to_be_bytes());
    for (at, ip) in [(28, local.ip()), (44, remote.ip())] {
        match ip {
            IpAddr::V4(v4) => put(at, &v4.octets()),
            IpAddr::V6(v6) => put(at, &v6.octets()),
        }
    }
    put(60, &device.to_ne_bytes());
    // Any cookie.
    put(64, &[0xff; 8]);
    ask
}

/// An answer about another socket, a listening one with the same port for instance, is none.
fn read(answer: &[u8], local: SocketAddr, remote: SocketAddr) -> rustix::io::Result<Option<Known>> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?))
    };
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok());
    match kind.map(u16::from_ne_bytes) {
        Some(ERROR) => {
            let raw = word(16).map_or(0, |w| w.cast_signed().saturating_neg());
            return match Errno::from_raw_os_error(raw) {
                Errno::NOENT => Ok(None),
                other => Err(other),
            };
        }
        Some(BY_FAMILY) if answer.len() >= TOLD => {}
        _ => return Err(Errno::PROTO),
    }
    let end = |port: usize, ip: usize| -> Option<SocketAddr> {
        let port = u16::from_be_bytes(answer.get(port..port + 2)?.try_into().ok()?);
        let ip: IpAddr = if answer.get(16) == Some(&V4) {
            Ipv4Addr::from(<[u8; 4]>::try_from(answer.get(ip..ip + 4)?).ok()?).into()
        } else {
            Ipv6Addr::from(<[u8; 16]>::try_from(answer.get(ip..ip + 16)?).ok()?).into()
        };
        Some(SocketAddr::new(ip.to_canonical(), port))
    };
    let plain = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
    if end(20, 24) != Some(plain(local)) || end(22, 40) != Some(plain(remote)) {
        return Ok(None);
    }
    Ok(word(80).zip(word(84)).map(|told| match told {
        (_, 0) => Known::Ended,
        (uid, inode) => Known::Held {
            uid,
            inode: u64::from(inode),
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(local: SocketAddr, remote: SocketAddr) -> Option<Known> {
        Diag::open().unwrap().ask(local, remote, 0).unwrap()
    }

    #[test]
    fn the_kernel_names_the_owner_of_either_end_and_of_no_other() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(bind).unwrap();
            let at = listener.local_addr().unwrap();
            let client = std::net::TcpStream::connect(at).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let uid = rustix::process::geteuid().as_raw();
            let [told, other] =
                [(peer, at), (at, peer)].map(|(local, remote)| match owner(local, remote) {
                    Some(Known::Held { uid, inode }) => (uid, inode),
                    other => panic!("{other:?}"),
                });
            assert_eq!(told.0, uid);
            assert_ne!(told.1, other.1, "the other end");
            // A listener with the right port is not the connection that is asked about.
            let mut stranger = peer;
            stranger.set_port(peer.port().wrapping_add(1).max(1024));
            assert_eq!(owner(at, stranger), None);
            drop(server);
            drop(client);
        }
    }

    #[test]
    fn a_socket_that_has_ended_is_nobodys_and_not_roots() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(at).unwrap();
        let (server, peer) = listener.accept().unwrap();
        // Who closes first keeps the ended socket.
        drop(client);
        drop(server);
        assert_eq!(owner(peer, at), Some(Known::Ended));
    }

    #[test]
    fn an_answer_that_is_cut_or_about_another_is_none() {
        let (local, remote) = (
            "127.0.0.1:1000".parse().unwrap(),
            "127.0.0.1:2000".parse().unwrap(),
        );
        let mut answer = [0; TOLD];
        answer[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        answer[16] = V4;
        answer[20..22].copy_from_slice(&1000_u16.to_be_bytes());
        answer[22..24].copy_from_slice(&2000_u16.to_be_bytes());
        answer[24..28].copy_from_slice(&[127, 0, 0, 1]);
        answer[40..44].copy_from_slice(&[127, 0, 0, 1]);
        answer[80..84].copy_from_slice(&1000_u32.to_ne_bytes());
        answer[84..88].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(
            read(&answer, local, remote),
            Ok(Some(Known::Held {
                uid: 1000,
                inode: 7
            }))
        );
        assert_eq!(read(&answer, remote, local), Ok(None));
        answer[84..88].fill(0);
        assert_eq!(read(&answer, local, remote), Ok(Some(Known::Ended)));
        assert!(read(&answer[..TOLD - 1], local, remote).is_err());
        assert!(read(&[], local, remote).is_err());
    }
}
