//! `exec.approval.request`: a person is asked now, the command runs later (wire.md 10).
//!
//! The same plan is frozen by the same rules as with `exec.run`, which under this question's id as its key uses the answer, once.

use std::collections::BTreeMap;

use portcullis_core::approval::{Narrowing, Status, Word};
use portcullis_core::auth::Scope;
use portcullis_core::codes;
use portcullis_core::display::command_line;
use portcullis_core::ids::{ApprovalId, DeviceId};
use portcullis_core::plan::{Stdin, Target, TtySize};
use portcullis_core::protocol::frame::ErrorBody;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::inputs::{Opened, size};
use super::invokes::ClaimedPlan;
use super::methods::approval;
use super::nodes::node_id;
use super::runs::{agent, refusal};
use super::serve::{Conn, Out};
use crate::exec::{ExecEvent, OnlyAsk, RunRequest, RunResult};

/// Ids that the wire keeps for others.
const RESERVED: &str = "plugin:";
/// The most characters of a command, and of how it is shown, as with the peer.
const MOST_GIVEN: usize = 262_144;
const MOST_SHOWN: usize = 16_384;
/// Devices that a question names for its answer.
const MOST_REVIEWERS: usize = 32;
/// Characters of an id of who may not see others' questions.
const UNGUESSED: usize = 16;

/// Why a question ends that was to be told to somebody, and nobody was there.
const NO_ROUTE: &str = "no-route";

/// By which way people hear of a question (wire.md 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// Somebody is connected who hears of questions and may answer.
    Client,
    /// A webhook or a program is told.
    Forwarder,
    /// Nobody is told: a person finds it on the page or by the command line.
    None,
}

impl Route {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "approval-client",
            Self::Forwarder => "forwarder",
            Self::None => "none",
        }
    }
}

impl Conn {
    /// As it is now; who asks is nobody to answer.
    fn route(&self) -> Route {
        let methods = &self.wiring.shared.methods;
        if methods.listeners_beside(self.hears_questions) > 0 {
            Route::Client
        } else if methods.notices.forwards() {
            Route::Forwarder
        } else {
            Route::None
        }
    }
}

/// Its params. What the peer has for display and routing is taken and not used: nobody's word but the plan's is shown.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Request {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    command_argv: Option<Vec<String>>,
    #[serde(default)]
    cwd: Option<String>,
    #[serde(default)]
    env: Option<BTreeMap<String, String>>,
    /// As in `exec.run`, whose request under this id must name the same.
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    /// As in `exec.run`.
    #[serde(default)]
    stdin: Option<Opened>,
    #[serde(default)]
    tty: Option<TtySize>,
    #[serde(default)]
    agent_id: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    node_id: Option<String>,
    /// How long the question waits.
    #[serde(default)]
    timeout_ms: Option<u64>,
    /// How long the command may run: must be the run's own.
    #[serde(default)]
    run_timeout_ms: Option<u64>,
    #[serde(default)]
    two_phase: bool,
    /// Only with one of these devices it may be let happen.
    #[serde(default)]
    approval_reviewer_device_ids: Option<Vec<DeviceId>>,
    /// Words that are not offered.
    #[serde(default)]
    unavailable_decisions: Option<Vec<Word>>,
    #[serde(default, rename = "command")]
    _command: Option<String>,
    /// Compared with what is asked for; the node itself says what it would run.
    #[serde(default)]
    system_run_plan: Option<Value>,
    #[serde(default, rename = "security")]
    _security: Option<String>,
    #[serde(default, rename = "ask")]
    _ask: Option<String>,
    #[serde(default, rename = "warningText")]
    _warning_text: Option<String>,
    #[serde(default, rename = "scope")]
    _scope: Option<Value>,
    #[serde(default, rename = "resolvedPath")]
    _resolved_path: Option<String>,
    /// Of a command in the sandbox; else it is told for the client's own ends.
    #[serde(default)]
    session_key: Option<String>,
    #[serde(default, rename = "sessionId")]
    _session_id: Option<String>,
    #[serde(default, rename = "runId")]
    _run_id: Option<String>,
    #[serde(default, rename = "toolCallId")]
    _tool_call_id: Option<String>,
    #[serde(default, rename = "turnSourceChannel")]
    _turn_source_channel: Option<String>,
    #[serde(default, rename = "turnSourceTo")]
    _turn_source_to: Option<String>,
    #[serde(default, rename = "turnSourceAccountId")]
    _turn_source_account_id: Option<String>,
    #[serde(default, rename = "turnSourceThreadId")]
    _turn_source_thread_id: Option<Value>,
    /// Where nobody is told of the question, it is over at once.
    #[serde(default)]
    require_delivery_route: Option<bool>,
    #[serde(default, rename = "suppressDelivery")]
    _suppress_delivery: Option<bool>,
    #[serde(default, rename = "deliverToApprovalClientsOnly")]
    _deliver_to_approval_clients_only: Option<bool>,
}

