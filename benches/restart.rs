//! From the crash of a room to its next answer.
#![forbid(unsafe_code)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use portcullis_actors::supervision::{
    CallError, Crash, Ctx, Handle, Intensity, OnFatal, Policy, Reply, Room, TreeBuilder,
};
use support::{line, median, percentile};

/// Rooms that crash once each: a second crash of one waits, by design.
const ROOMS: usize = 300;
const WITHIN: Duration = Duration::from_secs(20);

struct Small {
    lives: Arc<str>,
}

enum SmallMsg {
    Break(Reply<(), ()>),
    Say(Reply<usize, ()>),
}

impl Room for Small {
    const NAME: &'static str = "small";
    type Msg = SmallMsg;
    type Wiring = Arc<str>;

    async fn start(wiring: &Arc<str>, _ctx: Ctx<Self>) -> Result<Self, Crash> {
        Ok(Self {
            lives: wiring.clone(),
        })
    }

    async fn handle(&mut self, msg: SmallMsg) -> Result<(), Crash> {
        match msg {
            SmallMsg::Break(_reply) => Err(Crash::new("as asked")),
            SmallMsg::Say(reply) => {
                reply.ok(self.lives.len());
                Ok(())
            }
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let fatal: OnFatal = Arc::new(|room, why| panic!("{room}: {why}"));
    let mut builder = TreeBuilder::new(Intensity::default(), fatal);
    let rooms: Vec<Handle<SmallMsg>> = (0..ROOMS)
        .map(|_| builder.room::<Small>(Policy::new(64), "state".into()))
        .collect();
    let tree = builder.start().await?;
    let mut took = vec![];
    for room in &rooms {
        let began = Instant::now();
        ensure!(
            room.call(WITHIN, SmallMsg::Break).await.is_err(),
            "the room did not crash"
        );
        loop {
            match room.call(WITHIN, SmallMsg::Say).await {
                Ok(5) => break,
                // Sent into the mailbox that the crash threw away: not run, to be asked again.
                Err(CallError::Unavailable {
                    may_have_run: false,
                }) if began.elapsed() < WITHIN => tokio::task::yield_now().await,
                other => bail!("the next life answers {other:?}"),
            }
        }
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let restarts: u64 = tree.window().look().rooms.iter().map(|r| r.restarts).sum();
    ensure!(restarts == ROOMS as u64, "{restarts} restarts of {ROOMS}");
    println!(
        "crash to serving again, median: {:.3} ms",
        median(took.clone())
    );
    line(
        "crash of a room to its next answer, p99",
        percentile(took, 99),
        "ms",
        100.0,
    );
    tree.stop().await;
    Ok(())
}
