//! The link: connects, says what is offered, passes questions in and answers out, and comes back when it is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_core::auth::Role;
use portcullis_core::codes;
use portcullis_core::nodes::RUN_NUMBER;
use portcullis_core::plan::HOST_PATH;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::protocol::limits::TICK_MS;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::commands;
use super::messages::{Asked, NodeMsg, Out};
use crate::cli::Failure;
use crate::client::seen::{Comparing, Step};
use crate::client::{Client, Door, Incoming, Session, Who};
use crate::show::text::clean;

/// First wait before another try; doubles to the last. However long a gateway was away, its nodes are there within five
/// seconds of its return: the last wait, and two seconds for the connection itself.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(3);
/// A link that held this long was a good one.
const GOOD: Duration = Duration::from_mins(1);
/// While a person is waited for: often enough that the question stays.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Frames that wait to go out.
const LINE: usize = 64;
/// Longest text of a question's params.
const PARAMS_MAX: usize = 256 << 10;
/// For a frame to be taken.
const SEND_WITHIN: Duration = Duration::from_secs(20);
/// A gateway from which nothing came for so long is gone: it ticks.
const SILENT: Duration = Duration::from_millis(3 * TICK_MS);

/// Connect refusals that no other try mends, beside those that a person decides.
const HOPELESS: [&str; 18] = [
    "AUTH_TOKEN_MISSING",
    "AUTH_TOKEN_MISMATCH",
    "AUTH_TOKEN_NOT_CONFIGURED",
    "AUTH_UNAUTHORIZED",
    "AUTH_DEVICE_TOKEN_MISMATCH",
    "AUTH_PASSWORD_MISSING",
    "AUTH_PASSWORD_MISMATCH",
    "DEVICE_AUTH_SIGNATURE_INVALID",
    "DEVICE_AUTH_PUBLIC_KEY_INVALID",
    "DEVICE_AUTH_DEVICE_ID_MISMATCH",
    "PROTOCOL_MISMATCH",
    "CREDENTIAL_NEEDED",
    "SERVER_NOT_VERIFIED",
    "STATE_CORRUPT",
    "STATE_MODE",
    "IDENTITY_MISMATCH",
    "IDENTITY_INVALID",
    "INVALID_PARAMS",
];

/// Why the gateway closed, where it means that this node is wanted no more.
const ENDED: [(&str, &str); 3] = [
    (
        "device-token-revoked",
        "this node was revoked at the gateway",
    ),
    (
        "device-pair-removed",
        "this node was removed at the gateway",
    ),
    (
        "replaced by a newer connection",
        "another node host with this machine's key took its place",
    ),
];

/// Runs as long as the room.
pub async fn keep(session: Arc<Session>, name: String, tell: impl Fn(NodeMsg) + Send + Sync) {
    let who = who(name);
    let mut wait = FIRST;
    let mut waits_for = None;
    loop {
        let began = Instant::now();
        let failure = match session.connect(&who).await {
            Ok(client) => {
                tracing::info!(target: "portcullis", url = %session.url(), device = %session.device_id(), "connected as a node; what it offers is approved with: portcullis nodes pending, portcullis nodes approve ID");
                waits_for = None;
                let lost = serve(client, &session.door(), &tell).await;
                tell(NodeMsg::Down);
                lost
            }
            Err(failure) => failure,
        };
        if let Some(failure) = hopeless(&failure) {
            tell(NodeMsg::Over(Box::new(failure)));
            return std::future::pending().await;
        }
        if failure.code == "PAIRING_REQUIRED" {
            if waits_for != failure.request_id {
                waits_for.clone_from(&failure.request_id);
                tracing::warn!(target: "portcullis", "{}", failure.lines().trim_end().replace('\n', "; "));
            }
            tokio::time::sleep(jittered(ASK_AGAIN)).await;
            continue;
        }
        if began.elapsed() >= GOOD {
            wait = FIRST;
        }
        tracing::warn!(target: "portcullis", again_ms = u64::try_from(wait.as_millis()).unwrap_or(0), "{}", clean(&failure.message));
        tokio::time::sleep(jittered(wait)).await;
        wait = next_wait(wait);
    }
}

fn next_wait(wait: Duration) -> Duration {
    (wait * 2).min(LAST)
}

/// Compares the gateway's log with what was seen of it, beside what it asks. A node serves a gateway whose log was put back
/// all the same: what may run is decided by the node's own document and its approvers. But it says so.
struct Comparison {
    under_way: Option<Comparing>,
    /// Of the question that is open.
    id: String,
}

impl Comparison {
    async fn start(client: &mut Client, door: &Door) -> Result<Self, Failure> {
        let mut begun = Self {
            under_way: None,
            id: String::new(),
        };
        if let Some((comparing, step)) = Comparing::start(door) {
            begun.under_way = Some(comparing);
            begun.go_on(client, step).await?;
        }
        Ok(begun)
    }

    async fn go_on(&mut self, client: &mut Client, step: Step) -> Result<(), Failure> {
        match step {
            Step::Done(_) => self.under_way = None,
            Step::Ask(method, params) => {
                let sent = tokio::time::timeout(SEND_WITHIN, client.send(method, params)).await;
                self.id = sent.unwrap_or_else(|_| Err(takes_nothing()))?;
            }
        }
        Ok(())
    }

