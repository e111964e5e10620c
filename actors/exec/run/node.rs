//! A run on a node: the node says what exactly it would run, that is what is decided on, and that is what it is sent.
//!
//! The node's word is no evidence of what its file is; it is bound into the plan, so that another word is another plan.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use portcullis_cell::{Cause, Stream};
use portcullis_core::audit::Seq;
use portcullis_core::codes;
use portcullis_core::display::visible;
use portcullis_core::ids::{AgentId, ApprovalId, DeviceId, Hash32};
use portcullis_core::nodes::{
    APPROVAL, Call, Forwarded, OnNode, PREPARE, PROGRESS, RUN, RUN_NUMBER, Refusal, STOPPED, Shown,
    Told, Way,
};
use portcullis_core::plan::{EnvValue, ExecPlan, is_canonical_path};
use portcullis_core::policy::{ExecMode, Reason, Ruling};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::exec::messages::{ExecEvent, ExecRefusal, RunRequest};
use crate::nodes::{NodesError, NodesHandle, Piece, Question};
use crate::sandbox_pool::Exited;

/// For a node to say what it would run.
const PREPARE_WITHIN: u64 = 15_000;
/// Longest plan of a node, as JSON text.
const PLAN_MAX: usize = 32 << 10;
/// Bytes of output in one event.
const PIECE: usize = 32 << 10;
/// Pieces of output that wait here; one that finds no place comes at the end.
const PIECES: usize = 256;
/// After a run's own time: the node keeps that, and tells.
const TELL_WITHIN: u64 = 2_000;

/// A node and its own plan, word for word.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeMeans {
    pub node: DeviceId,
    /// Sent back to it as `systemRunPlan`.
    pub plan: Value,
    /// What the plan says, read.
    pub argv: Vec<String>,
    pub cwd: String,
    pub claimed_sha256: Option<Hash32>,
    /// What its own document says of the command, by its word: a node that says nothing of that leaves it to us.
    pub own: ExecMode,
    /// By which rule, and why.
    pub rule: String,
    pub reasons: Vec<Reason>,
}

impl NodeMeans {
    /// The run, as the node makes its plan of it, too.
    pub fn run<'a>(&'a self, request: &'a RunRequest, timeout_ms: u64) -> OnNode<'a> {
        OnNode {
            node: &self.node,
            said: &self.plan,
            agent: &request.agent,
            argv: &self.argv,
            cwd: &self.cwd,
            sha256: self.claimed_sha256,
            env: &request.env,
            timeout_ms,
        }
    }
}

#[derive(Deserialize)]
struct Prepared {
    plan: Value,
    #[serde(default, rename = "portcullisVerdict")]
    verdict: Option<OwnVerdict>,
}

/// See [`portcullis_core::nodes::VERDICT`].
#[derive(Deserialize)]
struct OwnVerdict {
    verdict: Ruling,
    rule: String,
    #[serde(default)]
    reasons: Vec<Reason>,
}

/// Why a node's own document asks or refuses, of the node's reasons.
const REASONS: usize = 16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    argv: Vec<String>,
    cwd: Option<String>,
    #[serde(default)]
    mutable_file_operand: Option<Operand>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Operand {
    argv_index: usize,
    sha256: Hash32,
}

/// Asks the node what it would run.
pub async fn prepare(
    nodes: &NodesHandle,
    request: &RunRequest,
    node: &str,
) -> Result<NodeMeans, ExecRefusal> {
    let words = (&request.agent, &request.argv[..], request.cwd.as_deref());
    prepare_words(nodes, words, &request.env, node).await
}

/// The same of these words, where there is no run.
pub async fn prepare_words(
    nodes: &NodesHandle,
    (agent, argv, cwd): (&AgentId, &[String], Option<&str>),
    env: &BTreeMap<String, String>,
    node: &str,
) -> Result<NodeMeans, ExecRefusal> {
    let node = DeviceId::new(node)
        .map_err(|_| ExecRefusal::new(codes::NODE_NOT_FOUND, "unknown nodeId"))?;
    let mut params = json!({ "command": argv, "agentId": agent });
    if let Some(cwd) = cwd {
        params["cwd"] = cwd.into();
    }
    if !env.is_empty() {
        params["env"] = json!(env);
    }
    let call = call(&node, PREPARE, PREPARE_WITHIN, None);
    let answer = nodes.ask(question(call, &params, None, None)).await;
    let text = answer.map_err(|error| match &error {
        NodesError::Refused(Refusal::NotAllowed { .. }) => ExecRefusal::new(
            codes::APPROVAL_PLAN_REQUIRED,
            format!("the node cannot say what it would run ({error})"),
        ),
        // Nothing was run by asking.
        _ => ExecRefusal::new(error.code(), &error),
    })?;
    read(&node, argv, text.as_deref().unwrap_or_default())
}

