//! The actor.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use portcullis_actors::auth::{AuthNews, Peer};
use portcullis_actors::connection::{
    Accepted, CAPACITY, Connection, ConnectionHandle, ConnectionNews, ConnectionShared,
    ConnectionWiring, EndSessions, Io, Stream,
};
use portcullis_actors::pairing::PairingHandle;
use portcullis_actors::supervision::{
    Allowance, ChildEnd, Crash, Ctx, Feed, FeedItem, Flag, Reply, Room, Snapshot, TaskEnd,
    TaskHandle,
};
use portcullis_core::auth::limits::Source;
use portcullis_core::auth::proxy::SocketFacts;
use portcullis_core::auth::sub_uids::SubUids;
use portcullis_core::auth::{Door, Holder, Principal, Whose};
use portcullis_core::ids::DeviceId;
use portcullis_core::pairing::News;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::accept::{self, From};
use super::budget::{Budget, Limits};
use super::http::{self, Http, Said, Tell, Told};
use super::listen::Doors;
use super::looks::{self, Looks};
use super::peer;
use super::places::{Place, Places};
use crate::config::Local;

/// Between two warnings that all sockets are in use.
const WARN_EVERY: Duration = Duration::from_mins(1);
const HTTP: &str = "http";
/// Of one agent, whoever holds its token: each may hold a message that has not come to its end.
const SOCKETS_OF_AN_AGENT: usize = 64;

/// What the room is given at each start.
#[derive(Clone)]
pub struct EdgeWiring {
    /// The listening sockets.
    pub doors: Doors,
    /// HTTP on them.
    pub http: Http,
    /// Limits.
    pub limits: crate::config::Limits,
    /// Who on this machine is an operator.
    pub local: Local,
    /// Whose sub-uids are whose.
    pub sub_uids: Arc<SubUids>,
    /// Everything a connection needs but its key and its news.
    pub connection: ConnectionShared,
    /// Devices.
    pub pairing: PairingHandle,
    /// Secrets that open nothing any more.
    pub auth_news: Feed<AuthNews>,
    /// Devices with a live socket, for `device.pair.list`.
    pub connected: Arc<Flag<BTreeSet<DeviceId>>>,
}

/// To the room.
pub enum EdgeMsg {
    /// A new socket.
    Accepted(Stream, From, Reply<(), std::convert::Infallible>),
    /// From its HTTP.
    Told(u64, Told),
    /// Its request asked for a WebSocket.
    Upgraded(u64, Box<Io>, Said),
    /// From a connection.
    News(ConnectionNews),
    /// From pairing.
    Invalidated(DeviceId, Option<u64>, &'static str),
    /// From a method: these sessions end, and it is answered when they are gone.
    End(EndSessions, Reply<(), std::convert::Infallible>),
    /// From authentication: sessions that this secret opened end.
    SecretEnded(AuthNews),
    /// Pairing's news were missed: every device's session is looked at again.
    LookAgain,
}

/// The room.
pub struct Edge {
    wiring: EdgeWiring,
    ctx: Ctx<Self>,
    next: u64,
    budget: Budget,
    places: Places,
    sockets: HashMap<u64, Socket>,
    endings: Vec<Ending>,
    /// For every connection of this life, with the way back to this life.
    shared: Arc<ConnectionShared>,
    accepted: u64,
    evicted: u64,
    turned_away: u64,
    warned_at: Option<Instant>,
}

struct Socket {
    from: From,
    /// By when it must have said who it is.
    until: Instant,
    stage: Stage,
    /// Whom it counts against where it proves nothing of its own; of a client behind a proxy, that client.
    source: Source,
}

/// Who is on a connection, and its name.
struct Who {
    principal: Arc<Principal>,
    name: Arc<str>,
    place: Place,
}

/// Somebody waits until these sockets are gone.
struct Ending {
    left: BTreeSet<u64>,
    reply: Reply<(), std::convert::Infallible>,
}

enum Stage {
    /// Before the upgrade: dropped, the socket closes.
    Http { _task: TaskHandle },
    /// A connection, and who it is once it has said so.
    Open(ConnectionHandle, Option<Who>),
}

impl Room for Edge {
    const NAME: &'static str = "edge";
    type Msg = EdgeMsg;
    type Wiring = EdgeWiring;

