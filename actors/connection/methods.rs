//! Every method but `connect`, `health` and the runs: from its params to a room and back. The page calls the same.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use portcullis_core::approval::{Extent, Similar};
use portcullis_core::audit::{Entry, Outcome};
use portcullis_core::auth::{Door, Principal, Role, Scope};
use portcullis_core::codes::{self, Code};
use portcullis_core::ids::{AgentId, DeviceId};
use portcullis_core::pairing::{Caller, News as PairingNews};
use portcullis_core::plan::PlanKey;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::protocol::method::unknown;
use portcullis_core::time::Millis;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::Params;
use super::decisions::{Given, Reach, decided, told};
use super::messages::{Certificate, Sessions};
use super::peer::status_keys;
use crate::act::entry_of;
use crate::approval::{ApprovalEvent, ApprovalHandle, ApprovalRefusal, PolicyChange, Told};
use crate::audit::AuditHandle;
use crate::auth::AuthHandle;
use crate::clock::Clock;
use crate::dashboard::DashboardHandle;
use crate::exec::ExecHandle;
use crate::nodes::NodesHandle;
use crate::notices::NoticesHandle;
use crate::pairing::PairingHandle;
use crate::sandbox_pool::SandboxPoolHandle;
use crate::sinks::SinksHandle;
use crate::supervision::{FeedItem, FeedReader, Flag, FlagReader, Numbered, TreeWindow};
use crate::vault::VaultHandle;

/// `exec.approval.waitDecision` answers by then, decided or not.
const DECISION_WITHIN: Duration = Duration::from_mins(30);

/// The rooms behind the methods, and what a process knows of itself.
pub struct Methods {
    /// Devices.
    pub pairing: PairingHandle,
    /// Who comes in, and by which secrets.
    pub auth: AuthHandle,
    /// Secrets.
    pub vault: VaultHandle,
    /// Questions to people.
    pub approval: ApprovalHandle,
    /// Records.
    pub audit: AuditHandle,
    /// What opens the plans in them.
    pub plans: PlanKey,
    /// Where records go besides.
    pub sinks: SinksHandle,
    /// Who is told of questions.
    pub notices: NoticesHandle,
    /// One more than the connections that hear of questions: each has a share of it.
    pub audience: Arc<()>,
    /// Runs.
    pub exec: ExecHandle,
    /// Boxes.
    pub pool: SandboxPoolHandle,
    /// Node hosts.
    pub nodes: NodesHandle,
    /// Codes of the page.
    pub dashboard: DashboardHandle,
    /// `config.get`: redacted once, at start.
    pub config: Value,
    /// The tree, once it stands.
    pub tree: FlagReader<Option<TreeWindow>>,
    /// Devices with a live socket.
    pub connected: FlagReader<BTreeSet<DeviceId>>,
    /// All connections, once the edge stands.
    pub sessions: FlagReader<Option<Arc<dyn Sessions>>>,
    /// Where it listens.
    pub listeners: Vec<String>,
    /// The certificate, once the tree is planted.
    pub certificate: FlagReader<Option<Arc<dyn Certificate>>>,
    /// Its pin, for `status`; null where no TLS is spoken.
    pub tls: FlagReader<Value>,
    /// Of the page, without a trailing slash.
    pub page_url: String,
    /// Ours.
    pub version: &'static str,
    /// This machine's name.
    pub host: String,
    /// This start.
    pub boot_id: Arc<str>,
    /// The time.
    pub clock: Clock,
    /// When this process began.
    pub began: Instant,
}

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// As whom.
    pub principal: &'a Principal,
    /// Over which connection.
    pub connection: &'a str,
    /// When the last act ends that was proven over it; none where it is no socket of its own.
    pub proven: Option<&'a Flag<Millis>>,
}

pub(super) type Answer = Result<Value, ErrorBody>;

