//! The actor: its mailbox is for control; frames never pass it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::config::ConnectionConfig;
use super::messages::{Accepted, CloseOrder, ConnectionMsg, ConnectionNews};
use super::methods::Methods;
use super::serve;
use crate::auth::AuthHandle;
use crate::clock::Clock;
use crate::exec::ExecHandle;
use crate::signing::SigningHandle;
use crate::supervision::{Crash, Ctx, Flag, Room, TaskEnd, TaskHandle};

/// For the close frame to be taken; then the socket is dropped.
pub(super) const CLOSE_GRACE: Duration = Duration::from_millis(100);
/// For an answer to what may have ended this session; the socket that asked for it has longer.
const LAST_WORDS: Duration = Duration::from_millis(500);
const LINGER: Duration = Duration::from_secs(30);
/// At shutdown, for the socket to take its last words.
const STOP_GRACE: Duration = Duration::from_millis(500);
const IO: &str = "io";

/// What one connection is given.
#[derive(Clone)]
pub struct ConnectionWiring {
    /// Its number at the edge.
    pub key: u64,
    /// The same for all: one pointer, because there are ten thousand of them.
    pub shared: Arc<ConnectionShared>,
}

/// What every connection of a process shares.
#[derive(Clone)]
pub struct ConnectionShared {
    /// Limits.
    pub config: ConnectionConfig,
    /// Who comes in.
    pub auth: AuthHandle,
    /// Keys for signed requests.
    pub signing: SigningHandle,
    /// What may be asked.
    pub methods: Arc<Methods>,
    /// Runs.
    pub exec: ExecHandle,
    /// News for the edge.
    pub news: mpsc::Sender<ConnectionNews>,
    /// The time.
    pub clock: Clock,
    /// Of this process.
    pub boot_id: Arc<str>,
    /// Ours.
    pub version: &'static str,
    /// When this process began.
    pub began: Instant,
}

/// See the module.
pub struct Connection {
    wiring: ConnectionWiring,
    ctx: Ctx<Self>,
    order: Arc<Flag<Option<CloseOrder>>>,
    /// A newcomer wants its place.
    room: Flag<bool>,
    /// Why the credential behind this connection holds no more: runs look at it between intent and act.
    session: Arc<Flag<Option<String>>>,
    /// An answer that must still go out is under way.
    has_last_words: Arc<Flag<bool>>,
    /// It asked for its own end: that answer may take its time.
    linger: bool,
    told_at: Option<Instant>,
    io: Option<TaskHandle>,
    /// Ends with the I/O task.
    io_ended: Option<oneshot::Receiver<()>>,
    abort: Option<TaskHandle>,
}

impl Room for Connection {
    const NAME: &'static str = "connection";
    type Msg = ConnectionMsg;
    type Wiring = ConnectionWiring;

    async fn start(wiring: &ConnectionWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        Ok(Self {
            wiring: wiring.clone(),
            ctx,
            order: Arc::new(Flag::new(None)),
            room: Flag::new(false),
            session: Arc::new(Flag::new(None)),
            has_last_words: Arc::new(Flag::new(false)),
            linger: false,
            told_at: None,
            io: None,
            io_ended: None,
            abort: None,
        })
    }

    async fn handle(&mut self, msg: ConnectionMsg) -> Result<(), Crash> {
        match msg {
            ConnectionMsg::Adopt(accepted) => self.adopt(*accepted),
            ConnectionMsg::Close(order) => self.close(order),
            // Its task alone knows what has come; there its time is bounded as any stranger's.
            ConnectionMsg::MakeRoom => self.room.set(true),
            ConnectionMsg::Linger => self.linger = true,
            ConnectionMsg::Abort => self.abort(),
        }
        if self.io.is_none() {
            self.ctx.stop_myself();
        }
        Ok(())
    }

    async fn stop(mut self) {
        // What it was told to say stands: this stop may be its own, and its task may be in the middle of a frame still.
        if self.told_at.is_none() {
            self.order.set(Some(CloseOrder {
                code: 1012,
                reason: "service restart".to_owned(),
            }));
        }
        if let Some(ended) = self.io_ended.take() {
            // Ended, or the other end does not read: both are the end.
            let _ = tokio::time::timeout(STOP_GRACE, ended).await;
        }
    }

    async fn task_ended(
        &mut self,
        name: &'static str,
        _key: u64,
        end: TaskEnd,
    ) -> Result<(), Crash> {
        if let TaskEnd::Panicked(why) = end {
            return Err(Crash::new(format!("its {name} task panicked: {why}")));
        }
        if name == IO {
            self.ctx.stop_myself();
        }
        Ok(())
    }
}

impl Connection {
    fn adopt(&mut self, accepted: Accepted) {
        // Boxed: each future around it would hold its size twice, once as it came and once as it runs.
        let serving = Box::pin(serve::serve(
            self.wiring.clone(),
            accepted,
            self.order.clone(),
            self.room.reader(),
            self.session.reader(),
            self.has_last_words.clone(),
        ));
        let (alive, ended) = oneshot::channel::<()>();
        self.io_ended = Some(ended);
        self.io = Some(self.ctx.task(IO, 0, async move {
            let _alive = alive;
            serving.await;
        }));
    }

    fn close(&mut self, order: CloseOrder) {
        self.session.set(Some(order.reason.clone()));
        self.order.set(Some(order));
        self.told_at.get_or_insert_with(Instant::now);
        self.arm(CLOSE_GRACE);
    }

    fn arm(&mut self, wait: Duration) {
        self.abort = Some(self.ctx.after("abort", 0, wait, ConnectionMsg::Abort));
    }

    /// The other end does not take the close frame, or an answer that may have ended this session is still under way.
    fn abort(&mut self) {
        let limit = if self.linger { LINGER } else { LAST_WORDS };
        let told = self.told_at.map(|at| at.elapsed());
        if self.has_last_words.get() && told.is_some_and(|since| since < limit) {
            self.arm(CLOSE_GRACE);
        } else {
            self.io = None;
        }
    }
}