    async fn start(wiring: &EdgeWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let limits = &wiring.limits;
        let budget = Budget::new(Limits {
            per_address: limits.unauthenticated_per_address as usize,
            total: limits.unauthenticated_total as usize,
            unix: limits.unauthenticated_unix as usize,
        });
        wiring.connected.set(BTreeSet::new());
        let (news, mut told) = mpsc::channel(1024);
        let own = ctx.clone();
        ctx.task("news", 0, async move {
            while let Some(news) = told.recv().await {
                own.notify(EdgeMsg::News(news));
            }
        })
        .keep();
        listen_to_pairing(wiring, &ctx);
        accept::all(wiring, &ctx)?;
        listen_to_auth(wiring, &ctx);
        let shared = Arc::new(ConnectionShared {
            news,
            ..wiring.connection.clone()
        });
        let (looks, asked) = Looks::new();
        ctx.task("looks", 0, looks::answer(asked)).keep();
        let mut wiring = wiring.clone();
        wiring.http.looks = looks;
        Ok(Self {
            wiring,
            ctx,
            next: 0,
            budget,
            places: Places::new(limits.sockets as usize),
            sockets: HashMap::new(),
            endings: Vec::new(),
            shared,
            accepted: 0,
            evicted: 0,
            turned_away: 0,
            warned_at: None,
        })
    }

    async fn handle(&mut self, msg: EdgeMsg) -> Result<(), Crash> {
        match msg {
            EdgeMsg::Accepted(stream, from, reply) => {
                self.enter(stream, from).await;
                reply.ok(());
            }
            EdgeMsg::Told(key, told) => self.told(key, told).await,
            EdgeMsg::Upgraded(key, io, said) => self.upgraded(key, *io, said).await,
            EdgeMsg::News(ConnectionNews::Speaks(key)) => self.speaks(key),
            EdgeMsg::News(ConnectionNews::Refused(key)) => self.budget.refused(key),
            EdgeMsg::News(ConnectionNews::Admitted(key, principal, name, listed)) => {
                if let Some(allowance) = self.admitted(key, principal, name).await {
                    // Gone already is as good.
                    let _ = listed.send(allowance);
                }
            }
            EdgeMsg::End(order, reply) => self.end(&order, reply).await,
            EdgeMsg::Invalidated(device, generation, reason) => {
                self.invalidated(&device, generation, reason).await;
            }
            EdgeMsg::LookAgain => self.look_again(),
            EdgeMsg::SecretEnded(news) => self.secret_ended(&news).await,
        }
        Ok(())
    }

    async fn task_ended(
        &mut self,
        name: &'static str,
        key: u64,
        end: TaskEnd,
    ) -> Result<(), Crash> {
        match (name, end) {
            // One socket's panic is that socket's end.
            (HTTP, _) => {
                if matches!(
                    self.sockets.get(&key),
                    Some(Socket {
                        stage: Stage::Http { .. },
                        ..
                    })
                ) {
                    self.gone(key);
                }
                Ok(())
            }
            ("look" | accept::LIST, _) => Ok(()),
            (name, end) => Err(Crash::new(format!("its {name} task ended: {end:?}"))),
        }
    }

    async fn child_ended(
        &mut self,
        _name: &'static str,
        key: u64,
        _end: ChildEnd,
    ) -> Result<(), Crash> {
        self.gone(key);
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
            .with("listens", self.wiring.doors.address())
            .with("sockets", self.sockets.len())
            .with("not yet authenticated", self.budget.len())
            .with("accepted", self.accepted)
            .with("made room", self.evicted)
            .with("turned away", self.turned_away)
    }
}

impl Edge {
    async fn enter(&mut self, stream: Stream, from: From) {
        self.accepted += 1;
        if self.is_full(from) {
            self.turn_away(&stream);
            return;
        }
        self.next += 1;
        let key = self.next;
        let is_proxy = self.may_be_a_proxy(from);
        let victim = self
            .budget
            .enter(key, from.origin(&self.wiring.sub_uids), is_proxy);
        self.make_room(victim).await;
        // From its first moment: HTTP and the handshake share it.
        let until = Instant::now() + Duration::from_millis(self.wiring.limits.handshake_ms);
        let (http, ctx) = (self.wiring.http.clone(), self.ctx.clone());
        let owner = match from {
            From::Tcp { owner, .. } => owner,
            From::Control { .. } | From::Agent { .. } => None,
        };
        let told = self.ctx.clone();
        let tell: Tell = Arc::new(move |what| told.notify(EdgeMsg::Told(key, what)));
        let task = self.ctx.task(HTTP, key, async move {
            if let Some((io, said)) = http::serve(http, stream, owner, until, tell).await {
                ctx.notify(EdgeMsg::Upgraded(key, Box::new(io), said));
            }
        });
        let stage = Stage::Http { _task: task };
        let socket = Socket {
            from,
            until,
            stage,
            source: Source::Local,
        };
        self.sockets.insert(key, socket);
    }

