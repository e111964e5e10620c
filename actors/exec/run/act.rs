//! The act itself: a box's run or a host process, streamed to its caller until nothing of it is left.

use std::time::Duration;

use bytes::Bytes;
use portcullis_cell::{Cause, Value as Variable};
use portcullis_core::audit::Seq;
use portcullis_core::codes;
use portcullis_core::ids::{AgentId, RunId};
use portcullis_core::plan::{EnvValue, ExecPlan, Stdin, TtySize, session_name};
use portcullis_core::sandbox::Sharers;
use portcullis_core::vault::{Asked, VaultError};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ends::{Carried, Interrupt, Over, interrupted};
use super::flow::{Decided, Flow};
use super::freeze::{Frozen, Means, asked, shared_by_all};
use super::node::{NodeNews, NodeRun};
use crate::approval::ApprovalEvent;
use crate::exec::host::{HostOrder, HostRun, Lost};
use crate::exec::messages::{ExecEvent, ExecRefusal, RunUsage};
use crate::sandbox_pool::{
    BoxProfile, Exited, RunEvent, RunInputs, RunSpec, RunTicket, SandboxPoolHandle, SessionKey,
    Size,
};
use crate::supervision::FeedReader;
use crate::vault::VaultRefusal;

/// After a run's limit, which its supervisor keeps, the gateway ends it itself.
const GRACE: Duration = Duration::from_secs(1);
/// For a run to end that was told to; after that it is given up, and what supervises it is killed.
const END_WITHIN: Duration = Duration::from_secs(3);
/// Events of a box that wait here.
const WAITING: usize = 8;

/// Something runs.
pub enum Acting {
    Box(BoxRun),
    Host(Box<HostRun>),
    Node(Box<NodeRun>),
}

pub struct BoxRun {
    from: mpsc::Receiver<RunEvent>,
    pool: SandboxPoolHandle,
    agent: AgentId,
    run: RunId,
    ticket: RunTicket,
}

/// What comes from it.
enum News {
    Output(ExecEvent),
    Exited(Exited),
    Lost(Lost),
}

/// A secret's value at the moment of its run: the version that the plan names, or none.
async fn revealed(
    flow: &Flow,
    intent: Seq,
    plan: &ExecPlan,
    (secret, version): (&str, u64),
    sharers: Option<&Sharers>,
) -> Result<Variable, ExecRefusal> {
    if let Some(sharers) = sharers {
        shared_by_all(flow.wiring.vault.as_ref(), sharers, secret, &plan.principal).await?;
    }
    let asked = Asked {
        run: Some(flow.run.to_string()),
        record: Some(intent.0),
        ..asked(&plan.agent, &plan.principal)
    };
    let vault = flow.wiring.vault.as_ref();
    let found = match vault {
        Some(vault) => vault.reveal(secret, Some(version), asked).await,
        None => Err(VaultRefusal::Sealed(VaultError::Locked)),
    };
    let (_, value) = found.map_err(|refusal| match refusal {
        VaultRefusal::Vault(VaultError::NotFound) => ExecRefusal::new(
            codes::PLAN_CHANGED,
            "a secret of this plan was set anew meanwhile: ask again",
        ),
        other => ExecRefusal::of_vault(&other),
    })?;
    let text = std::str::from_utf8(value.expose()).ok();
    text.filter(|text| !text.contains('\0'))
        .map(Variable::new)
        .ok_or_else(|| {
            ExecRefusal::new(
                codes::VAULT_VALUE_INVALID,
                "a secret of this plan is no text: a variable cannot hold it",
            )
        })
}

/// The plan's variables with their values: secrets go from the vault to the process's environment and nowhere else.
async fn values(
    flow: &Flow,
    intent: Seq,
    plan: &ExecPlan,
    sharers: Option<&Sharers>,
) -> Result<Vec<(String, Variable)>, ExecRefusal> {
    let mut env = Vec::with_capacity(plan.env.len());
    for (name, value) in &plan.env {
        let text = match value {
            EnvValue::Plain(text) => Variable::new(text),
            EnvValue::Secret {
                name: secret,
                version,
            } => revealed(flow, intent, plan, (secret, *version), sharers).await?,
        };
        env.push((name.clone(), text));
    }
    Ok(env)
}

