//! The room around the flow: it is begun, told to stop, and waited for.

use std::time::Duration;

use super::ends::Stop;
use super::flow::Flow;
use super::messages::{RunMsg, RunWiring};
use crate::exec::messages::{Accepted, Begin, ExecRefusal};
use crate::supervision::{Crash, Ctx, Flag, FlagReader, Reply, Room, TaskEnd, TaskHandle};

/// At shutdown: for the process to end and its outcome to be recorded.
const STOP_WITHIN: Duration = Duration::from_secs(4);
/// The one task whose end is the run's.
const FLOW: &str = "flow";

/// The flow at work. What it holds of the flag goes with it, however it ends.
struct Running {
    over: FlagReader<()>,
    _task: TaskHandle,
}

/// One run's actor.
pub struct RunRoom {
    wiring: RunWiring,
    ctx: Ctx<Self>,
    /// Set: end.
    stop: Flag<Option<Stop>>,
    /// Set: neither its connection's end nor its credential's is the run's.
    kept: Flag<bool>,
    flow: Option<Running>,
}

impl Room for RunRoom {
    const NAME: &'static str = "run";
    type Msg = RunMsg;
    type Wiring = RunWiring;

    async fn start(wiring: &RunWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        Ok(Self {
            wiring: wiring.clone(),
            ctx,
            stop: Flag::new(None),
            kept: Flag::new(false),
            flow: None,
        })
    }

    async fn handle(&mut self, msg: RunMsg) -> Result<(), Crash> {
        match msg {
            RunMsg::Begin(begin, reply) => self.begin(*begin, reply),
            #[cfg(test)]
            RunMsg::Break => return Err(Crash::new("broken by a test")),
            RunMsg::Keep(on) => self.kept.set(on),
            RunMsg::Cancel => self.stop.set(Some(Stop::Cancel)),
        }
        Ok(())
    }

    async fn task_ended(
        &mut self,
        name: &'static str,
        _key: u64,
        end: TaskEnd,
    ) -> Result<(), Crash> {
        match end {
            TaskEnd::Panicked(why) => Err(Crash::new(format!("{name} panicked: {why}"))),
            TaskEnd::Done => {
                if name == FLOW {
                    self.ctx.stop_myself();
                }
                Ok(())
            }
        }
    }

    async fn stop(self) {
        self.stop.set(Some(Stop::Shutdown));
        if let Some(mut running) = self.flow {
            // Past that the process is ended by the drop of what holds it.
            let _ = tokio::time::timeout(STOP_WITHIN, running.over.changed()).await;
        }
    }
}

impl RunRoom {
    fn begin(&mut self, begin: Begin, reply: Reply<Accepted, ExecRefusal>) {
        if self.flow.is_some() {
            return;
        }
        // Whoever ends a credential ends its runs too, so that neither flag of the connection is needed for that.
        self.kept.set(begin.request.detach);
        let flow = Flow::new(
            self.wiring.clone(),
            self.ctx.clone(),
            begin,
            self.stop.reader(),
            self.kept.reader(),
        );
        let over = Flag::new(());
        let reader = over.reader();
        let task = self.ctx.task(FLOW, 0, async move {
            flow.run(reply).await;
            drop(over);
        });
        self.flow = Some(Running {
            over: reader,
            _task: task,
        });
    }
}