    /// Over the limit of all: no door takes a place from another, and a person must come in at `run/control.sock`.
    fn is_full(&self, from: From) -> bool {
        let door = |from: &From| match from {
            From::Tcp { .. } => 0,
            From::Control { shared: false, .. } => 1,
            From::Control { shared: true, .. } => 2,
            From::Agent { .. } => 3,
        };
        let max = self.wiring.limits.sockets as usize;
        // Counted only where it may matter.
        self.sockets.len() >= max && {
            let same = self.sockets.values();
            same.filter(|s| door(&s.from) == door(&from)).count() >= max
        }
    }

    fn turn_away(&mut self, stream: &Stream) {
        const FULL: &[u8] =
            b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n\
            Content-Type: text/plain; charset=utf-8\r\nContent-Length: 41\r\n\r\n\
            too many connections: try again in a bit\n";
        // Nobody waits for its request: where the word does not fit, the end says it.
        let _ = match stream {
            // Whether it speaks TLS, or may be served without, its first byte would tell: the end says enough.
            Stream::Tcp(_) if self.wiring.http.tls.get().is_some() => Ok(0),
            Stream::Tcp(tcp) => tcp.try_write(FULL),
            Stream::Unix(unix) => unix.try_write(FULL),
            Stream::Tls(_) => Ok(0),
        };
        self.turned_away += 1;
        if self.warned_at.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned_at = Some(Instant::now());
            tracing::warn!(
                target: "portcullis", so_far = self.turned_away,
                "newcomers are turned away: all of [gateway.limits] sockets are in use",
            );
        }
    }

    /// Do a trusted proxy's sockets come from there, as far as the kernel tells?
    fn may_be_a_proxy(&self, from: From) -> bool {
        let From::Tcp { peer, owner } = from else {
            return false;
        };
        let rules = self.wiring.http.proxies.get();
        // Most addresses are none's: then nothing is asked of the kernel.
        rules.lists(peer.ip())
            && rules.may_be_one(&SocketFacts {
                source: Some(peer.ip().to_canonical()),
                is_this_machine: peer::is_of_this_machine(peer.ip()),
                uid: owner.map(|(uid, _)| uid),
                certificate: None,
            })
    }

    async fn told(&mut self, key: u64, told: Told) {
        let Some(socket) = self.sockets.get(&key) else {
            return;
        };
        match told {
            // Who guesses behind a proxy takes nothing from the others there.
            Told::Behind(client, heard) => {
                let victim = self.budget.behind(key, client);
                self.make_room(victim).await;
                // Gone already is as good.
                let _ = heard.send(());
            }
            Told::Proven(heard) => {
                self.budget.leave(key);
                // Gone already is as good.
                let _ = heard.send(());
            }
            Told::Answered => self
                .budget
                .back(key, socket.from.origin(&self.wiring.sub_uids)),
        }
    }

    async fn make_room(&mut self, victim: Option<u64>) {
        if let Some(victim) = victim {
            self.evicted += 1;
            self.evict(victim).await;
        }
    }

    /// Its `connect` has come. If it was told to make room just before, it stays all the same, beside the newcomer: it is
    /// counted again.
    fn speaks(&mut self, key: u64) {
        if let Some(socket) = self.sockets.get(&key) {
            self.budget
                .back(key, socket.from.origin(&self.wiring.sub_uids));
            self.budget.speaks(key);
        }
    }

    async fn evict(&mut self, key: u64) {
        match self.sockets.get(&key).map(|s| &s.stage) {
            Some(Stage::Http { .. }) => self.gone(key),
            Some(Stage::Open(handle, _)) => {
                // Gone already is as good.
                let _ = handle.clone().make_room().await;
            }
            None => {}
        }
    }

    async fn upgraded(&mut self, key: u64, io: Io, mut said: Said) {
        let Some(socket) = self.sockets.get(&key) else {
            return;
        };
        let (encoding, bearer, until) = (said.encoding, said.bearer.take(), socket.until);
        let (door, peer) = self.who(socket.from, &said);
        let wiring = ConnectionWiring {
            key,
            shared: self.shared.clone(),
        };
        let child = self.ctx.child::<Connection>(key, wiring, CAPACITY).await;
        let handle = match child {
            Ok(handle) => ConnectionHandle::new(handle),
            Err(crash) => {
                tracing::error!(target: "portcullis", why = crash.why(), "a connection did not start");
                self.gone(key);
                return;
            }
        };
        if let Some(socket) = self.sockets.get_mut(&key) {
            socket.source = Source::of(peer.ip, peer.account);
            socket.stage = Stage::Open(handle.clone(), None);
            self.budget.knocks(key);
        }
        // It ended at once: its end is on the way.
        let accepted = Accepted {
            io,
            door,
            peer,
            bearer,
            encoding,
            until,
        };
        let _ = handle.adopt(accepted).await;
    }

