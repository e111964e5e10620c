//! A room that does what a test says, and the tree around it.

use std::future::Future;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use portcullis_actors::supervision::{
    CallError, ChildEnd, Crash, Ctx, Handle, Intensity, OnFatal, Reply, Room, Snapshot, TaskEnd,
    Tree, TreeBuilder,
};
use tokio::sync::mpsc;

pub const SECOND: Duration = Duration::from_secs(1);
pub const LONG: Duration = Duration::from_mins(10);
pub const NOT_RUN: Answer = Err(CallError::Unavailable {
    may_have_run: false,
});
pub const MAY_HAVE_RUN: Answer = Err(CallError::Unavailable { may_have_run: true });

pub type Answer = Result<u32, CallError<String>>;
pub type Done = Result<(), Crash>;
type Job<const N: usize> = Box<dyn for<'a> FnOnce(&'a mut Probe<N>) -> BoxFuture<'a, Done> + Send>;

/// Runs the closure it is sent.
pub struct Msg<const N: usize>(Job<N>);

pub fn job<const N: usize>(
    f: impl for<'a> FnOnce(&'a mut Probe<N>) -> BoxFuture<'a, Done> + Send + 'static,
) -> Msg<N> {
    Msg(Box::new(f))
}

/// The `N`-th room: `Probe<0>` is named `a`.
pub struct Probe<const N: usize> {
    pub ctx: Ctx<Self>,
    pub plan: Plan<N>,
    /// What a crash loses.
    pub memory: u32,
}

type Starting<const N: usize> =
    Arc<dyn Fn(u32, Ctx<Probe<N>>) -> BoxFuture<'static, Done> + Send + Sync>;

/// A room's wiring: how it starts and stops, and where it writes down what happened.
pub struct Plan<const N: usize> {
    pub log: Log,
    pub starts: Arc<AtomicU32>,
    /// What is durable.
    pub durable: Arc<AtomicU32>,
    start: Starting<N>,
    stop: Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
}

impl<const N: usize> Clone for Plan<N> {
    fn clone(&self) -> Self {
        Self {
            log: self.log.clone(),
            starts: self.starts.clone(),
            durable: self.durable.clone(),
            start: self.start.clone(),
            stop: self.stop.clone(),
        }
    }
}

impl<const N: usize> Plan<N> {
    pub fn new(log: &Log) -> Self {
        Self {
            log: log.clone(),
            starts: Arc::default(),
            durable: Arc::default(),
            start: Arc::new(|_, _| Box::pin(async { Ok(()) })),
            stop: Arc::new(|| Box::pin(async {})),
        }
    }

    /// Runs in `start` with the number of the life, from 1.
    pub fn start<F: Future<Output = Done> + Send + 'static>(
        mut self,
        f: impl Fn(u32, Ctx<Probe<N>>) -> F + Send + Sync + 'static,
    ) -> Self {
        self.start = Arc::new(move |life, ctx| Box::pin(f(life, ctx)));
        self
    }

    pub fn stop<F: Future<Output = ()> + Send + 'static>(
        mut self,
        f: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        self.stop = Arc::new(move || Box::pin(f()));
        self
    }

    pub fn lives(&self) -> u32 {
        self.starts.load(Ordering::SeqCst)
    }
}

impl<const N: usize> Room for Probe<N> {
    const NAME: &'static str = ["a", "b", "c", "d", "e"][N];
    type Msg = Msg<N>;
    type Wiring = Plan<N>;

    async fn start(plan: &Plan<N>, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let life = plan.starts.fetch_add(1, Ordering::SeqCst) + 1;
        (plan.start)(life, ctx.clone()).await?;
        Ok(Self {
            ctx,
            memory: plan.durable.load(Ordering::SeqCst),
            plan: plan.clone(),
        })
    }

    async fn handle(&mut self, msg: Msg<N>) -> Done {
        (msg.0)(self).await
    }

