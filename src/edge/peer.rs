//! Who is at the other end, asked of the kernel.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::path::Path;

use portcullis_actors::exec::{is_descendant_of_daemon, uid_of, uids};
use portcullis_actors::plain;
use portcullis_core::auth::sub_uids::SubUids;
use portcullis_core::sandbox::UserRange;

pub use crate::ends::{Came, Owner, came, is_of_this_machine, listed};

/// Descriptors of our runs that one look reads; beyond it the socket is taken for a run's.
const OF_RUNS: usize = 8_192;
/// Descriptors of all others.
const OUTSIDE: usize = 16_384;

/// The longest file of sub-uids that is read, bytes.
const SUB_UIDS: u64 = 1024 * 1024;

/// Reads whose sub-uids are whose (subuid(5)). What cannot be read has none; of a longer file the rest.
pub fn sub_uids(file: &Path) -> SubUids {
    use std::io::Read as _;
    if file.as_os_str().is_empty() {
        return SubUids::default();
    }
    let mut text = Vec::new();
    let read = plain::open_linked(file).and_then(|f| f.take(SUB_UIDS).read_to_end(&mut text));
    match read {
        Ok(length) if length as u64 == SUB_UIDS => tracing::warn!(
            target: "portcullis", file = %file.display(), "only its first {SUB_UIDS} bytes are read",
        ),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => tracing::warn!(
            target: "portcullis", file = %file.display(), %error, "each sub-uid is counted as a user of its own",
        ),
        _ => {}
    }
    SubUids::parse(&String::from_utf8_lossy(&text), uids())
}

/// The groups of a process of this user, for `gid:` operators (proc_pid_status(5)). None where its number is another
/// user's by now: whoever has it since would lend its groups.
pub fn groups(pid: i32, uid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name));
    let has = line("Uid:").and_then(|l| l.split_ascii_whitespace().nth(1)?.parse().ok());
    if has != Some(uid) {
        return Vec::new();
    }
    let gid = line("Gid:").and_then(|l| l.split_ascii_whitespace().nth(1));
    line("Groups:")
        .unwrap_or_default()
        .split_ascii_whitespace()
        .chain(gid)
        .filter_map(|g| g.parse().ok())
        .collect()
}

/// Whether a process is outside of our runs, and is there to be asked about. One that is gone could have left its
/// socket to a child.
pub fn is_outside(pid: i32) -> bool {
    // In this order: one that ends meanwhile is gone, not outside.
    !is_descendant_of_daemon(pid) && parent(pid).is_some()
}

/// Who is seen to hold a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// This process, outside of our runs; none of our descendants does.
    Outside(i32),
    /// One of our descendants.
    Run,
    /// Nobody whom we may look at. A run can keep one in flight, in the queue of a socket pair, or in a thread with
    /// descriptors of its own; another user's process may not be looked at by an ordinary user (proc(5)).
    Unseen,
}

/// The processes that were last seen to hold a client's socket. Only an order in which to look: each is looked at anew.
#[derive(Debug, Default)]
pub struct Holders(VecDeque<i32>);

impl Holders {
    const KEPT: usize = 8;

    /// Who holds this user's socket with this inode.
    ///
    /// Bounded: whoever opens more descriptors than are looked at is not seen, and who is not seen is no operator.
    pub fn look(&mut self, uid: u32, inode: u64) -> Holder {
        let wanted = format!("socket:[{inode}]");
        let mut left = OF_RUNS;
        let network = network_of("self");
        for pid in descendants() {
            // A box has a network of its own: it cannot hold a socket of this one but by a command of the host, whose
            // socket is then held by nobody outside.
            if network_of(&pid.to_string()) != network {
                continue;
            }
            match holds(pid, &wanted, &mut left) {
                Some(false) => {}
                Some(true) | None => return Holder::Run,
            }
        }
        let mut left = OUTSIDE;
        let mut is_it = |pid: i32| holds(pid, &wanted, &mut left) == Some(true);
        let seen = self.0.iter().copied().find(|pid| is_it(*pid));
        let holder = seen.or_else(|| {
            let mut all = processes();
            // Its own user's first, and who has just connected is most often young.
            all.sort_unstable_by_key(|pid| (user_of(*pid) != Some(uid), std::cmp::Reverse(*pid)));
            all.into_iter().find(|pid| is_it(*pid))
        });
        let Some(pid) = holder else {
            return Holder::Unseen;
        };
        if self.0.front() != Some(&pid) {
            self.0.retain(|known| *known != pid);
            self.0.push_front(pid);
            self.0.truncate(Self::KEPT);
        }
        if is_outside(pid) {
            Holder::Outside(pid)
        } else {
            Holder::Run
        }
    }

