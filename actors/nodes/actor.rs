//! The room around core's machine: lines to nodes, callers that wait, and the clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use portcullis_core::audit::{Entry, Once, Outcome, Seq};
use portcullis_core::codes;
use portcullis_core::ids::DeviceId;
use portcullis_core::nodes::{Approved, Connected, Due, Machine, NodeResult, Refusal, Taken};
use portcullis_core::time::Millis;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::handle::approved;
use super::messages::{
    ActRefusal, Asked, NodesError, NodesMsg, NodesWiring, Piece, Question, Recorded, ToNode,
};
use crate::audit::{AuditHandle, Refused};
use crate::pairing::PairingHandle;
use crate::supervision::{Crash, Ctx, Reply, Room, Snapshot, TaskHandle};

/// Answers that are kept for who asks again under the same key (wire.md 3: five minutes), and the most bytes of one.
const ANSWERS: usize = 128;
/// See [`ANSWERS`].
const ANSWER_MAX: usize = 64 * 1024;
/// See [`ANSWERS`], milliseconds.
const ANSWER_MS: u64 = 300_000;
/// For a node to say that a run that it was told to stop is over, milliseconds. The peer's says nothing.
const STOP_WITHIN_MS: u64 = 1_500;
/// How often open questions are looked at: is their time over, has their caller gone?
const LOOK: Duration = Duration::from_millis(200);

/// See the room's [`super`].
pub struct Nodes {
    ctx: Ctx<Self>,
    audit: AuditHandle,
    pairing: PairingHandle,
    acts: u64,
    machine: Machine,
    started: Instant,
    /// To each connection of a node: by device and connection.
    lines: BTreeMap<(DeviceId, String), mpsc::Sender<ToNode>>,
    waiting: BTreeMap<String, Waiting>,
    /// The last answers, oldest first.
    answers: VecDeque<Kept>,
    wall: crate::clock::Clock,
    look: Option<TaskHandle>,
    attached: u64,
    asked: u64,
}

/// A node's answer to a question on record.
struct Kept {
    intent: Seq,
    asked: Asked,
    at: Millis,
    answer: Option<String>,
}

impl Kept {
    const fn is_fresh(&self, now: Millis) -> bool {
        now.since(self.at) < ANSWER_MS
    }
}

/// Who waits for an answer.
struct Waiting {
    asker: Asker,
    progress: Option<mpsc::Sender<Piece>>,
}

impl Room for Nodes {
    const NAME: &'static str = "nodes";
    type Msg = NodesMsg;
    type Wiring = NodesWiring;

    async fn start(wiring: &NodesWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        Ok(Self {
            audit: wiring.audit.clone(),
            pairing: wiring.pairing.clone(),
            acts: 0,
            ctx,
            machine: Machine::new(wiring.config.limits()),
            started: Instant::now(),
            lines: BTreeMap::new(),
            waiting: BTreeMap::new(),
            answers: VecDeque::new(),
            wall: wiring.clock.clone(),
            look: None,
            attached: 0,
            asked: 0,
        })
    }