impl Methods {
    /// Answers one request, after [`portcullis_core::protocol::method::admit`].
    ///
    /// # Errors
    /// The error to answer with.
    pub async fn call(&self, about: About<'_>, method: &str, params: &Params<'_>) -> Answer {
        let by = about.principal;
        match method {
            "status" => {
                params.read::<StatusAsk>(method)?;
                self.status(by).await
            }
            "system-presence" => {
                params.read::<Nothing>(method)?;
                Ok(self.presence())
            }
            "approval.get" => self.approval_get(params).await,
            "approval.resolve" => self.approval_resolve(about, params).await,
            "approval.history" => self.approval_history(params).await,
            // Nothing here asks such questions: there are none.
            "plugin.approval.list" | "openclaw.approval.list" => {
                params.read::<Nothing>(method)?;
                Ok(json!([]))
            }
            "tls.show" | "tls.reload" => self.certificate(by, method, params).await,
            "config.get" => {
                params.read::<Nothing>(method)?;
                Ok(self.config.clone())
            }
            "sandbox.explain" => {
                let p: Whose = params.read(method)?;
                let explained = self.pool.explain(p.agent).await;
                let explained = explained
                    .map_err(|error| ErrorBody::of(codes::ROOM_DOWN, error.to_string()))?;
                Ok(json!(explained))
            }
            "sandbox.list" | "sandbox.end" => self.boxes(by, method, params).await,
            "device.pair.list"
            | "device.pair.approve"
            | "device.pair.reject"
            | "device.pair.remove"
            | "device.pair.rename"
            | "device.pair.setupCode"
            | "device.pair.setupStatus"
            | "device.token.rotate"
            | "device.token.revoke" => Box::pin(self.devices(about, method, params)).await,
            "node.pair.list" | "node.pair.approve" | "node.pair.reject" | "node.pair.remove"
            | "node.rename" => Box::pin(self.node_pairing(about, method, params)).await,
            "auth.token.rotate"
            | "auth.password.set"
            | "auth.password.remove"
            | "auth.password.list"
            | "agent.token.mint"
            | "agent.token.list"
            | "agent.token.revoke" => self.secrets(about, method, params).await,
            name if name.starts_with("vault.") => {
                Box::pin(self.vault_methods(about, method, params)).await
            }
            name if name.starts_with("audit.") => {
                Box::pin(super::audits::call(self, about, method, params)).await
            }
            "exec.approvals.get" => {
                params.read::<Nothing>(method)?;
                Ok(self
                    .approval
                    .policy_get()
                    .await
                    .map_err(approval)?
                    .to_json())
            }
            "exec.approvals.set" => self.policy_set(about, params).await,
            "exec.policy.test" | "exec.policy.explain" => {
                super::policy::call(self, method, params).await
            }
            "exec.approval.list" => {
                params.read::<Nothing>(method)?;
                self.approval.list_json().await.map_err(approval)
            }
            "exec.approval.get" => {
                let p: Get = params.read(method)?;
                let record = self.approval.get(&p.id).await.map_err(approval)?;
                let mut detail = record.detail_json();
                if p.similar {
                    let proposal = super::decisions::proposal(self, by, &record);
                    detail["similar"] = Box::pin(proposal).await?;
                }
                detail["sign"] = self.approval.terms(&record, self.clock.now());
                Ok(detail)
            }
            "exec.approval.waitDecision" => {
                let p: Id = params.read(method)?;
                let found = self.approval.get(&p.id).await.map_err(|refusal| {
                    let mut error = approval(refusal);
                    if error.stable_code() == codes::APPROVAL_NOT_FOUND.name {
                        // The wire's own words here.
                        "approval expired or not found".clone_into(&mut error.message);
                    }
                    error
                });
                let id = found?.id;
                let record = self
                    .approval
                    .wait(&id, DECISION_WITHIN)
                    .await
                    .map_err(approval)?;
                Ok(record.decision_json())
            }
            "exec.approval.resolve" => {
                let p: Resolve = params.read(method)?;
                let reach = Reach {
                    scope: p.scope,
                    expires_at_ms: p.expires_at_ms,
                    proof: p.proof,
                    similar: p.similar,
                };
                let days = (p.decision.as_str(), p.grant_expires_in_days);
                let reach = reach.for_days(method, days, self.clock.now())?;
                let told = Told {
                    note: p.reason,
                    ..told(method, &p.decision, reach)?
                };
                let resolved = self
                    .approval
                    .tell(&p.id, told, by, about.connection)
                    .await
                    .map_err(approval)?;
                Ok(decided(&resolved.record))
            }
            "exec.approval.grants.list" => {
                let p: Tail = params.read(method)?;
                let limit = p.limit.unwrap_or(usize::MAX);
                if p.limit.is_some_and(|limit| !(1..=500).contains(&limit)) {
                    return Err(ErrorBody::of(
                        codes::INVALID_PARAMS,
                        "invalid exec.approval.grants.list params: limit is 1 to 500",
                    ));
                }
                self.approval.grants_json(limit).await.map_err(approval)
            }
            "exec.approval.grants.revoke" => {
                let p: GrantId = params.read(method)?;
                self.approval
                    .revoke_grant(&p.grant_id, by)
                    .await
                    .map_err(approval)?;
                Ok(json!({ "outcome": "revoked" }))
            }
            "dashboard.code" => self.dashboard_code(by).await,
            name if name.starts_with("node.")
                || name.starts_with("exec.approvals.node.")
                || name == "skills.bins" =>
            {
                super::nodes::call(self, about, method, params).await
            }
            _ => Err(unknown(method)),
        }
    }

