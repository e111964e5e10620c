//! The box's loop passes orders on; its task does the rest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use portcullis_core::ids::RunId;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::messages::{OverBy, SandboxMsg};
use crate::sandbox_pool::driver::Driver;
use crate::sandbox_pool::egress::{Egress, EgressWiring};
use crate::sandbox_pool::link::{Link, Listener};
use crate::sandbox_pool::runs::{NotAccepted, Order, Over, Runs};
use crate::sandbox_pool::spec::{BoxSpec, StartedBox};
use crate::sandbox_pool::standing::Standing;
use crate::sandbox_pool::{folders, kept};
use crate::supervision::{ChildEnd, Crash, Ctx, Flag, Room, Snapshot, TaskHandle};

/// Orders on their way to the link (a box that is being started holds them all).
const ORDERS: usize = 256;
/// Messages of the way out's mailbox, which gets none.
const EGRESS_GATE: usize = 1;
/// From the start of the init process to its HELLO.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// What a box is started with.
#[derive(Clone)]
pub struct SandboxWiring {
    /// Who starts it.
    pub driver: Driver,
    /// What it is to be.
    pub spec: BoxSpec,
    /// Without a run for so long it ends itself.
    pub idle: Duration,
    /// So long after it was asked for it ends itself once nothing runs in it.
    pub age: Duration,
    /// It is made ahead: until its first run it does not count as idle.
    pub is_ready_made: bool,
    /// Where it shows what it does.
    pub shown: Arc<Flag<Standing>>,
    /// Its way out, where it has one.
    pub egress: Option<WayOut>,
}

/// The way out of a box.
#[derive(Clone)]
pub struct WayOut {
    /// What it is started with.
    pub wiring: EgressWiring,
    /// Where the box shows it what runs.
    pub runs: Arc<Flag<Arc<[RunId]>>>,
}

/// The actor of one box.
pub struct Sandbox {
    ctx: Ctx<Self>,
    wiring: SandboxWiring,
    orders: mpsc::Sender<Order>,
    _serving: TaskHandle,
}

impl Room for Sandbox {
    const NAME: &'static str = "sandbox";
    type Msg = SandboxMsg;
    type Wiring = SandboxWiring;

    async fn start(wiring: &SandboxWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let (orders, receiver) = mpsc::channel(ORDERS);
        let news = ctx.clone();
        let own = wiring.clone();
        let serving = ctx.task("box", 0, async move {
            let over = live(&news, &own, receiver).await;
            news.notify(SandboxMsg::Over(over));
        });
        Ok(Self {
            ctx,
            wiring: wiring.clone(),
            orders,
            _serving: serving,
        })
    }

    async fn handle(&mut self, msg: SandboxMsg) -> Result<(), Crash> {
        match msg {
            SandboxMsg::Order(order) => self.pass(order),
            SandboxMsg::Over(over) => self.over(over),
            #[cfg(test)]
            SandboxMsg::Hang => std::future::pending().await,
        }
        Ok(())
    }

    async fn child_ended(
        &mut self,
        _name: &'static str,
        _key: u64,
        end: ChildEnd,
    ) -> Result<(), Crash> {
        // A way out that broke is made again at the same place: what went through it has ended, what runs in the box has not.
        if let ChildEnd::Crashed(_) = end
            && let Some(out) = self.wiring.egress.clone()
        {
            let (ctx, id) = (self.ctx.clone(), self.wiring.spec.id.clone());
            let again = async move {
                if let Err(error) = way_out(&ctx, &out).await {
                    tracing::error!(%id, %error, "a box has lost its way out: what it asks for is not answered");
                }
            };
            self.ctx.task("egress_again", 0, again).keep();
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
            .with("box", &self.wiring.spec.id)
            .with("whose", &self.wiring.spec.whose)
    }
}

impl Sandbox {
    fn pass(&self, order: Order) {
        match self.orders.try_send(order) {
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            // Dropped with its answer: the caller is told that it was not started.
            Err(TrySendError::Full(_)) => {
                tracing::warn!(id = %self.wiring.spec.id, "a box does not keep up with its orders");
            }
        }
    }

