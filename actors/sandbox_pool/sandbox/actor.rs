//! The box's loop passes orders on; its task does the rest.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::messages::{OverBy, SandboxMsg};
use crate::sandbox_pool::driver::Driver;
use crate::sandbox_pool::folders;
use crate::sandbox_pool::link::Listener;
use crate::sandbox_pool::runs::{NotAccepted, Order, Over, Runs};
use crate::sandbox_pool::spec::BoxSpec;
use crate::supervision::{Crash, Ctx, Room, Snapshot, TaskHandle};

/// Orders on their way to the link (a box that is being started holds them all).
const ORDERS: usize = 256;
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
            let over = live(&own, receiver).await;
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
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
            .with("box", &self.wiring.spec.id)
            .with("agent", &self.wiring.spec.agent)
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
            Ok(why) => tracing::info!(id = %spec.id, agent = %spec.agent, ?why, "box ended"),
            Err(error) => tracing::warn!(id = %spec.id, agent = %spec.agent, %error, "box lost"),
        }
        self.ctx.stop_myself();
    }
}

/// The whole life of a box: made, served, ended, nothing left.
async fn live(wiring: &SandboxWiring, mut orders: mpsc::Receiver<Order>) -> Result<Over, OverBy> {
    let SandboxWiring { driver, spec, idle } = wiring;
    let over = match open(driver, spec, *idle).await {
        Ok((runs, _kept)) => runs.serve(&mut orders).await.map_err(OverBy::from),
        Err(text) => {
            orders.close();
            while let Some(order) = orders.recv().await {
                if let Order::Start { accepted, .. } = order {
                    let _ = accepted.send(Err(NotAccepted::NoBox(text.clone())));
                }
            }
            Err(OverBy::Start(text))
        }
    };
    if let Err(error) = driver.stop(&spec.id).await {
        tracing::error!(id = %spec.id, %error, "a box could not be ended");
    }
    folders::remove_run_dir(&spec.run_dir);
    over
}

/// What must live as long as the link: the socket that the cell would dial again, and bubblewrap's process, to be buried.
type Kept = (Listener, Option<tokio::process::Child>);

async fn open(driver: &Driver, spec: &BoxSpec, idle: Duration) -> Result<(Runs, Kept), String> {
    // The driver stops what is half started.
    let listener = Listener::bind(&spec.run_dir, spec.gid)
        .map_err(|error| format!("control socket: {error}"))?;
    let started = driver
        .start(spec)
        .await
        .map_err(|error| error.to_string())?;
    let link = listener
        .accept(started.init_pid, &spec.nonce, HELLO_WITHIN)
        .await
        .map_err(|error| error.to_string())?;
    Ok((
        Runs::new(link, started.image_digest, idle),
        (listener, started.child),
    ))
}