    /// How many devices and approvals wait for a person, as far as the rooms answer.
    pub async fn pending(&self, by: &Principal) -> (Option<usize>, Option<usize>) {
        let devices = match self.pairing.list(by, BTreeSet::new()).await {
            Ok(list) => list["pending"].as_array().map(Vec::len),
            Err(_) => None,
        };
        let approvals = self.approval.list().await.ok().map(|list| list.len());
        (devices, approvals)
    }

    async fn status(&self, by: &Principal) -> Answer {
        let view = self.tree.get().map(|tree| tree.look());
        let pool = self.pool.status().await.ok();
        let head = self.audit.head().await.ok();
        let broken = self.audit.broken().await;
        let broken = broken.unwrap_or_else(Some).map(|error| error.to_string());
        let (devices, approvals) = self.pending(by).await;
        let notices = self.notices.status().await;
        let mut status = status_keys();
        status["runtimeVersion"] = self.version.into();
        status["portcullis"] = json!({
                "version": self.version,
                "gatewayId": self.approval.gateway(),
                "uptimeMs": u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
                "driver": pool.map(|p| json!({ "name": p.driver, "detail": p.why, "boxes": p.boxes.len(), "warm": p.warm, "runner": p.runner, "others": p.others })),
                "rooms": view.map(|v| v.rooms).unwrap_or_default(),
                "pending": { "devices": devices, "approvals": approvals },
                "listeners": self.listeners,
                "tls": self.tls.get(),
                "auditHead": head,
                "auditError": broken,
                "sinks": self.sinks.status().await,
                "notices": notices.as_ref().map(|n| &n.channels),
                "plugins": notices.as_ref().map(|n| &n.plugins),
                "connectedDevices": self.connected.get().len(),
        });
        Ok(status)
    }

    async fn policy_set(&self, about: About<'_>, params: &Params<'_>) -> Answer {
        let p: SetPolicy = params.read("exec.approvals.set")?;
        let set = self
            .approval
            .policy_set(
                p.file,
                p.base_hash.as_deref(),
                about.principal,
                about.connection,
            )
            .await;
        match set.map_err(approval)? {
            PolicyChange::Applied(policy) => Ok(policy.to_json()),
            // No success: a client that knows of no such question would tell that the document stands.
            PolicyChange::Pending { id, expires_at } => {
                let mut details = serde_json::Map::new();
                details.insert("approvalId".into(), json!(id));
                details.insert("expiresAtMs".into(), json!(expires_at));
                Err(ErrorBody::with(
                    codes::CHANGE_WAITS,
                    format!(
                        "nothing is changed yet: it lets more run than before, and waits for an operator's answer to {id} on another connection"
                    ),
                    details,
                ))
            }
        }
    }

