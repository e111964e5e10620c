//! The accept loops: one for each door, with the kernel's word on who has come.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use portcullis_actors::connection::Stream;
use portcullis_actors::supervision::{Crash, Ctx};
use portcullis_core::auth::sub_uids::SubUids;
use portcullis_core::protocol::ConnectRefusal;
use rustix::net::SocketFlags;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::actor::{Edge, EdgeWiring};
use super::budget::Origin;
use super::handle::EdgeHandle;
use super::peer::{self, Came};
use crate::config::Local;

/// After a failed accept (no descriptors left): the kernel keeps newcomers in its backlog meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of the shared socket, before anything else has its turn.
const AT_ONCE: usize = 64;
/// Who may wait for the next reading of the kernel's list; the others wait at the door.
const UNSAID: usize = 512;
/// The thread that reads it.
pub const LIST: &str = "list";
/// Who is no operator and is told so, a second; more are dropped without a word, which costs least.
const GOODBYES: u32 = 32;
/// For one of them to ask and to read.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);
/// Of its request, bytes.
const REQUEST_MAX: usize = 8 * 1024;

/// Where a socket came from.
#[derive(Debug, Clone, Copy)]
pub enum From {
    /// The other end, and the kernel's word on whose it is.
    Tcp {
        peer: SocketAddr,
        owner: peer::Owner,
    },
    /// The kernel's word on the peer, asked when it came; `shared`: over the socket that every user may dial.
    Control {
        uid: u32,
        is_operator: bool,
        is_outside: bool,
        shared: bool,
    },
    /// The kernel's word on who dialled `agent.sock`: it counts guessers apart, and opens nothing.
    Agent { uid: u32 },
}

impl From {
    /// The user of this machine whose it is, as far as the kernel and subuid(5) say.
    pub fn account(self, sub_uids: &SubUids) -> Option<u32> {
        let uid = match self {
            Self::Tcp { peer, owner } if peer.ip().to_canonical().is_loopback() => owner?.0,
            Self::Tcp { .. } => return None,
            Self::Control { uid, .. } | Self::Agent { uid } => uid,
        };
        Some(sub_uids.account(uid))
    }

    /// Is it an operator's process, and no run of ours?
    const fn is_let_in(self) -> bool {
        matches!(
            self,
            Self::Control {
                is_operator: true,
                is_outside: true,
                ..
            }
        )
    }

    /// Whose budget it takes from.
    pub fn origin(self, sub_uids: &SubUids) -> Origin {
        match self {
            Self::Tcp { peer, .. } => Origin::of(peer.ip(), self.account(sub_uids)),
            Self::Control { shared: false, .. } => Origin::Unix,
            Self::Control {
                shared: true, uid, ..
            } => Origin::Shared(sub_uids.account(uid)),
            Self::Agent { uid } => Origin::Agents(sub_uids.account(uid)),
        }
    }
}

/// Begins to take newcomers at every door.
pub fn all(wiring: &EdgeWiring, ctx: &Ctx<Edge>) -> Result<(), Crash> {
    accept_tcp(wiring, ctx)?;
    accept_control(wiring, ctx)?;
    if let Some(shared) = wiring.doors.shared()? {
        accept_shared(shared, wiring.local.clone(), ctx);
    }
    accept_agent(wiring, ctx)
}

fn accept_tcp(wiring: &EdgeWiring, ctx: &Ctx<Edge>) -> Result<(), Crash> {
    let listener = wiring.doors.tcp()?;
    let edge = EdgeHandle::new(ctx.myself());
    let readers = ctx.clone();
    ctx.task("tcp door", 0, async move {
        let mut unsaid: Vec<Newcomer> = Vec::new();
        // One at a time, for all who came before it: however many come, this task reads no list.
        let mut reading = FuturesUnordered::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept(), if unsaid.len() < UNSAID => accepted,
                Some(read) = reading.next() => {
                    for (newcomer, came) in read {
                        enter(&edge, newcomer, came).await;
                    }
                    if !unsaid.is_empty() {
                        reading.push(listed(readers.clone(), std::mem::take(&mut unsaid)));
                    }
                    continue;
                }
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Small frames each way: waiting to fill packets only costs time.
                    let _ = stream.set_nodelay(true);
                    let Ok(own) = stream.local_addr() else {
                        continue;
                    };
                    // Asked now: it is the first moment, and whoever closes later has been seen.
                    let came = peer::came(peer, own);
                    // Without its other end our own says nothing of that end.
                    if came == Came::Gone || stream.peer_addr().is_err() {
                        continue;
                    }
                    let newcomer = Newcomer { stream, peer, own };
                    if came != Came::Unsaid {
                        enter(&edge, newcomer, came).await;
                    } else if reading.is_empty() {
                        reading.push(listed(readers.clone(), vec![newcomer]));
                    } else {
                        unsaid.push(newcomer);
                    }
                }
                Err(error) => pause("tcp", &error).await,
            }
        }
    })
    .keep();
    Ok(())
}

/// At the TCP door, and not entered yet.
struct Newcomer {
    stream: TcpStream,
    peer: SocketAddr,
    own: SocketAddr,
}