    /// What the kernel says of the other end; the client's own word counts only against it.
    fn who(&self, from: From, said: &Said) -> (Door, Peer) {
        let account = from.account(&self.wiring.sub_uids);
        match from {
            From::Control {
                uid,
                is_operator,
                is_outside,
                ..
            } => {
                let peer = Peer {
                    ip: None,
                    uid: Some(uid),
                    account,
                    is_operator: is_operator && is_outside,
                    is_of_a_run: !is_outside,
                    is_local: true,
                    has_origin: said.has_origin,
                    named: None,
                };
                (Door::Control, peer)
            }
            From::Agent { uid } => {
                let peer = Peer {
                    ip: None,
                    uid: Some(uid),
                    account,
                    is_operator: false,
                    // It would change nothing: no operator comes in there.
                    is_of_a_run: false,
                    is_local: true,
                    has_origin: said.has_origin,
                    named: None,
                };
                (Door::AgentSock, peer)
            }
            // Whose process holds a proxy's socket says nothing of the client behind it.
            From::Tcp { .. } if said.client.is_some() => {
                let peer = Peer {
                    ip: said.client,
                    uid: None,
                    account: None,
                    is_operator: false,
                    is_of_a_run: false,
                    is_local: false,
                    has_origin: said.has_origin,
                    named: said.named.clone(),
                };
                (Door::Tcp, peer)
            }
            From::Tcp { peer, owner } => {
                let is_loopback = peer.ip().to_canonical().is_loopback();
                let own = rustix::process::geteuid().as_raw();
                let operator =
                    |uid: u32, groups: &[u32]| self.wiring.local.is_operator(uid, groups, own);
                let is_of_a_run = said.is_of_a_run;
                let peer = Peer {
                    ip: Some(peer.ip().to_canonical()),
                    uid: owner.filter(|_| is_loopback).map(|(uid, _)| uid),
                    account,
                    is_operator: is_loopback
                        && !is_of_a_run
                        && owner.is_some_and(|(uid, _)| operator(uid, &said.groups)),
                    is_of_a_run,
                    is_local: is_loopback && said.has_local_host && !said.has_origin,
                    has_origin: said.has_origin,
                    named: None,
                };
                (Door::Tcp, peer)
            }
        }
    }

    /// It is on the list. Returns what its messages hold room of; `None`: it is gone.
    async fn admitted(
        &mut self,
        key: u64,
        principal: Arc<Principal>,
        name: Arc<str>,
    ) -> Option<Arc<Allowance>> {
        self.budget.leave(key);
        let socket = self.sockets.get_mut(&key)?;
        let Stage::Open(handle, who) = &mut socket.stage else {
            return None;
        };
        let place = Place::of(&principal, &socket.source);
        let door = socket.from.origin(&self.wiring.sub_uids).door();
        let (allowance, victim) = self.places.enter(key, door, &place);
        let has_device = principal.device().is_some();
        let agent = principal.agent.clone();
        let handle = handle.clone();
        *who = Some(Who {
            principal,
            name,
            place,
        });
        if has_device {
            self.publish_connected();
        }
        if let Some(victim) = victim
            && let Some(Stage::Open(handle, _)) = self.sockets.get(&victim).map(|s| &s.stage)
        {
            // Gone already is as good.
            let _ = handle.close(1013, "too many connections").await;
        }
        if let Some(agent) = agent {
            let same = self.sockets.values().filter(|socket| {
                matches!(&socket.stage, Stage::Open(_, Some(who)) if who.principal.agent.as_ref() == Some(&agent))
            });
            if same.count() > SOCKETS_OF_AN_AGENT {
                // Gone already is as good.
                let _ = handle
                    .close(1008, "too many connections of this agent")
                    .await;
            }
        }
        Some(allowance)
    }

    async fn invalidated(
        &mut self,
        device: &DeviceId,
        generation: Option<u64>,
        reason: &'static str,
    ) {
        let whose = Whose {
            holder: Holder::Device(device.clone()),
            lives: generation,
        };
        self.close_all(&whose, reason).await;
    }

    /// Tells these sessions to end; returns them.
    async fn close_all(&self, whose: &Whose, reason: &'static str) -> BTreeSet<u64> {
        let mut ended = BTreeSet::new();
        for (key, socket) in &self.sockets {
            if let Stage::Open(handle, Some(who)) = &socket.stage
                && whose.is(&who.principal)
            {
                // Gone already is as good.
                let _ = handle.close(4001, reason).await;
                ended.insert(*key);
            }
        }
        ended
    }