impl Acting {
    /// Starts what the plan says, and nothing else.
    pub async fn start(flow: &Flow, decided: &Decided, intent: Seq) -> Result<Self, Over> {
        let frozen = &decided.frozen;
        match &frozen.means {
            Means::Node(means) => {
                let run = decided.approval.as_ref();
                let run = run.map_or_else(|| flow.run.to_string(), ToString::to_string);
                let approved = match &decided.approval {
                    Some(id) => {
                        let shown = flow.gate.shown(id).await.map_err(Over::refused)?;
                        Some((id.clone(), shown))
                    }
                    None => None,
                };
                let nodes = &flow.wiring.nodes;
                let run = NodeRun::start(nodes, means, &frozen.plan, (&run, intent), approved);
                Ok(Self::Node(Box::new(run)))
            }
            Means::Box(profile) => Self::in_box(flow, frozen, profile, intent).await,
            Means::Host(means) => {
                let order = HostOrder {
                    cell: &flow.wiring.cell,
                    config: &flow.wiring.config.host,
                    plan: &frozen.plan,
                    means,
                    env: values(flow, intent, &frozen.plan, None)
                        .await
                        .map_err(Over::refused)?,
                };
                HostRun::start(&order)
                    .map(|run| Self::Host(Box::new(run)))
                    .map_err(Over::refused)
            }
        }
    }

    async fn in_box(
        flow: &Flow,
        frozen: &Frozen,
        profile: &BoxProfile,
        intent: Seq,
    ) -> Result<Self, Over> {
        let plan = &frozen.plan;
        let env = values(flow, intent, plan, profile.sharers.as_ref())
            .await
            .map_err(Over::refused)?;
        let spec = RunSpec {
            run: flow.run.clone(),
            session: SessionKey {
                by: plan.principal.clone(),
                name: plan.session.clone(),
            },
            // One that has a name goes on over the connections of who named it.
            session_over: session_name(&plan.session)
                .is_none()
                .then(|| flow.request.session.clone()),
            argv: plan.argv.clone(),
            cwd: Some(plan.cwd.clone()),
            env,
            timeout: Some(Duration::from_millis(plan.limits.timeout_ms)),
            stdin: plan.stdin == Stdin::Open,
            tty: plan.tty.map(|TtySize { rows, cols }| Size { rows, cols }),
        };
        let (events, from) = mpsc::channel(WAITING);
        let pool = flow.wiring.pool.clone();
        let ticket = pool
            .start_run(plan.agent.clone(), spec, events)
            .await
            .map_err(|error| {
                Over::refused(ExecRefusal::of_call(error, |refusal| {
                    ExecRefusal::of_pool(&refusal)
                }))
            })?;
        if ticket.profile_hash != plan.profile_digest.to_string() {
            // Dropping the receiver ends it.
            return Err(Over {
                status: "unknown",
                ..Over::denied(
                    codes::PLAN_CHANGED,
                    "the sandbox changed while the command was started: it was ended".to_owned(),
                )
            });
        }
        Ok(Self::Box(BoxRun {
            from,
            pool,
            agent: plan.agent.clone(),
            run: flow.run.clone(),
            ticket,
        }))
    }

    /// The way into it. What runs outside the sandbox has none.
    pub fn inputs(&self) -> Option<RunInputs> {
        match self {
            Self::Box(run) => Some(run.ticket.inputs.clone()),
            Self::Host(_) | Self::Node(_) => None,
        }
    }