fn read(node: &DeviceId, argv: &[String], text: &str) -> Result<NodeMeans, ExecRefusal> {
    let bad = |why: &str| {
        ExecRefusal::new(
            codes::APPROVAL_PLAN_REQUIRED,
            format!("the node's plan is none: {why}"),
        )
    };
    if text.len() > PLAN_MAX {
        return Err(bad("it is too long"));
    }
    let prepared: Prepared =
        serde_json::from_str(text).map_err(|_| bad("it is not of the form that is known"))?;
    let said: Said = serde_json::from_value(prepared.plan.clone())
        .map_err(|_| bad("it is not of the form that is known"))?;
    // The name may become a path; no argument becomes another, more or less.
    if said.argv.len() != argv.len() || said.argv.get(1..) != argv.get(1..) {
        return Err(bad("it has other arguments than were asked for"));
    }
    let cwd = said.cwd.unwrap_or_default();
    if !is_canonical_path(&cwd) {
        return Err(bad("its folder is no absolute path"));
    }
    let program = said.mutable_file_operand.filter(|o| o.argv_index == 0);
    // It can only take away: what it allows itself, our own policy decides on.
    let (own, rule, mut reasons) = match prepared.verdict {
        None => (ExecMode::Full, String::new(), vec![]),
        Some(own) => {
            let mode = match own.verdict {
                Ruling::Allow => ExecMode::Full,
                Ruling::Ask => ExecMode::Ask,
                Ruling::Deny => ExecMode::Deny,
            };
            (mode, visible(&own.rule).into_owned(), own.reasons)
        }
    };
    reasons.truncate(REASONS);
    for reason in &mut reasons {
        reason.id = visible(&reason.id).into_owned();
        reason.text = visible(&reason.text).into_owned();
    }
    Ok(NodeMeans {
        own,
        rule,
        reasons,
        node: node.clone(),
        plan: prepared.plan,
        argv: said.argv,
        cwd,
        claimed_sha256: program.map(|operand| operand.sha256),
    })
}

fn call(node: &DeviceId, command: &str, timeout_ms: u64, run_id: Option<String>) -> Call {
    Call {
        node: node.clone(),
        command: command.to_owned(),
        timeout_ms: Some(timeout_ms),
        run_id,
        by_gateway: true,
    }
}