fn invalid(why: &str) -> ErrorBody {
    ErrorBody::of(
        codes::INVALID_PARAMS,
        format!("invalid exec.approval.request params: {why}"),
    )
}

impl Request {
    fn target(&self) -> Result<Target, ErrorBody> {
        if let Some(node) = &self.node_id {
            if self.host.as_deref() != Some("node") {
                return Err(invalid("nodeId is for host \"node\" only"));
            }
            if self.system_run_plan.is_none() {
                return Err(ErrorBody::of(
                    codes::APPROVAL_PLAN_REQUIRED,
                    "host \"node\" needs systemRunPlan, as system.run.prepare gives it",
                ));
            }
            return node_id(node).map(|node| Target::Node(node.to_string()));
        }
        match self.host.as_deref() {
            None | Some("gateway") => Ok(Target::Host),
            Some("sandbox") => Ok(Target::Sandbox),
            Some("node") => Err(invalid("host \"node\" needs nodeId")),
            Some(_) => Err(invalid("host is \"gateway\", \"sandbox\" or \"node\"")),
        }
    }

    /// For a node the plan must say the same.
    fn argv(&self, target: &Target) -> Result<Vec<String>, ErrorBody> {
        let argv = self.command_argv.clone();
        if !matches!(target, Target::Node(_)) {
            return argv.ok_or_else(|| {
                invalid("commandArgv is needed: a command line is not taken apart here")
            });
        }
        let plan = self.system_run_plan.clone().unwrap_or_default();
        let plan: ClaimedPlan = serde_json::from_value(plan)
            .map_err(|_| invalid("systemRunPlan has no argv and cwd"))?;
        let other_cwd = self.cwd.is_some() && plan.cwd.is_some() && self.cwd != plan.cwd;
        if argv.is_some_and(|argv| argv != plan.argv) || other_cwd {
            return Err(ErrorBody::of(
                codes::APPROVAL_REQUEST_MISMATCH,
                "commandArgv, cwd and systemRunPlan say different things",
            ));
        }
        Ok(plan.argv)
    }

    fn id(&self, conn: &Conn) -> Result<ApprovalId, ErrorBody> {
        let fresh = || uuid::Uuid::new_v4().to_string();
        let id = self.id.clone().unwrap_or_else(fresh);
        if id.starts_with(RESERVED) {
            return Err(invalid("ids that begin with plugin: are reserved"));
        }
        // A clash tells that there is such a question. Whoever may not see the list cannot go through the beginnings of
        // ids to find that out.
        if id.len() < UNGUESSED && !conn.principal.scopes.allows(Scope::Approvals) {
            return Err(invalid("id: take a UUID, or any 16 characters and more"));
        }
        ApprovalId::new(&id).map_err(|error| invalid(&format!("id: {error}")))
    }

    /// What a person could not read is not shown in part: it is not asked.
    fn is_shown_whole(argv: &[String]) -> Result<(), ErrorBody> {
        let given: usize = argv.iter().map(|word| word.chars().count()).sum();
        if given <= MOST_GIVEN && command_line(argv).chars().count() <= MOST_SHOWN {
            return Ok(());
        }
        Err(ErrorBody::of(
            codes::EXEC_APPROVAL_COMMAND_DISPLAY_LIMIT,
            format!("the command is longer than {MOST_SHOWN} characters as it is shown to people"),
        ))
    }