    /// Streams to the caller until it is over.
    pub async fn carry(
        mut self,
        flow: &mut Flow,
        decided: &Decided,
        mut news: FeedReader<ApprovalEvent>,
    ) -> Carried {
        let plan = &decided.frozen.plan;
        let timeout_ms = plan.limits.timeout_ms;
        let by = decided.runs_by();
        let forbidden = flow.gate.forbidden(&mut news, plan, &by);
        tokio::pin!(forbidden);
        let lost_after = Duration::from_millis(flow.wiring.config.lost_after_ms);
        let session = &mut flow.request.session;
        let interrupt = interrupted(
            &mut flow.stop,
            session,
            &flow.kept,
            &flow.events,
            lost_after,
        );
        tokio::pin!(interrupt);
        let mut ending: Option<Ending> = None;
        let mut waiting: Option<ExecEvent> = None;
        let mut limit = Instant::now() + Duration::from_millis(timeout_ms) + GRACE;
        loop {
            tokio::select! {
                biased;
                why = &mut interrupt, if ending.is_none() => {
                    self.cancel().await;
                    ending = Some(Ending::Interrupted(why));
                    limit = Instant::now() + END_WITHIN;
                }
                why = &mut forbidden, if ending.is_none() => {
                    self.cancel().await;
                    ending = Some(Ending::Interrupted(Interrupt::Forbidden(why)));
                    limit = Instant::now() + END_WITHIN;
                }
                () = tokio::time::sleep_until(limit) => {
                    if ending.is_some() {
                        let place = self.place();
                        self.give_up().await;
                        return given_up(place);
                    }
                    self.cancel().await;
                    ending = Some(Ending::Overdue);
                    limit = Instant::now() + END_WITHIN;
                }
                permit = flow.events.reserve(), if waiting.is_some() && ending.is_none() => {
                    if let (Ok(permit), Some(event)) = (permit, waiting.take()) {
                        permit.send(event);
                    }
                }
                news = self.next(), if waiting.is_none() || ending.is_some() => match news {
                    News::Output(event) if ending.is_some() => {
                        // The end does not wait for a slow reader; what is left out is said to be by the missing numbers.
                        for event in waiting.take().into_iter().chain([event]) {
                            let _ = flow.events.try_send(event);
                        }
                    }
                    News::Output(event) => waiting = Some(event),
                    News::Exited(exited) => {
                        if let Some(event) = waiting.take() {
                            let _ = flow.events.try_send(event);
                        }
                        return self.exited(&exited, ending);
                    }
                    News::Lost(lost) => return self.lost(lost),
                },
            }
        }
    }

    async fn next(&mut self) -> News {
        let event = match self {
            Self::Box(run) => run.from.recv().await.unwrap_or(RunEvent::BoxLost),
            Self::Host(run) => match run.next().await {
                Ok(event) => event,
                Err(lost) => return News::Lost(lost),
            },
            Self::Node(run) => {
                return match run.next().await {
                    NodeNews::Output(event) => News::Output(event),
                    NodeNews::Exited(exited) => News::Exited(exited),
                    NodeNews::Refused(why) => News::Lost(Lost::Refused(why)),
                    NodeNews::Unknown(why) => News::Lost(Lost::Unknown(why)),
                };
            }
        };
        match event {
            RunEvent::Output { stream, seq, data } => News::Output(ExecEvent::Output {
                seq,
                stream,
                data: Bytes::from(data),
                dropped: 0,
            }),
            RunEvent::Exited(exited) => News::Exited(exited),
            RunEvent::BoxLost => News::Lost(Lost::Box),
            RunEvent::GivenUp(why) => News::Lost(Lost::GivenUp(why)),
        }
    }

    async fn cancel(&mut self) {
        match self {
            // One that is over already is no error, and the limit sees to a pool that is down.
            Self::Box(run) => {
                let _ = run.pool.cancel(run.agent.clone(), run.run.clone()).await;
            }
            Self::Host(run) => run.cancel().await,
            Self::Node(run) => run.cancel().await,
        }
    }