    async fn dashboard_code(&self, by: &Principal) -> Answer {
        // Who holds a code is an operator on the page: only the door that the kernel vouches for gives one.
        if by.door != Door::Control {
            return Err(ErrorBody::of(
                codes::MISSING_SCOPE,
                "a code is given on control.sock only: use `portcullis dashboard`",
            ));
        }
        let entry = Entry {
            action: "dashboard.code".to_owned(),
            ..entry_of(by)
        };
        let intent = self.audit.intent(entry).await;
        let intent = intent.map_err(|e| refused(e.code(), &e))?;
        let minted = self.dashboard.mint(by.scopes.clone(), by.name()).await;
        let outcome = match &minted {
            Ok(_) => Outcome::ok(),
            Err(_) => Outcome::failed(codes::ROOM_DOWN.name),
        };
        // A code that is not on record is not given out; it runs out within its minute.
        let recorded = self.audit.outcome_first(intent, outcome).await;
        let minted = minted.map_err(|e| ErrorBody::of(codes::ROOM_DOWN, e.to_string()))?;
        recorded.map_err(|e| refused(e.code(), &e))?;
        let code = minted.code.reveal();
        Ok(json!({
            "code": code,
            // In the fragment: it reaches no server, no log and no Referer.
            "url": format!("{}/login#{code}", self.page_url),
            "expiresAtMs": self.clock.now().plus(minted.for_ms),
        }))
    }

    /// How many connections hear of questions, beside one that does (`true`) or does not.
    pub(super) fn listeners_beside(&self, itself: bool) -> usize {
        Arc::strong_count(&self.audience)
            .saturating_sub(1)
            .saturating_sub(usize::from(itself))
    }

    /// What this principal may hear, by scope and capability (wire.md section 8).
    pub(super) fn news(&self, principal: &Principal, caps: &[String]) -> News {
        let hears = |scope| principal.role == Role::Operator && principal.scopes.allows(scope);
        // As with the peer: only who says that it can answer is told (wire.md section 10).
        let answers = hears(Scope::Approvals) && caps.iter().any(|c| c == "exec-approvals");
        News {
            pairing: hears(Scope::Pairing).then(|| self.pairing.news()),
            caller: Caller::of(principal),
            approval: answers.then(|| self.approval.feed()),
            audience: answers.then(|| self.audience.clone()),
        }
    }
}

/// The events of one connection.
pub(super) struct News {
    pairing: Option<FeedReader<PairingNews>>,
    /// It hears of the devices that it is shown.
    caller: Caller,
    approval: Option<FeedReader<ApprovalEvent>>,
    /// Its share of those that hear of questions, while it does.
    audience: Option<Arc<()>>,
}

/// What a connection hears.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// An event, by its name.
    Event(&'static str, Value),
    /// There were more than it could take: some are lost, and the client must be able to tell.
    Missed,
}

impl News {
    /// Does it hear of questions?
    pub const fn hears_questions(&self) -> bool {
        self.audience.is_some()
    }

    /// Is there nothing to hear?
    pub fn is_silent(&self) -> bool {
        self.pairing.is_none() && self.approval.is_none()
    }

    /// The next one. What has no more news is silent.
    pub async fn next(&mut self) -> Heard {
        loop {
            let heard = tokio::select! {
                item = next_of(&mut self.pairing) => match item {
                    Some(news) if !self.caller.may_touch(news.event.device()) => None,
                    Some(news) => news.event.to_wire(),
                    None => return Heard::Missed,
                },
                item = next_of(&mut self.approval) => match item {
                    Some(news) => news.event.to_wire(),
                    None => return Heard::Missed,
                },
            };
            if let Some((event, payload)) = heard {
                return Heard::Event(event, payload);
            }
        }
    }
}

/// `None`: some were missed.
async fn next_of<E: Send + Sync + 'static>(
    feed: &mut Option<FeedReader<E>>,
) -> Option<Arc<Numbered<E>>> {
    if let Some(reader) = feed {
        match reader.next().await {
            FeedItem::Event(event) => return Some(event),
            FeedItem::Lagged => return None,
            FeedItem::Closed => *feed = None,
        }
    }
    std::future::pending().await
}

