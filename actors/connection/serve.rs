//! The one I/O task of a connection: it owns the socket, asks the rooms, and flushes when its input runs dry.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, SelectAll};
use futures_util::{FutureExt as _, Sink as _, SinkExt as _, Stream, StreamExt as _};
use portcullis_core::auth::{Principal, Role};
use portcullis_core::codes;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::protocol::limits::{CLOSE_REASON, FRAME, PING_MS, TICK_MS, WRONG_ROLE_CALLS};
use portcullis_core::protocol::{Encoding, FrameError, Wire, method};
use portcullis_core::signing::frame::{FrameRefusal, Keys};
use portcullis_core::time::Millis;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role as WsRole, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tracing::Instrument as _;
use zeroize::Zeroize as _;

use super::actor::{CLOSE_GRACE, ConnectionWiring};
use super::answer;
use super::idle::Idle;
use super::io::Io;
use super::messages::{Accepted, CloseOrder};
use super::methods::{Heard, News};
use super::scan::{CROWDED, EMPTY, NOT_UTF8, TOO_LARGE, TOO_LONG};
use super::shake::{Shaken, shake};
use crate::nodes::ToNode;
use crate::supervision::{Flag, FlagReader};

/// Frames answered before the loop looks at its timers and events again.
const BURST: usize = 64;
/// Bytes. The library's default is 131 KB a socket; two KiB hold a burst of sixteen requests.
const READ_BUFFER: usize = 2_048;
/// Frames of the connection's own runs and requests that wait for the socket.
const OUT_DEPTH: usize = 8;
/// To a client that asked for MessagePack and sends text.
pub(super) const WRONG_KIND: &str = "this connection speaks MessagePack: send binary messages";

/// To a client that answered no ping: it may only be slow to read.
const UNANSWERED: &str = "heartbeat timeout";

/// For the answer to what ended this session.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(30);

/// An answer under way: the request's id and the frame to send.
pub(super) type Pending = Pin<Box<dyn Future<Output = (String, Option<Wire>)> + Send>>;

/// What a request may use of its connection.
#[expect(clippy::struct_field_names, reason = "the protocol's own name: connId")]
pub(super) struct Conn {
    pub wiring: ConnectionWiring,
    pub principal: Arc<Principal>,
    pub conn_id: Arc<str>,
    /// How its messages are written.
    pub encoding: Encoding,
    /// Frames besides the answer; full while the client does not read.
    pub out: mpsc::Sender<Out>,
    /// The credential's end: looked at again between an intent and its act.
    pub session: FlagReader<Option<String>>,
    /// It hears of questions to people.
    pub hears_questions: bool,
    /// See [`super::methods::About::proven`].
    pub proven: Flag<Millis>,
}