    async fn end(&mut self, order: &EndSessions, reply: Reply<(), std::convert::Infallible>) {
        let mut left = self.close_all(&order.whose, order.reason).await;
        let asker = left.iter().copied().find(|key| {
            matches!(&self.sockets[key].stage, Stage::Open(_, Some(who)) if *who.name == *order.but)
        });
        if let Some(key) = asker {
            left.remove(&key);
            if let Stage::Open(handle, _) = &self.sockets[&key].stage {
                let _ = handle.linger().await;
            }
        }
        if left.is_empty() {
            reply.ok(());
        } else {
            self.endings.push(Ending { left, reply });
        }
    }

    /// Told to each before this returns; what one of them is about to do is looked at again between intent and act.
    async fn secret_ended(&self, news: &AuthNews) {
        for socket in self.sockets.values() {
            if let Stage::Open(handle, Some(who)) = &socket.stage
                && news.ends(&who.principal)
            {
                // Gone already is as good.
                let _ = handle.close(4001, "gateway auth changed").await;
            }
        }
    }

    /// Asks pairing under which generation each device's session may live. A session that began while its device was
    /// being revoked is found here, and one whose news were missed.
    fn look_again(&mut self) {
        let (pairing, ctx) = (self.wiring.pairing.clone(), self.ctx.clone());
        let sessions: Vec<_> = self
            .sockets
            .values()
            .filter_map(|socket| match &socket.stage {
                Stage::Open(_, Some(Who { principal, .. })) => {
                    let device = principal.device()?.clone();
                    Some((device, principal.role, principal.generation))
                }
                _ => None,
            })
            .collect();
        let look = async move {
            for (device, role, generation) in sessions {
                // Pairing is down: it says so to whoever asks it; its restart brings news.
                let Ok(now) = pairing.current_generation(&device, role).await else {
                    continue;
                };
                if now != Some(generation) {
                    ctx.notify(EdgeMsg::Invalidated(
                        device,
                        now,
                        "client invalidated: device-token-revoked",
                    ));
                }
            }
        };
        self.ctx.task("look", 0, look).keep();
    }

    fn gone(&mut self, key: u64) {
        self.budget.leave(key);
        for mut ending in std::mem::take(&mut self.endings) {
            ending.left.remove(&key);
            if ending.left.is_empty() {
                ending.reply.ok(());
            } else if ending.reply.is_wanted() {
                self.endings.push(ending);
            }
        }
        if let Some(Socket {
            stage: Stage::Open(_, Some(who)),
            from,
            ..
        }) = self.sockets.remove(&key)
        {
            let door = from.origin(&self.wiring.sub_uids).door();
            self.places.leave(key, door, who.place);
            if who.principal.device().is_some() {
                self.publish_connected();
            }
        }
    }

    fn publish_connected(&self) {
        let devices = self
            .sockets
            .values()
            .filter_map(|socket| match &socket.stage {
                Stage::Open(_, Some(who)) => who.principal.device().cloned(),
                _ => None,
            });
        self.wiring.connected.set(devices.collect());
    }
}

fn listen_to_pairing(wiring: &EdgeWiring, ctx: &Ctx<Edge>) {
    let mut news = wiring.pairing.news();
    let own = ctx.clone();
    ctx.task("pairing news", 0, async move {
        loop {
            match news.next().await {
                FeedItem::Event(told) => {
                    if let News::Invalidated {
                        device_id,
                        generation,
                        why,
                        ..
                    } = &told.event
                    {
                        let reason = why.close_reason();
                        own.notify(EdgeMsg::Invalidated(device_id.clone(), *generation, reason));
                    }
                }
                FeedItem::Lagged => own.notify(EdgeMsg::LookAgain),
                FeedItem::Closed => return,
            }
        }
    })
    .keep();
}

fn listen_to_auth(wiring: &EdgeWiring, ctx: &Ctx<Edge>) {
    let mut news = wiring.auth_news.subscribe();
    let own = ctx.clone();
    ctx.task("auth news", 0, async move {
        loop {
            match news.next().await {
                FeedItem::Event(told) => own.notify(EdgeMsg::SecretEnded(told.event.clone())),
                // What was missed may be any of them.
                FeedItem::Lagged => own.notify(EdgeMsg::SecretEnded(AuthNews::Any)),
                FeedItem::Closed => return,
            }
        }
    })
    .keep();
}