    async fn handle(&mut self, msg: NodesMsg) -> Result<(), Crash> {
        match msg {
            NodesMsg::Attach(node, line, reply) => reply.send(self.attach(*node, line)),
            NodesMsg::Gone(node, conn) => self.gone(&node, &conn),
            NodesMsg::Ask(question, approved, reply) => {
                self.ask(&question, &approved, Asker::Plain(reply));
            }
            NodesMsg::Act(entry, question, reply) => self.record(*entry, question, reply),
            NodesMsg::Recorded(question, approved, recorded) => {
                self.ask(&question, &approved, Asker::Recorded(recorded));
            }
            NodesMsg::Again(seq, question, reply) => {
                let (now, asked) = (self.now(), Asked::of(&question));
                let kept = self.answers.iter().find(|kept| kept.intent == seq);
                let kept = kept.filter(|kept| kept.is_fresh(now) && kept.asked == asked);
                reply.send(match kept {
                    Some(kept) => Ok(kept.answer.clone()),
                    None => Err(ActRefusal::Node(Refusal::Repeated(seq.0).into())),
                });
            }
            NodesMsg::Result(node, conn, result, reply) => {
                reply.send(self.result(&node, &conn, result));
            }
            NodesMsg::Progress {
                node,
                conn,
                named,
                id,
                seq,
                chunk,
                reply,
            } => {
                let taken = self
                    .machine
                    .progress(&node, &conn, &named, &id, seq, &chunk);
                let waiting = self.waiting.get(&id).filter(|_| taken == Ok(true));
                if let Some(to) = waiting.and_then(|waiting| waiting.progress.as_ref()) {
                    // A caller that does not read misses it: the room waits for nobody.
                    let _ = to.try_send((seq, chunk));
                }
                reply.send(taken);
            }
            NodesMsg::Stop(node, run, reply) => {
                let until = self.now().plus(STOP_WITHIN_MS);
                let due = self.machine.stop(&node, &run, until);
                if let Some(due) = &due {
                    self.cancel(due);
                }
                reply.ok(due.is_some());
            }
            NodesMsg::KnowsRun(node, conn, run, reply) => {
                reply.ok(self.machine.knows_run(&node, &conn, &run));
            }
            NodesMsg::Stats(node, conn, stats, reply) => {
                self.machine.stats(&node, &conn, stats);
                reply.ok(());
            }
            NodesMsg::WorkerHost(node, conn, enabled, reply) => {
                self.machine.worker_host(&node, &conn, enabled);
                reply.ok(());
            }
            NodesMsg::List(reply) => reply.ok(self.machine.nodes().cloned().collect()),
            NodesMsg::Tick => self.tick(),
        }
        if self.look.is_none() {
            self.look = self.arm();
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
            .with("connected", self.machine.nodes().count())
            .with("open", self.machine.open())
            .with("asked", self.asked)
    }
}

/// Who asked.
enum Asker {
    Plain(Reply<Option<String>, Refusal>),
    /// With an intent on record, whose outcome is written before the answer goes out.
    Recorded(Recorded),
}

impl Asker {
    fn is_wanted(&self) -> bool {
        match self {
            Self::Plain(reply) => reply.is_wanted(),
            Self::Recorded(recorded) => recorded.reply.is_wanted(),
        }
    }
}

/// The outcome of a question on record, and then its answer.
async fn close(audit: AuditHandle, recorded: Recorded, answer: Result<Option<String>, NodesError>) {
    let cancelled = codes::RUN_CANCELLED.name;
    let outcome = match &answer {
        Ok(_) => Outcome::ok(),
        Err(NodesError::Refused(Refusal::NotAsked)) => Outcome::refused(cancelled),
        Err(NodesError::Refused(Refusal::Aborted)) => Outcome::failed(cancelled),
        Err(error) if error.dispatched() => Outcome::failed(error.code().name),
        Err(error) => Outcome::refused(error.code().name),
    };
    if let Err(error) = audit.outcome(recorded.intent, outcome).await {
        // What the node did is not undone: the intent stays open, and the log says so.
        tracing::error!(target: "portcullis", intent = recorded.intent.0, %error, "an outcome could not be recorded");
    }
    recorded.reply.send(answer.map_err(ActRefusal::Node));
}

impl Nodes {
    /// Monotonic: a set clock neither ends nor prolongs a question.
    fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn arm(&self) -> Option<TaskHandle> {
        (self.machine.open() > 0).then(|| self.ctx.after("look", 0, LOOK, NodesMsg::Tick))
    }

    fn attach(&mut self, mut node: Connected, line: mpsc::Sender<ToNode>) -> Result<(), Refusal> {
        node.since = self.wall.now();
        let (id, conn) = (node.node.clone(), node.conn.clone());
        let old = self.machine.attach(node)?;
        if let Some(old) = old.filter(|old| *old != conn)
            && let Some(line) = self.lines.remove(&(id.clone(), old.clone()))
        {
            // One that does not read ends by its own limits.
            let _ = line.try_send(ToNode::Replaced);
            let left = self.machine.detach(&id, &old);
            self.end(left, || Refusal::Disconnected);
        }
        self.attached += 1;
        let (ctx, watched) = (self.ctx.clone(), line.clone());
        let key = (id, conn);
        self.lines.insert(key.clone(), line);
        self.ctx
            .task("line", self.attached, async move {
                watched.closed().await;
                ctx.notify(NodesMsg::Gone(key.0, key.1));
            })
            .keep();
        Ok(())
    }

    fn gone(&mut self, node: &DeviceId, conn: &str) {
        let key = (node.clone(), conn.to_owned());
        // Attached again over a new line meanwhile: that one stays.
        if self.lines.get(&key).is_some_and(|line| !line.is_closed()) {
            return;
        }
        self.lines.remove(&key);
        let left = self.machine.detach(node, conn);
        self.end(left, || Refusal::Disconnected);
    }

    fn end(&mut self, questions: Vec<String>, why: impl Fn() -> Refusal) {
        for id in questions {
            if let Some(waiting) = self.waiting.remove(&id) {
                self.answer(waiting.asker, Err(why()));
            }
        }
    }