/// A frame besides the answer.
pub(super) enum Out {
    /// An earlier answer with the same id.
    Frame(Wire),
    /// An event, which gets the connection's next `seq`.
    Event(&'static str, serde_json::Value),
}

pub(super) async fn serve(
    wiring: ConnectionWiring,
    accepted: Accepted,
    order: Arc<Flag<Option<CloseOrder>>>,
    mut room: FlagReader<bool>,
    session_ended: FlagReader<Option<String>>,
    has_last_words: Arc<Flag<bool>>,
) {
    let Accepted {
        bearer,
        io,
        door,
        peer,
        encoding,
        until,
    } = accepted;
    let mut ws = open(io, FRAME).await;
    let mut closing = order.reader();
    let connect = tracing::info_span!(
        target: "portcullis", parent: None, "connect", otel.kind = "server", room = "connection", door = door.as_str(),
    );
    let has_come = Flag::new(false);
    let shaking = shake(
        &wiring,
        &mut ws,
        encoding,
        door,
        (&peer, bearer),
        (until, &has_come),
    );
    // Boxed: its room is needed for a moment, and this task lives as long as the socket.
    let mut shaking = Box::pin(shaking.instrument(connect));
    let mut stays = false;
    let shaken = loop {
        let order = tokio::select! {
            biased;
            Some(Some(order)) = closing.changed() => order,
            // Before what is wanted for a newcomer: what has come by now is read first.
            shaken = &mut shaking => break shaken,
            Some(true) = room.until(|wanted| *wanted), if !stays => {
                stays = has_come.get();
                if stays {
                    continue;
                }
                let reason = "made room for a newcomer".to_owned();
                CloseOrder { code: 1008, reason }
            }
        };
        drop(shaking);
        // Who does not take it has had its word.
        let said = close(&mut ws, order.code, &order.reason);
        let _ = tokio::time::timeout(CLOSE_GRACE, said).await;
        return;
    };
    drop(shaking);
    let Some(mut shaken) = shaken else { return };
    let early = std::mem::take(&mut shaken.early);
    let news = wiring.shared.methods.news(&shaken.principal, &shaken.caps);
    let node = shaken.node.clone();
    let methods = wiring.shared.methods.clone();
    let mut session = Session::new(
        wiring,
        shaken,
        encoding,
        session_ended,
        has_last_words,
        news.hears_questions(),
    );
    if let Some(order) = order.get() {
        close(&mut ws, order.code, &order.reason).await;
        return;
    }
    let mut sides = sides(closing.clone(), news);
    if let Some(node) = node {
        let decided = super::nodes::decisions(methods.pairing.news(), node.node.clone());
        sides.push(Box::pin(decided.map(Side::Node)));
        let by = session.conn.principal.clone();
        let line = super::nodes::line(methods.nodes.clone(), by, node);
        sides.push(Box::pin(line.map(Side::Node)));
    }
    let end = session.run(&mut ws, closing, sides, early).await;
    if let Some(end) = end {
        if end.code == 1012 {
            let payload = json!({ "reason": end.reason });
            // The close frame says the same.
            let _ = session.event(&mut ws, "shutdown", &payload).await;
        }
        close(&mut ws, end.code, &end.reason).await;
    }
}

/// The socket's end of the protocol, for messages up to a size.
pub(super) async fn open(io: Io, frame_max: usize) -> Ws {
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = READ_BUFFER;
    config.write_buffer_size = 16 * 1024;
    config.max_message_size = Some(frame_max);
    config.max_frame_size = Some(frame_max);
    WebSocketStream::from_raw_socket(io, WsRole::Server, Some(config)).await
}

/// How a broken frame closes the socket; `None`: it is gone already.
pub(super) fn fault(error: &WsError) -> Option<(u16, &'static str)> {
    match error {
        WsError::Capacity(_) => Some((1009, "frame too large")),
        WsError::Protocol(_) => Some((1002, "protocol error")),
        WsError::Utf8(_) => Some((1007, NOT_UTF8)),
        WsError::Io(error) => match error.to_string() {
            text if text == TOO_LARGE => Some((1009, TOO_LARGE)),
            text if text == TOO_LONG => Some((1009, TOO_LONG)),
            text if text == NOT_UTF8 => Some((1007, NOT_UTF8)),
            text if text == EMPTY => Some((1008, EMPTY)),
            text if text == CROWDED => Some((1013, CROWDED)),
            _ => None,
        },
        _ => None,
    }
}

/// What happens beside the frames, seldom. All of it is one stream that is polled only where something woke it: polled
/// one by one, timers and watches cost each reply more than its answer.
enum Side {
    /// Look at the order to close.
    Order,
    News(Heard),
    /// To this node.
    Node(ToNode),
    Tick,
    Ping,
}

type Sides = SelectAll<Pin<Box<dyn Stream<Item = Side> + Send>>>;

fn sides(closing: FlagReader<Option<CloseOrder>>, news: News) -> Sides {
    let orders = stream::unfold(Some(closing), |closing| async {
        let mut closing = closing?;
        let order = closing.changed().await;
        Some((Side::Order, order.map(|_| closing)))
    });
    let hears = !news.is_silent();
    let news = stream::unfold(news, |mut news| async {
        let heard = news.next().await;
        Some((Side::News(heard), news))
    });
    let mut sides = Sides::new();
    sides.push(Box::pin(orders));
    if hears {
        sides.push(Box::pin(news));
    }
    sides.push(Box::pin(every(TICK_MS).map(|()| Side::Tick)));
    sides.push(Box::pin(every(PING_MS).map(|()| Side::Ping)));
    sides
}

fn every(ms: u64) -> impl Stream<Item = ()> + Send {
    let period = Duration::from_millis(ms);
    let interval = tokio::time::interval_at(Instant::now() + period, period);
    stream::unfold(interval, |mut interval| async {
        interval.tick().await;
        Some(((), interval))
    })
}

struct Session {
    /// Shared with the requests under way.
    conn: Arc<Conn>,
    under_way: FuturesUnordered<Pending>,
    ids: Vec<String>,
    /// Requests under way that may end this very session: their answers, which may hold its new token, go out before.
    last: Vec<String>,
    /// The same for the actor, which else ends a socket at once.
    has_last_words: Arc<Flag<bool>>,
    out: mpsc::Receiver<Out>,
    seq: u64,
    wrong_roles: u32,
    write_within: Duration,
    /// What it sends that asks nothing.
    idle: Idle,
    /// Every frame is signed, both ways.
    signing: Option<Keys>,
    /// The frame that was just read brought a secret.
    brought_secret: bool,
    /// Such frames, until nothing else holds their bytes.
    to_wipe: Vec<Bytes>,
    /// Frames to come that nobody sent ([`Io::fill`]).
    fill: usize,
}

pub(super) type Ws = WebSocketStream<Io>;

/// The loop goes on, or ends: with a close frame, or without where the socket is gone.
pub(super) type Step = Result<(), Option<CloseOrder>>;

fn end(code: u16, reason: &str) -> Step {
    Err(Some(CloseOrder {
        code,
        reason: reason.to_owned(),
    }))
}

impl Session {
    fn new(
        wiring: ConnectionWiring,
        shaken: Shaken,
        encoding: Encoding,
        session: FlagReader<Option<String>>,
        has_last_words: Arc<Flag<bool>>,
        hears_questions: bool,
    ) -> Self {
        let (out_tx, out) = mpsc::channel(OUT_DEPTH);
        let write_within = Duration::from_millis(wiring.shared.config.write_timeout_ms.max(1));
        Self {
            conn: Arc::new(Conn {
                principal: shaken.principal,
                conn_id: shaken.conn_id,
                encoding,
                out: out_tx,
                session,
                hears_questions,
                proven: Flag::new(Millis(0)),
                wiring,
            }),
            under_way: FuturesUnordered::new(),
            ids: Vec::new(),
            last: Vec::new(),
            has_last_words,
            out,
            seq: 0,
            wrong_roles: 0,
            write_within,
            idle: Idle::new(),
            signing: shaken.signing,
            brought_secret: false,
            to_wipe: Vec::new(),
            fill: 0,
        }
    }

