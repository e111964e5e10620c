//! What this node may be asked. A run is looked at again here, whatever the gateway says of it: a person's word, the very
//! plan, and the very bytes.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use portcullis_actors::exec::{ExecRefusal, HostedNews, HostedPlan, HostedRequest, Stream};
use portcullis_core::display::visible;
use portcullis_core::ids::AgentId;
use portcullis_core::nodes::{
    Forwarded, Local, OnNode, PROGRESS, STOPPED, Telling, VERDICT, Way, plan_of,
};
use portcullis_core::plan::{ExecPlan, HOST_PATH};
use portcullis_core::policy::{Judgement, Ruling, Settings};
use portcullis_core::time::Millis;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use super::document;
use super::messages::{Asked, NodeWiring, Out};
use super::policy::Kept;

/// Runs a command.
pub const RUN: &str = "system.run";
const PREPARE: &str = "system.run.prepare";
const WHICH: &str = "system.which";
const POLICY_GET: &str = "system.execApprovals.get";
/// Closes more.
const POLICY_SET: &str = "system.execApprovals.set";
/// What is offered to the gateway.
pub const OFFERED: [&str; 5] = [POLICY_GET, POLICY_SET, RUN, PREPARE, WHICH];
/// For a piece of a run's output to be taken.
const TELL_WITHIN: Duration = Duration::from_secs(2);
/// Names in one question.
const MOST_BINS: usize = 64;
/// Of the output that goes into the news of a run, characters.
const TAIL: usize = 20_000;
/// Of an agent that is not named.
const AGENT: &str = "main";

/// What the gateway hears.
pub struct Answer {
    outcome: Result<Value, (&'static str, String)>,
    /// Of a run.
    ran: bool,
}

impl Answer {
    /// A no.
    pub const fn refused(code: &'static str, why: String) -> Self {
        Self {
            outcome: Err((code, why)),
            ran: false,
        }
    }

    /// The news that go before the result, as the peer's node host sends them.
    pub fn events(&self, asked: &Asked) -> Vec<Value> {
        if asked.command != RUN {
            return vec![];
        }
        let text = |key: &str| asked.params.get(key).and_then(Value::as_str);
        let mut news = json!({
            "sessionKey": text("sessionKey").unwrap_or("node"), "runId": text("runId").unwrap_or_default(),
            "host": "node", "command": text("rawCommand").unwrap_or_default(), "suppressNotifyOnExit": false,
        });
        let event = match &self.outcome {
            Ok(ran) if self.ran => {
                for key in ["exitCode", "timedOut", "success"] {
                    news[key] = ran[key].clone();
                }
                let out = ran["stdout"].as_str().unwrap_or_default();
                let from = out
                    .char_indices()
                    .rev()
                    .nth(TAIL - 1)
                    .map_or(0, |(at, _)| at);
                news["output"] = out[from..].into();
                "exec.finished"
            }
            Err(("SYSTEM_RUN_DENIED", _)) => {
                news["reason"] = "approval-required".into();
                "exec.denied"
            }
            _ => return vec![],
        };
        vec![json!({ "event": event, "payloadJSON": news.to_string() })]
    }