/// One of our codes, by its name.
pub(super) fn refused(code: &str, text: &dyn Display) -> ErrorBody {
    let code: &'static Code = codes::find(code).unwrap_or(codes::INTERNAL);
    ErrorBody::of(code, text.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
pub(super) fn approval(refusal: ApprovalRefusal) -> ErrorBody {
    let mut error = refused(refusal.code(), &refusal);
    if let (Some(reason), Some(details)) = (refusal.reason(), error.details.as_mut()) {
        details["reason"] = reason.into();
        if let Some(code) = codes::find(refusal.code()) {
            details["remediation"] = code.next.into();
        }
    }
    error
}

pub(super) fn internal(error: &dyn Display) -> ErrorBody {
    tracing::error!(target: "portcullis", %error, "an answer could not be written");
    ErrorBody::of(codes::INTERNAL, "the answer could not be written")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// What the peer's clients ask of `status` (wire.md 11); here there is nothing to leave out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusAsk {
    #[serde(default, rename = "includeChannelSummary")]
    _channels: Option<bool>,
    #[serde(default, rename = "includeCliProjection")]
    _cli: Option<bool>,
}

/// Whose sandbox; none: that of agents that nothing is said of.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    #[serde(default)]
    agent: Option<AgentId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Id {
    id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Resolve {
    id: String,
    decision: String,
    /// For who asked.
    #[serde(default)]
    reason: Option<String>,
    #[serde(default, rename = "reviewer")]
    _reviewer: Option<Value>,
    #[serde(default)]
    scope: Option<Extent>,
    #[serde(default)]
    expires_at_ms: Option<u64>,
    #[serde(default)]
    grant_expires_in_days: Option<u64>,
    #[serde(default)]
    proof: Option<Given>,
    /// Ours: the rule as `exec.approval.get` has proposed it.
    #[serde(default)]
    similar: Option<Similar>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Get {
    id: String,
    /// Ours: with what could be allowed as similar.
    #[serde(default)]
    similar: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GrantId {
    grant_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SetPolicy {
    file: Value,
    #[serde(default)]
    base_hash: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Name {
    pub name: String,
}

/// A text that is wiped when it is done with.
pub(super) struct Wiped(pub zeroize::Zeroizing<String>);

impl<'de> Deserialize<'de> for Wiped {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(|text| Self(text.into()))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Tail {
    #[serde(default)]
    limit: Option<usize>,
}

#[cfg(test)]
mod tests {
    use portcullis_core::pairing::Decision;
    use portcullis_core::time::Millis;

    use super::*;
    use crate::supervision::Feed;

    fn person() -> Caller {
        Caller {
            scopes: [Scope::Pairing].into_iter().collect(),
            device: None,
            is_device: false,
            behind: BTreeSet::new(),
        }
    }

    fn resolved(n: u64, digit: &str) -> PairingNews {
        PairingNews::Resolved {
            request_id: n.to_string(),
            device_id: DeviceId::new(&digit.repeat(64)).unwrap(),
            decision: Decision::Approved,
            at_ms: Millis(n),
        }
    }

    /// The bug: a device without admin is shown itself alone, and heard of all others' requests.
    #[tokio::test]
    async fn a_device_without_admin_hears_of_itself_alone() {
        let feed = Feed::new();
        let own = Caller {
            device: Some(DeviceId::new(&"a".repeat(64)).unwrap()),
            is_device: true,
            behind: BTreeSet::new(),
            ..person()
        };
        let admin = Caller {
            scopes: [Scope::Admin].into_iter().collect(),
            ..own.clone()
        };
        for (caller, first) in [(own, "2"), (admin, "1"), (person(), "1")] {
            let mut news = News {
                audience: None,
                pairing: Some(feed.subscribe()),
                caller,
                approval: None,
            };
            feed.publish(resolved(1, "b"));
            feed.publish(resolved(2, "a"));
            let Heard::Event(_, payload) = news.next().await else {
                panic!()
            };
            assert_eq!(payload["requestId"], first);
        }
    }

    /// The bug: a connection that could not keep up lost events without a trace.
    #[tokio::test]
    async fn events_that_a_slow_connection_missed_leave_a_gap() {
        let feed = Feed::new();
        let mut news = News {
            audience: None,
            pairing: Some(feed.subscribe()),
            caller: person(),
            approval: None,
        };
        let resolved = |n| resolved(n, "a");
        feed.publish(resolved(0));
        assert!(matches!(
            news.next().await,
            Heard::Event("device.pair.resolved", _)
        ));
        for n in 1..2_000 {
            feed.publish(resolved(n));
        }
        assert_eq!(news.next().await, Heard::Missed);
        let mut heard = 0;
        while let Some(Heard::Event(_, payload)) =
            futures_util::FutureExt::now_or_never(news.next())
        {
            heard += 1;
            if payload["requestId"] == "1999" {
                break;
            }
        }
        assert!((1..1_999).contains(&heard), "{heard}");
    }
}