    fn check(&self) -> Result<(), ErrorBody> {
        let reviewers = self.approval_reviewer_device_ids.as_ref();
        if reviewers.is_some_and(|list| list.len() > MOST_REVIEWERS) {
            return Err(invalid(
                "approvalReviewerDeviceIds names more than 32 devices",
            ));
        }
        let unavailable = self.unavailable_decisions.as_deref().unwrap_or_default();
        if unavailable.contains(&Word::Deny) {
            return Err(invalid("deny is always available"));
        }
        if self.timeout_ms == Some(0) {
            return Err(invalid("timeoutMs must be at least 1"));
        }
        Ok(())
    }
}

pub(super) async fn request(conn: &Conn, frame: &str, params: Request) -> Result<Value, ErrorBody> {
    params.check()?;
    let (target, id) = (params.target()?, params.id(conn)?);
    let argv = params.argv(&target)?;
    Request::is_shown_whole(&argv)?;
    let request = RunRequest {
        secrets: params.secrets,
        principal: conn.principal.as_ref().clone(),
        connection: conn.conn_id.to_string(),
        session_key: params.session_key.filter(|_| target == Target::Sandbox),
        agent: agent(conn, params.agent_id.as_deref())?,
        argv,
        cwd: params.cwd,
        env: params.env.unwrap_or_default(),
        timeout_ms: params.run_timeout_ms,
        target,
        stdin: params.stdin.map_or(Stdin::None, |stdin| stdin.0),
        tty: params.tty.map(size).transpose()?,
        detach: false,
        idempotency_key: id.to_string(),
        session: conn.session.clone(),
    };
    let mut unavailable = params.unavailable_decisions.unwrap_or_default();
    unavailable.dedup();
    let how = OnlyAsk {
        narrowing: Narrowing {
            timeout_ms: params.timeout_ms,
            reviewers: params.approval_reviewer_device_ids.unwrap_or_default(),
            unavailable,
        },
    };
    // Its end is the only event.
    let (tx, mut events) = mpsc::channel(1);
    let asked = match conn.wiring.shared.exec.ask(request, how, tx).await {
        Ok(asked) => asked,
        // It was asked before and answered: the answer stands.
        Err(refused) if refused.details.contains_key("approvalId") => {
            return decided(conn, &id, None).await;
        }
        Err(refused) => return Err(refusal(refused)),
    };
    if asked.approval_id.is_none() {
        let now = conn.wiring.shared.clock.now();
        // Policy allows it, and is asked again when it runs: there is nothing to keep.
        return Ok(json!({
            "id": id, "decision": Word::AllowOnce, "createdAtMs": now, "expiresAtMs": now,
        }));
    }
    let route = conn.route();
    if params.require_delivery_route == Some(true) && route == Route::None {
        let approval_room = &conn.wiring.shared.methods.approval;
        let over = approval_room.cancel(&id, NO_ROUTE).await;
        over.map_err(approval)?;
        return decided(conn, &id, None).await;
    }
    if params.two_phase {
        let record = conn.wiring.shared.methods.approval.get(id.as_str()).await;
        let record = record.map_err(approval)?;
        let first = json!({
            "status": "accepted", "id": id, "planHash": asked.plan_hash,
            "deliveryRoute": route.as_str(),
            "createdAtMs": record.created, "expiresAtMs": record.expires,
        });
        let first = conn.encoding.ok(frame, &first);
        let first = first.map_err(|e| ErrorBody::of(codes::INTERNAL, e.to_string()))?;
        // The receiver lives as long as the connection, and so does this future.
        let _ = conn.out.send(Out::Frame(first)).await;
    }
    let end = match events.recv().await {
        Some(ExecEvent::Ended(result)) => Some(result),
        Some(ExecEvent::Begun { .. } | ExecEvent::Output { .. } | ExecEvent::Detached) | None => {
            None
        }
    };
    decided(conn, &id, end).await
}

/// What became of the question. One that is still open has lost who waited for its answer.
async fn decided(conn: &Conn, id: &ApprovalId, end: Option<RunResult>) -> Result<Value, ErrorBody> {
    let record = conn.wiring.shared.methods.approval.get(id.as_str()).await;
    let record = record.map_err(approval)?;
    if record.status != Status::Pending {
        return Ok(record.answer_json());
    }
    let (code, message) = end.and_then(|end| end.error).unwrap_or((
        codes::ROOM_DOWN,
        "what waited for the answer broke; the question stays: ask again under its id".to_owned(),
    ));
    Err(ErrorBody::of(code, message))
}