    async fn task_ended(&mut self, name: &'static str, key: u64, end: TaskEnd) -> Done {
        self.plan.log.add(format!("task {name} {key} {end:?}"));
        match end {
            TaskEnd::Done => Ok(()),
            TaskEnd::Panicked(why) => Err(Crash::new(format!("task {name} panicked: {why}"))),
        }
    }

    async fn child_ended(&mut self, name: &'static str, key: u64, end: ChildEnd) -> Done {
        self.plan.log.add(format!("child {name} {key} {end:?}"));
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default().with("memory", self.memory)
    }

    async fn stop(self) {
        (self.plan.stop)().await;
        self.plan.log.add(format!("stop {}", Self::NAME));
    }
}

/// What happened, in order.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn add(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn count(&self, line: &str) -> usize {
        self.all().iter().filter(|l| *l == line).count()
    }

    /// Waits (a minute at most) until `line` was written.
    pub async fn wait(&self, line: &str) {
        eventually(line, || self.count(line) > 0).await;
    }
}

/// Waits until `test` holds; fails after a minute of the runtime's clock.
pub async fn eventually(what: &str, test: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if test() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never: {what}");
}

/// Reports its own drop.
pub struct OnDrop(pub Log, pub &'static str);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.add(self.1);
    }
}

pub fn builder() -> (TreeBuilder, mpsc::UnboundedReceiver<String>) {
    let (tx, rx) = mpsc::unbounded_channel();
    let fatal: OnFatal = Arc::new(move |room, why| {
        let _ = tx.send(format!("{room}: {why}"));
    });
    (TreeBuilder::new(Intensity::default(), fatal), rx)
}

/// Answers `n`.
pub async fn say<const N: usize>(handle: &Handle<Msg<N>>, n: u32) -> Answer {
    ask(handle, SECOND, move |_, reply| {
        Box::pin(async move {
            reply.ok(n);
            Ok(())
        })
    })
    .await
}

/// Runs a closure in the room that may answer.
pub async fn ask<const N: usize>(
    handle: &Handle<Msg<N>>,
    within: Duration,
    f: impl for<'a> FnOnce(&'a mut Probe<N>, Reply<u32, String>) -> BoxFuture<'a, Done> + Send + 'static,
) -> Answer {
    handle
        .call(within, |reply| job(move |probe| f(probe, reply)))
        .await
}

/// The reply is held over the end, as it is where a handler crashes half-way.
pub async fn panics<const N: usize>(handle: &Handle<Msg<N>>) -> Answer {
    ask(handle, SECOND, |_, reply| {
        Box::pin(async move {
            let _reply = reply;
            panic!("planned")
        })
    })
    .await
}

pub async fn fails<const N: usize>(handle: &Handle<Msg<N>>) -> Answer {
    ask(handle, SECOND, |_, reply| {
        Box::pin(async move {
            let _reply = reply;
            Err(Crash::new("planned"))
        })
    })
    .await
}

pub async fn hangs<const N: usize>(handle: &Handle<Msg<N>>, within: Duration) -> Answer {
    ask(handle, within, |_, reply| {
        Box::pin(async move {
            let _reply = reply;
            std::future::pending().await
        })
    })
    .await
}

/// Asks again while the answer is "did not run": on many threads a call may still reach the mailbox that goes.
pub async fn say_again<const N: usize>(handle: &Handle<Msg<N>>, n: u32) -> Answer {
    loop {
        let said = say(handle, n).await;
        if said != NOT_RUN {
            return said;
        }
    }
}

/// Lets every other task run as far as it can without time passing.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

pub fn depth(tree: &Tree, index: usize) -> usize {
    tree.window().look().rooms[index]
        .gate
        .as_ref()
        .unwrap()
        .depth
}

const INNER: &str = "PORTCULLIS_TEST_INNER";

/// Is this the process that [`own_process`] started?
pub fn inner(test: &str) -> bool {
    std::env::var(INNER).is_ok_and(|name| name == test)
}

/// Runs one test of this binary in a process of its own.
pub fn own_process(test: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INNER, test)
        .output()
        .unwrap()
}