    /// It does not obey.
    async fn give_up(self) {
        match self {
            // The pool ends a run whose receiver is gone, or its box.
            Self::Box(run) => drop(run),
            Self::Host(run) => run.kill().await,
            // The node hears of it when nobody waits any more.
            Self::Node(run) => drop(run),
        }
    }

    fn place(&self) -> Value {
        match self {
            Self::Box(run) => json!({
                "driver": run.ticket.driver,
                "box": run.ticket.box_id,
                "imageDigest": run.ticket.image_digest,
                "profileHash": run.ticket.profile_hash,
                "scope": run.ticket.scope.as_str(),
            }),
            Self::Host(_) => json!({ "driver": "host" }),
            Self::Node(run) => json!({ "driver": "node", "node": run.node }),
        }
    }

    fn exited(&self, exited: &Exited, ending: Option<Ending>) -> Carried {
        let (status, error) = match (exited.cause, ending) {
            (Cause::TimedOut, _) | (Cause::Cancelled, Some(Ending::Overdue)) => ("timed-out", None),
            (Cause::Cancelled, Some(Ending::Interrupted(Interrupt::SessionEnded(reason)))) => {
                ("cancelled", Some((codes::SESSION_ENDED, reason)))
            }
            (Cause::Cancelled, Some(Ending::Interrupted(Interrupt::Forbidden(why)))) => {
                ("cancelled", Some((codes::POLICY_DENIED, why.to_owned())))
            }
            (Cause::Cancelled, ending) => {
                let full = exited.full.filter(|_| ending.is_none());
                let text = |full| format!("{full}: the run was ended");
                (
                    "cancelled",
                    full.map(|full| (codes::WORKSPACE_FULL, text(full))),
                )
            }
            (Cause::NoTerminal, _) => (
                "denied",
                Some((
                    codes::TTY_UNAVAILABLE,
                    "this sandbox has no terminal to give, nothing ran".to_owned(),
                )),
            ),
            (Cause::Itself | Cause::NotStarted, _) => ("exited", None),
        };
        let ran = exited.cause != Cause::NoTerminal;
        Carried {
            status,
            exit_code: exited.code.filter(|_| ran).map(i32::from),
            signal: exited.signal.map(i32::from),
            duration_ms: Some(exited.duration_ms),
            dropped: (exited.dropped_stdout, exited.dropped_stderr),
            usage: (ran && !matches!(self, Self::Node(_))).then_some(RunUsage {
                cpu_ms: exited.cpu_ms,
                swept: exited.swept,
                out_of_memory: exited.out_of_memory,
            }),
            place: self.place(),
            error,
        }
    }

    fn lost(&self, lost: Lost) -> Carried {
        let (status, error) = match lost {
            Lost::Box => (
                "box-lost",
                (
                    codes::BOX_LOST,
                    "the sandbox ended under the run: what it did before that is unknown"
                        .to_owned(),
                ),
            ),
            Lost::GivenUp(why) => ("box-lost", (why.code(), why.to_string())),
            Lost::Unknown(why) => ("unknown", (codes::RUN_UNKNOWN, why)),
            Lost::Refused(why) => ("denied", (codes::NODE_ERROR, why)),
            Lost::NotStarted(why) => ("denied", (codes::HOST_USER_INVALID, why)),
        };
        Carried {
            status,
            error: Some(error),
            ..nothing(self.place())
        }
    }
}

enum Ending {
    Interrupted(Interrupt),
    /// Past its limit and the grace: what supervises it did not keep it.
    Overdue,
}

const fn nothing(place: Value) -> Carried {
    Carried {
        status: "unknown",
        exit_code: None,
        signal: None,
        duration_ms: None,
        dropped: (0, 0),
        usage: None,
        place,
        error: None,
    }
}

fn given_up(place: Value) -> Carried {
    Carried {
        error: Some((
            codes::RUN_UNKNOWN,
            "it did not end when it was told to, and was killed with what supervised it".to_owned(),
        )),
        ..nothing(place)
    }
}