    /// Whether the answer was for it.
    async fn answered(
        &mut self,
        client: &mut Client,
        id: &str,
        result: &Result<Value, ErrorBody>,
    ) -> Result<bool, Failure> {
        let Some(comparing) = self.under_way.as_mut().filter(|_| self.id == id) else {
            return Ok(false);
        };
        let result = match result {
            Ok(value) => Ok(value.clone()),
            Err(error) => Err(client.refusal(error)),
        };
        match comparing.answered(result) {
            Ok(step) => self.go_on(client, step).await?,
            Err(failure) => {
                self.under_way = None;
                let told = failure.lines().trim_end().replace('\n', "; ");
                if failure.code == codes::AUDIT_FORKED.name {
                    tracing::error!(target: "portcullis", "{told}");
                } else {
                    tracing::warn!(target: "portcullis", "the gateway's audit log could not be compared with what was seen of it: {told}");
                }
            }
        }
        Ok(true)
    }
}

fn takes_nothing() -> Failure {
    Failure::of(codes::ROOM_DOWN, "the gateway takes nothing any more")
}

fn who(name: String) -> Who {
    let mut more = Map::new();
    more.insert("commands".into(), json!(commands::OFFERED));
    more.insert("pathEnv".into(), HOST_PATH.into());
    Who {
        id: "node-host",
        mode: "node",
        role: Role::Node,
        scopes: vec![],
        caps: vec!["system".to_owned()],
        name: Some(name),
        more,
    }
}

/// Up to a quarter off, so that nodes that lost one gateway do not come back together.
fn jittered(wait: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness it is the whole wait.
    let _ = getrandom::fill(&mut byte);
    wait.mul_f64(1.0 - f64::from(byte[0]) / 1_024.0)
}

fn hopeless(failure: &Failure) -> Option<Failure> {
    let ended = ENDED.iter().find(|(word, _)| {
        // Only a close frame is told as a lost connection with a reason.
        failure.code == codes::DAEMON_UNREACHABLE.name && failure.message.contains(word)
    });
    if let Some((_, why)) = ended {
        let over = Failure::of(codes::SESSION_ENDED, *why);
        return Some(over.hint(
            "ask an operator of that gateway; to pair this machine anew start it again with --token-file FILE",
        ));
    }
    // A port of this machine may be the gateway's again a moment later; another key stays another.
    let may_pass = failure.code == codes::SERVER_NOT_VERIFIED.name && failure.retryable;
    (!may_pass && HOPELESS.contains(&failure.code.as_str())).then(|| failure.clone())
}

/// Until the link is lost: why.
async fn serve(mut client: Client, door: &Door, tell: &impl Fn(NodeMsg)) -> Failure {
    let (line, mut out) = mpsc::channel(LINE);
    tell(NodeMsg::Up(line, client.hello[RUN_NUMBER].as_u64()));
    let mut comparison = match Comparison::start(&mut client, door).await {
        Ok(comparison) => comparison,
        Err(failure) => return failure,
    };
    // Of each piece that was sent, its place.
    let mut places = BTreeMap::new();
    loop {
        tokio::select! {
            wanted = out.recv() => match wanted {
                Some(Out::Piece(params, place)) => {
                    let sent = client.send("node.invoke.progress", params);
                    match tokio::time::timeout(SEND_WITHIN, sent).await {
                        Ok(Ok(id)) => drop(places.insert(id, place)),
                        Ok(Err(failure)) => return failure,
                        Err(_) => return takes_nothing(),
                    }
                }
                Some(Out::Request(method, params)) => {
                    // A gateway that reads nothing is as good as gone.
                    let sent = tokio::time::timeout(SEND_WITHIN, client.send(method, params)).await;
                    match sent {
                        Ok(Ok(_)) => {}
                        Ok(Err(failure)) => return failure,
                        Err(_) => return takes_nothing(),
                    }
                }
                Some(Out::Close(gone)) => {
                    client.close().await;
                    // It waits for this, or it is gone itself.
                    let _ = gone.send(());
                    return std::future::pending().await;
                }
                // The room dropped it: it ends.
                None => return std::future::pending().await,
            },
            came = tokio::time::timeout(SILENT, client.next()) => match came {
                Ok(Ok(Incoming::Event { event, payload, .. })) => heard(&event, &payload, tell),
                Ok(Ok(Incoming::Answer { id, result })) => {
                    places.remove(&id);
                    match comparison.answered(&mut client, &id, &result).await {
                        Ok(true) => {}
                        Ok(false) => if let Err(error) = result {
                            tracing::debug!(target: "portcullis", code = %error.code, "the gateway did not take it");
                        },
                        Err(failure) => return failure,
                    }
                }
                Ok(Err(failure)) => return failure,
                Err(_) => return Failure::of(
                    codes::DAEMON_UNREACHABLE,
                    "the gateway has been silent for too long",
                ),
            },
        }
    }
}

fn heard(event: &str, payload: &Value, tell: &impl Fn(NodeMsg)) {
    let text = |key: &str| payload.get(key).and_then(Value::as_str);
    match event {
        "node.invoke.request" => {
            let (Some(id), Some(command)) = (text("id"), text("command")) else {
                return;
            };
            let params = text("paramsJSON").filter(|text| text.len() <= PARAMS_MAX);
            // Read by the command: what is no object is refused there.
            let params = params.and_then(|text| serde_json::from_str(text).ok());
            tell(NodeMsg::Asked(Box::new(Asked {
                id: id.to_owned(),
                command: command.to_owned(),
                params: params.unwrap_or(Value::Null),
            })));
        }
        "node.invoke.cancel" => {
            if let Some(id) = text("invokeId") {
                tell(NodeMsg::Cancelled(id.to_owned()));
            }
        }
        "node.pair.resolved" => {
            tracing::info!(target: "portcullis", decision = %clean(text("decision").unwrap_or("?")), "a person decided on what this node offers");
        }
        _ => {}
    }
}