    fn over(&self, over: Result<Over, OverBy>) {
        let spec = &self.wiring.spec;
        match over {
            Ok(why) => tracing::info!(id = %spec.id, whose = %spec.whose, ?why, "box ended"),
            Err(error) => tracing::warn!(id = %spec.id, whose = %spec.whose, %error, "box lost"),
        }
        self.ctx.stop_myself();
    }
}

/// The whole life of a box: made, served, ended, nothing left.
async fn live(
    ctx: &Ctx<Sandbox>,
    wiring: &SandboxWiring,
    mut orders: mpsc::Receiver<Order>,
) -> Result<Over, OverBy> {
    let SandboxWiring {
        driver,
        spec,
        idle,
        age,
        is_ready_made,
        shown,
        egress,
    } = wiring;
    let old_at = Instant::now() + *age;
    let mut first = VecDeque::new();
    let (over, init) = match open(ctx, wiring, &mut orders, &mut first).await {
        Ok(Opened {
            link,
            started,
            listener: _listener,
        }) => {
            shown.set(Standing {
                init: Some(started.init_pid),
                ..Standing::new()
            });
            let init = kept::started_at(started.init_pid).map(|at| (started.init_pid, at));
            let init_pid = started.init_pid;
            let runs = Runs::new(link, started.image_digest, *idle).until(old_at);
            let runs = runs.watching(init_pid).ready_made(*is_ready_made);
            let named = egress.as_ref().map(|out| out.runs.clone());
            let runs = runs.of_pool(first, shown.clone()).naming(named);
            let served = runs.serve(&mut orders).await;
            (served.map_err(OverBy::from), init)
        }
        Err(not) => {
            say_over(shown);
            refuse(first, &mut orders, &not).await;
            let over = match not {
                NotAccepted::GivenUp(why) => Ok(Over::GivenUp(why)),
                NotAccepted::NoBox(text) => Err(OverBy::Start(text)),
                NotAccepted::TooLong => Err(OverBy::Start(String::new())),
            };
            (over, None)
        }
    };
    say_over(shown);
    drop(orders);
    if let Err(error) = driver.stop(&spec.id).await {
        tracing::error!(id = %spec.id, %error, "a box could not be ended");
        // Without its engine the kernel is asked, where this process may.
        if let Some((pid, started)) = init
            && let Err(error) = kept::kill_and_wait(pid, started).await
        {
            tracing::error!(id = %spec.id, %error, "its first process neither: it ends by its dead-man time");
        }
    }
    folders::remove_run_dir(&spec.run_dir);
    over
}

/// Before the end of the orders: who is refused for that looks here.
fn say_over(shown: &Flag<Standing>) {
    shown.set(Standing {
        over: true,
        ..shown.get()
    });
}

/// Everything that is asked of a box that never served.
async fn refuse(first: VecDeque<Order>, orders: &mut mpsc::Receiver<Order>, not: &NotAccepted) {
    orders.close();
    let refuse = |order| {
        if let Order::Start { accepted, .. } = order {
            let _ = accepted.send(Err(not.clone()));
        }
    };
    first.into_iter().for_each(refuse);
    while let Some(order) = orders.recv().await {
        refuse(order);
    }
}

/// A box that serves.
struct Opened {
    link: Link,
    /// With bubblewrap's process, to be buried.
    started: StartedBox,
    /// The socket that the cell would dial again.
    listener: Listener,
}

/// Makes the box; what is ordered meanwhile is kept in `first`, but for the order to give it up.
async fn open(
    ctx: &Ctx<Sandbox>,
    wiring: &SandboxWiring,
    orders: &mut mpsc::Receiver<Order>,
    first: &mut VecDeque<Order>,
) -> Result<Opened, NotAccepted> {
    let opening = make(ctx, wiring);
    tokio::pin!(opening);
    loop {
        tokio::select! {
            opened = &mut opening => return opened.map_err(NotAccepted::NoBox),
            order = orders.recv(), if first.len() < ORDERS => match order {
                Some(Order::End(why)) => return Err(NotAccepted::GivenUp(why)),
                Some(order) => first.push_back(order),
                None => return Err(NotAccepted::NoBox("nobody wants it any more".to_owned())),
            },
        }
    }
}

/// The proxy, with its socket: before the box, whose cell passes connections on to it.
async fn way_out(ctx: &Ctx<Sandbox>, out: &WayOut) -> Result<(), String> {
    let child = ctx.child::<Egress>(0, out.wiring.clone(), EGRESS_GATE);
    let started = child.await.map(drop);
    started.map_err(|crash| format!("its way out: {}", crash.why()))
}

async fn make(ctx: &Ctx<Sandbox>, wiring: &SandboxWiring) -> Result<Opened, String> {
    let SandboxWiring { driver, spec, .. } = wiring;
    if let Some(out) = &wiring.egress {
        way_out(ctx, out).await?;
    }
    // The driver stops what is half started.
    let listener = Listener::bind(&spec.run_dir, spec.gid)
        .map_err(|error| format!("control socket: {error}"))?;
    let started = driver
        .start(spec)
        .await
        .map_err(|error| error.to_string())?;
    let link = listener
        .accept(started.init_pid, Some(&spec.nonce), HELLO_WITHIN)
        .await
        .map_err(|error| error.to_string())?;
    Ok(Opened {
        link,
        started,
        listener,
    })
}