    /// Whether the other end of a connection is, or may be, one of our runs. It is for the other end to be seen outside:
    /// who hides from us while something runs is taken for a run.
    ///
    /// Asked of every address, not of loopback's alone: a run of the host can dial any address of this machine.
    pub fn is_of_a_run(&mut self, runs: &Runs, ip: IpAddr, owner: Owner) -> bool {
        runs.told(ip, owner).unwrap_or_else(|| {
            owner.is_none_or(|(uid, inode)| !matches!(self.look(uid, inode), Holder::Outside(_)))
        })
    }
}

/// Which users a run may have. It can take no other: it has no privilege, and none to gain (no-new-privileges).
#[derive(Debug, Clone)]
pub struct Runs {
    /// `[sandbox] uids`, of a root gateway's boxes.
    pub boxes: UserRange,
    /// `[exec.host] user`, of a root gateway's commands.
    pub host_user: String,
}

impl Runs {
    /// Whether that is one of our runs, where it is told without a look at descriptors.
    pub fn told(&self, ip: IpAddr, owner: Owner) -> Option<bool> {
        if is_childless() {
            return Some(false);
        }
        match owner {
            Some((uid, _)) if !self.may_have(uid) => Some(false),
            Some(_) => None,
            // Of another machine; or of this one, and closed before it was looked at. A run may send from any address here.
            None => Some(is_of_this_machine(ip)),
        }
    }

    /// May a socket of this user be a run's?
    pub fn may_have(&self, uid: u32) -> bool {
        let own = rustix::process::geteuid();
        if !own.is_root() {
            return uid == own.as_raw();
        }
        // Where the user cannot be found, nobody can be told from it.
        self.boxes.has(uid) || uid_of(&self.host_user).is_none_or(|user| user == uid)
    }
}

/// Whether this process has no child, dead ones included, and so no descendant: then the parents of all processes, a millisecond's
/// reading and more, need not be read.
pub fn is_childless() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    // Only looked at: whoever started a child waits for it.
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::All, look), Err(rustix::io::Errno::CHILD))
}

/// `None`: it has more open than there is left to look at.
fn holds(pid: i32, wanted: &str, left: &mut usize) -> Option<bool> {
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Some(false);
    };
    for fd in open.flatten() {
        *left = left.checked_sub(1)?;
        if std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted) {
            return Some(true);
        }
    }
    Some(false)
}

/// The network namespace (namespaces(7)); `None` where we may not look, and then into its descriptors neither.
fn network_of(process: &str) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/net")).ok()
}

/// The effective user.
fn user_of(pid: i32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    Some(std::fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}

fn processes() -> Vec<i32> {
    let Ok(all) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    all.flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .collect()
}

/// The processes below this one; this one is none of them.
fn descendants() -> Vec<i32> {
    if is_childless() {
        return Vec::new();
    }
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in processes() {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![std::process::id().cast_signed()];
    while let Some(pid) = next.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            found.push(child);
            next.push(child);
        }
    }
    found
}

