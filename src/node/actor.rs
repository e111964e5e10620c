//! The room: one link to the gateway, and a task for each of its questions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use portcullis_actors::supervision::{Crash, Ctx, Room, Snapshot, TaskHandle};
use portcullis_core::nodes::{Begun, RUN_NUMBER};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::commands::{self, Answer};
use super::link;
use super::messages::{Asked, NodeMsg, NodeWiring, Out};
use super::stats;

/// Questions at once.
const MOST: usize = 16;
/// Runs that are remembered, so that none is begun twice: 32 to 64 bytes each.
const RECENT: usize = 131_072;
const REPORT_EVERY: Duration = Duration::from_mins(1);
/// For the goodbye.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// See [`super`].
pub struct NodeHost {
    wiring: NodeWiring,
    ctx: Ctx<Self>,
    line: Option<mpsc::Sender<Out>>,
    /// By question. Dropped, a task ends, and the command that it runs with it.
    open: BTreeMap<String, Open>,
    begun: Begun,
    asked: u64,
    _link: TaskHandle,
    _report: TaskHandle,
}

struct Open {
    _task: TaskHandle,
    /// Ends what it runs; it answers then. Only a run has it.
    stop: Option<oneshot::Sender<()>>,
}

impl Room for NodeHost {
    const NAME: &'static str = "node_host";
    type Msg = NodeMsg;
    type Wiring = NodeWiring;

    async fn start(wiring: &NodeWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let (session, name, news) = (wiring.session.clone(), wiring.name.clone(), ctx.clone());
        let link = ctx.task(
            "link",
            0,
            link::keep(session, name, move |msg| news.notify(msg)),
        );
        let report = ctx.every("report", REPORT_EVERY, || NodeMsg::Report);
        Ok(Self {
            wiring: wiring.clone(),
            ctx,
            line: None,
            open: BTreeMap::new(),
            begun: Begun::new(RECENT),
            asked: 0,
            _link: link,
            _report: report,
        })
    }

    async fn handle(&mut self, msg: NodeMsg) -> Result<(), Crash> {
        match msg {
            NodeMsg::Up(line, log_at) => {
                self.begun.linked(log_at);
                self.line = Some(line);
                self.report();
            }
            NodeMsg::Down => {
                self.line = None;
                // Nobody would hear how they end.
                self.open.clear();
            }
            NodeMsg::Asked(asked) => self.asked(*asked),
            NodeMsg::Cancelled(id) => self.cancelled(&id),
            NodeMsg::Answered(id) => {
                self.open.remove(&id);
            }
            NodeMsg::Report => self.report(),
            NodeMsg::Over(failure) => self.wiring.over.set(Some(Arc::new(*failure))),
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
            .with("connected", self.line.is_some())
            .with("open", self.open.len())
            .with("asked", self.asked)
    }

    async fn stop(mut self) {
        self.open.clear();
        let Some(line) = self.line.take() else { return };
        let (gone, told) = oneshot::channel();
        if line.send(Out::Close(gone)).await.is_ok() {
            // A gateway that does not answer is left all the same.
            let _ = tokio::time::timeout(LEAVE_WITHIN, told).await;
        }
    }
}

impl NodeHost {
    fn report(&self) {
        if let (Some(line), Some(stats)) = (&self.line, stats::read(&self.wiring.folder)) {
            let event = json!({ "event": "node.host.stats", "payloadJSON": stats.to_string() });
            // The next one comes in a minute.
            let _ = line.try_send(Out::Request("node.event", event));
        }
    }

    fn asked(&mut self, asked: Asked) {
        // The first question of an id stands; who asks far more than is answered is not even told.
        if self.open.contains_key(&asked.id) || self.open.len() >= 4 * MOST {
            return;
        }
        let Some(line) = self.line.clone() else {
            return;
        };
        self.asked += 1;
        let key = self.asked;
        let node = self.wiring.session.device_id();
        let id = asked.id.clone();
        let refused = self.refusal(&asked);
        let (stop, stopped) = oneshot::channel();
        let stop = (asked.command == commands::RUN).then_some(stop);
        let (wiring, news) = (self.wiring.clone(), self.ctx.clone());
        let task = self.ctx.task("question", key, async move {
            let answer = match refused {
                Some((code, why)) => Answer::refused(code, why),
                None => commands::answer(&wiring, &asked, &line, stopped).await,
            };
            for event in answer.events(&asked) {
                // A link that is gone takes nothing: the gateway knows by itself.
                let _ = line.send(Out::Request("node.event", event)).await;
            }
            let result = answer.result(&node, &asked.id);
            let _ = line.send(Out::Request("node.invoke.result", result)).await;
            news.notify(NodeMsg::Answered(asked.id));
        });
        self.open.insert(id, Open { _task: task, stop });
    }

    /// The gateway waits for the word that nothing of a run is left. Nothing else is worth its answer.
    fn cancelled(&mut self, id: &str) {
        let stop = self.open.get_mut(id).and_then(|open| open.stop.take());
        if let Some(stop) = stop {
            // One that has just ended answers without it.
            let _ = stop.send(());
        } else {
            self.open.remove(id);
        }
    }

    /// What is not even looked at.
    fn refusal(&mut self, asked: &Asked) -> Option<(&'static str, String)> {
        if self.open.len() >= MOST {
            return Some(("UNAVAILABLE", "too many questions at once".to_owned()));
        }
        if asked.command != commands::RUN {
            return None;
        }
        let run = asked
            .params
            .get("runId")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if run.is_empty() {
            return Some(("INVALID_REQUEST", "runId is missing".to_owned()));
        }
        let number = asked.params.get(RUN_NUMBER).and_then(Value::as_u64);
        let why = self.begun.begin(run, number).err()?;
        Some(("SYSTEM_RUN_DENIED", why.to_string()))
    }
}