/// What the kernel's list says of these.
async fn listed(readers: Ctx<Edge>, newcomers: Vec<Newcomer>) -> Vec<(Newcomer, Came)> {
    let ends: Vec<_> = newcomers.iter().map(|n| (n.peer, n.own)).collect();
    let (tell, told) = oneshot::channel();
    let job = move || drop(tell.send(peer::listed(&ends)));
    let read = match readers.blocking(LIST, 0, job) {
        Ok(()) => told.await.unwrap_or_default(),
        // Nothing was read: nobody is known.
        Err(_) => Vec::new(),
    };
    let mut came = read.into_iter();
    let newcomers = newcomers.into_iter();
    newcomers
        .map(|newcomer| (newcomer, came.next().unwrap_or(Came::By(None))))
        .collect()
}

/// Who has gone takes no place: a flood of those costs nobody his.
async fn enter(edge: &EdgeHandle, newcomer: Newcomer, came: Came) {
    let Newcomer { stream, peer, .. } = newcomer;
    let owner = match came {
        Came::By(owner) => owner,
        Came::Unsaid => None,
        Came::Gone => return,
    };
    let from = From::Tcp { peer, owner };
    edge.accepted(Stream::Tcp(stream), from).await;
}

fn accept_control(wiring: &EdgeWiring, ctx: &Ctx<Edge>) -> Result<(), Crash> {
    let listener = wiring.doors.control()?;
    let local = wiring.local.clone();
    let edge = EdgeHandle::new(ctx.myself());
    ctx.task("control door", 0, async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Ok(from) = of_operators(&stream, &local, false) {
                        edge.accepted(Stream::Unix(stream), from).await;
                    }
                }
                Err(error) => pause("control", &error).await,
            }
        }
    })
    .keep();
    Ok(())
}

/// Every user may dial it, so who is no operator is turned away here: the room hears nothing of him, and he takes none of
/// its places. Nor is his socket registered with the runtime: whoever dials as fast as he can is dropped faster.
fn accept_shared(listener: UnixListener, local: Local, ctx: &Ctx<Edge>) {
    let edge = EdgeHandle::new(ctx.myself());
    ctx.task("shared door", 0, async move {
        let mut goodbyes = FuturesUnordered::new();
        let (mut said, mut since) = (0, Instant::now());
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted.and_then(|(stream, _)| stream.into_std()),
                Some(()) = goodbyes.next() => continue,
            };
            let mut next = match accepted {
                Ok(stream) => Some(OwnedFd::from(stream)),
                Err(error) => {
                    pause("shared", &error).await;
                    continue;
                }
            };
            let mut more = AT_ONCE;
            while let Some(stream) = next {
                if let Ok(from) = of_operators(&stream, &local, true) {
                    let is_let_in = from.is_let_in();
                    if !is_let_in && since.elapsed() >= GOODBYE_WITHIN {
                        (said, since) = (0, Instant::now());
                    }
                    said += u32::from(!is_let_in);
                    if is_let_in || said <= GOODBYES {
                        match UnixStream::from_std(stream.into()) {
                            Ok(stream) if is_let_in => {
                                edge.accepted(Stream::Unix(stream), from).await;
                            }
                            Ok(stream) => goodbyes.push(goodbye(stream)),
                            Err(error) => pause("shared", &error).await,
                        }
                    }
                }
                more -= 1;
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                // None, or what the next turn will hear of.
                next = (more > 0)
                    .then(|| rustix::net::accept_with(&listener, flags).ok())
                    .flatten();
            }
            // Whoever else waits for this thread comes in between.
            tokio::task::yield_now().await;
        }
    })
    .keep();
}

/// What the kernel says of who has dialled a control socket.
fn of_operators(stream: &impl AsFd, local: &Local, shared: bool) -> Result<From, Errno> {
    let cred = getsockopt(stream, PeerCredentials)?;
    let (uid, pid) = (cred.uid(), cred.pid());
    let own = rustix::process::geteuid().as_raw();
    let mut groups = vec![cred.gid()];
    if !local.gids().is_empty() {
        // At once: the number of a process that ends is given to another.
        groups.extend(peer::groups(pid, uid));
    }
    let is_operator = local.is_operator(uid, &groups, own);
    Ok(From::Control {
        uid,
        is_operator,
        // Nobody without a number here is to be looked at.
        is_outside: pid > 0 && peer::is_outside(pid),
        shared,
    })
}

/// Hears who is no operator out, and says so in the words that `connect` has for it.
async fn goodbye(mut stream: UnixStream) {
    let whole = async {
        let mut asked = Vec::new();
        while asked.len() < REQUEST_MAX && !asked.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut asked).await.unwrap_or_default() == 0 {
                return;
            }
        }
        let body = json!({ "error": ConnectRefusal::not_operator().error }).to_string();
        let answer = format!(
            "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Type: application/json\r\n\
            Content-Length: {}\r\n\r\n{body}",
            body.len(),
        );
        // Gone already is as good.
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    };
    let _ = timeout(GOODBYE_WITHIN, whole).await;
}

fn accept_agent(wiring: &EdgeWiring, ctx: &Ctx<Edge>) -> Result<(), Crash> {
    let listener = wiring.doors.agent()?;
    let edge = EdgeHandle::new(ctx.myself());
    ctx.task("agent door", 0, async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Ok(cred) = stream.peer_cred() {
                        let from = From::Agent { uid: cred.uid() };
                        edge.accepted(Stream::Unix(stream), from).await;
                    }
                }
                Err(error) => pause("agent", &error).await,
            }
        }
    })
    .keep();
    Ok(())
}

async fn pause(door: &str, error: &std::io::Error) {
    tracing::warn!(target: "portcullis", door, %error, "a socket could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