    /// `node.invoke.result`'s params.
    pub fn result(&self, node: &str, id: &str) -> Value {
        match &self.outcome {
            Ok(value) => json!({
                "id": id, "nodeId": node, "ok": true, "payloadJSON": value.to_string(),
            }),
            Err((code, why)) => json!({
                "id": id, "nodeId": node, "ok": false,
                "error": { "code": code, "message": format!("{code}: {why}") },
            }),
        }
    }
}

/// Answers one question; what a run writes goes out by `line` while it runs. `stop`: nobody wants what it runs any more.
pub async fn answer(
    means: &NodeWiring,
    asked: &Asked,
    line: &mpsc::Sender<Out>,
    stop: oneshot::Receiver<()>,
) -> Answer {
    let outcome = match asked.command.as_str() {
        WHICH => which(asked),
        PREPARE => prepare(means, asked).await,
        RUN => run(means, asked, line, stop).await,
        POLICY_GET => policy_get(means).await,
        POLICY_SET => policy_set(means, asked).await,
        other => Err((
            "UNAVAILABLE",
            format!("command not supported: {}", visible(other)),
        )),
    };
    Answer {
        ran: asked.command == RUN && outcome.is_ok(),
        outcome,
    }
}

type Outcome = Result<Value, (&'static str, String)>;

#[derive(Deserialize)]
struct Which {
    bins: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Command {
    #[serde(rename = "command")]
    argv: Vec<String>,
    #[serde(default)]
    cwd: Option<String>,
    #[serde(default)]
    env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    agent_id: Option<String>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    system_run_plan: Option<Value>,
    #[serde(default)]
    approved: bool,
    #[serde(default)]
    approval_decision: Option<String>,
    /// Read where it is needed: what is no proof is no matter where none is asked for.
    #[serde(default)]
    approval_proof: Option<Value>,
}

impl Command {
    fn request(&self) -> Result<HostedRequest, (&'static str, String)> {
        let agent = self.agent_id.as_deref().unwrap_or(AGENT);
        Ok(HostedRequest {
            agent: AgentId::new(agent).map_err(|e| ("INVALID_REQUEST", e.to_string()))?,
            argv: self.argv.clone(),
            cwd: self.cwd.clone(),
            env: self.env.clone().unwrap_or_default(),
        })
    }
}

fn read<T: serde::de::DeserializeOwned>(asked: &Asked) -> Result<T, (&'static str, String)> {
    serde_json::from_value(asked.params.clone()).map_err(|error| {
        let why = format!("invalid {} params: {error}", asked.command);
        ("INVALID_REQUEST", visible(&why).into_owned())
    })
}

/// In the fixed path only, as a run would look.
fn which(asked: &Asked) -> Outcome {
    let Which { bins } = read(asked)?;
    if bins.len() > MOST_BINS {
        return Err(("INVALID_REQUEST", format!("at most {MOST_BINS} names")));
    }
    let is_name =
        |name: &&String| !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']);
    let mut found = Map::new();
    for name in bins.iter().filter(is_name) {
        let path = HOST_PATH
            .split(':')
            .map(|folder| Path::new(folder).join(name))
            .find(|path| {
                path.metadata()
                    .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
            });
        if let Some(path) = path.and_then(|path| path.to_str().map(str::to_owned)) {
            found.insert(name.clone(), path.into());
        }
    }
    Ok(json!({ "bins": found }))
}

async fn open(
    means: &NodeWiring,
    request: HostedRequest,
) -> Result<HostedPlan, (&'static str, String)> {
    let one = means.openings.clone().acquire_owned().await;
    let one = one.map_err(|e| ("UNAVAILABLE", e.to_string()))?;
    let hosted = means.hosted.clone();
    // The place is held until it is done, also where nobody waits for it any more.
    let opened = tokio::task::spawn_blocking(move || {
        let opened = hosted.open(&request);
        drop(one);
        opened
    })
    .await;
    opened
        .map_err(|e| ("UNAVAILABLE", e.to_string()))?
        .map_err(|refusal| refused(&refusal))
}

fn refused(refusal: &ExecRefusal) -> (&'static str, String) {
    let code = match refusal.code.name {
        "INVALID_PARAMS" | "COMMAND_NOT_FOUND" => "INVALID_REQUEST",
        "PLAN_CHANGED" => "SYSTEM_RUN_DENIED",
        _ => "UNAVAILABLE",
    };
    (code, visible(&refusal.to_string()).into_owned())
}

/// What would run. `portcullisDigest` is of all of it, so that one changed byte is another plan.
fn said(plan: &HostedPlan, agent: Option<&str>, settings: Settings) -> Value {
    let operand = plan.program().map_or(
        Value::Null,
        |(path, sha256)| json!({ "argvIndex": 0, "path": path, "sha256": sha256 }),
    );
    json!({
        "argv": plan.argv(), "cwd": plan.cwd(), "commandText": plan.text(), "commandPreview": null,
        "agentId": agent, "sessionKey": null, "mutableFileOperand": operand,
        "policySnapshot": {
            "security": settings.security, "ask": settings.ask, "askFallback": "deny", "autoAllowSkills": false,
        },
        "portcullisDigest": plan.digest(),
    })
}

/// Reads or changes small files on a thread that may wait for the disk.
async fn on_disk<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, (&'static str, String)> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|e| ("UNAVAILABLE", e.to_string()))
}

/// What the gateway has closed here, as it stands now: consent on this machine changes it, too.
async fn kept(means: &NodeWiring) -> Result<Kept, (&'static str, String)> {
    let (folder, gateway) = (means.folder.clone(), means.gateway.clone());
    let kept = on_disk(move || Kept::read(&folder, &gateway)).await?;
    // What it closed is not known, so everything is.
    kept.map_err(|e| ("SYSTEM_RUN_DENIED", visible(&e.message).into_owned()))
}

async fn policy_get(means: &NodeWiring) -> Outcome {
    let mut shown = kept(means).await?.shown();
    shown["node"] = local(means).await?.shown();
    Ok(shown)
}

async fn policy_set(means: &NodeWiring, asked: &Asked) -> Outcome {
    // To its end, also where nobody waits for it.
    let (folder, gateway) = (means.folder.clone(), means.gateway.clone());
    let params = asked.params.clone();
    let set = on_disk(move || {
        let edit = document::read(&folder).remote_edit();
        Kept::set(&folder, &gateway, &params, edit)
    });
    let shown = match set.await? {
        Ok(kept) => kept.shown(),
        Err((code, why)) => {
            tracing::warn!(target: "portcullis", code, "the gateway wants to change what runs here: {why}");
            return Err((code, why));
        }
    };
    tracing::warn!(target: "portcullis", hash = %shown["hash"], "the gateway has closed more of what runs here");
    Ok(shown)
}

/// Is it open here for this agent?
async fn is_open(means: &NodeWiring, agent: &AgentId) -> Result<(), (&'static str, String)> {
    if kept(means).await?.policy().denies(agent) {
        let why =
            "nothing runs here for this agent: the approvals document of this node host says deny";
        return Err(("SYSTEM_RUN_DENIED", why.to_owned()));
    }
    Ok(())
}

/// This machine's own document, now.
async fn local(means: &NodeWiring) -> Result<Local, (&'static str, String)> {
    let folder = means.folder.clone();
    on_disk(move || document::read(&folder)).await
}

/// The last gate: what this machine's own document says of a command that is open here.
fn judged(local: &Local, plan: &ExecPlan) -> Result<Judgement, (&'static str, String)> {
    let said = local.judge(plan, Millis(crate::show::text::now_ms()));
    if said.verdict != Ruling::Deny {
        return Ok(said);
    }
    let texts: Vec<&str> = said.reasons.iter().map(|r| r.text.as_str()).collect();
    let why = format!(
        "this node's own document refuses it (by {}): {}",
        said.rule,
        texts.join(" ")
    );
    Err(("SYSTEM_RUN_DENIED", visible(&why).into_owned()))
}

async fn prepare(means: &NodeWiring, asked: &Asked) -> Outcome {
    let command: Command = read(asked)?;
    let request = command.request()?;
    is_open(means, &request.agent).await?;
    let local = local(means).await?;
    let settings = local.settings(&request.agent);
    let plan = open(means, request).await?;
    let judged = judged(&local, plan.plan())?;
    Ok(json!({
        "plan": said(&plan, command.agent_id.as_deref(), settings),
        "execPolicy": { "security": settings.security, "ask": settings.ask },
        "allowAlwaysCoverage": { "complete": false, "patterns": [] },
        // Ours: what this node itself says of the command.
        VERDICT: { "verdict": judged.verdict, "rule": judged.rule, "reasons": judged.reasons },
    }))
}

/// Has a person said yes to this very run? By the gateway's word, where this machine's owner names nobody.
async fn decided(
    means: &NodeWiring,
    local: &Local,
    command: &Command,
    plan: &HostedPlan,
    said: &Value,
) -> Result<(), (&'static str, String)> {
    let denied = |why: String| ("SYSTEM_RUN_DENIED", why);
    let is_allowed = matches!(
        command.approval_decision.as_deref(),
        Some("allow-once" | "allow-always")
    );
    if !command.approved || !is_allowed {
        return Err(denied("approval required".to_owned()));
    }
    let Some(approvers) = local.approvers() else {
        return Ok(());
    };
    let unproven = |why: &dyn std::fmt::Display| {
        denied(format!("no approver of this node has signed this: {why}"))
    };
    let given = command.approval_proof.as_ref();
    let given = given.ok_or_else(|| unproven(&"no decision with its proof came with the run"))?;
    let given = Forwarded::deserialize(given).map_err(|_| unproven(&"its proof is none"))?;
    let timeout_ms = command.timeout_ms;
    let timeout_ms = timeout_ms.ok_or_else(|| unproven(&"the run names no time"))?;
    let agent = &plan.plan().agent;
    let env = command.env.clone().unwrap_or_default();
    let run = OnNode {
        node: &means.node,
        said,
        agent,
        argv: plan.argv(),
        cwd: plan.cwd(),
        sha256: plan.program().map(|(_, sha256)| sha256),
        env: &env,
        timeout_ms,
    };
    let hash = plan_of(run, &given.session, &given.principal, given.nonce).plan_hash();
    let now = Millis(crate::show::text::now_ms());
    let until = approvers
        .check(&given.approval, hash, &given.votes, now)
        .map_err(|why| unproven(&why))?;
    let used = means.used.clone();
    let spent = on_disk(move || used.spend(hash, until, now)).await?;
    spent.map_err(|why| unproven(&why))
}

/// Whether the link took it.
async fn tell(means: &NodeWiring, line: &mpsc::Sender<Out>, piece: Value) -> bool {
    let Ok(place) = means.pieces.clone().acquire_owned().await else {
        return false;
    };
    line.send(Out::Piece(piece, place)).await.is_ok()
}

async fn run(
    means: &NodeWiring,
    asked: &Asked,
    line: &mpsc::Sender<Out>,
    mut stop: oneshot::Receiver<()>,
) -> Outcome {
    let stopped = || Err((STOPPED, "it was told to end".to_owned()));
    let command: Command = read(asked)?;
    let Some(approved) = &command.system_run_plan else {
        return Err(("SYSTEM_RUN_DENIED", "no plan was approved".to_owned()));
    };
    let request = command.request()?;
    let agent = request.agent.clone();
    let plan = open(means, request).await?;
    // Last of all: it may have been closed meanwhile.
    let local = local(means).await?;
    let judged = judged(&local, plan.plan())?;
    let said = said(&plan, command.agent_id.as_deref(), local.settings(&agent));
    if said != *approved {
        return Err((
            "SYSTEM_RUN_DENIED",
            "what would run is not the plan that was approved".to_owned(),
        ));
    }
    if judged.verdict == Ruling::Ask {
        decided(means, &local, &command, &plan, &said).await?;
    }
    is_open(means, &agent).await?;
    if stop.try_recv().is_ok() {
        return stopped();
    }
    let hosted = &means.hosted;
    let most = usize::try_from(hosted.config.output_cap_bytes).unwrap_or(usize::MAX);
    let started = plan.start(hosted, command.timeout_ms);
    let mut run = started.map_err(|refusal| refused(&refusal))?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut telling =
        (asked.params.get(PROGRESS) == Some(&Value::Bool(true))).then(Telling::default);
    let exited = loop {
        let news = tokio::select! {
            news = run.next() => news,
            _ = &mut stop => {
                run.kill().await;
                return stopped();
            }
        };
        match news {
            HostedNews::Output(stream, data) => {
                let (to, way) = if stream == Stream::Out {
                    (&mut out, Way::Stdout)
                } else {
                    (&mut err, Way::Stderr)
                };
                // The cell keeps the cap; this is so that nothing depends on it.
                let room = most.saturating_sub(to.len()).min(data.len());
                to.extend_from_slice(&data[..room]);
                let pieces = telling.as_mut().map(|t| t.wrote(way, &data[..room]));
                for (seq, chunk) in pieces.into_iter().flatten() {
                    let piece = json!({
                        "invokeId": asked.id, "nodeId": means.node, "seq": seq, "chunk": chunk,
                    });
                    // A gateway that takes nothing holds the run back, as a reader who does not read would, for a moment;
                    // then what is left comes with the answer.
                    let told = tokio::time::timeout(TELL_WITHIN, tell(means, line, piece));
                    tokio::select! {
                        told = told => if !matches!(told, Ok(true)) {
                            telling = None;
                            break;
                        },
                        _ = &mut stop => {
                            run.kill().await;
                            return stopped();
                        }
                    }
                }
            }
            HostedNews::Exited(exited) => break exited,
            HostedNews::Lost(why) => return Err(("UNAVAILABLE", why)),
        }
    };
    let timed_out = exited.timed_out();
    // As a shell says it.
    let code = exited
        .code
        .or_else(|| exited.signal.map(|signal| signal.saturating_add(128)));
    let dropped = exited.dropped_stdout.saturating_add(exited.dropped_stderr);
    let error =
        (dropped > 0).then(|| format!("{dropped} bytes of output over the cap were dropped"));
    Ok(json!({
        "exitCode": code, "timedOut": timed_out, "success": code == Some(0) && !timed_out,
        "stdout": String::from_utf8_lossy(&out), "stderr": String::from_utf8_lossy(&err), "error": error,
    }))
}