    async fn run(
        &mut self,
        ws: &mut Ws,
        mut closing: FlagReader<Option<CloseOrder>>,
        mut sides: Sides,
        early: Vec<Message>,
    ) -> Option<CloseOrder> {
        let mut unanswered_pings = 0u32;
        for frame in early {
            if closing.has_changed() {
                break;
            }
            if let Err(end) = self.frame(ws, Some(Ok(frame))).await {
                return end;
            }
        }
        if let Err(end) = self.flush(ws).await {
            return end;
        }
        loop {
            if closing.has_changed() {
                match closing.take() {
                    Some(order) => {
                        if order.code == 4001 {
                            self.last_words(ws).await;
                        }
                        return Some(order);
                    }
                    // Seen and still new: nobody is left to give one.
                    None if closing.has_changed() => return None,
                    None => {}
                }
            }
            let step = tokio::select! {
                biased;
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.answered(ws, done).await
                }
                Some(out) = self.out.recv() => self.send_out(ws, out).await,
                frame = ws.next() => {
                    unanswered_pings = 0;
                    self.frames(ws, frame, &closing).await
                }
                Some(side) = sides.next() => match side {
                    Side::Order => continue,
                    Side::News(Heard::Event(event, payload)) => self.event(ws, event, &payload).await,
                    Side::News(Heard::Missed) => {
                        // As with the peer: what was not sent is counted, and the next event shows the gap.
                        self.seq += 1;
                        Ok(())
                    }
                    Side::Node(ToNode::Event(event, payload)) => {
                        self.unnumbered(ws, event, &payload).await
                    }
                    Side::Node(ToNode::Replaced) => end(1008, "replaced by a newer connection"),
                    Side::Tick => {
                        let payload = json!({ "ts": self.conn.wiring.shared.clock.now() });
                        self.event(ws, "tick", &payload).await
                    }
                    Side::Ping if unanswered_pings > 0 => end(1008, UNANSWERED),
                    Side::Ping if self.idle.stands_still(ws.get_ref().unfinished()) => {
                        end(1008, "a message takes too long")
                    }
                    Side::Ping => {
                        unanswered_pings += 1;
                        self.feed(ws, Message::Ping(Bytes::new())).await
                    }
                },
            };
            let step = match step {
                Ok(()) => self.flush(ws).await,
                err => err,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Answers this frame and those that are there already, then returns to be flushed.
    async fn frames(
        &mut self,
        ws: &mut Ws,
        first: Option<Result<Message, WsError>>,
        closing: &FlagReader<Option<CloseOrder>>,
    ) -> Step {
        let mut next = Some(first);
        for _ in 0..BURST {
            let Some(frame) = next else { return Ok(()) };
            // A revoked credential's frame is not answered, though it came in the same burst.
            if closing.has_changed() {
                return Ok(());
            }
            self.frame(ws, frame).await?;
            next = ws.next().now_or_never();
        }
        match next {
            Some(frame) if !closing.has_changed() => self.frame(ws, frame).await,
            _ => Ok(()),
        }
    }

    async fn frame(&mut self, ws: &mut Ws, frame: Option<Result<Message, WsError>>) -> Step {
        if let Some(keys) = &mut self.signing
            && let Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) = &frame
        {
            let now = self.conn.wiring.shared.clock.now();
            let opened = match message {
                Message::Binary(bytes) => keys.to_server.open(now, bytes),
                _ => Err(FrameRefusal::Unsigned),
            };
            let step = match opened {
                Ok(bytes) => self.request(ws, bytes).await,
                Err(refusal) => end(1008, &refusal.to_string()),
            };
            if let Some(Ok(message)) = frame {
                self.wipe_later(ws, message.into_data());
            }
            return step;
        }
        match frame {
            Some(Ok(Message::Text(text))) => match self.conn.encoding {
                Encoding::Json => {
                    let step = self.request(ws, text.as_bytes()).await;
                    self.wipe_later(ws, text.into());
                    step
                }
                Encoding::MsgPack => end(1003, WRONG_KIND),
            },
            Some(Ok(Message::Binary(bytes))) => match self.conn.encoding {
                // As with the peer: passed over (wire.md section 1).
                Encoding::Json => self.asks_nothing(),
                Encoding::MsgPack => {
                    let step = self.request(ws, &bytes).await;
                    self.wipe_later(ws, bytes);
                    step
                }
            },
            Some(Ok(Message::Pong(_))) if self.fill > 0 => {
                self.fill -= 1;
                self.wipe();
                Ok(())
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                self.asks_nothing()
            }
            Some(Ok(Message::Close(_))) => {
                // Its answer is queued; who closed may be gone.
                let _ = self.flush(ws).await;
                Err(None)
            }
            Some(Err(error)) => match fault(&error) {
                Some((code, reason)) => end(code, reason),
                None => Err(None),
            },
            None => Err(None),
        }
    }

    /// A frame that brought a secret is overwritten as soon as the protocol library has let go of it.
    fn wipe_later(&mut self, ws: &mut Ws, frame: Bytes) {
        if std::mem::take(&mut self.brought_secret) {
            self.to_wipe.push(frame);
            self.fill += ws.get_mut().fill(READ_BUFFER);
        }
    }

    fn wipe(&mut self) {
        let held = std::mem::take(&mut self.to_wipe);
        for frame in held {
            match frame.try_into_mut() {
                Ok(mut alone) => alone.as_mut().zeroize(),
                Err(shared) => self.to_wipe.push(shared),
            }
        }
        if self.fill == 0 {
            // It never lets go: kept, it would be one copy all the same.
            self.to_wipe.clear();
        }
    }

    async fn request(&mut self, ws: &mut Ws, bytes: &[u8]) -> Step {
        let request = match self.conn.encoding.read(bytes) {
            Ok(request) => request,
            // As with the peer: after authentication it is passed over (wire.md section 1).
            Err(FrameError::NotJson) => return self.asks_nothing(),
            Err(FrameError::NotRequest { id, why }) => {
                let mut details = serde_json::Map::new();
                details.insert("reason".into(), why.into());
                let error = ErrorBody::with(codes::INVALID_FRAME, "invalid request frame", details);
                return self
                    .error(ws, id.as_deref().unwrap_or("invalid"), &error)
                    .await;
            }
        };
        self.brought_secret = method::brings_secret(&request.method);
        if request.method == "health" {
            self.wrong_roles = 0;
            if let Err(error) = answer::params_of("health", request.params) {
                return self.error(ws, &request.id, &error).await;
            }
            let now = self.conn.wiring.shared.clock.now();
            let frame = answer::health(self.conn.encoding, &request.id, now);
            return self.send(ws, frame).await;
        }
        if self.ids.len() >= self.conn.wiring.shared.config.in_flight {
            let error = ErrorBody::of(codes::TOO_MANY_IN_FLIGHT, "too many requests under way");
            return self.error(ws, &request.id, &error).await;
        }
        if self.ids.iter().any(|id| *id == request.id) {
            let error = ErrorBody::of(codes::DUPLICATE_ID, "a request with this id is under way");
            return self.error(ws, &request.id, &error).await;
        }
        let id = request.id.clone().into_owned();
        let may_end = answer::may_end_itself(&request.method);
        match answer::begin(&self.conn, request) {
            Ok(pending) => {
                self.wrong_roles = 0;
                if may_end {
                    self.last.push(id.clone());
                    self.has_last_words.set(true);
                }
                // Freed with the answer, in `answered`.
                self.ids.push(id);
                self.under_way.push(pending);
                Ok(())
            }
            Err(error) => {
                self.error(ws, &id, &error).await?;
                if error.stable_code() == codes::WRONG_ROLE.name {
                    self.wrong_roles += 1;
                    if self.wrong_roles > WRONG_ROLE_CALLS {
                        return end(1008, "repeated unauthorized calls");
                    }
                } else {
                    self.wrong_roles = 0;
                }
                Ok(())
            }
        }
    }

    /// A frame that needs no answer of ours. Some are nothing; a flood of them is.
    fn asks_nothing(&mut self) -> Step {
        if self.idle.may() {
            Ok(())
        } else {
            end(1008, "too many frames that ask nothing")
        }
    }

    async fn answered(&mut self, ws: &mut Ws, (id, frame): (String, Option<Wire>)) -> Step {
        // Frames that a request sent before its answer go out before it.
        while let Ok(out) = self.out.try_recv() {
            self.send_out(ws, out).await?;
        }
        self.ids.retain(|known| *known != id);
        self.forget_last(&id);
        self.send(ws, frame).await
    }

    /// The session is over: no frame is read, and nothing goes out but the answers to what may have ended it.
    async fn last_words(&mut self, ws: &mut Ws) {
        let words = async {
            while !self.last.is_empty() {
                let Some((id, frame)) = self.under_way.next().await else {
                    return;
                };
                if !self.last.contains(&id) {
                    continue;
                }
                if self.send(ws, frame).await.is_err() || self.flush(ws).await.is_err() {
                    return;
                }
                self.forget_last(&id);
            }
        };
        // Whoever does not read has heard enough.
        let _ = timeout(LAST_WORDS, words).await;
    }

    fn forget_last(&mut self, id: &str) {
        if !self.last.is_empty() {
            self.last.retain(|known| known != id);
            self.has_last_words.set(!self.last.is_empty());
        }
    }

    async fn send_out(&mut self, ws: &mut Ws, out: Out) -> Step {
        match out {
            Out::Frame(frame) => self.send(ws, Some(frame)).await,
            Out::Event(event, payload) => self.event(ws, event, &payload).await,
        }
    }

    async fn event(&mut self, ws: &mut Ws, event: &str, payload: &serde_json::Value) -> Step {
        if self.conn.principal.role == Role::Node && event != "tick" && event != "shutdown" {
            return Ok(());
        }
        self.seq += 1;
        let frame = self.conn.encoding.event(event, payload, Some(self.seq));
        self.send(ws, frame.ok()).await
    }

    async fn unnumbered(&mut self, ws: &mut Ws, event: &str, payload: &serde_json::Value) -> Step {
        let frame = self.conn.encoding.event(event, payload, None);
        self.send(ws, frame.ok()).await
    }

    async fn error(&mut self, ws: &mut Ws, id: &str, error: &ErrorBody) -> Step {
        let frame = self.conn.encoding.error(id, error);
        self.send(ws, frame.ok()).await
    }

    /// `None`: it could not be written, and there is nothing to send.
    async fn send(&mut self, ws: &mut Ws, frame: Option<Wire>) -> Step {
        let Some(frame) = frame else { return Ok(()) };
        let message = match &mut self.signing {
            None => message(frame),
            Some(keys) => {
                let now = self.conn.wiring.shared.clock.now();
                Message::Binary(keys.to_client.sign(now, frame.as_bytes()).into())
            }
        };
        self.feed(ws, message).await
    }

    async fn feed(&mut self, ws: &mut Ws, message: Message) -> Step {
        feed(ws, self.write_within, message).await
    }

    async fn flush(&mut self, ws: &mut Ws) -> Step {
        flush(ws, self.write_within).await
    }
}

pub(super) async fn feed(ws: &mut Ws, limit: Duration, message: Message) -> Step {
    let ready = poll_fn(|cx| Pin::new(&mut *ws).poll_ready(cx));
    within(limit, ready).await?;
    Pin::new(ws).start_send(message).map_err(|_| None)
}

pub(super) async fn flush(ws: &mut Ws, limit: Duration) -> Step {
    within(limit, ws.flush()).await
}

/// A client that does not read for so long is closed. What is done at once needs no timer.
async fn within(limit: Duration, write: impl Future<Output = Result<(), WsError>>) -> Step {
    let mut write = pin!(write);
    let done = match write.as_mut().now_or_never() {
        Some(done) => done,
        None => match timeout(limit, write).await {
            Ok(done) => done,
            Err(_) => return end(1008, "slow consumer"),
        },
    };
    done.map_err(|_| None)
}

pub(super) fn message(frame: Wire) -> Message {
    match frame {
        Wire::Text(text) => Message::Text(text.into()),
        Wire::Binary(bytes) => Message::Binary(bytes.into()),
    }
}

/// Sends a close frame and waits a little for it to be taken. The reason is cut to what a close frame holds.
pub(super) async fn close(ws: &mut Ws, code: u16, reason: &str) {
    let mut cut = reason.len().min(CLOSE_REASON);
    while !reason.is_char_boundary(cut) {
        cut -= 1;
    }
    let frame = CloseFrame {
        code: CloseCode::from(code),
        reason: reason[..cut].into(),
    };
    let goodbye = async {
        // An error means that the other end is gone: nothing is left to say.
        let _ = ws.close(Some(frame)).await;
        // Until the other end has seen it: a socket closed with unread input is reset, and its last words with it.
        while let Some(Ok(_)) = ws.next().await {}
        let io = ws.get_mut();
        io.deafen();
        // Gone is as good.
        let _ = io.shutdown().await;
        let _ = io.read(&mut [0]).await;
    };
    let _ = timeout(Duration::from_secs(1), goodbye).await;
}