/// The fourth field of `/proc/PID/stat`, after the name in brackets, which may hold anything (proc_pid_stat(5)).
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn tcp_owner(peer: SocketAddr, own: SocketAddr) -> Owner {
        match came(peer, own) {
            Came::By(owner) => owner,
            other => panic!("{other:?}"),
        }
    }

    fn is_held_outside(holders: &mut Holders, inode: u64) -> bool {
        let uid = rustix::process::geteuid().as_raw();
        matches!(holders.look(uid, inode), Holder::Outside(_))
    }

    /// Its commands of the host have this process' user.
    fn runs() -> Runs {
        Runs {
            boxes: UserRange::default(),
            host_user: "root".to_owned(),
        }
    }

    #[test]
    fn a_child_is_not_outside_and_its_socket_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let (_, inode) = tcp_owner(peer, server.local_addr().unwrap()).unwrap();
        assert!(
            is_held_outside(&mut Holders::default(), inode),
            "this process holds it, no child does"
        );
        let mut child = std::process::Command::new("sleep")
            .arg("20")
            .stdin(std::os::fd::OwnedFd::from(client))
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        assert!(!is_outside(pid));
        assert!(!is_held_outside(&mut Holders::default(), inode));
        let owner = tcp_owner(peer, server.local_addr().unwrap());
        let is_of_a_run = |owner| Holders::default().is_of_a_run(&runs(), peer.ip(), owner);
        assert!(is_of_a_run(owner));
        assert!(is_of_a_run(None), "closed: nobody can say whose it was");
        assert!(
            !is_of_a_run(Some((4_000_000, inode))),
            "no run has this user"
        );
        assert!(is_outside(
            parent(std::process::id().cast_signed()).unwrap()
        ));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_outside(pid), "gone: nobody can say");
    }

    #[test]
    fn who_was_seen_once_is_only_looked_at_first() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let own = std::process::id().cast_signed();
        let mut holders = Holders(VecDeque::from([1, i32::MAX]));
        let mut client = std::net::TcpStream::connect(at).unwrap();
        for _ in 0..2 {
            let (_, peer) = listener.accept().unwrap();
            let (_, inode) = tcp_owner(peer, at).unwrap();
            assert!(is_held_outside(&mut holders, inode));
            assert_eq!(holders.0.front(), Some(&own));
            client = std::net::TcpStream::connect(at).unwrap();
        }
        assert_eq!(holders.0.len(), 3);
        let (_, peer) = listener.accept().unwrap();
        let (_, inode) = tcp_owner(peer, at).unwrap();
        drop(client);
        assert!(
            !is_held_outside(&mut holders, inode),
            "it held others, not this one"
        );
    }

    /// The bug: a command of the host with the gateway's own uid sent its request, put its socket into the queue of a
    /// socket pair, and was an operator when nobody was seen to hold it.
    #[test]
    fn a_socket_in_flight_is_nobodys() {
        use rustix::net::{
            AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
            SocketType, sendmsg, socketpair,
        };
        use std::os::fd::AsFd as _;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let (_, inode) = tcp_owner(peer, server.local_addr().unwrap()).unwrap();
        let (queue, _other) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let fds = [client.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let byte = [std::io::IoSlice::new(&[0])];
        sendmsg(&queue, &byte, &mut ancillary, SendFlags::empty()).unwrap();
        drop(client);
        assert!(!is_held_outside(&mut Holders::default(), inode));
        // While something runs, who is not seen is taken for it: at the page, at /rpc, and as an operator.
        let mut child = std::process::Command::new("sleep")
            .arg("20")
            .spawn()
            .unwrap();
        let owner = tcp_owner(peer, server.local_addr().unwrap());
        assert!(Holders::default().is_of_a_run(&runs(), peer.ip(), owner));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The bug: a box with a hundred thousand descriptors made each look at who has connected take a second.
    #[test]
    fn a_look_reads_so_many_descriptors_and_no_more() {
        let own = std::process::id().cast_signed();
        let none = "socket:[0]";
        let mut left = 1_000_000;
        assert_eq!(holds(own, none, &mut left), Some(false));
        let open = 1_000_000 - left;
        assert!(open >= 3);
        let mut left = open / 2;
        assert_eq!(holds(own, none, &mut left), None);
        assert_eq!(holds(own, none, &mut left), None);
    }

    #[test]
    fn a_child_that_hides_its_descriptors_is_believed_only_beside_an_owner_outside() {
        use std::os::unix::fs::PermissionsExt as _;
        use std::os::unix::process::CommandExt as _;
        let folder = tempfile::tempdir().unwrap();
        let place = |from: &std::path::Path, name: &str, mode| {
            let to = folder.path().join(name);
            std::fs::copy(from, &to).unwrap();
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode)).unwrap();
            to
        };
        if rustix::process::geteuid().is_root() {
            // Nobody hides from root: the same as another user.
            let mode = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(folder.path(), mode).unwrap();
            let test = place(&std::env::current_exe().unwrap(), "tests", 0o755);
            let status = std::process::Command::new(test)
                .args(["edge::peer", "--test-threads=1"])
                .env("TMPDIR", folder.path())
                .current_dir(folder.path())
                .gid(65_532)
                .uid(65_532)
                .status();
            assert!(status.unwrap().success());
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let (_, inode) = tcp_owner(peer, server.local_addr().unwrap()).unwrap();
            (client, server, inode)
        };
        let (client, _server, inode) = connect();
        // What may be executed and not read hides all that it has open.
        let hidden = place(std::path::Path::new("/bin/sleep"), "sleep", 0o111);
        let mut child = std::process::Command::new(hidden)
            .arg("20")
            .stdin(std::os::fd::OwnedFd::from(client))
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        // A start returns a moment before the kernel has made the new program unreadable.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok() {
            assert!(std::time::Instant::now() < until, "it does not hide");
            std::thread::yield_now();
        }
        assert!(!is_held_outside(&mut Holders::default(), inode));
        // This test stands for somebody outside.
        let (_client, _server, inode) = connect();
        assert!(is_held_outside(&mut Holders::default(), inode));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn own_groups_are_read() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert!(groups(pid, uid).contains(&rustix::process::getegid().as_raw()));
        assert!(groups(pid, uid + 1).is_empty(), "it is another's");
    }
}