fn question(
    call: Call,
    params: &Value,
    key: Option<String>,
    progress: Option<mpsc::Sender<Piece>>,
) -> Question {
    Question {
        call,
        params: Some(params.to_string()),
        idempotency_key: key,
        session_key: None,
        progress,
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Option<String>, NodesError>> + Send>>;

/// A run that a node was given. Dropped, the node is told to stop.
pub struct NodeRun {
    answer: Option<Answer>,
    /// What it writes, as it comes.
    pieces: mpsc::Receiver<Piece>,
    told: Told,
    /// The number of the next output.
    seq: u64,
    begun: Instant,
    next: Vec<NodeNews>,
    pub node: DeviceId,
    run: String,
    nodes: NodesHandle,
    is_cancelled: bool,
}

/// What a node's run does.
pub enum NodeNews {
    Output(ExecEvent),
    Exited(Exited),
    /// It said no, before anything ran, so it says.
    Refused(String),
    /// Nobody knows.
    Unknown(String),
}

impl NodeRun {
    /// Sends exactly the plan, under the run's name and the record of its intent. `approved`: a person's answer was used for
    /// it just now, with what shows it; nobody else's word says so.
    pub fn start(
        nodes: &NodesHandle,
        means: &NodeMeans,
        plan: &ExecPlan,
        (run, intent): (&str, Seq),
        approved: Option<(ApprovalId, Vec<Shown>)>,
    ) -> Self {
        let env: BTreeMap<&String, &String> = plan
            .env
            .iter()
            .filter_map(|(name, value)| match value {
                EnvValue::Plain(text) => Some((name, text)),
                EnvValue::Secret { .. } => None,
            })
            .collect();
        let mut params = json!({
            "command": plan.argv, "cwd": plan.cwd, "timeoutMs": plan.limits.timeout_ms, "agentId": plan.agent,
            "runId": run, "systemRunPlan": means.plan,
        });
        params[PROGRESS] = true.into();
        // So that the node refuses it when it is asked for again, however late.
        params[RUN_NUMBER] = intent.0.into();
        if let Some(text) = means.plan.get("commandText").and_then(Value::as_str) {
            params["rawCommand"] = text.into();
        }
        if !env.is_empty() {
            params["env"] = json!(env);
        }
        if let Some((approval, votes)) = approved {
            params["approved"] = true.into();
            params["approvalDecision"] = "allow-once".into();
            // For a node that believes no gateway.
            params[APPROVAL] = json!(Forwarded {
                approval,
                session: plan.session.clone(),
                principal: plan.principal.clone(),
                nonce: plan.nonce.clone(),
                votes,
            });
        }
        let within = plan.limits.timeout_ms.saturating_add(TELL_WITHIN);
        let call = call(&means.node, RUN, within, Some(run.to_owned()));
        let (tell, pieces) = mpsc::channel(PIECES);
        let question = question(call, &params, Some(run.to_owned()), Some(tell));
        let (nodes, asked) = (nodes.clone(), nodes.clone());
        Self {
            answer: Some(Box::pin(async move { asked.ask(question).await })),
            pieces,
            told: Told::default(),
            seq: 0,
            begun: Instant::now(),
            next: Vec::new(),
            node: means.node.clone(),
            run: run.to_owned(),
            nodes,
            is_cancelled: false,
        }
    }

    /// What comes next of it.
    pub async fn next(&mut self) -> NodeNews {
        if let Some(news) = self.next.pop() {
            return news;
        }
        let answer = loop {
            let Some(answer) = self.answer.as_mut() else {
                return NodeNews::Unknown(
                    "the node was told to stop it: what it did before that is unknown".to_owned(),
                );
            };
            tokio::select! {
                biased;
                Some(piece) = self.pieces.recv() => {
                    if let Some(output) = self.piece(&piece) {
                        return output;
                    }
                }
                answer = answer => break answer,
            }
        };
        self.answer = None;
        // What the room had passed on before the answer.
        let mut all = Vec::new();
        while let Ok(piece) = self.pieces.try_recv() {
            all.extend(self.piece(&piece));
        }
        if self.is_cancelled && is_stopped(&answer) {
            all.push(NodeNews::Exited(ended(
                Cause::Cancelled,
                None,
                self.begun.elapsed(),
            )));
        } else {
            all.extend(self.news(answer));
        }
        all.reverse();
        self.next = all;
        self.next.pop().unwrap_or_else(|| {
            NodeNews::Unknown("the node's answer says nothing of an end".to_owned())
        })
    }

    /// The node is told to end it, and its word that it has is waited for.
    pub async fn cancel(&mut self) {
        // Not asked for it yet, or nobody to be told: who waits no more is not asked for.
        if !matches!(self.nodes.stop(&self.node, &self.run).await, Ok(true)) {
            self.answer = None;
        }
        self.is_cancelled = true;
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ran {
    #[serde(default)]
    exit_code: Option<i64>,
    #[serde(default)]
    timed_out: bool,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
}

impl NodeRun {
    fn piece(&mut self, (seq, chunk): &Piece) -> Option<NodeNews> {
        let (way, text) = self.told.piece(*seq, chunk)?;
        Some(self.output(way, Bytes::from(text)))
    }

    fn output(&mut self, way: Way, data: Bytes) -> NodeNews {
        let seq = self.seq;
        self.seq += 1;
        let stream = match way {
            Way::Stdout => Stream::Out,
            Way::Stderr => Stream::Err,
        };
        NodeNews::Output(ExecEvent::Output {
            seq,
            stream,
            data,
            dropped: 0,
        })
    }

    /// What is left of its output, and its end.
    fn news(&mut self, answer: Result<Option<String>, NodesError>) -> Vec<NodeNews> {
        let took = self.begun.elapsed();
        let text = match answer {
            Ok(text) => text.unwrap_or_default(),
            Err(NodesError::Refused(Refusal::Node { code, message })) => {
                return vec![NodeNews::Refused(format!("{code}: {message}"))];
            }
            Err(error) if error.dispatched() => return vec![NodeNews::Unknown(error.to_string())],
            Err(error) => return vec![NodeNews::Refused(error.to_string())],
        };
        let Ok(ran) = serde_json::from_str::<Ran>(&text) else {
            return vec![NodeNews::Unknown(
                "the node's answer is of no form that is known".to_owned(),
            )];
        };
        let code = ran.exit_code.and_then(|code| u8::try_from(code).ok());
        if code.is_none() && !ran.timed_out {
            return vec![NodeNews::Unknown(format!(
                "the node named no exit code ({})",
                visible(
                    &ran.exit_code
                        .map_or_else(|| "none".to_owned(), |c| c.to_string())
                )
            ))];
        }
        let mut pieces = Vec::new();
        for (way, text) in [(Way::Stdout, ran.stdout), (Way::Stderr, ran.stderr)] {
            let rest = self.told.rest(way, &text);
            let bytes = Bytes::from(text);
            for start in (rest..bytes.len()).step_by(PIECE) {
                let data = bytes.slice(start..bytes.len().min(start + PIECE));
                pieces.push(self.output(way, data));
            }
        }
        let cause = if ran.timed_out {
            Cause::TimedOut
        } else {
            Cause::Itself
        };
        let code = code.filter(|_| !ran.timed_out);
        pieces.push(NodeNews::Exited(ended(cause, code, took)));
        pieces
    }
}

/// The node's word that it has ended what it was told to end.
fn is_stopped(answer: &Result<Option<String>, NodesError>) -> bool {
    matches!(answer, Err(NodesError::Refused(Refusal::Node { code, .. })) if code == STOPPED)
}

fn ended(cause: Cause, code: Option<u8>, took: Duration) -> Exited {
    Exited {
        code,
        signal: None,
        cause,
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        dropped_stdout: 0,
        dropped_stderr: 0,
        cpu_ms: 0,
        swept: 0,
        out_of_memory: 0,
        full: None,
    }
}