    /// The intent first. A task of the room: it comes to its end whoever hangs up meanwhile.
    fn record(
        &mut self,
        entry: Entry,
        question: Box<Question>,
        reply: Reply<Option<String>, ActRefusal>,
    ) {
        if !reply.is_wanted() {
            return;
        }
        let (audit, pairing, ctx) = (self.audit.clone(), self.pairing.clone(), self.ctx.clone());
        self.acts += 1;
        let record = async move {
            let intent = match audit.intent_once(entry, Refused::Anew).await {
                Ok(Once::New { seq }) => seq,
                Ok(Once::Seen { seq, .. }) => {
                    return ctx.notify(NodesMsg::Again(seq, question, reply));
                }
                Err(error) => return reply.refuse(ActRefusal::Log(error)),
            };
            let recorded = Recorded {
                intent,
                asked: Asked::of(&question),
                reply,
            };
            match approved(&pairing, &question).await {
                Ok(approved) => ctx.notify(NodesMsg::Recorded(question, approved, recorded)),
                Err(error) => close(audit, recorded, Err(error)).await,
            }
        };
        self.ctx.task("intent", self.acts, record).keep();
    }

    /// For who asks again under the same key because the answer was lost on its way.
    fn keep(&mut self, recorded: &Recorded, answer: Option<&String>) {
        let len = answer.map_or(0, String::len);
        if len + recorded.asked.len() > ANSWER_MAX {
            return;
        }
        if self.answers.len() == ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back(Kept {
            intent: recorded.intent,
            asked: recorded.asked.clone(),
            at: self.now(),
            answer: answer.cloned(),
        });
    }

    /// The answer; before it the outcome, where there is an intent.
    fn answer(&mut self, asker: Asker, answer: Result<Option<String>, Refusal>) {
        match asker {
            Asker::Plain(reply) => reply.send(answer),
            Asker::Recorded(recorded) => {
                self.acts += 1;
                if let Ok(answer) = &answer {
                    self.keep(&recorded, answer.as_ref());
                }
                let answer = answer.map_err(NodesError::Refused);
                let end = close(self.audit.clone(), recorded, answer);
                self.ctx.task("outcome", self.acts, end).keep();
            }
        }
    }

    fn ask(&mut self, question: &Question, approved: &Approved, asker: Asker) {
        // Who has gone, or was closed since the intent, asks nothing any more.
        if !asker.is_wanted() {
            return self.answer(asker, Err(Refusal::NotAsked));
        }
        let id = uuid::Uuid::new_v4().to_string();
        let now = self.now();
        let sent = match self.machine.ask(&id, &question.call, approved, now) {
            Ok(sent) => sent,
            Err(refusal) => return self.answer(asker, Err(refusal)),
        };
        let node = &question.call.node;
        let mut payload = json!({
            "id": id, "nodeId": node, "command": question.call.command,
            "paramsJSON": question.params, "timeoutMs": sent.timeout_ms,
        });
        let mut add = |key: &str, text: &Option<String>| {
            if let Some(text) = text {
                payload[key] = text.as_str().into();
            }
        };
        add("idempotencyKey", &question.idempotency_key);
        add("sessionKey", &question.session_key);
        let line = self.lines.get(&(node.clone(), sent.conn));
        let told = line.map(|line| line.try_send(ToNode::Event("node.invoke.request", payload)));
        match told {
            Some(Ok(())) => {
                self.asked += 1;
                let progress = question.progress.clone();
                self.waiting.insert(id, Waiting { asker, progress });
            }
            Some(Err(mpsc::error::TrySendError::Full(_))) => {
                self.machine.close(&id);
                self.answer(asker, Err(Refusal::TooMany));
            }
            Some(Err(mpsc::error::TrySendError::Closed(_))) | None => {
                self.machine.close(&id);
                self.answer(asker, Err(Refusal::NotConnected));
            }
        }
    }

    fn result(&mut self, node: &DeviceId, conn: &str, result: NodeResult) -> Result<bool, Refusal> {
        let id = result.id.clone();
        match self.machine.result(node, conn, result)? {
            Taken::Answer(answer) => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    self.answer(waiting.asker, answer);
                }
                Ok(true)
            }
            Taken::Ignored => Ok(false),
        }
    }

    fn tick(&mut self) {
        self.look = None;
        let late = self.machine.due(self.now());
        for due in late {
            self.cancel(&due);
            self.end(vec![due.id], || Refusal::TimedOut);
        }
        let left: Vec<String> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| !waiting.asker.is_wanted())
            .map(|(id, _)| id.clone())
            .collect();
        for id in left {
            if let Some(due) = self.machine.close(&id) {
                self.cancel(&due);
            }
            self.end(vec![id], || Refusal::Aborted);
        }
    }

    /// Tells the node that nobody waits any more. What it does all the same is late.
    fn cancel(&self, due: &Due) {
        let payload: Value = json!({ "invokeId": due.id, "nodeId": due.node });
        if let Some(line) = self.lines.get(&(due.node.clone(), due.conn.clone())) {
            // A node that reads nothing hears nothing of it either.
            let _ = line.try_send(ToNode::Event("node.invoke.cancel", payload));
        }
    }
}
